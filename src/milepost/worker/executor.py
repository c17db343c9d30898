"""An executor: a process in which user code runs.

`async def` tasks run on the event loop of the main thread, `def` tasks in threads; the link, on a thread of its own, does all the
talking to the server. The supervisor starts this process and may order it to end (`control`).
"""

import argparse
import asyncio
import contextlib
import contextvars
import gc
import io
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

from milepost.client.settings import find_address
from milepost.errors import MilepostError
from milepost.model.run import Outcome, RunError
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.buffer import Buffer
from milepost.sdk.registry import registered_tasks
from milepost.sdk.scope import RunScope
from milepost.sdk.task import Task
from milepost.worker import control, loader
from milepost.worker.channel import Refused
from milepost.worker.control import LoadFailed, Message, Notice, Order, Ready, Rejected
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.loader import TaskLoadError
from milepost.worker.outbox import HeldRun
from milepost.worker.settings import load_settings
from milepost.worker.threads import ThreadPool

# How long the main thread may take to end once the link has said goodbye; user code may block it for good.
END_SECONDS_MAX = 4.0


def main(arguments: Sequence[str]) -> int:
    """Run one executor until it is ordered to end; the exit code is one of `control.EXIT_*`."""
    options = _parse(arguments)
    supervisor = _SupervisorLine(options.messages)
    try:
        loader.load(options.sources)
        tasks = registered_tasks()
        if not tasks:
            raise TaskLoadError(
                f"there is no task in {', '.join(options.sources)}: put @task (from milepost) above a function"
            )
        described = [task.describe() for task in tasks.values()]
    except (TaskLoadError, MilepostError) as error:
        files = [*map(str, loader.user_files()), *getattr(error, "files", ())]
        supervisor.tell(LoadFailed(str(error), files))
        return control.EXIT_LOAD_FAILED
    executor = Executor(options, tasks, described, supervisor)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(executor.run())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Executor:
    """One executor process: where the link's runs are carried out. A `Host` of the link."""

    def __init__(
        self,
        options: argparse.Namespace,
        tasks: Mapping[str, Task[Any, Any]],
        described: Sequence[WorkerTask],
        supervisor: "_SupervisorLine",
    ) -> None:
        settings, address = load_settings(), find_address()
        self._tasks = tasks
        self._supervisor = supervisor
        self._worker_id = f"worker_{secrets.token_hex(12)}"
        self._threads = ThreadPool()
        self._is_forked_child = False
        # Every run starts from the context as it is after the imports, and none sees what another one sets.
        self._context = contextvars.copy_context()
        self._exit_code = control.EXIT_DRAINED
        self._link = WorkerLink(
            LinkOptions(
                api_url=address.api_url,
                secret_key=address.secret_key,
                worker_id=self._worker_id,
                name=f"{socket.gethostname()} {options.name} ({os.getpid()})",
                tasks=described,
                concurrency=options.concurrency,
                flush_interval_seconds=settings.metadata_flush_interval_ms / 1000,
                grace_seconds=options.grace,
            ),
            self,
            loop_factory(),
        )

    async def run(self) -> int:
        """Carry out runs until the link has left the server."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._has_left = asyncio.Event()
        # What the imports made lives on anyway, and the many small objects of each run are freed without the collector's help.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        self._link.start()
        self._heed_signals()
        self._supervisor.answer_to(self._link.order)
        await self._has_left.wait()
        return self._exit_code

    # --- what the link asks, on its thread -----------------------------------------------------------------

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        """See `Host`."""
        buffer = Buffer.of(run, limit=metadata_size_max)
        return HeldRun(RunScope(run, buffer, self._link, self._thread_id), self._tasks.get(run.task))

    def start(self, runs: Sequence[HeldRun]) -> None:
        """See `Host`. `def` tasks go to their threads from here, so that a blocked event loop does not hold them up."""
        on_loop: list[HeldRun] = []
        in_threads: list[Callable[[], None]] = []
        for held in runs:
            if held.task is None:
                # The server hands out only what was registered, so this is a mistake somewhere; another worker may do better.
                error = RunError(
                    name="TaskNotFoundError", message=f"this worker has no task {held.scope.run.task!r}"
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
        self._loop.call_soon_threadsafe(_cancel, run)

    def registered(self) -> None:
        """See `Host`."""
        self._supervisor.tell(
            Ready(self._worker_id, list(self._tasks), [str(file) for file in loader.user_files()])
        )

    def notice(self, message: str) -> None:
        """See `Host`."""
        self._supervisor.tell(Notice(message))

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """See `Host`."""
        if isinstance(error, Refused):
            self._supervisor.tell(Rejected(f"the server does not take this worker: {error}"))
            self._exit_code = control.EXIT_REJECTED
        elif error is not None:
            self._exit_code = control.EXIT_LINK_FAILED
        if abandoned:
            self._supervisor.tell(
                Notice(f"{abandoned} run(s) did not end in time and are left to be tried again")
            )
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._has_left.set)
        # The main thread may be stuck in user code. Nothing is left to be lost, so the process need not wait for it.
        time.sleep(END_SECONDS_MAX)
        _flush_output()
        os._exit(self._exit_code)

    # --- running -------------------------------------------------------------------------------------------

    def _start_on_loop(self, runs: Sequence[HeldRun]) -> None:
        for held in runs:
            assert held.task is not None, "runs without a task are not started"
            held.handle = self._loop.create_task(
                self._run_on_loop(held.task, held), context=self._context.copy()
            )

    async def _run_on_loop(self, task: Task[Any, Any], held: HeldRun) -> None:
        run = held.scope.run
        try:
            outcome = await run_attempt(task, run, held.scope, call_in_thread=self._call_in_thread)
        except asyncio.CancelledError:
            # By `interrupt`, and nobody cares for the outcome; or by user code that cancelled its own task.
            pause = task.retry.delay_ms(run.attempt, jitter=random.random(), max_attempts=run.max_attempts)
            outcome = Outcome(
                error=RunError(name="CancelledError", message="the task was cancelled"), retry_after_ms=pause
            )
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
        outcome = self._context.copy().run(run_attempt_in_thread, task, held.scope.run, held.scope)
        self._finished(held, outcome)

    def _finished(self, held: HeldRun, outcome: Outcome) -> None:
        if self._is_forked_child:
            # The user's code has forked, and this is the child coming back from the task: its parent goes on with everything.
            _flush_output()
            os._exit(0)
        held.handle = None
        self._link.finished(held, outcome)

    # --- the process ---------------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        """SIGTERM drains, SIGINT is the supervisor's business; a forked child has nothing to do with either."""

        def drain(number: int, frame: FrameType | None) -> None:
            self._link.order(Order.DRAIN)

        # Handlers and not SIG_IGN, which programs started by user code would inherit.
        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, lambda number, frame: None)
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        """In a child that user code has forked: it may do its work, but it is not this worker."""
        self._is_forked_child = True
        self._link.after_fork()
        if threading.get_ident() == self._thread_id:
            # The loop was copied with all its tasks, which must not run twice: it ends as soon as it gets its turn.
            self._loop.call_soon(os._exit, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _SupervisorLine:
    """The pipes to and from the supervisor."""

    def __init__(self, descriptor: int) -> None:
        self._messages = descriptor
        os.set_inheritable(descriptor, False)
        # User code gets an empty standard input and a standard output that shows each line as it comes.
        self._orders = os.dup(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, errors="backslashreplace")
        self._lock = threading.Lock()
        self._obey: Callable[[Order], None] | None = None
        self._came_before: Order | None = None
        threading.Thread(target=self._listen, name="milepost-orders", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message; without a supervisor there is nobody to tell."""
        with contextlib.suppress(OSError):
            os.write(self._messages, control.encode(message) + b"\n")

    def answer_to(self, obey: Callable[[Order], None]) -> None:
        """From now on there is something to drain: give every order to this one, and what has come before."""
        with self._lock:
            self._obey = obey
            if self._came_before is not None:
                obey(self._came_before)

    def _listen(self) -> None:
        """Hand on every order; the end of the line means that the supervisor is gone, and is the order to drain."""
        with os.fdopen(self._orders, "rb") as orders:
            for line in orders:
                self._take(Order(line.strip().decode()))
        self._take(Order.DRAIN)

    def _take(self, order: Order) -> None:
        with self._lock:
            if self._obey is not None:
                self._obey(order)
                return
            self._came_before = order
        # Still loading the user's tasks, which may take for ever; there is nothing to lose yet.
        time.sleep(END_SECONDS_MAX / 4)
        if self._obey is None:
            os._exit(control.EXIT_DRAINED)


def _set(setter: Callable[[Any], None], future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        setter(value)


def _cancel(held: HeldRun) -> None:
    if held.handle is not None:
        held.handle.cancel()


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="milepost.worker", description=__doc__)
    parser.add_argument(
        "--messages", type=int, required=True, help="descriptor of the pipe to the supervisor"
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True, help="seconds")
    parser.add_argument("sources", nargs="+")
    return parser.parse_args(arguments)
