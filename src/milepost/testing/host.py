"""Everything behind a sandbox, on one thread: the real server, the worker's link, and who lets time go by."""

import asyncio
import atexit
import itertools
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from milepost.errors import UsageError
from milepost.protocol.work import WorkerTask
from milepost.sdk.scope import RunScope
from milepost.sdk.task import Task
from milepost.server.app import Server
from milepost.server.settings import ServerSettings
from milepost.store.database import Store
from milepost.testing.clock import Clock
from milepost.testing.in_process import API_URL, SECRET_KEY, Application, InProcessChannel
from milepost.testing.stillness import StillnessLoop
from milepost.worker.channel import Channel
from milepost.worker.in_process import InProcessWorker
from milepost.worker.link import WorkerLink

# A lease counts real time, in which a test may be stopped in a debugger.
LEASE_SECONDS = 3600.0
START_SECONDS_MAX = 30.0
END_SECONDS_MAX = 10.0
# A run that triggers itself again and again would let time go by for ever.
JUMPS_MAX = 100_000


class SandboxLink(WorkerLink):
    """The real link, which counts the runs that look for something themselves."""

    aside = 0

    def step_aside(self, scope: RunScope) -> Callable[[bool], "Future[None]"]:
        """See `Link`."""
        back = super().step_aside(scope)
        self._call(self._count, 1)

        def come_back(at_once: bool) -> "Future[None]":
            future = back(at_once)
            self._call(self._count, -1)
            return future

        return come_back

    def _count(self, more: int) -> None:
        self.aside += more


class SandboxWorker(InProcessWorker):
    """The real worker, whose link lives on the loop of the sandbox.

    Attributes:
        has_come: the server knows it, or never will.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.has_come = asyncio.Event()

    def registered(self) -> None:
        """See `Host` of the link."""
        super().registered()
        self.has_come.set()

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """See `Host` of the link."""
        super().left(error, abandoned=abandoned)
        self.has_come.set()


@dataclass(eq=False)
class Demand:
    """Somebody waits until nothing happens any more.

    Attributes:
        jumps: whether time goes by when nothing else happens.
        works: whether the worker takes runs meanwhile.
        until: then it goes by until this time, with schedules; until nothing is due any more when it is None.
        is_closing: it is met, and the worker is about to take no more.
    """

    done: "Future[None]"
    jumps: bool
    until: int | None = None
    works: bool = True
    is_closing: bool = False


class Host:
    """The thread, from its start to `close`.

    Args:
        tasks: what the worker knows; may be changed before `offer` is called.
        described: likewise, as the worker offers it.
        loop: where `async def` tasks run; a loop of its own when None.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[Any, Any]],
        described: list[WorkerTask],
        *,
        clock: Clock,
        concurrency: int,
        loop: asyncio.AbstractEventLoop | None,
        loop_thread_id: int,
        prepare: Callable[[], None],
        owner_id: int,
    ) -> None:
        self.clock = clock
        self._owner_id = owner_id
        self._folder = TemporaryDirectory(prefix="milepost-sandbox-")
        self._user_loop = None if loop is not None else _UserLoop()
        path = Path(self._folder.name)
        shutil.copy(_template(), path / "milepost.db")
        # Nothing of the environment: a test must not write to a database that happens to be set there.
        settings = ServerSettings.model_construct(
            data_folder=path,
            secret_key=SECRET_KEY,
            sqlite_synchronous="NORMAL",
            lease_seconds=LEASE_SECONDS,
            history_days=36_500,
            stream_days=36_500,
        )
        self.server = Server(settings, clock=clock, steady=clock)
        self._loop = StillnessLoop()
        self.application = Application(self.server.app, self._loop, prepare)
        self._demand: Demand | None = None
        self._jumps = 0
        self._is_up: Future[None] = Future()
        self._make_worker = partial(
            SandboxWorker,
            tasks,
            described,
            loop or self._user_loop.loop,  # pyright: ignore[reportOptionalMemberAccess]
            loop_thread_id or self._user_loop.thread_id,  # pyright: ignore[reportOptionalMemberAccess]
            api_url=API_URL,
            secret_key=SECRET_KEY,
            worker_id=f"worker_sandbox{next(_numbers)}",
            name="sandbox",
            concurrency=concurrency,
            flush_interval_seconds=0.0,
            grace_seconds=0.0,
            tell=_say_nothing,
            link_class=SandboxLink,
        )
        self._thread = threading.Thread(target=self._live, name="milepost-sandbox", daemon=True)
        self._thread.start()
        self._is_up.result(START_SECONDS_MAX)

    # --- from other threads --------------------------------------------------------------------------------

    def demand(self, *, jumps: bool, until: int | None, works: bool) -> "Future[None]":
        """Let the worker work until nothing happens any more."""
        done: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._take, Demand(done, jumps, until, works))
        return done

    def withdraw(self, done: "Future[None]") -> None:
        """Nobody waits for this demand any more."""
        self._loop.call_soon_threadsafe(self._withdraw, done)

    def offer(self) -> "Future[None]":
        """The tasks have changed: let the server know."""
        return self.application.submit(self._worker.link.offer())

    def executing(self) -> list[str]:
        """The runs that are held by the worker, for messages."""
        scopes = self._worker.link.scopes()
        return [f"{scope.run.id} of task {scope.run.task!r}" for scope in scopes if not scope.is_over]

    def close(self) -> None:
        """End everything; what still executes is given up."""
        self.application.is_closed = True
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(END_SECONDS_MAX)
        if self._user_loop is not None:
            self._user_loop.close()
        self._folder.cleanup()

    # --- the thread ----------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except BaseException as error:
            if self._is_up.done():
                raise
            self._is_up.set_exception(error)

    async def _run(self) -> None:
        self._end = asyncio.Event()
        self._gate = self.application.gate
        self._worker = self._make_worker(open_channel=self._open_channel)
        self._link: SandboxLink = self._worker.link  # pyright: ignore[reportAttributeAccessIssue]
        lifespan = _Lifespan(self.server.app)
        await lifespan.start()
        linked = asyncio.create_task(self._link.run())
        self.application.changed = self._look
        try:
            await self._worker.has_come.wait()
            self._loop.is_still, self._loop.still = self._is_still, self._still
            self._is_up.set_result(None)
            await self._end.wait()
        finally:
            self._loop.is_still = lambda: False
            linked.cancel()
            await asyncio.wait({linked})
            for scope in self._link.scopes():
                scope.is_lost = True
            self.server.stop_streams()
            await lifespan.end()
            error = UsageError("the sandbox was closed")
            if self._demand is not None and not self._demand.done.done():
                self._demand.done.set_exception(error)

    def _open_channel(self, api_url: str, secret_key: str) -> Channel:
        return InProcessChannel(self.server.app, self._gate)

    def _take(self, demand: Demand) -> None:
        assert self._demand is None, "one demand at a time"
        self._demand = demand
        self._jumps = 0
        if demand.works:
            self._gate.open()

    def _withdraw(self, done: "Future[None]") -> None:
        if self._demand is not None and self._demand.done is done:
            self._demand = None
            self._gate.close()

    def _look(self) -> None:
        """The worker works for as long as code outside of runs waits for something."""
        if self.application.reading.outside:
            self._gate.open()
        elif self._demand is None:
            self._gate.close()

    def _is_still(self) -> bool | None:
        if not self._link.is_at_rest or self._link.aside > self.application.reading.by_runs:
            return False
        if any(inbox.wake.is_set() for inbox in self.server.hub.inboxes.values()):
            return False
        return self.server.committer.is_at_rest or None

    def _still(self) -> bool:
        demand, outside = self._demand, self.application.reading.outside
        if demand is None:
            if outside and not self._jump(None):
                return self._refuse_waiting()
            return bool(outside)
        if demand.is_closing:
            self._demand = None
            if not demand.done.cancelled():
                demand.done.set_result(None)
        elif demand.jumps and self._jump(demand.until):
            self._jumps += 1
            if self._jumps > JUMPS_MAX:
                self._demand = None
                demand.done.set_exception(
                    UsageError(
                        f"time was set forward {JUMPS_MAX:,} times and there is always more to come: does a task trigger itself "
                        "with a delay? box.advance(...) lets a stated time go by"
                    )
                )
        else:
            demand.is_closing = True
            if not outside:
                self._gate.close()
        return True

    def _jump(self, until: int | None) -> bool:
        """Set the clock forward to what happens next; False when there is nothing."""
        committer = self.server.committer
        times = [committer.next_due_at]
        if until is not None:
            times.append(committer.next_schedule_at)
        due_at = min((at for at in times if at is not None), default=None)
        if until is not None and (due_at is None or due_at > until):
            if self.clock.now >= until:
                return False
            due_at = until
        if due_at is None:
            return False
        self.clock.jump_to(due_at)
        committer.look()
        return True

    def _refuse_waiting(self) -> bool:
        """The thread of the test waits, so nobody is left who could do something: say so instead of waiting for ever."""
        for reading, thread_id in list(self.application.reading.outside.items()):
            if thread_id == self._owner_id and not reading.done():
                reading.get_loop().call_soon(
                    _fail,
                    reading,
                    UsageError(
                        "this waits for ever: nothing is left that the sandbox could do, neither now nor later; does the run wait "
                        "for a task that the sandbox does not have?"
                    ),
                )
                return True
        return False


class _UserLoop:
    """An event loop for `async def` tasks on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="milepost-sandbox-tasks", daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.thread_id = self._thread.ident

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def close(self) -> None:
        """End it with what still runs on it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(END_SECONDS_MAX)


class _Lifespan:
    """Starts and ends an application as a server does."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def start(self) -> None:
        """Returns when the application has started."""
        self._task = asyncio.create_task(
            self._app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._inbox.get, self._outbox.put)
        )
        await self._say("startup")

    async def end(self) -> None:
        """Returns when it has ended."""
        await self._say("shutdown")
        await self._task

    async def _say(self, word: str) -> None:
        await self._inbox.put({"type": f"lifespan.{word}"})
        answer = await self._outbox.get()
        if answer["type"] != f"lifespan.{word}.complete":
            raise RuntimeError(
                f"the server of the sandbox does not come through its {word}: {answer.get('message')}"
            )


_numbers = itertools.count(1)


@cache
def _template() -> Path:
    """A database with all tables and nothing in it, made once in a process."""
    folder = mkdtemp(prefix="milepost-sandbox-template-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "milepost.db"
    Store(path).close()
    return path


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _say_nothing(message: str) -> None:
    pass
