"""Hearing that another server has committed something: notifications of PostgreSQL, and looking now and then where they do not come.

A notification is a hint and nothing else. A connection may be lost, or a pooler lends it to somebody else, and nobody is told. So this
server tells itself something from time to time, and looks often for as long as it does not hear that. The first time it does so from
another connection: a pooler may lend the same session to the same connection again, and then only what that says itself comes back.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from milepost.store.announcements import CHANNEL

logger = logging.getLogger("milepost.store")

# While notifications come: how long to wait for one before trying whether they still do.
QUIET_SECONDS = 5.0
ECHO_SECONDS = 2.0
# While they do not: how often to look instead, and how long until the next attempt to hear, the first one and any.
LOOK_SECONDS = 0.05
AGAIN_SECONDS = 1.0
AGAIN_SECONDS_MAX = 10.0


class Listener:
    """A thread that calls `woken` whenever another server may have committed something.

    Args:
        connect: makes a connection of its own, and at each beginning one more for a moment.
        woken: called in the thread, often, and also for nothing; with the number of the newest announcement where it was told along.
    """

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], woken: Callable[[int | None], None]
    ) -> None:
        self._connect = connect
        self._woken = woken
        self._stopping = threading.Event()
        self._is_hearing: bool | None = None
        self._thread = threading.Thread(target=self._run, name="milepost-listener", daemon=True)

    @property
    def is_notified(self) -> bool:
        """Whether notifications arrive; otherwise this looks every `LOOK_SECONDS`."""
        return self._is_hearing is True

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, within a moment; may be called twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=ECHO_SECONDS + 1)

    def _run(self) -> None:
        again = AGAIN_SECONDS
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._hear(connection)
            except psycopg.Error as error:
                again = AGAIN_SECONDS if self._is_hearing else again
                self._say(is_hearing=False, why=str(error).strip().partition("\n")[0])
            self._look(again)
            again = min(2 * again, AGAIN_SECONDS_MAX)

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for notifications, for as long as they come."""
        with self._connect() as other:
            is_hearing = self._hears(connection, told_by=other)
        while is_hearing and not self._stopping.is_set():
            self._say(is_hearing=True)
            until = time.monotonic() + QUIET_SECONDS
            while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
                for notice in connection.notifies(timeout=min(left, 0.5), stop_after=1):
                    self._woken(int(notice.payload) if notice.payload.isdecimal() else None)
            is_hearing = self._stopping.is_set() or self._hears(connection, told_by=connection)
        if not is_hearing:
            self._say(
                is_hearing=False, why="notifications do not arrive, perhaps because of a pooler in between"
            )

    def _hears(self, connection: psycopg.Connection[Any], *, told_by: psycopg.Connection[Any]) -> bool:
        word = f"echo {time.monotonic_ns()}"
        told_by.execute("SELECT pg_notify(%s, %s)", [CHANNEL, word])
        until = time.monotonic() + ECHO_SECONDS
        while (left := until - time.monotonic()) > 0:
            for notice in connection.notifies(timeout=left, stop_after=1):
                self._woken(None)
                if notice.payload == word:
                    return True
        return False

    def _look(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopping.wait(LOOK_SECONDS):
            self._woken(None)

    def _say(self, *, is_hearing: bool, why: str = "") -> None:
        if is_hearing is self._is_hearing:
            return
        if not is_hearing:
            logger.warning(
                "what other servers commit is not notified (%s): this server looks every %d ms instead",
                why,
                LOOK_SECONDS * 1000,
            )
        elif self._is_hearing is False:
            logger.warning("what other servers commit is notified again")
        self._is_hearing = is_hearing
