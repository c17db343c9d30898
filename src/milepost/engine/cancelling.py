"""Deciding on cancels: a run that nobody holds ends at once, one that a worker holds is asked to end, and their children follow."""

from milepost.engine.commands import CancelRun
from milepost.engine.ending import cancel_children, end_unclaimed
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import RunNotFoundError
from milepost.model.lifecycle import CANCELLED, Move
from milepost.store import runs as run_store
from milepost.store.runs import RunRow

# Runs whose children are cancelled by one group.
PARENTS = 100


def cancel(command: CancelRun, transaction: Transaction, state: EngineState) -> None:
    """Let a run end as cancelled. One that has ended stays as it is. Raises RunNotFoundError."""
    row = transaction.run(command.run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {command.run_id!r:.100}")
    _cancel(row, transaction)


def carry_on(transaction: Transaction, state: EngineState, *, limit: int) -> None:
    """Cancel a portion of the children of runs that were cancelled; `transaction.has_more_steps` says whether there are more."""
    room = limit
    parents = run_store.cancelling_ids(transaction.connection, limit=PARENTS)
    transaction.load_runs(parents)
    for parent_id in parents:
        ids = run_store.unfinished_children(transaction.connection, parent_id, limit=room)
        transaction.load_runs(ids)
        for run_id in ids:
            row = transaction.run(run_id)
            assert row is not None, "it was found a moment ago"
            _cancel(row, transaction)
        room -= len(ids)
        if not room:
            break
        parent = transaction.run(parent_id)
        assert parent is not None, "it was found a moment ago"
        parent.cancels_children = None
        transaction.save_run(parent)
    # Also those that were found here may have children.
    transaction.has_more_steps |= bool(parents)


def _cancel(row: RunRow, transaction: Transaction) -> None:
    if row.status.is_final or row.cancel_asked_at is not None:
        return
    row.cancel_asked_at = transaction.now
    if not row.is_held:
        end_unclaimed(row, Move.CANCEL, CANCELLED, transaction)
        return
    assert row.worker_id is not None, "a held run has a worker"
    transaction.announce_cancel_asked(row.worker_id, row.id)
    transaction.announce_state(row)
    cancel_children(row, transaction)
