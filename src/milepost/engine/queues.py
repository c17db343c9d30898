"""Deciding on queues: who may execute, and who goes on after a wait. A limit holds over all workers, at every commit.

A waiting run gives its place in the queue back. To go on it needs one again, and comes before every queued run; so a long queue does
not hold it up.

The limit holds for the runs of each concurrency key by themselves, and for those without one. A rate holds for all runs of a queue: it
counts claims, whatever becomes of them.
"""

import math
from collections.abc import Iterable

from milepost.engine.catalog import Catalog
from milepost.engine.commands import OverrideQueueLimit, PauseQueue
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import InvalidRequestError, QueueNotFoundError
from milepost.model.lifecycle import Move, next_status
from milepost.model.run import RunStatus
from milepost.store import key_places
from milepost.store import queues as queue_store
from milepost.store import runs as run_store
from milepost.store.queues import QueueKeyRow, QueueRow
from milepost.store.runs import RunRow

LIMIT_MAX = 100_000


def change_status(row: RunRow, move: Move, transaction: Transaction) -> None:
    """The run goes where this move leads, and its queue counts it. One that completes is written with its result."""
    before, after = row.status, next_status(row.status, move)
    row.status = after
    transaction.count_moved(row.parent_id, before, after)
    had_place, has_place = before is RunStatus.EXECUTING, after is RunStatus.EXECUTING
    if had_place is not has_place and (queue := transaction.queue(row.queue)) is not None:
        _count(queue, row, transaction, executing=has_place - had_place)
        if had_place:
            transaction.freed_queues.add((row.queue, row.concurrency_key))
        elif move is Move.CLAIM and queue.rate is not None:
            queue.start(transaction.now)
            transaction.save_queue(queue)
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
    if queue is None or queue.limit is None or _others(queue, row, transaction) < queue.limit:
        give_up_resuming(row, transaction)
        change_status(row, Move.RESUME, transaction)
    elif row.resuming_at is None:
        row.resuming_at = transaction.now
        _count(queue, row, transaction, resuming=1)
        transaction.save_run(row)


def give_up_resuming(row: RunRow, transaction: Transaction) -> None:
    """The run does not stand in the line any more, if it did: it goes on, waits again, or its attempt is over."""
    if row.resuming_at is None:
        return
    row.resuming_at = None
    transaction.save_run(row)
    queue = transaction.queue(row.queue)
    if queue is not None:
        _count(queue, row, transaction, resuming=-1)
        transaction.freed_queues.add((row.queue, row.concurrency_key))


def use_room(transaction: Transaction) -> None:
    """Let those go on whose queues have got room in this group; their workers are told. Claims look there again for queued runs."""
    for name, key in sorted(transaction.freed_queues, key=lambda freed: (freed[0], freed[1] or "")):
        queue = transaction.queue(name)
        counted = None if queue is None else _counted(queue, key, transaction)
        if queue is None or counted is None or not counted.resuming:
            continue
        room = None if queue.limit is None else max(0, queue.limit - counted.executing)
        if room == 0:
            continue
        transaction.save()
        ids = run_store.resuming_ids(transaction.connection, name, key, limit=room)
        transaction.load_runs(ids)
        for run_id in ids:
            row = transaction.run(run_id)
            assert row is not None, "it was found a moment ago"
            assert row.worker_id is not None, "a waiting run is held"
            give_up_resuming(row, transaction)
            change_status(row, Move.RESUME, transaction)
            transaction.announce_resumed(row.worker_id, run_id)
    freed_keys = [(name, key) for name, key in transaction.freed_queues if key is not None]
    key_places.open_keys(transaction.connection, sorted(freed_keys), now=transaction.now)


def learn_rules(before: Catalog, after: Catalog, transaction: Transaction) -> None:
    """The limits and rates that tasks name have changed."""
    names = before.queue_limits.keys() | after.queue_limits.keys()
    for name in sorted(names | before.queue_rates.keys() | after.queue_rates.keys()):
        limit, rate = after.queue_limits.get(name), after.queue_rates.get(name)
        if (before.queue_limits.get(name), before.queue_rates.get(name)) == (limit, rate):
            continue
        queue = _with_rule(name, transaction)
        queue.concurrency, queue.rate = limit, rate
        if rate is None:
            queue.starts = None
        _rule_changed(queue, transaction)


def pause(command: PauseQueue, transaction: Transaction, state: EngineState) -> None:
    """Hold up the queued runs of a queue, or let them go on being claimed."""
    _check_known(command.name, transaction, state)
    queue = _with_rule(command.name, transaction)
    queue.is_paused = int(command.is_paused)
    _rule_changed(queue, transaction)


def override_limit(command: OverrideQueueLimit, transaction: Transaction, state: EngineState) -> None:
    """Set another limit than the tasks say, or go by them again."""
    if command.limit is not None and not 1 <= command.limit <= LIMIT_MAX:
        cure = ": to let nothing start, pause the queue" if command.limit < 1 else ""
        raise InvalidRequestError(
            f"the limit of a queue is from 1 to {LIMIT_MAX:,}, not {command.limit:,}{cure}",
            field="concurrencyLimit",
            limit=LIMIT_MAX,
        )
    _check_known(command.name, transaction, state)
    queue = _with_rule(command.name, transaction)
    queue.concurrency_override = command.limit
    queue.overridden_at = None if command.limit is None else transaction.now
    _rule_changed(queue, transaction)


def has_limit(name: str, transaction: Transaction) -> bool:
    """Whether a run of this queue may have to wait for room after it has waited for something else."""
    queue = transaction.queue(name)
    return queue is not None and queue.limit is not None


def _check_known(name: str, transaction: Transaction, state: EngineState) -> None:
    is_new_here = any(name == queue for _, queue in (*transaction.places, *transaction.keyed))
    if name not in transaction.catalog.ruled_queues and name not in state.queue_names() and not is_new_here:
        raise QueueNotFoundError(f"there is no queue {name!r:.100}: no task names it, and no run waits in it")


def _with_rule(name: str, transaction: Transaction) -> QueueRow:
    """The queue, counted from now on, whatever its rules are."""
    if name not in transaction.catalog.ruled_queues:
        transaction.catalog = transaction.catalog.with_ruled(name)
    queue = transaction.queue(name)
    if queue is not None:
        return queue
    # Nobody has counted while it had no rule.
    transaction.save()
    queue = QueueRow(name, None)
    transaction.save_queue(queue)
    for key, executing, resuming in run_store.count_held(transaction.connection, name):
        if key is None:
            queue.executing, queue.resuming = executing, resuming
        else:
            counted = transaction.queue_key(name, key)
            counted.executing, counted.resuming = executing, resuming
            transaction.save_queue_key(counted)
    return queue


def _rule_changed(queue: QueueRow, transaction: Transaction) -> None:
    """There may be room now."""
    transaction.save_queue(queue)
    transaction.save()
    transaction.freed_queues.add((queue.name, None))
    for key in queue_store.resuming_keys(transaction.connection, queue.name):
        transaction.freed_queues.add((queue.name, key))
    key_places.open_queue(transaction.connection, queue.name, now=transaction.now)


def _counted(queue: QueueRow, key: str | None, transaction: Transaction) -> QueueRow | QueueKeyRow:
    return queue if key is None else transaction.queue_key(queue.name, key)


def _count(
    queue: QueueRow, row: RunRow, transaction: Transaction, *, executing: int = 0, resuming: int = 0
) -> None:
    counted = _counted(queue, row.concurrency_key, transaction)
    counted.executing += executing
    counted.resuming += resuming
    if isinstance(counted, QueueRow):
        transaction.save_queue(counted)
    else:
        transaction.save_queue_key(counted)


def _others(queue: QueueRow, row: RunRow, transaction: Transaction) -> int:
    counted = _counted(queue, row.concurrency_key, transaction)
    return counted.executing + counted.resuming - (row.resuming_at is not None)


class Room:
    """How many more queued runs may be claimed of each queue and concurrency key, while a claim is served."""

    def __init__(self, names: Iterable[str], transaction: Transaction) -> None:
        transaction.load_queues(names)
        self._transaction = transaction
        self._taken: dict[tuple[str, str | None], int] = {}
        self._taken_of_queue: dict[str, int] = {}

    def of_queue(self, name: str) -> float:
        """How many more runs of this queue may be claimed as far as its rate and a pause decide."""
        queue = self._transaction.queue(name)
        if queue is None:
            return math.inf
        if queue.is_paused:
            return 0
        rate = queue.rate_rule()
        if rate is None:
            return math.inf
        starts, now = queue.rate_starts(), self._transaction.now
        room = rate.room(starts, now) - self._taken_of_queue.get(name, 0)
        if room <= 0:
            self._transaction.look_again_at(rate.next_at(starts, now) or now + rate.period)
        return max(0, room)

    def of_key(self, name: str, key: str | None) -> float:
        """How many more runs with this concurrency key (None: without one) may be claimed as far as the limit decides."""
        queue = self._transaction.queue(name)
        if queue is None or queue.limit is None:
            return math.inf
        counted = _counted(queue, key, self._transaction)
        # Those that would go on come before queued ones.
        return queue.limit - counted.executing - counted.resuming - self._taken.get((name, key), 0)

    def of(self, name: str, key: str | None = None) -> float:
        """How many more runs may be claimed."""
        room = self.of_key(name, key)
        return min(room, self.of_queue(name)) if room > 0 else 0

    def has(self, name: str, key: str | None = None) -> bool:
        """Whether a run may be claimed."""
        return self.of(name, key) > 0

    def give_back(self, name: str, key: str | None = None) -> None:
        """A run that was taken is not claimed."""
        self._taken[name, key] -= 1
        self._taken_of_queue[name] -= 1

    def take(self, name: str, key: str | None = None) -> None:
        """A run is claimed."""
        self._taken[name, key] = self._taken.get((name, key), 0) + 1
        self._taken_of_queue[name] = self._taken_of_queue.get(name, 0) + 1
