"""The witness of waitpoints: looks at the database after each group of commands, and at what those are told who wait and complete.

A waitpoint ends once: a time when it is over, a token by the first who completes it, or when its time is over. Nothing of it changes
after that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from milepost.engine.commands import Command, CompleteToken
from milepost.model.durations import parse_duration

MICROSECONDS = 1_000_000


class Waitpoint(NamedTuple):
    """A waitpoint as it is committed."""

    id: str
    kind: str
    status: str
    created_at: int
    timeout_at: int | None
    run_id: str | None
    key: str | None
    output: str | None


_SELECT = f"SELECT {', '.join(Waitpoint._fields)} FROM waitpoints"


class WaitWatch:
    """The witness of the waitpoints of one simulation.

    Attributes:
        rows: each waitpoint as it is.

    Args:
        judge_time: told what has happened, when it should at the earliest, since when that is known, and now.
        ended_at: is told when each has ended, on the clock that nobody sets.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        fail: Callable[[str], None],
        judge_time: Callable[[str, int, int, int], None],
        ended_at: dict[str, int],
    ) -> None:
        self._connection = connection
        self._fail = fail
        self._judge_time = judge_time
        self.rows: dict[str, Waitpoint] = {}
        self._seen_at: dict[str, int] = {}
        self._places: set[tuple[str, ...]] = set()
        self._ended_at = ended_at

    def look(self, commands: Sequence[Command], now: int) -> None:
        """A group was committed, or another one before it."""
        rows = {row[0]: Waitpoint(*row) for row in self._connection.execute(_SELECT)}
        if not self.rows.keys() <= rows.keys():
            self._fail(f"waitpoints have vanished: {self.rows.keys() - rows.keys()}")
        for row in rows.values():
            before = self.rows.get(row.id)
            if before == row:
                continue
            if before is None:
                self._seen_at[row.id] = now
                self._judge_new(row)
            elif before.status != "WAITING":
                self._fail(f"{before} has ended, and is {row}")
            if row.status != "WAITING":
                self._ended_at[row.id] = now
                self._judge_end(row, commands, now)
        self.rows = rows

    def _judge_new(self, row: Waitpoint) -> None:
        """A later attempt of a run finds what an earlier one has waited for at the same place."""
        if row.run_id is None or row.key is None:
            self._fail(f"{row} was made at no place of a run")
            return
        place = tuple(row.key.split("/")[:5])
        if place in self._places or place[1] != row.run_id:
            self._fail(f"{row} was made a second time at its place")
        self._places.add(place)

    def _judge_end(self, row: Waitpoint, commands: Sequence[Command], now: int) -> None:
        if row.kind == "TOKEN" and row.status == "COMPLETED":
            said = [
                one.output for one in commands if isinstance(one, CompleteToken) and one.token_id == row.id
            ]
            if row.output not in said:
                self._fail(f"{row} is completed, and was to be with {said}")
            return
        if (row.kind, row.status) not in (
            ("TIME", "COMPLETED"),
            ("TOKEN", "TIMED_OUT"),
        ) or row.output is not None:
            self._fail(f"{row} has ended by itself")
            return
        seen_at = self._seen_at[row.id]
        if row.timeout_at is None:
            self._fail(f"the time of {row} is over, and it has none")
        elif row.kind == "TIME":
            # Its place in the run says for how long it was to be.
            assert row.key is not None
            seconds = parse_duration(row.key.split("/")[3]).total_seconds()
            self._judge_time(f"{row} is over", seen_at + round(seconds * MICROSECONDS), seen_at, now)
        else:
            self._judge_time(f"{row} is over", seen_at + row.timeout_at - row.created_at, seen_at, now)

    def told_end(self, who: str, token_id: str, value: object) -> None:
        """Who waited for a token has been told its end: `value`, None for one that has timed out."""
        row = self.rows[token_id]
        output = None if row.output is None else msgspec.json.decode(row.output)
        if row.status == "WAITING" or (row.status == "COMPLETED") != (value is not None) or output != value:
            self._fail(f"{who} was told that {token_id} has ended with {value!r}, and it is {row}")

    def told_completed(self, who: str, token_id: str, value: str, *, is_first: bool) -> None:
        """Who completes a token has been told whether that was in time."""
        row = self.rows[token_id]
        is_so = row.status == "COMPLETED" and msgspec.json.decode(row.output or "null") == value
        if row.status == "WAITING" or is_so != is_first:
            self._fail(f"{who} was told {is_first=} of {value!r} for {token_id}, and it is {row}")
