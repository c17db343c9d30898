"""The statements of the hot path: written once in SQLAlchemy Core, compiled once for each database, executed by its driver.

SQLAlchemy takes several times as long to execute a small statement as SQLite does. Most groups are one command, so that is what a
command costs. Statements that are seldom executed, or differ each time, stay with `Connection.execute`; both take part in the same
transaction, and both fail with SQLAlchemy's errors.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    Connection,
    Delete,
    Insert,
    LargeBinary,
    Select,
    Update,
    any_,
    bindparam,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

Row = tuple[Any, ...]

# Keys in one statement; a power of two.
KEYS_MAX = 1024

# SQLite has taken `ON CONFLICT` over from PostgreSQL, and this is written alike for both.
upsert = insert
# From so many new rows on they go by COPY where the database has it: of 1,000 runs that took half the time of one statement of lists.
COPY_ROWS_MIN = 100
# Where a connection keeps the writes that wait, in its `info`.
_WAITING = "milepost_waiting_writes"
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
    """Execute a text by the driver, after the writes that wait and in one go with them.

    Raises SQLAlchemy's errors, as `Connection.execute` does; where a write fails that has waited, its error.
    """
    if many:
        send_writes(connection)
    waiting = _waiting_of(connection)
    cursor = connection.connection.cursor()
    try:
        if many:
            cursor.executemany(text, values)
        elif waiting:
            _send(connection, waiting, (cursor, text, values))
        else:
            cursor.execute(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy(error, connection, text) from error
    return cursor


def gather_writes(connection: Connection) -> None:
    """From now on writes to a database at the other end of a connection wait until something is read, or committed. Then all of them
    are sent in one go, and nobody waits for an answer to each; one that fails lets those after it, a commit too, do nothing.

    What waited before is forgotten.
    """
    connection.info[_WAITING] = []


def send_writes(connection: Connection) -> None:
    """Let no write wait any longer. Raises SQLAlchemy's errors."""
    waiting = _waiting_of(connection)
    if waiting:
        try:
            _send(connection, waiting)
        except connection.dialect.loaded_dbapi.Error as error:
            raise _as_sqlalchemy(error, connection, waiting[-1][0]) from error


def writes_wait(connection: Connection) -> bool:
    """Whether writes wait."""
    return bool(_waiting_of(connection))


def _write(connection: Connection, text: str, values: Any) -> None:
    waiting = _waiting_of(connection)
    if waiting is None:
        execute(connection, text, values)
    else:
        waiting.append((text, values))


def _waiting_of(connection: Connection) -> list[tuple[str, Any]] | None:
    return connection.info.get(_WAITING) if takes_lists(connection) else None


def _send(connection: Connection, waiting: list[tuple[str, Any]], *last: tuple[Any, str, Any]) -> None:
    sent, waiting[:] = [(connection.connection.cursor(), *write) for write in waiting], []
    driver: Any = connection.connection.driver_connection
    with driver.pipeline():
        for cursor, text, values in (*sent, *last):
            cursor.execute(text, values)


def copy_in(connection: Connection, text: str, rows: Iterable[Row]) -> None:
    """Execute a COPY from here, after the writes that wait. Raises SQLAlchemy's errors."""
    send_writes(connection)
    cursor: Any = connection.connection.cursor()
    try:
        with cursor.copy(text) as copy:
            for row in rows:
                copy.write_row(row)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy(error, connection, text) from error


def _as_sqlalchemy(error: Exception, connection: Connection, text: str) -> DBAPIError:
    kind = connection.dialect.loaded_dbapi.Error
    found = DBAPIError.instance(text, None, error, kind, dialect=connection.dialect)
    assert isinstance(found, DBAPIError), "it is one of the driver"
    return found


class Statement:
    """A statement with named parameters.

    Args:
        statement: its parameters are named by `names`. The condition of a partial index must be a literal:
            SQLite plans a statement anew each time when its plan depends on the value of a parameter.
        names: what each row of values holds, in order. Values must be what the driver takes as it is: text, numbers, bytes, None.
        key: those of the names by which an update, upsert or delete finds its row, for one that may be written with several rows of
            values.
    """

    def __init__(
        self,
        statement: Insert | Update | Delete | Select[*tuple[Any, ...]],
        names: Sequence[str],
        *,
        key: Sequence[str] = (),
    ) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._key = tuple(self._names.index(name) for name in key)
        self._of_lists: Statement | None = None
        self._copy = _copy_of(statement, self._names)
        self._compiled: dict[str, tuple[str, Callable[[Row], Any] | None]] = {}

    def read(self, connection: Connection, values: Row) -> list[Row]:
        """Every row of a select, or of what an insert or update returns."""
        text, arrange = self._compiled.get(connection.dialect.name) or self._compile(connection)
        cursor = execute(connection, text, values if arrange is None else arrange(values))
        return cursor.fetchall()  # pyright: ignore[reportReturnType]

    def write(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Execute an insert or update for each row of values, as if in order; on PostgreSQL it may wait (`gather_writes`)."""
        if not rows:
            return
        if takes_lists(connection) and len(rows) > 1:
            if self._copy is not None and len(rows) >= COPY_ROWS_MIN:
                copy_in(connection, self._copy, rows)
            else:
                self._write_lists(connection, rows)
            return
        text, arrange = self._compiled.get(connection.dialect.name) or self._compile(connection)
        if len(rows) == 1:
            _write(connection, text, rows[0] if arrange is None else arrange(rows[0]))
            return
        execute(connection, text, rows if arrange is None else [arrange(row) for row in rows], many=True)

    def _write_lists(self, connection: Connection, rows: Sequence[Row]) -> None:
        """One statement for all rows, each of whose columns is a list. It may touch no row twice: later ones wait for the next."""
        if self._of_lists is None:
            self._of_lists = Statement(_of_lists(self._statement, self._names), self._names)
        while rows:
            later: list[Row] = []
            if self._key:
                rows, later = _distinct(rows, self._key)
            text, arrange = self._of_lists._compiled.get(connection.dialect.name) or self._of_lists._compile(
                connection
            )
            values = tuple(map(array, zip(*rows, strict=True)))
            _write(connection, text, values if arrange is None else arrange(values))
            rows = later

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Row], Any] | None]:
        is_insert = isinstance(self._statement, Insert) and self._statement.select is None
        keys = list(self._names) if is_insert else None
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
            # A slice, because of a single position the value alone would be given.
            pick = (
                itemgetter(slice(positions[0], positions[0] + 1))
                if len(positions) == 1
                else itemgetter(*positions)
            )
            arrange = partial(_positioned, pick, tuple(constants.values()))
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
            return self._of_list.read(connection, (array(wanted),)) if wanted else []
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


def _copy_of(statement: Any, names: Sequence[str]) -> str | None:
    """The COPY that does the same as an insert; None for any other statement, and where rows may be there already."""
    is_plain = isinstance(statement, Insert) and statement.select is None
    if not is_plain or getattr(statement, "_post_values_clause", None) is not None:
        return None
    columns = ", ".join(f'"{name}"' for name in names)
    return f'COPY "{statement.table.name}" ({columns}) FROM STDIN'


def _of_lists(statement: Any, names: Sequence[str]) -> Insert | Update | Delete:
    """The same for many rows of values, given as one list for each name."""
    types: list[Any]
    if isinstance(statement, Insert):
        types = [statement.table.c[name].type for name in names]
    else:
        found: dict[str, Any] = {
            cast("Any", element).key: cast("Any", element).type
            for element in visitors.iterate(statement)
            if isinstance(element, BindParameter)
        }
        types = [found[name] for name in names]
    lists = [bindparam(name, type_=ARRAY(type_)) for name, type_ in zip(names, types, strict=True)]
    columns = [column(name, type_) for name, type_ in zip(names, types, strict=True)]
    given = func.unnest(*lists).table_valued(*columns).render_derived(name="given")
    if isinstance(statement, Insert):
        return statement.from_select(list(names), select(*(given.c[name] for name in names)))

    def replaced(element: Any, **_: Any) -> Any:
        return given.c[element.key] if isinstance(element, BindParameter) and element.key in names else None

    return cast("Update", cast("Any", visitors).replacement_traverse(statement, {}, replaced))


def array(values: Sequence[Any]) -> Any:
    """Values of one type as an array, of texts or whole numbers as PostgreSQL writes it: its driver takes ten times as long for that.

    Raises: OverflowError.
    """
    kinds = set(map(type, values))
    has_null = type(None) in kinds
    kinds.discard(type(None))
    if kinds == {int}:
        numbers = [value for value in values if value is not None] if has_null else values
        if not (min(numbers) >= -(2**63) and max(numbers) < 2**63):
            raise OverflowError("whole numbers have at most 64 bits")
        written = (
            ["NULL" if value is None else str(value) for value in values] if has_null else map(str, values)
        )
        return f"{{{','.join(written)}}}"
    if kinds != {str}:
        return list(values)
    if not has_null:
        joined = '","'.join(values)
        if "\\" not in joined and joined.count('"') == 2 * len(values) - 2:
            return f'{{"{joined}"}}'
    return f"{{{','.join(map(_quoted, values))}}}"


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def _distinct(rows: Sequence[Row], key: Sequence[int]) -> tuple[list[Row], list[Row]]:
    """The first of the rows with each key, and those that come later."""
    seen: set[Row] = set()
    first: list[Row] = []
    later: list[Row] = []
    for row in rows:
        found = tuple(row[place] for place in key)
        (later if found in seen else first).append(row)
        seen.add(found)
    return first, later


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
