"""The machines of the servers: a store that stays, a clock that jumps, and server processes that come and go."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol, cast

import msgspec
from starlette.requests import Request as HttpRequest

from milepost.engine.announcements import Announcement
from milepost.engine.commands import Command
from milepost.engine.committer import GROUP_MAX, Committer
from milepost.engine.engine import Engine, Request
from milepost.engine.jobs import JobName
from milepost.engine.state import CLOCKS_APART_MICROSECONDS, EngineSettings
from milepost.errors import MilepostError, UnavailableError
from milepost.feed.hub import Hub
from milepost.protocol.endpoints import ATTEMPT_HEADER, OPEN, REQUEST_ID_HEADER, Endpoint
from milepost.reading.reader import Reader
from milepost.server.app import problem_response
from milepost.server.auth import Authenticator
from milepost.server.clocks import DatabaseClock
from milepost.server.handlers.answers import WithToken
from milepost.server.handlers.table import Handlers
from milepost.store.database import Store
from milepost.store.listening import LOOK_SECONDS
from milepost.upkeep.jobs import JOBS, UpkeepSettings
from milepost.upkeep.upkeep import Upkeep
from simulation.database import Database, SharedStore
from simulation.loop import process_of_code
from simulation.network import URL, Network, Stream
from support.faults import faults
from support.world import START

KILL_STAGES = ("statement", "executed", "announced", "answered")


class Killed(BaseException):
    """The process is no more."""


@dataclass(frozen=True)
class ServersPlan:
    """What all servers have in common.

    Attributes:
        clocks_apart: seconds by which a server may be wrong about the database's clock, each way.
        clock_seconds: so often each reads the database's clock.
        hint_seconds_max: how long the word that something was committed may be under way.
    """

    group_seconds: float = 0.0
    clocks_apart: float = 0.0
    clock_seconds: float = 60.0
    hint_seconds_max: float = 0.004


class Witness(Protocol):
    """Who looks at what servers do."""

    def look(
        self,
        server: str,
        commands: Sequence[Command],
        heard: Sequence[Command],
        known_workers: Collection[str],
    ) -> None:
        """A server has carried out a transaction, or has tried to: its commands that were not refused, those of them that are known to
        be committed, and the workers that the server knows."""
        ...

    def look_at_claims(self, tasks: Collection[str], now: int) -> None:
        """Claims wait for runs of these tasks, each at a server that is at work; the clocks of these servers are not behind `now`."""
        ...

    def is_disturbed(self) -> None:
        """Something happens to a server, so that claims may have to wait."""
        ...

    def server_starts(self, server: str) -> None:
        """A server process has started."""
        ...

    def server_goes_on(self, server: str, stopped_microseconds: int) -> None:
        """A server process goes on after it was stopped."""
        ...

    def clock_was_set(self, seconds: float) -> None:
        """The wall clock was set by so much."""
        ...

    def fail(self, message: str) -> None:
        """Something is wrong."""
        ...


class Servers:
    """The machines of the servers: one on a database of its own, or several on one.

    Attributes:
        slept_seconds: for how long all machines have been asleep, which clocks that nobody sets do not count.
        restart_later: called with a machine whose server has died of itself.
        failed: called with what should not have happened.
    """

    restart_later: "Callable[[Machine], None]"
    failed: Callable[[BaseException], None]
    witness: Witness

    def __init__(
        self,
        database: Database,
        settings: EngineSettings,
        network: Network,
        plan: ServersPlan,
        *,
        count: int,
        seed: object,
    ) -> None:
        self.settings = settings
        self.network = network
        self.plan = plan
        self.clock_offset = 0
        self.slept_seconds = 0.0
        self.are_several = count > 1
        names = ["server"] if count == 1 else [f"server{number}" for number in range(1, count + 1)]
        stores = [database.store] if count == 1 else database.shared[:count]
        self.machines = [
            Machine(self, name, store, Random(f"{seed}/{name}"))
            for name, store in zip(names, stores, strict=True)
        ]

    def processes(self) -> "list[ServerProcess | None]":
        """The server process of each machine, where there is one."""
        return [machine.process for machine in self.machines]

    def clock(self) -> int:
        """Microseconds since 1970, as the only machine has them, or the database that several servers share."""
        return START + self.steady() + self.clock_offset

    def steady(self) -> int:
        """Microseconds of the clock that nobody sets."""
        return round((self.network.loop.time() - 1000) * 1_000_000)

    def lease_clock(self) -> float:
        """Seconds on the clock of workers that counts sleep."""
        return self.network.loop.time() + self.slept_seconds

    def set_clock(self, seconds: float) -> None:
        """The wall clock is set, by so much."""
        self.network.note("servers", "have their clock set by", seconds)
        self.clock_offset += round(seconds * 1_000_000)
        self.witness.clock_was_set(seconds)
        self.witness.is_disturbed()

    def start(self) -> None:
        """A server on each machine where there is none."""
        for machine in self.machines:
            machine.start()

    def kill(self) -> None:
        """No server is left."""
        for machine in self.machines:
            machine.kill()

    def calm_down(self) -> None:
        """Nothing fails from now on."""
        for machine in self.machines:
            machine.calm_down()

    def looked(
        self,
        machine: "Machine",
        commands: Sequence[Command],
        heard: Sequence[Command],
        known_workers: Collection[str],
        *,
        is_done: bool,
    ) -> None:
        """A server has carried out a transaction, or has tried to (`is_done` is false)."""
        witness = self.witness
        witness.look(machine.name, commands, heard, known_workers)
        if not is_done:
            witness.is_disturbed()
            return
        at_work = [one.process for one in self.machines if one.process is not None and one.is_at_work]
        tasks = {
            task
            for process in at_work
            for parked in process.engine.state.parked
            if parked.claim.slots > 0
            for task in parked.tasks
        }
        clocks = [process.engine.now for process in at_work]
        if max(clocks, default=0) - min(clocks, default=0) > CLOCKS_APART_MICROSECONDS:
            # The database's clock was set, and some have not read it since: a run that is due for one is not for another.
            witness.is_disturbed()
        elif tasks:
            witness.look_at_claims(tasks, min(clocks))

    def tell(self, teller: "Machine") -> None:
        """A server has committed something: the others are woken, where they hear of it."""
        loop = self.network.loop
        for machine in self.machines:
            process = machine.process
            if machine is not teller and process is not None and not machine.hears_nothing:
                seconds = machine.random.uniform(0.0003, self.plan.hint_seconds_max)
                loop.call_later(seconds, process.wake, context=Context())


class Machine:
    """The machine of a server: what outlives a server process.

    Attributes:
        is_deaf: what is announced meanwhile gets lost on the way to the feed.
        hears_nothing: the word that others have committed something gets lost.
        statement_that_fails: the number of a statement of the next group, and in how many tries it fails; None when all is well.
        dies_at: where in the next group the process is killed; None when it is not.
    """

    def __init__(self, servers: Servers, name: str, store: Store, random: Random) -> None:
        self.servers = servers
        self.network = servers.network
        self.name = name
        self.store = store
        self.random = random
        # When the machine was switched on: of clocks that nobody sets each has its own.
        self._boot = random.randrange(10**12) if servers.are_several else 0
        self._stopped_at = 0
        self.is_deaf = False
        self.hears_nothing = False
        self.statement_that_fails: tuple[int, int] | None = None
        self.dies_at: str | None = None
        self.process: ServerProcess | None = None
        self.starts = 0

    def steady(self) -> int:
        """Microseconds of the clock of this machine that nobody sets."""
        return self.servers.steady() + self._boot

    def read_clock(self) -> int:
        """The database's clock as it is read from here, microseconds since 1970."""
        if isinstance(self.store, SharedStore) and self.store.is_cut_off:
            raise UnavailableError("the database cannot be reached")
        apart = self.servers.plan.clocks_apart
        return self.servers.clock() + round(self.random.uniform(-apart, apart) * 1_000_000)

    @property
    def is_at_work(self) -> bool:
        """True when nothing keeps its server from its work."""
        process = self.process
        is_cut_off = isinstance(self.store, SharedStore) and self.store.is_cut_off
        is_failing = self.statement_that_fails is not None or self.dies_at is not None
        return (
            process is not None
            and not self.network.loop.is_stopped(process)
            and not is_cut_off
            and not is_failing
        )

    def start(self) -> None:
        """A new server process on the same store."""
        if self.process is None:
            self.starts += 1
            self.network.note(self.name, "starts")
            self.servers.witness.server_starts(self.name)
            self.servers.witness.is_disturbed()
            if isinstance(self.store, SharedStore):
                self.store.is_cut_off = self.store.loses_answer = False
            self.process = ServerProcess(self)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        process = self.process
        loop = self.network.loop
        if process is None or loop.is_stopped(process):
            return
        self.network.note(self.name, "stopped", seconds)
        loop.stop_process(process)
        self.servers.witness.is_disturbed()

        self._stopped_at = self.servers.steady()
        loop.call_later(seconds, lambda: self.process is process and self.go_on())

    def go_on(self) -> None:
        """SIGCONT."""
        loop = self.network.loop
        if self.process is not None and loop.is_stopped(self.process):
            self.network.note(self.name, "goes on")
            self.servers.witness.server_goes_on(self.name, self.servers.steady() - self._stopped_at)
            self.servers.witness.is_disturbed()
            loop.continue_process(self.process)

    def cut_off(self, seconds: float) -> None:
        """The server does not reach the database for so long."""
        store = self.store
        if isinstance(store, SharedStore) and self.process is not None:
            self.network.note(self.name, "is cut off from the database", seconds)
            store.is_cut_off = True
            self.servers.witness.is_disturbed()
            self.network.loop.call_later(seconds, self._reaches_again, self.process, context=Context())

    def _reaches_again(self, process: "ServerProcess") -> None:
        if self.process is process and isinstance(self.store, SharedStore):
            self.store.is_cut_off = False
            self.servers.witness.is_disturbed()

    def lose_hints(self, *, seconds: float, noticed_after: float) -> None:
        """It is not told any more that others have committed something. It notices so after a while, and looks by itself then."""
        process = self.process
        if process is None or self.hears_nothing:
            return
        self.network.note(self.name, "hears nothing of the others", seconds, noticed_after)
        self.hears_nothing = True

        def hear() -> None:
            self.hears_nothing = False

        self.network.loop.call_later(seconds, hear, context=Context())
        process.look_often_after(noticed_after)

    def calm_down(self) -> None:
        """Nothing fails here from now on."""
        self.is_deaf = self.hears_nothing = False
        self.statement_that_fails = self.dies_at = None
        if isinstance(self.store, SharedStore):
            self.store.is_cut_off = self.store.loses_answer = False
        self.go_on()
        self.start()

    def kill(self) -> None:
        """SIGKILL: nothing but the store is left."""
        process, self.process = self.process, None
        if process is not None:
            self.network.note(self.name, "killed")
            self.servers.witness.is_disturbed()
            process.die()

    def move(self) -> None:
        """The next server process is on another machine, whose clock goes on from somewhere else."""
        self._boot = self.random.randrange(10**12)


class SimulatedEngine(Engine):
    """The real one, with a machine that may fail under it."""

    machine: Machine
    # The engine carries out a group that failed command by command.
    _is_failing = False
    _has_told = False

    def execute(self, requests: Sequence[Request]) -> Any:
        self._has_told = False
        try:
            result = self._carry_out(requests)
            if self.machine.dies_at == "executed":
                self.machine.dies_at = None
                raise Killed
            return result
        finally:
            if self._has_told:
                self.machine.servers.tell(self.machine)

    def _execute(self, requests: Sequence[Request]) -> Any:
        """One transaction; a group that failed is carried out in several."""
        is_done = False
        try:
            result = super()._execute(requests)
            is_done = True
            return result
        finally:
            commands = [one.command for one in requests if not isinstance(one.result, Exception)]
            self.machine.servers.looked(
                self.machine, commands, commands if is_done else [], self.state.workers, is_done=is_done
            )

    def _carry_out(self, requests: Sequence[Request]) -> Any:
        machine = self.machine
        failing, machine.statement_that_fails = machine.statement_that_fails, None
        if isinstance(machine.store, SharedStore) and machine.store.fails:
            return super().execute(requests)
        if self._is_failing or (failing is None and machine.dies_at != "statement"):
            return super().execute(requests)
        number, tries = failing or (machine.random.randint(1, 8), 0)
        self._is_failing = True
        try:
            with faults(machine.store, self._fails(number, tries)):
                result = super().execute(requests)
        finally:
            self._is_failing = False
        if machine.dies_at == "statement":
            # It was to die later than the last statement: just here.
            machine.dies_at = "executed"
        return result

    def _tell_others(self, *given: Any) -> int | None:
        number = super()._tell_others(*given)
        self._has_told |= number is not None
        return number

    def _fails(self, number: int, tries: int) -> Callable[[int, str], bool]:
        def fails(seen: int, statement: str) -> bool:
            nonlocal tries
            if self.machine.dies_at == "statement" and seen == number:
                self.machine.dies_at = None
                raise Killed
            if tries and (seen >= number or statement == "COMMIT"):
                tries -= 1
                return True
            return False

        return fails


class SimulatedCommitter(Committer):
    """The real one without its thread: groups gather for as long as the seed says."""

    process: "ServerProcess"
    _is_due: asyncio.TimerHandle | None = None

    async def submit(self, command: Command) -> Any:
        self._commit_soon()
        return await super().submit(command)

    async def submit_all(self, commands: Sequence[Command]) -> list[Any]:
        self._commit_soon()
        return await super().submit_all(commands)

    def _commit_soon(self) -> None:
        if self._is_due is not None and self._due_is_far:
            self._is_due.cancel()
            self._is_due = None
        if self._is_due is None:
            machine = self.process.machine
            self._schedule(machine.random.uniform(0, machine.servers.plan.group_seconds), False)

    def _schedule(self, seconds: float, is_far: bool) -> None:
        self._due_is_far = is_far
        self._is_due = self.process.loop.call_later(seconds, self._commit)

    def _commit(self) -> None:
        self._is_due = None
        process = self.process
        machine = process.machine
        if process.is_dead:
            return
        group = self._take_group(machine.random.choice([1, 3, GROUP_MAX]))
        try:
            self._carry_out(group)
        except Killed:
            self._die()
            return
        if machine.dies_at == "answered":
            machine.dies_at = None
            process.loop.call_soon(machine.kill)
            machine.servers.restart_later(machine)
        if self._waiting:
            self._schedule(machine.random.uniform(0, machine.servers.plan.group_seconds), False)
        else:
            self._schedule_waking()

    def look(self) -> None:
        """Others may have committed something."""
        if self.process.is_dead:
            return
        try:
            has_work = self._catch_up()
        except Killed:
            self._die()
            return
        if self._is_due is not None and (has_work or self._due_is_far):
            self._is_due.cancel()
            self._is_due = None
        if has_work:
            self._commit()
        elif self._is_due is None:
            self._schedule_waking()

    def _schedule_waking(self) -> None:
        if (wake_at := self._engine.wake_at()) is not None:
            self._schedule(max(0.0001, (wake_at - self._steady()) / 1_000_000), True)

    def _die(self) -> None:
        machine = self.process.machine
        machine.kill()
        machine.servers.restart_later(machine)


class Handling:
    """A request that the server works on. `answer` fails with the server; `gone` says that nobody waits for it any more."""

    def __init__(self, answer: "asyncio.Future[tuple[int, bytes]]") -> None:
        self.answer = answer
        self.gone = asyncio.Event()


class ServerProcess:
    """One life of the server: the real handlers, committer, engine, hub and streams on the machine's store."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.loop = machine.network.loop
        self.is_dead = False
        self._context = Context()
        self._context.run(process_of_code.set, self)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handlings: dict[Handling, None] = {}
        self._streams: dict[Stream, None] = {}
        self.hub = Hub(hears_late=machine.servers.are_several)
        servers, settings = machine.servers, machine.servers.settings
        clock: Callable[[], int] = servers.clock
        life = f"{machine.starts}"
        if servers.are_several:
            life = f"{machine.name}.{machine.starts}"
            self._database_clock = clock = DatabaseClock(machine.read_clock, machine.steady)
            self._spawn(self._keep_reading(self._database_clock))
        self.engine = SimulatedEngine(
            machine.store, settings, clock, machine.steady, server_id=life if servers.are_several else None
        )
        self.engine.machine = machine
        # Ids by chance would not be the same again.
        self.engine.state.identifiers._random = Random(life)
        self.committer = SimulatedCommitter(self.engine, machine.steady, self._announce)
        self.committer.process = self
        reader = Reader(machine.store, known_queues=lambda: self.engine.state)
        self._authenticator = Authenticator("key", lambda: clock() / 1_000_000)
        self.handlers = Handlers(
            cast(Any, SimpleNamespace(**msgspec.structs.asdict(settings), public_url=URL)),
            self.committer,
            reader,
            self.hub,
            self._authenticator,
            clock,
            "simulated",
            queued_reason=self.engine.state.queued_reason,
            similar_task=self.engine.state.similar_task,
        )
        kept = UpkeepSettings(
            lease_seconds=settings.lease_seconds,
            grace_seconds=settings.grace_seconds,
            history_days=30,
            stream_days=30,
        )
        self.upkeep = Upkeep(kept, self.committer, self.engine, machine.store)
        self._spawn(self._upkeep())
        # What this server has heard of each document: the newest version.
        self._told: dict[str, int] = {}

    def wake(self) -> None:
        """Another server may have committed something."""
        if not self.is_dead:
            self.loop.call_soon(self.committer.look, context=self._context.copy())

    def look_often_after(self, seconds: float) -> None:
        """Look without being told, as long as it is not."""
        self._spawn(self._look_often(seconds))

    def die(self) -> None:
        self.is_dead = True
        self.loop.continue_process(self)
        for handling in list(self._handlings):
            if not handling.answer.done():
                handling.answer.set_exception(_reset())
        for stream in list(self._streams):
            stream.end(cleanly=False)
        for task in list(self._tasks):
            task.cancel()

    def receive(
        self, endpoint: Endpoint, parameters: dict[str, str], headers: Any, data: bytes | None
    ) -> Handling:
        """A request has arrived."""
        handling = Handling(self.loop.create_future())
        self._handlings[handling] = None
        self._spawn(self._handle(handling, endpoint, parameters, headers, data))
        return handling

    def open(
        self,
        endpoint: Endpoint,
        parameters: dict[str, str],
        query: str,
        headers: Any,
        data: bytes | None,
        stream: Stream,
    ) -> "asyncio.Future[tuple[int, bytes]]":
        """A reader of an event stream has come; status, and the problem where there is one."""
        opened: asyncio.Future[tuple[int, bytes]] = self.loop.create_future()
        self._streams[stream] = None
        request = _http_request(endpoint, parameters, headers, data, asyncio.Event(), query)
        self._authenticator.check(request, OPEN)
        task = self._spawn(self._send(endpoint, request, stream, opened))
        stream.abandoned = task.cancel
        return opened

    def forget_documents(self) -> None:
        """The cache of hot documents may vanish at any moment."""
        documents = self.engine._documents
        documents.forget(list(documents._documents))

    async def _handle(
        self,
        handling: Handling,
        endpoint: Endpoint,
        parameters: dict[str, str],
        headers: Any,
        data: bytes | None,
    ) -> None:
        request = _http_request(endpoint, parameters, headers, data, handling.gone)
        self._authenticator.check(request, OPEN)
        try:
            try:
                answer = await self.handlers.handlers[endpoint.name](request)
                if isinstance(answer, WithToken):
                    answer = answer.message
                status, body = endpoint.status, msgspec.json.encode(answer)
            except MilepostError as error:
                response = problem_response(error)
                status, body = response.status_code, bytes(response.body)
            if not handling.answer.done():
                handling.answer.set_result((status, body))
        finally:
            self._handlings.pop(handling, None)
            if not handling.answer.done():
                handling.answer.set_exception(_reset())

    async def _send(
        self,
        endpoint: Endpoint,
        request: HttpRequest,
        stream: Stream,
        opened: "asyncio.Future[tuple[int, bytes]]",
    ) -> None:
        events = cast("AsyncGenerator[bytes]", self.handlers.streams[endpoint.name](request))
        cleanly = False
        try:
            async with aclosing(events):
                try:
                    await stream.put(await anext(events))
                except MilepostError as error:
                    response = problem_response(error)
                    _settle(opened, (response.status_code, bytes(response.body)))
                    return
                _settle(opened, (200, b""))
                try:
                    async for frame in events:
                        await stream.put(frame)
                    cleanly = True
                except UnavailableError:
                    # The connection breaks, and the reader comes back.
                    self.machine.network.note(self.machine.name, "cannot go on with", endpoint.name)
        finally:
            self._streams.pop(stream, None)
            stream.end(cleanly=cleanly)
            if not opened.done():
                opened.set_exception(_reset())

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(JOBS[JobName.LEASES].period(self.upkeep.settings))
            with contextlib.suppress(UnavailableError):
                await self.upkeep.do(JobName.LEASES)
                await self.upkeep.do(JobName.STOPS)

    async def _keep_reading(self, clock: DatabaseClock) -> None:
        while True:
            await asyncio.sleep(self.machine.servers.plan.clock_seconds)
            with contextlib.suppress(UnavailableError):
                clock.read()

    async def _look_often(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self.machine.hears_nothing:
            self.committer.look()
            await asyncio.sleep(LOOK_SECONDS)
        self.committer.look()

    def _announce(self, announcement: Announcement) -> None:
        self._judge_announced(announcement)
        if self.machine.is_deaf:
            self.machine.network.note(self.machine.name, "announcement lost")
        else:
            self.loop.call_soon(self.hub.announce, announcement)
        if self.machine.dies_at == "announced":
            self.machine.dies_at = None
            raise Killed

    def _judge_announced(self, announcement: Announcement) -> None:
        """Each server tells its feed of every step of a document, whoever has committed it, once and in order."""
        if announcement.is_gap:
            self._told.clear()
        for changed in announcement.runs:
            run_id = changed.row.id
            for change in changed.changes:
                before = self._told.get(run_id, change.version - 1)
                if change.version != before + 1:
                    self.machine.servers.witness.fail(
                        f"{self.machine.name} is told version {change.version} of {run_id} after version {before}"
                    )
                self._told[run_id] = change.version

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self.loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.machine.servers.failed(error)


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _reset() -> Exception:
    return ConnectionResetError("the server is gone")


def _http_request(
    endpoint: Endpoint,
    parameters: dict[str, str],
    headers: Any,
    data: bytes | None,
    gone: asyncio.Event,
    query: str = "",
) -> HttpRequest:
    sent = [(name, (headers or {}).get(name)) for name in (REQUEST_ID_HEADER, ATTEMPT_HEADER)]
    scope = {
        "type": "http",
        "method": endpoint.method,
        "path": endpoint.path.format(**parameters),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in sent if value is not None],
        "path_params": dict(parameters),
    }
    parts = [{"type": "http.request", "body": data or b"", "more_body": False}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return HttpRequest(scope, receive)
