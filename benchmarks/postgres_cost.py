"""What runs and updates cost PostgreSQL, and which way of writing many rows at once costs least.

    python benchmarks/postgres_cost.py [--quick] [--markdown]

A PostgreSQL 18 of its own on this machine with `fsync` on and its usual settings. Engine and store alone, without HTTP and without a
worker, in groups as a busy server makes them and in groups of one. Bytes of the write-ahead log are those that PostgreSQL counts; what
it writes for itself at checkpoints is part of them. `HOT` are the updates of rows that touch no index.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import psycopg
from engine_cost import BATCH, Bench
from harness import Figure, Options
from sqlalchemy import text

from milepost.engine.commands import Report, Trigger, TriggerBatch, TriggerItem
from milepost.model.operations import Increment, Set
from milepost.model.run import Outcome
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import RunReport, TargetOperations
from milepost.store.database import Store

sys.path.insert(0, str(harness.HERE.parent / "tests"))

from support.postgres import PostgresServer

SECONDS_MAX = 150.0
GROUP = 200
ALONE = 500
ROWS = 1000
_SETTINGS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB", "autovacuum": "on"}
WAYS = ("lists", "pipeline", "copy")
FIGURES = (
    Figure("run_wal", "log of 1,000 runs, in groups", "KB"),
    Figure("run_transactions", "transactions of 1,000 runs, in groups", ""),
    Figure("run_engine", "processor time of the engine per run, in groups", "µs"),
    Figure("run_alone_wal", "log of 1,000 runs, each command a group", "KB"),
    Figure("run_alone_transactions", "transactions of 1,000 runs, each command a group", ""),
    Figure("update_wal", "log of 1,000 updates of 200 documents, in groups", "KB"),
    Figure("update_transactions", "transactions of 1,000 updates, in groups", ""),
    Figure("update_engine", "processor time of the engine per update, in groups", "µs"),
    Figure("update_alone_wal", "log of 1,000 updates, each a group", "KB"),
    Figure("parent_wal", "log of 1,000 increments of one parent, in groups", "KB"),
    Figure("hot", "rows updated by these updates that are HOT", "%", at_least=90),
    *(
        Figure(f"{kind}_{way}", f"{kind} of {ROWS:,} rows: {text}", "ms")
        for kind in ("insert", "update")
        for way, text in zip(
            WAYS,
            (
                "one statement of lists (`unnest`)",
                "one statement each, pipelined",
                "COPY to a temporary table",
            ),
            strict=True,
        )
    ),
)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures."""
    with (
        harness.Report(
            "postgres", "PostgreSQL: what runs and updates cost it", FIGURES, markdown=options.markdown
        ) as report,
        postgres() as server,
    ):
        measure_engine(report, server, quick=options.quick)
        measure_ways(report, server, quick=options.quick)


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server with its usual settings."""
    server = PostgresServer(Path(tempfile.mkdtemp(prefix="milepost-bench-")), settings=_SETTINGS)
    try:
        yield server
    finally:
        server.end()


# --- engine and store ----------------------------------------------------------------------------------------


def measure_engine(report: harness.Report, server: PostgresServer, *, quick: bool) -> None:
    """Runs and updates."""
    url = server.url(server.create_migrated_database())
    store = Store(url)
    bench = Bench(store)
    runs = BATCH if quick else 5 * BATCH
    alone = 50 if quick else ALONE
    bench.measure(BATCH, None)

    def add(name: str, count: int, work: Callable[[], Any], *, engine: str | None = None) -> None:
        wal, transactions, seconds = counted(url, work)
        report.add(f"{name}_wal", wal / count)
        if f"{name}_transactions" in {figure.name for figure in FIGURES}:
            report.add(f"{name}_transactions", transactions / count * 1000)
        if engine is not None:
            report.add(engine, seconds / count * 1e6)

    add("run", runs, lambda: bench.measure(runs, None), engine="run_engine")
    add("run_alone", alone, lambda: run_alone(bench, alone))
    ids = bench.do(TriggerBatch([TriggerItem("noop", None, TriggerOptions()) for _ in range(GROUP)])).run_ids
    held = {run.id: run.attempt for run in bench.claim(GROUP)}
    assert held.keys() == set(ids)
    sequence = 0

    def update(targets: Sequence[str], *, together: bool) -> None:
        nonlocal sequence
        sequence += 1
        reports = [
            RunReport(
                id=run_id,
                attempt=held[run_id],
                sequence=sequence,
                changes=[TargetOperations(run_id, [Set("progress", sequence / 7), Increment("rows", 1)])],
            )
            for run_id in targets
        ]
        for part in [reports] if together else [[one] for one in reports]:
            bench.do(Report("worker", part))

    before = row_updates(store, url)
    rounds = 5 if quick else 25
    add(
        "update",
        rounds * GROUP,
        lambda: [update(ids, together=True) for _ in range(rounds)],
        engine="update_engine",
    )
    add("update_alone", alone, lambda: [update([ids[0]], together=False) for _ in range(alone)])
    updated, hot = (after - earlier for after, earlier in zip(row_updates(store, url), before, strict=True))
    report.add("hot", hot / updated * 100, f"of {updated:,}")
    parent = bench.do(Trigger(TriggerItem("noop", None, TriggerOptions()))).run_ids[0]
    held[parent] = bench.claim(1)[0].attempt
    children = BATCH
    bench.do(
        TriggerBatch([TriggerItem("noop", None, TriggerOptions()) for _ in range(children)], parent_id=parent)
    )
    claimed = [run for _ in range(children // GROUP) for run in bench.claim(GROUP)]

    def finish() -> None:
        for start in range(0, children, GROUP):
            bench.do(
                Report(
                    "worker",
                    [
                        RunReport(
                            id=run.id,
                            attempt=run.attempt,
                            sequence=1,
                            changes=[TargetOperations(parent, [Increment("done", 1)])],
                        )
                        for run in claimed[start : start + GROUP]
                    ],
                )
            )

    add("parent", children, finish)
    store.close()


def run_alone(bench: Bench, count: int) -> None:
    """Runs one after the other: triggered, claimed and reported as three groups."""
    for _ in range(count):
        bench.do(Trigger(TriggerItem("noop", '{"row":1}', TriggerOptions())))
        [run] = bench.claim(1)
        outcome = Outcome(output="null")
        bench.do(Report("worker", [RunReport(id=run.id, attempt=run.attempt, sequence=1, outcome=outcome)]))


def counted(url: str, work: Callable[[], Any]) -> tuple[float, int, float]:
    """Bytes of the log, transactions, and seconds of this process's processor time that some work takes."""
    before = _position(url)
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    after = _position(url)
    # The ones that ask for the position are not counted.
    return after[0] - before[0], after[1] - before[1] - 1, seconds


def _position(url: str) -> tuple[int, int]:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0', (pg_current_xact_id()::text)::bigint"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def row_updates(store: Store, url: str) -> tuple[int, int]:
    """How many rows were updated, and how many of these without touching an index."""
    with store.write() as connection:
        # A session tells what it has done once in a while.
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint FROM pg_stat_user_tables"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


# --- ways of writing many rows -------------------------------------------------------------------------------

_LISTS_INSERT = (
    "INSERT INTO probe SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::int[], %s::text[])"
)
_LISTS_UPDATE = (
    "UPDATE probe SET status = n.status, at = n.at FROM unnest(%s::text[], %s::text[], %s::bigint[]) "
    "AS n (id, status, at) WHERE probe.id = n.id"
)


def measure_ways(report: harness.Report, server: PostgresServer, *, quick: bool) -> None:
    """The same rows inserted, and then updated, in each way, in turns; each a transaction of its own."""
    took: dict[tuple[str, str], list[float]] = {}
    with psycopg.connect(server.url(server.create_database()), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE probe (id text PRIMARY KEY, status text, at bigint, n int, payload text)"
        )
        connection.execute("CREATE INDEX probe_status ON probe (at) WHERE status = 'QUEUED'")
        for number in range(2 if quick else 20):
            for way in WAYS:
                rows = [
                    (f"run_{way}_{number:04}_{index:06}", "QUEUED", number * ROWS + index, index, '{"row":1}')
                    for index in range(ROWS)
                ]
                started = time.perf_counter()
                with connection.transaction(), connection.cursor() as cursor:
                    _insert(cursor, way, rows)
                took.setdefault(("insert", way), []).append(time.perf_counter() - started)
                started = time.perf_counter()
                with connection.transaction(), connection.cursor() as cursor:
                    _update(cursor, way, [(row[0], "DONE", row[2] + 1) for row in rows])
                took.setdefault(("update", way), []).append(time.perf_counter() - started)
    for (kind, way), seconds in took.items():
        spread = f"{min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}"
        report.add(f"{kind}_{way}", statistics.median(seconds) * 1000, spread)


def _insert(cursor: "psycopg.Cursor[Any]", way: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if way == "lists":
        cursor.execute(_LISTS_INSERT, [list(column) for column in zip(*rows, strict=True)])
    elif way == "pipeline":
        # psycopg sends them all before it reads the first answer.
        cursor.executemany("INSERT INTO probe VALUES (%s, %s, %s, %s, %s)", rows)
    else:
        _copy(cursor, "probe", rows)


def _update(cursor: "psycopg.Cursor[Any]", way: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if way == "lists":
        cursor.execute(_LISTS_UPDATE, [list(column) for column in zip(*rows, strict=True)])
    elif way == "pipeline":
        cursor.executemany(
            "UPDATE probe SET status = %s, at = %s WHERE id = %s", [(row[1], row[2], row[0]) for row in rows]
        )
    else:
        cursor.execute("CREATE TEMPORARY TABLE news (id text, status text, at bigint) ON COMMIT DROP")
        _copy(cursor, "news", rows)
        cursor.execute(
            "UPDATE probe SET status = news.status, at = news.at FROM news WHERE probe.id = news.id"
        )


def _copy(cursor: "psycopg.Cursor[Any]", table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


if __name__ == "__main__":
    main()
