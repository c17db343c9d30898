"""How much memory server and worker hold: idle, and after very many runs.

    python benchmarks/memory.py [--quick] [--markdown]

Proportional set size: all pages of the process, those that it shares with others by its share. It includes pages of files, such as the
database that SQLite maps, which the system takes back when it needs them; growth is therefore told without them as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import harness
from harness import Figure, House, Memory, Options, Report

FIGURES = (
    Figure("server_idle", "server, idle", "MB", at_most=100),
    Figure("worker_idle", "worker, idle", "MB", at_most=60),
    Figure("worker_growth", "growth of the worker over 200,000 no-op runs", "%", at_most=5),
    Figure("worker_after", "worker after them", "MB"),
    Figure("server_after", "server after them", "MB"),
    Figure("server_growth", "growth of the server over them, without pages of files", "MB"),
    Figure("disk", "on disk for each no-op run", "bytes"),
)

SECONDS_MAX = 100.0
# What ends with the runs has ended by then, and what is freed now and then has been freed.
SETTLE_SECONDS = 2.0
RUN_SECONDS_MAX = 50.0
PARTS = 20


@dataclass(frozen=True)
class Sizes:
    """How much is measured. What is needed to run at full speed grows during the warm-up, and does not count as growth."""

    warm_up: int
    runs: int


FULL = Sizes(warm_up=20_000, runs=200_000)
QUICK = Sizes(warm_up=1_000, runs=2_000)


@dataclass(frozen=True)
class Moment:
    """What both hold at one moment."""

    server: Memory
    worker: Memory


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    with harness.at_most(SECONDS_MAX):
        measure(options)


def measure(options: Options) -> None:
    """All figures, one after the other."""
    sizes = QUICK if options.quick else FULL
    with (
        Report("memory", "Memory of server and worker", FIGURES, markdown=options.markdown) as report,
        harness.dev(processes=1) as house,
    ):
        idle = moment(house)
        report.add("server_idle", idle.server.pss)
        report.add("worker_idle", idle.worker.pss)
        house.run_noops(sizes.warm_up)
        warm, started = moment(house), time.perf_counter()
        count = 0
        # In parts, so that a slow machine runs fewer rather than too long.
        for _ in harness.rounds(PARTS, seconds=RUN_SECONDS_MAX):
            house.run_noops(sizes.runs // PARTS)
            count += sizes.runs // PARTS
        seconds = time.perf_counter() - started
        after = moment(house)
        size = sum(file.stat().st_size for file in house.folder.glob("milepost.db*"))
        report.add(
            "worker_growth",
            (after.worker.anonymous / warm.worker.anonymous - 1) * 100,
            f"{warm.worker.pss:.1f} MB after a warm-up of {sizes.warm_up:,}; {count:,} runs in {seconds:.0f} s",
        )
        report.add("worker_after", after.worker.pss)
        files = after.server.pss - after.server.anonymous
        report.add("server_after", after.server.pss, f"{files:.0f} MB of it pages of files")
        report.add("server_growth", after.server.anonymous - warm.server.anonymous)
        report.add("disk", size / (sizes.warm_up + count))


def moment(house: House) -> Moment:
    """What server and worker hold when nothing runs."""
    time.sleep(SETTLE_SECONDS)
    return Moment(harness.memory(house.server_id), harness.memory(house.worker_ids[0]))


if __name__ == "__main__":
    main()
