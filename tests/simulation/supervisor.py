"""A supervisor: it outlives the executors that it starts, and the real deputy speaks for those that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import TYPE_CHECKING, Any, Self, cast

from milepost.protocol.work import Death
from milepost.worker import executor_process
from milepost.worker.channel import Channel
from milepost.worker.deputy import Deputy
from simulation.loop import process_of_code
from simulation.network import URL, Connections, Peer

if TYPE_CHECKING:
    from simulation.simulation import Simulation
    from simulation.worker import WorkerProcess

_connections: ContextVar[Connections] = ContextVar("connections")


class SupervisorsChannel(Channel):
    """The real one, on a network that is none."""

    async def __aenter__(self) -> Self:
        self._connections = cast(Any, _connections.get())
        return self


class Supervisor:
    """One life of a supervisor."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self._simulation = simulation
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_dead = False
        self.peer = Peer(name, Random(f"{simulation.seed}/{name}/network"))
        self._context = Context()
        self._context.run(process_of_code.set, self)
        self._context.run(_connections.set, Connections(simulation.network, self.peer))
        self._deputy = Deputy(URL, "key")

    def executor_died(self, executor: WorkerProcess, how: str) -> None:
        """It has ended without a word. The server is told what its black box says."""
        if not self.is_dead:
            begun = executor.black_box.begun()
            self._context.copy().run(self._deputy.died, executor.worker_id, Death(how=how, begun=begun))

    def executor_left(self, executor: WorkerProcess) -> None:
        """It has ended by order, and could not tell the server."""
        if not self.is_dead:
            self._context.copy().run(self._deputy.left, executor.worker_id, executor.black_box.begun())

    def keep_lease(self, executor: WorkerProcess, until: float) -> None:
        """User code lets the executor say nothing until then."""
        if not self.is_dead:
            self._spawn(self._keep_lease(executor, until))

    async def _keep_lease(self, executor: WorkerProcess, until: float) -> None:
        seconds = self._simulation.plan.lease_seconds / executor_process.LOOKS_PER_LEASE
        while self._simulation.loop.time() < until and not executor.peer.is_dead:
            await asyncio.sleep(seconds)
            await self._deputy.keep_lease(executor.worker_id, seconds_max=seconds)

    def die(self) -> None:
        """SIGKILL, and nothing else: its executors find out."""
        self._simulation.note(self.name, "killed")
        self.is_dead = self.peer.is_dead = True
        for task in [*self._tasks, *self._deputy._telling]:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._simulation.loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._simulation.failed(error)
