"""The faults of section 14 of the metadata contract, one property for each, at the level where the fault would live.

`tests/sdk/test_buffer.py` has examples of some of these; `tests/simulation` meets all of them together.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.streams import StreamReader, StreamWire
from milepost import metadata
from milepost.client.requests import trigger_request
from milepost.engine.commands import UpdateMetadata
from milepost.errors import MetadataError, MetadataTooLargeError, MetadataTypeError
from milepost.feed.streams import watch_run
from milepost.model.document import Document
from milepost.model.operations import Append, Delete, Increment, Operation, Set, Update
from milepost.model.run import Outcome
from milepost.protocol.work import RunReply
from milepost.sdk.buffer import Batch, Buffer
from milepost.store.runs import RunFilter
from sdk.here import running
from sdk.model_server import effect_of
from simulation.running import empty_store
from support.operations import DOCUMENTS, OPERATIONS, RELATED, SCALARS, VALUES, exactly
from support.subscriber import FeedWorld, Subscriber
from support.world import WorkerDouble

FEW = settings(max_examples=25, deadline=None)
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=4)
FATES = st.lists(st.sampled_from(["arrives", "request lost", "reply lost", "twice"]), max_size=4)


@pytest.fixture(scope="module")
def world() -> Iterator[FeedWorld]:
    """One world for all examples: each has runs of its own."""
    with empty_store() as store:
        yield FeedWorld(store)


@pytest.fixture(scope="module")
def worker(world: FeedWorld) -> WorkerDouble:
    return WorkerDouble(world)


class Wire:
    """A run's buffer and the real engine, with a network in between that does as it is told."""

    def __init__(self, worker: WorkerDouble, document: dict[str, Any] | None = None, **options: Any) -> None:
        self.worker = worker
        self.world = worker.world
        if worker.id not in self.world.engine.state.workers:
            # The server was started again.
            worker.register()
        self.run_id = self.world.trigger(metadata=document, **options)
        [self.run] = [run for run in worker.claim(1000) if run.id == self.run_id]
        self.buffer = Buffer.of(self.run, limit=262_144)

    def add(self, operation: Operation, run_id: str | None = None) -> bool:
        """One call of the user; False when it was refused at the call."""
        try:
            self.buffer.add(run_id or self.run_id, operation)
        except MetadataError:
            return False
        return True

    def send(self, fate: str = "arrives", outcome: Outcome | None = None) -> Batch | None:
        """Try to send the next batch."""
        batch = self.buffer.next_batch(anyway=outcome is not None)
        if batch is None or fate == "request lost":
            return batch
        replies = [self._report(batch, outcome) for _ in range(2 if fate == "twice" else 1)]
        if fate != "reply lost":
            for reply in replies:
                self.buffer.acknowledged(batch.sequence, refused=reply.refused, delta=reply.delta)
        return batch

    def send_all(self) -> None:
        while self.send() is not None:
            pass

    def document(self, run_id: str | None = None) -> dict[str, Any]:
        return self.world.document(run_id or self.run_id)[0]

    def _report(self, batch: Batch, outcome: Outcome | None) -> RunReply:
        return self.worker.report(
            self.run,
            sequence=batch.sequence,
            changes=batch.changes,
            metadata_version=self.buffer.version,
            outcome=outcome,
        )


@FEW
@given(
    rounds=st.lists(
        st.tuples(st.one_of(st.lists(OPERATIONS, max_size=4), RELATED), FATES), min_size=1, max_size=5
    )
)
def test_fault_01_a_failed_flush_keeps_its_operations(worker: WorkerDouble, rounds: Any) -> None:
    wire = Wire(worker)
    taken: list[Operation] = []
    for operations, fates in rounds:
        taken += [operation for operation in operations if wire.add(operation)]
        for fate in fates:
            wire.send(fate)
    wire.send_all()
    assert exactly(wire.document()) == exactly(effect_of(taken)) == exactly(wire.buffer.current())


@FEW
@given(steps=st.lists(st.sampled_from(["call", "flush", "take", "arrives", "reply lost"]), max_size=30))
def test_fault_02_a_flush_during_another_flush_waits_for_its_own_operations(
    worker: WorkerDouble, steps: list[str]
) -> None:
    wire = Wire(worker)
    called, flushes = 0, list[tuple[int, int]]()
    for step in [*steps, "arrives", "arrives"]:
        if step == "call":
            called += 1
            wire.add(Increment("n", 1))
        elif step == "flush":
            flushes.append((wire.buffer.mark(), called))
        elif step == "take":
            wire.buffer.next_batch()
        else:
            wire.send(step)
        committed = wire.document().get("n", 0)
        assert all(committed >= count for mark, count in flushes if wire.buffer.reached(mark))
    assert all(wire.buffer.reached(mark) for mark, _ in flushes)


@FEW
@given(first=SCALARS, newer=SCALARS, foreign=SCALARS, others=st.lists(OPERATIONS, max_size=3))
def test_fault_03_a_reply_hides_no_newer_write_and_an_equal_set_is_sent(
    worker: WorkerDouble, first: Any, newer: Any, foreign: Any, others: list[Operation]
) -> None:
    wire = Wire(worker)
    wire.add(Set("mine", first))
    batch = wire.buffer.next_batch()
    assert batch is not None
    wire.add(Set("mine", newer))
    wire.world.write(wire.run_id, *[one for one in others if not isinstance(one, Update)])
    wire.send()
    assert exactly({"mine": wire.buffer.get("mine")}) == exactly({"mine": newer})
    wire.send_all()
    wire.world.write(wire.run_id, Set("mine", foreign))
    # The local copy holds this already; the call counts nevertheless (M26).
    wire.add(Set("mine", newer))
    wire.send_all()
    assert exactly({"mine": wire.document()["mine"]}) == exactly({"mine": newer})


@FEW
@given(
    flushed=st.lists(st.integers(-9, 9), max_size=3),
    last=st.lists(st.integers(-9, 9), max_size=3),
    fates=FATES,
)
def test_fault_04_the_last_batch_of_an_attempt_is_applied_once(
    worker: WorkerDouble, flushed: list[int], last: list[int], fates: list[str]
) -> None:
    wire = Wire(worker)
    for by in flushed:
        wire.add(Increment("n", by))
        wire.send()
    for by in last:
        wire.add(Increment("n", by))
        wire.add(Append("log", by))
    for fate in fates:
        wire.send(fate, Outcome(output="1"))
    wire.send(outcome=Outcome(output="1"))
    document = wire.document()
    assert (document.get("n", 0), document.get("log", [])) == (sum(flushed) + sum(last), last)
    assert wire.world.reader.run(wire.run_id).status.is_final


@FEW
@given(
    operations=st.one_of(st.lists(OPERATIONS, max_size=12), RELATED), sent_after=st.sets(st.integers(0, 11))
)
def test_fault_05_operations_are_applied_in_the_order_of_the_calls(
    worker: WorkerDouble, operations: list[Operation], sent_after: set[int]
) -> None:
    """On the own document and on another one, over any number of reports."""
    wire = Wire(worker)
    parent = wire.run_id
    child = Wire(worker, parent_run_id=parent)
    taken: list[Operation] = []
    for index, operation in enumerate(operations):
        if child.add(operation):
            taken.append(operation)
            child.add(operation, parent)
        if index in sent_after:
            child.send()
    child.send_all()
    assert exactly(child.document()) == exactly(child.document(parent)) == exactly(effect_of(taken))


@FEW
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_fault_06_acknowledged_updates_of_parent_and_root_outlive_the_server(
    worker: WorkerDouble, counts: list[int]
) -> None:
    root = Wire(worker)
    parent = Wire(worker, parent_run_id=root.run_id)
    child = Wire(worker, parent_run_id=parent.run_id)
    for count in counts:
        for target in (parent.run_id, root.run_id):
            child.add(Increment("n", count), target)
            child.add(Append("log", count), target)
        child.send()
        assert not child.buffer.has_unacknowledged
        child.world.restart()
        worker.register([root.run_id, parent.run_id, child.run_id])
    for target in (parent.run_id, root.run_id):
        assert child.document(target) == {"n": sum(counts), "log": counts}


@FEW
@given(before=st.lists(NAMES, max_size=3), after=st.lists(NAMES, max_size=3))
def test_fault_07_what_is_too_large_takes_nothing_with_it(
    worker: WorkerDouble, before: list[str], after: list[str]
) -> None:
    parent = Wire(worker)
    child = Wire(worker, parent_run_id=parent.run_id)
    huge = Append("log", "x" * 262_144)
    for operation in [
        *(Append("log", name) for name in before),
        huge,
        *(Append("log", name) for name in after),
    ]:
        child.add(operation, parent.run_id)
    child.send_all()
    assert child.document(parent.run_id).get("log", []) == before + after
    [refused] = child.buffer.take_refused()
    assert (refused.run_id, refused.code) == (parent.run_id, MetadataTooLargeError.code)


@FEW
@given(
    good=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    bad=st.sampled_from(
        [
            {"type": "increment", "key": "text", "value": 1},
            {"type": "set", "key": "$.text.below", "value": 1},
            {"type": "set", "key": "__proto__", "value": 1},
            {"type": "frobnicate", "key": "a"},
            {"type": "append"},
            7,
        ]
    ),
    place=st.integers(0, 5),
)
def test_fault_08_a_bad_operation_is_refused_alone(
    world: FeedWorld, good: list[int], bad: Any, place: int
) -> None:
    run_id = world.trigger(metadata={"text": "a"})
    operations: list[Any] = [{"type": "append", "key": "log", "value": number} for number in good]
    operations.insert(place, bad)
    updated = world.do(UpdateMetadata(run_id, [("self", operations)]))
    assert world.document(run_id)[0] == {"text": "a", "log": good}
    [refused] = updated.refused
    assert refused.index == operations.index(bad)
    assert refused.message


@FEW
@given(
    counts=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    repeats=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=6),
)
def test_fault_09_a_request_that_is_sent_again_changes_nothing(
    world: FeedWorld, counts: list[int], repeats: list[tuple[int, bool]]
) -> None:
    """From outside, long after newer ones and over restarts of the server too. Reports of workers: fault 1."""
    run_id = world.trigger()

    def send(index: int) -> None:
        by = counts[index]
        world.write(run_id, Increment("n", by), Append("log", by), request_id=f"{run_id} {index}")

    for index in range(len(counts)):
        send(index)
    for index, restarts in repeats:
        if restarts:
            world.restart()
        send(index % len(counts))
    assert world.document(run_id) == ({"n": sum(counts), "log": counts}, len(counts))


@FEW
@given(
    names=st.lists(
        st.sampled_from(["set", "append", "remove", "increment", "decrement", "delete", "replace", "extend"]),
        max_size=5,
    ),
    junk=st.one_of(VALUES, st.just(object()), st.just(float("nan"))),
)
def test_fault_10_calls_outside_a_run_do_nothing(names: list[str], junk: Any) -> None:
    for updater in (metadata, metadata.parent, metadata.root, metadata.run("run_x")):
        for name in names:
            arguments = [junk] if name in ("delete", "replace") else [junk, junk]
            assert getattr(updater, name)(*arguments) is updater
    metadata.flush()
    assert (metadata.current(), metadata.get("a", junk)) == (None, junk)


@FEW
@given(path=st.lists(NAMES, min_size=1, max_size=5), value=VALUES)
def test_fault_11_a_nested_write_creates_what_is_missing(
    worker: WorkerDouble, path: list[str], value: Any
) -> None:
    key = "$" + "".join(f'["{name}"]' for name in path)
    wire = Wire(worker)
    assert wire.add(Set(key, value))
    wire.send_all()
    expected = value
    for name in reversed(path):
        expected = {name: expected}
    assert exactly(wire.document()) == exactly(expected) == exactly(wire.buffer.current())


@FEW
@given(path=st.lists(NAMES, min_size=1, max_size=4), kept=st.dictionaries(NAMES, SCALARS, max_size=3))
def test_fault_12_delete_takes_paths(worker: WorkerDouble, path: list[str], kept: dict[str, Any]) -> None:
    document: Any = {**kept, path[-1]: "to be deleted"}
    left: Any = {name: value for name, value in kept.items() if name != path[-1]}
    for name in reversed(path[:-1]):
        document, left = {name: document}, {name: left}
    wire = Wire(worker, document)
    assert wire.add(Delete("$" + "".join(f'["{name}"]' for name in path)))
    wire.send_all()
    assert exactly(wire.document()) == exactly(left) == exactly(wire.buffer.current())


@FEW
@given(document=DOCUMENTS, excess=st.integers(-3, 3))
def test_fault_13_going_over_the_limit_raises_at_the_call(document: dict[str, Any], excess: int) -> None:
    limit = Document(document).size + 100
    with running(document, limit=limit) as (scope, link):
        # What `"big":""` and a comma take, then exactly as much as is left, and a few bytes more or less.
        length = 100 - len('"big":""') - (1 if document else 0) + excess
        if excess > 0:
            with pytest.raises(MetadataTooLargeError):
                metadata.set("big", "x" * length)
            assert exactly(cast("Any", metadata.current())) == exactly(document)
            assert (scope.buffer.next_batch(), link.woken) == (None, 0)
        else:
            metadata.set("big", "x" * length)
            assert metadata.get("big") == "x" * length


@pytest.mark.parametrize("operation", ["set", "append", "increment"])
def test_fault_14_a_call_does_not_copy_the_document(operation: str) -> None:
    def allocated(size: int) -> int:
        with running({"large": "x" * size, "list": [], "n": 0}):
            call = {
                "set": lambda: metadata.set("key", 1),
                "append": lambda: metadata.append("list", 1),
                "increment": lambda: metadata.increment("n"),
            }[operation]
            call()
            tracemalloc.start()
            try:
                call()
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert allocated(250_000) < allocated(1_000) + 2_000


@FEW
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_fault_15_watchers_get_what_changed_and_not_the_document(world: FeedWorld, sizes: list[int]) -> None:
    run_id = world.trigger(metadata={"large": "x" * 200_000})

    async def follow() -> None:
        subscriber = Subscriber(watch_run(world.hub, world.reader, run_id))
        await subscriber.read()
        for size in sizes:
            received = subscriber.bytes_received
            world.write(run_id, Append("log", "y" * size))
            assert await subscriber.read() == "delta"
            assert subscriber.bytes_received - received < size + 500
        assert subscriber.value["log"] == ["y" * size for size in sizes]
        await subscriber.close()

    asyncio.run(follow())


@FEW
@given(
    rounds=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 40), FATES, st.integers(0, 4), st.booleans()), max_size=8
    ),
    error=st.sampled_from([None, "the source has failed"]),
)
def test_fault_16_no_chunk_of_a_fast_stream_is_lost_and_no_reader_left_hanging(
    world: FeedWorld, rounds: Any, error: str | None
) -> None:
    """Whatever gets lost, with two writers, servers that start anew and a reader that comes back behind its last chunk."""
    worker = WorkerDouble(world, "streaming")
    world.trigger()
    [run] = worker.claim(1)
    wire = StreamWire(worker, run)
    outlets = [wire.open(), wire.open()]
    written: list[list[str]] = [[], []]
    reader = StreamReader(world, run.id)
    for which, count, fates, frames, restarts in rounds:
        written[which] += wire.add(outlets[which], count, len(written[which]))
        for fate in fates:
            wire.send(fate)
        reader.read(frames)
        if restarts:
            world.restart()
            worker.register(holding=[run.id])
    # The code has ended, or its source has failed: either way the outcome waits for what is left.
    outlets[0].close()
    # The stream is told to have ended as the last of them did. Of ends that travel at the same time either may be the last.
    wire.send_all()
    outlets[1].close(error)
    wire.send_all()
    assert wire.book.is_clear(wire.scope)
    worker.finish(run)
    reader.read()
    for outlet, values in zip(outlets, written, strict=True):
        assert [value for value in reader.values if value.startswith(outlet.writer)] == values
    assert len(reader.values) == sum(map(len, written))
    assert reader.follower.has_ended
    assert reader.follower.error == error


@FEW
@given(document=st.one_of(SCALARS.filter(lambda value: value is not None), st.lists(VALUES, max_size=3)))
def test_fault_17_a_document_that_is_no_object_is_refused_at_trigger(world: FeedWorld, document: Any) -> None:
    _, before = world.reader.first_page(RunFilter(), size=1)
    with pytest.raises(MetadataTypeError):
        trigger_request(None, cast("Any", {"metadata": document}), metadata_limit=262_144)
    with pytest.raises(MetadataTypeError):
        world.trigger(metadata=document)
    assert world.reader.first_page(RunFilter(), size=1)[1] == before


@FEW
@given(
    value=st.one_of(st.text(max_size=5), st.booleans(), st.lists(SCALARS, max_size=2)), by=st.integers(-5, 5)
)
def test_fault_18_an_increment_of_what_is_no_number_replaces_nothing(
    worker: WorkerDouble, value: Any, by: int
) -> None:
    """On the own document it raises at the call; the parent's refuses it, and the writer is told."""
    parent = Wire(worker, {"a": value})
    child = Wire(worker, {"a": value}, parent_run_id=parent.run_id)
    with pytest.raises(MetadataTypeError):
        child.buffer.add(child.run_id, Increment("a", by))
    child.add(Increment("a", by), parent.run_id)
    child.send_all()
    assert exactly(child.document()) == exactly(child.document(parent.run_id)) == exactly({"a": value})
    [refused] = child.buffer.take_refused()
    assert (refused.run_id, refused.code) == (parent.run_id, MetadataTypeError.code)
