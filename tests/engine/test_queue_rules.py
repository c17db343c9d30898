"""Concurrency keys, rates, pauses and limits that change: at each commit none is one over, and nobody waits for nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from milepost.engine.commands import Claim, OverrideQueueLimit, PauseQueue, RegisterWorker
from milepost.errors import InvalidRequestError, QueueNotFoundError
from milepost.model.rates import PERIODS, Rate, parse_rate
from milepost.model.run import QueuedReason, RunStatus
from milepost.protocol.queues import WaitReason
from milepost.protocol.triggering import QueueOption
from milepost.protocol.work import ClaimedRun, RunReport, WorkerTask
from milepost.store import schema
from milepost.store.queues import load_queues
from support.many import world_of
from support.properties import database_property
from support.world import WorkerDouble, World, item, offered, result_of

pytestmark = pytest.mark.several_servers(postgres=True)
QUEUE = "shared"


def worker_of(
    world: World, name: str = "worker_1", *, concurrency: int | None = None, rate: str | None = None
) -> WorkerDouble:
    return WorkerDouble(world, name, offered("work", queue=QUEUE, concurrency=concurrency, rate=rate))


def trigger(world: World, key: str | None, count: int = 1) -> list[str]:
    return world.trigger_batch(*[item(concurrency_key=key)] * count).run_ids


def keys_of(world: World, claimed: list[ClaimedRun]) -> list[str | None]:
    return [world.reader.run(run.id).concurrency_key for run in claimed]


# --- keys --------------------------------------------------------------------------------------------------------


def test_the_limit_holds_for_each_key_by_itself_and_for_runs_without_one(world: World) -> None:
    worker = worker_of(world, concurrency=2)
    for key in ("a", "b", None):
        trigger(world, key, 5)
    first = worker.claim(20)
    assert Counter(keys_of(world, first)) == {"a": 2, "b": 2, None: 2}
    assert worker.claim(20) == []
    done = next(run for run in first if keys_of(world, [run]) == ["a"])
    worker.finish(done)
    assert keys_of(world, worker.claim(20)) == ["a"]
    assert worker.claim(20) == []


def test_a_tenant_with_very_many_runs_does_not_hold_up_one_with_a_single_one(world: World) -> None:
    worker = worker_of(world)
    trigger(world, "big", 300)
    [small] = trigger(world, "small")
    claimed = [worker.claim_one() for _ in range(2)]
    assert small in {run.id for run in claimed}
    [later] = trigger(world, "later")
    assert later in {worker.claim_one().id for _ in range(2)}


def test_keys_come_by_turns_also_where_the_clock_stands_still(world: World) -> None:
    worker = worker_of(world)
    for key in "abc":
        trigger(world, key, 3)
    claims = [worker.next_claim(1) for _ in range(3)]
    keys: list[str | None] = []
    for claim in claims:
        keys += keys_of(world, world.do(claim))
    workers = [worker_of(world, f"other_{number}") for number in range(3)]
    # One group, and so one moment.
    for ticket in world.submit(*(other.next_claim(1) for other in workers)):
        keys += keys_of(world, result_of(ticket))
    assert Counter(keys) == {"a": 2, "b": 2, "c": 2}


def test_the_slots_of_a_claim_go_round_until_they_are_used_up(world: World) -> None:
    worker = worker_of(world)
    trigger(world, "a", 1)
    trigger(world, "b", 50)
    trigger(world, "c", 3)
    assert Counter(keys_of(world, worker.claim(20))) == {"a": 1, "b": 16, "c": 3}
    assert Counter(keys_of(world, worker.claim(100))) == {"b": 34}
    with world.store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.key_places)).scalar_one() == 0


def test_runs_without_a_key_and_those_with_one_share_a_queue(world: World) -> None:
    worker = worker_of(world)
    trigger(world, None, 200)
    trigger(world, "a", 200)
    assert Counter(keys_of(world, worker.claim(10))) == {"a": 5, None: 5}
    ones = Counter(key for _ in range(40) for key in keys_of(world, [worker.claim_one()]))
    assert min(ones["a"], ones[None]) > 5


def test_within_a_key_what_is_due_earlier_comes_first(world: World) -> None:
    worker = worker_of(world)
    [first], [second] = trigger(world, "a"), trigger(world, "a")
    assert [worker.claim_one().id, worker.claim_one().id] == [first, second]


def test_a_retry_with_a_key_comes_when_it_is_due(world: World) -> None:
    worker = worker_of(world)
    [run_id] = trigger(world, "a")
    worker.fail(worker.claim_one(), retry_after_ms=5000)
    assert worker.claim() == []
    [ticket] = world.submit(worker.next_claim(1, wait=60))
    world.clock.advance(4.9)
    world.submit()
    assert not ticket.is_answered
    world.clock.advance(0.2)
    world.submit()
    assert [run.id for run in result_of(ticket)] == [run_id]


def test_a_waiting_run_takes_the_place_of_its_own_key_again(world: World) -> None:
    worker = worker_of(world, concurrency=1)
    trigger(world, "a", 2)
    trigger(world, "b", 1)
    first, other = worker.claim(2)
    assert keys_of(world, [first, other]) == ["a", "b"]
    worker.report(first, waiting=True)
    second = worker.claim_one()
    assert keys_of(world, [second]) == ["a"]
    [reply] = worker.send(RunReport(id=first.id, attempt=first.attempt, waiting=False))
    assert reply.resumed is False
    worker.finish(other)
    assert world.reader.run(first.id).status is RunStatus.WAITING, "the room of another key is none for it"
    told = {key.key: (key.running, key.waiting_to_go_on) for key in world.reader.queue(QUEUE).keys}
    assert told == {"a": (1, 1)}
    worker.finish(second)
    assert world.reader.run(first.id).status is RunStatus.EXECUTING
    told = {key.key: (key.running, key.waiting_to_go_on) for key in world.reader.queue(QUEUE).keys}
    assert told == {"a": (1, 0)}


@pytest.mark.parametrize("how", ["finish", "fail", "wait", "lose", "leave", "die"])
def test_whatever_ends_an_attempt_frees_the_place_of_its_key(world: World, how: str) -> None:
    worker, other = worker_of(world, concurrency=1), worker_of(world, "worker_2", concurrency=1)
    trigger(world, "a", 1)
    run = worker.claim_one()
    trigger(world, "a", 1)
    [ticket] = world.submit(other.next_claim(1, wait=300))
    assert not ticket.is_answered
    match how:
        case "finish":
            worker.finish(run)
        case "fail":
            worker.fail(run)
        case "wait":
            worker.report(run, waiting=True)
        case "lose":
            world.pass_lease()
            world.do(RegisterWorker(other.id, other.id, other.tasks, []))
            other.claim_sequence += 1
            [ticket] = world.submit(Claim(other.id, other.claim_sequence, 1, 0))
        case "leave":
            worker.send(leaving=True)
        case _:
            worker.die(run)
    assert len(result_of(ticket)) == 1


def test_runs_with_keys_survive_a_restart_and_their_counts_too(world: World) -> None:
    worker = worker_of(world, concurrency=1)
    trigger(world, "a", 2)
    trigger(world, "b", 1)
    run = worker.claim_one()
    world.restart()
    assert keys_of(world, worker.claim(5)) == [{"a": "b", "b": "a"}[keys_of(world, [run])[0] or ""]]
    world.restart()
    worker.finish(run)
    assert len(worker.claim(5)) == (1 if keys_of(world, [run]) == ["a"] else 0)


def test_runs_that_were_triggered_before_anybody_offered_their_task_move_with_their_keys(
    world: World,
) -> None:
    [run_id] = trigger(world, "a")
    assert [run.id for run in worker_of(world, concurrency=1).claim(5)] == [run_id]


# --- rates -------------------------------------------------------------------------------------------------------


def test_a_rate_lets_so_many_start_in_any_period_and_wakes_a_claim_for_the_next(world: World) -> None:
    worker = worker_of(world, rate="3/m")
    trigger(world, None, 3)
    trigger(world, "a", 3)
    assert len(worker.claim(10)) == 3
    assert worker.claim(10) == []
    [ticket] = world.submit(worker.next_claim(10, wait=300))
    waking = {engine.wake_at() for engine in getattr(world, "engines", [world.engine])}
    assert min(at for at in waking if at is not None) - world.clock() > 50_000_000, (
        "nobody looks again before it is time"
    )
    world.clock.advance(59)
    world.submit()
    assert not ticket.is_answered
    world.clock.advance(1.1)
    world.submit()
    assert len(result_of(ticket)) == 3
    world.restart()
    assert worker.claim(10) == []


def test_another_queue_is_not_held_up_by_the_rate_of_one(world: World) -> None:
    worker = worker_of(world, rate="1/h")
    trigger(world, None, 5)
    worker.claim_one()
    elsewhere = world.trigger(queue=QueueOption("elsewhere"))
    assert [run.id for run in worker.claim(5)] == [elsewhere]


@given(
    st.integers(1, 8),
    st.sampled_from(list(PERIODS)),
    st.lists(st.integers(0, 3_000_000), min_size=1, max_size=60),
    st.booleans(),
)
def test_no_window_of_the_period_has_more_starts_than_the_rate_says(
    count: int, unit: str, pauses: list[int], waits: bool
) -> None:
    rate = parse_rate(f"{count}/{unit}")
    scale = rate.period / 5_000_000
    now, starts, began = 10**15, [], []
    for pause in pauses:
        now += int(pause * scale)
        if waits and (at := rate.next_at(starts, now)) is not None:
            assert rate.room(starts, at - 1) == 0
            now = at
        while rate.room(starts, now):
            starts = rate.with_start(starts, now)
            began.append(now)
            if waits:
                break
        assert len(starts) <= 101
    for first in began:
        assert sum(first <= at < first + rate.period for at in began) <= count


@pytest.mark.parametrize(
    "text", ["", "m", "0/m", "-1/m", "1.5/m", "1/w", "1/", "x", "1" * 20 + "/s", "1/m/m"]
)
def test_what_is_no_rate_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"'100/m'"):
        parse_rate(text)


def test_a_rate_that_was_lowered_waits_until_there_are_fewer() -> None:
    starts = Rate(5, 60).with_start([(1, 2), (10, 2)], 20)
    assert Rate(5, 60).next_at(starts, 20) == 61
    assert Rate(3, 60).next_at(starts, 20) == 70
    assert Rate(1, 60).next_at(starts, 20) == 80


# --- pausing and limits ------------------------------------------------------------------------------------------


def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(world: World) -> None:
    worker = worker_of(world)
    trigger(world, None)
    trigger(world, "a")
    world.do(PauseQueue(QUEUE, True))
    assert worker.claim(5) == []
    [ticket] = world.submit(worker.next_claim(5, wait=300))
    world.restart()
    [ticket] = world.submit(worker.next_claim(5, wait=300))
    trigger(world, "a")
    assert not ticket.is_answered
    world.do(PauseQueue(QUEUE, False))
    assert len(result_of(ticket)) == 3


def test_an_override_wins_over_what_tasks_say_until_it_is_reset(world: World) -> None:
    worker = worker_of(world, concurrency=1)
    trigger(world, None, 10)
    trigger(world, "a", 10)
    world.do(OverrideQueueLimit(QUEUE, 3))
    runs = worker.claim(20)
    assert Counter(keys_of(world, runs)) == {None: 3, "a": 3}
    worker_of(world, "worker_2", concurrency=2)
    assert worker.claim(20) == []
    world.do(OverrideQueueLimit(QUEUE, 1))
    assert worker.claim(20) == []
    queue = world.reader.queue(QUEUE)
    assert (queue.concurrency_limit, queue.concurrency.base, queue.concurrency.override) == (1, 2, 1)
    for run in runs[:4]:
        worker.finish(run)
    world.do(OverrideQueueLimit(QUEUE, None))
    executing = Counter(keys_of(world, [*runs[4:], *worker.claim(20)]))
    assert executing == {None: 2, "a": 2}


def test_a_limit_that_is_lowered_below_what_runs_ends_nothing_and_starts_nothing(world: World) -> None:
    worker = worker_of(world)
    trigger(world, "a", 8)
    runs = worker.claim(4)
    world.do(OverrideQueueLimit(QUEUE, 2))
    for run in runs[:2]:
        assert world.reader.run(run.id).status is RunStatus.EXECUTING
        assert worker.claim(5) == []
        worker.finish(run)
    assert worker.claim(5) == []
    worker.finish(runs[2])
    assert len(worker.claim(5)) == 1


@pytest.mark.parametrize("how", ["override", "reset", "declared", "taken away"])
def test_a_key_that_was_full_is_looked_at_again_when_the_limit_is_raised(world: World, how: str) -> None:
    worker = worker_of(world, concurrency=3 if how == "reset" else 1)
    if how == "reset":
        world.do(OverrideQueueLimit(QUEUE, 1))
    trigger(world, "a", 5)
    assert len(worker.claim(5)) == 1
    assert worker.claim(5) == []
    match how:
        case "override":
            world.do(OverrideQueueLimit(QUEUE, 3))
        case "reset":
            world.do(OverrideQueueLimit(QUEUE, None))
        case "declared":
            worker_of(world, "worker_2", concurrency=3)
        case _:
            worker_of(world, "worker_2", concurrency=None)
    assert len(worker.claim(5)) == (4 if how == "taken away" else 2)


@pytest.mark.parametrize("limit", [0, -1, 100_001])
def test_a_limit_that_cannot_be_is_refused_with_the_cure(world: World, limit: int) -> None:
    worker_of(world)
    with pytest.raises(InvalidRequestError, match="pause the queue" if limit < 1 else "100,000"):
        world.do(OverrideQueueLimit(QUEUE, limit))


def test_a_queue_that_is_not_there_is_refused(world: World) -> None:
    for command in (PauseQueue("typo", True), OverrideQueueLimit("typo", 3)):
        with pytest.raises(QueueNotFoundError, match="'typo'"):
            world.do(command)
    with world.store.read() as connection:
        assert load_queues(connection, ["typo"]) == {}


# --- what is told ------------------------------------------------------------------------------------------------


def test_a_queued_run_says_why_it_waits(world: World) -> None:
    [run_id] = trigger(world, "a")

    def wait() -> tuple[WaitReason, int | None]:
        told = world.reader.run(run_id).queue_wait
        assert told is not None
        assert told.describe("work", QUEUE, "a")
        return told.reason, told.position

    assert wait() == (WaitReason.NEVER_OFFERED, None)
    assert world.reader.run(run_id).queued_reason is QueuedReason.NEVER_OFFERED
    worker = worker_of(world, concurrency=1)
    worker.claim_one()
    [run_id] = trigger(world, "a")
    assert wait() == (WaitReason.LIMIT_REACHED, 1)
    told = world.reader.run(run_id).queue_wait
    assert told is not None
    assert told.limit == 1
    assert len(told.running_ids) == 1
    trigger(world, "b", 2)
    [run_id] = trigger(world, "b")
    assert wait() == (WaitReason.IN_LINE, 3)
    world.do(PauseQueue(QUEUE, True))
    assert wait() == (WaitReason.QUEUE_PAUSED, 3)
    world.do(PauseQueue(QUEUE, False))
    worker = worker_of(world, concurrency=1, rate="1/h")
    worker.claim_one()
    [run_id] = trigger(world, "c")
    assert wait() == (WaitReason.RATE_REACHED, 1)
    worker.send(leaving=True)
    assert wait() == (WaitReason.NO_WORKER_ONLINE, 1)


def test_a_run_that_is_tried_again_later_says_until_when(world: World) -> None:
    worker = worker_of(world)
    [run_id] = trigger(world, None)
    worker.fail(worker.claim_one(), retry_after_ms=60_000)
    told = world.reader.run(run_id).queue_wait
    assert told is not None
    assert (told.reason, told.position) == (WaitReason.DELAYED, None)
    assert told.until is not None


def test_the_estimate_goes_by_the_last_starts(world: World) -> None:
    worker = worker_of(world)
    ids = trigger(world, "a", 30)
    for _ in range(10):
        worker.finish(worker.claim_one())
        world.clock.advance(2)
    told = world.reader.run(ids[-1]).queue_wait
    assert told is not None
    assert told.position == 20
    assert told.estimated_seconds == pytest.approx(40, rel=0.2)


def test_a_queue_tells_how_it_stands(world: World) -> None:
    worker = worker_of(world, concurrency=2, rate="100/m")
    trigger(world, "a", 4)
    trigger(world, "b", 1)
    trigger(world, None, 3)
    worker.claim(20)
    assert worker.claim(20) == []
    queue = world.reader.queue(QUEUE)
    assert (queue.queued, queue.running, queue.paused, queue.type) == (3, 5, False, "custom")
    assert {key.key: (key.queued, key.running) for key in queue.keys} == {"a": (2, 2), "b": (0, 1)}
    assert queue.rate is not None
    assert (queue.rate.limit, queue.rate.next_start_at) == ("100/m", None)
    page = world.reader.queue_page(number=1, size=10)
    assert [each.name for each in page.data] == [QUEUE]
    with pytest.raises(QueueNotFoundError):
        world.reader.queue("typo")


# --- whatever happens --------------------------------------------------------------------------------------------

KEYS = ["a", "b", "c", None]


class Rules:
    """What a test knows of the two queues, and what it finds in the database."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.declared: dict[str, tuple[int | None, str | None]] = {"one": (2, None), "two": (None, "4/m")}
        self.overrides: dict[str, int | None] = {"one": None, "two": None}
        self.paused: set[str] = set()
        self.starts: dict[str, list[int]] = {"one": [], "two": []}
        self.before: Counter[tuple[str, str | None]] = Counter()

    def tasks(self) -> tuple[WorkerTask, ...]:
        return tuple(
            offered(f"task_{name}", queue=name, concurrency=limit, rate=rate)
            for name, (limit, rate) in self.declared.items()
        )

    def limit(self, queue: str) -> int | None:
        override = self.overrides[queue]
        return self.declared[queue][0] if override is None else override

    def executing(self) -> Counter[tuple[str, str | None]]:
        return self.count(schema.runs.c.status == "EXECUTING")

    def count(self, condition: object) -> Counter[tuple[str, str | None]]:
        runs = schema.runs
        statement = (
            select(runs.c.queue, runs.c.concurrency_key, func.count())
            .where(condition)  # pyright: ignore[reportArgumentType]
            .group_by(runs.c.queue, runs.c.concurrency_key)
        )
        with self.world.store.read() as connection:
            return Counter({(queue, key): count for queue, key, count in connection.execute(statement)})

    def check(self) -> None:
        """No limit is one over, but for what ran before it was lowered; and what is counted is so."""
        executing = self.executing()
        resuming = self.count(schema.runs.c.resuming_at.is_not(None))
        for place, count in executing.items():
            limit = self.limit(place[0])
            assert limit is None or count <= max(limit, self.before[place]), place
        self.before = executing
        with self.world.store.read() as connection:
            for queue, row in load_queues(connection, self.declared).items():
                assert (row.executing, row.resuming) == (executing[queue, None], resuming[queue, None])
            counted = {
                (queue, key): (first, second)
                for queue, key, first, second in connection.execute(
                    select(
                        schema.queue_keys.c.queue,
                        schema.queue_keys.c.key,
                        schema.queue_keys.c.executing,
                        schema.queue_keys.c.resuming,
                    )
                )
            }
        held = {place for place in executing | resuming if place[1] is not None}
        assert counted == {place: (executing[place], resuming[place]) for place in held}

    def started(self, claimed: list[ClaimedRun]) -> None:
        for run in claimed:
            assert run.queue not in self.paused
            self.starts[run.queue].append(self.world.clock())
        for queue, starts in self.starts.items():
            if (rate := self.declared[queue][1]) is not None:
                rule = parse_rate(rate)
                recent = [at for at in starts if at > self.world.clock() - rule.period]
                assert len(recent) <= rule.count or not claimed

    def check_nothing_left(self) -> None:
        """No run that is due could be claimed: whoever waits, waits for something."""
        now, executing = self.world.clock(), self.executing()
        resuming = self.count(schema.runs.c.resuming_at.is_not(None))
        runs = schema.runs
        with self.world.store.read() as connection:
            due = list(
                connection.execute(
                    select(runs.c.id, runs.c.queue, runs.c.concurrency_key).where(
                        runs.c.status == "QUEUED", runs.c.is_apart == 0, runs.c.due_at <= now
                    )
                )
            )
            rows = load_queues(connection, self.declared)
        for run_id, queue, key in due:
            limit = self.limit(queue)
            if queue in self.paused or (
                limit is not None and executing[queue, key] + resuming[queue, key] >= limit
            ):
                continue
            rate = rows[queue].rate_rule() if queue in rows else None
            assert rate is not None, (run_id, queue, key)
            assert rate.room(rows[queue].rate_starts(), now) == 0, (run_id, queue, key)


@given(st.data())
@database_property(40)
def test_rules_hold_and_nobody_waits_for_nothing_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, deployment: str, data: st.DataObject
) -> None:
    """Eight workers; with three servers each command goes to another one."""
    folder = tmp_path_factory.mktemp("rules")
    with world_of(deployment, folder / "milepost.db") as world:
        rules = Rules(world)
        workers = [WorkerDouble(world, f"worker_{number}", *rules.tasks()) for number in range(8)]
        held: list[tuple[WorkerDouble, ClaimedRun]] = []
        for _ in range(data.draw(st.integers(5, 30))):
            worker = data.draw(st.sampled_from(workers))
            mine = [run for holder, run in held if holder is worker]
            queue = data.draw(st.sampled_from(["one", "two"]))
            moves = ["trigger", "claim", "claim"] * 2
            moves += ["pause", "limit", "override", "rate", "leave", "die", "lease", "restart", "time"]
            moves += ["wait", "go on", "finish", "fail"] * 3 if mine else []
            match data.draw(st.sampled_from(moves)):
                case "trigger":
                    keys = data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
                    world.trigger_batch(
                        *(item(f"task_{queue}", concurrency_key=key, max_attempts=5) for key in keys)
                    )
                case "claim":
                    slots = data.draw(st.integers(1, 5))
                    claimed = worker.claim(slots)
                    held += [(worker, run) for run in claimed]
                    rules.started(claimed)
                    if len(claimed) < slots and not has_apart(world):
                        rules.check_nothing_left()
                case "wait":
                    worker.report(data.draw(st.sampled_from(mine)), waiting=True)
                case "go on":
                    run = data.draw(st.sampled_from(mine))
                    worker.send(RunReport(id=run.id, attempt=run.attempt, waiting=False))
                case "finish" | "fail" as how:
                    run = data.draw(st.sampled_from(mine))
                    held.remove((worker, run))
                    pause = data.draw(st.sampled_from([0, 20_000]))
                    worker.finish(run) if how == "finish" else worker.fail(run, retry_after_ms=pause)
                case "leave" | "die" as how:
                    held = [(holder, run) for holder, run in held if holder is not worker]
                    worker.send(leaving=True) if how == "leave" else worker.die(*mine)
                    worker.register()
                case "pause":
                    rules.paused ^= {queue}
                    world.do(PauseQueue(queue, queue in rules.paused))
                case "override":
                    rules.overrides[queue] = data.draw(st.sampled_from([None, 1, 2, 4]))
                    world.do(OverrideQueueLimit(queue, rules.overrides[queue]))
                case "limit" | "rate" as what:
                    limit, rate = rules.declared[queue]
                    if what == "limit":
                        limit = data.draw(st.sampled_from([None, 1, 3]))
                    else:
                        rate = data.draw(st.sampled_from([None, "2/m", "10/s"]))
                        rules.starts[queue].clear()
                    rules.declared[queue] = limit, rate
                    for each in workers:
                        each.tasks = rules.tasks()
                        each.register([run.id for holder, run in held if holder is each])
                case "lease":
                    world.pass_lease()
                    held = []
                    for each in workers:
                        each.register()
                case "restart":
                    world.restart()
                case _:
                    world.clock.advance(data.draw(st.sampled_from([1, 21, 61])))
            rules.check()


def has_apart(world: World) -> bool:
    """A run that executes apart keeps the others waiting."""
    with world.store.read() as connection:
        apart = select(func.count()).where(schema.runs.c.is_apart == 1, schema.runs.c.status != "COMPLETED")
        return bool(connection.execute(apart).scalar_one())
