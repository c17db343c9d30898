"""`Schedule`: a schedule as a reader sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from milepost.model.durations import parse_duration
from milepost.model.run import QueuedReason
from milepost.protocol.schedules import ScheduleObject


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule at one moment. Times are aware UTC.

    Attributes:
        id: the schedule's id.
        task_id: the task that it triggers.
        is_declared: the code of the task declares it; it can be paused, and is changed there.
        is_active: False while it is paused.
        cron: the cron line, or None.
        every: how often, or None.
        timezone: the zone of the cron line.
        next_at: when it fires next; None while it is paused.
        upcoming: the next times, `next_at` first; empty in lists.
        last_at: the time that it has fired for last.
        last_run_id: the newest run of it.
        note: why its last time has triggered no run; None when it has.
        external_id: as it was given.
        deduplication_key: as it was given.
        payload: what its runs are given, as JSON; None: the time.
        metadata: the first document of its runs, or None.
        tags: of its runs.
        queued_reason: why nobody can take its runs at this moment: no worker offers the task. None when one does.
        created_at: when it was made.
        updated_at: when it was changed last.
    """

    id: str
    task_id: str
    is_declared: bool
    is_active: bool
    cron: str | None
    every: timedelta | None
    timezone: str
    next_at: datetime | None
    upcoming: list[datetime]
    last_at: datetime | None
    last_run_id: str | None
    note: str | None
    external_id: str | None
    deduplication_key: str | None
    payload: Any
    metadata: dict[str, Any] | None
    tags: list[str]
    queued_reason: QueuedReason | None
    created_at: datetime
    updated_at: datetime


def schedule_from_wire(answer: ScheduleObject) -> Schedule:
    """A schedule as the server tells it."""
    is_cron = answer.generator.type == "CRON"
    return Schedule(
        id=answer.id,
        task_id=answer.task,
        is_declared=answer.type == "DECLARATIVE",
        is_active=answer.active,
        cron=answer.generator.expression if is_cron else None,
        every=None if is_cron else parse_duration(answer.generator.expression),
        timezone=answer.timezone,
        next_at=answer.next_run,
        upcoming=answer.upcoming,
        last_at=answer.last_run,
        last_run_id=answer.last_run_id,
        note=answer.note,
        external_id=answer.external_id,
        deduplication_key=answer.deduplication_key,
        payload=answer.payload,
        metadata=answer.metadata,
        tags=answer.tags,
        queued_reason=answer.queued_reason,
        created_at=answer.created_at,
        updated_at=answer.updated_at,
    )
