"""The ASGI application: routes from the table of endpoints, one way in and one way out for every request.

Way in: authenticate, read the body within its limit, decode, hand to the endpoint. Way out: a message as JSON, an event stream,
or a problem with a stable code. User error is never a traceback and never a 500.
"""

import asyncio
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from time import perf_counter
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from milepost.engine.announcements import Announcement
from milepost.engine.committer import Committer
from milepost.engine.engine import Engine
from milepost.engine.state import EngineSettings
from milepost.errors import BadRequestError, MilepostError, UnavailableError
from milepost.feed.hub import Hub
from milepost.protocol import endpoints
from milepost.protocol.endpoints import ENDPOINTS, METRICS, OPEN, READY, Endpoint
from milepost.protocol.problems import Problem, to_problem
from milepost.protocol.tokens import TOKEN_HEADER
from milepost.reading.reader import Reader
from milepost.server import agreement
from milepost.server.access import admit
from milepost.server.auth import Authenticator, Caller, Ticket, no_credentials
from milepost.server.client.routes import client_routes
from milepost.server.clocks import DatabaseClock, now_microseconds, steady_microseconds
from milepost.server.cors import Cors
from milepost.server.dashboard.routes import dashboard_routes
from milepost.server.event_stream import SEND, EventStream
from milepost.server.handlers.answers import WithToken
from milepost.server.handlers.table import Handlers
from milepost.server.handlers.tokens import sign_in_path
from milepost.server.metric_sources import Sources
from milepost.server.metrics import Metrics
from milepost.server.readiness import Readiness
from milepost.server.requests import SLASH, check_query
from milepost.server.sessions import Sessions
from milepost.server.settings import ServerSettings
from milepost.server.traffic import ROUTE, RouteMeasures, Traffic
from milepost.store.database import Store
from milepost.upkeep.jobs import UpkeepSettings
from milepost.upkeep.upkeep import Upkeep

logger = logging.getLogger("milepost.server")

WATCH_SECONDS = 1.0
# Every run makes one of each; the others are asked by people.
_MOST_ASKED = (
    endpoints.REPORT,
    endpoints.CLAIM_RUNS,
    endpoints.TRIGGER,
    endpoints.TRIGGER_SEVERAL,
    endpoints.RUN_RESULT,
    endpoints.TRIGGER_BATCH,
    endpoints.PUT_METADATA,
    endpoints.REPORT_LOG,
    endpoints.REPORT_CHUNKS,
    endpoints.RUN_FEED,
)
# Two clocks that nobody sets part by a few milliseconds within this time.
CLOCK_SECONDS = 60.0
JSON = "application/json"


# What a reader whose stream ends with the server is told to wait before it comes again.
_RETRY_MILLISECONDS = 100, 1000
_CONTROL = re.compile("[\x00-\x1f\x7f]")
# On every answer that does not say otherwise. Answers are data of whoever has the key: no browser guesses their type or keeps them.
_SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class StrictPaths:
    """Refuses paths that are not text, and keeps `%2F` inside a segment of the API's (a task id may hold a slash), where the server
    would decode it to a separator."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route by the path as it was sent."""
        raw: bytes = scope.get("raw_path") or b""
        if b"%" in raw:
            try:
                path = unquote_to_bytes(raw).decode()
            except UnicodeDecodeError:
                path = "\0"
            if _CONTROL.search(path):
                message = "the path is not UTF-8, or it has control characters"
                await problem_response(BadRequestError(message, field="path"))(scope, receive, send)
                return
            if b"%2f" in raw.lower() and path.startswith(("/api/", "/realtime/")):
                segments = (unquote_to_bytes(segment).decode() for segment in raw.split(b"/"))
                scope["path"] = "/".join(segment.replace("/", SLASH) for segment in segments)
        await self._app(scope, receive, send)


class SafeAnswers:
    """What every answer has in common, whatever made it: it says what browsers must not do with it, it closes the connection while the
    server is about to end, and it is counted."""

    def __init__(self, inner: ASGIApp, traffic: Traffic, readiness: Readiness) -> None:
        self.inner = inner
        self._traffic = traffic
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        began = perf_counter()
        status = 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: list[tuple[bytes, bytes]] = message["headers"]
                names = {name for name, _ in headers}
                headers.extend(header for header in _SAFE_HEADERS if header[0] not in names)
                if self._readiness.is_draining:
                    # The next request finds a server that stays.
                    headers.append((b"connection", b"close"))
            await send(message)

        scope[SEND] = send
        try:
            await self.inner(scope, receive, send_safely)
        finally:
            self._traffic.answered(scope, status, began)


class Server:
    """Everything behind the application: open store, running committer, hub. `app` is the ASGI application.

    Raises: ConfigurationError when the settings or the database cannot be used.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        clock: Callable[[], int] | None = None,
        steady: Callable[[], int] = steady_microseconds,
    ) -> None:
        self.settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._store = Store(settings.database, synchronous=settings.sqlite_synchronous)
        self.hub = Hub(hears_late=self._store.is_shared)
        self._database_clock: DatabaseClock | None = None
        if clock is None and self._store.is_shared:
            clock = self._database_clock = DatabaseClock(self._store.now, steady)
        clock = clock or now_microseconds
        self.authenticator = Authenticator(settings.secret_key, lambda: clock() / 1_000_000)
        if self._store.is_shared:
            agreement.compare(self._store, settings, now=clock())
        engine = Engine(
            self._store,
            EngineSettings(
                metadata_size_max=settings.metadata_size_max,
                grace_seconds=settings.metadata_grace_seconds,
                lease_seconds=settings.lease_seconds,
                stop_grace_seconds=settings.stop_grace_seconds,
                log_bytes_max=settings.log_bytes_max,
                stream_bytes_max=settings.stream_bytes_max,
            ),
            clock,
            steady,
        )
        self.committer = Committer(engine, steady, self._announce)
        self._listener = self._store.listener(self.committer.look)
        self.upkeep = Upkeep(
            UpkeepSettings(
                lease_seconds=settings.lease_seconds,
                grace_seconds=settings.metadata_grace_seconds,
                history_days=settings.history_days,
                stream_days=settings.stream_days,
                keep_completed_runs=settings.keep_completed_runs,
                keep_failed_runs=settings.keep_failed_runs,
                keep_canceled_runs=settings.keep_canceled_runs,
                keep_logs=settings.keep_logs,
                keep_payloads=settings.keep_payloads,
            ),
            self.committer,
            engine,
            self._store,
        )
        self.reader = Reader(
            self._store,
            queued_reason=engine.state.queued_reason,
            known_queues=lambda: engine.state,
            clock=clock,
        )
        self.readiness = Readiness(self._store, lambda: (steady() - engine.committed_at) / 1_000_000)
        self.traffic = Traffic()
        self._metrics = Metrics(
            Sources(
                version=version("milepost"),
                store=self._store,
                engine=engine,
                committer=self.committer,
                hub=self.hub,
                upkeep=self.upkeep,
                traffic=self.traffic,
                readiness=self.readiness,
                listener=self._listener,
            ),
            clock,
        )
        self._sessions = Sessions(self.authenticator, self.committer.submit, self.reader.is_used)
        handlers = Handlers(
            settings,
            self.committer,
            self.reader,
            self.hub,
            self.authenticator,
            clock,
            version("milepost"),
            queued_reason=engine.state.queued_reason,
            similar_task=engine.state.similar_task,
        )
        handlers.handlers |= {READY.name: self.readiness.answer, METRICS.name: self._metrics.answer}
        application = Starlette(
            routes=[
                *(self._route(endpoint, handlers) for endpoint in _in_order_of_requests()),
                *client_routes(),
                *dashboard_routes(self.authenticator, self._sessions),
            ],
            middleware=[Middleware(StrictPaths)],
            lifespan=self._lifespan,
            exception_handlers={
                HTTPException: _plain_problem,
                MilepostError: _refusal,
                Exception: _unexpected_problem,
            },
        )
        # A redirection would name the host that the request named, which anyone can choose.
        application.router.redirect_slashes = False
        self.app: ASGIApp = SafeAnswers(Cors(application, settings.origins), self.traffic, self.readiness)

    def sign_in_path(self) -> str:
        """The path of a link that signs a browser in, once and soon."""
        return sign_in_path(self.authenticator)

    def begin_drain(self) -> None:
        """Say from now on that the server is not ready, and close connections with their next answer; everything is still served."""
        self.readiness.is_draining = True

    def stop_streams(self) -> None:
        """End event streams and long polls cleanly, so that the server can stop. Call it in the server's loop; twice is fine."""
        self.hub.close()
        self.committer.release_claims()

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        self._loop = asyncio.get_running_loop()
        self.committer.start()
        if self._listener is not None:
            self._listener.start()
        tasks = [*self.upkeep.start(), asyncio.create_task(self._watch_folder())]
        if self._database_clock is not None:
            tasks.append(asyncio.create_task(_keep_reading(self._database_clock)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            if self._listener is not None:
                await asyncio.to_thread(self._listener.stop)
            await asyncio.to_thread(self.committer.stop)
            self._store.close()

    async def _watch_folder(self) -> None:
        """Say when the data folder is gone, and when it is back. Requests meet it at once, but there may be none."""
        was_displaced = False
        while True:
            is_displaced = await asyncio.to_thread(lambda: self._store.is_displaced)
            if is_displaced and not was_displaced:
                logger.error(
                    "the data folder %s was removed, replaced or moved while the server runs: nothing is stored until it is back; "
                    "put it back, or start the server anew",
                    self.settings.data_folder.absolute(),
                )
            elif was_displaced and not is_displaced:
                logger.warning(
                    "the data folder %s is back, and the server goes on", self.settings.data_folder.absolute()
                )
            was_displaced = is_displaced
            await asyncio.sleep(WATCH_SECONDS)

    def _announce(self, announcement: Announcement) -> None:
        loop = self._loop
        is_wanted = self.hub.is_watched or announcement.ended_sessions
        if loop is not None and is_wanted and not loop.is_closed():
            loop.call_soon_threadsafe(self.hub.announce, announcement, perf_counter())

    def _route(self, endpoint: Endpoint, handlers: Handlers) -> Route:
        if endpoint is METRICS and self.settings.metrics == "open":
            endpoint = replace(endpoint, access=OPEN)
        stream = handlers.streams.get(endpoint.name)
        route = self.traffic.route(endpoint.method, endpoint.path, is_stream=stream is not None)
        answering = (
            _answering(handlers.handlers[endpoint.name], endpoint.status)
            if stream is None
            else self._streaming(stream, endpoint.stream_headers, route)
        )

        application = _Guarded(
            endpoint, answering, self.authenticator, self._sessions, self.reader, self.hub, route
        )
        path = endpoint.path.replace("{key}", "{key:path}").replace("{queue}", "{queue:path}")
        return Route(path, application, methods=[endpoint.method], name=endpoint.name)

    def _streaming(
        self,
        handler: Callable[[Request], AsyncIterator[bytes]],
        stream_headers: Iterable[tuple[str, str]],
        route: RouteMeasures,
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if self.hub.is_closed:
                raise UnavailableError("the server is about to stop")
            events = cast("AsyncGenerator[bytes]", handler(request))
            # The first frame is awaited here, so that an unknown run is a 404 and not a broken stream.
            first = await anext(events)
            if request.method == "HEAD":
                await events.aclose()
                return Response(media_type="text/event-stream")
            headers = {"cache-control": "no-store", "x-accel-buffering": "no", **dict(stream_headers)}
            return EventStream(self._whole(first, events, route), headers)

        return answer

    async def _whole(
        self, first: bytes, events: AsyncGenerator[bytes], route: RouteMeasures
    ) -> AsyncGenerator[bytes]:
        """An event stream from its first frame to its last; where it ends because the server does, with a word to come again."""
        route.open += 1
        try:
            async with aclosing(events):
                yield first
                try:
                    async for event in events:
                        yield event
                except UnavailableError as error:
                    # The reader connects anew, and is told there what is wrong.
                    logger.warning("an event stream ends early: %s", error)
            if self.hub.is_closed:
                # Not all at the same moment: those who stay have to take them in.
                yield b"retry: %d\n\n" % random.randrange(*_RETRY_MILLISECONDS)
        finally:
            route.open -= 1


def _in_order_of_requests() -> list[Endpoint]:
    """The endpoints, first those that are asked most: a request is compared with one after the other, which at the end of them took as
    long as all else that the loop does for it."""
    return sorted(ENDPOINTS, key=lambda endpoint: endpoint not in _MOST_ASKED)


async def _keep_reading(clock: DatabaseClock) -> None:
    while True:
        await asyncio.sleep(CLOCK_SECONDS)
        try:
            await asyncio.to_thread(clock.read)
        except UnavailableError as error:
            logger.debug("the database's clock cannot be read now: %s", error)


class _Guarded:
    """One endpoint as an ASGI application: checks who asks, and turns refusals into problems."""

    def __init__(
        self,
        endpoint: Endpoint,
        answering: Callable[[Request], Awaitable[Response]],
        authenticator: Authenticator,
        sessions: Sessions,
        reader: Reader,
        hub: Hub,
        route: RouteMeasures,
    ) -> None:
        self._endpoint = endpoint
        self._answering = answering
        self._authenticator = authenticator
        self._sessions = sessions
        self._reader = reader
        self._hub = hub
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        scope[ROUTE] = self._route
        for name, value in request.path_params.items():
            request.path_params[name] = value.replace(SLASH, "/")
        try:
            caller = self._authenticator.check(request, self._endpoint.access)
            if caller.session is not None:
                await self._answer_session(caller, caller.session, request, send)
                return
            response = await self._answer(caller, request)
        except MilepostError as error:
            response = problem_response(error)
        except ClientDisconnect:
            response = Response(status_code=499)
        await response(scope, receive, send)

    async def _answer(self, caller: Caller, request: Request) -> Response:
        await admit(caller, self._endpoint, request.path_params, self._reader)
        check_query(request, self._endpoint)
        return await self._answering(request)

    async def _answer_session(self, caller: Caller, session: Ticket, request: Request, send: Send) -> None:
        """Answer a browser that has signed in, for as long as it has not signed out."""
        ended = asyncio.Event()
        # Before it is looked at, or a signing out in between would be missed.
        self._hub.watch_session(session.id, ended)
        try:
            try:
                await self._sessions.check(session)
                response = await self._answer(caller, request)
                if ended.is_set():
                    raise no_credentials()
            except MilepostError as error:
                response = problem_response(error)
            except ClientDisconnect:
                response = Response(status_code=499)
            if isinstance(response, EventStream):
                response.body_iterator = _until(ended, cast("AsyncGenerator[bytes]", response.body_iterator))
            await response(request.scope, request.receive, send)
        finally:
            self._hub.leave_session(session.id, ended)


async def _until(ended: asyncio.Event, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The frames up to this event."""
    end = asyncio.ensure_future(ended.wait())
    upcoming: asyncio.Future[bytes] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(frames))
            await asyncio.wait({upcoming, end}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                return
            try:
                frame = upcoming.result()
            except StopAsyncIteration:
                return
            yield frame
    finally:
        end.cancel()
        # Shielded, because a reader that vanishes cancels whatever is awaited from here on.
        await asyncio.shield(asyncio.ensure_future(_close(upcoming, frames)))


async def _close(upcoming: asyncio.Future[bytes] | None, frames: AsyncGenerator[bytes]) -> None:
    if upcoming is not None:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
    await frames.aclose()


def _answering(
    handler: Callable[[Request], Awaitable[Any]], status: int
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        answered = await handler(request)
        if isinstance(answered, Response):
            return answered
        headers: dict[str, str] | None = None
        if type(answered) is WithToken:
            answered, headers = answered.message, {TOKEN_HEADER: answered.token}
        return Response(msgspec.json.encode(answered), status, headers, JSON)

    return answer


def problem_response(error: MilepostError) -> Response:
    """The answer that carries an error."""
    # Only what may go away by itself is worth a retry (protocol, section 1.4).
    headers = {"x-should-retry": "true" if isinstance(error, UnavailableError) else "false"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, UnavailableError):
        headers["retry-after"] = "1"
    return Response(msgspec.json.encode(to_problem(error)), error.status, headers, JSON)


async def _plain_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Not `request.url`: it is made of the host that the request names, which may be anything.
    path = request.scope["path"].replace(SLASH, "%2F")
    if error.status_code == 404:
        problem = Problem(f"there is nothing at {path}", "not_found")
    elif error.status_code == 405:
        problem = Problem(f"{path} does not take {request.method}", "method_not_allowed")
    else:
        problem = Problem(error.detail, "bad_request")
    return Response(msgspec.json.encode(problem), error.status_code, error.headers, JSON)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, MilepostError)
    return problem_response(error)


async def _unexpected_problem(request: Request, error: Exception) -> Response:
    logger.error("%s %r failed", request.method, request.scope["path"], exc_info=error)
    problem = Problem("the server made a mistake; its log has the details", "internal_error")
    return Response(msgspec.json.encode(problem), 500, {"x-should-retry": "false"}, JSON)
