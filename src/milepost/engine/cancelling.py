"""Deciding on cancels: a run that nobody holds ends at once, one that a worker holds is asked to end, and their children follow."""

from milepost.engine import jobs
from milepost.engine.commands import CancelRun, EndUnheededRuns
from milepost.engine.ending import cancel_children, end_attempt, end_unclaimed
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import RunNotFoundError
from milepost.model.lifecycle import CANCELLED, NOT_TOLD, Ending, Move
from milepost.model.run import AttemptEnd
from milepost.store import runs as run_store
from milepost.store.runs import RunRow

# How much longer than the grace time a worker may take to say that a run has ended.
MARGIN_SECONDS = 30.0
# Runs whose children are cancelled by one group.
PARENTS = 100


def cancel(command: CancelRun, transaction: Transaction, state: EngineState) -> None:
    """Let a run end as cancelled. One that has ended stays as it is. Raises RunNotFoundError."""
    row = transaction.run(command.run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {command.run_id!r:.100}")
    state.may_have_asked = True
    _cancel(row, transaction)


def end_unheeded(command: EndUnheededRuns, transaction: Transaction, state: EngineState) -> int:
    """End what was asked to end and whose worker, which is there, has not said so: its link is held up, or it knows no cancel.

    The time is measured from when this server first saw that, by a clock that nobody sets.
    """
    if not state.may_have_asked:
        return 0
    asked = run_store.asked_and_held(transaction.connection)
    state.may_have_asked = bool(asked)
    state.asked_since = {run_id: state.asked_since.get(run_id, transaction.steady_now) for run_id in asked}
    patience = int((state.settings.stop_grace_seconds + MARGIN_SECONDS) * 1_000_000)
    unheeded = [
        run_id for run_id, since in state.asked_since.items() if since < transaction.steady_now - patience
    ][: command.limit]
    if not unheeded or not jobs.is_ours(JobName.STOPS, transaction, state):
        return 0
    transaction.load_runs(unheeded)
    for run_id in unheeded:
        row = transaction.run(run_id)
        if row is not None and row.is_held:
            end_attempt(row, Ending(AttemptEnd.CANCELLED, Move.CANCEL, error=NOT_TOLD), transaction, state)
    return len(unheeded)


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
    state.may_have_asked |= bool(parents)
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
