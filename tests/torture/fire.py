"""What is done to servers, workers and the database: killed and started again, stopped for a while and continued."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle
from typing import Any

import psutil
from database import RESTARTS, Database
from processes import Process, until_up
from verdict import Verdict

# A server gives workers that it has not heard of one lease from its start, so one that never lives that long never gives up what dead
# workers held: this often it is spared for longer.
LONG_LIFE_SHARE = 0.15
LONG_LIFE_LEASES = 2.5
# How often a server, or everything at once, is stopped instead of a server being killed.
SERVER_STOP_SHARE = 0.3
# The database is left alone for so many times longer than the others: meanwhile nobody gets anything done.
DATABASE_PAUSES = 6.0
# For so long it burns, and then it does not, so that much gets done, and what has gone wrong shows.
BLAZE_SECONDS = 8.0
LULL_SECONDS = 12.0
# A server that is away for less than this part of a lease costs none.
AWAY_LEASES_MIN = 0.5
# Between two restarts in order, that all may go on for a while.
CALM_SECONDS = 2.0


class Strike(StrEnum):
    """What is done to a worker, as it is counted."""

    STOP = "workers stopped for longer than the lease"
    EXECUTOR = "executors killed"
    SUPERVISOR = "supervisors killed"
    WORKER = "whole workers killed"


# How often each is chosen. One that was stopped comes back to runs that are not its own any more; executors whose supervisor was
# killed have to hand back what they have.
STRIKE_SHARES = {Strike.STOP: 0.15, Strike.EXECUTOR: 0.5, Strike.SUPERVISOR: 0.15, Strike.WORKER: 0.2}
# A short session has these two at least.
FIRST_STRIKES = (Strike.EXECUTOR, Strike.SUPERVISOR)


@dataclass(frozen=True)
class Server:
    """One of the servers."""

    process: Process
    port: int


@dataclass(frozen=True)
class Worker:
    """A worker, and the number of the one server that it speaks to; None when it may be any."""

    process: Process
    server: int | None


@dataclass(frozen=True)
class Away:
    """A server that was stopped, or was killed and had to start, for a good part of a lease, while others were there to count leases.
    Times are microseconds since 1970; `server` is its number, `was_stopped` says that connections to it stayed open."""

    server: int
    was_stopped: bool
    begun_at: int
    ended_at: int


@dataclass
class Struck:
    """What may have cost a run its attempt: executors that were killed and those that were stopped for longer than their lease, by
    process id, the latter with the times between which they were, in microseconds since 1970; and servers that were away."""

    killed: set[int] = field(default_factory=set[int])
    stopped: dict[int, list[tuple[int, int]]] = field(default_factory=dict[int, list[tuple[int, int]]])
    away: list[Away] = field(default_factory=list[Away])

    def was_stopped(self, process_id: int, begun_at: int, ended_at: int) -> bool:
        """Whether the executor was stopped in this time, or shortly before."""
        return any(begin <= ended_at and begun_at <= end for begin, end in self.stopped.get(process_id, ()))


class Fire:
    """All faults but those of the network. Whatever it stops it continues, whatever it kills it starts again.

    Attributes:
        faults: how many there have been, by kind.
        struck: who may have suffered.
        start_seconds: how long a server took to start the last time: how busy the machine is.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        workers: Sequence[Worker],
        database: Database,
        verdict: Verdict,
        *,
        stop: asyncio.Event,
        lease_seconds: float,
        pause_seconds: float,
        seed: int,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self.struck = Struck()
        self.start_seconds = 0.0
        self._servers = servers
        self._workers = workers
        self._database = database
        self._verdict = verdict
        self._stop = stop
        self._lease_seconds = lease_seconds
        self._pause_seconds = pause_seconds
        self._seed = seed
        self._begun_at = time.monotonic()
        # A server that starts while the database is away ends by itself, and says why.
        self._database_is_busy = asyncio.Lock()

    def all(self) -> list[Coroutine[Any, Any, None]]:
        """What is to be run at once, until it is time to stop."""
        fires = [self.at_workers(), self._strike_servers()]
        return [*fires, self._strike_database()] if self._database.troubles else fires

    def at_workers(self) -> Coroutine[Any, Any, None]:
        """The part of it that concerns workers, until it is time to stop."""
        self._begun_at = time.monotonic()
        return self._strike_workers()

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    async def _goes_on(self, chance: random.Random, *, seconds_min: float = 0.0, pauses: float = 1.0) -> bool:
        """Pause, to the end of a lull if there is one; False when it is time to stop."""
        await self.pause(max(seconds_min, pauses * self._pause_seconds * chance.uniform(0.5, 1.5)))
        within = (time.monotonic() - self._begun_at) % (BLAZE_SECONDS + LULL_SECONDS)
        if within > BLAZE_SECONDS:
            await self.pause(BLAZE_SECONDS + LULL_SECONDS - within)
        return not self._stop.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until it is time to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def check_alive(self) -> None:
        """Every server and worker is there: none has ended by itself."""
        for each in (*self._servers, *self._workers):
            self._has_ended(each.process)

    def _has_ended(self, process: Process) -> bool:
        if process.has_ended:
            self._verdict.add("broken", f"{process.name} has ended by itself; {process.log} says why")
        return process.has_ended

    async def restart_servers(self, rounds: int) -> None:
        """Restart one server after the other in order, all of them so many times. It costs no run anything."""
        for _ in range(rounds):
            for number, server in enumerate(self._servers):
                await self.pause(CALM_SECONDS)
                if self._stop.is_set() or self._has_ended(server.process):
                    return
                self.faults["server restarted in order"] += 1
                if not await server.process.stop():
                    self._verdict.add("broken", f"{server.process.name} has not ended when it was told to")
                    await server.process.kill()
                await self._start_server(number)

    async def restart_database(self, rounds: int) -> None:
        """Restart the database so many times, in order and as by a power loss of its processes. It costs no run anything."""
        for _, what in zip(range(rounds), cycle(RESTARTS), strict=False):
            await self.pause(CALM_SECONDS)
            if self._stop.is_set():
                return
            self.faults[what] += 1
            await self._database.troubles[what](self._chance("restarts"))

    # --- workers -------------------------------------------------------------------------------------------

    async def _strike_workers(self) -> None:
        chance = self._chance("workers")
        strikes = 0
        while await self._goes_on(chance):
            worker = chance.choice(self._workers).process
            if self._has_ended(worker):
                return
            executors = worker.children(older_than_seconds=self.start_seconds + self._pause_seconds)
            if not executors:
                # It has hardly begun to work since it was killed the last time.
                continue
            strike = FIRST_STRIKES[strikes] if strikes < len(FIRST_STRIKES) else _strike(chance)
            strikes += 1
            self.faults[strike] += 1
            if strike is Strike.STOP:
                executor = chance.choice(executors)
                begun_at = _now()
                await self._stop_for_a_while([executor], self._lease_seconds * 1.5)
                self.struck.stopped.setdefault(executor.pid, []).append((begun_at, _now()))
            elif strike is Strike.EXECUTOR:
                executor = chance.choice(executors)
                self.struck.killed.add(executor.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    executor.kill()
            elif strike is Strike.SUPERVISOR:
                await worker.kill_alone()
                await worker.start()
            else:
                self.struck.killed |= {child.pid for child in worker.children()}
                await worker.kill()
                await worker.start()

    async def _stop_for_a_while(self, processes: Sequence[psutil.Process], seconds: float) -> None:
        try:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            await self.pause(seconds)
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    # --- servers -------------------------------------------------------------------------------------------

    async def _strike_servers(self) -> None:
        chance = self._chance("server")
        spared_seconds = 0.0
        while await self._goes_on(chance, seconds_min=spared_seconds):
            number = chance.randrange(len(self._servers))
            server = self._servers[number].process
            if self._has_ended(server):
                return
            if chance.random() < SERVER_STOP_SHARE:
                await self._stop_server(number, chance)
                continue
            await self.kill_server(number)
            # On a busy machine it lives at least as long as it takes to start, or it would hardly ever be there.
            spared_seconds = self.start_seconds if len(self._servers) == 1 else 0.0
            if chance.random() < LONG_LIFE_SHARE:
                spared_seconds += LONG_LIFE_LEASES * self._lease_seconds

    async def kill_server(self, number: int) -> None:
        """SIGKILL to one server, which is started again at once."""
        self.faults["server killed"] += 1
        begun_at = _now()
        await self._servers[number].process.kill()
        await self._start_server(number)
        self._note_away(number, begun_at, was_stopped=False)

    async def _start_server(self, number: int) -> None:
        async with self._database_is_busy:
            server, started = self._servers[number], time.monotonic()
            await server.process.start()
            try:
                await until_up(server.process, server.port)
            except RuntimeError as error:
                self._verdict.add("broken", str(error))
            self.start_seconds = time.monotonic() - started

    async def _stop_server(self, number: int, chance: random.Random) -> None:
        """One server, or everything: what nobody can be heard by costs no run anything."""
        seconds = self._lease_seconds * chance.choice([0.3, 1.5])
        everything = chance.random() < 0.5
        self.faults["everything stopped" if everything else "server stopped"] += 1
        begun_at = _now()
        struck = self._servers if everything else [self._servers[number]]
        stopped = [one for server in struck for one in _all_of(server.process)]
        if not everything:
            await self._stop_for_a_while(stopped, seconds)
            self._note_away(number, begun_at, was_stopped=True)
            return
        async with self._database_is_busy:
            # Servers that just start are not there yet for their workers, but everything is.
            for worker in self._workers:
                stopped += _all_of(worker.process)
            await self._stop_for_a_while([*stopped, *self._database.processes()], seconds)

    def _note_away(self, number: int, begun_at: int, *, was_stopped: bool) -> None:
        now = _now()
        if len(self._servers) > 1 and now - begun_at > AWAY_LEASES_MIN * self._lease_seconds * 1_000_000:
            self.struck.away.append(Away(number, was_stopped, begun_at, now))

    # --- the database --------------------------------------------------------------------------------------

    async def _strike_database(self) -> None:
        """Nobody can be heard while it is away, so it costs no run anything."""
        chance = self._chance("database")
        troubles = {**self._database.troubles, "database stopped": self._stop_database}
        while await self._goes_on(chance, pauses=DATABASE_PAUSES):
            what = chance.choice(sorted(troubles))
            async with self._database_is_busy:
                self.faults[what] += 1
                await troubles[what](chance)

    async def _stop_database(self, chance: random.Random) -> None:
        await self._stop_for_a_while(
            self._database.processes(), self._lease_seconds * chance.choice([0.3, 1.5])
        )


def _strike(chance: random.Random) -> Strike:
    return chance.choices(list(STRIKE_SHARES), list(STRIKE_SHARES.values()))[0]


def _all_of(process: Process) -> list[psutil.Process]:
    return [psutil.Process(process.process_id), *process.children()]


def _now() -> int:
    return time.time_ns() // 1000
