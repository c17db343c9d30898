"""Runs are deleted with everything that belongs to them: by age, tree by tree, and because somebody says so."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from milepost.engine.commands import AddOutsideChunks, DeleteRun, Trigger, UpdateMetadata, Written
from milepost.engine.jobs import JobName
from milepost.errors import ConflictError, RunNotFoundError
from milepost.model.operations import Append, Set
from milepost.protocol.streams import WriterEnd
from milepost.store import deletion
from milepost.store.deletion import OF_RUNS
from milepost.store.run_counts import ALL, load_counts
from milepost.store.runs import RunFilter
from milepost.store.schema import batches, runs, tables
from milepost.upkeep.jobs import JOBS, Progress, UpkeepSettings
from support.many import Servers
from support.world import WorkerDouble, World, item, result_of, world_at

pytestmark = pytest.mark.several_servers(postgres=True)

DAY = 24 * 3600.0
KEPT = {
    "keep_completed_runs": timedelta(days=10),
    "keep_failed_runs": timedelta(days=30),
    "keep_canceled_runs": timedelta(days=10),
}


class Workshop:
    """What a job of the upkeep works with, on a world."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.settings = UpkeepSettings(
            lease_seconds=30, grace_seconds=3600, history_days=30, stream_days=30, **settings
        )
        self.store = world.store
        self.clock = world.clock
        self._world = world

    def age_clock(self) -> int:
        return self._world.engine.age_now

    async def submit(self, command: Any) -> Any:
        if isinstance(self._world, Servers):
            # A job is one server's.
            [ticket] = self._world.submit(command, at=0)
            return result_of(ticket)
        return self._world.do(command)


def forget(
    world: World,
    job: JobName = JobName.RUNS,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> None:
    """One round of a job."""
    workshop = Workshop(world, **settings)
    workshop.progress = progress or Progress()

    async def work() -> None:
        async for _ in JOBS[job].work(workshop, batch or JOBS[job].batch):
            pass

    asyncio.run(work())


def rich_run(world: World, worker: WorkerDouble, *, fails: bool = False, **options: Any) -> str:
    """A finished run with rows in as many tables as there are: large values, tags, a log, a stream, refusals, an earlier attempt."""
    large = msgspec.json.encode("x" * 20_000).decode()
    run_id = world.trigger(payload=large, tags=["a", "b"], metadata={"n": 0, "text": "y" * 9000}, **options)
    run = worker.claim_one()
    assert run.id == run_id
    worker.log(run, "one", "two")
    worker.report(run, Set("n", 1), Append("n", 2), Set("deep", {"k": 3}))
    world.do(AddOutsideChunks(Written(run_id, "out/s", "w", chunks=[b"1", b"2"], end=WriterEnd())))
    if fails:
        worker.fail(run)
    else:
        worker.finish(run, Set("n", 5), output=large)
    return run_id


def rows_of(world: World, *run_ids: str) -> dict[str, int]:
    """Rows that name one of these runs, in any column of any table whose name says that it may."""
    found: dict[str, int] = {}
    with world.store.read() as connection:
        for table in tables.sorted_tables:
            for column in table.columns:
                if column.name in ("run_id", "parent_id", "root_id") or (
                    table is runs and column.name == "id"
                ):
                    rows = select(func.count()).select_from(table).where(column.in_(run_ids))
                    if count := connection.execute(rows).scalar_one():
                        found[f"{table.name}.{column.name}"] = count
    return found


def check_counts(world: World) -> None:
    """What is counted of runs is what there is."""
    with world.store.read() as connection:
        counted = select(runs.c.status, func.count()).group_by(runs.c.status)
        assert load_counts(connection, ALL) == {row[0]: row[1] for row in connection.execute(counted)}
        for parent in connection.execute(select(runs.c.parent_id).distinct()).scalars():
            if parent is not None:
                own = counted.where(runs.c.parent_id == parent)
                assert load_counts(connection, parent) == {row[0]: row[1] for row in connection.execute(own)}


def test_every_table_with_rows_of_runs_is_known() -> None:
    known = {table.name for table, _ in OF_RUNS}
    assert {table.name for table in tables.sorted_tables if "run_id" in table.columns} <= known


def test_nothing_is_left_of_a_run(world: World, worker: WorkerDouble) -> None:
    run_id = rich_run(world, worker)
    failed = rich_run(world, worker, fails=True)
    other = rich_run(world, worker)
    before = rows_of(world, other)
    assert len(rows_of(world, run_id)) >= 8
    assert world.do(DeleteRun(run_id)) == (1, 0)
    assert world.do(DeleteRun(failed)) == (1, 0)
    assert rows_of(world, run_id, failed) == {}
    assert rows_of(world, other) == before
    check_counts(world)
    with pytest.raises(RunNotFoundError):
        world.reader.run(run_id)
    with pytest.raises(RunNotFoundError):
        world.write(run_id, Set("n", 1))
    assert rows_of(world, run_id) == {}


def test_a_table_that_is_forgotten_is_found(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "OF_RUNS", [entry for entry in OF_RUNS if entry[0].name != "log_marks"])
    run_id = rich_run(world, worker)
    world.do(DeleteRun(run_id))
    assert set(rows_of(world, run_id)) == {"log_marks.run_id"}


def test_what_the_same_group_does_with_the_run_leaves_nothing(world: World, worker: WorkerDouble) -> None:
    run_id = rich_run(world, worker)
    write = msgspec.to_builtins([Set("late", 1)])
    world.submit(DeleteRun(run_id), UpdateMetadata(run_id, [("self", write)]))
    assert rows_of(world, run_id) == {}


def test_only_finished_runs_go_and_their_children_with_them(world: World, worker: WorkerDouble) -> None:
    parent_id = world.trigger()
    parent = worker.claim_one()
    with pytest.raises(ConflictError, match="it is EXECUTING"):
        world.do(DeleteRun(parent_id))
    child_id = world.trigger(parent_run_id=parent_id)
    child = worker.claim_one()
    worker.finish(child)
    with pytest.raises(ConflictError, match=f"while its parent {parent_id} is EXECUTING"):
        world.do(DeleteRun(child_id))
    below_id = world.trigger(parent_run_id=child_id)
    worker.finish(parent)
    with pytest.raises(ConflictError, match=f"run {below_id}, which is below it, has not: it is QUEUED"):
        world.do(DeleteRun(parent_id))
    worker.finish(worker.claim_one())
    assert world.do(DeleteRun(child_id)) == (2, 0)
    assert world.reader.run(parent_id).child_counts == {}
    check_counts(world)
    assert world.do(DeleteRun(parent_id)) == (1, 0)
    assert rows_of(world, parent_id, child_id, below_id) == {}
    with pytest.raises(RunNotFoundError):
        world.do(DeleteRun(parent_id))


def test_a_large_tree_goes_in_portions(world: World, worker: WorkerDouble) -> None:
    parent_id = world.trigger()
    parent = worker.claim_one()
    batch = world.trigger_batch(*(item() for _ in range(25)), parent_id=parent_id)
    while found := worker.claim(25):
        for run in found:
            worker.finish(run)
    worker.finish(parent)
    assert world.do(DeleteRun(parent_id, 10, "r")) == (10, 16)
    check_counts(world)
    assert world.reader.run(parent_id).child_counts == {"COMPLETED": 15}
    assert world.do(DeleteRun(parent_id, 10, "r")) == (10, 6)
    assert world.do(DeleteRun(parent_id, 10, "r")) == (6, 0)
    assert world.do(DeleteRun(parent_id, 10, "r")) == (0, 0), "a repeat whose answer was lost"
    assert rows_of(world, parent_id, *batch.run_ids) == {}
    with world.store.read() as connection:
        assert connection.execute(select(func.count()).select_from(batches)).scalar_one() == 0


def test_runs_go_by_age_and_status(world: World, worker: WorkerDouble) -> None:
    completed, failed = rich_run(world, worker), rich_run(world, worker, fails=True)
    queued = world.trigger("other")
    world.clock.advance(9 * DAY)
    forget(world, **KEPT)
    young = rich_run(world, worker)
    assert {run.id for run in world.reader.page(RunFilter(), size=100).data} == {
        completed,
        failed,
        queued,
        young,
    }
    world.clock.advance(2 * DAY)
    forget(world, **KEPT)
    assert {run.id for run in world.reader.page(RunFilter(), size=100).data} == {failed, queued, young}
    assert rows_of(world, completed) == {}
    world.clock.advance(20 * DAY)
    forget(world, **KEPT)
    assert {run.id for run in world.reader.page(RunFilter(), size=100).data} == {queued}
    check_counts(world)


def test_without_a_setting_nothing_goes(world: World, worker: WorkerDouble) -> None:
    run_id = rich_run(world, worker)
    world.clock.advance(10_000 * DAY)
    forget(world)
    forget(world, keep_failed_runs=timedelta(days=1))
    forget(world, JobName.LOGS)
    assert world.log(run_id)


def test_a_tree_goes_as_a_whole_and_stays_as_a_whole(world: World, worker: WorkerDouble) -> None:
    parent_id = world.trigger()
    parent = worker.claim_one()
    children = [world.trigger(parent_run_id=parent_id) for _ in range(3)]
    first, second, third = worker.claim(3)
    worker.finish(first)
    worker.fail(second)
    worker.finish(parent)
    world.clock.advance(20 * DAY)
    forget(world, **KEPT)
    assert len(world.reader.page(RunFilter(), size=100).data) == 4, (
        "one goes on, one failed and is kept for longer"
    )
    # However old the tree is: a run of it has just ended.
    worker.register([third.id])
    worker.finish(third)
    world.clock.advance(5 * DAY)
    forget(world, **KEPT)
    assert len(world.reader.page(RunFilter(), size=100).data) == 4
    world.clock.advance(20 * DAY)
    forget(world, **KEPT)
    assert rows_of(world, parent_id, *children) == {}
    check_counts(world)


def test_a_run_that_takes_writes_stays(world: World, worker: WorkerDouble) -> None:
    run_id = rich_run(world, worker)
    world.clock.advance(60)
    forget(world, keep_completed_runs=timedelta(0))
    assert world.reader.run(run_id).status == "COMPLETED"
    world.clock.advance(3700)
    forget(world, keep_completed_runs=timedelta(0))
    assert rows_of(world, run_id) == {}


def test_logs_go_before_their_runs(world: World, worker: WorkerDouble) -> None:
    old, going_on = rich_run(world, worker), world.trigger()
    run = worker.claim_one()
    worker.log(run, "still at it")
    world.clock.advance(5 * DAY)
    young = rich_run_beside(world, run, worker)
    forget(world, JobName.LOGS, keep_logs=timedelta(days=3))
    assert (world.log(old), world.log(going_on), world.log(young)) == ([], ["still at it"], ["one", "two"])
    assert world.reader.run(old).output is not None


@pytest.mark.parametrize("batch", [1, 2, 3, 500])
def test_payloads_go_before_their_runs(world: World, worker: WorkerDouble, batch: int) -> None:
    large = '"' + "x" * 20_000 + '"'
    old, plain = world.trigger(payload=large), world.trigger()
    for run in worker.claim(2):
        worker.finish(run, output=large)
    parent_id = world.trigger(payload="1")
    parent = worker.claim_one()
    child = world.trigger(payload="2", parent_run_id=parent_id)
    worker.finish(worker.claim_one())
    world.clock.advance(5 * DAY)
    worker.register([parent_id])
    young = world.trigger(payload="3")
    worker.finish(worker.claim_one())

    def payloads() -> list[tuple[Any, bool]]:
        runs = [world.reader.run(run_id) for run_id in (old, plain, child, parent_id, young)]
        return [(run.payload and len(bytes(run.payload)), run.is_payload_deleted) for run in runs]

    kept, progress = timedelta(days=3), Progress()
    forget(world, JobName.PAYLOADS, batch=batch, progress=progress, keep_payloads=kept)
    # A child of a run that goes on may still be found by its payload.
    assert payloads() == [(None, True), (None, False), (1, False), (1, False), (1, False)]
    assert len(bytes(world.reader.run(old).output or b"")) == len(large)
    assert rows_of(world, old)["large_values.run_id"] == 1
    worker.finish(parent)
    world.clock.advance(5 * DAY)
    forget(world, JobName.PAYLOADS, batch=batch, progress=progress, keep_payloads=kept)
    assert [is_deleted for _, is_deleted in payloads()] == [True, False, True, True, True]
    assert progress.payloads_done_to == young, "nothing is looked at again"
    check_counts(world)


def test_payloads_are_kept_where_nothing_else_was_said(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(payload="1")
    worker.finish(worker.claim_one())
    world.clock.advance(5000 * DAY)
    forget(world, JobName.PAYLOADS)
    assert world.reader.run(run_id).payload is not None


def rich_run_beside(world: World, held: Any, worker: WorkerDouble) -> str:
    """Another rich run while one is held."""
    worker.register([held.id])
    return rich_run(world, worker)


def test_lists_are_told(world: World, worker: WorkerDouble) -> None:
    run_id = rich_run(world, worker)
    world.announcements.clear()
    world.do(DeleteRun(run_id))
    assert [one.deleted_runs for one in world.announcements if not one.is_empty] == [[run_id]]


@pytest.mark.one_server("it looks at a file")
def test_the_database_does_not_grow_for_ever(tmp_path: Path, deployment: str) -> None:
    """Rounds of runs that are deleted use the same pages again: after the first rounds the file stays as large as it is."""
    path = tmp_path / "m.db"
    with world_at(path) as world:
        worker = WorkerDouble(world)
        sizes: list[int] = []
        for _ in range(8):
            for _ in range(12):
                rich_run(world, worker)
            world.do(Trigger(item("other")))
            world.clock.advance(2 * DAY)
            forget(world, keep_completed_runs=timedelta(days=1))
            with world.store.read() as connection:
                sizes.append(int(connection.exec_driver_sql("PRAGMA page_count").scalar() or 0))
        assert sizes[-1] <= sizes[1] * 1.1, sizes
