"""The deputy speaks to the server in the name of executors that cannot: they have died, were killed, or are held up by user code.

It belongs to the supervisor. As long as every executor is well it sends nothing, and neither the HTTP client nor the protocol is even
imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from milepost.protocol.work import BegunRun, Death, ReportRequest, RunReply

REQUEST_SECONDS_MAX = 5.0
# How long a supervisor that ends tries to bring what it has to say.
LAST_WORDS_SECONDS_MAX = 3.0


class Deputy:
    """Says what executors cannot say. Belongs to one event loop."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = api_url
        self._secret_key = secret_key
        self._telling: set[asyncio.Task[None]] = set()

    def died(self, worker_id: str, death: Death) -> None:
        """The process of this worker has died: said until the server has heard it."""
        from milepost.protocol.work import ReportRequest

        self._tell(worker_id, ReportRequest(death=death))

    def left(self, worker_id: str, begun: Sequence[BegunRun]) -> None:
        """This worker has ended by order, and its runs had not: said until the server has heard it. They are handed back.

        Args:
            begun: those whose code had begun.
        """
        self._tell(worker_id, _report_on(begun, leaving=True))

    async def keep_lease(self, worker_id: str, *, seconds_max: float) -> bool:
        """Tell the server that this worker lives; True when it has heard so."""
        return await self._ask(worker_id, _report_on(()), seconds_max) is None

    async def is_to_end(self, worker_id: str, begun: Sequence[BegunRun], *, seconds_max: float) -> bool:
        """Whether the server wants one of these runs ended, or has ended it. False too when it does not answer."""
        replies: list[RunReply] = []
        await self._ask(worker_id, _report_on(begun), seconds_max, replies)
        return any(reply.lost or reply.cancel for reply in replies)

    async def settle(self) -> None:
        """The supervisor ends: wait until everything is said, but not for long."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=LAST_WORDS_SECONDS_MAX)
            for task in self._telling:
                task.cancel()

    def _tell(self, worker_id: str, report: ReportRequest) -> None:
        task = asyncio.get_running_loop().create_task(self._repeat(worker_id, report))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _repeat(self, worker_id: str, report: ReportRequest) -> None:
        from milepost.worker.channel import Backoff, Refused

        backoff = Backoff()
        while (error := await self._ask(worker_id, report, REQUEST_SECONDS_MAX)) is not None:
            if isinstance(error, Refused):
                if not report.runs:
                    return
                # The server does not know the worker any more; what it holds for it is handed back nevertheless.
                report = msgspec.structs.replace(report, runs=[])
            await asyncio.sleep(backoff.next())

    async def _ask(
        self,
        worker_id: str,
        report: ReportRequest,
        seconds_max: float,
        replies: list[RunReply] | None = None,
    ) -> Exception | None:
        """One report; what went wrong with it. What is answered about its runs is added to `replies`."""
        from milepost.protocol import endpoints
        from milepost.worker.channel import Channel

        try:
            async with Channel(self._api_url, self._secret_key) as channel:
                answer = await channel.call(
                    endpoints.REPORT, report, timeout_seconds=seconds_max, worker=worker_id
                )
                if replies is not None:
                    replies += answer.runs
        except Exception as error:
            # Beside a server that is away: the system may be short of everything, and it is tried again.
            return error
        return None


def _report_on(begun: Sequence[BegunRun], *, leaving: bool = False) -> ReportRequest:
    from milepost.protocol.work import ReportRequest, RunReport

    runs = [RunReport(id=run.id, attempt=run.attempt, begun=True) for run in begun]
    return ReportRequest(runs=runs, leaving=leaving)
