"""`@task`: a function becomes a task that can be triggered here and run by a worker, and the registry by which workers find it."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    Never,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    overload,
)

from typing_extensions import ParamSpec

from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.queue import Queue
from milepost.client.requests import NO_PAYLOAD, OPTION_NAMES, BatchOptions, RunOptions, check_options
from milepost.client.results import TaskResult
from milepost.errors import InvalidRequestError, PayloadValidationError, UsageError
from milepost.model.durations import parse_duration
from milepost.model.names import check_name, default_queue
from milepost.protocol.schedules import TaskSchedule
from milepost.protocol.work import WorkerTask
from milepost.sdk import batches, registry, triggering
from milepost.sdk.batches import BatchItem
from milepost.sdk.context import Context
from milepost.sdk.hooks import HOOK_NAMES, Hooks, has_end_hooks
from milepost.sdk.registry import register
from milepost.sdk.retry import Retry
from milepost.sdk.schema import MetadataSchema
from milepost.sdk.settings import default_retry
from milepost.sdk.signature import Signature

__all__ = [
    "Queue",
    "Retry",
    "Task",
    "TaskDecorator",
    "TaskHooks",
    "TaskWithOptions",
    "registered_tasks",
    "task",
]

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
Parameters = ParamSpec("Parameters", default=...)
Params = ParamSpec("Params")
PayloadT_contra = TypeVar("PayloadT_contra", contravariant=True)
OutputT_co = TypeVar("OutputT_co", covariant=True)
Arguments: TypeAlias = Mapping[str, Any] | tuple[Any, ...]
"""What stands for the arguments of several parameters where one value is taken: by name, or in their order."""
Awaited: TypeAlias = Coroutine[Any, Any, OutputT]
Isolation: TypeAlias = Literal["thread", "process"]


class TaskHooks(TypedDict, total=False):
    """Hooks given to `@task(...)`: one function or several by each name."""

    on_start_attempt: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_start: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_success: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_failure: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_cancel: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_complete: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_wait: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_resume: Callable[..., Any] | Sequence[Callable[..., Any]]
    catch_error: Callable[..., Any] | Sequence[Callable[..., Any]]
    middleware: Callable[..., Any] | Sequence[Callable[..., Any]]


class Task(Hooks, Generic[PayloadT, OutputT, Parameters]):
    """A task. Calling it runs the function plainly, for tests; `trigger` and its kin have a worker run it.

    `Task[Payload, Output]` is a task of one parameter. `Parameters` are those of the function without its context; they need not be
    written.

    Attributes:
        id: what the task is called on the server.
        queue: the queue that its runs go through; one of its own when None.
        metadata: the declared type of its metadata, or None.
        schedule: when it is triggered by itself, or None.
        max_duration_ms: how long an attempt of its runs may execute, unless the trigger says otherwise; None for any time.
        isolation: "process" for a task each run of which has a process to itself while it lasts.
        is_async: whether the function is an `async def`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        id: str,
        retry: Retry | None,
        queue: Queue | None,
        metadata: MetadataSchema | None,
        schedule: TaskSchedule | None = None,
        max_duration: timedelta | float | str | None = None,
        isolation: Isolation = "thread",
        local_names: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            check_name(id, "a task id")
        except InvalidRequestError as error:
            raise UsageError(str(error)) from None
        self.id = id
        self._retry = retry
        self.queue = queue
        self.metadata = metadata
        self.schedule = schedule
        self.max_duration_ms = None if max_duration is None else _max_duration_ms(id, max_duration)
        if isolation not in get_args(Isolation):
            raise UsageError(f'task {id!r}: isolation is "thread" or "process", not {isolation!r:.100}')
        self.isolation: Isolation = isolation
        self.function = function
        innermost = inspect.unwrap(function)
        # A plain decorator around an `async def` hands its coroutine on, so what counts is the innermost function.
        self.is_async = any(
            inspect.iscoroutinefunction(candidate)
            or inspect.iscoroutinefunction(getattr(candidate, "__call__", None))  # noqa: B004
            for candidate in (function, innermost)
        )
        if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
            raise UsageError(
                f"task {id!r}: a generator cannot be a task, because a run has one output; return a list"
            )
        self.signature = Signature(function, local_names, id)
        self.__name__ = getattr(function, "__name__", id)
        self.__qualname__ = getattr(function, "__qualname__", id)
        self.__doc__ = function.__doc__
        self.__module__ = getattr(function, "__module__", __name__)
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, without server and run; an `async def` gives its coroutine."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.id}>"

    def describe(self) -> WorkerTask:
        """The task as a worker presents it to the server."""
        shape = self.signature.payload_shape
        return WorkerTask(
            id=self.id,
            queue=self.queue.name if self.queue else default_queue(self.id),
            queue_concurrency=self.queue.concurrency if self.queue else None,
            queue_rate=self.queue.rate if self.queue else None,
            retry=self.retry.rule,
            payload_schema=shape.json_schema() if shape else None,
            metadata_schema=self.metadata.json_schema() if self.metadata else None,
            schedule=self.schedule,
            has_end_hooks=has_end_hooks(self),
        )

    @property
    def retry(self) -> Retry:
        """When a failed run is tried again: the task's own rule, else the one of the settings."""
        return self._retry if self._retry is not None else default_retry()

    # --- triggering ----------------------------------------------------------------------------------------

    @overload
    def trigger(
        self: Task[None, OutputT, Parameters], payload: None = None, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    def trigger(self, payload: PayloadT, **options: Unpack[RunOptions]) -> RunHandle[OutputT]: ...
    @overload
    def trigger(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> RunHandle[OutputT]: ...
    def trigger(self, *args: Any, **kwargs: Any) -> RunHandle[OutputT]:
        """Have a worker run the task; returns as soon as the server has stored the run.

        A task of one parameter takes its payload and, by keyword, the options of the run: `task.trigger(row, tags=["csv"])`. One of
        several parameters is triggered as its function is called, and options are given before: `task.options(tags=["csv"]).trigger(1,
        b="x")`. A keyword that is the name of one of several parameters is always that argument.

        Inside a run the new run becomes its child, and what the parent wrote to its metadata before is committed first. An attempt
        that is not the first of its run is given the children of the earlier ones again, each once, where task and payload are the
        same, unless they have failed for good: what is done is not done again. `idempotency_key=None` makes a new one in any case.

        Args:
            payload: checked against the annotation of the task's payload parameter. What the task gets is equal to it, or it is
                refused here: a subclass of the annotated model, NaN, or a field that is left out of its JSON. Secrets
                (`SecretStr`) arrive as what they are, so they are stored where who may read the run can read them. At most 3 MB as
                JSON.
            options: `metadata`, `tags`, `max_attempts`, `queue`, `concurrency_key`, `idempotency_key` and others; see `RunOptions`.
        Raises:
            PayloadValidationError: `field` names the part of the payload that does not fit.
            TooLargeError: the payload is larger than a run may have.
            MetadataError: the metadata is no object, is not JSON, does not fit the task's schema or is too large.
            UnavailableError: the server cannot be reached.
            UsageError: on the worker's event loop, where it is `await task.atrigger(...)`.
        """
        payload, options = self._given(args, kwargs)
        return triggering.trigger(self.id, payload, options)

    @overload
    async def atrigger(
        self: Task[None, OutputT, Parameters], payload: None = None, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    async def atrigger(self, payload: PayloadT, **options: Unpack[RunOptions]) -> RunHandle[OutputT]: ...
    @overload
    async def atrigger(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> RunHandle[OutputT]: ...
    async def atrigger(self, *args: Any, **kwargs: Any) -> RunHandle[OutputT]:
        """As `trigger`, without blocking."""
        payload, options = self._given(args, kwargs)
        return await triggering.atrigger(self.id, payload, options)

    @overload
    def trigger_and_wait(
        self: Task[None, OutputT, Parameters], payload: None = None, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    @overload
    def trigger_and_wait(self, payload: PayloadT, **options: Unpack[RunOptions]) -> TaskResult[OutputT]: ...
    @overload
    def trigger_and_wait(
        self, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> TaskResult[OutputT]: ...
    def trigger_and_wait(self, *args: Any, **kwargs: Any) -> TaskResult[OutputT]:
        """Trigger a run and wait until it has ended. Inside a run the slot is given back meanwhile.

        A failed run does not raise: the result says so, and its `unwrap()` raises. Otherwise as `trigger`.
        """
        payload, options = self._given(args, kwargs)
        return triggering.trigger_and_wait(self.id, payload, options)

    @overload
    async def atrigger_and_wait(
        self: Task[None, OutputT, Parameters], payload: None = None, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    @overload
    async def atrigger_and_wait(
        self, payload: PayloadT, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    @overload
    async def atrigger_and_wait(
        self, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> TaskResult[OutputT]: ...
    async def atrigger_and_wait(self, *args: Any, **kwargs: Any) -> TaskResult[OutputT]:
        """As `trigger_and_wait`, without blocking."""
        payload, options = self._given(args, kwargs)
        return await triggering.atrigger_and_wait(self.id, payload, options)

    def options(self, **options: Unpack[RunOptions]) -> TaskWithOptions[OutputT, Parameters]:
        """The task with options for the runs that it triggers: `task.options(tags=["csv"]).trigger(1, b="x")`.

        So options and arguments cannot be mixed up, whatever the parameters are called.
        Raises: TypeError for an option that there is not.
        """
        check_options(options)
        return TaskWithOptions(self, options)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, RunOptions]:
        """Payload and options out of what a trigger was called with."""
        arguments = self.signature.arguments
        if arguments:
            own = {
                name: value for name, value in kwargs.items() if name in arguments or name not in OPTION_NAMES
            }
            return self.signature.bind(args, own), cast(
                "RunOptions", {name: value for name, value in kwargs.items() if name not in own}
            )
        if len(args) > 1:
            raise UsageError(
                f"task {self.id!r} takes one payload, and was given {len(args)} values; options of the run are given by keyword"
            )
        if args:
            return args[0], cast("RunOptions", kwargs)
        name = self.signature.payload.name if self.signature.payload is not None else "payload"
        if name in kwargs and name in OPTION_NAMES:
            raise UsageError(
                f"{name!r} is a trigger option, and a parameter of task {self.id!r}: give the argument by position, "
                f"or the option before, as in {self.__name__}.options({name}=...).trigger(...)"
            )
        name = name if name in kwargs else "payload"
        return kwargs.pop(name, NO_PAYLOAD), cast("RunOptions", kwargs)

    def batch_trigger(
        self, items: Iterable[PayloadT | BatchItem[PayloadT]], **options: Unpack[BatchOptions]
    ) -> BatchHandle[OutputT]:
        """Trigger a run for each item of an iterable of any length, in bounded memory.

        Up to 1,000 items and about 4 MB go as one request: all are accepted or none. More go in portions while they come, and the
        runs of earlier portions may begin before the last one is sent. When the iterable or an item raises then, what was triggered
        goes on; a note on the error says how many that were.

        Args:
            items: payloads, or `BatchItem(payload, **options)` for items with options of their own. For a task of several parameters
                a payload is a tuple of arguments in their order, or a mapping of arguments by name.
            options: `key`, `idempotency_key`, `idempotency_key_ttl`; see `BatchOptions`.
        Raises: as `trigger`.
        """
        return batches.batch_trigger(self.id, items, **options)

    async def abatch_trigger(
        self,
        items: Iterable[PayloadT | BatchItem[PayloadT]] | AsyncIterable[PayloadT | BatchItem[PayloadT]],
        **options: Unpack[BatchOptions],
    ) -> BatchHandle[OutputT]:
        """As `batch_trigger`, without blocking; the iterable may be an asynchronous one."""
        return await batches.abatch_trigger(self.id, items, **options)

    def batch_trigger_and_wait(
        self, items: Iterable[PayloadT | BatchItem[PayloadT]], **options: Unpack[BatchOptions]
    ) -> list[TaskResult[OutputT]]:
        """As `batch_trigger`, and wait until all runs have ended; the results are in the order of the items."""
        return batches.batch_trigger_and_wait(self.id, items, **options)

    async def abatch_trigger_and_wait(
        self,
        items: Iterable[PayloadT | BatchItem[PayloadT]] | AsyncIterable[PayloadT | BatchItem[PayloadT]],
        **options: Unpack[BatchOptions],
    ) -> list[TaskResult[OutputT]]:
        """As `batch_trigger_and_wait`, without blocking."""
        return await batches.abatch_trigger_and_wait(self.id, items, **options)


class TaskWithOptions(Generic[OutputT, Parameters]):
    """A task and options for the runs that it triggers, from `Task.options`. It is triggered as its function is called."""

    def __init__(self, task: Task[Any, OutputT, Parameters], options: RunOptions) -> None:
        self._task = task
        self._options = options

    def trigger(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> RunHandle[OutputT]:
        """See `Task.trigger`."""
        return triggering.trigger(self._task.id, self._payload(args, kwargs), self._options)

    async def atrigger(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> RunHandle[OutputT]:
        """See `Task.atrigger`."""
        return await triggering.atrigger(self._task.id, self._payload(args, kwargs), self._options)

    def trigger_and_wait(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> TaskResult[OutputT]:
        """See `Task.trigger_and_wait`."""
        return triggering.trigger_and_wait(self._task.id, self._payload(args, kwargs), self._options)

    async def atrigger_and_wait(
        self, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> TaskResult[OutputT]:
        """See `Task.atrigger_and_wait`."""
        return await triggering.atrigger_and_wait(self._task.id, self._payload(args, kwargs), self._options)

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signature = self._task.signature
        if signature.arguments:
            return signature.bind(args, kwargs)
        given = inspect.Signature([] if signature.payload is None else [signature.payload])
        try:
            bound = given.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise PayloadValidationError(f"task {self._task.id!r}: {error}", field="payload") from None
        return next(iter(bound.values()), NO_PAYLOAD)


def registered_tasks() -> dict[str, Task[Any, Any]]:
    """The tasks of this process by id, a new dict."""
    return cast("dict[str, Task[Any, Any]]", registry.registered_tasks())


# --- the decorator -----------------------------------------------------------------------------------------


class _Marker:
    """What no function is written for: who takes it takes anything."""


# What a function has to be callable as, so that type checkers know the type of its one payload and its parameters by name as well.
class _TakesOne(Protocol[PayloadT_contra, OutputT_co, Params]):  # pyright: ignore[reportInvalidTypeVarUse]
    @overload
    def __call__(self, payload: PayloadT_contra, /) -> OutputT_co: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


class _TakesAnything(Protocol[OutputT_co, Params]):
    @overload
    def __call__(self, payload: _Marker, /) -> OutputT_co: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


class _SecondTakesAnything(Protocol[PayloadT_contra, OutputT_co, Params]):  # pyright: ignore[reportInvalidTypeVarUse]
    @overload
    def __call__(self, first: PayloadT_contra, second: _Marker, /) -> OutputT_co: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


# Who can be called with two arguments has several parameters, however many of them have a default.
class _TakesTwo(Protocol[OutputT_co, Params]):
    @overload
    def __call__(self, first: Never, second: Never, /) -> OutputT_co: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


class _ContextAndTwo(Protocol[OutputT_co, Params]):
    @overload
    def __call__(self, ctx: Context, first: Never, second: Never, /) -> OutputT_co: ...
    @overload
    def __call__(self, ctx: Context, /, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


class _ContextAndOne(Protocol[PayloadT_contra, OutputT_co, Params]):  # pyright: ignore[reportInvalidTypeVarUse]
    @overload
    def __call__(self, ctx: Context, payload: PayloadT_contra, /) -> OutputT_co: ...
    @overload
    def __call__(self, ctx: Context, /, *args: Params.args, **kwargs: Params.kwargs) -> OutputT_co: ...


class _ContextSomewhere(Protocol[OutputT_co]):
    def __call__(self, *args: Any, ctx: Context, **kwargs: Any) -> OutputT_co: ...


class TaskDecorator(Protocol):
    """`task`, and what `@task(...)` gives: makes a task of a function, `def` or `async def`.

    Type checkers see the parameters of a function as they are, without a context that comes first, or last behind one payload. Where
    it stands elsewhere, they let any arguments pass.
    """

    @overload
    def __call__(
        self, function: _TakesAnything[Awaited[OutputT], Params], /
    ) -> Task[Any, OutputT, Params]: ...
    @overload
    def __call__(self, function: _TakesAnything[OutputT, Params], /) -> Task[Any, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _ContextAndTwo[Awaited[OutputT], Params], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(self, function: _ContextAndTwo[OutputT, Params], /) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: _ContextAndOne[PayloadT, Awaited[OutputT], Params], /
    ) -> Task[PayloadT, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _ContextAndOne[PayloadT, OutputT, Params], /
    ) -> Task[PayloadT, OutputT, Params]: ...
    @overload
    def __call__(self, function: Callable[[Context], Awaited[OutputT]], /) -> Task[None, OutputT, []]: ...
    @overload
    def __call__(self, function: Callable[[Context], OutputT], /) -> Task[None, OutputT, []]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, Params], Awaited[OutputT]], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, Params], OutputT], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _SecondTakesAnything[PayloadT, Awaited[OutputT], Params], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _SecondTakesAnything[PayloadT, OutputT, Params], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: Callable[[PayloadT, Context], Awaited[OutputT]], /
    ) -> Task[PayloadT, OutputT, [PayloadT]]: ...
    @overload
    def __call__(
        self, function: Callable[[PayloadT, Context], OutputT], /
    ) -> Task[PayloadT, OutputT, [PayloadT]]: ...
    @overload
    def __call__(
        self, function: _TakesTwo[Awaited[OutputT], Params], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(self, function: _TakesTwo[OutputT, Params], /) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _TakesOne[PayloadT, Awaited[OutputT], Params], /
    ) -> Task[PayloadT, OutputT, Params]: ...
    @overload
    def __call__(
        self, function: _TakesOne[PayloadT, OutputT, Params], /
    ) -> Task[PayloadT, OutputT, Params]: ...
    @overload
    def __call__(self, function: Callable[[], Awaited[OutputT]], /) -> Task[None, OutputT, []]: ...
    @overload
    def __call__(self, function: Callable[[], OutputT], /) -> Task[None, OutputT, []]: ...
    @overload
    def __call__(self, function: _ContextSomewhere[Awaited[OutputT]], /) -> Task[Arguments, OutputT, ...]: ...
    @overload
    def __call__(self, function: _ContextSomewhere[OutputT], /) -> Task[Arguments, OutputT, ...]: ...
    @overload
    def __call__(
        self, function: Callable[Params, Awaited[OutputT]], /
    ) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(self, function: Callable[Params, OutputT], /) -> Task[Arguments, OutputT, Params]: ...
    @overload
    def __call__(
        self,
        *,
        id: str | None = None,
        retry: Retry | None = None,
        queue: Queue | str | None = None,
        metadata: Any = None,
        cron: str | None = None,
        every: timedelta | float | str | None = None,
        timezone: str | None = None,
        max_duration: timedelta | float | str | None = None,
        isolation: Isolation = "thread",
        **hooks: Unpack[TaskHooks],
    ) -> TaskDecorator: ...
    def __call__(self, *args: Any, **options: Any) -> Any:
        """See `task`."""
        ...


def _task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    id: str | None = None,
    retry: Retry | None = None,
    queue: Queue | str | None = None,
    metadata: Any = None,
    cron: str | None = None,
    every: timedelta | float | str | None = None,
    timezone: str | None = None,
    max_duration: timedelta | float | str | None = None,
    isolation: Isolation = "thread",
    **hooks: Unpack[TaskHooks],
) -> Any:
    """Make a task of a function, a `def` or an `async def`.

    The payload is the parameter that is not annotated `Context`; it is validated by its annotation (a Pydantic model, dataclass,
    TypedDict, msgspec Struct or plain type). The parameter annotated `Context` gets the context. Both may be missing. Of several
    parameters the payload is a JSON object that has the arguments by name; the task is triggered as the function is called.

    What goes through an annotation, as payload, output or typed metadata, comes out of it equal, or is refused where it is sent,
    with the place. An output that cannot be stored fails the run at once, without a retry: the work would be done again for
    nothing. Without an annotation, and for `Any`, a value becomes plain JSON: a tuple a list, a time text.

    Args:
        id: what the task is called on the server; the function's name when left out.
        retry: a `Retry`; when left out the one of the settings, which is three attempts with growing pauses unless they say otherwise.
        queue: a `Queue` or its name; a queue of the task's own when left out.
        metadata: the declared type of the metadata of its runs (M76): a Pydantic model, dataclass, TypedDict, msgspec Struct or
            attrs class. Every writer is held to it, also children and outsiders: a member that it declares always has a value that
            it can read, and one that it requires cannot be taken away again. A run that is triggered without metadata begins with
            `{}`, and required members may be missing until they are first set; metadata that is given at the trigger is whole.
            Keys that the type does not declare stay free. A value is stored as the type reads it: `set("total", "5")` of an `int`
            stores 5. Rules over several fields (`@model_validator`, `__post_init__`) are checked by the run itself, which reads
            its whole document at each write for them.
        cron: triggers it by itself at these times, a cron line such as "0 5 * * *" (or "@daily") in `timezone`. Its payload is then a
            `ScheduledPayload`, if it takes one. The schedule is made, changed and removed as workers with the code come.
        every: likewise, every so often: a timedelta, seconds, or a text such as "5m".
        timezone: the zone whose wall clock `cron` means, such as "Europe/Berlin"; UTC when left out.
        max_duration: how long one attempt may execute: a `timedelta`, seconds, or text such as `"10m"`. Waits for other runs do not
            count. What takes longer is asked to end as a cancelled run is, and ends as TIMED_OUT, without a retry. What is given at
            the trigger wins.
        isolation: "process" has each run execute alone in a process, one of a few that are kept ready (`milepost worker --isolated`):
            a crash there ends this run and no other, and one that does not end when it is asked to is killed after the grace time.
            A process takes the next run when one has ended, and is replaced after a kill. See docs/stopping.md.
        hooks: lifecycle hooks, as the decorators of the same names on the task.
    Raises: UsageError for a function that cannot be a task, and for an id that another task has.
    """
    unknown = hooks.keys() - set(HOOK_NAMES)
    if unknown:
        raise TypeError(f"task() has no argument {sorted(unknown)[0]!r}")
    frame = inspect.currentframe()
    local_names = _local_names(frame.f_back) if frame is not None else None

    schedule = _schedule_of(cron, every, timezone)

    def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
        new = Task[Any, Any](
            function,
            id=id if id is not None else function.__name__,
            retry=_checked_retry(retry),
            queue=Queue(queue) if isinstance(queue, str) else queue,
            metadata=MetadataSchema(metadata) if metadata is not None else None,
            schedule=schedule,
            max_duration=max_duration,
            isolation=isolation,
            local_names=local_names,
        )
        for name, given in hooks.items():
            add_hook = getattr(new, name)
            functions = cast(
                "Sequence[Callable[..., Any]]", given if isinstance(given, Sequence) else [given]
            )
            for hook in functions:
                add_hook(hook)
        register(new)
        return new

    return decorate if function is None else decorate(function)


def _schedule_of(
    cron: str | None, every: timedelta | float | str | None, timezone: str | None
) -> TaskSchedule | None:
    """What a task declares. Raises UsageError."""
    if cron is None and every is None:
        if timezone is not None:
            raise UsageError("a task's timezone= says in which zone cron= is meant, and there is no cron=")
        return None
    if cron is not None and every is not None:
        raise UsageError(
            "a task has either cron= or every=, not both; schedules.create makes further schedules"
        )
    # Workers of tasks without a schedule need not load the time zones.
    from milepost.model.timetable import Cron, Every

    try:
        if cron is not None:
            Cron(cron, timezone or "UTC")
            return TaskSchedule(cron=cron, timezone=timezone or "UTC")
        if timezone is not None:
            raise UsageError("every= counts time and knows no time zone: leave timezone= out, or use cron=")
        assert every is not None, "one of the two is given"
        return TaskSchedule(every=Every(every, 0).period / 1_000_000)
    except InvalidRequestError as error:
        raise UsageError(str(error)) from None


task: TaskDecorator = cast("TaskDecorator", _task)
_task.__name__ = _task.__qualname__ = "task"


def _checked_retry(retry: object) -> Retry | None:
    if retry is None or isinstance(retry, Retry):
        return retry
    raise UsageError(f"retry is a Retry, such as Retry(max_attempts=5), not {retry!r:.200}")


def _max_duration_ms(task_id: str, value: timedelta | float | str) -> int:
    try:
        milliseconds = parse_duration(value) // timedelta(milliseconds=1)
    except (ValueError, TypeError) as error:
        raise UsageError(f"task {task_id!r}: max_duration: {error}") from None
    if milliseconds < 1:
        raise UsageError(f"task {task_id!r}: max_duration is {value!r}; it is at least a millisecond")
    return milliseconds


def _local_names(frame: types.FrameType | None) -> dict[str, Any] | None:
    """The local names where `@task` is written inside a function: annotations may mean them."""
    return dict(frame.f_locals) if frame is not None and frame.f_locals is not frame.f_globals else None
