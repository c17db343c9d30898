"""Watching a run with its children on one connection: what a page of a run shows, until nothing of it changes any more."""

import asyncio
from typing import Any

import pytest

from milepost.engine.announcements import Announcement
from milepost.errors import RunNotFoundError
from milepost.feed.hub import ListWatch
from milepost.feed.streams import watch_family
from milepost.model.operations import Increment, Set
from milepost.protocol.runs import LogLine
from milepost.store.runs import RunFilter
from support.subscriber import FeedWorld, ListSubscriber, Subscriber, run_async
from support.world import WorkerDouble, failure

LINE = LogLine(at=1, level="info", message="half")


class FamilyWatcher(Subscriber):
    """Who watches a run with its children: the run as any subscriber holds it, the shown children, and how often the log has grown."""

    def __init__(self, world: FeedWorld, run_id: str, size: int = 10) -> None:
        super().__init__(watch_family(world.hub, world.reader, run_id, size=size))
        self._children = ListSubscriber(self._frames)
        self.logged = 0

    @property
    def order(self) -> list[str]:
        return self._children.order

    @property
    def counts(self) -> dict[str, int]:
        return self._children.counts

    @property
    def statuses(self) -> dict[str, str]:
        return {run_id: row["status"] for run_id, row in self._children.rows.items()}

    def take_in(self, event: str, frame: dict[str, Any]) -> None:
        if event.startswith("children-"):
            self.events.append(event)
            self._children.take_in(frame)
        elif event == "log":
            self.logged += 1
        else:
            super().take_in(event, frame)

    async def until(self, condition: Any) -> None:
        """Read until the condition holds."""
        while not condition():
            await self.read()


def test_a_run_is_followed_until_its_last_child_has_finished(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger(metadata={"n": 0})

    async def follow() -> None:
        watcher = FamilyWatcher(world, parent)
        await watcher.until(lambda: set(watcher.events) == {"snapshot", "children-snapshot"})
        assert (watcher.order, watcher.counts) == ([], {})
        run = worker.claim_one()
        await watcher.until(lambda: watcher.run["status"] == "EXECUTING")
        children = [world.trigger(parent_run_id=parent) for _ in range(2)]
        await watcher.until(lambda: watcher.order == children[::-1])
        at_work = [worker.claim_one() for _ in children]
        worker.log(run, LINE)
        await watcher.until(lambda: watcher.logged == 1)
        worker.finish(run)
        await watcher.until(lambda: watcher.run["status"] == "COMPLETED")
        assert not watcher.has_ended
        worker.finish(at_work[0])
        await watcher.until(lambda: watcher.counts == {"EXECUTING": 1, "COMPLETED": 1})
        # A child may still write to the document of its parent, which has finished.
        world.write(parent, Set("late", True))
        await watcher.until(lambda: watcher.value == {"n": 0, "late": True})
        worker.fail(at_work[1])
        await watcher.read_to_end()
        assert watcher.statuses == {children[0]: "COMPLETED", children[1]: "FAILED"}
        assert watcher.counts == {"COMPLETED": 1, "FAILED": 1}
        assert (watcher.value, watcher.version) == world.document(parent)

    run_async(follow)
    assert not world.hub.runs
    assert not world.hub.lists


def test_of_a_family_that_has_finished_everything_is_told_once(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    parent = world.trigger()
    worker.finish(worker.claim_one(), Set("a", 1))
    child = world.trigger(parent_run_id=parent)
    worker.finish(worker.claim_one())

    async def follow() -> None:
        watcher = FamilyWatcher(world, parent)
        await watcher.read_to_end()
        assert watcher.events == ["snapshot", "children-snapshot", "end"]
        assert (watcher.value, watcher.order, watcher.counts) == ({"a": 1}, [child], {"COMPLETED": 1})

    run_async(follow)


def test_a_run_that_has_finished_while_a_child_is_at_work(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()
    worker.finish(worker.claim_one())
    child = world.trigger(parent_run_id=parent)

    async def follow() -> None:
        watcher = FamilyWatcher(world, parent)
        await watcher.until(lambda: watcher.order == [child] and "snapshot" in watcher.events)
        worker.finish(worker.claim_one())
        await watcher.read_to_end()
        assert watcher.statuses == {child: "COMPLETED"}

    run_async(follow)


def test_the_children_that_need_a_look_come_first(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()
    worker.claim_one()
    children = [world.trigger(parent_run_id=parent) for _ in range(9)]
    runs = [worker.claim_one() for _ in children[:6]]
    for run in runs[:3]:
        worker.send(worker.next_report(run, outcome=failure()))
    worker.finish(runs[3])

    async def shown(size: int) -> list[str]:
        watcher = FamilyWatcher(world, parent, size)
        await watcher.until(lambda: watcher.order)
        await watcher.close()
        return watcher.order

    failed, working, queued, completed = (
        children[2::-1],
        children[5:3:-1],
        children[:5:-1],
        children[3:4],
    )
    assert run_async(lambda: shown(9)) == [*failed, *working, *queued, *completed]
    # As many failures as could fill the list leave half of it to what is at work.
    assert run_async(lambda: shown(4)) == [*failed[:2], *working]
    assert run_async(lambda: shown(5)) == [*failed, *working]
    assert run_async(lambda: shown(1)) == failed[:1]


def test_lines_of_a_log_wake_nobody_who_does_not_show_it(world: FeedWorld, worker: WorkerDouble) -> None:
    world.trigger()
    run = worker.claim_one()
    watch = ListWatch(RunFilter())
    watch.shown = frozenset([run.id])
    world.hub.lists.add(watch)
    worker.log(run, LINE)
    assert not watch.wake.is_set()
    worker.report(run, Increment("n", 1))
    worker.log(run, LINE)
    assert watch.wake.is_set()


def test_an_unknown_run(world: FeedWorld) -> None:
    async def follow() -> None:
        with pytest.raises(RunNotFoundError):
            await FamilyWatcher(world, "run_unknown").read()

    run_async(follow)


def test_whoever_leaves_leaves_nothing_behind(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()

    async def follow(frames: int) -> None:
        watcher = FamilyWatcher(world, parent)
        for _ in range(frames):
            await watcher.read()
        await watcher.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    for frames in range(3):
        run_async(lambda frames=frames: follow(frames))
        assert not world.hub.runs
        assert not world.hub.lists


@pytest.mark.parametrize("frames", range(3))
def test_whoever_vanishes_leaves_nothing_behind(world: FeedWorld, worker: WorkerDouble, frames: int) -> None:
    parent = world.trigger()

    async def watch(seen: asyncio.Event) -> None:
        watcher = FamilyWatcher(world, parent)
        if frames == 0:
            seen.set()
        while True:
            await watcher.read()
            if len(watcher.events) == frames:
                seen.set()

    async def follow() -> None:
        seen = asyncio.Event()
        reader = asyncio.ensure_future(watch(seen))
        await seen.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        assert not world.hub.runs
        assert not world.hub.lists

    run_async(follow)


def test_after_commits_that_nobody_heard_of_every_stream_ends_and_new_ones_are_taken(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    parent = world.trigger()

    async def follow() -> None:
        watcher = FamilyWatcher(world, parent)
        await watcher.until(lambda: len(watcher.events) == 2)
        world.hub.announce(Announcement([], [], [], is_gap=True))
        assert world.hub.is_closed
        with pytest.raises(StopAsyncIteration):
            await watcher.next()
        for _ in range(2000):
            if world.hub.is_closed:
                await asyncio.sleep(0.01)
        assert not world.hub.is_closed
        again = FamilyWatcher(world, parent)
        await again.until(lambda: len(again.events) == 2)
        world.hub.close()
        world.hub.announce(Announcement([], [], [], is_gap=True))
        assert world.hub.is_closed, "a server that stops stays closed"

    run_async(follow)


def test_a_server_that_stops_ends_the_stream(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()

    async def follow() -> None:
        watcher = FamilyWatcher(world, parent)
        await watcher.until(lambda: len(watcher.events) == 2)
        world.hub.close()
        with pytest.raises(StopAsyncIteration):
            await watcher.next()
        assert not watcher.has_ended

    run_async(follow)
