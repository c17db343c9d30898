"""Watching a list of runs: the first page in full, then what is new or changed, and the counts."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.feed import hub, streams
from milepost.feed.streams import watch_list
from milepost.model.filters import parse_filter
from milepost.model.operations import Append, Increment, Set
from milepost.model.run import RunStatus
from milepost.protocol.runs import RunSummary
from milepost.protocol.work import ClaimedRun
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter
from support.operations import OPERATIONS, exactly
from support.properties import database_property
from support.subscriber import FeedWorld, ListSubscriber, feed_world_at, run_async
from support.work import work_of_readers
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

    def summaries(self, run_ids: Any, keys: Any = None) -> list[RunSummary]:
        found = super().summaries(run_ids, keys)
        self._interrupt("rows")
        return found


def test_what_is_committed_while_the_list_is_read_is_not_lost(world: FeedWorld, worker: WorkerDouble) -> None:
    first = world.trigger()

    async def follow(place: str, change: Any, arrived: Any) -> None:
        reader = InterruptedReader(world.store)
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


def test_what_a_change_costs_follows_the_change(world: FeedWorld, worker: WorkerDouble) -> None:
    """Fault 15 of section 14, for lists: twenty documents of 240 KB that count."""
    ids = [world.trigger(metadata={"n": 0, "pad": "x" * 240_000}) for _ in range(20)]

    async def follow() -> None:
        watcher = watch(world, size=25)
        await watcher.read()
        before, changes = watcher.bytes_received, 0
        for _ in range(3):
            for run_id in ids:
                for _ in range(5):
                    world.write(run_id, Increment("n", 1))
                    changes += 1
            while any(watcher.rows[run_id]["metadataVersion"] % 5 for run_id in ids) or not watcher.changed:
                await watcher.read()
            watcher.changed = []
        assert all(watcher.rows[run_id]["metadata"]["n"] == 15 for run_id in ids)
        assert watcher.bytes_received - before < 60 * changes
        await watcher.close()

    run_async(follow)


def test_a_change_of_a_document_says_nothing_of_the_others(world: FeedWorld, worker: WorkerDouble) -> None:
    """Neither order nor counts, which are as they were, and no other run; and the list is not read again."""
    ids = [world.trigger() for _ in range(100)]

    async def follow() -> None:
        watcher = watch(world, size=100)
        await watcher.read()
        before = watcher.bytes_received
        with work_of_readers(world.store) as work:
            world.write(ids[0], Set("a", 1))
            await watcher.read()
        assert watcher.bytes_received - before < 250
        assert work.statements == []
        await watcher.close()

    run_async(follow)


def test_a_gap_is_healed_by_the_document_of_that_run(world: FeedWorld, worker: WorkerDouble) -> None:
    first, second = world.trigger(metadata={"pad": "x" * 1000}), world.trigger(metadata={"pad": "y" * 1000})

    async def follow() -> None:
        watcher = watch(world)
        await watcher.read()
        world.is_deaf = True
        world.write(first, Set("a", 1))
        world.is_deaf = False
        world.write(first, Set("b", 2))
        world.write(second, Set("b", 2))
        await watcher.read()
        assert (watcher.whole, watcher.changed) == ([first], [second])
        assert watcher.rows[first]["metadata"] == {"pad": "x" * 1000, "a": 1, "b": 2}
        await watcher.close()

    run_async(follow)


def test_a_slow_watcher_costs_bounded_memory(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the documents are read when the watcher looks; no state is older than that."""
    monkeypatch.setattr(hub, "MAILBOX_BYTES", 100_000)
    ids = [world.trigger() for _ in range(8)]

    async def follow() -> None:
        watcher = watch(world)
        await watcher.read()
        [mailbox] = world.hub.lists
        for number in range(5):
            for run_id in ids:
                world.write(run_id, Append("log", f"{number}" * 10_000))
                assert sum(news.size for news in mailbox.changed.values()) <= 100_000
        await watcher.until(lambda: all(watcher.rows[run_id]["metadataVersion"] == 5 for run_id in ids))
        assert watcher.whole
        for run_id in ids:
            assert (watcher.rows[run_id]["metadata"], 5) == world.document(run_id)
        await watcher.close()

    run_async(follow)


def test_only_what_may_be_on_the_list_makes_it_be_read_again(world: FeedWorld, worker: WorkerDouble) -> None:
    parent = world.trigger()

    async def follow() -> None:
        watcher = watch(world, parent_id=parent)
        await watcher.read()
        [mailbox] = world.hub.lists
        world.trigger()
        worker.claim_one()
        assert not mailbox.wake.is_set()
        child = world.trigger(parent_run_id=parent)
        await watcher.read()
        assert watcher.order == [child]
        await watcher.close()

    run_async(follow)


def test_a_list_that_takes_long_to_read_is_read_more_seldom(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes of the runs shown is told all the same."""
    monkeypatch.setattr(streams, "READING_SHARE", 1e9)
    run_id = world.trigger()

    async def follow() -> None:
        watcher = watch(world)
        await watcher.read()
        world.trigger()
        world.write(run_id, Set("a", 1))
        await watcher.read()
        assert (watcher.order, watcher.changed) == ([run_id], [run_id])
        await watcher.close()

    run_async(follow)


def row_of(run: RunSummary | dict[str, Any]) -> dict[str, Any]:
    """A run as a list shows it, up to when it was last touched."""
    fields = msgspec.json.decode(msgspec.json.encode(run))
    fields["metadata"] = exactly(fields["metadata"])
    return {name: value for name, value in fields.items() if name != "updatedAt"}


@database_property(20)
@given(data=st.data())
def test_whoever_reads_when_and_how_often_ends_on_the_list_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """M82 for lists: watchers that come, read and go at any time; writes, attempts, new runs, lost announcements."""
    with (
        pytest.MonkeyPatch.context() as patch,
        feed_world_at(tmp_path_factory.mktemp("list") / "m.db") as world,
    ):
        patch.setattr(streams, "LIST_SECONDS", 0.001)
        patch.setattr(streams, "READING_SHARE", 0)
        patch.setattr(hub, "MAILBOX_BYTES", data.draw(st.sampled_from([60, 1_000_000])))
        worker = WorkerDouble(world)
        ids = [world.trigger(metadata={"n": 0}) for _ in range(3)]
        held: list[ClaimedRun] = []
        filters = [
            RunFilter(),
            RunFilter(statuses=(RunStatus.QUEUED, RunStatus.EXECUTING)),
            RunFilter(metadata=parse_filter({"n": {"$gte": 1}})),
            RunFilter(metadata=parse_filter({"$.a.x": {"$exists": True}}), statuses=(RunStatus.QUEUED,)),
        ]

        async def follow() -> None:
            watchers: list[tuple[RunFilter, ListSubscriber]] = []
            for step in data.draw(st.lists(st.sampled_from("wwwwrrrcdtkeel"), max_size=30)):
                match step:
                    case "w":
                        operations = data.draw(st.lists(OPERATIONS, min_size=1, max_size=3))
                        world.write(data.draw(st.sampled_from(ids)), *operations)
                    case "t":
                        ids.append(world.trigger(metadata=data.draw(st.sampled_from([None, {"n": 1}]))))
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
                        filter = data.draw(st.sampled_from(filters))
                        subscriber = ListSubscriber(watch_list(world.hub, world.reader, filter, size=4))
                        await subscriber.read()
                        watchers.append((filter, subscriber))
                    case "d" if watchers:
                        await watchers.pop()[1].close()
                    case "r" if watchers:
                        _, subscriber = data.draw(st.sampled_from(watchers))
                        while await subscriber.comes_within(0.02):
                            await subscriber.read()
                    case _:
                        pass
            # A lost announcement heals with the next one: of that run, and for the list.
            world.is_deaf = False
            for run_id in ids:
                world.write(run_id, Set("$.a.x", 1), Increment("last", 1))
            for run in [*held, *worker.claim(100)]:
                worker.finish(run)
            for filter, subscriber in watchers:
                page = world.reader.page(filter, size=4).data
                _, counts = world.reader.first_page(filter, size=4)
                async with asyncio.timeout(60):
                    while (
                        subscriber.order != [run.id for run in page]
                        or [row_of(subscriber.rows[run.id]) for run in page] != [row_of(run) for run in page]
                        or subscriber.counts != counts
                    ):
                        await subscriber.read()
                await subscriber.close()

        run_async(follow)
        assert not world.hub.lists


def test_a_server_that_stops_between_two_readings_ends_the_stream(
    world: FeedWorld, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wake-up at the stop is not lost when the watcher rests just then."""

    async def stop(seconds: float) -> None:
        world.hub.close()

    async def follow() -> None:
        run_id = world.trigger()
        watcher = watch(world)
        await watcher.read()
        monkeypatch.setattr(asyncio, "sleep", stop)
        world.write(run_id, Set("a", 1))
        with pytest.raises(StopAsyncIteration):
            await watcher.read()

    run_async(follow)
