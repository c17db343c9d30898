"""The store as a whole: where it is, its one writer, its readers, its schema version."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from milepost.errors import ConfigurationError, UnavailableError
from milepost.store import files, sqlite
from milepost.store.statements import execute


class Store:
    """An open database.

    One thread writes, through `write`; any number of threads read, through `read`. A reader sees what was committed when it began.

    Args:
        path: the SQLite file; made when missing, migrated when old.
        synchronous: `FULL` (what is acknowledged survives a power loss) or `NORMAL` (it survives a crash of the process only).
        connection_class: of the writer's connection to the driver, which sees every statement and commit; a test may let them fail.

    Attributes:
        is_shared: True for a database on which several servers may work.

    Raises: ConfigurationError when the folder cannot be written, the file is no database, or it comes from a newer version.
    """

    is_shared = False

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "FULL",
        connection_class: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        # Absolute, because readers connect late, and the working folder may be another one by then.
        self.path = path.absolute()
        self._is_closed = False
        # Which files these are. Not known before they are all there.
        self._files: dict[str, tuple[int, int] | None] = {}
        sqlite.check_writable(path)
        self._writer = sqlite.writer(path, synchronous=synchronous, connection_class=connection_class)
        self._readers = sqlite.readers(path)
        try:
            self._connection = self._writer.connect()
            self._migrate()
        except sqlite.DATABASE_ERRORS as error:
            self._writer.dispose()
            self._readers.dispose()
            raise ConfigurationError(f"{path} cannot be used as Milepost's database: {error.orig}") from error
        except ConfigurationError:
            self.close()
            raise
        names = (str(self.path), str(sqlite.log_of(self.path)))
        self._files = {name: files.identity(name) for name in names}

    @property
    def is_displaced(self) -> bool:
        """True when the files are no longer where they were opened: the data folder was removed, replaced or moved.

        What is written then goes to files that nobody will find again.
        """
        return any(files.identity(name) != known for name, known in self._files.items())

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One transaction of the one writer: committed when the block ends, undone when it raises.

        Raises: UnavailableError when the files are no longer in their place.
        """
        self.check_place()
        with _transaction(self._connection, sqlite.BEGIN_WRITING):
            yield self._connection
            # What is committed to files that were removed meanwhile would be acknowledged and lost.
            self.check_place()

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view of what is committed, from a pool of connections.

        Raises: UnavailableError when the database cannot be read now: it is closed, locked, broken, or no longer in its place.
        """
        if self._is_closed:
            raise UnavailableError("the database is closed: the server is about to stop")
        self.check_place()
        try:
            with self._readers.connect() as connection, _transaction(connection, sqlite.BEGIN_READING):
                yield connection
        except PoolTimeoutError as error:
            raise UnavailableError("the database has no free connection for reading; try again") from error
        except DBAPIError as error:
            if not self._is_closed and not sqlite.is_unavailable(error):
                raise
            raise UnavailableError(f"the database cannot be read now: {error.orig}; try again") from error

    def check_place(self) -> None:
        """Raise UnavailableError when the files are no longer in their place."""
        if self.is_displaced:
            raise UnavailableError(
                "the data folder was removed, replaced or moved while the server runs, so nothing is stored and nothing is read: "
                "put it back, or start the server anew"
            )

    def close(self) -> None:
        """Close every connection; may be called twice."""
        self._is_closed = True
        self._connection.close()
        self._writer.dispose()
        self._readers.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        scripts = ScriptDirectory.from_config(config)
        with self.write():
            present = MigrationContext.configure(self._connection).get_current_revision()
            known = {script.revision for script in scripts.walk_revisions()}
            if present is not None and present not in known:
                raise ConfigurationError(
                    f"{self.path} was written by a newer version of Milepost (schema {present}, this version knows up to "
                    f"{scripts.get_current_head()}): upgrade Milepost, or use another data folder"
                )
            if present != scripts.get_current_head():
                config.attributes["connection"] = self._connection
                command.upgrade(config, "head")


@contextmanager
def _transaction(connection: Connection, begin: str) -> Generator[None]:
    """Committed when the block ends, undone when it raises or cannot be committed.

    By the driver alone: what SQLAlchemy does around beginning and committing takes longer than both.
    """
    try:
        execute(connection, begin)
        yield
        execute(connection, "COMMIT")
    finally:
        # After a commit there is nothing left to undo, but whatever Core has executed began a transaction in SQLAlchemy's books.
        if connection.in_transaction():
            connection.rollback()
        else:
            connection.connection.rollback()
