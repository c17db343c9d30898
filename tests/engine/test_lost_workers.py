"""Workers come, leave, are lost and come back; their runs are neither lost nor run twice at once."""

import pytest

from milepost.engine.commands import Claim, Command, RegisterWorker, ReleaseLostRuns, Report, Trigger
from milepost.errors import NotFoundError
from milepost.model.operations import Append, Increment, Set
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.work import RunReport
from support.world import WorkerDouble, World, item, offered, result_of

pytestmark = pytest.mark.several_servers(postgres=True)

TWICE = RetryRule(max_attempts=2, min_delay_seconds=1, max_delay_seconds=1, jitter=False)


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    """A worker whose task has two attempts, one second apart."""
    return WorkerDouble(world, "worker_1", offered("work", retry=TWICE))


def status(world: World, run_id: str) -> tuple[RunStatus, int]:
    run = world.reader.run(run_id)
    return run.status, run.attempt_count


def test_a_silent_worker_loses_its_runs_after_the_lease(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("a", 1))
    for _ in range(5):
        world.clock.advance(5.9)
        assert world.do(ReleaseLostRuns()) == 0
    assert status(world, run_id) == (RunStatus.EXECUTING, 1)
    world.clock.advance(0.6)
    assert world.do(ReleaseLostRuns()) == 1
    assert status(world, run_id) == (RunStatus.QUEUED, 1)
    assert world.reader.run(run_id).error.name == "WorkerLostError"
    assert world.do(ReleaseLostRuns()) == 0
    assert world.document(run_id) == ({"a": 1}, 1)


def test_the_tasks_own_rule_decides_what_follows(world: World, worker: WorkerDouble) -> None:
    """The second loss is the last attempt's; a run's own limit wins over the task's."""
    twice, once = world.trigger(), world.trigger(max_attempts=1)
    worker.begin(*worker.claim(2))
    assert world.pass_lease() == 2
    assert status(world, once) == (RunStatus.CRASHED, 1)
    assert status(world, twice) == (RunStatus.QUEUED, 1)
    worker.register()
    world.clock.advance(1)
    run = worker.claim_one()
    assert (run.attempt, run.charged) == (2, 1)
    worker.begin(run)
    world.pass_lease()
    assert status(world, twice) == (RunStatus.CRASHED, 2)
    assert world.reader.result(twice).error.name == "WorkerLostError"


def test_a_run_of_a_lost_worker_that_waits_is_given_up_too(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.report(worker.claim_one(), waiting=True)
    assert world.pass_lease() == 1
    assert status(world, run_id) == (RunStatus.QUEUED, 1)


def test_heartbeats_and_claims_keep_the_lease(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.claim_one()
    for number in range(6):
        world.clock.advance(20)
        if number % 2:
            worker.send()
        else:
            worker.claim(0)
        assert world.do(ReleaseLostRuns()) == 0
    assert status(world, run_id) == (RunStatus.EXECUTING, 1)


def test_a_worker_that_comes_back_too_late_hears_that_its_run_is_lost(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    world.pass_lease()
    late = worker.next_report(run, Set("late", 1), outcome=Outcome(output="1"))
    worker.register(holding=[run_id])
    [reply] = worker.send(late)
    assert reply.lost
    assert status(world, run_id) == (RunStatus.QUEUED, 1)
    assert world.document(run_id) == ({}, 0)


def test_a_lost_report_that_had_arrived_is_answered_like_the_original(
    world: World, worker: WorkerDouble
) -> None:
    """The worker was given up after its report was committed and before its answer arrived."""
    run_id = world.trigger()
    report = worker.next_report(worker.claim_one(), Append("list", 1))
    worker.send(report)
    world.pass_lease()
    worker.register(holding=[run_id])
    worker.send(report)
    assert world.document(run_id) == ({"list": [1]}, 1)


def test_after_a_restart_workers_have_one_lease_to_come_back(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    world.clock.advance(3600)
    world.restart()
    assert world.do(ReleaseLostRuns()) == 0
    world.clock.advance(29)
    assert world.do(ReleaseLostRuns()) == 0
    worker.register(holding=[run_id])
    world.clock.advance(5)
    assert world.do(ReleaseLostRuns()) == 0
    assert not worker.finish(run, output="1").lost
    assert status(world, run_id) == (RunStatus.COMPLETED, 1)


def test_after_a_restart_the_runs_of_workers_that_stay_away_are_given_up(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    worker.claim_one()
    world.restart()
    assert world.pass_lease() == 1
    assert status(world, run_id) == (RunStatus.QUEUED, 1)


def test_a_worker_that_leaves_gives_its_runs_up_at_once(world: World, worker: WorkerDouble) -> None:
    first, second = world.trigger_batch(item(), item()).run_ids
    done, dropped = worker.claim(2)
    worker.send(worker.next_report(done, Set("a", 1), outcome=Outcome(output="1")), leaving=True)
    assert (done.id, dropped.id) == (first, second)
    assert status(world, first) == (RunStatus.COMPLETED, 1)
    assert world.document(first) == ({"a": 1}, 1)
    assert status(world, second) == (RunStatus.QUEUED, 1)


def test_a_worker_that_leaves_a_server_that_has_started_anew_gives_its_runs_up_at_once(
    world: World, worker: WorkerDouble
) -> None:
    """A supervisor says it for an executor that died, which cannot register any more."""
    run_id = world.trigger()
    worker.report(worker.claim_one(), Set("a", 1))
    world.restart()
    assert worker.send(leaving=True) == []
    assert status(world, run_id) == (RunStatus.QUEUED, 1)
    assert world.document(run_id) == ({"a": 1}, 1)


@pytest.mark.parametrize("parked", [False, True], ids=["a new claim", "a claim that waits"])
def test_a_worker_that_leaves_gets_no_run_in_the_same_group(
    world: World, worker: WorkerDouble, parked: bool
) -> None:
    """A long poll of a worker that has gone may still be open: its run would have to be given up as lost."""
    claim = worker.next_claim(1, wait=60)
    if parked:
        world.submit(claim)
    commands: list[Command] = [Report(worker.id, [], leaving=True), Trigger(item())]
    if not parked:
        commands.append(claim)
    tickets = world.submit(*commands)
    [run_id] = result_of(tickets[1]).run_ids
    assert status(world, run_id) == (RunStatus.QUEUED, 0)


def test_nothing_counts_that_comes_behind_the_last_word_of_a_worker(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    last, late = (
        Report(worker.id, [], leaving=True),
        Report(worker.id, [worker.next_report(run, Set("a", 1))]),
    )
    _, ticket = world.submit(last, late)
    assert isinstance(ticket.result, NotFoundError) or ticket.result[0].lost
    assert world.document(run_id) == ({}, 0)


def test_registering_again_queues_what_the_worker_does_not_know_of(
    world: World, worker: WorkerDouble
) -> None:
    """The answer of a claim got lost: its attempt never began and costs nothing; another worker may have the run."""
    kept, unknown = world.trigger_batch(item(), item()).run_ids
    run, lost = worker.claim(2)
    assert (run.id, lost.id) == (kept, unknown)
    worker.register(holding=[kept])
    assert status(world, kept) == (RunStatus.EXECUTING, 1)
    assert status(world, unknown) == (RunStatus.QUEUED, 1)
    other = WorkerDouble(world, "worker_2", *worker.tasks)
    again = other.claim_one()
    assert (again.id, again.attempt, again.charged, again.has_begun) == (unknown, 2, 0, False)
    assert not other.finish(again, output="1").lost
    assert not worker.finish(run, output="1").lost


def test_registering_twice_in_one_group_takes_back_each_run_once(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.claim_one()
    again = RegisterWorker(worker.id, worker.id, worker.tasks, [])
    world.submit(again, again)
    assert status(world, run_id) == (RunStatus.QUEUED, 1)
    again = worker.claim_one()
    assert (again.attempt, again.charged) == (2, 0)


def test_an_attempt_that_has_reported_is_not_handed_out_under_the_same_number(
    world: World, worker: WorkerDouble
) -> None:
    """M44: (run, attempt, sequence) means one report. The worker forgets a run about which it had reported."""
    world.trigger(max_attempts=2)
    first = worker.claim_one()
    worker.report(first, Set("text", "a"), Increment("text", 1))
    worker.register(holding=[])
    # The attempt has begun, so the task's own rule says when the next one comes.
    world.clock.advance(60)
    other = WorkerDouble(world, "worker_2", *worker.tasks)
    second = other.claim_one()
    assert (second.id, second.attempt) == (first.id, 2)
    reply = other.report(second, Increment("text", 1), Set("n", 1))
    assert [refusal.index for refusal in reply.refused] == [0]
    assert world.document(first.id) == ({"text": "a", "n": 1}, 2)


def test_what_registering_queues_again_goes_to_a_claim_that_waits(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.claim_one()
    other = WorkerDouble(world, "worker_2", *worker.tasks)
    [waiting] = world.submit(other.next_claim(wait=60))
    worker.register()
    assert [run.id for run in result_of(waiting)] == [run_id]


def test_registering_twice_is_registering_once(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    worker.register(holding=[run_id, "run_nobody"])
    worker.register(holding=[run_id])
    assert not worker.report(run, Set("a", 1)).lost
    assert status(world, run_id) == (RunStatus.EXECUTING, 1)


def test_a_worker_may_change_its_tasks_when_it_registers_again(world: World, worker: WorkerDouble) -> None:
    world.do(RegisterWorker(worker.id, "reloaded", [offered("other", queue="q")], []))
    world.trigger("work")
    other = world.trigger("other")
    assert world.reader.run(other).queue == "q"
    assert [run.id for run in worker.claim(5)] == [other]


def test_a_lost_child_tells_the_holder_of_its_parent(world: World, worker: WorkerDouble) -> None:
    parent = world.trigger()
    worker.claim_one()
    other = WorkerDouble(world, "worker_2", offered("child"))
    child = world.trigger("child", parent_run_id=parent)
    other.begin(other.claim_one())
    for _ in range(5):
        world.clock.advance(6.1)
        world.submit(Report(worker.id, []), ReleaseLostRuns())
    told = [(told.holder, told.ids) for told in world.announcements[-1].children_finished]
    assert told == [(worker.id, [child])]
    assert status(world, child) == (RunStatus.CRASHED, 1)


def test_a_report_and_the_loss_of_its_worker_in_one_group(world: World, worker: WorkerDouble) -> None:
    """The report comes first: the worker has been seen, and nothing is given up."""
    run_id = world.trigger()
    run = worker.claim_one()
    for _ in range(5):
        world.clock.advance(5.9)
        world.do(ReleaseLostRuns())
    world.clock.advance(1)
    report = worker.next_report(run, outcome=Outcome(output="1"))
    lost, reported = world.submit(ReleaseLostRuns(), Report(worker.id, [report]))
    assert result_of(lost) == 0
    assert not result_of(reported)[0].lost
    assert status(world, run_id) == (RunStatus.COMPLETED, 1)


# --- what arrives late -------------------------------------------------------------------------------------


def test_a_claim_that_arrives_behind_a_newer_one_is_granted_nothing(
    world: World, worker: WorkerDouble
) -> None:
    early, late = worker.next_claim(wait=60), worker.next_claim(wait=60)
    world.submit(late)
    assert world.do(early) == []
    run_id = world.trigger()
    assert [run.id for run in world.do(late)] == [run_id]


def test_a_claim_that_was_answered_with_nothing_stays_answered(world: World, worker: WorkerDouble) -> None:
    """The network may deliver it again, and then nobody hears what it brings."""
    claim = worker.next_claim()
    assert world.do(claim) == []
    run_id = world.trigger()
    assert world.do(claim) == []
    assert [run.id for run in worker.claim()] == [run_id]


def test_a_claim_that_arrives_twice_is_answered_twice(world: World, worker: WorkerDouble) -> None:
    claim = worker.next_claim(wait=60)
    [first] = world.submit(claim)
    [second] = world.submit(claim)
    run_id = world.trigger()
    assert [[run.id for run in ticket.result] for ticket in (first, second)] == [[run_id], [run_id]]


def test_a_registration_that_arrives_behind_a_newer_one_takes_nothing_back(world: World) -> None:
    tasks = [offered("work")]
    early = RegisterWorker("worker_1", "w", tasks, [], sequence=1)
    world.do(early)
    run_id = world.trigger()
    [run] = world.do(Claim("worker_1", 1, 1, 0))
    world.do(RegisterWorker("worker_1", "w", tasks, [run_id], [run.attempt], sequence=2, claims=1))
    world.do(early)
    [reply] = world.do(Report("worker_1", [RunReport(id=run.id, attempt=run.attempt, sequence=1)]))
    assert not reply.lost


def test_the_next_attempt_of_a_run_that_a_worker_believes_to_hold_is_queued_again(
    world: World, worker: WorkerDouble
) -> None:
    """The answers to the end of the first attempt and to the claim that brought the second one were lost with the server."""
    run_id = world.trigger(max_attempts=3)
    run = worker.claim_one()
    worker.fail(run, retry_after_ms=0)
    assert worker.claim_one().attempt == 2
    world.restart()
    world.do(RegisterWorker(worker.id, "w", worker.tasks, [run_id], [1], sequence=2, claims=2))
    again = worker.claim_one()
    assert (again.attempt, again.charged, again.has_begun) == (3, 1, True)
