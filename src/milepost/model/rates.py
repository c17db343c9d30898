"""Rates of queues: how many runs may start in a period. Pure rules; the engine keeps the starts in the row of the queue.

No window of the period, wherever it begins, has more starts than the rate says; so many may come at once when there were none before.
"""

import re

import msgspec

from milepost.errors import InvalidRequestError

COUNT_MAX = 1_000_000
# Starts within this part of a period are kept as one, at the time of the last of them: a rate is never exceeded, and after a burst up
# to this part of a period goes by unused.
PARTS = 100

PERIODS = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_FORM = re.compile(r"([0-9]{1,9})\s*/\s*([smhd])", re.ASCII)

Starts = list[tuple[int, int]]
"""When runs have started, microseconds since 1970, and how many each time; oldest first."""


class Rate(msgspec.Struct, frozen=True, gc=False):
    """At most `count` starts in any `period` (microseconds)."""

    count: int
    period: int

    def room(self, starts: Starts, now: int) -> int:
        """How many runs may start now."""
        return max(0, self.count - sum(count for at, count in starts if at + self.period > now))

    def next_at(self, starts: Starts, now: int) -> int | None:
        """When the next run may start; None: now."""
        live = [(min(at, now), count) for at, count in starts if at + self.period > now]
        left = sum(count for _, count in live)
        if left < self.count:
            return None
        for at, count in live:
            left -= count
            if left < self.count:
                return at + self.period
        raise AssertionError("when all have gone there is room")

    def with_start(self, starts: Starts, now: int) -> Starts:
        """The starts with one more, without those that no longer count."""
        # By a clock that was set back, what has started later has started now.
        kept = [(min(at, now), count) for at, count in starts if at + self.period > now]
        part = max(1, self.period // PARTS)
        if kept and kept[-1][0] // part == now // part:
            return [*kept[:-1], (now, kept[-1][1] + 1)]
        return [*kept, (now, 1)]


def parse_rate(text: str, *, field: str | None = None) -> Rate:
    """A rate as users write it: `100/m`, with s, m, h or d for second, minute, hour or day.

    Raises: InvalidRequestError.
    """
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if found is None or not 1 <= int(found[1]) <= COUNT_MAX:
        raise InvalidRequestError(
            f"a rate is a number from 1 to {COUNT_MAX:,} for each second, minute, hour or day, such as '10/s', '100/m', '500/h' or "
            f"'1000/d', not {text!r:.100}",
            field=field,
        )
    return Rate(int(found[1]), PERIODS[found[2]])
