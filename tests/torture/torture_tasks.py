"""The tasks that are run under torture. Every attempt may be killed at any point, and is run again."""

import asyncio
import os
from pathlib import Path

from milepost import Context, Retry, metadata, runs, task

PERSISTENT = Retry(max_attempts=1000, min_delay_seconds=0.05, max_delay_seconds=0.5)
INCREMENTS = 10
LEDGER_ITEMS_MAX = 100
BEATS_PER_FLUSH = 5


@task(retry=PERSISTENT)
async def shared(number: int, ctx: Context) -> int:
    """A run that others write to, until the word `end` is in its document.

    It writes as well: `[attempt, beat]` at each beat. What `aflush` has acknowledged it notes in a file, which a killed process leaves
    behind: a line says that this beat and all before it of the same attempt are committed.
    """
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
    finally:
        os.close(ledger)
    return beat


@task(retry=PERSISTENT)
async def wave(size: int, ctx: Context) -> int:
    """A root with `size` children. A later attempt finds the children of an earlier one and waits for those."""
    while True:
        # An attempt that was killed may have begun the children, or be beginning them right now.
        counts = (await runs.aretrieve(ctx.run.id)).child_counts if ctx.attempt.number > 1 else {}
        if not counts:
            results = await member.abatch_trigger_and_wait(range(size))
            return sum(result.ok for result in results)
        if sum(counts.values()) == counts.get("COMPLETED", 0) + counts.get("FAILED", 0):
            return counts.get("COMPLETED", 0)
        await asyncio.sleep(0.2)


@task(retry=PERSISTENT)
async def member(index: int, ctx: Context) -> None:
    """A child. Its ids name its place in the wave, and not its run: a root that was killed while it began its children may have begun
    them twice."""
    for number in range(INCREMENTS):
        ancestor = metadata.root if number % 2 else metadata.parent
        ancestor.increment("count", once=f"{index}-{number}")
        if number == INCREMENTS // 2 and index % 3 == 0:
            await metadata.aflush()
            await asyncio.sleep(0.02)
    metadata.root.append("members", [index, ctx.run.id, ctx.attempt.number], once=f"{index} member")
