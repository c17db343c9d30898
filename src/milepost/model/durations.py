"""Durations and delays as users write them: `timedelta`, seconds, a text such as `90s`, `1h30m`, `2 days`, or a time."""

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast

_UNITS = {
    "ms": "milliseconds", "millisecond": "milliseconds", "milliseconds": "milliseconds",
    "s": "seconds", "sec": "seconds", "second": "seconds", "seconds": "seconds",
    "m": "minutes", "min": "minutes", "minute": "minutes", "minutes": "minutes",
    "h": "hours", "hr": "hours", "hour": "hours", "hours": "hours",
    "d": "days", "day": "days", "days": "days",
    "w": "weeks", "week": "weeks", "weeks": "weeks",
}  # fmt: skip
_PART = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*([a-z]+)\s*", re.ASCII)
_PLAIN = re.compile(r"\s*\d{1,12}(?:\.\d{1,9})?\s*", re.ASCII)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Delay(NamedTuple):
    """A pause in milliseconds, or a time in microseconds since 1970; one of the two."""

    pause_ms: int | None = None
    at: int | None = None

    def due_at(self, now: int) -> int:
        """When it is over, if it begins now; microseconds since 1970."""
        return now + (self.pause_ms or 0) * 1000 if self.at is None else self.at


def parse_delay(text: str) -> Delay:
    """A delay as it travels: a duration (`10m`), or a time in ISO 8601 with its zone. Raises ValueError."""
    try:
        return Delay(pause_ms=parse_duration(text) // timedelta(milliseconds=1))
    except ValueError:
        if text[:4].isdigit() and text[4:5] == "-":
            return Delay(at=_microseconds(text))
        raise


def delay_text(value: timedelta | float | str | datetime) -> str:
    """A delay of a user as it travels. Raises ValueError; a time needs a zone."""
    if isinstance(value, datetime):
        return _with_zone(value, repr(value)).isoformat()
    if isinstance(value, str):
        parse_delay(value)
        return value
    return f"{parse_duration(value) // timedelta(milliseconds=1)}ms"


def _microseconds(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:100]!r} is no time: write it as 2030-01-31T12:00:00Z, or a pause like 10m"
        ) from None
    return (_with_zone(at, text) - _EPOCH) // timedelta(microseconds=1)


def _with_zone(at: datetime, text: str) -> datetime:
    if at.utcoffset() is None:
        raise ValueError(f"the time {text[:100]} has no time zone: nobody could say when that is")
    return at


def parse_duration(value: timedelta | float | str) -> timedelta:
    """A duration, zero or longer.

    Args:
        value: a `timedelta`, a number of seconds, or a text: numbers with the units ms, s, m, h, d, w or their English words, one
            after the other (`1h30m`), or a plain number of seconds.
    Raises: ValueError with what is wrong, and what would be right.
    """
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, str):
        duration = _of_text(value)
    elif isinstance(value, bool) or not isinstance(cast("object", value), int | float):
        raise ValueError(
            f'a duration is a timedelta, seconds as a number, or a text like "10m", not {type(value).__name__}'
        )
    else:
        try:
            duration = timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ValueError(f"{value!r} seconds are no duration") from None
    if duration < timedelta(0):
        raise ValueError(f"a duration cannot be negative: {value!r}")
    return duration


def _of_text(text: str) -> timedelta:
    wrong = f'{text[:100]!r} is no duration: write it like "30s", "10m", "1h30m" or "2d"'
    if _PLAIN.fullmatch(text):
        return timedelta(seconds=float(text))
    total, place = timedelta(0), 0
    lowered = text.lower()
    while place < len(lowered):
        part = _PART.match(lowered, place)
        if part is None or part[2] not in _UNITS:
            raise ValueError(wrong)
        try:
            total += timedelta(**{_UNITS[part[2]]: float(part[1])})
        except OverflowError:
            raise ValueError(f"{text[:100]!r} is too long for a duration") from None
        place = part.end()
    if not place:
        raise ValueError(wrong)
    return total


def duration_text(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as this duration: `1h30m`."""
    rest = duration // timedelta(microseconds=1)
    parts: list[str] = []
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{rest / 1000:g}ms")
    return "".join(parts) or "0s"
