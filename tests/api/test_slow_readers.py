"""Readers that take one byte a second, at the socket: they cost the server little, hold up nobody, and miss nothing."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
import uvloop

from milepost.cli.connection import Connection
from milepost.protocol.feed import EventReader
from support.served import KEY, PATIENCE_SECONDS, Events, HttpWorker, Served

PORTIONS = 60
PORTION = ["x" * 20_000] * 10
# A frame, which holds a whole row of chunks at most, and what the transport takes before it says that it is full.
HELD_BYTES_MAX = 600_000
SLOW_READERS = 2


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    new_loop: Callable[[], asyncio.AbstractEventLoop] = request.param
    served = Served(tmp_path, new_loop=new_loop)
    yield served
    served.stop()


class SlowReader:
    """Asks for an event stream, and takes one byte of it each second until it is told to hurry."""

    def __init__(self, served: Served, path: str) -> None:
        self.taken = bytearray()
        self._hurries = threading.Event()
        self._socket = socket.socket()
        # The kernel keeps little for it, so the rest waits at the server.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(("127.0.0.1", served.port))
        self.port: int = self._socket.getsockname()[1]
        # Closed at its end, and not chunked: what comes behind the headers is the event stream itself.
        head = f"GET {path} HTTP/1.0\r\nHost: milepost\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        self._socket.sendall(head.encode())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while data := self._socket.recv(1_000_000 if self._hurries.is_set() else 1):
            self.taken += data
            self._hurries.wait(1)
        self._socket.close()

    def hurry(self) -> None:
        self._hurries.set()

    def indexes(self) -> list[int]:
        """The index of every chunk that it has been told, once the stream has ended."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        head, _, body = bytes(self.taken).partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        events = EventReader().feed(body)
        assert events[-1][0] == "end"
        return [
            record["seq_num"]
            for event, data in events
            if event == "batch"
            for record in msgspec.json.decode(data)["records"]
        ]


def test_readers_of_a_byte_a_second(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    transports: dict[int, Any] = {}
    connection_made = Connection.connection_made

    def remember(self: Connection, transport: asyncio.Transport) -> None:
        connection_made(self, transport)
        transports[transport.get_extra_info("peername")[1]] = (transport, self.transport)

    monkeypatch.setattr(Connection, "connection_made", remember)
    worker = HttpWorker(served)
    run = worker.take(served.trigger())
    path = f"/realtime/v1/streams/{run['id']}/s"
    slow = [SlowReader(served, path) for _ in range(SLOW_READERS)]

    async def held() -> int:
        """How much the server holds for the slowest of them, behind what the kernel has taken."""
        found = [transports[reader.port] for reader in slow if reader.port in transports]
        return max(
            (inner.get_write_buffer_size() + sum(map(len, outer._gathered)) for inner, outer in found),
            default=0,
        )

    def write(number: int, **more: Any) -> None:
        part = {"run": run["id"], "key": "s", "writer": "w", "first": number * len(PORTION), **more}
        body = {"runs": [{"id": run["id"], "attempt": 1, "parts": [part]}]}
        assert "code" not in served.post("/api/v1/workers/worker_1/chunks", body)["runs"][0]["parts"][0]

    most = 0
    response = served.pool.request(
        "GET", served.url + path, headers={"authorization": f"Bearer {KEY}"}, preload_content=False, timeout=urllib3.Timeout(20)
    )  # fmt: skip
    quick, quick_count = Events(response), 0
    began = time.monotonic()
    for number in range(PORTIONS):
        write(number, chunks=PORTION)
        # Whoever reads as fast as it is written has each portion before the next.
        while quick_count < (number + 1) * len(PORTION):
            event, data = quick.next()
            quick_count += len(data["records"]) if event == "batch" else 0
        most = max(most, asyncio.run_coroutine_threadsafe(held(), served.loop).result(PATIENCE_SECONDS))
    seconds = time.monotonic() - began
    response.close()
    write(PORTIONS, chunks=[], end={})
    for reader in slow:
        assert len(reader.taken) < 10 + 2 * seconds, "this was no slow reader"
    assert 0 < most < HELD_BYTES_MAX
    for reader in slow:
        reader.hurry()
    for reader in slow:
        assert reader.indexes() == list(range(PORTIONS * len(PORTION)))
