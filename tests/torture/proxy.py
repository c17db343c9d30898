"""The proxy between everything and the servers, a load balancer where there are several. It knows of HTTP only that a request is
answered, and breaks connections by chance: before a request has reached the server, after it was processed and before the answer has
left, and in the middle of an answer."""

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count

_IDENTIFIER = re.compile(r"(?<=/)[a-z]+_[0-9a-z]{20,}")
CHUNK_BYTES = 256 * 1024


class Fate(Enum):
    """What happens to a request."""

    PASS = "passed"
    DELAY = "delayed"
    CUT_BEFORE = "cut before the request was forwarded"
    CUT_AFTER = "cut after the request was processed"
    CUT_WITHIN = "cut within the answer"


@dataclass(frozen=True)
class Chances:
    """How likely each fault is, for one request. Streams are cut `CUT_WITHIN` a piece, a tenth as often.

    What writes has to be safe against being sent again, and some requests are rare: of each kind that writes so many answers a second
    are lost at least, but never more than one in five.
    """

    after_per_second: float = 0.25
    after_max: float = 0.2
    before: float = 0.01
    after: float = 0.015
    within: float = 0.005
    delay: float = 0.04
    delay_seconds_max: float = 0.3


class Proxy:
    """Forwards connections to servers; use it as an async context manager.

    Attributes:
        is_calm: no faults from now on.
        injected: how many faults of each kind there have been.
    """

    def __init__(self, chances: Chances, chance: random.Random) -> None:
        self._chances = chances
        self._chance = chance
        self._open: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._began_at = time.monotonic()
        self._requests: Counter[str] = Counter()
        self.is_calm = False
        self.injected: Counter[Fate] = Counter()

    async def listen(self, server_ports: Sequence[int]) -> str:
        """A new address; each connection there goes to the next of these servers that takes it."""
        turns = count()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = next(turns) % len(server_ports)
            await self._connected(reader, writer, [*server_ports[first:], *server_ports[:first]])

        listener = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
        self._listeners.append(listener)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "Proxy":
        return self

    async def __aexit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.close()
        for connection in self._open:
            connection.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def draw(self, head: bytes) -> Fate:
        """The fate of one request, of which this is the beginning."""
        if self.is_calm:
            return Fate.PASS
        drawn = self._chance.random()
        for fate, share in (
            (Fate.CUT_BEFORE, self._chances.before),
            (Fate.CUT_AFTER, self._chance_of_lost_answer(head)),
            (Fate.CUT_WITHIN, self._chances.within),
            (Fate.DELAY, self._chances.delay),
        ):
            if drawn < share:
                return fate
            drawn -= share
        return Fate.PASS

    def _chance_of_lost_answer(self, head: bytes) -> float:
        if head.startswith(b"GET "):
            return self._chances.after
        # Without what differs from one such request to the next.
        kind = _IDENTIFIER.sub("*", head.partition(b"\r\n")[0].partition(b"?")[0].decode(errors="replace"))
        self._requests[kind] += 1
        seconds = max(1.0, time.monotonic() - self._began_at)
        wanted = self._chances.after_per_second * seconds / self._requests[kind]
        return max(self._chances.after, min(self._chances.after_max, wanted))

    def draw_for_piece(self) -> bool:
        """Whether a stream is cut at this piece."""
        return not self.is_calm and self._chance.random() < self._chances.within / 10

    def delay_seconds(self) -> float:
        """How long a delayed request is held."""
        return self._chance.uniform(0, self._chances.delay_seconds_max)

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server_ports: Sequence[int]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await _Connection(self, reader, writer).run(server_ports)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Either side has gone, or the proxy ends; both sides are closed below.
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()


class _Connection:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._from_client = reader
        self._to_client = writer
        # The fate of the request under way; a request begins with what the client sends after an answer.
        self._fate = Fate.PASS
        self._is_answered = True

    async def run(self, server_ports: Sequence[int]) -> None:
        """Forward both ways until either side ends or a fault ends both, to the first of these that takes the connection."""
        for port in server_ports:
            with contextlib.suppress(OSError):
                from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            return
        directions = [
            asyncio.create_task(self._forward_requests(to_server)),
            asyncio.create_task(self._forward_answers(from_server)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            to_server.transport.abort()
            with contextlib.suppress(OSError):
                # What was forwarded last still reaches the client.
                self._to_client.close()
                await asyncio.wait_for(self._to_client.wait_closed(), 1.0)

    async def _forward_requests(self, to_server: asyncio.StreamWriter) -> None:
        while data := await self._from_client.read(CHUNK_BYTES):
            if self._is_answered:
                self._is_answered = False
                self._fate = self._proxy.draw(data)
                if self._fate in (Fate.CUT_BEFORE, Fate.DELAY):
                    self._proxy.injected[self._fate] += 1
                if self._fate is Fate.CUT_BEFORE:
                    return
                if self._fate is Fate.DELAY:
                    await asyncio.sleep(self._proxy.delay_seconds())
            to_server.write(data)
            await to_server.drain()

    async def _forward_answers(self, from_server: asyncio.StreamReader) -> None:
        while data := await from_server.read(CHUNK_BYTES):
            if self._fate is Fate.CUT_AFTER:
                self._proxy.injected[Fate.CUT_AFTER] += 1
                return
            if self._fate is Fate.CUT_WITHIN or (self._is_answered and self._proxy.draw_for_piece()):
                self._proxy.injected[Fate.CUT_WITHIN] += 1
                self._to_client.write(data[: len(data) // 2])
                return
            self._is_answered = True
            self._to_client.write(data)
            await self._to_client.drain()
