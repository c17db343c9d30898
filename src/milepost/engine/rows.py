"""The rows of runs that workers hold, kept in memory as this server's last commits have left them: a report need not read its run.

A kept row is never other than the stored one. Rows are forgotten when another server has committed something, when a group has
failed (it may be stored all the same), when the clock was set, and when a group has changed runs by other means than their rows.
"""

from collections.abc import Iterable
from copy import copy

from milepost.store.runs import RunRow

ROWS_MAX = 8192


class HeldRows:
    """Rows of held runs, those that were written last. They are never changed: whoever wants to gets a copy."""

    def __init__(self) -> None:
        self._rows: dict[str, RunRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def copies_of(self, ids: Iterable[str]) -> dict[str, RunRow]:
        """A copy of each of these rows that is here."""
        rows = self._rows
        return {run_id: copy(rows[run_id]) for run_id in ids if run_id in rows}

    def committed(self, rows: Iterable[RunRow]) -> None:
        """These were committed as they are, and nobody will change these objects any more."""
        for row in rows:
            self._rows.pop(row.id, None)
            if row.is_held:
                self._rows[row.id] = row
        while len(self._rows) > ROWS_MAX:
            del self._rows[next(iter(self._rows))]

    def forget(self, ids: Iterable[str]) -> None:
        """These were changed in another way."""
        for run_id in ids:
            self._rows.pop(run_id, None)

    def clear(self) -> None:
        """Any of them may have been changed."""
        self._rows.clear()
