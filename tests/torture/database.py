"""The database under torture: where its servers find it, what is read from it in the end, and what is done to it meanwhile."""

import asyncio
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Row = dict[str, Any]
Trouble = Callable[[random.Random], Coroutine[Any, Any, None]]
# Rows that are read at once.
PAGE_ROWS = 2000
RESTARTS = ("database restarted", "database stopped at once")
RECOVERY_SECONDS_MAX = 60.0


class Database(Protocol):
    """A database of a torture session, and its processes, if it has any.

    Attributes:
        servers_max: how many servers may share it.
        environment: what servers have to be told of it.
        troubles: what can be done to it, by name. It is of use again when a trouble has returned.
    """

    servers_max: int
    environment: dict[str, str]
    troubles: dict[str, Trouble]

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """What a query gives, a mapping for each row; parameters stand for question marks. Nothing beside may change the database."""
        ...

    def processes(self) -> list[psutil.Process]:
        """Its processes."""
        ...

    def end(self) -> None:
        """Stop it. What it holds stays where it is."""
        ...


class SQLite:
    """The file in the data folder of the one server."""

    servers_max = 1

    def __init__(self, folder: Path) -> None:
        self._file = folder / "milepost.db"
        self.environment = {"MILEPOST_DATA_FOLDER": str(folder)}
        self.troubles: dict[str, Trouble] = {}

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """See `Database`."""
        with closing(sqlite3.connect(self._file)) as connection:
            connection.row_factory = sqlite3.Row
            for row in connection.execute(query, parameters):
                yield dict(row)

    def processes(self) -> list[psutil.Process]:
        """There are none."""
        return []

    def end(self) -> None:
        """Nothing runs."""


class Postgres:
    """A PostgreSQL of this session's own, which is restarted, crashed and cut off like the servers that use it."""

    # As many as its connections allow.
    servers_max = 8
    # A long session leaves much behind, which a database that is used for long has to clear away.
    SETTINGS = {
        "autovacuum": "on",
        "autovacuum_naptime": "10s",
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
    }

    def __init__(self, folder: Path) -> None:
        # SQLite needs no driver.
        from support.postgres import PostgresServer

        folder.mkdir()
        self._server = PostgresServer(folder, settings=self.SETTINGS, is_kept=True)
        self._name = self._server.create_database()
        self.environment = {"MILEPOST_DATABASE_URL": self._server.url(self._name)}
        self.troubles = {
            **dict(zip(RESTARTS, (self._restart, self._stop_at_once), strict=True)),
            "process of the database killed": self._crash,
            "all sessions of the database ended": self._end_sessions,
        }

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        """See `Database`."""
        from psycopg.rows import dict_row

        text = query.replace("%", "%%").replace("?", "%s").encode()
        with self._server.administer(self._name) as connection, connection.transaction():
            with connection.cursor(name="rows", row_factory=dict_row) as cursor:
                cursor.itersize = PAGE_ROWS
                cursor.execute(text, parameters)
                yield from cursor

    def processes(self) -> list[psutil.Process]:
        """The first one and its children."""
        found: list[psutil.Process] = []
        for process_id in self._server.processes():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(process_id))
        return found

    def end(self) -> None:
        """See `Database`."""
        self._server.end()

    async def _restart(self, chance: random.Random) -> None:
        await asyncio.to_thread(self._server.stop, "fast")
        await asyncio.to_thread(self._server.start)

    async def _stop_at_once(self, chance: random.Random) -> None:
        await asyncio.to_thread(self._server.stop, "immediate")
        await asyncio.to_thread(self._server.start)

    async def _crash(self, chance: random.Random) -> None:
        """All others are ended by the first process then, and it recovers by itself."""
        await asyncio.to_thread(self._kill_one, chance)

    async def _end_sessions(self, chance: random.Random) -> None:
        await asyncio.to_thread(self._terminate)

    def _terminate(self) -> None:
        with self._server.administer() as connection:
            connection.execute(
                b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                [self._name],
            )

    def _kill_one(self, chance: random.Random) -> None:
        from psycopg import OperationalError

        with suppress(OperationalError), self._server.administer() as connection:
            with suppress(psutil.NoSuchProcess):
                chance.choice(self.processes()[1:]).send_signal(signal.SIGKILL)
            # This session ends when the first process has noticed.
            connection.execute("SELECT pg_sleep(60)")
        until = time.monotonic() + RECOVERY_SECONDS_MAX
        while True:
            try:
                with self._server.administer(self._name):
                    return
            except OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


DATABASES: dict[str, type[SQLite] | type[Postgres]] = {"sqlite": SQLite, "postgres": Postgres}
