"""The network between processes: it delays, reorders, loses, repeats and cuts, as the seed says.

On the client side it looks like `AsyncConnections`, so the worker's channel and the client's transport are the real ones.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from http.client import IncompleteRead, RemoteDisconnected
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from milepost.client.async_connections import Limits
from milepost.protocol.endpoints import ENDPOINTS, Endpoint
from simulation.loop import VirtualLoop

if TYPE_CHECKING:
    from simulation.server import ServerProcess

URL = "http://server"
_ROUTES = [
    (endpoint, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", endpoint.path))) for endpoint in ENDPOINTS
]


class Faults:
    """How likely each fault is, per request or stream. All zero: a quick network that loses nothing."""

    def __init__(self) -> None:
        self.lose_request = self.lose_reply = self.repeat = self.slow = self.cut = self.half_open = 0.0
        self.kill_client = 0.0
        self.slow_seconds_max = 0.0

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        """Each fault is left out of some seeds and frequent in others."""
        faults = cls()
        for name in ("lose_request", "lose_reply", "repeat", "slow", "cut", "half_open"):
            setattr(faults, name, random.choice([0.0, 0.0, 0.03, 0.1, 0.3]))
        faults.kill_client = random.choice([0.0, 0.0, 0.005, 0.02])
        faults.slow_seconds_max = random.choice([0.1, 1.0, 10.0, 40.0])
        return faults


class Peer:
    """A process that talks to the server.

    Attributes:
        away_until: it is cut off from the server until then.
        is_dead: nothing that it still does reaches anybody.
        killed: called where a fault kills the process in the midst of a request; None where it cannot be killed.
    """

    def __init__(self, name: str, random: Random, killed: Callable[[], None] | None = None) -> None:
        self.name = name
        self.random = random
        self.away_until = 0.0
        self.is_dead = False
        self.killed = killed


class Balancer:
    """Leads each request to one of the servers.

    Args:
        servers: the processes of the moment, None for a machine where none is.
        sticky: a peer keeps its server while that is there. Otherwise each request goes anywhere.
    """

    def __init__(
        self, random: Random, servers: "Callable[[], Sequence[ServerProcess | None]]", *, sticky: bool
    ) -> None:
        self._random = random
        self._servers = servers
        self._sticky = sticky
        self._homes: dict[str, int] = {}

    def server_of(self, peer: Peer) -> "ServerProcess | None":
        """The server that gets a request of this peer; None where nobody takes it."""
        servers = self._servers()
        if len(servers) == 1:
            return servers[0]
        random = self._random
        home = self._homes.get(peer.name) if self._sticky else None
        # It takes a while until the balancer knows that a server is gone, and now and then it has another idea.
        if home is None or random.random() < (0.02 if servers[home] else 0.7):
            home = self._homes[peer.name] = random.randrange(len(servers))
            there = [place for place, server in enumerate(servers) if server is not None]
            if servers[home] is None and there and random.random() < 0.7:
                home = self._homes[peer.name] = random.choice(there)
        return servers[home]


class Network:
    """What lies between the peers and the servers of the moment."""

    balancer: Balancer

    def __init__(self, loop: VirtualLoop, note: Callable[..., None]) -> None:
        self.loop = loop
        self.note = note
        self.faults = Faults()
        self.streams: dict[Stream, None] = {}
        self.window = 64
        # Repeats that are under way, with how to deliver each now.
        self._repeats: dict[asyncio.TimerHandle, Callable[[], None]] = {}
        self._silence = asyncio.Event()

    def cut_all(self) -> None:
        """Every event stream breaks."""
        for stream in list(self.streams):
            stream.cut()

    def chance(self, random: Random, name: str) -> bool:
        likelihood: float = getattr(self.faults, name)
        return likelihood > 0 and random.random() < likelihood

    def latency(self, random: Random) -> float:
        if self.chance(random, "slow"):
            return random.uniform(0.02, self.faults.slow_seconds_max)
        return random.uniform(0.0003, 0.004)

    async def request(self, peer: Peer, method: str, path: str, headers: Any, data: Any) -> tuple[int, bytes]:
        """One request and its answer. Raises what a broken connection raises; may wait for ever, for the caller's timeout."""
        random = peer.random
        endpoint, parameters = _resolve(method, path)
        await asyncio.sleep(self.latency(random))
        self._maybe_kill(peer)
        await self._reach(peer)
        if self.chance(random, "lose_request"):
            self.note(peer.name, "request lost", endpoint.name)
            await self._break(random)
        server = self._server(peer)
        if self.chance(random, "repeat"):
            for seconds in (random.uniform(0.0, 0.02), random.uniform(0.0, 60.0))[: random.randint(1, 2)]:
                again = partial(self._repeat, peer, endpoint, parameters, headers, data)
                self._repeats[self.loop.call_later(seconds, again)] = again
        self.note(peer.name, f"{endpoint.name} to {server.machine.name}", data)
        handling = server.receive(endpoint, parameters, headers, data)
        try:
            status, body = await handling.answer
        except BaseException:
            self.loop.call_later(self.latency(random), handling.gone.set)
            raise
        self.note(peer.name, f"{endpoint.name} answered", status, body)
        if self.chance(random, "lose_reply"):
            self.note(peer.name, "reply lost", endpoint.name)
            await self._break(random)
        self._maybe_kill(peer)
        await asyncio.sleep(self.latency(random))
        await self._reach(peer)
        return status, body

    async def stream(
        self, peer: Peer, method: str, target: str, headers: Any, data: Any, silence_seconds: float | None
    ) -> "Response":
        """Open an event stream."""
        random = peer.random
        path, _, query = target.partition("?")
        endpoint, parameters = _resolve(method, path)
        await asyncio.sleep(self.latency(random))
        await self._reach(peer)
        if self.chance(random, "lose_request"):
            await self._break(random)
        stream = Stream(self, peer, self.window, silence_seconds)
        server = self._server(peer)
        opened = server.open(endpoint, parameters, query, headers, data, stream)
        self.streams[stream] = None
        try:
            status, body = await opened
        except BaseException:
            stream.leave()
            raise
        self.note(peer.name, f"{endpoint.name} to {server.machine.name}", "open", status)
        if self.chance(random, "cut"):
            silent = self.chance(random, "half_open")
            self.loop.call_later(random.expovariate(1.0), stream.cut, silent)
        return Response(status, body, stream)

    def _server(self, peer: Peer) -> "ServerProcess":
        server = self.balancer.server_of(peer)
        if server is None:
            raise ConnectionRefusedError("connection refused")
        return server

    def _maybe_kill(self, peer: Peer) -> None:
        if peer.killed is not None and self.chance(peer.random, "kill_client"):
            peer.killed()
        if peer.is_dead:
            raise asyncio.CancelledError

    async def _reach(self, peer: Peer) -> None:
        if peer.away_until > self.loop.time():
            self.note(peer.name, "away")
            await self._break(peer.random)

    async def _break(self, random: Random) -> None:
        """The connection breaks, or nothing is heard of it any more."""
        if random.random() < 0.3:
            await self._silence.wait()
        await asyncio.sleep(random.uniform(0.0, 0.01))
        raise RemoteDisconnected

    def _repeat(
        self, peer: Peer, endpoint: Endpoint, parameters: dict[str, str], headers: Any, data: Any
    ) -> None:
        server = self.balancer.server_of(peer)
        if server is not None:
            self.note(peer.name, f"{endpoint.name} comes again at {server.machine.name}", data)
            handling = server.receive(endpoint, parameters, headers, data)
            handling.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            self.loop.call_later(1.0, handling.gone.set)

    def mend(self) -> None:
        """Nothing is lost from now on, and whoever waits on a connection that is none is told so."""
        self.faults = Faults()
        self._silence.set()
        self.cut_all()

    def deliver_repeats(self) -> None:
        """What has been sent twice and is still under way arrives now."""
        for timer, again in self._repeats.items():
            if timer.when() > self.loop.time():
                timer.cancel()
                again()
        self._repeats.clear()


class Stream:
    """One event stream: frames go in at the server, bytes come out at the peer, cut anywhere and joined at will."""

    def __init__(self, network: Network, peer: Peer, window: int, silence_seconds: float | None) -> None:
        self._network = network
        self.peer = peer
        self._window = window
        self._silence_seconds = silence_seconds
        self._frames: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._has_ended = False
        self._is_broken = False
        self._is_deaf = False
        # How the server learns that nobody reads any more.
        self.abandoned: Callable[[], None] = lambda: None

    async def put(self, frame: bytes) -> None:
        """The server sends a frame, as soon as the connection takes it."""
        while len(self._frames) >= self._window:
            self._room.clear()
            await self._room.wait()
        if not self._is_broken and not self._is_deaf:
            self._frames.append(frame)
            self._news.set()

    def end(self, *, cleanly: bool) -> None:
        """The server has ended the stream, or has died."""
        self._has_ended = True
        self._is_broken = self._is_broken or not cleanly
        self._network.streams.pop(self, None)
        self._news.set()

    def cut(self, silently: bool = False) -> None:
        """The connection breaks. Silently: neither end notices but by the other's silence."""
        random = self.peer.random
        self._network.note(self.peer.name, "stream cut", silently)
        self._frames.clear()
        if silently:
            self._is_deaf = True
        else:
            self._is_broken = True
            self._news.set()
        later = random.uniform(0.0, 20.0) if silently or random.random() < 0.3 else 0.0
        self._network.loop.call_later(later, self.leave)

    def leave(self) -> None:
        """The server notices that the peer has gone."""
        self._network.streams.pop(self, None)
        self.abandoned()

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises when the connection is broken or silent."""
        random = self.peer.random
        while not self._frames or self._is_deaf:
            if self._is_broken:
                raise IncompleteRead(b"")
            if self._has_ended and not self._is_deaf:
                return b""
            self._news.clear()
            async with asyncio.timeout(self._silence_seconds):
                await self._news.wait()
            await asyncio.sleep(self._network.latency(random))
            if self.peer.away_until > self._network.loop.time():
                self.cut()
        data = b"".join(self._frames)
        self._frames.clear()
        if random.random() < 0.1:
            place = random.randrange(len(data))
            self._frames.append(data[place:])
            data = data[:place]
        self._room.set()
        return data


class Response:
    """What `Incoming` is to those who use it here."""

    def __init__(self, status: int, body: bytes, stream: Stream) -> None:
        self.status = status
        self._body = body
        self._stream = stream

    async def rest(self) -> bytes:
        return self._body

    async def more(self) -> bytes:
        return await self._stream.read()

    def close(self) -> None:
        self._stream.leave()


class Answered:
    """What `Answer` is to those who use it here."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.headers: dict[str, str] = {}


class Connections:
    """What `AsyncConnections` is to those who use it here. One for each peer."""

    def __init__(self, network: Network, peer: Peer) -> None:
        self._network = network
        self._peer = peer

    async def exchange(
        self, method: str, target: str, body: Any, headers: Mapping[str, str], limits: Limits
    ) -> tuple[Answered, bytes]:
        async with asyncio.timeout(limits.silence):
            status, content = await self._network.request(self._peer, method, target, headers, body)
            return Answered(status), content

    async def open(
        self, method: str, target: str, body: Any, headers: Mapping[str, str], limits: Limits
    ) -> Response:
        async with asyncio.timeout(limits.silence):
            return await self._network.stream(self._peer, method, target, headers, body, limits.silence)

    async def close(self) -> None:
        """Nothing is open between two requests."""


@lru_cache(maxsize=10_000)
def _resolve(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    for endpoint, pattern in _ROUTES:
        if endpoint.method == method and (found := pattern.fullmatch(path)) is not None:
            return endpoint, {name: unquote(value) for name, value in found.groupdict().items()}
    raise AssertionError(f"there is no {method} {path}")
