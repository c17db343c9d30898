"""Logs of runs: each part is stored at most once, late ones too, and never more than an attempt has room for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine.commands import AppendLog
from milepost.errors import NotFoundError
from milepost.model.operations import Increment
from milepost.protocol.runs import LogLine
from milepost.protocol.work import ClaimedRun, log_line_size
from support.properties import database_property
from support.world import WorkerDouble, World, failure, new_store, result_of, world_at

pytestmark = pytest.mark.several_servers


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    """A run in its first attempt."""
    world.trigger()
    return worker.claim_one()


def test_lines_keep_their_order_their_attempt_and_their_words(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.log(
        run,
        LogLine(at=30, level="info", message="ü\n\0", logger="app", attempt=7),
        LogLine(at=10, level="debug", message=""),
    )
    worker.log(run, LogLine(at=20, level="error", message="end"))
    worker.fail(run, retry_after_ms=0)
    worker.log(worker.claim_one(), LogLine(at=40, level="info", message="again"))
    lines = world.reader.log(run.id, after=0).data
    assert [(line.at, line.level, line.message, line.logger, line.attempt) for line in lines] == [
        (30, "info", "ü\n\0", "app", 1),
        (10, "debug", "", "", 1),
        (20, "error", "end", "", 1),
        (40, "info", "again", "", 2),
    ]


def test_a_long_log_is_read_page_by_page(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    worker.log(run, *map(str, range(1200)))
    first = world.reader.log(run.id, after=0)
    assert len(first.data) == 500
    assert world.log(run.id) == [str(number) for number in range(1200)]


def test_a_part_that_comes_again_changes_nothing(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    """M45, fault 9: also in the same group, after a restart, and behind newer ones."""
    first, second = worker.next_lines(run, "one"), worker.next_lines(run, "two")
    world.submit(AppendLog(worker.id, [first]), AppendLog(worker.id, [first]))
    world.do(AppendLog(worker.id, [second]))
    before = world.dump()
    world.do(AppendLog(worker.id, [first, second, first]))
    assert world.dump() == before
    world.restart()
    worker.register(holding=[run.id])
    world.do(AppendLog(worker.id, [second]))
    assert world.dump()["logs"] == before["logs"]
    assert world.log(run.id) == ["one", "two"]


def test_lines_may_come_after_the_end_and_after_a_loss(world: World, worker: WorkerDouble) -> None:
    """What was said before is worth reading, whatever became of the attempt."""
    run_id = world.trigger()
    lost = worker.claim_one()
    worker.send(worker.next_report(lost, outcome=failure(retry_after_ms=0)))
    other = WorkerDouble(world, "worker_2")
    again = other.claim_one()
    worker.log(lost, "before it was lost")
    other.finish(again)
    other.log(again, "the last words")
    assert world.log(run_id) == ["before it was lost", "the last words"]
    assert [line.attempt for line in world.reader.log(run_id, after=0).data] == [1, 2]


def test_lines_of_attempts_that_do_not_exist_are_left_out_and_their_neighbours_stored(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    good = worker.next_lines(run, "good")
    strangers = [
        worker.next_lines(ClaimedRun(id=run_id, task="work", attempt=attempt), "bad")
        for run_id, attempt in [("run_nobody", 1), (run.id, 2), (run.id, 0), (run.id, -1)]
    ]
    world.do(AppendLog(worker.id, [*strangers, good]))
    assert world.log(run.id) == ["good"]


def test_another_worker_under_the_same_attempt_is_not_heard(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    stranger = WorkerDouble(world, "worker_2")
    stranger.log(run, "not mine")
    assert world.log(run.id) == []


def test_a_worker_that_is_not_registered_is_told_so(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.send(leaving=True)
    [ticket] = world.submit(AppendLog(worker.id, [worker.next_lines(run, "one")]))
    with pytest.raises(NotFoundError):
        result_of(ticket)
    assert world.log(run.id) == []


def test_what_there_is_no_room_for_is_counted_in_one_line(tmp_path: Path) -> None:
    with world_at(tmp_path / "milepost.db", log_bytes_max=1000) as world:
        worker = WorkerDouble(world)
        run_id = world.trigger()
        run = worker.claim_one()
        worker.log(run, "a" * 500, "€" * 200, "b")
        worker.log(run, "c")
        assert world.log(run_id) == [
            "a" * 500,
            "3 lines of the log (698 bytes) were left out here: the server keeps 1,000 bytes of the log of an attempt "
            "(MILEPOST_LOG_BYTES_MAX)",
        ]
        # The next attempt has room of its own.
        worker.fail(run, retry_after_ms=0)
        worker.log(worker.claim_one(), "d")
        assert world.log(run_id)[-1] == "d"


def test_what_the_server_itself_says_is_bounded_too(tmp_path: Path) -> None:
    """A loop of refused operations fills no database."""
    with world_at(tmp_path / "milepost.db", log_bytes_max=4096) as world:
        worker = WorkerDouble(world)
        run_id = world.trigger(metadata={"k" * 5000: "text"})
        run = worker.claim_one()
        for _ in range(30):
            worker.report(run, Increment("k" * 5000, 1))
        lines = world.reader.log(run_id, after=0).data
        assert sum(map(log_line_size, lines)) < 4096 + 300
        assert "were left out here" in lines[-1].message
        # What the worker sends has its own room.
        worker.log(run, "still heard")
        assert world.log(run_id)[-1] == "still heard"


MESSAGES = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@database_property(60)
@given(
    parts=st.lists(st.lists(MESSAGES, max_size=5), max_size=8),
    again=st.lists(st.integers(0, 7), max_size=8),
    room=st.integers(0, 600),
)
def test_any_log_is_stored_up_to_its_room_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], again: list[int], room: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    world = World(new_store(folder / "milepost.db"), log_bytes_max=room)
    try:
        worker = WorkerDouble(world)
        run_id = world.trigger()
        run = worker.claim_one()
        commands = [AppendLog(worker.id, [worker.next_lines(run, *part)]) for part in parts]
        for index, command in enumerate(commands):
            world.do(command)
            world.submit(*(commands[number] for number in again if number <= index))
        said = [line for part in parts for line in part]
        sizes = [len(line.encode()) + 32 for line in said]
        count = next((n for n in range(len(said)) if sum(sizes[: n + 1]) > room), len(said))
        assert world.log(run_id)[:count] == said[:count]
        if count < len(said):
            [notice] = world.log(run_id)[count:]
            assert notice.startswith(f"{len(said) - count} lines of the log ({sum(sizes[count:]):,} bytes)")
        else:
            assert len(world.log(run_id)) == count
    finally:
        world.close()
