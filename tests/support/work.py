"""What a database has to do for something: its statements and the steps of its virtual machine, which are the same everywhere."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from milepost.store.database import Store

# The virtual machine says so each time when it has gone so many steps.
STEPS = 10


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
    assert isinstance(driver, sqlite3.Connection)
    driver.set_progress_handler(work._count, STEPS)
    driver.set_trace_callback(work.statements.append)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)
        driver.set_trace_callback(None)


@contextmanager
def work_of_writer(store: Store) -> Iterator[Work]:
    """What the writer does meanwhile."""
    with store.write() as connection:
        pass
    work = Work()
    with _watched(connection, work):
        yield work


@contextmanager
def work_of_readers(store: Store) -> Iterator[Work]:
    """What readers do meanwhile."""
    work = Work()
    read = store.read

    @contextmanager
    def watched() -> Generator[Connection]:
        with read() as connection, _watched(connection, work):
            yield connection

    store.read = watched  # type: ignore[method-assign]
    try:
        yield work
    finally:
        del store.read  # type: ignore[attr-defined]
