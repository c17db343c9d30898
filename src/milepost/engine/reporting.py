"""Deciding on reports: what the attempts of a worker have done, each word of them at most once."""

import zlib
from collections.abc import Iterable

import msgspec

from milepost.engine import ending, logs, queues, workers
from milepost.engine.commands import AppendLog, Report
from milepost.engine.documents import Writer
from milepost.engine.metadata import refused_lines, told, write_reported
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.engine.workers import worker_of
from milepost.model.lifecycle import Move, holds
from milepost.model.run import RunStatus
from milepost.protocol.metadata import MetadataDelta, Refused
from milepost.protocol.work import RunReply, RunReport
from milepost.store.runs import RunRow

# Documents in the answer to one report, about; what has no room comes with the next one.
REPLY_BYTES_MAX = 8 * 1024 * 1024
_REFUSED = msgspec.json.Decoder(list[Refused])


def report(command: Report, transaction: Transaction, state: EngineState) -> list[RunReply]:
    """Apply what a worker reports, run by run; see `RunReport` for what may be repeated.

    A worker that leaves or has died need not be known: what it held it may hold from before.
    """
    replies: list[RunReply] = []
    if command.runs or not (command.leaving or command.death):
        worker = worker_of(command.worker_id, transaction)
        deltas = _Deltas(transaction)
        replies = [_report_run(item, worker.id, transaction, state, deltas) for item in command.runs]
    if command.death is not None:
        workers.die(command.worker_id, command.death, transaction, state)
    if command.leaving:
        workers.leave(command.worker_id, transaction, state)
    return replies


def append_log(command: AppendLog, transaction: Transaction, state: EngineState) -> None:
    """Store what a worker's runs have logged. Raises NotFoundError: the worker then registers anew."""
    worker_of(command.worker_id, transaction)
    logs.append(command, transaction, state)


def related_run_ids(reports: Iterable[RunReport]) -> set[str]:
    """Every run that these reports speak of, to be loaded in one go."""
    ids: set[str] = set()
    for item in reports:
        ids.add(item.id)
        ids.update(target.run for target in item.changes)
    return ids


def written_run_ids(reports: Iterable[RunReport]) -> set[str]:
    """Every run whose document these reports would change."""
    return {target.run for item in reports for target in item.changes if target.operations}


class _Deltas:
    """What the worker's copies of documents lack, for the answer to one report, within `REPLY_BYTES_MAX`."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._room_bytes = REPLY_BYTES_MAX

    def reply(self, item: RunReport, row: RunRow, refused: list[Refused]) -> RunReply:
        """The answer for one run, with what is newer than its copy of the document."""
        reply = RunReply(
            id=item.id,
            refused=refused,
            resumed=None if item.waiting is not False else row.status is RunStatus.EXECUTING,
            cancel=row.cancel_asked_at is not None,
        )
        since = item.metadata_version
        if since < 0 or since == row.metadata_version:
            return reply
        hot = self._transaction.document(row)
        if self._room_bytes <= 0:
            reply.behind = since < hot.document.version
            return reply
        reader = Writer(item.id, item.attempt)
        reply.delta = hot.delta(since, reader, lambda: self._transaction.known_ids(row.id))
        if reply.delta is not None:
            self._room_bytes -= _size_of(reply.delta)
        return reply


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
    checksum = _checksum(item) if item.sequence else None
    if 0 < item.sequence <= row.report_sequence:
        if item.sequence == row.report_sequence and checksum != row.report_checksum:
            return RunReply(id=item.id, refused=_refuse_reused(item, transaction, state))
        earlier = transaction.earlier_refusals(row.id, item.attempt, item.sequence)
        return deltas.reply(item, row, _REFUSED.decode(earlier) if earlier else [])
    if not holds(row, worker_id, item.attempt):
        return RunReply(id=item.id, lost=True)
    begins = row.begun_at is None and (item.begun or item.sequence > 0 or item.waiting is not None)
    if begins:
        # Whatever an attempt says, it says once its code has begun; a report that asks only says nothing.
        row.begun_at = transaction.now
    if item.sequence:
        row.report_sequence, row.report_checksum = item.sequence, checksum
    if begins or item.sequence:
        transaction.save_report(row)
    refused: list[Refused] = []
    if item.sequence:
        if item.changes:
            refused = write_reported(item, row, transaction, state)
        if refused:
            transaction.keep_refusals(row.id, item.attempt, item.sequence, msgspec.json.encode(refused))
            logs.tell(row.id, item.attempt, "warning", refused_lines(refused), transaction, state)
    if item.outcome is not None:
        end = ending.end_dead if item.outcome.lacks_hooks else ending.end_attempt
        end(row, ending.ending_of(item.outcome), transaction, state)
        return RunReply(id=item.id, refused=refused)
    if item.waiting is not None:
        _wait_or_go_on(row, item.waiting, transaction)
    return deltas.reply(item, row, refused)


def _wait_or_go_on(row: RunRow, waits: bool, transaction: Transaction) -> None:
    if not waits:
        queues.go_on(row, transaction)
        return
    queues.give_up_resuming(row, transaction)
    if row.status is not RunStatus.WAITING:
        queues.change_status(row, Move.WAIT, transaction)


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
