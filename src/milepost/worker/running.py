"""Where the code of runs is carried out: `async def` tasks on one event loop, `def` tasks in threads.

An executor does it in a process of its own; `in_process` does it in a program that serves its own tasks.
"""

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from milepost.model.run import Outcome, RunError
from milepost.protocol.work import ClaimedRun
from milepost.sdk.attempt import (
    describe_error,
    forget_frames,
    needs_loop,
    run_attempt,
    run_attempt_in_thread,
)
from milepost.sdk.retry import is_final
from milepost.sdk.scope import RunScope
from milepost.sdk.task import Task
from milepost.worker.link import WorkerLink
from milepost.worker.outbox import HeldRun
from milepost.worker.threads import ThreadPool


class Runner:
    """Carries out what a link hands it: the half of a `Host` that has to do with runs.

    Args:
        loop: where `async def` tasks run.
        loop_thread_id: the thread of that loop.
        threads: where `def` tasks run; a pool of its own when None.
    """

    _link: WorkerLink

    def __init__(
        self,
        tasks: Mapping[str, Task[Any, Any]],
        loop: asyncio.AbstractEventLoop,
        loop_thread_id: int,
        threads: ThreadPool | None = None,
    ) -> None:
        self._tasks = tasks
        self._threads = ThreadPool(threads_min=1) if threads is None else threads
        self._loop = loop
        self._thread_id = loop_thread_id
        # The runs whose code runs on the loop; the loop itself does not keep its tasks alive.
        self._on_loop: dict[HeldRun, asyncio.Task[None]] = {}
        # Every run starts from the context as it is after the imports, and none sees what another one sets.
        self._context = contextvars.copy_context()

    # --- what the link asks, on its thread -----------------------------------------------------------------

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        """See `Host`."""
        scope = RunScope(run, metadata_size_max, self._link, self._thread_id)
        return HeldRun(scope, self._tasks.get(run.task))

    def start(self, runs: Sequence[HeldRun]) -> None:
        """See `Host`. `def` tasks go to their threads from here, so that a blocked event loop does not hold them up."""
        on_loop: list[HeldRun] = []
        in_threads: list[Callable[[], None]] = []
        for held in runs:
            if held.task is None:
                # The server hands out only what was registered, so this is a mistake somewhere; another worker may do better.
                error = RunError(
                    name="NotFoundError", message=f"this worker has no task {held.scope.run.task!r}"
                )
                self._link.finished(held, Outcome(error=error, retry_after_ms=1000))
            elif needs_loop(held.task):
                on_loop.append(held)
            else:
                in_threads.append(partial(self._run_in_thread, held.task, held))
        if in_threads:
            self._threads.submit(in_threads)
        if on_loop:
            self._loop.call_soon_threadsafe(self._start_on_loop, on_loop)

    def interrupt(self, run: HeldRun) -> None:
        """See `Host`. Code in a thread cannot be stopped; it goes on unheard."""
        run.scope.is_lost = True
        self._loop.call_soon_threadsafe(_cancel, run)

    def stop(self, run: HeldRun) -> None:
        """See `Host`. Code in a thread hears of it by itself."""
        self._loop.call_soon_threadsafe(_stop, run)

    # --- running -------------------------------------------------------------------------------------------

    def _start_on_loop(self, runs: Sequence[HeldRun]) -> None:
        for held in runs:
            assert held.task is not None, "runs without a task are not started"
            self._on_loop[held] = self._loop.create_task(
                self._run_on_loop(held.task, held), context=self._context.copy()
            )

    async def _run_on_loop(self, task: Task[Any, Any], held: HeldRun) -> None:
        try:
            outcome = await run_attempt(task, held.scope.run, held.scope, call_in_thread=self._call_in_thread)
        except BaseException as error:
            # A CancelledError: the link has given the run up, or ends, and nobody cares for the outcome.
            outcome = _stray_outcome(task, held, error)
        self._on_loop.pop(held, None)
        self._finished(held, outcome)

    def _call_in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Call a function in a thread of the pool; what it returns or raises comes back to the event loop."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # it belongs to the attempt that waits for it, whatever it is
                self._loop.call_soon_threadsafe(_set, future.set_exception, future, error)
            else:
                self._loop.call_soon_threadsafe(_set, future.set_result, future, result)

        self._threads.submit([work])
        return future

    def _run_in_thread(self, task: Task[Any, Any], held: HeldRun) -> None:
        try:
            outcome = self._context.copy().run(run_attempt_in_thread, task, held.scope.run, held.scope)
        except BaseException as error:
            # User code may send an error into this thread (as some timeouts do), and it may come just after the attempt.
            outcome = _stray_outcome(task, held, error)
        self._finished(held, outcome)

    def _finished(self, held: HeldRun, outcome: Outcome) -> None:
        self._link.finished(held, outcome)


def _stray_outcome(task: Task[Any, Any], held: HeldRun, error: BaseException) -> Outcome:
    """The outcome of an attempt that could not come to one by itself."""
    run = held.scope.run
    pause = None
    if task.retry.is_retried(error) and not is_final(error):
        pause = (run.retry or task.retry.rule).delay_ms(
            run.charged + 1, jitter=random.random(), max_attempts=run.max_attempts
        )
    outcome = Outcome(error=describe_error(error), retry_after_ms=pause)
    forget_frames([error])
    return outcome


def _set(setter: Callable[[Any], None], future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        setter(value)


def _cancel(held: HeldRun) -> None:
    if held.scope.attempt is not None:
        run = held.scope.run
        held.scope.attempt.cancel(f"attempt {run.attempt} of run {run.id} was given up by the server")


def _stop(held: HeldRun) -> None:
    # Code that has not come to its attempt yet sees there that it is to end.
    if held.scope.attempt is not None:
        held.scope.attempt.stop()
