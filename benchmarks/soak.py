"""A soak: 8 executors, each with one run that updates its metadata 50 times a second, for a long time.

    make soak SECONDS=600
    make soak DATABASE=postgres

Each tick is a `set`, an `increment` and an `append` with a window. A subscriber for each run, all in a process of their own, measures
from the call to the state that shows it. Memory of the server and of the executors is taken all along; pages of files, such as the
database that SQLite maps, are left out, because the system takes them back when it needs them. The exit code is 1 when an update is
missing, a group of commands could not be committed at once (a locked database, for one), or memory has grown by more than 5 % from
the second quarter of the time to the last one. What is kept for readers (256 KB of log for each document) and SQLite's page cache
(16 MB) fill in the first five minutes, so memory is judged from 600 s on and only told before that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_tasks
import harness
from harness import House

from milepost import Client

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

if TYPE_CHECKING:
    from support.postgres import PostgresServer

EXECUTORS = 8
UPDATES_PER_SECOND = 50
CALLS_PER_UPDATE = 3
GROWTH_PERCENT_MAX = 5.0
JUDGED_SECONDS_MIN = 600.0
SAMPLES = 400
# As PostgreSQL is by itself: what is acknowledged survives a power loss, and what is dead is cleared away.
POSTGRES_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
}
TROUBLES = ("database is locked", "could not be committed")
# What the runs may take beyond their time.
END_SECONDS_MAX = 60.0


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--read", action="store_true", help="be the process of the subscribers")
    given = parser.parse_args()
    if given.read:
        asyncio.run(read_all())
        return 0
    harness.end_cleanly_on_sigterm()
    print(f"Milepost, {harness.machine()}", flush=True)
    if given.database == "sqlite":
        with harness.dev(processes=EXECUTORS, concurrency=1) as house:
            return soak(house, given.seconds)
    from support import postgres

    server = postgres.PostgresServer(
        Path(tempfile.mkdtemp(prefix="milepost-postgres-")), settings=POSTGRES_SETTINGS
    )
    try:
        url = server.url(server.create_database())
        with harness.dev(processes=EXECUTORS, concurrency=1, database_url=url) as house:
            wal_before = wal_bytes(server)
            code = soak(house, given.seconds)
            print(f"written ahead (WAL)         {(wal_bytes(server) - wal_before) / 1e6:,.1f} MB")
            return code
    finally:
        server.end()


def wal_bytes(server: PostgresServer) -> int:
    """How much PostgreSQL has written to its log so far."""
    with server.administer() as connection:
        found = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
    assert found is not None
    return found[0]


# --- the subscribers, in their own process -----------------------------------------------------------------


@dataclass
class Seen:
    """What the subscriber of one run has seen. Latencies in ms: of the newest `set` in each state, and of every append."""

    states: int = 0
    went_backwards: int = 0
    missed: int = 0
    of_sets: list[float] = field(default_factory=list[float])
    of_appends: list[float] = field(default_factory=list[float])
    last: dict[str, Any] = field(default_factory=dict[str, Any])

    def take(self, document: dict[str, Any], version: int, before: int) -> None:
        """A state has come."""
        now = time.monotonic_ns()
        self.states += 1
        self.went_backwards += version < before
        ticks = document.get("ticks", [])
        newest = self.last.get("t", 0)
        if document.get("t", 0) > newest:
            self.of_sets.append((now - document["t"]) / 1e6)
        new = [tick for tick in ticks if tick > newest]
        self.of_appends += [(now - tick) / 1e6 for tick in new]
        self.missed += document.get("count", 0) - self.last.get("count", 0) - len(new)
        self.last = document


async def read_all() -> None:
    """Subscribe to the runs that standard input names, follow them to their ends, print what was seen."""
    wanted = json.loads(sys.stdin.readline())
    client = Client(wanted["url"], wanted["secret_key"])
    watched = [Seen() for _ in wanted["run_ids"]]

    async def read(run_id: str, seen: Seen) -> None:
        before = 0
        async for run in client.runs.asubscribe(run_id):
            seen.take(run.metadata, run.metadata_version, before)
            before = run.metadata_version

    async with asyncio.TaskGroup() as group:
        for run_id, seen in zip(wanted["run_ids"], watched, strict=True):
            group.create_task(read(run_id, seen))
    print(
        json.dumps(
            {
                "states": sum(seen.states for seen in watched),
                "went_backwards": sum(seen.went_backwards for seen in watched),
                "missed": sum(seen.missed for seen in watched),
                "counts": [seen.last["count"] for seen in watched],
                "of_sets": sorted(ms for seen in watched for ms in seen.of_sets),
                "of_appends": sorted(ms for seen in watched for ms in seen.of_appends),
            }
        ),
        flush=True,
    )


# --- the soak ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Memory in MB at one moment, without pages of files, of the server and of all executors together; and PSS, which has them."""

    server: float
    executors: float
    server_pss: float
    executors_pss: float

    @classmethod
    def of(cls, house: House) -> Sample:
        """As it is now."""
        server = harness.memory(house.server_id)
        executors = [harness.memory(process_id) for process_id in house.worker_ids]
        return cls(
            server.anonymous,
            sum(memory.anonymous for memory in executors),
            server.pss,
            sum(memory.pss for memory in executors),
        )


def soak(house: House, seconds: float) -> int:
    """Run it, and say what came of it; 1 when something is wrong."""
    house.use()
    wanted = bench_tasks.Steady(seconds, 1 / UPDATES_PER_SECOND)
    batch = bench_tasks.soak.batch_trigger([wanted] * EXECUTORS)
    run_ids = [run.id for run in batch.runs]
    with subprocess.Popen(
        [sys.executable, __file__, "--read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdin is not None
            wanted_by_reader = {"url": house.url, "secret_key": house.secret_key, "run_ids": run_ids}
            reader.stdin.write(json.dumps(wanted_by_reader) + "\n")
            reader.stdin.flush()
            samples = take_samples(house, seconds)
            read, _ = reader.communicate(timeout=END_SECONDS_MAX)
        finally:
            reader.kill()
    results = [house.client.runs.retrieve(run_id) for run_id in run_ids]
    log = (house.folder.parent / "stderr.txt").read_text()
    return judge(seconds, samples, json.loads(read), [run.output for run in results], results, log)


def take_samples(house: House, seconds: float) -> list[Sample]:
    """Memory at even distances, from the start of the runs to their end."""
    started = time.monotonic()
    samples: list[Sample] = []
    for number in range(SAMPLES):
        time.sleep(max(0.0, started + seconds * number / SAMPLES - time.monotonic()))
        samples.append(Sample.of(house))
    return samples


def judge(
    seconds: float, samples: list[Sample], read: dict[str, Any], ticks: list[Any], runs: list[Any], log: str
) -> int:
    """Print all, and whatever is wrong at the end."""
    wrong: list[str] = []
    processes = {run.metadata.get("process") for run in runs}
    calls = sum(tick or 0 for tick in ticks) * CALLS_PER_UPDATE
    print(f"seconds                     {seconds:g}")
    print(f"runs in processes           {len(runs)} in {len(processes)}")
    print(f"ticks of each run           {min(ticks)} to {max(ticks)}, due {seconds * UPDATES_PER_SECOND:.0f}")
    print(f"updates                     {calls:,}")
    print(f"states seen by subscribers  {read['states']:,}")
    for name, text in (("of_sets", "newest set -> subscriber"), ("of_appends", "every append -> subscriber")):
        p50, p99 = (harness.percentile(read[name], share) for share in (0.5, 0.99))
        print(f"{text:<26}  p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {read[name][-1]:.0f} ms")
    for name in ("server", "executors"):
        second, last = (quarter(samples, name, number) for number in (2, 4))
        growth = (last / second - 1) * 100
        pss = [quarter(samples, f"{name}_pss", number) for number in (2, 4)]
        print(
            f"memory of {name:<9}         {second:.1f} MB in the second quarter, {last:.1f} MB in the last: {growth:+.1f} % "
            f"(with pages of files {pss[0]:.1f} and {pss[1]:.1f} MB)"
        )
        if growth > GROWTH_PERCENT_MAX and seconds >= JUDGED_SECONDS_MIN:
            wrong.append(
                f"the memory of {name} has grown by {growth:.1f} %, more than {GROWTH_PERCENT_MAX:g} %"
            )
    if seconds < JUDGED_SECONDS_MIN:
        print(f"memory is not judged        caches are still filling before {JUDGED_SECONDS_MIN:g} s")
    if read["counts"] != ticks or [run.metadata["count"] for run in runs] != ticks:
        wrong.append(f"the runs made {ticks} ticks, their documents count {read['counts']}")
    if read["went_backwards"]:
        wrong.append(f"{read['went_backwards']} states were older than the one before")
    for trouble in TROUBLES:
        print(f"{trouble:<27} {log.count(trouble)} times")
        if trouble in log:
            wrong.append(f"{trouble!r} stands {log.count(trouble)} times in the log")
    if "Traceback" in log:
        wrong.append(f"there is a traceback in what the processes wrote:\n{log}")
    for what in wrong:
        print(f"WRONG: {what}")
    return 1 if wrong else 0


def quarter(samples: list[Sample], name: str, number: int) -> float:
    """The median of one quarter of the time, from 1 to 4."""
    size = len(samples) // 4
    return statistics.median(getattr(sample, name) for sample in samples[(number - 1) * size : number * size])


if __name__ == "__main__":
    sys.exit(main())
