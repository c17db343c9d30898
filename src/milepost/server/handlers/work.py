"""What workers say and ask: presenting themselves, claims, reports, logs, their inbox."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from milepost.engine import commands
from milepost.errors import TooLargeError
from milepost.feed import streams
from milepost.feed.hub import Hub
from milepost.protocol.work import (
    LOG_LINES_MAX,
    ClaimRequest,
    ClaimResponse,
    LogRequest,
    LogResponse,
    RegisterRequest,
    RegisterResponse,
    ReportRequest,
    ReportResponse,
)
from milepost.reading.reader import Reader
from milepost.server import doors, requests
from milepost.server.handlers.answers import Submit
from milepost.server.settings import ServerSettings

CLAIM_WAIT_SECONDS_MAX = 30.0


class Work:
    """The endpoints of workers."""

    def __init__(self, settings: ServerSettings, submit: Submit, reader: Reader, hub: Hub) -> None:
        self._settings = settings
        self._submit = submit
        self._reader = reader
        self._hub = hub

    async def register_worker(self, request: Request) -> Any:
        """A worker presents itself."""
        body: RegisterRequest = await requests.body(request, RegisterRequest)
        doors.check_registration(body)
        await self._submit(
            commands.RegisterWorker(
                body.id, body.name, body.tasks, body.holding, body.attempts, body.sequence, body.claims
            )
        )
        return RegisterResponse(
            lease_seconds=self._settings.lease_seconds,
            heartbeat_seconds=self._settings.lease_seconds / 3,
            metadata_size_max=self._settings.metadata_size_max,
            log_bytes_max=self._settings.log_bytes_max,
            stop_grace_seconds=self._settings.stop_grace_seconds,
        )

    async def claim_runs(self, request: Request) -> Any:
        """Runs for a worker, as soon as there are some."""
        body: ClaimRequest = await requests.body(request, ClaimRequest)
        wait_seconds = min(max(body.wait_seconds, 0.0), CLAIM_WAIT_SECONDS_MAX)
        worker_id = request.path_params["worker"]
        claim = asyncio.ensure_future(
            self._submit(commands.Claim(worker_id, body.sequence, body.slots, wait_seconds))
        )
        claim.add_done_callback(_look_at_failure)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({claim, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                # A worker that is not there any more must not be given runs, which would then wait for its lease to end.
                await self._submit(commands.WithdrawClaim(worker_id, body.sequence))
            return ClaimResponse(await claim)
        finally:
            gone.cancel()

    async def report(self, request: Request) -> Any:
        """What happened in a worker's runs."""
        body: ReportRequest = await requests.body(request, ReportRequest)
        for run in body.runs:
            doors.check_operation_count(sum(len(target.operations) for target in run.changes), run.id)
        runs = await doors.check_reports(body.runs)
        return ReportResponse(
            await self._submit(commands.Report(request.path_params["worker"], runs, body.leaving, body.death))
        )

    async def report_log(self, request: Request) -> Any:
        """What a worker's runs have logged."""
        body: LogRequest = await requests.body(request, LogRequest)
        count = sum(len(part.lines) for part in body.runs)
        if count > LOG_LINES_MAX:
            raise TooLargeError(
                f"the request holds {count:,} lines, the limit is {LOG_LINES_MAX:,}: send them in several parts, in their order",
                field="lines",
                limit=LOG_LINES_MAX,
            )
        doors.check_log(body.runs)
        await self._submit(commands.AppendLog(request.path_params["worker"], body.runs))
        return LogResponse()

    def watch_inbox(self, request: Request) -> AsyncIterator[bytes]:
        """What a worker has to know at once."""
        return streams.watch_inbox(self._hub, self._reader, request.path_params["worker"])


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _look_at_failure(claim: asyncio.Future[Any]) -> None:
    """The worker is told of it; when that has gone and its claim could not be withdrawn, nobody is."""
    if not claim.cancelled():
        claim.exception()
