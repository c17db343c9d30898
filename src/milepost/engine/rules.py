"""The table of commands: for each its place in a group, what is loaded for it, and how it is decided. A new command is a row here."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from milepost.engine import (
    cancelling,
    changing,
    deletion,
    idempotency,
    indexing,
    jobs,
    metadata,
    pruning,
    queues,
    reporting,
    schedules,
    streams,
    tokens,
    triggering,
    waitpoints,
    workers,
)
from milepost.engine.commands import (
    AddBatchItems,
    AddChunks,
    AddOutsideChunks,
    AddTags,
    AppendLog,
    AwaitWaitpoint,
    BeginJob,
    CancelRun,
    Command,
    CompleteToken,
    CreateBatch,
    CreateSchedule,
    CreateWaitpoint,
    DeleteLogLines,
    DeleteOldTree,
    DeletePayloads,
    DeleteRun,
    DeleteSchedule,
    EndSession,
    EndUnheededRuns,
    FinishJob,
    IndexDocuments,
    OverrideQueueLimit,
    PauseQueue,
    ProbeWriting,
    PruneAnnouncements,
    PruneAnswers,
    PruneHistory,
    PruneKeys,
    PruneStreams,
    PruneUsedTokens,
    PruneWaitpoints,
    RegisterWorker,
    ReleaseLostRuns,
    Report,
    RescheduleRun,
    ResetKey,
    SetScheduleActive,
    Trigger,
    TriggerBatch,
    UpdateMetadata,
    UpdateSchedule,
    UseToken,
    WithdrawClaim,
)
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import ConflictError
from milepost.protocol.endpoints import REQUEST_ID_HEADER
from milepost.store import announcements, records
from milepost.store import idempotency as key_store

# A server that was away for longer takes everything from the database anew.
ANNOUNCEMENTS_KEPT_MICROSECONDS = 300 * 1_000_000
ANSWERS_KEPT_MICROSECONDS = 24 * 3600 * 1_000_000
# Beyond their expiry, by a clock that may be set back.
USED_TOKENS_KEPT_MICROSECONDS = 24 * 3600 * 1_000_000


def _no_runs(command: Any) -> Iterable[str | None]:
    return ()


def _nothing(command: Any) -> Iterable[str]:
    return ()


def _no_parents(command: Any) -> Iterable[tuple[str, str | None]]:
    return ()


class Rule(msgspec.Struct, frozen=True):
    """How one kind of command is carried out.

    Args:
        order: its place in a group. What ends or frees comes before what asks for work, so that one commit can hand it on.
        decide: carries it out on the transaction; returns the result, or raises a `MilepostError` and has changed nothing.
        runs: the runs that it speaks of, loaded for the whole group in one go; None among them is passed over.
        parents: the parents that it names for what it triggers, each with its place in the request.
        logs: whether the marks of these runs' logs are loaded too.
        writes: the runs to whose documents it would write, and which are loaded in one go too.
        keys: the idempotency keys that it names.
    """

    order: int
    decide: Callable[[Any, Transaction, EngineState], Any]
    runs: Callable[[Any], Iterable[str | None]] = _no_runs
    parents: Callable[[Any], Iterable[tuple[str, str | None]]] = _no_parents
    logs: bool = False
    writes: Callable[[Any], Iterable[str]] = _nothing
    keys: Callable[[Any], Iterable[str]] = _nothing


def rule_of(command: Command) -> Rule:
    """The rule of a command. Claims have none: they are served after everything else."""
    return _RULES[type(command)]


def _chunk_runs(command: AddChunks) -> Iterable[str]:
    for written in command.runs:
        yield written.run_id
        yield from (part.run_id for part in written.parts)


def _parent_of_item(command: Trigger) -> Iterable[tuple[str, str | None]]:
    yield "options.parentRunId", command.item.options.parent_run_id


def _parent_of_batch(command: CreateBatch | TriggerBatch) -> Iterable[tuple[str, str | None]]:
    yield "parentRunId", command.parent_id
    if isinstance(command, TriggerBatch):
        for index, item in enumerate(command.items):
            yield f"items[{index}].options.parentRunId", item.options.parent_run_id


def _parents_of_lines(command: AddBatchItems) -> Iterable[tuple[str, str | None]]:
    for index, line in enumerate(command.lines):
        yield f"items[{index}].options.parentRunId", line.options.parent_run_id


def _key_of_batch(command: CreateBatch | TriggerBatch) -> Iterable[str]:
    return () if command.key is None else [command.key.key]


def _probe_writing(command: ProbeWriting, transaction: Transaction, state: EngineState) -> None:
    records.probe_writing(transaction.connection, now=transaction.now)


def _prune_answers(command: PruneAnswers, transaction: Transaction, state: EngineState) -> int:
    if not jobs.is_ours(JobName.ANSWERS, transaction, state):
        return 0
    before = transaction.now - ANSWERS_KEPT_MICROSECONDS
    return records.prune_answers(transaction.connection, before=before, limit=command.limit)


def _prune_announcements(command: PruneAnnouncements, transaction: Transaction, state: EngineState) -> int:
    if not jobs.is_ours(JobName.ANNOUNCEMENTS, transaction, state):
        return 0
    before = transaction.now - ANNOUNCEMENTS_KEPT_MICROSECONDS
    return announcements.prune_announcements(transaction.connection, before=before, limit=command.limit)


def _prune_used_tokens(command: PruneUsedTokens, transaction: Transaction, state: EngineState) -> int:
    if not jobs.is_ours(JobName.USED_TOKENS, transaction, state):
        return 0
    before = transaction.now - USED_TOKENS_KEPT_MICROSECONDS
    return records.prune_used_tokens(transaction.connection, before=before, limit=command.limit)


def _prune_keys(command: PruneKeys, transaction: Transaction, state: EngineState) -> int:
    if not jobs.is_ours(JobName.IDEMPOTENCY_KEYS, transaction, state):
        return 0
    return key_store.prune_keys(transaction.connection, before=transaction.age_now, limit=command.limit)


def _withdraw_claim(command: WithdrawClaim, transaction: Transaction, state: EngineState) -> None:
    transaction.withdrawn_claims.add((command.worker_id, command.sequence))


class _Done(msgspec.Struct):
    """What is kept of a request that has set something: what it said, in short. Those from before had no checksum."""

    checksum: int | None = None


def _once(
    decide: Callable[[Any, Transaction, EngineState], Any],
    again: Callable[[Any, Transaction], Any] = lambda command, transaction: None,
) -> Callable[[Any, Transaction, EngineState], Any]:
    """A decision that sets something. A repeat of its request changes nothing: it may come late, and what it would undo by then is
    newer than itself. It is answered with `again`."""

    def decided(command: Any, transaction: Transaction, state: EngineState) -> Any:
        if command.request_id is None:
            return decide(command, transaction, state)
        fields = msgspec.structs.asdict(command)
        said = [value for name, value in fields.items() if name not in ("request_id", "attempt")]
        checksum = zlib.crc32(msgspec.json.encode(said))
        earlier = transaction.earlier_answer(command.request_id)
        if earlier is None:
            result = decide(command, transaction, state)
            transaction.keep_answer(command.request_id, msgspec.json.encode(_Done(checksum)))
            return result
        if msgspec.json.decode(earlier, type=_Done).checksum not in (None, checksum):
            raise ConflictError(
                "this request id was used for a request that said something else: each request needs an id of its own",
                field=REQUEST_ID_HEADER,
            )
        return again(command, transaction)

    return decided


_RULES: dict[type[Any], Rule] = {
    RegisterWorker: Rule(0, workers.register),
    Report: Rule(
        1,
        reporting.report,
        lambda command: reporting.related_run_ids(command.runs),
        writes=lambda command: reporting.written_run_ids(command.runs),
    ),
    AppendLog: Rule(1, reporting.append_log, lambda command: (part.id for part in command.runs), logs=True),
    AddChunks: Rule(1, streams.add_chunks, _chunk_runs),
    UpdateMetadata: Rule(
        2,
        metadata.update_metadata,
        lambda command: [command.run_id],
        writes=lambda command: [command.run_id],
    ),
    CancelRun: Rule(2, cancelling.cancel, lambda command: [command.run_id]),
    RescheduleRun: Rule(2, _once(changing.reschedule), lambda command: [command.run_id]),
    AddTags: Rule(2, changing.add_tags, lambda command: [command.run_id]),
    CreateBatch: Rule(3, triggering.create_batch, parents=_parent_of_batch, keys=_key_of_batch),
    CompleteToken: Rule(2, waitpoints.complete),
    CreateWaitpoint: Rule(3, waitpoints.create),
    Trigger: Rule(
        4,
        triggering.trigger,
        lambda command: [command.item.options.parent_run_id],
        parents=_parent_of_item,
        keys=lambda command: idempotency.keys_of([command.item]),
    ),
    TriggerBatch: Rule(
        4,
        triggering.trigger_batch,
        lambda command: [command.parent_id],
        parents=_parent_of_batch,
        keys=lambda command: [*_key_of_batch(command), *idempotency.keys_of(command.items)],
    ),
    AddBatchItems: Rule(
        4,
        triggering.add_batch_items,
        parents=_parents_of_lines,
        keys=lambda command: idempotency.keys_of(command.lines),
    ),
    ResetKey: Rule(4, _once(triggering.reset_key), keys=lambda command: [command.key]),
    AddOutsideChunks: Rule(4, streams.add_outside_chunks, lambda command: [command.part.run_id]),
    AwaitWaitpoint: Rule(4, waitpoints.await_end),
    UseToken: Rule(4, tokens.use),
    EndSession: Rule(4, tokens.end_session),
    WithdrawClaim: Rule(4, _withdraw_claim),
    ReleaseLostRuns: Rule(4, workers.release_lost),
    EndUnheededRuns: Rule(4, cancelling.end_unheeded),
    ProbeWriting: Rule(4, _probe_writing),
    PruneAnswers: Rule(4, _prune_answers),
    PruneUsedTokens: Rule(4, _prune_used_tokens),
    PruneKeys: Rule(4, _prune_keys),
    PruneAnnouncements: Rule(4, _prune_announcements),
    PruneStreams: Rule(4, streams.prune),
    PruneWaitpoints: Rule(4, waitpoints.prune),
    PruneHistory: Rule(4, pruning.prune_history),
    CreateSchedule: Rule(4, schedules.create),
    UpdateSchedule: Rule(4, _once(schedules.change, schedules.current)),
    SetScheduleActive: Rule(4, _once(schedules.set_active, schedules.current)),
    DeleteSchedule: Rule(4, _once(schedules.delete)),
    PauseQueue: Rule(1, _once(queues.pause)),
    OverrideQueueLimit: Rule(1, _once(queues.override_limit)),
    BeginJob: Rule(4, jobs.begin),
    FinishJob: Rule(4, jobs.finish),
    # After all that writes: the rows in memory do not learn that their documents are indexed now.
    IndexDocuments: Rule(5, indexing.index_documents),
    # Last of all: nothing is written to what they have deleted.
    DeleteRun: Rule(6, deletion.delete_run),
    DeleteOldTree: Rule(6, deletion.delete_old_tree),
    DeleteLogLines: Rule(6, deletion.delete_log_lines),
    DeletePayloads: Rule(6, deletion.delete_payloads),
}
