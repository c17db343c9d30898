"""What a run costs the server's engine and store, without HTTP and without a worker: trigger, claim, report.

    python benchmarks/engine_cost.py [--quick] [--markdown]

Microseconds of processor time per run for each step, for runs alone and for children that each increment their parent, on a
SQLite file in a temporary folder at `synchronous=FULL`. Runs and children take turns, and the median turn counts.
"""

import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import harness
from harness import Figure, Options

from milepost.engine.commands import (
    Claim,
    Command,
    RegisterWorker,
    Report,
    Trigger,
    TriggerBatch,
    TriggerItem,
)
from milepost.engine.engine import Engine, Request
from milepost.engine.state import EngineSettings
from milepost.model.operations import Increment
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import RunReport, TargetOperations, WorkerTask
from milepost.store.database import Store

STEPS: tuple[str, ...] = ("trigger", "claim", "report")
FIGURES = (
    Figure("alone", "a run, all three steps", "µs"),
    *(Figure(f"alone_{step}", f"{step} of a run", "µs") for step in STEPS),
    Figure("child", "a child that increments its parent, all three steps", "µs"),
    *(Figure(f"child_{step}", f"{step} of such a child", "µs") for step in STEPS),
    Figure("ratio", "a child compared with a run alone", "x"),
)

BATCH = 1000
SLOTS = 200
TURNS = 3
RUNS_PER_TURN = 5000
SECONDS_MAX = 60.0


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class Bench:
    """An engine on a fresh database, driven one command at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._engine = Engine(self.store, EngineSettings(), now)
        self._sequence = 0
        tasks = [WorkerTask(id=task, queue=task, retry=RetryRule()) for task in ("noop", "other")]
        self.do(RegisterWorker("worker", "bench", tasks, []))

    def do(self, command: Command) -> Any:
        """Execute one command and return its result."""
        results: list[Any] = []
        answers, _ = self._engine.execute([Request(command, results.append)])
        for answer, result in answers:
            answer(result)
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    def claim(self, slots: int) -> Any:
        """Claim up to `slots` runs."""
        self._sequence += 1
        return self.do(Claim("worker", self._sequence, slots, 0))

    def checkpoint(self) -> None:
        """Bring what was committed into the database file, so that its size tells."""
        with closing(sqlite3.connect(self.store.place)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def measure(self, count: int, parent_id: str | None) -> dict[str, float]:
        """Processor seconds per step for `count` runs."""
        seconds = dict.fromkeys(STEPS, 0.0)

        def timed(step: str, work: Callable[[], Any]) -> Any:
            start = time.process_time()
            result = work()
            seconds[step] += time.process_time() - start
            return result

        for _ in range(count // BATCH):
            items = [TriggerItem("noop", '{"row":1}', TriggerOptions()) for _ in range(BATCH)]
            timed("trigger", lambda items=items: self.do(TriggerBatch(items, parent_id=parent_id)))
        done = 0
        while done < count:
            runs = timed("claim", lambda: self.claim(SLOTS))
            changes = [TargetOperations(parent_id, [Increment("done", 1)])] if parent_id else []
            reports = [
                RunReport(
                    id=run.id,
                    attempt=run.attempt,
                    sequence=1,
                    changes=changes,
                    outcome=Outcome(output="null"),
                )
                for run in runs
            ]
            timed("report", lambda reports=reports: self.do(Report("worker", reports)))
            done += len(runs)
        return seconds


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures."""
    # As the server does, which else would look through all that was imported once in a while.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    turns, count = (1, BATCH) if options.quick else (TURNS, RUNS_PER_TURN)
    with (
        harness.Report(
            "engine", "Engine and store alone: processor time per run", FIGURES, markdown=options.markdown
        ) as report,
        tempfile.TemporaryDirectory(prefix="milepost-bench-") as folder,
    ):
        bench = Bench(Store(Path(folder) / "milepost.db"))
        bench.measure(BATCH, None)
        parent = bench.do(Trigger(TriggerItem("noop", None, TriggerOptions()))).run_ids[0]
        bench.claim(1)
        measured: dict[str, list[dict[str, float]]] = {"alone": [], "child": []}
        for _ in harness.rounds(turns, seconds=20):
            measured["alone"].append(bench.measure(count, None))
            measured["child"].append(bench.measure(count, parent))
        totals: dict[str, float] = {}
        for kind, each in measured.items():
            steps = {step: statistics.median(turn[step] for turn in each) / count * 1e6 for step in STEPS}
            totals[kind] = sum(steps.values())
            report.add(kind, totals[kind], f"{1e6 / totals[kind]:,.0f} runs/s")
            for step, microseconds in steps.items():
                report.add(f"{kind}_{step}", microseconds)
        report.add("ratio", totals["child"] / totals["alone"])


if __name__ == "__main__":
    main()
