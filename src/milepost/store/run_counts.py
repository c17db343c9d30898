"""How many runs have each status: of all, and of the children of each run. Kept with every change, so that nobody has to count."""

from collections.abc import Iterable

from sqlalchemy import Connection, select

from milepost.store.schema import run_counts
from milepost.store.statements import Row, Statement, upsert

ALL = ""
"""Stands for all runs, where otherwise the parent's id stands."""

_NEW = upsert(run_counts)
_ADD = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["parent_id", "status"], set_={"count": run_counts.c.count + _NEW.excluded.count}
    ),
    ("parent_id", "status", "count"),
    key=("parent_id", "status"),
)


def add_counts(connection: Connection, changes: Iterable[Row]) -> None:
    """Add to counts: (parent's id or `ALL`, status, how many more)."""
    _ADD.write(connection, list(changes))


def load_counts(connection: Connection, parent_id: str) -> dict[str, int]:
    """How many children of a run have each status, or with `ALL` how many runs; statuses that none has are left out."""
    found = connection.execute(
        select(run_counts.c.status, run_counts.c.count).where(
            run_counts.c.parent_id == parent_id, run_counts.c.count > 0
        )
    )
    return {row.status: row[1] for row in found}
