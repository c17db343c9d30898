"""What a database has to do for something: its statements and the steps of its virtual machine, which are the same everywhere. Of
PostgreSQL the rows and the entries of indexes that it looks at."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from milepost.store.database import Store
from support.faults import FailingPostgresConnection, Faults

# The virtual machine says so each time when it has gone so many steps.
STEPS = 10
STEPS_OF_A_ROW = 10


@dataclass
class Work:
    """What has been done. A row that is looked at takes some ten steps."""

    steps: int = 0
    statements: list[str] = field(default_factory=list[str])

    def matching(self, part: str) -> int:
        """How many statements have this in their text."""
        return sum(part in statement for statement in self.statements)

    def _count(self) -> int:
        self.steps += STEPS
        return 0


@contextmanager
def _watched(connection: Connection, work: Work) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        with _watched_machine(driver, work):
            yield
        return
    before = _rows_seen(connection)
    is_told = isinstance(driver, FailingPostgresConnection) and driver.faults is None
    if is_told:
        # It asks before each statement whether that should fail.
        driver.faults = Faults(lambda _, statement: bool(work.statements.append(statement)))
    try:
        yield
    finally:
        if is_told:
            driver.faults = None
    work.steps += STEPS_OF_A_ROW * (_rows_seen(connection) - before)


@contextmanager
def _watched_machine(driver: sqlite3.Connection, work: Work) -> Iterator[None]:
    driver.set_progress_handler(work._count, STEPS)
    driver.set_trace_callback(work.statements.append)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)
        driver.set_trace_callback(None)


def _rows_seen(connection: Connection) -> int:
    """Rows that this transaction has read of tables of PostgreSQL, and entries of indexes."""
    statement = (
        "SELECT sum(pg_stat_get_xact_tuples_returned(oid)) FROM pg_class WHERE relkind IN ('r', 'i') "
        "AND relnamespace = 'public'::regnamespace"
    )
    return int(connection.execute(text(statement)).scalar_one())


def _gather_statistics(store: Store) -> None:
    """What PostgreSQL does by itself once in a while, and plans by."""
    with store.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))


@contextmanager
def work_of_writer(store: Store) -> Iterator[Work]:
    """What the writer does meanwhile."""
    with store.write() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
    work = Work()
    if is_sqlite:
        with _watched(connection, work):
            yield work
        return
    _gather_statistics(store)
    with _each_transaction(store, "write", work):
        yield work


@contextmanager
def work_of_readers(store: Store) -> Iterator[Work]:
    """What readers do meanwhile."""
    _gather_statistics(store)
    work = Work()
    with _each_transaction(store, "read", work):
        yield work


@contextmanager
def _each_transaction(store: Store, way: str, work: Work) -> Iterator[None]:
    begin = getattr(store, way)

    @contextmanager
    def watched(**given: Any) -> Generator[Connection]:
        with begin(**given) as connection, _watched(connection, work):
            yield connection

    setattr(store, way, watched)
    try:
        yield
    finally:
        delattr(store, way)
