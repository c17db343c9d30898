"""A run's life as one table: what each move does in each status, or why it cannot be. Pure rules; the engine carries them out."""

from enum import StrEnum
from typing import Protocol

import msgspec

from milepost.errors import ConflictError
from milepost.model.retry import RetryRule
from milepost.model.run import (
    FINAL_STATUSES,
    HELD_STATUSES,
    AttemptEnd,
    Closing,
    Outcome,
    RunError,
    RunStatus,
)

# A year; whatever a worker asks for, the run comes back.
RETRY_DELAY_MS_MAX = 365 * 24 * 3600 * 1000
# So many attempts may be lost with nobody knowing whether their code had begun. After that the run executes apart, and begins only
# when the server knows, so that a run that takes its machine along is found in the end.
UNCHARGED_MAX = 3


class Move(StrEnum):
    """What can be done with a run.

    Before it executes: `due`, its delay is over; `park`, that is so and no worker has ever offered its task; `offer`, a worker offers
    it now; `reschedule`, its delay is another one; `expire`, no worker took it in time.

    With a worker: `claim`, it goes to one, as a new attempt; `wait`, it waits for something; `resume`, it goes on.

    At the end of an attempt: `close`, its process is dead, its code is not tried again, and a worker is to run the hooks of its
    end; `retry`, the next one comes after a pause; `release`, the attempt is over at no fault of its own, and the
    next one may come at once; `complete`, `fail`, `crash`, `break` (Milepost is at fault) and `time_out` end the run. `cancel` ends it
    too, at once where no worker holds it.
    """

    DUE = "due"
    PARK = "park"
    OFFER = "offer"
    RESCHEDULE = "reschedule"
    EXPIRE = "expire"
    CLAIM = "claim"
    WAIT = "wait"
    RESUME = "resume"
    RETRY = "retry"
    RELEASE = "release"
    CLOSE = "close"
    COMPLETE = "complete"
    FAIL = "fail"
    CRASH = "crash"
    BREAK = "break"
    TIME_OUT = "time_out"
    CANCEL = "cancel"


_NOT_HELD = "no worker holds the run"
_HELD = "a worker holds the run"
_OVER = "the run has ended"
_NO_DELAY = "the run is not delayed"
_NOT_DUE = "the run is delayed"
_UNKNOWN = "no worker has ever offered its task"
_KNOWN = "its task was offered before"
_BEFORE_IT_IS_HELD = (Move.DUE, Move.PARK, Move.OFFER, Move.RESCHEDULE, Move.EXPIRE)
_WHILE_IT_IS_HELD = (
    Move.WAIT, Move.RESUME, Move.RETRY, Move.RELEASE, Move.CLOSE, Move.COMPLETE, Move.FAIL, Move.CRASH, Move.BREAK,
    Move.TIME_OUT,
)  # fmt: skip
_QUEUED = RunStatus.QUEUED
_ENDS: dict[Move, RunStatus | str] = {
    Move.RETRY: _QUEUED,
    Move.RELEASE: _QUEUED,
    Move.CLOSE: _QUEUED,
    Move.COMPLETE: RunStatus.COMPLETED,
    Move.FAIL: RunStatus.FAILED,
    Move.CRASH: RunStatus.CRASHED,
    Move.BREAK: RunStatus.SYSTEM_FAILURE,
    Move.TIME_OUT: RunStatus.TIMED_OUT,
    Move.CANCEL: RunStatus.CANCELED,
}
_OPEN: dict[Move, RunStatus | str] = {
    **dict.fromkeys(_WHILE_IT_IS_HELD, _NOT_HELD),
    Move.DUE: _NO_DELAY,
    Move.PARK: _NO_DELAY,
    Move.RESCHEDULE: _NO_DELAY,
    Move.OFFER: _KNOWN,
    Move.EXPIRE: RunStatus.EXPIRED,
    Move.CANCEL: RunStatus.CANCELED,
}
_WITH_A_WORKER: dict[Move, RunStatus | str] = {
    **dict.fromkeys(_BEFORE_IT_IS_HELD, _HELD),
    Move.CLAIM: _HELD,
    Move.WAIT: RunStatus.WAITING,
    Move.RESUME: RunStatus.EXECUTING,
    **_ENDS,
}
_ENDED_FROM_OUTSIDE = {
    AttemptEnd.CANCELLED: Move.CANCEL,
    AttemptEnd.TIMED_OUT: Move.TIME_OUT,
    AttemptEnd.BROKEN: Move.BREAK,
}
_CLOSES = {Move.CRASH: RunStatus.CRASHED, Move.TIME_OUT: RunStatus.TIMED_OUT}
# For each status and move the status that follows, or the reason why the move cannot be.
LIFECYCLE: dict[RunStatus, dict[Move, RunStatus | str]] = {
    RunStatus.PENDING_VERSION: {**_OPEN, Move.OFFER: _QUEUED, Move.CLAIM: _UNKNOWN},
    RunStatus.DELAYED: {
        **_OPEN,
        Move.DUE: _QUEUED,
        Move.PARK: RunStatus.PENDING_VERSION,
        Move.RESCHEDULE: RunStatus.DELAYED,
        Move.OFFER: _NOT_DUE,
        Move.EXPIRE: _NOT_DUE,
        Move.CLAIM: _NOT_DUE,
    },
    _QUEUED: {**_OPEN, Move.CLAIM: RunStatus.EXECUTING},
    RunStatus.EXECUTING: _WITH_A_WORKER,
    RunStatus.WAITING: _WITH_A_WORKER,
    **{status: dict.fromkeys(Move, _OVER) for status in RunStatus if status in FINAL_STATUSES},
}


CANCELLED = RunError(name="RunCancelledError", message="the run was cancelled")
NOT_TOLD = RunError(
    name="RunCancelledError",
    message="the run was cancelled, and its worker has not said within the grace time that it has ended; what it does counts no more",
)
EXPIRED = RunError(name="RunExpiredError", message="no worker took the run within its time to live")


def took_too_long(seconds: float) -> RunError:
    """The error of an attempt that has executed for longer than it may."""
    return RunError(
        name="MaxDurationError",
        message=f"the attempt has executed for longer than its max_duration of {seconds:g} s; its waits do not count",
    )


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
    """How an attempt ends and what follows: `move` is one of those that end an attempt; a retry comes after `delay_ms`."""

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
    if outcome.end is not None and (move := _ENDED_FROM_OUTSIDE.get(outcome.end)) is not None:
        return Ending(outcome.end, move, error=outcome.error)
    return _charged(AttemptEnd.RAISED, outcome.error, outcome.retry_after_ms)


def lost(run: RunState, retry: RetryRule, jitter: float) -> Ending:
    """The lease of the worker is over, and the code of the attempt had begun: the task's own rule decides what follows."""
    error = RunError(
        name="WorkerLostError",
        message=f"the worker that ran attempt {run.attempt} stopped answering for longer than its lease; it was killed or lost its "
        f"connection",
    )
    return _charged(AttemptEnd.LOST, error, _pause(run, retry, jitter))


def crashed(run: RunState, how: str, retry: RetryRule, jitter: float) -> Ending:
    """The process of the attempt has died, and only this attempt executed in it."""
    error = RunError(
        name="ProcessDiedError", message=f"the process of attempt {run.attempt} {how} while its code ran"
    )
    return _charged(AttemptEnd.CRASHED, error, _pause(run, retry, jitter))


def killed_late(run: RunState, how: str) -> Ending:
    """The process of the attempt was killed, because the attempt took longer than it may and did not end when it was asked to."""
    error = RunError(name="MaxDurationError", message=f"the process of attempt {run.attempt} {how}")
    return Ending(AttemptEnd.TIMED_OUT, Move.TIME_OUT, error=error)


def released(run: RunState, end: AttemptEnd, why: str | None = None) -> Ending:
    """The attempt is over at no fault of its own: it costs nothing."""
    assert not end.is_charged, end
    error = RunError(message=why) if why is not None else None
    return Ending(end, Move.RELEASE, error=error)


def _pause(run: RunState, retry: RetryRule, jitter: float) -> int | None:
    return retry.delay_ms(run.charged + 1, jitter=jitter, max_attempts=run.max_attempts)


def once_cancelled(ending: Ending) -> Ending:
    """What follows where the run was to be cancelled: whatever has not ended well is cancelled, and there is no next attempt."""
    if ending.move in (Move.COMPLETE, Move.CANCEL):
        return ending
    return Ending(ending.end, Move.CANCEL, error=CANCELLED if ending.error is None else ending.error)


def to_be_closed(ending: Ending) -> Closing | None:
    """How a run ends for good with an attempt whose process is dead; None where that costs no more than the attempt."""
    if ending.error is None or ending.move not in _CLOSES:
        return None
    return Closing(_CLOSES[ending.move], ending.error)


def closed(closing: Closing) -> Ending:
    """The hooks of the run's end have had their attempt, however that has ended: the run is over as it was to be."""
    move = next(move for move, status in _CLOSES.items() if status is closing.status)
    return Ending(AttemptEnd.CLOSED, move, error=closing.error)


def _charged(end: AttemptEnd, error: RunError, delay_ms: int | None) -> Ending:
    if delay_ms is None:
        return Ending(end, Move.FAIL if end is AttemptEnd.RAISED else Move.CRASH, error=error)
    return Ending(end, Move.RETRY, error=error, delay_ms=min(max(delay_ms, 0), RETRY_DELAY_MS_MAX))
