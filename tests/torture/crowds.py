"""Many short runs, a batch of them after the other: so many that what happens to one run in ten thousand is seen."""

import asyncio
from itertools import count

import torture_tasks
from writers import until_answered

from milepost import Client
from milepost.client import calls
from milepost.client.subscription import BatchFollower
from milepost.errors import UnavailableError
from milepost.protocol.triggering import BatchItem, BatchRequest

CROWD_RUNS = 500
NEARLY = 0.8


class Crowds:
    """Triggers batches and waits for the end of each; several such loops may run at once.

    Attributes:
        triggered: the task of every run that the server has acknowledged, by run.
        ended: how many batches have come to their end.
    """

    def __init__(self, client: Client, triggered: dict[str, str]) -> None:
        self.triggered = triggered
        self.ended = 0
        self._client = client
        self._numbers = count()

    async def run(self, stop: asyncio.Event) -> None:
        """One batch after the other, until it is told to stop; then all of its runs have ended."""
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                tasks = [torture_tasks.brief.id, torture_tasks.brief_in_thread.id]
                numbers = [next(self._numbers) for _ in range(CROWD_RUNS)]
                items = [BatchItem(tasks[number % 10 == 0], str(number)) for number in numbers]
                batch = await until_answered(self._client, calls.trigger_batch(BatchRequest(items=items)))
                self.triggered |= dict(zip(batch.run_ids, (item.task for item in items), strict=True))
                nearly_ended = asyncio.Event()
                group.create_task(self._follow(batch.id, nearly_ended))
                await nearly_ended.wait()

    async def _follow(self, batch_id: str, nearly_ended: asyncio.Event) -> None:
        """Wait until the batch has ended. A few runs of it may be held up for long, and are not waited for by the next one."""
        while True:
            try:
                async for frame in self._client.connection.afollow(
                    calls.watch_batch(batch_id), BatchFollower()
                ):
                    if frame.finished_count >= CROWD_RUNS * NEARLY:
                        nearly_ended.set()
                break
            except UnavailableError:
                continue
        nearly_ended.set()
        self.ended += 1
