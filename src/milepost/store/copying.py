"""Copying a database into another one, of the same kind or not: all tables, in bounded memory."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table, func, insert, literal, not_, select

from milepost.errors import ConfigurationError
from milepost.store.announcements import IS_MARK
from milepost.store.database import Store
from milepost.store.schema import commit_numbers, logs, tables
from milepost.store.statements import Row, Statement

ROWS_MAX = 500
BYTES_MAX = 4 * 1024 * 1024


def copy_store(source: Store, target: Store) -> dict[str, int]:
    """Copy everything that is committed in `source` when it begins; how many rows each table has. `target` has all of it, or nothing.

    Raises: ConfigurationError when there is something in `target` already.
    """
    with source.read() as reading, target.write() as writing:
        for table in tables.sorted_tables:
            if writing.execute(_rows_of(table, literal(1)).limit(1)).first() is not None:
                raise ConfigurationError(
                    f"{target.place} is not empty (there are rows in {table.name}), and nothing was copied: name a new database"
                )
        copied = {table.name: _copy_table(reading, writing, table) for table in tables.sorted_tables}
        if writing.dialect.name == "postgresql":
            # The next line of a log is numbered behind those that were brought.
            behind = func.coalesce(select(func.max(logs.c.number)).scalar_subquery(), 0) + 1
            numbers = func.pg_get_serial_sequence(logs.name, logs.c.number.name)
            writing.execute(select(func.setval(numbers, behind, False)))
    return copied


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    statement = Statement(insert(table), table.columns.keys())
    found = reading.execution_options(stream_results=True, max_row_buffer=ROWS_MAX).execute(
        _rows_of(table, *table.columns)
    )
    count = 0
    for rows in _portions(found):
        statement.write(writing, rows)
        count += len(rows)
    return count


def _rows_of(table: Table, *columns: Any) -> Select[*tuple[Any, ...]]:
    """All rows that are to be copied, which is each but what servers leave for themselves."""
    found = select(*columns).select_from(table)
    return found.where(not_(IS_MARK)) if table is commit_numbers else found


def _portions(rows: Any) -> Iterator[Sequence[Row]]:
    portion: list[Row] = []
    size = 0
    for row in rows:
        portion.append(tuple(row))
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(portion) == ROWS_MAX or size >= BYTES_MAX:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
