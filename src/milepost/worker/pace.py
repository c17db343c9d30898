"""How many runs to claim beyond the free slots, so that short runs need not wait for the next claim.

A claim takes a few milliseconds; where hundreds of runs end in that time, the slots would stand empty. So a worker claims ahead as
many runs as have lately ended within `WINDOW_SECONDS`: they start about that much later at most. Where runs are long it claims
nothing ahead, and other workers get them.
"""

WINDOW_SECONDS = 0.1
AHEAD_MAX = 900


class Pace:
    """Counts ends of runs over time. Times are seconds of any steady clock."""

    def __init__(self) -> None:
        self._window_began_at = 0.0
        self._ended = 0
        self._ended_before = 0

    def ended(self, now: float) -> None:
        """A run has ended."""
        self._turn(now)
        self._ended += 1

    def ahead(self, now: float) -> int:
        """How many runs to hold beyond those that have a slot."""
        self._turn(now)
        return min(AHEAD_MAX, max(self._ended, self._ended_before))

    def _turn(self, now: float) -> None:
        windows = int((now - self._window_began_at) / WINDOW_SECONDS)
        if windows >= 1:
            self._ended_before = self._ended if windows == 1 else 0
            self._ended = 0
            self._window_began_at = now
