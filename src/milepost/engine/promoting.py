"""What happens to runs by itself, without a command: a delay is over, a worker offers the task, the time to live is over, the children
of a cancelled run are cancelled too; and what runs wait for has its time over.

Each group does a portion of what there is to do, so that it holds up nobody; the next group follows at once while there is more.
"""

from collections.abc import Callable

from sqlalchemy import Connection

from milepost.engine import cancelling, claiming, ending, queues, waitpoints
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.model.lifecycle import EXPIRED, Move
from milepost.model.names import default_queue
from milepost.model.run import asked_of
from milepost.store import runs as run_store
from milepost.store import waitpoints as waitpoint_store
from milepost.store.runs import RunRow

# Runs that one group moves on, of each kind.
PORTION = 500


def carry_on(transaction: Transaction, state: EngineState) -> None:
    """Do a portion of what there is to do; `transaction.has_more_steps` says whether there is more.

    What the group has decided so far is in the store.
    """
    connection, now = transaction.connection, transaction.now
    _each(run_store.delayed_due(connection, now=now, limit=PORTION), _become_due, transaction)
    for task in sorted(transaction.newly_offered | state.newly_offered):
        ids = run_store.pending_ids(connection, task, limit=PORTION)
        _each(ids, _become_offered, transaction)
        if len(ids) < PORTION:
            transaction.wholly_offered.add(task)
    _each(
        run_store.expired_ids(connection, now=now, limit=PORTION),
        lambda row, transaction: ending.end_unclaimed(row, Move.EXPIRE, EXPIRED, transaction),
        transaction,
    )
    transaction.save()
    cancelling.carry_on(transaction, state, limit=PORTION)
    transaction.save()
    waitpoints.carry_on(transaction, limit=PORTION)


def next_due_at_after(connection: Connection, after: int, state: EngineState) -> int | None:
    """When something happens next by itself that does not at `after` yet: a run becomes due, its time to live
    is over, or that of something that is waited for."""
    times = (
        claiming.next_due_at(connection, after, state),
        run_store.next_step_after(connection, after),
        waitpoint_store.next_due_after(connection, after),
    )
    return min((at for at in times if at is not None), default=None)


def become_due(row: RunRow, transaction: Transaction) -> None:
    """The delay of a run is over, or somebody has said that it has none any more."""
    now, asked = transaction.now, asked_of(row.options)
    row.due_at = now - asked.priority * 1_000_000
    row.expires_at = None if asked.ttl_ms is None else now + asked.ttl_ms * 1000
    _to_queue(row, Move.DUE if row.task in transaction.catalog.tasks else Move.PARK, transaction)


def _each(ids: list[str], move: Callable[[RunRow, Transaction], None], transaction: Transaction) -> None:
    transaction.load_runs(ids)
    for run_id in ids:
        row = transaction.run(run_id)
        assert row is not None, "it was found a moment ago"
        move(row, transaction)
    transaction.has_more_steps |= len(ids) == PORTION


def _become_due(row: RunRow, transaction: Transaction) -> None:
    become_due(row, transaction)


def _become_offered(row: RunRow, transaction: Transaction) -> None:
    # It is due, also where the clock was set back while it waited.
    row.due_at = min(row.due_at, transaction.now)
    _to_queue(row, Move.OFFER, transaction)


def _to_queue(row: RunRow, move: Move, transaction: Transaction) -> None:
    if move is not Move.PARK and row.queue == default_queue(row.task):
        # It was triggered before anybody had said which queue is the task's.
        row.queue = transaction.catalog.queue_of(row.task)
    transaction.save_place(row)
    queues.change_status(row, move, transaction)
    if move is not Move.PARK:
        transaction.offer(row.task, row.queue, row.concurrency_key, row.due_at)
