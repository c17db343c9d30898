"""What a database has to be for the store: the ways in which SQLite and PostgreSQL differ, and nothing else."""

from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError


class Ear(Protocol):
    """Hears of what others commit, from `start` to `stop`."""

    @property
    def is_notified(self) -> bool:
        """Whether notifications arrive; otherwise it looks now and then. Thread-safe."""
        ...

    def start(self) -> None:
        """Begin to hear."""
        ...

    def stop(self) -> None:
        """Hear no more; may be called twice."""
        ...


class DatabaseKind(Protocol):
    """One database of some kind, and how it is opened, locked and asked why it refuses."""

    @property
    def place(self) -> str:
        """Where it is, for messages: never a password."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several servers may work on it."""
        ...

    @property
    def has_plain_tables(self) -> bool:
        """Whether a new database has nothing but the tables of `schema.py`, so that no migration is needed to make them."""
        ...

    @property
    def is_displaced(self) -> bool:
        """True when it is no longer where it was opened: what is written then would be found by nobody."""
        ...

    def prepare(self) -> None:
        """Make what can be made before anything is opened. Raises ConfigurationError."""
        ...

    def opened(self) -> None:
        """Told when the tables are there."""
        ...

    def check_place(self) -> None:
        """Raise UnavailableError when it is no longer where it was opened."""
        ...

    def writer(self) -> Engine:
        """The engine of the one connection that writes."""
        ...

    @property
    def reader_count(self) -> int:
        """How many connections read at most."""
        ...

    def readers(self) -> Engine:
        """The engine of the connections that read."""
        ...

    def begin_writing(self, connection: Connection) -> None:
        """Begin a transaction beside which no other one writes, on this server or another."""
        ...

    def was_changed(self, connection: Connection) -> bool:
        """Whether somebody may have committed something past the writer since this was asked last, in a transaction of the writer. Not
        asked where several servers may be, who tell each other."""
        ...

    def begin_reading(self, connection: Connection) -> None:
        """Begin a transaction that sees one state of the database, and cannot change it."""
        ...

    def begin_migrating(self, connection: Connection) -> None:
        """Begin a transaction that may change tables: as `begin_writing`, and it may take its time."""
        ...

    def commit(self, connection: Connection) -> None:
        """Commit. It returns when the transaction is committed and raises when it is not.

        Raises: CommitUnknownError, when neither could be found out.
        """
        ...

    def now(self, connection: Connection) -> int:
        """Its time, microseconds since 1970."""
        ...

    def listener(self, woken: Callable[[int | None], None]) -> "Ear | None":
        """What calls `woken` whenever another server may have committed something, with the number of its announcement where that is
        known; None where there are no others."""
        ...

    def is_broken(self, connection: Connection) -> bool:
        """Whether the connection is of no use any more and another one should be made."""
        ...

    def is_unavailable(self, error: DBAPIError) -> bool:
        """True when the database cannot be had at the moment, false when the statement is wrong."""
        ...

    def is_away(self, error: DBAPIError) -> bool:
        """True when no connection can be had at the moment, false when one would be refused later too. Of an error of connecting."""
        ...

    def reason(self, error: DBAPIError) -> str:
        """What the database says is wrong, in one line, and the cure where it is known."""
        ...
