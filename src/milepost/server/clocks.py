"""The clocks of a server: the wall's, one that nobody sets, and on PostgreSQL that of the database, which its servers share."""

import time
from collections.abc import Callable


def now_microseconds() -> int:
    """The clock of a server: microseconds since 1970."""
    return time.time_ns() // 1000


# Where there is one, a clock that goes on while the machine sleeps: sleep is no setting of the wall clock.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_microseconds() -> int:
    """The clock by which a server waits: nobody sets it."""
    return time.clock_gettime_ns(_STEADY) // 1000


class DatabaseClock:
    """The database's wall clock, read now and then and carried on by the steady one in between. So servers agree, however far apart
    their own clocks are.

    Args:
        ask: the database's time, microseconds since 1970.
    """

    def __init__(self, ask: Callable[[], int], steady: Callable[[], int]) -> None:
        self._ask = ask
        self._steady = steady
        self._ahead = 0
        self.read()

    def __call__(self) -> int:
        """Microseconds since 1970. Thread-safe."""
        return self._steady() + self._ahead

    def read(self) -> None:
        """Ask the database. Raises UnavailableError."""
        before = self._steady()
        told = self._ask()
        # It was told at some moment in between.
        self._ahead = told - (before + self._steady()) // 2
