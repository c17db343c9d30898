"""Reporting: each (run, attempt, sequence) is applied at most once, and a repeat is answered as the original was."""

from typing import Any

import msgspec
import pytest

from milepost.engine.commands import Report
from milepost.errors import NotFoundError
from milepost.model.operations import Append, Increment, Remove, Set, Update
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.work import ClaimedRun, RunReport, TargetOperations
from support.world import WorkerDouble, World, failure, item, offered, result_of

pytestmark = pytest.mark.several_servers(postgres=True)


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    """A run in its first attempt."""
    world.trigger()
    return worker.claim_one()


def codes(refused: list[Any]) -> list[tuple[int, str]]:
    return [(refusal.index, refusal.code) for refusal in refused]


# --- at most once ------------------------------------------------------------------------------------------


def test_a_repeated_report_changes_nothing(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    """M45, fault 9: increments and appends are not doubled."""
    report = worker.next_report(run, Increment("n", 1), Append("list", "x"))
    worker.send(report)
    before = world.dump()
    for _ in range(3):
        worker.send(report)
        assert world.dump() == before
    assert world.document(run.id) == ({"n": 1, "list": ["x"]}, 1)


def test_a_repeat_is_known_after_a_restart(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    report = worker.next_report(run, Increment("n", 1))
    worker.send(report)
    world.restart()
    worker.register(holding=[run.id])
    worker.send(report)
    assert world.document(run.id) == ({"n": 1}, 1)


def test_a_repeat_in_the_same_group_is_applied_once(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    report = worker.next_report(run, Increment("n", 1))
    command = Report(worker.id, [report])
    for ticket in world.submit(command, command, command):
        [reply] = result_of(ticket)
        assert not reply.lost
    assert world.document(run.id) == ({"n": 1}, 1)


def test_an_older_report_that_arrives_late_again_changes_nothing(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    first = worker.next_report(run, Set("a", 1))
    worker.send(first)
    worker.report(run, Set("a", 2))
    worker.send(first)
    assert world.document(run.id) == ({"a": 2}, 2)


@pytest.mark.parametrize("restart", [False, True], ids=["same engine", "restarted"])
def test_a_repeat_is_answered_like_the_original_refusals_included(
    world: World, worker: WorkerDouble, run: ClaimedRun, restart: bool
) -> None:
    """M29 and M45 together."""
    report = worker.next_report(run, Set("t", "text"), Increment("t", 1), Set("$.t.x", 1), Increment("n", 2))
    [original] = worker.send(report)
    assert codes(original.refused) == [(1, "wrong_metadata_type"), (2, "invalid_metadata_path")]
    if restart:
        world.restart()
        worker.register(holding=[run.id])
    [again] = worker.send(report)
    assert msgspec.to_builtins(again.refused) == msgspec.to_builtins(original.refused)
    assert world.document(run.id) == ({"t": "text", "n": 2}, 1)


def test_a_repeat_in_the_same_group_gets_the_same_refusals(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """The first answer goes to a connection that is gone: the second is the one that counts."""
    report = worker.next_report(run, Set("t", "text"), Increment("t", 1))
    command = Report(worker.id, [report])
    first, second = (result_of(ticket)[0] for ticket in world.submit(command, command))
    assert codes(first.refused) == [(1, "wrong_metadata_type")]
    assert msgspec.to_builtins(second.refused) == msgspec.to_builtins(first.refused)


def test_the_same_number_with_other_content_is_refused_and_told(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.report(run, Increment("n", 1))
    other = worker.next_report(run, Increment("n", 1), Append("list", 1), sequence=1)
    for _ in range(2):
        [reply] = worker.send(other)
        assert codes(reply.refused) == [(0, "sequence_reused"), (1, "sequence_reused")]
        world.restart()
        worker.register(holding=[run.id])
    assert world.document(run.id) == ({"n": 1}, 1)
    line, again = world.reader.log(run.id, after=0).data
    assert line.level == "error"
    assert "report 1 of attempt 1 was sent before with other content" in line.message
    assert again.message == line.message
    # Its next number is free.
    assert not worker.report(run, Increment("n", 1)).refused
    assert world.document(run.id) == ({"n": 2}, 2)


def test_a_sequence_that_goes_backwards_changes_nothing(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    for number in range(3):
        worker.report(run, Append("list", number))
    for sequence in (2, 1):
        [reply] = worker.send(worker.next_report(run, Append("list", "late"), sequence=sequence))
        assert (reply.lost, reply.refused) == (False, [])
    assert world.document(run.id) == ({"list": [0, 1, 2]}, 3)


def test_refusals_are_in_the_log_of_the_run_also_those_of_its_last_report(
    world: World, worker: WorkerDouble
) -> None:
    """M29, M85: by the transaction that refused them, so that a run that has ended has them."""
    parent_id = world.trigger(metadata={"text": "abc"})
    child_id = world.trigger(parent_run_id=parent_id)
    _, child = worker.claim(2)
    worker.report(child, Increment("n", 1), changes=[TargetOperations(parent_id, [Increment("text", 1)])])
    big = "x" * 300_000
    worker.finish(child, changes=[TargetOperations(parent_id, [Set("big", big), Set("small", 1)])])
    first, last = world.reader.log(child_id, after=0).data
    assert (first.level, first.logger, first.attempt) == ("warning", "milepost.metadata", 1)
    assert f"metadata of {parent_id} was refused" in first.message
    assert "cannot be incremented" in first.message
    assert "more than the limit of 262,144" in last.message
    assert world.document(parent_id)[0] == {"text": "abc", "small": 1}
    assert world.reader.log(parent_id, after=0).data == []


def test_very_many_refusals_of_one_report_are_counted(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.report(run, Set("text", "abc"), *[Increment("text", number) for number in range(250)])
    lines = world.reader.log(run.id, after=0).data
    assert len(lines) == 101
    assert lines[-1].message == "150 more operations of the same report were refused"


def test_a_repeated_outcome_is_answered_and_not_applied_again(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    report = worker.next_report(run, Increment("n", 1), outcome=Outcome(output="1"))
    worker.send(report)
    finished_at = world.reader.run(run.id).finished_at
    [again] = worker.send(report)
    assert not again.lost
    assert world.reader.run(run.id).finished_at == finished_at
    assert world.document(run.id) == ({"n": 1}, 1)


def test_a_repeated_failure_does_not_cost_a_second_attempt(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    report = worker.next_report(run, outcome=failure(retry_after_ms=1000))
    worker.send(report)
    [again] = worker.send(report)
    assert not again.lost
    world.clock.advance(2)
    assert worker.claim_one().attempt == 2
    [stale] = worker.send(report)
    assert stale.lost
    assert world.reader.run(run.id).status is RunStatus.EXECUTING


def test_the_word_of_an_earlier_attempt_does_not_count(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.fail(run, retry_after_ms=0)
    second = worker.claim_one()
    reply = worker.report(run, Set("late", True), outcome=Outcome(output='"late"'))
    assert reply.lost
    assert world.document(run.id) == ({}, 0)
    assert world.reader.run(run.id).status is RunStatus.EXECUTING
    assert not worker.finish(second, output="2").lost


def test_the_word_of_another_worker_does_not_count(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = WorkerDouble(world, "worker_2")
    reply = other.report(run, Set("a", 1), outcome=Outcome(output="1"))
    assert reply.lost
    assert world.reader.run(run.id).status is RunStatus.EXECUTING
    assert world.document(run.id) == ({}, 0)


def test_reports_for_runs_that_nobody_holds_are_lost(world: World, worker: WorkerDouble) -> None:
    queued = world.trigger()
    replies = worker.send(
        RunReport(id=queued, attempt=0, sequence=1, changes=[TargetOperations(queued, [Set("a", 1)])]),
        RunReport(id=queued, attempt=1, sequence=1),
        RunReport(id="run_nobody", attempt=1, sequence=1),
    )
    assert [reply.id for reply in replies] == [queued, queued, "run_nobody"]
    assert all(reply.lost for reply in replies)
    assert world.document(queued) == ({}, 0)


def test_a_lost_run_does_not_touch_its_neighbours_in_the_report(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    lost = RunReport(id="run_nobody", attempt=1, sequence=1)
    replies = worker.send(lost, worker.next_report(run, Set("a", 1)))
    assert [reply.lost for reply in replies] == [True, False]
    assert world.document(run.id) == ({"a": 1}, 1)


def test_a_worker_that_is_not_registered_is_told_so_and_nothing_is_applied(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    report = worker.next_report(run, Set("a", 1))
    worker.send(leaving=True)
    [ticket] = world.submit(Report(worker.id, [report]))
    assert isinstance(ticket.result, NotFoundError)
    assert world.document(run.id) == ({}, 0)


def test_an_empty_report_is_a_heartbeat(world: World, worker: WorkerDouble) -> None:
    assert worker.send() == []


# --- outcomes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [None, "null", '{"ü":[1.5,true]}', '"' + "x" * 100_000 + '"'])
def test_success(world: World, worker: WorkerDouble, run: ClaimedRun, output: str | None) -> None:
    worker.finish(run, output=output)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.is_completed, shown.is_success, shown.is_failed) == (
        RunStatus.COMPLETED,
        True,
        True,
        False,
    )
    assert shown.finished_at is not None
    assert shown.error is None
    assert (None if shown.output is None else bytes(shown.output).decode()) == output
    result = world.reader.result(run.id)
    assert (result.ok, result.output, result.error) == (True, output, None)


def test_final_failure(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    worker.fail(run)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.is_completed, shown.is_success, shown.is_failed) == (
        RunStatus.FAILED,
        True,
        False,
        True,
    )
    assert (shown.error.message, shown.error.name) == ("out of ink", "ValueError")
    assert shown.output is None
    result = world.reader.result(run.id)
    assert (result.ok, result.output, result.error.message) == (False, None, "out of ink")


def test_a_run_without_an_end_has_no_result(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    assert world.reader.result(run.id) is None
    worker.fail(run, retry_after_ms=1)
    assert world.reader.result(run.id) is None


def test_the_last_operations_and_the_outcome_are_one_commit(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M38: whoever sees the end sees the last metadata, in the announcement too. Fault 4: they are applied once."""
    worker.report(run, Increment("n", 1))
    parent_change = TargetOperations(run.id, [Increment("n", 10)])
    worker.send(worker.next_report(run, changes=[parent_change], outcome=Outcome(output="1")))
    [changed] = world.announcements[-1].runs
    assert changed.state_changed
    assert changed.row.status is RunStatus.COMPLETED
    assert [step.version for step in changed.changes] == [2]
    assert changed.output == "1"
    assert world.document(run.id) == ({"n": 11}, 2)


def test_the_final_document_is_read_without_its_log(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.report(run, Set("a", 1))
    worker.finish(run, Set("b", 2))
    with world.store.write() as connection:
        connection.exec_driver_sql("DELETE FROM changes")
    assert world.document(run.id) == ({"a": 1, "b": 2}, 2)


def test_the_final_document_is_read_without_its_log_also_when_the_engine_had_forgotten_it(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.report(run, Set("a", 1))
    world.restart()
    worker.register(holding=[run.id])
    worker.finish(run)
    with world.store.write() as connection:
        connection.exec_driver_sql("DELETE FROM changes")
    assert world.document(run.id) == ({"a": 1}, 1)


def test_a_failed_attempt_is_tried_again_after_the_time_that_the_worker_says(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.fail(run, retry_after_ms=1500)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.attempt_count, shown.is_queued) == (RunStatus.QUEUED, 1, True)
    assert shown.error.message == "out of ink"
    assert shown.finished_at is None
    assert (shown.delayed_until - shown.updated_at).total_seconds() == 1.5
    world.clock.advance(1.4)
    assert worker.claim() == []
    world.clock.advance(0.1)
    second = worker.claim_one()
    assert (second.id, second.attempt) == (run.id, 2)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.attempt_count, shown.delayed_until) == (RunStatus.EXECUTING, 2, None)


def test_success_after_a_failed_attempt_shows_no_error(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.fail(run, retry_after_ms=0)
    worker.finish(worker.claim_one(), output=None)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.error) == (RunStatus.COMPLETED, None)
    assert world.reader.result(run.id).error is None


def test_the_reports_of_each_attempt_count_from_one(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    for _ in range(3):
        worker.report(run, Increment("n", 1))
    worker.fail(run, retry_after_ms=0)
    second = worker.claim_one()
    worker.report(second, Increment("n", 1))
    worker.finish(second, Increment("n", 1), output="1")
    assert world.document(run.id) == ({"n": 5}, 5)


@pytest.mark.parametrize("retry_after_ms", [2**40, 2**60, 2**70, -1])
def test_an_absurd_back_off_never_breaks_the_server(
    world: World, worker: WorkerDouble, run: ClaimedRun, retry_after_ms: int
) -> None:
    """It may be refused or taken; it may not be an error of the server, nor hold up the neighbours."""
    other = world.trigger()
    neighbour = worker.claim_one()
    assert neighbour.id == other
    reports = [
        worker.next_report(run, outcome=failure(retry_after_ms=retry_after_ms)),
        worker.next_report(neighbour, outcome=Outcome(output="1")),
    ]
    tickets = world.submit(*(Report(worker.id, [report]) for report in reports))
    assert world.reader.run(other).status is RunStatus.COMPLETED
    [reply] = result_of(tickets[0])
    assert reply.id == run.id


# --- waiting -----------------------------------------------------------------------------------------------


def test_a_run_waits_and_goes_on(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    worker.report(run, Set("a", 1), waiting=True)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.is_waiting, shown.is_executing) == (RunStatus.WAITING, True, False)
    assert world.document(run.id) == ({"a": 1}, 1)
    assert worker.claim() == []
    worker.report(run, waiting=False)
    assert world.reader.run(run.id).status is RunStatus.EXECUTING
    worker.report(run, waiting=True)
    assert not worker.finish(run, output="1").lost
    assert world.reader.run(run.id).status is RunStatus.COMPLETED


def test_saying_twice_that_a_run_waits_is_said_once(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.report(run, waiting=True, sequence=0)
    before = world.dump()
    worker.report(run, waiting=True, sequence=0)
    assert world.dump() == before
    assert world.announcements[-1].runs == []


# --- families ----------------------------------------------------------------------------------------------


def test_the_holder_of_the_parent_is_told_that_a_child_has_ended(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = WorkerDouble(world, "worker_2", offered("child"))
    child = world.trigger("child", parent_run_id=run.id)
    other.finish(other.claim_one(), output="1")
    [told] = world.announcements[-1].children_finished
    assert (told.holder, told.ids) == (worker.id, [child])


def test_the_holder_of_the_parent_is_told_of_a_batch_when_its_last_run_has_ended(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = WorkerDouble(world, "worker_2", offered("child"))
    triggered = world.trigger_batch(item("child"), item("child"), parent_id=run.id, resume_parent=True)
    first, second = other.claim(2)
    other.finish(first)
    assert world.announcements[-1].children_finished == []
    other.fail(second)
    [told] = world.announcements[-1].children_finished
    assert (told.holder, told.ids) == (worker.id, [triggered.batch_id])


def test_the_batch_is_told_to_its_own_parent_whichever_run_ends_last(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """An item may have another parent than the batch; who waits for the batch is the batch's."""
    other = WorkerDouble(world, "worker_2", offered("child"))
    bystander = world.trigger("child")
    assert other.claim_one().id == bystander
    triggered = world.trigger_batch(
        item("child"), item("child", parent_run_id=bystander), parent_id=run.id, resume_parent=True
    )
    for child in other.claim(2):
        other.finish(child)
    told = [(told.holder, told.ids) for told in world.announcements[-1].children_finished]
    assert (worker.id, [triggered.batch_id]) in told


def test_a_child_that_will_be_tried_again_has_not_ended(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = WorkerDouble(world, "worker_2", offered("child"))
    world.trigger("child", parent_run_id=run.id)
    other.fail(other.claim_one(), retry_after_ms=0)
    assert world.announcements[-1].children_finished == []


def test_replacing_everything_and_removing_are_reported_like_the_rest(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    reply = worker.report(run, Set("list", [1, 2, 1]), Remove("list", 1), Update({"n": 1}), Remove("n", 1))
    assert codes(reply.refused) == [(3, "wrong_metadata_type")]
    assert world.document(run.id) == ({"n": 1}, 1)
