"""The black box: what an executor has noted is there when its process is not any more, whatever its user code does."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from milepost.protocol.work import BegunRun
from milepost.worker.black_box import NOT_NOTED, RUNS_MAX, BlackBox


@pytest.fixture
def boxes() -> Iterator[tuple[BlackBox, BlackBox]]:
    """The supervisor's and the executor's view of one box."""
    reader, descriptor = BlackBox.make()
    yield reader, BlackBox.open(descriptor)
    reader.close()


def test_what_was_noted_is_read(boxes: tuple[BlackBox, BlackBox]) -> None:
    reader, writer = boxes
    assert reader.begun() == []
    records = [writer.begin(f"run_{number}", number + 1) for number in range(3)]
    writer.wait(records[1])
    assert reader.begun() == [
        BegunRun(id="run_0", attempt=1),
        BegunRun(id="run_1", attempt=2, waiting=True),
        BegunRun(id="run_2", attempt=3),
    ]
    writer.go_on(records[1])
    writer.end(records[0])
    writer.end(records[2])
    assert reader.begun() == [BegunRun(id="run_1", attempt=2)]


def test_when_the_server_has_answered_is_read(boxes: tuple[BlackBox, BlackBox]) -> None:
    reader, writer = boxes
    assert (reader.lease_seconds, reader.answered_at) == (0.0, 0.0), "not registered"
    writer.answered(30.0, 1234.5)
    assert (reader.lease_seconds, reader.answered_at) == (30.0, 1234.5)


def test_any_order_of_events_is_noted(boxes: tuple[BlackBox, BlackBox]) -> None:
    reader, writer = boxes
    chance = random.Random(7)
    live: dict[int, BegunRun] = {}
    for number in range(5000):
        action = chance.randrange(4)
        if action <= 1:
            run = BegunRun(
                id="run_" + "x" * chance.randrange(40) + str(number), attempt=chance.randrange(1 << 40)
            )
            record = writer.begin(run.id, run.attempt)
            assert record not in live
            live[record] = run
        elif live:
            record = chance.choice(list(live))
            run = live[record]
            if action == 2:
                writer.end(record)
                del live[record]
            else:
                (writer.go_on if run.waiting else writer.wait)(record)
                live[record] = BegunRun(id=run.id, attempt=run.attempt, waiting=not run.waiting)
        if number % 100 == 0:
            assert sorted(map(repr, reader.begun())) == sorted(map(repr, live.values()))


def test_records_are_used_again(boxes: tuple[BlackBox, BlackBox]) -> None:
    _, writer = boxes
    first = writer.begin("run_1", 1)
    for number in range(RUNS_MAX * 2):
        writer.end(writer.begin(f"run_{number}", 1))
    writer.end(first)
    assert writer.begin("run_2", 1) == first


def test_what_does_not_fit_is_not_noted(boxes: tuple[BlackBox, BlackBox]) -> None:
    reader, writer = boxes
    assert writer.begin("run_" + "x" * 100, 1) == NOT_NOTED
    records = [writer.begin(f"run_{number}", 1) for number in range(RUNS_MAX)]
    assert NOT_NOTED not in records
    assert writer.begin("run_more", 1) == NOT_NOTED
    writer.wait(NOT_NOTED)
    writer.go_on(NOT_NOTED)
    writer.end(NOT_NOTED)
    assert len(reader.begun()) == RUNS_MAX
    writer.end(records[5])
    assert writer.begin("run_again", 1) == records[5]


def test_it_outlives_its_process_whatever_that_has_done() -> None:
    """The process closes all descriptors, forks a child that goes on writing, and is killed."""
    code = """
    import os, signal, sys
    from milepost.worker.black_box import BlackBox
    box = BlackBox.open(int(sys.argv[1]))
    box.answered(5.0, 6.0)
    record = box.begin("run_kept", 3)
    os.register_at_fork(after_in_child=box.after_fork)
    os.closerange(3, 200)
    child = os.fork()
    if not child:
        box.end(record)
        box.begin("run_of_child", 1)
        box.answered(0.0, 0.0)
        os._exit(0)
    os.waitpid(child, 0)
    box.begin("run_late", 4)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    reader, descriptor = BlackBox.make()
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(descriptor)],
        pass_fds=(descriptor,),
        check=False,
        timeout=60,
    )
    os.close(descriptor)
    assert process.returncode == -signal.SIGKILL
    assert reader.begun() == [BegunRun(id="run_kept", attempt=3), BegunRun(id="run_late", attempt=4)]
    assert reader.lease_seconds == 5.0
    reader.close()
