"""`schedules`: what is triggered at set times, made and changed by calls; those that code declares (`@task(cron=...)`) too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, Protocol, TypedDict, Unpack

from msgspec import UNSET

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.requests import NO_PAYLOAD, payload_text
from milepost.client.schedule import Schedule
from milepost.errors import UsageError
from milepost.model.document import SIZE_LIMIT, Document
from milepost.model.durations import parse_duration
from milepost.protocol.schedules import (
    PAGE_SIZE,
    UPCOMING_SHOWN,
    CreateScheduleRequest,
    UpdateScheduleRequest,
)
from milepost.protocol.triggering import JSON_TYPE

__all__ = ["Schedule", "ScheduleOptions", "Schedules"]

LEFT_OUT: Final[Any] = UNSET


class HasId(Protocol):
    """A task."""

    @property
    def id(self) -> str:
        """What the task is called on the server."""
        ...


class ScheduleOptions(TypedDict, total=False):
    """What can be said of a schedule.

    cron: a cron line of five fields, such as "0 5 * * *", or "@daily" and its like.
    every: how often, from the making of the schedule on: a timedelta, seconds, or a text such as "5m".
    timezone: the zone whose wall clock the cron line means, such as "Europe/Berlin"; UTC when left out.
    payload: what each of its runs is given; a `ScheduledPayload` when left out.
    metadata: the first document of each of its runs.
    tags: of each of its runs.
    external_id: what you call it; its runs are told it.
    """

    cron: str | None
    every: timedelta | float | str | None
    timezone: str | None
    payload: Any
    metadata: object
    tags: str | Iterable[str] | None
    external_id: str | None


Encode = Callable[[str, object], str | None]


def _encode_plain(task_id: str, payload: object) -> str | None:
    return payload_text(payload)


class Schedules:
    """Calls about schedules, through one client.

    Args:
        encode: a payload for a task as JSON text.
    """

    def __init__(self, connection: Callable[[], Connection], encode: Encode = _encode_plain) -> None:
        self._connection = connection
        self._encode = encode

    def create(
        self,
        task: str | HasId,
        *,
        deduplication_key: str | None = None,
        active: bool | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Have a task triggered at set times, with `cron=` or `every=`.

        Args:
            task: the task or its id. No worker need offer it yet.
            deduplication_key: makes it safe to say this each time a program starts: where a schedule has this key already, that one
                is changed to what is said here, and no second one made.
            active: False makes a paused one. Without it a new one is active, and one that is there stays as it is.
            options: see `ScheduleOptions`.
        Raises: InvalidRequestError for a cron line that is none or never fires, a time zone that there is not, a duration beyond a
            second to 366 days; PayloadValidationError; MetadataError.
        """
        return self._connection().send(
            calls.create_schedule(self._new(task, deduplication_key, active, options))
        )

    async def acreate(
        self,
        task: str | HasId,
        *,
        deduplication_key: str | None = None,
        active: bool | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """As `create`, without blocking."""
        call = calls.create_schedule(self._new(task, deduplication_key, active, options))
        return await self._connection().asend(call)

    def update(
        self, schedule_id: str, *, task: str | HasId | None = None, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Change a schedule. What is left out stays; None takes a payload, metadata, tags or an external id away.

        With another `cron`, `every` or `timezone` the next time is reckoned anew, from now on.

        Raises: NotFoundError; ConflictError for one that code declares; and as `create`.
        """
        return self._connection().send(calls.update_schedule(schedule_id, self._changes(task, options)))

    async def aupdate(
        self, schedule_id: str, *, task: str | HasId | None = None, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """As `update`, without blocking."""
        return await self._connection().asend(
            calls.update_schedule(schedule_id, self._changes(task, options))
        )

    def retrieve(self, schedule_id: str, *, upcoming: int = UPCOMING_SHOWN) -> Schedule:
        """A schedule as it is now, with so many of its next times (0 to 100). Raises NotFoundError."""
        return self._connection().send(calls.retrieve_schedule(schedule_id, upcoming))

    async def aretrieve(self, schedule_id: str, *, upcoming: int = UPCOMING_SHOWN) -> Schedule:
        """As `retrieve`, without blocking."""
        return await self._connection().asend(calls.retrieve_schedule(schedule_id, upcoming))

    def deactivate(self, schedule_id: str) -> Schedule:
        """Pause a schedule: it fires no more until it is activated. Raises NotFoundError."""
        return self._connection().send(calls.set_schedule_active(schedule_id, False))

    async def adeactivate(self, schedule_id: str) -> Schedule:
        """As `deactivate`, without blocking."""
        return await self._connection().asend(calls.set_schedule_active(schedule_id, False))

    def activate(self, schedule_id: str) -> Schedule:
        """Let a paused schedule go on from its next time; what it has missed does not fire. Raises NotFoundError."""
        return self._connection().send(calls.set_schedule_active(schedule_id, True))

    async def aactivate(self, schedule_id: str) -> Schedule:
        """As `activate`, without blocking."""
        return await self._connection().asend(calls.set_schedule_active(schedule_id, True))

    def delete(self, schedule_id: str) -> None:
        """Forget a schedule; its runs go on. Raises NotFoundError; ConflictError for one that the code of a worker declares."""
        self._connection().send(calls.delete_schedule(schedule_id))

    async def adelete(self, schedule_id: str) -> None:
        """As `delete`, without blocking."""
        await self._connection().asend(calls.delete_schedule(schedule_id))

    def list(self, *, task: str | HasId | None = None, page_size: int = PAGE_SIZE) -> Iterator[Schedule]:
        """Schedules, newest first; further pages are fetched while iterating.

        Args:
            task: only those of this task.
            page_size: schedules fetched at once, 1 to 100.
        """
        number, pages = 1, 1
        while number <= pages:
            found, pages = self._connection().send(calls.list_schedules(_id_or_none(task), number, page_size))
            yield from found
            number += 1

    async def alist(
        self, *, task: str | HasId | None = None, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[Schedule]:
        """As `list`, for `async for`."""
        number, pages = 1, 1
        while number <= pages:
            call = calls.list_schedules(_id_or_none(task), number, page_size)
            found, pages = await self._connection().asend(call)
            for schedule in found:
                yield schedule
            number += 1

    def _new(
        self, task: str | HasId, key: str | None, active: bool | None, options: ScheduleOptions
    ) -> CreateScheduleRequest:
        task_id = _id_of(task)
        if options.get("cron") is None and options.get("every") is None:
            raise UsageError("schedules.create needs cron='0 5 * * *' or every='5m'")
        values = self._values(task_id, options)
        return CreateScheduleRequest(task=task_id, deduplication_key=key, active=active, **values)

    def _changes(self, task: str | HasId | None, options: ScheduleOptions) -> UpdateScheduleRequest:
        task_id = _id_or_none(task)
        values = self._values(task_id or "", options)
        return UpdateScheduleRequest(task=LEFT_OUT if task_id is None else task_id, **values)

    def _values(self, task_id: str, options: ScheduleOptions) -> dict[str, Any]:
        """The fields of a request. What can be checked here is."""
        # Takes the time zones along, which a program that only triggers need not load.
        from milepost.model.timetable import Cron, Every

        values: dict[str, Any] = {**options}
        unknown = values.keys() - ScheduleOptions.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"there is no option {sorted(unknown)[0]!r} of a schedule; there are {', '.join(ScheduleOptions.__annotations__)}"
            )
        if values.get("every") is not None:
            Every(values["every"], 0)
            values["every"] = parse_duration(values["every"]).total_seconds()
        if values.get("cron") is not None:
            Cron(values["cron"], values.get("timezone") or "UTC")
        if "payload" in values:
            payload = values["payload"]
            text = None if payload is None or payload is NO_PAYLOAD else self._encode(task_id, payload)
            values["payload"] = text
            values["payload_type"] = None if text is None else JSON_TYPE
        if values.get("metadata") is not None:
            values["metadata"] = Document.from_json(values["metadata"], limit=SIZE_LIMIT).value
        tags = values.get("tags")
        if tags is not None:
            values["tags"] = [tags] if isinstance(tags, str) else [*tags]
        return values


def _id_of(task: str | HasId) -> str:
    return task if isinstance(task, str) else task.id


def _id_or_none(task: str | HasId | None) -> str | None:
    return None if task is None else _id_of(task)
