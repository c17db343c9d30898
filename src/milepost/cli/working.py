"""Executors on the command line: what is said about them, and how they are ended."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from milepost.cli import stopping
from milepost.cli.console import fail, note, say_error
from milepost.cli.stopping import StopSignals, first_of
from milepost.worker.control import Order
from milepost.worker.loader import TaskLoadError, check_sources
from milepost.worker.supervisor import Supervisor, WorkerFailed, WorkerOptions

# After this long without an end the user is told what is being waited for.
PATIENCE_SECONDS = 0.7


def processes_default() -> int:
    """One executor per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Announcer:
    """Tells the user on standard error what happens to the executors. An `Audience` of the supervisor.

    Args:
        on_ready: called with the tasks when they can be run for the first time.
    """

    def __init__(self, on_ready: Callable[[Sequence[str]], None]) -> None:
        self._on_ready = on_ready
        self._away_since: float | None = None

    def ready(self, tasks: Sequence[str], *, reloaded: bool) -> None:
        """See `Audience`."""
        if reloaded:
            note(f"reloaded: {', '.join(tasks)}")
        else:
            self._on_ready(tasks)

    def changed(self, files: Sequence[Path]) -> None:
        """See `Audience`."""
        note(f"changed: {', '.join(_short(file) for file in files)}")

    def load_failed(self, message: str, *, running: bool) -> None:
        """See `Audience`."""
        say_error(message)
        if running:
            note("the tasks as they were keep running; save the file again once it is mended")
        else:
            note("waiting for the file to be mended")

    def notice(self, message: str) -> None:
        """See `Audience`."""
        note(message, level="warning")

    def server_is_away(self, reason: str) -> None:
        """See `Audience`: told once for all executors."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            note(
                f"the server does not answer ({reason}); runs go on, and what they report is sent when it is back",
                level="warning",
                event="server.away",
            )

    def server_is_back(self, away_seconds: float) -> None:
        """See `Audience`: told once for all executors."""
        if self._away_since is not None:
            seconds = max(away_seconds, time.monotonic() - self._away_since)
            self._away_since = None
            note(
                f"the server answers again, after {seconds:.1f} s",
                event="server.back",
                away_seconds=round(seconds, 3),
            )


def run_worker_command(sources: Sequence[str], command: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a command with executors; what they cannot work with is told, and ends it."""
    try:
        check_sources(sources)
        stopping.run(command)
    except (TaskLoadError, WorkerFailed) as error:
        fail(str(error))


async def work(options: WorkerOptions) -> None:
    """`milepost worker`: executors for a server elsewhere. Raises WorkerFailed."""

    def ready(tasks: Sequence[str]) -> None:
        note(f"ready to run {', '.join(tasks)} for {options.api_url}")

    with StopSignals() as signals:
        await supervise(Supervisor(options, Announcer(ready)), signals)


def _short(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


async def supervise(
    supervisor: Supervisor,
    signals: StopSignals,
    *,
    ended: Sequence[asyncio.Future[Any]] = (),
    order: Order = Order.DRAIN,
) -> None:
    """Run the executors until a signal asks for the end, or until one of `ended` is done.

    The first signal lets runs end within the grace time, the second kills.

    Raises: WorkerFailed.
    """
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_as_result(supervisor))
        await first_of(running, signals.asked.wait(), *ended)
        supervisor.stop(order)
        await first_of(running, asyncio.sleep(PATIENCE_SECONDS))
        if not running.done():
            note(
                f"waiting up to {supervisor.grace_seconds:g} s for the runs under way to end; Ctrl-C again ends at once"
            )
        await first_of(running, signals.hurried.wait())
        if not running.done():
            note("ending at once; the runs under way are handed back")
            supervisor.kill()
        failure = await running
    if failure is not None:
        raise failure


async def _as_result(supervisor: Supervisor) -> WorkerFailed | None:
    """The failure as a value: raised inside a task group it would come out wrapped."""
    try:
        await supervisor.run()
    except WorkerFailed as failure:
        return failure
    return None
