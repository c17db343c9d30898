"""Waiting in a stream: for something to happen, and for what a reader thread finds in the store."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from milepost.engine.measures import SECONDS, Histogram

PING_SECONDS = 10.0

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


# Each commit sets one for each of its watchers.
_set, _clear = asyncio.Event.set, asyncio.Event.clear


class Wake(asyncio.Event):
    """An event that remembers which commit has set it, so that it is known how long that took to be told.

    `clear` begins to tell; `sent` says that it has been told.
    """

    def __init__(self, lags: Lags, seconds: Histogram) -> None:
        super().__init__()
        self._lags = lags
        self._seconds = seconds
        self._waiting_since: float | None = None
        self._telling_since: float | None = None

    def set(self) -> None:
        """There is something to tell."""
        if self._waiting_since is None:
            self._waiting_since = self._lags.committed_at
        _set(self)

    def clear(self) -> None:
        """What there is will be told now."""
        if self._waiting_since is not None:
            self._telling_since, self._waiting_since = self._waiting_since, None
        _clear(self)

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
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    return True
