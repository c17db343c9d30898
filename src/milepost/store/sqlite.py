"""What SQLite does its own way: how it is opened, tuned and locked.

One write connection per file, owned by one thread; readers see the last commit without waiting (WAL).
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.sql.compiler import SQLCompiler

from milepost.errors import ConfigurationError, UnavailableError
from milepost.store import files
from milepost.store.statements import HasBytes, execute

# What goes away by itself or by the care of whoever runs the machine: the statement is right, and may be tried again.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    }
)
READERS = 4
BUSY_SECONDS = 10
# 16 MB: a page that changes often is copied from the log to the file once in a while, not at each group.
CHECKPOINT_PAGES = 4000
# After one large transaction the log is cut back to this, instead of keeping its largest size for ever.
JOURNAL_BYTES_MAX = 64 * 1024 * 1024
# The driver's own transactions would begin late and deferred; ours begin where the code says so.
_CONNECT_ARGUMENTS: dict[str, Any] = {
    "check_same_thread": False,
    "timeout": BUSY_SECONDS,
    "isolation_level": None,
}


class SQLiteDatabase:
    """A database in a file of this machine, which one server uses.

    Args:
        path: the file; made when missing.
        synchronous: `FULL` (what is acknowledged survives a power loss) or `NORMAL` (it survives a crash of the process only).
        connection_class: of the writer's connection to the driver, which sees every statement and commit.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "FULL",
        connection_class: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        # Absolute, because readers connect late, and the working folder may be another one by then.
        self.path = path.absolute()
        self._given = path
        self._synchronous = synchronous
        self._connection_class = connection_class
        # Which files these are. Not known before they are all there.
        self._files: dict[str, tuple[int, int] | None] = {}
        # SQLite's own, by which a connection sees that another one has written.
        self._data_version = -1

    is_shared = False
    has_plain_tables = True

    @property
    def place(self) -> str:
        """The path as it was given."""
        return str(self._given)

    @property
    def is_displaced(self) -> bool:
        """True when the files are no longer where they were opened: the data folder was removed, replaced or moved."""
        return any(files.identity(name) != known for name, known in self._files.items())

    def prepare(self) -> None:
        """Make folder and file, private ones; raise ConfigurationError where the database could not be written."""
        path = self._given
        files.prepare_folder(path.parent)
        target = path if path.exists() else path.parent
        # The read-only flag of a mounted file system does not show in the mode bits, so the system is asked.
        if not os.access(path.parent, os.W_OK) or not os.access(target, os.W_OK):
            raise ConfigurationError(
                f"{target} cannot be written: choose another data folder with --data, or change its permissions"
            )
        try:
            if not path.exists():
                files.create_private(path)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error

    def opened(self) -> None:
        """The files are all there: remember which ones they are."""
        names = (str(self.path), str(log_of(self.path)))
        self._files = {name: files.identity(name) for name in names}

    def check_place(self) -> None:
        """Raise UnavailableError when the files are no longer in their place."""
        if self.is_displaced:
            raise UnavailableError(
                "the data folder was removed, replaced or moved while the server runs, so nothing is stored and nothing is read: "
                "put it back, or start the server anew"
            )

    def writer(self) -> Engine:
        """The engine of the one write connection."""
        engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            creator=_opening(self.path, connection_class=self._connection_class),
        )
        _configure(
            engine,
            "PRAGMA journal_mode=WAL",
            f"PRAGMA synchronous={self._synchronous}",
            f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}",
            f"PRAGMA journal_size_limit={JOURNAL_BYTES_MAX}",
        )
        return engine

    @property
    def reader_count(self) -> int:
        """How many connections read at most."""
        return READERS

    def readers(self) -> Engine:
        """The engine of the read connections."""
        engine = create_engine(
            "sqlite://", poolclass=QueuePool, pool_size=READERS, max_overflow=0, creator=_opening(self.path)
        )
        _configure(engine, "PRAGMA query_only=ON")
        return engine

    def begin_writing(self, connection: Connection) -> None:
        """A writer never has to upgrade a read lock."""
        execute(connection, "BEGIN IMMEDIATE")

    begin_migrating = begin_writing

    def was_changed(self, connection: Connection) -> bool:
        """True when another connection has committed since: another server, which should not be there, or somebody's shell."""
        before = self._data_version
        [(self._data_version,)] = execute(connection, "PRAGMA data_version").fetchall()
        return self._data_version != before

    def begin_reading(self, connection: Connection) -> None:
        """A reader sees what was committed when it reads first."""
        execute(connection, "BEGIN")

    def commit(self, connection: Connection) -> None:
        """Commit; what raises is not committed."""
        # What is committed to files that were removed meanwhile would be acknowledged and lost.
        self.check_place()
        execute(connection, "COMMIT")

    def now(self, connection: Connection) -> int:
        """The time of this machine: SQLite has no other."""
        return time.time_ns() // 1000

    def listener(self, woken: Callable[[int | None], None]) -> None:
        """None: there are no other servers."""

    def is_broken(self, connection: Connection) -> bool:
        """Never: nothing lies between us and the file."""
        return False

    def is_unavailable(self, error: DBAPIError) -> bool:
        """True when the file cannot be had at the moment."""
        # The lowest byte is the kind of the fault, the others say more about it.
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _PASSING

    def is_away(self, error: DBAPIError) -> bool:
        """Never: a file is there, or is made."""
        return False

    def reason(self, error: DBAPIError) -> str:
        """What SQLite says."""
        return str(error.orig)


def copy_database(source: Path, target: Path) -> None:
    """Write all that is committed in `source` to the file `target`, also while a server writes to `source`, and check the copy.

    Copying the file itself does not do: what was committed lately is in a second file beside it.

    Raises: sqlite3.Error.
    """
    with (
        closing(
            sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        ) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        # In one step, and so from one snapshot; in several it would begin again with each commit in between.
        reading.backup(writing)
        [verdict] = writing.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(
                f"the copy is damaged ({verdict}), and so is most likely the database"
            )
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@compiles(HasBytes, "sqlite")
def _has_bytes(element: HasBytes, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)}) > 0"


def log_of(path: Path) -> Path:
    """The file of the write-ahead log; it is there for as long as a connection is."""
    return path.with_name(f"{path.name}-wal")


def _opening(
    path: Path, *, connection_class: type[sqlite3.Connection] = sqlite3.Connection
) -> Callable[[], sqlite3.Connection]:
    # Never makes a file: a reader that connects late must not find an empty database where the folder was replaced.
    address = f"{path.absolute().as_uri()}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, factory=connection_class, **_CONNECT_ARGUMENTS)

    return connect


def _configure(engine: Engine, *pragmas: str) -> None:
    def connected(connection: sqlite3.Connection, record: Any) -> None:
        for pragma in [
            *pragmas,
            "PRAGMA temp_store=MEMORY",
            "PRAGMA cache_size=-16384",
            "PRAGMA mmap_size=268435456",
        ]:
            connection.execute(pragma)

    event.listen(engine, "connect", connected)
