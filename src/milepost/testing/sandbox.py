"""`Sandbox`: a server and a worker in memory, in which time is the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload

import msgspec

from milepost.client.client import Client
from milepost.client.connection import Connection
from milepost.client.default import default_client_is
from milepost.client.handles import RunHandle
from milepost.client.requests import RunOptions
from milepost.errors import UsageError
from milepost.model.durations import parse_duration
from milepost.protocol.work import WorkerTask
from milepost.sdk.capture import capturing_output
from milepost.sdk.scope import surroundings
from milepost.sdk.task import Task, registered_tasks
from milepost.testing.clock import Clock
from milepost.testing.host import Host
from milepost.testing.in_process import API_URL, SECRET_KEY, BlockingTransport, ForLoops
from milepost.testing.results import SandboxRun, read_run

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
Parameters = ParamSpec("Parameters")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Sandbox:
    """A server and a worker in memory. Inside of the `with` block every trigger and every `runs` call of the process goes there.

    A run begins only while the sandbox is told to go on: by `settle`, `advance` and `run_until_idle`, or while code outside of runs
    waits for a run (`handle.result()`, `subscribe()`). Time stands still but for these: what waits for a time (a delay, the pause
    before a retry, a time to live) is over at once when `run_until_idle` or a waiting reader has nothing else to do, or when `advance`
    lets that much time go by. What a task does by itself, such as `time.sleep`, takes real time.

    `with` runs `async def` tasks on an event loop of their own, `async with` on the running one, so that they share what belongs to
    it. `def` tasks run in threads.

    Args:
        tasks: what its worker knows; every task of the process, those that are defined later too, when left out.
        concurrency: how many runs execute at once. With 1 they execute one after the other and in the same order each time; a run
            that waits for others makes room.
        now: the time at which it begins, aware; the present time when left out.
        schedules: whether the `cron=` and `every=` of the tasks trigger when `advance` lets their time go by.
        timeout: seconds of real time that one call may take; then TimeoutError names what still executes.
    """

    def __init__(
        self,
        tasks: Iterable[Task[Any, Any]] | None = None,
        *,
        concurrency: int = 1,
        now: datetime | None = None,
        schedules: bool = False,
        timeout: float = 30.0,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"concurrency={concurrency}: at least 1 run must be able to execute")
        if now is not None and now.utcoffset() is None:
            raise UsageError(f"now={now!r} has no time zone: nobody could say when that is")
        self._given = None if tasks is None else {task.id: task for task in tasks}
        self._concurrency = concurrency
        self._clock = Clock(None if now is None else (now - _EPOCH) // timedelta(microseconds=1))
        self._has_schedules = schedules
        self._timeout = timeout
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._described: list[WorkerTask] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: Host | None = None
        self._client: Client | None = None
        self._stack = ExitStack()
        self._preparing = threading.Lock()
        self._asking = threading.Lock()

    # --- its life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._open(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._open(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; runs that still execute are given up. What was read of its runs stays."""
        self._stack.close()
        host, self._host, self._client = self._host, None, None
        if host is not None:
            host.close()

    def _open(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if self._host is not None:
            raise UsageError("this sandbox is open already; make another one")
        self._loop = loop
        self._learn_tasks()
        self._host = host = Host(
            self._tasks,
            self._described,
            clock=self._clock,
            concurrency=self._concurrency,
            loop=loop,
            loop_thread_id=0 if loop is None else threading.get_ident(),
            prepare=self._prepare,
            owner_id=threading.get_ident(),
        )
        application = host.application
        transports = BlockingTransport(application), ForLoops(application)
        self._client = Client.over(Connection(API_URL, SECRET_KEY, transports=transports))
        self._stack.enter_context(default_client_is(self._client))
        self._stack.enter_context(capturing_output())
        self._stack.callback(setattr, surroundings, "sandbox_now", surroundings.sandbox_now)
        surroundings.sandbox_now = self._clock

    def _learn_tasks(self) -> bool:
        """Take over the tasks as they are now; True when there is something new."""
        tasks = registered_tasks() if self._given is None else self._given
        if tasks == self._tasks:
            return False
        self._tasks.update(tasks)
        described = [task.describe() for task in self._tasks.values()]
        if not self._has_schedules:
            described = [msgspec.structs.replace(task, schedule=None) for task in described]
        self._described[:] = described
        return True

    def _prepare(self) -> None:
        """Tasks that were defined since are offered before anything is asked of the server."""
        with self._preparing:
            if self._host is not None and self._learn_tasks():
                self._host.offer().result(self._timeout)

    @property
    def _open_host(self) -> Host:
        if self._host is None:
            raise UsageError("the sandbox is not open: `with Sandbox() as box:` or `async with`")
        return self._host

    @property
    def client(self) -> Client:
        """A client of its server. Inside of the block it is the default one, so `runs` and `tasks` of `milepost` do the same."""
        if self._client is None:
            raise UsageError("the sandbox is not open: `with Sandbox() as box:` or `async with`")
        return self._client

    @property
    def now(self) -> datetime:
        """The time in the sandbox, aware UTC."""
        return _EPOCH + timedelta(microseconds=self._clock.now)

    # --- runs ----------------------------------------------------------------------------------------------

    @overload
    def trigger(
        self, task: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    def trigger(
        self, task: Task[PayloadT, OutputT], payload: PayloadT, **options: Unpack[RunOptions]
    ) -> RunHandle[OutputT]: ...
    @overload
    def trigger(
        self, task: Task[Any, OutputT, Parameters], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> RunHandle[OutputT]: ...
    def trigger(self, task: Task[Any, OutputT, Any], *args: Any, **kwargs: Any) -> RunHandle[OutputT]:
        """As `task.trigger(...)`: the run is queued, and begins when the sandbox goes on."""
        self._open_host  # noqa: B018 - says so where it is not open
        return task.trigger(*args, **kwargs)

    def cancel(self, run: RunHandle[Any] | SandboxRun[Any] | str) -> None:
        """As `runs.cancel`."""
        self.client.runs.cancel(_id_of(run))

    @overload
    def run(self, run: RunHandle[OutputT]) -> SandboxRun[OutputT]: ...
    @overload
    def run(self, run: SandboxRun[OutputT]) -> SandboxRun[OutputT]: ...
    @overload
    def run(self, run: str) -> SandboxRun[Any]: ...
    def run(self, run: RunHandle[Any] | SandboxRun[Any] | str) -> SandboxRun[Any]:
        """The run as it is now, with its history, its log and all runs below it. Raises RunNotFoundError."""
        return read_run(self.client, _id_of(run))

    def runs(self) -> list[SandboxRun[Any]]:
        """Every run that was triggered from outside of runs, oldest first, with all runs below them."""
        found = [run.id for run in self.client.runs.list(top_level=True)]
        return [read_run(self.client, run_id) for run_id in reversed(found)]

    # --- going on ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let runs execute until nothing more happens without time going by. Raises TimeoutError."""
        self._wait(jumps=False)

    async def asettle(self) -> None:
        """As `settle`, without blocking."""
        await self._await(jumps=False)

    def advance(self, duration: timedelta | float | str, *, worker: bool = True) -> None:
        """Let so much time go by, with all that happens in it, each thing at its time. Raises TimeoutError.

        Args:
            duration: a `timedelta`, a number of seconds, or a text like "1h30m".
            worker: False for a time in which no worker takes a run, as when all are busy: runs stay queued, or expire.
        """
        self._wait(jumps=True, until=self._after(duration), works=worker)

    async def aadvance(self, duration: timedelta | float | str, *, worker: bool = True) -> None:
        """As `advance`, without blocking."""
        await self._await(jumps=True, until=self._after(duration), works=worker)

    def run_until_idle(self) -> None:
        """Let runs execute, and time go by, until nothing is left that would happen by itself; schedules are not waited for.

        Raises: TimeoutError; UsageError when there is always more to come.
        """
        self._wait(jumps=True)

    async def arun_until_idle(self) -> None:
        """As `run_until_idle`, without blocking."""
        await self._await(jumps=True)

    def _after(self, duration: timedelta | float | str) -> int:
        return self._clock.now + parse_duration(duration) // timedelta(microseconds=1)

    def _wait(self, *, jumps: bool, until: int | None = None, works: bool = True) -> None:
        host = self._open_host
        if self._loop is not None and _running_loop() is self._loop:
            raise UsageError(
                "this would block the event loop on which the tasks of this sandbox run; write `await box.arun_until_idle()`, "
                "`await box.aadvance(...)` or `await box.asettle()`"
            )
        self._prepare()
        with self._asking:
            done = host.demand(jumps=jumps, until=until, works=works)
            try:
                done.result(self._timeout)
            except TimeoutError:
                self._give_up(host, done)

    async def _await(self, *, jumps: bool, until: int | None = None, works: bool = True) -> None:
        host = self._open_host
        self._prepare()
        if not self._asking.acquire(blocking=False):
            raise UsageError("the sandbox is told to go on already, by another task or thread")
        try:
            done = host.demand(jumps=jumps, until=until, works=works)
            waiting = asyncio.wrap_future(done)
            await asyncio.wait({waiting}, timeout=self._timeout)
            if not waiting.done():
                self._give_up(host, done)
            waiting.result()
        finally:
            self._asking.release()

    def _give_up(self, host: Host, done: Future[None]) -> None:
        if done.done():
            done.result()
            return
        host.withdraw(done)
        executing = ", ".join(host.executing()) or "no run"
        raise TimeoutError(
            f"after {self._timeout:g} s of real time the sandbox is still at work: {executing} has not ended; "
            "Sandbox(timeout=...) allows more, and only what Milepost waits for takes no time"
        )


def _id_of(run: RunHandle[Any] | SandboxRun[Any] | str) -> str:
    return run if isinstance(run, str) else run.id


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@overload
def run_task(
    task: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
) -> SandboxRun[OutputT]: ...
@overload
def run_task(
    task: Task[PayloadT, OutputT], payload: PayloadT, **options: Unpack[RunOptions]
) -> SandboxRun[OutputT]: ...
@overload
def run_task(
    task: Task[Any, OutputT, Parameters], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> SandboxRun[OutputT]: ...
def run_task(task: Task[Any, OutputT, Any], *args: Any, **kwargs: Any) -> SandboxRun[OutputT]:
    """Run a task and everything that it triggers in a sandbox of its own, until nothing is left to do; time takes no time.

    It is given what `task.trigger` is given.

    Raises: what `task.trigger` and `Sandbox.run_until_idle` raise. A failed run does not raise; its `unwrap()` does.
    """
    with Sandbox() as box:
        handle = box.trigger(task, *args, **kwargs)
        box.run_until_idle()
        return box.run(handle)


@overload
async def arun_task(
    task: Task[None, OutputT], payload: None = None, **options: Unpack[RunOptions]
) -> SandboxRun[OutputT]: ...
@overload
async def arun_task(
    task: Task[PayloadT, OutputT], payload: PayloadT, **options: Unpack[RunOptions]
) -> SandboxRun[OutputT]: ...
@overload
async def arun_task(
    task: Task[Any, OutputT, Parameters], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> SandboxRun[OutputT]: ...
async def arun_task(task: Task[Any, OutputT, Any], *args: Any, **kwargs: Any) -> SandboxRun[OutputT]:
    """As `run_task`, with `async def` tasks on the running event loop."""
    async with Sandbox() as box:
        handle = box.trigger(task, *args, **kwargs)
        await box.arun_until_idle()
        return box.run(handle)
