"""When to try again, as plain decisions: which answers are worth a repeat, and how long to pause before it. No I/O.

Repeating is always safe: what reads changes nothing, and what writes carries a request id by which the server knows a repeat.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from milepost.errors import MilepostError, UnavailableError

ATTEMPTS_MAX = 6
SECONDS_MAX = 8.0
PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 2.0
FEED_SECONDS_MAX = 60.0


class Retries:
    """The tries of one call. `pause` is asked after each failure: seconds to wait, or the error to raise.

    Args:
        attempts_max: tries in all.
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
        pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** (self._failures - 1)) * (
            0.5 + 0.5 * self._chance()
        )
        if wanted is not None and wanted.isdigit():
            pause = max(pause, min(float(wanted), self._seconds_max))
        elapsed = self._clock() - self._first_at
        if (
            self._attempts_max is not None and self._failures >= self._attempts_max
        ) or elapsed + pause > self._seconds_max:
            raise error
        return pause


def patient() -> Retries:
    """The tries of a subscription that was connected before: its server may be starting again."""
    return Retries(attempts_max=None, seconds_max=FEED_SECONDS_MAX)


def unreachable(api_url: str, reason: str) -> UnavailableError:
    """The error for a server that does not answer: names the address and the cure."""
    return UnavailableError(
        f"the Milepost server at {api_url} cannot be reached ({reason}); start one with `milepost dev`, or set MILEPOST_API_URL "
        f"and MILEPOST_SECRET_KEY for another"
    )
