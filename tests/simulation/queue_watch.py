"""The witness of the queues: which are paused, and how many of their runs may execute, after each group of commands.

Nothing of a paused queue is claimed, and a limit is not exceeded by what comes after it was set.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.watch import Row


class QueueWatch:
    """The witness of the queues of one simulation.

    Args:
        limits: how many runs of a queue may execute at once, for the queues whose tasks name a limit.
    """

    def __init__(
        self, connection: sqlite3.Connection, fail: Callable[[str], None], limits: Mapping[str, int]
    ) -> None:
        self._connection = connection
        self._fail = fail
        self._named = limits
        self._paused: set[str] = set()
        self._overrides: dict[str, int] = {}
        # As the group before has left them.
        self._paused_before: set[str] = set()
        self._overrides_before: dict[str, int] = {}
        self._highest: dict[str, int] = dict(limits)

    def look(self) -> None:
        """A group was committed."""
        self._paused_before, self._overrides_before = self._paused, self._overrides
        rows = self._connection.execute("SELECT name, is_paused, concurrency_override FROM queues").fetchall()
        self._paused = {name for name, is_paused, _ in rows if is_paused}
        self._overrides = {name: override for name, _, override in rows if override is not None}
        for name, override in self._overrides.items():
            self._highest[name] = max(self._highest[name], override)

    def is_paused(self, name: str) -> bool:
        return name in self._paused

    def limit(self, name: str) -> float:
        """How many may execute now."""
        return self._overrides.get(name, self._named.get(name, math.inf))

    def highest(self, name: str) -> float:
        """The highest limit there ever was: code may have been let go on while it held."""
        return self._highest.get(name, math.inf)

    def judge_claim(self, row: Row) -> None:
        """A run was claimed. Within the group the pause may have come after it, or have ended before it."""
        if row.queue in self._paused and row.queue in self._paused_before:
            self._fail(f"{row.id} was claimed, and {row.queue} is paused")

    def judge_rest(self) -> None:
        """Nothing happens any more, and who has paused a queue or set its limit has taken that back."""
        self.look()
        assert not self._paused, f"{self._paused} were let go on, and are paused"
        assert not self._overrides, f"the limits of {self._overrides} were reset, and are not"

    def judge_occupancy(self, before: Iterable[Row], rows: Iterable[Row]) -> None:
        """No more execute than may, but for those that did before there was so low a limit."""
        executed, executing = self._executing(before), self._executing(rows)
        for (name, key), count in executing.items():
            earlier = self._overrides_before.get(name, self._named.get(name, math.inf))
            most = max(self.limit(name), earlier, executed[name, key])
            if count > most:
                self._fail(f"{count} execute in {name} with key {key}, of which {most} may")

    def _executing(self, rows: Iterable[Row]) -> Counter[tuple[str, str | None]]:
        return Counter((row.queue, row.concurrency_key) for row in rows if row.status == "EXECUTING")
