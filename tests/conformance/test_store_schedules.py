"""Schedules: every verb of `store.schedules`."""

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from conformance.rows import NOW
from milepost.store import schedules
from milepost.store.database import Store
from milepost.store.schedules import ScheduledRun, ScheduleRow, ScheduleType

FAR = 2**63 - 1
TEXT = "é\0\U0001f600"


def schedule(number: int, **fields: Any) -> ScheduleRow:
    """A schedule of a task's code that fires each second."""
    values: dict[str, Any] = {
        "id": f"sched_{number}",
        "task": f"task_{number}",
        "type": ScheduleType.DECLARATIVE.value,
        "every": 1_000_000,
        "anchor_at": NOW,
        "next_at": NOW + number,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return ScheduleRow(**{**values, **fields})


def called(number: int, **fields: Any) -> ScheduleRow:
    """One that was made by a call."""
    return schedule(number, type=ScheduleType.IMPERATIVE.value, **fields)


def insert(store: Store, *rows: ScheduleRow) -> None:
    with store.write() as connection:
        for row in rows:
            schedules.insert_schedule(connection, row)


def load(store: Store, *numbers: int) -> list[ScheduleRow | None]:
    ids = [f"sched_{number}" for number in numbers]
    with store.read() as connection:
        found = schedules.load_schedules(connection, ids)
    return [found.get(each) for each in ids]


FULL = called(
    1, cron="0 5 * * *", every=None, timezone="Europe/Berlin", anchor_at=-FAR, is_active=0, next_at=None,
    last_at=FAR, last_run_id="run_1", note=TEXT, external_id=TEXT, deduplication_key=TEXT, payload=f'"{TEXT}"',
    payload_type="application/json", metadata=b'{"n":1}', tags='["\\u0000","\xe9"]', created_at=FAR, updated_at=FAR,
)  # fmt: skip


def test_schedules_come_back_as_they_were_given(store: Store) -> None:
    insert(store, FULL, schedule(2))
    assert load(store, 1, 2, 3) == [FULL, schedule(2), None]
    assert FULL.tag_list == ["\0", "é"]
    assert schedule(2).tag_list == []
    changed = schedule(2, note=TEXT, next_at=None, is_active=0)
    with store.write() as connection:
        schedules.save_schedule(connection, changed)
        schedules.save_schedule(connection, schedule(3))
    assert load(store, 1, 2, 3) == [FULL, changed, None]
    with store.write() as connection:
        schedules.delete_schedules(connection, [])
        schedules.delete_schedules(connection, ["sched_1", "sched_3"])
        assert schedules.load_schedules(connection, []) == {}
    assert load(store, 1, 2) == [None, changed]


@pytest.mark.parametrize(
    "second",
    [
        schedule(1, task="another"),
        called(3, deduplication_key=TEXT),
        called(3, cron="@daily"),
        called(3, every=None),
        schedule(3, next_at=None),
    ],
    ids=["id", "deduplication key", "two times", "no time", "active and never due"],
)
def test_the_database_itself_refuses_what_cannot_be(store: Store, second: ScheduleRow) -> None:
    insert(store, FULL)
    with pytest.raises(IntegrityError):
        insert(store, second)
    assert load(store, 1, 3) == [FULL, None]


def test_they_are_found_by_task_and_by_deduplication_key(store: Store) -> None:
    insert(store, FULL, schedule(2, task=TEXT), called(3, task=TEXT), schedule(4))
    with store.read() as connection:
        assert schedules.declared_schedules(connection, [TEXT, "task_1"]) == {TEXT: schedule(2, task=TEXT)}
        assert schedules.declared_schedules(connection, []) == {}
        assert schedules.schedule_with_key(connection, TEXT) == FULL
        assert schedules.schedule_with_key(connection, TEXT[:-1]) is None


def test_what_is_due_comes_in_the_order_of_its_time(store: Store) -> None:
    with store.read() as connection:
        assert schedules.next_time(connection) is None
    late, paused = schedule(9, next_at=NOW + 2), schedule(5, next_at=None, is_active=0)
    insert(store, schedule(3), late, schedule(2), paused, schedule(4, next_at=FAR))
    with store.read() as connection:
        assert schedules.next_time(connection) == NOW + 2
        assert schedules.due_schedules(connection, now=NOW + 3, limit=9) == [schedule(2), late, schedule(3)]
        assert schedules.due_schedules(connection, now=FAR, limit=2) == [schedule(2), late]
        assert schedules.due_schedules(connection, now=NOW + 1, limit=9) == []
        assert schedules.due_schedules(connection, now=FAR, limit=0) == []


def test_a_list_has_pages_newest_first(store: Store) -> None:
    rows = [schedule(number) for number in range(1, 6)] + [called(6, task="task_1")]
    insert(store, *rows)
    with store.read() as connection:
        assert schedules.list_schedules(connection, limit=4, offset=0) == (rows[:1:-1], 6)
        assert schedules.list_schedules(connection, limit=4, offset=4) == (rows[1::-1], 6)
        assert schedules.list_schedules(connection, limit=4, offset=6) == ([], 6)
        assert schedules.list_schedules(connection, limit=4, offset=0, task="task_1") == (
            [rows[5], rows[0]],
            2,
        )
        assert schedules.list_schedules(connection, limit=4, offset=0, task=TEXT) == ([], 0)


def test_those_that_count_time_move_with_a_clock_that_is_set(store: Store) -> None:
    cron = called(2, cron="@daily", every=None, last_at=NOW)
    insert(store, schedule(1, last_at=NOW - 1), cron, schedule(3, next_at=None, is_active=0))
    with store.write() as connection:
        schedules.shift_periods(connection, -7)
    assert load(store, 1, 2, 3) == [
        schedule(1, anchor_at=NOW - 7, next_at=NOW - 6, last_at=NOW - 8),
        cron,
        schedule(3, anchor_at=NOW - 7, next_at=None, is_active=0),
    ]


def test_what_has_fired_after_a_time_is_found(store: Store) -> None:
    period, cron = schedule(1, last_at=NOW), called(2, cron="@daily", every=None, last_at=NOW)
    insert(store, period, cron, schedule(3), schedule(4, last_at=FAR, next_at=None, is_active=0))

    def found(periods_after: int, crons_after: int) -> list[str]:
        with store.read() as connection:
            rows = schedules.fired_after(connection, periods_after=periods_after, crons_after=crons_after)
        return sorted(row.id for row in rows)

    assert found(NOW - 1, NOW - 1) == [period.id, cron.id]
    assert found(NOW, NOW - 1) == [cron.id]
    assert found(NOW - 1, NOW) == [period.id]
    assert found(NOW, FAR) == []


def test_which_schedule_has_triggered_a_run_outlives_the_schedule(store: Store) -> None:
    insert(store, FULL)
    rows = [ScheduledRun("run_1", "sched_1", FAR), ScheduledRun("run_2", "sched_1", -FAR)]
    with store.write() as connection:
        schedules.insert_scheduled_runs(connection, rows)
        schedules.insert_scheduled_runs(connection, [])
        schedules.delete_schedules(connection, ["sched_1"])
    with store.read() as connection:
        found = schedules.load_scheduled_runs(connection, ["run_2", "run_1", "run_3"])
        assert found == {row.run_id: row for row in rows}
        assert schedules.load_scheduled_runs(connection, []) == {}
