"""A worker inside a program that has other things to do: its tasks are objects of the program, and it ends when the program says so.

What runs there shares the process with everything else: a run that crashes it takes the program along, and output is the program's.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from milepost.protocol.work import WorkerTask
from milepost.sdk.task import Task
from milepost.worker.channel import Channel
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.loops import loop_factory
from milepost.worker.outbox import HeldRun
from milepost.worker.running import Runner
from milepost.worker.threads import ThreadPool


class InProcessWorker(Runner):
    """Carries out runs in this process. A `Host` of its link.

    Args:
        described: what is offered of the tasks; both may be changed later, see `WorkerLink.offer`.
        loop: where `async def` tasks run; it must be running in the thread `loop_thread_id`.
        open_channel: makes the connection to the server.
        link_class: the kind of link.
        tell: called with each line that whoever runs the program should see.

    Attributes:
        error: why the worker has ended, if it was not told to.
        abandoned: how many runs had not ended when it did.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[Any, Any]],
        described: list[WorkerTask],
        loop: asyncio.AbstractEventLoop,
        loop_thread_id: int,
        *,
        api_url: str,
        secret_key: str,
        worker_id: str,
        name: str,
        concurrency: int,
        flush_interval_seconds: float,
        grace_seconds: float,
        tell: Callable[[str], None],
        open_channel: Callable[[str, str], Channel] = Channel,
        link_class: type[WorkerLink] = WorkerLink,
    ) -> None:
        super().__init__(tasks, loop, loop_thread_id, _shared_threads())
        self._tell = tell
        self.error: BaseException | None = None
        self.abandoned = 0
        self.is_registered = threading.Event()
        self.has_left = threading.Event()
        self._link = link_class(
            LinkOptions(
                api_url=api_url,
                secret_key=secret_key,
                worker_id=worker_id,
                name=name,
                tasks=described,
                concurrency=concurrency,
                flush_interval_seconds=flush_interval_seconds,
                grace_seconds=grace_seconds,
            ),
            self,
            loop_factory(),
            open_channel=open_channel,
        )

    @property
    def link(self) -> WorkerLink:
        """The link to the server; `start` it, or `run` it on a loop."""
        return self._link

    # --- what the link says, on its thread -----------------------------------------------------------------

    def registered(self) -> None:
        """See `Host`."""
        self.is_registered.set()

    def notice(self, message: str) -> None:
        """See `Host`."""
        self._tell(message)

    def left_running(self, run: HeldRun) -> None:
        """See `Host`. The code stays: the process is the program's."""

    def waits(self, *, waits: bool) -> None:
        """See `Host`. Runs of isolated tasks execute beside the others here."""

    def finishing(self, runs: int) -> None:
        """See `Host`."""
        if runs:
            self._tell(f"{runs} {'run' if runs == 1 else 'runs'} to finish")

    def server_is_away(self, reason: str) -> None:
        """See `Host`."""
        self._tell(f"the server does not answer ({reason}); what is reported waits for it")

    def server_is_back(self, away_seconds: float) -> None:
        """See `Host`."""
        self._tell(f"the server answers again, after {away_seconds:.0f} s")

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """See `Host`."""
        self.error = error
        self.abandoned = abandoned
        self.has_left.set()
        self.is_registered.set()


@cache
def _shared_threads() -> ThreadPool:
    """One pool for all workers of the process: there may be many, one after the other."""
    return ThreadPool()
