"""The words for where runs and attempts stand, and how attempts end. What follows from what is in `model/lifecycle.py`."""

from enum import StrEnum

import msgspec

from milepost.model.retry import RetryRule


class RunStatus(StrEnum):
    """Where a run stands. The words are those of the HTTP API (protocol, section 5.2).

    PENDING_VERSION: no worker has ever offered its task. DELAYED: it is to be queued later. CRASHED: the process of its last attempt
    died, or its worker was lost. SYSTEM_FAILURE: Milepost itself is at fault. EXPIRED: no worker took it within its time to live.
    TIMED_OUT: an attempt took longer than it may.
    """

    PENDING_VERSION = "PENDING_VERSION"
    DELAYED = "DELAYED"
    QUEUED = "QUEUED"
    EXECUTING = "EXECUTING"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    SYSTEM_FAILURE = "SYSTEM_FAILURE"
    EXPIRED = "EXPIRED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        """True when nothing will change the status any more."""
        return self in FINAL_STATUSES

    @property
    def is_failure(self) -> bool:
        """True for a run that has ended without success, and not because somebody cancelled it."""
        return self in FAILURE_STATUSES

    @property
    def stands(self) -> bool:
        """True when the same trigger, said again, means this run: it is under way, has done its work or was cancelled. False when
        it has failed for good, so that it is to be tried by a new run."""
        return not self.is_failure


class QueuedReason(StrEnum):
    """Why nobody can take a queued run at the moment."""

    NEVER_OFFERED = "never_offered"
    NO_WORKER_ONLINE = "no_worker_online"

    def describe(self, task: str) -> str:
        """What a person is told, with the cure."""
        if self is QueuedReason.NEVER_OFFERED:
            return f"no worker has ever offered a task {task!r:.100}: check the id, or start a worker that has it"
        return f"no worker that offers task {task!r:.100} is online: start one"


class AttemptEnd(StrEnum):
    """How an attempt has ended."""

    RETURNED = "returned"
    RAISED = "raised"
    CRASHED = "crashed"
    BESIDE = "beside"
    LOST = "lost"
    HANDED_BACK = "handed_back"
    NEVER_BEGUN = "never_begun"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    BROKEN = "broken"
    WAITING = "waiting"
    CLOSED = "closed"

    @property
    def is_charged(self) -> bool:
        """True when the attempt counts against the rule of retries: its own code has failed, or may be why it did not go on."""
        return self in CHARGED_ENDS


CHARGED_ENDS = frozenset({AttemptEnd.RAISED, AttemptEnd.CRASHED, AttemptEnd.LOST})
FAILURE_STATUSES = frozenset(
    {
        RunStatus.FAILED,
        RunStatus.CRASHED,
        RunStatus.SYSTEM_FAILURE,
        RunStatus.EXPIRED,
        RunStatus.TIMED_OUT,
    }
)
FINAL_STATUSES = FAILURE_STATUSES | {RunStatus.COMPLETED, RunStatus.CANCELED}
HELD_STATUSES = frozenset({RunStatus.EXECUTING, RunStatus.WAITING})
# A run that nobody has claimed yet, or that was given back.
QUEUED_STATUSES = frozenset({RunStatus.PENDING_VERSION, RunStatus.DELAYED, RunStatus.QUEUED})


class AskedOptions(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True, gc=False):
    """What was asked for a run at its trigger, beside what has a column of its own.

    Args:
        delay_ms: the pause before it is queued; None where a time was named, or none.
        ttl_ms: how long it waits for a worker at most.
        priority: by so many seconds it is put forward in its queue.
        max_duration_ms: how long one attempt may take.
        idempotency_key: the key as the user gave it.
        replay_of: the run that it repeats.
        retry: its own rule of retries.
    """

    delay_ms: int | None = None
    ttl_ms: int | None = None
    priority: int = 0
    max_duration_ms: int | None = None
    idempotency_key: str | None = None
    replay_of: str | None = None
    retry: RetryRule | None = None


NOTHING_ASKED = AskedOptions()
_ASKED = msgspec.json.Decoder(AskedOptions)


def asked_of(options: str | None) -> AskedOptions:
    """What was asked, from its JSON text; None stands for nothing."""
    return NOTHING_ASKED if options is None else _ASKED.decode(options)


def asked_text(asked: AskedOptions) -> str | None:
    """What was asked as JSON text; None for nothing."""
    return None if asked == NOTHING_ASKED else msgspec.json.encode(asked).decode()


class RunError(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """An error of the user's code as data: kept with the run, shown to readers, raised again by `TaskResult.unwrap()`."""

    message: str
    name: str | None = None
    stack_trace: str | None = None


class Closing(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """How a run ends whose process died, or was killed, at its last attempt: as CRASHED or TIMED_OUT, with this error, once another
    process has run the hooks of its end."""

    status: RunStatus
    error: RunError


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """How an attempt ended.

    Either `output` (JSON text, None for nothing) with `error` unset, or `error`. A failed attempt with `retry_after_ms` is
    queued again that much later; without it the failure is final. `end` is `cancelled`, `timed_out` or `broken` beside an error where
    the attempt was ended from outside: because the run was to be cancelled, because it took too long, or because what it came to
    cannot be stored, which is Milepost's own fault. `lacks_hooks`: its code has not ended, so nobody has run the hooks of its end.
    """

    output: str | None = None
    error: RunError | None = None
    retry_after_ms: int | None = None
    end: AttemptEnd | None = None
    lacks_hooks: bool = False
