"""`Context`: what a task may know about the run that it is, and the logger that writes to the run's log."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, cast

from milepost.sdk.binding import bind_to
from milepost.sdk.scope import RunScope

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")

LOG_CHARACTERS_MAX = 32_768
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
        super().__init__(
            logging.getLogger("milepost.run"), {"run_id": scope.run.id, "task_id": scope.run.task}
        )
        self._scope = scope

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write one line. The run's log takes every level, whatever Python's logging is set to."""
        self._scope.link.log(self._scope, _level_name(level), _line(msg, args, kwargs), "milepost.run")
        # One frame more than usual lies between the caller and the logger.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Say which run a line is about, beside what the caller says."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
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
    def logger(self) -> RunLogger:
        """Writes to the run's log and to Python's logging."""
        if self._logger is None:
            self._logger = RunLogger(self._scope)
        return self._logger

    def __repr__(self) -> str:
        return f"<Context of run {self.run.id}, attempt {self.attempt.number}>"


def _level_name(level: int) -> str:
    if level >= logging.ERROR:
        return "error"
    if level >= logging.WARNING:
        return "warning"
    return "info" if level >= logging.INFO else "debug"


def _line(msg: object, args: tuple[Any, ...], kwargs: MutableMapping[str, Any]) -> str:
    """The text of a log call, with the traceback that it asks for. Never raises: a bad format must not break the work."""
    try:
        # `logging` has the rules for placeholders.
        text = logging.LogRecord("", 0, "", 0, str(msg), args, None).getMessage()
        error = kwargs.get("exc_info")
        if error:
            text += "\n" + _traceback(error)
    except Exception as failure:  # the user's __str__ may raise anything; the line then says so
        text = f"{msg!r:.1000} (this line could not be formatted: {type(failure).__name__}: {failure!s:.200})"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > LOG_CHARACTERS_MAX:
        text = f"{text[:LOG_CHARACTERS_MAX]}... ({len(text) - LOG_CHARACTERS_MAX:,} more characters)"
    return text


def _traceback(error: Any) -> str:
    if isinstance(error, tuple):
        error = cast("tuple[Any, ...]", error)[1]
    if isinstance(error, BaseException):
        return "".join(traceback.format_exception(error)).rstrip()
    return traceback.format_exc().rstrip()
