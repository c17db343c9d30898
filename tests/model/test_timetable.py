"""When schedules fire: against a model that looks at every minute, and the rules for clocks that are moved."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.errors import InvalidRequestError
from milepost.model import timetable
from milepost.model.timetable import Cron, Every, latest_until, upcoming

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE
# Zones that move their clocks by an hour and by half an hour, north and south, at midnight, and not at all.
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "UTC",
]
# Around these days of 2026 the clocks of one of them are moved; the last one is an ordinary day.
DAYS = [
    "2026-03-29",
    "2026-10-25",
    "2026-03-08",
    "2026-11-01",
    "2026-04-05",
    "2026-10-04",
    "2026-09-06",
    "2026-03-22",
    "2026-06-17",
]


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def times(cron: Cron, after: str, count: int) -> list[str]:
    zone = ZoneInfo(cron.timezone)
    return [
        (EPOCH + timedelta(microseconds=at)).astimezone(zone).isoformat(timespec="minutes")
        for at in upcoming(cron, microseconds(after), count)
    ]


# --- clocks that are moved ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "zone", "after", "expected"),
    [
        # A time in the gap fires at its end, one that comes twice the first time.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00Z", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00Z", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00Z", ["2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00Z", ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"]),
        # Several in one gap are one moment.
        ("10,20,40 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-29T03:00+02:00", "2026-03-30T02:10+02:00"]),
        # One that counts moments goes on through both hours of the same name, and skips what is not there.
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:15Z",
            ["2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00", "2026-10-25T03:00+01:00"],
        ),
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:15Z", ["2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", ["2026-03-30T02:00+02:00"]),
        # The library alone begins at 03:30 here.
        ("*/10 3 * * *", "Australia/Lord_Howe", "2026-10-03T14:00Z", ["2026-10-04T03:00+11:00", "2026-10-04T03:10+11:00"]),
    ],
)  # fmt: skip
def test_daylight_saving(line: str, zone: str, after: str, expected: list[str]) -> None:
    assert times(Cron(line, zone), after.replace("Z", "+00:00"), len(expected)) == expected


def fields(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    return st.one_of(
        st.just("*"),
        st.integers(2, 20).map(lambda step: f"*/{step}"),
        number.map(str),
        st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}"),
        st.tuples(number, number).map(lambda pair: f"{pair[0]},{pair[1]}"),
    )


LINES = st.tuples(
    fields(0, 59),
    fields(0, 6),
    st.sampled_from(["*", "*", "1-15", "L"]),
    st.sampled_from(["*", "0", "MON-FRI"]),
).map(lambda parts: f"{parts[0]} {parts[1]} {parts[2]} * {parts[3]}")


def model(line: str, zone_name: str, begin: int, end: int) -> list[int]:
    """Every moment in (begin, end] at which the line fires, by looking at each minute of the clock on the wall."""
    zone, (minutes, hours, *_) = ZoneInfo(zone_name), line.split()
    counts_moments = minutes.startswith("*") or hours.startswith("*")

    def fires(wall: datetime) -> bool:
        return next(CronSim(line, wall - timedelta(minutes=1))) == wall

    found: list[int] = []
    seen: set[datetime] = set()
    before: datetime | None = None
    for at in range(begin - DAY // 4, end + 1, MINUTE):
        wall = (EPOCH + timedelta(microseconds=at)).astimezone(zone).replace(tzinfo=None)
        skipped = False
        if before is not None and not counts_moments:
            gap = int((wall - before) / timedelta(minutes=1)) - 1
            skipped = any(fires(before + timedelta(minutes=1 + minute)) for minute in range(max(0, gap)))
        if skipped or (fires(wall) and (counts_moments or wall not in seen)):
            found.append(at)
        seen.add(wall)
        before = wall
    return [at for at in found if at > begin]


@settings(max_examples=60, deadline=None)
@given(
    line=LINES,
    zone=st.sampled_from(ZONES),
    day=st.sampled_from(DAYS),
    minute=st.integers(-720, 720),
    seconds=st.integers(0, 59),
    until=st.integers(1, 720),
)
def test_it_fires_when_a_model_does(
    line: str, zone: str, day: str, minute: int, seconds: int, until: int
) -> None:
    begin = microseconds(f"{day}T00:00+00:00") + minute * MINUTE
    end = begin + DAY // 2
    expected = model(line, zone, begin, end)
    cron, at, found = Cron(line, zone), begin, list[int]()
    while (at := cron.next_after(at)) <= end:
        found.append(at)
    assert found == expected
    now = begin + until * MINUTE + seconds * 1_000_000
    if expected and expected[0] <= now:
        assert latest_until(cron, expected[0], now) == max(at for at in expected if at <= now)


def test_the_model_finds_a_line_that_fires_in_both_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    def moments(self: Cron, nominal: datetime):
        zone = ZoneInfo(self.timezone)
        for fold in (0, 1):
            yield nominal.replace(tzinfo=zone, fold=fold).astimezone(UTC)

    begin = microseconds("2026-10-24T22:00+00:00")
    expected = model("30 2 * * *", "Europe/Berlin", begin, begin + DAY)
    assert upcoming(Cron("30 2 * * *", "Europe/Berlin"), begin, 1) == expected[:1]
    assert len(expected) == 1
    monkeypatch.setattr(Cron, "_moments", moments)
    assert upcoming(Cron("30 2 * * *", "Europe/Berlin"), begin, 2)[1] < begin + DAY


# --- what is read and refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0 0 30 2 *", "never fires: no month that it names has a day 30"),
        ("0 0 31 4,6 *", "never fires"),
        ("*/5 * * * * *", "6 fields"),
        ("*/5 * * * * *", "every='10s'"),
        ("* * * *", "4 fields"),
        ("", "0 fields"),
        ("61 * * * *", "the minute cannot be '61'; it is 0 to 59"),
        ("0 24 * * *", "the hour cannot be '24'"),
        ("0 0 * FOO *", "the month cannot be 'FOO'"),
        ("0 0 * * 8", "the day of the week cannot be '8'"),
        ("0 0 ? * *", "the day of the month cannot be '?'"),
        ("*/0 * * * *", "the minute cannot be"),
        ("5-1 * * * *", "the minute cannot be"),
        ("@reboot", "there is no such name"),
        ("@dayly", "@daily"),
        ("0 " * 300, "at most 200 characters"),
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_told_why(line: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Cron(line)
    assert told in str(refused.value)
    assert refused.value.field == "cron"


@pytest.mark.parametrize(
    ("alias", "line"),
    [
        ("@hourly", "0 * * * *"),
        ("@DAILY", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
    ],
)
def test_names_stand_for_lines(alias: str, line: str) -> None:
    after = microseconds("2026-05-17T12:34:56+00:00")
    assert upcoming(Cron(alias), after, 5) == upcoming(Cron(line), after, 5)


def test_names_of_days_and_months_and_leap_days() -> None:
    assert times(Cron("0 9 29 feb *"), "2026-01-01T00:00+00:00", 2) == [
        "2028-02-29T09:00+00:00",
        "2032-02-29T09:00+00:00",
    ]
    assert times(Cron("0 9 * jan Mon"), "2026-01-01T00:00+00:00", 2) == [
        "2026-01-05T09:00+00:00",
        "2026-01-12T09:00+00:00",
    ]
    assert times(Cron("0 9 * * 7"), "2026-01-01T00:00+00:00", 1) == times(
        Cron("0 9 * * 0"), "2026-01-01T00:00+00:00", 1
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("Berlin", "Europe/Berlin"), ("europe/berlin", "Europe/Berlin"), ("Europe/Berln", "Europe/Berlin"),
     ("new york", "America/New_York"), ("Mars", "IANA"), ("", "IANA"), ("../etc/passwd", "IANA"), ("\0", "IANA")],
)  # fmt: skip
def test_a_zone_that_there_is_not_is_told_with_a_near_one(name: str, near: str) -> None:
    with pytest.raises(InvalidRequestError, match="there is no time zone") as refused:
        Cron("@daily", name)
    assert near in str(refused.value)
    assert refused.value.field == "timezone"


# --- every so often ----------------------------------------------------------------------------------------


def test_every_counts_from_its_anchor() -> None:
    every = Every("5m", 1000)
    assert every.next_after(0) == 1000 + 5 * MINUTE
    assert every.next_after(1000) == 1000 + 5 * MINUTE
    assert every.next_after(1000 + 5 * MINUTE) == 1000 + 10 * MINUTE
    assert latest_until(every, 1000 + 5 * MINUTE, 1000 + 23 * MINUTE) == 1000 + 20 * MINUTE


@pytest.mark.parametrize("period", ["0s", "999ms", "367d", "soon", -1])
def test_every_has_limits(period: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Every(period, 0)
    assert refused.value.field == "every"


def test_what_a_long_time_away_costs_does_not_grow_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    next_after: Callable[[Cron, int], int] = Cron.next_after

    def counted(self: Cron, at: int) -> int:
        nonlocal asked
        asked += 1
        return next_after(self, at)

    monkeypatch.setattr(timetable.Cron, "next_after", counted)
    cron = Cron("* * * * *", "Europe/Berlin")
    first = microseconds("2020-01-01T00:00+00:00")
    now = microseconds("2026-11-01T00:00:30+00:00")
    assert latest_until(cron, first, now) == now - 30_000_000
    assert asked < 10
