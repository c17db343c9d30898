"""When a failed run is tried again: `Retry`, the rule of a task, and `Caught`, what a `catch_error` hook may decide."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast

from milepost.errors import (
    AbortTaskRun,
    BadRequestError,
    InvalidRequestError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
    MilepostError,
    StreamChunkTooLargeError,
    StreamValueError,
    TooLargeError,
    UsageError,
)
from milepost.model.durations import parse_duration
from milepost.model.retry import RetryRule

Duration: TypeAlias = timedelta | float | str
"""A `timedelta`, seconds as a number, or a text such as "10s" or "1h30m"."""
ErrorTypes: TypeAlias = type[BaseException] | Iterable[type[BaseException]]

DELAY_MAX: Final = timedelta(days=365)
MAX_DELAY_DEFAULT: Final = timedelta(seconds=30)
MIN_DELAY_DEFAULT: Final = timedelta(seconds=1)


class OutputError(MilepostError):
    """What the task returned cannot be the output of a run."""


FINAL_ERRORS: Final = (
    AbortTaskRun,
    OutputError,
    UsageError,
    BadRequestError,
    InvalidRequestError,
    TooLargeError,
    MetadataValueError,
    MetadataTypeError,
    MetadataPathError,
    MetadataTooLargeError,
    StreamValueError,
    StreamChunkTooLargeError,
)


def is_final(error: BaseException) -> bool:
    """True for an error that the same code would meet again, so that a retry would only do the work once more.

    That is `AbortTaskRun`, wrong usage (a call in the wrong place, a payload, metadata or a batch that cannot be) and an output that
    cannot be stored, also inside of an exception group. A server that is away, a missing task and a failed child are worth a retry.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_final, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, FINAL_ERRORS)


@dataclass(frozen=True, init=False)
class Retry:
    """When a failed run of a task is tried again.

    The wait after the n-th failed attempt is `min_delay * factor ** (n - 1)`, at most `max_delay`. Errors that the same code would
    meet again are never retried, whatever is said here: `AbortTaskRun`, a payload that does not fit, `UsageError`, `TooLargeError`
    and their kind. An attempt that died with its process, or was lost with its worker, raised nothing: `retry_on` and `give_up_on`
    do not concern it, and it counts as a failed attempt.

    Args:
        max_attempts: attempts in all, the first included; 1 means no retry. From 1 to 1,000. `max_attempts=` at a trigger wins.
        factor: each wait is this many times the one before; from 1 to 100.
        min_delay: the wait before the second attempt: a `timedelta`, seconds, or a text such as "10s". One second when left out, or
            `max_delay` if that is shorter.
        max_delay: no wait is longer; at most 365 days. 30 seconds when left out, or `min_delay` if that is longer.
        jitter: spread each wait over 50 % to 100 % of its length, so that runs that failed together do not return together.
        retry_on: an exception type or several: only errors of these types are tried again. Every error when left out.
        give_up_on: an exception type or several: errors of these types are not tried again, even if `retry_on` names them too. An
            exception group is given up when an error in it is, and is tried again when all errors in it may be.
    Raises: ValueError when a number is outside its range or the rule contradicts itself; TypeError for what is no number, duration or
        exception type.
    """

    max_attempts: int
    factor: float
    min_delay: timedelta
    max_delay: timedelta
    jitter: bool
    retry_on: tuple[type[BaseException], ...] | None
    give_up_on: tuple[type[BaseException], ...]
    rule: RetryRule = field(repr=False)

    def __init__(
        self,
        max_attempts: int = 3,
        *,
        factor: float = 2.0,
        min_delay: Duration | None = None,
        max_delay: Duration | None = None,
        jitter: bool = True,
        retry_on: ErrorTypes | None = None,
        give_up_on: ErrorTypes = (),
    ) -> None:
        if isinstance(max_attempts, bool) or not isinstance(cast("object", max_attempts), int):
            raise TypeError(f"max_attempts is a whole number, not {max_attempts!r}")
        if isinstance(factor, bool) or not isinstance(cast("object", factor), int | float):
            raise TypeError(f"factor is a number, not {factor!r}")
        if not isinstance(cast("object", jitter), bool):
            raise TypeError(f"jitter is True or False, not {jitter!r}")
        least = None if min_delay is None else _delay("min_delay", min_delay)
        most = None if max_delay is None else _delay("max_delay", max_delay)
        if least is not None and most is not None and least > most:
            raise ValueError(
                f"min_delay ({min_delay!r}) is longer than max_delay ({max_delay!r}): raise max_delay or lower min_delay"
            )
        if least is None:
            least = MIN_DELAY_DEFAULT if most is None else min(MIN_DELAY_DEFAULT, most)
        if most is None:
            most = max(MAX_DELAY_DEFAULT, least)
        retried = None if retry_on is None else _error_types("retry_on", retry_on)
        given_up = _error_types("give_up_on", give_up_on)
        _refuse_contradictions(retried, given_up)
        rule = RetryRule(
            max_attempts=max_attempts,
            min_delay_seconds=least.total_seconds(),
            max_delay_seconds=most.total_seconds(),
            factor=float(factor),
            jitter=jitter,
        )
        fields = {
            "max_attempts": max_attempts,
            "factor": float(factor),
            "min_delay": least,
            "max_delay": most,
            "jitter": jitter,
            "retry_on": retried,
            "give_up_on": given_up,
            "rule": rule,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def names_errors(self) -> bool:
        """Whether it says of which errors there is another attempt."""
        return bool(self.give_up_on) or self.retry_on is not None

    def is_retried(self, error: BaseException) -> bool:
        """Whether `retry_on` and `give_up_on` allow another attempt after this error."""
        if not self.give_up_on and self.retry_on is None:
            return True
        if isinstance(error, self.give_up_on):
            return False
        if self.retry_on is not None and isinstance(error, self.retry_on):
            return not isinstance(error, BaseExceptionGroup) or not self._gives_up_inside(
                cast("BaseExceptionGroup[BaseException]", error)
            )
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.is_retried, cast("BaseExceptionGroup[BaseException]", error).exceptions))
        return self.retry_on is None

    def _gives_up_inside(self, group: BaseExceptionGroup[Any]) -> bool:
        return bool(self.give_up_on) and group.subgroup(self.give_up_on) is not None


@dataclass(frozen=True, kw_only=True)
class Caught:
    """What a `catch_error` hook may return: what becomes of the error that it was given.

    Args:
        error: takes the place of the error, as returning it alone would.
        skip_retrying: the run fails now, whatever attempts are left.
        retry_in: the next attempt comes after this: a `timedelta`, seconds, or a text such as "10s".
        retry_at: the next attempt comes at this time, at once if it has passed; aware, and at most 365 days ahead.

    A time says that the error is worth another attempt, also where `retry_on` or `give_up_on` do not. It gives no attempt more than
    `max_attempts`, and none to an error that is never retried.
    Raises: ValueError and TypeError for a time that cannot be, and for more than one word about retrying.
    """

    error: BaseException | None = None
    skip_retrying: bool = False
    retry_in: Duration | None = None
    retry_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.error is not None and not isinstance(cast("object", self.error), BaseException):
            raise TypeError(f"error is an exception, not {self.error!r:.200}")
        said = [self.skip_retrying, self.retry_in is not None, self.retry_at is not None]
        if sum(said) > 1:
            raise ValueError("say one of skip_retrying, retry_in and retry_at")
        if self.retry_in is not None:
            _delay("retry_in", self.retry_in)
        if self.retry_at is not None:
            if not isinstance(cast("object", self.retry_at), datetime):
                raise TypeError(f"retry_at is a datetime, not {self.retry_at!r:.200}")
            if self.retry_at.tzinfo is None:
                raise ValueError(
                    f"retry_at needs a time zone, or it means another moment elsewhere: {self.retry_at!r}; "
                    f"write datetime.now(UTC) + ..."
                )
            if self.retry_at - datetime.now(UTC) > DELAY_MAX:
                raise ValueError(f"retry_at is at most 365 days ahead, not {self.retry_at!r}")

    def delay_ms(self) -> int | None:
        """How long until the next attempt, from now, in milliseconds; None when nothing was said about it."""
        if self.retry_in is not None:
            delay = _delay("retry_in", self.retry_in)
        elif self.retry_at is not None:
            delay = max(self.retry_at - datetime.now(UTC), timedelta(0))
        else:
            return None
        return delay // timedelta(milliseconds=1)


def _delay(name: str, value: Duration) -> timedelta:
    try:
        delay = parse_duration(value)
    except (ValueError, TypeError, MilepostError) as error:
        raise ValueError(f"{name}: {error}") from None
    if delay > DELAY_MAX:
        raise ValueError(f"{name} is at most 365 days, not {value!r}")
    return delay


def _error_types(name: str, given: ErrorTypes) -> tuple[type[BaseException], ...]:
    types = (given,) if isinstance(given, type) else tuple(given)
    for each in types:
        if not inspect.isclass(each) or not issubclass(cast("type", each), BaseException):
            raise TypeError(f"{name} takes exception types, such as ConnectionError, not {each!r:.200}")
    return types


def _refuse_contradictions(
    retried: tuple[type[BaseException], ...] | None, given_up: tuple[type[BaseException], ...]
) -> None:
    if retried is None:
        return
    if not retried:
        raise ValueError("retry_on is empty, so nothing would be retried: write max_attempts=1 for that")
    for each in retried:
        if issubclass(each, given_up):
            raise ValueError(
                f"retry_on names {each.__name__}, and give_up_on gives up every error of that type: name it in one of them"
            )
        if issubclass(each, FINAL_ERRORS):
            raise ValueError(
                f"retry_on names {each.__name__}, which is never retried: the same code would meet it again"
            )
