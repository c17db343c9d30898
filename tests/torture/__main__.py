"""Torture: real processes under fire, and nothing may be lost, doubled or reordered.

    make torture SECONDS=60 SEED=1

A real server and real workers, a proxy between them and everything else. Workers and the server are killed every second or so and
started again on the same port and data, or stopped for a while, alone or all together; the proxy cuts connections before a request
was forwarded, after it was processed and in the middle of the answer. Meanwhile 64 writers send to a few shared runs, waves of
1,000 children write to their root, and subscribers watch. In the end every acknowledged operation has to be there once, in the order
of its writer. Runs that are tried once end as their code did, and none is charged with what it has not done.

The seed decides what is drawn; when it happens depends on the machine, so a run is not repeated to the letter.
"""

import argparse
import asyncio
import contextlib
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

import psutil
import torture_tasks
from executions import Struck, check_executions
from ledger import check_log
from processes import Process, free_port, until_up
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
LEASE_SECONDS = 2
# A server gives workers that it has not heard of one lease from its start, so one that never lives that long never gives up what dead
# workers held: this often it is spared for longer.
LONG_LIFE_SHARE = 0.15
LONG_LIFE_SECONDS = LEASE_SECONDS * 2.5
# How long everything may take to come to its end once the fire has ceased.
SETTLE_SECONDS_MAX = 120.0
SAY_SECONDS = 10.0
# How often a worker is not killed but stopped for longer than its lease, so that it comes back to runs that are not its own any more.
STOP_SHARE = 0.15
# How often a supervisor is killed without its executors, which have to hand back what they have.
SUPERVISOR_SHARE = 0.15
# How often the server, or everything at once, is stopped instead of the server being killed.
SERVER_STOP_SHARE = 0.3
CONCURRENCY = 40
# What the tasks raise themselves, as workers show it.
EXPECTED_ERRORS = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ +|].*\n|\n)*(?:ValueError: on purpose|\S*AttemptOverError).*$",
    re.MULTILINE,
)
# Chunks of each writer of a run that writes streams, and how many such runs there are at once.
CHUNKS = 400
STREAMING_AT_A_TIME = 4
# Runs that are tried once, at most, that have not ended.
ONCE_AT_A_TIME = 40


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    seconds: float
    seed: int
    writers: int
    runs: int
    workers: int
    wave_size: int
    pause_seconds: float


def main() -> None:
    """Parse, torture, say how it went; the exit code is 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="make torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long the fire lasts")
    parser.add_argument("--seed", type=int, help="what is drawn; default: by chance")
    parser.add_argument("--writers", type=int, default=64, help="writers from outside")
    parser.add_argument("--runs", type=int, default=4, help="shared runs that they write to")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--wave-size", type=int, default=1000, help="children of each root")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two kills, about")
    given = parser.parse_args()
    options = Options(
        seconds=given.seconds,
        seed=random.randrange(1_000_000) if given.seed is None else given.seed,
        writers=given.writers,
        runs=given.runs,
        workers=given.workers,
        wave_size=given.wave_size,
        pause_seconds=given.pause,
    )
    folder = Path(tempfile.mkdtemp(prefix="milepost-torture-"))
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
    """One session, from the start of the server to the last check."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self.verdict = Verdict()
        self._faults: Counter[str] = Counter()
        self._waves: list[Run] = []
        self._writers: list[Writer] = []
        self._watchers: list[Watcher] = []
        self._stream_readers: list[StreamReader] = []
        self._streams_watchers: list[StreamsWatcher] = []
        self._chunk_count = 0
        self._log_operations = 0
        self._struck = Struck()
        self._runs_found: Counter[str] = Counter()
        self._fire_seconds = 0.0
        # How long the server took to start the last time: how busy the machine is.
        self._start_seconds = 0.0

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
        port = free_port()
        async with Proxy(port, Chances(), self._chance("proxy")) as self._proxy:
            self._server = Process(
                "server",
                ["server", "--port", str(port), "--data", str(self._folder / "data")],
                folder=self._folder,
                env={"MILEPOST_SECRET_KEY": SECRET_KEY, "MILEPOST_LEASE_SECONDS": str(LEASE_SECONDS)},
            )
            self._port = port
            # Until there is something to torture.
            self._proxy.is_calm = True
            self._workers = [
                Process(
                    f"worker-{number}",
                    [
                        "worker",
                        str(HERE / "torture_tasks.py"),
                        "--processes",
                        "1",
                        "--grace",
                        "1",
                        "--concurrency",
                        str(CONCURRENCY),
                    ],
                    folder=self._folder,
                    env={"MILEPOST_SECRET_KEY": SECRET_KEY, "MILEPOST_API_URL": self._proxy.url},
                )
                for number in range(1, self._options.workers + 1)
            ]
            try:
                await self._server.start()
                await until_up(self._server, port)
                for worker in self._workers:
                    await worker.start()
                await self._load()
            finally:
                await asyncio.gather(*(worker.end() for worker in self._workers))
                await self._server.end()
        self._check_logs()
        accounts = {
            run_id: {writer.number: writer.accounts[run_id] for writer in self._writers}
            for run_id in self._shared_ids
        }
        database = self._folder / "data" / "milepost.db"
        self._log_operations = check_log(database, accounts, self._folder, self.verdict)
        self._runs_found = check_executions(database, self._folder, self._struck, self.verdict)
        audit = StreamAudit(database, self.verdict)
        audit.check(self._stream_readers, self._streams_watchers)
        self._chunk_count = audit.chunk_count

    # --- the load ------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        client = self._client = Client(self._proxy.url, SECRET_KEY)
        first = {TEXT_KEY: "no number"}
        self._shared_ids = [
            await self._trigger("shared", number, metadata=first) for number in range(self._options.runs)
        ]
        self._proxy.is_calm = False
        self._writers = [
            Writer(number, client, self._shared_ids, self._chance(f"writer {number}"), self.verdict)
            for number in range(self._options.writers)
        ]
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
            fire = [
                group.create_task(self._kill_workers()),
                group.create_task(self._kill_server()),
                group.create_task(self._say(started)),
            ]
            await self._pause(self._options.seconds)
            self._stop.set()
            await asyncio.wait(fire)
            self._fire_seconds = time.monotonic() - started
            self._proxy.is_calm = True
            print("the fire has ceased; waiting for everything to come to its end", flush=True)
            try:
                async with asyncio.timeout(SETTLE_SECONDS_MAX):
                    await self._settle(writing, waves, watching)
                    await feeding
                    await asyncio.wait(streaming)
                    await self._gather()
            except TimeoutError:
                self._name_unfinished(writing, waves, watching, streaming)
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

    def _name_unfinished(
        self,
        writing: list[asyncio.Task[None]],
        waves: asyncio.Task[None],
        watching: list[asyncio.Task[None]],
        streaming: list[asyncio.Task[None]],
    ) -> None:
        for what, tasks in (
            ("a writer", writing),
            ("a wave", [waves]),
            ("a subscriber", watching),
            ("a reader of streams", streaming),
        ):
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
        if not all(run.output for run in gathered):
            here = (self._folder / "gathering.txt").stat().st_size
            self.verdict.add(
                "leaked slot", f"{here} runs execute at once, there are {slots} slots", slots - here
            )

    async def _trigger(self, task_id: str, payload: object, **options: Any) -> str:
        """Trigger one run, however long it takes until the server is there."""
        return (
            await until_answered(self._client, calls.trigger(task_id, trigger_request(payload, options)))
        ).id

    # --- the fire ------------------------------------------------------------------------------------------

    async def _kill_workers(self) -> None:
        chance = self._chance("workers")
        while await self._goes_on(chance):
            worker = chance.choice(self._workers)
            if worker.has_ended:
                self.verdict.add("broken", f"{worker.name} has ended by itself; {worker.log} says why")
                return
            executors = worker.children(older_than_seconds=self._start_seconds + self._options.pause_seconds)
            if not executors:
                # It has hardly begun to work since it was killed the last time.
                continue
            if chance.random() < STOP_SHARE:
                self._faults["workers stopped for longer than the lease"] += 1
                executor = chance.choice(executors)
                self._struck.stopped.add(executor.pid)
                await self._stop_for_a_while([executor], LEASE_SECONDS * 1.5)
            elif chance.random() < 0.6:
                self._faults["executors killed"] += 1
                executor = chance.choice(executors)
                self._struck.killed.add(executor.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    executor.kill()
            elif chance.random() < SUPERVISOR_SHARE:
                self._faults["supervisors killed"] += 1
                await worker.kill_alone()
                await worker.start()
            else:
                self._faults["whole workers killed"] += 1
                self._struck.killed |= {child.pid for child in worker.children()}
                await worker.kill()
                await worker.start()

    async def _stop_for_a_while(self, processes: list[psutil.Process], seconds: float) -> None:
        try:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            await self._pause(seconds)
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    async def _kill_server(self) -> None:
        chance = self._chance("server")
        spared_seconds = 0.0
        while await self._goes_on(chance, spared_seconds):
            if self._server.has_ended:
                self.verdict.add("broken", f"the server has ended by itself; {self._server.log} says why")
                return
            if chance.random() < SERVER_STOP_SHARE:
                await self._stop_server(chance)
                continue
            self._faults["server killed"] += 1
            await self._server.kill()
            started = time.monotonic()
            await self._server.start()
            await until_up(self._server, self._port)
            # On a busy machine it lives at least as long as it takes to start, or it would hardly ever be there.
            self._start_seconds = spared_seconds = time.monotonic() - started
            if chance.random() < LONG_LIFE_SHARE:
                spared_seconds += LONG_LIFE_SECONDS

    async def _stop_server(self, chance: random.Random) -> None:
        """Nobody can be heard meanwhile, so it costs no run anything."""
        seconds = LEASE_SECONDS * chance.choice([0.3, 1.5])
        everything = chance.random() < 0.5
        self._faults["everything stopped" if everything else "server stopped"] += 1
        stopped = [psutil.Process(self._server.process_id), *self._server.children()]
        if everything:
            for worker in self._workers:
                stopped += worker.children()
        await self._stop_for_a_while(stopped, seconds)

    async def _goes_on(self, chance: random.Random, seconds_min: float = 0.0) -> bool:
        """Pause; False when it is time to stop."""
        await self._pause(max(seconds_min, self._options.pause_seconds * chance.uniform(0.5, 1.5)))
        return not self._stop.is_set()

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, or until it is time to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

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

    def _check_logs(self) -> None:
        """What the processes have written: no locked database, no traceback."""
        for process in (self._server, *self._workers):
            text = EXPECTED_ERRORS.sub("", process.log.read_text(errors="replace"))
            for words in ("database is locked", "Traceback (most recent call last)"):
                if words in text:
                    self.verdict.add("broken", f"{words!r} in {process.log}", text.count(words))

    @property
    def _acknowledged(self) -> int:
        of_waves = len(self._waves) * self._options.wave_size * (torture_tasks.INCREMENTS + 1)
        return of_waves + sum(writer.acknowledged for writer in self._writers)

    async def _say(self, started: float) -> None:
        while not self._stop.is_set():
            await self._pause(SAY_SECONDS)
            seconds = time.monotonic() - started
            faults = self._faults.total() + self._proxy.injected.total()
            print(
                f"{seconds:6.0f} s  {self._acknowledged:,} operations acknowledged, {len(self._waves)} waves, {faults:,} faults",
                flush=True,
            )

    def report(self) -> None:
        """Print everything that is to be known."""
        rate = self._acknowledged / self._fire_seconds if self._fire_seconds else 0
        requests_twice = sum(writer.repeats for writer in self._writers)
        print(f"\nseed                         {self._options.seed}")
        print(f"seconds under fire           {self._fire_seconds:.1f}")
        print(f"operations acknowledged      {self._acknowledged:,}")
        print(f"operations per second        {rate:,.0f}")
        print(f"operations found in the log  {self._log_operations:,} of the shared runs")
        print(f"waves                        {len(self._waves)} of {self._options.wave_size} children")
        print(f"states seen by subscribers   {sum(watcher.states for watcher in self._watchers):,}")
        resumes = sum(reader.resumes for reader in self._stream_readers)
        print(
            f"chunks of streams            {self._chunk_count:,}, read by {len(self._stream_readers)} readers"
        )
        print("faults injected")
        faults = {**self._faults, **{fate.value: count for fate, count in self._proxy.injected.items()}}
        faults["requests sent twice at once"] = requests_twice
        faults["readers of streams that went on elsewhere"] = resumes
        for what, count in sorted(faults.items()):
            print(f"  {count:8,}  {what}")
        print("runs that are tried once, and how their attempts have ended")
        for what, count in sorted(self._runs_found.items()):
            print(f"  {count:8,}  {what}")
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in KINDS))
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in RUN_KINDS))
        print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in STREAM_KINDS))
        for example in self.verdict.examples:
            print(f"  {example}")


if __name__ == "__main__":
    main()
