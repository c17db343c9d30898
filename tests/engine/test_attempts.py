"""Attempts are true: each has a number of its own, and one that is charged has a cause."""

import msgspec
import pytest

from milepost.engine.commands import RegisterWorker, ReleaseLostRuns
from milepost.errors import ConflictError, NotFoundError
from milepost.model.lifecycle import LIFECYCLE, UNCHARGED_MAX, Move, next_status
from milepost.model.operations import Set
from milepost.model.retry import RetryRule
from milepost.model.run import RunError, RunStatus
from milepost.protocol.work import ClaimedRun, RunReport
from milepost.store.attempts import AttemptRow, load_attempts
from milepost.store.runs import load_rows
from support.world import START, WorkerDouble, World, item, offered, result_of

pytestmark = pytest.mark.several_servers

TWICE = RetryRule(max_attempts=2, min_delay_seconds=0, max_delay_seconds=0, jitter=False)


def attempts(world: World, run_id: str) -> list[AttemptRow]:
    with world.store.read() as connection:
        return load_attempts(connection, run_id)


def ends(world: World, run_id: str) -> list[str]:
    return [attempt.end for attempt in attempts(world, run_id)]


def error_of(attempt: AttemptRow) -> RunError:
    assert attempt.error is not None
    return msgspec.json.decode(attempt.error, type=RunError)


def status(world: World, run_id: str) -> RunStatus:
    return world.reader.run(run_id).status


def next_worker(world: World, name: str) -> WorkerDouble:
    return WorkerDouble(world, name, offered("work", retry=TWICE))


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    return next_worker(world, "worker_1")


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    """The only attempt that its rule allows."""
    world.trigger(max_attempts=1)
    return worker.claim_one()


def test_the_rule_of_a_trigger_takes_the_place_of_the_tasks(world: World, worker: WorkerDouble) -> None:
    rule = RetryRule(max_attempts=4, min_delay_seconds=0, max_delay_seconds=0, jitter=False)
    run_id = world.trigger(retry=rule)
    for number in range(1, 5):
        following = next_worker(world, f"following_{number}")
        run = following.claim_one()
        assert (run.id, run.retry) == (run_id, rule)
        following.die(run)
    assert ends(world, run_id) == ["crashed"] * 4
    assert status(world, run_id) is RunStatus.CRASHED
    other = world.trigger(retry=rule, max_attempts=1)
    worker.die(worker.claim_one())
    assert status(world, other) is RunStatus.CRASHED


def test_the_errors_of_earlier_attempts_stay(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(max_attempts=3)
    worker.fail(worker.claim_one(), retry_after_ms=0)
    worker.finish(worker.claim_one())
    [first] = attempts(world, run_id)
    assert (first.number, first.end, first.worker_id) == (1, "raised", worker.id)
    assert error_of(first).message == "out of ink"
    assert first.claimed_at is not None
    assert first.begun_at is not None
    assert first.claimed_at < first.begun_at <= first.ended_at
    assert status(world, run_id) is RunStatus.COMPLETED


def test_a_run_that_never_began_is_not_charged(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    assert world.pass_lease() == 1
    assert ends(world, run.id) == ["never_begun"]
    again = next_worker(world, "worker_2").claim_one()
    assert (again.attempt, again.charged, again.has_begun) == (2, 0, False)


def test_a_run_that_is_handed_back_is_not_charged(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.begin(run)
    worker.send(leaving=True)
    assert ends(world, run.id) == ["handed_back"]
    again = next_worker(world, "worker_2").claim_one()
    assert (again.attempt, again.charged, again.has_begun) == (2, 0, True)


def test_a_run_that_was_lost_after_it_had_begun_is_charged(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.begin(run)
    world.pass_lease()
    assert status(world, run.id) is RunStatus.CRASHED
    [ended] = attempts(world, run.id)
    assert (ended.end, error_of(ended).name) == ("lost", "WorkerLostError")


def test_a_run_alone_in_a_process_that_dies_is_charged_and_told_how(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.die(run, how="ended with exit code 4")
    assert status(world, run.id) is RunStatus.CRASHED
    error = world.reader.run(run.id).error
    assert error.name == "ProcessDiedError"
    assert error.message == "the process of attempt 1 ended with exit code 4 while its code ran"


def test_who_only_waited_in_a_process_that_dies_is_not_suspected(world: World, worker: WorkerDouble) -> None:
    waiting, killer, unborn = world.trigger_batch(*[item(max_attempts=1)] * 3).run_ids
    runs = worker.claim(3)
    worker.report(runs[0], waiting=True)
    worker.die(runs[1], waiting=[runs[0]])
    assert [ends(world, run_id) for run_id in (waiting, killer, unborn)] == [
        ["waiting"],
        ["beside"],
        ["never_begun"],
    ]
    following = next_worker(world, "worker_2")
    # The one that executed is tried apart, and charged if it does so again beside one that waits.
    [apart] = following.claim(5)
    assert (apart.id, apart.is_apart) == (killer, True)
    others = following.claim(5)
    assert [run.is_apart for run in others] == [False, False]
    following.report(others[0], waiting=True)
    following.die(apart, waiting=[others[0]])
    assert ends(world, killer) == ["beside", "crashed"]
    assert ends(world, others[0].id)[-1] == "waiting"


def test_who_was_given_up_and_went_on_is_a_suspect_too(world: World, worker: WorkerDouble) -> None:
    """The server has given the run to another worker, and its old code still executes when the process dies."""
    given_up, innocent = world.trigger_batch(*[item(max_attempts=1)] * 2).run_ids
    runs = worker.claim(2)
    worker.register(holding=[innocent])
    worker.die(*runs)
    assert ends(world, innocent) == ["beside"]
    assert ends(world, given_up) == ["never_begun"]


def test_a_run_that_only_waited_is_charged_when_it_was_apart(world: World, worker: WorkerDouble) -> None:
    """Or one that ends its process while it waits would come back for ever."""
    run_id = world.trigger(max_attempts=1)
    for number, end in enumerate((*["waiting"] * (UNCHARGED_MAX - 1), "beside", "crashed")):
        following = next_worker(world, f"worker_{number}")
        run = following.claim_one()
        following.report(run, waiting=True)
        following.die(waiting=[run])
        assert ends(world, run_id)[-1] == end
    assert status(world, run_id) is RunStatus.CRASHED


def test_a_run_that_is_apart_and_had_not_come_to_its_code_is_not_charged(
    world: World, worker: WorkerDouble
) -> None:
    """It says that it begins before it does, and the process may die in between."""
    run_ids = world.trigger_batch(*[item(max_attempts=1)] * 2).run_ids
    worker.die(*worker.claim(2))
    following = next_worker(world, "worker_2")
    [apart] = following.claim(2)
    assert apart.is_apart
    following.begin(apart)
    following.die()
    assert ends(world, apart.id) == ["beside", "never_begun"]
    assert apart.id in run_ids
    assert status(world, apart.id) is RunStatus.QUEUED


def test_a_run_that_is_apart_and_whose_worker_gave_it_up_before_its_code_is_not_charged(
    world: World, worker: WorkerDouble
) -> None:
    """The worker was past its lease by its own clock before it had the answer, so it begins nothing, and presents itself anew."""
    world.trigger_batch(*[item(max_attempts=1)] * 2)
    worker.die(*worker.claim(2))
    following = next_worker(world, "worker_2")
    [apart] = following.claim(2)
    following.begin(apart)
    following.register(holding=[])
    assert ends(world, apart.id) == ["beside", "never_begun"]
    assert status(world, apart.id) is RunStatus.QUEUED


@pytest.mark.parametrize(
    "has_said", [{"waiting": True}, {"changes": True}], ids=["that it waits", "what it writes"]
)
@pytest.mark.parametrize(("how", "end"), [("die", "crashed"), ("register", "lost")])
def test_a_run_that_is_apart_and_has_said_more_than_that_it_begins_has_begun(
    world: World, worker: WorkerDouble, has_said: dict[str, bool], how: str, end: str
) -> None:
    """Also where its process, or what is left of it, does not know of it any more."""
    world.trigger_batch(*[item(max_attempts=2)] * 2)
    worker.die(*worker.claim(2))
    following = next_worker(world, "worker_2")
    [apart] = following.claim(2)
    following.begin(apart)
    if has_said.get("waiting"):
        following.send(RunReport(id=apart.id, attempt=apart.attempt, waiting=True))
        assert status(world, apart.id) is RunStatus.WAITING
    else:
        following.report(apart, Set("row", 1))
    if how == "die":
        following.die()
    else:
        following.register(holding=[])
    assert ends(world, apart.id) == ["beside", end]


def test_suspects_are_tried_again_apart_and_the_one_that_kills_is_found(
    world: World, worker: WorkerDouble
) -> None:
    """Six runs with one attempt each: five complete, and the one that kills fails with its cause."""
    run_ids = world.trigger_batch(*[item(max_attempts=1)] * 6).run_ids
    killer = run_ids[3]
    worker.die(*worker.claim(6))
    assert {end for run_id in run_ids for end in ends(world, run_id)} == {"beside"}
    normal = world.trigger()
    for number in range(20):
        following = next_worker(world, f"worker_{number + 2}")
        while runs := following.claim(5):
            if runs[0].is_apart:
                assert [run.is_apart for run in runs] == [True], "nothing comes with it"
            following.begin(*runs)
            if runs[0].id == killer:
                following.die(*runs)
                break
            for run in runs:
                following.finish(run)
        else:
            break
    assert status(world, killer) is RunStatus.CRASHED
    assert ends(world, killer) == ["beside", "crashed"]
    for run_id in (*run_ids, normal):
        if run_id != killer:
            assert status(world, run_id) is RunStatus.COMPLETED


def test_a_busy_worker_gets_a_suspect_only_when_nobody_is_idle_for_long(
    world: World, worker: WorkerDouble
) -> None:
    first, second = world.trigger_batch(item(), item()).run_ids
    worker.die(*worker.claim(2))
    busy = next_worker(world, "worker_2")
    [apart] = busy.claim(5)
    assert apart.id == first
    assert busy.claim(5) == []
    world.trigger()
    assert [run.is_apart for run in busy.claim(5)] == [False]
    world.clock.advance(11)
    assert [(run.id, run.is_apart) for run in busy.claim(5)] == [(second, True)]


def test_a_run_whose_machine_vanishes_before_anything_is_heard_is_found_in_the_end(world: World) -> None:
    """It takes its worker and the supervisor along before the first report."""
    run_id = world.trigger(max_attempts=1)
    for number in range(UNCHARGED_MAX):
        worker = next_worker(world, f"worker_{number}")
        assert not worker.claim_one().is_apart
        world.pass_lease()
    worker = next_worker(world, "worker_last")
    run = worker.claim_one()
    assert run.is_apart
    # A worker begins with a run that is apart only when this was answered.
    worker.begin(run)
    world.pass_lease()
    assert status(world, run_id) is RunStatus.CRASHED
    assert ends(world, run_id) == [*["never_begun"] * UNCHARGED_MAX, "lost"]


def test_the_word_of_a_supervisor_may_come_twice_and_late(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    worker.die(run)
    worker.die(run)
    following = next_worker(world, "worker_2")
    again = following.claim_one()
    worker.die(run)
    assert (again.attempt, again.charged) == (2, 1)
    assert not following.finish(again).lost
    assert ends(world, run_id) == ["crashed"]


def test_a_supervisor_that_speaks_of_attempts_that_never_were_changes_nothing(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    other = next_worker(world, "worker_2")
    other.die(run)
    later = msgspec.structs.replace(run, attempt=7)
    [reply] = worker.begin(later)
    assert reply.lost
    assert status(world, run.id) is RunStatus.EXECUTING
    assert not worker.finish(run).lost


def test_a_server_that_was_frozen_gives_nobody_up(world: World, worker: WorkerDouble) -> None:
    """Nobody could have been heard meanwhile, so all leases begin anew."""
    runs = [worker.claim_one() for _ in range(5) if world.trigger()]
    worker.begin(*runs)
    world.do(ReleaseLostRuns())
    world.clock.advance(3600)
    assert world.do(ReleaseLostRuns()) == 0
    world.clock.advance(5)
    assert world.do(ReleaseLostRuns()) == 0
    assert not any(worker.finish(run).lost for run in runs)


def test_a_restarted_server_knows_its_workers_and_answers_a_claim_as_before(
    world: World, worker: WorkerDouble
) -> None:
    world.trigger()
    claim = worker.next_claim(5)
    [run] = world.do(claim)
    world.trigger()
    world.restart()
    assert [(again.id, again.attempt) for again in world.do(claim)] == [(run.id, 1)]
    assert not worker.finish(run).lost
    assert len(worker.claim(5)) == 1


def test_a_restarted_server_gives_a_worker_nothing_before_it_has_registered_again(
    world: World, worker: WorkerDouble
) -> None:
    """It does not know which claim is the newest, and what an old one brings nobody executes."""
    old = worker.next_claim(5)
    assert world.do(old) == []
    run_id = world.trigger()
    world.restart(have_registered=False)
    newest = worker.next_claim(5)
    for claim in (old, newest):
        with pytest.raises(NotFoundError, match="register it first"):
            world.do(claim)
    world.do(RegisterWorker(worker.id, worker.id, worker.tasks, [], sequence=1, claims=newest.sequence))
    assert world.do(old) == []
    assert [run.id for run in world.do(newest)] == [run_id]


def test_a_worker_that_has_gone_is_gone_after_a_restart_too(world: World, worker: WorkerDouble) -> None:
    worker.send(leaving=True)
    world.restart()
    assert worker.id not in world.engine.state.workers


@pytest.mark.sqlite_only("its trigger is written for it")
def test_what_a_failed_registration_has_learnt_is_forgotten(world: World) -> None:
    """It is sent again, and is then no repeat."""
    with world.store.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no_workers BEFORE INSERT ON workers BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(Exception, match="no"):
        WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    assert not world.engine.state.workers
    assert not world.engine.state.catalog.tasks
    with world.store.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER no_workers")
    WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    assert world.engine.state.catalog.queue_limits == {"task/work": 1}


@pytest.mark.parametrize("status", RunStatus)
@pytest.mark.parametrize("move", Move)
def test_every_move_in_every_status_is_answered(status: RunStatus, move: Move) -> None:
    following = LIFECYCLE[status][move]
    if isinstance(following, RunStatus):
        assert next_status(status, move) is following
    else:
        with pytest.raises(ConflictError, match=following):
            next_status(status, move)


def test_nothing_moves_a_run_that_has_ended() -> None:
    for status in RunStatus:
        moves = [following for following in LIFECYCLE[status].values() if isinstance(following, RunStatus)]
        assert bool(moves) is not status.is_final


def test_number_and_count_of_attempts_over_all_ends(world: World, worker: WorkerDouble) -> None:
    """Handed back, lost beside, raised, completed: the number grows with each claim, the count only when it is charged."""
    run_id = world.trigger(max_attempts=2)
    other = world.trigger()
    worker.die(*worker.claim(2))
    second = next_worker(world, "worker_2")
    [run] = second.claim()
    second.fail(run, retry_after_ms=0)
    third = next_worker(world, "worker_3")
    while run := third.claim_one():
        if run.id == run_id:
            break
        third.finish(run)
    assert (run.attempt, run.charged) == (3, 1)
    third.begin(run)
    third.send(leaving=True)
    fourth = next_worker(world, "worker_4")
    run = fourth.claim_one()
    assert (run.attempt, run.charged) == (4, 1)
    fourth.finish(run)
    with world.store.read() as connection:
        row = load_rows(connection, [run_id])[run_id]
    assert (row.attempt, row.charged, row.worker_id) == (4, 1, "worker_4")
    assert ends(world, run_id) == ["beside", "raised", "handed_back"]
    assert status(world, other) is RunStatus.COMPLETED


def suspects(world: World, worker: WorkerDouble) -> WorkerDouble:
    """Two runs whose process has died, of which each has to execute apart; and a worker that could take them."""
    world.trigger(), world.trigger()
    runs = worker.claim(2)
    worker.begin(*runs)
    worker.die(*runs)
    return WorkerDouble(world, "worker_2")


def test_a_run_that_has_to_execute_apart_begins_as_soon_as_its_worker_has_nothing_else_to_do(
    world: World, worker: WorkerDouble
) -> None:
    """Also where the worker waits for work already, in whichever way its other run has ended."""
    following = suspects(world, worker)
    first = following.claim_one()
    assert first.is_apart
    [waiting] = world.submit(following.next_claim(5, wait=60))
    assert not waiting.is_answered
    following.finish(first)
    [second] = result_of(waiting)
    assert second.is_apart
    assert second.id != first.id


def test_a_run_that_has_to_execute_apart_waits_ten_seconds_for_a_worker_with_nothing_else_to_do(
    world: World, worker: WorkerDouble
) -> None:
    following = suspects(world, worker)
    following.claim_one()
    [waiting] = world.submit(following.next_claim(5, wait=60))
    world.clock.advance(9)
    world.submit()
    assert not waiting.is_answered
    due_at = world.engine.state.next_due_at
    assert due_at is not None
    world.clock.now = max(due_at, world.clock.now)
    world.submit()
    [second] = result_of(waiting)
    assert second.is_apart
    assert world.clock() - START < 12_000_000
