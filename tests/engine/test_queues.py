"""Queues: their limits hold at every commit, whoever claims, waits, goes on, fails or vanishes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from milepost.engine.commands import ReleaseLostRuns, Report
from milepost.model.run import RunStatus
from milepost.protocol.triggering import QueueOption
from milepost.protocol.work import ClaimedRun, RunReport
from milepost.store import schema
from milepost.store.queues import all_queues
from support.many import world_of
from support.properties import database_property
from support.world import WorkerDouble, World, item, offered

pytestmark = pytest.mark.several_servers(postgres=True)


def limited(world: World, worker_id: str = "worker_1", *, concurrency: int | None = 1) -> WorkerDouble:
    return WorkerDouble(world, worker_id, offered("work", queue="narrow", concurrency=concurrency))


def status(world: World, run: ClaimedRun) -> RunStatus:
    return world.reader.run(run.id).status


def wait(worker: WorkerDouble, run: ClaimedRun) -> None:
    worker.report(run, waiting=True)


def go_on(worker: WorkerDouble, run: ClaimedRun) -> bool | None:
    [reply] = worker.send(RunReport(id=run.id, attempt=run.attempt, waiting=False))
    return reply.resumed


def resumed(world: World) -> list[tuple[str, str]]:
    """Who was told to go on, by the last announcement."""
    return [(told.holder, run_id) for told in world.announcements[-1].resumed for run_id in told.ids]


def counts(world: World) -> dict[str, tuple[int, int]]:
    with world.store.read() as connection:
        return {queue.name: (queue.executing, queue.resuming) for queue in all_queues(connection)}


def test_a_run_that_waited_takes_its_place_in_the_queue_again(world: World) -> None:
    worker = limited(world)
    world.trigger_batch(*[item()] * 3)
    first = worker.claim_one()
    assert first.has_queue_limit
    wait(worker, first)
    second = worker.claim_one()
    assert go_on(worker, first) is False
    assert status(world, first) is RunStatus.WAITING
    assert counts(world) == {"narrow": (1, 1)}
    worker.finish(second)
    # It comes before what is queued.
    assert resumed(world) == [(worker.id, first.id)]
    assert status(world, first) is RunStatus.EXECUTING
    assert worker.claim() == []
    assert go_on(worker, first) is True
    worker.finish(first)
    worker.finish(worker.claim_one())
    assert counts(world) == {"narrow": (0, 0)}


def test_without_a_limit_a_run_goes_on_at_once(world: World) -> None:
    worker = limited(world, concurrency=None)
    world.trigger()
    run = worker.claim_one()
    assert not run.has_queue_limit
    wait(worker, run)
    assert go_on(worker, run) is True
    assert counts(world) == {}


def test_those_that_have_wanted_to_go_on_longest_come_first(world: World) -> None:
    worker = limited(world)
    world.trigger_batch(*[item()] * 4)
    waiting: list[ClaimedRun] = []
    for _ in range(3):
        waiting.append(worker.claim_one())
        wait(worker, waiting[-1])
    holder = worker.claim_one()
    for run in (waiting[1], waiting[0], waiting[2]):
        assert go_on(worker, run) is False
        assert go_on(worker, run) is False, "asked twice"
    for ending, following in ((holder, waiting[1]), (waiting[1], waiting[0]), (waiting[0], waiting[2])):
        worker.finish(ending)
        assert resumed(world) == [(worker.id, following.id)]
    worker.finish(waiting[2])
    assert counts(world) == {"narrow": (0, 0)}


@pytest.mark.parametrize("how", ["finishes", "fails", "waits again", "is lost", "leaves", "dies"])
def test_who_is_no_longer_there_to_go_on_holds_up_nobody(world: World, how: str) -> None:
    worker, other = limited(world), limited(world, "worker_2")
    world.trigger_batch(*[item(max_attempts=1)] * 3)
    wanting = worker.claim_one()
    wait(worker, wanting)
    holder = other.claim_one()
    assert go_on(worker, wanting) is False
    match how:
        case "finishes":
            worker.finish(wanting)
        case "fails":
            worker.fail(wanting)
        case "waits again":
            wait(worker, wanting)
        case "is lost":
            for _ in range(6):
                world.clock.advance(6)
                world.submit(Report(other.id, []), ReleaseLostRuns())
        case "leaves":
            worker.send(leaving=True)
        case _:
            worker.die(waiting=[wanting])
    assert counts(world) == {"narrow": (1, 0)}
    other.finish(holder)
    assert len(other.claim(5)) == 1


def test_a_limit_that_is_lowered_below_what_runs_is_reached_when_they_end(world: World) -> None:
    worker = limited(world, concurrency=3)
    world.trigger_batch(*[item()] * 6)
    runs = worker.claim(5)
    assert len(runs) == 3
    other = limited(world, "worker_2", concurrency=1)
    for run in runs:
        assert other.claim(5) == []
        worker.finish(run)
    assert len(other.claim(5)) == 1
    assert counts(world) == {"narrow": (1, 0)}


def test_a_limit_that_is_raised_or_taken_away_lets_those_go_on_that_wait(world: World) -> None:
    worker = limited(world)
    world.trigger_batch(*[item()] * 3)
    first = worker.claim_one()
    wait(worker, first)
    second = worker.claim_one()
    wait(worker, second)
    worker.claim_one()
    assert [go_on(worker, run) for run in (second, first)] == [False, False]
    limited(world, "worker_2", concurrency=2)
    assert resumed(world) == [(worker.id, second.id)]
    limited(world, "worker_2", concurrency=None)
    assert resumed(world) == [(worker.id, first.id)]
    # What executes while there is no limit is counted when there is one again.
    limited(world, "worker_2", concurrency=4)
    assert counts(world) == {"narrow": (3, 0)}
    world.trigger_batch(*[item()] * 3)
    assert len(worker.claim(5)) == 1


def test_a_full_queue_costs_the_others_nothing(world: World) -> None:
    """One task, many queues: those of the full one come first and are not in the way."""
    worker = limited(world)
    world.trigger_batch(*[item()] * 50)
    worker.claim_one()
    elsewhere = world.trigger(queue=QueueOption("elsewhere"))
    assert [run.id for run in worker.claim(5)] == [elsewhere]


def test_a_paused_queue_hands_out_nothing_and_lets_go_on_who_has_begun(world: World) -> None:
    worker = limited(world, concurrency=2)
    world.trigger_batch(*[item()] * 2)
    run = worker.claim_one()
    wait(worker, run)
    with world.store.write() as connection:
        connection.execute(update(schema.queues).values(is_paused=1))
    world.restart()
    assert worker.claim(5) == []
    assert go_on(worker, run) is True


def test_limits_and_counts_survive_a_restart(world: World) -> None:
    worker = limited(world)
    world.trigger_batch(*[item()] * 3)
    first = worker.claim_one()
    wait(worker, first)
    second = worker.claim_one()
    assert go_on(worker, first) is False
    world.restart()
    assert worker.claim(3) == []
    worker.finish(second)
    assert resumed(world) == [(worker.id, first.id)]


@given(st.data())
@database_property(30)
def test_counts_are_what_the_runs_say_and_limits_hold(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Whatever happens, at each commit."""
    folder = tmp_path_factory.mktemp("queues")
    with world_of(deployment, folder / "milepost.db") as world:
        limits = {"narrow": data.draw(st.integers(1, 3)), "wide": None}
        workers = [_of_two_tasks(world, name, limits) for name in ("worker_1", "worker_2")]
        held: list[tuple[WorkerDouble, ClaimedRun]] = []
        executing: dict[str, int] = {}
        for _ in range(data.draw(st.integers(5, 25))):
            worker = data.draw(st.sampled_from(workers))
            mine = [run for holder, run in held if holder is worker]
            moves = ["trigger", "claim", "leave", "die", "limit", "lease"]
            moves += ["wait", "go on", "finish", "fail"] * 2 if mine else []
            match data.draw(st.sampled_from(moves)):
                case "trigger":
                    queue = data.draw(st.sampled_from(["narrow", "wide", "other"]))
                    world.trigger(queue=QueueOption(queue), max_attempts=5)
                case "claim":
                    held += [(worker, run) for run in worker.claim(data.draw(st.integers(1, 4)))]
                case "wait":
                    wait(worker, data.draw(st.sampled_from(mine)))
                case "go on":
                    go_on(worker, data.draw(st.sampled_from(mine)))
                case "finish" | "fail" as how:
                    run = data.draw(st.sampled_from(mine))
                    held.remove((worker, run))
                    worker.finish(run) if how == "finish" else worker.fail(run, retry_after_ms=0)
                case "leave" | "die" as how:
                    held = [(holder, run) for holder, run in held if holder is not worker]
                    worker.send(leaving=True) if how == "leave" else worker.die(*mine)
                    worker.register()
                case "limit":
                    limits = {"narrow": data.draw(st.sampled_from([None, 1, 2, 3])), "wide": None}
                    workers = [_of_two_tasks(world, each.id, limits, each) for each in workers]
                case _:
                    world.pass_lease()
                    held = []
                    for each in workers:
                        each.register()
            executing = _check(world, executing)


def _of_two_tasks(
    world: World, name: str, limits: dict[str, int | None], worker: WorkerDouble | None = None
) -> WorkerDouble:
    tasks = [
        offered("work", queue="narrow", concurrency=limits["narrow"]),
        offered("other", queue="wide", concurrency=limits["wide"]),
    ]
    if worker is None:
        return WorkerDouble(world, name, *tasks)
    worker.tasks = tuple(tasks)
    with world.store.read() as connection:
        holding = connection.execute(
            select(schema.runs.c.id).where(
                schema.runs.c.worker_id == name, schema.runs.c.status.in_(["EXECUTING", "WAITING"])
            )
        ).scalars()
        worker_holds = list(holding)
    worker.register(worker_holds)
    return worker


def _check(world: World, before: dict[str, int]) -> dict[str, int]:
    """`before` and the answer: how many execute of each queue. A limit may be lowered below that; then it only shrinks."""
    runs = schema.runs
    with world.store.read() as connection:
        executing = dict(
            connection.execute(
                select(runs.c.queue, func.count()).where(runs.c.status == "EXECUTING").group_by(runs.c.queue)
            ).all()
        )
        resuming = dict(
            connection.execute(
                select(runs.c.queue, func.count())
                .where(runs.c.resuming_at.is_not(None))
                .group_by(runs.c.queue)
            ).all()
        )
        stray = connection.execute(
            select(func.count()).where(runs.c.resuming_at.is_not(None), runs.c.status != "WAITING")
        ).scalar_one()
        rows = all_queues(connection)
    assert stray == 0
    for queue in rows:
        if queue.concurrency is not None:
            assert (queue.executing, queue.resuming) == (
                executing.get(queue.name, 0),
                resuming.get(queue.name, 0),
            )
            assert not queue.resuming or queue.executing >= queue.concurrency, "somebody waits for nothing"
            assert queue.executing <= max(queue.concurrency, before.get(queue.name, 0))
        else:
            assert not resuming.get(queue.name)
    return executing
