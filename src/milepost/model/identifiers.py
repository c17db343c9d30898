"""Ids: a prefix that names the kind, then time, then chance. Ids of one process grow strictly, so an id is a list position too.

They are no secrets: whoever may use one must show that by other means.
"""

import random
import threading

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two characters at a time: an id costs seven look-ups and no loop over bits.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_CHANCE_BITS = 70
# The start leaves room above it, so that counting on within a millisecond cannot run over.
_START_BITS = _CHANCE_BITS - 2
_STEP_BITS = 24


class Identifiers:
    """Makes ids. Thread-safe; ids of one instance grow strictly, also when the clock stands still or jumps back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.SystemRandom()
        self._milliseconds = -1
        self._time = ""
        self._chance = 0

    def make(self, prefix: str, now: int) -> str:
        """A new id such as `run_01jd...`; `now` is microseconds since 1970."""
        milliseconds = now // 1000
        with self._lock:
            if milliseconds > self._milliseconds:
                self._milliseconds = milliseconds
                self._time = _time(milliseconds)
                self._chance = self._random.getrandbits(_START_BITS)
            else:
                self._chance += 1 + random.getrandbits(_STEP_BITS)
            chance = self._chance
            time = self._time
        pairs = _PAIRS
        return (
            f"{prefix}_{time}{pairs[chance >> 60]}{pairs[(chance >> 50) & 1023]}{pairs[(chance >> 40) & 1023]}"
            f"{pairs[(chance >> 30) & 1023]}{pairs[(chance >> 20) & 1023]}{pairs[(chance >> 10) & 1023]}{pairs[chance & 1023]}"
        )


def lowest_id(prefix: str, at: int) -> str:
    """No id made at or after `at` (microseconds since 1970, not before) comes before this one."""
    return f"{prefix}_{_time(max(0, at // 1000))}"


def _time(milliseconds: int) -> str:
    return "".join(_PAIRS[(milliseconds >> shift) & 1023] for shift in (40, 30, 20, 10, 0))
