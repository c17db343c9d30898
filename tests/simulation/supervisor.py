"""A supervisor: it outlives the executors that it starts, and tells the server when one of them has died."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import ContextVar, copy_context
from random import Random
from typing import TYPE_CHECKING, Any, Self, cast

from milepost.protocol import endpoints
from milepost.protocol.work import Death, ReportRequest
from milepost.worker.channel import Channel
from simulation.loop import process_of_code
from simulation.network import URL, Peer, Session

if TYPE_CHECKING:
    from simulation.simulation import Simulation
    from simulation.worker import WorkerProcess

_session: ContextVar[Session] = ContextVar("session")


class SupervisorsChannel(Channel):
    """The real one, on a network that is none."""

    async def __aenter__(self) -> Self:
        self._session = cast(Any, _session.get())
        return self


class Supervisor:
    """One life of a supervisor."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self._simulation = simulation
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_dead = False
        self.peer = Peer(name, Random(f"{simulation.seed}/{name}/network"))
        self._context = copy_context()
        self._context.run(process_of_code.set, self)
        self._context.run(_session.set, Session(simulation.network, self.peer))

    def executor_died(self, executor: WorkerProcess, how: str) -> None:
        """It has ended without a word. The server is told what its black box says."""
        if not self.is_dead:
            self._spawn(
                self._report_death(executor.worker_id, Death(how=how, begun=executor.black_box.begun()))
            )

    async def _report_death(self, worker_id: str, death: Death) -> None:
        with suppress(Exception):
            async with SupervisorsChannel(URL, "key") as channel:
                await channel.call(
                    endpoints.REPORT, ReportRequest(death=death), timeout_seconds=2.0, worker=worker_id
                )

    def die(self) -> None:
        """SIGKILL, and nothing else: its executors find out."""
        self._simulation.note(self.name, "killed")
        self.is_dead = self.peer.is_dead = True
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._simulation.loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._simulation.failed(error)
