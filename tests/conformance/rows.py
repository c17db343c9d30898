"""Rows for the store suite: valid ones, of which a test changes what it is about."""

from typing import Any

from milepost.model.run import RunStatus
from milepost.store import runs
from milepost.store.batches import BatchRow
from milepost.store.database import Store
from milepost.store.documents import ChangeRow
from milepost.store.runs import NewRun, RunRow

NOW = 1_800_000_000_000_000


def new_run(number: int, **fields: Any) -> NewRun:
    """A run to be inserted; runs are ordered by their numbers."""
    run_id = run_name(number)
    values = {
        "id": run_id,
        "task": "work",
        "queue": "task/work",
        "due_at": NOW + number,
        "created_at": NOW + number,
        "root_id": run_id,
        "trigger_function": "trigger",
    }
    return NewRun(**{**values, **fields})


def run_name(number: int) -> str:
    return f"run_{number:05}"


def insert(store: Store, *new: NewRun) -> None:
    """Insert runs in a transaction of their own."""
    with store.write() as connection:
        runs.insert_runs(connection, new)


def row_of(store: Store, number: int) -> RunRow:
    """A run's row as committed."""
    with store.read() as connection:
        return runs.load_rows(connection, [run_name(number)])[run_name(number)]


def put(store: Store, number: int, status: RunStatus, *, worker: str | None = None) -> RunRow:
    """Bring a run into a state."""
    row = row_of(store, number)
    row.status = status
    row.worker_id = worker
    row.finished_at = NOW if status.is_final else None
    with store.write() as connection:
        runs.save_rows(connection, [row])
    return row


def batch(batch_id: str, run_count: int = 3, **fields: Any) -> BatchRow:
    """A batch without items."""
    values: dict[str, Any] = {
        "id": batch_id,
        "parent_id": None,
        "resume_parent": 0,
        "run_count": run_count,
        "accepted_count": 0,
        "finished_count": 0,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return BatchRow(**{**values, **fields})


def change(number: int, version: int, operations: bytes = b"[]", **fields: Any) -> ChangeRow:
    """A step of the log of a run's document."""
    values: dict[str, Any] = {
        "writer_id": None,
        "writer_attempt": None,
        "writer_sequence": None,
        "refused": None,
    }
    return ChangeRow(
        run_id=run_name(number),
        version=version,
        operations=operations,
        created_at=NOW,
        **{**values, **fields},
    )
