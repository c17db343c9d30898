"""Batches: runs triggered together, and how many of them have ended."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update

from milepost.store.schema import batches


class BatchRow(msgspec.Struct):
    """One batch; the same names as in the table."""

    id: str
    parent_id: str | None
    resume_parent: int
    run_count: int
    accepted_count: int
    finished_count: int
    created_at: int
    updated_at: int


_BATCHES = select(*(batches.c[name] for name in BatchRow.__struct_fields__)).where(
    batches.c.id.in_(bindparam("ids", expanding=True))
)
_SAVE = (
    update(batches)
    .where(batches.c.id == bindparam("batch"))
    .values(
        accepted_count=bindparam("accepted"),
        finished_count=bindparam("finished"),
        updated_at=bindparam("now"),
    )
)


def insert_batches(connection: Connection, rows: Sequence[BatchRow]) -> None:
    """Insert batches."""
    if rows:
        connection.execute(insert(batches), [msgspec.structs.asdict(row) for row in rows])


def load_batches(connection: Connection, ids: Iterable[str]) -> dict[str, BatchRow]:
    """The batches that exist, by id."""
    return {
        values[0]: BatchRow(*values) for values in connection.execute(_BATCHES, {"ids": sorted(set(ids))})
    }


def save_batches(connection: Connection, rows: Sequence[BatchRow]) -> None:
    """Write back the counts."""
    if rows:
        connection.execute(
            _SAVE,
            [
                {
                    "batch": row.id,
                    "accepted": row.accepted_count,
                    "finished": row.finished_count,
                    "now": row.updated_at,
                }
                for row in rows
            ],
        )
