"""How many runs are queued or due, and since when: bounded looks into the indexes by which they are claimed."""

from collections.abc import Sequence
from functools import cache
from itertools import chain

import msgspec
from sqlalchemy import (
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    union_all,
)

from milepost.store.schema import runs
from milepost.store.statements import Statement, padded

# Places in one statement. To compile one with many takes long, and nobody else gets on meanwhile.
PLACES = 16
# In the words of the partial index, which is found by them.
_QUEUED = and_(runs.c.status == literal_column("'QUEUED'"), runs.c.is_apart == literal_column("0"))
_DUE = and_(_QUEUED, runs.c.concurrency_key.is_(None))
_DUE_BY_KEY = and_(_QUEUED, runs.c.concurrency_key.is_not(None))
_EXECUTING = and_(
    runs.c.status.in_([literal_column("'EXECUTING'"), literal_column("'WAITING'")]),
    runs.c.status == literal_column("'EXECUTING'"),
)


class DueRuns(msgspec.Struct, frozen=True, gc=False):
    """The due runs of a place, counted up to a limit. `oldest_at` is when the oldest of them became due, microseconds since 1970."""

    task: str
    queue: str
    count: int
    oldest_at: int


def due_runs(
    connection: Connection, places: Sequence[tuple[str, str]], *, limit: int, now: int, keyed: bool = False
) -> list[DueRuns]:
    """The places, each a task and a queue, in which runs are due; up to `limit` runs are counted of each.

    Runs that have to execute apart, which are few, are not counted.

    Args:
        keyed: count the runs that have a concurrency key, and not the others. When the oldest of them became due is then that of those
            that were counted.
    """
    found: list[DueRuns] = []
    for start in range(0, len(places), PLACES):
        chunk = padded(tuple(places[start : start + PLACES]), ("", ""))
        rows = _statement(len(chunk), keyed).read(connection, (now, limit, *chain.from_iterable(chunk)))  # pyright: ignore[reportArgumentType]
        for number, count, oldest_at in rows:
            task, queue = places[start + int(number)]
            found.append(DueRuns(task, queue, count, oldest_at))
    return found


@cache
def _statement(place_count: int, keyed: bool) -> Statement:
    names = [(f"task_{number}", f"queue_{number}") for number in range(place_count)]
    parts = [
        select(runs.c.due_at)
        .where(
            _DUE_BY_KEY if keyed else _DUE,
            runs.c.task == bindparam(task),
            runs.c.queue == bindparam(queue),
            runs.c.due_at <= bindparam("now"),
        )
        .order_by(*([] if keyed else [runs.c.due_at]))
        .limit(bindparam("count", type_=Integer))
        .subquery()
        for task, queue in names
    ]
    counts = [
        select(
            literal_column(str(number), Integer).label("place"),
            func.count().label("count"),
            func.min(part.c.due_at, type_=Integer).label("oldest"),
        )
        for number, part in enumerate(parts)
    ]
    counted = union_all(*counts).subquery()
    return Statement(
        select(counted.c.place, counted.c.count, counted.c.oldest).where(
            counted.c.count > literal_column("0")
        ),
        ["now", "count", *chain.from_iterable(names)],
    )


def count_queued(
    connection: Connection, tasks: Sequence[str], queue: str, *, limit: int, key: str | None = None
) -> int:
    """How many runs of these tasks are queued in a queue, with a concurrency key where one is given; counted up to `limit`."""
    found = 0
    for task in tasks:
        for condition in (_DUE_BY_KEY,) if key is not None else (_DUE, _DUE_BY_KEY):
            statement = select(runs.c.id).where(condition, runs.c.task == task, runs.c.queue == queue)
            if key is not None:
                statement = statement.where(runs.c.concurrency_key == key)
            found += _count(connection, statement, limit - found)
            if found >= limit:
                return limit
    return found


def count_before(
    connection: Connection,
    tasks: Sequence[str],
    queue: str,
    key: str | None,
    due_at: int,
    run_id: str,
    *,
    limit: int,
) -> int:
    """How many runs of these tasks stand before a run in a queue, of those with the same concurrency key; counted up to `limit`."""
    found = 0
    for task in tasks:
        of_key = _DUE if key is None else and_(_DUE_BY_KEY, runs.c.concurrency_key == key)
        statement = select(runs.c.id).where(
            of_key,
            runs.c.task == task,
            runs.c.queue == queue,
            runs.c.due_at <= due_at,
            or_(runs.c.due_at < due_at, runs.c.id < run_id),
        )
        found += _count(connection, statement, limit - found)
        if found >= limit:
            return limit
    return found


def _count(connection: Connection, statement: Select[str], limit: int) -> int:
    some = statement.limit(limit).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def executing_ids(connection: Connection, queue: str, key: str | None, *, limit: int) -> list[str]:
    """Some of the runs of a queue and a concurrency key (None: without one) that execute."""
    of_key = runs.c.concurrency_key.is_(None) if key is None else runs.c.concurrency_key == key
    statement = select(runs.c.id).where(_EXECUTING, runs.c.queue == queue, of_key).limit(limit)
    return sorted(connection.execute(statement).scalars())


def count_executing(connection: Connection, queue: str, *, limit: int) -> int:
    """How many runs of a queue execute; counted up to `limit`. All runs that any worker holds may be looked at."""
    return _count(connection, select(runs.c.id).where(_EXECUTING, runs.c.queue == queue), limit)
