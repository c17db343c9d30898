"""Deciding on queues: who may execute, and who goes on after a wait. A limit holds over all workers, at every commit.

A waiting run gives its place in the queue back. To go on it needs one again, and comes before every queued run; so a long queue does
not hold it up.
"""

import math
from collections.abc import Iterable

from milepost.engine.transaction import Transaction
from milepost.model.lifecycle import Move, next_status
from milepost.model.run import RunStatus
from milepost.store import runs as run_store
from milepost.store.queues import QueueRow
from milepost.store.runs import RunRow


def change_status(row: RunRow, move: Move, transaction: Transaction) -> None:
    """The run goes where this move leads, and its queue counts it. One that completes is written with its result."""
    before, after = row.status, next_status(row.status, move)
    row.status = after
    transaction.count_moved(row.parent_id, before, after)
    had_place, has_place = before is RunStatus.EXECUTING, after is RunStatus.EXECUTING
    if had_place is not has_place and (queue := transaction.queue(row.queue)) is not None:
        queue.executing += has_place - had_place
        transaction.save_queue(queue)
        if had_place:
            transaction.freed_queues.add(row.queue)
    if move is Move.CLAIM:
        transaction.save_claim(row)
    elif move is not Move.COMPLETE:
        transaction.save_run(row)
    transaction.announce_state(row)


def go_on(row: RunRow, transaction: Transaction) -> None:
    """The run would go on after a wait: it does, or stands in the line until there is room."""
    if row.status is RunStatus.EXECUTING:
        return
    queue = transaction.queue(row.queue)
    others = 0 if queue is None else queue.executing + queue.resuming - (row.resuming_at is not None)
    if queue is None or queue.concurrency is None or others < queue.concurrency:
        give_up_resuming(row, transaction)
        change_status(row, Move.RESUME, transaction)
    elif row.resuming_at is None:
        row.resuming_at = transaction.now
        queue.resuming += 1
        transaction.save_queue(queue)
        transaction.save_run(row)


def give_up_resuming(row: RunRow, transaction: Transaction) -> None:
    """The run does not stand in the line any more, if it did: it goes on, waits again, or its attempt is over."""
    if row.resuming_at is None:
        return
    row.resuming_at = None
    transaction.save_run(row)
    queue = transaction.queue(row.queue)
    if queue is not None:
        queue.resuming -= 1
        transaction.save_queue(queue)
        transaction.freed_queues.add(row.queue)


def resume_waiting(transaction: Transaction) -> None:
    """Let those go on whose queues have got room in this group; their workers are told."""
    for name in sorted(transaction.freed_queues):
        queue = transaction.queue(name)
        if queue is None or not queue.resuming or queue.room_to_resume == 0:
            continue
        transaction.save()
        ids = run_store.resuming_ids(transaction.connection, name, limit=queue.room_to_resume)
        transaction.load_runs(ids)
        for run_id in ids:
            row = transaction.run(run_id)
            assert row is not None, "it was found a moment ago"
            assert row.worker_id is not None, "a waiting run is held"
            give_up_resuming(row, transaction)
            change_status(row, Move.RESUME, transaction)
            transaction.announce_resumed(row.worker_id, run_id)


def learn_limits(before: dict[str, int], after: dict[str, int], transaction: Transaction) -> None:
    """The limits that tasks name have changed."""
    for name in before.keys() | after.keys():
        if before.get(name) == after.get(name):
            continue
        queue = transaction.queue(name)
        if queue is None:
            queue = QueueRow(name, None)
        if queue.concurrency is None:
            # Nobody has counted while it had no limit.
            transaction.save()
            queue.executing = run_store.count_executing(transaction.connection, name)
        queue.concurrency = after.get(name)
        transaction.save_queue(queue)
        # One that was raised has room.
        transaction.freed_queues.add(name)


class Room:
    """How many more queued runs may be claimed of each queue, while a claim is served."""

    def __init__(self, names: Iterable[str], transaction: Transaction) -> None:
        transaction.load_queues(names)
        self._transaction = transaction
        self._taken: dict[str, int] = {}

    def of(self, name: str) -> float:
        """How many more runs of this queue may be claimed."""
        queue = self._transaction.queue(name)
        room = None if queue is None else queue.room
        return math.inf if room is None else room - self._taken.get(name, 0)

    def has(self, name: str) -> bool:
        """Whether a run of this queue may be claimed."""
        return self.of(name) > 0

    def take(self, name: str) -> None:
        """A run of this queue is claimed."""
        self._taken[name] = self._taken.get(name, 0) + 1
