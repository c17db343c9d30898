"""Whether notifications arrive is found out, whatever stands between a server and PostgreSQL."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from milepost.store.announcements import CHANNEL
from milepost.store.database import Store
from milepost.store.listening import Listener
from support import postgres
from support.pgbouncer import pgbouncer, program

LOGGER = "milepost.store"
PATIENCE_SECONDS = 30


@pytest.fixture
def url() -> Iterator[str]:
    name = postgres.server().create_migrated_database()
    yield postgres.server().url(name)
    postgres.server().drop_database(name)


class Heard:
    """What a listener has said, and the numbers that woke it."""

    def __init__(self, url: str) -> None:
        self.numbers: list[int] = []
        self._changed = threading.Condition()
        self._woken = 0
        self.listener = Listener(lambda: psycopg.connect(url, autocommit=True), self._hear)

    def _hear(self, number: int | None) -> None:
        with self._changed:
            self._woken += 1
            if number is not None:
                self.numbers.append(number)
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.numbers, PATIENCE_SECONDS)

    def wait_until_woken(self, times: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._woken >= times, PATIENCE_SECONDS)


def test_what_others_notify_wakes(url: str) -> None:
    heard = Heard(url)
    heard.listener.start()
    try:
        # Its own word first, then that of somebody else.
        heard.wait_until_woken(1)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_notify(%s, '7')", [CHANNEL])
        heard.wait_for(7)
        assert heard.listener.is_notified
    finally:
        heard.listener.stop()


@pytest.mark.skipif(program() is None, reason="PgBouncer is not installed (Debian: pgbouncer)")
def test_what_comes_back_through_the_session_that_a_pooler_lends_again_is_no_notification(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger=LOGGER)
    server = postgres.server()
    # One session: what listens and what tells itself something are the same one.
    with pgbouncer(server, sessions=1) as port:
        heard = Heard(url.replace(f":{server.port}/", f":{port}/"))
        heard.listener.start()
        try:
            heard.wait_until_woken(3)
            assert not heard.listener.is_notified
        finally:
            heard.listener.stop()
    [said] = [record.getMessage() for record in caplog.records]
    assert "every 50 ms instead" in said


def test_a_connection_that_others_listen_on_keeps_no_notifications(url: str) -> None:
    store = Store(url)
    try:
        with store.write() as connection:
            driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        # As a pooler leaves a session in which somebody has begun to listen.
        driver.execute(f"LISTEN {CHANNEL}".encode())
        driver.execute("SELECT pg_notify(%s, '1')", [CHANNEL])
        # Each is taken as it comes, of which the driver warns who asks for those that were kept.
        with pytest.warns(RuntimeWarning, match="handlers"):
            assert list(driver.notifies(timeout=0)) == []
    finally:
        store.close()
