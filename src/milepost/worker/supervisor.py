"""The supervisor: starts the executor processes, restarts those that crash, replaces them when the code changes, ends them.

It runs no user code itself. Each executor has a session of its own, so a Ctrl-C in the terminal reaches only the supervisor, which
then decides; and whatever an executor leaves behind is ended with it.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from watchfiles import Change, awatch  # pyright: ignore[reportUnknownVariableType]

from milepost.protocol import endpoints
from milepost.protocol.work import ReportRequest
from milepost.worker import control
from milepost.worker.control import LoadFailed, Message, Notice, Order, Ready, Rejected
from milepost.worker.loader import SKIPPED_FOLDERS

CONCURRENCY_DEFAULT = 100
RESTART_SECONDS_MAX = 10.0
# How much longer than its grace time an executor may take for its last report before it is killed.
LEAVE_SECONDS_MAX = 8.0
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a supervisor runs.

    Args:
        sources: Python files, folders or module names with tasks, at least one.
        processes: executor processes; user code of `async def` tasks runs in one thread of each.
        concurrency: runs at once in each process; runs that wait for other runs do not count.
        grace_seconds: how long runs may go on after the order to end.
        reload: replace the executors when a file of the user's code changes.
        output: a file descriptor for the standard output of user code; None: this process's own.
    """

    sources: Sequence[str]
    api_url: str
    secret_key: str
    processes: int
    concurrency: int = CONCURRENCY_DEFAULT
    grace_seconds: float = 30.0
    reload: bool = False
    output: int | None = None


class Audience(Protocol):
    """Who is told what happens; the command line prints it. Methods return at once."""

    def ready(self, tasks: Sequence[str], *, reloaded: bool) -> None:
        """An executor of the present code is registered; called once for each state of the code."""
        ...

    def changed(self, files: Sequence[Path]) -> None:
        """Files of the user's code changed; executors with the new code are being started."""
        ...

    def load_failed(self, message: str, *, running: bool) -> None:
        """The user's tasks cannot be loaded. `running`: executors with the code as it was keep running."""
        ...

    def notice(self, message: str) -> None:
        """Something else worth a line."""
        ...


class WorkerFailed(Exception):
    """The worker cannot go on; the message is one clear line for the user (or the error in the user's code)."""


class Supervisor:
    """Keeps the executors of one set of tasks running."""

    def __init__(self, options: WorkerOptions, audience: Audience) -> None:
        assert options.processes >= 1, options
        self._options = options
        self._audience = audience
        self._stopping = asyncio.Event()
        self._current: _Generation | None = None
        self._latest: _Generation | None = None
        self._generations: set[_Generation] = set()
        self._failure: str | None = None
        self._order = Order.DRAIN
        self._watched = _Watched.of(options.sources, ())
        self._watched_changed = asyncio.Event()

    @property
    def grace_seconds(self) -> float:
        """How long runs may go on after `stop`."""
        return self._options.grace_seconds

    def stop(self, order: Order = Order.DRAIN) -> None:
        """Let `run` come to its end within the grace time. May be called before `run`, and twice."""
        self._order = order
        self._stopping.set()

    def kill(self) -> None:
        """End all executors now, without grace. Their runs are retried when the server notices."""
        self.stop()
        for generation in self._generations:
            generation.kill()

    async def run(self) -> None:
        """Keep the executors running until `stop`; returns when none is left, also when it is cancelled.

        Raises: WorkerFailed when the tasks cannot be loaded (unless a change may mend that) or the server refuses the worker.
        """
        try:
            async with asyncio.TaskGroup() as group:
                first = self._begin(group)
                watcher = group.create_task(self._watch(group)) if self._options.reload else None
                if watcher is None:
                    group.create_task(self._stop_unless_ready(first))
                await self._stopping.wait()
                if watcher is not None:
                    watcher.cancel()
                for generation in self._generations:
                    generation.end(self._order)
        finally:
            for generation in self._generations:
                generation.kill()
        if self._failure is not None:
            raise WorkerFailed(self._failure)

    async def _stop_unless_ready(self, first: "_Generation") -> None:
        """Without reload, tasks that cannot be loaded are the end of it."""
        if not await first.settled():
            self._failure = self._failure or first.failure
            self.stop()

    def _begin(self, group: asyncio.TaskGroup) -> "_Generation":
        self._latest = generation = _Generation(self._options, self._hear)
        self._generations.add(generation)

        async def live() -> None:
            try:
                await generation.run()
            finally:
                self._generations.discard(generation)

        group.create_task(live())
        return generation

    def _hear(self, generation: "_Generation", message: Message) -> None:
        match message:
            case Ready(tasks=tasks, files=files):
                self._watch_also(files, is_broken=False)
                if generation.is_first_ready():
                    before, self._current = self._current, generation
                    self._audience.ready(tasks, reloaded=before is not None)
                    if before is not None:
                        before.end(Order.DRAIN)
            case LoadFailed(message=text, files=files):
                self._watch_also(files, is_broken=True)
                is_worth_telling = self._options.reload or self._current is generation
                if generation.is_first_failure() and is_worth_telling:
                    self._audience.load_failed(text, running=self._current is not None)
            case Rejected(message=text):
                self._failure = text
                self.stop()
            case Notice(message=text):
                self._audience.notice(text)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Start a new generation whenever a file of the user's code changes."""
        while True:
            self._watched_changed.clear()
            if not self._watched.folders:
                await self._watched_changed.wait()
                continue
            changes = awatch(
                *self._watched.folders,
                watch_filter=lambda change, path: self._watched.matters(change, path),
                stop_event=self._watched_changed,
                recursive=False,
                debounce=200,
                step=20,
            )
            async for change in changes:
                self._audience.changed(sorted({Path(path) for _, path in change}))
                if self._latest is not None and not self._latest.is_settled:
                    # It may never be: the change may mend what keeps it from coming up.
                    self._latest.end(Order.STOP)
                self._begin(group)

    def _watch_also(self, files: Iterable[str], *, is_broken: bool) -> None:
        """The user's code lies in these files, as far as it could be loaded."""
        before = self._watched
        self._watched = _Watched.of(
            self._options.sources, before.files | set(map(Path, files)), is_broken=is_broken
        )
        if self._watched.folders != before.folders:
            self._watched_changed.set()


@dataclass(frozen=True)
class _Watched:
    """What to watch: single files, and whole folders that were given as sources.

    Attributes:
        is_broken: the code could not be loaded; a file that it misses may appear.
    """

    files: frozenset[Path]
    trees: frozenset[Path]
    folders: frozenset[Path]
    is_broken: bool

    @classmethod
    def of(cls, sources: Sequence[str], files: Iterable[Path], *, is_broken: bool = False) -> "_Watched":
        """The folders are watched and not the files: many editors save by putting a new file in the place of the old one."""
        files = {*files, *(Path(source).resolve() for source in sources if Path(source).is_file())}
        trees = {Path(source).resolve() for source in sources if Path(source).is_dir()}
        folders = {file.parent for file in files} | trees
        for tree in trees:
            folders.update(
                folder for folder in tree.rglob("*") if folder.is_dir() and _may_hold_tasks(folder)
            )
        return cls(frozenset(files), frozenset(trees), frozenset(filter(Path.is_dir, folders)), is_broken)

    def matters(self, change: Change, path: str) -> bool:
        """True when the tasks may be others after this change."""
        file = Path(path)
        if file in self.files:
            return True
        is_new = change is Change.added
        may_be_loaded = _may_hold_tasks(file) and (file.suffix == ".py" or (is_new and file.is_dir()))
        is_below = any(tree in file.parents for tree in self.trees)
        return may_be_loaded and (is_below or (is_new and self.is_broken))


def _may_hold_tasks(path: Path) -> bool:
    return SKIPPED_FOLDERS.isdisjoint(path.parts) and not path.name.startswith(".")


@dataclass(eq=False)
class _Generation:
    """The executors of one state of the user's code."""

    options: WorkerOptions
    hear: Callable[["_Generation", Message], None]
    failure: str | None = None

    def __post_init__(self) -> None:
        self._processes: set[_ExecutorProcess] = set()
        self._ending = asyncio.Event()
        self._order: Order | None = None
        self._settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ready_before = False
        self._failed_before = False

    @property
    def is_settled(self) -> bool:
        """True when it is known whether the code can be loaded."""
        return self._settled.done()

    async def settled(self) -> bool:
        """True once an executor is ready; False when the code cannot be loaded or all was ended before."""
        return await asyncio.shield(self._settled)

    def is_first_ready(self) -> bool:
        """True the first time it is asked."""
        first, self._ready_before = not self._ready_before, True
        return first

    def is_first_failure(self) -> bool:
        """True the first time it is asked."""
        first, self._failed_before = not self._failed_before, True
        return first

    def end(self, order: Order) -> None:
        """Let `run` come to its end; the executors drain."""
        self._order = order
        self._ending.set()

    def kill(self) -> None:
        """End the executors without grace."""
        self.end(Order.STOP)
        for process in self._processes:
            process.kill()

    async def run(self) -> None:
        """Keep the executors running until `end`."""
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self.options.processes):
                    group.create_task(self._keep(index))
        finally:
            self._settle(False)

    def _settle(self, ready: bool) -> None:
        if not self._settled.done():
            self._settled.set_result(ready)

    def _heard(self, message: Message) -> None:
        if isinstance(message, LoadFailed):
            self.failure = message.message
        self.hear(self, message)
        if isinstance(message, Ready):
            self._settle(True)

    async def _keep(self, index: int) -> None:
        """Keep one executor running, with longer and longer pauses if it keeps crashing."""
        pause = 0.0
        while not self._ending.is_set():
            process = await _ExecutorProcess.start(self.options, f"executor-{index + 1}", self._heard)
            self._processes.add(process)
            try:
                code = await process.run(self._ending, lambda: self._order or Order.DRAIN)
            finally:
                self._processes.discard(process)
            if code != control.EXIT_DRAINED and process.worker_id is not None:
                await _release(self.options, process.worker_id)
            if self._ending.is_set() or code == control.EXIT_REJECTED:
                return
            if code == control.EXIT_LOAD_FAILED and not self._ready_before:
                # Its siblings read the same files.
                self.end(Order.STOP)
                return
            pause = min(RESTART_SECONDS_MAX, max(0.1, pause * 2)) if process.lived_seconds < 10 else 0.1
            self.hear(self, Notice(f"executor-{index + 1} {_how_it_ended(code)}; starting it again"))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)


class _ExecutorProcess:
    """One executor process, from start to end."""

    def __init__(
        self, process: Process, messages: asyncio.StreamReader, hear: Callable[[Message], None], grace: float
    ):
        self._process = process
        self._messages = messages
        self._hear = hear
        self._grace = grace
        self._started_at = asyncio.get_running_loop().time()
        self.worker_id: str | None = None

    @classmethod
    async def start(
        cls, options: WorkerOptions, name: str, hear: Callable[[Message], None]
    ) -> "_ExecutorProcess":
        """Start an executor. It learns the secret key from its environment, which only its owner can read."""
        loop = asyncio.get_running_loop()
        receiving, sending = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                # Without the current folder in front: a file of the user must not stand in for a module that this program needs.
                "-P", "-m", "milepost.worker",
                "--messages", str(sending), "--name", name,
                "--concurrency", str(options.concurrency), "--grace", str(options.grace_seconds),
                "--", *options.sources,
                stdin=PIPE,
                stdout=options.output,
                pass_fds=(sending,),
                start_new_session=True,
                env={**os.environ, "MILEPOST_API_URL": options.api_url, "MILEPOST_SECRET_KEY": options.secret_key},
            )  # fmt: skip
        except BaseException:
            os.close(receiving)
            raise
        finally:
            os.close(sending)
        reader = asyncio.StreamReader(limit=MESSAGE_BYTES_MAX)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(receiving, "rb", 0)
        )
        return cls(process, reader, hear, options.grace_seconds)

    @property
    def lived_seconds(self) -> float:
        """How long ago it was started."""
        return asyncio.get_running_loop().time() - self._started_at

    async def run(self, ending: asyncio.Event, order: Callable[[], Order]) -> int:
        """Wait until the process has ended, by itself or because it is to end; its exit code."""
        listening = asyncio.create_task(self._listen())
        asked = asyncio.create_task(ending.wait())
        exited = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({asked, exited}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                self._tell(order())
                await asyncio.wait({exited}, timeout=self._grace + LEAVE_SECONDS_MAX)
        finally:
            asked.cancel()
            # Ends the executor if it still lives, and whatever it has left behind: all that is in its session's first group.
            self.kill()
            await asyncio.wait({listening, exited}, timeout=1.0)
            listening.cancel()
        return await exited

    def kill(self) -> None:
        """End the process and its children now."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _tell(self, order: Order) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.is_closing():
            # A broken pipe means that it is ending anyway; the transport reports that by closing.
            stdin.write(order.encode() + b"\n")

    async def _listen(self) -> None:
        while line := await self._messages.readline():
            message = control.decode(line)
            if isinstance(message, Ready):
                self.worker_id = message.worker_id
            self._hear(message)


def _how_it_ended(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


async def _release(options: WorkerOptions, worker_id: str) -> None:
    """Tell the server that a worker has died, so that its runs are retried at once and not only when their lease ends."""
    # Imported when it is needed: a supervisor whose executors do not crash never speaks to the server.
    from milepost.worker.channel import Channel, Refused, Unreachable

    async with Channel(options.api_url, options.secret_key) as channel:
        # If this fails, the lease does the same a little later.
        with suppress(Refused, Unreachable):
            await channel.call(
                endpoints.REPORT, ReportRequest(leaving=True), timeout_seconds=2.0, worker=worker_id
            )
