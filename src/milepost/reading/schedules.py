"""Schedules as they are told, with their next times."""

from collections.abc import Callable
from datetime import timedelta

import msgspec
from sqlalchemy import Connection

from milepost.errors import MilepostError, NotFoundError
from milepost.model.durations import duration_text
from milepost.model.run import QueuedReason
from milepost.model.timetable import Cron, Every, upcoming
from milepost.protocol.schedules import (
    Generator,
    RunSchedule,
    ScheduleEnvironment,
    ScheduleObject,
    SchedulePage,
    SchedulePagination,
)
from milepost.protocol.triggering import TEXT_TYPE
from milepost.reading.fields import time_of, time_or_none
from milepost.store import schedules as store
from milepost.store.schedules import ScheduleRow

_ENVIRONMENT = ScheduleEnvironment(id="env_default", type="PRODUCTION")


def whole(
    connection: Connection,
    schedule_id: str,
    upcoming_count: int,
    queued_reason: Callable[[str], QueuedReason | None],
) -> ScheduleObject:
    """A schedule with so many of its next times. Raises NotFoundError."""
    row = store.load_schedules(connection, [schedule_id]).get(schedule_id)
    if row is None:
        raise NotFoundError(f"there is no schedule {schedule_id!r:.100}")
    return told(row, upcoming_count, queued_reason)


def page(
    connection: Connection,
    number: int,
    size: int,
    task: str | None,
    queued_reason: Callable[[str], QueuedReason | None],
) -> SchedulePage:
    """A page of schedules, newest first, without their next times but for the first."""
    rows, count = store.list_schedules(connection, limit=size, offset=(number - 1) * size, task=task)
    return SchedulePage(
        [told(row, 0, queued_reason) for row in rows],
        SchedulePagination(current_page=number, total_pages=-(-count // size), count=count),
    )


def told(
    row: ScheduleRow, upcoming_count: int, queued_reason: Callable[[str], QueuedReason | None]
) -> ScheduleObject:
    """A schedule as it is told."""
    return ScheduleObject(
        id=row.id,
        type=row.type,
        task=row.task,
        active=bool(row.is_active),
        deduplication_key=row.deduplication_key,
        external_id=row.external_id,
        generator=_generator(row),
        timezone=row.timezone,
        next_run=time_or_none(row.next_at),
        upcoming=[time_of(at) for at in _next_times(row, upcoming_count)],
        last_run=time_or_none(row.last_at),
        last_run_id=row.last_run_id,
        note=row.note,
        queued_reason=queued_reason(row.task),
        payload=_payload(row),
        metadata=None if row.metadata is None else msgspec.Raw(row.metadata),
        tags=row.tag_list,
        created_at=time_of(row.created_at),
        updated_at=time_of(row.updated_at),
        environments=[_ENVIRONMENT],
    )


def schedule_of_run(connection: Connection, run_id: str) -> RunSchedule | None:
    """The schedule that has triggered a run; None for any other run, and when the schedule is gone."""
    found = store.load_scheduled_runs(connection, [run_id]).get(run_id)
    row = store.load_schedules(connection, [found.schedule_id]).get(found.schedule_id) if found else None
    if found is None or row is None:
        return None
    return RunSchedule(
        id=row.id,
        external_id=row.external_id,
        deduplication_key=row.deduplication_key,
        generator=_generator(row),
        timestamp=time_of(found.scheduled_at),
    )


def _generator(row: ScheduleRow) -> Generator:
    if row.cron is not None:
        return Generator(type="CRON", expression=row.cron, description=f"at {row.cron} in {row.timezone}")
    every = duration_text(timedelta(microseconds=row.every or 0))
    return Generator(type="EVERY", expression=every, description=f"every {every}")


def _next_times(row: ScheduleRow, count: int) -> list[int]:
    if row.next_at is None or not count:
        return []
    try:
        timetable = (
            Cron(row.cron, row.timezone)
            if row.cron is not None
            else Every(timedelta(microseconds=row.every or 0), row.anchor_at)
        )
        return [row.next_at, *upcoming(timetable, row.next_at, count - 1)]
    except MilepostError:
        # This machine may not know the time zone.
        return [row.next_at]


def _payload(row: ScheduleRow) -> msgspec.Raw | None:
    if row.payload is None:
        return None
    is_text = row.payload_type == TEXT_TYPE
    return msgspec.Raw(msgspec.json.encode(row.payload) if is_text else row.payload.encode())
