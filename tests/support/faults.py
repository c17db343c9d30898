"""A database that fails on demand: the n-th statement of a transaction, those that a test picks, or the commit."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import OperationalError

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

    def before_statement(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.seen += 1
        if self._fails(self.seen, statement):
            self.failed += 1
            raise OperationalError(statement, {}, sqlite3.OperationalError("disk I/O error"))

    def before_commit(self, connection: Any) -> None:
        self.before_statement(connection, None, "COMMIT")


@contextmanager
def faults(store: Store, fails: Callable[[int, str], bool]) -> Iterator[Faults]:
    """While this lasts, statements of the writer fail for which `fails(number from 1, text)` says so; `COMMIT` is one."""
    with store.write() as connection:
        engine = connection.engine
    found = Faults(fails)
    event.listen(engine, "before_cursor_execute", found.before_statement)
    event.listen(engine, "commit", found.before_commit)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", found.before_statement)
        event.remove(engine, "commit", found.before_commit)
