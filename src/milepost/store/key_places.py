"""The line of concurrency keys of each task and queue: where a claim looks next for runs that have one.

It is a hint, and no place is missing: where a run with a key is queued there is a row, whose `look_at` is not after the run is due;
it is nothing only while the limit of the queue is reached for the key, and whoever makes room there sets it again.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain

import msgspec
from sqlalchemy import (
    Connection,
    Integer,
    and_,
    bindparam,
    delete,
    literal_column,
    select,
    union_all,
    update,
)

from milepost.store.schema import key_places, runs
from milepost.store.statements import Row, Statement, padded, upsert

# Tasks and queues in one statement.
PAIRS = 64
_QUEUED = and_(
    runs.c.status == literal_column("'QUEUED'"),
    runs.c.is_apart == literal_column("0"),
    runs.c.concurrency_key.is_not(None),
)
# In the words of the partial index.
_IN_LINE = key_places.c.look_at.is_not(None)


class KeyPlace(msgspec.Struct, frozen=True, gc=False):
    """A place in the line: runs of a task in a queue that have this concurrency key."""

    queue: str
    key: str
    task: str


_NEW = upsert(key_places)
_OFFER = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["queue", "key", "task"],
        set_={"look_at": _NEW.excluded.look_at},
        where=key_places.c.look_at > _NEW.excluded.look_at,
    ),
    ["queue", "key", "task", "look_at", "turn"],
    key=["queue", "key", "task"],
)
_AT = and_(
    key_places.c.queue == bindparam("of_queue", type_=key_places.c.queue.type),
    key_places.c.key == bindparam("of_key", type_=key_places.c.key.type),
)
_AT_PLACE = and_(_AT, key_places.c.task == bindparam("of_task", type_=key_places.c.task.type))
_SAVE = Statement(
    update(key_places)
    .where(_AT_PLACE)
    .values(
        look_at=bindparam("new_look_at", type_=key_places.c.look_at.type),
        turn=bindparam("new_turn", type_=key_places.c.turn.type),
    ),
    ["new_look_at", "new_turn", "of_queue", "of_key", "of_task"],
    key=["of_queue", "of_key", "of_task"],
)
_DELETE = Statement(
    delete(key_places).where(_AT_PLACE),
    ["of_queue", "of_key", "of_task"],
    key=["of_queue", "of_key", "of_task"],
)
_OPEN = Statement(
    update(key_places)
    .where(_AT, key_places.c.look_at.is_(None))
    .values(look_at=bindparam("new_look_at", type_=key_places.c.look_at.type), turn=literal_column("0")),
    ["new_look_at", "of_queue", "of_key"],
    key=["of_queue", "of_key"],
)


def offer_keys(connection: Connection, due: Iterable[tuple[KeyPlace, int]]) -> None:
    """Runs were queued at these places, which become due then. Where the limit is reached, nobody looks before there is room."""
    _OFFER.write(connection, [(place.queue, place.key, place.task, due_at, 0) for place, due_at in due])


def open_keys(connection: Connection, pairs: Iterable[tuple[str, str]], *, now: int) -> None:
    """There may be room for these queues and concurrency keys."""
    _OPEN.write(connection, [(now, queue, key) for queue, key in pairs])


def open_queue(connection: Connection, queue: str, *, now: int) -> None:
    """There may be room for every concurrency key of a queue."""
    statement = update(key_places).where(key_places.c.queue == queue, key_places.c.look_at.is_(None))
    connection.execute(statement.values(look_at=now, turn=0))


def look_later(connection: Connection, looks: Sequence[tuple[KeyPlace, int | None, int]]) -> None:
    """When these places are to be looked at, and in which order; None: not before there is room."""
    rows: list[Row] = [(look_at, turn, place.queue, place.key, place.task) for place, look_at, turn in looks]
    _SAVE.write(connection, rows)


def forget(connection: Connection, places: Sequence[KeyPlace]) -> None:
    """Nothing is queued at these places."""
    _DELETE.write(connection, [(place.queue, place.key, place.task) for place in places])


def first_in_line(
    connection: Connection, pairs: Sequence[tuple[str, str]], *, limit: int, now: int
) -> list[KeyPlace]:
    """The first places of these tasks and queues where there may be due runs: up to `limit`, in their order."""
    found: list[Row] = []
    for start in range(0, len(pairs), PAIRS):
        chunk = padded(tuple(pairs[start : start + PAIRS]), ("", ""))
        found += _line_statement(len(chunk)).read(connection, (now, limit, *chain.from_iterable(chunk)))  # pyright: ignore[reportArgumentType]
    found.sort()
    return [KeyPlace(queue, key, task) for _, _, key, queue, task in found[:limit]]


@cache
def _line_statement(pair_count: int) -> Statement:
    names = _names(pair_count)
    columns = [key_places.c[name] for name in ("look_at", "turn", "key", "queue", "task")]
    parts = [
        select(*columns)
        .where(
            _IN_LINE,
            key_places.c.task == bindparam(task),
            key_places.c.queue == bindparam(queue),
            key_places.c.look_at <= bindparam("now"),
        )
        .order_by(key_places.c.look_at, key_places.c.turn, key_places.c.key)
        .limit(bindparam("count", type_=Integer))
        .subquery()
        for task, queue in names
    ]
    rows = union_all(*(select(part) for part in parts)).subquery()
    return Statement(
        select(rows.c.look_at, rows.c.turn, rows.c.key, rows.c.queue, rows.c.task),
        ["now", "count", *chain.from_iterable(names)],
    )


def next_look_at(connection: Connection, after: int, pairs: Sequence[tuple[str, str]]) -> int | None:
    """When the next place of these tasks and queues is to be looked at that is not yet at `after`; None when there is none."""
    found: list[int] = []
    for start in range(0, len(pairs), PAIRS):
        chunk = padded(tuple(pairs[start : start + PAIRS]), ("", ""))
        rows = _next_statement(len(chunk)).read(connection, (after, *chain.from_iterable(chunk)))
        found += [look_at for (look_at,) in rows]
    return min(found, default=None)


@cache
def _next_statement(pair_count: int) -> Statement:
    names = _names(pair_count)
    parts = [
        select(key_places.c.look_at)
        .where(
            _IN_LINE,
            key_places.c.task == bindparam(task),
            key_places.c.queue == bindparam(queue),
            key_places.c.look_at > bindparam("after"),
        )
        .order_by(key_places.c.look_at)
        .limit(literal_column("1"))
        .subquery()
        for task, queue in names
    ]
    rows = union_all(*(select(part) for part in parts)).subquery()
    return Statement(select(rows.c.look_at), ["after", *chain.from_iterable(names)])


def _names(pair_count: int) -> list[tuple[str, str]]:
    return [(f"task_{number}", f"queue_{number}") for number in range(pair_count)]


def keyed_pairs(connection: Connection) -> list[tuple[str, str]]:
    """Each task and queue of which there are places."""
    found = connection.execute(select(key_places.c.task, key_places.c.queue).distinct())
    return [(task, queue) for task, queue in found]


def has_places(connection: Connection, task: str, queue: str) -> bool:
    """Whether there is a place of this task and queue."""
    here = select(key_places.c.key).where(key_places.c.task == task, key_places.c.queue == queue)
    return connection.execute(here.limit(1)).first() is not None


def queued_keys(connection: Connection, queue: str, *, limit: int) -> list[str]:
    """Concurrency keys of a queue with places in the line, in the order of their texts; nothing need be queued there any more."""
    statement = (
        select(key_places.c.key).where(key_places.c.queue == queue).distinct().order_by(key_places.c.key)
    )
    return list(connection.execute(statement.limit(limit)).scalars())


def shift_looks(connection: Connection, microseconds: int, *, now: int) -> None:
    """The clock was set, and with it the times at which queued runs become due: see `store.runs.shift_due`."""
    after = now - microseconds if microseconds > 0 else 0
    statement = update(key_places).where(_IN_LINE, key_places.c.look_at > after)
    connection.execute(statement.values(look_at=key_places.c.look_at + microseconds))
