"""Watching one run (M82): early, late, slow; the last state is never skipped, and a gap is healed by one snapshot."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine.commands import AddChunks, AttemptWritten, ReleaseLostRuns, Written
from milepost.errors import RunNotFoundError, UnavailableError
from milepost.feed import streams
from milepost.feed.hub import Hub, RunTopic
from milepost.feed.streams import watch_run
from milepost.model.operations import Append, Increment, Set, Update
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.protocol.runs import RunObject, RunSummary
from milepost.reading.reader import Reader
from support.operations import OPERATIONS, exactly
from support.properties import database_property
from support.subscriber import FeedWorld, Subscriber, feed_world_at, run_async
from support.work import work_of_readers
from support.world import WorkerDouble, item, offered

# What only a snapshot tells: it depends on other runs, or never changes, or is the document itself.
_NOT_FOLLOWED = {"queueWait", "attempts", "metadata", "metadataVersion", "relatedRuns"}


def watch(world: FeedWorld, run_id: str, reader: Reader | None = None) -> Subscriber:
    return Subscriber(watch_run(world.hub, reader or world.reader, run_id))


def followed(run: RunObject | RunSummary | dict[str, Any]) -> dict[str, Any]:
    """The fields of a run that a subscriber follows."""
    fields = msgspec.json.decode(msgspec.json.encode(run))
    return {name: value for name, value in fields.items() if name not in _NOT_FOLLOWED and value is not None}


def assert_same(subscriber: Subscriber, world: FeedWorld, run_id: str) -> None:
    """The subscriber holds what `retrieve` would give, up to when it was last touched."""
    document, version = world.document(run_id)
    assert (exactly(subscriber.value), subscriber.version) == (exactly(document), version)
    held, real = followed(subscriber.run), followed(world.reader.run(run_id))
    held.pop("updatedAt")
    real.pop("updatedAt")
    assert held == real


def test_an_early_subscriber_sees_every_state_to_the_end(world: FeedWorld, worker: WorkerDouble) -> None:
    """M82, M38: operations while it runs, the last ones together with the outcome, then the end."""
    run_id = world.trigger(payload='{"a":1}', metadata={"n": 0}, tags=["t"])

    async def follow() -> None:
        subscriber = watch(world, run_id)
        assert await subscriber.read() == "snapshot"
        assert_same(subscriber, world, run_id)
        run = worker.claim_one()
        assert await subscriber.read() == "delta"
        assert subscriber.run["status"] == "EXECUTING"
        worker.report(run, Increment("n", 1), Append("log", "ü"))
        assert await subscriber.read() == "delta"
        assert (subscriber.value, subscriber.version) == ({"n": 1, "log": ["ü"]}, 1)
        worker.report(run, waiting=True)
        await subscriber.read()
        assert subscriber.run["isWaiting"] is True
        worker.finish(run, Set("last", True), output='{"ok":true}')
        assert await subscriber.read() == "delta"
        assert subscriber.run["status"] == "COMPLETED"
        assert subscriber.run["output"] == {"ok": True}
        assert subscriber.value["last"] is True
        assert_same(subscriber, world, run_id)
        await subscriber.read_to_end()
        assert subscriber.events == ["snapshot", "delta", "delta", "delta", "delta", "end"]

    run_async(follow)
    assert not world.hub.runs


def test_a_late_subscriber_gets_the_final_state_and_the_end(world: FeedWorld, worker: WorkerDouble) -> None:
    """M82: nobody is too late."""
    run_id = world.trigger()
    worker.finish(worker.claim_one(), Set("a", 1), output="1")
    world.write(run_id, Set("later", 2))

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read_to_end()
        assert subscriber.events == ["snapshot", "end"]
        assert_same(subscriber, world, run_id)

    run_async(follow)


def test_a_slow_subscriber_skips_what_is_between_and_never_the_last(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """M82: five hundred changes are one frame for who comes back late; bounded, whatever happened meanwhile."""
    run_id = world.trigger()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        run = worker.claim_one()
        for number in range(500):
            worker.report(run, Increment("n", 1), Set("text", str(number) * 50))
        before = subscriber.bytes_received
        assert await subscriber.read() == "delta"
        assert (subscriber.value, subscriber.version) == ({"n": 500, "text": "499" * 50}, 500)
        assert subscriber.bytes_received - before < 2_000
        for _ in range(50):
            worker.report(run, Increment("n", 1))
        worker.finish(run, Set("last", True), output="1")
        assert await subscriber.read() == "delta"
        assert subscriber.run["status"] == "COMPLETED"
        assert_same(subscriber, world, run_id)
        await subscriber.read_to_end()

    run_async(follow)


def test_an_end_without_operations_shows_a_gap_before_it(world: FeedWorld, worker: WorkerDouble) -> None:
    """M38: the end has nothing to join, and still nobody sees a finished run with an older document."""
    run_id = world.trigger()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        run = worker.claim_one()
        await subscriber.read()
        world.is_deaf = True
        worker.report(run, Set("last", True))
        world.is_deaf = False
        worker.finish(run)
        assert await subscriber.read() == "snapshot"
        assert_same(subscriber, world, run_id)
        assert subscriber.run["status"] == "COMPLETED"
        assert subscriber.value == {"last": True}
        await subscriber.read_to_end()

    run_async(follow)


def test_a_gap_is_healed_by_one_snapshot(world: FeedWorld, worker: WorkerDouble) -> None:
    """Notifications are hints: some got lost, the next one tells by its version."""
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        worker.report(run, Append("log", 1))
        await subscriber.read()
        world.is_deaf = True
        worker.report(run, Append("log", 2))
        worker.report(run, Append("log", 3))
        world.is_deaf = False
        worker.report(run, Append("log", 4))
        assert await subscriber.read() == "snapshot"
        assert (subscriber.value, subscriber.version) == ({"log": [1, 2, 3, 4]}, 4)
        worker.finish(run, Append("log", 5), output="1")
        await subscriber.read_to_end()
        assert subscriber.events[-2:] == ["delta", "end"]
        assert_same(subscriber, world, run_id)

    run_async(follow)


def test_a_reader_that_is_too_slow_for_what_is_kept_gets_a_snapshot(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """The steps at hand are bounded in bytes."""
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        for number in range(10):
            worker.report(run, Set("big", str(number) * 60_000), Increment("n", 1))
        assert await subscriber.read() == "snapshot"
        assert (subscriber.value["n"], subscriber.version) == (10, 10)
        worker.finish(run, output="1")
        await subscriber.read_to_end()
        assert_same(subscriber, world, run_id)

    run_async(follow)


def test_a_single_step_larger_than_what_is_kept_still_arrives(world: FeedWorld, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        big = "x" * 130_000
        worker.report(run, Set("a", big), Set("a", ""), Set("b", big), Set("b", ""), Set("c", big))
        await subscriber.read()
        assert subscriber.value == {"a": "", "b": "", "c": big}
        await subscriber.close()

    run_async(follow)


def test_a_thousand_appends_cost_less_than_a_quarter_megabyte(world: FeedWorld, worker: WorkerDouble) -> None:
    """Section 12: changes travel as operations, not as the whole document each time (fault 15: 50 MB)."""
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> int:
        subscriber = watch(world, run_id)
        await subscriber.read()
        for number in range(1000):
            worker.report(run, Append("log", f"{number:0100}"))
            assert await subscriber.read() == "delta"
            assert subscriber.version == number + 1
        assert len(subscriber.value["log"]) == 1000
        worker.finish(run, output="1")
        await subscriber.read_to_end()
        return subscriber.bytes_received

    assert run_async(follow) < 250_000


def test_an_unknown_run_is_refused_before_the_first_frame(world: FeedWorld) -> None:
    async def follow() -> None:
        with pytest.raises(RunNotFoundError):
            await watch(world, "run_nobody").read()

    run_async(follow)
    assert not world.hub.runs


def test_who_leaves_is_forgotten(world: FeedWorld, worker: WorkerDouble) -> None:
    run_id = world.trigger()

    async def follow() -> None:
        first, second = watch(world, run_id), watch(world, run_id)
        await first.read()
        await second.read()
        await first.close()
        world.write(run_id, Set("a", 1))
        await second.read()
        assert second.value == {"a": 1}
        await second.close()

    run_async(follow)
    assert not world.hub.runs


def test_every_watcher_of_a_quiet_parent_knows_how_its_children_stand(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """The second one came when the first one's snapshot was known, and nothing of the parent itself had changed since."""
    parent = world.trigger()

    async def follow() -> None:
        first = watch(world, parent)
        await first.read()
        assert first.run["childCounts"] == {}
        world.trigger_batch(item(), item(), item(), parent_id=parent)
        second = watch(world, parent)
        await second.read()
        assert second.run["childCounts"] == {"QUEUED": 3}
        await first.read()
        assert first.run["childCounts"] == {"QUEUED": 3}
        worker.claim(10)
        for subscriber in (first, second):
            while subscriber.run["childCounts"] != {"EXECUTING": 3}:
                await subscriber.read()
            assert_same(subscriber, world, parent)
            await subscriber.close()

    run_async(follow)
    assert not world.hub.runs


def test_children_are_counted_seldom_and_at_the_end(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand changes of children are a few readings for all watchers together; the last word is exact."""
    parent = world.trigger()
    run = worker.claim_one()
    counted: list[str] = []

    class Counting(Reader):
        def child_counts(self, run_id: str, view: View = WHOLE_VIEW) -> dict[str, int]:
            counted.append(run_id)
            return super().child_counts(run_id, view)

    reader = Counting(world.store)
    monkeypatch.setattr(streams, "LIST_SECONDS", 60)

    async def follow() -> None:
        subscribers = [watch(world, parent, reader) for _ in range(3)]
        for subscriber in subscribers:
            await subscriber.read()
        world.trigger(parent_run_id=parent)
        for subscriber in subscribers:
            await subscriber.read()
        assert counted == [parent]
        for _ in range(100):
            world.trigger(parent_run_id=parent)
            worker.claim(1)
        # The document goes on meanwhile.
        worker.report(run, Set("a", 1))
        for subscriber in subscribers:
            await subscriber.read()
            assert subscriber.value == {"a": 1}
        worker.finish(run)
        for subscriber in subscribers:
            await subscriber.read_to_end()
            assert_same(subscriber, world, parent)
        assert 1 < len(counted) <= 4

    run_async(follow)
    assert not world.hub.runs


def test_children_that_cannot_be_counted_are_counted_later(
    world: FeedWorld, worker: WorkerDouble, caplog: pytest.LogCaptureFixture
) -> None:
    parent = world.trigger()

    class Failing(Reader):
        fails = True

        def child_counts(self, run_id: str, view: View = WHOLE_VIEW) -> dict[str, int]:
            if self.fails:
                self.fails = False
                raise UnavailableError("disk I/O error")
            return super().child_counts(run_id, view)

    async def follow() -> None:
        subscriber = watch(world, parent, Failing(world.store))
        await subscriber.read()
        world.trigger(parent_run_id=parent)
        assert not await subscriber.comes_within(0.5)
        world.trigger(parent_run_id=parent)
        await subscriber.read()
        assert subscriber.run["childCounts"] == {"QUEUED": 2}
        await subscriber.close()

    run_async(follow)
    assert "disk I/O error" in caplog.text


def test_what_happens_to_other_runs_does_not_count_children(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()

    async def follow() -> None:
        subscriber = watch(world, parent)
        await subscriber.read()
        with work_of_readers(world.store) as work:
            other = world.trigger()
            world.trigger(parent_run_id=other)
            world.write(parent, Set("a", 1))
            await subscriber.read()
        assert work.statements == []
        await subscriber.close()

    run_async(follow)


def test_a_snapshot_carries_no_documents_of_relatives(world: FeedWorld, worker: WorkerDouble) -> None:
    """A parent of a hundred children of 250 KB would have 25 MB, for each reader."""
    parent = world.trigger(metadata={"pad": "x" * 200_000})
    middle = world.trigger(parent_run_id=parent)
    large = [item(metadata={"pad": "x" * 100_000}) for _ in range(30)]
    for _ in range(3):
        world.trigger_batch(*large, parent_id=middle)

    async def follow() -> None:
        subscriber = watch(world, middle)
        await subscriber.read()
        assert subscriber.bytes_received < 5_000
        assert subscriber.run["relatedRuns"]["parent"]["id"] == parent
        assert subscriber.run["childCounts"] == {"QUEUED": 90}
        await subscriber.close()

    run_async(follow)
    related = world.reader.run(middle).related_runs
    assert related.children is not None
    assert len(msgspec.json.encode(related.children)) < 100_000


class InterruptedReader(Reader):
    """A reader during whose first reading something is committed: what it gives is old by then."""

    def interrupt(self, loop: asyncio.AbstractEventLoop, change: Any) -> None:
        self._interruption: Any = (loop, change)

    def snapshot(self, run_id: str, view: View = WHOLE_VIEW) -> RunObject:
        run = super().snapshot(run_id, view)
        (loop, change), self._interruption = self._interruption or (None, None), None
        if change is not None:
            asyncio.run_coroutine_threadsafe(_call(change), loop).result()
        return run


async def _call(change: Any) -> None:
    change()


@pytest.mark.parametrize("last", [False, True], ids=["a step", "the end"])
def test_what_is_committed_while_the_snapshot_is_read_is_not_lost(
    world: FeedWorld, worker: WorkerDouble, last: bool
) -> None:
    """Who subscribes registers first and reads then."""
    run_id = world.trigger()
    run = worker.claim_one()
    reader = InterruptedReader(world.store)

    def change() -> None:
        if last:
            worker.finish(run, Set("a", 1), output="1")
        else:
            worker.report(run, Set("a", 1))

    async def follow() -> None:
        reader.interrupt(asyncio.get_running_loop(), change)
        subscriber = watch(world, run_id, reader)
        assert await subscriber.read() == "snapshot"
        assert subscriber.value == {}
        assert await subscriber.read() == "delta"
        assert subscriber.value == {"a": 1}
        if not last:
            worker.finish(run, output="1")
        await subscriber.read_to_end()
        assert_same(subscriber, world, run_id)

    run_async(follow)


@pytest.mark.parametrize("seconds", [-3600, -0.001], ids=["jumped back", "stood still"])
def test_the_end_arrives_also_when_the_clock_does_not_go_forward(
    world: FeedWorld, worker: WorkerDouble, seconds: float
) -> None:
    """Losing the final state would make the subscriber wait for ever; clocks are set back in real life."""
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        world.clock.advance(seconds)
        worker.finish(run, Set("a", 1), output="1")
        await subscriber.read()
        assert subscriber.run["status"] == "COMPLETED"
        await subscriber.read_to_end()

    run_async(follow)


def test_a_skipped_failure_still_shows_while_the_next_attempt_runs(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """M82: the newest state as a whole, whatever was skipped on the way to it."""
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        worker.fail(run, retry_after_ms=0)
        second = worker.claim_one()
        await subscriber.read()
        assert_same(subscriber, world, run_id)
        worker.finish(second, output=None)
        await subscriber.read_to_end()
        assert_same(subscriber, world, run_id)

    run_async(follow)


def test_who_comes_during_the_wait_for_a_retry_sees_that_wait_end(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=1000)

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        assert "delayedUntil" in subscriber.run
        world.clock.advance(1)
        run = worker.claim_one()
        await subscriber.read()
        assert_same(subscriber, world, run_id)
        worker.finish(run, output="1")
        await subscriber.read_to_end()
        assert_same(subscriber, world, run_id)

    run_async(follow)


def test_who_is_there_when_an_attempt_fails_sees_until_when_it_waits(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        worker.fail(run, retry_after_ms=1000)
        await subscriber.read()
        assert_same(subscriber, world, run_id)
        await subscriber.close()

    run_async(follow)


def test_a_run_that_is_queued_and_claimed_in_one_commit_is_shown_executing(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        [waiting] = world.submit(worker.next_claim(1, wait=60))
        worker.fail(run, retry_after_ms=0)
        [second] = waiting.result
        await subscriber.read()
        assert (subscriber.run["status"], subscriber.run["attemptCount"]) == ("EXECUTING", 2)
        worker.finish(second, output="1")
        await subscriber.read_to_end()

    run_async(follow)


def test_joined_steps_give_the_same_digits(world: FeedWorld, worker: WorkerDouble) -> None:
    """M30: joining may not be noticeable; integers that are added to a float one by one are not their sum."""
    run_id = world.trigger(metadata={"n": 1e16})

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        for _ in range(3):
            world.write(run_id, Increment("n", 1))
        await subscriber.read()
        assert (subscriber.value, subscriber.version) == world.document(run_id)
        await subscriber.close()

    run_async(follow)


def test_what_was_counted_before_the_subscriber_came_is_not_counted_again(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """M46 with M82: a second attempt repeats an increment with `once`; a late subscriber does not know that id."""
    run_id = world.trigger()
    worker.report(worker.claim_one(), Increment("n", 1, "row 1"))

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        world.write(run_id, Increment("n", 1, "row 1"), Increment("n", 1, "row 2"))
        await subscriber.read()
        assert subscriber.value == {"n": 2}
        world.write(run_id, Increment("n", 1, "row 2"))
        world.write(run_id, Set("other", 1))
        await subscriber.read()
        assert (subscriber.value, subscriber.version) == world.document(run_id)
        await subscriber.close()

    run_async(follow)


def test_replacing_everything_reaches_the_subscriber(world: FeedWorld, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})

    async def follow() -> None:
        subscriber = watch(world, run_id)
        await subscriber.read()
        world.write(run_id, Set("b", 2))
        world.write(run_id, Update({"c": [3]}))
        await subscriber.read()
        assert subscriber.value == {"c": [3]}
        await subscriber.close()

    run_async(follow)


@database_property(25)
@given(data=st.data())
def test_whoever_reads_when_and_how_often_holds_a_committed_state_and_in_the_end_the_last(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """M82: several subscribers that come, read and go at any time; some announcements get lost."""
    with feed_world_at(tmp_path_factory.mktemp("feed") / "milepost.db") as world:
        worker = WorkerDouble(world)
        run_id = world.trigger(metadata={"n": 0})
        run = worker.claim_one()
        history = [({"n": 0}, 0)]

        async def follow() -> None:
            subscribers: list[Subscriber] = []
            behind: dict[int, int] = {}
            for step in data.draw(st.lists(st.sampled_from("wwwrrcldk"), max_size=25)):
                if step == "w":
                    worker.report(run, *data.draw(st.lists(OPERATIONS, min_size=1, max_size=3)))
                    history.append(world.document(run_id))
                elif step == "l":
                    world.is_deaf = not world.is_deaf
                elif step == "k":
                    world.trigger(parent_run_id=run_id)
                elif step == "c" or not subscribers:
                    subscribers.append(watch(world, run_id))
                    await subscribers[-1].read()
                    behind[id(subscribers[-1])] = len(history)
                elif step == "d":
                    await subscribers.pop().close()
                else:
                    subscriber = data.draw(st.sampled_from(subscribers))
                    if (
                        not world.is_deaf
                        and behind[id(subscriber)] < len(history)
                        and history[-1][1] > subscriber.version
                    ):
                        world.write(run_id, Set("poke", len(history)))
                        history.append(world.document(run_id))
                        await subscriber.read()
                        behind[id(subscriber)] = len(history)
                        assert (subscriber.value, subscriber.version) == history[-1]
                for subscriber in subscribers:
                    assert (subscriber.value, subscriber.version) in history
            world.is_deaf = False
            # A lost announcement heals with the next one: of the children too.
            world.trigger(parent_run_id=run_id)
            worker.finish(run, Set("last", True), output="1")
            for subscriber in [*subscribers, watch(world, run_id)]:
                await subscriber.read_to_end()
                assert_same(subscriber, world, run_id)

        run_async(follow)
        assert not world.hub.runs


def test_a_queued_run_says_when_nobody_can_take_it(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUEUED_SECONDS", 0.01)
    run_id = world.trigger()
    never = world.trigger("never")

    async def follow() -> None:
        subscriber, other = watch(world, run_id), watch(world, never)
        await subscriber.read()
        await other.read()
        assert "queuedReason" not in subscriber.run
        assert other.run["queuedReason"] == "never_offered"
        worker.send(leaving=True)
        world.clock.advance(3600)
        world.do(ReleaseLostRuns())
        assert await subscriber.read() == "delta"
        assert subscriber.run["queuedReason"] == "no_worker_online"
        assert_same(subscriber, world, run_id)
        # One is here again, and takes it before anybody has looked.
        run = WorkerDouble(world).claim_one()
        while subscriber.run["status"] == "QUEUED":
            assert await subscriber.read() == "delta"
        assert "queuedReason" not in subscriber.run
        assert run.id == run_id
        WorkerDouble(world, "worker_2", offered("never"))
        assert await other.read() == "delta"
        assert "queuedReason" not in other.run
        await subscriber.close()
        await other.close()

    run_async(follow)


def test_what_happens_while_a_reader_looks_at_streams_is_told_with_its_document(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M38: the run ends while its streams are read for a state before."""
    run_id = world.trigger()
    run = worker.claim_one()
    looking = streams.streams_of

    async def finish_meanwhile(topic: RunTopic, reader: Reader) -> Any:
        monkeypatch.setattr(streams, "streams_of", looking)
        found = await looking(topic, reader)
        worker.finish(run, Set("last", True))
        return found

    async def follow() -> None:
        subscriber = watch(world, run_id)
        assert await subscriber.read() == "snapshot"
        monkeypatch.setattr(streams, "streams_of", finish_meanwhile)
        part = Written(run_id, "out/key", "a", 0, [b"1"])
        world.do(AddChunks(worker.id, [AttemptWritten(run_id, run.attempt, [part])]))
        worker.report(run, waiting=True)
        assert await subscriber.read() == "delta"
        assert (subscriber.run["status"], subscriber.value) == ("WAITING", {})
        assert await subscriber.read() == "delta"
        assert (subscriber.run["status"], subscriber.value) == ("COMPLETED", {"last": True})
        await subscriber.read_to_end()

    run_async(follow)


def test_who_comes_from_another_server_is_told_no_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other server has told them was not announced here yet, and somebody has read the run here before."""
    with feed_world_at(tmp_path / "milepost.db") as world:
        world.hub = Hub(hears_late=True)
        worker = WorkerDouble(world)
        run_id = world.trigger()
        run = worker.claim_one()

        async def follow() -> None:
            first = watch(world, run_id)
            assert await first.read() == "snapshot"
            world.is_deaf = True
            worker.report(run, Set("a", 1))
            readings: list[str] = []
            snapshot = Reader.snapshot

            def counted(self: Reader, *given: Any) -> RunObject:
                readings.append("one")
                return snapshot(self, *given)

            monkeypatch.setattr(Reader, "snapshot", counted)
            later = [watch(world, run_id) for _ in range(20)]
            await asyncio.gather(*(one.read() for one in later))
            assert {one.version for one in later} == {1}
            assert len(readings) <= 2, "those who ask at once share a reading"
            for one in (first, *later):
                await one.close()

        run_async(follow)
