"""The time of a sandbox: it stands still until somebody sets it forward."""

import threading
import time


class Clock:
    """Microseconds since 1970. Each look is a microsecond later than the one before, so that what comes later is later. Thread-safe.

    Args:
        now: where it begins; the present time when left out.
    """

    def __init__(self, now: int | None = None) -> None:
        self._now = time.time_ns() // 1000 if now is None else now
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self._now += 1
            return self._now

    @property
    def now(self) -> int:
        """The time, without a look that moves it."""
        return self._now

    def jump_to(self, at: int) -> None:
        """Set it forward to this time; it is never set back."""
        with self._lock:
            self._now = max(self._now, at)
