"""A database that fails on demand: the n-th statement of a transaction, those that a test picks, or the commit."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus

from milepost.store.database import Store


class Faults:
    """What fails, decided statement by statement.

    Attributes:
        seen: statements that were asked for, the failed ones included.
        failed: how many of them failed.
    """

    def __init__(self, fails: Callable[[int, str], bool]) -> None:
        self.seen = 0
        self.failed = 0
        self._fails = fails

    def next_fails(self, statement: str) -> bool:
        """Whether this statement, the next one, fails."""
        self.seen += 1
        fails = self._fails(self.seen, statement)
        self.failed += fails
        return fails


class FailingConnection(sqlite3.Connection):
    """A connection of the driver whose statements, `BEGIN` and `COMMIT` among them, fail when `faults` says so."""

    faults: Faults | None = None

    def cursor(self, *_: Any) -> sqlite3.Cursor:  # type: ignore[override]
        return super().cursor(_FailingCursor)


class _FailingCursor(sqlite3.Cursor):
    connection: FailingConnection

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        self._before(statement)
        return super().execute(statement, *parameters)

    def executemany(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        self._before(statement)
        return super().executemany(statement, *parameters)

    def _before(self, statement: str) -> None:
        if self.connection.faults is not None and self.connection.faults.next_fails(statement):
            raise sqlite3.OperationalError("disk I/O error")


class FailingPostgresConnection(psycopg.Connection[Any]):
    """The same for PostgreSQL; what begins a transaction is one statement."""

    faults: Faults | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _FailingPostgresCursor


# Fails at the database, as its disk would let it.
_FAILURE = """
DO $$ BEGIN RAISE EXCEPTION 'could not write to file: input/output error' USING ERRCODE = 'io_error'; END $$
"""


class _FailingPostgresCursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *parameters: Any, **options: Any) -> Any:
        if not self._fails(query):
            return super().execute(query, *parameters, **options)
        if self.connection.pgconn.pipeline_status == PipelineStatus.OFF:
            raise psycopg.OperationalError("could not write to file: input/output error")
        # Nobody waits for an answer; what comes after it is sent, and is not carried out.
        return super().execute(_FAILURE)

    def executemany(self, query: Any, *parameters: Any, **options: Any) -> Any:
        self._before(query)
        return super().executemany(query, *parameters, **options)

    def copy(self, statement: Any, *parameters: Any, **options: Any) -> Any:
        self._before(statement)
        return super().copy(statement, *parameters, **options)

    def _before(self, query: Any) -> None:
        if self._fails(query):
            raise psycopg.OperationalError("could not write to file: input/output error")

    def _fails(self, query: Any) -> bool:
        found = self.connection.faults if isinstance(self.connection, FailingPostgresConnection) else None
        return found is not None and found.next_fails(str(query))


@contextmanager
def faults(store: Store, fails: Callable[[int, str], bool]) -> Iterator[Faults]:
    """While this lasts, statements of the writer fail for which `fails(number from 1, text)` says so; `COMMIT` is one.

    The store was opened with one of the connections above.
    """
    with store.write() as connection:
        driver = connection.connection.driver_connection
    known = isinstance(driver, FailingConnection | FailingPostgresConnection)
    assert known, "open the store with connection_class=FailingConnection"
    found = driver.faults = Faults(fails)
    try:
        yield found
    finally:
        driver.faults = None
