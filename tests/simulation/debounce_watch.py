"""The witness of debounced triggers: looks at the runs after each group of commands.

All triggers with one key mean one run for as long as it is delayed, and each puts it off, however often its request comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from milepost.engine.commands import Command, Trigger

if TYPE_CHECKING:
    from simulation.watch import Row

KEY = "debounced"
SECONDS = 2
MICROSECONDS = 1_000_000


class DebounceWatch:
    """The witness of the runs with one debounce key.

    Args:
        is_debounced: whether a run was triggered with the key.
        put_off: told which run is due at what time on the steady clock from now on.
        clock_was_set: the wall clock was set, so all times may have moved.
    """

    def __init__(
        self,
        fail: Callable[[str], None],
        is_debounced: Callable[[str], bool],
        put_off: Callable[[str, int], None],
        clock_was_set: Callable[[], bool],
    ) -> None:
        self._fail = fail
        self._is_debounced = is_debounced
        self._put_off = put_off
        self._clock_was_set = clock_was_set
        # The requests that were carried out, and those of which that is not known.
        self._known: set[str] = set()
        self._tried: set[str] = set()

    def look(
        self,
        before: Mapping[str, Row],
        changed: Iterable[Row],
        commands: Sequence[Command],
        heard: Sequence[Command],
        now: int,
    ) -> None:
        """Something was committed; `commands` and `heard` as of `Watch.look`."""
        asked, done = _requests(commands), _requests(heard)
        may_move = bool(asked - self._known)
        has_moved = bool(done - self._known - self._tried)
        self._known |= done
        self._tried |= asked
        delayed = {
            row.id: row.due_at
            for row in before.values()
            if row.status == "DELAYED" and self._is_debounced(row.id)
        }
        for row in changed:
            if row.id not in before and self._is_debounced(row.id):
                for run_id in delayed:
                    self._fail(f"{row.id} was made, and {run_id} was delayed and is meant")
            is_moved = row.id in delayed and row.status == "DELAYED" and row.due_at != delayed[row.id]
            if is_moved and not may_move and not self._clock_was_set():
                self._fail(f"{row.id} was put off to {row.due_at}, and nobody has triggered it")
        if has_moved:
            for run_id in delayed:
                self._put_off(run_id, now + SECONDS * MICROSECONDS)


def _requests(commands: Iterable[Command]) -> set[str]:
    """The ids of those that trigger by a debounce key."""
    return {
        command.request_id
        for command in commands
        if isinstance(command, Trigger) and command.item.options.debounce is not None and command.request_id
    }
