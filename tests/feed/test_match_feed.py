"""Watching all runs that match a filter: each as it is now, then each newer state, and once more what matches no longer."""

from typing import Any

import pytest

from milepost.feed import hub, matching
from milepost.feed.matching import watch_matching
from milepost.feed.streams import watch_list
from milepost.model.filters import parse_filter
from milepost.model.operations import Delete, Increment, Set
from milepost.model.run import RunStatus
from milepost.store.runs import RunFilter
from support.subscriber import FeedWorld, ListSubscriber, MatchSubscriber, run_async
from support.world import WorkerDouble, item


class MatchWatcher(MatchSubscriber):
    """Who watches matching runs of this world."""

    def __init__(self, world: FeedWorld, metadata: dict[str, Any] | None = None, **fields: Any) -> None:
        filter = RunFilter(metadata=parse_filter(metadata) if metadata else None, **fields)
        super().__init__(watch_matching(world.hub, world.reader, filter))


def test_present_states_come_first_newest_first_and_page_by_page(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MATCHES_READ", 3)
    ids = world.trigger_batch(*(item(metadata={"n": n, "odd": bool(n % 2)}) for n in range(16))).run_ids

    async def follow() -> None:
        watcher = MatchWatcher(world, {"odd": True})
        assert await watcher.read() == "begin"
        assert await watcher.read_until_present() == ids[1::2][::-1]
        assert {run["metadata"]["n"] for run in watcher.runs.values()} == set(range(1, 16, 2))
        await watcher.close()

    run_async(follow)
    assert not world.hub.matches


def test_runs_enter_change_and_leave(world: FeedWorld, worker: WorkerDouble) -> None:
    first, second = world.trigger(metadata={"step": 1}), world.trigger(metadata={"step": 0})

    async def follow() -> None:
        watcher = MatchWatcher(world, {"step": {"$gte": 1}})
        assert await watcher.read_until_present() == [first]
        world.write(second, Set("step", 1))
        assert (await watcher.until_told(second))["metadataVersion"] == 1
        world.write(second, Set("other", True))
        assert (await watcher.until_told(second))["metadata"] == {"step": 1, "other": True}
        world.write(second, Delete("step"))
        assert (await watcher.until_told(second, matches=False))["metadata"] == {"other": True}
        world.write(second, Set("other", False))
        third = world.trigger(metadata={"step": 5})
        assert (await watcher.until_told(third))["metadata"] == {"step": 5}
        assert watcher.told == [(third, True)]
        worker.finish(worker.claim_one(), Increment("step", 1))
        while watcher.runs[first]["status"] != "COMPLETED":
            await watcher.read()
        assert watcher.runs[first]["metadata"] == {"step": 2}
        await watcher.close()

    run_async(follow)


def test_a_status_is_left_too_and_other_tasks_are_not_looked_at(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    first = world.trigger(tags=["t"])

    async def follow() -> None:
        watcher = MatchWatcher(world, statuses=(RunStatus.QUEUED,), tags=("t",), tasks=("work",))
        assert await watcher.read_until_present() == [first]
        worker.claim_one()
        assert (await watcher.until_told(first, matches=False))["status"] == "EXECUTING"
        watch = next(iter(world.hub.matches))
        parent = MatchWatcher(world, parent_id=first)
        assert await parent.read_until_present() == []
        top = MatchWatcher(world, top_level=True)
        assert await top.read_until_present() == [first]
        child = world.trigger(tags=["t"], parent_run_id=first)
        other = world.trigger()
        assert set(watch.changed) == {child, other}
        await parent.until_told(child)
        assert parent.told == [(child, True)]
        await top.until_told(other)
        assert top.told == [(other, True)]
        await top.close()
        await watcher.until_told(child)
        assert watcher.told == [(child, True)]
        await watcher.close()
        await parent.close()

    run_async(follow)


def test_what_changes_while_the_present_is_told_is_not_missed(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MATCHES_READ", 2)
    ids = [world.trigger(metadata={"n": 0}) for _ in range(6)]

    async def follow() -> None:
        watcher = MatchWatcher(world, {"n": {"$lt": 10}})
        await watcher.read()
        await watcher.read()
        for run_id in ids:
            world.write(run_id, Increment("n", 1))
        new = world.trigger(metadata={"n": 7})
        await watcher.read_until_present()
        await watcher.until_told(new)
        assert {run_id: run["metadata"]["n"] for run_id, run in watcher.runs.items()} == {
            **dict.fromkeys(ids, 1),
            new: 7,
        }
        await watcher.close()

    run_async(follow)


def test_the_stream_of_a_reader_that_is_too_slow_ends(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CHANGED_MAX", 10)

    async def follow() -> None:
        watcher = MatchWatcher(world, {"n": {"$exists": True}})
        await watcher.read_until_present()
        watch = next(iter(world.hub.matches))
        for _ in range(12):
            world.trigger(metadata={"n": 1})
        assert watch.has_overflown
        assert not watch.changed
        with pytest.raises(StopAsyncIteration):
            await watcher.read()
        assert not world.hub.matches

    run_async(follow)


def test_closing_the_hub_ends_the_stream(world: FeedWorld, worker: WorkerDouble) -> None:
    async def follow() -> None:
        watcher = MatchWatcher(world)
        await watcher.read_until_present()
        world.hub.close()
        with pytest.raises(StopAsyncIteration):
            await watcher.read()

    run_async(follow)


def test_a_list_that_is_filtered_by_metadata_follows_the_documents(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    first, second = world.trigger(metadata={"a": 1}), world.trigger()

    async def follow() -> None:
        filter = RunFilter(metadata=parse_filter({"a": 1}))
        watcher = ListSubscriber(watch_list(world.hub, world.reader, filter, size=10))
        await watcher.read()
        assert (watcher.order, watcher.counts) == ([first], {})
        world.write(second, Set("a", 1))
        await watcher.until(lambda: watcher.order == [second, first])
        world.write(first, Set("a", 2))
        await watcher.until(lambda: watcher.order == [second])
        await watcher.close()

    run_async(follow)
