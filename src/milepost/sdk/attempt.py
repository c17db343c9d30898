"""One attempt of one run, from the payload's text to the outcome: a pipeline of small steps that does no I/O of its own.

    decode payload -> middleware( on_start_attempt -> on_start -> the task -> encode output -> on_success, on_complete ) -> Outcome
                                              any error -> catch_error -> retry or on_failure, on_complete -> Outcome

An attempt may also only close a run whose process has died: middleware( on_failure, on_complete ) -> an empty Outcome.

The worker has two ways in. `run_attempt` runs on its event loop: an `async def` is awaited there, a `def` is handed to a thread.
`run_attempt_in_thread` runs a `def` task with plain hooks wholly in the calling thread, which costs no switch between threads;
`needs_loop` tells which one a task wants. Whatever the user's code raises or returns becomes an outcome; the worker survives it.

An attempt is cancelled for four reasons. The worker has given it up (`RunScope.is_lost`): then it ends without an outcome. The run is
to end (`RunScope.stop`): then it ends by that, unless the task returns nevertheless, and its hooks say so. Something that it has
started on the loop has raised SystemExit or KeyboardInterrupt (`abort`): that is its error. Or user code has cancelled it: then the
CancelledError is an error like any other.
"""

from __future__ import annotations

import asyncio
import contextvars
import dis
import inspect
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, TypeVar, cast

import msgspec

from milepost.client.requests import NO_PAYLOAD
from milepost.client.results import TaskResult, output_text
from milepost.errors import MaxDurationError, PayloadValidationError, RunCancelledError, TaskFailedError
from milepost.model.run import AttemptEnd, Closing, Outcome, RunError, RunStatus
from milepost.model.typed import Misfit
from milepost.protocol.triggering import OUTPUT_BYTES_MAX, SUPER_JSON_TYPE, TEXT_TYPE
from milepost.protocol.work import ClaimedRun
from milepost.sdk.calling import know_runs
from milepost.sdk.context import Context
from milepost.sdk.hooks import Hook, HookName, hooks
from milepost.sdk.retry import Caught, OutputError, is_final
from milepost.sdk.safe_text import name_of, text_of, traceback_of
from milepost.sdk.scope import AttemptEnding, RunScope, Stop, current_scope, is_in_event_loop
from milepost.sdk.settings import task_settings
from milepost.sdk.task import Task
from milepost.sdk.triggering import describe_misfit

ResultT = TypeVar("ResultT")
CallInThread = Callable[[Callable[[], Any]], Awaitable[Any]]
Next = Callable[[], Coroutine[Any, Any, None]]

# Where code is part of a run, calls know so, whatever else the program has imported.
know_runs()

MESSAGE_CHARACTERS_MAX = 10_000
STACK_CHARACTERS_MAX = 20_000
# What is surely a value.
_VALUES = (str, int, float, dict, list)


def needs_loop(task: Task[Any, Any]) -> bool:
    """True when an attempt of the task has to run on the event loop: it, or a hook that concerns it, is an `async def`."""
    return task.is_async or not (task.are_plain and hooks.are_plain)


def may_hang_in_hooks(task: Task[Any, Any]) -> bool:
    """True where hooks of the end of a run execute in a thread that nothing can stop."""
    return (hooks.has_hooks or task.has_hooks) and not needs_loop(task)


async def run_attempt(
    task: Task[Any, Any],
    run: ClaimedRun,
    scope: RunScope,
    *,
    call_in_thread: CallInThread = asyncio.to_thread,
) -> Outcome:
    """Run one attempt on the running event loop.

    Args:
        call_in_thread: calls a function in another thread and gives its result, for `def` tasks and `def` hooks. Context variables are
            carried over here.
    Raises: CancelledError when the worker has given the attempt up, and nothing else.
    """
    attempt = Attempt(task, run, scope, loop=asyncio.get_running_loop(), call_in_thread=call_in_thread)
    return await attempt.run()


def run_attempt_in_thread(task: Task[Any, Any], run: ClaimedRun, scope: RunScope) -> Outcome:
    """Run one attempt of a task that does not need the event loop in the calling thread, in a context of its own. Never raises."""
    assert not needs_loop(task), task
    attempt = Attempt(task, run, scope, loop=None, call_in_thread=asyncio.to_thread)
    return contextvars.copy_context().run(_drive, attempt.run())


def _drive(steps: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that has nothing to wait for."""
    try:
        steps.send(None)
    except StopIteration as stop:
        return stop.value
    steps.close()
    raise AssertionError("a step waited where there is no event loop")


class Attempt:
    """The attempt under way."""

    def __init__(
        self,
        task: Task[Any, Any],
        run: ClaimedRun,
        scope: RunScope,
        *,
        loop: asyncio.AbstractEventLoop | None,
        call_in_thread: CallInThread,
    ) -> None:
        self._task = task
        self._run = run
        self._scope = scope
        self._loop = loop
        self._call_in_thread = call_in_thread
        self._context: Context | None = None
        self._payload: Any = None
        self._outcome: Outcome | None = None
        self._has_hooks = hooks.has_hooks or task.has_hooks
        self._is_in_middleware = False
        # The task's own code, or what comes before it, is under way and may be stopped; on the loop not while a thread has it.
        self._is_stoppable = True
        self._has_begun = False
        self._is_in_thread = False
        self._is_waiting_for_streams = False
        self._hook_began_at: float | None = None
        # The tasks of the event loop in which steps of this attempt run, each inside of a step of the one before.
        self._loop_tasks: list[asyncio.Task[Any]] = []
        self._aborted_by: BaseException | None = None
        # Every error that was seen on the way.
        self._errors: list[BaseException] = []

    async def run(self) -> Outcome:
        """Run it to its outcome."""
        scope = self._scope
        if not scope.loop_thread_id and is_in_event_loop():
            scope.loop_thread_id = threading.get_ident()
        scope.schema = self._task.metadata
        scope.attempt = self
        token = current_scope.set(scope)
        if self._loop is not None:
            self._loop_tasks.append(_current_task(self._loop))
        try:
            if scope.is_lost or scope.stop is not None:
                raise asyncio.CancelledError
            if self._run.closing is None:
                inside = partial(self._run_inside, self._decode_payload())
            else:
                inside = partial(self._run_last_hooks, self._run.closing)
            if self._has_hooks:
                for hook in reversed(self._hooks_for("middleware")):
                    inside = partial(self._run_middleware, hook, inside)
                    self._is_in_middleware = True
            await inside()
        except BaseException as error:  # whatever the user's code raises ends this run and not the worker
            self._errors.append(error)
            self._raise_if_lost(error)
            self._is_in_middleware = False
            self._take_back_cancel()
            if self._run.closing is not None:
                self._outcome = Outcome(error=describe_error(error))
            elif self._outcome is None or self._outcome.error is None:
                # It came from outside of what `_run_inside` looks after: the payload, a middleware, a cancelled task.
                await self._fail(error)
        finally:
            if scope.streams is not None:
                await self._end_streams(scope.streams)
            scope.is_over = True
            scope.attempt = None
            current_scope.reset(token)
            self._loop_tasks.clear()
            forget_frames(self._errors)
            self._errors.clear()
            self._aborted_by = None
        assert self._outcome is not None, "an attempt ends with an outcome"
        return self._outcome

    async def _end_streams(self, streams: AttemptEnding) -> None:
        """End what the attempt writes into streams; on success that waits for their sources. Raises nothing but the cancellation of an
        attempt that was given up."""
        error = self._outcome.error if self._outcome is not None else None
        reason = None if error is None else ": ".join(filter(None, (error.name, error.message)))
        if self._outcome is None and reason is None:
            reason = "the attempt was given up"
        if not is_in_event_loop():
            streams.end(reason)
            return
        self._is_waiting_for_streams = True
        while True:
            try:
                await streams.end_on_loop(reason)
            except asyncio.CancelledError as cancelled:
                self._raise_if_lost(cancelled)
                self._take_back_cancel()
                if self._scope.stop is not None:
                    # It has returned, and is not to wait any longer for what its streams still come to.
                    reason = self._scope.stop.error.message
            else:
                return

    @property
    def outcome(self) -> Outcome | None:
        """See `RunningAttempt`."""
        return self._outcome

    @property
    def stops_by_raising(self) -> bool:
        """See `RunningAttempt`."""
        return self._is_stoppable and not self._task.is_async

    @property
    def hook_began_at(self) -> float | None:
        """See `RunningAttempt`."""
        return self._hook_began_at

    def stop(self) -> None:
        """See `RunningAttempt`. The hooks that come after the task's own code are not cancelled; they have the grace time."""
        if self._is_waiting_for_streams or (self._is_stoppable and not self._is_in_thread):
            self.cancel(self._scope.stop.error.message if self._scope.stop is not None else None)

    def cancel(self, reason: str | None = None) -> None:
        """Cancel what runs of it on the event loop; the CancelledError there says why. On the loop's thread."""
        if self._loop_tasks:
            self._loop_tasks[-1].cancel(reason)

    def abort(self, error: BaseException) -> None:
        """A task or callback that the attempt has started on the event loop has ended with SystemExit or KeyboardInterrupt.

        That would have ended a program. Here it ends the run, as a program would end: what runs is cancelled, and the run fails with
        this error. On the loop's thread.
        """
        if self._outcome is not None or self._aborted_by is not None:
            self.context().logger.error("what the task has left running has failed", exc_info=error)
            forget_frames([error])
            return
        self._aborted_by = error
        self._errors.append(error)
        self.cancel()

    # --- the steps -----------------------------------------------------------------------------------------

    def _decode_payload(self) -> Any:
        """The payload in the type that the task's parameter is annotated with; hooks are given it too. Raises
        PayloadValidationError."""
        payload = self._typed_payload()
        self._payload = None if payload is NO_PAYLOAD else payload
        return payload

    def _typed_payload(self) -> Any:
        run = self._run
        signature = self._task.signature
        parameter = signature.payload
        shape = signature.payload_shape
        text = run.payload
        if signature.arguments:
            name = "payload"
            text = text if text is not None else "{}"
        elif parameter is not None:
            name = parameter.name
        else:
            return NO_PAYLOAD
        assert shape is not None, "what is taken has a shape"
        try:
            if text is None:
                if parameter is not None and parameter.default is not parameter.empty:
                    return NO_PAYLOAD
                return shape.read(b"null")
            if run.payload_type == TEXT_TYPE:
                return shape.check(text)
            if run.payload_type == SUPER_JSON_TYPE:
                inside = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
                return shape.read(bytes(inside.get("json", b"null")))
            return shape.read(text)
        except Misfit as misfit:
            if text is None:
                message = f"task {self._task.id!r} needs a payload ({name}), and was given none"
                raise PayloadValidationError(message, field=name) from None
            self._payload = self._raw_payload()
            raise describe_misfit(self._task.id, name, misfit) from None
        except msgspec.DecodeError as error:
            message = f"the payload of task {self._task.id!r} is not {run.payload_type}: {error}"
            raise PayloadValidationError(message, field=name) from None

    def _raw_payload(self) -> Any:
        try:
            return msgspec.json.decode(self._run.payload or "null")
        except msgspec.DecodeError:
            return self._run.payload

    async def _run_inside(self, payload: Any) -> None:
        """Everything that middleware wraps. Decides the outcome; raises the error of a failed attempt for middleware to see."""
        self._has_begun = True
        try:
            if self._has_hooks:
                await self.run_hooks("on_start_attempt")
                if not self._run.has_begun:
                    await self.run_hooks("on_start")
                if self._scope.stop is not None:
                    # A hook in a thread has heard nothing of it.
                    raise self._scope.stop.exception()
            output = await self._call_task(payload)
            self._is_stoppable = False
            if self._scope.stop is not None:
                # It has gone on nevertheless, to its own end.
                self._take_back_cancel()
            if self._aborted_by is not None:
                # The code was cancelled for it, and has gone on nevertheless.
                raise self._aborted_by
            text = self._encode_output(output)
        except BaseException as error:
            self._errors.append(error)
            self._raise_if_cancelling(error)
            await self._fail(error)
            raise
        self._outcome = Outcome(output=text)
        if self._runs_hooks_after:
            result = TaskResult(ok=True, run_id=self._run.id, output=output)
            await self._run_hooks_after("on_success", output=output, result=result)
            await self._run_hooks_after("on_complete", output=output, result=result)

    async def _run_last_hooks(self, closing: Closing) -> None:
        """What a run has had no process left for. That it has failed is decided already."""
        self._is_stoppable = False
        with suppress(PayloadValidationError):
            self._decode_payload()
        run_id, error = self._run.id, closing.error
        failure: BaseException
        if closing.status is RunStatus.TIMED_OUT:
            failure = MaxDurationError(error.message)
        else:
            failure = TaskFailedError(run_id=run_id, error_name=error.name, error_message=error.message)
        result = TaskResult[Any](ok=False, run_id=run_id, error=error)
        await self._run_hooks_after("on_failure", error=failure, result=result)
        await self._run_hooks_after("on_complete", error=failure, result=result)
        self._outcome = Outcome()

    async def _call_task(self, payload: Any) -> Any:
        task = self._task
        if task.is_async:
            output = task.signature.call(payload, self.context)
            if inspect.isawaitable(output):
                output = await output
                if _current_task(self._loop).cancelling():
                    # It has cancelled itself and not waited since; if it has taken that back, nothing happens here.
                    await asyncio.sleep(0)
            return output
        return await self._call(partial(task.signature.call, payload, self.context))

    def _encode_output(self, output: Any) -> str | None:
        if output is None:
            return None
        if not issubclass(type(output), _VALUES):
            _refuse_unfinished(output)
        try:
            text, misfit = output_text(output, self._task.signature.output_shape)
        except Misfit as misfit:
            raise OutputError(
                f"the task's output cannot be handed on: {misfit.describe_in('output')}"
            ) from None
        size = len(text.encode()) if text is not None else 0
        if size > OUTPUT_BYTES_MAX:
            raise OutputError(
                f"the task's output is {size:,} bytes of JSON, and at most {OUTPUT_BYTES_MAX:,} can be kept; "
                f"store it elsewhere and return where"
            )
        if misfit is not None:
            self.context().logger.warning(
                "the output does not fit the annotation of task %r and is handed on as plain JSON: %s",
                self._task.id,
                misfit.describe_in("output"),
            )
        return text

    async def _run_middleware(self, hook: Hook, inside: Next) -> None:
        """One middleware around what is inside of it."""
        calls = 0
        failure: BaseException | None = None

        async def proceed() -> None:
            nonlocal calls, failure
            calls += 1
            if calls > 1:
                raise RuntimeError(f"middleware {hook.name} called next() a second time")
            try:
                await inside()
            except BaseException as error:
                failure = error
                self._errors.append(error)
                raise

        if hook.is_async:
            await self._call_hook(hook, next=proceed)
        else:
            await self._call_hook(hook, next=partial(self._proceed_blocking, proceed))
        if not calls:
            raise RuntimeError(f"middleware {hook.name} did not call next(), so the task did not run")
        if failure is not None:
            # Swallowed by the middleware; the attempt has failed nevertheless.
            raise failure

    def _proceed_blocking(self, proceed: Next) -> None:
        """`next()` of a plain middleware, in a thread. An `async def` task belongs on the loop; a `def` goes on here."""
        if self._task.is_async:
            self._on_loop(proceed())
        else:
            _drive(proceed())

    async def _fail(self, error: BaseException) -> None:
        """Decide the outcome of a failed attempt."""
        if self._scope.stop is not None and self._outcome is None:
            await self._end_stopped(self._scope.stop, error)
            return
        self._is_stoppable = False
        if isinstance(error, asyncio.CancelledError) and self._aborted_by is not None:
            error = self._aborted_by
        # After GeneratorExit nothing may be awaited where it is how Python ends a coroutine that is thrown away.
        runs_hooks = self._runs_hooks_after and not (
            isinstance(error, GeneratorExit) and self._is_thrown_away()
        )
        decision: Caught | None = None
        if runs_hooks:
            error, decision = await self._let_hooks_catch(error)
        retry_after_ms = self._pause_after(error, decision)
        run_error = describe_error(error)
        self._outcome = Outcome(error=run_error, retry_after_ms=retry_after_ms)
        if runs_hooks and retry_after_ms is None:
            result = TaskResult[Any](ok=False, run_id=self._run.id, error=run_error)
            await self._run_hooks_after("on_failure", error=error, result=result)
            await self._run_hooks_after("on_complete", error=error, result=result)

    async def _end_stopped(self, stop: Stop, error: BaseException) -> None:
        """The run was to end, and the task has not returned: whatever it has raised, this is its end."""
        self._is_stoppable = False
        self._take_back_cancel()
        if not isinstance(error, asyncio.CancelledError | RunCancelledError):
            self.context().logger.warning("the task was to end, and raised another error", exc_info=error)
        run_error = stop.error
        if self._has_begun:
            # Where its code was.
            run_error = msgspec.structs.replace(run_error, stack_trace=describe_error(error).stack_trace)
        self._outcome = Outcome(error=run_error, end=stop.end)
        if not self._has_begun or not self._runs_hooks_after:
            return
        result = TaskResult[Any](ok=False, run_id=self._run.id, error=run_error)
        is_cancelled = stop.end is AttemptEnd.CANCELLED
        await self._run_hooks_after(
            "on_cancel" if is_cancelled else "on_failure", error=stop.exception(), result=result
        )
        await self._run_hooks_after("on_complete", error=stop.exception(), result=result)

    def _pause_after(self, error: BaseException, decision: Caught | None) -> int | None:
        """How long until the next attempt, in milliseconds; None when there is none."""
        if is_final(error) or (decision is not None and decision.skip_retrying):
            return None
        retry = self._task.retry
        pause = (self._run.retry or retry.rule).delay_ms(
            self._run.charged + 1, jitter=random.random(), max_attempts=self._run.max_attempts
        )
        if pause is None:
            return None
        if decision is not None and (asked := decision.delay_ms()) is not None:
            return asked
        return pause if retry.is_retried(error) else None

    async def _let_hooks_catch(self, error: BaseException) -> tuple[BaseException, Caught | None]:
        """The error as the hooks leave it, and what the last one that had a say about retrying has said."""
        decision: Caught | None = None
        for hook in self._hooks_for("catch_error"):
            try:
                replacement = await self._call_hook(hook, error=error)
            except (
                BaseException
            ) as raised:  # as for the task itself; what a hook raises takes the place of the error
                self._errors.append(raised)
                self._raise_if_cancelling(raised)
                replacement = raised
            if isinstance(replacement, Caught):
                if replacement.skip_retrying or replacement.delay_ms() is not None:
                    decision = replacement
                replacement = replacement.error
            if isinstance(replacement, BaseException):
                error = replacement
                self._errors.append(error)
            elif replacement is not None:
                self.context().logger.warning(
                    "catch_error hook %s returned %s, which says nothing: return an exception, a Caught or None",
                    hook.name,
                    name_of(type(cast("object", replacement))),
                )
        return error, decision

    # --- hooks and colours ---------------------------------------------------------------------------------

    def context(self) -> Context:
        """The context, made when somebody asks for it."""
        if self._context is None:
            self._context = Context(self._scope)
        return self._context

    def _hooks_for(self, name: HookName) -> list[Hook]:
        return [*hooks.hooks_for(name), *self._task.hooks_for(name)]

    @property
    def _runs_hooks_after(self) -> bool:
        """Hooks after the task's own code tell how the run has ended, which an attempt that was given up cannot know."""
        return self._has_hooks and not self._scope.is_lost

    async def run_hooks(self, name: HookName, **values: Any) -> None:
        """Run the hooks of one name, global ones first. What raises stops them and is raised."""
        for hook in self._hooks_for(name):
            await self._call_hook(hook, **values)

    def run_hooks_blocking(self, name: HookName) -> None:
        """As `run_hooks`, from the thread of a `def` task."""
        _drive(self.run_hooks(name))

    async def _run_hooks_after(self, name: HookName, **values: Any) -> None:
        """Run hooks that come after the task's own code: they cannot change the outcome any more, so errors go to the run's log."""
        for hook in self._hooks_for(name):
            try:
                if self._loop is None:
                    self._hook_began_at = time.monotonic()
                await self._call_hook(hook, **values)
            except BaseException as error:  # as for the task itself
                self._errors.append(error)
                self._raise_if_cancelling(error)
                self.context().logger.error("%s hook %s failed", name, hook.name, exc_info=error)
            finally:
                self._hook_began_at = None

    async def _call_hook(self, hook: Hook, **values: Any) -> Any:
        """Call a hook. On the event loop one that takes longer than it may raises TimeoutError, and is cancelled or left behind; a
        middleware takes as long as what it wraps."""
        arguments = hook.arguments({**self._values(), **values})
        if not is_in_event_loop():
            if hook.is_async:
                return self._on_loop(self._bounded(hook, hook.function(**arguments)))
            return hook.function(**arguments)
        if hook.is_async:
            return await self._bounded(hook, hook.function(**arguments))
        return await self._bounded(hook, self._call(partial(hook.function, **arguments)))

    async def _bounded(self, hook: Hook, steps: Awaitable[Any]) -> Any:
        if "next" in hook.parameters:
            return await steps
        seconds = task_settings().hook_seconds_max
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await steps
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"hook {hook.name} took longer than {seconds:g} s (MILEPOST_HOOK_SECONDS_MAX) and was given up"
            ) from None

    def _values(self) -> dict[str, Any]:
        context = self.context()
        return {"payload": self._payload, "ctx": context, "run": context.run}

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Call plain code: in this thread, or in another one when this is the event loop's. Context variables are carried over."""
        if not is_in_event_loop():
            return function()
        context = contextvars.copy_context()
        self._is_in_thread = True
        try:
            result, error = await self._call_in_thread(lambda: context.run(_contained_call, function))
        finally:
            self._is_in_thread = False
        if error is not None:
            raise error
        return result

    def _on_loop(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the worker's loop from another thread. Context variables are carried over."""
        assert self._loop is not None, "an attempt that needs the loop was started on it"
        result, error = asyncio.run_coroutine_threadsafe(self._contained(steps), self._loop).result()
        if error is not None:
            raise error
        return result

    async def _contained(self, steps: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        """The result or the error of a coroutine, for the thread that waits for it. Raised in a task of its own, SystemExit and
        KeyboardInterrupt would stop the loop; and a cancelled task could not say why."""
        self._loop_tasks.append(_current_task())
        was_in_thread, self._is_in_thread = self._is_in_thread, False
        try:
            return await steps, None
        except BaseException as error:
            return None, error
        finally:
            self._is_in_thread = was_in_thread
            del self._loop_tasks[-1]

    # --- cancelled -----------------------------------------------------------------------------------------

    def _raise_if_lost(self, error: BaseException) -> None:
        """Raise the cancellation of an attempt that the worker has given up: no word of it counts any more."""
        if self._scope.is_lost and isinstance(error, asyncio.CancelledError):
            raise error

    def _raise_if_cancelling(self, error: BaseException) -> None:
        """Raise the cancellation of the very task that runs these steps, if somebody around them may know what it means: the worker,
        or a middleware with a timeout or a task group. To all others it is an error like any other."""
        self._raise_if_lost(error)
        if self._scope.stop is not None:
            self._take_back_cancel()
            return
        if isinstance(error, asyncio.CancelledError) and is_in_event_loop() and _current_task().cancelling():
            if self._is_in_middleware:
                raise error
            self._take_back_cancel()

    def _take_back_cancel(self) -> None:
        """Nobody wants this task cancelled any more: hooks may use timeouts and task groups, which count the wishes."""
        if is_in_event_loop():
            task = _current_task()
            while task.cancelling():
                task.uncancel()

    def _is_thrown_away(self) -> bool:
        """True when this coroutine is being closed, and not run by a task or a thread."""
        return bool(self._loop_tasks) and (
            not is_in_event_loop() or asyncio.current_task() not in self._loop_tasks
        )


def _current_task(loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[Any]:
    task = asyncio.current_task(loop)
    assert task is not None, "steps on the event loop are run by a task"
    return task


def _refuse_unfinished(output: object) -> None:
    """Raise OutputError for what the task was to do itself."""
    if inspect.isgenerator(output) or inspect.isasyncgen(output):
        raise OutputError(
            "the task returned a generator, which is no output; return a list of what it yields"
        )
    if inspect.isawaitable(output):
        if inspect.iscoroutine(output):
            output.close()
        raise OutputError(
            "the task returned an awaitable, which nobody would await; make the task an `async def`"
        )


def _contained_call(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """The result or the error of a call. A future cannot carry every error: StopIteration and SystemExit mean something to it."""
    try:
        return function(), None
    except BaseException as error:  # handed on to the attempt that waits for it
        return None, error


def forget_frames(errors: Iterable[BaseException]) -> None:
    """Let go of what the frames of these errors hold, and those of the errors behind them.

    A frame in an error's traceback that knows the error, or a task that failed with it, keeps everything it holds alive until the
    cycle collector comes by, which may be long after 100 failed runs of 10 MB each.
    """
    left = list(errors)
    seen: set[int] = set()
    frames: list[FrameType] = []
    while left:
        error = left.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        # As the base classes have them: a subclass may do anything when it is asked.
        trace, cause, context = (member.__get__(error) for member in _MEMBERS)
        frames += [frame for frame, _ in traceback.walk_tb(trace)]
        BaseException.with_traceback(error, None)
        left += [each for each in (cause, context) if each is not None]
        if issubclass(type(error), BaseExceptionGroup):
            left += BaseExceptionGroup.exceptions.__get__(cast("BaseExceptionGroup[BaseException]", error))
    for frame in frames:
        # A coroutine that has caught the error, handed it on and waits for something else must not be cleared: that would end it.
        # Python refuses to do so since 3.13, and to clear what runs.
        if frame.f_code.co_code[frame.f_lasti] != _YIELD_VALUE:
            with suppress(RuntimeError):
                frame.clear()


_MEMBERS: tuple[Any, ...] = (
    BaseException.__traceback__,
    BaseException.__cause__,
    BaseException.__context__,
)
_YIELD_VALUE = dis.opmap["YIELD_VALUE"]


# --- errors as data ----------------------------------------------------------------------------------------


def describe_error(error: BaseException) -> RunError:
    """An error of the user's code as data. Never raises, whatever the error's own methods do."""
    name = name_of(type(error))
    message = text_of(error)
    if issubclass(type(error), SystemExit):
        code = text_of(getattr(error, "code", None), repr)
        message = f"the task called sys.exit({code}); return, or raise an error, to end a run"
    elif issubclass(type(error), KeyboardInterrupt):
        message = "the task raised KeyboardInterrupt"
    elif issubclass(type(error), asyncio.CancelledError):
        message = (
            message
            or "the task was cancelled from inside: it has cancelled itself, or something that it awaited had been cancelled"
        )
    elif not message:
        message = name
    return RunError(
        message=_bounded(message, MESSAGE_CHARACTERS_MAX),
        name=name,
        stack_trace=_bounded(traceback_of(error), STACK_CHARACTERS_MAX),
    )


def _bounded(text: str, characters_max: int) -> str:
    if len(text) <= characters_max:
        return text
    return f"{text[: characters_max // 2]}\n... ({len(text) - characters_max:,} characters left out)\n{text[-characters_max // 2 :]}"


__all__ = [
    "Attempt",
    "OutputError",
    "describe_error",
    "forget_frames",
    "may_hang_in_hooks",
    "needs_loop",
    "run_attempt",
    "run_attempt_in_thread",
]
