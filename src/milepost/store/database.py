"""The store as a whole: where it is, its one writer, its readers, its schema version."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

import msgspec
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from milepost.errors import ConfigurationError, UnavailableError
from milepost.store.kind import DatabaseKind, Ear
from milepost.store.schema import tables
from milepost.store.sqlite import SQLiteDatabase
from milepost.store.statements import execute


class Store:
    """An open database.

    One thread writes, through `write`; any number of threads read, through `read`. A reader sees what was committed when it began.

    Args:
        place: a file, which SQLite makes when it is missing, or the URL of a PostgreSQL database. Tables are made and migrated.
        synchronous: of SQLite: `FULL` (what is acknowledged survives a power loss) or `NORMAL` (it survives a crash of the process
            only).
        connection_class: of the writer's connection to the driver, which sees every statement and commit; a test may let them fail.

    Raises: ConfigurationError when the database cannot be used: its folder cannot be written, it is none, it cannot be reached, it
        comes from a newer version.
    """

    def __init__(
        self, place: Path | str, *, synchronous: str = "FULL", connection_class: type[Any] | None = None
    ) -> None:
        self._database = database_at(place, synchronous=synchronous, connection_class=connection_class)
        self.is_shared = self._database.is_shared
        self.schema = _newest_schema()
        self._is_closed = False
        self._database.prepare()
        self._writer = self._database.writer()
        self._readers = self._database.readers()
        self._connection: Connection | None = None
        # A connection that is closed under a statement of another thread takes the process down, inside SQLite.
        self._writing = Lock()
        try:
            self._migrate()
        except DatabaseError as error:
            reason = self._database.reason(error)
            self._release()
            raise ConfigurationError(
                f"{self.place} cannot be used as Milepost's database: {reason}"
            ) from error
        except BaseException:
            self._release()
            raise
        self._database.opened()

    @property
    def place(self) -> str:
        """Where the database is, for messages: without a password."""
        return self._database.place

    @property
    def is_displaced(self) -> bool:
        """True when the files are no longer where they were opened: the data folder was removed, replaced or moved.

        What is written then goes to files that nobody will find again.
        """
        return self._database.is_displaced

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One transaction of the one writer: committed when the block ends, undone when it raises.

        Raises: UnavailableError when the database cannot be written now, or is no longer in its place; CommitUnknownError.
        """
        try:
            with self._transaction(self._database.begin_writing) as connection:
                yield connection
        except DBAPIError as error:
            if not self._database.is_unavailable(error):
                raise
            raise UnavailableError(
                "the database did not take the change, nothing was stored: "
                f"{self._database.reason(error)}; try again"
            ) from error

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view of what is committed, from a pool of connections.

        Raises: UnavailableError when the database cannot be read now: it is closed, locked, broken, or no longer in its place.
        """
        if self._is_closed:
            raise UnavailableError("the database is closed: the server is about to stop")
        self.check_place()
        try:
            connection = self._begin_reading()
            try:
                yield connection
                execute(connection, "COMMIT")
            finally:
                self._undo(connection)
                connection.close()
        except PoolTimeoutError as error:
            raise UnavailableError("the database has no free connection for reading; try again") from error
        except DBAPIError as error:
            if not self._is_closed and not self._database.is_unavailable(error):
                raise
            raise UnavailableError(
                f"the database cannot be read now: {self._database.reason(error)}; try again"
            ) from error

    def was_changed(self, connection: Connection) -> bool:
        """Whether somebody else may have committed something since this was asked last: asked first in a transaction of `write`, where
        there are no other servers who would tell."""
        return self._database.was_changed(connection)

    def present_schema(self) -> str | None:
        """The schema that the database has now: a newer server may have changed it. Raises UnavailableError."""
        with self.read() as connection:
            [found] = execute(connection, "SELECT version_num FROM alembic_version").fetchall() or [(None,)]
            return cast("tuple[str | None]", found)[0]

    @property
    def reader_count(self) -> int:
        """How many connections read at most."""
        return self._database.reader_count

    @property
    def readers_in_use(self) -> int:
        """How many of them read at this moment. Thread-safe."""
        return cast("QueuePool", self._readers.pool).checkedout()

    def now(self) -> int:
        """The database's time, microseconds since 1970. Raises UnavailableError."""
        with self.read() as connection:
            return self._database.now(connection)

    def listener(self, woken: Callable[[int | None], None]) -> Ear | None:
        """What calls `woken`, in a thread of its own, whenever another server may have committed something; None where there are no
        others."""
        return self._database.listener(woken)

    def check_place(self) -> None:
        """Raise UnavailableError when the files are no longer in their place."""
        self._database.check_place()

    def close(self) -> None:
        """Close every connection, the writer's after the transaction that it is in; may be called twice, and in any thread."""
        self._is_closed = True
        with self._writing:
            self._release()

    def _release(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._writer.dispose()
        self._readers.dispose()

    def _migrate(self) -> None:
        with self._transaction(self._database.begin_migrating) as connection:
            present = _present_schema(connection)
            if present is not None and present not in known_schemas():
                raise ConfigurationError(
                    f"{self.place} was written by a newer version of Milepost (schema {present}, this version knows up to "
                    f"{_newest_schema()}): upgrade Milepost, or use another database"
                )
            if present is None and self._database.has_plain_tables:
                _create(connection)
            elif present != _newest_schema():
                _upgrade(connection)

    @contextmanager
    def _transaction(self, begin: Callable[[Connection], None]) -> Generator[Connection]:
        # Whether the files are in their place is looked at before the commit.
        with self._writing:
            connection = self._begin_writing(begin)
            try:
                yield connection
                self._database.commit(connection)
            finally:
                self._undo(connection)

    def _begin_writing(self, begin: Callable[[Connection], None]) -> Connection:
        """Begin on the connection that is there; on a new one if it turns out to be lost. Nothing has been done on it yet."""
        connection = self._connection
        if connection is not None and not self._database.is_broken(connection):
            try:
                begin(connection)
                return connection
            except DBAPIError:
                self._undo(connection)
                if not self._database.is_broken(connection):
                    raise
        if self._is_closed:
            raise UnavailableError("the database is closed: the server is about to stop")
        if connection is not None:
            connection.close()
            self._connection = None
        self._connection = connection = self._writer.connect()
        try:
            begin(connection)
        except BaseException:
            self._undo(connection)
            raise
        return connection

    def _begin_reading(self) -> Connection:
        """Begin on a connection of the pool. Those that were lost while nobody used them are replaced, which may be all of them."""
        for is_last in (*(False,) * self._database.reader_count, True):
            connection = self._readers.connect()
            try:
                self._database.begin_reading(connection)
                return connection
            except BaseException as error:
                is_lost = isinstance(error, DBAPIError) and self._database.is_broken(connection)
                self._undo(connection)
                connection.close()
                if is_last or not is_lost:
                    raise
        raise AssertionError("the last try returns or raises")

    def _undo(self, connection: Connection) -> None:
        """Undo what was not committed. After a commit there is nothing left to undo, but whatever Core has executed began a
        transaction in SQLAlchemy's books.

        By the driver alone where that does: what SQLAlchemy does around it takes longer.
        """
        if connection.closed:
            return
        if self._database.is_broken(connection):
            with suppress(DBAPIError):
                connection.invalidate()
        try:
            if connection.in_transaction():
                connection.rollback()
            elif not connection.invalidated:
                connection.connection.rollback()
        except (DBAPIError, connection.dialect.loaded_dbapi.Error):
            if not self.is_shared:
                raise
            # It ended in the middle of several statements, and its driver does not say that it is closed: it is of no use any more.
            with suppress(DBAPIError):
                connection.invalidate()


class Schema(msgspec.Struct, frozen=True):
    """Which schema a database has, None for no tables, and which one this version would give it."""

    place: str
    present: str | None
    newest: str
    is_known: bool


def schema_of(place: Path | str) -> Schema:
    """Look at a database and change nothing. Raises ConfigurationError when it cannot be looked at."""
    database = database_at(place)
    if isinstance(place, Path) and not place.is_file():
        raise ConfigurationError(f"there is no database {place}; name its folder with --data")
    engine = database.readers()
    try:
        with engine.connect() as connection:
            present = _present_schema(connection)
    except DatabaseError as error:
        raise ConfigurationError(f"{database.place} cannot be looked at: {database.reason(error)}") from error
    finally:
        engine.dispose()
    return Schema(database.place, present, _newest_schema(), present is None or present in known_schemas())


def away_reason(url: str) -> str | None:
    """Why a PostgreSQL database cannot be reached now although it may be soon: it, its host or the way there is about to start. None
    when it can be reached, or when time alone will not help, which opening it says. Raises ConfigurationError for a wrong URL."""
    database = database_at(url)
    engine = database.readers()
    try:
        with engine.connect():
            return None
    except DatabaseError as error:
        return f"{database.place}: {database.reason(error)}" if database.is_away(error) else None
    finally:
        engine.dispose()


def database_at(
    place: Path | str, *, synchronous: str = "FULL", connection_class: type[Any] | None = None
) -> DatabaseKind:
    """The database at a place: a path is a file of SQLite, a text the URL of a PostgreSQL database. Raises ConfigurationError."""
    given: dict[str, Any] = {} if connection_class is None else {"connection_class": connection_class}
    if isinstance(place, Path):
        return SQLiteDatabase(place, synchronous=synchronous, **given)
    try:
        from milepost.store.postgres import PostgresDatabase
    except ImportError as error:
        raise ConfigurationError(
            f"a PostgreSQL database needs the driver psycopg, which cannot be loaded ({error}): pip install 'milepost[postgres]'"
        ) from error
    return PostgresDatabase(place, **given)


_MIGRATIONS = Path(__file__).parent / "migrations"


@cache
def known_schemas() -> tuple[str, ...]:
    """The schemas that this version knows, the newest last: the numbers with which the names of the migrations begin."""
    return tuple(
        sorted(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"))
    )


def _newest_schema() -> str:
    return known_schemas()[-1]


def _present_schema(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    [found] = execute(connection, "SELECT version_num FROM alembic_version").fetchall() or [(None,)]
    return found[0]


def _create(connection: Connection) -> None:
    # What the migrations come to, which takes them 0.3 s and 11 MB. A test holds the two together.
    tables.create_all(connection, checkfirst=False)
    execute(
        connection,
        "CREATE TABLE IF NOT EXISTS alembic_version "
        "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))",
    )
    execute(connection, "INSERT INTO alembic_version VALUES (?)", (_newest_schema(),))


def _upgrade(connection: Connection) -> None:
    # Only now: most servers that start find the schema as it is to be, and Alembic would stay in their memory.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
