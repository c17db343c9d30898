"""When to try again, as plain decisions: which answers are worth a repeat, and how long to pause before it. No I/O.

Repeating is always safe: what reads changes nothing, and what writes carries a request id by which the server knows a repeat.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from milepost.client.calling import CallingAttempt
from milepost.errors import AttemptOverError, MilepostError, UnavailableError

ATTEMPTS_MAX = 6
SECONDS_MAX = 8.0
PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 2.0
# A server may ask for a longer pause, but not for a longer one than this.
WANTED_SECONDS_MAX = 8.0
FEED_SECONDS_MAX = 60.0
# A server that has held a request for so long was there: connecting takes less, or is given up.
HELD_SECONDS = 4.0
# Whoever waits looks so often whether the attempt that waits is still under way.
LOOK_SECONDS = 0.25
# Beyond, the pauses grow no more.
_DOUBLINGS_MAX = 16


class Retries:
    """The tries of one call. `pause` is asked after each failure: seconds to wait, or the error to raise.

    Args:
        attempts_max: tries in all; None for any number.
        seconds_max: no further try begins later than this after the first.
    """

    def __init__(
        self,
        *,
        attempts_max: int | None = ATTEMPTS_MAX,
        seconds_max: float = SECONDS_MAX,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._attempts_max = attempts_max
        self._seconds_max = seconds_max
        self._clock = clock
        self._chance = chance
        self._failures = 0
        self._first_at = self._clock()

    def pause(self, error: MilepostError, *, wanted: str | None = None) -> float:
        """Seconds to wait before the next try. Raises `error` when there is none.

        Args:
            wanted: the server's `retry-after`, in seconds.
        """
        self._failures += 1
        pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** min(self._failures - 1, _DOUBLINGS_MAX)) * (
            0.5 + 0.5 * self._chance()
        )
        if wanted is not None and wanted.isdigit():
            pause = max(pause, min(float(wanted), WANTED_SECONDS_MAX))
        elapsed = self._clock() - self._first_at
        if (
            self._attempts_max is not None and self._failures >= self._attempts_max
        ) or elapsed + pause > self._seconds_max:
            raise error
        return pause


def patient() -> Retries:
    """The tries of whoever has been connected, and waits for something: the server may be starting again."""
    return Retries(attempts_max=None, seconds_max=FEED_SECONDS_MAX)


def endless() -> Retries:
    """The tries of a call inside of a run: it waits for the server as long as the run does."""
    return Retries(attempts_max=None, seconds_max=math.inf)


class Patience:
    """How long one call, or one subscription, waits for a server that is away.

    Outside of runs it tries for a while. Inside of a run it waits until it is answered, as the reports of the run do, or until the
    attempt is over.

    Args:
        attempt: the attempt that the call is part of.
        until: on the monotonic clock; past it the caller waits no longer.
    """

    def __init__(self, attempt: CallingAttempt | None, until: float | None = None) -> None:
        self.attempt = attempt
        self.until = until
        self._retries = Retries() if attempt is None else endless()

    @property
    def has_ended(self) -> bool:
        """True when the attempt that makes the call is over."""
        return self.attempt is not None and self.attempt.has_ended

    def heed(self) -> None:
        """Raise what ends the code that waits, where its run is to end."""
        if self.attempt is not None:
            self.attempt.heed()

    def seconds_of(self, most: float) -> float:
        """How long to wait for the server now, at most `most`. Raises AttemptOverError; TimeoutError when the time is over."""
        self._check(None)
        if self.until is None:
            return most
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(most, left)

    def connected(self) -> None:
        """The server has been there: it is waited for longer than one that never was."""
        self._retries = patient() if self.attempt is None else endless()

    def pause(self, failure: MilepostError, *, wanted: str | None = None) -> float:
        """Seconds to wait before the next try. Raises `failure` when there is none; AttemptOverError, TimeoutError as `seconds_of`."""
        self._check(failure)
        return self.seconds_of(self._retries.pause(failure, wanted=wanted))

    def _check(self, failure: MilepostError | None) -> None:
        if self.attempt is None or not self.attempt.has_ended:
            return
        run_id, _, number = self.attempt.attempt_name.rpartition(":")
        message = f"attempt {number} of run {run_id} is over, so nothing that it does counts any more"
        if failure is None:
            raise AttemptOverError(f"{message}: the call was not made")
        raise AttemptOverError(f"{message}: the call was given up ({failure})")


def unreachable(api_url: str, reason: str) -> UnavailableError:
    """The error for a server that does not answer: names the address and the cure."""
    return UnavailableError(
        f"the Milepost server at {api_url} cannot be reached ({reason}); start one with `milepost dev`, or set MILEPOST_API_URL "
        f"and MILEPOST_SECRET_KEY for another"
    )
