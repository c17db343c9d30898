"""The store as a whole: where it is, its one writer, its readers, its schema version."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from milepost.errors import ConfigurationError
from milepost.store import sqlite


class Store:
    """An open database.

    One thread writes, through `write`; any number of threads read, through `read`. A reader sees what was committed when it began.

    Args:
        path: the SQLite file; made when missing, migrated when old.
        synchronous: `FULL` (what is acknowledged survives a power loss) or `NORMAL` (it survives a crash of the process only).

    Raises: ConfigurationError when the folder cannot be written, the file is no database, or it comes from a newer version.
    """

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        self.path = path
        sqlite.check_writable(path)
        self._writer = sqlite.writer(path, synchronous=synchronous)
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

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One transaction of the one writer: committed when the block ends, undone when it raises."""
        try:
            with self._connection.begin():
                yield self._connection
        except BaseException:
            # A commit that failed leaves the transaction open; the next one could not begin.
            sqlite.abandon(self._connection)
            raise

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view of what is committed, from a pool of connections."""
        with self._readers.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every connection; may be called twice."""
        self._connection.close()
        self._writer.dispose()
        self._readers.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        scripts = ScriptDirectory.from_config(config)
        with self._connection.begin():
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
