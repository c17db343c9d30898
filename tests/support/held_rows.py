"""While tests run, each row that an engine keeps is compared with the one that is stored, whenever a group takes it from there."""

from collections.abc import Iterable

from milepost.engine.transaction import Transaction
from milepost.store import runs
from milepost.store.runs import RunRow

lies: list[str] = []
"""What was found to differ. An engine tries a group again that has failed, so it is told here and not raised."""

load_runs = Transaction.load_runs


def _load_and_compare(self: Transaction, ids: Iterable[str]) -> None:
    asked = set(ids)
    wanted = asked - self._rows.keys() - self._absent - self.changed_otherwise
    kept = self._held_rows.copies_of(wanted)
    if kept:
        stored = runs.load_rows(self.connection, kept)
        lies.extend(
            _difference(row, stored.get(row.id)) for row in kept.values() if row != stored.get(row.id)
        )
    load_runs(self, asked)


def _difference(kept: RunRow, stored: RunRow | None) -> str:
    if stored is None:
        return f"{kept.id} is kept and not stored"
    fields = [name for name in kept.__struct_fields__ if getattr(kept, name) != getattr(stored, name)]
    return f"{kept.id}: " + ", ".join(
        f"{name} is {getattr(kept, name)}, stored {getattr(stored, name)}" for name in fields
    )


def compare() -> None:
    """Compare from now on."""
    Transaction.load_runs = _load_and_compare
