"""A connection to one server: makes calls and follows feeds, in both colours, and waits for a server that is away.

Everything that a client says goes through here. So whatever holds for all calls is here and nowhere else: which attempt of a run makes
them (`x-milepost-attempt`), how long they wait, and what an attempt learns from being refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from milepost.client.calling import attempt_at, check_blocking
from milepost.client.calls import Call, Feed
from milepost.client.retries import HELD_SECONDS, LOOK_SECONDS, Patience
from milepost.client.subscription import Follower, Following, Gap
from milepost.client.transport import Request
from milepost.errors import AttemptOverError, UnavailableError
from milepost.protocol.endpoints import ATTEMPT_HEADER, REQUEST_ID_HEADER

if TYPE_CHECKING:
    from milepost.client.async_together import AsyncTogether
    from milepost.client.async_transport import AsyncTransport
    from milepost.client.transport import Reply, SyncTransport

ResultT = TypeVar("ResultT")
StateT = TypeVar("StateT")


class Connection:
    """The way to one server, with one key or token. Thread-safe, usable from several event loops, and safe to have across a fork.

    A call that meets a server that is away is repeated. Outside of runs it is given up after six tries or eight seconds. Inside of a
    run it waits until it is answered, as the reports of the run do, or until the attempt is over: then it raises AttemptOverError.

    Args:
        transports: both ways to the server, where it is not reached over HTTP.
    Raises: ConfigurationError for an address or a key that can be none.
    """

    def __init__(
        self, api_url: str, secret_key: str, *, transports: tuple[SyncTransport, AsyncTransport] | None = None
    ) -> None:
        self.api_url = api_url
        self.secret_key = secret_key
        self._together: Together | None = None
        self._async_ways: dict[str, tuple[AsyncTransport, AsyncTogether | None]] = {}
        if transports is None:
            # Only with the first client: most tasks call nothing.
            from milepost.client.together import Sharing, Together
            from milepost.client.transport import SyncTransport

            self._transport = SyncTransport(api_url, secret_key)
            self._sharing = Sharing(secret_key)
            self._together = Together(self._transport.exchange, self._sharing)
        else:
            # Nothing is saved where there is no network.
            self._transport = transports[0]
            self._async_ways["one"] = transports[1], None

    @property
    def async_transport(self) -> AsyncTransport:
        """The asynchronous way to the server. A program that only blocks never loads it."""
        return self._async_way()[0]

    def _async_way(self) -> tuple[AsyncTransport, AsyncTogether | None]:
        # Without a lock, as in `default_client`: of two threads that are here at once, both get the one that was there first.
        found = self._async_ways.get("one")
        if found is None:
            from milepost.client.async_together import AsyncTogether
            from milepost.client.async_transport import AsyncTransport

            transport = AsyncTransport(self.api_url, self.secret_key)
            together = AsyncTogether(transport.exchange, self._sharing)
            found = self._async_ways.setdefault("one", (transport, together))
        return found

    def is_to(self, api_url: str, secret_key: str) -> bool:
        """True when it leads to this server, with this key."""
        return self.api_url == api_url and self.secret_key == secret_key

    def send(
        self, call: Call[ResultT], *, until: float | None = None, patience: Patience | None = None
    ) -> ResultT:
        """Make one call, again if need be, and read its answer.

        Args:
            until: on the monotonic clock; past it TimeoutError is raised.
            patience: that of several calls; by default the call has its own.
        Raises: UnavailableError, AttemptOverError, or the error that the server's refusal stands for.
        """
        check_blocking(call.form)
        sending = _Sending(call, patience or self.patience(until))
        while True:
            try:
                return sending.result(self._exchange(call.task_id, sending.request))
            except UnavailableError as failure:
                pause = sending.pause(failure)
            _sleep(pause, sending.patience)

    def _exchange(self, task_id: str | None, request: Request) -> Reply:
        if task_id is not None and self._together is not None:
            return self._together.exchange(task_id, request)
        return self._transport.exchange(*request)

    async def _aexchange(self, task_id: str | None, request: Request) -> Reply:
        transport, together = self._async_way()
        if task_id is not None and together is not None:
            return await together.exchange(task_id, request)
        return await transport.exchange(*request)

    async def asend(
        self, call: Call[ResultT], *, until: float | None = None, patience: Patience | None = None
    ) -> ResultT:
        """As `send`, without blocking."""
        sending = _Sending(call, patience or self.patience(until))
        while True:
            try:
                return sending.result(await self._aexchange(call.task_id, sending.request))
            except UnavailableError as failure:
                pause = sending.pause(failure)
            await _asleep(pause, sending.patience)

    def follow(
        self, feed: Feed | Callable[[], Feed], follower: Follower[StateT], *, until: float | None = None
    ) -> Iterator[StateT]:
        """The states of a feed until it ends, over as many connections as it takes.

        Args:
            feed: or what gives the feed to be opened next, where that depends on how far the follower is.
            until: on the monotonic clock; past it TimeoutError is raised.
        Raises: UnavailableError when the server stays away, AttemptOverError, the error of a refusal otherwise.
        """
        following = Following(feed, follower, self.patience(until))
        check_blocking(following.feed.form)
        while True:
            try:
                with self._transport.open(*_opening(following)) as chunks:
                    for chunk in chunks:
                        yield from following.take(chunk)
                        if follower.has_ended:
                            return
            except (Gap, UnavailableError) as failure:
                pause = following.patience.pause(failure)
                _sleep(pause, following.patience)

    async def afollow(
        self, feed: Feed | Callable[[], Feed], follower: Follower[StateT]
    ) -> AsyncIterator[StateT]:
        """As `follow`, without blocking."""
        following = Following(feed, follower, self.patience(None))
        while True:
            try:
                async with self.async_transport.open(*_opening(following)) as chunks:
                    async for chunk in chunks:
                        for state in following.take(chunk):
                            yield state
                        if follower.has_ended:
                            return
            except (Gap, UnavailableError) as failure:
                pause = following.patience.pause(failure)
                await _asleep(pause, following.patience)

    def patience(self, until: float | None) -> Patience:
        """How long one call, or several together, wait for the server."""
        return Patience(attempt_at(self.api_url, self.secret_key), until)


class _Sending(Generic[ResultT]):
    """One call on its way, without I/O: what is sent, and what the answers mean."""

    def __init__(self, call: Call[ResultT], patience: Patience) -> None:
        self.patience = patience
        self._call = call
        self._wanted: str | None = None
        self._tried_at = time.monotonic()
        headers = _headers_of(patience)
        if call.body is not None:
            headers["content-type"] = "application/json"
        if call.request_id is not None:
            headers[REQUEST_ID_HEADER] = call.request_id
        self.request = Request(call.method, call.target, call.body, headers, patience)

    def result(self, reply: Reply) -> ResultT:
        """The result that an answer carries. Raises the error that a refusal stands for."""
        self._wanted = reply.headers.get("retry-after")
        try:
            return self._call.answer(*reply)
        except AttemptOverError:
            if self.patience.attempt is not None:
                self.patience.attempt.lose()
            raise

    def pause(self, failure: UnavailableError) -> float:
        """Seconds to wait before the next try. Raises `failure` when there is none, and as `Patience.pause`."""
        if self._call.waits and time.monotonic() - self._tried_at > HELD_SECONDS:
            # It has been there until now.
            self.patience.connected()
        wanted, self._wanted = self._wanted, None
        pause = self.patience.pause(failure, wanted=wanted)
        self._tried_at = time.monotonic() + pause
        return pause


def _headers_of(patience: Patience) -> dict[str, str]:
    return {} if patience.attempt is None else {ATTEMPT_HEADER: patience.attempt.attempt_name}


def _opening(following: Following[StateT]) -> tuple[str, bytes | None, dict[str, str], Patience]:
    feed, headers = following.open(), _headers_of(following.patience)
    if feed.body is not None:
        headers["content-type"] = "application/json"
    return feed.target, feed.body, headers, following.patience


def _sleep(seconds: float, patience: Patience) -> None:
    """Sleep; an attempt that ends meanwhile ends it."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not patience.has_ended:
        patience.heed()
        time.sleep(left if patience.attempt is None else min(left, LOOK_SECONDS))


async def _asleep(seconds: float, patience: Patience) -> None:
    """As `_sleep`, without blocking."""
    import asyncio

    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    # Nobody tells that the attempt has ended: whoever gives it up may be in another thread.
    while (left := until - loop.time()) > 0 and not patience.has_ended:  # noqa: ASYNC110
        await asyncio.sleep(left if patience.attempt is None else min(left, LOOK_SECONDS))
