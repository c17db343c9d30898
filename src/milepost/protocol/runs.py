"""Runs on the wire, as the official clients read them (protocol, section 5), with `metadataVersion` and a few fields more."""

from datetime import datetime

import msgspec

from milepost.model.run import AttemptEnd, QueuedReason, RunError, RunStatus
from milepost.protocol.queues import QueueWait
from milepost.protocol.schedules import RunSchedule
from milepost.protocol.streams import StreamSummary


class RunFields(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """What is told of a run wherever it is shown: everything but document, payload, output and relations."""

    id: str
    status: RunStatus
    task_identifier: str
    is_queued: bool
    is_executing: bool
    is_waiting: bool
    is_completed: bool
    is_success: bool
    is_failed: bool
    is_cancelled: bool
    is_test: bool
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    delayed_until: datetime | None = None
    expired_at: datetime | None = None
    # When the run was asked to end; it is CANCELED once that has come true.
    cancel_asked_at: datetime | None = None
    tags: list[str]
    cost_in_cents: int
    base_cost_in_cents: int
    duration_ms: int
    error: RunError | None = None
    batch_id: str | None = None
    parent_id: str | None = None
    root_id: str
    queue: str
    attempt_count: int
    depth: int
    trigger_function: str
    env: dict[str, str]
    ttl: str | None = None
    priority: int = 0
    max_duration_seconds: float | None = None
    concurrency_key: str | None = None
    idempotency_key: str | None = None
    # The run that this one repeats.
    replay_of: str | None = None


class RunSummary(RunFields, omit_defaults=True, rename="camel", kw_only=True):
    """A run as lists show it: with its document, without payload and output."""

    metadata: msgspec.Raw
    metadata_version: int


class RelatedRun(RunFields, omit_defaults=True, rename="camel", kw_only=True):
    """A run as its relatives show it. The documents of children are left out: a hundred of them may have 25 MB."""

    metadata: msgspec.Raw | None = None
    metadata_version: int | None = None


class RelatedRuns(msgspec.Struct, omit_defaults=True):
    """The family of a run. `children` holds the newest ones, at most 100; the feed of a run leaves them out."""

    root: RelatedRun | None = None
    parent: RelatedRun | None = None
    children: list[RelatedRun] | None = None


class RunAttempt(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """An attempt of a run. `number` is no other attempt's; there is a gap where one was not kept.

    `claimedAt` is when a worker was given the run, `begunAt` when the server first heard that its code has begun. `end` is how it
    ended, absent while it is under way; `isCharged`: it counts against the rule of retries, and `error` says why.
    """

    number: int
    worker_id: str | None = None
    claimed_at: datetime | None = None
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    end: AttemptEnd | None = None
    is_charged: bool = False
    error: RunError | None = None


class RunObject(RunSummary, omit_defaults=True, rename="camel", kw_only=True):
    """A whole run. `payload` and `output` are decoded JSON; `output` is there only after success. `isPayloadDeleted`: it had a
    payload, which the server was told not to keep (MILEPOST_KEEP_PAYLOADS)."""

    payload: msgspec.Raw | None = None
    is_payload_deleted: bool = False
    output: msgspec.Raw | None = None
    related_runs: RelatedRuns
    # How the children stand, by status; the list above may be cut, this never is.
    child_counts: dict[str, int]
    streams: list[StreamSummary] = []
    # Why a run that is queued cannot be taken by anybody at this moment.
    queued_reason: QueuedReason | None = None
    # The schedule that has triggered the run, while there is such a schedule.
    schedule: RunSchedule | None = None
    # And where it stands in its queue, as it was when the run was read.
    queue_wait: QueueWait | None = None
    attempts: list[RunAttempt]


class RunId(msgspec.Struct):
    """The run that was meant."""

    id: str


class Replayed(msgspec.Struct, rename="camel"):
    """The new run."""

    id: str
    task_identifier: str


class TagsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Tags to be added, one or several."""

    tags: str | list[str]


class TagsAnswer(msgspec.Struct):
    """All tags that the run has now."""

    message: str
    tags: list[str]


class Pagination(msgspec.Struct, omit_defaults=True):
    """Opaque cursors; absent at the ends."""

    next: str | None = None
    previous: str | None = None


class RunPage(msgspec.Struct):
    """One page of runs, newest first."""

    data: list[RunSummary]
    pagination: Pagination


class RunResult(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """The result of a finished run (protocol, section 5.7). `output` is JSON text."""

    ok: bool
    id: str
    task_identifier: str
    output: str | None = None
    output_type: str | None = None
    error: RunError | None = None


class TreeAttempt(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """An attempt as a tree shows it: from when until when, and how it ended; without `end` it is under way."""

    number: int
    began_at: datetime | None = None
    ended_at: datetime | None = None
    end: AttemptEnd | None = None


class TreeRun(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """A run as a tree shows it."""

    id: str
    task_identifier: str
    status: RunStatus
    parent_id: str | None = None
    depth: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: list[TreeAttempt]


class RunTree(msgspec.Struct, omit_defaults=True, rename="camel"):
    """A run and the runs below it, generation by generation and within one as they were triggered. `isCut`: there are more."""

    data: list[TreeRun]
    is_cut: bool = False


class RunDeleted(msgspec.Struct):
    """A run that is gone. `deleted`: how many runs, with all below it."""

    id: str
    deleted: int


LOG_LEVELS = ("debug", "info", "warning", "error")
"""The levels of log lines, the least severe first."""


class LogLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line of a run's log. `at` is microseconds since 1970; `level` is debug, info, warning or error."""

    at: int
    level: str
    message: str
    attempt: int = 1
    logger: str = ""


class ToldLogLine(LogLine, omit_defaults=True, rename="camel", kw_only=True):
    """A line as readers are told it. `runId` is there where the lines of several runs are told."""

    run_id: str | None = None


class RunLog(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Lines of a run's log in order, those that the filters let through.

    `cursor` is the last line that was looked at: `page[after]` for what is logged from then on. `next` is the same while there
    are more lines already, and absent at the end. A page with a filter may be empty and have a `next`. `hasEnded`: there are no more
    lines, and the run (of a tree: each run) has finished; a worker may still send the very last lines a moment later.
    """

    data: list[ToldLogLine]
    cursor: int
    next: int | None = None
    has_ended: bool = False
