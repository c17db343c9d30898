"""The database of a simulation: one file in memory, which one server has open, or each of several."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, delete

from milepost.errors import CommitUnknownError, UnavailableError
from milepost.store import schema
from milepost.store.database import Store
from support.faults import FailingConnection
from support.world import new_store

SERVERS_MAX = 3


class SharedStore(Store):
    """The database as one of several servers has it. Nobody is offered that with SQLite, but a file locks as one database does.

    Attributes:
        is_cut_off: the server does not reach the database.
        loses_answer: the answer to the next commit gets lost, so that nobody knows whether it was made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, synchronous="NORMAL", connection_class=FailingConnection)
        self.is_shared = True
        self.is_cut_off = False
        self.loses_answer = False

    @property
    def fails(self) -> bool:
        """True while something is wrong with the next transaction."""
        return self.is_cut_off or self.loses_answer

    @contextmanager
    def write(self) -> Generator[Connection]:
        """See `Store`."""
        self._reach()
        with super().write() as connection:
            yield connection
        if self.loses_answer:
            self.loses_answer = False
            raise CommitUnknownError("the answer to the commit got lost")

    @contextmanager
    def read(self) -> Generator[Connection]:
        """See `Store`."""
        self._reach()
        with super().read() as connection:
            yield connection

    def _reach(self) -> None:
        if self.is_cut_off:
            raise UnavailableError("the database cannot be reached")


@dataclass
class Database:
    """An empty database, for one simulation after the other.

    Attributes:
        store: as the only server has it, and as whoever judges does.
        shared: as each of several servers has it.
    """

    path: Path
    store: Store = field(init=False)
    shared: list[SharedStore] = field(init=False)

    def __post_init__(self) -> None:
        self.store = new_store(self.path)
        self.shared = [SharedStore(self.path) for _ in range(SERVERS_MAX)]
        for store in (self.store, *self.shared):
            # To look whether the files are in their place takes a quarter of the time, and here nobody moves them.
            store._database.check_place = lambda: None  # type: ignore[method-assign]

    def wipe(self) -> None:
        """Make it an empty one again, which is quicker than a new one."""
        for store in self.shared:
            store.is_cut_off = store.loses_answer = False
        with self.store.write() as connection:
            for table in schema.tables.sorted_tables:
                connection.execute(table.delete())

    def forget_announcements(self) -> None:
        """What servers have told each other is deleted, as it is after a while. Who has not heard of it has a gap."""
        with self.store.write() as connection:
            connection.execute(delete(schema.announcements))

    def close(self) -> None:
        """Close every connection."""
        for store in (self.store, *self.shared):
            store.close()
