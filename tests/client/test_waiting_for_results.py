"""Whoever waits for a result stays with it while the server starts again."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milepost.client import connection, endings
from milepost.client.client import Client
from milepost.client.retries import Retries
from milepost.errors import UnavailableError
from support.served import KEY, PATIENCE_SECONDS, HttpWorker, Served

GIVES_UP_SECONDS = 0.3


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server, and callers who give up soon on one that never answered."""
    monkeypatch.setitem(Retries.__init__.__kwdefaults__, "seconds_max", GIVES_UP_SECONDS)
    served = Served(tmp_path)
    yield served
    served.stop()


class Waiting(threading.Thread):
    """Waits for the result of a run."""

    def __init__(self, served: Served, run_id: str, colour: str) -> None:
        super().__init__()
        self.client, self._run_id, self._colour = Client(served.url, KEY), run_id, colour
        self.found: Any = None
        self.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while not served.server.hub._ends and self.is_alive() and time.monotonic() < until:
            time.sleep(0.005)

    def run(self) -> None:
        way = self.client.connection
        try:
            if self._colour == "blocking":
                self.found = endings.wait_for_result(way, self._run_id, None)
            else:
                self.found = asyncio.run(endings.await_for_result(way, self._run_id, None))
        except UnavailableError as error:
            self.found = error


@pytest.mark.parametrize("colour", ["blocking", "async"])
@pytest.mark.parametrize("has_answered", [True, False], ids=["answered before", "held until then"])
def test_a_server_that_starts_again_is_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch, colour: str, has_answered: bool
) -> None:
    if has_answered:
        monkeypatch.setattr(endings, "WAIT_SECONDS", 1)
    else:
        monkeypatch.setattr(connection, "HELD_SECONDS", 0.1)
    worker = HttpWorker(served)
    run_id = served.trigger()
    waiting = Waiting(served, run_id, colour)
    time.sleep(1.2 if has_answered else 0.2)
    port = served.port
    served.stop()
    time.sleep(4 * GIVES_UP_SECONDS)
    served.start(port)
    worker = HttpWorker(served)
    worker.finish(worker.take(run_id), output="7")
    waiting.join(PATIENCE_SECONDS)
    assert getattr(waiting.found, "output", waiting.found) == "7"


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_server_that_never_was_there_is_given_up_soon(served: Served, colour: str) -> None:
    served.stop()
    waiting = Waiting(served, "run_1", colour)
    waiting.join(PATIENCE_SECONDS)
    assert isinstance(waiting.found, UnavailableError)
    served.start()
