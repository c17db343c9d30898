"""Queues that have a rule, and their concurrency keys, with how many of their runs execute."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, select

from milepost.model.rates import Rate, Starts, parse_rate
from milepost.store.schema import queue_keys, queues
from milepost.store.statements import Lookup, Statement, padded, parameters, upsert

_DECODE_STARTS = msgspec.json.Decoder(Starts)


class QueueRow(msgspec.Struct, gc=False):
    """A queue. `concurrency` is how many of its runs may execute at once as its tasks say it, None for any number, and
    `concurrency_override` what was set instead. The limit holds for the runs of each concurrency key by themselves, and for those
    without one: of these `executing` execute now, and `resuming` ones that wait would go on if there was room.

    `rate` is how many may start in a period, whatever their keys; `starts` when the last ones have, JSON.
    """

    name: str
    concurrency: int | None
    is_paused: int = 0
    executing: int = 0
    resuming: int = 0
    concurrency_override: int | None = None
    overridden_at: int | None = None
    rate: str | None = None
    starts: str | None = None

    @property
    def limit(self) -> int | None:
        """How many runs may execute at once; None for any number."""
        return self.concurrency if self.concurrency_override is None else self.concurrency_override

    def rate_rule(self) -> Rate | None:
        """The rate, if there is one."""
        return None if self.rate is None else parse_rate(self.rate)

    def rate_starts(self) -> Starts:
        """When the last runs have started that the rate counts."""
        return [] if self.starts is None else _DECODE_STARTS.decode(self.starts)

    def start(self, now: int) -> None:
        """A run starts."""
        rate = self.rate_rule()
        if rate is not None:
            self.starts = msgspec.json.encode(rate.with_start(self.rate_starts(), now)).decode()


class QueueKeyRow(msgspec.Struct, gc=False):
    """The runs of a queue that have one concurrency key, counted as `QueueRow` does."""

    queue: str
    key: str
    executing: int = 0
    resuming: int = 0


_COLUMNS = [queues.c[name] for name in QueueRow.__struct_fields__]
_BY_NAME = Lookup(select(*_COLUMNS), queues.c.name)
_NEW = upsert(queues)
_SAVE = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["name"],
        set_={name: _NEW.excluded[name] for name in QueueRow.__struct_fields__ if name != "name"},
    ),
    QueueRow.__struct_fields__,
    key=["name"],
)
_KEY_COLUMNS = [queue_keys.c[name] for name in QueueKeyRow.__struct_fields__]
_NEW_KEY = upsert(queue_keys)
_SAVE_KEYS = Statement(
    _NEW_KEY.on_conflict_do_update(
        index_elements=["queue", "key"],
        set_={name: _NEW_KEY.excluded[name] for name in ("executing", "resuming")},
    ),
    QueueKeyRow.__struct_fields__,
    key=["queue", "key"],
)
_DELETE_KEYS = Statement(
    delete(queue_keys).where(
        queue_keys.c.queue == bindparam("of_queue", type_=queue_keys.c.queue.type),
        queue_keys.c.key == bindparam("of_key", type_=queue_keys.c.key.type),
    ),
    ["of_queue", "of_key"],
    key=["of_queue", "of_key"],
)
_LOAD_KEYS: dict[int, Statement] = {}


def load_queues(connection: Connection, names: Iterable[str]) -> dict[str, QueueRow]:
    """The queues that have a row, by name."""
    return {values[0]: QueueRow(*values) for values in _BY_NAME.read(connection, names)}


def all_queues(connection: Connection) -> list[QueueRow]:
    """Every queue that has a row."""
    return [QueueRow(*values) for values in connection.execute(select(*_COLUMNS))]


def rated_queues(connection: Connection) -> list[QueueRow]:
    """Every queue that has a rate."""
    statement = select(*_COLUMNS).where(queues.c.rate.is_not(None))
    return [QueueRow(*values) for values in connection.execute(statement)]


def save_queues(connection: Connection, rows: Iterable[QueueRow]) -> None:
    """Keep queues."""
    _SAVE.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_queue_keys(connection: Connection, queue: str, keys: Sequence[str]) -> list[QueueKeyRow]:
    """Those of the concurrency keys of a queue of which a run executes or would go on."""
    if not keys:
        return []
    wanted = padded(tuple(keys))
    statement = _LOAD_KEYS.get(len(wanted))
    if statement is None:
        names = [f"key_{number}" for number in range(len(wanted))]
        statement = _LOAD_KEYS[len(wanted)] = Statement(
            select(*_KEY_COLUMNS).where(
                queue_keys.c.queue == bindparam("of_queue"), queue_keys.c.key.in_(parameters(names))
            ),
            ["of_queue", *names],
        )
    return [QueueKeyRow(*values) for values in statement.read(connection, (queue, *wanted))]


def save_queue_keys(connection: Connection, rows: Iterable[QueueKeyRow]) -> None:
    """Keep what is counted of concurrency keys; of one without any run nothing is kept."""
    kept: list[tuple[str, str, int, int]] = []
    gone: list[tuple[str, str]] = []
    for row in rows:
        if row.executing or row.resuming:
            kept.append(msgspec.structs.astuple(row))
        else:
            gone.append((row.queue, row.key))
    _SAVE_KEYS.write(connection, kept)
    _DELETE_KEYS.write(connection, gone)


def keys_at_work(connection: Connection, queue: str, *, limit: int) -> list[QueueKeyRow]:
    """Concurrency keys of a queue of which runs execute or would go on, in the order of their texts."""
    statement = (
        select(*_KEY_COLUMNS).where(queue_keys.c.queue == queue).order_by(queue_keys.c.key).limit(limit)
    )
    return [QueueKeyRow(*values) for values in connection.execute(statement)]


def count_of_keys(connection: Connection, queue: str) -> tuple[int, int]:
    """How many runs with any concurrency key execute, and would go on."""
    counted = select(
        func.coalesce(func.sum(queue_keys.c.executing), 0), func.coalesce(func.sum(queue_keys.c.resuming), 0)
    ).where(queue_keys.c.queue == queue)
    executing, resuming = connection.execute(counted).one()
    return int(executing), int(resuming)


def resuming_keys(connection: Connection, queue: str) -> list[str]:
    """The concurrency keys of a queue of which runs would go on."""
    statement = select(queue_keys.c.key).where(queue_keys.c.queue == queue, queue_keys.c.resuming > 0)
    return list(connection.execute(statement.order_by(queue_keys.c.key)).scalars())
