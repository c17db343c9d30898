"""Clients that vanish: whatever the server was doing for them, it goes on, says nothing, and keeps nothing."""

import asyncio
import gc
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.requests import Request

from milepost.engine.commands import Command, WithdrawClaim
from milepost.errors import UnavailableError
from milepost.server.handlers.work import Work
from support.served import KEY, PATIENCE_SECONDS, HttpWorker, Served, set_to

ROUNDS = 12


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """A server, and a run with a large document that is written to all the time."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = request.param
    served = Served(tmp_path, new_loop=new_loop)
    HttpWorker(served)
    run_id = served.trigger(metadata={"pad": "x" * 100_000})
    enough = threading.Event()

    def write() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            served.put_metadata(run_id, set_to("n", number), set_to("text", "y" * 20_000))

    writer = threading.Thread(target=write)
    writer.start()
    yield served, run_id
    enough.set()
    writer.join(PATIENCE_SECONDS)
    served.stop()


def connected(
    served: Served, method: str, path: str, body: bytes = b"", length: int | None = None
) -> socket.socket:
    """A connection that has asked for something and reads slowly."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE_SECONDS)
    client.connect(("127.0.0.1", served.port))
    head = f"{method} {path} HTTP/1.1\r\nHost: milepost\r\nAuthorization: Bearer {KEY}\r\n"
    client.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return client


def vanish(client: socket.socket, *, at_once: bool) -> None:
    """Go away with a reset, or with the usual end of a connection although something is still being sent."""
    if at_once:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_nobody_hears_of_clients_that_vanish(
    busy: tuple[Served, str], caplog: pytest.LogCaptureFixture
) -> None:
    served, run_id = busy
    chance = random.Random(7)
    requests = [
        ("GET", f"/api/v1/runs/{run_id}/feed"),
        ("GET", f"/api/v1/runs/{run_id}/feed?children=5"),
        ("GET", "/api/v1/feed/runs"),
        ("GET", "/api/v1/feed/matching-runs"),
        ("GET", "/api/v1/workers/worker_2/inbox"),
        ("GET", f"/api/v3/runs/{run_id}"),
        ("PUT", f"/api/v1/runs/{run_id}/metadata"),
        ("POST", "/api/v1/workers/worker_1/claim"),
    ]
    with caplog.at_level(logging.WARNING):
        for _ in range(ROUNDS):
            for method, path in requests:
                body = b'{"sequence": 1, "slots": 0, "waitSeconds": 1}' if method == "POST" else b""
                client = connected(served, method, path, body, length=1000 if method == "PUT" else None)
                if method == "GET" and chance.random() < 0.5:
                    # In the middle of what it is sent.
                    client.recv(chance.choice([1, 500, 4000]))
                vanish(client, at_once=chance.random() < 0.7)
        wait_until_all_are_gone(served)
    assert [record.getMessage() for record in caplog.records] == []


def wait_until_all_are_gone(served: Served) -> None:
    """The server notices a client that has gone when it has something for it, and something is written all the time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    hub = served.server.hub
    while hub.runs or hub.lists or hub.matches or hub.inboxes:
        assert time.monotonic() < deadline, (hub.runs, list(hub.lists), list(hub.matches), hub.inboxes)
        time.sleep(0.02)


def test_nobody_hears_of_a_claim_whose_worker_vanishes_while_the_database_is_away() -> None:
    said: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        withdrawn = asyncio.Event()

        async def submit(command: Command) -> Any:
            if isinstance(command, WithdrawClaim):
                withdrawn.set()
            else:
                await withdrawn.wait()
                await asyncio.sleep(0)
            raise UnavailableError("the database is away")

        messages = [
            {"type": "http.request", "body": b'{"sequence": 1, "slots": 1, "waitSeconds": 1}'},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        scope = {"type": "http", "method": "POST", "headers": [], "path_params": {"worker": "worker_1"}}
        nothing: Any = None
        with pytest.raises(UnavailableError):
            await Work(nothing, submit, nothing, nothing).claim_runs(Request(scope, receive))
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(main())
    assert said == []
