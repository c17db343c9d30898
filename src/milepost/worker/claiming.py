"""How an executor gets its runs: one claim after the other, each repeated under its number until it is answered."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from milepost.protocol import endpoints
from milepost.protocol.work import ClaimRequest
from milepost.worker.channel import Backoff, Refused, Unreachable
from milepost.worker.holding import Holding, Host
from milepost.worker.lease import Lease
from milepost.worker.membership import REQUEST_SECONDS_MAX, Membership

CLAIM_WAIT_SECONDS = 20.0
# How long the first claim waits for the inbox: runs whose whole life the inbox has seen need not be asked after.
INBOX_SECONDS_MAX = 2.0
# How long the next claim waits for the end of what the last one has brought. A short run is started and reported before it then, as
# the two would take their time from each other; behind runs that take longer it is sent after so long.
START_SECONDS_MAX = 0.002
# A claimed run that has not started after this long is given back, so that others may run it.
LINE_SECONDS_MAX = 1.0

_encode = msgspec.json.Encoder().encode


class Claiming:
    """Claims runs for the free slots. Belongs to the link's thread and its event loop.

    Args:
        changed: called after runs have been added to what is held, or taken from it.
    """

    def __init__(
        self,
        membership: Membership,
        holding: Holding,
        host: Host,
        *,
        worker_id: str,
        lease: Lease,
        changed: Callable[[], None],
    ) -> None:
        self._membership = membership
        self._holding = holding
        self._host = host
        self._worker_id = worker_id
        self._lease = lease
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._slots_due = asyncio.Event()
        self._in_flight: ClaimRequest | None = None
        # Runs were withdrawn, and the server may not know it yet.
        self._owes_runs = False

    def look(self) -> None:
        """Something has changed: there may be room for runs now."""
        if self._holding.room:
            self._slots_due.set()

    async def run(self, inbox_is_heard: asyncio.Event) -> None:
        """Claim runs for ever, the first ones when the inbox is heard."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(INBOX_SECONDS_MAX):
                await inbox_is_heard.wait()
        while True:
            if self._holding.seconds_in_line(self._loop.time()) >= LINE_SECONDS_MAX:
                await self._give_back()
            slots = self._holding.room
            if not slots:
                await self._look_within(LINE_SECONDS_MAX)
                continue
            membership = self._membership
            wait_seconds = CLAIM_WAIT_SECONDS if self._holding.has_free_slot else LINE_SECONDS_MAX
            # An answer that comes when the lease is over by this worker's clock has to be asked after.
            wait_seconds = min(wait_seconds, membership.registration.lease_seconds * 2 / 3)
            request = ClaimRequest(sequence=membership.claims, slots=slots, wait_seconds=wait_seconds)
            if await self._claim(request):
                await self._look_within(START_SECONDS_MAX)

    async def _look_within(self, seconds: float) -> None:
        """Wait until something makes room, but not longer than this."""
        self._slots_due.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._slots_due.wait()

    async def _claim(self, request: ClaimRequest) -> bool:
        """One claim, repeated under the same number until it is answered, so that no run is given out unheard.

        Returns: True when it has brought runs.
        """
        self._in_flight = request
        backoff = Backoff()
        body = _encode(request)
        membership = self._membership
        while True:
            async with membership.registering:
                registrations = membership.registrations
            asked_at = self._lease.now()
            try:
                answer = await membership.ask(
                    endpoints.CLAIM_RUNS,
                    body,
                    timeout_seconds=request.wait_seconds + REQUEST_SECONDS_MAX,
                    worker=self._worker_id,
                )
            except Unreachable:
                pass
            except Refused as refused:
                if refused.status == 404:
                    await membership.register_again(registrations)
                else:
                    self._host.notice(f"the server refuses to hand out runs: {refused}")
            else:
                self._in_flight = None
                membership.claims = request.sequence + 1
                if answer.runs:
                    self._holding.admit(
                        answer.runs,
                        metadata_size_max=membership.registration.metadata_size_max,
                        now=self._loop.time(),
                        is_doubtful=self._lease.is_older(asked_at),
                    )
                    self._changed()
                return bool(answer.runs)
            await asyncio.sleep(backoff.next())

    async def settle(self) -> None:
        """Give back what has not started, and what the claim under way may have brought: it is asked once more, under its number.

        `run` must have ended; nothing is claimed after that.
        """
        self._owes_runs = self._holding.withdraw() or self._owes_runs
        if self._in_flight is not None:
            last = self._in_flight
            await self._claim(ClaimRequest(sequence=last.sequence, slots=last.slots, wait_seconds=0))
        await self._give_back()
        self._changed()

    async def _give_back(self) -> None:
        """Let the server hand out again what was claimed and has not started; it does not count as an attempt.

        Only while no claim is under way: what one brings meanwhile would be handed out twice.
        """
        assert self._in_flight is None, "a claim is under way"
        async with self._membership.registering:
            self._owes_runs = self._holding.withdraw() or self._owes_runs
            if self._owes_runs:
                # The server queues again whatever this list does not name.
                await self._membership.register()
                self._owes_runs = False
