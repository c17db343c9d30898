"""How many bytes a committed update of metadata writes to disk, and that it depends on the update, not on the document.

    python benchmarks/log_bytes.py [--quick] [--markdown]

A worker's reports go through engine and store, one at a time, each committed by itself (`synchronous=FULL`) to a SQLite file in a
temporary folder. Counted is what this process hands to the system in write calls (`wchar` in /proc/self/io): the write-ahead log
and its checkpoints. Most of it is whole pages: SQLite writes 4 KB where a byte has changed.

First small `set`s to documents of 1 KB, 64 KB and 250 KB, then 10,000 appends of 20 bytes to one document: were the document written
each time, the last appends would write ten times what the first ones do.
"""

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import harness
from harness import Figure, Options

from milepost.engine.commands import Claim, Command, RegisterWorker, Report, Trigger, TriggerItem
from milepost.engine.engine import Engine, Request
from milepost.engine.state import EngineSettings
from milepost.model.operations import Append, Operation, Set
from milepost.model.retry import RetryRule
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import ClaimedRun, RunReport, TargetOperations, WorkerTask
from milepost.store.database import Store

SIZES_KB = (1, 64, 250)
FIGURES = (
    *(Figure(f"set_{size}", f"a small set, document of {size} KB", "bytes") for size in SIZES_KB),
    Figure("set_ratio", "250 KB compared with 1 KB", "x", at_most=1.5),
    Figure("append_first", "an append of 20 bytes, the first thousand", "bytes"),
    Figure("append_last", "an append of 20 bytes, the last thousand of 10,000", "bytes"),
    Figure("append_ratio", "the last thousand compared with the first", "x", at_most=1.5),
    Figure("append_all", "all 10,000 appends together", "MB"),
    Figure("together", "a small set, of 1,000 documents that are committed together", "bytes"),
)
SETS = 2000
TOGETHER = 1000
APPENDS = 10_000
SECONDS_MAX = 150.0


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def bytes_written() -> int:
    """What this process has written so far, to whatever file."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


class Bench:
    """An engine on a fresh database, and a worker that reports."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine(Store(folder / "milepost.db"), EngineSettings(), now)
        self._claims = 0
        self.do(
            RegisterWorker("worker", "bench", [WorkerTask(id="noop", queue="noop", retry=RetryRule())], [])
        )

    def do(self, command: Command) -> Any:
        """Execute one command and return its result."""
        results: list[Any] = []
        answers, _ = self._engine.execute([Request(command, results.append)])
        for answer, result in answers:
            answer(result)
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    def run_with(self, document: dict[str, Any]) -> ClaimedRun:
        """A run that executes, with this document."""
        self.do(Trigger(TriggerItem("noop", None, TriggerOptions(metadata=document))))
        self._claims += 1
        [run] = self.do(Claim("worker", self._claims, 1, 0))
        return run

    def bytes_for(self, run: ClaimedRun, operations: Iterable[Operation], *, after: int = 0) -> int:
        """What it writes to commit these operations, each by itself; `after` reports of the run were sent before."""
        before = bytes_written()
        for sequence, operation in enumerate(operations, after + 1):
            changes = [TargetOperations(run.id, [operation])]
            [reply] = self.do(
                Report(
                    "worker", [RunReport(id=run.id, attempt=run.attempt, sequence=sequence, changes=changes)]
                )
            )
            if reply.lost or reply.refused:
                raise RuntimeError(f"the engine did not take report {sequence}: {reply}")
        return bytes_written() - before

    def bytes_together(self, runs: Sequence[ClaimedRun], rounds: int) -> int:
        """What it writes to commit an operation of each of these runs in one report, so many times."""
        before = bytes_written()
        for sequence in range(1, rounds + 1):
            self.do(
                Report(
                    "worker",
                    [
                        RunReport(
                            id=run.id,
                            attempt=run.attempt,
                            sequence=sequence,
                            changes=[TargetOperations(run.id, [Set("step", sequence)])],
                        )
                        for run in runs
                    ],
                )
            )
        return bytes_written() - before


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures."""
    sets, appends = (100, 1000) if options.quick else (SETS, APPENDS)
    part = appends // 10
    with (
        harness.Report(
            "log_bytes", "Bytes written to disk for one committed update", FIGURES, markdown=options.markdown
        ) as report,
        tempfile.TemporaryDirectory(prefix="milepost-bench-") as folder,
    ):
        bench = Bench(Path(folder))
        per_set: dict[int, float] = {}
        for size in SIZES_KB:
            run = bench.run_with({"step": 0, "filling": "x" * (size * 1000)})
            per_set[size] = bench.bytes_for(run, (Set("step", number) for number in range(sets))) / sets
            report.add(f"set_{size}", per_set[size])
        report.add("set_ratio", per_set[SIZES_KB[-1]] / per_set[SIZES_KB[0]])
        run = bench.run_with({})
        parts = [
            bench.bytes_for(run, (Append("log", "x" * 18) for _ in range(part)), after=first)
            for first in range(0, appends, part)
        ]
        report.add("append_first", parts[0] / part)
        report.add("append_last", parts[-1] / part)
        report.add("append_ratio", parts[-1] / parts[0])
        report.add("append_all", sum(parts) / 1e6)
        runs = [bench.run_with({}) for _ in range(TOGETHER // 10 if options.quick else TOGETHER)]
        rounds = 5 if options.quick else 50
        report.add("together", bench.bytes_together(runs, rounds) / len(runs) / rounds)


if __name__ == "__main__":
    main()
