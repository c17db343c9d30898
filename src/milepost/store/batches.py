"""Batches: runs triggered together, and how many of them have ended."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update

from milepost.store.schema import batch_members, batches
from milepost.store.statements import Lookup, Row, Statement

OPEN_COUNT = 2**31 - 1
"""Stands for the number of runs of a batch of which it is not known yet: more than any batch has."""


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

    @property
    def known_count(self) -> int | None:
        """How many runs the batch has in all; None while that is not known."""
        return None if self.run_count == OPEN_COUNT else self.run_count


_NAMES = BatchRow.__struct_fields__
_BATCHES = Lookup(select(*(batches.c[name] for name in _NAMES)), batches.c.id)
_INSERT = Statement(insert(batches), _NAMES)
_SAVE = Statement(
    update(batches)
    .where(batches.c.id == bindparam("batch", type_=batches.c.id.type))
    .values(
        run_count=bindparam("runs", type_=batches.c.run_count.type),
        accepted_count=bindparam("accepted", type_=batches.c.accepted_count.type),
        finished_count=bindparam("finished", type_=batches.c.finished_count.type),
        updated_at=bindparam("now", type_=batches.c.updated_at.type),
    ),
    ["runs", "accepted", "finished", "now", "batch"],
    key=["batch"],
)
_INSERT_MEMBERS = Statement(insert(batch_members), ("batch_id", "batch_index", "run_id"))
_MEMBERS = Lookup(select(batch_members.c.run_id, batch_members.c.batch_id), batch_members.c.run_id)


def insert_batches(connection: Connection, rows: Sequence[BatchRow]) -> None:
    """Insert batches."""
    _INSERT.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_batches(connection: Connection, ids: Iterable[str]) -> dict[str, BatchRow]:
    """The batches that exist, by id."""
    return {values[0]: BatchRow(*values) for values in _BATCHES.read(connection, sorted(set(ids)))}


def save_batches(connection: Connection, rows: Sequence[BatchRow]) -> None:
    """Write back the counts."""
    _SAVE.write(
        connection,
        [(row.run_count, row.accepted_count, row.finished_count, row.updated_at, row.id) for row in rows],
    )


def insert_members(connection: Connection, rows: Sequence[Row]) -> None:
    """Let batches have runs that were there before: (batch_id, batch_index, run_id)."""
    _INSERT_MEMBERS.write(connection, rows)


def batches_with(connection: Connection, run_id: str) -> list[str]:
    """The batches that have a run which was there before them, as often as they have it."""
    return [batch_id for _, batch_id in _MEMBERS.read(connection, [run_id])]
