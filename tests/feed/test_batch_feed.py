"""Watching a batch until all its runs have ended."""

import pytest

from milepost.engine.commands import CreateBatch
from milepost.errors import BatchNotFoundError
from milepost.feed.streams import watch_batch
from support.subscriber import FeedWorld, Frames, run_async
from support.world import WorkerDouble, item


def watch(world: FeedWorld, batch_id: str) -> Frames:
    return Frames(watch_batch(world.hub, world.reader, batch_id))


def test_the_count_goes_up_to_the_end(world: FeedWorld, worker: WorkerDouble) -> None:
    triggered = world.trigger_batch(item(), item(), item())
    batch_id = triggered.batch_id
    assert batch_id is not None

    async def follow() -> None:
        frames = watch(world, batch_id)
        assert await frames.next() == ("batch", {"id": batch_id, "runCount": 3, "finishedCount": 0})
        for number in (1, 2, 3):
            worker.finish(worker.claim_one(), output="1")
            event, frame = await frames.next()
            assert (event, frame["finishedCount"]) == ("batch", number)
        assert (await frames.next())[0] == "end"
        with pytest.raises(StopAsyncIteration):
            await frames.next()

    run_async(follow)
    assert not world.hub.batches


def test_a_late_and_a_slow_watcher_both_reach_the_end(world: FeedWorld, worker: WorkerDouble) -> None:
    """M82 for batches."""
    batch_id = world.trigger_batch(*([item()] * 50)).batch_id
    assert batch_id is not None

    async def follow() -> None:
        slow = watch(world, batch_id)
        await slow.next()
        for run in worker.claim(50):
            worker.finish(run, output="1")
        for frames in (slow, watch(world, batch_id)):
            events = [await frames.next(), await frames.next()]
            assert [event for event, _ in events] == ["batch", "end"]
            assert all(frame["finishedCount"] == frame["runCount"] == 50 for _, frame in events)

    run_async(follow)


def test_an_announced_batch_without_items_waits(world: FeedWorld, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(2))

    async def follow() -> None:
        frames = watch(world, batch_id)
        assert (await frames.next())[1] == {"id": batch_id, "runCount": 2, "finishedCount": 0}
        await frames.close()

    run_async(follow)
    assert not world.hub.batches


def test_an_unknown_batch_is_refused_before_the_first_frame(world: FeedWorld) -> None:
    async def follow() -> None:
        with pytest.raises(BatchNotFoundError):
            await watch(world, "batch_nobody").next()

    run_async(follow)
    assert not world.hub.batches


def test_watchers_come_and_go_one_by_one(world: FeedWorld, worker: WorkerDouble) -> None:
    batch_id = world.trigger_batch(item(), item()).batch_id
    assert batch_id is not None

    async def follow() -> None:
        first, second = watch(world, batch_id), watch(world, batch_id)
        await first.next()
        await second.next()
        await first.close()
        worker.finish(worker.claim_one(), output="1")
        assert (await second.next())[1]["finishedCount"] == 1
        await second.close()

    run_async(follow)
    assert not world.hub.batches
