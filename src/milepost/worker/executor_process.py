"""One executor process as its supervisor sees it: what it says, how its lease is kept while user code holds it up, how it ended."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from milepost.worker import control
from milepost.worker.black_box import BlackBox
from milepost.worker.control import (
    Drained,
    FinalWord,
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
    UnreadableMessage,
    Waiting,
)
from milepost.worker.deputy import Deputy
from milepost.worker.lease import lease_clock
from milepost.worker.stopped import is_stopped

CONCURRENCY_DEFAULT = 100
# How much longer than its grace time an executor may take for its last report before it is killed.
LEAVE_SECONDS_MAX = 8.0
# The same for one that still loads the user's code: it has nothing to lose, and may hang.
LOADING_LEAVE_SECONDS_MAX = 1.0
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# How often to look whether the server has answered an executor, before it has registered and in parts of its lease afterwards.
LOOK_SECONDS = 0.5
LOOKS_PER_LEASE = 6


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a supervisor runs.

    Args:
        sources: Python files, folders or module names with tasks, at least one.
        processes: executor processes; user code of `async def` tasks runs in one thread of each.
        concurrency: runs at once in each process; runs that wait for other runs do not count.
        isolated: processes beside these for the runs of isolated tasks, one run each; as many as `processes` when None. There are none
            where no task is isolated, and one more for each run that waits in its process.
        grace_seconds: how long runs may go on after the order to end.
        reload: replace the executors when a file of the user's code changes.
        output: a file descriptor for the standard output of user code; None: this process's own.
    """

    sources: Sequence[str]
    api_url: str
    secret_key: str
    processes: int
    concurrency: int = CONCURRENCY_DEFAULT
    isolated: int | None = None
    grace_seconds: float = 30.0
    reload: bool = False
    output: int | None = None


class ExecutorProcess:
    """One executor process, from start to end.

    Attributes:
        worker_id: what the executor is called on the server.
        is_ready: it has registered there.
        finishing_runs: how many runs it has left, once it has heard that it is to finish them.
        word: why it ends, in its own words; None as long as it has said nothing.
        was_killed: by this supervisor.
        is_waiting: its one run waits; only of one that is isolated.
        is_surplus: it is not started again.
    """

    def __init__(
        self,
        process: Process,
        messages: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        hear: Callable[["ExecutorProcess", Message], None],
        *,
        deputy: Deputy,
        black_box: BlackBox,
        name: str,
        worker_id: str,
        descriptor: int,
        grace_seconds: float,
        is_isolated: bool,
    ) -> None:
        self._process = process
        self._messages = messages
        self._pipe = pipe
        self._hear = hear
        self._deputy = deputy
        self._black_box = black_box
        self._name = name
        self._descriptor = descriptor
        self._grace_seconds = grace_seconds
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._kill_timers: list[asyncio.TimerHandle] = []
        self._garbage_is_told = False
        self.worker_id = worker_id
        self.is_ready = False
        self.finishing_runs: int | None = None
        self.word: FinalWord | None = None
        self.was_killed = False
        self.is_isolated = is_isolated
        self.is_waiting = False
        self.is_surplus = False
        # Why its run has timed out by being killed.
        self._late: str | None = None

    @classmethod
    async def start(
        cls,
        options: WorkerOptions,
        name: str,
        deputy: Deputy,
        hear: Callable[["ExecutorProcess", Message], None],
        *,
        is_isolated: bool = False,
    ) -> "ExecutorProcess":
        """Start an executor. It learns the secret key from its environment, which only its owner can read.

        Raises: OSError, RuntimeError when the system does not give what that takes.
        """
        loop = asyncio.get_running_loop()
        worker_id = f"worker_{os.urandom(12).hex()}"
        receiving, sending = os.pipe()
        try:
            black_box, box_descriptor = BlackBox.make()
        except BaseException:
            os.close(receiving)
            os.close(sending)
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                # Without the current folder in front: a file of the user must not stand in for a module that this program needs.
                "-P", "-m", "milepost.worker",
                "--messages", str(sending), "--black-box", str(box_descriptor),
                "--worker-id", worker_id, "--name", name,
                "--concurrency", "1" if is_isolated else str(options.concurrency),
                "--grace", str(options.grace_seconds),
                *(["--may-be-reloaded"] if options.reload else []),
                *(["--isolated"] if is_isolated else []),
                "--", *options.sources,
                stdin=PIPE,
                stdout=options.output,
                pass_fds=(sending, box_descriptor),
                start_new_session=True,
                env={**os.environ, "MILEPOST_API_URL": options.api_url, "MILEPOST_SECRET_KEY": options.secret_key},
            )  # fmt: skip
        except BaseException:
            os.close(receiving)
            black_box.close()
            raise
        finally:
            os.close(sending)
            os.close(box_descriptor)
        reader = asyncio.StreamReader(limit=MESSAGE_BYTES_MAX)
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(receiving, "rb", 0)
        )
        return cls(
            process,
            reader,
            pipe,
            hear,
            deputy=deputy,
            black_box=black_box,
            name=name,
            worker_id=worker_id,
            descriptor=sending,
            grace_seconds=options.grace_seconds,
            is_isolated=is_isolated,
        )

    @property
    def lived_seconds(self) -> float:
        """How long ago it was started."""
        return self._loop.time() - self._started_at

    async def run(self) -> int:
        """Wait until the process has ended, by itself or because it was told to; its exit code."""
        listening = asyncio.create_task(self._listen())
        keeping = [asyncio.create_task(self._keep_lease())]
        if self.is_isolated:
            keeping.append(asyncio.create_task(self._watch_its_time()))
        exited = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({exited, listening}, return_when=asyncio.FIRST_COMPLETED)
            # A process that ends closes the pipe a moment before its end is known.
            await asyncio.wait({exited}, timeout=LEAVE_SECONDS_MAX)
            if not exited.done() and self.word is None and not self._kill_timers:
                self._say(
                    f"user code has closed file descriptor {self._descriptor}, by which this executor says what happens; "
                    f"it runs tasks as before"
                )
            await asyncio.wait({exited})
        finally:
            for timer in self._kill_timers:
                timer.cancel()
            for task in keeping:
                task.cancel()
            # Ends the executor if it still lives, and whatever it has left behind: all that is in its session's first group.
            self.kill()
            await asyncio.wait({listening, exited}, timeout=1.0)
            listening.cancel()
            self._pipe.close()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._give_account(self._process.returncode)
            self._black_box.close()
        return await exited

    def _give_account(self, code: int | None) -> None:
        """Tell the server what it cannot know: how an executor has ended that has not said goodbye, and which runs it had begun."""
        if not self.is_ready and not self._black_box.lease_seconds:
            # It has never registered, or it has and claimed nothing.
            return
        abandons = isinstance(self.word, Drained) and bool(self.word.abandoned)
        if self._late is None and self.word is not None and not abandons:
            # It has said all itself.
            return
        from milepost.protocol.work import Death

        begun = self._black_box.begun()
        if self._late is not None:
            late = [msgspec.structs.replace(run, timed_out=not run.waiting) for run in begun]
            self._deputy.died(self.worker_id, Death(how=self._late, begun=late))
        elif self.word is None and code is not None and not self.was_killed:
            self._deputy.died(self.worker_id, Death(how=cause_of_death(code), begun=begun))
        else:
            self._deputy.left(self.worker_id, begun)

    async def _keep_lease(self) -> None:
        """Say that the executor lives while it cannot do so itself: user code may keep the interpreter's lock (the GIL) for long.

        A process that is stopped executes nothing, and its runs go elsewhere when its lease is over.
        """
        is_told = False
        while True:
            lease_seconds = self._black_box.lease_seconds
            await asyncio.sleep(lease_seconds / LOOKS_PER_LEASE or LOOK_SECONDS)
            silence = lease_clock() - self._black_box.answered_at
            if not lease_seconds or silence <= lease_seconds / 2 or self.word is not None:
                is_told = False
                continue
            if await is_stopped(self._process.pid):
                continue
            if self.is_isolated and (begun := self._black_box.begun()):
                if await self._deputy.is_to_end(
                    self.worker_id, begun, seconds_max=lease_seconds / LOOKS_PER_LEASE
                ):
                    self._say("its run is to end and cannot hear of it; the process is killed")
                    self.kill()
                continue
            is_heard = await self._deputy.keep_lease(
                self.worker_id, seconds_max=lease_seconds / LOOKS_PER_LEASE
            )
            if is_heard and not is_told:
                is_told = True
                self._say(
                    f"nothing was heard of this executor for {silence:.0f} s, and it lives: some code keeps the interpreter's lock "
                    f"(the GIL), so that no other run goes on; its lease is kept meanwhile"
                )

    async def _watch_its_time(self) -> None:
        """Kill a process whose run has had its time and does not end, should its code hold up the thread that would say so."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            end_at = self._black_box.end_at
            if end_at and lease_clock() > end_at and self.word is None:
                self._late = "was killed, because the attempt took longer than it may and did not end when it was asked to"
                self._say(f"the process {self._late}")
                self.kill()
                return

    def kill(self) -> None:
        """End the process and its children now."""
        self.was_killed = self.was_killed or self._process.returncode is None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def order(self, order: Order) -> None:
        """Tell the executor to end. It is killed when it takes too long, except to finish its runs."""
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.is_closing():
            # A broken pipe means that it is ending anyway; the transport reports that by closing.
            stdin.write(order.encode() + b"\n")
        if not self._kill_timers:
            self._kill_timers.append(
                self._loop.call_later(LOADING_LEAVE_SECONDS_MAX, self._kill_unless_ready)
            )
        if order is not Order.FINISH and len(self._kill_timers) == 1:
            self._kill_timers.append(
                self._loop.call_later(self._grace_seconds + LEAVE_SECONDS_MAX, self.kill)
            )

    def _kill_unless_ready(self) -> None:
        if not self.is_ready:
            self.kill()

    async def _listen(self) -> None:
        while True:
            try:
                line = await self._messages.readline()
                message = control.decode(line)
            except (UnreadableMessage, ValueError):
                # The second when the line is too long.
                self._tell_of_garbage()
                continue
            if message is not None:
                self._take(message)
            elif not line:
                break

    def _take(self, message: Message) -> None:
        match message:
            case Ready():
                self.is_ready = True
            case Finishing(runs=runs):
                self.finishing_runs = runs
            case LoadFailed() | Rejected() | Drained():
                self.word = message
            case Waiting(waits=waits):
                self.is_waiting = waits
            case Stuck(reason=reason):
                self._say(f"{reason}; the process is killed")
                self.kill()
            case Notice() | ServerAway() | ServerBack():
                pass
        self._hear(self, message)

    def _tell_of_garbage(self) -> None:
        if not self._garbage_is_told:
            self._garbage_is_told = True
            self._say(
                f"user code writes to file descriptor {self._descriptor}, which it has not opened; this is ignored"
            )

    def _say(self, message: str) -> None:
        self._hear(self, Notice(f"{self._name}: {message}"))


# What is worth a word about some signals: they are sent by the system, for a reason.
_REASONS: dict[int, str] = {
    signal.SIGKILL: "the system does so when memory runs out",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGBUS: "a fault in native code",
    signal.SIGILL: "a fault in native code",
    signal.SIGFPE: "a fault in native code",
    signal.SIGABRT: "native code has given up",
}
_REASON_OF_EXIT = "the task may have called os._exit"


def how_it_ended(code: int) -> str:
    """In words that go on "the process ..."."""
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def cause_of_death(code: int) -> str:
    """As `how_it_ended`, with what may be behind it."""
    reason = _REASON_OF_EXIT if code >= 0 else _REASONS.get(-code)
    return f"{how_it_ended(code)} ({reason})" if reason else how_it_ended(code)
