"""A clock that is set while the server runs: leases and waiting do not notice, no queued run waits for the clock to catch up, and no
finished run takes writes again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.engine.commands import AttemptRef, CreateWaitpoint, PruneHistory, ReleaseLostRuns
from milepost.engine.engine import Engine
from milepost.errors import RunFinishedError
from milepost.model.operations import Increment, Set
from milepost.model.run import RunStatus
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.store.upkeep import finish_job, take_job
from milepost.upkeep.old_history import prunable
from support.properties import database_property
from support.world import Clock, WorkerDouble, World, failure, new_store, offered

HOUR = 3600
YEAR = 365 * 24 * HOUR


class SteadyWorld(World):
    """A world whose wall clock can be set (`jump`); time goes by on both clocks (`pass_time`)."""

    def restart(self) -> None:
        if not hasattr(self, "steady"):
            self.steady = Clock(5_000_000)
        self.engine = Engine(self.store, self.settings, self.clock, self.steady)

    def jump(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.steady.advance(seconds)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SteadyWorld]:
    world = SteadyWorld(new_store(tmp_path / "milepost.db"))
    yield world
    world.close()


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, 10 * 365 * 24 * HOUR])
def test_no_run_is_given_up_because_the_clock_was_set(world: SteadyWorld, seconds: float) -> None:
    worker = WorkerDouble(world)
    run_id = world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    world.jump(seconds)
    assert world.do(ReleaseLostRuns()) == 0
    assert not worker.report(run, Set("a", 1)).lost
    lost = 0
    for _ in range(6):
        world.pass_time(world.settings.lease_seconds / 5)
        lost += world.do(ReleaseLostRuns())
    assert lost == 1
    assert world.reader.run(run_id).status is RunStatus.CRASHED


@pytest.mark.parametrize("seconds", [-45, HOUR])
def test_a_delay_that_was_over_when_the_clock_was_set_is_over(world: SteadyWorld, seconds: float) -> None:
    """It was over, and no group had looked yet: the server was away."""
    WorkerDouble(world)
    run_id = world.trigger(delay="1s")
    world.pass_time(2)
    world.restart()
    world.jump(seconds)
    world.submit()
    assert world.reader.run(run_id).status is RunStatus.QUEUED


def test_a_clock_that_goes_back_a_little_holds_up_no_claim_for_longer(world: SteadyWorld) -> None:
    """By less than what is taken for setting it. Nobody is told when the run, which was due before, is due again."""
    worker = WorkerDouble(world)
    run_id = world.trigger()
    world.jump(-0.7)
    [waiting] = world.submit(worker.next_claim(wait=60))
    assert not waiting.is_answered
    wake_at = world.engine.wake_at()
    assert wake_at is not None
    assert wake_at <= world.steady() + 700_000
    world.pass_time(0.7)
    world.submit()
    assert [run.id for run in waiting.result] == [run_id]


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_retry_is_in_time_that_is_reported_as_the_clock_was_set(world: SteadyWorld, seconds: float) -> None:
    """Its time is by the new clock already."""
    worker = WorkerDouble(world)
    run_id = world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    world.jump(seconds)
    worker.report(run, outcome=failure(retry_after_ms=5000))
    [waiting] = world.submit(worker.next_claim(wait=60))
    wake_at = world.engine.wake_at()
    assert wake_at is not None
    assert 0 < wake_at - world.steady() <= 5_000_000
    world.pass_time(5)
    world.submit()
    assert [run.id for run in waiting.result] == [run_id]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_clock_that_is_set_back_holds_up_no_queued_run(world: SteadyWorld) -> None:
    worker = WorkerDouble(world)
    run_id = world.trigger()
    world.jump(-HOUR)
    assert worker.claim_one().id == run_id
    # And what is triggered from now on goes behind, not before, what was there.
    first = world.trigger()
    world.jump(-HOUR)
    second = world.trigger()
    assert [run.id for run in worker.claim(2)] == [first, second]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_clock_that_is_set_back_hands_a_queued_run_to_a_claim_that_waits(world: SteadyWorld) -> None:
    worker = WorkerDouble(world)
    world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=10_000)
    [ticket] = world.submit(worker.next_claim(wait=20))
    world.jump(-HOUR)
    world.submit()
    assert not ticket.is_answered
    wake_at = world.engine.wake_at()
    assert wake_at is not None
    world.pass_time((wake_at - world.steady()) / 1_000_000)
    world.submit()
    assert [run.attempt for run in ticket.result] == [2]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_clock_that_is_set_forward_makes_no_retry_due_too_early(world: SteadyWorld) -> None:
    worker = WorkerDouble(world)
    world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=60_000)
    world.jump(HOUR)
    assert worker.claim() == []
    world.pass_time(61)
    assert worker.claim_one().attempt == 2


def test_a_claim_that_waits_is_answered_in_its_time(world: SteadyWorld) -> None:
    worker = WorkerDouble(world)
    [ticket] = world.submit(worker.next_claim(wait=20))
    world.jump(-HOUR)
    world.submit()
    assert not ticket.is_answered
    world.pass_time(19)
    world.submit()
    assert not ticket.is_answered
    world.pass_time(1.1)
    world.submit()
    assert ticket.result == []


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_clock_that_drifts_is_no_clock_that_was_set(
    world: SteadyWorld, caplog: pytest.LogCaptureFixture
) -> None:
    WorkerDouble(world)
    for _ in range(10):
        world.jump(0.5)
        world.trigger()
    assert not caplog.records
    world.jump(2)
    world.trigger()
    assert [record.message for record in caplog.records] == [
        "the clock was set by 2.0 s; queued runs have moved along"
    ]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
@pytest.mark.parametrize("retries", [False, True])
def test_what_was_queued_by_a_clock_ahead_is_due_when_it_was_set_right_across_a_restart(
    world: SteadyWorld, retries: bool, caplog: pytest.LogCaptureFixture
) -> None:
    worker = WorkerDouble(world)
    world.jump(HOUR)
    old = world.trigger()
    if retries:
        # Nothing is newer than this pause.
        worker.fail(worker.claim_one(), retry_after_ms=5_000)
    world.jump(-HOUR)
    world.steady.now = 0
    world.restart()
    assert "set back since" in caplog.text
    new = world.trigger()
    worker.register()
    if retries:
        assert [run.id for run in worker.claim(5)] == [new]
        world.pass_time(5.1)
        assert [run.id for run in worker.claim(5)] == [old]
    else:
        assert [run.id for run in worker.claim(5)] == [old, new]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
@pytest.mark.parametrize("jump_before", [0, 40 * 24 * HOUR], ids=["", "and forward before"])
@pytest.mark.parametrize("kind", WaitpointKind)
def test_what_is_waited_for_is_over_in_time_when_the_clock_was_set_back_across_a_restart(
    world: SteadyWorld, kind: WaitpointKind, jump_before: int
) -> None:
    """Also where no run is queued, by which the new server could see it."""
    worker = WorkerDouble(world)
    world.trigger()
    run = worker.claim_one()
    attempt = AttemptRef(run.id, run.attempt)
    command = CreateWaitpoint(kind=kind, timeout_ms=60_000, place="for/60s/0", attempt=attempt)
    world.do(command)
    worker.report(run, waiting=True)
    world.jump(jump_before)
    world.do(ReleaseLostRuns())
    world.jump(-jump_before - YEAR)
    world.steady.now = 0
    world.restart()
    world.pass_time(59)
    assert world.do(command).status is WaitpointStatus.WAITING
    world.pass_time(2)
    assert world.do(command).status is not WaitpointStatus.WAITING
    # Nothing moves a second time.
    world.restart()
    assert world.do(command).status is not WaitpointStatus.WAITING


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_rate_does_not_wait_for_a_clock_that_was_set_back_across_a_restart(world: SteadyWorld) -> None:
    """Also where no run was queued then."""
    task = offered("work", queue="rated", rate="1/h")
    worker = WorkerDouble(world, "worker_1", task)
    world.trigger()
    worker.finish(worker.claim_one())
    world.jump(-YEAR)
    world.steady.now = 0
    world.restart()
    run_id = world.trigger()
    worker.register()
    assert worker.claim(1) == []
    world.pass_time(HOUR + 1)
    assert [run.id for run in worker.claim(1)] == [run_id]


def test_a_run_that_is_handed_back_after_the_clock_was_set_back_is_due(world: SteadyWorld) -> None:
    """It was held when the clock was set, and does not move along with those that are queued."""
    worker = WorkerDouble(world)
    run_id = world.trigger()
    worker.begin(worker.claim_one())
    world.jump(-365 * 24 * HOUR)
    world.steady.now = 0
    world.restart()
    worker.send(leaving=True)
    worker.register()
    assert [run.id for run in worker.claim(5)] == [run_id]


def test_a_pause_of_a_retry_goes_on_across_a_restart(
    world: SteadyWorld, caplog: pytest.LogCaptureFixture
) -> None:
    worker = WorkerDouble(world)
    world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=60_000)
    world.pass_time(30)
    world.restart()
    worker.register()
    assert worker.claim() == []
    world.pass_time(31)
    assert worker.claim_one().attempt == 2
    assert not caplog.records


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
@pytest.mark.parametrize("seconds", [HOUR, YEAR], ids=["an hour", "a year"])
@pytest.mark.parametrize("kind", ["delayed", "paused", "held"])
@pytest.mark.parametrize("across_restart", [True, False], ids=["across a restart", "while it runs"])
def test_what_waits_moves_once_with_a_clock_that_was_set_back(
    world: SteadyWorld, across_restart: bool, kind: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """However often the server starts again then. When a run was changed is never set back, and stays ahead of that clock."""
    worker = WorkerDouble(world)
    options = {"delay": "2h"} if kind == "delayed" else {}
    run_id = world.trigger(**options)
    run = None
    if kind != "delayed":
        run = worker.claim_one()
        worker.begin(run)
        if kind == "paused":
            worker.fail(run, retry_after_ms=2 * HOUR * 1000)
    world.jump(-seconds)
    if across_restart:
        world.steady.now = 0
        world.restart()
    else:
        world.submit()
    if kind == "held":
        assert run is not None
        worker.fail(run, retry_after_ms=2 * HOUR * 1000)
    caplog.clear()
    for _ in range(3):
        world.pass_time(10)
        world.restart()
    assert "set back since" not in caplog.text
    worker.register()
    world.pass_time(2 * HOUR - 40)
    assert worker.claim() == []
    world.pass_time(11)
    assert [claimed.id for claimed in worker.claim()] == [run_id]


@pytest.mark.sqlite_only("servers on one database go by its clock, which none of them takes for set")
def test_a_clock_far_ahead_is_not_trusted_for_a_day(
    world: SteadyWorld, caplog: pytest.LogCaptureFixture
) -> None:
    assert not world.engine.doubts_clock
    world.trigger()
    world.jump(40 * 24 * HOUR)
    world.restart()
    assert "40.0 days old" in caplog.text
    assert world.engine.doubts_clock
    world.trigger()
    world.pass_time(23 * HOUR)
    assert world.engine.doubts_clock
    world.pass_time(1.1 * HOUR)
    assert not world.engine.doubts_clock
    world.jump(2 * 24 * HOUR)
    world.trigger()
    assert world.engine.doubts_clock, "set while the server runs"


def test_a_machine_that_sleeps_sets_no_clock(world: SteadyWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The steady clock goes on while it sleeps."""
    worker = WorkerDouble(world)
    run_id = world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=60_000)
    due_at = world.reader.row(run_id).due_at
    world.pass_time(8 * HOUR)
    assert worker.claim_one().attempt == 2
    assert world.reader.row(run_id).due_at == due_at
    assert not caplog.records


@settings(max_examples=25)
@given(jumps=st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=8))
def test_versions_and_states_only_grow_whatever_the_clock_does(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[int]
) -> None:
    world = SteadyWorld(new_store(tmp_path_factory.mktemp("jumps") / "milepost.db"))
    try:
        worker = WorkerDouble(world)
        run_id = world.trigger()
        run = worker.claim_one()
        seen = world.reader.row(run_id).updated_at
        for number, seconds in enumerate(jumps, 1):
            world.jump(seconds)
            worker.report(run, Increment("n", 1))
            row = world.reader.row(run_id)
            assert row.updated_at > seen
            seen = row.updated_at
            assert world.document(run_id) == ({"n": number}, number)
        worker.report(run, outcome=failure())
        assert world.reader.run(run_id).status is RunStatus.FAILED
    finally:
        world.close()


def finished(world: World) -> str:
    """A run that has just finished."""
    worker = WorkerDouble(world)
    run_id = world.trigger()
    worker.finish(worker.claim_one())
    return run_id


def takes_writes(world: World, run_id: str) -> bool:
    try:
        world.write(run_id, Increment("n", 1))
    except RunFinishedError:
        return False
    return True


def finish_upkeep(world: World) -> None:
    """What the upkeep writes down every ten minutes."""
    with world.store.write() as connection:
        assert take_job(connection, "answers", "", now=world.engine.age_now, lease=30_000_000)
        finish_job(connection, "answers", "", now=world.engine.age_now)


@pytest.mark.parametrize("seconds", [-YEAR, -HOUR, HOUR, YEAR])
def test_a_finished_run_takes_writes_for_the_grace_time_whatever_is_done_to_the_clock(
    world: SteadyWorld, seconds: float
) -> None:
    before = finished(world)
    world.jump(seconds)
    after = finished(world)
    world.pass_time(world.settings.grace_seconds - 60)
    assert takes_writes(world, before)
    assert takes_writes(world, after)
    world.jump(-seconds)
    assert takes_writes(world, before)
    assert takes_writes(world, after)
    world.pass_time(120)
    assert not takes_writes(world, before)
    assert not takes_writes(world, after)
    world.jump(seconds)
    assert not takes_writes(world, before)
    assert not takes_writes(world, after)


@pytest.mark.parametrize("known_by", ["a run", "the upkeep"])
def test_no_finished_run_takes_writes_again_after_a_restart_with_a_clock_that_was_set_back(
    world: SteadyWorld, known_by: str
) -> None:
    old = finished(world)
    world.pass_time(2 * HOUR)
    young = finished(world)
    if known_by == "a run":
        world.trigger("another")
    else:
        finish_upkeep(world)
    world.jump(-YEAR)
    world.steady.now = 0
    world.restart()
    assert not takes_writes(world, old)
    assert takes_writes(world, young)
    youngest = finished(world)
    world.pass_time(world.settings.grace_seconds - 60)
    assert takes_writes(world, young)
    assert takes_writes(world, youngest)
    finish_upkeep(world)
    world.restart()
    world.pass_time(120)
    assert not takes_writes(world, young)
    assert not takes_writes(world, youngest)


def test_a_run_that_is_newer_than_all_else_that_is_known_is_closed_after_the_grace_time(
    world: SteadyWorld,
) -> None:
    worker = WorkerDouble(world)
    run_id = world.trigger()
    run = worker.claim_one()
    world.pass_time(YEAR)
    worker.register([run_id])
    worker.finish(run)
    world.jump(-YEAR)
    world.steady.now = 0
    world.restart()
    assert takes_writes(world, run_id), "nobody can know how long ago it was"
    world.pass_time(world.settings.grace_seconds + 60)
    assert not takes_writes(world, run_id)


@pytest.mark.parametrize("seconds", [-YEAR, 23 * HOUR])
def test_the_ids_of_a_run_that_takes_writes_are_kept_whatever_is_done_to_the_clock(
    world: SteadyWorld, seconds: float
) -> None:
    """Else an operation that is sent again would count twice."""
    run_id = world.trigger()
    worker = WorkerDouble(world)
    run = worker.claim_one()
    worker.finish(run, Increment("n", 1, once="a"))
    world.jump(seconds)
    settled_before = world.engine.age_now - round(world.settings.grace_seconds * 1_000_000)
    step = prunable(world.store, cutoff=world.clock(), settled_before=settled_before, rows=250)
    world.do(PruneHistory(step.logs))
    world.write(run_id, Increment("n", 1, once="a"))
    assert world.document(run_id)[0] == {"n": 1}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 8).map(lambda number: number * 510)),
        st.tuples(st.just("jump"), st.sampled_from([-YEAR, -24 * HOUR, -HOUR, -700, 700, HOUR, YEAR])),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    min_size=4,
    max_size=25,
)


@database_property(60)
@given(steps=_STEPS)
def test_the_grace_time_is_measured_by_no_clock_that_can_be_set(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Of each finished run: for how long the server was there since its end, and whether it was started anew since. What was lost by
    each start is how far the upkeep was behind; a clock that was set ahead before a start may close runs early."""
    world = SteadyWorld(new_store(tmp_path_factory.mktemp("grace") / "milepost.db"))
    lost_max = 600
    try:
        passed, starts = 0, 0
        ended = {finished(world): (0, 0)}
        for step, seconds in steps:
            if step == "pass":
                world.pass_time(seconds)
                passed += seconds
            elif step == "jump":
                world.jump(seconds)
            elif step == "finish":
                ended[finished(world)] = passed, starts
            else:
                finish_upkeep(world)
                world.pass_time(lost_max)
                passed += lost_max
                world.steady.now = 1_000_000 * len(ended)
                world.restart()
                starts += 1
            for run_id, (at, started) in ended.items():
                elapsed, restarts = passed - at, starts - started
                takes = takes_writes(world, run_id)
                if takes:
                    assert elapsed <= world.settings.grace_seconds + lost_max * restarts + 5
                elif not restarts:
                    assert elapsed >= world.settings.grace_seconds - 5
    finally:
        world.close()
