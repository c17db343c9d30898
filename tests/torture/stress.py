"""Stress: many mixed runs with real processes, and each of them ends as it has to.

    make stress RUNS=100000 SEED=1
    make stress DATABASE=postgres SERVERS=3

A load triggers runs of every kind: some fail once or for good, take longer than they may, wait for a time, for tokens or for their
children, have delays, times to live, concurrency keys and idempotency keys, or take their process along; trees are three levels deep.
Runs are cancelled at any moment. Meanwhile workers are killed and stopped for longer than their lease, servers are killed once and
restarted once. In the end every run is final and in a status that it may have, each child is counted once, no place in a queue or a
worker is leaked, and memory is flat.

The seed decides what is drawn; when it happens depends on the machine.
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
from pathlib import Path

import psutil
import stress_tasks as tasks
import torture_tasks
from database import DATABASES, Database
from fire import Fire, Server, Worker
from memory import Memory
from processes import UP_SECONDS_MAX, Process, check_logs, free_ports, until_up
from stress_audit import StressAudit
from stress_load import TENANTS, Load
from verdict import KINDS, RUN_KINDS, STRESS_KINDS, Verdict

from milepost import Client
from milepost.model.run import FINAL_STATUSES

HERE = Path(__file__).resolve().parent
SECRET_KEY = "stress"
LEASE_SECONDS = 4
STOP_GRACE_SECONDS = 2
PAUSE_SECONDS = 2.5
CONCURRENCY = 40
# So many runs that have not ended there may be before more are triggered.
OPEN_RUNS_MAX = 2000
# How far the session is when servers are killed, and when they are restarted in order: both before memory is looked at.
KILLED_AT, RESTARTED_AT = 0.1, 0.25
# For so long nothing need end once all was triggered; then what has not ended is stuck.
STILL_SECONDS_MAX = 45.0
CANARY_SECONDS_MAX = 60.0
SAY_SECONDS = 10.0
EXPECTED_ERRORS = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ +|].*\n|\n)*"
    r"(?:ValueError: on purpose|\S*AbortTaskRun: on purpose|\S*AttemptOverError"
    r"|\S*(?:MaxDuration|RunCancelled|Cancelled)Error: the (?:run|attempt) ).*$",
    re.MULTILINE,
)
ALL_RUNS = "SELECT status, count AS number FROM run_counts WHERE parent_id = ''"


def main() -> None:
    """Parse, stress, say how it went; the exit code is 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="make stress", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000, help="how many runs there are to be at least")
    parser.add_argument("--seconds", type=float, default=3600, help="trigger no more after so many seconds")
    parser.add_argument("--seed", type=int, help="what is drawn; default: by chance")
    parser.add_argument(
        "--database", choices=DATABASES, default="sqlite", help="where the servers keep things"
    )
    parser.add_argument("--servers", type=int, default=1, help="server processes; several need postgres")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    options = parser.parse_args()
    servers_max = DATABASES[options.database].servers_max
    if not 1 <= options.servers <= servers_max:
        parser.error(
            f"with DATABASE={options.database} there can be 1 to {servers_max} servers, not {options.servers}"
        )
    if options.runs < 1 or options.seconds <= 0 or options.workers < 2:
        parser.error(
            "there have to be a run, some seconds and two workers at least: one is spared, others are killed"
        )
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="milepost-stress-"))
    # PostgreSQL, which refuses to be run by root, has to find its own folder in it.
    folder.chmod(0o711)
    print(f"seed {options.seed}, {options.runs:,} runs, {folder}", flush=True)
    stress = Stress(options, folder)
    try:
        asyncio.run(stress.run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"broken off; what was there is kept in {folder}")
        sys.exit(130)
    stress.report()
    if not stress.verdict.is_good:
        print(f"everything is kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


class Stress:
    """One session, from the start of the servers to the last check."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self.verdict = Verdict()
        self._memory = Memory()
        self._memory_lines: list[str] = []
        self._progress = 0.0
        self._open, self._ended = 0, 0
        self._load_seconds = 0.0

    async def run(self) -> None:
        """All of it. Whatever happens, no process is left behind."""
        self._stop = asyncio.Event()
        this = asyncio.current_task()
        assert this is not None

        def interrupted() -> None:
            # The first signal ends the load early and lets everything be checked; the second one breaks off.
            if self._stop.is_set() and not this.cancelling():
                this.cancel()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted)
        self._database: Database = await asyncio.to_thread(
            DATABASES[self._options.database], self._folder / "data"
        )
        try:
            await self._run_processes()
            processes = (one.process for one in (*self._servers, *self._workers))
            check_logs(processes, EXPECTED_ERRORS, self.verdict)
            self._audit = StressAudit(self._database, self._folder, self._load, self.verdict)
            self._audit.check()
            self._memory_lines = self._memory.judge(self.verdict)
        finally:
            self._database.end()

    async def _run_processes(self) -> None:
        ports = free_ports(self._options.servers)
        environment = {
            "MILEPOST_SECRET_KEY": SECRET_KEY,
            "MILEPOST_LEASE_SECONDS": str(LEASE_SECONDS),
            "MILEPOST_STOP_GRACE_SECONDS": str(STOP_GRACE_SECONDS),
            **self._database.environment,
        }
        self._servers = [
            Server(
                Process(
                    f"server-{number}", ["server", "--port", str(port)], folder=self._folder, env=environment
                ),
                port,
            )
            for number, port in enumerate(ports, 1)
        ]
        self._workers = [
            self._worker(number, ports[number % len(ports)]) for number in range(self._options.workers)
        ]
        client = Client(f"http://127.0.0.1:{ports[0]}", SECRET_KEY)
        self._load = Load(client, random.Random(f"{self._options.seed} load"), self.verdict)
        self._fire = Fire(
            self._servers,
            # One is spared: what it holds after all is to be seen.
            self._workers[1:],
            self._database,
            self.verdict,
            stop=self._stop,
            lease_seconds=LEASE_SECONDS,
            pause_seconds=PAUSE_SECONDS,
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
            await self._until_offered()
            await self._stress()
            await client.async_transport.close()
        finally:
            await asyncio.gather(*(process.end() for process in processes))

    def _worker(self, number: int, port: int) -> Worker:
        process = Process(
            f"worker-{number + 1}",
            [
                "worker", str(HERE / "stress_tasks.py"), "--processes", "1", "--grace", "1",
                "--concurrency", str(CONCURRENCY), "--isolated", "1", "--log-level", "warning",
            ],
            folder=self._folder,
            env={
                "MILEPOST_SECRET_KEY": SECRET_KEY,
                "MILEPOST_API_URL": f"http://127.0.0.1:{port}",
                torture_tasks.WORKER_VARIABLE: str(number),
            },
        )  # fmt: skip
        return Worker(process, None)

    async def _until_offered(self) -> None:
        """Wait until a worker offers the tasks. Raises TimeoutError."""
        async with asyncio.timeout(UP_SECONDS_MAX):
            while not await asyncio.to_thread(lambda: list(self._database.rows("SELECT id FROM tasks"))):
                await self._fire.pause(0.1)

    async def _stress(self) -> None:
        """The load under fire, then calm until all has ended, then canaries."""
        started = time.monotonic()
        watching = asyncio.create_task(self._watch(started))
        try:
            at_workers = asyncio.create_task(self._fire.at_workers())
            at_servers = asyncio.create_task(self._strike_servers())
            while not self._stop.is_set():
                await self._load.portion()
                await self._look()
                while self._open > OPEN_RUNS_MAX and not self._stop.is_set():
                    await self._fire.pause(0.1)
                    await self._look()
                if self._open + self._ended >= self._options.runs:
                    break
                if time.monotonic() - started > self._options.seconds:
                    break
            # Where there are few runs all of them may be triggered before it is the servers' turn.
            while self._open and not at_servers.done() and not self._stop.is_set():
                await self._fire.pause(0.1)
                await self._look()
            self._stop.set()
            await asyncio.gather(at_workers, at_servers)
            self._fire.check_alive()
            self._load_seconds = time.monotonic() - started
            print(
                f"{self._open + self._ended:,} runs were triggered; waiting until they have ended", flush=True
            )
            await self._load.steered()
            await self._settle()
            self._progress = 1.0
            await self._fly_canaries()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _look(self) -> None:
        """How many runs have ended, and how many have not."""
        rows = await asyncio.to_thread(lambda: list(self._database.rows(ALL_RUNS)))
        self._ended = sum(row["number"] for row in rows if row["status"] in FINAL_STATUSES)
        self._open = sum(row["number"] for row in rows) - self._ended
        self._progress = min(self._ended / self._options.runs, 0.99)

    async def _strike_servers(self) -> None:
        for at, strike in ((KILLED_AT, self._kill_servers), (RESTARTED_AT, self._restart_servers)):
            while self._progress < at and not self._stop.is_set():
                await self._fire.pause(0.1)
            await strike()

    async def _kill_servers(self) -> None:
        for number in range(len(self._servers)):
            await self._fire.kill_server(number)

    async def _restart_servers(self) -> None:
        await self._fire.restart_servers(1)

    async def _settle(self) -> None:
        """Wait until every run has ended, or none ends any more."""
        ended, since = -1, time.monotonic()
        while True:
            await self._look()
            if not self._open:
                return
            if self._ended != ended:
                ended, since = self._ended, time.monotonic()
            if time.monotonic() - since > STILL_SECONDS_MAX:
                print(f"{self._open:,} runs do not end", flush=True)
                return
            await asyncio.sleep(0.2)

    async def _fly_canaries(self) -> None:
        """One run more through every queue and key than its limit, and as many runs at once as workers have slots."""
        slots = len(self._workers) * CONCURRENCY
        tenants = [f"tenant-{number}" for number in range(TENANTS)]
        flights = [
            *(self._load.canary(tasks.narrowly, 1) for _ in range(tasks.LIMITS[tasks.narrow.name] + 1)),
            *(self._load.canary(tasks.branch, 1) for _ in range(tasks.LIMITS[tasks.branches.name] + 1)),
            *(self._load.canary(tasks.in_time, 1) for _ in range(2)),
            *(self._load.canary(tasks.lingering, 1) for _ in range(tasks.LIMITS[tasks.roomy.name] + 1)),
            *(
                self._load.canary(tasks.of_tenant, 1, concurrency_key=key)
                for key in tenants
                for _ in range(3)
            ),
            *(self._load.canary(torture_tasks.gathering, slots) for _ in range(slots)),
        ]
        await asyncio.gather(*flights)
        until = time.monotonic() + CANARY_SECONDS_MAX
        await self._look()
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.2)
            await self._look()
        query = "SELECT output FROM runs WHERE task = ? AND status = 'COMPLETED'"
        gathered = sum(
            row["output"] == "true" for row in self._database.rows(query, [torture_tasks.gathering.id])
        )
        if gathered < slots:
            what = f"there are {slots} slots, and of as many runs {slots - gathered} have waited in vain for the others"
            self.verdict.add("leaked slot", what, slots - gathered)

    async def _watch(self, started: float) -> None:
        said_at = started
        while True:
            await asyncio.sleep(1)
            for server in self._servers:
                self._sample(server.process)
            for worker in self._workers:
                self._sample(worker.process)
            if time.monotonic() - said_at >= SAY_SECONDS:
                said_at = time.monotonic()
                seconds = said_at - started
                print(
                    f"{seconds:6.0f} s  {self._ended:,} runs have ended ({self._ended / seconds:.0f}/s), {self._open:,} have not; "
                    f"{self._fire.faults.total()} faults, {self._load.counts['cancels']:,} cancels",
                    flush=True,
                )

    def _sample(self, process: Process) -> None:
        try:
            command = psutil.Process(process.process_id)
        except psutil.NoSuchProcess:
            return
        self._memory.sample(process.name, [command], self._progress)
        self._memory.sample(f"{process.name} child", process.children(), self._progress)

    def report(self) -> None:
        """Print everything that is to be known."""
        options, audit = self._options, self._audit
        print(f"\nseed                  {options.seed}")
        print(
            f"database              {options.database}, {options.servers} servers, {options.workers} workers"
        )
        print(f"runs                  {audit.run_count:,}")
        print(f"seconds of the load   {self._load_seconds:.1f}")
        print(f"runs per second       {self._ended / (self._load_seconds or 1):.0f}")
        print(f"children counted      {audit.counted:,}")
        for title, counts in (
            ("done from outside", self._load.counts),
            ("faults", self._fire.faults),
            ("runs by status and task", audit.found),
            ("how attempts have ended, but for the last of a completed run", audit.ends),
        ):
            print(title)
            for what, count in sorted(counts.items()):
                print(f"  {count:8,}  {what}")
        print("memory")
        for line in self._memory_lines:
            print(f"  {line}")
        for kinds in (KINDS, RUN_KINDS, STRESS_KINDS):
            print("  ".join(f"{kind} {self.verdict.counts[kind]}" for kind in kinds))
        for example in self.verdict.examples:
            print(f"  {example}")


if __name__ == "__main__":
    main()
