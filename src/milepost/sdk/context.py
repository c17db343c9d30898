"""`Context`: what a task may know about the run that it is, and the logger that writes to the run's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, cast

from milepost.sdk.binding import bind_to
from milepost.sdk.capture import uncaptured
from milepost.sdk.records import level_name
from milepost.sdk.safe_text import line_of, name_of, text_of, traceback_of, unformatted
from milepost.sdk.scope import RunScope

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")

LOGGER = "milepost.run"
# What a record of Python's logging has of its own.
_TAKEN = frozenset({*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RunInfo:
    """The run itself, as it was when the attempt began."""

    __slots__ = ("_scope",)

    def __init__(self, scope: RunScope) -> None:
        self._scope = scope

    @property
    def id(self) -> str:
        """The run's id."""
        return self._scope.run.id

    @property
    def tags(self) -> list[str]:
        """The run's tags, a new list."""
        return list(self._scope.run.tags)

    @property
    def parent_id(self) -> str | None:
        """The run that triggered this one; None when it was triggered from outside."""
        return self._scope.run.parent_id

    @property
    def root_id(self) -> str:
        """The run at the top of the tree: this one when it has no parent."""
        return self._scope.root_id

    @property
    def batch_id(self) -> str | None:
        """The batch that the run was triggered with."""
        return self._scope.run.batch_id

    @property
    def depth(self) -> int:
        """How many runs are above this one."""
        return self._scope.run.depth

    @property
    def max_attempts(self) -> int | None:
        """The run's own limit of attempts, which wins over the task's; None when it has none."""
        return self._scope.run.max_attempts

    @property
    def created_at(self) -> datetime:
        """When the run was triggered, UTC."""
        return _EPOCH + timedelta(microseconds=self._scope.run.created_at)

    @property
    def is_replay(self) -> bool:
        """True when the run repeats an earlier one (`runs.replay`)."""
        return self._scope.run.replay_of is not None

    @property
    def priority(self) -> int:
        """By how many seconds the run was put forward in its queue."""
        return self._scope.run.priority

    @property
    def concurrency_key(self) -> str | None:
        """The key that a concurrency limit holds for by itself."""
        return self._scope.run.concurrency_key

    def bind(self, function: Callable[Parameters, ResultT]) -> Callable[Parameters, ResultT]:
        """A function that runs as part of this run, in whatever thread or executor it is called (M15)."""
        return bind_to(self._scope, function)

    def __repr__(self) -> str:
        return f"<run {self.id}>"


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """The attempt under way; `number` counts from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The task that the run is of."""

    id: str


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """The queue that the run came through."""

    name: str


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """The batch that the run was triggered with."""

    id: str


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Writes each line to the run's log and to Python's own logger `milepost.run`, and so to wherever the program logs."""

    def __init__(self, scope: RunScope) -> None:
        super().__init__(logging.getLogger(LOGGER), {"run_id": scope.run.id, "task_id": scope.run.task})
        self._scope = scope

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write one line. The run's log takes every level, whatever Python's logging is set to. Never raises, whatever is logged."""
        text, is_right = _line(msg, args)
        whole = text
        if trace := _traceback(kwargs.get("exc_info")):
            whole = f"{text}\n{trace}"
        self._scope.link.log(self._scope, level_name(level), line_of(whole), LOGGER)
        if not is_right or not _is_plain(msg) or not all(map(_is_plain, args)):
            # Made text once and not again by each handler: it may take long, and may raise the next time.
            msg, args = "%s", (text,)
        # One frame more than usual lies between the caller and the logger.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            with uncaptured():
                super().log(level, msg, *args, **kwargs)
        except Exception as failure:  # a handler, a filter or an odd argument
            why = f"Python's logging did not take this line: {name_of(type(failure))}: {text_of(failure)}"
            self._scope.link.log(self._scope, "warning", why[:1000], LOGGER)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Say which run a line is about, beside what the caller says. A name that a record has already gets an underscore."""
        given = kwargs.get("extra")
        extra: dict[str, Any] = {**(self.extra or {})}
        if isinstance(given, Mapping):
            for name, value in cast("Mapping[str, Any]", given).items():
                extra[f"{name}_" if name in _TAKEN else name] = value
        kwargs["extra"] = extra
        return msg, kwargs


class Context:
    """What a task may know about the run that it is. A task gets it by a parameter annotated `Context`.

    Attributes:
        run: id, tags, parent and root, times.
        attempt: `attempt.number` counts from 1.
        task: `task.id`.
        queue: `queue.name`.
        batch: `batch.id`; None for a run that was triggered alone.
        logger: writes to the run's log; a `logging.LoggerAdapter`.
    """

    __slots__ = ("_logger", "_scope", "attempt", "run")

    def __init__(self, scope: RunScope) -> None:
        self._scope = scope
        self._logger: RunLogger | None = None
        self.run = RunInfo(scope)
        self.attempt = AttemptInfo(scope.run.attempt)

    @property
    def task(self) -> TaskInfo:
        """The task that the run is of."""
        return TaskInfo(self._scope.run.task)

    @property
    def queue(self) -> QueueInfo:
        """The queue that the run came through."""
        return QueueInfo(self._scope.run.queue)

    @property
    def batch(self) -> BatchInfo | None:
        """The batch that the run was triggered with."""
        batch_id = self._scope.run.batch_id
        return None if batch_id is None else BatchInfo(batch_id)

    @property
    def cancelled(self) -> bool:
        """True when the run is to end, because it was cancelled or has executed for longer than its `max_duration`.

        For the loops of a `def` task: `if ctx.cancelled: break`. A thread that has seen True counts as told, so that none of its later
        calls raises RunCancelledError. What the task returns then completes the run; raise RunCancelledError to end it as cancelled.
        """
        if self._scope.stop is None:
            return False
        self._scope.is_told_here()
        return True

    def wait_cancelled(self, seconds: float | None = None) -> bool:
        """Sleep in the thread of a `def` task, until the run is to end or so many seconds have passed; whether it is to end.

        In the place of `time.sleep`, which nothing can end: `while not ctx.wait_cancelled(5): poll()`.

        Raises: UsageError on the worker's event loop, where sleeping is `await asyncio.sleep(...)`.
        """
        self._scope.refuse_blocking(
            "ctx.wait_cancelled(...)", "`await asyncio.sleep(...)`, which is cancelled,"
        )
        self._scope.wait_for_stop(seconds)
        return self.cancelled

    @property
    def logger(self) -> RunLogger:
        """Writes to the run's log and to Python's logging."""
        if self._logger is None:
            self._logger = RunLogger(self._scope)
        return self._logger

    def __repr__(self) -> str:
        return f"<Context of run {self.run.id}, attempt {self.attempt.number}>"


def _line(msg: object, args: tuple[Any, ...]) -> tuple[str, bool]:
    """The text of a log call, and whether it is the one that was asked for. Never raises: a line must not break the work."""
    try:
        # `logging` has the rules for placeholders.
        return str.__str__(logging.LogRecord("", 0, "", 0, msg, args, None).getMessage()), True
    except BaseException as failure:  # the user's objects may raise anything when they are made text
        return unformatted(msg, failure), False


def _traceback(error: Any) -> str:
    """The traceback that a log call asks for by `exc_info`."""
    if error is None or error is False:
        return ""
    if isinstance(error, tuple):
        error = cast("tuple[Any, ...]", error)[1] if len(cast("tuple[Any, ...]", error)) > 1 else None
    elif not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    return traceback_of(error) if isinstance(error, BaseException) else ""


def _is_plain(value: object) -> bool:
    """True for what can be formatted again and again, with no code of the user's in it."""
    return value is None or type(value) in (str, int, float, bool)
