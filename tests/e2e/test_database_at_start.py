"""A server that is started while its database is not there yet."""

import signal
import time
from collections.abc import Callable, Iterator

import pytest
import urllib3
from real_processes import KEY, Command, wait_until

from support import postgres

SERVER = postgres.server


@pytest.fixture
def name() -> Iterator[str]:
    name = SERVER().create_database()
    yield name
    SERVER().drop_database(name)


@pytest.fixture
def away() -> Iterator[Callable[[], None]]:
    """PostgreSQL is away; called, it comes back."""
    SERVER().stop()
    is_back = False

    def come_back() -> None:
        nonlocal is_back
        if not is_back:
            SERVER().start()
            is_back = True

    yield come_back
    come_back()


Start = Callable[..., Command]


def test_it_waits_and_goes_on(
    name: str, away: Callable[[], None], command: Start, free_ports: list[int]
) -> None:
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": SERVER().url(name)}
    server = command("server", "--port", str(free_ports[0]), env=env)
    server.says("waiting for the database, for 60 s at most")
    assert "is PostgreSQL running there" in server.errors
    assert postgres.QUOTED_PASSWORD not in server.errors
    assert postgres.PASSWORD not in server.errors
    away()
    server.says("serves at")
    url = f"http://127.0.0.1:{free_ports[0]}/api/v1/ready"
    wait_until(lambda: urllib3.request("GET", url).status == 200, what="ready")
    assert server.end() == 0


def test_it_gives_up_and_says_how_long_it_has_waited(
    name: str, away: Callable[[], None], command: Start
) -> None:
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": SERVER().url(name)}
    server = command("server", "--port", "0", env={**env, "MILEPOST_DATABASE_WAIT_SECONDS": "2"})
    began = time.monotonic()
    assert server.process.wait(30) == 1
    assert time.monotonic() - began >= 2
    assert "has waited for 2 s (MILEPOST_DATABASE_WAIT_SECONDS)" in server.errors
    assert "Traceback" not in server.errors
    at_once = command("server", "--port", "0", env={**env, "MILEPOST_DATABASE_WAIT_SECONDS": "0"})
    assert at_once.process.wait(30) == 1
    assert "waiting for" not in at_once.errors


def test_a_signal_ends_the_wait(name: str, away: Callable[[], None], command: Start) -> None:
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": SERVER().url(name)}
    server = command("server", "--port", "0", env=env)
    server.says("waiting for the database")
    assert server.end(signal.SIGTERM, 10) == 0
    assert "serves at" not in server.errors


@pytest.mark.parametrize("wrong", ["password", "database"])
def test_what_time_does_not_mend_ends_it_at_once(name: str, command: Start, wrong: str) -> None:
    url = SERVER().url(name, password="hidden") if wrong == "password" else SERVER().url("nowhere")
    server = command("server", "--port", "0", env={"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": url})
    assert server.process.wait(30) == 1
    assert "waiting for" not in server.errors
    assert "password authentication failed" in server.errors or "does not exist (create it" in server.errors
