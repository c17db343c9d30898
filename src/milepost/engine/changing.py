"""Deciding on what changes a run beside its life and its document: its delay and its tags."""

from milepost.engine.commands import AddTags, RescheduleRun
from milepost.engine.promoting import become_due
from milepost.engine.queues import change_status
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.engine.triggering import check_tags
from milepost.errors import RunNotFoundError
from milepost.model.lifecycle import Move
from milepost.store import runs as run_store
from milepost.store.runs import RunRow


def reschedule(command: RescheduleRun, transaction: Transaction, state: EngineState) -> None:
    """Delay a run to another time; one that is over lets it go at once.

    Raises: RunNotFoundError; ConflictError unless the run is delayed.
    """
    row = _run(command.run_id, transaction)
    change_status(row, Move.RESCHEDULE, transaction)
    if command.delay_ms is not None:
        row.due_at = transaction.now + command.delay_ms * 1000
    else:
        assert command.due_at is not None, "one of the two is given"
        row.due_at = command.due_at
    is_given = None if command.due_at is None else 1
    transaction.save()
    run_store.change_due(transaction.connection, row.id, due_at=row.due_at, is_given=is_given)
    if row.due_at <= transaction.now:
        become_due(row, transaction)
    else:
        state.due_later(row.due_at)


def add_tags(command: AddTags, transaction: Transaction, state: EngineState) -> list[str]:
    """Add tags to a run, whatever its status; all that it has now. Raises RunNotFoundError; InvalidRequestError beyond ten."""
    row = _run(command.run_id, transaction)
    before = run_store.load_tags(transaction.connection, row.id)
    tags = check_tags([*before, *command.tags], field="tags")
    new = tags[len(before) :]
    if new:
        transaction.save_run(row)
        run_store.add_tags(transaction.connection, row.id, tags, new)
        transaction.announce_tags(row, tags)
    return tags


def _run(run_id: str, transaction: Transaction) -> RunRow:
    row = transaction.run(run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {run_id!r:.100}")
    return row
