"""When a schedule fires: by a cron line in a time zone, or every so often from an anchor on. Pure: the time is always given.

A cron line names times of the wall clock. The library iterates over these; which moments they are is decided here, because zones move
their clocks:

- A time that the clock skips (spring) stands for the first moment after the gap.
- A time that comes twice (autumn) fires once, the first time it comes.
- A line whose minutes or hours begin with `*` counts moments: it fires in both hours that have the same name, and skips what is not
  there.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from milepost.errors import InvalidRequestError
from milepost.model.durations import duration_text, parse_duration

EVERY_MIN: Final = timedelta(seconds=1)
EVERY_MAX: Final = timedelta(days=366)
CRON_CHARACTERS_MAX: Final = 200
UPCOMING_MAX: Final = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# No zone moves its clock by more, but for a day on which a country has changed sides of the date line.
_MOVED_MAX = timedelta(hours=3)
_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS: Final = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day of the month": "1 to 31, L for the last day, LW for the last weekday",
    "month": "1 to 12 or JAN to DEC",
    "day of the week": "0 to 7 or SUN to SAT (0 and 7 are Sunday), with #1 to #5 or L behind it for one of the month",
}


class Cron:
    """A cron line in a time zone.

    Args:
        line: five fields, or `@daily` and its like; names of months and days in any case.
        timezone: a name of the IANA database, such as `Europe/Berlin`.
    Raises: InvalidRequestError that names what is wrong; also for a line that never fires.
    """

    def __init__(self, line: str, timezone: str = "UTC") -> None:
        self.line = line
        self.timezone = timezone
        self._zone = zone_of(timezone)
        self._expression = _checked(line)
        minutes, hours = self._expression.split()[:2]
        self._counts_moments = minutes.startswith("*") or hours.startswith("*")

    def __str__(self) -> str:
        return self.line

    def next_after(self, at: int) -> int:
        """The first moment after `at` at which it fires; both are microseconds since 1970."""
        moment = _EPOCH + timedelta(microseconds=at)
        found = self._quick(moment) or self._thorough(moment)
        if found is None:
            raise InvalidRequestError(
                f"cron {self.line!r} does not fire any more after {moment}", field="cron"
            )
        return (found - _EPOCH) // _MICROSECOND

    def _quick(self, moment: datetime) -> datetime | None:
        """The answer where no clock is moved between `moment` and it; None where one may be."""
        offset = (moment - _MOVED_MAX).astimezone(self._zone).utcoffset()
        assert offset is not None, "the zone has an offset"
        wall = (moment + offset).replace(tzinfo=None)
        nominal = next(CronSim(self._expression, wall), None)
        if nominal is None:
            return None
        found = nominal.replace(tzinfo=UTC) - offset
        # A zone that moves its clock within these hours, or has moved it since.
        for near in (moment, found - _MOVED_MAX, found, found + _MOVED_MAX):
            if near.astimezone(self._zone).utcoffset() != offset:
                return None
        return found

    def _thorough(self, moment: datetime) -> datetime | None:
        """Look at all times of the wall clock around, because they need not come in the order of the moments."""
        wall = moment.astimezone(self._zone).replace(tzinfo=None) - 2 * _MOVED_MAX
        best: datetime | None = None
        last: datetime | None = None
        for nominal in CronSim(self._expression, wall):
            if last is not None and nominal > last:
                break
            for found in self._moments(nominal):
                if found > moment and (best is None or found < best):
                    best = found
                    last = nominal + 2 * _MOVED_MAX
        return best

    def _moments(self, nominal: datetime) -> Iterator[datetime]:
        """Which moments a time of the wall clock stands for."""
        first = _moment(nominal, self._zone, fold=0)
        if first.astimezone(self._zone).replace(tzinfo=None) != nominal:
            if not self._counts_moments:
                yield _end_of_gap(nominal, self._zone)
            return
        yield first
        if self._counts_moments:
            second = _moment(nominal, self._zone, fold=1)
            if second != first:
                yield second


class Every:
    """A moment every so often: the anchor, and each whole multiple of the period after it.

    Args:
        period: as of `parse_duration`, a second to 366 days.
        anchor: microseconds since 1970; it is no moment itself.
    Raises: InvalidRequestError.
    """

    timezone = "UTC"

    def __init__(self, period: timedelta | float | str, anchor: int) -> None:
        try:
            duration = parse_duration(period)
        except ValueError as error:
            raise InvalidRequestError(f"every: {error}", field="every") from None
        if not EVERY_MIN <= duration <= EVERY_MAX:
            raise InvalidRequestError(
                f"every is a second to 366 days, not {duration_text(duration)}", field="every"
            )
        self.period = duration // _MICROSECOND
        self.anchor = anchor

    def __str__(self) -> str:
        return duration_text(timedelta(microseconds=self.period))

    def next_after(self, at: int) -> int:
        """The first moment after `at`."""
        return self.anchor + max(1, (at - self.anchor) // self.period + 1) * self.period


Timetable = Cron | Every


def latest_until(timetable: Timetable, first: int, at: int) -> int:
    """The last moment of a timetable that is not after `at`. `first` is one of its moments, and is not after `at` either."""
    if isinstance(timetable, Every):
        return max(first, timetable.anchor + (at - timetable.anchor) // timetable.period * timetable.period)
    # Looked for backwards in growing steps, so that what a long time away costs does not grow with the moments in it.
    back = 60_000_000
    found = first
    while back < at - first:
        after = timetable.next_after(at - back)
        if after <= at:
            found = max(found, after)
            break
        back *= 2
    while (following := timetable.next_after(found)) <= at:
        found = following
    return found


def upcoming(timetable: Timetable, after: int, count: int) -> list[int]:
    """The next moments after a time."""
    found: list[int] = []
    for _ in range(count):
        after = timetable.next_after(after)
        found.append(after)
    return found


@lru_cache(maxsize=1024)
def _checked(line: str) -> str:
    """The line as five fields. Raises InvalidRequestError."""
    shown = f"cron {line!r:.100}"
    text = line.strip()
    if text.startswith("@"):
        found = _ALIASES.get(text.lower())
        if found is None:
            why = (
                "it would fire at the start of a machine, and there are many"
                if text.lower() == "@reboot"
                else ""
            )
            raise _refused(
                f"{shown}: there is no such name{f' ({why})' if why else ''}; use one of {', '.join(_ALIASES)}"
            )
        text = found
    fields = text.upper().split()
    if len(text) > CRON_CHARACTERS_MAX:
        raise _refused(f"a cron line has at most {CRON_CHARACTERS_MAX} characters, not {len(text):,}")
    if len(fields) == 6:
        raise _refused(
            f"{shown} has 6 fields; a cron line has 5: {', '.join(_FIELDS)}. It has no seconds: for what comes more often than "
            "once in a minute use every, such as every='10s'"
        )
    if len(fields) != len(_FIELDS):
        raise _refused(f"{shown} has {len(fields)} fields; a cron line has 5: {', '.join(_FIELDS)}")
    for index, (name, takes) in enumerate(_FIELDS.items()):
        # Each by itself, so that the message can name it.
        alone = ["*"] * len(_FIELDS)
        alone[index] = fields[index]
        try:
            CronSim(" ".join(alone), datetime(2024, 1, 1))
        except CronSimError:
            raise _refused(
                f"{shown}: the {name} cannot be {fields[index]!r:.60}; it is {takes}, or *, with , - and /"
            ) from None
    expression = " ".join(fields)
    try:
        fires = next(CronSim(expression, datetime(2024, 1, 1)), None) is not None
    except CronSimError:
        fires = False
    if not fires:
        raise _refused(f"{shown} never fires: no month that it names has a day {fields[2]}")
    return expression


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name. Raises InvalidRequestError, with the name that may be meant."""
    try:
        if name in available_timezones():
            return ZoneInfo(name)
    except (ValueError, OSError):
        pass
    known = sorted(available_timezones())
    by_lower = {zone.lower(): zone for zone in known}
    near = by_lower.get(name.lower().replace(" ", "_"))
    if near is None:
        # `Berlin` is what people write who mean `Europe/Berlin`.
        cities = [zone for zone in known if zone.lower().rpartition("/")[2] == name.lower().replace(" ", "_")]
        close = cities or get_close_matches(name, known, 1, 0.7)
        near = close[0] if close else None
    advice = (
        f"; did you mean {near!r}?" if near else "; use a name of the IANA database, such as 'Europe/Berlin'"
    )
    raise InvalidRequestError(f"there is no time zone {name!r:.100}{advice}", field="timezone")


def _moment(nominal: datetime, zone: tzinfo, *, fold: int) -> datetime:
    return nominal.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _end_of_gap(nominal: datetime, zone: tzinfo) -> datetime:
    """The first moment after the gap of the wall clock in which this time is."""
    # Read by the offset before the gap it is a moment after it, and by the one after the gap a moment before it.
    late, early = _moment(nominal, zone, fold=0), _moment(nominal, zone, fold=1)
    before = early.astimezone(zone).utcoffset()
    while late - early > _MICROSECOND:
        middle = early + (late - early) // 2
        if middle.astimezone(zone).utcoffset() == before:
            early = middle
        else:
            late = middle
    return late


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, field="cron")
