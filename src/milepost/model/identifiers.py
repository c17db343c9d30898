"""Ids: a prefix that names the kind, then time, then chance. Ids of one process grow strictly, so an id is also a list position."""

import secrets
import threading

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_BITS = 48
_CHANCE_BITS = 77
_CHANCE_MAX = (1 << _CHANCE_BITS) - 1
# Room above the random start, so that counting on within a millisecond cannot run over.
_START_BITS = _CHANCE_BITS - 2
_CHARACTERS = (_TIME_BITS + _CHANCE_BITS) // 5


class Identifiers:
    """Makes ids. Thread-safe; ids of one instance grow strictly, also when the clock stands still or jumps back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._milliseconds = 0
        self._chance = 0

    def make(self, prefix: str, now: int) -> str:
        """A new id such as `run_01jd...`; `now` is microseconds since 1970."""
        milliseconds = now // 1000
        with self._lock:
            if milliseconds > self._milliseconds:
                self._milliseconds = milliseconds
                self._chance = secrets.randbits(_START_BITS)
            elif self._chance < _CHANCE_MAX:
                self._chance += 1 + secrets.randbits(24)
            number = (self._milliseconds << _CHANCE_BITS) | self._chance
        characters = [_ALPHABET[(number >> shift) & 31] for shift in range(5 * (_CHARACTERS - 1), -1, -5)]
        return f"{prefix}_{''.join(characters)}"
