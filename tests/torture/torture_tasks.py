"""The tasks that are run under torture. Every attempt may be killed at any point, and is run again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from milepost import Context, Queue, Retry, metadata, runs, streams, task
from milepost.errors import StreamStoppedError

JOURNAL = "executions.txt"
# Says to an executor which of the workers it belongs to.
WORKER_VARIABLE = "TORTURE_WORKER"
# Where a short run notes in its document who has executed it.
TOKEN_KEY = "token"
NARROW_LIMIT = 3
# So many that some of them are in any process that is killed.
WIDE_LIMIT = 30
PERSISTENT = Retry(max_attempts=1000, min_delay=0.05, max_delay=0.5)
INCREMENTS = 10
LEDGER_ITEMS_MAX = 100
BEATS_PER_FLUSH = 5
BEATS_MAX = 100
ONE_ATTEMPT = Retry(max_attempts=1)
ONCE = ("once", "once_in_thread", "step", "brief", "brief_in_thread", "gathering")
"""The tasks whose runs are tried once."""
narrow = Queue("narrow", concurrency=NARROW_LIMIT)
wide = Queue("wide", concurrency=WIDE_LIMIT)
LIMITS = {narrow.name: NARROW_LIMIT, wide.name: WIDE_LIMIT}


@task(retry=PERSISTENT)
async def shared(number: int, ctx: Context) -> int:
    """A run that others write to, until the word `end` is in its document.

    It writes as well: `[attempt, beat]` at each beat. What `aflush` has acknowledged it notes in a file, which a killed process leaves
    behind: a line says that this beat and all before it of the same attempt are committed.

    An attempt fails after a while. One that goes on for ever and has been in a process that was killed would have a process to itself
    for ever: it is suspected, and executes apart until it has ended.
    """
    note("begin", ctx)
    beat = 0
    ledger = os.open(Path(f"ledger-{ctx.run.id}.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        while not metadata.get("end"):
            beat += 1
            metadata.append("ledger", [ctx.attempt.number, beat], max_items=LEDGER_ITEMS_MAX)
            metadata.increment("beats").set("beat", [ctx.attempt.number, beat])
            if beat % BEATS_PER_FLUSH == 0:
                await metadata.aflush()
                os.write(ledger, f"{ctx.attempt.number} {beat}\n".encode())
            await asyncio.sleep(0.02)
            if beat == BEATS_MAX:
                note("raise", ctx)
                raise ValueError("on purpose")
    finally:
        os.close(ledger)
    return beat


@task(retry=PERSISTENT)
async def wave(size: int, ctx: Context) -> int:
    """A root with `size` children. A later attempt finds the children of an earlier one and waits for those."""
    note("begin", ctx)
    while True:
        # An attempt that was killed may have begun the children, or be beginning them right now.
        counts = (await runs.aretrieve(ctx.run.id)).child_counts if ctx.attempt.number > 1 else {}
        if not counts:
            results = await member.abatch_trigger_and_wait(range(size))
            return sum(result.ok for result in results)
        if sum(counts.values()) == sum(
            counts.get(status, 0) for status in ("COMPLETED", "FAILED", "CRASHED")
        ):
            return counts.get("COMPLETED", 0)
        await asyncio.sleep(0.2)


@task(retry=PERSISTENT)
async def member(index: int, ctx: Context) -> None:
    """A child. Its ids name its place in the wave, and not its run: a root that was killed while it began its children may have begun
    them twice."""
    note("begin", ctx)
    for number in range(INCREMENTS):
        ancestor = metadata.root if number % 2 else metadata.parent
        ancestor.increment("count", once=f"{index}-{number}")
        if number == INCREMENTS // 2 and index % 3 == 0:
            await metadata.aflush()
            await asyncio.sleep(0.02)
    metadata.root.append("members", [index, ctx.run.id, ctx.attempt.number], once=f"{index} member")


@task(retry=ONE_ATTEMPT)
async def once(number: int, ctx: Context) -> str:
    """A run that is tried once. Some wait for a child in a narrow queue, and some fail."""
    note("begin", ctx)
    await asyncio.sleep(number % 7 * 0.05)
    if number % 3 == 0:
        # What becomes of it is its own affair.
        await step.atrigger_and_wait([ctx.run.id, ctx.attempt.number])
    if number % 17 == 0:
        note("raise", ctx)
        raise ValueError("on purpose")
    return note("end", ctx)


@task(retry=ONE_ATTEMPT)
def once_in_thread(number: int, ctx: Context) -> str:
    """The same in a thread, which nobody can stop: an attempt that was given up goes on and triggers."""
    note("begin", ctx)
    for _ in range(number % 5):
        time.sleep(0.1)
        step.trigger([ctx.run.id, ctx.attempt.number])
    return note("end", ctx)


@task(retry=ONE_ATTEMPT, queue=narrow)
async def step(triggered_by: list[str | int], ctx: Context) -> str:
    """A child, in a queue with a limit. The payload names the attempt that has triggered it."""
    note("begin", ctx)
    await asyncio.sleep(0.02)
    return note("end", ctx)


@task(retry=ONE_ATTEMPT)
async def brief(number: int, ctx: Context) -> str:
    """A short run that is tried once. Some fail."""
    token = note("begin", ctx)
    metadata.set(TOKEN_KEY, token)
    if number % 101 == 0:
        note("raise", ctx)
        raise ValueError("on purpose")
    return note("end", ctx)


@task(retry=ONE_ATTEMPT, queue=wide)
def brief_in_thread(number: int, ctx: Context) -> str:
    """The same in a thread, in a queue with a limit."""
    metadata.set(TOKEN_KEY, note("begin", ctx))
    return note("end", ctx)


@task(retry=PERSISTENT)
async def streaming(count: int, ctx: Context) -> dict[str, int]:
    """A run that writes streams, as its children do. A chunk says who has written it: `[run, attempt, process, number]`.

    Returns: by stream, how many chunks this attempt has written.
    """
    note("begin", ctx)
    children = asyncio.create_task(beside.abatch_trigger_and_wait([count] * 2))

    async def tokens() -> AsyncIterator[list[str | int]]:
        for number in range(count):
            if number % 4 == 0:
                await asyncio.sleep(0.01)
            yield chunk(ctx, number)

    read = 0
    try:
        async with streams.writer("both") as write:
            async for value in metadata.stream("tokens", tokens()):
                read += 1
                await write(value)
        await children
    finally:
        # An attempt that is over does not leave it behind.
        children.cancel()
        await asyncio.gather(children, return_exceptions=True)
    return {"tokens": count, "both": read}


@task(retry=PERSISTENT)
async def beside(count: int, ctx: Context) -> dict[str, int]:
    """A child that writes to a stream of its parent, where others write as well."""
    note("begin", ctx)
    try:
        for number in range(count):
            await streams.append("both", chunk(ctx, number), target="parent")
            if number % 5 == 0:
                await asyncio.sleep(0.01)
    except StreamStoppedError as error:
        if error.reason == "run_finished":
            # A later attempt of the parent did not wait for it.
            return {}
        raise
    return {"both": count}


STREAMING = (streaming.id, beside.id)


def chunk(ctx: Context, number: int) -> list[str | int]:
    """What nobody else writes."""
    return [ctx.run.id, ctx.attempt.number, os.getpid(), number]


@task(retry=ONE_ATTEMPT)
async def gathering(size: int, ctx: Context) -> bool:
    """True when so many of these execute at once: no slot of any worker has got lost."""
    note("begin", ctx)
    meeting = os.open(Path("gathering.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(meeting, b"x")
    os.close(meeting)
    size_now = 0
    for _ in range(600):
        size_now = os.stat("gathering.txt").st_size  # noqa: PTH116 - as little as can be, on the event loop
        if size_now >= size:
            break
        await asyncio.sleep(0.05)
    note("end", ctx)
    return size_now >= size


def note(what: str, ctx: Context) -> str:
    """Note in a file what an execution has come to; a killed process leaves it behind. Returns what tells the execution apart."""
    token = f"{ctx.run.id} {ctx.attempt.number} {os.getpid()}"
    journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    worker = os.environ.get(WORKER_VARIABLE, "-")
    os.write(journal, f"{what} {token} {worker} {time.monotonic_ns()}\n".encode())
    os.close(journal)
    return token
