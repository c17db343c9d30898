"""What a run costs the server's engine and store, without HTTP and without a worker: trigger, claim, report.

Prints microseconds of processor time per run for each step, for runs alone and for children that each increment their parent, on a
SQLite file in a temporary folder at `synchronous=FULL`.

    python benchmarks/engine_cost.py [RUNS]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milepost.engine.commands import Claim, Command, RegisterWorker, Report, Trigger, TriggerBatch, TriggerItem
from milepost.engine.engine import Engine, Request
from milepost.engine.state import EngineSettings
from milepost.model.operations import Increment
from milepost.model.retry import Retry
from milepost.model.run import Outcome
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import RunReport, TargetOperations, WorkerTask
from milepost.store.database import Store

BATCH = 1000
SLOTS = 200


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class Bench:
    """An engine on a fresh database, driven one command at a time."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine(Store(folder / "milepost.db"), EngineSettings(), now)
        self._sequence = 0
        self.do(RegisterWorker("worker", "bench", [WorkerTask(id="noop", queue="noop", retry=Retry())], []))

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

    def measure(self, count: int, parent_id: str | None) -> dict[str, float]:
        """Processor seconds per step for `count` runs."""
        seconds = {"trigger": 0.0, "claim": 0.0, "report": 0.0}

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
                    id=run.id, attempt=run.attempt, sequence=1, changes=changes, outcome=Outcome(output="null")
                )
                for run in runs
            ]
            timed("report", lambda reports=reports: self.do(Report("worker", reports)))
            done += len(runs)
        return seconds


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.measure(BATCH, None)
        parent = bench.do(Trigger(TriggerItem("noop", None, TriggerOptions()))).run_ids[0]
        bench.claim(1)
        for title, parent_id in (("runs alone", None), ("children that increment their parent", parent)):
            seconds = bench.measure(count, parent_id)
            total = sum(seconds.values())
            steps = ", ".join(f"{step} {value / count * 1e6:.1f}" for step, value in seconds.items())
            print(f"{title}: {total / count * 1e6:.1f} µs per run ({steps}), {count / total:,.0f} runs/s")


if __name__ == "__main__":
    main()
