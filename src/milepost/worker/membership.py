"""This worker as the server knows it: it registers, and registers again when the server has forgotten it.

Every request of the link goes through here, so that it is known whether the server can be reached, and how old the lease is.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from milepost.protocol import endpoints
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.work import RegisterRequest, RegisterResponse, WorkerTask
from milepost.worker.black_box import BlackBox
from milepost.worker.channel import Backoff, Channel, Refused, Unreachable
from milepost.worker.holding import Holding, Host
from milepost.worker.lease import Lease
from milepost.worker.settings import ALONE_SECONDS

REQUEST_SECONDS_MAX = 30.0
# The server is told to be away after so long without an answer: a restart that nobody notices is no news.
AWAY_SECONDS = 1.0

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """What the link has to know.

    Args:
        worker_id: chosen by the worker, so that registering may be repeated.
        flush_interval_seconds: see `Outbox`.
        alone_seconds: see `Holding`.
        grace_seconds: how long runs may go on after the order to end.
        is_isolated: it has one run at a time.
    """

    api_url: str
    secret_key: str
    worker_id: str
    name: str
    tasks: Sequence[WorkerTask]
    concurrency: int
    flush_interval_seconds: float
    grace_seconds: float
    alone_seconds: float = ALONE_SECONDS
    is_isolated: bool = False


class Membership:
    """One worker's standing with the server. Belongs to the link's thread and its event loop.

    Args:
        holding: says what the worker holds, when it registers, and hears when the lease was over.
        limit_log: called with how many bytes of one attempt's log the server keeps.

    Attributes:
        registration: what the server has said last; only after `register`.
        registrations: how often it has.
        claims: the number of the claim under way, or of the next one. Nobody listens to earlier ones, so a registration says it:
            what such a claim brought, where it came again, would be executed by nobody.
        reported_at: when the server has last answered a report, on the loop's clock.
    """

    registration: RegisterResponse

    def __init__(
        self,
        options: LinkOptions,
        host: Host,
        channel: Channel,
        holding: Holding,
        *,
        lease: Lease,
        black_box: BlackBox,
        limit_log: Callable[[int], None],
    ) -> None:
        self._options = options
        self._host = host
        self._channel = channel
        self._holding = holding
        self._lease = lease
        self._black_box = black_box
        self._limit_log = limit_log
        self._loop = asyncio.get_running_loop()
        self._sequence = 0
        # Since when no request was answered, and whether the host knows.
        self._away_since: float | None = None
        self._away_is_told = False
        self.registering = asyncio.Lock()
        self.registrations = 0
        self.claims = 1
        self.reported_at = self._loop.time()

    async def ask(self, endpoint: Endpoint, body: Any = None, *, timeout_seconds: float, **path: str) -> Any:
        """One request; see `Channel.call`. The host hears when the server has been away for a moment, and when it is back."""
        asked_at = self._lease.now()
        try:
            answer = await self._channel.call(endpoint, body, timeout_seconds=timeout_seconds, **path)
        except Unreachable as error:
            self._not_answered(error)
            raise
        except Refused:
            self._answered()
            raise
        self._answered()
        if endpoint is endpoints.REGISTER_WORKER:
            self._lease.seconds = answer.lease_seconds
        if "worker" in path or endpoint is endpoints.REGISTER_WORKER:
            if self._lease.confirm(asked_at):
                self._holding.doubt()
            self._black_box.answered(self._lease.seconds, self._lease.confirmed_at)
        return answer

    def _answered(self) -> None:
        if self._away_is_told:
            self._away_is_told = False
            self._host.server_is_back(self._loop.time() - (self._away_since or 0.0))
        self._away_since = None

    def _not_answered(self, error: Unreachable) -> None:
        if not self.registrations:
            # Not up yet: `register` tells.
            return
        now = self._loop.time()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= AWAY_SECONDS and not self._away_is_told:
            self._away_is_told = True
            self._host.server_is_away(str(error))

    async def register(self) -> None:
        """Present the worker and its tasks, for as long as it takes to reach the server.

        Raises: Refused.
        """
        options = self._options
        backoff = Backoff(seconds_max=2.0)
        told = False
        while True:
            self._sequence += 1
            held = self._holding.attempts()
            request = RegisterRequest(
                id=options.worker_id,
                name=options.name,
                tasks=list(options.tasks),
                holding=list(held),
                attempts=list(held.values()),
                sequence=self._sequence,
                claims=self.claims,
            )
            try:
                self.registration = await self.ask(
                    endpoints.REGISTER_WORKER, request, timeout_seconds=REQUEST_SECONDS_MAX
                )
            except Unreachable as error:
                if not told:
                    told = True
                    self._host.notice(f"waiting for the server at {options.api_url} ({error})")
                await asyncio.sleep(backoff.next())
            else:
                self.registrations += 1
                self._limit_log(self.registration.log_bytes_max)
                self._holding.stop_grace_seconds = self.registration.stop_grace_seconds
                return

    async def register_again(self, registrations: int) -> None:
        """The server does not know this worker (any more): present it again, once for all who noticed.

        Args:
            registrations: how many there were when the request was sent that the server did not take.
        """
        async with self.registering:
            if registrations == self.registrations:
                await self.register()

    async def repeat(self, endpoint: Endpoint, body: bytes, what: str) -> Any:
        """One request, repeated unchanged until it is answered: the server carries it out once.

        Args:
            what: what it brings, for the operator.
        Raises: Refused.
        """
        # A server that comes back waits for one lease; at least two tries fall into it.
        backoff = Backoff(seconds_max=min(2.0, self.registration.heartbeat_seconds))
        while True:
            registrations = self.registrations
            try:
                answer = await self.ask(
                    endpoint, body, timeout_seconds=REQUEST_SECONDS_MAX, worker=self._options.worker_id
                )
                self.reported_at = self._loop.time()
                return answer
            except Unreachable:
                pass
            except Refused as refused:
                if refused.status == 404:
                    await self.register_again(registrations)
                elif refused.status in (401, 403):
                    self._host.notice(f"the server refuses this worker's {what}: {refused}")
                else:
                    raise
            await asyncio.sleep(backoff.next())
