"""A supervisor: it outlives the executors that it starts, and tells the server when one of them has died."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

from milepost.worker import supervisor as real
from milepost.worker.channel import Channel
from simulation.loop import process_of_code
from simulation.network import URL, Peer, Session

if TYPE_CHECKING:
    from simulation.simulation import Simulation

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

    def executor_died(self, worker_id: str) -> None:
        """It has ended without a word. As the real one, with what the real one sends."""
        if not self.is_dead:
            options = SimpleNamespace(api_url=URL, secret_key="key")
            self._spawn(real._release(cast(Any, options), worker_id))

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
