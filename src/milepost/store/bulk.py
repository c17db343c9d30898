"""Many rows by one statement, on the hot path.

SQLAlchemy builds a dictionary for each row of an executemany; that costs more than SQLite's own work. Here the statement is
compiled once for each database and rows go to the driver as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Insert, Update

Row = tuple[Any, ...]


class Bulk:
    """An insert or update to be executed for many rows.

    Args:
        statement: its parameters are named by `names`.
        names: what each row holds, in order. Values must be what the driver takes as it is: text, numbers, bytes, None.
    """

    def __init__(self, statement: Insert | Update, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._compiled: dict[str, tuple[str, Callable[[Row], Any] | None]] = {}

    def execute(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Execute the statement once for each row, in order."""
        if not rows:
            return
        text, arrange = self._compiled.get(connection.dialect.name) or self._compile(connection)
        connection.exec_driver_sql(text, list(rows) if arrange is None else [arrange(row) for row in rows])

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Row], Any] | None]:
        keys = list(self._names) if isinstance(self._statement, Insert) else []
        compiled = self._statement.compile(dialect=connection.dialect, column_keys=keys)
        names = self._names
        arrange: Callable[[Row], Any] | None
        if compiled.positiontup is None:
            arrange = partial(_named, names)
        elif tuple(compiled.positiontup) == names:
            arrange = None
        else:
            arrange = itemgetter(*(names.index(name) for name in compiled.positiontup))
        self._compiled[connection.dialect.name] = str(compiled), arrange
        return self._compiled[connection.dialect.name]


def _named(names: tuple[str, ...], row: Row) -> dict[str, Any]:
    return dict(zip(names, row, strict=True))
