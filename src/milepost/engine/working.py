"""Deciding on the worker link: registering, claiming, reporting, and what happens to the runs of a worker that has gone."""

import random
import zlib
from collections.abc import Container, Iterable, Sequence

import msgspec

from milepost.engine import logs
from milepost.engine.commands import AppendLog, Claim, RegisterWorker, Report
from milepost.engine.documents import Writer
from milepost.engine.metadata import has_typed_ancestor, refused_lines, told, write_reported
from milepost.engine.state import EngineState, Worker
from milepost.engine.transaction import Transaction
from milepost.errors import NotFoundError
from milepost.model import jsonvalue
from milepost.model.counted import pack
from milepost.model.names import default_queue
from milepost.model.run import Change, Outcome, RunError, RunStatus, claim, finish, holds, lose
from milepost.protocol.metadata import MetadataDelta, Refused
from milepost.protocol.triggering import OUTPUT_BYTES_MAX
from milepost.protocol.work import ClaimedRun, RunReply, RunReport
from milepost.store import records
from milepost.store import runs as run_store
from milepost.store.batches import BatchRow
from milepost.store.records import TaskRow
from milepost.store.runs import RunRecord, RunRow

SLOTS_MAX = 1000
# Documents in the answer to one report, about; what has no room comes with the next one.
REPLY_BYTES_MAX = 8 * 1024 * 1024
# The texts of an error, in characters. Our own workers send less.
ERROR_CHARACTERS_MAX = 100_000
_ANY = msgspec.json.Decoder(msgspec.Raw)
_REFUSED = msgspec.json.Decoder(list[Refused])


def register(command: RegisterWorker, transaction: Transaction, state: EngineState) -> None:
    """Learn a worker and its tasks. Runs that it should hold and does not know of are queued again: their claim got lost.

    What the worker said before it said something newer, and what arrives late, changes nothing.
    """
    known = state.workers.get(command.worker_id)
    if known is not None and 0 < command.sequence <= known.registration:
        return
    limits = state.queue_limits
    new_tasks = [task.id for task in command.tasks if task.id not in state.tasks]
    state.learn_offered(command.tasks)
    for task in new_tasks:
        # Runs that were triggered before anybody had said which queue is theirs.
        run_store.move_queued(
            transaction.connection, task, from_queue=default_queue(task), to_queue=state.queue_of(task)
        )
    transaction.registered_workers.add(command.worker_id)
    if state.queue_limits != limits:
        # One that was raised has free slots.
        transaction.everything_offered = True
    due_at = run_store.next_due_at_after(transaction.connection, transaction.now, new_tasks)
    if due_at is not None:
        state.due_later(due_at)
    records.save_tasks(
        transaction.connection,
        [
            TaskRow(
                id=task.id,
                queue=task.queue,
                queue_concurrency=task.queue_concurrency,
                retry=msgspec.json.encode(task.retry),
                payload_schema=msgspec.json.encode(task.payload_schema) if task.payload_schema else None,
                updated_at=transaction.now,
                metadata_schema=msgspec.json.encode(task.metadata_schema) if task.metadata_schema else None,
            )
            for task in command.tasks
        ],
    )
    state.worker_registered(
        Worker(
            command.worker_id,
            command.name,
            tuple(dict.fromkeys(task.id for task in command.tasks)),
            transaction.steady_now,
            registration=command.sequence,
            newest_claim=command.claims if command.sequence else -1,
        )
    )
    holding = set(command.holding)
    attempts = dict(zip(command.holding, command.attempts, strict=False))
    held = run_store.held_ids(transaction.connection, command.worker_id)
    transaction.load_runs(held)
    for run_id in sorted(held):
        row = transaction.run(run_id)
        if row is None or row.worker_id != command.worker_id:
            continue
        if run_id in holding and attempts.get(run_id, row.attempt) == row.attempt:
            continue
        if row.report_sequence:
            release([run_id], transaction, state)
        else:
            # The attempt never began, so it does not count.
            _apply(row, Change(RunStatus.QUEUED, row.attempt - 1, None, due_at=row.due_at), transaction)


def worker_of(worker_id: str, transaction: Transaction, state: EngineState) -> Worker:
    """The registered worker, seen now. Raises NotFoundError: the worker then registers anew."""
    worker = state.workers.get(worker_id)
    if worker is None or worker_id in transaction.gone_workers:
        raise NotFoundError(f"worker {worker_id!r} is not registered with this server: register it first")
    worker.seen_at = transaction.steady_now
    return worker


def claim_runs(
    command: Claim, transaction: Transaction, state: EngineState, among: Container[str] | None = None
) -> list[ClaimedRun]:
    """Lease due runs to the worker, oldest first; none when none is due. Queue limits hold over all workers.

    Args:
        among: where it is known that of other tasks than these no run is due.
    """
    worker = worker_of(command.worker_id, transaction, state)
    if command.sequence == worker.answered_sequence:
        return worker.answer
    tasks = worker.tasks if among is None else tuple(task for task in worker.tasks if task in among)
    if not tasks or command.slots < 1:
        return []
    ids = _due_within_limits(tasks, min(command.slots, SLOTS_MAX), transaction, state)
    if not ids:
        return []
    records = run_store.load_records(transaction.connection, ids, values=True)
    for record in records.values():
        transaction.adopt(record.row)
        _apply(record.row, claim(record.row, worker.id), transaction)
    return _claimed([records[run_id] for run_id in ids], transaction, state)


def report(command: Report, transaction: Transaction, state: EngineState) -> list[RunReply]:
    """Apply what a worker reports, run by run; see `RunReport` for what may be repeated.

    A worker that leaves is taken at its word also where it is not known, because the server has started anew meanwhile.
    """
    is_known = command.worker_id in state.workers and command.worker_id not in transaction.gone_workers
    if command.leaving and not command.runs and not is_known:
        release(run_store.held_ids(transaction.connection, command.worker_id), transaction, state)
        return []
    worker = worker_of(command.worker_id, transaction, state)
    deltas = _Deltas(transaction)
    replies = [_report_run(item, worker.id, transaction, state, deltas) for item in command.runs]
    if command.leaving:
        release(run_store.held_ids(transaction.connection, worker.id), transaction, state)
        transaction.gone_workers.add(worker.id)
    return replies


def append_log(command: AppendLog, transaction: Transaction, state: EngineState) -> None:
    """Store what a worker's runs have logged. Raises NotFoundError: the worker then registers anew."""
    worker_of(command.worker_id, transaction, state)
    logs.append(command, transaction, state)


def release_lost(transaction: Transaction, state: EngineState) -> int:
    """Give up the runs of workers that have been silent for longer than the lease.

    A worker that this server has never heard of gets one lease from the server's start to come back.
    """
    silent_since = transaction.steady_now - int(state.settings.lease_seconds * 1_000_000)
    transaction.gone_workers.update(
        worker.id for worker in state.workers.values() if worker.seen_at < silent_since
    )
    if state.started_at > silent_since:
        return 0
    lost: list[str] = []
    for worker_id in run_store.holders(transaction.connection):
        if worker_id not in state.workers or worker_id in transaction.gone_workers:
            lost += run_store.held_ids(transaction.connection, worker_id)
    release(lost, transaction, state)
    return len(lost)


def release(run_ids: Sequence[str], transaction: Transaction, state: EngineState) -> None:
    """The worker that held these runs has gone: the tasks' own retry rules decide what follows."""
    transaction.load_runs(run_ids)
    for run_id in run_ids:
        row = transaction.run(run_id)
        if row is not None and row.worker_id is not None:
            outcome = lose(row, state.retry_of(row.task), row.max_attempts, random.random())
            _finish(row, outcome, transaction, state)


def related_run_ids(reports: Iterable[RunReport]) -> set[str]:
    """Every run that these reports speak of, to be loaded in one go."""
    ids: set[str] = set()
    for item in reports:
        ids.add(item.id)
        ids.update(target.run for target in item.changes)
    return ids


class _Deltas:
    """What the worker's copies of documents lack, for the answer to one report, within `REPLY_BYTES_MAX`."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._room_bytes = REPLY_BYTES_MAX

    def reply(self, item: RunReport, row: RunRow, refused: list[Refused]) -> RunReply:
        """The answer for one run, with what is newer than its copy of the document."""
        since = item.metadata_version
        if since < 0 or not row.metadata_written:
            return RunReply(id=item.id, refused=refused)
        hot = self._transaction.documents([row])[row.id]
        if self._room_bytes <= 0:
            return RunReply(id=item.id, refused=refused, behind=since < hot.document.version)
        reader = Writer(item.id, item.attempt)
        delta = hot.delta(since, reader, lambda: self._transaction.known_ids(row.id))
        if delta is not None:
            self._room_bytes -= _size_of(delta)
        return RunReply(id=item.id, refused=refused, delta=delta)


def _size_of(delta: MetadataDelta) -> int:
    if delta.metadata is not None:
        return len(memoryview(delta.metadata))  # pyright: ignore[reportArgumentType] - it is Raw here
    changes = delta.changes or []
    return len(msgspec.json.encode(changes)) if any(change.operations for change in changes) else 0


def _report_run(
    item: RunReport, worker_id: str, transaction: Transaction, state: EngineState, deltas: _Deltas
) -> RunReply:
    row = transaction.run(item.id)
    if row is None or row.attempt != item.attempt or row.worker_id not in (None, worker_id):
        return RunReply(id=item.id, lost=True)
    if 0 < item.sequence < row.report_sequence and row.worker_id is None:
        # Nobody waits for an answer to what the attempt said before its last word. This is another attempt under the same number, of
        # which nothing was heard until the run had been handed on.
        return RunReply(id=item.id, lost=True)
    checksum = _checksum(item) if item.sequence else None
    if 0 < item.sequence <= row.report_sequence:
        if item.sequence == row.report_sequence and checksum != row.report_checksum:
            return RunReply(id=item.id, refused=_refuse_reused(item, transaction, state))
        earlier = transaction.earlier_refusals(row.id, item.attempt, item.sequence)
        return deltas.reply(item, row, _REFUSED.decode(earlier) if earlier else [])
    if not holds(row, worker_id, item.attempt):
        return RunReply(id=item.id, lost=True)
    refused: list[Refused] = []
    if item.sequence:
        row.report_sequence, row.report_checksum = item.sequence, checksum
        transaction.save_report(row)
        if item.changes:
            refused = write_reported(item, row, transaction, state)
        if refused:
            transaction.keep_refusals(row.id, item.attempt, item.sequence, msgspec.json.encode(refused))
            logs.tell(row.id, item.attempt, "warning", refused_lines(refused), transaction, state)
    if item.outcome is not None:
        _finish(row, item.outcome, transaction, state)
        return RunReply(id=item.id, refused=refused)
    if item.waiting is not None:
        status = RunStatus.WAITING if item.waiting else RunStatus.EXECUTING
        if status is not row.status:
            _apply(row, Change(status, row.attempt, row.worker_id), transaction)
    return deltas.reply(item, row, refused)


def _checksum(item: RunReport) -> int:
    """What a report says, in short: a repeat says the same. The version that the worker has may differ, it asks and does not tell."""
    # Always the same number of bytes in the row: SQLite writes a row anew, with the document in it, when its size changes.
    return 1 << 40 | zlib.crc32(msgspec.json.encode((item.changes, item.outcome)))


def _refuse_reused(item: RunReport, transaction: Transaction, state: EngineState) -> list[Refused]:
    """A report under the number of another one is no repeat. Nothing of it is applied, and its writer and the run's log hear of it."""
    message = f"report {item.sequence} of attempt {item.attempt} was sent before with other content; each report needs its own number"
    logs.tell(item.id, item.attempt, "error", [message], transaction, state)
    return [
        Refused(
            run=target.run, index=index, code="sequence_reused", message=message, operation=told(operation)
        )
        for target in item.changes
        for index, operation in enumerate(target.operations)
    ]


def _finish(row: RunRow, outcome: Outcome, transaction: Transaction, state: EngineState) -> None:
    outcome = _storable(outcome)
    change = finish(row, outcome, transaction.now)
    _apply(row, change, transaction)
    error = msgspec.json.encode(outcome.error).decode() if outcome.error else None
    transaction.save_result(row, outcome.output if error is None else None, error)
    if change.due_at is not None and change.due_at > transaction.now:
        state.due_later(change.due_at)
    if change.status.is_final:
        transaction.fold(row)
        _tell_parent(row, transaction)


def _storable(outcome: Outcome) -> Outcome:
    """The outcome as it can be kept. What cannot be has its own attempt fail, for good: running again would end the same way."""
    error = outcome.error
    if error is not None:
        if len(error.message) + len(error.stack_trace or "") + len(error.name or "") <= ERROR_CHARACTERS_MAX:
            return outcome
        shortened = RunError(
            message=error.message[: ERROR_CHARACTERS_MAX // 4],
            name=error.name and error.name[:1000],
            stack_trace=error.stack_trace and error.stack_trace[-ERROR_CHARACTERS_MAX // 2 :],
        )
        return msgspec.structs.replace(outcome, error=shortened)
    output = outcome.output
    if output is None:
        return outcome
    if len(output) * 4 > OUTPUT_BYTES_MAX and _bytes(output) > OUTPUT_BYTES_MAX:
        message = (
            f"the output is {_bytes(output):,} bytes of JSON, and at most {OUTPUT_BYTES_MAX:,} can be kept; "
            f"store it elsewhere and return where"
        )
    elif not _is_json(output):
        message = "the worker reported an output that is not JSON"
    else:
        return outcome
    return Outcome(error=RunError(name="OutputError", message=message))


def _bytes(text: str) -> int:
    return len(text.encode())


def _is_json(text: str) -> bool:
    try:
        _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _tell_parent(row: RunRow, transaction: Transaction) -> None:
    if row.batch_id is not None:
        batch = transaction.batch(row.batch_id)
        assert batch is not None, "a run's batch is never deleted before the run"
        batch.finished_count += 1
        transaction.save_batch(batch)
        tell_batch(batch, transaction)
    else:
        _tell_end(row.id, row.parent_id, transaction)


def tell_batch(batch: BatchRow, transaction: Transaction) -> None:
    """Announce how far a batch is; to the run that has triggered it, that it has ended."""
    transaction.announce_batch(batch)
    if batch.finished_count >= batch.run_count:
        _tell_end(batch.id, batch.parent_id, transaction)


def _tell_end(ended_id: str, parent_id: str | None, transaction: Transaction) -> None:
    parent = transaction.run(parent_id) if parent_id else None
    if parent is not None and parent.worker_id is not None:
        transaction.announce_finished_child(parent.worker_id, ended_id)


def _apply(row: RunRow, change: Change, transaction: Transaction) -> None:
    now = transaction.now
    if change.attempt > row.attempt:
        # A new attempt: its reports are counted from 1 again.
        row.report_sequence = 0
    if change.status is RunStatus.EXECUTING and row.started_at is None:
        row.started_at = now
    if change.due_at is not None:
        row.due_at = change.due_at
        if change.due_at <= now:
            transaction.offered_tasks.add(row.task)
    if row.status is RunStatus.EXECUTING:
        transaction.freed_queues.add(row.queue)
    row.status, row.attempt, row.worker_id = change.status, change.attempt, change.worker_id
    row.finished_at = now if change.status.is_final else None
    transaction.save_run(row)
    transaction.announce_state(row)


def _due_within_limits(
    tasks: Sequence[str], limit: int, transaction: Transaction, state: EngineState
) -> list[str]:
    """Ids of due runs that may execute now, oldest first. A queue that is full does not hold up the others."""
    limits = state.queue_limits
    chosen: dict[str, str] = {}
    if not limits:
        due = run_store.due_ids(transaction.connection, tasks, limit=limit, now=transaction.now)
        return [run_id for run_id, _ in due]
    executing = run_store.executing_counts(transaction.connection, limits)
    while True:
        full = [queue for queue, most in limits.items() if executing.get(queue, 0) >= most]
        # Those chosen before are found again: they are still queued.
        due = run_store.due_ids(
            transaction.connection,
            tasks,
            limit=limit,
            now=transaction.now,
            without_queues=full,
            besides=len(chosen),
        )
        found_full = False
        for run_id, queue in due:
            if run_id in chosen or len(chosen) == limit:
                continue
            if queue in limits:
                if executing.get(queue, 0) >= limits[queue]:
                    found_full = True
                    continue
                executing[queue] = executing.get(queue, 0) + 1
            chosen[run_id] = queue
        if not found_full or len(chosen) == limit:
            return list(chosen)


def _claimed(records: Sequence[RunRecord], transaction: Transaction, state: EngineState) -> list[ClaimedRun]:
    written = [record.row for record in records if record.row.metadata_written]
    documents = transaction.documents(written) if written else {}
    claimed: list[ClaimedRun] = []
    for record in records:
        row = record.row
        run = ClaimedRun(
            id=row.id,
            task=row.task,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            payload=record.payload,
            payload_type=record.payload_type,
            tags=record.tags,
            queue=row.queue,
            parent_id=row.parent_id,
            root_id=row.root_id,
            has_typed_ancestor=has_typed_ancestor(row, transaction, state),
            batch_id=row.batch_id,
            depth=row.depth,
            created_at=row.created_at,
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
