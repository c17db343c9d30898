"""The lease of a worker, as the worker knows it by itself.

The server gives up the runs of a worker that has been silent for longer than the lease. A machine that sleeps, or a process that is
stopped, does not notice how silent it was; so the time is taken from a clock that counts sleep, and a lease is reckoned from when a
request was sent, which is never later than when the server has heard it.
"""

import time
from collections.abc import Callable

# On Linux the clock of time.monotonic() stands still while the machine sleeps; elsewhere CLOCK_MONOTONIC goes on.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Seconds on a clock that nobody sets, that counts sleep, and that all processes of the machine share."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """Until when this worker's runs are its own, whatever happens to its connection.

    Attributes:
        seconds: how long it may be silent; without an end before it has registered.
        confirmed_at: when the latest request was sent that the server has carried out.
    """

    def __init__(self, clock: Callable[[], float] = lease_clock) -> None:
        self._clock = clock
        self.seconds = float("inf")
        self.confirmed_at = clock()

    def now(self) -> float:
        """The time on the clock of leases."""
        return self._clock()

    def is_over(self) -> bool:
        """True when the server may have given up what this worker holds: it begins nothing until a request has been answered."""
        return self.is_older(self.confirmed_at)

    def is_older(self, asked_at: float) -> bool:
        """True when an answer to what was asked then may not count any more."""
        return self._clock() - asked_at > self.seconds

    def confirm(self, asked_at: float) -> bool:
        """A request that was sent at `asked_at` was carried out; True when the lease was over in between, so that the server may have
        given up what was held before."""
        was_over = asked_at - self.confirmed_at > self.seconds
        self.confirmed_at = max(self.confirmed_at, asked_at)
        return was_over
