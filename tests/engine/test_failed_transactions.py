"""For each kind of group, the 1st, 2nd, 3rd ... statement fails, once or for good, until none does.

What holds each time: nothing is half done, everybody is answered, and what the engine remembers agrees with the store.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from milepost.engine.commands import (
    AddBatchItems,
    AppendLog,
    Claim,
    Command,
    CreateBatch,
    RegisterWorker,
    ReleaseLostRuns,
    Report,
    Trigger,
    TriggerBatch,
    UpdateMetadata,
)
from milepost.errors import UnavailableError
from milepost.model.operations import Append, Increment, Set
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.protocol.triggering import BatchLine
from milepost.protocol.work import TargetOperations
from milepost.store.runs import RunFilter
from support.faults import faults
from support.world import Ticket, WorkerDouble, World, failure, item, offered, result_of

Check = Callable[[list[Any]], None]
Scenario = Callable[[World], tuple[list[Command], Check]]

STATEMENTS_MAX = 60
_ALL = RunFilter()
ONCE_MORE = RetryRule(max_attempts=9, min_delay_seconds=0, max_delay_seconds=0, jitter=False)


def fresh_worker(world: World, name: str = "worker_1") -> WorkerDouble:
    """A registered worker, with nothing of what went before in its hands or in the queue."""
    worker = WorkerDouble(world, name, offered("work", retry=ONCE_MORE))
    while runs := worker.claim(100):
        for run in runs:
            worker.finish(run)
    return worker


def triggers(world: World) -> tuple[list[Command], Check]:
    """Runs with tags, documents and a large payload; one request is refused."""
    fresh_worker(world)
    known = {run.id for run in world.reader.page(_ALL, size=100).data}

    def check(results: list[Any]) -> None:
        single, batch, refused = results
        assert type(refused).__name__ == "InvalidRequestError"
        new = [run.id for run in world.reader.page(_ALL, size=100).data if run.id not in known]
        assert sorted(new) == sorted([*single.run_ids, *batch.run_ids])
        assert world.reader.run(single.run_ids[0]).tags == ["a", "b"]
        assert len(bytes(world.reader.run(single.run_ids[0]).payload)) == 20_002
        assert world.reader.batch(batch.batch_id).runs == batch.run_ids
        assert world.document(batch.run_ids[1])[0] == {"a": 1}

    large = '"' + "x" * 20_000 + '"'
    request_id = f"request {world.clock()}"
    return [
        Trigger(item(payload=large, tags=["a", "b"]), request_id),
        TriggerBatch([item(), item(metadata={"a": 1})], request_id=request_id + " batch"),
        Trigger(item("")),
    ], check


def claims(world: World) -> tuple[list[Command], Check]:
    """Two workers claim what was there and what comes in the same group, one of them a document with it."""
    first, second = fresh_worker(world), fresh_worker(world, "worker_2")
    run_id = world.trigger(metadata={"n": 1})
    world.write(run_id, Increment("n", 1))

    def check(results: list[Any]) -> None:
        ours, triggered, theirs = results
        [run], [other] = ours, theirs
        assert (run.id, run.metadata_version) == (run_id, 1)
        assert [other.id] == triggered.run_ids
        for claimed in (run, other):
            shown = world.reader.run(claimed.id)
            assert (shown.status, shown.attempt_count, claimed.attempt) == ("EXECUTING", 1, 1)
        first.finish(run)
        second.finish(other)

    return [first.next_claim(1), Trigger(item()), second.next_claim(1)], check


def logs(world: World) -> tuple[list[Command], Check]:
    """Two parts of a log, one that comes twice, and one with more than there is room for."""
    worker = fresh_worker(world)
    world.trigger()
    world.trigger()
    run, other = worker.claim(2)
    first, second = worker.next_lines(run, "one", "two"), worker.next_lines(run, "three")
    large = worker.next_lines(other, "begin", *["x" * 30_000] * 150, "end")
    more = worker.next_lines(other, "more")

    def check(results: list[Any]) -> None:
        assert results == [None, None, None]
        assert world.log(run.id) == ["one", "two", "three"]
        [begin, *kept, notice] = world.log(other.id)
        assert (begin, set(kept)) == ("begin", {"x" * 30_000})
        assert notice.startswith(f"{150 - len(kept) + 2} lines of the log ")

    return [
        AppendLog(worker.id, [first, large]),
        AppendLog(worker.id, [first, more]),
        AppendLog(worker.id, [second]),
    ], check


def reports(world: World) -> tuple[list[Command], Check]:
    """Operations on two documents, a refused one, a large output, and a neighbour with a failed attempt."""
    worker = fresh_worker(world)
    root = world.trigger(metadata={"text": "abc", "n": 0})
    child, other = world.trigger(parent_run_id=root), world.trigger()
    above, run, neighbour = worker.claim(3)
    output = '"' + "o" * 20_000 + '"'
    report = worker.next_report(
        run,
        Set("a", 1),
        Increment("a", 1),
        changes=[TargetOperations(root, [Increment("n", 1), Increment("text", 1)])],
        outcome=Outcome(output=output),
    )
    also = worker.next_report(neighbour, Append("list", 1), outcome=failure(retry_after_ms=1000))
    own = worker.next_report(above, Increment("n", 1), waiting=True, metadata_version=0)

    def check(results: list[Any]) -> None:
        [first], [second, third] = results
        assert [(refusal.run, refusal.code) for refusal in first.refused] == [(root, "wrong_metadata_type")]
        assert world.document(root) == ({"text": "abc", "n": 2}, 2)
        assert world.document(child) == ({"a": 2}, 1)
        assert world.document(other) == ({"list": [1]}, 1)
        shown = world.reader.run(child)
        assert (shown.status, bytes(shown.output).decode()) == ("COMPLETED", output)
        lines = [line.message for line in world.reader.log(child, after=0).data]
        assert len(lines) == 1
        assert f"metadata of {root} was refused" in lines[0]
        assert world.reader.run(other).status == "QUEUED"
        assert world.reader.run(root).status == "WAITING"
        assert [reply.lost for reply in (first, second, third)] == [False] * 3
        [again] = worker.send(report)
        assert msgspec.to_builtins(again.refused) == msgspec.to_builtins(first.refused)
        worker.finish(above)
        world.clock.advance(2)

    return [Report(worker.id, [report]), Report(worker.id, [also, own])], check


def leaving(world: World) -> tuple[list[Command], Check]:
    """A worker's last report ends one run and gives another one up."""
    worker = fresh_worker(world)
    done, dropped = world.trigger_batch(item(), item()).run_ids
    run, _ = worker.claim(2)
    report = worker.next_report(run, Set("last", "word"), outcome=Outcome(output="1"))

    def check(results: list[Any]) -> None:
        [[reply]] = results
        assert not reply.lost
        assert world.reader.run(done).status == "COMPLETED"
        assert world.document(done) == ({"last": "word"}, 1)
        shown = world.reader.run(dropped)
        assert (shown.status, shown.attempt_count) == ("QUEUED", 1)

    return [Report(worker.id, [report], leaving=True)], check


def updates(world: World) -> tuple[list[Command], Check]:
    """Outside callers write to a family; one document outgrows its snapshot, one request has an id."""
    fresh_worker(world)
    root = world.trigger(metadata={"n": 0})
    child = world.trigger(parent_run_id=root)
    operations = msgspec.to_builtins([Increment("n", 1), Set("big", "x" * 30_000)])
    family = [("self", operations), ("parent", operations), ("root", operations)]
    command = UpdateMetadata(child, family, request_id=f"request {world.clock()}")

    def check(results: list[Any]) -> None:
        assert [result.version for result in results] == [1, 1, 3]
        assert world.document(root) == ({"n": 3, "big": "x" * 30_000}, 3)
        assert world.document(child) == ({"n": 1, "big": "x" * 30_000}, 1)

    return [command, command, UpdateMetadata(root, [("self", operations[:1])])], check


def registering(world: World) -> tuple[list[Command], Check]:
    """A worker comes back without a run whose claim got lost, and another one takes it in the same group."""
    worker, other = fresh_worker(world), fresh_worker(world, "worker_2")
    run_id = world.trigger()
    worker.claim_one()

    def check(results: list[Any]) -> None:
        [run] = results[1]
        assert (run.id, run.attempt, run.charged) == (run_id, 2, 0)
        other.finish(run)

    new_task = offered(f"task of {world.clock()}")
    return [RegisterWorker(worker.id, "again", [*worker.tasks, new_task], []), other.next_claim(1)], check


def batches_in_two_phases(world: World) -> tuple[list[Command], Check]:
    """Announcing one batch, filling another one with items that come twice."""
    fresh_worker(world)
    batch_id = world.do(CreateBatch(3))
    world.do(AddBatchItems(batch_id, [BatchLine(0, "work")]))

    def check(results: list[Any]) -> None:
        announced, added = results
        assert world.reader.batch(announced).run_count == 2
        assert (added.accepted, added.deduplicated, added.accepted_count) == (2, 1, 3)
        assert len(world.reader.batch(batch_id).runs) == 3

    return [
        CreateBatch(2),
        AddBatchItems(batch_id, [BatchLine(number, "work") for number in range(3)]),
    ], check


def ends_of_a_batch(world: World) -> tuple[list[Command], Check]:
    """The last runs of a batch end, and the holder of the parent is to be told."""
    worker = fresh_worker(world)
    parent = world.trigger()
    holding = worker.claim_one()
    triggered = world.trigger_batch(item(), item(), parent_id=parent)
    runs = worker.claim(2)
    commands = [Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))]) for run in runs]

    def check(results: list[Any]) -> None:
        assert not any(reply.lost for [reply] in results)
        assert world.reader.batch(triggered.batch_id).finished_count == 2
        assert world.reader.batch(triggered.batch_id).status == "COMPLETED"
        worker.finish(holding)

    return list(commands), check


def losses(world: World) -> tuple[list[Command], Check]:
    """The lease of one worker is over, and another one takes its run in the same group."""
    worker = fresh_worker(world)
    run_id = world.trigger()
    worker.report(worker.claim_one(), Set("a", 1))
    for _ in range(5):
        world.clock.advance(5.9)
        world.do(ReleaseLostRuns())
    world.clock.advance(1)
    other = WorkerDouble(world, "worker_2", *worker.tasks)

    def check(results: list[Any]) -> None:
        lost, [run] = results
        assert lost == 1
        assert (run.id, run.attempt, run.metadata_version) == (run_id, 2, 1)
        other.finish(run)

    return [ReleaseLostRuns(), other.next_claim(1)], check


SCENARIOS: list[Scenario] = [
    triggers,
    claims,
    reports,
    logs,
    leaving,
    updates,
    registering,
    batches_in_two_phases,
    ends_of_a_batch,
    losses,
]
scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)


def agree(world: World) -> None:
    """What the engine remembers of every document is what the store has."""
    for run in world.reader.page(_ALL, size=100).data:
        assert world.written_answer(run.id) == world.document(run.id)


def refused_for_now(tickets: list[Ticket]) -> bool:
    return any(isinstance(ticket.result, UnavailableError) for ticket in tickets)


@scenarios
def test_a_statement_that_fails_once_is_not_noticed(world: World, scenario: Scenario) -> None:
    for number in range(1, STATEMENTS_MAX):
        commands, check = scenario(world)
        with faults(world.store, lambda seen, _, number=number: seen == number) as found:
            tickets = world.submit(*commands)
        check([ticket.result for ticket in tickets])
        agree(world)
        if not found.failed:
            return
    raise AssertionError("the group never got through")


@scenarios
def test_a_statement_that_keeps_failing_leaves_nothing_half_done(world: World, scenario: Scenario) -> None:
    """Everybody is told that the database is unavailable, nothing has changed, and the same commands succeed later."""
    commands, check = scenario(world)
    for number in range(1, STATEMENTS_MAX):
        before = world.dump()
        with faults(world.store, lambda seen, _, number=number: seen >= number) as found:
            tickets = world.submit(*commands)
        if not found.failed:
            check([ticket.result for ticket in tickets])
            agree(world)
            return
        for ticket in tickets:
            assert isinstance(ticket.result, UnavailableError), ticket.result
            assert "try again" in str(ticket.result)
        assert world.dump() == before
    raise AssertionError("the group never got through")


@scenarios
def test_commands_succeed_after_the_database_was_away(world: World, scenario: Scenario) -> None:
    """Nothing that the engine did in vain may stand in the way of the second try."""
    for number in range(1, STATEMENTS_MAX):
        commands, check = scenario(world)
        with faults(world.store, lambda seen, _, number=number: seen >= number) as found:
            world.submit(*commands)
        tickets = world.submit(*commands)
        if not found.failed:
            return
        check([ticket.result for ticket in tickets])
        agree(world)
    raise AssertionError("the group never got through")


def test_only_the_command_that_cannot_be_carried_out_is_refused(world: World) -> None:
    """Its neighbours are carried out and answered; a claim among them gets its run."""
    worker = fresh_worker(world)
    first, second = world.trigger_batch(item(), item()).run_ids
    runs = worker.claim(2)
    queued = world.trigger()
    good = worker.next_report(runs[0], Set("a", 1), outcome=Outcome(output="1"))
    # Only this one has something to keep of what was refused.
    bad = worker.next_report(runs[1], Set("a", "text"), Increment("a", 1))
    commands: list[Command] = [
        Report(worker.id, [good]),
        Report(worker.id, [bad]),
        UpdateMetadata(queued, [("self", [{"type": "set", "key": "b", "value": 1}])]),
        worker.next_claim(1),
        Trigger(item()),
    ]
    with faults(world.store, lambda _, statement: "INSERT INTO refusals" in statement):
        before = len(world.announcements)
        tickets = world.submit(*commands)
    assert isinstance(tickets[1].result, UnavailableError)
    assert [refused_for_now([ticket]) for ticket in tickets] == [False, True, False, False, False]
    assert world.reader.run(first).status == "COMPLETED"
    assert world.document(first) == ({"a": 1}, 1)
    assert world.document(second) == ({}, 0)
    assert world.document(queued) == ({"b": 1}, 1)
    [claimed] = result_of(tickets[3])
    assert claimed.id == queued
    told = {changed.row.id for announcement in world.announcements[before:] for changed in announcement.runs}
    assert told >= {first, queued}
    assert second not in told
    agree(world)
    assert not worker.send(bad)[0].lost
    assert world.document(second) == ({"a": "text"}, 1)


def test_the_end_of_a_run_is_a_snapshot_also_when_the_first_try_failed(world: World) -> None:
    """What the failed try folded in memory was not saved: readers want the final document without its log."""
    worker = fresh_worker(world)
    world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("a", 1))
    report = Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))])
    with faults(world.store, lambda _, statement: statement == "COMMIT"):
        world.submit(report)
    world.do(report)
    with world.store.write() as connection:
        connection.exec_driver_sql("DELETE FROM changes")
    assert world.document(run.id) == ({"a": 1}, 1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_that_fails_is_tried_again_at_once(world: World, times: int) -> None:
    """The transaction that could not be committed does not stay open and keep the next one out."""
    worker = fresh_worker(world)
    run_id = world.trigger()
    run = worker.claim_one()
    report = worker.next_report(run, Increment("n", 1))
    commits: list[str] = []

    def fails(_: int, statement: str) -> bool:
        commits.extend([statement] * (statement == "COMMIT"))
        return statement == "COMMIT" and len(commits) <= times

    with faults(world.store, fails):
        [ticket] = world.submit(Report(worker.id, [report]))
    assert isinstance(ticket.result, UnavailableError) == (times == 2)
    assert world.document(run_id) == (({"n": 1}, 1) if times == 1 else ({}, 0))
    assert not worker.send(report)[0].lost
    assert world.document(run_id) == ({"n": 1}, 1)


def test_a_claim_that_waits_outlives_a_command_that_failed(world: World) -> None:
    worker = fresh_worker(world)
    [waiting] = world.submit(worker.next_claim(1, wait=60))
    with faults(world.store, lambda *_: True):
        world.submit(CreateBatch(1))
    assert not waiting.is_answered
    run_id = world.trigger()
    assert [run.id for run in result_of(waiting)] == [run_id]


@pytest.mark.parametrize("reason", ["its time is over", "a run is due"])
def test_a_claim_does_not_keep_the_engine_busy_while_the_database_is_away(world: World, reason: str) -> None:
    """Otherwise whoever asks when to wake up next is told `now`, again and again."""
    worker = fresh_worker(world)
    if reason == "a run is due":
        world.trigger()
        worker.fail(worker.claim_one(), retry_after_ms=1000)
    [waiting] = world.submit(worker.next_claim(1, wait=1 if reason == "its time is over" else 60))
    world.clock.advance(2)
    with faults(world.store, lambda *_: True):
        world.submit()
    wake_at = world.engine.wake_at()
    assert waiting.is_answered or (wake_at is not None and wake_at > world.clock())


def test_a_claim_in_a_group_that_fails_hands_out_nothing(world: World) -> None:
    worker = fresh_worker(world)
    run_id = world.trigger()
    claim = worker.next_claim(1)
    with faults(world.store, lambda _, statement: statement == "COMMIT"):
        [ticket] = world.submit(claim)
    assert isinstance(ticket.result, UnavailableError)
    [run] = world.do(Claim(claim.worker_id, claim.sequence, 1, 0))
    assert (run.id, run.attempt) == (run_id, 1)
