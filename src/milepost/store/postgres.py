"""What PostgreSQL does its own way: how it is found, connected to, tuned and locked, and what its errors mean.

Every server has one connection that writes and a few that read. Groups of all servers come one after the other: each begins with
one lock, as on SQLite. Settings are made inside of each transaction, because a pooler may give the next one to another session.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any, cast
from uuid import uuid4

import psycopg
from psycopg import conninfo
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.sql.compiler import SQLCompiler

from milepost.errors import CommitUnknownError, ConfigurationError, UnavailableError
from milepost.store.announcements import FOUND, MARK_OF, MARKS, NEWEST, leave_mark
from milepost.store.listening import Listener
from milepost.store.statements import HasBytes, execute, gather_writes, send_writes, writes_wait

logger = logging.getLogger("milepost.store")

READERS = 4
CONNECTIONS = READERS + 3
"""Connections of one server at most: those for reading, the one that writes, the one that hears of others and, for a moment, the one
that tries whether it does."""

# The lock under which groups are committed and tables are changed. Any number will do that nobody else uses.
_GROUP_LOCK = 5_870_001_912_640
# A server that hangs in the middle of a group loses it, and with it the lock that all others wait for. They wait longer than that.
IDLE_SECONDS = 10
LOCK_SECONDS = 20
_MIGRATION_LOCK_SECONDS = 300
# For how long the end of a commit is looked for whose answer got lost.
COMMIT_SECONDS = 60
_ASK_SECONDS = 0.25

# A commit is on disk when it is acknowledged, even where the database is set to lose it.
_SAFE = (
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
_BEGIN_WRITING = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '{{lock_seconds}}s';
SET LOCAL idle_in_transaction_session_timeout = '{{idle_seconds}}s';
{{more}}
{_SAFE};
SELECT pg_advisory_xact_lock({_GROUP_LOCK});
{{newest}}
"""
_BEGIN_GROUP = _BEGIN_WRITING.format(
    lock_seconds=LOCK_SECONDS, idle_seconds=IDLE_SECONDS, more="", newest=f"SELECT ({NEWEST})"
)
_BEGIN_MIGRATING = _BEGIN_WRITING.format(
    lock_seconds=_MIGRATION_LOCK_SECONDS,
    idle_seconds=_MIGRATION_LOCK_SECONDS,
    more="SET LOCAL statement_timeout = 0;",
    newest="SELECT NULL",
)
_BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# What goes away by itself or by the care of whoever runs the database: the statement is right, and may be tried again. By the class of
# the code, or by the whole of it.
_PASSING_CLASSES = frozenset(
    {
        "08",  # connection
        "40",  # serialization failure, deadlock
        "53",  # disk full, out of memory, too many connections
        "57",  # shutting down, cancelled by a timeout
        "58",  # the system's own input and output
    }
)
_PASSING = frozenset(
    {
        "25006",  # read only
        "25P03",  # idle in a transaction for too long
        "25P04",  # transaction_timeout
        "26000",  # a pooler has forgotten a prepared statement
        "42P05",  # or knows one from somebody else
        "55P03",  # lock_timeout
    }
)
_FORGOTTEN_STATEMENT = frozenset({"26000", "42P05"})
# What the driver and the server say in words only, or where words help, and what to do about it.
_CURES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern, re.IGNORECASE), cure)
    for pattern, cure in (
        (
            r"password authentication failed|no password supplied|SASL authentication failed",
            "check user and password in MILEPOST_DATABASE_URL; in a password, @ : / ? # % are written as %40 %3A %2F %3F %23 %25",
        ),
        (
            r'database ".*" does not exist',
            "create it (createdb NAME), or name another one in MILEPOST_DATABASE_URL",
        ),
        (r'role ".*" does not exist', "create the user (createuser NAME), or name another one"),
        (
            r"no pg_hba.conf entry",
            "let the server's pg_hba.conf accept this user from this machine; it may want ?sslmode=require at the end of the URL",
        ),
        (
            r"connection refused|no such file or directory",
            "is PostgreSQL running there, and is the port right?",
        ),
        (r"failed to resolve host|could not translate host name", "check the host in MILEPOST_DATABASE_URL"),
        (
            r"timeout expired|timed out",
            "is the host reachable from this machine, and does a firewall let the port through?",
        ),
        (
            r"too many clients|remaining connection slots|too many connections",
            f"each Milepost server holds up to {CONNECTIONS} connections: raise max_connections, or the limit of the user or database",
        ),
        (
            r"session is read-only|session is not read-write|read-only transaction|server is in hot standby mode",
            "Milepost has to write: name the primary and not a replica, and see that default_transaction_read_only is off",
        ),
        (
            r"permission denied for (schema|database)",
            "let the user make tables (GRANT CREATE, USAGE ON SCHEMA public TO user), or run `milepost db upgrade` as one who may",
        ),
        (
            r"permission denied for (table|sequence|relation)",
            "the tables belong to another user: use that one, or grant this one all rights on them",
        ),
        (
            r"no schema has been selected to create in",
            "the search_path of the user names no schema that is there: create one, or set the search_path",
        ),
        (
            r"statement timeout",
            "statement_timeout of this user or database is too short for Milepost, or the database is overloaded",
        ),
        (
            r"lock timeout",
            f"another server has held up all groups for {LOCK_SECONDS} s: see pg_stat_activity for application_name milepost",
        ),
        (r"could not extend file|no space left", "free space on the disk of the database"),
    )
]
# What is said where a database, its host or the way there is not up yet, or has no room just now; the driver gives no code for it.
_AWAY = re.compile(
    r"connection refused|no such file or directory|timeout expired|timed out|no route to host|network is unreachable|host is down|"
    r"(failed to resolve|could not translate) host|connection reset|closed the connection|"
    r"the database system is (starting up|shutting down|not yet accepting connections|not accepting connections|in recovery mode)|"
    r"too many clients|remaining connection slots|too many connections",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


class PostgresDatabase:
    """A database of a PostgreSQL server, which any number of our servers share.

    Args:
        url: as libpq takes it, `postgresql://user:password@host:port/name?option=value`; whatever is left out comes from the usual
            places (PGPASSWORD, ~/.pgpass).
        connection_class: of the writer's connection to the driver, which sees every statement and commit.

    Raises: ConfigurationError, which never shows the password.
    """

    def __init__(
        self, url: str, *, connection_class: type[psycopg.Connection[Any]] = psycopg.Connection
    ) -> None:
        self._options = _options_of(url)
        self._connection_class = connection_class
        self._prepares = True
        # Each group that writes leaves a mark: by the number in this server's row it is known whether it was committed.
        self._mark = f"{MARKS}{uuid4().hex}"
        self._mark_number = 0
        # False while tables are made.
        self._has_marks = False

    is_shared = True
    # The migrations set how full its pages are, and in which order texts are.
    has_plain_tables = False

    @property
    def place(self) -> str:
        """User, host, port and name of the database."""
        given = self._options
        # Nothing else: a password may hide in any other option.
        user = f"{given['user']}@" if given.get("user") else ""
        port = f":{given['port']}" if given.get("port") else ""
        return f"postgresql://{user}{given.get('host') or ''}{port}/{given.get('dbname') or ''}"

    @property
    def is_displaced(self) -> bool:
        """Never: a database that goes away takes its connections along."""
        return False

    def prepare(self) -> None:
        """Nothing: the database is there, or connecting says why not."""

    def opened(self) -> None:
        """Nothing need be remembered."""

    def check_place(self) -> None:
        """Nothing to check."""

    def writer(self) -> Engine:
        """The engine of the one write connection. It connects to a server that can be written only."""
        engine = self._engine(
            connection_class=self._connection_class, target_session_attrs="read-write", poolclass=NullPool
        )
        # What SQLAlchemy executes itself comes after the writes that wait, too.
        event.listen(engine, "before_cursor_execute", _send_before)
        return engine

    @property
    def reader_count(self) -> int:
        """How many connections read at most."""
        return READERS

    def readers(self) -> Engine:
        """The engine of the read connections."""
        return self._engine(poolclass=QueuePool, pool_size=READERS, max_overflow=0)

    def begin_writing(self, connection: Connection) -> None:
        """Begin a group: the groups of all servers come one after the other."""
        self._begin(connection, _BEGIN_GROUP)
        self._has_marks = True

    def was_changed(self, connection: Connection) -> bool:
        """Nobody knows; other servers tell."""
        return True

    def begin_migrating(self, connection: Connection) -> None:
        """Begin changing tables. Who begins at the same time waits, and finds it done."""
        self._begin(connection, _BEGIN_MIGRATING)
        self._has_marks = False

    def begin_reading(self, connection: Connection) -> None:
        """Begin a transaction that sees one state, that of its first statement."""
        self._adapt(connection)
        execute(connection, _BEGIN_READING)

    def commit(self, connection: Connection) -> None:
        """Commit. When the answer gets lost the database is asked what became of the transaction."""
        has_mark = self._has_marks and self._has_written(connection)
        if has_mark:
            self._mark_number = max(self._mark_number + 1, time.time_ns() // 1000)
            leave_mark(connection, self._mark, self._mark_number)
        try:
            cursor = execute(connection, "COMMIT")
        except DBAPIError as error:
            if not self.is_broken(connection) or not has_mark:
                raise
            if self._has_committed():
                logger.warning(
                    "the connection was lost during a commit, which was carried out: %s", error.orig
                )
                return
            raise
        # To commit a transaction in which a statement has failed undoes it without an error.
        if cast(Any, cursor).statusmessage != "COMMIT":
            raise UnavailableError(
                "the database has undone the transaction instead of committing it; try again"
            )

    def now(self, connection: Connection) -> int:
        """The time of the machine that PostgreSQL runs on, not that of the transaction's beginning."""
        return connection.execute(
            text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        ).scalar_one()

    def listener(self, woken: Callable[[int | None], None]) -> Listener:
        """What hears of the other servers' commits, on a connection of its own."""
        return Listener(self._connect, woken)

    def is_broken(self, connection: Connection) -> bool:
        """Whether the connection is gone."""
        return connection.closed or connection.invalidated or _driver_of(connection).closed

    def is_unavailable(self, error: DBAPIError) -> bool:
        """True when the database cannot be had at the moment, false when the statement is wrong."""
        code = _code_of(error)
        if code in _FORGOTTEN_STATEMENT and self._prepares:
            logger.warning(
                "a pooler between this server and PostgreSQL does not keep prepared statements: they are used no more (%s)",
                error.orig,
            )
            self._prepares = False
        if code is None:
            # No answer of the database, so its connection: to a session that never was, or is no more.
            return isinstance(error.orig, psycopg.OperationalError)
        return code[:2] in _PASSING_CLASSES or code in _PASSING

    def is_away(self, error: DBAPIError) -> bool:
        """Nothing is there, or what is there is about to start or to end."""
        return _AWAY.search(_in_one_line(str(error.orig))) is not None

    def reason(self, error: DBAPIError) -> str:
        """What PostgreSQL says, and the cure where it is known."""
        said = _in_one_line(str(error.orig))
        cure = next((cure for pattern, cure in _CURES if pattern.search(said)), None)
        return said if cure is None else f"{said} ({cure})"

    def _begin(self, connection: Connection, text: str) -> None:
        self._adapt(connection)
        gather_writes(connection)
        cursor = cast("psycopg.Cursor[Any]", execute(connection, text))
        while cursor.nextset():
            pass
        found = cursor.fetchone()
        assert found is not None, "the last statement has a row"
        [connection.info[FOUND]] = found

    def _adapt(self, connection: Connection) -> None:
        if not self._prepares:
            _driver_of(connection).prepare_threshold = None

    def _has_written(self, connection: Connection) -> bool:
        if writes_wait(connection):
            return True
        cursor = execute(connection, "SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
        return cursor.fetchall() == [(True,)]

    def _has_committed(self) -> bool:
        """What became of the newest group. Raises CommitUnknownError when that cannot be found out for a while.

        By its mark, which only it has left: the numbers of transactions are given again after a crash.
        """
        until = time.monotonic() + COMMIT_SECONDS
        said: object = "it is still under way"
        while time.monotonic() < until:
            try:
                # One that does not hold the data of the primary must not be asked.
                with self._connect(target_session_attrs="read-write") as connection, connection.transaction():
                    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'".encode())
                    # Nobody has this lock any more, so the group has ended.
                    connection.execute(f"SELECT pg_advisory_xact_lock({_GROUP_LOCK})".encode())
                    found = connection.execute(MARK_OF, [self._mark]).fetchone()
                return found == (self._mark_number,)
            except psycopg.Error as error:
                said = _in_one_line(str(error))
            time.sleep(_ASK_SECONDS)
        raise CommitUnknownError(
            f"the connection to the database was lost during a commit, and for {COMMIT_SECONDS} s it could not be found out whether "
            f"it was carried out: {said}"
        )

    def _engine(
        self,
        *,
        connection_class: type[psycopg.Connection[Any]] = psycopg.Connection,
        target_session_attrs: str | None = None,
        **pool: Any,
    ) -> Engine:
        def connect() -> psycopg.Connection[Any]:
            connection = self._connect(connection_class, target_session_attrs)
            # A pooler may lend the session that listens to who does not, and psycopg keeps what nobody takes for ever.
            connection.add_notify_handler(lambda _: None)
            return connection

        return create_engine(
            "postgresql+psycopg://",
            creator=connect,
            # Transactions begin where the code says so.
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
            **pool,
        )

    def _connect(
        self,
        connection_class: type[psycopg.Connection[Any]] = psycopg.Connection,
        target_session_attrs: str | None = None,
    ) -> psycopg.Connection[Any]:
        options = dict(self._options)
        if target_session_attrs is not None:
            options.setdefault("target_session_attrs", target_session_attrs)
        connection = connection_class.connect(
            "", autocommit=True, prepare_threshold=5 if self._prepares else None, **options
        )
        # Statements of the hot path are few, and each stays prepared.
        connection.prepared_max = 500
        connection.adapters.register_dumper(str, _TextDumper)
        connection.adapters.register_dumper(int, _NumberDumper)
        for kind in ("text", "varchar"):
            connection.adapters.register_loader(kind, _TextLoader)
        return connection


# --- values ------------------------------------------------------------------------------------------------

# PostgreSQL's texts cannot hold NUL, ours may. Both characters are written as two, in such a way that texts keep their order, equal
# ones stay equal, and what a text begins with it still begins with.
_ESCAPES = (("\x01", "\x01\x02"), ("\x00", "\x01\x01"))
_ESCAPED = re.compile("\x01([\x01\x02])")


class _TextDumper(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        if "\x01" in obj or "\x00" in obj:
            for plain, escaped in _ESCAPES:
                obj = obj.replace(plain, escaped)
        return obj.encode()


class _TextLoader(Loader):
    def load(self, data: Buffer) -> Any:
        text = str(data, "utf-8")
        return (
            _ESCAPED.sub(lambda found: "\x00" if found[1] == "\x01" else "\x01", text)
            if "\x01" in text
            else text
        )


class _NumberDumper(Dumper):
    """Whole numbers of one kind, so that a statement is not prepared anew for each size of its numbers."""

    def dump(self, obj: int) -> Buffer | None:
        if not -(2**63) <= obj < 2**63:
            raise OverflowError("whole numbers have at most 64 bits")
        return b"%d" % obj

    def quote(self, obj: int) -> Buffer:
        """As it stands in the text of a statement; behind another minus sign it must not begin a comment."""
        return b" %d" % obj


@compiles(HasBytes, "postgresql")
def _has_bytes(element: HasBytes, compiler: SQLCompiler, **options: Any) -> str:
    column, part = element.clauses
    return f"position({compiler.process(part, **options)} IN {compiler.process(column, **options)}) > 0"


# --- addresses and errors ----------------------------------------------------------------------------------


def _options_of(url: str) -> dict[str, Any]:
    """What the URL says, and what it leaves to us. Nothing of a URL that is not understood is shown: its password may be anywhere."""
    scheme = _SCHEME.match(url)
    if scheme is None or scheme["scheme"].split("+")[0].lower() not in ("postgresql", "postgres"):
        said = f"{scheme['scheme']}:// is not known" if scheme else "it does not begin with postgresql://"
        raise ConfigurationError(
            f"the database URL cannot be used: {said}; write postgresql://user:password@host:5432/name, or leave it out and use "
            "SQLite in the folder that --data names"
        )
    rest = url[scheme.end() :]
    address = rest.partition("?")[0]
    refused = ConfigurationError(
        "the database URL cannot be read; write postgresql://user:password@host:5432/name, and in user and password %40 for @, "
        "%3A for :, %2F for /, %3F for ?, %23 for # and %25 for % (the URL is not shown here, because it may have a password in it)"
    )
    if address.count("@") > 1 or "#" in address or "@" in address.partition("/")[2]:
        raise refused
    try:
        found: dict[str, Any] = dict(conninfo.conninfo_to_dict(f"postgresql://{rest}"))
    except psycopg.Error:
        raise refused from None
    if not all(port.isdigit() or not port for port in str(found.get("port") or "").split(",")):
        raise refused
    usual = {
        "application_name": "milepost",
        "connect_timeout": "10",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }
    # What reads and writes texts here knows no other encoding; PGCLIENTENCODING, the database or the URL may ask for one.
    return {**usual, **found, "client_encoding": "UTF8"}


def _send_before(connection: Connection, *_: object) -> None:
    send_writes(connection)


def _driver_of(connection: Connection) -> "psycopg.Connection[Any]":
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def _code_of(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _in_one_line(said: str) -> str:
    return " ".join(said.split())
