"""Watching all runs that match a filter: each as it is now, then each newer state, and once more what matches no longer."""

import asyncio
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.client.run import Run, WholeRun, run_from_wire
from milepost.client.subscription import MatchFollower
from milepost.feed import hub, matching
from milepost.feed.matching import watch_matching
from milepost.feed.streams import watch_list
from milepost.model.filters import parse_filter
from milepost.model.operations import Delete, Increment, Set
from milepost.model.run import RunStatus
from milepost.protocol.runs import RunSummary
from milepost.protocol.work import ClaimedRun
from milepost.reading.lists import RunMatch
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter
from support.operations import OPERATIONS, exactly
from support.properties import database_property
from support.subscriber import (
    FeedWorld,
    ListSubscriber,
    MatchSubscriber,
    RawFrames,
    feed_world_at,
    run_async,
)
from support.world import WorkerDouble, item


class MatchWatcher(MatchSubscriber):
    """Who watches matching runs of this world."""

    def __init__(
        self,
        world: FeedWorld,
        metadata: dict[str, Any] | None = None,
        reader: Reader | None = None,
        **fields: Any,
    ) -> None:
        filter = RunFilter(metadata=parse_filter(metadata) if metadata else None, **fields)
        super().__init__(watch_matching(world.hub, reader or world.reader, filter))


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
        wanted = {**dict.fromkeys(ids, 1), new: 7}
        await watcher.until(
            lambda: {run_id: run["metadata"]["n"] for run_id, run in watcher.runs.items()} == wanted
        )
        await watcher.close()

    run_async(follow)


def test_very_many_runs_are_told_while_they_all_change(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still to be told does not fill the mailbox of what was, and is told once."""
    monkeypatch.setattr(matching, "MATCHES_READ", 5)
    monkeypatch.setattr(hub, "CHANGED_MAX", 12)
    ids = [world.trigger(metadata={"n": 0}) for _ in range(40)]

    async def follow() -> None:
        watcher = MatchWatcher(world, {"n": {"$gte": 0}})
        while await watcher.read() != "present":
            if watcher.events[-1] == "run" and len(watcher.runs) % 5 == 0:
                for run_id in chance.sample(ids, 10):
                    world.write(run_id, Increment("n", 1))
        assert watcher.events.count("run") == 40
        await watcher.until(
            lambda: all(
                (watcher.runs[run_id]["metadata"], watcher.runs[run_id]["metadataVersion"])
                == world.document(run_id)
                for run_id in ids
            )
        )
        await watcher.close()

    chance = Random(1)
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


class CountingReader(Reader):
    """A reader that says whose documents it has read for a watcher."""

    def __init__(self, world: FeedWorld) -> None:
        super().__init__(world.store)
        self.read: list[str] = []

    def matching(self, filter: RunFilter, run_ids: Any, among: Any, keys: Any = None) -> dict[str, RunMatch]:
        self.read += run_ids
        return super().matching(filter, run_ids, among, keys)


def test_what_a_change_costs_follows_the_change(world: FeedWorld, worker: WorkerDouble) -> None:
    """Fault 15 of section 14, for matching runs: twenty documents of 240 KB that count, and nobody reads them again."""
    ids = [world.trigger(metadata={"user": {"id": "u"}, "n": 0, "pad": "x" * 240_000}) for _ in range(20)]
    others = [world.trigger(metadata={"user": {"id": "other"}, "n": 0}) for _ in range(20)]
    reader = CountingReader(world)

    async def follow() -> None:
        watcher = MatchWatcher(world, {"user.id": "u"}, reader=reader)
        await watcher.read_until_present()
        # That these do not match is found out once.
        for run_id in [*ids, *others]:
            world.write(run_id, Increment("n", 1))
        await watcher.until(lambda: all(watcher.runs[run_id]["metadataVersion"] == 1 for run_id in ids))
        assert sorted(reader.read) == sorted(others)
        before, changes = watcher.bytes_received, 0
        for _ in range(3):
            for run_id in [*ids, *others]:
                world.write(run_id, Increment("n", 1))
                changes += 1
            await watcher.until(lambda: all(watcher.runs[run_id]["metadataVersion"] > 1 for run_id in ids))
        await watcher.until(lambda: all(watcher.runs[run_id]["metadata"]["n"] == 4 for run_id in ids))
        assert watcher.bytes_received - before < 200 * changes
        assert len(reader.read) == len(others)
        await watcher.close()

    run_async(follow)


def test_a_change_that_decides_anew_is_judged_by_the_document(world: FeedWorld, worker: WorkerDouble) -> None:
    """A run that enters is told as a whole; while it matches, and when it leaves, only what has changed."""
    run_id = world.trigger(metadata={"n": 0, "pad": "x" * 1000})

    async def follow() -> None:
        watcher = MatchWatcher(world, {"n": {"$gte": 2, "$lt": 4}})
        await watcher.read_until_present()
        for number in range(1, 6):
            world.write(run_id, Increment("n", 1))
            if number >= 2:
                await watcher.until_told(run_id, matches=number < 4)
                assert watcher.runs[run_id]["metadata"]["n"] == number
            if number == 4:
                break
        assert watcher.events[2:] == ["run", "delta", "delta"]
        world.write(run_id, Set("n", 3))
        await watcher.until_told(run_id)
        assert watcher.events[-1] == "run"
        await watcher.close()

    run_async(follow)


def test_the_states_of_a_run_reach_its_watcher_as_deltas(world: FeedWorld, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"pad": "x" * 1000})

    async def follow() -> None:
        watcher = MatchWatcher(world)
        await watcher.read_until_present()
        run = worker.claim_one()
        assert (await watcher.until_told(run_id))["status"] == "EXECUTING"
        worker.fail(run, Set("a", 1), retry_after_ms=0)
        told = await watcher.until_told(run_id)
        assert (told["status"], told["error"]["message"], told["metadata"]["a"]) == (
            "QUEUED",
            "out of ink",
            1,
        )
        worker.finish(worker.claim_one(), output='"o"')
        await watcher.until(lambda: watcher.runs[run_id]["status"] == "COMPLETED")
        assert "error" not in watcher.runs[run_id]
        assert "output" not in watcher.runs[run_id]
        assert set(watcher.events[3:]) == {"delta"}
        # Nobody keeps the document of a run that has ended.
        world.write(run_id, Set("late", True))
        await watcher.until_told(run_id)
        assert watcher.events[-1] == "run"
        await watcher.close()

    run_async(follow)


def test_a_gap_is_healed_by_the_document_of_that_run(world: FeedWorld, worker: WorkerDouble) -> None:
    first, second = world.trigger(metadata={"a": 0}), world.trigger(metadata={"a": 0})

    async def follow() -> None:
        watcher = MatchWatcher(world, {"a": {"$exists": True}})
        await watcher.read_until_present()
        world.is_deaf = True
        world.write(first, Set("b", 1))
        world.is_deaf = False
        world.write(first, Set("c", 1))
        world.write(second, Set("c", 1))
        await watcher.until(lambda: len(watcher.told) == 4)
        assert watcher.events[-2:] == ["run", "delta"]
        assert watcher.runs[first]["metadata"] == {"a": 0, "b": 1, "c": 1}
        await watcher.close()

    run_async(follow)


def test_a_lost_entry_is_noticed_with_the_next_change_of_that_run(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    """Of a run that is known not to match, a change that does not matter is passed over only when none was missed."""
    run_id = world.trigger()

    async def follow() -> None:
        watcher = MatchWatcher(world, {"a": 1})
        await watcher.read_until_present()
        world.write(run_id, Set("b", 1))
        assert not await watcher.comes_within(0.2)
        world.is_deaf = True
        world.write(run_id, Set("a", 1))
        world.is_deaf = False
        world.write(run_id, Set("b", 2))
        assert (await watcher.until_told(run_id))["metadata"] == {"a": 1, "b": 2}
        await watcher.close()

    run_async(follow)


def test_a_run_that_was_ruled_out_by_its_status_matches_with_another_one(
    world: FeedWorld, worker: WorkerDouble
) -> None:
    first, second = world.trigger(metadata={"a": 1}), world.trigger(metadata={"a": 2})

    async def follow() -> None:
        watcher = MatchWatcher(world, {"a": {"$gte": 1}}, statuses=(RunStatus.EXECUTING,))
        await watcher.read_until_present()
        for run_id in (first, second):
            world.write(run_id, Set("b", 1))
        assert not await watcher.comes_within(0.2)
        [run] = worker.claim()
        assert (await watcher.until_told(first))["metadata"] == {"a": 1, "b": 1}
        worker.report(run, waiting=True)
        assert (await watcher.until_told(first, matches=False))["status"] == "WAITING"
        worker.report(run, waiting=False)
        await watcher.until_told(first)
        worker.claim()
        await watcher.until_told(second)
        await watcher.close()

    run_async(follow)


@pytest.mark.parametrize("matches_before", [True, False])
def test_what_is_committed_while_a_run_is_read_is_not_lost(
    world: FeedWorld, worker: WorkerDouble, matches_before: bool
) -> None:
    """The reading may be newer than what was announced, and what is announced meanwhile newer than the reading."""
    run_id = world.trigger(metadata={"n": int(matches_before)})

    class Interrupted(CountingReader):
        def matching(
            self, filter: RunFilter, run_ids: Any, among: Any, keys: Any = None
        ) -> dict[str, RunMatch]:
            found = super().matching(filter, run_ids, among, keys)
            if len(self.read) == 1:

                async def write() -> None:
                    world.write(run_id, Set("other", 1))

                asyncio.run_coroutine_threadsafe(write(), loop).result()
            return found

    async def follow() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        watcher = MatchWatcher(world, {"n": {"$gte": 1}}, reader=Interrupted(world))
        await watcher.read_until_present()
        world.write(run_id, Increment("n", 1))
        await watcher.until(lambda: watcher.runs.get(run_id, {}).get("metadataVersion") == 2)
        assert watcher.runs[run_id]["metadata"] == world.document(run_id)[0]
        await watcher.close()

    loop: Any = None
    run_async(follow)


def test_a_reader_is_told_what_it_need_not_keep(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents that are kept on both sides are bounded; what changes of the others is told as a whole."""
    monkeypatch.setattr(matching, "HELD_BYTES_MAX", 3500)
    ids = [world.trigger(metadata={"pad": "x" * 1000}) for _ in range(5)]

    async def follow() -> None:
        watcher = MatchWatcher(world)
        await watcher.read_until_present()
        assert watcher.kept == {ids[0], ids[1], ids[2]}
        for run_id in ids[::-1]:
            world.write(run_id, Set("a", 1))
            await watcher.until_told(run_id)
        world.write(ids[4], Set("a", 2))
        await watcher.until_told(ids[4])
        assert (watcher.events[-1], await watcher.read()) == ("run", "forget")
        assert watcher.kept == {ids[4], ids[0], ids[1]}
        for run_id in ids:
            assert (
                watcher.runs[run_id]["metadata"],
                watcher.runs[run_id]["metadataVersion"],
            ) == world.document(run_id)
        await watcher.close()

    run_async(follow)


def test_a_watcher_remembers_a_bounded_number_of_runs(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "TOLD_MAX", 3)
    monkeypatch.setattr(matching, "RULED_OUT_MAX", 2)
    ids = [world.trigger(metadata={"a": n}) for n in range(10)]

    async def follow() -> None:
        watcher = MatchWatcher(world, {"a": {"$gte": 5}})
        await watcher.read_until_present()
        for value in (1, 2):
            for run_id in ids:
                world.write(run_id, Set("b", value))
            await watcher.until(
                lambda value=value: all(
                    watcher.runs[run_id]["metadata"].get("b") == value for run_id in ids[5:]
                )
            )
        assert set(watcher.runs) == set(ids[5:])
        await watcher.close()

    run_async(follow)


@database_property(25)
@given(data=st.data())
def test_whoever_reads_when_and_how_often_ends_with_the_newest_state_of_all_that_match(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """M82 for searches: the client's own state machine; connections that break, slow readers, lost announcements, small bounds."""
    with (
        pytest.MonkeyPatch.context() as patch,
        feed_world_at(tmp_path_factory.mktemp("match") / "m.db") as world,
    ):
        patch.setattr(matching, "MATCHES_SECONDS", 0.001)
        patch.setattr(hub, "MAILBOX_BYTES", data.draw(st.sampled_from([60, 1_000_000])))
        patch.setattr(matching, "HELD_BYTES_MAX", data.draw(st.sampled_from([20, 1_000_000])))
        patch.setattr(matching, "RULED_OUT_MAX", data.draw(st.sampled_from([1, 100])))
        worker = WorkerDouble(world)
        ids = [world.trigger(metadata={"n": number}) for number in range(3)]
        held: list[ClaimedRun] = []
        filters = [
            RunFilter(),
            RunFilter(statuses=(RunStatus.QUEUED, RunStatus.EXECUTING)),
            RunFilter(metadata=parse_filter({"n": {"$gte": 1}})),
            RunFilter(metadata=parse_filter({"$.a.x": {"$exists": True}}), statuses=(RunStatus.QUEUED,)),
            RunFilter(metadata=parse_filter({"list": {"$contains": 1}}), tags=("t",)),
        ]

        async def follow() -> None:
            clients: list[MatchClient] = []
            for step in data.draw(st.lists(st.sampled_from("wwwwrrrcbtkeel"), max_size=30)):
                match step:
                    case "w":
                        operations = data.draw(st.lists(OPERATIONS, min_size=1, max_size=3))
                        world.write(data.draw(st.sampled_from(ids)), *operations)
                    case "t":
                        metadata = data.draw(st.sampled_from([None, {"n": 1}, {"list": [1]}]))
                        ids.append(
                            world.trigger(metadata=metadata, tags=data.draw(st.sampled_from([[], ["t"]])))
                        )
                    case "k":
                        held.extend(worker.claim(1))
                    case "e" if held:
                        run = held.pop()
                        if data.draw(st.booleans()):
                            worker.finish(run, *data.draw(st.lists(OPERATIONS, max_size=2)))
                        else:
                            worker.fail(run, retry_after_ms=data.draw(st.sampled_from([None, 0, 60_000])))
                    case "l":
                        world.is_deaf = not world.is_deaf
                    case "c":
                        clients.append(MatchClient(world, data.draw(st.sampled_from(filters))))
                    case "b" if clients:
                        await data.draw(st.sampled_from(clients)).reconnect()
                    case "r" if clients:
                        client = data.draw(st.sampled_from(clients))
                        while await client.frames.comes_within(0.02):
                            await client.read()
                    case _:
                        pass
            # A lost announcement heals with the next one.
            world.is_deaf = False
            for run_id in ids:
                world.write(run_id, Set("$.a.x", 1), Increment("last", 1))
            for run in [*held, *worker.claim(100)]:
                worker.finish(run)
            for client in clients:
                wanted = {run.id: state_of(run) for run in world.reader.page(client.filter, size=100).data}
                async with asyncio.timeout(60):
                    while {run_id: client.seen.get(run_id) for run_id in wanted} != wanted:
                        await client.read()
                await client.frames.close()

        run_async(follow)
        assert not world.hub.matches


class MatchClient:
    """The client's own state machine, fed by the server's own stream."""

    def __init__(self, world: FeedWorld, filter: RunFilter) -> None:
        self.world = world
        self.filter = filter
        self.follower = MatchFollower()
        self.seen: dict[str, Any] = {}
        self.frames = self._connect()

    def _connect(self) -> RawFrames:
        return RawFrames(watch_matching(self.world.hub, self.world.reader, self.filter))

    async def reconnect(self) -> None:
        """The connection breaks."""
        await self.frames.close()
        self.frames = self._connect()

    async def read(self) -> None:
        """Take in one event, and what it leads to."""
        self.follower.take(*await self.frames.next())
        while (state := self.follower.newest()) is not None:
            if isinstance(state, str):
                whole = msgspec.json.decode(msgspec.json.encode(self.world.reader.run(state)), type=WholeRun)
                state = self.follower.catch_up(run_from_wire(whole))
            if state is not None:
                assert self.seen.get(state.id, (-1,))[0] <= state.metadata_version
                self.seen[state.id] = state_of(state)


def state_of(run: Run | RunSummary) -> tuple[int, str, str, int]:
    """What a watcher must know of a run in the end."""
    metadata = run.metadata if isinstance(run, Run) else msgspec.json.decode(run.metadata)
    return run.metadata_version, exactly(metadata), run.status, run.attempt_count


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
