"""Deciding on claims: which due runs a worker is given. Queue limits hold over all workers."""

import random
from collections.abc import Container, Sequence

import msgspec

from milepost.engine import queues
from milepost.engine.commands import Claim
from milepost.engine.metadata import has_typed_ancestor
from milepost.engine.queues import Room
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.engine.workers import worker_of
from milepost.model import jsonvalue
from milepost.model.counted import pack
from milepost.model.lifecycle import Move
from milepost.model.run import asked_of
from milepost.protocol.work import ClaimedRun
from milepost.store import runs as run_store
from milepost.store.runs import RunRecord, RunRow

SLOTS_MAX = 1000
# A run that has to execute apart goes to a worker that has nothing else to do. After so long any worker is given it, which then
# lets its other runs end first.
APART_WAIT_MICROSECONDS = 10_000_000
# Tasks and queues that are looked at together; of more, the oldest run of all need not come first.
PLACES_MAX = run_store.DUE_PLACES
EMPTY_LOOKS = 8


def claim_runs(
    command: Claim, transaction: Transaction, state: EngineState, among: Container[str] | None = None
) -> list[ClaimedRun]:
    """Lease due runs to the worker, oldest first; none when none is due. A claim that comes again is answered with the same runs.

    Args:
        among: where it is known that of other tasks than these no run is due.
    """
    worker = worker_of(command.worker_id, transaction)
    if command.sequence <= worker.answered_claim:
        return claimed_before(command, transaction)
    if worker.answered_claim < 0 and (before := claimed_before(command, transaction)):
        # It was answered before the server has started anew.
        return before
    tasks = worker.tasks if among is None else tuple(task for task in worker.tasks if task in among)
    if not tasks or command.slots < 1:
        return []
    slots = min(command.slots, SLOTS_MAX)
    apart: list[tuple[str, str]] = []
    is_idle = state.may_have_apart and not run_store.holds_any(transaction.connection, worker.id)
    if state.may_have_apart:
        apart = _due_apart(worker.id, tasks, is_idle, transaction, state)
    records: list[RunRecord] = []
    if not (apart and is_idle):
        taken = [queue for _, queue in apart]
        records = _due_within_limits(tasks, slots - len(apart), taken, transaction, state)
    if apart:
        records += _records([run_id for run_id, _ in apart], transaction)
    has_begun: set[str] = set()
    for record in records:
        transaction.adopt(record.row)
        if record.row.started_at is not None:
            has_begun.add(record.row.id)
        _lease(record.row, worker.id, command.sequence, transaction)
    return _claimed(records, has_begun, transaction)


def _records(ids: Sequence[str], transaction: Transaction) -> list[RunRecord]:
    found = run_store.load_records(transaction.connection, ids, values=True)
    return [found[run_id] for run_id in ids]


def _lease(row: RunRow, worker_id: str, sequence: int, transaction: Transaction) -> None:
    put_forward = asked_of(row.options).priority * 1_000_000
    transaction.claim_waits.append(max(0, transaction.now - row.due_at - put_forward))
    queues.change_status(row, Move.CLAIM, transaction)
    if row.expires_at is not None:
        row.expires_at = None
        transaction.save_run(row)
    row.attempt += 1
    row.worker_id, row.claim_sequence = worker_id, sequence
    # The reports of each attempt are counted from 1.
    row.report_sequence, row.begun_at = 0, None
    # By these two one sees whether an earlier attempt has begun, also where a clock stands still.
    row.claimed_at = max(transaction.now, (row.started_at or 0) + 1)
    if row.started_at is None:
        row.started_at = row.claimed_at


def claimed_before(command: Claim, transaction: Transaction) -> list[ClaimedRun]:
    """What the same claim has brought, as far as the worker still holds it."""
    ids = run_store.held_ids(transaction.connection, command.worker_id, claim=command.sequence)
    records = run_store.load_records(transaction.connection, ids, values=True)
    for record in records.values():
        # As this group leaves it, where it has been loaded.
        record.row = transaction.run(record.row.id) or record.row
    held = [records[run_id] for run_id in ids if records[run_id].row.is_held]
    # Any but the first attempt may have begun: the marks of the earlier ones are as the claim has found them.
    has_begun = {record.row.id for record in held if record.row.started_at != record.row.claimed_at}
    return _claimed(held, has_begun, transaction)


def _due_apart(
    worker_id: str, tasks: Sequence[str], is_idle: bool, transaction: Transaction, state: EngineState
) -> list[tuple[str, str]]:
    """The run that this worker is to execute apart, if any, and its queue."""
    due = run_store.apart_due(transaction.connection, tasks, now=transaction.now)
    if not due:
        state.may_have_apart = run_store.has_apart(transaction.connection)
        return []
    room = Room((queue for _, queue, _ in due), transaction)
    for run_id, queue, due_at in due:
        if room.has(queue) and (is_idle or due_at <= transaction.now - APART_WAIT_MICROSECONDS):
            return [(run_id, queue)]
    return []


def _due_within_limits(
    tasks: Sequence[str], limit: int, taken: Sequence[str], transaction: Transaction, state: EngineState
) -> list[RunRecord]:
    """Due runs that may execute now, oldest first. Runs in full queues are not looked at.

    Args:
        taken: the queues of runs that this claim is given beside these.
    """
    if limit < 1:
        return []
    places = dict.fromkeys(state.places.of(tasks))
    places.update(dict.fromkeys(place for place in transaction.places if place[0] in tasks))
    room = Room({queue for _, queue in places}, transaction)
    for queue in taken:
        room.take(queue)
    open_places = [place for place in places if room.has(place[1])]
    if len(open_places) == 1:
        [(task, queue)] = open_places
        count = int(min(limit, room.of(queue)))
        return run_store.due_records(transaction.connection, task, queue, limit=count, now=transaction.now)
    if len(open_places) > PLACES_MAX:
        _look_for_empty(open_places, transaction)
        # Each claim begins somewhere else, so that none of very many queues has to wait for the others.
        start = random.randrange(len(open_places))
        open_places = [*open_places[start:], *open_places[:start]]
    chosen: list[str] = []
    for start in range(0, len(open_places), PLACES_MAX):
        some = open_places[start : start + PLACES_MAX]
        for _, run_id, queue in run_store.due_ids(
            transaction.connection, some, limit=limit - len(chosen), now=transaction.now
        ):
            if len(chosen) < limit and room.has(queue):
                room.take(queue)
                chosen.append(run_id)
        if len(chosen) == limit:
            break
    return _records(chosen, transaction) if chosen else []


def _look_for_empty(places: Sequence[tuple[str, str]], transaction: Transaction) -> None:
    """Of very many places a few are looked at, and forgotten where nothing is queued."""
    for task, queue in random.sample(places, EMPTY_LOOKS):
        if (task, queue) not in transaction.places and not run_store.has_queued(
            transaction.connection, task, queue
        ):
            transaction.empty_places.add((task, queue))


def _claimed(
    records: Sequence[RunRecord], has_begun: Container[str], transaction: Transaction
) -> list[ClaimedRun]:
    written = [record.row for record in records if record.row.metadata_version]
    documents = transaction.documents(written) if written else {}
    limits = transaction.catalog.queue_limits
    claimed: list[ClaimedRun] = []
    for record in records:
        row = record.row
        asked = asked_of(row.options)
        run = ClaimedRun(
            id=row.id,
            task=row.task,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            charged=row.charged,
            has_begun=row.id in has_begun,
            is_apart=bool(row.is_apart),
            has_queue_limit=row.queue in limits,
            payload=record.payload,
            payload_type=record.payload_type,
            tags=record.tags,
            queue=row.queue,
            parent_id=row.parent_id,
            root_id=row.root_id,
            has_typed_ancestor=has_typed_ancestor(row, transaction),
            batch_id=row.batch_id,
            depth=row.depth,
            created_at=row.created_at,
            concurrency_key=row.concurrency_key,
            priority=asked.priority,
            max_duration_ms=asked.max_duration_ms,
            replay_of=asked.replay_of,
        )
        hot = documents.get(row.id)
        # Raw, because another thread sends it while this one may write on.
        if hot is not None:
            run.metadata = msgspec.Raw(jsonvalue.encode(hot.document.value))  # pyright: ignore[reportAttributeAccessIssue]
            run.metadata_version = hot.document.version
            run.counted = pack(transaction.known_ids(row.id))
        elif record.trigger_metadata:
            run.metadata = msgspec.Raw(record.trigger_metadata)  # pyright: ignore[reportAttributeAccessIssue]
        claimed.append(run)
    return claimed
