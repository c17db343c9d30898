"""The tasks of the contestant c_ours, as `milepost dev` loads them.

What only touches memory is `async def`; the timed loops of W3 and W4, which block, are `def`, as
their authors would write them.
"""

import time

from milepost import metadata, task
from peerlib import mark, now_ns, payload, run_ticks, run_updates, summary
from pydantic import BaseModel

FLUSHED_UPDATES_MAX = 100
"""W3 with a flush each: a flush may wait for the flush interval, so thousands would take minutes."""
UPDATES_PER_FLUSH = 100


class Ticks(BaseModel):
    count: int
    hertz: float


class FanIn(BaseModel):
    children: int
    marks_path: str


@task
async def noop(number: int) -> int:
    return 1


@task
async def stamp(number: int) -> int:
    return now_ns()


@task
def progress(count: int) -> dict[str, float]:
    return run_updates(lambda value: metadata.set("progress", value), count)


@task
def progress_flushed(count: int) -> dict[str, float]:
    def update(value: dict[str, object]) -> None:
        metadata.set("progress", value)
        metadata.flush()

    return run_updates(update, min(count, FLUSHED_UPDATES_MAX))


@task
async def stored(count: int) -> int:
    """Updates each of which is committed before the next one."""
    for i in range(count):
        metadata.set("progress", payload(i, count))
        await metadata.aflush()
    return 1


@task
def progress_flushed_together(count: int) -> dict[str, float]:
    """Flush after every hundred updates; a sample is the time of a hundred and its flush, per update."""
    samples: list[int] = []
    for first in range(0, count, UPDATES_PER_FLUSH):
        last = min(first + UPDATES_PER_FLUSH, count)
        started = time.perf_counter_ns()
        for i in range(first, last):
            metadata.set("progress", payload(i, count))
        metadata.flush()
        samples.append((time.perf_counter_ns() - started) // (last - first))
    return summary(samples)


@task
def ticks(wanted: Ticks) -> int:
    run_ticks(lambda value: metadata.set("tick", value), wanted.count, wanted.hertz)
    return 1


@task
async def child(marks_path: str) -> int:
    metadata.parent.increment("done")
    mark(marks_path)
    return 1


@task
async def parent(wanted: FanIn) -> int:
    """The children's last updates are committed with their outcomes, so the count is whole afterwards."""
    for first in range(0, wanted.children, 1000):
        count = min(1000, wanted.children - first)
        await child.abatch_trigger_and_wait([wanted.marks_path] * count)
    return wanted.children
