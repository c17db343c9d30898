"""Doing the jobs: each in a loop of its own, in the server's event loop, by commands of the committer."""

import asyncio
import logging
import time
from collections.abc import Generator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from milepost.engine.commands import BeginJob, Command, FinishJob, PruneHistory
from milepost.engine.committer import Committer
from milepost.engine.engine import Engine
from milepost.engine.jobs import JobName
from milepost.errors import UnavailableError
from milepost.store.database import Store
from milepost.upkeep.jobs import JOBS, Job, Progress, UpkeepSettings

logger = logging.getLogger("milepost.server")

# How often a server looks whether a job that forgets is due, or was left unfinished by a server that is gone.
LOOK_SECONDS = 60.0
# The same trouble is said again after so long.
SAID_SECONDS = 60.0


class JobMeasures:
    """What this server has done of one job: rounds, seconds, and how much (runs, documents, rows); and when it last did, in seconds
    since 1970 by the machine's clock, None while it has not."""

    def __init__(self) -> None:
        self.rounds = 0
        self.seconds = 0.0
        self.done = 0
        self.finished_at: float | None = None


class Upkeep:
    """The upkeep of one server. Belongs to one event loop.

    Attributes:
        measures: of each job.
    """

    def __init__(self, settings: UpkeepSettings, committer: Committer, engine: Engine, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.progress = Progress()
        self._committer = committer
        self._engine = engine
        # Commands of its own, by which it sees whether others have work for the committer.
        self._submitted = 0
        # What each job has said last about why it has to wait, and when.
        self._said: dict[JobName, tuple[str, float]] = {}
        self.measures = {name: JobMeasures() for name in JOBS}

    def clock(self) -> int:
        """Microseconds since 1970."""
        return self._engine.now

    def age_clock(self) -> int:
        """The same by a clock that is never set back."""
        return self._engine.age_now

    async def submit(self, command: Command) -> Any:
        """Carry out a command; its result."""
        self._submitted += 1
        return await self._committer.submit(command)

    def start(self) -> "list[asyncio.Task[None]]":
        """Begin with every job; whoever has started it cancels the tasks in the end."""
        return [
            asyncio.create_task(self.keep(job))
            for job in JOBS.values()
            if self.store.is_shared or not job.for_several
        ]

    async def keep(self, job: Job) -> None:
        """Do a job again and again.

        Whatever happens, it is tried again: a loop that ended would not be missed until much later.
        """
        period = job.period(self.settings)
        while True:
            if not job.forgets:
                await asyncio.sleep(period)
            with self._waiting(job.name):
                if not job.forgets:
                    await self.do(job.name)
                elif not self._engine.doubts_clock and await self.submit(
                    BeginJob(job.name, int(period * 1_000_000))
                ):
                    await self.do(job.name)
                    await self.submit(FinishJob(job.name))
            if job.forgets:
                await asyncio.sleep(min(period, LOOK_SECONDS))

    async def do(self, name: JobName) -> None:
        """One round of a job, whether it is due or not."""
        job = JOBS[name]
        began, others = time.monotonic(), self._committer.submitted - self._submitted
        measures = self.measures[name]
        async with aclosing(cast(Any, job.work(_Counted(self, measures), job.batch))) as steps:
            async for _ in steps:
                if (
                    job.gives_way_after is not None
                    and self._committer.submitted - self._submitted > others
                    and time.monotonic() - began > job.gives_way_after
                ):
                    break
        measures.rounds += 1
        measures.seconds += time.monotonic() - began
        measures.finished_at = time.time()

    @contextmanager
    def _waiting(self, name: JobName) -> Generator[None]:
        """What keeps a job from being done is said once, and again after a while: it comes up in every round."""
        try:
            yield
        except UnavailableError as error:
            said, said_at = self._said.get(name, ("", -SAID_SECONDS))
            if str(error) != said or time.monotonic() - said_at >= SAID_SECONDS:
                self._said[name] = str(error), time.monotonic()
                logger.warning("the job %r of the upkeep has to wait: %s", name.value, error)
        except Exception:
            logger.exception("the job %r of the upkeep failed, and is tried again", name.value)


class _Counted:
    """The workshop of one job, which counts how much is done of it."""

    def __init__(self, upkeep: Upkeep, measures: JobMeasures) -> None:
        self.settings = upkeep.settings
        self.store = upkeep.store
        self.progress = upkeep.progress
        self.clock = upkeep.clock
        self.age_clock = upkeep.age_clock
        self._upkeep = upkeep
        self._measures = measures

    async def submit(self, command: Command) -> Any:
        """Carry out a command; its result."""
        done = await self._upkeep.submit(command)
        self._measures.done += len(command.logs) if isinstance(command, PruneHistory) else done
        return done
