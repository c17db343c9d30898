"""Schedules at the engine: what fires, when, once, over several servers, over their ends, and over clocks that are set."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine.commands import (
    CreateSchedule,
    DeleteSchedule,
    RegisterWorker,
    SetScheduleActive,
    UpdateSchedule,
)
from milepost.engine.engine import Engine
from milepost.errors import (
    ConflictError,
    InvalidRequestError,
    MetadataTypeError,
    NotFoundError,
    TooLargeError,
)
from milepost.model.timetable import Cron, upcoming
from milepost.protocol.schedules import (
    CreateScheduleRequest,
    ScheduledPayload,
    TaskSchedule,
    UpdateScheduleRequest,
)
from milepost.protocol.work import WorkerTask
from milepost.store import schedules as store
from milepost.store.runs import RunFilter
from milepost.store.schedules import ScheduleRow
from support.faults import faults
from support.properties import database_property
from support.world import START, Clock, WorkerDouble, World, new_store, offered, world_at

pytestmark = pytest.mark.several_servers(postgres=True)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 24 * 3600.0


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def create(world: World, **fields: Any) -> ScheduleRow:
    return world.do(CreateSchedule(CreateScheduleRequest(**{"task": "work", **fields})))


def row_of(world: World, schedule_id: str) -> ScheduleRow:
    with world.store.read() as connection:
        return store.load_schedules(connection, [schedule_id])[schedule_id]


def fired(world: World, schedule_id: str) -> list[int]:
    """The times that a schedule has fired for, in the order of its runs."""
    page = world.reader.page(RunFilter(schedule_id=schedule_id), size=100)
    ids = [run.id for run in page.data][::-1]
    with world.store.read() as connection:
        found = store.load_scheduled_runs(connection, ids)
    return [found[run_id].scheduled_at for run_id in ids]


def payloads(world: World, schedule_id: str) -> list[Any]:
    page = world.reader.page(RunFilter(schedule_id=schedule_id), size=100)
    return [msgspec.json.decode(world.reader.run(run.id).payload or b"null") for run in page.data][::-1]


def sleep_until_woken(world: World) -> None:
    """What the committer does without commands: wait for `wake_at`, then look."""
    wake_at = world.engine.wake_at()
    assert wake_at is not None
    world.clock.now = max(world.clock.now, wake_at)
    world.submit()


def set_clock(world: World, at: int) -> None:
    assert at >= world.clock.now
    world.clock.now = at


# --- firing ------------------------------------------------------------------------------------------------


def test_it_fires_at_its_times_and_is_woken_for_them(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every="5m")
    for _ in range(3):
        sleep_until_woken(world)
    assert fired(world, schedule.id) == [schedule.anchor_at + count * 300_000_000 for count in (1, 2, 3)]
    assert row_of(world, schedule.id).next_at == schedule.anchor_at + 4 * 300_000_000


def test_a_claim_that_waits_is_given_the_run_at_once(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every=10)
    [waiting] = world.submit(worker.next_claim(wait=60))
    world.clock.advance(10)
    world.submit()
    [run] = waiting.result
    assert run.task == "work"
    assert row_of(world, schedule.id).last_run_id == run.id


def test_a_run_is_told_its_times(world: World, worker: WorkerDouble) -> None:
    set_clock(world, microseconds("2027-03-27T12:00+00:00"))
    schedule = create(world, cron="30 2 * * *", timezone="Europe/Berlin", external_id="customer 7")
    for _ in range(2):
        sleep_until_woken(world)
    first, second = (msgspec.convert(told, ScheduledPayload) for told in payloads(world, schedule.id))
    # On the second of the two days the clock skips half past two.
    assert first.timestamp == datetime(2027, 3, 28, 1, tzinfo=UTC)
    assert second.timestamp == datetime(2027, 3, 29, 0, 30, tzinfo=UTC)
    assert (first.last_timestamp, second.last_timestamp) == (None, first.timestamp)
    assert first.upcoming[0] == second.timestamp
    assert len(first.upcoming) == 5
    assert (first.timezone, first.schedule_id, first.external_id, first.type) == (
        "Europe/Berlin",
        schedule.id,
        "customer 7",
        "IMPERATIVE",
    )


def test_what_is_given_with_a_schedule_its_runs_have(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every=1, payload='{"a":1}', metadata={"progress": 0}, tags=["nightly"])
    sleep_until_woken(world)
    run_id = row_of(world, schedule.id).last_run_id
    assert run_id is not None
    run = world.reader.run(run_id)
    assert msgspec.json.decode(run.payload or b"") == {"a": 1}
    assert msgspec.json.decode(run.metadata) == {"progress": 0}
    assert run.tags == ["nightly"]
    assert run.schedule is not None
    assert (run.schedule.id, run.schedule.generator.expression) == (schedule.id, "1s")


def test_of_missed_times_the_last_one_fires(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, cron="0 * * * *")
    first = row_of(world, schedule.id).next_at
    assert first is not None
    world.clock.now = first + 10 * 3600 * 1_000_000 + 60_000_000
    world.restart()
    world.submit()
    assert fired(world, schedule.id) == [first + 10 * 3600 * 1_000_000]
    assert row_of(world, schedule.id).next_at == first + 11 * 3600 * 1_000_000


def test_while_nobody_offers_the_task_one_run_waits(world: World) -> None:
    schedule = create(world, every=60, task="nobody-has-it")
    for _ in range(4):
        sleep_until_woken(world)
    assert len(fired(world, schedule.id)) == 1
    assert "no worker is online that offers task 'nobody-has-it'" in (row_of(world, schedule.id).note or "")
    told = world.reader.schedule(schedule.id, upcoming=3)
    assert told.queued_reason == "never_offered"
    assert len(told.upcoming) == 3
    worker = WorkerDouble(world, "worker_1", offered("nobody-has-it"))
    worker.claim_one()
    sleep_until_woken(world)
    assert len(fired(world, schedule.id)) == 2
    assert row_of(world, schedule.id).note is None


def test_many_that_are_due_at_once_all_fire(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost.engine.schedules.FIRED_MAX", 3)
    ids = [create(world, cron="0 0 * * *").id for _ in range(8)]
    set_clock(world, row_of(world, ids[0]).next_at or 0)
    for _ in range(3):
        world.submit()
    assert [len(fired(world, schedule_id)) for schedule_id in ids] == [1] * 8


def test_one_that_cannot_fire_holds_up_nobody(world: World, worker: WorkerDouble) -> None:
    broken, sound = create(world, every=60), create(world, every=60)
    with world.store.write() as connection:
        broken_row = row_of(world, broken.id)
        store.save_schedule(connection, msgspec.structs.replace(broken_row, cron="nonsense", every=None))
    sleep_until_woken(world)
    assert len(fired(world, sound.id)) == 1
    row = row_of(world, broken.id)
    assert not row.is_active
    assert "paused, because it could not fire" in (row.note or "")


def test_what_its_task_no_longer_takes_is_noted_and_it_goes_on(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every=60, metadata={"total": "many"})
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}}
    typed = msgspec.structs.replace(offered("work"), metadata_schema=schema)
    WorkerDouble(world, "worker_2", typed)
    sleep_until_woken(world)
    row = row_of(world, schedule.id)
    assert fired(world, schedule.id) == []
    assert "total" in (row.note or "")
    assert row.is_active
    world.do(UpdateSchedule(schedule.id, UpdateScheduleRequest(metadata={"total": 5})))
    sleep_until_woken(world)
    assert len(fired(world, schedule.id)) == 1


# --- what calls do -----------------------------------------------------------------------------------------


def test_a_paused_one_fires_not_and_goes_on_from_its_next_time(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every=60)
    assert world.do(SetScheduleActive(schedule.id, False)).next_at is None
    assert world.engine.wake_at() is None
    world.clock.advance(1000)
    world.submit()
    assert fired(world, schedule.id) == []
    row = world.do(SetScheduleActive(schedule.id, True))
    assert row.next_at == schedule.anchor_at + 17 * 60_000_000
    sleep_until_woken(world)
    assert fired(world, schedule.id) == [row.next_at]


def test_other_times_are_reckoned_from_now_and_other_changes_leave_them(world: World) -> None:
    schedule = create(world, every="1h")
    world.clock.advance(600)
    same = world.do(UpdateSchedule(schedule.id, UpdateScheduleRequest(tags="a", external_id="x")))
    assert same.next_at == schedule.next_at
    assert same.tag_list == ["a"]
    cron = world.do(
        UpdateSchedule(schedule.id, UpdateScheduleRequest(cron="0 0 * * *", timezone="Asia/Tokyo"))
    )
    assert (cron.every, cron.cron, cron.timezone) == (None, "0 0 * * *", "Asia/Tokyo")
    assert cron.next_at == Cron("0 0 * * *", "Asia/Tokyo").next_after(world.clock())
    moved = world.do(UpdateSchedule(schedule.id, UpdateScheduleRequest(timezone="Europe/Berlin")))
    assert moved.next_at == Cron("0 0 * * *", "Europe/Berlin").next_after(world.clock())
    again = world.do(UpdateSchedule(schedule.id, UpdateScheduleRequest(every=30, tags=None)))
    assert (again.cron, again.timezone, again.next_at) == (None, "UTC", world.clock() + 30_000_000)
    assert again.tag_list == []


def test_a_deduplication_key_makes_one_schedule(world: World) -> None:
    first = create(world, cron="0 5 * * *", deduplication_key="report")
    second = create(world, cron="0 6 * * *", deduplication_key="report", external_id="x")
    assert second.id == first.id
    assert second.cron == "0 6 * * *"
    world.do(SetScheduleActive(first.id, False))
    assert not create(world, cron="0 6 * * *", deduplication_key="report").is_active
    assert create(world, cron="0 6 * * *", deduplication_key="report", active=True).is_active
    assert world.reader.schedules(page=1, size=50, task=None).pagination.count == 1


def test_a_repeated_request_makes_one_schedule_and_deletes_once(world: World) -> None:
    request = CreateScheduleRequest(task="work", every=60)
    first = world.do(CreateSchedule(request, "r1"))
    assert world.do(CreateSchedule(request, "r1")).id == first.id
    assert world.do(CreateSchedule(request, "r2")).id != first.id
    world.do(DeleteSchedule(first.id, "r3"))
    world.do(DeleteSchedule(first.id, "r3"))
    with pytest.raises(NotFoundError, match="there is no schedule"):
        world.do(DeleteSchedule(first.id, "r4"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "needs cron"),
        ({"cron": "0 5 * * *", "every": "5m"}, "not both"),
        ({"cron": "0 0 30 2 *"}, "never fires"),
        ({"cron": "0 5 * * *", "timezone": "Berlin"}, "Europe/Berlin"),
        ({"every": "0s"}, "a second to 366 days"),
        ({"every": 5, "timezone": "Europe/Berlin"}, "knows no time zone"),
        ({"every": 5, "external_id": "x" * 257}, "an external id has 1 to 256 characters"),
        ({"every": 5, "deduplication_key": ""}, "a deduplication key"),
        ({"every": 5, "task": ""}, "the id of a task"),
        ({"every": 5, "payload": "{"}, "not JSON"),
        ({"every": 5, "tags": ["x"] * 11 + [str(n) for n in range(11)]}, "up to 10 tags"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_schedule_is_refused(world: World, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        create(world, **fields)
    assert world.reader.schedules(page=1, size=50, task=None).data == []


def test_runs_that_would_be_refused_refuse_the_schedule(world: World) -> None:
    with pytest.raises(MetadataTypeError):
        create(world, every=5, metadata=[1])
    with pytest.raises(TooLargeError):
        create(world, every=5, payload='"' + "x" * (3 * 1024 * 1024) + '"')


# --- what code declares ------------------------------------------------------------------------------------


def declared(**times: Any) -> WorkerTask:
    return msgspec.structs.replace(offered("work"), schedule=TaskSchedule(**times) if times else None)


def the_declared(world: World) -> ScheduleRow | None:
    with world.store.read() as connection:
        return store.declared_schedules(connection, ["work"]).get("work")


def test_a_worker_makes_changes_and_removes_what_its_code_declares(world: World) -> None:
    WorkerDouble(world, "worker_1", declared(cron="0 5 * * *", timezone="Europe/Berlin"))
    made = the_declared(world)
    assert made is not None
    assert (made.cron, made.timezone, made.type) == ("0 5 * * *", "Europe/Berlin", "DECLARATIVE")
    WorkerDouble(world, "worker_2", declared(cron="0 5 * * *", timezone="Europe/Berlin"))
    assert the_declared(world) == made
    WorkerDouble(world, "worker_3", declared(every=60.0))
    changed = the_declared(world)
    assert changed is not None
    assert (changed.id, changed.cron, changed.every) == (made.id, None, 60_000_000)
    WorkerDouble(world, "worker_4", declared())
    assert the_declared(world) is None
    assert world.engine.state.next_schedule_at is None


def test_an_older_worker_that_registers_anew_does_not_bring_its_own_back(world: World) -> None:
    old = WorkerDouble(world, "worker_1", declared(cron="0 5 * * *"))
    WorkerDouble(world, "worker_2", declared(cron="0 6 * * *"))
    old.register()
    now = the_declared(world)
    assert now is not None
    assert now.cron == "0 6 * * *"


def test_one_that_was_paused_stays_so_over_a_new_worker(world: World) -> None:
    WorkerDouble(world, "worker_1", declared(every=60.0))
    made = the_declared(world)
    assert made is not None
    world.do(SetScheduleActive(made.id, False))
    WorkerDouble(world, "worker_2", declared(every=90.0))
    row = the_declared(world)
    assert row is not None
    assert (row.is_active, row.next_at, row.every) == (0, None, 90_000_000)


def test_what_code_declares_cannot_be_changed_by_calls_while_it_is_offered(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", declared(every=60.0))
    made = the_declared(world)
    assert made is not None
    with pytest.raises(ConflictError, match="declared by the code of task 'work'"):
        world.do(UpdateSchedule(made.id, UpdateScheduleRequest(cron="0 5 * * *")))
    with pytest.raises(ConflictError, match="deleted there"):
        world.do(DeleteSchedule(made.id))
    worker.send(leaving=True)
    world.do(DeleteSchedule(made.id))
    assert the_declared(world) is None


def test_a_declared_zone_that_this_server_does_not_know_keeps_no_worker_away(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = WorkerDouble(world, "worker_1", declared(cron="0 5 * * *", timezone="Mars/Olympus"))
    assert "Mars/Olympus" in caplog.text
    world.trigger()
    assert worker.claim_one()


# --- several servers, and their ends -----------------------------------------------------------------------


@pytest.mark.one_server("it counts statements of one engine")
@pytest.mark.parametrize("for_good", [False, True])
def test_whichever_statement_fails_each_time_fires_once(
    tmp_path: Path, deployment: str, for_good: bool
) -> None:
    for failing in range(1, 60):
        with world_at(tmp_path / f"{failing}.db") as world:
            WorkerDouble(world)
            schedule = create(world, every=60)
            assert schedule.next_at is not None
            world.clock.now = schedule.next_at
            with faults(world.store, lambda n, _, at=failing: n >= at if for_good else n == at) as found:
                world.submit()
            if for_good and found.failed:
                assert fired(world, schedule.id) == []
                wake_at = world.engine.wake_at()
                assert wake_at is not None
                assert wake_at > world.clock(), "it does not try in circles"
            world.clock.advance(2)
            world.submit()
            world.restart()
            world.submit()
            assert fired(world, schedule.id) == [schedule.next_at]
            if not found.failed:
                return
    raise AssertionError("some statement always fails")


def test_each_engine_knows_of_what_another_has_made(world: World, worker: WorkerDouble) -> None:
    schedule = create(world, every=60)
    world.look() if hasattr(world, "look") else None
    engines: list[Engine] = getattr(world, "engines", [world.engine])
    assert {engine.state.next_schedule_at for engine in engines} == {schedule.next_at}
    sleep_until_woken(world)
    assert {engine.state.next_schedule_at for engine in engines} == {row_of(world, schedule.id).next_at}
    assert len(fired(world, schedule.id)) == 1
    world.do(DeleteSchedule(schedule.id))
    assert {engine.state.next_schedule_at for engine in engines} == {None}


@database_property(25)
@given(
    lines=st.lists(
        st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 * * * *", "15 1,2,3 * * *", "*/40 2 * * *"]),
        min_size=1,
        max_size=3,
    ),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    day=st.sampled_from(["2027-03-27", "2027-10-30", "2027-03-13", "2027-11-06", "2027-10-02", "2027-04-03"]),
    steps=st.lists(
        st.tuples(st.integers(0, 40_000), st.sampled_from(["look", "restart", "command"])),
        min_size=3,
        max_size=8,
    ),
)
def test_what_fires_is_the_last_of_the_times_since_the_last_look(
    deployment: str,
    lines: list[str],
    zone: str,
    day: str,
    steps: list[tuple[int, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However long nobody looks, whoever looks and whoever ends: as a model of the times says, and no time twice."""
    from support.many import world_of

    with world_of(deployment, tmp_path_factory.mktemp("schedules") / "m.db") as world:
        world.clock.now = microseconds(f"{day}T18:00+00:00")
        if hasattr(world, "restart"):
            world.restart()
        WorkerDouble(world)
        ids = [create(world, cron=line, timezone=zone).id for line in lines]
        looked = {schedule_id: row_of(world, schedule_id).created_at for schedule_id in ids}
        expected: dict[str, list[int]] = {schedule_id: [] for schedule_id in ids}
        for seconds, step in steps:
            world.clock.advance(seconds)
            if step == "restart":
                world.restart()
            world.submit(
                *(
                    [CreateSchedule(CreateScheduleRequest(task="work", every="300d"))]
                    if step == "command"
                    else []
                )
            )
            for schedule_id, line in zip(ids, lines, strict=True):
                now = world.clock()
                cron, at = Cron(line, zone), looked[schedule_id]
                times = list[int]()
                while (at := cron.next_after(at)) <= now:
                    times.append(at)
                if times:
                    expected[schedule_id].append(times[-1])
                looked[schedule_id] = now
        assert {schedule_id: fired(world, schedule_id) for schedule_id in ids} == expected
        for schedule_id, line in zip(ids, lines, strict=True):
            assert row_of(world, schedule_id).next_at == upcoming(Cron(line, zone), world.clock(), 1)[0]


# --- clocks that are set -----------------------------------------------------------------------------------


class SteadyWorld(World):
    """A world whose wall clock can be set; time goes by on both clocks (`pass_time`)."""

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
def steady_world(tmp_path: Path) -> Iterator[SteadyWorld]:
    world = SteadyWorld(new_store(tmp_path / "steady.db"))
    WorkerDouble(world)
    yield world
    world.close()


@pytest.mark.one_server("servers on one database go by its clock")
class TestAClockThatIsSet:
    def test_back_a_little_no_time_fires_twice(self, steady_world: SteadyWorld, deployment: str) -> None:
        world = steady_world
        schedule = create(world, cron="0 * * * *")
        first = schedule.next_at
        assert first is not None
        world.pass_time((first - world.clock()) / 1_000_000 + 1)
        world.submit()
        assert fired(world, schedule.id) == [first]
        world.jump(-2 * 3600)
        for _ in range(12):
            world.pass_time(900)
            world.submit()
        assert fired(world, schedule.id) == [first, first + 3600 * 1_000_000]

    def test_back_by_years_it_goes_on_from_now(self, steady_world: SteadyWorld, deployment: str) -> None:
        world = steady_world
        schedule = create(world, cron="0 * * * *")
        world.jump(3 * 365 * DAY)
        world.submit()
        assert len(fired(world, schedule.id)) == 1, "the clock says so"
        world.jump(-3 * 365 * DAY)
        world.submit()
        following = Cron("0 * * * *").next_after(world.clock())
        assert row_of(world, schedule.id).next_at == following
        world.pass_time((following - world.clock()) / 1_000_000)
        world.submit()
        assert fired(world, schedule.id)[-1] == following

    @pytest.mark.parametrize("seconds", [7200.0, -7200.0, 400 * DAY, -400 * DAY])
    def test_what_counts_time_does_not_notice(
        self, steady_world: SteadyWorld, seconds: float, deployment: str
    ) -> None:
        world = steady_world
        schedule = create(world, every=600)
        world.pass_time(601)
        world.submit()
        world.jump(seconds)
        count = 1
        for _ in range(20):
            world.pass_time(100)
            world.submit()
            count = len(fired(world, schedule.id))
        assert count == 1 + 20 * 100 // 600

    def test_back_while_no_server_was_there(self, steady_world: SteadyWorld, deployment: str) -> None:
        world = steady_world
        schedule = create(world, every=600)
        world.pass_time(601)
        world.submit()
        world.jump(-400 * DAY)
        world.restart()
        for _ in range(14):
            world.pass_time(100)
            world.submit()
        assert len(fired(world, schedule.id)) == 3


def test_a_day_without_a_database_takes_up_again(tmp_path: Path) -> None:
    """A database of today's times, opened by a later server: the latest time fires, and RegisterWorker still works."""
    with world_at(tmp_path / "m.db") as world:
        schedule = create(world, cron="0 0 * * *")
        world.clock.advance(10 * DAY)
        world.restart()
        world.do(RegisterWorker("worker_9", "worker_9", [offered("work")], []))
        assert len(fired(world, schedule.id)) == 1
        assert world.clock() > START
