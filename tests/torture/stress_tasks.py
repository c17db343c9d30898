"""The tasks of the stress: each does one thing that a run can come to, by what it is given and by the number of its attempt.

Executors are killed and stopped meanwhile, so every attempt may be cut off at any point; only where a task says so does that count.
"""

import asyncio
import signal
import time
from typing import Any

from torture_tasks import gathering, note

from milepost import AbortTaskRun, Context, Queue, Retry, metadata, task, wait

PERSISTENT = Retry(max_attempts=1000, min_delay=0.02, max_delay=0.2)
TWICE = Retry(max_attempts=2, min_delay=0.02, max_delay=0.2)
ONCE = Retry(max_attempts=1)
MAX_DURATION_SECONDS = 0.4
PAUSE_SECONDS = 5.2
# Much longer than anything may take.
FOR_EVER_SECONDS = 300.0
BRANCHES = 3
LEAVES = 5
DONE_KEY = "done"
"""The key of a parent's document in which each child counts itself once, whatever becomes of its attempts."""
PLAIN_KEY = "plain"
"""The same without an id: each attempt of a child counts."""
narrow = Queue("narrow", concurrency=3)
branches = Queue("branches", concurrency=12)
by_tenant = Queue("by-tenant", concurrency=2)
squeezed = Queue("squeezed", concurrency=1)
roomy = Queue("roomy", concurrency=10)
LIMITS = {queue.name: queue.concurrency or 0 for queue in (narrow, branches, by_tenant, squeezed, roomy)}


@task(retry=PERSISTENT)
async def plain(number: int, ctx: Context) -> int:
    """Ends at once."""
    note("begin", ctx)
    metadata.set("number", number)
    note("end", ctx)
    return number


@task(retry=PERSISTENT)
def in_thread(number: int, ctx: Context) -> int:
    """The same in a thread."""
    note("begin", ctx)
    metadata.set("number", number)
    note("end", ctx)
    return number


@task(retry=PERSISTENT)
async def flaky(number: int, ctx: Context) -> int:
    """Fails once or twice."""
    note("begin", ctx)
    if ctx.attempt.number <= 1 + number % 2:
        note("raise", ctx)
        raise ValueError("on purpose")
    note("end", ctx)
    return number


@task(retry=TWICE)
async def failing(number: int, ctx: Context) -> None:
    """Fails for good."""
    note("begin", ctx)
    note("raise", ctx)
    raise ValueError("on purpose")


@task(retry=PERSISTENT)
async def giving_up(number: int, ctx: Context) -> None:
    """Fails for good, although it might be tried again."""
    note("begin", ctx)
    note("raise", ctx)
    raise AbortTaskRun("on purpose")


@task(retry=PERSISTENT, max_duration=MAX_DURATION_SECONDS)
async def too_long(number: int, ctx: Context) -> None:
    """Takes longer than it may."""
    note("begin", ctx)
    await asyncio.sleep(FOR_EVER_SECONDS)


@task(retry=PERSISTENT, max_duration=MAX_DURATION_SECONDS)
def too_long_in_thread(number: int, ctx: Context) -> None:
    """The same in a thread, which hears of it when it writes."""
    note("begin", ctx)
    until = time.monotonic() + FOR_EVER_SECONDS
    while time.monotonic() < until:
        metadata.increment("rounds")
        time.sleep(0.05)


@task(retry=PERSISTENT, queue=roomy)
async def lingering(number: int, ctx: Context) -> int:
    """Executes for so long that it can be cancelled while it holds a place in its queue, and it writes when it was asked to end."""
    note("begin", ctx)
    try:
        await asyncio.sleep(1.5)
    finally:
        metadata.set("put away", True)
    note("end", ctx)
    return number


@task(retry=PERSISTENT, max_duration=MAX_DURATION_SECONDS, isolation="process")
def deaf(number: int, ctx: Context) -> None:
    """Takes longer than it may, and hears nothing: its process has to be killed."""
    note("begin", ctx)
    time.sleep(FOR_EVER_SECONDS)


@task(retry=ONCE, isolation="process")
def dying(number: int, ctx: Context) -> None:
    """Takes its process along."""
    note("begin", ctx)
    signal.raise_signal(signal.SIGSEGV)
    time.sleep(FOR_EVER_SECONDS)


@task(retry=PERSISTENT)
async def pausing(number: int, ctx: Context) -> int:
    """Waits, without its slot."""
    note("begin", ctx)
    await wait.afor_(seconds=PAUSE_SECONDS)
    note("end", ctx)
    return number


@task(retry=PERSISTENT, queue=branches)
async def expecting(token_id: str, ctx: Context) -> list[Any]:
    """Waits for a token in a queue with a limit, to which it has to come back."""
    note("begin", ctx)
    result = await wait.afor_token(token_id)
    note("end", ctx)
    return [result.ok, result.output]


@task(retry=PERSISTENT, queue=narrow)
async def narrowly(number: int, ctx: Context) -> int:
    """In a queue with a limit."""
    note("begin", ctx)
    await asyncio.sleep(0.01)
    note("end", ctx)
    return number


@task(retry=PERSISTENT, queue=by_tenant)
async def of_tenant(number: int, ctx: Context) -> int:
    """In a queue whose limit holds for each key."""
    note("begin", ctx)
    await asyncio.sleep(0.01)
    note("end", ctx)
    return number


@task(retry=PERSISTENT, queue=squeezed)
async def in_time(number: int, ctx: Context) -> int:
    """In a queue that is so narrow that the time to live of many runs is over before their turn."""
    note("begin", ctx)
    await asyncio.sleep(0.3)
    note("end", ctx)
    return number


@task(retry=PERSISTENT)
async def root(number: int, ctx: Context) -> int:
    """A tree: branches, and leaves of each of them. Some fail after all of that, and find it done when they are tried again."""
    note("begin", ctx)
    results = await branch.abatch_trigger_and_wait([number * 100 + index for index in range(BRANCHES)])
    if number % 5 == 0 and ctx.attempt.number == 1:
        note("raise", ctx)
        raise ValueError("on purpose")
    note("end", ctx)
    return sum(result.output or 0 for result in results)


@task(retry=PERSISTENT, queue=branches)
async def branch(number: int, ctx: Context) -> int:
    """The middle of a tree. Some wait for one child after the other."""
    note("begin", ctx)
    numbers = [number * 10 + index for index in range(LEAVES)]
    if number % 2:
        results = await leaf.abatch_trigger_and_wait(numbers)
    else:
        results = [await leaf.atrigger_and_wait(each) for each in numbers]
    _count(ctx)
    note("end", ctx)
    return sum(result.ok for result in results)


@task(retry=PERSISTENT)
async def leaf(number: int, ctx: Context) -> int:
    """The end of a tree. Some fail when they have counted themselves already, and count themselves again."""
    note("begin", ctx)
    _count(ctx)
    if number % 7 == 0 and ctx.attempt.number == 1:
        await metadata.aflush()
        note("raise", ctx)
        raise ValueError("on purpose")
    note("end", ctx)
    return number


def _count(ctx: Context) -> None:
    metadata.parent.increment(DONE_KEY, once=ctx.run.id).increment(PLAIN_KEY)


CHILDREN = (branch.id, leaf.id)
ENDS: dict[str, tuple[str, ...]] = {
    failing.id: ("FAILED", "CRASHED"),
    giving_up.id: ("FAILED",),
    too_long.id: ("TIMED_OUT",),
    too_long_in_thread.id: ("TIMED_OUT",),
    deaf.id: ("TIMED_OUT",),
    dying.id: ("CRASHED",),
    gathering.id: ("COMPLETED", "FAILED", "CRASHED"),
}
"""How runs of a task end that nobody cancels and that a worker takes in time; all others are COMPLETED."""
