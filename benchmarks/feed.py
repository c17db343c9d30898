"""From an update inside a task to those who watch: latency, throughput, bytes, many watchers.

    python benchmarks/feed.py [--quick] [--markdown]

Every update is committed at `synchronous=FULL` before anybody is shown it. Watchers run in a process of their own
(`watching.py`) on the same machine as server and executors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import bench_tasks
import harness
from bench_tasks import Steady, Updates
from harness import Figure, House, Options, Report, percentile
from watching import Seen, Watch, watch

from milepost import Task, runs

FIGURES = (
    Figure("lone_p50", "a lone update to a subscriber, default settings, p50", "ms", at_most=3),
    Figure("lone_p99", "a lone update to a subscriber, default settings, p99", "ms", at_most=15),
    Figure("default_p50", "50 updates/s to a subscriber, flush interval 50 ms (default), p50", "ms"),
    Figure("default_p99", "50 updates/s to a subscriber, flush interval 50 ms (default), p99", "ms"),
    Figure("fast_p50", "50 updates/s to a subscriber, flush interval 2 ms, p50", "ms", at_most=3),
    Figure("fast_p99", "50 updates/s to a subscriber, flush interval 2 ms, p99", "ms", at_most=15),
    Figure("committed", "updates of 1,000 runs committed while nobody watches", "/s"),
    Figure("through", "updates of 1,000 runs committed and delivered to a subscriber of each", "/s", at_least=20_000),
    Figure("through_p50", "latency meanwhile, p50", "ms"),
    Figure("through_p99", "latency meanwhile, p99", "ms"),
    Figure("through_server", "processor time of the server per update delivered", "µs"),
    Figure("through_worker", "processor time of the worker per update delivered", "µs"),
    Figure("bytes_each", "1,000 appends of 100 bytes, each flushed: bytes to a subscriber per byte appended", "x"),
    Figure("bytes_together", "1,000 appends of 100 bytes, without flush: bytes to a subscriber per byte appended", "x"),
    Figure("bytes_whole", "the same, had the whole document been sent with each flush (computed)", "x"),
    Figure("list_bytes", "20 documents of 240 KB counting at 20/s each: to a watcher of their list", "KB/s", at_most=100),
    Figure("search_bytes", "the same, to a watcher of a search that they match", "KB/s", at_most=200),
    Figure("search_cpu", "processor time of the server meanwhile, the writing included", "% of a core"),
    Figure("crowd_p50", "1,000 watchers of one run at 20 updates/s, p50", "ms"),
    Figure("crowd_p99", "1,000 watchers of one run at 20 updates/s, p99", "ms", at_most=500),
    Figure("idle_memory", "server's memory with 10,000 idle watchers of as many runs", "MB", at_most=1000),
    Figure("idle_each", "of it for each watcher", "KB"),
    Figure("idle_cpu", "processor time of the server for them", "% of a core"),
)  # fmt: skip

SECONDS_MAX = 150.0
LINE_BYTES = 100
LARGE_RUNS = 20
LARGE_PER_SECOND = 20
TICKS_PER_SECOND = 50
# Files that a process needs beside its connections.
OTHER_FILES = 300
# A thousand runs offer 25,000 updates per second.
THROUGH_PAUSE_SECONDS = 0.04
THROUGH_FLUSH_INTERVAL_MS = 10.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    lone: int
    ticks: int
    through_runs: int
    through_seconds: float
    appends: int
    large_seconds: float
    crowd: int
    crowd_updates: int
    idle: int
    idle_seconds: float


FULL = Sizes(
    lone=100, ticks=400, through_runs=1000, through_seconds=5,
    appends=1000, large_seconds=5, crowd=1000, crowd_updates=100, idle=10_000, idle_seconds=10,
)  # fmt: skip
QUICK = Sizes(
    lone=5, ticks=25, through_runs=50, through_seconds=1,
    appends=50, large_seconds=1, crowd=50, crowd_updates=10, idle=200, idle_seconds=1,
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures, one after the other."""
    sizes = QUICK if options.quick else FULL
    with Report(
        "feed", "Watching: from an update to those who see it", FIGURES, markdown=options.markdown
    ) as report:
        with harness.dev(processes=1) as house:
            measure_latency(report, house, "lone", Updates(sizes.lone, 10))
            measure_latency(report, house, "default", Updates(sizes.ticks, TICKS_PER_SECOND))
            measure_bytes(report, sizes, house)
            measure_large(report, sizes, house)
            measure_crowd(report, sizes, house)
        with harness.dev(processes=1, flush_interval_ms=2) as house:
            measure_latency(report, house, "fast", Updates(sizes.ticks, TICKS_PER_SECOND))
        measure_through(report, sizes)
        measure_idle(report, sizes)


def measure_latency(report: Report, house: House, name: str, wanted: Updates) -> None:
    """Each update carries its moment; `runs.subscribe` shows it. None is skipped: the run keeps the newest ones in a list."""
    house.use()
    latencies: list[float] = []
    seen: set[int] = set()
    with house.paused_workers():
        states = runs.subscribe(bench_tasks.tick.trigger(wanted).id)
        # Subscribed before the first update.
        next(states)
    for run in states:
        now = time.monotonic_ns()
        ticks: list[int] = run.metadata.get("ticks", [])
        latencies += [(now - tick) / 1e6 for tick in ticks if tick not in seen]
        seen.update(ticks)
    if len(latencies) != wanted.count:
        raise AssertionError(f"{len(latencies)} of {wanted.count} updates were seen")
    report.add(f"{name}_p50", percentile(latencies, 0.5))
    report.add(f"{name}_p99", percentile(latencies, 0.99))


def measure_through(report: Report, sizes: Sizes) -> None:
    """Many runs at once, each updating all the time: first unwatched, then each with a subscriber, counted where updates arrive."""
    wanted = Steady(sizes.through_seconds + 2.5, THROUGH_PAUSE_SECONDS)
    payloads = [wanted] * sizes.through_runs
    with harness.dev(
        processes=1, concurrency=sizes.through_runs, flush_interval_ms=THROUGH_FLUSH_INTERVAL_MS
    ) as house:
        house.use()
        batch = batch_ids(bench_tasks.stamp_steadily, payloads)
        time.sleep(1)
        versions, began = committed_versions(), time.perf_counter()
        time.sleep(sizes.through_seconds)
        report.add("committed", (committed_versions() - versions) / (time.perf_counter() - began))
        for run_id in batch:
            runs.wait(run_id, 30)
        with house.paused_workers():
            ids = batch_ids(bench_tasks.stamp_steadily, payloads)
            watching = watch(Watch(house.url, house.secret_key, ids, sample_every=17))
        with watching:
            time.sleep(1)
            watching.take()
            before = house.cpu()
            time.sleep(sizes.through_seconds)
            seen = watching.take()
            used = house.cpu() - before
    report.add(
        "through",
        seen.versions / seen.seconds,
        f"{seen.frames / seen.seconds:,.0f} frames/s, {len(ids):,} runs",
    )
    report.add("through_p50", percentile(seen.latencies_ms, 0.5))
    report.add("through_p99", percentile(seen.latencies_ms, 0.99))
    share = 1e6 / max(1, seen.versions)
    report.add("through_server", used.server * share)
    report.add("through_worker", used.workers * share)


def committed_versions() -> int:
    """Versions of the documents of all runs that have not ended."""
    return sum(run.metadata_version for run in runs.list(status="EXECUTING"))


def batch_ids(task: Task[Any, Any], payloads: Sequence[Any]) -> list[str]:
    """Trigger these runs, a thousand at a time; their ids."""
    return [
        handle.id
        for first in range(0, len(payloads), harness.BATCH_RUNS)
        for handle in task.batch_trigger(payloads[first : first + harness.BATCH_RUNS]).runs
    ]


def measure_bytes(report: Report, sizes: Sizes, house: House) -> None:
    """A log that grows line by line: what a subscriber receives, everything between the two sockets counted."""
    house.use()
    appended = sizes.appends * LINE_BYTES
    for name, task in (("each", bench_tasks.append_lines), ("together", bench_tasks.append_lines_at_once)):
        seen = watch_one(house, task, sizes.appends, times=1)
        report.add(f"bytes_{name}", seen.bytes / appended, f"{seen.bytes:,} bytes, {seen.frames:,} frames")
    # After the n-th append the document has n lines: the sum of 1 to n.
    report.add("bytes_whole", (sizes.appends + 1) / 2)


def measure_large(report: Report, sizes: Sizes, house: House) -> None:
    """Documents that are large and change a little: what watchers of several runs receive, one after the other."""
    house.use()
    # As long as both are watched, and what goes before and between.
    wanted = Updates(round(LARGE_PER_SECOND * (2 * sizes.large_seconds + 8)), LARGE_PER_SECOND)
    batch = batch_ids(bench_tasks.count_large, [wanted] * LARGE_RUNS)
    time.sleep(2)
    search = urlencode({"filter[metadata]": '{"n": {"$exists": true}}', "filter[status]": "EXECUTING"})
    for name, path in (("list", "/api/v1/feed/runs"), ("search", f"/api/v1/feed/matching-runs?{search}")):
        with watch(Watch(house.url, house.secret_key, [], [path])) as watching:
            time.sleep(1)
            watching.take()
            cpu, began = house.cpu(), time.perf_counter()
            time.sleep(sizes.large_seconds)
            seen = watching.take()
            seconds, used = time.perf_counter() - began, house.cpu() - cpu
        report.add(f"{name}_bytes", seen.bytes / seen.seconds / 1000)
        if name == "search":
            report.add("search_cpu", used.server / seconds * 100)
    for run_id in batch:
        runs.wait(run_id, 60)


def measure_crowd(report: Report, sizes: Sizes, house: House) -> None:
    """Many watchers of one run."""
    house.use()
    seen = watch_one(house, bench_tasks.stamp, Updates(sizes.crowd_updates, 20), times=sizes.crowd)
    share = seen.versions / (sizes.crowd * sizes.crowd_updates)
    report.add("crowd_p50", percentile(seen.latencies_ms, 0.5))
    report.add(
        "crowd_p99",
        percentile(seen.latencies_ms, 0.99),
        f"{sizes.crowd:,} watchers, {share:.0%} of the updates as versions",
    )


def watch_one(house: House, task: Task[Any, Any], payload: Any, *, times: int) -> Seen:
    """Have one run watched from before its start until its end, this many times over."""
    with house.paused_workers():
        run_id = task.trigger(payload).id
        watching = watch(
            Watch(house.url, house.secret_key, [run_id], times=times, sample_every=7 if times > 1 else 1)
        )
    with watching:
        return watching.take_until_ended(times, seconds=60)


def measure_idle(report: Report, sizes: Sizes) -> None:
    """Many watchers of as many runs in which nothing happens; at the end some runs are written to, to see that they still watch."""
    count = min(sizes.idle, harness.raise_open_files(sizes.idle + OTHER_FILES) - OTHER_FILES)
    if count < sizes.idle:
        report.note(f"the system allows {count:,} watchers only: raise the limit of open files (ulimit -Hn)")
    with harness.dev(processes=1) as house:
        house.use()
        ids = batch_ids(bench_tasks.sleep, [3600.0] * count)
        time.sleep(1)
        before = harness.memory(house.server_id)
        started = time.perf_counter()
        with watch(Watch(house.url, house.secret_key, ids)) as watching:
            connected = time.perf_counter() - started
            time.sleep(1)
            cpu, began = house.cpu(), time.perf_counter()
            time.sleep(sizes.idle_seconds)
            used, seconds = house.cpu() - cpu, time.perf_counter() - began
            after = harness.memory(house.server_id)
            watching.take()
            awake = ids[:: max(1, count // 20)]
            for run_id in awake:
                runs.metadata(run_id).set("here", True).send()
            time.sleep(0.5)
            seen = watching.take()
    if seen.open != count or seen.versions != len(awake):
        raise AssertionError(
            f"{seen.open} of {count} watchers are left, {seen.versions} of {len(awake)} updates came"
        )
    report.add("idle_memory", after.pss, f"{count:,} watchers; {before.pss:.0f} MB before them")
    report.add("idle_each", (after.pss - before.pss) * 1024 / count)
    report.add("idle_cpu", used.server / seconds * 100, f"connecting took {connected:.1f} s")


if __name__ == "__main__":
    main()
