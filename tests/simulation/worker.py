"""A worker process: the real link, on the simulation's loop, and user code that does what the seed says."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import Context, ContextVar, copy_context
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.queue import Queue
from milepost.errors import (
    AbortTaskRun,
    MetadataError,
    MetadataFlushError,
    MilepostError,
    UnavailableError,
)
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.protocol import endpoints
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.triggering import TriggerOptions, TriggerRequest
from milepost.protocol.work import ClaimedRun, ClaimRequest, InboxFrame
from milepost.sdk.attempt import run_attempt
from milepost.sdk.hooks import HookName
from milepost.sdk.metadata import metadata
from milepost.sdk.retry import Retry
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_attempt import AttemptStreams
from milepost.sdk.streams_pipes import AsyncPipe
from milepost.sdk.task import Task
from milepost.sdk.triggering import WaitForEnd
from milepost.worker import running
from milepost.worker.black_box import BlackBox
from milepost.worker.channel import Channel, Refused, Unreachable
from milepost.worker.control import Order
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.log_book import AttemptLog
from milepost.worker.outbox import HeldRun
from simulation.loop import process_of_code
from simulation.network import URL, Connections, Peer
from simulation.records import Attempt, RecordingBuffer, line_size
from simulation.stream_code import StreamCode
from simulation.supervisor import Supervisor
from simulation.users import SimulatedConnection, perform
from simulation.wait_code import WaitCode
from simulation.watch import Watch

if TYPE_CHECKING:
    from simulation.simulation import Simulation


LOGGER = "user"
# How the names of runs begin that only read.
READER = "reader"


_code: ContextVar["UserCode"] = ContextVar("user_code")


def make_task(
    id: str, retry: RetryRule, concurrency: int | None, max_duration: float | None = None
) -> Task[Any, Any]:
    """A task whose code is what the seed says, with a hook of each kind that notes its call."""
    queue = Queue(f"task/{id}", concurrency=concurrency)
    own = Retry(
        retry.max_attempts,
        factor=retry.factor,
        min_delay=retry.min_delay_seconds,
        max_delay=retry.max_delay_seconds,
        jitter=retry.jitter,
    )
    made = Task[Any, Any](_work, id=id, retry=own, queue=queue, metadata=None, max_duration=max_duration)
    names: list[HookName] = [
        "on_start_attempt", "on_start", "on_success", "on_failure", "on_complete", "on_cancel", "catch_error",
        "on_wait", "on_resume",
    ]  # fmt: skip
    for name in names:
        made._add(name, _hook(name))
    return made


async def _work(name: str) -> Any:
    return await _code.get().run()


def _hook(name: HookName) -> Callable[[], Coroutine[Any, Any, None]]:
    async def noted() -> None:
        code = _code.get()
        code.hook(name)
        if code.attempt.is_closing:
            await code.take_time()

    return noted


class SimulatedChannel(Channel):
    """The real one, on a network that is none."""

    connections: Connections
    fail: Callable[[str], None]

    async def call(self, endpoint: Endpoint, body: Any = None, **given: Any) -> Any:
        answer = await super().call(endpoint, body, **given)
        if endpoint is endpoints.CLAIM_RUNS:
            slots = msgspec.json.decode(body, type=ClaimRequest).slots
            if len(answer.runs) > slots:
                self.fail(f"{given} has asked for {slots} runs and is given {len(answer.runs)}")
        return answer

    async def __aenter__(self) -> Self:
        self._connections = cast(Any, self.connections)
        return self


class SimulatedLink(WorkerLink):
    """The real one, on the loop that is there already."""

    watch: Watch
    slots: int
    # Since when code here waits for what it waits for.
    waits_since: dict[str, int]

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        self.waits_since[target_id] = self.watch.now
        return super().wait_for(scope, target_id)

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        """The code executes nothing until it comes back."""
        attempt: Attempt = scope.buffer.attempt  # type: ignore[attr-defined]
        back = super().step_aside(scope)
        self.watch.pauses(attempt)

        def goes_on(done: Future[None]) -> None:
            if not done.cancelled() and done.exception() is None and not scope.is_lost:
                self.watch.goes_on(attempt, slots=self.slots)

        def come_back(at_once: bool) -> Future[None]:
            future = back(at_once)
            if not at_once:
                # Who is cancelled goes on whatever the limits say, and is not judged by them.
                future.add_done_callback(goes_on)
            return future

        return come_back

    async def live(self) -> None:
        error: BaseException | None = None
        try:
            await self._run()
        except Refused as raised:
            error = raised
        self._end(error)


class WorkerProcess:
    """One life of a worker. A `Host` of its link."""

    def __init__(self, simulation: "Simulation", name: str, supervisor: Supervisor) -> None:
        random = Random(f"{simulation.seed}/{name}")
        self.name = name
        self.worker_id = f"worker_{name}"
        self._simulation = simulation
        self._loop = simulation.loop
        self._random = random
        self.supervisor = supervisor
        self.concurrency = random.choice([1, 2, 5])
        self.alone_seconds = Random(f"{simulation.seed}/{name}/alone").choice([60.0, 60.0, 1.0])
        self._context = Context()
        self._context.run(process_of_code.set, self)
        self.black_box = BlackBox()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: dict[HeldRun, tuple[asyncio.Task[Any], UserCode]] = {}
        self.peer = Peer(name, Random(f"{simulation.seed}/{name}/network"), self._killed_by_fault)
        self._connections = Connections(simulation.network, self.peer)
        self.connection = SimulatedConnection(self._connections)
        self._link = SimulatedLink(
            LinkOptions(
                api_url=URL,
                secret_key="key",
                worker_id=self.worker_id,
                name=name,
                tasks=[task.describe() for task in simulation.tasks.values()],
                concurrency=self.concurrency,
                flush_interval_seconds=random.choice([0.0, 0.05, 0.05, 0.5]),
                grace_seconds=random.choice([0.1, 5.0]),
                # Sometimes so short that others join.
                alone_seconds=self.alone_seconds,
            ),
            self,
            asyncio.new_event_loop,
            open_channel=self._open_channel,
            black_box=self.black_box,
            clock=simulation.servers.lease_clock,
        )
        self._link.watch, self._link.slots = simulation.watch, self.concurrency
        self._link.waits_since = {}
        self._note_what_is_told()
        self._note_what_is_learnt()
        self._spawn(self._link.live())

    def _note_what_is_told(self) -> None:
        book, records = self._link._book, self._simulation.records
        add = book.add

        def noted(log: AttemptLog, level: str, message: str, logger: str) -> None:
            if logger != LOGGER:
                records.told[log.run_id, log.attempt] += 1
                records.told_bytes[log.run_id, log.attempt] += line_size(message)
            add(log, level, message, logger)

        book.add = noted  # type: ignore[method-assign]

    def _note_what_is_learnt(self) -> None:
        holding, watch = self._link._holding, self._simulation.watch
        target_ended, hear = holding.target_ended, holding.hear

        def noted(target_id: str) -> None:
            if target_id in holding.waits._targets and not self.peer.is_dead:
                watch.learns_of_end(self.name, target_id, self._link.waits_since[target_id])
            target_ended(target_id)

        def heard(frame: InboxFrame) -> None:
            for run_id in frame.resumed:
                watch.learns_that_it_may(self.name, run_id)
            hear(frame)

        holding.target_ended = noted  # type: ignore[method-assign]
        holding.hear = heard  # type: ignore[method-assign]

    @property
    def has_lines_to_send(self) -> bool:
        """True while lines of logs wait or are under way."""
        return not self._link._book.is_empty

    @property
    def is_idle(self) -> bool:
        """True when it holds no run and all its slots are free."""
        return not self._link._holding and not self._running and not self._link._holding._slots.held

    def kill(self) -> None:
        """SIGKILL: whatever is in memory is gone. The supervisor, if it lives, tells the server."""
        if not self.peer.is_dead:
            self._simulation.note(self.name, "killed")
            self._die("was killed by SIGKILL")

    def _die(self, how: str) -> None:
        self._end()
        self.supervisor.executor_died(self, how)

    def drain(self) -> None:
        """SIGTERM, or the end of the line to the supervisor."""
        self._simulation.note(self.name, "drains")
        self._context.copy().run(self._link.order, Order.DRAIN)

    def _killed_by_fault(self) -> None:
        if len(self._simulation.workers) > 1 or self._random.random() < 0.5:
            self.kill()

    def _end(self) -> None:
        attempts = [code.attempt for _, code in self._running.values()]
        self._simulation.watch.process_dies(self.name, self.worker_id, attempts)
        self.peer.is_dead = True
        self._simulation.records.gone.add(self.name)
        self._loop.continue_process(self)
        for held in self._running:
            # So that nothing of it does anything more.
            held.scope.is_lost = True
            if isinstance(held.scope.streams, AttemptStreams):
                for pipe in list(held.scope.streams._pipes):
                    if isinstance(pipe, AsyncPipe) and pipe._pump_task is not None:
                        pipe._pump_task.cancel()
        for task in list(self._tasks):
            task.cancel()
        self._simulation.worker_has_ended(self)

    def _open_channel(self, api_url: str, secret_key: str) -> Channel:
        channel = SimulatedChannel(api_url, secret_key)
        channel.connections = self._connections
        channel.fail = self._simulation.watch.fail
        return channel

    def _spawn(self, work: Coroutine[Any, Any, None], context: Context | None = None) -> "asyncio.Task[None]":
        task = self._loop.create_task(work, context=context or self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._simulation.failed(error)

    # --- what the link asks ------------------------------------------------------------------------------------

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        """See `Host`."""
        buffer = RecordingBuffer.of(run, limit=metadata_size_max)
        assert isinstance(buffer, RecordingBuffer)
        buffer.attempt = Attempt(
            run.id,
            run.attempt,
            self.name,
            worker_id=self.worker_id,
            charged_before=run.charged,
            queue=run.queue,
            is_apart=run.is_apart,
            is_closing=run.closing is not None,
            alone_seconds=self.alone_seconds * 2 ** (run.attempt - 1),
        )
        self._simulation.records.attempts.append(buffer.attempt)
        self._simulation.note(self.name, "claimed", run.id, run.attempt)
        return HeldRun(RunScope(run, buffer, self._link), self._simulation.tasks.get(run.task))

    def start(self, runs: Sequence[HeldRun]) -> None:
        """See `Host`."""
        for held in runs:
            code = UserCode(self._simulation, self, held.scope)
            code.attempt.started_at = self._simulation.servers.steady()
            self._running[held] = self._spawn(self._run(held, code)), code

    async def _run(self, held: HeldRun, code: "UserCode") -> None:
        """As the executor does it on its loop."""
        _code.set(code)
        assert held.task is not None
        try:
            outcome = await run_attempt(held.task, held.scope.run, held.scope)
        except BaseException as error:
            if self.peer.is_dead:
                raise
            outcome = running._stray_outcome(held.task, held, error)
        if self.peer.is_dead:
            return
        del self._running[held]
        code.attempt.is_over_early |= held.scope.is_lost
        code.end(outcome)
        self._simulation.note(self.name, "ends", held.scope.run.id, held.scope.run.attempt)
        self._link.finished(held, outcome)

    def interrupt(self, run: HeldRun) -> None:
        """See `Host`. Code in a thread cannot be stopped, and goes on unheard."""
        self._simulation.note(self.name, "has lost", run.scope.run.id, run.scope.run.attempt)
        run.scope.is_lost = True
        if run in self._running:
            _, code = self._running[run]
            code.attempt.is_over_early = True
            if not code.is_in_thread:
                self._loop.call_soon(running._cancel, run, context=self._context.copy())

    def stop(self, run: HeldRun) -> None:
        """See `Host`."""
        self._simulation.note(self.name, "is to end", run.scope.run.id, run.scope.run.attempt)
        if run in self._running and not self._running[run][1].is_in_thread:
            self._loop.call_soon(running._stop, run, context=self._context.copy())

    def left_running(self, run: HeldRun) -> None:
        """See `Host`."""
        self._simulation.note(self.name, "has left running", run.scope.run.id, run.scope.run.attempt)

    def waits(self, *, waits: bool) -> None:
        """See `Host`."""

    def registered(self) -> None:
        """See `Host`."""

    def notice(self, message: str) -> None:
        """See `Host`."""
        self._simulation.note(self.name, message)

    def server_is_away(self, reason: str) -> None:
        """See `Host`."""
        self._simulation.note(self.name, "does not reach the server", reason)

    def server_is_back(self, away_seconds: float) -> None:
        """See `Host`."""
        self._simulation.note(self.name, "reaches the server again", away_seconds)

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """See `Host`."""
        self._simulation.note(self.name, "left", error, abandoned)
        if not self.peer.is_dead:
            self._end()
            if isinstance(error, Unreachable):
                self.supervisor.executor_left(self)


class UserCode:
    """What a run does, drawn from the seed: it writes, reads, flushes, triggers, waits, and ends well or badly."""

    def __init__(self, simulation: "Simulation", process: WorkerProcess, scope: RunScope) -> None:
        self._simulation = simulation
        self._process = process
        self._scope = scope
        run = scope.run
        self._name: str = msgspec.json.decode(run.payload or '""')
        # An attempt that never began may be handed out again under its number.
        self._label = f"{self._name}/{run.attempt}/{process.name}/{len(simulation.records.attempts)}"
        self._random = Random(f"{simulation.seed}/{self._label}")
        self._log_random = Random(f"{simulation.seed}/{self._label}/log")
        self._ends_random = Random(f"{simulation.seed}/{self._label}/end")
        self.is_in_thread = self._random.random() < simulation.plan.in_thread
        buffer = scope.buffer
        assert isinstance(buffer, RecordingBuffer)
        self.attempt = buffer.attempt
        self.attempt.label = self._label
        self._streams = StreamCode(simulation, scope, self._label)
        self._waits = WaitCode(simulation, self.attempt, self._label)
        self._tokens = 0
        self._mine = 0
        self._counted_before = metadata_number(scope, "count")
        self._counted = 0
        self._children: list[str] = []

    def hook(self, name: str) -> None:
        """A hook is called."""
        if self._process.peer.is_dead:
            return
        attempt, watch = self.attempt, self._simulation.watch
        attempt.hooks.append(name)
        if name == ("on_failure" if attempt.is_closing else "on_start_attempt"):
            attempt.begun_at = self._simulation.servers.steady()
            self._simulation.note(self._process.name, "begins", attempt.run_id, attempt.number)
            watch.begins(attempt, slots=self._process.concurrency)
        elif name == "on_wait":
            attempt.waits = True
            watch.pauses(attempt)
        elif name == "on_resume":
            attempt.waits = False
            watch.goes_on(attempt, slots=self._process.concurrency)

    async def take_time(self) -> None:
        """What a hook does that runs because a process died; it may take its own one along."""
        random = self._ends_random
        await asyncio.sleep(random.choice([0.0, 0.2, 2.0]) * random.random())
        if random.random() < self._simulation.plan.crash:
            self._process.kill()
            await asyncio.sleep(0)

    async def run(self) -> Any:
        """The user's code."""
        try:
            result = await self._run()
        except AssertionError as error:
            self._simulation.failed(error)
            raise
        self.attempt.returned = Outcome(output=msgspec.json.encode(result).decode())
        return result

    async def _run(self) -> Any:
        if self._name.startswith(READER):
            return await self._read()
        random = self._random
        for _ in range(random.choice([0, 2, 5, 9])):
            self._write()
            self._look()
            await self._streams.step()
            await self._waits.step()
            await self._pause()
            self._look()
        while self._children and random.random() < 0.7:
            await self._wait_for(self._children.pop())
            self._look()
        self._write()
        await self._streams.step()
        if self._ends_random.random() < self._simulation.plan.crash:
            self._process.kill()
            await asyncio.sleep(0)
        if random.random() < self._simulation.plan.failure:
            if self._ends_random.random() < 0.2:
                self.attempt.can_be_retried = False
                raise AbortTaskRun(self._label)
            raise ValueError(self._label)
        if self._ends_random.random() < self._simulation.plan.oversized:
            return {"label": self._label, "pad": "x" * 2000}
        return self._label

    async def _read(self) -> Any:
        """Look at the own document until it says that this is all. Whatever was committed is seen, sooner or later, also what nothing
        follows: the run itself asks for nothing."""
        while (told := metadata.get("all_told")) is None and not self._scope.is_lost:  # noqa: ASYNC110 - it polls on purpose
            await asyncio.sleep(self._random.choice([0.05, 0.5]))
        if not self._scope.is_lost:
            seen = metadata.get("told")
            assert seen == told, f"{self._label} has read {seen} of {told} words, and the last of them"
        return self._label

    def _write(self) -> None:
        random, wild = self._random, self._simulation.plan.wild
        self._log()
        for _ in range(random.choice([1, 1, 2, 6])):
            self._tokens += 1
            token = f"{self._label}:{self._tokens}"
            place = random.random()
            updater: Any = metadata if place < 0.6 else metadata.parent if place < 0.8 else metadata.root
            try:
                perform(updater, random, token, wild=wild)
            except MetadataError as error:
                self._simulation.note(self._process.name, "refused at the call", error.code)
            if random.random() < 0.3:
                try:
                    metadata.set("mine", [self._label, self._mine + 1])
                    self._mine += 1
                    metadata.increment("count", self._tokens)
                    self._counted += self._tokens
                except MetadataError as error:
                    self._simulation.note(self._process.name, "refused at the call", error.code)

    def _log(self) -> None:
        """A few lines, or very many; what is in a line must not matter."""
        if self._scope.is_over:
            # It was given up, and what it logs is nobody's.
            return
        # A random source of its own: all else must be as it is without these lines.
        random = self._log_random
        count, size = random.choice(self._simulation.plan.logs)
        for _ in range(count):
            text = random.choice(["x", "\0", "€", "🚲", "\ud800"]) * random.randint(0, size)
            line = f"{self._label}#{len(self.attempt.lines)} {text}"
            self.attempt.lines.append(line)
            self._process._link.log(self._scope, "info", line, LOGGER)

    def end(self, outcome: Outcome) -> None:
        """The code has come to its end, and logs no more."""
        self.attempt.has_ended = True
        self.attempt.outcome = outcome
        self._simulation.watch.pauses(self.attempt)

    def _look(self) -> None:
        """Own writes are seen, and stay so (M42), where nobody else writes to the same keys."""
        if self._simulation.plan.checks_own_writes and not self._scope.is_over and self._mine:
            mine, count = metadata.get("mine"), metadata.get("count", 0)
            assert mine == [self._label, self._mine], f"{self._label} reads {mine} and wrote {self._mine}"
            expected = self._counted_before + self._counted
            assert count == expected, f"{self._label} reads {count} and counted to {expected}"

    async def _pause(self) -> None:
        random = self._random
        choice = random.random()
        if choice < 0.45:
            longest = self._simulation.plan.pause_seconds_max
            await asyncio.sleep(random.choice([0.0, 0.01, 0.2, longest]) * random.random())
        elif choice < 0.7:
            await self._flush()
        elif choice < 0.8:
            self._process._spawn(self._flush(), copy_context())
        elif choice < 0.9 and self._simulation.may_have_children(self._name):
            await self._trigger()
        elif self._children:
            await self._wait_for(self._children.pop())

    async def _flush(self) -> None:
        before = len(self.attempt.calls)
        timeout = self._random.choice([None, None, 2.0])
        try:
            await metadata.aflush(timeout)
        except MetadataFlushError as error:
            if not error.refused:
                return
        except (TimeoutError, MilepostError):
            return
        if not self._process.peer.is_dead and not self._scope.is_over:
            self.attempt.acknowledged = max(self.attempt.acknowledged, before)

    async def _trigger(self) -> None:
        name = self._simulation.child_name(self._name, self._random)
        options = TriggerOptions(
            parent_run_id=self._scope.run.id,
            metadata={"name": name},
            concurrency_key=self._simulation.plan.key_of(name),
        )
        request = TriggerRequest(payload=msgspec.json.encode(name).decode(), options=options)
        run = self._scope.run
        self._simulation.records.wanted.add(name)
        self._simulation.watch.triggers[name].add((run.id, run.attempt))
        # Either the request says what it repeats, or the engine finds out which child of an earlier attempt is meant.
        finds = self._simulation.plan.finds_children
        request_id = f"{name}~{run.attempt}" if finds else name
        run_id = await trigger(self._process.connection, self._simulation.task_of(name), request, request_id)
        self._simulation.triggered(name, run_id, may_be_new=finds)
        self._children.append(run_id)

    async def _wait_for(self, run_id: str) -> None:
        try:
            await WaitForEnd(self._scope, run_id).acarry_out(self._process.connection)
        except MilepostError:
            # This attempt is over.
            self.attempt.waits = False
            return
        assert self._simulation.has_ended(run_id), f"a wait for {run_id} ended before the run"


async def trigger(connection: Connection, task: str, request: TriggerRequest, request_id: str) -> str:
    """Trigger a run, for as long as it takes; the same request id is the same run."""
    call = dataclasses.replace(calls.trigger(task, request), request_id=request_id)
    while True:
        try:
            return (await connection.asend(call)).id
        except UnavailableError:
            await asyncio.sleep(0.3)


def client_of_code() -> Any:
    """The client of the code that asks for one."""
    return SimpleNamespace(connection=_code.get()._process.connection)


def metadata_number(scope: RunScope, key: str) -> Any:
    """What the run's document says before the attempt writes."""
    return scope.buffer.get(key, 0)
