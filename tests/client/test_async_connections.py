"""Connections of an event loop, against a server that is a script: what is kept, what is given up, and what nobody may take for an
answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http.client import HTTPException
from urllib.parse import urlsplit

import pytest
import uvloop

from milepost.client import async_connections
from milepost.client.async_connections import FAILURES, KEPT_BYTES_MAX, PIECE_BYTES, AsyncConnections, Limits
from milepost.client.messages import Answer

LIMITS = Limits(connect=5.0, silence=5.0)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Test = Callable[["House"], Awaitable[None]]


class House:
    """A server that does what `script` says on each connection, and connections to it."""

    def __init__(self) -> None:
        self.connected = 0
        self.heads: list[bytes] = []
        self.left = asyncio.Event()
        self.script: Script = self.answer_each
        self._tasks: set[asyncio.Task[None]] = set()

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """The head of the next request."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def answer_each(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every request."""
        while True:
            await self.head(reader)
            writer.write(OK)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connected += 1
        self._tasks.add(task := asyncio.ensure_future(self._serve(reader, writer)))
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()

    async def get(self, limits: Limits = LIMITS, target: str = "/") -> tuple[Answer, bytes]:
        """Ask."""
        return await self.connections.exchange("GET", target, None, {"x-a": "b"}, limits)

    async def live(self, test: Test, count_max: int | None) -> None:
        """Serve while the test runs."""
        listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        self.connections = AsyncConnections(
            urlsplit(f"http://127.0.0.1:{port}/base"), b"host: here\r\n", count_max=count_max
        )
        try:
            async with asyncio.timeout(30):
                await test(self)
        finally:
            await self.connections.close()
            listener.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _slowly(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(1000):
        yield data
        await asyncio.sleep(0.001)


@pytest.fixture(params=["asyncio", "uvloop"])
def live(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test on each kind of loop."""

    def run(test: Test, *, count_max: int | None = None) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(House().live(test, count_max))

    return run


def test_one_connection_is_asked_again_and_again(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        for number in range(5):
            answer, body = await house.get(target=f"/{number}")
            assert (answer.status, body) == (200, b"ok")
        assert house.connected == 1
        assert house.heads[3] == b"GET /base/3 HTTP/1.1\r\nhost: here\r\nx-a: b\r\n\r\n"

    live(test)


def test_those_who_ask_at_once_have_connections_of_their_own_up_to_a_number(
    live: Callable[..., None],
) -> None:
    async def test(house: House) -> None:
        most = now = 0

        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal most, now
            while True:
                await house.head(reader)
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.005)
                now -= 1
                writer.write(OK)

        house.script = slowly
        answers = await asyncio.gather(*(house.get() for _ in range(20)))
        assert all(body == b"ok" for _, body in answers)
        assert (house.connected, most) == (3, 3)

    live(test, count_max=3)


@pytest.mark.parametrize("how", ["closes", "talks"])
def test_a_connection_that_has_ended_or_speaks_unasked_is_not_used_again(
    live: Callable[..., None], how: str
) -> None:
    async def test(house: House) -> None:
        done = asyncio.Event()

        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await house.head(reader)
            writer.write(OK)
            if how == "talks":
                await asyncio.sleep(0.01)
                # As if it were the answer to the next request.
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")
                await writer.drain()
                done.set()
                await reader.readexactly(1)
            done.set()

        house.script = once
        assert (await house.get())[1] == b"ok"
        await done.wait()
        house.script = house.answer_each
        # The end is seen in a later round of the loop.
        while house.connections._resting and house.connections._resting[-1].is_fresh:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (await house.get())[1] == b"ok"
        assert house.connected == 2

    live(test)


def test_a_connection_that_has_rested_for_long_is_not_used_again(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(house: House) -> None:
        await house.get()
        monkeypatch.setattr(async_connections, "REST_SECONDS_MAX", 0.0)
        await house.get()
        assert house.connected == 2

    live(test)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", ConnectionError),
        (b"HTTP/1.1 200 OK\r\n", ConnectionError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", HTTPException),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", HTTPException),
        (b"SSH-2.0-OpenSSH_9.2\r\n", HTTPException),
    ],
)
def test_a_part_of_an_answer_is_none_and_the_next_one_has_a_new_connection(
    live: Callable[..., None], said: bytes, kind: type[Exception]
) -> None:
    async def test(house: House) -> None:
        async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await house.head(reader)
            writer.write(said)

        house.script = says
        with pytest.raises(kind):
            await house.get()
        house.script = house.answer_each
        assert (await house.get())[1] == b"ok"

    live(test)


def test_an_answer_without_a_length_ends_with_its_connection(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await house.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")

        house.script = says
        assert (await house.get())[1] == b"all of it"

    live(test)


def test_who_hears_nothing_gives_up_and_who_hears_something_does_not(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while b"/silent" not in await house.head(reader):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
                for _ in range(10):
                    await asyncio.sleep(0.05)
                    writer.write(b"a")
                    await writer.drain()
            await reader.readexactly(1)

        house.script = slowly
        assert (await house.get(Limits(5, 0.3)))[1] == b"a" * 10
        with pytest.raises(TimeoutError):
            await house.get(Limits(5, 0.1), target="/silent")
        # Its connection is given up: an answer may still come.
        await house.left.wait()

    live(test)


def test_who_is_interrupted_leaves_no_answer_to_others(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        asked = asyncio.Event()

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await house.head(reader)
            asked.set()
            if b"/late" in head:
                await reader.readexactly(1)
            writer.write(OK)

        house.script = late
        asking = asyncio.ensure_future(house.get(target="/late"))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await house.left.wait()
        assert (await house.get())[1] == b"ok"
        assert house.connected == 2

    live(test)


def test_a_large_body_arrives_and_the_loop_goes_on_meanwhile(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        body = bytes(range(256)) * (8 * PIECE_BYTES // 256) + b"end"
        got = bytearray()

        async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await house.head(reader)
                got.clear()
                while len(got) < len(body):
                    got.extend(await reader.read(100_000))
                writer.write(OK)

        house.script = takes
        rounds = 0

        async def count() -> None:
            nonlocal rounds
            while True:
                await asyncio.sleep(0)
                rounds += 1

        counting = asyncio.ensure_future(count())
        for _ in range(2):
            answer, _ = await house.connections.exchange("POST", "/", body, {}, LIMITS)
            assert answer.status == 200
            assert bytes(got) == body
        counting.cancel()
        assert f"content-length: {len(body)}".encode() in house.heads[0]
        assert rounds >= 16
        assert house.connected == 1

    live(test)


def test_a_large_body_that_is_refused_is_not_sent_to_its_end(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await house.head(reader)
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            await writer.drain()
            # It reads on, slowly, for as long as the other side is there.
            with contextlib.suppress(ConnectionError):
                async for _ in _slowly(reader):
                    pass
            house.left.set()

        house.script = refuses
        answer, body = await house.connections.exchange("POST", "/", bytes(64 * 1024 * 1024), {}, LIMITS)
        assert (answer.status, body) == (413, b"no")
        await house.left.wait()

    live(test)


def test_a_stream_comes_as_it_is_sent_and_waits_for_its_reader(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        sent = 0

        async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await house.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            await reader.readexactly(1) if sent else await asyncio.sleep(0.05)
            piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            for _ in range(1024):
                writer.write(piece)
                await writer.drain()
                sent += 1
            writer.write(b"0\r\n\r\n")

        house.script = streams
        incoming = await house.connections.open("GET", "/", None, {}, LIMITS)
        assert incoming.status == 200
        assert await incoming.more() == b"one"
        before = -1
        while sent > before:
            before = sent
            await asyncio.sleep(0.1)
        # What one side keeps, and the buffers of the system and of the server.
        assert before * 0x10000 < 48 * 1024 * 1024
        size = 0
        while part := await incoming.more():
            assert len(part) <= 2 * KEPT_BYTES_MAX
            size += len(part)
        assert size == 1024 * 0x10000
        incoming.close()
        incoming.close()

    live(test)


def test_a_stream_that_breaks_or_falls_silent_says_so(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await house.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            if b"/silent" in head:
                await reader.readexactly(1)

        house.script = streams
        for target, limits, kind in (
            ("/", LIMITS, HTTPException),
            ("/silent", Limits(5, 0.05), TimeoutError),
        ):
            incoming = await house.connections.open("GET", target, None, {}, limits)
            with pytest.raises(kind):
                await incoming.rest()
            incoming.close()

    live(test)


def test_closing_ends_what_is_under_way_and_it_may_be_used_again(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        asked = asyncio.Event()

        async def holds(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await house.head(reader)
            asked.set()
            await reader.readexactly(1)

        house.script = holds
        asking = asyncio.ensure_future(house.get())
        await asked.wait()
        await house.connections.close()
        with pytest.raises(ConnectionError):
            await asking
        house.script = house.answer_each
        assert (await house.get())[1] == b"ok"

    live(test)


@pytest.mark.parametrize("first", ["nobody listens", "no such family"])
def test_the_next_address_is_tried_where_one_does_not_answer(
    live: Callable[..., None], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    async def test(house: House) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.closing(socket.socket()) as nobody:
            nobody.bind(("127.0.0.1", 0))
            own = (
                await loop.getaddrinfo("127.0.0.1", house.connections._address.port, type=socket.SOCK_STREAM)
            )[0]

            class Loop:
                """The loop, with two addresses for the server; the first is of no use."""

                async def getaddrinfo(self, *_: object, **__: object) -> list[object]:
                    # As on a system without IPv6 whose `localhost` has an address of it.
                    family = own[0] if first == "nobody listens" else 255
                    return [(family, *own[1:4], nobody.getsockname()), own]

                def __getattr__(self, name: str) -> object:
                    return getattr(loop, name)

            with monkeypatch.context() as patch:
                patch.setattr(async_connections.asyncio, "get_running_loop", Loop)
                connection = await house.connections._connect(5.0)
        answer = await connection.ask(b"GET / HTTP/1.1\r\n\r\n", None, 5.0)
        await connection.until(lambda: answer.is_whole, 5.0)
        assert answer.take() == b"ok"
        house.connections._close(connection)

    live(test)


def test_where_nobody_listens_it_is_said(live: Callable[..., None]) -> None:
    async def test(house: House) -> None:
        with contextlib.closing(socket.socket()) as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            connections = AsyncConnections(urlsplit(f"http://127.0.0.1:{port}"), b"")
            with pytest.raises(ConnectionRefusedError):
                await connections.exchange("GET", "/", None, {}, LIMITS)
        connections = AsyncConnections(urlsplit(f"http://{'a' * 64}.example"), b"")
        with pytest.raises(FAILURES):
            await connections.exchange("GET", "/", None, {}, LIMITS)

    live(test)
