"""A run's life as pure rules: which command is allowed in which state, and what it changes.

No I/O and no clock: the engine loads the state, asks here, and stores what comes back. Times are microseconds since 1970, UTC.
"""

from enum import StrEnum
from typing import Protocol

import msgspec

from milepost.model.retry import Retry


class RunStatus(StrEnum):
    """Where a run stands. The words are those of the HTTP API (protocol, section 5.2)."""

    QUEUED = "QUEUED"
    EXECUTING = "EXECUTING"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """True when nothing will change the status any more."""
        return self in FINAL_STATUSES


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

    @property
    def is_charged(self) -> bool:
        """True when the attempt counts against the rule of retries: its own code has failed, or may be why it did not go on."""
        return self in CHARGED_ENDS


CHARGED_ENDS = frozenset({AttemptEnd.RAISED, AttemptEnd.CRASHED, AttemptEnd.LOST})
FINAL_STATUSES = frozenset({RunStatus.COMPLETED, RunStatus.FAILED})
# A year; whatever a worker asks for, the run comes back.
RETRY_DELAY_MS_MAX = 365 * 24 * 3600 * 1000
HELD_STATUSES = frozenset({RunStatus.EXECUTING, RunStatus.WAITING})


class RunError(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """An error of the user's code as data: kept with the run, shown to readers, raised again by `TaskResult.unwrap()`."""

    message: str
    name: str | None = None
    stack_trace: str | None = None


class RunState(Protocol):
    """The part of a run that the lifecycle looks at."""

    @property
    def status(self) -> RunStatus: ...
    @property
    def attempt(self) -> int: ...
    @property
    def worker_id(self) -> str | None: ...


class Change(msgspec.Struct, frozen=True, gc=False):
    """What a command changes: the new status, who holds the run, and when it is due."""

    status: RunStatus
    attempt: int
    worker_id: str | None
    due_at: int | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """How an attempt ended.

    Either `output` (JSON text, None for nothing) with `error` unset, or `error`. A failed attempt with `retry_after_ms` is
    queued again that much later; without it the failure is final.
    """

    output: str | None = None
    error: RunError | None = None
    retry_after_ms: int | None = None


def holds(run: RunState, worker_id: str, attempt: int) -> bool:
    """True while this worker's word about this attempt counts: it holds the run and no later attempt has begun."""
    return run.status in HELD_STATUSES and run.worker_id == worker_id and run.attempt == attempt


def claim(run: RunState, worker_id: str) -> Change:
    """A queued run goes to a worker, one attempt further."""
    return Change(RunStatus.EXECUTING, run.attempt + 1, worker_id)


def finish(run: RunState, outcome: Outcome, now: int) -> Change:
    """The attempt has ended: completed, failed for good, or queued for the next attempt."""
    if outcome.error is None:
        return Change(RunStatus.COMPLETED, run.attempt, None)
    if outcome.retry_after_ms is None:
        return Change(RunStatus.FAILED, run.attempt, None)
    delay_ms = min(max(outcome.retry_after_ms, 0), RETRY_DELAY_MS_MAX)
    return Change(RunStatus.QUEUED, run.attempt, None, due_at=now + delay_ms * 1000)


def lose(run: RunState, retry: Retry, max_attempts: int | None, jitter: float) -> Outcome:
    """The worker that held the run has gone: the attempt failed, and the task's own retry rule decides what follows."""
    return Outcome(
        error=RunError(
            name="WorkerLostError",
            message=f"the worker that ran attempt {run.attempt} stopped answering; it was killed or lost its connection",
        ),
        retry_after_ms=retry.delay_ms(run.attempt, jitter=jitter, max_attempts=max_attempts),
    )
