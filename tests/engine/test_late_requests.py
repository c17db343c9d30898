"""A request that is answered, and comes once more when something newer was said: it changes nothing (M44)."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from milepost.engine import rules
from milepost.engine.commands import (
    AddBatchItems,
    AddOutsideChunks,
    AddTags,
    AwaitWaitpoint,
    CancelRun,
    Command,
    CreateSchedule,
    EndSession,
    OverrideQueueLimit,
    PauseQueue,
    RescheduleRun,
    ResetKey,
    SetScheduleActive,
    Trigger,
    UpdateSchedule,
)
from milepost.errors import ConflictError
from milepost.protocol.schedules import CreateScheduleRequest, UpdateScheduleRequest
from milepost.store.queues import all_queues
from support.world import WorkerDouble, World, item, offered

# What these do is done for good, so that doing it again changes nothing; items and chunks are known by their numbers.
KNOWN_OTHERWISE = {CancelRun, AddTags, EndSession, AwaitWaitpoint, AddBatchItems, AddOutsideChunks}
KEY = "k" * 64


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    return WorkerDouble(world, "worker_1", offered("work", queue="narrow", concurrency=1))


def queue(world: World) -> tuple[int, int | None]:
    with world.store.read() as connection:
        [row] = all_queues(connection)
        return row.is_paused, row.concurrency_override


def schedule(world: World) -> str:
    return world.do(CreateSchedule(CreateScheduleRequest(task="work", every=60))).id


def state_of_schedule(world: World, schedule_id: str) -> Any:
    shown = world.reader.schedule(schedule_id, upcoming=0)
    return shown.active, shown.external_id


def settings(world: World) -> list[tuple[Any, Command, Callable[[], Any]]]:
    """Each with what is said after it, and how to see which of the two holds."""
    delayed, made = world.trigger(delay="1h"), schedule(world)
    other = schedule(world)
    keyed = Trigger(item("work", "1", idempotency_key=KEY))
    world.do(keyed)
    return [
        (PauseQueue("narrow", True, "a"), PauseQueue("narrow", False, "b"), lambda: queue(world)[0]),
        (
            OverrideQueueLimit("narrow", 7, "c"),
            OverrideQueueLimit("narrow", None, "d"),
            lambda: queue(world)[1],
        ),
        (
            RescheduleRun(delayed, delay_ms=1000, request_id="e"),
            RescheduleRun(delayed, delay_ms=9_000_000, request_id="f"),
            lambda: world.reader.run(delayed).delayed_until,
        ),
        (
            SetScheduleActive(made, False, "g"),
            SetScheduleActive(made, True, "h"),
            lambda: state_of_schedule(world, made),
        ),
        (
            UpdateSchedule(other, UpdateScheduleRequest(external_id="old"), "i"),
            UpdateSchedule(other, UpdateScheduleRequest(external_id="new"), "j"),
            lambda: state_of_schedule(world, other),
        ),
        # What the key stands for by then is another run.
        (ResetKey(KEY, "work", "k"), keyed, lambda: world.do(keyed).run_ids),
    ]


def test_what_was_said_later_holds(world: World, worker: WorkerDouble) -> None:
    for earlier, later, now in settings(world):
        world.do(earlier)
        before = now()
        world.do(later)
        newest = now()
        assert newest != before or isinstance(earlier, ResetKey)
        world.do(earlier)
        assert now() == newest, earlier
        # Another request says it anew.
        world.do(msgspec.structs.replace(earlier, request_id=f"another, not {earlier.request_id}"))
        assert now() != newest


def test_also_within_one_group_and_after_a_restart(world: World, worker: WorkerDouble) -> None:
    pause, go_on = PauseQueue("narrow", True, "a"), PauseQueue("narrow", False, "b")
    assert [ticket.result for ticket in world.submit(pause, go_on, pause)] == [None] * 3
    assert queue(world)[0] == 0
    world.restart()
    world.do(pause)
    assert queue(world)[0] == 0


def test_other_content_under_the_same_id_is_refused(world: World, worker: WorkerDouble) -> None:
    world.do(PauseQueue("narrow", True, "a"))
    with pytest.raises(ConflictError, match="said something else"):
        world.do(PauseQueue("narrow", False, "a"))
    assert queue(world)[0] == 1


def test_whatever_people_say_has_the_id_of_its_request() -> None:
    """What workers say has numbers, and what a server does by itself is not repeated."""
    fields = {command: command.__struct_fields__ for command in rules._RULES}
    said = {PauseQueue, OverrideQueueLimit, *(command for command in fields if "attempt" in fields[command])}
    assert len(said) > 10
    assert {command for command in said if "request_id" not in fields[command]} <= KNOWN_OTHERWISE
