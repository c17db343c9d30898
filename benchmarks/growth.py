"""What grows: runs and updates with 10,000 and with 10,000,000 runs in the database, on SQLite; frames with 100 and 10,000 watchers.

    python benchmarks/growth.py [--quick] [--markdown] [--runs 10000000]

Not part of `make bench`: it needs some minutes and about 0.6 GB for each million of runs, in a temporary folder. The runs that are
there before are copies, made by SQL, of twenty that went through the engine: nineteen completed and one failed, two of them with a
document that was written to and is indexed. What is measured goes through engine, store and reader as a server's would, without HTTP
and without workers.
"""

import argparse
import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import bench_tasks
import harness
from engine_cost import BATCH, STEPS, Bench, now
from harness import Figure, House, Report
from watching import Watch, watch

from milepost.engine import commands
from milepost.engine.commands import IndexDocuments, TriggerBatch, TriggerItem
from milepost.model.filters import parse_filter
from milepost.model.operations import Operation, Set
from milepost.model.run import Outcome, RunError, RunStatus
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import RunReport, TargetOperations
from milepost.reading.reader import Reader
from milepost.store.database import Store
from milepost.store.runs import RunFilter

RUNS = 10_000_000
FEW_RUNS = 10_000
QUICK_RUNS = 40_000
TURNS = 5
TEMPLATES = 20
WITH_DOCUMENT = 2
COPIED_AT_ONCE = 200_000
UPDATED_RUNS = 200
ASKED = 40
WATCHERS = 10_000
FEW_WATCHERS = 100
QUICK_WATCHERS = 300
SEEN_UPDATES = 30
# Files that a process needs beside its connections.
OTHER_FILES = 300
SECONDS_MAX = 1800.0

# The tables that hold a run which has ended, with the column that names it.
COPIED = {"runs": "id", "changes": "run_id", "metadata_values": "run_id"}

READINGS: dict[str, tuple[str, RunFilter]] = {
    "newest": ("the newest 25 runs, p50", RunFilter()),
    "failed": ("the newest 25 that failed, p50", RunFilter(statuses=(RunStatus.FAILED,))),
    "found": (
        "the newest 25 with a value in their documents, p50",
        RunFilter(metadata=parse_filter({"progress": 100})),
    ),
}

FIGURES = (
    *(
        figure
        for name, text, unit in (
            ("run", "a run, triggered, claimed and completed", "µs"),
            ("update", "an update of metadata", "µs"),
            ("open", "opening the database, until the first command", "ms"),
            *((name, text, "ms") for name, (text, _) in READINGS.items()),
        )
        for figure in (
            Figure(f"{name}_few", f"{text}: {FEW_RUNS:,} runs before", unit),
            Figure(f"{name}_many", f"{text}: many runs before", unit),
            Figure(f"{name}_ratio", f"{text}: many compared with few", "x", at_most=1.5),
        )
    ),
    Figure("bytes", "the database, per run kept", "bytes"),
    Figure("frame_few", "processor time of the server for each frame, 100 watchers of one run", "µs"),
    Figure("frame_many", "processor time of the server for each frame, many watchers of one run", "µs"),
    Figure(
        "frame_ratio",
        "processor time of the server for each frame: many watchers compared with 100",
        "x",
        at_most=1.5,
    ),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_options(parser)
    parser.add_argument("--runs", type=int, default=RUNS, help="how many runs there are at the end")
    given = parser.parse_args()
    harness.end_cleanly_on_sigterm()
    many = QUICK_RUNS if given.quick else given.runs
    # As the server does, which else would look through all that was imported once in a while.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    title = f"With {FEW_RUNS:,} runs and with {many:,}"
    with (
        harness.at_most(SECONDS_MAX),
        harness.Report("growth", title, FIGURES, markdown=given.markdown) as report,
        tempfile.TemporaryDirectory(prefix="milepost-bench-") as folder,
    ):
        path = Path(folder) / "milepost.db"
        make_templates(path)
        few = measured(path, FEW_RUNS)
        much = measured(path, many)
        for name, value in few.items():
            report.add(f"{name}_few", value)
            report.add(f"{name}_many", much[name])
            report.add(f"{name}_ratio", much[name] / value)
        report.add("bytes", path.stat().st_size / many)
        path.unlink()
        measure_watchers(report, QUICK_WATCHERS if given.quick else WATCHERS)


def measure_watchers(report: Report, wanted: int) -> None:
    """Few and many watchers of one run, each sent the same updates."""
    many = min(wanted, harness.raise_open_files(wanted + OTHER_FILES) - OTHER_FILES)
    with harness.dev(processes=1) as house:
        few_each = frame_microseconds(house, FEW_WATCHERS, per_second=20)
        many_each = frame_microseconds(house, many, per_second=1)
    report.add("frame_few", few_each)
    report.add("frame_many", many_each, f"{many:,} watchers")
    report.add("frame_ratio", many_each / few_each)


def frame_microseconds(house: House, watchers: int, *, per_second: float) -> float:
    """What the server takes for a frame, from when all are connected until the run has ended."""
    house.use()
    with house.paused_workers():
        run_id = bench_tasks.stamp.trigger(bench_tasks.Updates(SEEN_UPDATES, per_second)).id
        watching = watch(Watch(house.url, house.secret_key, [run_id], times=watchers, sample_every=1000))
        used = house.cpu()
    with watching:
        seen = watching.take_until_ended(watchers, seconds=120)
        used = house.cpu() - used
    return used.server / seen.frames * 1e6


def make_templates(path: Path) -> None:
    """Let twenty runs go through the engine, to be copied."""
    store = Store(path)
    bench = Bench(store)
    items = [TriggerItem("noop", '{"row":1}', TriggerOptions()) for _ in range(TEMPLATES)]
    bench.do(TriggerBatch(items))
    reports: list[RunReport] = []
    for number, run in enumerate(bench.claim(TEMPLATES)):
        operations: list[Operation] = [Set("progress", 100), Set("file", f"people-{number}.csv")]
        error = RunError("ValueError", "no such column")
        reports.append(
            RunReport(
                id=run.id,
                attempt=run.attempt,
                sequence=1,
                changes=[TargetOperations(run.id, operations)] if number < WITH_DOCUMENT else [],
                outcome=Outcome(error=error) if number == TEMPLATES - 1 else Outcome(output="null"),
            )
        )
    bench.do(commands.Report("worker", reports))
    bench.do(IndexDocuments(TEMPLATES))
    store.close()


def fill(path: Path, many: int) -> None:
    """Copy the templates until there are so many runs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = -262144")
        [there] = connection.execute("SELECT count(*) FROM runs").fetchone()
        connection.execute(
            # The first ones, or the first copies of them, which are older than all others.
            "CREATE TEMP TABLE templates AS SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM runs ORDER BY id LIMIT ?",
            (TEMPLATES,),
        )
        first, end = there // TEMPLATES, many // TEMPLATES
        for start in range(first, end, COPIED_AT_ONCE // TEMPLATES):
            stop = min(end, start + COPIED_AT_ONCE // TEMPLATES)
            connection.execute("BEGIN")
            for table, key in COPIED.items():
                connection.execute(_copying(connection, table, key), (start, stop - 1))
            connection.execute("COMMIT")
        connection.execute(
            "INSERT OR REPLACE INTO run_counts (parent_id, status, count) SELECT '', status, count(*) FROM runs GROUP BY status"
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copying(connection: sqlite3.Connection, table: str, key: str) -> str:
    """The statement that copies the rows of the templates, for the copies of two numbers and all between."""
    # In the order of their numbers, and older than all that is triggered.
    new_id = f"printf('run_%024d', numbers.number * {TEMPLATES} + templates.place)"
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    replaced = {
        key: new_id,
        "root_id": new_id,
        "batch_id": "NULL",
        "batch_index": "NULL",
        "writer_id": new_id,
    }
    values = ", ".join(replaced.get(name, f"source.{name}") for name in columns)
    return (
        "WITH RECURSIVE numbers(number) AS (VALUES (?1) UNION ALL SELECT number + 1 FROM numbers WHERE number < ?2) "
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM numbers CROSS JOIN templates "
        f"CROSS JOIN {table} AS source ON source.{key} = templates.id"
    )


def measured(path: Path, many: int) -> dict[str, float]:
    """Every figure with so many runs in the database."""
    fill(path, many)
    began = time.perf_counter()
    store = Store(path)
    bench = Bench(store)
    figures = {"open": (time.perf_counter() - began) * 1000}
    turns = [bench.measure(BATCH, None) for _ in range(TURNS)]
    figures["run"] = statistics.median(sum(turn[step] for step in STEPS) for turn in turns) / BATCH * 1e6
    figures["update"] = update_microseconds(bench)
    reader = Reader(
        store, queued_reason=lambda run: None, known_queues=lambda: bench._engine.state, clock=now
    )
    for name, (_, filter) in READINGS.items():
        figures[name] = middle_ms(lambda filter=filter: reader.page(filter, size=25))
    store.close()
    return figures


def update_microseconds(bench: Bench) -> float:
    """Processor time of an update: reports of 200 runs, each with one operation."""
    bench.do(TriggerBatch([TriggerItem("noop", None, TriggerOptions()) for _ in range(UPDATED_RUNS)]))
    runs: Sequence[Any] = bench.claim(UPDATED_RUNS)
    taken: list[float] = []
    for sequence in range(1, 4 * TURNS):
        operations: list[Operation] = [Set("progress", sequence)]
        began = time.process_time()
        bench.do(
            commands.Report(
                "worker",
                [
                    RunReport(
                        id=run.id,
                        attempt=run.attempt,
                        sequence=sequence,
                        changes=[TargetOperations(run.id, operations)],
                    )
                    for run in runs
                ],
            )
        )
        taken.append((time.process_time() - began) / UPDATED_RUNS * 1e6)
    bench.do(
        commands.Report(
            "worker",
            [
                RunReport(id=run.id, attempt=run.attempt, sequence=4 * TURNS, outcome=Outcome(output="null"))
                for run in runs
            ],
        )
    )
    return statistics.median(taken)


def middle_ms(ask: Callable[[], Any]) -> float:
    """How long a question takes, the median of many."""
    taken: list[float] = []
    for _ in range(ASKED):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
