"""Finding runs by their documents: 100,000 runs on SQLite, a mix of searches.

    python benchmarks/search.py [--quick] [--markdown]

The runs are made by the engine, in a temporary folder, without HTTP and without workers. Each figure is the time from the question to
the page of 25 runs with their documents, as the server's reader takes it; each search is asked many times with other values.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
from engine_cost import Bench, now
from harness import Figure, Options, percentile

from milepost.engine.commands import IndexDocuments, Report, TriggerBatch, TriggerItem
from milepost.model.filters import parse_filter
from milepost.model.operations import Set
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import RunReport, TargetOperations
from milepost.reading.reader import Reader
from milepost.store.database import Store
from milepost.store.runs import RunFilter

RUNS = 100_000
QUICK_RUNS = 2000
BATCH = 1000
# Of each batch so many are brought to their end, with a write to their document on the way.
FINISHED_PER_BATCH = 200
INDEX_BATCH = 200
ASKED = 40
PAGE = 25
SECONDS_MAX = 160.0

_PLANS = ("free", "free", "free", "pro", "pro", "team")
_STEPS = ("reading", "validating", "importing", "importing", "complete", "complete", "complete", "failed")
_TAGS = tuple(f"label-{number}" for number in range(40))

Question = Callable[[random.Random], RunFilter]


def _where(**fields: Any) -> Callable[[dict[str, Any]], RunFilter]:
    return lambda filter: RunFilter(metadata=parse_filter(filter), **fields)


QUESTIONS: dict[str, tuple[str, Question]] = {
    "rare": ("equal, ten runs", lambda chance: _where()({"user.id": _user(chance)})),
    "common": ("equal, a third of all runs", lambda chance: _where()({"user.plan": "pro"})),
    "path": ("equal by a path, an eighth", lambda chance: _where()({"$.status": "failed"})),
    "range": (
        "a range, half of all runs",
        lambda chance: _where()({"progress.percent": {"$gte": chance.randrange(50)}}),
    ),
    "narrow": (
        "a narrow range",
        lambda chance: _where()({"file.size": {"$gt": 9_000_000, "$lte": 9_000_000 + chance.randrange(50_000)}}),
    ),
    "text_range": (
        "a range of texts, hundreds of runs",
        lambda chance: _where()({"user.id": {"$gte": "user_00100", "$lt": f"user_00{chance.randrange(110, 150)}"}}),
    ),
    "exists": ("exists, one run in a hundred", lambda chance: _where()({"error": {"$exists": True}})),
    "everywhere": ("exists in all runs", lambda chance: _where()({"user.id": {"$exists": True}})),
    "absent": ("does not exist in nearly all runs", lambda chance: _where()({"error": {"$exists": False}})),
    "contains": ("contains, one run in fourteen", lambda chance: _where()({"labels": {"$contains": chance.choice(_TAGS)}})),
    "and": (
        "three conditions, some dozens of runs",
        lambda chance: _where()(
            {"user.plan": "team", "labels": {"$contains": chance.choice(_TAGS)}, "progress.percent": {"$lt": 10}}
        ),
    ),
    "and_rare": (
        "a rare and a common condition",
        lambda chance: _where()({"user.plan": "pro", "status": "complete", "user.id": _user(chance)}),
    ),
    "and_none": (
        "two common conditions that never meet",
        lambda chance: _where()({"status": "failed", "progress.percent": 100}),
    ),
    "task": (
        "equal, with a task",
        lambda chance: _where(tasks=("other",))({"status": "failed"}),
    ),
    "status": (
        "equal, with a status",
        lambda chance: _where(statuses=(RunStatus.COMPLETED,))({"user.plan": "team"}),
    ),
    "tag": ("equal, with a tag", lambda chance: _where(tags=("batch-3",))({"user.plan": "team"})),
    "none": ("no run matches", lambda chance: _where()({"user.id": f"nobody_{chance.random()}"})),
    "nowhere": ("a key that no document has", lambda chance: _where()({"customer.number": 17})),
}  # fmt: skip

FIGURES = (
    Figure("p95", "all searches together, p95", "ms", at_most=50),
    Figure("p50", "all searches together, p50", "ms"),
    *(Figure(name, f"{text}: p95", "ms", at_most=50) for name, (text, _) in QUESTIONS.items()),
    Figure("second", "the second page of the common ones: p95", "ms", at_most=50),
    Figure("behind", "with 1,000 documents that are not indexed yet: p95", "ms"),
    Figure("indexing", "indexing a document of 600 bytes", "µs"),
    Figure("again", "indexing it again after a write", "µs"),
    Figure("bytes", "the index, per run", "bytes"),
)


def _user(chance: random.Random) -> str:
    return f"user_{chance.randrange(RUNS // 10):05}"


def documents(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Documents as an import of files might leave them."""
    while True:
        total = chance.randrange(10, 5000)
        status = chance.choice(_STEPS)
        done = total if status == "complete" else chance.randrange(total)
        document = {
            "user": {"id": _user(chance), "plan": chance.choice(_PLANS), "email": f"u{chance.randrange(10**6)}@example.org"},
            "status": status,
            "progress": {"done": done, "total": total, "percent": 100 * done // total},
            "labels": chance.sample(_TAGS, 3),
            "file": {"name": f"people-{chance.randrange(10**6)}.csv", "size": chance.randrange(10**7), "encoding": "utf-8"},
            "rows": {"valid": done, "invalid": chance.randrange(5), "examples": [{"line": chance.randrange(total), "email": "none"}]},
            "message": f"{done} of {total} rows, next: look at what was left out and write to whoever sent the file",
        }  # fmt: skip
        if chance.random() < 0.01:
            document["error"] = {
                "code": chance.randrange(400, 600),
                "message": "the address book did not answer",
            }
        yield document


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures."""
    count, asked = (QUICK_RUNS, 3) if options.quick else (RUNS, ASKED)
    with (
        harness.Report(
            "search", f"Search: {count:,} runs found by their documents", FIGURES, markdown=options.markdown
        ) as report,
        tempfile.TemporaryDirectory(prefix="milepost-bench-") as folder,
    ):
        chance = random.Random(1)
        bench = Bench(Store(Path(folder) / "milepost.db"))
        began = time.perf_counter()
        fill(bench, count, chance)
        filled = time.perf_counter() - began
        bench.checkpoint()
        before = Path(bench.store.place).stat().st_size
        indexing = index(bench)
        bench.checkpoint()
        report.note(f"{count:,} runs were made in {filled:.0f} s and indexed in {indexing:.0f} s")
        reader = Reader(bench.store)
        every: list[float] = []
        for name, (_, question) in QUESTIONS.items():
            taken, found = ask(reader, [question(chance) for _ in range(asked)])
            every += taken
            report.add(
                name, percentile(taken, 0.95), f"p50 {percentile(taken, 0.5):.1f} ms, {found:.1f} runs a page"
            )
        second = second_pages(reader, chance, asked)
        every += second
        report.add("second", percentile(second, 0.95))
        report.add("p95", percentile(every, 0.95))
        report.add("p50", percentile(every, 0.5))
        report.add("indexing", indexing / count * 1e6)
        report.add("bytes", (Path(bench.store.place).stat().st_size - before) / count)
        rewrite(bench, chance)
        behind, _ = ask(reader, [QUESTIONS[name][1](chance) for name in QUESTIONS])
        report.add("behind", percentile(behind, 0.95))
        report.add("again", index(bench) / BATCH * 1e6)


def fill(bench: Bench, count: int, chance: random.Random) -> None:
    """Make the runs; some of them end."""
    making = documents(chance)
    for number in range(count // BATCH):
        task = "other" if number % 5 == 0 else "noop"
        options = [TriggerOptions(metadata=next(making), tags=[f"batch-{number}"]) for _ in range(BATCH)]
        bench.do(TriggerBatch([TriggerItem(task, '{"row":1}', each) for each in options]))
        runs = bench.claim(FINISHED_PER_BATCH)
        bench.do(
            Report(
                "worker",
                [
                    RunReport(
                        id=run.id,
                        attempt=run.attempt,
                        sequence=1,
                        changes=[
                            TargetOperations(run.id, [Set("message", "done"), Set("finished_at", now())])
                        ],
                        outcome=Outcome(output="null"),
                    )
                    for run in runs
                ],
            )
        )


def index(bench: Bench) -> float:
    """Index all that is behind; seconds."""
    began = time.perf_counter()
    while bench.do(IndexDocuments(INDEX_BATCH)):
        pass
    return time.perf_counter() - began


def rewrite(bench: Bench, chance: random.Random) -> None:
    """Write to a thousand documents."""
    left = BATCH
    while left:
        runs = bench.claim(min(left, FINISHED_PER_BATCH))
        left -= len(runs)
        bench.do(
            Report(
                "worker",
                [
                    RunReport(
                        id=run.id,
                        attempt=run.attempt,
                        sequence=1,
                        changes=[TargetOperations(run.id, [Set("$.progress.done", chance.randrange(5000))])],
                    )
                    for run in runs
                ],
            )
        )


def ask(reader: Reader, filters: list[RunFilter]) -> tuple[list[float], float]:
    """Milliseconds of each search, and how many runs a page has."""
    taken: list[float] = []
    found = 0
    for filter in filters:
        began = time.perf_counter()
        found += len(reader.page(filter, size=PAGE).data)
        taken.append((time.perf_counter() - began) * 1000)
    return taken, found / len(filters)


def second_pages(reader: Reader, chance: random.Random, asked: int) -> list[float]:
    """Milliseconds of second pages."""
    taken: list[float] = []
    for name in ("common", "range", "contains", "everywhere") * (asked // 4 + 1):
        filter = QUESTIONS[name][1](chance)
        after = reader.page(filter, size=PAGE).pagination.next
        began = time.perf_counter()
        reader.page(filter, size=PAGE, after=after)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


if __name__ == "__main__":
    main()
