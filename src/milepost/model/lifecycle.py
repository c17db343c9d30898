"""A run's life as one table: what each move does in each status, or why it cannot be. Pure rules; the engine carries them out."""

from enum import StrEnum
from typing import Protocol

import msgspec

from milepost.errors import ConflictError
from milepost.model.retry import Retry
from milepost.model.run import HELD_STATUSES, AttemptEnd, Outcome, RunError, RunStatus

# A year; whatever a worker asks for, the run comes back.
RETRY_DELAY_MS_MAX = 365 * 24 * 3600 * 1000
# So many attempts may be lost with nobody knowing whether their code had begun. After that the run executes apart, and begins only
# when the server knows, so that a run that takes its machine along is found in the end.
UNCHARGED_MAX = 3


class Move(StrEnum):
    """What can be done with a run.

    claim: it goes to a worker, as a new attempt. wait: it waits for other runs. resume: it goes on. complete, fail: it has ended.
    retry: its attempt has failed, and the next one comes after a pause. release: its attempt is over at no fault of its own, and the
    next one may come at once.
    """

    CLAIM = "claim"
    WAIT = "wait"
    RESUME = "resume"
    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"
    RELEASE = "release"


_QUEUED, _EXECUTING, _WAITING = RunStatus.QUEUED, RunStatus.EXECUTING, RunStatus.WAITING
_NOT_HELD = "no worker holds the run"
_HELD = "a worker holds the run"
_OVER = "the run has ended"
_ENDS: dict[Move, RunStatus | str] = {
    Move.COMPLETE: RunStatus.COMPLETED,
    Move.FAIL: RunStatus.FAILED,
    Move.RETRY: _QUEUED,
    Move.RELEASE: _QUEUED,
}
# For each status and move the status that follows, or the reason why the move cannot be.
LIFECYCLE: dict[RunStatus, dict[Move, RunStatus | str]] = {
    _QUEUED: dict.fromkeys(Move, _NOT_HELD) | {Move.CLAIM: _EXECUTING},
    _EXECUTING: {Move.CLAIM: _HELD, Move.WAIT: _WAITING, Move.RESUME: _EXECUTING} | _ENDS,
    _WAITING: {Move.CLAIM: _HELD, Move.WAIT: _WAITING, Move.RESUME: _EXECUTING} | _ENDS,
    RunStatus.COMPLETED: dict.fromkeys(Move, _OVER),
    RunStatus.FAILED: dict.fromkeys(Move, _OVER),
}


class RunState(Protocol):
    """The part of a run that the rules look at."""

    @property
    def status(self) -> RunStatus: ...
    @property
    def attempt(self) -> int: ...
    @property
    def charged(self) -> int: ...
    @property
    def max_attempts(self) -> int | None: ...
    @property
    def worker_id(self) -> str | None: ...


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ends and what follows: `move` is complete, fail, retry after `delay_ms`, or release."""

    end: AttemptEnd
    move: Move
    output: str | None = None
    error: RunError | None = None
    delay_ms: int = 0


def next_status(status: RunStatus, move: Move) -> RunStatus:
    """The status that follows. Raises ConflictError with the reason where the move cannot be."""
    following = LIFECYCLE[status][move]
    if not isinstance(following, RunStatus):
        raise ConflictError(f"a run that is {status} takes no {move.value!r}: {following}")
    return following


def holds(run: RunState, worker_id: str, attempt: int) -> bool:
    """True while this worker's word about this attempt counts: it holds the run and no later attempt has begun."""
    return run.status in HELD_STATUSES and run.worker_id == worker_id and run.attempt == attempt


def of_outcome(outcome: Outcome) -> Ending:
    """The attempt has ended by itself: what its worker says follows."""
    if outcome.error is None:
        return Ending(AttemptEnd.RETURNED, Move.COMPLETE, output=outcome.output)
    return _charged(AttemptEnd.RAISED, outcome.error, outcome.retry_after_ms)


def lost(run: RunState, retry: Retry, jitter: float) -> Ending:
    """The lease of the worker is over, and the code of the attempt had begun: the task's own rule decides what follows."""
    error = RunError(
        name="WorkerLostError",
        message=f"the worker that ran attempt {run.attempt} stopped answering for longer than its lease; it was killed or lost its "
        f"connection",
    )
    return _charged(AttemptEnd.LOST, error, _pause(run, retry, jitter))


def crashed(run: RunState, how: str, retry: Retry, jitter: float) -> Ending:
    """The process of the attempt has died, and only this attempt executed in it."""
    error = RunError(
        name="ProcessDiedError", message=f"the process of attempt {run.attempt} {how} while its code ran"
    )
    return _charged(AttemptEnd.CRASHED, error, _pause(run, retry, jitter))


def released(run: RunState, end: AttemptEnd, why: str | None = None) -> Ending:
    """The attempt is over at no fault of its own: it costs nothing."""
    assert not end.is_charged, end
    error = RunError(message=why) if why is not None else None
    return Ending(end, Move.RELEASE, error=error)


def _pause(run: RunState, retry: Retry, jitter: float) -> int | None:
    return retry.delay_ms(run.charged + 1, jitter=jitter, max_attempts=run.max_attempts)


def _charged(end: AttemptEnd, error: RunError, delay_ms: int | None) -> Ending:
    if delay_ms is None:
        return Ending(end, Move.FAIL, error=error)
    return Ending(end, Move.RETRY, error=error, delay_ms=min(max(delay_ms, 0), RETRY_DELAY_MS_MAX))
