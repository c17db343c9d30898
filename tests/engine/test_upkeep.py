"""The upkeep with several servers on one database: each job is done by one of them at a time."""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from milepost.engine.announcements import Announcement
from milepost.engine.commands import (
    BeginJob,
    Command,
    FinishJob,
    IndexDocuments,
    PruneAnswers,
    ReleaseLostRuns,
)
from milepost.engine.committer import Committer
from milepost.engine.engine import Engine, Request
from milepost.engine.jobs import LEASE_MICROSECONDS, JobName
from milepost.model.operations import Set
from milepost.model.run import RunStatus
from milepost.store.database import Store
from milepost.store.upkeep import JobRow, load_job
from milepost.upkeep.jobs import JOBS, UpkeepSettings
from milepost.upkeep.upkeep import Upkeep
from support.world import Clock, Ticket, WorkerDouble, World, result_of

LEASE = LEASE_MICROSECONDS / 1_000_000
PERIOD = 600_000_000
SETTINGS = UpkeepSettings(lease_seconds=30, grace_seconds=3600, history_days=30, stream_days=30)


class Server:
    """Another server on the world's database, with clocks of its own."""

    def __init__(self, world: World, name: str, *, ahead: float = 0) -> None:
        self.world = world
        self.name = name
        self.clock = Clock(world.clock() + round(ahead * 1_000_000))
        self.steady = Clock(1_000_000)
        self.engine = Engine(world.store, world.settings, self.clock, self.steady, server_id=name)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.steady.advance(seconds)

    def do(self, command: Command) -> object:
        ticket = Ticket()
        answers, _ = self.engine.execute([Request(command, ticket)])
        for answer, result in answers:
            answer(result)
        return result_of(ticket)


def job(world: World, name: JobName) -> JobRow | None:
    with world.store.read() as connection:
        return load_job(connection, name)


@pytest.fixture
def servers(world: World) -> tuple[Server, Server]:
    return Server(world, "server_a"), Server(world, "server_b")


def pass_time(servers: tuple[Server, Server], seconds: float) -> None:
    for server in servers:
        server.pass_time(seconds)


def test_every_job_has_a_row_in_the_table() -> None:
    assert list(JOBS) == list(JobName)
    for name, row in JOBS.items():
        assert row.name is name
        assert row.batch > 0
        assert 0 < row.period(SETTINGS) <= 600


def test_what_one_server_indexes_no_other_one_does_until_its_lease_is_over(
    world: World, servers: tuple[Server, Server]
) -> None:
    first, second = servers
    assert first.do(IndexDocuments(10)) == 0
    assert job(world, JobName.INDEX) is None, "there was nothing to do"
    run_id = world.trigger(metadata={"n": 0})
    assert first.do(IndexDocuments(10)) == 1
    for number in range(12):
        pass_time(servers, 5)
        world.write(run_id, Set("n", number))
        assert second.do(IndexDocuments(10)) == 0
        assert first.do(IndexDocuments(10)) == 1
    # The first one is killed.
    world.write(run_id, Set("n", "last"))
    pass_time(servers, LEASE - 11)
    assert second.do(IndexDocuments(10)) == 0
    pass_time(servers, 12)
    assert second.do(IndexDocuments(10)) == 1
    world.write(run_id, Set("n", "after"))
    assert first.do(IndexDocuments(10)) == 0, "it was frozen, and goes on"
    assert second.do(IndexDocuments(10)) == 1


def test_a_lease_is_renewed_seldom(world: World, servers: tuple[Server, Server]) -> None:
    first, _ = servers
    run_id = world.trigger(metadata={"n": 0})
    written: list[int] = []
    for number in range(60):
        pass_time(servers, 1)
        world.write(run_id, Set("n", number))
        first.do(IndexDocuments(10))
        row = job(world, JobName.INDEX)
        assert row is not None
        written.append(row.lease_until)
    assert len(set(written)) <= 7


def test_a_job_that_forgets_is_done_once_in_a_period_by_any_server(
    world: World, servers: tuple[Server, Server]
) -> None:
    first, second = servers
    begin, finish = BeginJob(JobName.ANSWERS, PERIOD), FinishJob(JobName.ANSWERS)
    assert first.do(begin)
    assert not second.do(begin)
    assert second.do(PruneAnswers(10)) == 0
    first.do(finish)
    pass_time(servers, 500)
    assert not first.do(begin)
    assert not second.do(begin)
    pass_time(servers, 101)
    assert second.do(begin)
    assert not first.do(begin)
    # The second one dies in the middle.
    pass_time(servers, LEASE + 1)
    assert first.do(begin)
    second.do(finish)
    row = job(world, JobName.ANSWERS)
    assert row is not None
    assert row.holder == "server_a"
    assert row.lease_until > first.engine.age_now, "what is not its own it does not finish"


@pytest.mark.parametrize("ahead", [-300, 300])
def test_servers_whose_clocks_differ_leave_no_job_undone(world: World, ahead: float) -> None:
    first, second = Server(world, "server_a"), Server(world, "server_b", ahead=ahead)
    world.trigger(metadata={"n": 0})
    world.trigger(metadata={"n": 0})
    assert first.do(IndexDocuments(1)) == 1
    pass_time((first, second), 300 + 2 * LEASE)
    assert second.do(IndexDocuments(1)) == 1


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_runs_of_lost_workers_are_given_up_in_bounded_steps(world: World, limit: int) -> None:
    workers = [WorkerDouble(world, f"worker_{number}") for number in range(2)]
    runs = [world.trigger() for _ in range(7)]
    for worker, slots in zip(workers, (4, 3), strict=True):
        worker.begin(*worker.claim(slots))
    found: list[int] = []
    for _ in range(6):
        world.clock.advance(world.settings.lease_seconds / 5)
        found += [world.do(ReleaseLostRuns(limit))]
    while found[-1] == limit:
        found.append(world.do(ReleaseLostRuns(limit)))
    assert sum(found) == 7
    assert max(found) <= limit
    assert {world.reader.row(run).status for run in runs} == {RunStatus.CRASHED}


@contextmanager
def running(store: Store, world: World) -> Generator[tuple[Upkeep, Committer]]:
    def announce(announcement: Announcement) -> None:
        world.announced(announcement)

    engine = Engine(store, world.settings, world.clock)
    committer = Committer(engine, world.clock, announce)
    committer.start()
    try:
        yield Upkeep(SETTINGS, committer, engine, store), committer
    finally:
        committer.stop()


def test_an_idle_server_writes_nothing_but_when_it_forgets(world: World) -> None:
    """However often the jobs look: the write-ahead log stays as it is, and no transaction is counted."""
    run_id = world.trigger(metadata={"n": 0})
    WorkerDouble(world)

    async def scenario(upkeep: Upkeep) -> None:
        for name in JobName:
            await upkeep.do(name)
        before = world.dump(), written_so_far(world)
        for _ in range(20):
            world.clock.advance(1)
            for name in (JobName.LEASES, JobName.INDEX):
                await upkeep.do(name)
        assert (world.dump(), written_so_far(world)) == before
        world.write(run_id, Set("n", 1))
        await upkeep.do(JobName.INDEX)
        assert world.dump() != before[0]

    with running(world.store, world) as (upkeep, _):
        asyncio.run(scenario(upkeep))


def written_so_far(world: World) -> int:
    """What grows whenever something is written."""
    if not world.store.is_shared:
        return Path(f"{world.store.place}-wal").stat().st_size
    with world.store.read() as connection:
        return connection.execute(
            text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        ).scalar_one()


def test_jobs_that_forget_wait_while_the_clock_is_doubted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.trigger()
    world.clock.advance(40 * 86_400)

    async def scenario(upkeep: Upkeep, committer: Committer) -> list[Command]:
        told: list[Command] = []
        has_looked = asyncio.Event()
        submit = committer.submit

        async def noting(command: Command) -> object:
            told.append(command)
            if isinstance(command, IndexDocuments):
                has_looked.set()
            return await submit(command)

        monkeypatch.setattr(committer, "submit", noting)
        tasks = upkeep.start()
        await has_looked.wait()
        for task in tasks:
            task.cancel()
        return told

    with running(world.store, world) as (upkeep, committer):
        told = asyncio.run(scenario(upkeep, committer))
    assert not any(isinstance(command, BeginJob | PruneAnswers) for command in told)
    assert job(world, JobName.ANSWERS) is None


@pytest.mark.sqlite_only("a server there is never the only one")
def test_a_server_that_starts_anew_goes_on_with_what_it_had_begun(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it is the only one on its database, no lease of its own holds it up."""
    caplog.set_level(logging.WARNING)
    assert world.do(BeginJob(JobName.ANSWERS, PERIOD))
    world.restart()
    assert world.do(BeginJob(JobName.ANSWERS, PERIOD))
    world.do(FinishJob(JobName.ANSWERS))
    world.restart()
    assert not world.do(BeginJob(JobName.ANSWERS, PERIOD))
    assert not caplog.records
