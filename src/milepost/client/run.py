"""`Run`: a run as a reader sees it, whichever call it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from milepost.client.shape import read_document
from milepost.errors import NotLoadedError
from milepost.model.run import QueuedReason, RunError, RunStatus
from milepost.protocol.queues import QueueWait
from milepost.protocol.runs import RunAttempt, RunObject, RunSummary
from milepost.protocol.schedules import RunSchedule
from milepost.protocol.streams import StreamSummary

ShapeT = TypeVar("ShapeT")

NOT_IN_LISTS: Final = ("payload", "output", "child_counts", "streams", "attempts")
"""What lists leave out, because it may be large or takes a look at other runs."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """A run at one moment. Times are aware UTC.

    Runs out of a list, and those of `runs.subscribe_where`, come without `payload`, `output`, `child_counts` and `streams`. Asked for
    one of them, such a run raises NotLoadedError and does not pretend that there is none. `is_whole` tells which kind it is, and
    `runs.retrieve(run.id)` reads everything.

    Attributes:
        id: the run's id.
        status: where it stands; `is_completed` and its kin answer the usual questions.
        task_id: the task that it is of.
        metadata: its document, a `dict` of the reader's own.
        metadata_version: how many changes the document has seen.
        payload: what it was triggered with, as JSON; None for nothing.
        output: what it returned, as JSON; None for nothing, and before success.
        error: the user's error as data, after a failed attempt.
        tags: its tags.
        parent_id: the run that triggered it; None when it was triggered from outside.
        root_id: the run at the top of the tree, itself when it has no parent.
        batch_id: the batch that it was triggered with.
        queue: the queue that it goes through.
        attempt_count: attempts so far.
        attempts: what became of each: `number`, `worker_id`, `claimed_at`, `begun_at`, `ended_at`, `end`, `is_charged`, `error`. Later
            states of a subscription have those of its beginning.
        created_at: when it was triggered.
        updated_at: when anything about it changed last.
        started_at: when its first attempt began.
        finished_at: when it ended.
        duration_ms: how long it has been executing.
        depth: how many runs are above it.
        queued_reason: why nobody could take it when it was read, while it is queued: `never_offered` when no worker has ever
            offered its task, `no_worker_online` when none that does is online. None when one is, and in lists,
            which do not look it up.
        queue_wait: why it has not begun and where it stood in its queue when it was read, while it is queued: `reason`, `position`,
            `estimated_seconds` (an estimate), `until`, `limit`, `running_ids`. None in lists and subscriptions.
        child_counts: its children by status.
        streams: its streams in the order in which they were begun: `key`, `chunk_count`, `size_bytes`, `state`, `error`. A
            subscription tells them anew when one has begun or a writer has ended, and at the run's end.
        delayed_until: when it will be queued, while it is DELAYED, and when the next attempt begins, after a failed one.
        expired_at: when it expired: no worker had taken it within its time to live.
        cancel_asked_at: when it was asked to end. It is CANCELED (`is_cancelled`) once that has come true.
        ttl, priority, max_duration_seconds, concurrency_key, idempotency_key: as they were asked for at the trigger.
        replay_of: the run that it repeats.
        schedule: the schedule that has triggered it, with the time that it is for, while there is such a schedule. Known of runs that
            were read by themselves.
        is_payload_deleted: it had a payload, which the server was told not to keep for so long (MILEPOST_KEEP_PAYLOADS). Known of runs
            that were read by themselves.
    """

    id: str
    status: RunStatus
    task_id: str
    metadata: dict[str, Any]
    metadata_version: int
    payload: Any
    output: Any
    error: RunError | None = None
    tags: list[str]
    parent_id: str | None = None
    root_id: str
    batch_id: str | None = None
    queue: str
    attempt_count: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_ms: int
    depth: int
    queued_reason: QueuedReason | None = None
    queue_wait: QueueWait | None = None
    child_counts: dict[str, int]
    streams: list[StreamSummary]
    attempts: list[RunAttempt]
    is_queued: bool
    is_executing: bool
    is_waiting: bool
    is_completed: bool
    is_success: bool
    is_failed: bool
    is_cancelled: bool
    delayed_until: datetime | None = None
    expired_at: datetime | None = None
    cancel_asked_at: datetime | None = None
    ttl: str | None = None
    priority: int = 0
    max_duration_seconds: float | None = None
    concurrency_key: str | None = None
    idempotency_key: str | None = None
    replay_of: str | None = None
    is_payload_deleted: bool = False
    schedule: RunSchedule | None = None

    @property
    def is_whole(self) -> bool:
        """True when `payload`, `output` and `child_counts` were read with the run."""
        return NOT_IN_LISTS[0] in self.__dict__

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there.
        if name in NOT_IN_LISTS:
            raise NotLoadedError(
                f"the {name} of run {self.id} was not loaded: lists come without it; runs.retrieve({self.id!r}) reads it"
            )
        raise AttributeError(f"a run has no attribute {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.task_id}: {self.status}, metadata version {self.metadata_version}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.__dict__ == other.__dict__

    def metadata_as(self, kind: type[ShapeT]) -> ShapeT:
        """The metadata as a typed value: a Pydantic model, dataclass, TypedDict, msgspec Struct or attrs class (M77).

        Raises: MetadataValueError when the document does not have that form.
        """
        return read_document(self.metadata, kind)


class WholeRun(RunObject, omit_defaults=True, rename="camel", kw_only=True):
    """`RunObject` for reading: msgspec can write an optional raw value and cannot read one."""

    payload: Any = None
    output: Any = None
    # Nothing here shows relatives, so they are passed over.
    related_runs: Any = None


def run_from_wire(wire: RunSummary, metadata: dict[str, Any] | None = None) -> Run:
    """A run out of a message. `metadata` is the document when it is at hand already; it is taken over, not copied."""
    is_whole = isinstance(wire, WholeRun)
    run = Run(
        id=wire.id,
        status=wire.status,
        task_id=wire.task_identifier,
        metadata=msgspec.json.decode(wire.metadata) if metadata is None else metadata,
        metadata_version=wire.metadata_version,
        payload=wire.payload if is_whole else None,
        is_payload_deleted=is_whole and wire.is_payload_deleted,
        schedule=wire.schedule if is_whole else None,
        output=wire.output if is_whole else None,
        error=wire.error,
        tags=wire.tags,
        parent_id=wire.parent_id,
        root_id=wire.root_id,
        batch_id=wire.batch_id,
        queue=wire.queue,
        attempt_count=wire.attempt_count,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        started_at=wire.started_at,
        finished_at=wire.finished_at,
        duration_ms=wire.duration_ms,
        depth=wire.depth,
        queue_wait=wire.queue_wait if is_whole and wire.is_queued else None,
        queued_reason=wire.queued_reason if is_whole and wire.is_queued else None,
        child_counts=wire.child_counts if is_whole else {},
        streams=wire.streams if is_whole else [],
        attempts=wire.attempts if is_whole else [],
        is_queued=wire.is_queued,
        is_executing=wire.is_executing,
        is_waiting=wire.is_waiting,
        is_completed=wire.is_completed,
        is_success=wire.is_success,
        is_failed=wire.is_failed,
        is_cancelled=wire.is_cancelled,
        delayed_until=wire.delayed_until,
        expired_at=wire.expired_at,
        cancel_asked_at=wire.cancel_asked_at,
        ttl=wire.ttl,
        priority=wire.priority,
        max_duration_seconds=wire.max_duration_seconds,
        concurrency_key=wire.concurrency_key,
        idempotency_key=wire.idempotency_key,
        replay_of=wire.replay_of,
    )
    if not is_whole:
        for name in NOT_IN_LISTS:
            del run.__dict__[name]
    return run
