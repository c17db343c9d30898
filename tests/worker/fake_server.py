"""A server for the link alone: it keeps what it was told, hands out what it was given, and fails on demand."""

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from milepost.protocol import endpoints
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.feed import encode_event
from milepost.protocol.metadata import MetadataChange, MetadataDelta
from milepost.protocol.streams import ChunksRequest
from milepost.protocol.work import (
    AttemptLines,
    ClaimedRun,
    ClaimRequest,
    ClaimResponse,
    Death,
    InboxFrame,
    LogRequest,
    LogResponse,
    RegisterRequest,
    RegisterResponse,
    ReportRequest,
    ReportResponse,
    RunReply,
    RunReport,
)
from support.streams import StreamStore


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of, or after, its being carried out.

    Attributes:
        status: answer with this status and do nothing.
        loses_reply: carry it out, but break the connection instead of answering.
    """

    status: int = 0
    loses_reply: bool = False


@dataclass
class Seen:
    """One request that has arrived, whether it was carried out or not."""

    name: str
    body: bytes
    at: float


@dataclass
class FakeServer:
    """Runs in a thread. Everything below `start` may be used from the test's thread.

    Attributes:
        faults: per endpoint name, what happens to the next requests.
        reports: what was reported and applied, in order; a repeat is not applied again.
        replies: for a run, how its next reports are answered.
        ended: runs and batches that have ended, for those who ask.
        accepts, accepts_lines: whether a report, or a part of a log, is taken at all.
        body_bytes_max: larger reports are not taken.
        streams: what was written into streams.
        accepts_chunks: whether a request with chunks is taken at all.
        log: what was logged, for each run.
        full: runs whose queue is full, so that they do not go on after a wait.
        taken: runs that were given to somebody else.
        deaths: the workers that have died, with how.
        is_away: every request is answered with 503.
    """

    lease_seconds: float = 30.0
    heartbeat_seconds: float = 10.0
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque[Fault]))
    seen: list[Seen] = field(default_factory=list[Seen])
    registered: list[RegisterRequest] = field(default_factory=list[RegisterRequest])
    reports: list[RunReport] = field(default_factory=list[RunReport])
    replies: dict[str, deque[RunReply]] = field(default_factory=lambda: defaultdict(deque[RunReply]))
    ended: set[str] = field(default_factory=set[str])
    accepts: Callable[[RunReport], bool] = lambda report: True
    accepts_lines: Callable[[AttemptLines], bool] = lambda part: True
    body_bytes_max: int | None = None
    log_bytes_max: int = 4 * 1024 * 1024
    streams: StreamStore = field(default_factory=StreamStore)
    accepts_chunks: Callable[[ChunksRequest], bool] = lambda request: True
    log: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list[str]))
    full: set[str] = field(default_factory=set[str])
    taken: set[str] = field(default_factory=set[str])
    deaths: list[tuple[str, Death]] = field(default_factory=list[tuple[str, Death]])
    is_away: bool = False
    has_left: bool = False
    url: str = ""

    def __post_init__(self) -> None:
        self._queued: deque[ClaimedRun] = deque()
        self._handed_out: dict[str, ClaimedRun] = {}
        self._answered: tuple[int, list[ClaimedRun]] = (0, [])
        self._applied: dict[tuple[str, int], int] = {}
        self._logged: dict[tuple[str, int], int] = {}
        # Per run the numbers of the reports that changed its document; the document's version is their count.
        self._steps: dict[str, list[int]] = defaultdict(list[int])
        self._inbox: web.StreamResponse | None = None
        self._knows_worker = False
        self._is_up = threading.Event()

    # --- for tests -----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._is_up.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(60)

    def queue(self, *runs: ClaimedRun) -> None:
        self._do(lambda: self._queued.extend(runs))

    def forget_worker(self) -> None:
        self._knows_worker = False

    def say(
        self,
        *,
        finished: list[str] | None = None,
        deltas: list[MetadataDelta] | None = None,
        resumed: list[str] | None = None,
    ) -> None:
        """Say something in the inbox."""
        frame = InboxFrame(finished=finished or [], deltas=deltas or [], resumed=resumed or [])

        async def write() -> None:
            assert self._inbox is not None, "nobody listens to the inbox"
            await self._inbox.write(encode_event("inbox", msgspec.json.encode(frame)))

        asyncio.run_coroutine_threadsafe(write(), self._loop).result(60)

    def break_inbox(self) -> None:
        """Break the connection of the inbox."""

        def close() -> None:
            assert self._inbox is not None
            transport = self._inbox._req.transport  # pyright: ignore
            assert transport is not None
            transport.abort()

        self._do(close)

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Wait until something holds; looked at after every request, and now and then for what happens in the worker."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (held := condition()):
                assert time.monotonic() < deadline, (
                    f"it did not happen; the last reports: {self.reports[-3:]}"
                )
                self._changed.wait(0.05)
        return held

    def names(self) -> list[str]:
        return [seen.name for seen in self.seen]

    def bodies(self, name: str) -> list[bytes]:
        return [seen.body for seen in self.seen if seen.name == name]

    def outcomes(self) -> dict[str, Any]:
        return {report.id: report.outcome for report in self.reports if report.outcome is not None}

    # --- inside --------------------------------------------------------------------------------------------

    def _do(self, change: Callable[[], Any]) -> None:
        async def apply() -> None:
            change()
            async with self._wake:
                self._wake.notify_all()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result(60)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Condition()
        self._changed = threading.Condition()
        app = web.Application(client_max_size=1 << 30)
        for endpoint, handler in (
            (endpoints.REGISTER_WORKER, self._register),
            (endpoints.CLAIM_RUNS, self._claim),
            (endpoints.REPORT, self._report),
            (endpoints.REPORT_LOG, self._log),
            (endpoints.REPORT_CHUNKS, self._chunks),
            (endpoints.RUN_RESULT, self._result),
        ):
            app.router.add_route(endpoint.method, endpoint.path, self._route(endpoint, handler))
        app.router.add_get(endpoints.INBOX.path, self._listen)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._is_up.set()
        await self._stopping.wait()
        await runner.cleanup()

    def _route(self, endpoint: Endpoint, handler: Callable[[Any], Any]) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            self.seen.append(Seen(endpoint.name, body, self._loop.time()))
            fault = self.faults[endpoint.name].popleft() if self.faults[endpoint.name] else None
            if self.is_away:
                fault = Fault(status=503)
            try:
                if fault is not None and fault.status:
                    return self._problem(fault.status)
                if endpoint is endpoints.RUN_RESULT:
                    answer = await handler(request.match_info["run"])
                elif endpoint is endpoints.REPORT:
                    report = msgspec.json.decode(body, type=ReportRequest)
                    if report.death is not None and self._knows_worker:
                        self.deaths.append((request.match_info["worker"], report.death))
                    answer = await handler(report)
                else:
                    answer = await handler(msgspec.json.decode(body, type=endpoint.request))
                if isinstance(answer, int):
                    return self._problem(answer)
                if fault is not None and fault.loses_reply:
                    assert request.transport is not None
                    request.transport.abort()
                return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
            finally:
                with self._changed:
                    self._changed.notify_all()

        return handle

    def _problem(self, status: int) -> web.Response:
        body = msgspec.json.encode({"error": f"fault {status}", "code": f"fault_{status}"})
        return web.Response(status=status, body=body, content_type="application/json")

    async def _register(self, request: RegisterRequest) -> Any:
        self.registered.append(request)
        self._knows_worker = True
        # As the real one: what the worker holds not, it was never given.
        for run_id in [run_id for run_id in self._handed_out if run_id not in request.holding]:
            self._queued.append(self._handed_out.pop(run_id))
        async with self._wake:
            self._wake.notify_all()
        return RegisterResponse(
            lease_seconds=self.lease_seconds,
            heartbeat_seconds=self.heartbeat_seconds,
            metadata_size_max=262_144,
            log_bytes_max=self.log_bytes_max,
        )

    async def _claim(self, request: ClaimRequest) -> Any:
        if not self._knows_worker:
            return 404
        if request.sequence == self._answered[0]:
            return ClaimResponse(self._answered[1])
        async with self._wake:
            try:
                async with asyncio.timeout(request.wait_seconds):
                    await self._wake.wait_for(lambda: self._queued)
            except TimeoutError:
                pass
        runs = [self._queued.popleft() for _ in range(min(request.slots, len(self._queued)))]
        if runs:
            self._answered = (request.sequence, runs)
            self._handed_out |= {run.id: run for run in runs}
        return ClaimResponse(runs)

    async def _log(self, request: LogRequest) -> Any:
        if not self._knows_worker:
            return 404
        if not all(map(self.accepts_lines, request.runs)):
            return 413
        for part in request.runs:
            key = part.id, part.attempt
            if part.sequence > self._logged.get(key, 0):
                self._logged[key] = part.sequence
                self.log[part.id] += [line.message for line in part.lines]
        return LogResponse()

    async def _chunks(self, request: ChunksRequest) -> Any:
        if not self._knows_worker:
            return 404
        if not self.accepts_chunks(request):
            return 413
        return self.streams.take(request)

    async def _report(self, request: ReportRequest) -> Any:
        if not self._knows_worker:
            return 404
        if self.body_bytes_max is not None and len(msgspec.json.encode(request)) > self.body_bytes_max:
            return 413
        if not all(map(self.accepts, request.runs)):
            return 413
        replies = [self._apply(report) for report in request.runs]
        self.has_left = self.has_left or request.leaving
        return ReportResponse(replies)

    def _apply(self, report: RunReport) -> RunReply:
        if report.id in self.taken:
            return RunReply(id=report.id, lost=True)
        key = (report.id, report.attempt)
        if report.sequence == 0 or report.sequence > self._applied.get(key, 0):
            self._applied[key] = max(report.sequence, self._applied.get(key, 0))
            self.reports.append(report)
            if report.outcome is not None:
                self._handed_out.pop(report.id, None)
        replies = self.replies[report.id]
        return replies.popleft() if replies else self._reply(report)

    def _reply(self, report: RunReport) -> RunReply:
        resumed = report.id not in self.full if report.waiting is False else None
        return RunReply(id=report.id, delta=self._delta(report), resumed=resumed)

    def _delta(self, report: RunReport) -> MetadataDelta | None:
        """The steps that the worker lacks. All of them are its own, each under the number that it was reported with."""
        if report.metadata_version < 0:
            return None
        steps = self._steps[report.id]
        if (
            report.sequence
            and report.sequence not in steps
            and any(target.run == report.id for target in report.changes)
        ):
            steps.append(report.sequence)
        changes = [
            MetadataChange(version, attempt=report.attempt, sequence=sequence)
            for version, sequence in enumerate(steps, 1)
            if version > report.metadata_version
        ]
        return MetadataDelta(report.id, report.metadata_version, len(steps), changes) if changes else None

    async def _result(self, run_id: str) -> Any:
        if run_id not in self.ended:
            return 404
        return {"ok": True, "id": run_id, "taskIdentifier": "t"}

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        if not self._knows_worker:
            return self._problem(404)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._inbox = response
        await response.write(encode_event("inbox", msgspec.json.encode(InboxFrame(hello=True))))
        self.seen.append(Seen("inbox", b"", self._loop.time()))
        with self._changed:
            self._changed.notify_all()
        await self._stopping.wait()
        return response
