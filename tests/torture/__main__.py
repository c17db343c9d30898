"""Torture: real processes under fire, and nothing may be lost, doubled or reordered.

    make torture SECONDS=60 SEED=1
    make torture DATABASE=postgres SERVERS=3

Real servers and real workers, and a proxy between them and everything else, which is a load balancer where there are several servers;
every other worker speaks to one server only. Every few seconds a server and a worker are killed and started again on the same port
and data, or stopped for a while, alone or all together; now and then they are left alone, so that much gets done; PostgreSQL is
restarted, stopped as by a power loss of its processes, crashes, ends all sessions, or stands still; the proxy cuts connections before
a request was forwarded, after it was processed and in the middle of the answer. Meanwhile 64 writers send to a few shared runs, waves
of 1,000 children write to their root, runs write streams, thousands of short runs that are tried once come and go, and subscribers
watch. In the end every acknowledged run and operation has to be there once, operations in the order of their writer. Runs that are
tried once end as their code did, and none is charged with what it has not done.

The seed decides what is drawn; when it happens depends on the machine, so a run is not repeated to the letter.
"""

import argparse
import asyncio
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torture_tasks
from crowds import Crowds
from database import DATABASES, Database
from executions import Noted, RunAudit
from fire import Fire, Server, Worker
from ledger import check_log
from processes import Process, check_logs, free_ports, until_up
from proxy import Chances, Proxy
from streaming import StreamAudit, StreamReader, StreamsWatcher
from verdict import KINDS, RUN_KINDS, STREAM_KINDS, Verdict
from watching import Watcher, look_at_document
from writers import COUNTERS, TEXT_KEY, Account, Writer, until_answered

from milepost import Client, Run
from milepost.client import calls
from milepost.client.requests import trigger_request

HERE = Path(__file__).resolve().parent
SECRET_KEY = "torture"
# How long everything may take to come to its end once the fire has ceased.
SETTLE_SECONDS_MAX = 120.0
SAY_SECONDS = 10.0
CONCURRENCY = 40
# What the tasks raise themselves, as workers show it.
EXPECTED_ERRORS = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ +|].*\n|\n)*(?:ValueError: on purpose|\S*AttemptOverError).*$",
    re.MULTILINE,
)
# Chunks of each writer of a run that writes streams, and how many such runs there are at once.
CHUNKS = 400
STREAMING_AT_A_TIME = 3
# Runs that are tried once, at most, that have not ended; and batches of short ones.
ONCE_AT_A_TIME = 40
CROWDS_AT_A_TIME = 3


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    seconds: float
    seed: int
    database: str
    servers: int
    writers: int
    rest_seconds: float
    runs: int
    workers: int
    wave_size: int
    pause_seconds: float
    server_restarts: int
    database_restarts: int

    @property
    def is_in_order(self) -> bool:
        """True when there are restarts only, which cost no run anything."""
        return bool(self.server_restarts or self.database_restarts)

    @property
    def lease_seconds(self) -> int:
        """How long a worker may be silent: short, so that leases are often over, or longer than a restart takes."""
        return 20 if self.is_in_order else 2


def main() -> None:
    """Parse, torture, say how it went; the exit code is 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="make torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long the fire lasts")
    parser.add_argument("--seed", type=int, help="what is drawn; default: by chance")
    parser.add_argument(
        "--database", choices=DATABASES, default="sqlite", help="where the servers keep things"
    )
    parser.add_argument("--servers", type=int, default=1, help="server processes; several need postgres")
    parser.add_argument("--writers", type=int, default=64, help="writers from outside")
    parser.add_argument("--rest", type=float, default=4.0, help="seconds between two requests of a writer")
    parser.add_argument("--runs", type=int, default=4, help="shared runs that they write to")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--wave-size", type=int, default=1000, help="children of each root")
    parser.add_argument("--pause", type=float, default=2.5, help="seconds between two kills, about")
    parser.add_argument(
        "--server-restarts",
        type=int,
        default=0,
        help="nothing but rolling restarts of all servers, so many times, in place of the fire",
    )
    parser.add_argument(
        "--database-restarts", type=int, default=0, help="nothing but restarts of PostgreSQL, so many times"
    )
    given = parser.parse_args()
    servers_max = DATABASES[given.database].servers_max
    if not 1 <= given.servers <= servers_max:
        parser.error(
            f"SERVERS={given.servers}: with DATABASE={given.database} there can be 1 to {servers_max}; several servers "
            "share a database with DATABASE=postgres only"
        )
    if given.database_restarts and given.database == "sqlite":
        parser.error(
            "SQLite has no server that could be restarted: --database-restarts needs --database postgres"
        )
    options = Options(
        seconds=given.seconds,
        seed=random.randrange(1_000_000) if given.seed is None else given.seed,
        database=given.database,
        servers=given.servers,
        writers=given.writers,
        rest_seconds=given.rest,
        runs=given.runs,
        workers=given.workers,
        wave_size=given.wave_size,
        pause_seconds=given.pause,
        server_restarts=given.server_restarts,
        database_restarts=given.database_restarts,
    )
    folder = Path(tempfile.mkdtemp(prefix="milepost-torture-"))
    # PostgreSQL, which refuses to be run by root, has to find its own folder in it.
    folder.chmod(0o711)
    print(f"seed {options.seed}, {options.seconds:g} s, {folder}", flush=True)
    torture = Torture(options, folder)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(torture.run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"broken off; what was there is kept in {folder}")
        sys.exit(130)
    torture.report()
    if torture.verdict.is_good:
        shutil.rmtree(folder)
        return
    print(f"everything is kept in {folder}")
    sys.exit(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Torture:
    """One session, from the start of the servers to the last check."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self.verdict = Verdict()
        self._triggered: dict[str, str] = {}
        self._waves: list[Run] = []
        self._writers: list[Writer] = []
        self._watchers: list[Watcher] = []
        self._stream_readers: list[StreamReader] = []
        self._streams_watchers: list[StreamsWatcher] = []
        self._chunk_count = 0
        self._log_operations = 0
        self._fire_seconds = 0.0

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self._options.seed} {name}")

    async def run(self) -> None:
        """All of it. Whatever happens, no process is left behind."""
        self._stop = asyncio.Event()
        this = asyncio.current_task()
        assert this is not None

        def interrupted() -> None:
            # The first signal ends the fire early and lets everything be checked; the second one breaks off.
            if self._stop.is_set() and not this.cancelling():
                this.cancel()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted)
        database = await asyncio.to_thread(DATABASES[self._options.database], self._folder / "data")
        try:
            async with Proxy(Chances(), self._chance("proxy")) as self._proxy:
                await self._run_on(database)
            self._check(database)
        finally:
            database.end()

    async def _run_on(self, database: Database) -> None:
        ports = free_ports(self._options.servers)
        self._servers = [
            Server(
                Process(
                    "server" if len(ports) == 1 else f"server-{number}",
                    ["server", "--port", str(port)],
                    folder=self._folder,
                    env={
                        "MILEPOST_SECRET_KEY": SECRET_KEY,
                        "MILEPOST_LEASE_SECONDS": str(self._options.lease_seconds),
                        **database.environment,
                    },
                ),
                port,
            )
            for number, port in enumerate(ports, 1)
        ]
        # Until there is something to torture.
        self._proxy.is_calm = True
        self._url = await self._proxy.listen(ports)
        self._workers = [await self._worker(number, ports) for number in range(self._options.workers)]
        self._fire = Fire(
            self._servers,
            self._workers,
            database,
            self.verdict,
            stop=self._stop,
            lease_seconds=self._options.lease_seconds,
            pause_seconds=self._options.pause_seconds,
            seed=self._options.seed,
        )
        processes = [one.process for one in (*self._workers, *self._servers)]
        try:
            for server in self._servers:
                await server.process.start()
            for server in self._servers:
                await until_up(server.process, server.port)
            for worker in self._workers:
                await worker.process.start()
            await self._load()
        finally:
            await asyncio.gather(*(process.end() for process in processes))

    async def _worker(self, number: int, ports: list[int]) -> Worker:
        """With several servers every other worker speaks to one of them only."""
        server = number // 2 % len(ports) if len(ports) > 1 and number % 2 else None
        arguments = ["worker", str(HERE / "torture_tasks.py"), "--processes", "1", "--grace", "1"]
        process = Process(
            f"worker-{number + 1}",
            [*arguments, "--concurrency", str(CONCURRENCY)],
            folder=self._folder,
            env={
                "MILEPOST_SECRET_KEY": SECRET_KEY,
                "MILEPOST_API_URL": self._url
                if server is None
                else await self._proxy.listen([ports[server]]),
                torture_tasks.WORKER_VARIABLE: str(number),
            },
        )
        return Worker(process, server)

    def _check(self, database: Database) -> None:
        """Compare what is kept with what should be."""
        check_logs((one.process for one in (*self._servers, *self._workers)), EXPECTED_ERRORS, self.verdict)
        accounts = {
            run_id: {writer.number: writer.accounts[run_id] for writer in self._writers}
            for run_id in self._shared_ids
        }
        self._log_operations = check_log(database, accounts, self._folder, self.verdict)
        noted = Noted(self._triggered, self._fire.struck, [worker.server for worker in self._workers])
        self._runs = RunAudit(database, self._folder, noted, self.verdict)
        self._runs.check()
        audit = StreamAudit(database, self.verdict)
        audit.check(self._stream_readers, self._streams_watchers)
        self._chunk_count = audit.chunk_count

    # --- the load ------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        client = self._client = Client(self._url, SECRET_KEY)
        first = {TEXT_KEY: "no number"}
        self._shared_ids = [
            await self._trigger("shared", number, metadata=first) for number in range(self._options.runs)
        ]
        self._proxy.is_calm = self._options.is_in_order
        self._writers = [
            Writer(
                number,
                client,
                self._shared_ids,
                self._chance(f"writer {number}"),
                self.verdict,
                rest_seconds=self._options.rest_seconds,
            )
            for number in range(self._options.writers)
        ]
        self._crowds = Crowds(client, self._triggered)
        watching: list[asyncio.Task[None]] = []
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for index, run_id in enumerate([*self._shared_ids, self._shared_ids[0]]):
                watcher = Watcher(client, run_id, self.verdict, pause_seconds=0.5 if index % 2 else 0)
                self._watchers.append(watcher)
                watching.append(group.create_task(watcher.run()))
            writing = [group.create_task(writer.run(self._stop)) for writer in self._writers]
            waves = group.create_task(self._make_waves())
            feeding = group.create_task(self._feed())
            streaming = [group.create_task(self._stream()) for _ in range(STREAMING_AT_A_TIME)]
            crowding = [group.create_task(self._crowds.run(self._stop)) for _ in range(CROWDS_AT_A_TIME)]
            saying = group.create_task(self._say(started))
            fire = [saying]
            if self._options.is_in_order:
                await self._fire.restart_servers(self._options.server_restarts)
                await self._fire.restart_database(self._options.database_restarts)
            else:
                fire += [group.create_task(fire) for fire in self._fire.all()]
                await self._fire.pause(self._options.seconds)
            self._stop.set()
            await asyncio.wait(fire)
            self._fire.check_alive()
            self._fire_seconds = time.monotonic() - started
            self._proxy.is_calm = True
            print("the fire has ceased; waiting for everything to come to its end", flush=True)
            try:
                async with asyncio.timeout(SETTLE_SECONDS_MAX):
                    await self._settle(writing, waves, watching)
                    await feeding
                    await asyncio.wait([*streaming, *crowding])
                    await self._gather()
            except TimeoutError:
                self._name_unfinished(
                    {
                        "a writer": writing,
                        "a wave": [waves],
                        "a subscriber": watching,
                        "a reader of streams": streaming,
                        "a crowd of short runs": crowding,
                        "the runs that are tried once": [feeding],
                    }
                )
        await client.async_transport.close()

    async def _settle(
        self,
        writing: list[asyncio.Task[None]],
        waves: asyncio.Task[None],
        watching: list[asyncio.Task[None]],
    ) -> None:
        """Let everything end, and compare what is there with what should be."""
        await asyncio.wait(writing)
        for run_id in self._shared_ids:
            await self._client.runs.metadata(run_id).set("end", True).asend()
        finals = [await self._client.runs.await_(run_id) for run_id in self._shared_ids]
        await waves
        await asyncio.wait(watching)
        finals = [await self._client.runs.aretrieve(run.id) for run in finals]
        for final in finals:
            self._check_shared(final)
            for watcher in self._watchers:
                if watcher.last is not None and watcher.last.id == final.id:
                    watcher.check_end(final)

    def _name_unfinished(self, tasks_by_name: dict[str, list[asyncio.Task[None]]]) -> None:
        for what, tasks in tasks_by_name.items():
            for task in tasks:
                if not task.done():
                    self.verdict.add("unfinished", f"{what} has not come to its end")
                    task.cancel()
        if self.verdict.is_good:
            self.verdict.add("unfinished", "a shared run has not come to its end")

    async def _make_waves(self) -> None:
        """One wave after the other: a root, and its children that all write to it."""
        while not self._stop.is_set():
            run_id = await self._trigger("wave", self._options.wave_size)
            watcher = Watcher(self._client, run_id, self.verdict)
            await watcher.run()
            final = await until_answered(self._client, calls.retrieve_run(run_id))
            watcher.check_end(final)
            self._check_wave(final)
            self._waves.append(final)

    async def _stream(self) -> None:
        """One run after the other that writes streams, with readers that come back again and again."""
        while not self._stop.is_set():
            run_id = await self._trigger("streaming", CHUNKS)
            number = len(self._streams_watchers)
            readers = [
                StreamReader(self._client, run_id, key, self._chance(f"reader {number} {key}"))
                for key in ("tokens", "both")
            ]
            watcher = StreamsWatcher(self._client, run_id)
            self._stream_readers += readers
            self._streams_watchers.append(watcher)
            await asyncio.gather(*(one.run() for one in [*readers, watcher]))

    async def _feed(self) -> None:
        """Runs that are tried once, one after the other, and some at once; in the end all of them have ended."""
        chance = self._chance("once")
        pending: set[str] = set()
        number = 0
        while not self._stop.is_set():
            if len(pending) < ONCE_AT_A_TIME:
                number += 1
                pending.add(await self._trigger(chance.choice(["once", "once_in_thread"]), number))
                continue
            await asyncio.sleep(0.1)
            await self._forget_ended(pending)
        while pending:
            await asyncio.sleep(0.2)
            await self._forget_ended(pending)

    async def _forget_ended(self, pending: set[str]) -> None:
        for run_id in list(pending):
            run = await until_answered(self._client, calls.retrieve_run(run_id))
            if run.status.is_final:
                pending.discard(run_id)

    async def _gather(self) -> None:
        """As many runs at once as there are slots."""
        slots = len(self._workers) * CONCURRENCY
        ids = [await self._trigger("gathering", slots) for _ in range(slots)]
        gathered = [await self._client.runs.await_(run_id) for run_id in ids]
        alone = sum(not run.output for run in gathered)
        if alone:
            self.verdict.add(
                "leaked slot",
                f"there are {slots} slots, and of as many runs {alone} have waited in vain for the others",
                alone,
            )

    async def _trigger(self, task_id: str, payload: object, **options: Any) -> str:
        """Trigger one run, however long it takes until the server is there."""
        call = calls.trigger(task_id, trigger_request(payload, options))
        run_id = (await until_answered(self._client, call)).id
        self._triggered[run_id] = task_id
        return run_id

    # --- what came of it -----------------------------------------------------------------------------------

    def _check_shared(self, final: Run) -> None:
        what = f"run {final.id}"
        document = final.metadata
        look_at_document(what, document, self.verdict)
        sent: Counter[str] = Counter()
        acknowledged: Counter[str] = Counter()
        for writer in self._writers:
            account: Account = writer.accounts[final.id]
            sent += account.sent.counters
            acknowledged += account.acknowledged.counters
            self._check_writer(what, document, writer.number, account)
        for index in range(COUNTERS):
            key = f"counter-{index}"
            self.verdict.compare(
                f"{what}, {key}", document.get(key), acknowledged=acknowledged[key], attempted=sent[key]
            )
        if document.get(TEXT_KEY) != "no number":
            self.verdict.add("doubled", f"{what}: what was refused was applied: {document.get(TEXT_KEY)!r}")
        if not final.is_success:
            self.verdict.add("unfinished", f"{what} ended as {final.status}: {final.error}")

    def _check_writer(self, what: str, document: dict[str, Any], number: int, account: Account) -> None:
        tokens, last = document.get("tokens", {}), document.get("last", {})
        for name, value in (("tokens", tokens.get(f"w{number}")), ("last", last.get(f"w{number}"))):
            self.verdict.compare(
                f"{what}, {name} of writer {number}",
                value,
                acknowledged=account.acknowledged.tokens,
                attempted=account.sent.tokens,
            )

    def _check_wave(self, final: Run) -> None:
        """M67: every child counts ten times and is noted once, whatever was killed, sent again or delayed."""
        what, size = f"wave {final.id}", self._options.wave_size
        due = size * torture_tasks.INCREMENTS
        self.verdict.compare(f"{what}, count", final.metadata.get("count"), acknowledged=due, attempted=due)
        members = final.metadata.get("members", [])
        times = Counter(index for index, _, _ in members)
        for index, count in times.items():
            if count > 1:
                self.verdict.add("doubled", f"{what}: member {index}", count - 1)
        missing = set(range(size)) - set(times)
        if missing:
            self.verdict.add("lost", f"{what}: members {sorted(missing)[:5]} and so on", len(missing))
        if not final.is_success:
            self.verdict.add("unfinished", f"{what} ended as {final.status}: {final.error}")

    @property
    def _acknowledged(self) -> int:
        of_waves = len(self._waves) * self._options.wave_size * (torture_tasks.INCREMENTS + 1)
        return of_waves + sum(writer.acknowledged for writer in self._writers)

    async def _say(self, started: float) -> None:
        while not self._stop.is_set():
            await self._fire.pause(SAY_SECONDS)
            seconds = time.monotonic() - started
            faults = self._fire.faults.total() + self._proxy.injected.total()
            print(
                f"{seconds:6.0f} s  {self._acknowledged:,} operations acknowledged, {len(self._waves)} waves, "
                f"{self._crowds.ended} crowds of short runs, {faults:,} faults",
                flush=True,
            )

    def report(self) -> None:
        """Print everything that is to be known."""
        rate = self._acknowledged / self._fire_seconds if self._fire_seconds else 0
        requests_twice = sum(writer.repeats for writer in self._writers)
        options = self._options
        print(f"\nseed                         {options.seed}")
        print(
            f"database                     {options.database}, {options.servers} servers, {options.workers} workers"
        )
        print(f"seconds under fire           {self._fire_seconds:.1f}")
        print(f"operations acknowledged      {self._acknowledged:,}")
        print(f"operations per second        {rate:,.0f}")
        print(f"operations found in the log  {self._log_operations:,} of the shared runs")
        print(f"  of short runs              {self._runs.operations_of_short_runs:,}")
        print(f"runs                         {self._runs.run_count:,}")
        print(f"waves                        {len(self._waves)} of {self._options.wave_size} children")
        print(f"states seen by subscribers   {sum(watcher.states for watcher in self._watchers):,}")
        resumes = sum(reader.resumes for reader in self._stream_readers)
        print(
            f"chunks of streams            {self._chunk_count:,}, read by {len(self._stream_readers)} readers"
        )
        print("faults injected")
        faults = {**self._fire.faults, **{fate.value: count for fate, count in self._proxy.injected.items()}}
        faults["requests sent twice at once"] = requests_twice
        faults["readers of streams that went on elsewhere"] = resumes
        for what, count in sorted(faults.items()):
            print(f"  {count:8,}  {what}")
        print(
            "runs that are tried once, and how all attempts have ended that were not the last of a completed run"
        )
        for what, count in sorted(self._runs.found.items()):
            print(f"  {count:8,}  {what}")
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in KINDS))
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in RUN_KINDS))
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in STREAM_KINDS))
        for example in self.verdict.examples:
            print(f"  {example}")


if __name__ == "__main__":
    main()
