"""One seed: a plan, a time of trouble, a time of calm in which everything must come to its end, and the judgement."""

import asyncio
import contextlib
import hashlib
import logging
import random as chance
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec

from milepost.client import async_transport, connection, portions, retries
from milepost.client.connection import Connection
from milepost.client.retries import Retries
from milepost.engine import documents
from milepost.engine import streams as engine_streams
from milepost.engine.state import EngineSettings
from milepost.errors import MilepostError
from milepost.feed import chunks, hub, stream_topic
from milepost.model.retry import RetryRule
from milepost.protocol.triggering import TriggerOptions, TriggerRequest
from milepost.sdk import buffer, calling, inputs, streams, streams_outlet, wait
from milepost.server import requests
from milepost.store import runs as run_store
from milepost.store.runs import RunFilter
from milepost.worker import channel, chunk_book, claiming, link, log_book, membership
from simulation import server as server_module
from simulation.database import SERVERS_MAX, Database, SharedStore
from simulation.loop import VirtualLoop
from simulation.network import URL, Balancer, Faults, Network
from simulation.oracle import Oracle, describe
from simulation.records import Records
from simulation.run_oracle import RunOracle
from simulation.server import Machine, Servers, ServersPlan
from simulation.stream_code import RecordingBook, RecordingOutlet
from simulation.stream_oracle import StreamOracle
from simulation.stream_users import read_run_with_streams, read_stream, send_inputs
from simulation.supervisor import Supervisor, SupervisorsChannel
from simulation.users import (
    User,
    cancel,
    complete,
    look,
    operate,
    schedule,
    subscribe,
    tell,
    trigger_by_key,
    trigger_debounced,
    write,
)
from simulation.wait_code import SHORT_SECONDS
from simulation.watch import Watch
from simulation.worker import READER, WorkerProcess, client_of_code, make_task, trigger

# After the time of trouble everything has to be done within this time of the simulation.
CALM_SECONDS_MAX = 900.0
CHILDREN_MAX = 4


class Failed(AssertionError):
    """A seed has found something."""


class Plan:
    """What a seed draws before anything happens."""

    def __init__(self, random: Random) -> None:
        is_large = random.random() < 0.1
        self.chaos_seconds = random.choice([1.0, 3.0, 8.0, 20.0])
        self.lease_seconds = random.choice([4.0, 8.0, 16.0])
        self.mends = random.random() < 0.8
        self.request_seconds_max = random.choice([3.0, 10.0, 30.0])
        self.silence_seconds_max = random.choice([11.0, 30.0])
        self.grace_seconds = random.choice([0.5, 20.0, 3600.0])
        self.size_max = random.choice([262_144] * 5 + [300])
        self.workers = random.choice([1, 2, 3]) if is_large else random.choice([1, 1, 2])
        self.roots = random.choice([1, 2]) if is_large else 1
        self.runs_max = 8 if is_large else 3
        self.writers = random.choice([0, 1, 2, 4]) if is_large else random.choice([0, 1, 2])
        self.subscribers = random.choice([1, 2, 3]) if is_large else 1
        self.lookers = random.choice([0, 1, 2]) if is_large else random.choice([0, 0, 1])
        self.failure = random.choice([0.0, 0.1, 0.4])
        self.in_thread = 0.4
        self.wild = random.random() < 0.4
        self.children = random.choice([0, 1, 2, CHILDREN_MAX])
        self.group_seconds = random.choice([0.0, 0.002, 0.02, 0.2])
        self.window = random.choice([1, 2, 64])
        self.portion_bytes_max = random.choice([4 * 1024 * 1024] * 3 + [150])
        # Small limits, so that they are met: of what waits of a log, of what is kept of it, and of a request.
        self.log_bytes_max = random.choice([4 * 1024 * 1024] * 3 + [4096, 8192])
        self.log_waiting_bytes_max = random.choice([1024 * 1024] * 2 + [700, 3000])
        self.log_request_bytes_max = random.choice([1024 * 1024, 1024 * 1024, 500])
        self.body_bytes_max = random.choice([64 * 1024 * 1024] * 3 + [1500])
        # How many lines at once, and how long they may be.
        self.logs = random.choice(
            [[(0, 0)], [(0, 0), (1, 10)], [(1, 0), (3, 100)], [(0, 0), (15, 60), (3, 2000)]]
        )
        self.fold_bytes_min = random.choice([8 * 1024, 0, 200])
        self.recent_bytes = random.choice([256 * 1024, 256 * 1024, 100, 600])
        self.stash_max = random.choice([1000, 1000, 1])
        self.faults = Faults.drawn(random)
        # How many of each kind of trouble.
        self.troubles: list[str] = []
        for kind in TROUBLES:
            self.troubles += [kind] * random.choice([0, 0, 1, 3])
        self.retry = RetryRule(
            max_attempts=random.choice([1, 2, 4]),
            min_delay_seconds=random.choice([0.1, 0.1, 1.5]),
            max_delay_seconds=2.0,
        )
        # How long the code of a run does nothing, at most; how likely it is that it ends its process, and that its output is larger
        # than some requests may be.
        self.pause_seconds_max = random.choice([1.0, 1.0, 4.0, 12.0])
        self.crash = random.choice([0.0, 0.0, 0.0, 0.1])
        self.oversized = random.choice([0.0, 0.0, 0.2])
        # How many runs of each queue may execute at once.
        self.parent_limit = random.choice([None, None, 1])
        self.child_limit = random.choice([None, 1, 1, 2])
        # The runs' own limits of attempts.
        self.max_attempts = random.choice([[None], [None], [None, 1, 3]])
        # How likely it is at each step that the code does something with a stream, and how many readers and senders there are.
        self.streams = random.choice([0.0, 0.0, 0.0, 0.3, 0.8])
        self.stream_readers = random.choice([0, 1, 2, 3]) if self.streams else 0
        self.stream_subscribers = random.choice([0, 0, 1]) if self.streams else 0
        self.input_senders = random.choice([0, 0, 1, 2]) if self.streams else 0
        self.chunk_sizes = random.choice([[0], [0, 3], [0, 30, 300]])
        # Small limits, so that they are met: of what waits in the worker, of requests and their parts, of rows, pages and frames.
        self.chunks_waiting_max = random.choice([10_000, 10_000, 2, 5])
        self.chunk_bytes_waiting_max = random.choice([1024 * 1024, 1024 * 1024, 100])
        self.chunk_request_bytes_max = random.choice([2 * 1024 * 1024, 2 * 1024 * 1024, 200])
        self.chunks_of_a_request_max = random.choice([10_000, 10_000, 1, 3])
        self.chunk_row_bytes_max = random.choice([256 * 1024, 100])
        self.stream_page_bytes = random.choice([256 * 1024, 150])
        self.stream_recent_bytes = random.choice([1024 * 1024, 600, 1])
        self.stream_event_bytes = random.choice([16 * 1024, 100])
        self.stream_bytes_max = random.choice([2**30, 2**30, 2**30, 500])
        # How many servers there are on the database, and how the balancer before them leads requests.
        self.servers = random.choice([1, 1, 1, 2, 2, SERVERS_MAX])
        self.is_sticky = random.random() < 0.5
        # By how many seconds each may be wrong about the database's clock, and how often it reads it; how long the word that
        # something was committed may be under way.
        self.clocks_apart = random.choice([0.0, 0.02, 0.4])
        self.clock_seconds = random.choice([5.0, 60.0])
        self.hint_seconds_max = random.choice([0.004, 0.004, 0.5])
        # Runs that only read what is written to them from outside.
        self.readers = 0
        self.servers_troubles: list[str] = []
        for kind in SERVERS_TROUBLES:
            self.servers_troubles += [kind] * random.choice([0, 0, 1, 3])
        if self.is_exact:
            self.readers = random.choice([0, 0, 1])

        # How many concurrency keys there are; so many runs in a row of names have different ones, and one of them has none.
        self.keys = random.choice([0, 0, 1, 2])

        # How likely it is that somebody cancels a run, how long an attempt may execute, and the grace time.
        self.cancel = random.choice([0.0, 0.0, 0.0, 0.3, 0.7])
        self.max_duration_seconds = random.choice([None, None, None, 1.5, 6.0])
        self.stop_grace_seconds = random.choice([0.2, 2.0, 5.0])

        # How likely it is that a root is delayed, and that it has a time to live.
        self.delay = random.choice([0.0, 0.0, 0.5])
        self.ttl = random.choice([0.0, 0.0, 0.0, 0.5])

        # How likely it is at each step that the code waits for a time or a token.
        self.waits = random.choice([0.0, 0.0, 0.2, 0.6])

        # Later attempts do not say which children they trigger again: the engine finds them.
        self.finds_children = random.random() < 0.5
        # How many people trigger runs by idempotency keys that they share.
        self.keyed = random.choice([0, 0, 0, 1, 3])
        # How many schedules there are.
        self.schedules = random.choice([0, 0, 0, 1, 2])

        # How many roots one program triggers at once, so that they share requests.
        self.crowd = random.choice([0, 0, 0, 0, 3])

        # How many people pause queues and set other limits.
        self.operators = random.choice([0, 0, 0, 1, 2])
        # How many trigger runs by one debounce key.
        self.debouncers = random.choice([0, 0, 0, 1, 2])

    def key_of(self, name: str) -> str | None:
        """The concurrency key of a run."""
        number = zlib.crc32(name.encode()) % (self.keys + 1)
        return f"key-{number}" if number else None

    @property
    def all_troubles(self) -> list[str]:
        """Those that only servers have that share a database count where there are several."""
        return self.troubles + (self.servers_troubles if self.servers > 1 else [])

    @property
    def is_quiet(self) -> bool:
        """Nothing fails from the beginning on."""
        return not self.all_troubles and not self.crash and vars(self.faults) == vars(Faults())

    @property
    def is_exact(self) -> bool:
        return self.portion_bytes_max > 1000 and self.size_max > 1000 and self.body_bytes_max > 10_000

    @property
    def refuses_chunks(self) -> bool:
        """The server may not take a chunk because of its size, or that of its stream."""
        return self.body_bytes_max < 10_000 or self.stream_bytes_max < 10_000

    @property
    def checks_own_writes(self) -> bool:
        return not self.wild and self.size_max > 1000


class Simulation:
    """One seed.

    Args:
        traces: keep what happens, to be printed.
        adjust: changes the plan that the seed has drawn.
    """

    def __init__(
        self,
        seed: int,
        database: Database,
        *,
        traces: bool = False,
        adjust: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self.seed = seed
        self._random = Random(f"{seed}")
        self._traces = traces
        self.trace: list[tuple[float, str, tuple[Any, ...]]] = []
        self.plan = Plan(Random(f"{seed}/plan"))
        adjust(self.plan)
        longest = self.plan.max_duration_seconds
        self.tasks = {
            "parent": make_task("parent", self.plan.retry, self.plan.parent_limit, longest),
            "child": make_task("child", self.plan.retry, self.plan.child_limit, longest),
        }
        self.records = Records()
        self._database = database
        self._store = database.store
        self._failure: BaseException | None = None
        latencies = Random(f"{seed}/reads")
        self.loop = VirtualLoop(lambda: latencies.uniform(0.0, 0.003))
        self.network = Network(self.loop, self.note)
        self.network.window = self.plan.window
        settings = EngineSettings(
            metadata_size_max=self.plan.size_max,
            grace_seconds=self.plan.grace_seconds,
            lease_seconds=self.plan.lease_seconds,
            stop_grace_seconds=self.plan.stop_grace_seconds,
            log_bytes_max=self.plan.log_bytes_max,
            stream_bytes_max=self.plan.stream_bytes_max,
        )
        servers_plan = ServersPlan(
            self.plan.group_seconds,
            self.plan.clocks_apart,
            self.plan.clock_seconds,
            self.plan.hint_seconds_max,
        )
        self.servers = Servers(
            database, settings, self.network, servers_plan, count=self.plan.servers, seed=seed
        )
        self.network.balancer = Balancer(
            Random(f"{seed}/balancer"), self.servers.processes, sticky=self.plan.is_sticky
        )
        self.watch = Watch(
            self._store,
            self.records,
            settings,
            retry=self.plan.retry,
            limits={
                task.queue.name: task.queue.concurrency
                for task in self.tasks.values()
                if task.queue is not None and task.queue.concurrency is not None
            },
            steady=self.servers.steady,
            failed=self.failed,
            max_duration_seconds=longest,
            are_several=self.servers.are_several,
            clocks_apart=self.plan.clocks_apart if self.servers.are_several else 0.0,
            has_waits=self.plan.waits > 0,
        )
        if self.plan.is_quiet:
            self.watch.quiet_from = 0
        self.servers.witness = self.watch
        self.servers.failed = self.failed
        self.servers.restart_later = self._restart_later
        self.workers: list[WorkerProcess] = []
        self._worker_numbers = 0
        self._writer_count = 0
        self._supervisors: list[Supervisor] = []
        self._users: list[asyncio.Task[None]] = []
        self._names: set[str] = set()
        self._is_calm = False

    # --- what others ask ---------------------------------------------------------------------------------------

    def note(self, who: str, *what: Any) -> None:
        """Something has happened."""
        if self._traces:
            self.trace.append((self.loop.time() - 1000, who, what))

    def failed(self, error: BaseException) -> None:
        """Something went wrong that never should."""
        self.note("simulation", "failed", repr(error))
        if self._failure is None:
            self._failure = error
            self.loop.stop()

    def may_have_children(self, name: str) -> bool:
        return (
            self.plan.children > 0
            and name not in self.records.scheduled
            and name.count("/") < 2
            and len(self.records.wanted) < self.plan.runs_max + self.plan.readers
        )

    def child_name(self, name: str, random: Random) -> str:
        """Code that runs again triggers the same children again."""
        return f"{name}/{random.randint(1, self.plan.children)}"

    def task_of(self, name: str) -> str:
        return "child" if "/" in name else "parent"

    def triggered(self, name: str, run_id: str, *, may_be_new: bool = False) -> None:
        """A trigger has been acknowledged; its repeat is the same run. `may_be_new`: unless that has failed; the witness knows."""
        known = self.records.runs[name]
        assert may_be_new or not known or run_id in known, f"{name} was triggered as {known} and as {run_id}"
        if run_id not in known:
            known.append(run_id)
            self.note("simulation", name, "is", run_id)
            self._watch(run_id)

    def made_token(self, token_id: str, place: tuple[str, float | None, int], *, never_ends: bool) -> None:
        """A run has made a token, or has found it at the same place."""
        known = self.records.places.setdefault(place, token_id)
        assert known == token_id, f"{place} has token {known} and token {token_id}"
        if token_id not in self.records.tokens:
            self.records.tokens[token_id] = None
            random = Random(f"{self.seed}/{token_id}")
            for number in range(random.choice([1, 1, 2] if never_ends else [0, 1, 1, 2])):
                self._spawn_user(complete(User(self, f"completer{number}-{token_id}"), token_id))

    def has_ended(self, run_id: str) -> bool:
        """What the store says, whatever anybody was told."""
        with self._store.read() as connection:
            return run_store.load_rows(connection, [run_id])[run_id].status.is_final

    def worker_has_ended(self, worker: WorkerProcess) -> None:
        """Someone sees to it that another one is started, sooner or later."""
        if worker in self.workers:
            self.workers.remove(worker)
            seconds = self._random.choice([0.01, 1.0, self.plan.lease_seconds * 1.5])
            self.loop.call_later(0.01 if self._is_calm else seconds, lambda: self._start_worker())

    def _writer_name(self, size: int) -> str:
        self._writer_count += 1
        return Random(f"{self.seed}/writer/{self._writer_count}").randbytes(size).hex()

    def _start_worker(self) -> None:
        if len(self.workers) < self.plan.workers:
            self._worker_numbers += 1
            at_work = {worker.supervisor for worker in self.workers}
            free = [one for one in self._supervisors if not one.is_dead and one not in at_work]
            if not free:
                free = [Supervisor(self, f"s{len(self._supervisors) + 1}")]
                self._supervisors += free
            self.workers.append(WorkerProcess(self, f"w{self._worker_numbers}", free[0]))

    def _restart_later(self, machine: Machine) -> None:
        seconds = self._random.choice([0.01, 1.0, self.plan.lease_seconds * 1.2])
        self.loop.call_later(0.01 if self._is_calm else seconds, lambda: machine.start(), context=Context())

    def a_machine(self) -> Machine:
        """Any machine of a server."""
        machines = self.servers.machines
        return machines[0] if len(machines) == 1 else self._random.choice(machines)

    def _watch(self, run_id: str) -> None:
        """People take an interest in a new run."""
        random, plan = self._random, self.plan
        kinds: list[tuple[str, int, Callable[[User, str], Any]]] = [
            ("subscriber", plan.subscribers, subscribe),
            ("writer", plan.writers, write),
            ("looker", plan.lookers, look),
            ("stream_reader", plan.stream_readers, read_stream),
            ("stream_subscriber", plan.stream_subscribers, read_run_with_streams),
            ("sender", plan.input_senders, send_inputs),
        ]
        for kind, most, work in kinds:
            for _ in range(random.randint(1 if kind == "subscriber" else 0, most) if most else 0):
                user = User(self, f"{kind}{len(self._users)}")
                self._spawn_user(work(user, run_id))
        if plan.cancel:
            # A random source of its own: all else is as it is without.
            user = User(self, f"canceller-{run_id}")
            if user.random.random() < plan.cancel:
                self._spawn_user(cancel(user, run_id))

    def _spawn_user(self, work: Any) -> None:
        # Nothing of whoever was just at work.
        task = self.loop.create_task(work, context=Context())
        self._users.append(task)
        task.add_done_callback(self._user_done)

    def _user_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    # --- the course of things ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Failed."""
        chance.seed(self.seed)
        plan = self.plan
        clock = SimpleNamespace(monotonic=self.loop.time)
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(Retries.__init__.__kwdefaults__, clock=self.loop.time))
            for module, name, value in (
                (membership, "REQUEST_SECONDS_MAX", plan.request_seconds_max),
                (claiming, "REQUEST_SECONDS_MAX", plan.request_seconds_max),
                (link, "REQUEST_SECONDS_MAX", plan.request_seconds_max),
                (link, "INBOX_SILENCE_SECONDS_MAX", plan.silence_seconds_max),
                (async_transport, "ANSWER_SECONDS_MAX", plan.request_seconds_max),
                (async_transport, "SILENCE_SECONDS_MAX", plan.silence_seconds_max),
                (connection, "time", clock),
                (retries, "time", clock),
                (calling, "default_client", lambda: SimpleNamespace(connection=Connection(URL, "key"))),
                (portions, "BYTES_MAX", plan.portion_bytes_max),
                (requests, "BODY_BYTES_MAX", plan.body_bytes_max),
                (log_book, "WAITING_BYTES_MAX", plan.log_waiting_bytes_max),
                (log_book, "ALL_WAITING_BYTES_MAX", 2 * plan.log_waiting_bytes_max),
                (log_book, "WAITING_BYTES_MIN", min(4096, plan.log_waiting_bytes_max)),
                (log_book, "REQUEST_BYTES_MAX", plan.log_request_bytes_max),
                (log_book, "SHARE_BYTES_MIN", min(32 * 1024, plan.log_request_bytes_max // 2)),
                (channel, "Channel", SupervisorsChannel),
                (log_book, "now", lambda: round(self.loop.time() * 1_000_000)),
                (link, "ChunkBook", RecordingBook),
                (streams, "Outlet", RecordingOutlet),
                (inputs, "Outlet", RecordingOutlet),
                (inputs, "default_client", client_of_code),
                (inputs, "time", clock),
                (wait, "default_client", client_of_code),
                (wait, "SHORT_SECONDS", SHORT_SECONDS),
                (streams_outlet, "secrets", SimpleNamespace(token_hex=self._writer_name)),
                (streams_outlet, "WAITING_CHUNKS_MAX", plan.chunks_waiting_max),
                (chunk_book, "WAITING_BYTES_MAX", plan.chunk_bytes_waiting_max),
                (chunk_book, "WAITING_BYTES_MIN", min(64 * 1024, plan.chunk_bytes_waiting_max)),
                (chunk_book, "REQUEST_BYTES_MAX", plan.chunk_request_bytes_max),
                (chunk_book, "SHARE_BYTES_MIN", min(16 * 1024, plan.chunk_request_bytes_max // 2)),
                (chunk_book, "CHUNKS_MAX", plan.chunks_of_a_request_max),
                (engine_streams, "ROW_BYTES_MAX", plan.chunk_row_bytes_max),
                (chunks, "PAGE_BYTES", plan.stream_page_bytes),
                (stream_topic, "RECENT_BYTES", plan.stream_recent_bytes),
                (stream_topic, "EVENT_BYTES", plan.stream_event_bytes),
                (stream_topic, "JOINED_BYTES", 4 * plan.stream_event_bytes),
                (buffer, "STASH_MAX", plan.stash_max),
                (documents, "FOLD_BYTES_MIN", plan.fold_bytes_min),
                (documents, "RECENT_BYTES", plan.recent_bytes),
                (hub, "RECENT_BYTES", plan.recent_bytes),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            logging.disable(logging.ERROR)
            try:
                self._run()
            except Exception as error:
                message = f"seed {self.seed}: {type(error).__name__}: {error}"
                raise Failed(
                    f"{message}\nreplay: PYTHONPATH=tests python -m simulation --seed {self.seed} --trace"
                ) from error
            finally:
                logging.disable(logging.NOTSET)
                self._close()

    def _run(self) -> None:
        loop = self.loop
        loop.set_exception_handler(self._unexpected)
        main = loop.create_task(self._course())
        main.add_done_callback(lambda _: loop.stop())
        try:
            loop.run_forever()
        except AssertionError as error:
            waiting = [task.get_coro() for task in self._users if not task.done()]
            names = [getattr(work, "__qualname__", "") for work in waiting]
            raise AssertionError(f"{error}; still at work: {names}; runs: {self._statuses()}") from error
        if self._failure is not None:
            raise self._failure
        main.result()
        self.watch.queues.judge_rest()
        Oracle(
            self._store,
            self.records,
            size_max=self.plan.size_max,
            is_exact=self.plan.is_exact,
            log_bytes_max=self.plan.log_bytes_max,
            lines_wait_max=self.plan.log_waiting_bytes_max,
        ).judge()
        RunOracle(self._store, self.records, self.watch, self.plan.retry).judge()
        small = self.plan.refuses_chunks
        StreamOracle(self._store, self.records, self.watch, has_small_limits=small).judge()

    async def _course(self) -> None:
        plan, random = self.plan, self._random
        self.servers.start()
        for _ in range(plan.workers):
            self._start_worker()
        for number in range(plan.roots):
            self._spawn_user(self._trigger_root(f"root{number}"))
        for number in range(plan.readers):
            self._spawn_user(self._trigger_reader(f"{READER}{number}"))
        for number in range(plan.keyed):
            self._spawn_user(trigger_by_key(User(self, f"keyed{number}")))
        if plan.crowd:
            self._spawn_user(self._trigger_crowd())
        for number in range(plan.debouncers):
            self._spawn_user(trigger_debounced(User(self, f"debouncer{number}")))
        for number in range(plan.operators):
            self._spawn_user(operate(User(self, f"operator{number}")))
        for number in range(plan.schedules):
            self._spawn_user(schedule(User(self, f"scheduled{number}")))
        self.network.faults = plan.faults
        # Most of it early, while much is going on.
        times = sorted((plan.chaos_seconds * random.random() ** 2, kind) for kind in plan.all_troubles)
        for at, kind in times:
            await asyncio.sleep(1000 + at - self.loop.time())
            self.note("trouble", kind)
            (TROUBLES.get(kind) or SERVERS_TROUBLES[kind])(self)
        await asyncio.sleep(1000 + plan.chaos_seconds - self.loop.time())
        self._calm_down()
        while not all(task.done() for task in self._users):
            pending = [task for task in self._users if not task.done()]
            await asyncio.wait(pending)
        # Nobody waits for the last of them, but they have to end as well.
        await self._all_have_ended()
        self.network.deliver_repeats()
        await asyncio.sleep(1)
        # Even a trigger that was never answered may have come again.
        await self._all_have_ended()
        while any(worker.has_lines_to_send for worker in self.workers):  # noqa: ASYNC110 - as above
            await asyncio.sleep(1)
        # Code that nobody hears any more comes to its end as well, and gives its slot back.
        while not all(worker.is_idle for worker in self.workers):  # noqa: ASYNC110 - as above
            await asyncio.sleep(1)

    async def _all_have_ended(self) -> None:
        while self._statuses():  # noqa: ASYNC110 - nobody is told, and time is cheap here
            await asyncio.sleep(1)

    def _calm_down(self) -> None:
        self.note("simulation", "calm")
        self._is_calm = True
        if self.plan.mends:
            self.network.mend()
        self.network.faults = Faults()
        self.servers.calm_down()
        for worker in self.workers:
            self.loop.continue_process(worker)
        for _ in range(self.plan.workers):
            self._start_worker()
        for worker in self.workers:
            worker.peer.away_until = 0.0
        self.loop.ends_at = self.loop.time() + CALM_SECONDS_MAX

    async def _trigger_root(self, name: str) -> None:
        user = User(self, name)
        await asyncio.sleep(user.random.uniform(0, self.plan.chaos_seconds / 4))
        self.records.wanted.add(name)
        options = TriggerOptions(
            metadata={"name": name, "n": 1} if user.random.random() < 0.5 else None,
            max_attempts=user.random.choice(self.plan.max_attempts),
            concurrency_key=self.plan.key_of(name),
        )
        # A random source of its own: all else is as it is without.
        times = Random(f"{self.seed}/{name}/times")
        if times.random() < self.plan.delay:
            seconds = self.records.delays[name] = times.choice([1, 3, 10])
            options.delay = f"{seconds}s"
        if times.random() < self.plan.ttl:
            options.ttl = self.records.ttls[name] = times.choice([1, 2, 5])
        request = TriggerRequest(payload=msgspec.json.encode(name).decode(), options=options)
        self.triggered(name, await trigger(user.connection, "parent", request, name))

    async def _trigger_crowd(self) -> None:
        user = User(self, "crowd")
        await asyncio.sleep(user.random.uniform(0, self.plan.chaos_seconds / 4))
        names = [f"{user.name}{number}" for number in range(self.plan.crowd)]
        self.records.wanted |= set(names)
        requests = (TriggerRequest(payload=msgspec.json.encode(name).decode()) for name in names)
        asked = (
            trigger(user.connection, "parent", request, name)
            for name, request in zip(names, requests, strict=True)
        )
        for name, run_id in zip(names, await asyncio.gather(*asked), strict=True):
            self.triggered(name, run_id)

    async def _trigger_reader(self, name: str) -> None:
        user = User(self, name)
        self.records.wanted.add(name)
        options = TriggerOptions(metadata={"name": name} if user.random.random() < 0.5 else None)
        request = TriggerRequest(payload=msgspec.json.encode(name).decode(), options=options)
        run_id = await trigger(user.connection, "parent", request, name)
        # Nobody else writes to it.
        self.records.runs[name].append(run_id)
        await tell(user, run_id)

    def _statuses(self) -> dict[str, str]:
        """The runs that have not ended, as the store has them."""
        with self._store.read() as connection:
            ids = run_store.list_ids(connection, RunFilter(), limit=1000)
            rows = run_store.load_rows(connection, ids)
        return {
            run_id: f"{row.status} by {row.worker_id}"
            for run_id, row in rows.items()
            if not row.status.is_final
        }

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # A refusal that nobody is there to hear any more is no mistake.
        if isinstance(error, BaseException) and not isinstance(error, MilepostError):
            self.failed(error)

    def _close(self) -> None:
        loop = self.loop
        loop.ends_at = float("inf")
        # Nothing is started any more, whatever was to come.
        self._start_worker = lambda: None  # type: ignore[method-assign]
        for machine in self.servers.machines:
            machine.start = lambda: None  # type: ignore[method-assign]
        for worker in self.workers:
            worker.peer.is_dead = True
        self.servers.kill()
        for worker in self.workers:
            loop.continue_process(worker)
        for _ in range(20):
            tasks = asyncio.all_tasks(loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            with contextlib.suppress(AssertionError, RuntimeError):
                loop.run_until_complete(asyncio.wait(tasks))
        for task in asyncio.all_tasks(loop):
            # It was never begun, because its process had been stopped.
            coroutine = task.get_coro()
            if coroutine is not None:
                coroutine.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        self.watch.close()

    @property
    def fingerprint(self) -> str:
        """The same for the same course of things."""
        lines = "\n".join(self.lines())
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    def lines(self) -> list[str]:
        """What happened, for people."""
        return [f"{at:12.6f}  {who:14}  {' '.join(map(describe, what))}" for at, who, what in self.trace]


# --- troubles ------------------------------------------------------------------------------------------------


def _kill_server(simulation: Simulation) -> None:
    machine = simulation.a_machine()
    if machine.process is not None:
        machine.kill()
        simulation._restart_later(machine)


def _kill_server_within_a_group(simulation: Simulation) -> None:
    simulation.a_machine().dies_at = simulation._random.choice(server_module.KILL_STAGES)


def _kill_worker(simulation: Simulation) -> None:
    """An executor; its supervisor notices."""
    if simulation.workers:
        simulation._random.choice(simulation.workers).kill()


def _kill_whole_worker(simulation: Simulation) -> None:
    """The supervisor and its executor: nobody tells the server."""
    if simulation.workers:
        worker = simulation._random.choice(simulation.workers)
        worker.supervisor.die()
        worker.kill()


def _kill_supervisor(simulation: Simulation) -> None:
    """The supervisor alone: its executor finds the end of the line, and comes to an end."""
    if simulation.workers:
        worker = simulation._random.choice(simulation.workers)
        worker.supervisor.die()
        worker.drain()


def _freeze_worker(simulation: Simulation) -> None:
    if simulation.workers:
        _freeze(simulation, simulation._random.choice(simulation.workers), _freeze_seconds(simulation))


def _hold_the_lock(simulation: Simulation) -> None:
    """User code keeps the interpreter's lock, so that nothing else of the executor runs. Its supervisor keeps the lease."""
    if simulation.workers:
        worker, seconds = simulation._random.choice(simulation.workers), _freeze_seconds(simulation)
        _freeze(simulation, worker, seconds)
        worker.supervisor.keep_lease(worker, simulation.loop.time() + seconds)


def _freeze_server(simulation: Simulation) -> None:
    simulation.a_machine().freeze(_freeze_seconds(simulation))


def _freeze_all(simulation: Simulation) -> None:
    """Servers and workers, as in a container that is paused."""
    seconds = _freeze_seconds(simulation)
    for machine in simulation.servers.machines:
        machine.freeze(seconds)
    for worker in simulation.workers:
        _freeze(simulation, worker, seconds * simulation._random.choice([1.0, 1.0, 0.99, 1.01]))


def _freeze_seconds(simulation: Simulation) -> float:
    return simulation.plan.lease_seconds * simulation._random.choice([0.3, 1.1, 2.5])


def _freeze(simulation: Simulation, process: Any, seconds: float) -> None:
    simulation.note(process.name, "stopped", seconds)
    simulation.loop.stop_process(process)
    simulation.loop.call_later(seconds, simulation.loop.continue_process, process)


def _sleep(simulation: Simulation) -> None:
    """The machine sleeps: the wall clock goes on, and so does the clock of leases; all other clocks stand still."""
    seconds = _freeze_seconds(simulation) * simulation._random.choice([1, 1000])
    simulation.servers.slept_seconds += seconds
    simulation.servers.set_clock(seconds)


def _restart_with_another_clock(simulation: Simulation) -> None:
    """Of several servers each goes by the database's clock, which stays as it is."""
    machine = simulation.a_machine()
    seconds = simulation._random.choice([3600, -3600, 40 * 86400, -365 * 86400])
    machine.kill()
    if simulation.servers.are_several:
        machine.move()
    else:
        simulation.servers.set_clock(seconds)
    simulation._restart_later(machine)


def _drain_worker(simulation: Simulation) -> None:
    if simulation.workers:
        simulation._random.choice(simulation.workers).drain()


def _part_worker(simulation: Simulation) -> None:
    """The link is delayed past its lease."""
    if simulation.workers:
        seconds = simulation.plan.lease_seconds * simulation._random.choice([0.3, 1.1, 2.5])
        worker = simulation._random.choice(simulation.workers)
        worker.peer.away_until = simulation.loop.time() + seconds


def _jump(simulation: Simulation) -> None:
    seconds = simulation._random.choice([-45.0, -1.0, 0.5, 10.0, 60.0])
    simulation.servers.set_clock(seconds)


def _lose_announcements(simulation: Simulation) -> None:
    """Whoever is connected hears of nothing for a while. Then the connections break, as they do now and then."""
    machine = simulation.a_machine()
    machine.is_deaf = True

    def hear() -> None:
        machine.is_deaf = False
        simulation.loop.call_later(simulation._random.choice([0.0, 1.0, 10.0]), simulation.network.cut_all)

    simulation.loop.call_later(simulation._random.choice([0.05, 1.0, 5.0]), hear)


def _cut_streams(simulation: Simulation) -> None:
    simulation.network.cut_all()


def _forget_documents(simulation: Simulation) -> None:
    process = simulation.a_machine().process
    if process is not None:
        process.forget_documents()


def _fail_statement(simulation: Simulation) -> None:
    random = simulation._random
    simulation.a_machine().statement_that_fails = random.randint(1, 12), random.choice([1, 2, 3, 30])


def _cut_off_server(simulation: Simulation) -> None:
    """It goes on, and does not reach the database."""
    simulation.a_machine().cut_off(_freeze_seconds(simulation))


def _lose_hints(simulation: Simulation) -> None:
    """A connection on which a server hears of the others is lost, with or without a word."""
    random = simulation._random
    simulation.a_machine().lose_hints(
        seconds=random.choice([1.0, 5.0]), noticed_after=random.choice([0.0, random.uniform(0.0, 7.0)])
    )


def _lose_answer_of_commit(simulation: Simulation) -> None:
    store = simulation.a_machine().store
    if isinstance(store, SharedStore):
        store.loses_answer = True


def _forget_announcements(simulation: Simulation) -> None:
    """Who was away for longer than they are kept takes everything from the database anew."""
    simulation._database.forget_announcements()


def _freeze_while_announcements_go(simulation: Simulation) -> None:
    """A server is away, and what the others have told is forgotten meanwhile."""
    seconds = _freeze_seconds(simulation)
    simulation.a_machine().freeze(seconds)
    simulation.loop.call_later(0.9 * seconds, simulation._database.forget_announcements, context=Context())


TROUBLES: dict[str, Callable[[Simulation], None]] = {
    "kill_server": _kill_server,
    "kill_server_within_a_group": _kill_server_within_a_group,
    "kill_worker": _kill_worker,
    "drain_worker": _drain_worker,
    "part_worker": _part_worker,
    "jump": _jump,
    "lose_announcements": _lose_announcements,
    "cut_streams": _cut_streams,
    "forget_documents": _forget_documents,
    "fail_statement": _fail_statement,
    "kill_whole_worker": _kill_whole_worker,
    "kill_supervisor": _kill_supervisor,
    "freeze_worker": _freeze_worker,
    "freeze_server": _freeze_server,
    "freeze_all": _freeze_all,
    "sleep": _sleep,
    "hold_the_lock": _hold_the_lock,
    "restart_with_another_clock": _restart_with_another_clock,
}
# What only happens to servers that share a database.
SERVERS_TROUBLES: dict[str, Callable[[Simulation], None]] = {
    "cut_off_server": _cut_off_server,
    "lose_hints": _lose_hints,
    "lose_answer_of_commit": _lose_answer_of_commit,
    "forget_announcements": _forget_announcements,
    "freeze_while_announcements_go": _freeze_while_announcements_go,
}
