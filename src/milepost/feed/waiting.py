"""Waiting in a stream: for something to happen, and for what a reader thread finds in the store."""

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from milepost.engine.measures import SECONDS, Histogram

PING_SECONDS = 10.0
# So many streams are woken before the event loop turns to what else there is: about half a millisecond of telling.
AT_ONCE = 32

_Result = TypeVar("_Result")


class Lags:
    """How long it takes from a commit, or from hearing of another server's, until what it has changed was sent to a subscriber.

    Attributes:
        committed_at: of the announcement that is being taken in, on the clock of `perf_counter`; None between two of them.
    """

    def __init__(self) -> None:
        self.committed_at: float | None = None
        self.of_runs = Histogram(SECONDS)
        self.of_streams = Histogram(SECONDS)
        self.of_batches = Histogram(SECONDS)
        self.of_inboxes = Histogram(SECONDS)


class Turns:
    """Wakes the streams of one event loop, a few in each round of it. Who comes behind thousands that are told of a commit does not
    wait for all of them: above all the worker who has reported it, and could be at work again."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._line: deque[asyncio.Future[bool]] = deque()
        self._has_begun = False

    def wake(self, waiter: asyncio.Future[bool]) -> None:
        """Let it go on, now or within one of the next rounds."""
        if not self._has_begun:
            self._has_begun = True
            waiter.get_loop().call_soon(self._next_round, waiter.get_loop())
        if self._left:
            self._left -= 1
            waiter.set_result(True)
        else:
            self._line.append(waiter)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = AT_ONCE
        while self._line and self._left:
            waiter = self._line.popleft()
            if not waiter.done():
                self._left -= 1
                waiter.set_result(True)
        self._has_begun = self._left < AT_ONCE
        if self._has_begun:
            loop.call_soon(self._next_round, loop)


# Each commit sets one for each of its watchers.
_set, _clear = asyncio.Event.set, asyncio.Event.clear


class Wake(asyncio.Event):
    """An event that remembers which commit has set it, so that it is known how long that took to be told.

    `clear` begins to tell; `sent` says that it has been told. One stream waits for it, with `within`, and closes it at its end.
    """

    def __init__(self, lags: Lags, seconds: Histogram, turns: Turns) -> None:
        super().__init__()
        self._lags = lags
        self._seconds = seconds
        self._turns = turns
        self._waiting_since: float | None = None
        self._telling_since: float | None = None
        self._waiter: asyncio.Future[bool] | None = None
        # Until when the stream waits, on the loop's clock, and when that is looked at: a stream that is told something all the time
        # sets no timer each time.
        self._until = 0.0
        self._look_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """There is something to tell."""
        if self._waiting_since is None:
            self._waiting_since = self._lags.committed_at
        if self.is_set():
            # Whoever waits is about to be woken.
            return
        _set(self)
        if self._waiter is not None and not self._waiter.done():
            self._turns.wake(self._waiter)

    def clear(self) -> None:
        """What there is will be told now."""
        if self._waiting_since is not None:
            self._telling_since, self._waiting_since = self._waiting_since, None
        _clear(self)

    async def within(self, seconds: float) -> bool:
        """Wait for it; False when it was quiet for so long."""
        if self.is_set():
            return True
        loop = asyncio.get_running_loop()
        self._until = loop.time() + seconds
        if self._timer is None or self._look_at > self._until:
            self._set_timer(loop)
        self._waiter = loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = self._until
        self._timer = loop.call_at(self._until, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._until > loop.time():
            self._set_timer(loop)
        else:
            self._waiter.set_result(False)

    def close(self) -> None:
        """Nobody waits for it any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sent(self) -> None:
        """It has been handed to the subscriber's connection."""
        if self._telling_since is not None:
            self._seconds.observe(perf_counter() - self._telling_since)
            self._telling_since = None


async def in_reader(read: Callable[[], _Result]) -> _Result:
    """What a reading of the store gives, done in another thread."""
    return await asyncio.to_thread(read)


async def woken(wake: asyncio.Event, seconds: float = PING_SECONDS) -> bool:
    """Wait for the event; False when it was quiet for so long that the connection should be shown to live."""
    if type(wake) is Wake:
        # Whoever waits for more has sent what there was.
        wake.sent()
        return await wake.within(seconds)
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    return True
