"""Streams in the engine: each chunk of each writer once, indexed without gaps, whatever is sent twice, late or by a dead attempt."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine import streams
from milepost.engine.commands import (
    AddChunks,
    AddOutsideChunks,
    AttemptWritten,
    PruneStreams,
    ReleaseLostRuns,
    Written,
)
from milepost.errors import NotFoundError, RunNotFoundError
from milepost.model.retry import NO_RETRY
from milepost.protocol.streams import AttemptReply, PartReply, StreamState, WriterEnd
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.store.streams import OUTPUT
from support.many import world_of
from support.properties import database_property
from support.world import WorkerDouble, World, new_store

pytestmark = pytest.mark.several_servers(postgres=True)

NAME = OUTPUT + "tokens"


def texts(*values: object) -> list[bytes]:
    return [str(value).encode() for value in values]


def part(
    run_id: str,
    *values: object,
    first: int = 0,
    writer: str = "a",
    end: WriterEnd | None = None,
    name: str = NAME,
) -> Written:
    return Written(run_id, name, writer, first, texts(*values), end)


def add(worker: WorkerDouble, run: ClaimedRun, *parts: Written) -> AttemptReply:
    [reply] = worker.world.do(AddChunks(worker.id, [AttemptWritten(run.id, run.attempt, parts)]))
    return reply


def read(world: World, run_id: str, start: int = 0, name: str = NAME) -> list[str]:
    """The chunks from an index on; every row begins where the one before ends."""
    page = world.reader.stream_page(run_id, name, start=start, bytes_max=10**9)
    found: list[bytes] = []
    at = start
    for row in page.rows:
        assert row.first_index <= at < row.next_index
        found += row.texts(start)
        at = row.next_index
    assert start + len(found) == max(start, page.next_index)
    return [text.decode() for text in found]


def state(world: World, run_id: str, name: str = NAME) -> tuple[StreamState, str | None]:
    page = world.reader.stream_page(run_id, name, start=0, bytes_max=0)
    return page.state, page.error


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    world.trigger()
    return worker.claim_one()


def test_chunks_are_stored_once_and_in_order(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    assert read(world, run.id) == []
    assert add(worker, run, part(run.id, 1, 2)).parts == [PartReply(next=2)]
    # A repeat, one that overlaps, and what goes on.
    assert add(worker, run, part(run.id, 1, 2)).parts == [PartReply(next=2)]
    assert add(worker, run, part(run.id, 2, 3, first=1)).parts == [PartReply(next=3)]
    assert add(worker, run, part(run.id, 4, first=3)).parts == [PartReply(next=4)]
    assert read(world, run.id) == ["1", "2", "3", "4"]
    assert read(world, run.id, 2) == ["3", "4"]
    assert read(world, run.id, 9) == []
    [gap] = add(worker, run, part(run.id, 6, first=5)).parts
    assert (gap.code, gap.next) == ("chunk_gap", 4)
    world.restart()
    worker.register(holding=[run.id])
    assert add(worker, run, part(run.id, 4, 5, first=3)).parts == [PartReply(next=5)]
    assert read(world, run.id) == ["1", "2", "3", "4", "5"]


def test_several_writers_share_a_stream(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    add(worker, run, part(run.id, "a0", writer="a"), part(run.id, "b0", "b1", writer="b"))
    add(worker, run, part(run.id, "a1", writer="a", first=1), part(run.id, "b2", writer="b", first=2))
    assert read(world, run.id) == ["a0", "b0", "b1", "a1", "b2"]
    [taken] = world.do(
        AddChunks(worker.id, [AttemptWritten(run.id, run.attempt, [part(run.id, "x", writer="a", first=2)])])
    )[0].parts
    assert taken.code is None


def test_a_stream_ends_with_its_writers(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    assert state(world, run.id) == (StreamState.OPEN, None)
    add(worker, run, part(run.id, 1, writer="a"), part(run.id, 1, writer="b"))
    add(worker, run, part(run.id, first=1, writer="a", end=WriterEnd()))
    assert state(world, run.id) == (StreamState.OPEN, None)
    assert add(worker, run, part(run.id, 2, first=1, writer="b", end=WriterEnd("no\x00 ink"))).parts == [
        PartReply(next=2)
    ]
    # It failed, but the run goes on, and may try again.
    assert state(world, run.id) == (StreamState.OPEN, "no\ufffd ink")
    # The end may be sent twice; what comes behind it is refused.
    assert add(worker, run, part(run.id, 2, first=1, writer="b", end=WriterEnd("other"))).parts == [
        PartReply(next=2)
    ]
    [refused] = add(worker, run, part(run.id, 3, first=2, writer="b")).parts
    assert refused.code == "writer_ended"
    assert read(world, run.id) == ["1", "1", "2"]
    # Another writer opens it again.
    add(worker, run, part(run.id, 9, writer="c"))
    assert state(world, run.id) == (StreamState.OPEN, None)
    add(worker, run, part(run.id, first=1, writer="c", end=WriterEnd()))
    assert state(world, run.id) == (StreamState.ENDED, None)
    add(worker, run, part(run.id, 10, writer="d", end=WriterEnd("no paper")))
    worker.finish(run)
    assert state(world, run.id) == (StreamState.FAILED, "no paper")


def test_the_writer_that_wrote_last_says_how_a_stream_stands_whatever_the_clock(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    add(worker, run, part(run.id, 1, writer="b", end=WriterEnd("no ink")))
    world.clock.advance(-365 * 86400)
    add(worker, run, part(run.id, 2, writer="a", end=WriterEnd()))
    assert state(world, run.id) == (StreamState.ENDED, None)
    add(worker, run, part(run.id, 3, writer="c", end=WriterEnd("no paper")))
    add(worker, run, part(run.id, 4, writer="B", end=WriterEnd()))
    worker.finish(run)
    assert state(world, run.id) == (StreamState.ENDED, None)


def test_streams_are_in_the_order_in_which_they_were_begun_whatever_the_clock(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    def keys() -> list[str]:
        listed = [stream.key for stream in world.reader.streams(run.id)]
        assert world.reader.stored_run(run.id).streams == listed
        return listed

    add(worker, run, *(part(run.id, 1, name=OUTPUT + key) for key in ("z", "m")))
    world.clock.advance(-365 * 86400)
    # In one commit, and in several.
    add(worker, run, *(part(run.id, 1, name=OUTPUT + key) for key in ("y", "a")))
    add(worker, run, part(run.id, 1, name=OUTPUT + "x"))
    assert keys() == ["z", "m", "y", "a", "x"]
    world.clock.advance(2 * 365 * 86400)
    add(worker, run, part(run.id, 1, name=OUTPUT + "b"), part(run.id, 2, first=1, name=OUTPUT + "m"))
    assert keys() == ["z", "m", "y", "a", "x", "b"]


def test_an_attempt_that_died_leaves_the_stream_to_the_next_one(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    world.trigger(max_attempts=2)
    first = worker.claim_one()
    add(worker, first, part(first.id, 1, writer="a"))
    worker.fail(first, retry_after_ms=0)
    assert state(world, first.id) == (StreamState.OPEN, None)
    assert add(worker, first, part(first.id, 2, first=1, writer="a")) == AttemptReply(id=first.id, lost=True)
    second = worker.claim_one()
    [taken] = add(worker, second, part(second.id, 2, first=1, writer="a")).parts
    assert taken.code == "writer_taken"
    add(worker, second, part(second.id, 5, writer="b", end=WriterEnd()))
    assert state(world, first.id) == (StreamState.ENDED, None)
    page = world.reader.stream_page(first.id, NAME, start=0, bytes_max=10**6)
    assert [(row.attempt, row.data) for row in page.rows] == [(1, b"1"), (2, b"5")]


def test_who_may_write(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    child_id = world.trigger(parent_run_id=run.id)
    child = worker.claim_one()
    stranger_id = world.trigger()
    stranger = worker.claim_one()
    assert child.id == child_id
    assert add(worker, child, part(run.id, 1, writer="child")).parts == [PartReply(next=1)]
    [refused] = add(worker, stranger, part(run.id, 1, writer="stranger")).parts
    assert (refused.code, run.id in refused.message) == ("not_an_ancestor", True)
    [refused] = add(worker, child, part("run_unknown", 1)).parts
    assert refused.code == "not_an_ancestor"
    other = WorkerDouble(world, "worker_2")
    assert add(other, run, part(run.id, 1)).lost
    with pytest.raises(NotFoundError):
        world.do(AddChunks("worker_unknown", []))
    worker.finish(run)
    [refused] = add(worker, child, part(run.id, 2, first=1, writer="child")).parts
    assert (refused.code, refused.next) == ("run_finished", 1)
    assert read(world, run.id) == ["1"]
    assert add(worker, stranger, part(stranger_id, 1)).parts == [PartReply(next=1)]
    world.clock.advance(3600)
    world.do(ReleaseLostRuns())
    assert add(WorkerDouble(world), stranger, part(stranger_id, 2, first=1)).lost


def test_limits(world: World, worker: WorkerDouble, run: ClaimedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 2)
    for key in ("a", "b"):
        assert add(worker, run, part(run.id, 1, name=OUTPUT + key)).parts[0].code is None
    before = world.dump()
    [refused] = add(worker, run, part(run.id, 1, name=OUTPUT + "c")).parts
    assert refused.code == "too_many_streams"
    assert world.dump() == before
    assert add(worker, run, part(run.id, 2, first=1, name=OUTPUT + "b")).parts[0].code is None


def test_a_stream_that_is_full(tmp_path: Path) -> None:
    world = World(new_store(tmp_path / "m.db"), stream_bytes_max=10)
    try:
        worker = WorkerDouble(world)
        world.trigger()
        run = worker.claim_one()
        assert add(worker, run, part(run.id, "12345", "67890")).parts[0].code is None
        [refused] = add(worker, run, part(run.id, "1", first=2)).parts
        assert (refused.code, refused.next) == ("stream_too_large", 2)
        assert "MILEPOST_STREAM_BYTES_MAX" in refused.message
        # A repeat of what is there is no fault.
        assert add(worker, run, part(run.id, "67890", first=1)).parts == [PartReply(next=2)]
    finally:
        world.close()


def test_outside_writers_and_pruning(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    assert world.do(AddOutsideChunks(part(run.id, 1, 2, writer="client/1"))) == PartReply(next=2)
    assert world.do(AddOutsideChunks(part(run.id, 2, 3, first=1, writer="client/1"))) == PartReply(next=3)
    assert state(world, run.id) == (StreamState.OPEN, None)
    with pytest.raises(RunNotFoundError):
        world.do(AddOutsideChunks(part("run_unknown", 1)))
    worker.finish(run)
    assert world.do(AddOutsideChunks(part(run.id, 4, first=3, writer="client/1"))).code == "run_finished"
    assert [(one.key, one.chunk_count, one.size_bytes) for one in world.reader.streams(run.id)] == [
        ("tokens", 3, 3)
    ]
    assert world.do(PruneStreams(world.clock() - 50_000_000, 10)) == 0
    world.clock.advance(100)
    assert world.do(PruneStreams(world.clock() - 50_000_000, 10)) == 1
    assert (read(world, run.id), world.reader.streams(run.id)) == ([], [])


def test_large_parts_are_several_rows(
    world: World, worker: WorkerDouble, run: ClaimedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ROW_BYTES_MAX", 50)
    values = [f"{number:020}" for number in range(100)]
    add(worker, run, part(run.id, *values))
    assert read(world, run.id) == values
    assert read(world, run.id, 77) == values[77:]
    page = world.reader.stream_page(run.id, NAME, start=3, bytes_max=100)
    assert 3 <= len(page.rows) <= 6
    assert page.next_index == 100


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans()),
    max_size=30,
)


@database_property(60)
@given(STEPS)
def test_whatever_is_sent_twice_late_or_before_a_restart(
    deployment: str, steps: list[tuple[Any, ...]]
) -> None:
    """The stream is what each writer has written, in its order, each chunk once; and every index is there once."""
    with TemporaryDirectory() as folder:
        with world_of(deployment, Path(folder) / "m.db") as world:
            hold(world, steps)


def hold(world: World, steps: list[tuple[Any, ...]]) -> None:
    worker = WorkerDouble(world)
    world.trigger()
    run = worker.claim_one()
    numbers = dict.fromkeys("abc", 0)
    expected: list[str] = []
    for writer, count, back, is_lost, restarts in steps:
        first = max(0, numbers[writer] - back)
        values = [f'"{writer}{number}"' for number in range(first, numbers[writer] + count)]
        [reply] = add(worker, run, part(run.id, *values, first=first, writer=writer)).parts
        assert reply == PartReply(next=numbers[writer] + count)
        expected += [f'"{writer}{number}"' for number in range(numbers[writer], numbers[writer] + count)]
        if not is_lost:
            numbers[writer] += count
        else:
            # The answer got lost: everything is sent again with the next step, from where the writer thinks that it is.
            numbers[writer] = reply.next
            add(worker, run, part(run.id, *values, first=first, writer=writer))
        if restarts:
            world.restart()
            worker.register(holding=[run.id])
    assert read(world, run.id) == expected
    for start in (0, len(expected) // 2, len(expected)):
        assert read(world, run.id, start) == expected[start:]
