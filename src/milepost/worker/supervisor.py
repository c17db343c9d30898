"""The supervisor: starts the executor processes, restarts those that crash, replaces them when the code changes, ends them.

It runs no user code itself. Each executor has a session of its own, so a Ctrl-C in the terminal reaches only the supervisor, which
then decides; and whatever an executor leaves behind is ended with it.

When the code changes, executors of the new code are started beside those of the old. As soon as the first of them can run tasks,
the old ones claim nothing more and finish the runs that they have, however long that takes. So there are the executors that work,
one at most that tries the newest code, and old ones that have runs under way.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from milepost.worker.control import (
    Drained,
    Finishing,
    LoadFailed,
    Message,
    Notice,
    Order,
    Ready,
    Rejected,
    ServerAway,
    ServerBack,
    Stuck,
    Waiting,
)
from milepost.worker.deputy import Deputy
from milepost.worker.executor_process import ExecutorProcess, WorkerOptions, how_it_ended
from milepost.worker.loader import SKIPPED_FOLDERS

if TYPE_CHECKING:
    from watchfiles import Change

RESTART_SECONDS_MAX = 10.0
# After so many executors that ended while they loaded the code, one after the other, it is taken as code that cannot be loaded.
CRASHES_WHILE_LOADING_MAX = 4
WATCH_AGAIN_SECONDS = 1.0
LOOK_AGAIN_MILLISECONDS = 1000
# How long old code may take to say that it claims nothing more, before the new code is announced nevertheless.
TAKE_OVER_SECONDS_MAX = 3.0


_FileState = tuple[int, int, int] | None


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

    def server_is_away(self, reason: str) -> None:
        """An executor does not reach the server; each tells for itself."""
        ...

    def server_is_back(self, away_seconds: float) -> None:
        """An executor reaches the server again."""
        ...


class WorkerFailed(Exception):
    """The worker cannot go on; the message is one clear line for the user (or the error in the user's code)."""


class Supervisor:
    """Keeps the executors of one set of tasks running."""

    def __init__(self, options: WorkerOptions, audience: Audience) -> None:
        assert options.processes >= 1, options
        self._options = options
        self._audience = audience
        self._deputy = Deputy(options.api_url, options.secret_key)
        self._stopping = asyncio.Event()
        self._current: _Generation | None = None
        self._latest: _Generation | None = None
        self._generations: set[_Generation] = set()
        self._failure: str | None = None
        self._order = Order.DRAIN
        self._watched = _Watched.of(options.sources, ())
        self._watched_changed = asyncio.Event()
        # The files of the user's code as they were when the latest generation began to load them.
        self._loaded: dict[Path, _FileState] = {}

    @property
    def grace_seconds(self) -> float:
        """How long runs may go on after `stop`."""
        return self._options.grace_seconds

    def stop(self, order: Order = Order.DRAIN) -> None:
        """Let `run` come to its end within the grace time. May be called before `run`, and twice."""
        self._order = order
        self._stopping.set()

    def kill(self) -> None:
        """End all executors now, without grace. Their runs are handed back."""
        self.stop()
        for generation in self._generations:
            generation.kill()

    async def run(self) -> None:
        """Keep the executors running until `stop`; returns when none is left, also when it is cancelled.

        Raises: WorkerFailed when the tasks cannot be loaded (unless a change may mend that) or the server refuses the worker.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                self._begin()
                watcher = self._group.create_task(self._watch()) if self._options.reload else None
                await self._stopping.wait()
                if watcher is not None:
                    watcher.cancel()
                for generation in self._generations:
                    generation.end(self._order)
        finally:
            for generation in self._generations:
                generation.kill()
            await self._deputy.settle()
        if self._failure is not None:
            raise WorkerFailed(self._failure)

    def _begin(self) -> None:
        self._latest = generation = _Generation(
            self._options, self._deputy, self._hear, tries_one_first=self._current is not None
        )
        self._generations.add(generation)
        self._loaded = {file: _state_of(file) for file in self._watched.files}

        async def live() -> None:
            try:
                await generation.run()
            finally:
                self._generations.discard(generation)
            self._look_after_end_of(generation)

        self._group.create_task(live())

    def _look_after_end_of(self, generation: "_Generation") -> None:
        """A supervisor without executors ends, unless a change of the code may bring new ones."""
        if self._stopping.is_set():
            return
        was_expected = generation.failure is not None or generation.is_ending
        if not self._options.reload or not was_expected:
            self._failure = generation.failure or "no executor is left, and none is started again"
            self.stop()

    def _hear(self, generation: "_Generation", message: Message) -> None:
        match message:
            case Ready(tasks=tasks, files=files):
                self._watch_also(files, is_broken=False)
                if not generation.is_ending and generation.is_first_ready():
                    before, self._current = self._current, generation
                    if before is None:
                        self._audience.ready(tasks, reloaded=False)
                    else:
                        before.end(Order.FINISH)
                        self._group.create_task(self._announce(tasks, before))
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
            case ServerAway(reason=reason):
                self._audience.server_is_away(reason)
            case ServerBack(away_seconds=seconds):
                self._audience.server_is_back(seconds)
            case Drained() | Finishing() | Waiting() | Stuck():
                pass

    async def _announce(self, tasks: Sequence[str], before: "_Generation") -> None:
        """Say that the new code is live, as soon as no run can start in the old code any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TAKE_OVER_SECONDS_MAX):
                await before.claims_no_more.wait()
        if self._stopping.is_set():
            return
        self._audience.ready(tasks, reloaded=True)
        if before.finishing_runs:
            runs = "1 run goes" if before.finishing_runs == 1 else f"{before.finishing_runs} runs go"
            self._audience.notice(f"{runs} on with the code as it was, until the end")

    async def _watch(self) -> None:
        """Start a new generation whenever a file of the user's code changes.

        What changes while an outdated one is being ended is found together afterwards, so that no more than one is starting up. The
        files are looked at now and then as well: what changes before the system watches them would be missed, and some file systems
        tell nothing.
        """
        from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType]

        polls = False
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
                force_polling=polls or None,
                rust_timeout=LOOK_AGAIN_MILLISECONDS,
                yield_on_timeout=True,
            )
            try:
                async for change in changes:
                    files = {Path(path) for _, path in change} or set(self._loaded)
                    changed = sorted(file for file in files if self._loaded.get(file) != _state_of(file))
                    if changed:
                        self._audience.changed(changed)
                        if self._latest is not None and self._latest is not self._current:
                            self._latest.end(Order.STOP)
                            await self._latest.over.wait()
                        self._begin()
            except (OSError, RuntimeError) as error:
                # A folder has gone, or the system's limit of watched folders is reached.
                if not polls:
                    self._audience.notice(
                        f"the system does not say when files change ({error}); they are looked at instead"
                    )
                polls = True
                self._watched = _Watched.of(self._options.sources, self._watched.files)
                await asyncio.sleep(WATCH_AGAIN_SECONDS)

    def _watch_also(self, files: Iterable[str], *, is_broken: bool) -> None:
        """The user's code lies in these files, as far as it could be loaded."""
        before = self._watched
        self._watched = _Watched.of(
            self._options.sources, before.files | set(map(Path, files)), is_broken=is_broken
        )
        for file in self._watched.files - before.files:
            self._loaded[file] = _state_of(file)
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

    def matters(self, change: "Change", path: str) -> bool:
        """True when the tasks may be others after this change."""
        file = Path(path)
        if file in self.files:
            return True
        is_new = change.name == "added"
        may_be_loaded = _may_hold_tasks(file) and (file.suffix == ".py" or (is_new and file.is_dir()))
        is_below = any(tree in file.parents for tree in self.trees)
        return may_be_loaded and (is_below or (is_new and self.is_broken))


def _state_of(file: Path) -> _FileState:
    """What changes when the file is written or replaced; None when there is no such file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _may_hold_tasks(path: Path) -> bool:
    return SKIPPED_FOLDERS.isdisjoint(path.parts) and not path.name.startswith(".")


@dataclass(eq=False)
class _Generation:
    """The executors of one state of the user's code.

    Args:
        tries_one_first: the other executors are started when the first one could load the code.
    Attributes:
        failure: why the code cannot be loaded.
        over: `run` has ended.
        claims_no_more: after the order to finish, all its executors have heard it or ended.
    """

    options: WorkerOptions
    deputy: Deputy
    hear: Callable[["_Generation", Message], None]
    tries_one_first: bool = False
    failure: str | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    claims_no_more: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._processes: set[ExecutorProcess] = set()
        self._is_ready_or_ending = asyncio.Event()
        self._ending = asyncio.Event()
        self._order: Order | None = None
        self._was_ready = False
        self._has_failed = False
        self._crashes_while_loading = 0
        # The places for executors that are isolated; none before it is known that a task is.
        self._has_isolated = False
        self._places: set[int] = set()

    @property
    def is_ending(self) -> bool:
        """True once it was told to end."""
        return self._order is not None

    def is_first_ready(self) -> bool:
        """True the first time it is asked."""
        first, self._was_ready = not self._was_ready, True
        return first

    def is_first_failure(self) -> bool:
        """True the first time it is asked."""
        first, self._has_failed = not self._has_failed, True
        return first

    def end(self, order: Order) -> None:
        """Let `run` come to its end; a later order may be more urgent."""
        self._order = order
        self._ending.set()
        self._is_ready_or_ending.set()
        for process in self._processes:
            process.order(order)
        self._look_for_claims()

    def kill(self) -> None:
        """End the executors without grace."""
        self.end(Order.STOP)
        for process in self._processes:
            process.kill()

    async def run(self) -> None:
        """Keep the executors running until `end`."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for index in range(self.options.processes):
                    self._group.create_task(self._keep(index))
        finally:
            self.over.set()

    @property
    def _places_needed(self) -> int:
        """How many isolated executors there are to be: those that are kept ready, and one more for each whose run waits."""
        kept = self.options.isolated if self.options.isolated is not None else self.options.processes
        return kept + sum(process.is_waiting for process in self._processes)

    def _look_for_places(self) -> None:
        """Start isolated executors where there are too few; of too many, let those leave that have no run that waits."""
        if not self._has_isolated or self._ending.is_set():
            return
        surplus = len(self._places) - self._places_needed
        for _ in range(-surplus):
            index = next(index for index in itertools.count() if index not in self._places)
            self._places.add(index)
            self._group.create_task(self._keep_isolated(index))
        leaving = sum(process.is_surplus for process in self._processes)
        for process in list(self._processes):
            if leaving >= surplus:
                break
            if process.is_isolated and process.is_ready and not (process.is_waiting or process.is_surplus):
                process.is_surplus = True
                leaving += 1
                process.order(Order.FINISH)

    async def _keep_isolated(self, index: int) -> None:
        try:
            await self._keep(index, is_isolated=True)
        finally:
            self._places.discard(index)
        self._look_for_places()

    async def _keep(self, index: int, *, is_isolated: bool = False) -> None:
        """Keep one executor running, with longer and longer pauses if it cannot be started or keeps crashing."""
        name = f"{'isolated' if is_isolated else 'executor'}-{index + 1}"
        if index and self.tries_one_first and not is_isolated:
            await self._is_ready_or_ending.wait()
        pause = 0.0
        failed_to_start = False
        while not self._ending.is_set():
            try:
                process = await ExecutorProcess.start(
                    self.options, name, self.deputy, self._heard, is_isolated=is_isolated
                )
            except (OSError, RuntimeError) as error:
                # The system is out of processes, memory or descriptors, or of threads. The others are well.
                if not failed_to_start:
                    self._say(f"{name} cannot be started ({error}); it is tried again until it can")
                failed_to_start = True
                pause = await self._rest(pause)
                continue
            if failed_to_start:
                self._say(f"{name} is started")
                failed_to_start, pause = False, 0.0
            self._processes.add(process)
            if self._order is not None:
                process.order(self._order)
            try:
                code = await process.run()
            finally:
                self._processes.discard(process)
            self._look_for_claims()
            if process.is_surplus:
                return
            if self._ending.is_set():
                if process.word is None and code != 0 and not process.was_killed:
                    self._say(f"{name} {how_it_ended(code)} while it was ending; its runs are tried again")
                return
            if isinstance(process.word, Rejected):
                return
            if not self._was_ready and self._cannot_be_loaded(process, code):
                # Its siblings read the same files.
                self.end(Order.STOP)
                return
            match process.word:
                case Drained():
                    what = "has ended after a SIGTERM"
                case LoadFailed():
                    what = "cannot load the tasks any more"
                case _:
                    what = how_it_ended(code)
            self._say(f"{name} {what}; starting it again")
            if is_isolated and process.is_ready:
                # That is what it is for. The place of one that has waited may be needed no longer.
                if len(self._places) > self._places_needed:
                    return
                pause = 0.0
                continue
            pause = await self._rest(pause if process.lived_seconds < RESTART_SECONDS_MAX else 0.0)

    def _cannot_be_loaded(self, process: "ExecutorProcess", code: int) -> bool:
        """True when it is clear that starting it again will not help."""
        if process.word is None and not process.is_ready:
            self._crashes_while_loading += 1
            if self._crashes_while_loading < CRASHES_WHILE_LOADING_MAX:
                return False
            message = (
                f"the tasks cannot be loaded: the process that loads them {how_it_ended(code)}, "
                f"{self._crashes_while_loading} times one after the other"
            )
            self._heard(process, LoadFailed(message, []))
            return True
        return isinstance(process.word, LoadFailed)

    async def _rest(self, pause: float) -> float:
        """Wait a little longer than the last time, or until the end; how long it was."""
        pause = min(RESTART_SECONDS_MAX, max(0.1, pause * 2))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._ending.wait()
        return pause

    def _say(self, message: str) -> None:
        self.hear(self, Notice(message))

    def _heard(self, process: "ExecutorProcess", message: Message) -> None:
        if isinstance(message, LoadFailed):
            self.failure = message.message
        self.hear(self, message)
        if isinstance(message, Ready):
            self._is_ready_or_ending.set()
            self._has_isolated |= bool(message.isolated)
        if isinstance(message, Ready | Waiting):
            self._look_for_places()
        if isinstance(message, Finishing):
            self._look_for_claims()

    @property
    def finishing_runs(self) -> int:
        """How many runs are left to finish, as far as its executors have said."""
        return sum(process.finishing_runs or 0 for process in self._processes)

    def _look_for_claims(self) -> None:
        if self._order is not None and all(process.finishing_runs is not None for process in self._processes):
            self.claims_no_more.set()


__all__ = ["Audience", "Supervisor", "WorkerFailed", "WorkerOptions"]
