"""Watching a list of runs: the first page in full, then what is new or changed, and the counts."""

import asyncio
from typing import Any

from milepost.engine.reading import Reader
from milepost.feed.streams import watch_list
from milepost.model.operations import Set
from milepost.model.run import RunStatus
from milepost.protocol.runs import RunSummary
from milepost.store.runs import RunFilter
from support.subscriber import FeedWorld, ListSubscriber, run_async
from support.world import WorkerDouble


class ListWatcher(ListSubscriber):
    """Who watches a list of this world."""

    def __init__(self, world: FeedWorld, filter: RunFilter, size: int, reader: Reader | None = None) -> None:
        super().__init__(watch_list(world.hub, reader or world.reader, filter, size=size))


def watch(world: FeedWorld, size: int = 10, **filter: Any) -> ListWatcher:
    return ListWatcher(world, RunFilter(**filter), size)


def test_the_present_state_comes_first_and_then_what_is_new(world: FeedWorld, worker: WorkerDouble) -> None:
    first, second = world.trigger(metadata={"a": 1}), world.trigger()

    async def follow() -> None:
        watcher = watch(world)
        assert await watcher.read() == "snapshot"
        assert watcher.order == [second, first]
        assert watcher.rows[first]["metadata"] == {"a": 1}
        assert watcher.counts == {"QUEUED": 2}
        third = world.trigger()
        assert await watcher.read() == "rows"
        assert (watcher.order, watcher.whole) == ([third, second, first], [third])
        assert watcher.counts == {"QUEUED": 3}
        await watcher.close()

    run_async(follow)
    assert not world.hub.lists


def test_a_change_of_a_shown_run_sends_that_row(world: FeedWorld, worker: WorkerDouble) -> None:
    first, second = world.trigger(), world.trigger()

    async def follow() -> None:
        watcher = watch(world)
        await watcher.read()
        world.write(first, Set("a", 1))
        await watcher.read()
        assert (watcher.whole, watcher.changed) == ([], [first])
        assert (watcher.rows[first]["metadata"], watcher.rows[first]["metadataVersion"]) == ({"a": 1}, 1)
        run = worker.claim_one()
        worker.finish(run, output="1")
        await watcher.until(lambda: watcher.counts == {"QUEUED": 1, "COMPLETED": 1})
        assert watcher.rows[first]["status"] == "COMPLETED"
        assert watcher.rows[second]["status"] == "QUEUED"
        await watcher.close()

    run_async(follow)


def test_runs_enter_and_leave_a_filtered_list(world: FeedWorld, worker: WorkerDouble) -> None:
    first = world.trigger(tags=["t"])

    async def follow() -> None:
        watcher = watch(world, tags=("t",), statuses=(RunStatus.QUEUED,))
        await watcher.read()
        assert watcher.order == [first]
        world.trigger(tags=["other"])
        second = world.trigger(tags=["t"])
        await watcher.until(lambda: watcher.order == [second, first])
        worker.claim_one()
        await watcher.until(lambda: watcher.order == [second])
        assert watcher.counts == {"QUEUED": 1}
        await watcher.close()

    run_async(follow)


def test_only_one_page_is_followed(world: FeedWorld, worker: WorkerDouble) -> None:
    ids = [world.trigger() for _ in range(5)]

    async def follow() -> None:
        watcher = watch(world, size=2)
        await watcher.read()
        assert watcher.order == [ids[4], ids[3]]
        assert watcher.counts == {"QUEUED": 5}
        newest = world.trigger()
        await watcher.read()
        assert (watcher.order, watcher.whole) == ([newest, ids[4]], [newest])
        await watcher.close()

    run_async(follow)


def test_many_changes_are_told_together(world: FeedWorld, worker: WorkerDouble) -> None:
    """A slow watcher costs bounded memory: only which runs have changed is kept."""
    run_id = world.trigger()

    async def follow() -> None:
        watcher = watch(world)
        await watcher.read()
        for number in range(200):
            world.write(run_id, Set("n", number))
        await watcher.read()
        assert watcher.rows[run_id]["metadata"] == {"n": 199}
        await watcher.close()

    run_async(follow)


class InterruptedReader(Reader):
    """A reader during whose first reading of one kind something is committed."""

    def interrupt(self, place: str, change: Any) -> None:
        self._place, self._change, self._loop = place, change, asyncio.get_running_loop()

    def _interrupt(self, place: str) -> None:
        if place == self._place:
            self._place = ""

            async def call() -> None:
                self._change()

            asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def first_page(
        self, filter: RunFilter, *, size: int, urgent_first: bool = False
    ) -> tuple[list[str], dict[str, int]]:
        found = super().first_page(filter, size=size, urgent_first=urgent_first)
        self._interrupt("page")
        return found

    def summaries(self, run_ids: Any) -> list[RunSummary]:
        found = super().summaries(run_ids)
        self._interrupt("rows")
        return found


def test_what_is_committed_while_the_list_is_read_is_not_lost(world: FeedWorld, worker: WorkerDouble) -> None:
    first = world.trigger()

    async def follow(place: str, change: Any, arrived: Any) -> None:
        reader = InterruptedReader(world.store, metadata_size_max=262_144)
        reader.interrupt(place, change)
        watcher = ListWatcher(world, RunFilter(), 10, reader)
        await watcher.read()
        await watcher.until(lambda: arrived(watcher))
        await watcher.close()

    for place in ("page", "rows"):
        run_async(
            lambda place=place: follow(place, world.trigger, lambda watcher: len(watcher.order) in (2, 3))
        )
        value = f"written while the {place} was read"
        run_async(
            lambda place=place, value=value: follow(
                place,
                lambda: world.write(first, Set("a", value)),
                lambda watcher: watcher.rows[first]["metadata"].get("a") == value,
            )
        )
