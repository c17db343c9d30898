"""The tasks that the benchmarks run, as `milepost dev` loads them."""

import asyncio
import os
import time
from dataclasses import dataclass

from milepost import metadata, streams, task

BATCH_RUNS = 1000
BATCHES_AT_ONCE = 10
TICKS_SHOWN = 64
LARGE_BYTES = 240_000
READERS_SECONDS = 2.0


@dataclass
class Updates:
    """How many updates, and how many of them per second; 0 for no pause between them."""

    count: int
    per_second: float


@dataclass
class Steady:
    """For how long to update, and the pause after each update."""

    seconds: float
    pause_seconds: float


@task
async def noop(number: int) -> int:
    return number


@task
async def moment(number: int) -> int:
    """When the task's first line ran, on the clock that all processes of a machine share."""
    return time.monotonic_ns()


@task
async def process_id(number: int) -> int:
    # Long enough that one process cannot take all of them.
    await asyncio.sleep(0.05)
    return os.getpid()


@task
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def set_many(count: int) -> list[int]:
    """Nanoseconds of each of `count` calls of `metadata.set`, as the task sees them."""
    clock = time.perf_counter_ns
    taken: list[int] = []
    started = clock()
    for number in range(count):
        metadata.set(
            "progress", {"i": number, "total": count, "pct": number * 100 // count, "msg": f"item {number}"}
        )
        ended = clock()
        taken.append(ended - started)
        started = ended
    metadata.flush()
    return taken


@task
def set_and_flush(count: int) -> list[int]:
    """Nanoseconds of each of `count` updates that are committed before the next one is made."""
    taken: list[int] = []
    for number in range(count):
        started = time.perf_counter_ns()
        metadata.set("progress", {"i": number, "total": count})
        metadata.flush()
        taken.append(time.perf_counter_ns() - started)
    return taken


@task
async def child(number: int) -> None:
    metadata.parent.increment("done")


@task
async def parent(children: int) -> int:
    """Run children that each add one to `done`, a thousand to a batch; how many succeeded."""
    turn = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def run_batch(first: int) -> int:
        async with turn:
            results = await child.abatch_trigger_and_wait(range(first, min(first + BATCH_RUNS, children)))
            return sum(result.ok for result in results)

    return sum(await asyncio.gather(*map(run_batch, range(0, children, BATCH_RUNS))))


@task
async def count_large(wanted: Updates) -> None:
    """Count in a document that is large for other reasons."""
    metadata.set("pad", "x" * LARGE_BYTES)
    begins_at = time.monotonic()
    for number in range(wanted.count):
        await asyncio.sleep(max(0.0, begins_at + number / wanted.per_second - time.monotonic()))
        metadata.increment("n")


@task
async def tick(wanted: Updates) -> None:
    """Append the moment of each update to a list that is long enough to miss none."""
    # The start of the run is news of its own; the updates come when it is over.
    begins_at = time.monotonic() + 0.3
    for number in range(wanted.count):
        await asyncio.sleep(max(0.0, begins_at + number / wanted.per_second - time.monotonic()))
        metadata.append("ticks", time.monotonic_ns(), max_items=TICKS_SHOWN)


@task
async def stamp(wanted: Updates) -> None:
    """Set the moment of each update, so that only the newest one is in the document."""
    begins_at = time.monotonic()
    for number in range(wanted.count):
        await asyncio.sleep(max(0.0, begins_at + number / wanted.per_second - time.monotonic()))
        metadata.set("t", time.monotonic_ns())


@task
async def stamp_steadily(wanted: Steady) -> int:
    """As `stamp`, with a pause after each update and until the time is over; the number of updates."""
    ends_at = time.monotonic() + wanted.seconds
    count = 0
    while time.monotonic() < ends_at:
        metadata.set("t", time.monotonic_ns())
        count += 1
        await asyncio.sleep(wanted.pause_seconds)
    return count


@task
async def append_lines(count: int) -> None:
    """Append texts of 100 bytes, each committed before the next one."""
    for number in range(count):
        metadata.append("log", f"{number:0100d}")
        await metadata.aflush()


@task
async def append_lines_at_once(count: int) -> None:
    """Append texts of 100 bytes without a pause."""
    for number in range(count):
        metadata.append("log", f"{number:0100d}")


@task
async def soak(wanted: Steady) -> int:
    """Three kinds of updates at each tick, until the time is over; the number of ticks."""
    begun_at = time.monotonic()
    count = 0
    while (due_at := begun_at + count * wanted.pause_seconds) < begun_at + wanted.seconds:
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        count += 1
        now = time.monotonic_ns()
        metadata.set("t", now).increment("count").append("ticks", now, max_items=TICKS_SHOWN)
    metadata.set("process", os.getpid())
    return count


@task
def write_chunks(count: int) -> None:
    """`count` chunks of 100 bytes, as fast as they are taken."""
    with streams.writer("chunks") as write:
        for _ in range(count):
            write("x" * 98)


@task
async def stamp_chunks(wanted: Updates) -> None:
    """Chunks that carry the moment at which they were written, in nanoseconds of the clock that all processes share.

    They begin when their readers have had the time to connect.
    """
    loop = asyncio.get_running_loop()
    started = loop.time() + READERS_SECONDS
    async with streams.writer("chunks") as write:
        for number in range(wanted.count):
            await asyncio.sleep(started + number / wanted.per_second - loop.time())
            await write(time.monotonic_ns())
