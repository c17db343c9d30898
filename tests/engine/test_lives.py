"""What a run goes through beside its attempts: delays, time to live, tasks that nobody offers, cancels."""

import time
from datetime import UTC, datetime

import pytest

from milepost.engine import promoting
from milepost.engine.cancelling import MARGIN_SECONDS
from milepost.engine.commands import AddTags, CancelRun, EndUnheededRuns, RescheduleRun, Trigger
from milepost.errors import ConflictError, InvalidRequestError, RunNotFoundError
from milepost.model.run import AttemptEnd, Outcome, RunError, RunStatus
from milepost.protocol.work import RunReport
from milepost.store.attempts import load_attempts
from milepost.store.runs import cancelling_ids, unfinished_children
from support.world import WorkerDouble, World, item, offered

pytestmark = pytest.mark.several_servers(postgres=True)

CANCELLED = Outcome(error=RunError(message="cancelled", name="RunCancelledError"), end=AttemptEnd.CANCELLED)


def status(world: World, run_id: str) -> RunStatus:
    return world.reader.run(run_id).status


def cancelling(world: World) -> list[str]:
    """The runs whose children are being cancelled."""
    with world.store.read() as connection:
        return cancelling_ids(connection, limit=10)


def pass_time(world: World, seconds: float) -> None:
    """Let time go by, and the engine look whenever it wants to."""
    until = world.clock() + round(seconds * 1_000_000)
    while world.clock() < until:
        world.clock.advance(min(seconds, 1.0))
        world.submit()


def test_a_delayed_run_is_queued_when_its_delay_is_over(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(delay="10s", ttl="5s")
    assert status(world, run_id) is RunStatus.DELAYED
    assert worker.claim() == []
    run = world.reader.run(run_id)
    assert run.is_queued
    assert run.delayed_until is not None
    pass_time(world, 11)
    assert status(world, run_id) is RunStatus.QUEUED
    assert worker.claim_one().id == run_id


def test_a_delay_is_over_without_a_worker_that_asks(world: World, worker: WorkerDouble) -> None:
    """Also the announcement comes at that time."""
    run_id = world.trigger(delay="3s")
    world.announcements.clear()
    pass_time(world, 4)
    changed = [changed for news in world.announcements for changed in news.runs if changed.row.id == run_id]
    assert [one.row.status for one in changed] == [RunStatus.QUEUED]


@pytest.mark.parametrize("delay", ["2001-01-01T00:00:00Z", "0s"])
def test_a_delay_that_is_over_is_none(world: World, delay: str) -> None:
    WorkerDouble(world)
    assert status(world, world.trigger(delay=delay)) is RunStatus.QUEUED


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"delay": "2150-01-01T00:00:00Z"}, "options.delay", "ten years"),
        ({"delay": "2030-01-01T00:00:00"}, "options.delay", "time zone"),
        ({"delay": "soon"}, "options.delay", "write it like"),
        ({"delay": "-5s"}, "options.delay", "write it like"),
        ({"ttl": 0}, "options.ttl", "from 1 ms"),
        ({"ttl": "later"}, "options.ttl", "write it like"),
        ({"priority": 1e12}, "options.priority", "from 0 to"),
        ({"priority": -1}, "options.priority", "from 0 to"),
        ({"max_duration": -1}, "options.maxDuration", "negative"),
    ],
)
def test_what_is_no_time_is_refused_by_name(
    world: World, options: dict[str, object], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as refusal:
        world.trigger(**options)
    assert refusal.value.field == field


def test_a_run_expires_that_nobody_takes_in_time(world: World, worker: WorkerDouble) -> None:
    parent_id = world.trigger()
    parent = worker.claim_one()
    run_id = world.trigger(task="other", ttl="5s", parent_run_id=parent.id)
    assert status(world, run_id) is RunStatus.PENDING_VERSION
    pass_time(world, 6)
    run = world.reader.run(run_id)
    assert run.status is RunStatus.EXPIRED
    assert run.is_failed
    assert run.expired_at is not None
    assert run.error is not None
    assert run.error.name == "RunExpiredError"
    assert [ids for news in world.announcements for told in news.children_finished for ids in told.ids] == [
        run_id
    ]
    assert world.reader.run(parent_id).child_counts == {"EXPIRED": 1}


def test_what_was_claimed_does_not_expire(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(ttl="5s")
    run = worker.claim_one()
    worker.begin(run)
    for _ in range(10):
        pass_time(world, 1)
        worker.send()
    assert status(world, run_id) is RunStatus.EXECUTING
    worker.fail(run, retry_after_ms=0)
    pass_time(world, 6)
    assert status(world, run_id) is RunStatus.QUEUED


def test_runs_of_a_task_that_nobody_offers_wait_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promoting, "PORTION", 2)
    ids = [world.trigger() for _ in range(5)]
    delayed = world.trigger(delay="5s")
    assert {status(world, run_id) for run_id in ids} == {RunStatus.PENDING_VERSION}
    pass_time(world, 6)
    assert status(world, delayed) is RunStatus.PENDING_VERSION
    worker = WorkerDouble(world, "worker_1", offered("work", queue="shared"))
    for _ in range(3):
        world.submit()
    assert {status(world, run_id) for run_id in [*ids, delayed]} == {RunStatus.QUEUED}
    assert {world.reader.run(run_id).queue for run_id in ids} == {"shared"}
    assert {run.id for run in worker.claim(10)} == {*ids, delayed}


def test_the_promise_to_queue_them_outlives_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promoting, "PORTION", 1)
    ids = [world.trigger() for _ in range(4)]
    worker = WorkerDouble(world)
    world.restart()
    for _ in range(4):
        world.submit()
    worker.register()
    assert {run.id for run in worker.claim(10)} == set(ids)


def test_a_higher_priority_goes_first(world: World, worker: WorkerDouble) -> None:
    ids = [world.trigger(), world.trigger(priority=10), world.trigger(priority=100)]
    assert [run.id for run in worker.claim(3)] == [ids[2], ids[1], ids[0]]


def test_reschedule(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(delay="1h")
    world.do(RescheduleRun(run_id, delay_ms=2000))
    pass_time(world, 3)
    assert status(world, run_id) is RunStatus.QUEUED
    with pytest.raises(ConflictError, match="QUEUED takes no 'reschedule': the run is not delayed"):
        world.do(RescheduleRun(run_id, delay_ms=2000))
    later = world.trigger(delay="1h")
    world.do(RescheduleRun(later, due_at=1))
    assert status(world, later) is RunStatus.QUEUED
    assert {run.id for run in worker.claim(5)} == {run_id, later}
    with pytest.raises(RunNotFoundError):
        world.do(RescheduleRun("run_of_nobody", delay_ms=1))


def test_an_absolute_delay_is_kept_as_it_was_given(world: World) -> None:
    at = datetime.fromtimestamp(world.clock() / 1_000_000 + 60, UTC).replace(microsecond=0)
    run = world.reader.run(world.trigger(delay=at.isoformat()))
    assert run.delayed_until == at


# --- cancels -------------------------------------------------------------------------------------------------


def test_what_nobody_holds_is_cancelled_at_once(world: World, worker: WorkerDouble) -> None:
    ids = [world.trigger(), world.trigger(delay="1h"), world.trigger(task="unknown")]
    for run_id in ids:
        world.do(CancelRun(run_id))
        run = world.reader.run(run_id)
        assert run.status is RunStatus.CANCELED
        assert run.is_cancelled
        assert not run.is_failed
        assert run.is_completed
        world.do(CancelRun(run_id))
    assert worker.claim(5) == []
    with pytest.raises(RunNotFoundError):
        world.do(CancelRun("run_of_nobody"))


def test_a_worker_is_asked_to_end_what_it_holds(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    [reply] = worker.begin(run)
    assert not reply.cancel
    world.announcements.clear()
    world.do(CancelRun(run_id))
    assert [told.ids for news in world.announcements for told in news.cancel_asked] == [[run_id]]
    shown = world.reader.run(run_id)
    assert shown.status is RunStatus.EXECUTING
    assert shown.cancel_asked_at is not None
    assert worker.report(run).cancel
    worker.report(run, outcome=CANCELLED)
    shown = world.reader.run(run_id)
    assert shown.status is RunStatus.CANCELED
    with world.store.read() as connection:
        assert [attempt.end for attempt in load_attempts(connection, run_id)] == ["cancelled"]


@pytest.mark.parametrize("how", ["raises", "is lost", "leaves", "returns", "times out"])
def test_how_an_attempt_ends_that_was_asked_to(world: World, worker: WorkerDouble, how: str) -> None:
    """It may return all the same; any other way it is cancelled, and there is no next attempt."""
    run_id = world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    world.do(CancelRun(run_id))
    if how == "raises":
        worker.fail(run, retry_after_ms=0)
    elif how == "is lost":
        world.pass_lease()
    elif how == "leaves":
        worker.send(leaving=True)
    elif how == "returns":
        worker.finish(run)
    else:
        late = Outcome(error=RunError(message="too long"), end=AttemptEnd.TIMED_OUT)
        worker.report(run, outcome=late)
    expected = RunStatus.COMPLETED if how == "returns" else RunStatus.CANCELED
    assert status(world, run_id) is expected
    assert WorkerDouble(world, "worker_2").claim() == []


def test_an_attempt_that_takes_too_long_ends_the_run(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(max_duration=2.5)
    run = worker.claim_one()
    assert run.max_duration_ms == 2500
    worker.report(run, outcome=Outcome(error=RunError(message="too long"), end=AttemptEnd.TIMED_OUT))
    shown = world.reader.run(run_id)
    assert (shown.status, shown.is_failed) == (RunStatus.TIMED_OUT, True)


def test_a_parent_of_ten_thousand_children_is_cancelled_in_portions_that_hold_up_nobody(
    world: World, worker: WorkerDouble
) -> None:
    root_id = world.trigger()
    root = worker.claim_one()
    worker.begin(root)
    for _ in range(10):
        world.trigger_batch(*(item("child", delay="1h") for _ in range(1000)), parent_id=root.id)
    began = time.perf_counter()
    world.do(CancelRun(root_id))
    longest = time.perf_counter() - began
    groups = 0
    with world.store.read() as connection:
        assert len(unfinished_children(connection, root_id, limit=20_000)) > 9_000
    while any(cancelling(world)):
        start = time.perf_counter()
        world.submit()
        longest = max(longest, time.perf_counter() - start)
        groups += 1
        assert groups < 40
    print(f"{groups} groups, {time.perf_counter() - began:.2f} s, the longest {longest * 1000:.0f} ms")
    with world.store.read() as connection:
        assert unfinished_children(connection, root_id, limit=1) == []
    assert worker.report(root).cancel


def test_a_worker_that_does_not_end_what_it_is_asked_to_is_not_waited_for_for_ever(
    world: World, worker: WorkerDouble
) -> None:
    """It is there, as its heartbeats say, and holds the run. Nothing is looked for while nobody is asked."""
    run_id = world.trigger()
    child_id = world.trigger(parent_run_id=run_id)
    assert world.do(EndUnheededRuns(10)) == 0
    assert not world.engine.state.may_have_asked
    run, child = worker.claim(2)
    worker.begin(run, child)
    world.do(CancelRun(run_id))
    world.submit()
    patience = world.settings.stop_grace_seconds + MARGIN_SECONDS
    elapsed, ended = 0.0, 0
    while elapsed < 2 * patience:
        found = world.do(EndUnheededRuns(1))
        ended += found
        assert found <= 1
        assert not ended or elapsed >= patience
        if not ended:
            assert status(world, run_id) is RunStatus.EXECUTING
            assert worker.report(run).cancel
        world.clock.advance(patience / 12)
        elapsed += patience / 12
        worker.send()
    assert ended == 2
    for each in (run_id, child_id):
        shown = world.reader.run(each)
        assert shown.status is RunStatus.CANCELED
        assert shown.error is not None
        assert "has not said within the grace time" in shown.error.message
    assert worker.report(run, outcome=Outcome(output="1")).lost
    assert status(world, run_id) is RunStatus.CANCELED
    for _ in range(3):
        world.do(EndUnheededRuns(1))
    assert not world.engine.state.may_have_asked


def test_what_was_asked_to_end_is_known_after_a_restart_and_has_its_time_again(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    worker.begin(worker.claim_one())
    world.do(CancelRun(run_id))
    world.restart()
    worker.register(holding=[run_id])
    assert world.do(EndUnheededRuns(10)) == 0
    ended = 0
    for _ in range(10):
        world.clock.advance(world.settings.lease_seconds / 2)
        worker.send()
        ended += world.do(EndUnheededRuns(10))
    assert ended == 1
    assert status(world, run_id) is RunStatus.CANCELED


def test_children_are_cancelled_with_their_parent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, three levels deep, those that nobody holds and those that somebody does; a portion at a time, over a restart."""
    monkeypatch.setattr(promoting, "PORTION", 3)
    worker = WorkerDouble(world, "worker_1", offered("work"), offered("child"))
    root_id = world.trigger()
    root = worker.claim_one()
    worker.begin(root)
    held_id = world.trigger(task="child", parent_run_id=root.id)
    held = worker.claim_one()
    worker.begin(held)
    batch = world.trigger_batch(*(item("child") for _ in range(8)), parent_id=root.id)
    grandchildren = [world.trigger(task="child", parent_run_id=held.id, delay="1h") for _ in range(4)]
    world.do(CancelRun(root_id))
    world.restart()
    for _ in range(12):
        world.submit()
    worker.register(holding=[root.id, held.id])
    assert {status(world, run_id) for run_id in [*batch.run_ids, *grandchildren]} == {RunStatus.CANCELED}
    assert worker.report(held).cancel
    late = world.do(Trigger(item("child", parent_run_id=root.id))).run_ids[0]
    worker.report(held, outcome=CANCELLED)
    worker.report(root, outcome=CANCELLED)
    for _ in range(3):
        world.submit()
    assert {status(world, run_id) for run_id in (root_id, held_id, late)} == {RunStatus.CANCELED}
    assert world.reader.batch(batch.batch_id or "").finished_count == 8
    assert world.engine.wake_at() is None


def test_a_queue_has_room_again_after_a_cancel(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    first, second = world.trigger(), world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    assert worker.claim() == []
    world.do(CancelRun(first))
    worker.send(RunReport(id=run.id, attempt=run.attempt, sequence=1, outcome=CANCELLED))
    assert worker.claim_one().id == second


# --- tags ----------------------------------------------------------------------------------------------------


def test_tags_are_added_while_a_run_lives(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(tags=["a"])
    assert world.do(AddTags(run_id, ["b", "a", "b"])) == ["a", "b"]
    assert world.reader.run(run_id).tags == ["a", "b"]
    assert worker.claim_one().tags == ["a", "b"]
    with pytest.raises(InvalidRequestError, match="up to 10 tags"):
        world.do(AddTags(run_id, [str(number) for number in range(9)]))
    assert world.reader.run(run_id).tags == ["a", "b"]


@pytest.mark.one_server("servers on one database go by its clock")
def test_a_clock_that_is_set_back_delays_nobody_who_waits_for_a_task(world: World) -> None:
    run_id = world.trigger(ttl="1h")
    world.clock.advance(-2 * 365 * 86_400)
    worker = WorkerDouble(world)
    assert worker.claim_one().id == run_id


def test_runs_of_a_limited_task_that_nobody_offered_begin_once_it_is(world: World) -> None:
    ids = [world.trigger() for _ in range(2)]
    worker = WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    run = worker.claim_one()
    assert run.id == ids[0]
    worker.finish(run)
    assert worker.claim_one().id == ids[1]
