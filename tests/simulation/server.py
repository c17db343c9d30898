"""The machine of the server: a store that stays, a clock that jumps, and server processes that come and go."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from contextvars import Context
from random import Random
from typing import Any, cast

import msgspec
from starlette.requests import Request as HttpRequest

from milepost.engine.announcements import Announcement
from milepost.engine.commands import Command
from milepost.engine.committer import GROUP_MAX, Committer
from milepost.engine.engine import Engine, Request
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineSettings
from milepost.errors import MilepostError, UnavailableError
from milepost.feed.hub import Hub
from milepost.protocol.endpoints import ATTEMPT_HEADER, OPEN, REQUEST_ID_HEADER, Endpoint
from milepost.reading.reader import Reader
from milepost.server.app import problem_response
from milepost.server.auth import Authenticator
from milepost.server.handlers.answers import WithToken
from milepost.server.handlers.table import Handlers
from milepost.store.database import Store
from milepost.upkeep.jobs import JOBS, UpkeepSettings
from milepost.upkeep.upkeep import Upkeep
from simulation.loop import process_of_code
from simulation.network import Network, Stream
from support.faults import faults
from support.world import START

KILL_STAGES = ("statement", "executed", "announced", "answered")


class Killed(BaseException):
    """The process is no more."""


class Machine:
    """What outlives a server process.

    Attributes:
        slept_seconds: for how long all machines have been asleep, which clocks that nobody sets do not count.
        is_deaf: what is announced meanwhile gets lost.
        statement_that_fails: the number of a statement of the next group, and in how many tries it fails; None when all is well.
        dies_at: where in the next group the process is killed; None when it is not.
        restart_later: called when it has died of itself.
        failed: called with what should not have happened.
        looked: called after each group, with its commands that were not refused and the workers that the server knows.
        started: called when a server process has started.
        clock_was_set: called when the wall clock was set.
        went_on: called when the server process goes on after it was stopped, with how long that was in microseconds.
    """

    restart_later: Callable[[], None]
    failed: Callable[[BaseException], None]
    looked: Callable[[Sequence[Command], Collection[str]], None]
    started: Callable[[], None]
    went_on: Callable[[int], None]
    clock_was_set: Callable[[float], None]

    def __init__(
        self, store: Store, settings: EngineSettings, network: Network, random: Random, group_seconds: float
    ) -> None:
        self.store = store
        self.settings = settings
        self.network = network
        self.random = random
        self.group_seconds = group_seconds
        self.clock_offset = 0
        self.slept_seconds = 0.0
        self._stopped_at = 0
        self.is_deaf = False
        self.statement_that_fails: tuple[int, int] | None = None
        self.dies_at: str | None = None
        self.process: ServerProcess | None = None
        self.starts = 0

    def clock(self) -> int:
        """Microseconds since 1970, as the machine has them."""
        return START + self.steady() + self.clock_offset

    def steady(self) -> int:
        """Microseconds of the clock that nobody sets."""
        return round((self.network.loop.time() - 1000) * 1_000_000)

    def lease_clock(self) -> float:
        """Seconds on the clock of workers that counts sleep."""
        return self.network.loop.time() + self.slept_seconds

    def start(self) -> None:
        """A new server process on the same store."""
        if self.process is None:
            self.starts += 1
            self.network.note("server", "starts")
            self.started()
            self.process = self.network.server = ServerProcess(self)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        process = self.process
        loop = self.network.loop
        if process is None or loop.is_stopped(process):
            return
        self.network.note("server", "stopped", seconds)
        loop.stop_process(process)

        self._stopped_at = self.steady()
        loop.call_later(seconds, lambda: self.process is process and self.go_on())

    def go_on(self) -> None:
        """SIGCONT."""
        loop = self.network.loop
        if self.process is not None and loop.is_stopped(self.process):
            self.network.note("server", "goes on")
            self.went_on(self.steady() - self._stopped_at)
            loop.continue_process(self.process)

    def set_clock(self, seconds: float) -> None:
        """The wall clock is set, by so much."""
        self.network.note("server", "has its clock set by", seconds)
        self.clock_offset += round(seconds * 1_000_000)
        self.clock_was_set(seconds)

    def kill(self) -> None:
        """SIGKILL: nothing but the store is left."""
        process, self.process, self.network.server = self.process, None, None
        if process is not None:
            self.network.note("server", "killed")
            process.die()


class SimulatedEngine(Engine):
    """The real one, with a machine that may fail under it."""

    machine: Machine
    # The engine carries out a group that failed command by command.
    _is_failing = False

    def execute(self, requests: Sequence[Request]) -> Any:
        try:
            return self._carry_out(requests)
        finally:
            self.machine.looked(
                [one.command for one in requests if not isinstance(one.result, Exception)],
                self.state.workers,
            )

    def _carry_out(self, requests: Sequence[Request]) -> Any:
        machine = self.machine
        failing, machine.statement_that_fails = machine.statement_that_fails, None
        if self._is_failing or (failing is None and machine.dies_at != "statement"):
            result = super().execute(requests)
        else:
            number, tries = failing or (machine.random.randint(1, 8), 0)
            self._is_failing = True
            with faults(machine.store, self._fails(number, tries)):
                result = super().execute(requests)
            self._is_failing = False
        if not self._is_failing and machine.dies_at in ("statement", "executed"):
            # Either it was to die later than the last statement, or just here.
            machine.dies_at = None
            raise Killed
        return result

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
        if self._is_due is not None and self._due_is_far:
            self._is_due.cancel()
            self._is_due = None
        if self._is_due is None:
            self._schedule(self.process.machine.random.uniform(0, self.process.machine.group_seconds), False)
        return await super().submit(command)

    def _schedule(self, seconds: float, is_far: bool) -> None:
        self._due_is_far = is_far
        self._is_due = self.process.loop.call_later(seconds, self._commit)

    def _commit(self) -> None:
        self._is_due = None
        process = self.process
        if process.is_dead:
            return
        group = self._take_group(process.machine.random.choice([1, 3, GROUP_MAX]))
        try:
            self._carry_out(group)
        except Killed:
            process.machine.kill()
            process.machine.restart_later()
            return
        if process.machine.dies_at == "answered":
            process.machine.dies_at = None
            process.loop.call_soon(process.machine.kill)
            process.machine.restart_later()
        if self._waiting:
            self._schedule(process.machine.random.uniform(0, process.machine.group_seconds), False)
        elif (wake_at := self._engine.wake_at()) is not None:
            self._schedule(max(0.0001, (wake_at - self._steady()) / 1_000_000), True)


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
        self.hub = Hub()
        self.engine = SimulatedEngine(machine.store, machine.settings, machine.clock, machine.steady)
        self.engine.machine = machine
        # Ids by chance would not be the same again.
        self.engine.state.identifiers._random = Random(f"{machine.starts}")
        self.committer = SimulatedCommitter(self.engine, machine.steady, self._announce)
        self.committer.process = self
        reader = Reader(machine.store)
        settings = cast(Any, machine.settings)
        self._authenticator = Authenticator("key", lambda: machine.clock() / 1_000_000)
        self.handlers = Handlers(
            settings,
            self.committer,
            reader,
            self.hub,
            self._authenticator,
            machine.clock,
            "simulated",
            queued_reason=self.engine.state.queued_reason,
        )
        kept = UpkeepSettings(
            lease_seconds=machine.settings.lease_seconds,
            grace_seconds=machine.settings.grace_seconds,
            history_days=30,
            stream_days=30,
        )
        self.upkeep = Upkeep(kept, self.committer, self.engine, machine.store)
        self._spawn(self._upkeep())

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
                async for frame in events:
                    await stream.put(frame)
            cleanly = True
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

    def _announce(self, announcement: Announcement) -> None:
        if self.machine.is_deaf:
            self.machine.network.note("server", "announcement lost")
        else:
            self.loop.call_soon(self.hub.announce, announcement)
        if self.machine.dies_at == "announced":
            self.machine.dies_at = None
            raise Killed

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self.loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.machine.failed(error)


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
