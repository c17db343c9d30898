"""`@task`: a function becomes a task that can be triggered here and run by a worker, and the registry by which workers find it."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack, cast, overload

from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.queue import Queue
from milepost.client.requests import NO_PAYLOAD, BatchOptions, RunOptions
from milepost.client.results import TaskResult
from milepost.errors import InvalidRequestError, UsageError
from milepost.model.names import check_name, default_queue
from milepost.protocol.schedules import TaskSchedule
from milepost.protocol.work import WorkerTask
from milepost.sdk import batches, registry, triggering
from milepost.sdk.batches import BatchItem
from milepost.sdk.context import Context
from milepost.sdk.hooks import HOOK_NAMES, Hooks
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
    "registered_tasks",
    "task",
]

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")


class TaskHooks(TypedDict, total=False):
    """Hooks given to `@task(...)`: one function or several by each name."""

    on_start_attempt: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_start: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_success: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_failure: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_complete: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_wait: Callable[..., Any] | Sequence[Callable[..., Any]]
    on_resume: Callable[..., Any] | Sequence[Callable[..., Any]]
    catch_error: Callable[..., Any] | Sequence[Callable[..., Any]]
    middleware: Callable[..., Any] | Sequence[Callable[..., Any]]


class Task(Hooks, Generic[PayloadT, OutputT]):
    """A task. Calling it runs the function plainly, for tests; `trigger` and its kin have a worker run it.

    Attributes:
        id: what the task is called on the server.
        queue: the queue that its runs go through; one of its own when None.
        metadata: the declared type of its metadata, or None.
        schedule: when it is triggered by itself, or None.
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
        )

    @property
    def retry(self) -> Retry:
        """When a failed run is tried again: the task's own rule, else the one of the settings."""
        return self._retry if self._retry is not None else default_retry()

    # --- triggering ----------------------------------------------------------------------------------------

    @overload
    def trigger(
        self: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    def trigger(self, payload: PayloadT, **options: Unpack[RunOptions]) -> RunHandle[OutputT]: ...
    def trigger(self, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]) -> RunHandle[OutputT]:
        """Have a worker run the task; returns as soon as the server has stored the run.

        Inside a run the new run becomes its child, and what the parent wrote to its metadata before is committed first. An attempt
        that is not the first of its run is given the children of the earlier ones again, each once, where task and payload are the
        same, unless they have failed for good: what is done is not done again. `idempotency_key=None` makes a new one in any case.

        Args:
            payload: checked against the annotation of the task's payload parameter. What the task gets is equal to it, or it is
                refused here: a subclass of the annotated model, NaN, or a field that is left out of its JSON. Secrets
                (`SecretStr`) arrive as what they are, so they are stored where who may read the run can read them.
            options: `metadata`, `tags`, `max_attempts`, `queue`, `concurrency_key`, `idempotency_key` and others; see `RunOptions`.
        Raises:
            PayloadValidationError: `field` names the part of the payload that does not fit.
            MetadataError: the metadata is no object, is not JSON, does not fit the task's schema or is too large.
            UnavailableError: the server cannot be reached.
            UsageError: on the worker's event loop, where it is `await task.atrigger(...)`.
        """
        return triggering.trigger(self.id, payload, options)

    @overload
    async def atrigger(
        self: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    async def atrigger(self, payload: PayloadT, **options: Unpack[RunOptions]) -> RunHandle[OutputT]: ...
    async def atrigger(self, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]) -> RunHandle[OutputT]:
        """As `trigger`, without blocking."""
        return await triggering.atrigger(self.id, payload, options)

    @overload
    def trigger_and_wait(
        self: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    @overload
    def trigger_and_wait(self, payload: PayloadT, **options: Unpack[RunOptions]) -> TaskResult[OutputT]: ...
    def trigger_and_wait(
        self, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]:
        """Trigger a run and wait until it has ended. Inside a run the slot is given back meanwhile.

        A failed run does not raise: the result says so, and its `unwrap()` raises. Otherwise as `trigger`.
        """
        return triggering.trigger_and_wait(self.id, payload, options)

    @overload
    async def atrigger_and_wait(
        self: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    @overload
    async def atrigger_and_wait(
        self, payload: PayloadT, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]: ...
    async def atrigger_and_wait(
        self, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> TaskResult[OutputT]:
        """As `trigger_and_wait`, without blocking."""
        return await triggering.atrigger_and_wait(self.id, payload, options)

    def batch_trigger(
        self, items: Iterable[PayloadT | BatchItem[PayloadT]], **options: Unpack[BatchOptions]
    ) -> BatchHandle[OutputT]:
        """Trigger a run for each item of an iterable of any length, in bounded memory.

        Up to 1,000 items and about 4 MB go as one request: all are accepted or none. More go in portions while they come, and the
        runs of earlier portions may begin before the last one is sent. When the iterable or an item raises then, what was triggered
        goes on; a note on the error says how many that were.

        Args:
            items: payloads, or `BatchItem(payload, **options)` for items with options of their own.
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


def registered_tasks() -> dict[str, Task[Any, Any]]:
    """The tasks of this process by id, a new dict."""
    return cast("dict[str, Task[Any, Any]]", registry.registered_tasks())


# --- the decorator -----------------------------------------------------------------------------------------


class TaskDecorator(Protocol):
    """What `@task(...)` gives: makes a task of a function with or without payload and context, `def` or `async def`."""

    @overload
    def __call__(
        self, function: Callable[[Context], Coroutine[Any, Any, OutputT]], /
    ) -> Task[None, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[Context], OutputT], /) -> Task[None, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[], Coroutine[Any, Any, OutputT]], /) -> Task[None, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[], OutputT], /) -> Task[None, OutputT]: ...
    @overload
    def __call__(
        self, function: Callable[[PayloadT], Coroutine[Any, Any, OutputT]], /
    ) -> Task[PayloadT, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[PayloadT], OutputT], /) -> Task[PayloadT, OutputT]: ...
    @overload
    def __call__(
        self, function: Callable[[PayloadT, Context], Coroutine[Any, Any, OutputT]], /
    ) -> Task[PayloadT, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[PayloadT, Context], OutputT], /) -> Task[PayloadT, OutputT]: ...
    @overload
    def __call__(
        self, function: Callable[[Context, PayloadT], Coroutine[Any, Any, OutputT]], /
    ) -> Task[PayloadT, OutputT]: ...
    @overload
    def __call__(self, function: Callable[[Context, PayloadT], OutputT], /) -> Task[PayloadT, OutputT]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        """Make a task of the function."""
        ...


@overload
def task(function: Callable[[Context], Coroutine[Any, Any, OutputT]], /) -> Task[None, OutputT]: ...
@overload
def task(function: Callable[[Context], OutputT], /) -> Task[None, OutputT]: ...
@overload
def task(function: Callable[[], Coroutine[Any, Any, OutputT]], /) -> Task[None, OutputT]: ...
@overload
def task(function: Callable[[], OutputT], /) -> Task[None, OutputT]: ...
@overload
def task(function: Callable[[PayloadT], Coroutine[Any, Any, OutputT]], /) -> Task[PayloadT, OutputT]: ...
@overload
def task(function: Callable[[PayloadT], OutputT], /) -> Task[PayloadT, OutputT]: ...
@overload
def task(
    function: Callable[[PayloadT, Context], Coroutine[Any, Any, OutputT]], /
) -> Task[PayloadT, OutputT]: ...
@overload
def task(function: Callable[[PayloadT, Context], OutputT], /) -> Task[PayloadT, OutputT]: ...
@overload
def task(
    function: Callable[[Context, PayloadT], Coroutine[Any, Any, OutputT]], /
) -> Task[PayloadT, OutputT]: ...
@overload
def task(function: Callable[[Context, PayloadT], OutputT], /) -> Task[PayloadT, OutputT]: ...
@overload
def task(
    *,
    id: str | None = None,
    retry: Retry | None = None,
    queue: Queue | str | None = None,
    metadata: Any = None,
    cron: str | None = None,
    every: timedelta | float | str | None = None,
    timezone: str | None = None,
    **hooks: Unpack[TaskHooks],
) -> TaskDecorator: ...
def task(
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
    **hooks: Unpack[TaskHooks],
) -> Any:
    """Make a task of a function, a `def` or an `async def`.

    The payload is the first parameter that is not annotated `Context`; it is validated by its annotation (a Pydantic model, dataclass,
    TypedDict, msgspec Struct or plain type). The parameter annotated `Context` gets the context. Both may be missing.

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


def _checked_retry(retry: object) -> Retry | None:
    if retry is None or isinstance(retry, Retry):
        return retry
    raise UsageError(f"retry is a Retry, such as Retry(max_attempts=5), not {retry!r:.200}")


def _local_names(frame: types.FrameType | None) -> dict[str, Any] | None:
    """The local names where `@task` is written inside a function: annotations may mean them."""
    return dict(frame.f_locals) if frame is not None and frame.f_locals is not frame.f_globals else None
