"""Schedules on the wire, and what a scheduled run is given.

Names and paths are those of the protocol; `every`, `payload`, `metadata` and `tags` are ours.
"""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from milepost.model.run import QueuedReason

EXTERNAL_ID_CHARACTERS_MAX = 256
UPCOMING_SHOWN = 5
PAGE_SIZE = 50
PAGE_SIZE_MAX = 100


class ScheduledPayload(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """What a run gets from its schedule, unless the schedule was made with a payload.

    Attributes:
        timestamp: the time that the run is for, as the schedule has it; aware UTC. The run may begin later.
        timezone: the time zone of the schedule: `payload.timestamp.astimezone(ZoneInfo(payload.timezone))`.
        schedule_id: the schedule.
        type: DECLARATIVE when the task's code declares the schedule, IMPERATIVE when it was made by a call.
        external_id: what whoever made the schedule calls it.
        last_timestamp: the time that the schedule has fired for before; None for the first.
        upcoming: the next times, soonest first.
    """

    timestamp: datetime
    timezone: str
    schedule_id: str
    type: str = "IMPERATIVE"
    external_id: str | None = None
    last_timestamp: datetime | None = None
    upcoming: list[datetime] = []


class TaskSchedule(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """What a task's code declares: `cron` in `timezone`, or `every` so many seconds; one of the two."""

    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"


class CreateScheduleRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """A new schedule: `cron` (in `timezone`, UTC if none is named) or `every` (a text such as `5m`, or seconds).

    With a `deduplicationKey` that a schedule has already, that one is changed to what is said here. `payload` is text in the encoding
    that `payloadType` names, as of a trigger.
    """

    task: str
    cron: str | None = None
    every: str | float | None = None
    timezone: str | None = None
    active: bool | None = None
    external_id: str | None = None
    deduplication_key: str | None = None
    payload: str | None = None
    payload_type: str | None = None
    metadata: Any = None
    tags: str | list[str] | None = None


class UpdateScheduleRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """What of a schedule changes; what is left out stays, and null takes it away. Of `cron` and `every` the one that is given replaces
    the other."""

    task: str | UnsetType = UNSET
    cron: str | UnsetType | None = UNSET
    every: str | float | UnsetType | None = UNSET
    timezone: str | UnsetType | None = UNSET
    external_id: str | UnsetType | None = UNSET
    payload: str | UnsetType | None = UNSET
    payload_type: str | UnsetType | None = UNSET
    metadata: Any = UNSET
    tags: str | list[str] | UnsetType | None = UNSET


class Generator(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """When a schedule fires: CRON with a cron line, or EVERY with a duration such as `5m`."""

    type: str
    expression: str
    description: str


class ScheduleEnvironment(msgspec.Struct, rename="camel", kw_only=True):
    """Where a schedule fires; here there is one environment."""

    id: str
    type: str


class ScheduleObject(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """A schedule. `nextRun` is when it fires next, absent while it is not active; `upcoming` are the times from there on.

    `lastRun` is the time that it has fired for last, `lastRunId` the run of it. `note` says why its last time has triggered none.
    `queuedReason`: nobody can take runs of its task at this moment.
    """

    id: str
    type: str
    task: str
    active: bool
    deduplication_key: str | None = None
    external_id: str | None = None
    generator: Generator
    timezone: str
    next_run: datetime | None = None
    upcoming: list[datetime] = []
    last_run: datetime | None = None
    last_run_id: str | None = None
    note: str | None = None
    queued_reason: QueuedReason | None = None
    payload: Any = None
    metadata: Any = None
    tags: list[str] = []
    created_at: datetime
    updated_at: datetime
    environments: list[ScheduleEnvironment]


class SchedulePagination(msgspec.Struct, rename="camel", kw_only=True):
    """Which page this is, of how many, and how many schedules there are in all."""

    current_page: int
    total_pages: int
    count: int


class SchedulePage(msgspec.Struct):
    """A page of schedules, newest first."""

    data: list[ScheduleObject]
    pagination: SchedulePagination


class ScheduleDeleted(msgspec.Struct):
    """The schedule that is gone."""

    id: str


class Timezones(msgspec.Struct):
    """The names of all time zones that the server knows."""

    timezones: list[str]


class RunSchedule(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """The schedule that has triggered a run, and the time that the run is for."""

    id: str
    external_id: str | None = None
    deduplication_key: str | None = None
    generator: Generator
    timestamp: datetime
