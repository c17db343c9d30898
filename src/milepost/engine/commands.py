"""What the engine can be told to do. A command is a value; its result, or a refusal, is what `Engine.execute` answers.

A refused command is answered with a `MilepostError` and changes nothing; its neighbours in the group do not notice.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.protocol.schedules import CreateScheduleRequest, UpdateScheduleRequest
from milepost.protocol.streams import PartReply, WriterEnd
from milepost.protocol.triggering import BatchLine, TriggerOptions
from milepost.protocol.work import AttemptLines, Death, RunReport, WorkerTask
from milepost.store.documents import Snapshot


class AttemptRef(msgspec.Struct, frozen=True, gc=False):
    """An attempt of a run. A command that names one is refused when the attempt is over (`fencing.py`)."""

    run: str
    number: int


class BatchKey(msgspec.Struct, frozen=True, gc=False):
    """The idempotency key of a whole batch, with its time to live as the request has it."""

    key: str
    ttl: str | int | float | None = None


class TriggerItem(msgspec.Struct, frozen=True, gc=False):
    """One run to trigger."""

    task: str
    payload: str | None
    options: TriggerOptions


class OneTimeToken(msgspec.Struct, frozen=True, gc=False):
    """A public token that works once: what tells it apart, and when it expires, microseconds since 1970.

    The command that it comes with uses it up, unless that is refused or repeats an earlier request.
    """

    id: str
    expires_at: int


class Trigger(msgspec.Struct, frozen=True):
    """Queue one run, or find the one that its idempotency key or an earlier attempt of its parent stands for. Result: `Triggered`. A
    repeated `request_id` is answered as the first was.

    `replay_of` is the run that it repeats.
    """

    item: TriggerItem
    request_id: str | None = None
    token: OneTimeToken | None = None
    attempt: AttemptRef | None = None
    replay_of: str | None = None


class TriggerBatch(msgspec.Struct, frozen=True):
    """Queue runs together: all of them or none. Result: `Triggered`."""

    items: Sequence[TriggerItem]
    parent_id: str | None = None
    resume_parent: bool = False
    request_id: str | None = None
    token: OneTimeToken | None = None
    attempt: AttemptRef | None = None
    key: BatchKey | None = None


class Triggered(msgspec.Struct, frozen=True):
    """The runs in the order of the items; `cached` when the request id had been answered before. `found` are the positions of those
    that were there before the first request with this id; `found_batch`: so was the batch."""

    run_ids: list[str]
    batch_id: str | None = None
    cached: bool = False
    found: Sequence[int] = ()
    found_batch: bool = False


class CreateBatch(msgspec.Struct, frozen=True):
    """Announce a batch; `run_count` is None when it is not known yet. Result: its id. A repeated `request_id` is answered as the first
    was. With a `key` that a batch has already, the id is that batch's."""

    run_count: int | None
    parent_id: str | None = None
    resume_parent: bool = False
    request_id: str | None = None
    token: OneTimeToken | None = None
    attempt: AttemptRef | None = None
    key: BatchKey | None = None


class AddBatchItems(msgspec.Struct, frozen=True):
    """Add items to an announced batch; indexes that it has already are passed over. `run_count`, where it was not known before, is how
    many there are in all. With a `token`, the batch must be the one that was announced with it. Result: `ItemsAdded`."""

    batch_id: str
    lines: Sequence[BatchLine]
    run_count: int | None = None
    token: OneTimeToken | None = None
    attempt: AttemptRef | None = None


class ItemsAdded(msgspec.Struct, frozen=True):
    """How many items were new, how many the batch has of how many, and the runs of the items, in their order. `found` are the
    positions of new items whose runs were there before."""

    accepted: int
    deduplicated: int
    accepted_count: int
    run_count: int | None
    run_ids: list[str]
    found: Sequence[int] = ()


class ResetKey(msgspec.Struct, frozen=True):
    """Let an idempotency key stand for nothing. `task` is empty for the key of a batch. Result: None. A repeated
    `request_id` changes nothing."""

    key: str
    task: str = ""
    request_id: str | None = None
    attempt: AttemptRef | None = None


class UpdateMetadata(msgspec.Struct, frozen=True):
    """Apply operations (JSON objects, each decoded alone) to documents. Result: `MetadataUpdated`.

    `targets` are (relation, operations); a relation is self, parent or root. `document` replaces the run's own document as a whole
    and is refused as a whole. With `if_version`, everything is refused unless the run's own document has that version. A repeated
    `request_id` is answered with what the first one was refused, and changes nothing.

    `attempt` is set when the caller is part of a run, such as a child process of it: it may write to that run and its ancestors only,
    as the run itself.
    """

    run_id: str
    targets: Sequence[tuple[str, Sequence[Any]]] = ()
    document: dict[str, Any] | None = None
    if_version: int | None = None
    request_id: str | None = None
    attempt: AttemptRef | None = None


class CancelRun(msgspec.Struct, frozen=True):
    """A run is to end as cancelled, and its children too. Result: None. One that has ended stays as it is."""

    run_id: str
    attempt: AttemptRef | None = None


class RescheduleRun(msgspec.Struct, frozen=True):
    """A run that is delayed is delayed to another time: `due_at`, microseconds since 1970, or after a pause. Result: None. A
    repeated `request_id` changes nothing."""

    run_id: str
    due_at: int | None = None
    delay_ms: int | None = None
    request_id: str | None = None
    attempt: AttemptRef | None = None


class AddTags(msgspec.Struct, frozen=True):
    """Add tags to a run. Result: all that it has now. A tag that it has already is passed over."""

    run_id: str
    tags: Sequence[str]
    attempt: AttemptRef | None = None


class RegisterWorker(msgspec.Struct, frozen=True):
    """A worker presents itself; see `RegisterRequest`. Result: None."""

    worker_id: str
    name: str
    tasks: Sequence[WorkerTask]
    holding: Sequence[str]
    attempts: Sequence[int] = ()
    sequence: int = 0
    claims: int = 0


class Claim(msgspec.Struct, frozen=True):
    """Lease up to `slots` due runs to a worker. Result: `list[ClaimedRun]`, once there is one or `wait_seconds` are over.

    Atomic: no run goes to two workers. A repeated sequence number gets the same runs again, one behind a newer claim gets none: its
    worker does not listen to the answer.
    """

    worker_id: str
    sequence: int
    slots: int
    wait_seconds: float


class WithdrawClaim(msgspec.Struct, frozen=True):
    """Whoever made this claim is no longer there to hear the answer. Result: None."""

    worker_id: str
    sequence: int


class Report(msgspec.Struct, frozen=True):
    """What happened in the runs of a worker. Result: `list[RunReply]`. Each (run, attempt, sequence) is applied at most once."""

    worker_id: str
    runs: Sequence[RunReport]
    leaving: bool = False
    death: Death | None = None


class ProbeWriting(msgspec.Struct, frozen=True):
    """Write something and commit it: can the database be written? Result: None."""


class AppendLog(msgspec.Struct, frozen=True):
    """Store what the attempts of a worker have logged. Result: None. Each (run, attempt, worker, sequence) is stored at most once."""

    worker_id: str
    runs: Sequence[AttemptLines]


class Written(msgspec.Struct, frozen=True):
    """Chunks of one writer for one stream, as they can be stored; see `StreamPart`.

    `name` is the stream's name in the store, `chunks` are JSON texts without line feeds. `fault` says why nothing of it can be stored.
    `checksum_before` is that of all chunks before these as the sender has them: what is stored has to be the same. None: unknown.
    """

    run_id: str
    name: str
    writer: str
    first: int = 0
    chunks: Sequence[bytes] = ()
    end: WriterEnd | None = None
    fault: PartReply | None = None
    checksum_before: int | None = None


class AttemptWritten(msgspec.Struct, frozen=True):
    """What one attempt adds to streams."""

    run_id: str
    attempt: int
    parts: Sequence[Written]


class AddChunks(msgspec.Struct, frozen=True):
    """Store chunks that the attempts of a worker have written. Result: `list[AttemptReply]`. Each chunk of a writer is stored once."""

    worker_id: str
    runs: Sequence[AttemptWritten]


class AddOutsideChunks(msgspec.Struct, frozen=True):
    """Store chunks of a writer that no worker speaks for. Result: `PartReply`. Each chunk of a writer is stored once."""

    part: Written
    attempt: AttemptRef | None = None


class UseToken(msgspec.Struct, frozen=True):
    """Use up a token that works once, such as the code of a sign-in link. Result: False when it was used before."""

    token: OneTimeToken


class EndSession(msgspec.Struct, frozen=True):
    """A session of the dashboard was signed out: no server accepts it any more, and its feeds end. Result: None.

    `session` tells it apart among all tokens; it would have expired at `expires_at`, microseconds since 1970.
    """

    session: str
    expires_at: int


class PauseQueue(msgspec.Struct, frozen=True):
    """Hold up the queued runs of a queue, or let them be claimed again; what executes or waits goes on. Result: None.

    A repeated `request_id` changes nothing."""

    name: str
    is_paused: bool
    request_id: str | None = None


class OverrideQueueLimit(msgspec.Struct, frozen=True):
    """Set another limit of a queue than its tasks say; None: go by them again. Result: None.

    Where more runs execute, nothing is ended, and nothing starts until there are fewer. A repeated `request_id` changes nothing.
    """

    name: str
    limit: int | None
    request_id: str | None = None


class CreateWaitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Make something to wait for. Result: `CreatedWaitpoint`. One with the same key, or at the same place of the run, is that one.

    It ends by itself after `timeout_ms`, at `timeout_at` (microseconds since 1970), or not. A `place` is one in the run whose attempt
    makes it. A time is waited for by that run.
    """

    kind: WaitpointKind
    timeout_ms: int | None = None
    timeout_at: int | None = None
    tags: Sequence[str] = ()
    key: str | None = None
    key_ttl_ms: int | None = None
    place: str | None = None
    request_id: str | None = None
    attempt: AttemptRef | None = None


class CreatedWaitpoint(msgspec.Struct, frozen=True):
    """A waitpoint and how it stands. `is_cached`: it was there before."""

    id: str
    status: WaitpointStatus
    is_cached: bool = False


class CompleteToken(msgspec.Struct, frozen=True):
    """End a token with an output (JSON text). Result: `TokenCompletion`. A repeated `request_id` is answered as the first was."""

    token_id: str
    output: str | None
    request_id: str | None = None
    attempt: AttemptRef | None = None


class TokenCompletion(msgspec.Struct, frozen=True):
    """Whether a command has completed the token, and how that stands now. It was over before where it has not."""

    is_first: bool
    status: WaitpointStatus


class AwaitWaitpoint(msgspec.Struct, frozen=True):
    """The run of this attempt waits for a waitpoint, and its worker is told of the end. Result: the `WaitpointRow`."""

    waitpoint_id: str
    attempt: AttemptRef


class PruneWaitpoints(msgspec.Struct, frozen=True):
    """Forget up to `limit` waitpoints that have ended before a time. Result: how many; less than `limit`: all."""

    before: int
    limit: int


class PruneStreams(msgspec.Struct, frozen=True):
    """Forget the streams of up to `limit` runs that have ended before a time. Result: how many runs; less than `limit`: all."""

    before: int
    limit: int


class ReleaseLostRuns(msgspec.Struct, frozen=True):
    """Give up up to `limit` runs of workers that have been silent for longer than the lease. Result: how many; less than `limit`:
    all."""

    limit: int = 1000


class EndUnheededRuns(msgspec.Struct, frozen=True):
    """End up to `limit` runs that were asked to end, and of which their worker has not said for too long that they have. Result: how
    many; less than `limit`: all."""

    limit: int


class IndexDocuments(msgspec.Struct, frozen=True):
    """Bring the search index up to date for up to `limit` documents, fewer where they are large. Result: how many; 0: none was."""

    limit: int


class PruneAnswers(msgspec.Struct, frozen=True):
    """Forget up to `limit` answers, kept for repeated requests, of more than a day ago. Result: how many; less than `limit`: all."""

    limit: int


class PruneUsedTokens(msgspec.Struct, frozen=True):
    """Forget up to `limit` used tokens that have expired. Result: how many; less than `limit`: all."""

    limit: int


class PruneKeys(msgspec.Struct, frozen=True):
    """Forget up to `limit` idempotency keys that have expired. Result: how many; less than `limit`: all."""

    limit: int


class PruneAnnouncements(msgspec.Struct, frozen=True):
    """Forget up to `limit` announcements that every server has heard of long ago. Result: how many; less than `limit`: all."""

    limit: int


class PrunableLog(msgspec.Struct, frozen=True):
    """The changes of a run up to a version go. `start` is the document at that version; without one the run is settled, and its
    snapshot is all that is needed from now on: these of its `once` ids go too."""

    run_id: str
    up_to: int
    start: Snapshot | None = None
    counted: Sequence[bytes] = ()


class PruneHistory(msgspec.Struct, frozen=True):
    """Shorten logs as the walk over them has found that they may be. Result: None."""

    logs: Sequence[PrunableLog]


class CreateSchedule(msgspec.Struct, frozen=True):
    """Make a schedule, or change the one that has its deduplication key. Result: its `ScheduleRow`. A repeated `request_id` is
    answered with the schedule that the first has made, as it is now."""

    request: CreateScheduleRequest
    request_id: str | None = None
    attempt: AttemptRef | None = None


class UpdateSchedule(msgspec.Struct, frozen=True):
    """Change a schedule that was made by a call. Result: its `ScheduleRow`. A repeated `request_id` changes nothing."""

    schedule_id: str
    request: UpdateScheduleRequest
    request_id: str | None = None
    attempt: AttemptRef | None = None


class SetScheduleActive(msgspec.Struct, frozen=True):
    """Pause a schedule, or let it go on from its next time. Result: its `ScheduleRow`. A repeated `request_id` changes
    nothing."""

    schedule_id: str
    is_active: bool
    request_id: str | None = None
    attempt: AttemptRef | None = None


class DeleteSchedule(msgspec.Struct, frozen=True):
    """Forget a schedule that was made by a call. Result: None. Its runs go on. A repeated `request_id` changes nothing."""

    schedule_id: str
    request_id: str | None = None
    attempt: AttemptRef | None = None


class DeleteRun(msgspec.Struct, frozen=True):
    """Delete a finished run with all runs below it, up to `limit` of them, the deepest first. Result: how many, and how many are left.
    With a repeated `request_id` the run may have gone already."""

    run_id: str
    limit: int = 200
    request_id: str | None = None
    attempt: AttemptRef | None = None


class DeleteOldTree(msgspec.Struct, frozen=True):
    """Delete up to `limit` runs of a tree, if all of it has finished before the times of its statuses (`cutoffs`), and before
    `settled_before` by the clock that is never set back. Result: how many; less than `limit`: the tree has gone, or must stay."""

    root_id: str
    cutoffs: dict[str, int]
    settled_before: int
    limit: int


class DeleteLogLines(msgspec.Struct, frozen=True):
    """Delete these lines of the logs of runs. Result: how many."""

    numbers: Sequence[int]


class DeletePayloads(msgspec.Struct, frozen=True):
    """Delete the payloads of these finished runs. Result: how many."""

    run_ids: Sequence[str]


class BeginJob(msgspec.Struct, frozen=True):
    """This server would do a job of the upkeep that any server has to do once in a period (microseconds). Result: whether it may."""

    job: str
    period: int


class FinishJob(msgspec.Struct, frozen=True):
    """The job that this server has begun is done. Result: None."""

    job: str


Command = (
    Trigger
    | TriggerBatch
    | CreateBatch
    | AddBatchItems
    | ResetKey
    | UpdateMetadata
    | CancelRun
    | RescheduleRun
    | AddTags
    | RegisterWorker
    | Claim
    | WithdrawClaim
    | Report
    | ProbeWriting
    | AppendLog
    | AddChunks
    | AddOutsideChunks
    | UseToken
    | EndSession
    | CreateWaitpoint
    | CompleteToken
    | AwaitWaitpoint
    | PruneWaitpoints
    | PruneStreams
    | ReleaseLostRuns
    | EndUnheededRuns
    | IndexDocuments
    | PruneAnswers
    | PruneUsedTokens
    | PruneKeys
    | PruneAnnouncements
    | PruneHistory
    | CreateSchedule
    | UpdateSchedule
    | SetScheduleActive
    | DeleteSchedule
    | DeleteRun
    | DeleteOldTree
    | DeleteLogLines
    | DeletePayloads
    | BeginJob
    | PauseQueue
    | OverrideQueueLimit
    | FinishJob
)
