"""Triggers with one debounce key mean one run, for as long as it is delayed."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.engine.commands import CancelRun, RescheduleRun, Trigger
from milepost.errors import InvalidRequestError
from milepost.model.run import RunStatus
from milepost.protocol.triggering import DebounceOption
from support.many import ONE_SERVER, THREE_SERVERS, world_of
from support.world import WorkerDouble, World, item, offered

pytestmark = pytest.mark.several_servers(postgres=True)


def debounced(key: str = "k", delay: str = "10s", **more: Any) -> DebounceOption:
    return DebounceOption(key=key, delay=delay, **more)


def status(world: World, run_id: str) -> RunStatus:
    return world.reader.run(run_id).status


def later(world: World, seconds: float) -> None:
    world.clock.advance(seconds)
    world.submit()


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    return WorkerDouble(world, "worker", offered("work"), offered("other"))


def test_it_begins_once_no_trigger_has_come_for_its_delay(world: World, worker: WorkerDouble) -> None:
    first = world.trigger(payload="1", debounce=debounced())
    for number in range(2, 6):
        later(world, 9)
        assert world.trigger(payload=str(number), debounce=debounced()) == first
        assert status(world, first) is RunStatus.DELAYED
    later(world, 9.9)
    assert worker.claim(5) == []
    later(world, 0.2)
    [run] = worker.claim(5)
    assert (run.id, run.payload) == (first, "1")


def test_the_last_payload_is_taken_where_that_was_asked(world: World, worker: WorkerDouble) -> None:
    large = "[" + ",".join(["1"] * 20_000) + "]"
    first = world.trigger(payload=large, debounce=debounced(mode="trailing"), metadata={"a": 1})
    for payload in ("2", large, "3"):
        assert world.trigger(payload=payload, debounce=debounced(mode="trailing"), metadata={"a": 2}) == first
    later(world, 11)
    run = worker.claim_one()
    assert (run.id, run.payload) == (first, "3")
    assert world.document(first)[0] == {"a": 1}
    again = world.trigger(payload="4", debounce=debounced(mode="trailing"))
    assert world.trigger(payload=large, debounce=debounced(mode="trailing")) == again
    later(world, 11)
    assert worker.claim_one().payload == large


def test_it_is_not_put_off_beyond_its_longest_delay(world: World, worker: WorkerDouble) -> None:
    first = world.trigger(debounce=debounced(max_delay="25s"))
    for _ in range(2):
        later(world, 9)
        assert world.trigger(debounce=debounced(max_delay="25s")) == first
    later(world, 7.1)
    assert worker.claim_one().id == first
    assert world.trigger(debounce=debounced(max_delay="25s")) != first


def test_each_task_and_key_has_its_own_and_idempotency_keys_are_others(
    world: World, worker: WorkerDouble
) -> None:
    runs = [
        world.trigger(debounce=debounced()),
        world.trigger(debounce=debounced("other")),
        world.trigger("other", debounce=debounced()),
        world.trigger(idempotency_key="k"),
    ]
    assert len(set(runs)) == 4
    assert world.trigger(debounce=debounced()) == runs[0]
    assert world.trigger(idempotency_key="k") == runs[3]


def test_a_run_that_has_begun_was_cancelled_or_deleted_frees_its_key(
    world: World, worker: WorkerDouble
) -> None:
    first = world.trigger(debounce=debounced())
    world.do(CancelRun(first))
    second = world.trigger(debounce=debounced())
    later(world, 11)
    worker.claim_one()
    third = world.trigger(debounce=debounced())
    world.do(RescheduleRun(third, delay_ms=0))
    assert status(world, third) is RunStatus.QUEUED
    fourth = world.trigger(debounce=debounced())
    assert len({first, second, third, fourth}) == 4


def test_a_delay_beside_it_is_the_earliest_time(world: World, worker: WorkerDouble) -> None:
    first = world.trigger(debounce=debounced(max_delay="15s"), delay="20s")
    later(world, 5)
    assert world.trigger(debounce=debounced(max_delay="15s"), delay="1s") == first
    later(world, 9)
    assert worker.claim(1) == []
    later(world, 1.5)
    assert worker.claim_one().id == first
    at = world.trigger(debounce=debounced(), delay="1h")
    later(world, 3000)
    assert worker.claim(1) == []
    later(world, 601)
    assert worker.claim_one().id == at


def test_an_idempotency_key_beside_it_goes_first(world: World, worker: WorkerDouble) -> None:
    first = world.trigger(debounce=debounced(), idempotency_key="a")
    later(world, 6)
    assert world.trigger(debounce=debounced(), idempotency_key="b") == first, "the burst goes on"
    later(world, 6)
    assert world.trigger(debounce=debounced("other"), idempotency_key="a") == first
    later(world, 5)
    assert worker.claim_one().id == first
    for key in ("a", "b"):
        assert world.trigger(debounce=debounced(), idempotency_key=key) == first, "both keys stand for it"
    assert world.trigger(debounce=debounced(), idempotency_key="c") != first


def test_the_answer_says_that_the_run_was_there(world: World, worker: WorkerDouble) -> None:
    answers = [world.do(Trigger(item(debounce=debounced()), None, None)) for _ in range(2)]
    assert [list(answer.found) for answer in answers] == [[], [0]]
    # The same request, said again, puts nothing off and is answered alike.
    said = [world.do(Trigger(item(debounce=debounced()), "request_1", None)) for _ in range(2)]
    assert said[0].run_ids == said[1].run_ids == answers[0].run_ids


def test_one_group_may_hold_all_of_them(world: World, worker: WorkerDouble) -> None:
    tickets = world.submit(
        *(Trigger(item(payload=str(n), debounce=debounced(mode="trailing")), None, None) for n in range(5))
    )
    ids = {ticket.result.run_ids[0] for ticket in tickets}
    assert len(ids) == 1
    later(world, 11)
    assert worker.claim_one().payload == "4"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"debounce": debounced("")}, "options.debounce.key"),
        ({"debounce": debounced("k" * 513)}, "options.debounce.key"),
        ({"debounce": debounced("a\nb")}, "options.debounce.key"),
        ({"debounce": debounced(delay="0s")}, "options.debounce.delay"),
        ({"debounce": debounced(delay="soon")}, "options.debounce.delay"),
        ({"debounce": debounced(delay="400d")}, "options.debounce.delay"),
        ({"debounce": debounced(max_delay="0s")}, "options.debounce.maxDelay"),
        ({"debounce": debounced(), "delay": "soon"}, "options.delay"),
        ({"debounce": debounced(), "idempotency_key": ""}, "options.idempotencyKey"),
    ],
)
def test_what_cannot_be_is_refused(world: World, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        world.trigger(**options)
    assert refused.value.field == field


def test_items_of_a_batch_are_all_made(world: World) -> None:
    with pytest.raises(InvalidRequestError, match="single triggers"):
        world.trigger_batch(item(debounce=debounced()))


@settings(max_examples=20, deadline=None)
@given(
    pauses=st.lists(st.integers(0, 25), min_size=1, max_size=12),
    longest=st.one_of(st.none(), st.integers(1, 60)),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("servers", [ONE_SERVER, THREE_SERVERS])
def test_any_course_of_triggers_begins_when_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, servers: str, pauses: list[int], longest: int | None, seed: int
) -> None:
    """A plain model beside the engine: when each run begins, and which triggers mean it."""
    chance = random.Random(seed)
    with world_of(servers, tmp_path_factory.mktemp("debounce") / "milepost.db") as world:
        WorkerDouble(world)
        now, due, since, current = 0, -1, 0, ""
        for pause in pauses:
            later(world, pause)
            now += pause
            delay = chance.randint(1, 20)
            run_id = world.trigger(
                debounce=debounced(delay=f"{delay}s", max_delay=None if longest is None else f"{longest}s")
            )
            if now < due:
                assert run_id == current
            else:
                assert run_id != current
                current, since = run_id, now
            due = now + delay if longest is None else min(now + delay, since + longest)
            # The clock goes on by a little with each command.
            assert abs(world.reader.row(current).due_at - world.clock() - (due - now) * 1_000_000) < 500_000
