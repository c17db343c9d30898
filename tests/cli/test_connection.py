"""What is sent in one turn of the event loop leaves by one write, in order, and nothing is held back."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from milepost.cli.connection import Connection

PATIENCE_SECONDS = 60


class Wire(asyncio.Transport):
    """The far end: what was written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = asyncio.Event()
        self.changed = asyncio.Event()

    def write(self, data: Any) -> None:
        assert not self.closed.is_set()
        self.pieces.append(bytes(data))
        self.changed.set()

    def close(self) -> None:
        self.closed.set()

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def exchange(app: Any, *headers: str) -> list[bytes]:
    """One request to an application, until it has ended and a body has arrived; what was written."""

    async def run() -> list[bytes]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            config = uvicorn.Config(app, http=Connection, lifespan="off", log_config=None, access_log=False)
            config.load()
            state, wire = ServerState(), Wire()
            protocol = Connection(config=config, server_state=state, app_state={})
            protocol.connection_made(wire)
            protocol.data_received("\r\n".join(["GET / HTTP/1.1", "host: x", *headers, "", ""]).encode())
            while not b"".join(wire.pieces).endswith(b"last"):
                wire.changed.clear()
                await wire.changed.wait()
            if headers:
                await wire.closed.wait()
            protocol.connection_lost(None)
            await asyncio.gather(*state.tasks)
            return wire.pieces

    return asyncio.run(run())


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"last"})


def test_head_and_body_leave_together() -> None:
    [piece] = exchange(answer)
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b"\r\n\r\nlast")


def test_an_answer_is_written_before_its_connection_is_closed() -> None:
    [piece] = exchange(answer, "connection: close")
    assert piece.endswith(b"\r\n\r\nlast")


def test_what_comes_in_a_later_turn_does_not_hold_back_what_came_before() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"last"})

    pieces = exchange(stream)
    assert pieces[0].endswith(b"\r\n\r\nfirst")
    assert pieces[1:] == [b"last"]
