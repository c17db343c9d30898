"""A server or a worker dies at each point of the way of a chunk. That costs no chunk that was acknowledged, and none comes twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from delivery.streams import KEY, StreamReader, StreamWire
from milepost.protocol.streams import StreamState
from milepost.worker import chunk_book
from simulation.running import empty_store
from support.subscriber import FeedWorld
from support.world import WorkerDouble

COUNT = 10
# Where the process dies, in the order in which a request comes by.
POINTS = [
    "before the request is sent",
    "after the commit, before the answer",
    "between two parts",
    "at the end of the run, with chunks pending",
    "after the last answer, before the outcome",
]


@pytest.fixture
def world() -> Iterator[FeedWorld]:
    with empty_store() as store:
        yield FeedWorld(store)


def write_up_to(point: str, wire: StreamWire) -> list[str]:
    """Write until the point where something dies; what was added so far."""
    outlet = wire.open()
    values = wire.add(outlet, COUNT)
    if point == "before the request is sent":
        wire.send("request lost")
        return values
    if point == "after the commit, before the answer":
        wire.send("reply lost")
        return values
    wire.send()
    values += wire.add(outlet, COUNT, COUNT)
    if point != "between two parts":
        wire.book.end(wire.scope)
        assert not wire.book.is_clear(wire.scope), "the outcome would be reported, with chunks pending"
    if point == "after the last answer, before the outcome":
        wire.send_all()
        assert wire.book.is_clear(wire.scope)
    return values


@pytest.fixture
def wire(world: FeedWorld, monkeypatch: pytest.MonkeyPatch) -> StreamWire:
    # Small requests, so that there are several.
    monkeypatch.setattr(chunk_book, "CHUNKS_MAX", 4)
    worker = WorkerDouble(world)
    world.trigger(max_attempts=2)
    return StreamWire(worker, worker.claim_one())


@pytest.mark.parametrize("point", POINTS)
def test_a_server_that_dies_loses_nothing_and_repeats_nothing(
    point: str, world: FeedWorld, wire: StreamWire
) -> None:
    reader = StreamReader(world, wire.run.id)
    values = write_up_to(point, wire)
    reader.read(2)
    world.restart()
    wire.worker.register(holding=[wire.run.id])
    # The worker sends again what was not answered, and goes on.
    wire.book.end(wire.scope)
    wire.send_all()
    assert wire.book.is_clear(wire.scope)
    wire.worker.finish(wire.run)
    reader.read()
    assert reader.values == values
    assert (reader.follower.state, reader.follower.error) == (StreamState.ENDED, None)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_leaves_what_was_stored_and_the_next_attempt_writes_anew(
    point: str, world: FeedWorld, wire: StreamWire
) -> None:
    reader = StreamReader(world, wire.run.id)
    first_values = write_up_to(point, wire)
    [acknowledged] = wire.acknowledged.values()
    reader.read(2)
    # What it had sent at last is still under way.
    under_way = list(wire.book.take())
    wire.worker.die(wire.run)
    world.clock.advance(60)
    other = WorkerDouble(world, "worker_2")
    retry = StreamWire(other, other.claim_one())
    assert retry.run.attempt == 2
    stored = sum(stream.chunk_count for stream in world.reader.streams(wire.run.id))
    assert stored >= acknowledged
    if under_way:
        wire.worker.register()
        replies = wire.deliver(under_way)
        assert [reply.lost for reply in replies] == [True], (
            "nothing that an attempt says counts after its end"
        )
        wire.hear(under_way, replies)
        assert wire.book.is_clear(wire.scope)
    # The stream has ended only if the attempt that died had said so; nobody waits for a writer that has not.
    reader.read()
    assert reader.follower.has_ended == (point == POINTS[-1])
    second_values = retry.add(retry.open(), COUNT)
    retry.book.end(retry.scope)
    retry.send_all()
    reader.read()
    assert reader.values == first_values[:stored] + second_values
    assert [attempt for _, attempt, _ in reader.seen] == [1] * stored + [2] * COUNT
    assert reader.follower.state is StreamState.ENDED
    other.finish(retry.run)
    [listed] = world.reader.streams(wire.run.id)
    assert (listed.key, listed.state, listed.chunk_count) == (KEY, StreamState.ENDED, len(reader.seen))
