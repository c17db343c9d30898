"""Fencing in the transaction: whichever command an attempt sends, it is carried out only while the attempt is under way."""

import pytest

from milepost.engine.commands import (
    AddBatchItems,
    AddOutsideChunks,
    AttemptRef,
    Command,
    CreateBatch,
    Report,
    Trigger,
    TriggerBatch,
    UpdateMetadata,
    Written,
)
from milepost.errors import AttemptOverError
from milepost.model.run import Outcome
from milepost.protocol.triggering import BatchLine
from milepost.protocol.work import ClaimedRun, RunReport
from support.world import WorkerDouble, World, item

pytestmark = pytest.mark.several_servers(postgres=True)

SET = [("self", [{"type": "set", "key": "a", "value": 1}])]


def commands_of(run_id: str, batch_id: str, target: str, attempt: AttemptRef) -> list[Command]:
    """One of each kind."""
    return [
        Trigger(item("child", parent_run_id=run_id), attempt=attempt),
        TriggerBatch([item("child")], run_id, attempt=attempt),
        CreateBatch(None, run_id, attempt=attempt),
        AddBatchItems(batch_id, [BatchLine(0, "child", None)], attempt=attempt),
        UpdateMetadata(run_id, SET, attempt=attempt),
        AddOutsideChunks(Written(target, "out/k", "me", 0, [b"1"]), attempt),
    ]


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    """A run that the worker holds."""
    world.trigger()
    [claimed] = worker.claim(1)
    return claimed


@pytest.fixture
def batch_id(world: World) -> str:
    return world.do(CreateBatch(None))


def test_a_lease_that_is_over_fences_everything(
    world: World, worker: WorkerDouble, run: ClaimedRun, batch_id: str
) -> None:
    target = world.trigger("target")
    attempt = AttemptRef(run.id, run.attempt)
    for command in commands_of(run.id, batch_id, target, attempt):
        world.do(command)
    assert world.pass_lease() == 1
    for command in commands_of(run.id, batch_id, target, attempt):
        with pytest.raises(AttemptOverError, match="is over"):
            world.do(command)
    assert world.document(run.id) == ({"a": 1}, 1)


def test_the_end_of_an_attempt_comes_before_what_it_sends_in_the_same_group(
    world: World, worker: WorkerDouble, run: ClaimedRun, batch_id: str
) -> None:
    """Otherwise a run that has ended would get children."""
    target = world.trigger("target")
    end = Report(worker.id, [RunReport(id=run.id, attempt=run.attempt, sequence=1, outcome=Outcome())])
    late = commands_of(run.id, batch_id, target, AttemptRef(run.id, run.attempt))
    ended, *answers = world.submit(end, *late)
    assert not isinstance(ended.result, Exception)
    assert [type(answer.result) for answer in answers] == [AttemptOverError] * len(late)
    assert world.document(run.id) == ({}, 0)


def test_a_refused_attempt_does_not_touch_its_neighbours(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    over = AttemptRef(run.id, run.attempt + 1)
    refused, triggered = world.submit(Trigger(item("child"), attempt=over), Trigger(item("child")))
    assert isinstance(refused.result, AttemptOverError)
    assert len(triggered.result.run_ids) == 1


def test_a_repeat_of_what_was_carried_out_is_answered(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    attempt = AttemptRef(run.id, run.attempt)
    triggering = Trigger(item("child", parent_run_id=run.id), "one", attempt=attempt)
    writing = UpdateMetadata(run.id, SET, request_id="two", attempt=attempt)
    first = world.do(triggering)
    world.do(writing)
    worker.finish(run)
    assert world.do(triggering).run_ids == first.run_ids
    assert world.do(writing).refused == []
    assert world.document(run.id) == ({"a": 1}, 1)
