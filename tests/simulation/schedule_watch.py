"""The witness of schedules: looks at the database after each group of commands.

Each time of a schedule fires once, over all servers, and not before it has come. Where nothing is lost or late, none is left out.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection

MICROSECONDS = 1_000_000


class ScheduleWatch:
    """The witness of the schedules of one simulation.

    Args:
        judge_time: told what has happened, when it should at the earliest, since when that is known, and now.
        clock_was_set: the wall clock was set, so times may come a second time, and some never.
        is_quiet: nothing is lost or late.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        fail: Callable[[str], None],
        judge_time: Callable[[str, int, int, int], None],
        clock_was_set: Callable[[], bool],
        is_quiet: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._fail = fail
        self._judge_time = judge_time
        self._clock_was_set = clock_was_set
        self._is_quiet = is_quiet
        # When each schedule was seen first, with when it was made and how often it fires.
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._fired: dict[str, list[int]] = defaultdict(list)
        self._runs: set[str] = set()

    def look(self, new_runs: Collection[str], now: int) -> None:
        """A group was committed. `new_runs` were made with the payload of a schedule."""
        for schedule_id, made_at, every in self._connection.execute(
            "SELECT id, anchor_at, every FROM schedules"
        ):
            self._seen.setdefault(schedule_id, (now, made_at, every))
        found = self._connection.execute(
            "SELECT run_id, schedule_id, scheduled_at FROM scheduled_runs"
        ).fetchall()
        fresh = {run_id: (schedule_id, at) for run_id, schedule_id, at in found if run_id not in self._runs}
        if fresh.keys() != set(new_runs):
            self._fail(f"schedules have fired {fresh}, and made {new_runs}")
        for run_id, (schedule_id, at) in sorted(fresh.items(), key=lambda item: item[1][1]):
            self._runs.add(run_id)
            self._judge(schedule_id, at, now)

    def _judge(self, schedule_id: str, at: int, now: int) -> None:
        seen_at, made_at, every = self._seen[schedule_id]
        earlier = self._fired[schedule_id]
        earlier.append(at)
        if self._clock_was_set():
            return
        what = f"{schedule_id} has fired for {(at - made_at) / MICROSECONDS} s after it was made"
        if at <= made_at or (at - made_at) % every:
            self._fail(f"{what}, and it fires every {every / MICROSECONDS} s")
        if len(earlier) > 1 and at <= earlier[-2]:
            self._fail(f"{what} after {earlier}")
        if self._is_quiet() and at - made_at != len(earlier) * every:
            self._fail(f"{what}, and is to do so every {every / MICROSECONDS} s; it has for {earlier}")
        self._judge_time(what, seen_at + at - made_at, seen_at, now)
