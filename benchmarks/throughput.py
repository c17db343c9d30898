"""End to end through a real `milepost dev`: runs per second, latencies, children, the cost of an update inside a task.

    python benchmarks/throughput.py [--quick] [--markdown]

Client, server and executors share the machine, as they do for whoever starts with Milepost. SQLite at `synchronous=FULL`.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import bench_tasks
import harness
from harness import Cpu, Figure, House, Options, Report, middle, nanoseconds_to_ms, percentile
from metadata_cost import document_of

from milepost import runs
from milepost.client import calls

FIGURES = (
    Figure("runs_1", "no-op runs, batch trigger to stored result, 1 process", "runs/s", at_least=10_000),
    Figure("runs_2", "no-op runs, batch trigger to stored result, 2 processes", "runs/s", at_least=10_000),
    Figure("runs_ratio", "2 processes compared with 1", "x"),
    Figure("cpu_server", "processor time of the server per no-op run", "µs"),
    Figure("cpu_worker", "processor time of the worker per no-op run", "µs"),
    Figure("cpu_client", "processor time of the triggering program per no-op run", "µs"),
    Figure("triggers_paused", "one trigger after the other, executors stopped", "/s", at_least=2_000),
    Figure("trigger_cpu", "processor time of the server for each of these", "µs"),
    Figure("triggers_live", "one trigger after the other, executors running them", "/s"),
    Figure("trigger_ratio", "one trigger compared with a bare request and a bare commit of SQLite", "x"),
    Figure("triggers_threads", "triggers one by one from 32 threads at once, executors stopped", "/s", at_least=8_000),
    Figure("triggers_coroutines", "triggers one by one from 32 coroutines at once, executors stopped", "/s", at_least=8_000),
    Figure("start_p50", "trigger to the task's first line, p50", "ms", at_most=2),
    Figure("start_p99", "trigger to the task's first line, p99", "ms"),
    Figure("result_p50", "trigger to the result in the caller's hands, p50", "ms", at_most=4),
    Figure("result_p99", "trigger to the result in the caller's hands, p99", "ms"),
    Figure("children", "children that increment their parent, until the parent has ended", "/s", at_least=4_000),
    Figure("children_seconds", "10,000 of them", "s", at_most=2),
    Figure("children_wrong", "increments lost or doubled", "", at_most=0),
    Figure("set_small", "`metadata.set` inside a task, document of 1 KB, mean", "µs", at_most=3),
    Figure("set_large", "`metadata.set` inside a task, document of 250 KB, mean", "µs"),
    Figure("set_ratio", "250 KB compared with 1 KB", "x", at_most=1.5),
    Figure("set_small_p50", "`metadata.set` inside a task, document of 1 KB, p50", "µs"),
    Figure("set_large_p50", "`metadata.set` inside a task, document of 250 KB, p50", "µs"),
    Figure("flushed", "`metadata.set` and `metadata.flush`, committed when it returns, p50", "ms"),
)  # fmt: skip

SIZES_BYTES = (1024, 250 * 1024)
CROWD = 32
SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    runs: int
    triggers: int
    # Of each of those that trigger at once.
    crowd_triggers: int
    latencies: int
    children: int
    set_rounds: int
    sets: int
    flushes: int


FULL = Sizes(
    rounds=5,
    runs=10_000,
    triggers=3_000,
    crowd_triggers=300,
    latencies=200,
    children=10_000,
    set_rounds=5,
    sets=10_000,
    flushes=100,
)
QUICK = Sizes(
    rounds=1,
    runs=500,
    triggers=50,
    crowd_triggers=10,
    latencies=10,
    children=200,
    set_rounds=2,
    sets=500,
    flushes=5,
)


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures, one after the other."""
    sizes = QUICK if options.quick else FULL
    with (
        Report(
            "throughput", "End to end: trigger, run, result", FIGURES, markdown=options.markdown
        ) as report,
        harness.dev(processes=1) as one,
        harness.dev(processes=2) as two,
    ):
        measure_runs(report, sizes, one, two)
        measure_triggers(report, sizes, one)
        measure_crowds(report, sizes, one)
        measure_latency(report, sizes, one)
        measure_children(report, sizes, two)
        measure_sets(report, sizes, one)


def measure_runs(report: Report, sizes: Sizes, one: House, two: House) -> None:
    """No-op runs with one process and with two, in turn, so that what else the machine does hits both."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    used = Cpu(0, 0, 0)
    for house in (one, two):
        house.run_noops(max(sizes.runs // 5, 100))
    done = 0
    for _ in harness.rounds(sizes.rounds, seconds=20):
        done += sizes.runs
        for processes, house in ((1, one), (2, two)):
            before = house.cpu()
            rates[processes].append(sizes.runs / house.run_noops(sizes.runs))
            if processes == 1:
                used += house.cpu() - before
    report.add("runs_1", *middle(rates[1]))
    report.add("runs_2", *middle(rates[2]))
    report.add("runs_ratio", statistics.median(rates[2]) / statistics.median(rates[1]))
    report.add("cpu_server", used.server / done * 1e6)
    report.add("cpu_worker", used.workers / done * 1e6)
    report.add("cpu_client", used.client / done * 1e6)


def measure_triggers(report: Report, sizes: Sizes, house: House) -> None:
    """One trigger after the other, and bare requests on the same connection to compare with."""
    house.use()

    def seconds_each(call: Callable[[int], object]) -> tuple[float, int]:
        count, started = 0, time.perf_counter()
        for number in harness.rounds(sizes.triggers, seconds=4):
            call(number)
            count += 1
        return (time.perf_counter() - started) / count, count

    with house.paused_workers():
        before = house.cpu()
        paused, count = seconds_each(bench_tasks.noop.trigger)
        used = house.cpu() - before
    # What has gathered must not run while the next thing is measured.
    house.run_noops(1)
    bare, _ = seconds_each(lambda _: house.client.send(calls.health()))
    report.add("triggers_paused", 1 / paused)
    report.add("trigger_cpu", used.server / count * 1e6)
    live, _ = seconds_each(bench_tasks.noop.trigger)
    report.add("triggers_live", 1 / live)
    commit = harness.commit_ms() / 1000
    report.add(
        "trigger_ratio",
        paused / (bare + commit),
        f"{bare * 1e6:.0f} and {commit * 1e6:.0f} µs; {paused * 1e6:.0f} µs together",
    )
    house.run_noops(1)


def measure_crowds(report: Report, sizes: Sizes, house: House) -> None:
    """Many threads, then many coroutines, that trigger one run after the other."""
    house.use()
    count = sizes.crowd_triggers

    def in_threads() -> None:
        with ThreadPoolExecutor(CROWD) as pool:
            for done in [
                pool.submit(lambda: list(map(bench_tasks.noop.trigger, range(count)))) for _ in range(CROWD)
            ]:
                done.result()

    async def one_coroutine() -> None:
        for number in range(count):
            await bench_tasks.noop.atrigger(number)

    async def in_coroutines() -> None:
        await asyncio.gather(*(one_coroutine() for _ in range(CROWD)))

    for name, crowd in (
        ("triggers_threads", in_threads),
        ("triggers_coroutines", lambda: asyncio.run(in_coroutines())),
    ):
        rates: list[float] = []
        for _ in harness.rounds(sizes.rounds, seconds=8):
            with house.paused_workers():
                started = time.perf_counter()
                crowd()
                rates.append(CROWD * count / (time.perf_counter() - started))
            # What has gathered must not run while the next thing is measured.
            house.run_noops(1)
        report.add(name, *middle(rates))


def measure_latency(report: Report, sizes: Sizes, house: House) -> None:
    """Single runs on an idle server, at moments that follow no rhythm."""
    house.use()
    starts: list[float] = []
    results: list[float] = []
    for number in harness.rounds(sizes.latencies, seconds=8):
        time.sleep(random.uniform(0.005, 0.025))
        triggered_at = time.monotonic_ns()
        started_at = bench_tasks.moment.trigger(number).result().unwrap()
        results.append((time.monotonic_ns() - triggered_at) / 1e6)
        starts.append((started_at - triggered_at) / 1e6)
    report.add("start_p50", percentile(starts, 0.5))
    report.add("start_p99", percentile(starts, 0.99))
    report.add("result_p50", percentile(results, 0.5))
    report.add("result_p99", percentile(results, 0.99))


def measure_children(report: Report, sizes: Sizes, house: House) -> None:
    """A parent with children that each increment it, with two processes. The sum must be exact."""
    house.use()
    bench_tasks.parent.trigger(min(100, sizes.children)).result(60)
    started = time.perf_counter()
    run = runs.wait(bench_tasks.parent.trigger(sizes.children).id, 60)
    seconds = time.perf_counter() - started
    if not run.is_success or run.output != sizes.children:
        raise AssertionError(f"{run.output} of {sizes.children} children succeeded: {run.error}")
    report.add("children", sizes.children / seconds)
    if sizes.children == 10_000:
        report.add("children_seconds", seconds)
    report.add("children_wrong", abs(run.metadata["done"] - sizes.children), f"of {sizes.children:,}")


def measure_sets(report: Report, sizes: Sizes, house: House) -> None:
    """`metadata.set` in a loop in a `def` task, with a small and a large document in turn."""
    house.use()
    documents = {size: document_of(size).copy_value() for size in SIZES_BYTES}
    means: dict[int, list[float]] = {size: [] for size in SIZES_BYTES}
    medians: dict[int, list[float]] = {size: [] for size in SIZES_BYTES}
    # One more, because the first round warms up.
    for _ in harness.rounds(sizes.set_rounds + 1, seconds=10):
        for size in SIZES_BYTES:
            handle = bench_tasks.set_many.trigger(sizes.sets, metadata=documents[size])
            taken = handle.result(60).unwrap()
            means[size].append(statistics.fmean(taken) / 1000)
            medians[size].append(statistics.median(taken) / 1000)
    small, large = (means[size][1:] or means[size] for size in SIZES_BYTES)
    report.add("set_small", *middle(small))
    report.add("set_large", *middle(large))
    report.add("set_ratio", statistics.median(large) / statistics.median(small))
    small, large = (medians[size][1:] or medians[size] for size in SIZES_BYTES)
    report.add("set_small_p50", *middle(small))
    report.add("set_large_p50", *middle(large))
    taken = bench_tasks.set_and_flush.trigger(sizes.flushes).result(60).unwrap()
    report.add(
        "flushed",
        percentile(nanoseconds_to_ms(taken), 0.5),
        f"default flush interval, {sizes.flushes} updates",
    )


if __name__ == "__main__":
    main()
