"""A worker's inbox: what others wrote to the documents of its runs, and which children have ended."""

import asyncio
from base64 import b64decode
from typing import Any

import msgspec
import pytest

from milepost.engine.commands import AttemptRef, Report, UpdateMetadata
from milepost.feed import hub, streams
from milepost.feed.streams import watch_inbox
from milepost.model.counted import id_of, unpack
from milepost.model.document import Document
from milepost.model.operations import Append, Increment, Operation, Set, decode_operations
from milepost.protocol.work import ClaimedRun
from support.subscriber import FeedWorld, Frames, run_async
from support.world import WorkerDouble, item, offered


class Inbox(Frames):
    """The inbox of a worker, and its copies of the documents of its runs.

    A delta that does not reach back to the copy, or that is no newer, is what a real worker passes over; here it is a mistake.
    """

    def __init__(self, world: FeedWorld, worker_id: str = "worker_1") -> None:
        super().__init__(watch_inbox(world.hub, world.reader, worker_id))
        self.copies: dict[str, Document] = {}
        self.sent: dict[tuple[str, int], list[Operation]] = {}
        self.finished: list[str] = []

    def hold(self, run: ClaimedRun) -> None:
        """The worker has claimed a run."""
        self.copies[run.id] = Document(plain(run.metadata), version=run.metadata_version)

    def write(self, worker: WorkerDouble, run: ClaimedRun, *operations: Operation) -> None:
        """The worker writes to its own run; the reply is not looked at, so the step has to come by the inbox."""
        report = worker.next_report(run, *operations)
        self.sent[run.id, report.sequence] = list(operations)
        worker.send(report)

    async def read(self) -> dict[str, Any]:
        """Take in one event."""
        event, frame = await self.next()
        assert event == "inbox"
        self.finished += frame.get("finished", [])
        for delta in frame.get("deltas", []):
            self._follow(delta)
        return frame

    def _follow(self, delta: dict[str, Any]) -> None:
        copy = self.copies[delta["run"]]
        if "changes" not in delta:
            self.copies[delta["run"]] = Document(delta["metadata"], version=delta["version"])
            return
        assert delta["fromVersion"] <= copy.version
        for change in delta["changes"]:
            if change["version"] <= copy.version:
                continue
            if "sequence" in change:
                assert "operations" not in change
                sent = self.sent[delta["run"], change["sequence"]]
                operations = [op for index, op in enumerate(sent) if index not in change.get("refused", [])]
            else:
                operations = decode_operations(msgspec.json.encode(change["operations"]))
            copy.apply_all(operations)
            copy.version = change["version"]
        assert copy.version == delta["version"]


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@pytest.fixture
def run(world: FeedWorld, worker: WorkerDouble) -> ClaimedRun:
    """A run that worker_1 holds."""
    world.trigger(metadata={"n": 0})
    return worker.claim_one()


def test_the_first_word_is_hello(world: FeedWorld, worker: WorkerDouble) -> None:
    async def follow() -> None:
        inbox = Inbox(world)
        assert await inbox.read() == {"hello": True}
        await inbox.close()

    run_async(follow)
    assert not world.hub.inboxes


def test_what_others_write_arrives_joined(world: FeedWorld, worker: WorkerDouble, run: ClaimedRun) -> None:
    """M42, M66: an idle parent sees its children's writes without writing."""

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        for _ in range(10):
            world.write(run.id, Increment("n", 1))
        frame = await inbox.read()
        [delta] = frame["deltas"]
        assert (delta["run"], delta["fromVersion"], delta["version"]) == (run.id, 0, 10)
        assert delta["changes"] == [
            {"version": 10, "operations": [{"type": "increment", "key": "n", "value": 10}]}
        ]
        assert inbox.copies[run.id].value == {"n": 10}
        await inbox.close()

    run_async(follow)


def test_what_child_processes_of_the_run_write_arrives(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """They write as the run, and the worker has not seen what they write."""

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        attempt = AttemptRef(run.id, run.attempt)
        operations = msgspec.to_builtins([Increment("n", 3), Set("by", "child")])
        world.do(UpdateMetadata(run.id, [("self", operations)], attempt=attempt))
        await inbox.read()
        assert inbox.copies[run.id].value == {"n": 3, "by": "child"}
        await inbox.close()

    run_async(follow)


def test_own_steps_in_between_are_told_by_number(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """Steps without a gap: what the worker wrote itself stands in its place, so that the order is everybody's."""

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        world.write(run.id, Set("x", 1))
        inbox.write(worker, run, Set("x", 2), Increment("x", "no"), Append("log", "own"))  # type: ignore[arg-type]
        world.write(run.id, Increment("x", 1))
        inbox.write(worker, run, Set("y", 1))
        await inbox.read()
        copy = inbox.copies[run.id]
        if copy.version < 4:
            # The last own step alone needs no telling; whatever comes next has to follow on all the same.
            world.write(run.id, Increment("x", 1))
            copy.apply(Set("y", 1))
            copy.version = 4
            await inbox.read()
        assert (copy.value, copy.version) == world.document(run.id)
        await inbox.close()

    run_async(follow)


def test_own_and_foreign_steps_of_one_commit(world: FeedWorld, worker: WorkerDouble, run: ClaimedRun) -> None:
    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        report = worker.next_report(run, Set("x", "own"))
        inbox.sent[run.id, report.sequence] = [Set("x", "own")]
        foreign = [("self", [{"type": "set", "key": "x", "value": "foreign"}])]
        world.submit(
            UpdateMetadata(run.id, foreign), Report(worker.id, [report]), UpdateMetadata(run.id, foreign)
        )
        await inbox.read()
        assert (inbox.copies[run.id].value, inbox.copies[run.id].version) == world.document(run.id)
        await inbox.close()

    run_async(follow)


def test_own_writes_alone_are_not_told(world: FeedWorld, worker: WorkerDouble, run: ClaimedRun) -> None:
    other = WorkerDouble(world, "worker_2", offered("child"))
    world.trigger("child", parent_run_id=run.id)

    async def follow() -> None:
        inbox = Inbox(world)
        await inbox.read()
        worker.report(run, Set("a", 1))
        child = other.claim_one()
        other.finish(child)
        assert await inbox.read() == {"finished": [child.id]}
        await inbox.close()

    run_async(follow)


def test_writes_to_runs_of_others_are_not_told(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = WorkerDouble(world, "worker_2", offered("other"))
    queued, foreign = world.trigger("other"), world.trigger("other")
    assert other.claim_one().id == queued

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        world.write(queued, Set("a", 1))
        world.write(foreign, Set("a", 1))
        world.write(run.id, Set("a", 1))
        frame = await inbox.read()
        assert [delta["run"] for delta in frame["deltas"]] == [run.id]
        await inbox.close()

    run_async(follow)


def test_ended_children_and_batches(world: FeedWorld, worker: WorkerDouble, run: ClaimedRun) -> None:
    other = WorkerDouble(world, "worker_2", offered("child"))
    child = world.trigger("child", parent_run_id=run.id)
    batch = world.trigger_batch(item("child"), item("child"), parent_id=run.id)

    async def follow() -> None:
        inbox = Inbox(world)
        await inbox.read()
        for claimed in other.claim(3):
            other.finish(claimed)
        while len(inbox.finished) < 2:
            await inbox.read()
        assert inbox.finished == [child, batch.batch_id]
        await inbox.close()

    run_async(follow)


def test_an_ended_child_does_not_wait_for_documents_that_gather(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first of them has come before it: children that write to their parent end right afterwards."""
    monkeypatch.setattr(streams, "INBOX_SECONDS", 3600.0)
    other = WorkerDouble(world, "worker_2", offered("child"))
    child = world.trigger("child", parent_run_id=run.id)

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        world.write(run.id, Increment("n", 1))
        await inbox.read()
        world.write(run.id, Increment("n", 1))
        frame = asyncio.ensure_future(inbox.read())
        # It has heard of the write, and waits for more.
        for _ in range(5):
            await asyncio.sleep(0)
        assert not frame.done()
        other.finish(other.claim_one())
        assert (await asyncio.wait_for(frame, 30))["finished"] == [child]
        assert inbox.copies[run.id].value == {"n": 2}
        await inbox.close()

    run_async(follow)


def test_a_write_while_a_frame_is_being_sent_arrives(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """Between two frames the worker may be slow; what comes meanwhile is in the next one."""

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        for number in range(1, 4):
            world.write(run.id, Increment("n", 1))
            await inbox.read()
            # The stream has handed out its frame and has not been asked for the next one yet.
            world.write(run.id, Increment("n", 1))
            await inbox.read()
            assert inbox.copies[run.id].value == {"n": 2 * number}
        await inbox.close()

    run_async(follow)


def test_too_much_for_the_inbox_is_sent_as_a_whole_document(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """Bounded: a worker that does not read costs the server no more than the document."""

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        for number in range(10):
            world.write(run.id, Set("big", str(number) * 60_000), Increment("n", 1, f"row {number}"))
        frame = await inbox.read()
        [delta] = frame["deltas"]
        assert "changes" not in delta
        assert (delta["metadata"], delta["version"]) == world.document(run.id)
        # M46: without them the worker would count an id again that others have counted.
        ids = set(unpack(b64decode(delta["counted"])))
        assert ids == {id_of("n", f"row {number}") for number in range(10)}
        world.write(run.id, Increment("n", 1))
        frame = await inbox.read()
        assert frame["deltas"][0]["changes"][0]["version"] == 11
        await inbox.close()

    run_async(follow)


def test_a_run_that_ends_during_an_overflow_does_no_harm(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        for number in range(10):
            world.write(run.id, Set("big", str(number) * 60_000))
        worker.finish(run, output="1")
        await inbox.read()
        assert inbox.copies[run.id].version == 10
        await inbox.close()

    run_async(follow)


def test_a_newer_connection_takes_the_inbox_over(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    async def follow() -> None:
        older = Inbox(world)
        await older.read()
        newer = Inbox(world)
        newer.hold(run)
        assert await newer.read() == {"hello": True}
        world.write(run.id, Increment("n", 1))
        await newer.read()
        assert newer.copies[run.id].value == {"n": 1}
        await older.close()
        world.write(run.id, Increment("n", 1))
        await newer.read()
        assert newer.copies[run.id].value == {"n": 2}
        await newer.close()

    run_async(follow)
    assert not world.hub.inboxes


def test_a_second_attempt_does_not_take_the_first_ones_steps_for_its_own(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        world.write(run.id, Set("x", 1))
        worker.report(run, Set("x", 2))
        worker.fail(run, retry_after_ms=0)
        second = worker.claim_one()
        inbox.hold(second)
        world.write(run.id, Set("x", 3))
        while inbox.copies[run.id].version < 3:
            await inbox.read()
        assert inbox.copies[run.id].value == {"n": 0, "x": 3}
        await inbox.close()

    run_async(follow)


@pytest.mark.parametrize("ending", ["the server stops", "a newer connection takes over"])
def test_what_happens_while_the_inbox_rests_is_not_lost(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    async def end(inbox: object, seconds: float) -> None:
        if ending == "the server stops":
            world.hub.close()
        else:
            await Inbox(world).read()

    async def follow() -> None:
        inbox = Inbox(world)
        inbox.hold(run)
        await inbox.read()
        world.write(run.id, Increment("n", 1))
        await inbox.read()
        monkeypatch.setattr(hub.Inbox, "quiet", end)
        # So soon after the last one that it rests first.
        monkeypatch.setattr(streams, "INBOX_SECONDS", 60)
        world.write(run.id, Increment("n", 1))
        with pytest.raises(StopAsyncIteration):
            await inbox.read()

    run_async(follow)
