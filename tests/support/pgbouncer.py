"""Debian's PgBouncer for tests: it lends sessions of PostgreSQL for one transaction each."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import psycopg

from support.postgres import QUOTED_PASSWORD, PostgresServer

PATIENCE_SECONDS = 30
_SYSTEM_USER = "nobody"


def program() -> str | None:
    """Where PgBouncer is, if it is installed. Its folder is not on every user's path."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def pgbouncer(server: PostgresServer, *, sessions: int) -> Iterator[int]:
    """A pooler in front of a server, in transaction mode, with up to so many sessions for each database; its port."""
    found = program()
    assert found is not None, "ask `program` first"
    folder = Path(mkdtemp(prefix="milepost-pgbouncer-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    # Its own users are those of the server: each session is opened with the name and password that came.
    password = QUOTED_PASSWORD.replace("%2F", "/").replace("%40", "@")
    (folder / "users.txt").write_text(f'"postgres" "{password}"\n')
    (folder / "pgbouncer.ini").write_text(
        "[databases]\n"
        f"* = host=127.0.0.1 port={server.port}\n"
        "[pgbouncer]\n"
        "listen_addr = 127.0.0.1\n"
        f"listen_port = {port}\n"
        "unix_socket_dir =\n"
        "auth_type = scram-sha-256\n"
        f"auth_file = {folder / 'users.txt'}\n"
        "pool_mode = transaction\n"
        f"default_pool_size = {sessions}\n"
        "max_client_conn = 200\n"
        f"logfile = {folder / 'log'}\n"
    )
    is_root = os.geteuid() == 0
    if is_root:
        # It refuses to be run by root.
        shutil.chown(folder, _SYSTEM_USER)
    process = subprocess.Popen(
        [found, str(folder / "pgbouncer.ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        user=_SYSTEM_USER if is_root else None,
    )
    try:
        _wait_until_it_answers(f"postgresql://postgres:{QUOTED_PASSWORD}@127.0.0.1:{port}/postgres", process)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(PATIENCE_SECONDS * 10):
        with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=PATIENCE_SECONDS):
            return
        assert process.poll() is None, "PgBouncer has ended"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError("PgBouncer does not answer")
