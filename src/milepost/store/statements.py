"""The statements of the hot path: written once in SQLAlchemy Core, compiled once for each database, executed by its driver.

SQLAlchemy takes several times as long to execute a small statement as SQLite does. Most groups are one command, so that is what a
command costs. Statements that are seldom executed, or differ each time, stay with `Connection.execute`; both take part in the same
transaction, and both fail with SQLAlchemy's errors.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    Connection,
    Insert,
    LargeBinary,
    Select,
    Update,
    any_,
    bindparam,
    literal,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

Row = tuple[Any, ...]

# Keys in one statement; a power of two.
KEYS_MAX = 1024

# SQLite has taken `ON CONFLICT` over from PostgreSQL, and this is written alike for both.
upsert = insert
# What takes a whole list as one value, so that lists of all lengths are one statement.
_TAKES_LISTS = frozenset({"postgresql"})


class HasBytes(FunctionElement[bool]):
    """Whether a column of bytes has these somewhere; not true where it is null. Each database writes it its own way."""

    name = "has_bytes"
    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], part: bytes) -> None:
        super().__init__(column, literal(part, LargeBinary))


def takes_lists(connection: Connection) -> bool:
    """Whether the database takes a whole list as one value."""
    return connection.dialect.name in _TAKES_LISTS


def among(connection: Connection, column: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Whether a column has one of some values, for a statement that is executed on this connection."""
    if takes_lists(connection):
        return column == any_(literal(list(values), ARRAY(column.type)))
    return column.in_(list(values))


def execute(connection: Connection, text: str, values: Any = (), *, many: bool = False) -> DBAPICursor:
    """Execute a text by the driver. Raises SQLAlchemy's errors, as `Connection.execute` does."""
    cursor = connection.connection.cursor()
    try:
        if many:
            cursor.executemany(text, values)
        else:
            cursor.execute(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(
            text, None, error, connection.dialect.loaded_dbapi.Error, dialect=connection.dialect
        ) from error
    return cursor


class Statement:
    """A statement with named parameters.

    Args:
        statement: its parameters are named by `names`. The condition of a partial index must be a literal:
            SQLite plans a statement anew each time when its plan depends on the value of a parameter.
        names: what each row of values holds, in order. Values must be what the driver takes as it is: text, numbers, bytes, None.
    """

    def __init__(self, statement: Insert | Update | Select[*tuple[Any, ...]], names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._compiled: dict[str, tuple[str, Callable[[Row], Any] | None]] = {}

    def read(self, connection: Connection, values: Row) -> list[Row]:
        """Every row of a select."""
        text, arrange = self._compiled.get(connection.dialect.name) or self._compile(connection)
        cursor = execute(connection, text, values if arrange is None else arrange(values))
        return cursor.fetchall()  # pyright: ignore[reportReturnType]

    def write(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Execute an insert or update once for each row of values, in order."""
        if not rows:
            return
        text, arrange = self._compiled.get(connection.dialect.name) or self._compile(connection)
        execute(connection, text, rows if arrange is None else [arrange(row) for row in rows], many=True)

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Row], Any] | None]:
        keys = list(self._names) if isinstance(self._statement, Insert) else []
        compiled = self._statement.compile(dialect=connection.dialect, column_keys=keys)
        # Values that SQLAlchemy itself puts into a statement, such as an offset of 0.
        constants = {name: bound.value for name, bound in compiled.binds.items() if name not in self._names}
        names = (*self._names, *constants)
        arrange: Callable[[Row], Any] | None
        if compiled.positiontup is None:
            arrange = partial(_named, names, tuple(constants.values()))
        elif tuple(compiled.positiontup) == self._names:
            arrange = None
        else:
            positions = [names.index(name) for name in compiled.positiontup]
            arrange = partial(_positioned, itemgetter(*positions), tuple(constants.values()))
        self._compiled[connection.dialect.name] = str(compiled), arrange
        return self._compiled[connection.dialect.name]


class Lookup:
    """A select of the rows whose column is one of some keys; any number of keys, repeated ones too."""

    def __init__(self, statement: Select[*tuple[Any, ...]], column: ColumnElement[str]) -> None:
        self._statement = statement
        self._column = column
        self._by_count: dict[int, Statement] = {}
        in_list = column == any_(bindparam("keys", type_=ARRAY(column.type)))
        self._of_list = Statement(statement.where(in_list), ["keys"])

    def read(self, connection: Connection, keys: Iterable[str]) -> list[Row]:
        """The rows that exist, in no order."""
        wanted = tuple(keys)
        if takes_lists(connection):
            return self._of_list.read(connection, (list(wanted),)) if wanted else []
        if len(wanted) <= KEYS_MAX:
            return self._read(connection, wanted) if wanted else []
        found: list[Row] = []
        for start in range(0, len(wanted), KEYS_MAX):
            found += self._read(connection, wanted[start : start + KEYS_MAX])
        return found

    def _read(self, connection: Connection, keys: Row) -> list[Row]:
        keys = padded(keys)
        statement = self._by_count.get(len(keys))
        if statement is None:
            names = [f"key_{number}" for number in range(len(keys))]
            condition = self._column.in_(parameters(names))
            statement = self._by_count[len(keys)] = Statement(self._statement.where(condition), names)
        return statement.read(connection, keys)


def padded(values: Row, filler: Any = None) -> Row:
    """The values up to a power of two, so that lists of all lengths share few texts.

    Args:
        filler: what they are filled up with; without it the last one is repeated.
    """
    if not values:
        return values
    missing = (1 << (len(values) - 1).bit_length()) - len(values)
    return values + (values[-1] if filler is None else filler,) * missing if missing else values


def parameters(names: Iterable[str]) -> list[BindParameter[Any]]:
    """Parameters of these names, for a list of values."""
    return [bindparam(name) for name in names]


def _named(names: tuple[str, ...], constants: Row, row: Row) -> dict[str, Any]:
    return dict(zip(names, row + constants, strict=True))


def _positioned(pick: Callable[[Row], Row], constants: Row, row: Row) -> Row:
    return pick(row + constants)
