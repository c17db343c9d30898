"""Readers of a stream: those who vanish leave nothing behind, and a slow one costs little and misses nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from milepost.client.streams import ChunkFollower
from milepost.engine.commands import AddChunks, AttemptWritten, Written
from milepost.feed import stream_topic
from milepost.feed.chunks import watch_stream
from milepost.protocol.feed import EventReader
from milepost.protocol.streams import WriterEnd
from milepost.protocol.work import ClaimedRun
from support.subscriber import FeedWorld, feed_world_at
from support.world import WorkerDouble

NAME = "out/k"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FeedWorld]:
    with feed_world_at(tmp_path / "milepost.db") as world:
        yield world


@pytest.fixture
def worker(world: FeedWorld) -> WorkerDouble:
    return WorkerDouble(world)


@pytest.fixture
def run(world: FeedWorld, worker: WorkerDouble) -> ClaimedRun:
    world.trigger()
    return worker.claim_one()


def write(worker: WorkerDouble, run: ClaimedRun, first: int, *values: str, ends: bool = False) -> None:
    chunks = list(map(msgspec.json.encode, values))
    part = Written(run.id, NAME, "a", first, chunks, WriterEnd() if ends else None)
    worker.world.do(AddChunks(worker.id, [AttemptWritten(run.id, run.attempt, [part])]))


def test_a_thousand_readers_that_vanish_leave_nothing_behind(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    async def vanish() -> None:
        readers = [watch_stream(world.hub, world.reader, run.id, NAME, start=0) for _ in range(1000)]
        for reader in readers:
            await anext(reader)
        write(worker, run, 0, "one")
        frames = [await anext(reader) for reader in readers]
        assert len({id(frame) for frame in frames}) <= 1 + len(frames) // 100, "it is encoded once for all"
        for reader in readers:
            await reader.aclose()
        assert not world.hub.streams
        write(worker, run, 1, "two")

    asyncio.run(vanish())


def test_a_reader_that_is_slow_costs_bounded_memory_and_misses_nothing(
    world: FeedWorld, worker: WorkerDouble, run: ClaimedRun
) -> None:
    values = [f"{number} " + "x" * 100_000 for number in range(60)]

    async def read() -> list[str]:
        frames = watch_stream(world.hub, world.reader, run.id, NAME, start=0)
        follower, events = ChunkFollower(0), EventReader()
        await anext(frames)
        for number, value in enumerate(values):
            write(worker, run, number, value, ends=number == len(values) - 1)
        topic = world.hub.streams[run.id][NAME]
        assert sum(len(recent.frame) for recent in topic._recent) <= stream_topic.RECENT_BYTES + 200_000
        seen: list[str] = []
        async for frame in frames:
            for event, data in events.feed(frame):
                follower.take(event, data)
            while (chunk := follower.newest()) is not None:
                seen.append(msgspec.json.decode(chunk.text))
        return seen

    assert asyncio.run(read()) == values
