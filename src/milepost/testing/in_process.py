"""The way to an application in the same process: no sockets, the same requests.

Everything that the client and the worker say goes through an `Exchange` on the application's event loop; the three transports differ
in who waits for it: a thread, another event loop, or the worker's link, which lives on the same loop.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.types import ASGIApp, Message

from milepost.client.async_transport import AsyncTransport
from milepost.client.retries import Patience, unreachable
from milepost.client.transport import (
    ANSWER_SECONDS_MAX,
    LOOK_SECONDS,
    PIECE_BYTES_MAX,
    SILENCE_SECONDS_MAX,
    Reply,
    SyncTransport,
)
from milepost.protocol import endpoints
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.feed import EventReader
from milepost.protocol.problems import from_problem
from milepost.worker.channel import Channel, Unreachable

ResultT = TypeVar("ResultT")

logger = logging.getLogger("milepost.testing")

# It names no machine (RFC 2606): a program that is started with it fails at once, and says where it wanted to go.
API_URL = "http://milepost-sandbox.invalid"
SECRET_KEY = "tr_sandbox_key"

_encode = msgspec.json.Encoder().encode


class Exchange:
    """One request and its answer. Everything happens on the event loop of the application.

    Attributes:
        status: of the answer, after `begun`.
        headers: likewise.
    """

    def __init__(
        self, app: ASGIApp, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._request: deque[Message] = deque([{"type": "http.request", "body": body or b""}])
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._has_ended = False
        self._is_left = asyncio.Event()
        self._changed = asyncio.Condition()
        path, _, query = target.partition("?")
        sent = {**headers, "host": "milepost-sandbox.invalid"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("milepost-sandbox.invalid", 80),
        }
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def _receive(self) -> Message:
        if self._request:
            return self._request.popleft()
        await self._is_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        async with self._changed:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            elif message.get("body"):
                # A reader that is late slows the writer, as on a socket.
                await self._changed.wait_for(lambda: self._size < PIECE_BYTES_MAX or self._is_left.is_set())
                self._pieces.append(message["body"])
                self._size += len(message["body"])
            self._changed.notify_all()

    async def begun(self) -> None:
        """Wait for the head of the answer. Raises ConnectionError where none will come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.status or self._has_ended)
        if not self.status:
            raise ConnectionError("the request was not answered")

    async def read(self) -> bytes:
        """All that has come since, as soon as there is something; nothing at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._pieces or self._has_ended)
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            self._changed.notify_all()
            return data

    async def whole(self) -> Reply:
        """The answer with all of its body. Whoever is cancelled here has left."""
        try:
            await self.begun()
            parts: list[bytes] = []
            while part := await self.read():
                parts.append(part)
            return Reply(self.status, b"".join(parts), self.headers)
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_left.set()
        if self._task.done():
            return
        # A writer that waits for room waits no longer.
        self._waker = asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Reading:
    """Event streams that are read, and answers that wait for something, at this moment, as the driver of a sandbox has to know them.
    On the application's loop.

    Attributes:
        by_runs: by runs that look for something themselves.
        outside: by code outside of runs; with each the future that can end the reading.
    """

    def __init__(self) -> None:
        self.by_runs = 0
        self.outside: dict[asyncio.Future[Any], int] = {}


class Application:
    """An application and the loop that it runs on.

    Args:
        prepare: called in the caller's thread before each request of code outside of runs.
    """

    def __init__(self, app: ASGIApp, loop: asyncio.AbstractEventLoop, prepare: Callable[[], None]) -> None:
        self.app = app
        self.loop = loop
        self.prepare = prepare
        self.reading = Reading()
        self.is_closed = False
        self.gate = Gate()
        # Called when somebody begins to read, and when nobody reads any more.
        self.changed: Callable[[], None] = lambda: None

    def submit(self, steps: Any) -> "Future[Any]":
        """Do something on the loop; from any other thread."""
        if self.is_closed or self.loop.is_closed():
            steps.close()
            raise unreachable(API_URL, "the sandbox is closed")
        return asyncio.run_coroutine_threadsafe(steps, self.loop)

    async def exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        by_run: bool,
        thread_id: int,
    ) -> Reply:
        """One request, wholly."""
        if not by_run:
            await self.gate.is_settled()
        exchange = Exchange(self.app, method, target, headers, body)
        if "wait=" in target:
            return await self._watched(exchange.whole(), by_run=by_run, thread_id=thread_id)
        return await exchange.whole()

    async def open(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Exchange:
        """One request whose answer is read piece by piece. Raises the error of a refusal."""
        exchange = Exchange(self.app, method, target, headers, body)
        await exchange.begun()
        if exchange.status != 200:
            raise from_problem(exchange.status, (await exchange.whole()).content)
        return exchange

    async def read(self, exchange: Exchange, *, by_run: bool, thread_id: int) -> bytes:
        """Read on, and let the driver know for as long as nothing has come."""
        return await self._watched(exchange.read(), by_run=by_run, thread_id=thread_id)

    async def _watched(
        self, waiting: Coroutine[Any, Any, ResultT], *, by_run: bool, thread_id: int
    ) -> ResultT:
        reading = asyncio.ensure_future(waiting)
        if by_run:
            self.reading.by_runs += 1
            reading.add_done_callback(self._run_has_read)
            return await reading
        refused: asyncio.Future[ResultT] = self.loop.create_future()
        self.reading.outside[refused] = thread_id
        reading.add_done_callback(lambda done: self._outside_has_read(refused))
        self.changed()
        try:
            done, _ = await asyncio.wait({reading, refused}, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            reading.cancel()

    def _outside_has_read(self, refused: "asyncio.Future[Any]") -> None:
        del self.reading.outside[refused]
        self.changed()

    def _run_has_read(self, done: "asyncio.Future[Any]") -> None:
        self.reading.by_runs -= 1


class BlockingTransport(SyncTransport):
    """For threads."""

    def __init__(self, application: Application) -> None:
        super().__init__(API_URL, SECRET_KEY)
        self._application = application

    def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        """See `SyncTransport`."""
        by_run = patience.attempt is not None
        if not by_run:
            self._application.prepare()
        sent, thread_id = {**self._headers, **headers}, threading.get_ident()
        steps = self._application.exchange(method, target, body, sent, by_run=by_run, thread_id=thread_id)
        return _wait(self._application.submit(steps), ANSWER_SECONDS_MAX, patience)

    @contextmanager
    def open(
        self, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Generator[Iterator[bytes]]:
        """See `SyncTransport`."""
        application = self._application
        sent = {**self._headers, **headers, "accept": "text/event-stream"}
        steps = application.open("GET" if body is None else "POST", target, body, sent)
        exchange: Exchange = _wait(application.submit(steps), SILENCE_SECONDS_MAX, patience)
        try:
            yield self._pieces(exchange, patience)
        finally:
            _leave(application, exchange)

    def _pieces(self, exchange: Exchange, patience: Patience) -> Iterator[bytes]:
        by_run, thread_id = patience.attempt is not None, threading.get_ident()
        while True:
            steps = self._application.read(exchange, by_run=by_run, thread_id=thread_id)
            data = _wait(self._application.submit(steps), SILENCE_SECONDS_MAX, patience)
            if not data:
                raise unreachable(API_URL, "the connection ended")
            yield data


class ForLoops(AsyncTransport):
    """For event loops other than the application's."""

    def __init__(self, application: Application) -> None:
        super().__init__(API_URL, SECRET_KEY)
        self._application = application

    async def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        """See `AsyncTransport`."""
        by_run = patience.attempt is not None
        if not by_run:
            self._application.prepare()
        # Other tasks of the loop may do what this one waits for, so no thread is named.
        sent = {**self._headers, **headers}
        steps = self._application.exchange(method, target, body, sent, by_run=by_run, thread_id=0)
        return await _await(self._application.submit(steps), ANSWER_SECONDS_MAX, patience)

    @asynccontextmanager
    async def open(
        self, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """See `AsyncTransport`."""
        application = self._application
        sent = {**self._headers, **headers, "accept": "text/event-stream"}
        steps = application.open("GET" if body is None else "POST", target, body, sent)
        exchange: Exchange = await _await(application.submit(steps), SILENCE_SECONDS_MAX, patience)
        try:
            yield self._pieces(exchange, patience)
        finally:
            _leave(application, exchange)

    async def _pieces(self, exchange: Exchange, patience: Patience) -> AsyncIterator[bytes]:
        by_run = patience.attempt is not None
        while True:
            steps = self._application.read(exchange, by_run=by_run, thread_id=0)
            data = await _await(self._application.submit(steps), SILENCE_SECONDS_MAX, patience)
            if not data:
                raise unreachable(API_URL, "the connection ended")
            yield data

    async def close(self) -> None:
        """There is nothing to close."""


class Gate:
    """Where the worker's claims wait while nobody has asked for anything to happen. On the application's loop."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._claims: set[Exchange] = set()
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    def open(self) -> None:
        """Let claims through."""
        self._is_open.set()

    def close(self) -> None:
        """Withdraw the claim that is under way, and hold up the next one."""
        self._is_open.clear()
        for claim in list(self._claims):
            claim.leave()

    async def is_settled(self) -> None:
        """Where the gate is closed, wait until the claim that was under way is withdrawn: it would take what comes next."""
        if not self._is_open.is_set():
            await self._is_settled.wait()

    async def claim(self, begin: Callable[[], Exchange]) -> Reply:
        """Make a claim when the gate is open."""
        await self._is_open.wait()
        exchange = begin()
        self._claims.add(exchange)
        self._is_settled.clear()
        try:
            return await exchange.whole()
        finally:
            self._claims.discard(exchange)
            if not self._claims:
                self._is_settled.set()


class InProcessChannel(Channel):
    """For the worker's link, which lives on the application's loop."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        super().__init__(API_URL, SECRET_KEY)
        self._app = app
        self._gate = gate

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def call(self, endpoint: Endpoint, body: Any = None, *, timeout_seconds: float, **path: str) -> Any:
        """See `Channel`."""
        data = body if isinstance(body, bytes) or body is None else _encode(body)
        headers = {**self._headers, "content-type": "application/json"}

        def begin() -> Exchange:
            return Exchange(self._app, endpoint.method, endpoint.path.format(**path), headers, data)

        try:
            reply = await (self._gate.claim(begin) if endpoint is endpoints.CLAIM_RUNS else begin().whole())
        except ConnectionError as error:
            raise Unreachable(str(error)) from error
        self._check(reply.status, reply.content)
        return self._decoder(endpoint).decode(reply.content)

    async def events(
        self, endpoint: Endpoint, *, silence_seconds_max: float, **path: str
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """See `Channel`."""
        reader = EventReader()
        headers = {**self._headers, "accept": "text/event-stream"}
        exchange = Exchange(self._app, "GET", endpoint.path.format(**path), headers, None)
        try:
            await exchange.begun()
            if exchange.status != 200:
                reply = await exchange.whole()
                self._check(reply.status, reply.content)
            while data := await exchange.read():
                for event in reader.feed(data):
                    yield event
        finally:
            exchange.leave()


def _wait(answer: "Future[Any]", most: float, patience: Patience) -> Any:
    """Wait in this thread. Raises what `patience` says."""
    try:
        while True:
            seconds = patience.seconds_of(most)
            try:
                return answer.result(seconds if patience.attempt is None else min(seconds, LOOK_SECONDS))
            except TimeoutError:
                if answer.done():
                    raise
                if patience.attempt is None:
                    patience.seconds_of(most)
            except ConnectionError as error:
                raise unreachable(API_URL, str(error)) from None
    finally:
        answer.cancel()


async def _await(answer: "Future[Any]", most: float, patience: Patience) -> Any:
    """As `_wait`, without blocking."""
    waiting = asyncio.wrap_future(answer)
    try:
        while True:
            seconds = patience.seconds_of(most)
            await asyncio.wait({waiting}, timeout=min(seconds, LOOK_SECONDS))
            if waiting.done():
                return waiting.result()
    except ConnectionError as error:
        raise unreachable(API_URL, str(error)) from None
    finally:
        waiting.cancel()


def _leave(application: Application, exchange: Exchange) -> None:
    if not application.loop.is_closed():
        application.loop.call_soon_threadsafe(exchange.leave)
