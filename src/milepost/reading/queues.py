"""Queues as they stand, and why a queued run waits. Everything is counted up to a bound."""

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection

from milepost.errors import QueueNotFoundError
from milepost.model.names import default_queue
from milepost.model.run import QueuedReason, RunStatus
from milepost.protocol.queues import (
    KEYS_SHOWN_MAX,
    QUEUED_COUNTED_MAX,
    QueueConcurrency,
    QueueKey,
    QueueObject,
    QueuePage,
    QueuePagination,
    QueueRate,
    QueueWait,
    WaitReason,
)
from milepost.reading.fields import time_or_none
from milepost.store import due_runs, key_places
from milepost.store import queues as queue_store
from milepost.store.queues import QueueKeyRow, QueueRow
from milepost.store.runs import RunRow

RUNNING_IDS_MAX = 5
KEY_QUEUED_COUNTED_MAX = 1000


class KnownQueues(Protocol):
    """What the engine knows of queues. Thread-safe."""

    def queue_names(self) -> set[str]: ...
    def tasks_in(self, queue: str) -> list[str]: ...
    def seconds_for_each(self, queue: str, key: str | None, now: int) -> float | None: ...


def page(connection: Connection, known: KnownQueues, *, number: int, size: int, now: int) -> QueuePage:
    """One page of queues, in the order of their names; pages are counted from 1."""
    names = sorted(known.queue_names())
    shown = names[(number - 1) * size : number * size]
    rows = queue_store.load_queues(connection, shown)
    return QueuePage(
        [_queue(connection, name, rows.get(name), known.tasks_in(name), (), now) for name in shown],
        QueuePagination(current_page=number, total_pages=max(1, -(-len(names) // size)), count=len(names)),
    )


def one(connection: Connection, known: KnownQueues, name: str, *, now: int) -> QueueObject:
    """A queue, with its concurrency keys. Raises QueueNotFoundError."""
    if name not in known.queue_names():
        raise QueueNotFoundError(f"there is no queue {name!r:.100}: no task names it, and no run waits in it")
    row = queue_store.load_queues(connection, [name]).get(name)
    tasks = known.tasks_in(name)
    return _queue(connection, name, row, tasks, _keys(connection, name, tasks), now)


def _queue(
    connection: Connection,
    name: str,
    row: QueueRow | None,
    tasks: Sequence[str],
    keys: Sequence[QueueKey],
    now: int,
) -> QueueObject:
    queued = due_runs.count_queued(connection, tasks, name, limit=QUEUED_COUNTED_MAX + 1)
    if row is None:
        running = due_runs.count_executing(connection, name, limit=QUEUED_COUNTED_MAX)
        resuming, row = 0, QueueRow(name, None)
    else:
        of_keys = queue_store.count_of_keys(connection, name)
        running, resuming = row.executing + of_keys[0], row.resuming + of_keys[1]
    rule = row.rate_rule()
    rate = None
    if rule is not None and row.rate is not None:
        next_at = rule.next_at(row.rate_starts(), now)
        rate = QueueRate(limit=row.rate, next_start_at=time_or_none(next_at))
    return QueueObject(
        id=name,
        name=name,
        type="task" if name in map(default_queue, tasks) else "custom",
        running=running,
        queued=min(queued, QUEUED_COUNTED_MAX),
        queued_is_more=queued > QUEUED_COUNTED_MAX,
        waiting_to_go_on=resuming,
        paused=bool(row.is_paused),
        concurrency_limit=row.limit,
        concurrency=QueueConcurrency(
            current=row.limit,
            base=row.concurrency,
            override=row.concurrency_override,
            overridden_at=time_or_none(row.overridden_at),
        ),
        rate=rate,
        keys=list(keys),
    )


def _keys(connection: Connection, name: str, tasks: Sequence[str]) -> list[QueueKey]:
    at_work = {row.key: row for row in queue_store.keys_at_work(connection, name, limit=KEYS_SHOWN_MAX)}
    keys = {*at_work, *key_places.queued_keys(connection, name, limit=KEYS_SHOWN_MAX)}
    found: list[QueueKey] = []
    for key in sorted(keys)[:KEYS_SHOWN_MAX]:
        queued = due_runs.count_queued(connection, tasks, name, limit=KEY_QUEUED_COUNTED_MAX + 1, key=key)
        row = at_work.get(key) or QueueKeyRow(name, key)
        if queued or row.executing or row.resuming:
            found.append(
                QueueKey(
                    key=key,
                    queued=min(queued, KEY_QUEUED_COUNTED_MAX),
                    queued_is_more=queued > KEY_QUEUED_COUNTED_MAX,
                    running=row.executing,
                    waiting_to_go_on=row.resuming,
                )
            )
    return found


def why_queued(
    connection: Connection, row: RunRow, nobody: QueuedReason | None, known: KnownQueues, now: int
) -> QueueWait:
    """Why a queued run has not begun, and where it stands.

    Args:
        nobody: why nobody can take it, if nobody can.
    """
    key = row.concurrency_key
    if row.status is RunStatus.DELAYED or row.due_at > now:
        return QueueWait(reason=WaitReason.DELAYED, until=time_or_none(row.due_at))
    if row.status is RunStatus.PENDING_VERSION:
        # It stands in no queue before a worker has offered its task.
        return QueueWait(reason=WaitReason((nobody or QueuedReason.NEVER_OFFERED).value))
    queue = queue_store.load_queues(connection, [row.queue]).get(row.queue) or QueueRow(row.queue, None)
    counted: QueueRow | QueueKeyRow = queue
    if key is not None:
        found = queue_store.load_queue_keys(connection, row.queue, [key])
        counted = found[0] if found else QueueKeyRow(row.queue, key)
    tasks = known.tasks_in(row.queue)
    before = due_runs.count_before(
        connection, tasks, row.queue, key, row.due_at, row.id, limit=QUEUED_COUNTED_MAX
    )
    rate = queue.rate_rule()
    until: int | None = None if rate is None else rate.next_at(queue.rate_starts(), now)
    is_full = queue.limit is not None and counted.executing + counted.resuming >= queue.limit
    running: list[str] = []
    if nobody is not None:
        reason = WaitReason(nobody.value)
    elif queue.is_paused:
        reason = WaitReason.QUEUE_PAUSED
    elif is_full:
        reason = WaitReason.LIMIT_REACHED
        running = due_runs.executing_ids(connection, row.queue, key, limit=RUNNING_IDS_MAX)
    elif until is not None:
        reason = WaitReason.RATE_REACHED
    else:
        reason = WaitReason.IN_LINE
    is_more = before >= QUEUED_COUNTED_MAX
    estimate = None
    if nobody is None and not queue.is_paused and not is_more:
        each = known.seconds_for_each(row.queue, key, now)
        estimate = None if each is None else round(each * (before + 1), 1)
    return QueueWait(
        reason=reason,
        position=before if is_more else before + 1,
        position_is_more=is_more,
        estimated_seconds=estimate,
        until=time_or_none(until) if reason is WaitReason.RATE_REACHED else None,
        limit=queue.limit if is_full else None,
        running_ids=running,
    )
