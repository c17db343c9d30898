"""The words for where runs and attempts stand, and how attempts end. What follows from what is in `model/lifecycle.py`."""

from enum import StrEnum

import msgspec


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
HELD_STATUSES = frozenset({RunStatus.EXECUTING, RunStatus.WAITING})


class RunError(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """An error of the user's code as data: kept with the run, shown to readers, raised again by `TaskResult.unwrap()`."""

    message: str
    name: str | None = None
    stack_trace: str | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """How an attempt ended.

    Either `output` (JSON text, None for nothing) with `error` unset, or `error`. A failed attempt with `retry_after_ms` is
    queued again that much later; without it the failure is final.
    """

    output: str | None = None
    error: RunError | None = None
    retry_after_ms: int | None = None
