"""Claiming: who gets which run, in which order, when a claim waits and what ends its waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from milepost.engine import state
from milepost.engine.commands import CancelRun, Claim, RegisterWorker, Report, Trigger, TriggerBatch
from milepost.engine.state import ParkedClaim, ParkedClaims
from milepost.errors import NotFoundError
from milepost.model.operations import Set
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.triggering import QueueOption
from milepost.protocol.work import ClaimedRun
from milepost.store import runs, schema
from milepost.store.runs import RunFilter
from support.faults import faults
from support.many import world_of
from support.properties import database_property
from support.work import Work, work_of_writer
from support.world import Ticket, WorkerDouble, World, failure, item, offered, result_of

pytestmark = pytest.mark.several_servers(postgres=True)


def ids(ticket: Ticket) -> list[str]:
    """The runs that a claim was answered with."""
    return [run.id for run in result_of(ticket)]


def test_a_claimed_run_carries_all_that_the_attempt_needs(world: World, worker: WorkerDouble) -> None:
    parent = world.trigger()
    assert worker.claim_one().id == parent
    triggered = world.trigger_batch(
        item(payload='{"n":1}', tags=["t"], max_attempts=5, metadata={"a": 1}), parent_id=parent
    )
    world.write(triggered.run_ids[0], Set("b", 2))
    run = worker.claim_one()
    assert (run.id, run.task, run.attempt, run.max_attempts) == (triggered.run_ids[0], "work", 1, 5)
    assert (run.payload, run.payload_type, run.tags) == ('{"n":1}', "application/json", ["t"])
    assert (run.queue, run.parent_id, run.root_id) == ("task/work", parent, parent)
    assert (run.batch_id, run.depth) == (triggered.batch_id, 1)
    shown = world.reader.run(run.id)
    assert (shown.status, shown.attempt_count, shown.is_executing) == (RunStatus.EXECUTING, 1, True)
    assert shown.started_at is not None
    assert world.reader.metadata(run.id) == (b'{"a":1,"b":2}', 1)
    assert run.metadata_version == 1


def test_the_oldest_run_goes_first_over_all_tasks(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", offered("a"), offered("b"))
    triggered = [world.trigger(task) for task in "abbaab"]
    assert [run.id for run in worker.claim(4)] == triggered[:4]
    assert [run.id for run in worker.claim(4)] == triggered[4:]
    assert worker.claim(4) == []


def test_a_worker_gets_only_its_own_tasks(world: World) -> None:
    first = WorkerDouble(world, "worker_1", offered("a"))
    second = WorkerDouble(world, "worker_2", offered("b"))
    run_a, run_b = world.trigger("a"), world.trigger("b")
    assert [run.id for run in second.claim(10)] == [run_b]
    assert [run.id for run in first.claim(10)] == [run_a]


def test_a_long_queue_that_nobody_asks_for_does_not_matter(world: World) -> None:
    WorkerDouble(world, "worker_1", offered("other"))
    worker = WorkerDouble(world, "worker_2", offered("work"))
    for _ in range(3):
        world.do(TriggerBatch([item("other")] * 1000))
    run_id = world.trigger("work")
    assert worker.claim_one().id == run_id


def test_a_worker_that_is_not_registered_is_told_so(world: World, worker: WorkerDouble) -> None:
    [ticket] = world.submit(Claim("worker_9", 1, 1, 0))
    assert isinstance(ticket.result, NotFoundError)
    assert "register" in str(ticket.result)


def test_a_worker_without_tasks_or_slots_gets_nothing(world: World, worker: WorkerDouble) -> None:
    world.do(RegisterWorker("worker_2", "idle", [], []))
    world.trigger()
    assert world.do(Claim("worker_2", 1, 5, 0)) == []
    assert worker.claim(0) == []


@database_property(40)
@given(data=st.data())
def test_two_workers_never_get_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Random groups of triggers and claims: each run goes out once, oldest first, as many as there are slots."""
    with world_of(deployment, tmp_path_factory.mktemp("claims") / "milepost.db") as world:
        workers = [WorkerDouble(world, f"worker_{number}", offered("a"), offered("b")) for number in range(3)]
        triggered: list[str] = []
        claimed: list[str] = []
        waiting: list[Ticket] = []
        for _ in range(data.draw(st.integers(1, 6))):
            commands: list[Trigger | Claim] = []
            for kind in data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=8)):
                if kind == "c":
                    worker = data.draw(st.sampled_from(workers))
                    commands.append(worker.next_claim(data.draw(st.integers(1, 3)), wait=60))
                else:
                    commands.append(Trigger(item(kind)))
            tickets = world.submit(*commands)
            for command, ticket in zip(commands, tickets, strict=True):
                if isinstance(command, Claim):
                    waiting.append(ticket)
                else:
                    triggered += result_of(ticket).run_ids
            for ticket in [ticket for ticket in waiting if ticket.is_answered]:
                waiting.remove(ticket)
                assert ids(ticket) == sorted(ids(ticket))
                claimed += ids(ticket)
            assert len(set(claimed)) == len(claimed)
            assert not waiting or set(claimed) == set(triggered), "a claim waits while a run is due"
        assert sorted(claimed) == sorted(triggered)[: len(claimed)]


# --- waiting -----------------------------------------------------------------------------------------------


def test_a_claim_waits_for_a_trigger(world: World, worker: WorkerDouble) -> None:
    [waiting] = world.submit(worker.next_claim(5, wait=60))
    assert not waiting.is_answered
    world.submit()
    assert not waiting.is_answered
    [triggered] = world.submit(Trigger(item()))
    assert ids(waiting) == result_of(triggered).run_ids
    assert world.engine.wake_at() is None


def test_a_trigger_for_another_task_leaves_a_claim_waiting(world: World, worker: WorkerDouble) -> None:
    WorkerDouble(world, "worker_2", offered("other"))
    [waiting] = world.submit(worker.next_claim(wait=60))
    world.trigger("other")
    assert not waiting.is_answered


def test_a_claim_is_answered_with_nothing_at_its_deadline(world: World, worker: WorkerDouble) -> None:
    [waiting] = world.submit(worker.next_claim(wait=2))
    started = world.clock()
    assert world.engine.wake_at() == started + 2_000_000
    world.clock.advance(1.99)
    world.submit()
    assert not waiting.is_answered
    world.clock.advance(0.01)
    world.submit()
    assert ids(waiting) == []
    assert world.engine.wake_at() is None


def test_a_claim_that_does_not_want_to_wait_is_answered_at_once(world: World, worker: WorkerDouble) -> None:
    [ticket] = world.submit(worker.next_claim(wait=0))
    assert ids(ticket) == []


def test_a_claim_wakes_for_a_retry_that_becomes_due(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=5_000)
    due_at = world.clock() + 5_000_000
    [waiting] = world.submit(worker.next_claim(wait=60))
    assert world.engine.wake_at() == due_at
    world.clock.now = due_at - 2_000
    world.submit()
    assert not waiting.is_answered
    world.clock.now = due_at
    world.submit()
    [run] = result_of(waiting)
    assert (run.id, run.attempt) == (run_id, 2)


def test_a_claim_wakes_for_a_retry_from_before_a_restart(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.fail(worker.claim_one(), retry_after_ms=5_000)
    due_at = world.clock() + 5_000_000
    world.restart()
    worker.register()
    [waiting] = world.submit(worker.next_claim(wait=60))
    assert world.engine.wake_at() == due_at
    world.clock.now = due_at
    world.submit()
    assert ids(waiting) == [run_id]


@pytest.mark.parametrize("key", [None, "one"])
def test_retries_that_become_due_one_after_the_other_each_wake_a_claim(
    world: World, worker: WorkerDouble, key: str | None
) -> None:
    for delay in (3_000, 1_000, 2_000):
        world.trigger(concurrency_key=key)
        worker.fail(worker.claim_one(), retry_after_ms=delay)
    order: list[str] = []
    for _ in range(3):
        [waiting] = world.submit(worker.next_claim(wait=60))
        while not waiting.is_answered:
            world.clock.now = max(world.clock.now, world.engine.wake_at() or 0)
            world.submit()
        order += ids(waiting)
    assert len(set(order)) == 3


@pytest.mark.parametrize("ends_before", [True, False])
def test_what_is_due_behind_another_run_of_its_concurrency_key_wakes_a_claim_in_time(
    world: World, ends_before: bool
) -> None:
    """The line of keys has one time for both. Also where the first run is claimed by one who waits, or was cancelled before."""
    workers = [WorkerDouble(world, f"worker_{number}") for number in (1, 2)]
    first, second = (world.trigger(concurrency_key="one") for _ in range(2))
    for run, pause in zip(workers[0].claim(2), (1_000, 3_000), strict=True):
        workers[0].fail(run, retry_after_ms=pause)
    due_at = world.clock() + 3_000_000
    waiting = [world.submit(worker.next_claim(wait=60))[0] for worker in workers]
    if ends_before:
        world.do(CancelRun(first))
    given: list[str] = []
    while second not in given:
        wake_at = world.wake_at()
        assert wake_at is not None
        assert wake_at <= due_at
        world.clock.now = max(world.clock.now, wake_at)
        world.submit()
        given = [run_id for ticket in waiting if ticket.is_answered for run_id in ids(ticket)]
    assert given == ([second] if ends_before else [first, second])


def test_a_newer_claim_takes_the_place_of_the_waiting_one(world: World, worker: WorkerDouble) -> None:
    [older] = world.submit(worker.next_claim(1, wait=60))
    [newer] = world.submit(worker.next_claim(2, wait=60))
    assert ids(older) == []
    first, second = world.trigger_batch(item(), item(), item()).run_ids[:2]
    assert ids(newer) == [first, second]
    assert ids(older) == []


def test_a_claim_that_waits_is_told_when_its_worker_was_given_up(world: World, worker: WorkerDouble) -> None:
    [waiting] = world.submit(worker.next_claim(wait=60))
    world.submit(Report(worker.id, [], leaving=True))
    world.clock.advance(60)
    world.submit()
    assert waiting.is_answered


def test_stopping_answers_waiting_claims_with_nothing(world: World, worker: WorkerDouble) -> None:
    [waiting] = world.submit(worker.next_claim(wait=60))
    answers, _ = world.engine.release_parked()
    for answer, result in answers:
        answer(result)
    assert ids(waiting) == []
    assert world.engine.release_parked() == ([], [])


# --- many waiting claims ------------------------------------------------------------------------------------


def look_for_work(work: Work) -> int:
    """How often due runs were looked for."""
    return work.matching("due_at <=")


@pytest.fixture
def crowd(world: World) -> list[Ticket]:
    """64 workers of the same 50 tasks whose claims wait."""
    tasks = [offered(f"task_{number}") for number in range(50)]
    workers = [WorkerDouble(world, f"worker_{number}", *tasks) for number in range(64)]
    WorkerDouble(world, "another", offered("other"))
    return [world.submit(worker.next_claim(1, wait=60))[0] for worker in workers]


def test_a_group_that_offers_nothing_does_not_look_at_waiting_claims(
    world: World, crowd: list[Ticket]
) -> None:
    run_id = world.trigger("other")
    with work_of_writer(world.store) as work:
        world.write(run_id, Set("a", 1))
        world.trigger("other")
        world.submit()
    assert look_for_work(work) == 0
    assert not any(ticket.is_answered for ticket in crowd)


@pytest.mark.one_server("it counts how often one engine looks for its own parked claims")
def test_what_is_queued_is_offered_to_as_many_claims_as_it_takes(world: World, crowd: list[Ticket]) -> None:
    with work_of_writer(world.store) as work:
        triggered = [world.trigger("task_7"), world.trigger("task_8")]
    # One look finds it, one more that nothing is left.
    assert look_for_work(work) <= 4
    assert [ids(ticket) for ticket in crowd[:2]] == [[run_id] for run_id in triggered]
    assert not any(ticket.is_answered for ticket in crowd[2:])
    with work_of_writer(world.store) as work:
        world.trigger_batch(*([item("task_9")] * 100))
    assert look_for_work(work) == 62
    assert all(ticket.is_answered for ticket in crowd)


def test_what_becomes_due_is_looked_for_once(world: World, crowd: list[Ticket]) -> None:
    worker = WorkerDouble(world, "another", offered("other"))
    run_id = world.trigger("other")
    worker.fail(worker.claim_one(), retry_after_ms=1000)
    [waiting] = world.submit(worker.next_claim(1, wait=60))
    world.clock.advance(1)
    with work_of_writer(world.store) as work:
        world.submit()
    assert ids(waiting) == [run_id]
    assert look_for_work(work) <= 3


def test_a_freed_slot_is_offered_without_asking_every_claim(world: World, crowd: list[Ticket]) -> None:
    narrow = WorkerDouble(world, "narrow", offered("narrow", concurrency=1))
    first, second = world.trigger("narrow"), world.trigger("narrow")
    run = narrow.claim_one()
    [waiting] = world.submit(narrow.next_claim(1, wait=60))
    with work_of_writer(world.store) as work:
        narrow.finish(run)
    assert (run.id, ids(waiting)) == (first, [second])
    assert look_for_work(work) <= 3


def test_a_raised_limit_is_handed_on_at_once(world: World) -> None:
    first = WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    world.trigger_batch(item(), item())
    first.claim_one()
    [waiting] = world.submit(first.next_claim(5, wait=60))
    assert not waiting.is_answered
    WorkerDouble(world, "worker_2", offered("work", concurrency=2))
    assert len(ids(waiting)) == 1


def test_what_a_worker_does_not_know_of_is_handed_on_at_once(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.claim_one()
    other = WorkerDouble(world, "worker_2")
    [waiting] = world.submit(other.next_claim(1, wait=60))
    worker.register(holding=[])
    assert ids(waiting) == [run_id]


def test_a_claim_that_could_not_be_given_its_run_waits_on(world: World, crowd: list[Ticket]) -> None:
    """What a failed group did with the waiting claims did not happen."""
    with faults(world.next_store, lambda number, statement: "COMMIT" in statement):
        world.submit(Trigger(item("task_3")))
    assert not any(ticket.is_answered for ticket in crowd)
    run_id = world.trigger("task_3")
    assert [ids(ticket) for ticket in crowd if ticket.is_answered] == [[run_id]]


_TASKS = {
    "a": offered("a"),
    "b": offered("b", queue="shared", concurrency=1),
    "c": offered("c", queue="shared", concurrency=1),
    "d": offered("d", concurrency=2),
}


@database_property(40)
@given(data=st.data())
def test_no_claim_waits_for_what_it_could_have(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Workers of different tasks, shared and limited queues, retries, waits, workers that come back with other tasks."""
    with world_of(deployment, tmp_path_factory.mktemp("waiting") / "milepost.db") as world:
        workers = {
            name: WorkerDouble(world, name, *(_TASKS[task] for task in name))
            for name in ("a", "ab", "bc", "cd")
        }
        waiting: dict[str, Ticket] = {}
        held: list[tuple[WorkerDouble, ClaimedRun]] = []
        for _ in range(data.draw(st.integers(5, 30))):
            match data.draw(
                st.sampled_from(["trigger", "claim", "claim", "end", "wait", "time", "register"])
            ):
                case "trigger":
                    queue = data.draw(st.sampled_from([None, None, QueueOption(name="shared")]))
                    world.trigger(data.draw(st.sampled_from("abcd")), queue=queue)
                case "claim":
                    worker = data.draw(st.sampled_from(list(workers.values())))
                    older = waiting.get(worker.id)
                    [waiting[worker.id]] = world.submit(
                        worker.next_claim(data.draw(st.integers(1, 2)), wait=60)
                    )
                    assert older is None or older.is_answered
                case "end" if held:
                    worker, run = held.pop(data.draw(st.integers(0, len(held) - 1)))
                    retry_after_ms = data.draw(st.sampled_from([None, 0, 1000]))
                    worker.send(worker.next_report(run, outcome=failure(retry_after_ms=retry_after_ms)))
                case "wait" if held:
                    worker, run = data.draw(st.sampled_from(held))
                    worker.report(run, waiting=data.draw(st.booleans()))
                case "time":
                    world.clock.advance(1)
                    world.submit()
                case "register":
                    worker = data.draw(st.sampled_from(list(workers.values())))
                    limit = data.draw(st.sampled_from([1, 2]))
                    worker.tasks = (*worker.tasks[:1], offered("d", concurrency=limit))
                    keeps = data.draw(st.booleans())
                    held = [(holder, run) for holder, run in held if holder is not worker or keeps]
                    worker.register([run.id for holder, run in held if holder is worker])
                    # Who presents itself claims anew.
                    [waiting[worker.id]] = world.submit(worker.next_claim(1, wait=60))
                case _:
                    pass
            for name, ticket in list(waiting.items()):
                if ticket.is_answered:
                    del waiting[name]
                    held += [(workers[name], run) for run in result_of(ticket)]
            with world.store.read() as connection:
                for name in waiting:
                    claim = world.parked(name)
                    assert claim is not None
                    full = [
                        queue
                        for queue, most in world.engine.state.catalog.queue_limits.items()
                        if sum(executing for _, executing, _ in runs.count_held(connection, queue)) >= most
                    ]
                    places = [
                        (task, queue)
                        for task, queue in runs.queued_places(connection)
                        if task in claim.tasks and queue not in full
                    ]
                    due = runs.due_ids(connection, places, limit=1, now=world.clock())
                    assert not due, (name, due)


@given(st.data())
def test_parked_claims_are_found_by_what_they_are(data: st.DataObject) -> None:
    """The claims that wait, against a plain dict of them."""
    parked, model = ParkedClaims(), dict[str, ParkedClaim]()
    patch = pytest.MonkeyPatch()
    patch.setattr(state, "DEADLINES_GONE_MAX", data.draw(st.sampled_from([0, 100])))
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from("uvwxyz"))
        if name in model:
            parked.remove(model.pop(name))
        else:
            tasks = tuple(data.draw(st.sets(st.sampled_from("abc"))))
            model[name] = ParkedClaim(Claim(name, 1, 1, 0), data.draw(st.integers(0, 5)), [], tasks)
            parked.add(model[name])
        now = data.draw(st.integers(-1, 6))
        assert {id(claim) for claim in parked.over(now)} == {
            id(claim) for claim in model.values() if claim.deadline <= now
        }
        assert parked.next_deadline() == min((claim.deadline for claim in model.values()), default=None)
        assert parked.tasks == {task for claim in model.values() for task in claim.tasks}
        for task in "abc":
            assert list(parked.waiting_for(task)) == [
                claim for claim in model.values() if task in claim.tasks
            ]
        assert (len(parked), list(parked)) == (len(model), list(model.values()))
    patch.undo()


# --- repeats -----------------------------------------------------------------------------------------------


def test_a_repeated_claim_gets_the_same_runs_again(world: World, worker: WorkerDouble) -> None:
    """The answer may get lost on its way; the runs in it may not."""
    world.trigger_batch(item(), item(), item())
    claim = worker.next_claim(2)
    first = world.do(claim)
    assert world.do(claim) == first
    assert len(worker.claim(2)) == 1


def test_a_repeated_claim_in_the_same_group_gets_the_same_runs(world: World, worker: WorkerDouble) -> None:
    """A server that was busy finds the claim and its repeat together; the first answer goes to a connection that is gone."""
    world.trigger_batch(item(), item())
    claim = worker.next_claim(1)
    first, second = world.submit(claim, claim)
    assert ids(first) == ids(second)
    assert len(worker.claim(5)) == 1


def test_a_repeat_that_meets_its_waiting_original_and_work_gets_that_work(
    world: World, worker: WorkerDouble
) -> None:
    claim = worker.next_claim(1, wait=60)
    world.submit(claim)
    triggered, again = world.submit(Trigger(item()), claim)
    assert ids(again) == result_of(triggered).run_ids


# --- queue limits ------------------------------------------------------------------------------------------


def test_a_queue_limit_holds_over_workers_and_a_freed_slot_is_handed_on(world: World) -> None:
    task = offered("work", concurrency=2)
    first, second = WorkerDouble(world, "worker_1", task), WorkerDouble(world, "worker_2", task)
    triggered = world.trigger_batch(*([item()] * 4)).run_ids
    [run] = first.claim(1)
    assert [other.id for other in second.claim(5)] == triggered[1:2]
    [waiting] = world.submit(second.next_claim(5, wait=60))
    assert not waiting.is_answered
    first.finish(run)
    assert ids(waiting) == triggered[2:3]


def test_a_waiting_run_gives_its_slot_back(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    first, second = world.trigger_batch(item(), item()).run_ids
    run = worker.claim_one()
    assert run.id == first
    assert worker.claim(5) == []
    worker.report(run, waiting=True)
    assert worker.claim_one().id == second


@pytest.mark.parametrize("slots", [1, 2, 10])
def test_a_full_queue_does_not_hold_up_the_others(world: World, slots: int) -> None:
    """Oldest first, but not behind what cannot be run now."""
    worker = WorkerDouble(world, "worker_1", offered("narrow", concurrency=1), offered("wide"))
    world.trigger_batch(*([item("narrow")] * 20))
    wide = world.trigger("wide")
    claimed = [run.id for run in worker.claim(slots)]
    claimed += [run.id for run in worker.claim(slots)]
    assert wide in claimed


def test_a_limited_queue_is_filled_although_its_older_runs_are_of_a_full_one(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", offered("a", concurrency=1), offered("b", concurrency=2))
    world.trigger_batch(*([item("a")] * 10), *([item("b")] * 10))
    assert sorted(run.task for run in worker.claim(5)) == ["a", "b", "b"]


def test_a_limit_counts_by_queue_and_not_by_task(world: World) -> None:
    worker = WorkerDouble(
        world,
        "worker_1",
        offered("a", queue="shared", concurrency=1),
        offered("b", queue="shared", concurrency=1),
    )
    world.trigger("a")
    world.trigger("b")
    assert len(worker.claim(5)) == 1


@database_property(25)
@given(data=st.data())
def test_no_queue_ever_runs_more_than_its_limit(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Nor less: a slot does not stay free while there is a run that could have it."""
    limits = {"one": 1, "three": 3, "free": 1_000}
    tasks = [offered("one", concurrency=1), offered("three", concurrency=3), offered("free")]
    with world_of(deployment, tmp_path_factory.mktemp("limits") / "milepost.db") as world:
        workers = [WorkerDouble(world, f"worker_{number}", *tasks) for number in range(2)]
        held: dict[str, tuple[WorkerDouble, ClaimedRun]] = {}
        for _ in range(data.draw(st.integers(1, 12))):
            match data.draw(st.sampled_from(["trigger", "claim", "claim", "finish"])):
                case "trigger":
                    names = data.draw(st.lists(st.sampled_from(list(limits)), min_size=1, max_size=6))
                    world.trigger_batch(*(item(name) for name in names))
                case "claim":
                    worker = data.draw(st.sampled_from(workers))
                    slots = data.draw(st.integers(1, 4))
                    runs = worker.claim(slots)
                    held.update((run.id, (worker, run)) for run in runs)
                    busy = [run.task for _, run in held.values()]
                    assert all(busy.count(task) <= limit for task, limit in limits.items())
                    if len(runs) < slots:
                        page = world.reader.page(RunFilter(statuses=(RunStatus.QUEUED,)), size=100)
                        left = {run.task_identifier for run in page.data}
                        assert all(busy.count(task) == limits[task] for task in left)
                case _ if held:
                    _, (worker, run) = held.popitem()
                    worker.finish(run)
                case _:
                    pass


def test_a_group_hands_a_freed_slot_and_a_new_run_on_at_once(world: World) -> None:
    """What ends or frees comes before what asks for work, in one commit."""
    worker = WorkerDouble(world, "worker_1", offered("work", concurrency=1))
    first, second = world.trigger_batch(item(), item()).run_ids
    run = worker.claim_one()
    claim, _ = world.submit(
        worker.next_claim(1), Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))])
    )
    assert run.id == first
    assert ids(claim) == [second]


def test_what_is_announced_of_a_run_is_its_state_at_the_end_of_the_group(
    world: World, worker: WorkerDouble
) -> None:
    """M82: a run that is queued again and claimed in one commit must not be announced as queued."""
    run_id = world.trigger()
    run = worker.claim_one()
    report = worker.next_report(run, Set("a", 1), outcome=failure(retry_after_ms=0))
    _, claim = world.submit(Report(worker.id, [report]), worker.next_claim(1))
    assert ids(claim) == [run_id]
    [changed] = [changed for changed in world.announcements[-1].runs if changed.row.id == run_id]
    assert changed.state_changed
    assert (changed.row.status, changed.row.attempt) == (RunStatus.EXECUTING, 2)
    assert [change.version for change in changed.changes] == [1]


@pytest.mark.parametrize("task_count", [1, 2])
def test_large_payloads_come_in_answers_of_bounded_size_and_in_their_order(
    world: World, task_count: int
) -> None:
    tasks = [offered(f"task-{number}") for number in range(task_count)]
    worker = WorkerDouble(world, "worker_1", *tasks)
    text = f'"{"x" * 3_000_000}"'
    expected: list[str] = []
    for number in range(10):
        # Small ones between, which cost nothing.
        expected.append(world.trigger(f"task-{number % task_count}", text))
        expected.append(world.trigger(f"task-{number % task_count}", "1"))
    answers: list[list[str]] = []
    while found := worker.claim(1000):
        assert all(run.payload == (text if expected.index(run.id) % 2 == 0 else "1") for run in found)
        answers.append([run.id for run in found])
    # Three large ones are the first that come to more than 8 MB, and the small one behind them goes with them.
    assert [len(answer) for answer in answers] == [6, 6, 6, 2]
    assert [run_id for answer in answers for run_id in answer] == expected


def test_what_a_bounded_answer_leaves_takes_no_place_in_its_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost.engine.claiming.CLAIM_CHARACTERS_MAX", 20_000)
    worker = WorkerDouble(world, "worker_1", offered("work", queue="q", concurrency=3))
    triggered = [world.trigger("work", f'"{"x" * 15_000}"') for _ in range(5)]
    first = worker.claim(10)
    assert [run.id for run in first] == triggered[:2]
    assert [run.id for run in worker.claim(10)] == triggered[2:3]
    assert worker.claim(10) == []
    worker.finish(first[0])
    assert [run.id for run in worker.claim(10)] == triggered[3:4]


def test_a_repeated_claim_brings_the_same_large_runs(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", offered("work"))
    for _ in range(5):
        world.trigger("work", f'"{"x" * 3_000_000}"')
    claim = worker.next_claim(10)
    first, again = world.do(claim), world.do(claim)
    assert len(first) == 3
    assert [run.id for run in first] == [run.id for run in again]
    assert len(worker.claim(10)) == 2


@pytest.mark.parametrize("limit", [1, 2, None])
def test_a_bounded_answer_starves_no_concurrency_key(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("milepost.engine.claiming.CLAIM_CHARACTERS_MAX", 10_000)
    worker = WorkerDouble(world, "worker_1", offered("work", queue="q", concurrency=limit))
    keyed = {
        world.trigger("work", f'"{"x" * 15_000}"', concurrency_key=key)
        for key in ("a", "b", "c")
        for _ in range(3)
    }
    plain = {world.trigger("work", f'"{"x" * 15_000}"') for _ in range(2)}
    got: list[str] = []
    # One run is as much as an answer holds. Each has ended before the next claim.
    while found := worker.claim(10):
        got += [run.id for run in found]
        assert len(found) == 1
        worker.finish(found[0])
    assert len(got) == 11
    assert set(got) == keyed | plain


PAUSES = st.sampled_from([0.0, 1.0, 2.0, 4.0])


@given(st.data())
@database_property(40)
def test_nobody_waits_while_a_run_is_due_however_time_goes_by(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Runs that are delayed or tried again, with concurrency keys and without, and workers that wait for them. As time goes by nothing
    happens but what the engine asks for, and now and then a run is cancelled."""
    with world_of(deployment, tmp_path_factory.mktemp("waiting") / "milepost.db") as world:
        first = WorkerDouble(world, "worker_0")
        for _ in range(data.draw(st.integers(1, 3))):
            keys = data.draw(st.lists(st.sampled_from([None, "one", "one", "two"]), min_size=2, max_size=5))
            runs = [world.trigger(concurrency_key=key) for key in keys]
            for run in first.claim(len(runs)):
                first.fail(run, retry_after_ms=round(data.draw(PAUSES) * 1000))
            for key in data.draw(st.lists(st.sampled_from([None, "one"]), max_size=2)):
                runs.append(world.trigger(concurrency_key=key, delay=f"{round(data.draw(PAUSES))}s"))
            waiting = [
                world.submit(WorkerDouble(world, f"worker_{number}").next_claim(slots, wait=600))[0]
                for number, slots in enumerate(data.draw(st.lists(st.integers(1, 2), min_size=2, max_size=5)))
            ]
            until = world.clock.now + 5_000_000
            while world.clock.now < until:
                if data.draw(st.integers(0, 5)) == 0:
                    world.do(CancelRun(data.draw(st.sampled_from(runs))))
                wake_at = world.wake_at()
                world.clock.now = max(world.clock.now, until if wake_at is None else min(wake_at, until))
                if wake_at is not None and world.clock.now >= wake_at:
                    world.submit()
                if not all(ticket.is_answered for ticket in waiting):
                    assert due_runs(world, world.clock.now) == []


def due_runs(world: World, now: int) -> list[str]:
    """Runs that could be claimed."""
    table = schema.runs
    with world.store.read() as connection:
        rows = connection.execute(
            select(table.c.id).where(table.c.status.in_(["QUEUED", "DELAYED"]), table.c.due_at < now - 10_000)
        )
        return list(rows.scalars())
