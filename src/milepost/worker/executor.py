"""An executor: a process in which user code runs.

`async def` tasks run on the event loop of the main thread, `def` tasks in threads; the link, on a thread of its own, does all the
talking to the server. The supervisor starts this process and may order it to end (`control`).
"""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from milepost.client.settings import find_address
from milepost.errors import MilepostError
from milepost.model.run import Outcome
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.sdk.capture import capture_output
from milepost.sdk.child_process import EXECUTOR_VARIABLE
from milepost.sdk.task import Task, registered_tasks
from milepost.worker import control, loader
from milepost.worker.black_box import BlackBox
from milepost.worker.channel import Refused, Unreachable
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
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.loader import TaskLoadError
from milepost.worker.loops import loop_factory, run_shared, shared_loop
from milepost.worker.outbox import HeldRun
from milepost.worker.output import keep_output_going
from milepost.worker.running import Runner
from milepost.worker.settings import load_settings
from milepost.worker.telling import LineWriter, RunTeller, Teller, show_logging_of_tasks
from milepost.worker.unbound import UnboundCalls

# How long the main thread may take to end once the link has said goodbye; user code may block it for good.
END_SECONDS_MAX = 4.0


def main(arguments: Sequence[str]) -> int:
    """Run one executor until it is ordered to end. The exit code is for people; the supervisor goes by what it was told."""
    options = _parse(arguments)
    supervisor = _SupervisorLine(options.messages)
    black_box = BlackBox.open(options.black_box)
    keep_output_going()
    try:
        settings = load_settings()
        if settings.log_capture:
            capture_output()
        if options.may_be_reloaded:
            # Of two saves within a second Python takes what it has compiled of the first for the second one, if they are as long.
            sys.dont_write_bytecode = True
        loader.load(options.sources)
        show_logging_of_tasks(settings.log_level, settings.log_format)
        tasks = registered_tasks()
        if not tasks:
            raise TaskLoadError(
                f"there is no task in {', '.join(options.sources)}: put @task (from milepost) above a function"
            )
        isolation = "process" if options.isolated else "thread"
        described = [task.describe() for task in tasks.values() if task.isolation == isolation]
    except (TaskLoadError, MilepostError) as error:
        files = [*map(str, loader.user_files()), *getattr(error, "files", ())]
        supervisor.tell(LoadFailed(str(error), files))
        return 1
    return Executor(options, tasks, described, supervisor, black_box).run()


class Executor(Runner):
    """One executor process: where the link's runs are carried out. A `Host` of the link."""

    def __init__(
        self,
        options: argparse.Namespace,
        tasks: Mapping[str, Task[Any, Any]],
        described: Sequence[WorkerTask],
        supervisor: "_SupervisorLine",
        black_box: BlackBox,
    ) -> None:
        settings, address = load_settings(), find_address()
        super().__init__(tasks, shared_loop(), threading.get_ident())
        self._is_isolated: bool = options.isolated
        self._waits = False
        self._supervisor = supervisor
        self._has_left = False
        self._is_forked_child = False
        self._exit_code = 0
        self._link = WorkerLink(
            LinkOptions(
                api_url=address.api_url,
                secret_key=address.secret_key,
                worker_id=options.worker_id,
                name=f"{socket.gethostname()} {options.name} ({os.getpid()})",
                tasks=described,
                concurrency=options.concurrency,
                flush_interval_seconds=settings.metadata_flush_interval_ms / 1000,
                grace_seconds=options.grace,
                alone_seconds=settings.alone_seconds,
                is_isolated=options.isolated,
            ),
            self,
            loop_factory(),
            teller=RunTeller(Teller(LineWriter(), level=settings.log_level, form=settings.log_format)),
            black_box=black_box,
        )
        self._unbound = UnboundCalls(self._link.scopes)

    def run(self) -> int:
        """Carry out runs until the link has left the server."""
        asyncio.set_event_loop(self._loop)
        # What the user's imports made lives on anyway; of this program's own it is known since `__main__`.
        gc.collect()
        gc.freeze()
        self._unbound.watch()
        os.environ[EXECUTOR_VARIABLE] = str(os.getpid())
        self._supervisor.go_live(self._link.start, self._link.order)
        self._heed_signals()
        try:
            run_shared(self._loop, lambda: self._has_left, _tell_of_stray)
        except BaseException:
            # Nothing runs on this loop any more. Without a word to the supervisor this is a crash, and the runs are tried again.
            traceback.print_exc()
            _flush_output()
            os._exit(1)
        self._wind_up()
        return self._exit_code

    def _wind_up(self) -> None:
        """Let what is left clean up behind itself. It has little time: see `left`."""
        for held in self._on_loop:
            held.scope.is_lost = True
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        # Whatever they raise, the process ends now.
        with contextlib.suppress(BaseException):
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        with contextlib.suppress(BaseException):
            self._loop.close()

    # --- what the link asks, on its thread -----------------------------------------------------------------

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        """See `Host`."""
        self._unbound.run_comes()
        return super().admit(run, metadata_size_max)

    def left_running(self, run: HeldRun) -> None:
        """See `Host`. Where the code of others is in this process too, it stays."""
        if self._is_isolated:
            name = f"run {run.scope.run.id} ({run.scope.run.task})"
            self._supervisor.tell(Stuck(f"{name} was to end, and its code has not within the grace time"))

    def waits(self, *, waits: bool) -> None:
        """See `Host`."""
        if waits is not self._waits:
            self._waits = waits
            self._supervisor.tell(Waiting(waits))

    def registered(self) -> None:
        """See `Host`."""
        isolated = [task.id for task in self._tasks.values() if task.isolation == "process"]
        self._supervisor.tell(Ready(list(self._tasks), [str(file) for file in loader.user_files()], isolated))

    def notice(self, message: str) -> None:
        """See `Host`."""
        self._supervisor.tell(Notice(message))

    def finishing(self, runs: int) -> None:
        """See `Host`."""
        self._supervisor.tell(Finishing(runs))

    def server_is_away(self, reason: str) -> None:
        """See `Host`."""
        self._supervisor.tell(ServerAway(reason))

    def server_is_back(self, away_seconds: float) -> None:
        """See `Host`."""
        self._supervisor.tell(ServerBack(away_seconds))

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """See `Host`."""
        runs = "1 run" if abandoned == 1 else f"{abandoned} runs"
        if error is None:
            if abandoned:
                self._supervisor.tell(
                    Notice(f"{runs} did not end in time, handed back: run again at no cost to their attempts")
                )
            self._supervisor.tell(Drained())
        elif isinstance(error, Unreachable):
            if abandoned:
                self._supervisor.tell(
                    Notice(f"{runs} did not end in time, to be handed back as soon as the server answers")
                )
            self._supervisor.tell(Drained(abandoned))
        else:
            self._exit_code = 1
            if isinstance(error, Refused):
                self._supervisor.tell(Rejected(f"the server does not take this worker: {error}"))
        self._has_left = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        # The main thread may be stuck in user code. Nothing is left to be lost, so the process need not wait for it.
        time.sleep(END_SECONDS_MAX)
        _flush_output()
        os._exit(self._exit_code)

    def _finished(self, held: HeldRun, outcome: Outcome) -> None:
        if self._is_forked_child:
            # The user's code has forked, and this is the child coming back from the task: its parent goes on with everything.
            _flush_output()
            os._exit(0)
        super()._finished(held, outcome)

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
        self._messages = control.Descriptor(descriptor)
        # User code gets an empty standard input.
        self._orders = control.Descriptor(os.dup(0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._lock = threading.Lock()
        self._obey: Callable[[Order], None] | None = None
        self._supervisor_id = os.getppid()
        threading.Thread(target=self._listen, name="milepost-orders", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message; without a supervisor there is nobody to tell."""
        self._messages.write(control.encode(message))

    def go_live(self, start: Callable[[], None], obey: Callable[[Order], None]) -> None:
        """Start what has to be drained from now on, and give it every order. An order that came before has ended the process."""
        with self._lock:
            start()
            self._obey = obey

    def _listen(self) -> None:
        """Hand on every order; the end of the line means that the supervisor is gone, and is the order to drain."""
        line = b""
        while chunk := self._orders.read():
            *lines, line = (line + chunk).split(b"\n")
            for each in lines:
                self._take(Order(each.strip().decode()))
        if chunk is None:
            # User code has closed the descriptor; all that can be seen now is that the supervisor is gone.
            while os.getppid() == self._supervisor_id:
                time.sleep(1.0)
        self._take(Order.DRAIN)

    def _take(self, order: Order) -> None:
        with self._lock:
            if self._obey is None:
                # The user's tasks are still being loaded: there is nothing to lose yet.
                self.tell(Drained())
                _flush_output()
                os._exit(0)
            self._obey(order)


def _tell_of_stray(error: BaseException) -> None:
    """Something has come out of the event loop, and it cannot be told which run it belongs to: a signal handler of the user's, say."""
    print(
        "Milepost: the event loop goes on after this error, which cannot be assigned to a run:",
        file=sys.stderr,
    )
    traceback.print_exception(error)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="milepost.worker", description=__doc__)
    parser.add_argument(
        "--messages", type=int, required=True, help="descriptor of the pipe to the supervisor"
    )
    parser.add_argument(
        "--black-box", type=int, required=True, help="descriptor of the memory that the supervisor reads"
    )
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True, help="seconds")
    parser.add_argument(
        "--may-be-reloaded", action="store_true", help="the user's code may change while it runs"
    )
    parser.add_argument("--isolated", action="store_true", help="take runs of isolated tasks, one at a time")
    parser.add_argument("sources", nargs="+")
    return parser.parse_args(arguments)
