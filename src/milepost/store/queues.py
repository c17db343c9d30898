"""Queues that have a limit or are paused, with how many of their runs execute."""

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, select

from milepost.store.schema import queues
from milepost.store.statements import Lookup, Statement, upsert


class QueueRow(msgspec.Struct, gc=False):
    """A queue. `concurrency` is how many of its runs may execute at once, None for any number; `executing` do so now, and `resuming`
    ones that wait would go on if there was room."""

    name: str
    concurrency: int | None
    is_paused: int = 0
    executing: int = 0
    resuming: int = 0

    @property
    def room(self) -> int | None:
        """How many more of its queued runs may be claimed; None for any number. Those that would go on come before them."""
        if self.is_paused:
            return 0
        return None if self.concurrency is None else max(0, self.concurrency - self.executing - self.resuming)

    @property
    def room_to_resume(self) -> int | None:
        """How many more of its waiting runs may go on; None for any number. A pause holds up queued runs only."""
        return None if self.concurrency is None else max(0, self.concurrency - self.executing)


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


def load_queues(connection: Connection, names: Iterable[str]) -> dict[str, QueueRow]:
    """The queues that have a row, by name."""
    return {values[0]: QueueRow(*values) for values in _BY_NAME.read(connection, names)}


def all_queues(connection: Connection) -> list[QueueRow]:
    """Every queue that has a row."""
    return [QueueRow(*values) for values in connection.execute(select(*_COLUMNS))]


def save_queues(connection: Connection, rows: Iterable[QueueRow]) -> None:
    """Keep queues."""
    _SAVE.write(connection, [msgspec.structs.astuple(row) for row in rows])
