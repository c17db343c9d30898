"""The worker link on the wire: register, claim, report, log, inbox.

Every request is safe to repeat: a claim carries a sequence number per worker and is answered again with the same runs; a report
carries (run, attempt, sequence) for each run and is applied at most once (M44, M45), and so do log lines, which travel in requests of
their own: no volume of them holds up or endangers operations and outcomes.
"""

from typing import Any

import msgspec

from milepost.model.operations import Operation
from milepost.model.retry import RetryRule
from milepost.model.run import Closing, Outcome
from milepost.protocol.metadata import MetadataDelta, Refused
from milepost.protocol.runs import LogLine
from milepost.protocol.schedules import TaskSchedule

NO_DECIMAL_POINT = "x-noDecimalPoint"
"""A keyword of metadata schemas beyond JSON Schema, whose integers may be written as `5.0`: with it they may not."""

LOG_LINE_BYTES = 32
"""What a line of a log counts beside its texts."""

LOG_LINES_MAX = 20_000
"""Lines that one request may hold. One group of commands must not hold up the others."""


class WorkerTask(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """A task that a worker can run, and the server's share of its rules.

    `payloadSchema` describes the payload, for who wants to trigger it. `metadataSchema` is the type of the metadata of its runs, as a
    JSON schema (2020-12): the server holds every writer to it (M76). The newest registration of a task replaces what was known of it,
    so of two versions of a task that run side by side the one that has registered last decides. `schedule` counts when a worker comes
    for the first time, and not when it only registers anew. `hasEndHooks`: it has hooks that
    run when a run has failed; see `ClaimedRun.closing`.
    """

    id: str
    queue: str
    queue_concurrency: int | None = None
    queue_rate: str | None = None
    retry: RetryRule
    payload_schema: dict[str, Any] | None = None
    metadata_schema: dict[str, Any] | None = None
    schedule: TaskSchedule | None = None
    has_end_hooks: bool = False


class RegisterRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """A worker presents itself, at its start and whenever the server does not know it (any more), or does not know which of its
    claims is the newest: each server that has started since says so when it is asked for runs.

    `id` is chosen by the worker, so that registering may be repeated. `holding` are the runs that it has; what the server
    thinks it holds beyond them was claimed by an answer that got lost, and is queued again. `attempts` says which attempt of
    each it has: an earlier one may have ended and the next one been claimed, both by answers that got lost. `sequence` counts what
    the worker says here, from 1, and `claims` is the number of its claim under way, or of its next one: what arrives behind something
    newer says nothing.
    """

    id: str
    name: str
    tasks: list[WorkerTask]
    holding: list[str] = []
    attempts: list[int] = []
    sequence: int = 0
    claims: int = 0


class RegisterResponse(msgspec.Struct, rename="camel", kw_only=True):
    """What the worker has to know. After `leaseSeconds` of silence its runs are given up. `logBytesMax` is what the server keeps of
    the log of one attempt, each line counted as `log_line_size` says. `stopGraceSeconds` is how long code may go on that was asked to
    end; then the worker says that its run has."""

    lease_seconds: float
    heartbeat_seconds: float
    metadata_size_max: int
    log_bytes_max: int
    stop_grace_seconds: float = 30.0


class ClaimRequest(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Ask for up to `slots` runs; the answer waits up to `waitSeconds` until there is one."""

    sequence: int
    slots: int
    wait_seconds: float


class ClaimedRun(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False):
    """A run that this worker now holds, with all that the attempt needs. Times are microseconds since 1970.

    `counted` are up to 5,000 of the `once` ids that were counted in this run, so that the worker's own view need not count them
    again; the server counts right in any case. Each is 12 bytes, as `milepost.model.counted.id_of` makes them, one after the other,
    in base64.

    `hasTypedAncestor`: a run above has a declared type of its metadata (M76), which holds for each operation that comes from here.

    `attempt` is a number that no other attempt of the run has. `charged` says how many attempts before this one count against the
    rule of retries. `hasBegun`: the code of an earlier attempt has begun. `isApart`: a process has died in which this run and others
    executed, so nothing else may execute beside it, and its code begins only when a report with `begun` was answered.
    `closing`: the run is to end like this, because its process is dead. This attempt runs the hooks of its end and nothing else, and
    its outcome is empty.
    `retry`: its own rule of retries, in the place of the task's.
    `hasQueueLimit`: after a wait the run goes on when the server says so, because its queue may be full.
    """

    id: str
    task: str
    attempt: int
    max_attempts: int | None = None
    charged: int = 0
    has_begun: bool = False
    is_apart: bool = False
    has_queue_limit: bool = False
    payload: str | None = None
    payload_type: str | None = None
    metadata: dict[str, Any] = {}
    metadata_version: int = 0
    counted: bytes = b""
    tags: list[str] = []
    queue: str = ""
    parent_id: str | None = None
    root_id: str = ""
    has_typed_ancestor: bool = False
    batch_id: str | None = None
    depth: int = 0
    created_at: int = 0
    concurrency_key: str | None = None
    priority: int = 0
    max_duration_ms: int | None = None
    replay_of: str | None = None
    retry: RetryRule | None = None
    closing: Closing | None = None


class ClaimResponse(msgspec.Struct):
    """The runs, possibly none."""

    runs: list[ClaimedRun]


class TargetOperations(msgspec.Struct, omit_defaults=True, gc=False):
    """Operations for one run's document, in the order of the calls."""

    run: str
    operations: list[Operation]


class RunReport(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True
):
    """What happened in one attempt since the last report.

    `sequence` counts the reports of the attempt from 1; it is 0 when nothing has to be applied at most once (no operations, no
    outcome). `metadataVersion` is the version of the own document that the worker has; the answer brings what is newer.
    `begun` says that the code of the attempt has begun, for an attempt of which nothing else was reported yet. `waiting` says
    whether the run waits from now on, when that changed; false asks to go on, and `RunReply.resumed` is the answer. The outcome and
    the last operations are one transaction (M38).
    """

    id: str
    attempt: int
    sequence: int = 0
    metadata_version: int = -1
    changes: list[TargetOperations] = []
    begun: bool = False
    waiting: bool | None = None
    outcome: Outcome | None = None


class BegunRun(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """An attempt whose code had begun in a process that died. `waiting`: it waited for other runs and executed nothing. `timedOut`:
    its process was killed because the attempt took longer than it may."""

    id: str
    attempt: int
    waiting: bool = False
    timed_out: bool = False


class Death(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """The process of a worker has died. `how` says so in words that go on "the process of this attempt ...": `was killed by SIGKILL`.

    `begun` are the attempts whose code had begun and whose end was not reported. One that was alone is charged with the death. Of
    several, those that executed are tried again apart, at no cost, so that the one that kills is found.
    """

    how: str
    begun: list[BegunRun] = []


class ReportRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Many runs at once; an empty list is a bare heartbeat.

    `leaving` ends the worker's lease: it holds nothing any more, and what it held is handed back, which costs a run nothing. `death`
    does so too, in the word of whoever has watched the worker's process.
    """

    runs: list[RunReport] = []
    leaving: bool = False
    death: Death | None = None


class RunReply(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False):
    """The answer for one run of the report. `lost`: the run is no longer this attempt's; stop it, its word does not count.

    `behind`: the document has changed, and there was no room for it in this answer. Another report, even an empty one, brings it.
    `resumed` answers a report with `waiting` false: the run goes on, or it stays WAITING because its queue is full. Then it has a
    place in the line, ahead of queued runs; the inbox says when it may go on, and the same report may be sent again at any time.
    `cancel`: the run is to end as soon as it can.
    """

    id: str
    lost: bool = False
    resumed: bool | None = None
    cancel: bool = False
    refused: list[Refused] = []
    delta: MetadataDelta | None = None
    behind: bool = False


class ReportResponse(msgspec.Struct):
    """One reply per run, in the order of the request."""

    runs: list[RunReply]


class AttemptLines(msgspec.Struct, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True):
    """Lines of one attempt's log, in order. `sequence` counts such parts of the attempt from 1: each is stored at most once.

    They may come after the attempt has ended. The attempt of a line is this one, whatever the line says.
    """

    id: str
    attempt: int
    sequence: int
    lines: list[LogLine]


class LogRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Lines of the logs of many attempts."""

    runs: list[AttemptLines]


class LogResponse(msgspec.Struct):
    """What can be stored is stored: lines of attempts that do not exist are not, and those beyond `logBytesMax` are only counted."""


def log_line_size(line: LogLine) -> int:
    """What a line of a log counts, in bytes: its text and the name of its logger in UTF-8, and a fixed share for the rest."""
    return _utf8_size(line.message) + _utf8_size(line.logger) + LOG_LINE_BYTES


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class InboxFrame(msgspec.Struct, omit_defaults=True):
    """One message of a worker's inbox (server-sent events).

    `deltas`: documents of held runs that others have written to. `finished`: ids of runs and batches that ended and whose
    parent may be waiting for them. `resumed`: held runs that may go on after a wait, because their queue has room now. `cancelled`:
    held runs that are to end as soon as they can; the answer to a report says so too. The first frame after connecting has `hello`
    set: what came before may have been missed, so the worker asks for the state of whatever it waits for.
    """

    hello: bool = False
    deltas: list[MetadataDelta] = []
    finished: list[str] = []
    resumed: list[str] = []
    cancelled: list[str] = []
