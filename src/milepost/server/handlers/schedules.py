"""Schedules: made, changed, paused, deleted, shown."""

import asyncio
from typing import Any
from zoneinfo import available_timezones

from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import TriggerItem
from milepost.errors import BadRequestError
from milepost.model.timetable import UPCOMING_MAX
from milepost.protocol.schedules import (
    PAGE_SIZE,
    PAGE_SIZE_MAX,
    UPCOMING_SHOWN,
    CreateScheduleRequest,
    ScheduleDeleted,
    ScheduleObject,
    Timezones,
    UpdateScheduleRequest,
)
from milepost.protocol.triggering import TriggerOptions
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import caller_of
from milepost.server.handlers.answers import Submit

PAGES_MAX = 1_000_000


class Schedules:
    """The endpoints about schedules."""

    def __init__(self, submit: Submit, reader: Reader) -> None:
        self._submit = submit
        self._reader = reader

    async def list_schedules(self, request: Request) -> Any:
        """A page of schedules."""
        page = requests.check_page_size(
            requests.whole_number(request, "page", default=1), "page", most=PAGES_MAX
        )
        size = requests.check_page_size(
            requests.whole_number(request, "perPage", default=PAGE_SIZE), "perPage", most=PAGE_SIZE_MAX
        )
        return await asyncio.to_thread(
            self._reader.schedules, page=page, size=size, task=request.query_params.get("task")
        )

    async def retrieve_schedule(self, request: Request) -> Any:
        """A schedule."""
        count = requests.whole_number(request, "upcoming", default=UPCOMING_SHOWN)
        if not 0 <= count <= UPCOMING_MAX:
            raise BadRequestError(f"upcoming must be from 0 to {UPCOMING_MAX}, not {count}", field="upcoming")
        return await asyncio.to_thread(self._reader.schedule, request.path_params["schedule"], upcoming=count)

    async def create_schedule(self, request: Request) -> Any:
        """A new schedule."""
        body: CreateScheduleRequest = await requests.body(request, CreateScheduleRequest)
        await self._check_payload(body.payload, body.payload_type)
        attempt = access.attempt_of(caller_of(request), request)
        row = await self._submit(commands.CreateSchedule(body, access.request_id(request), attempt))
        return await self._told(row.id)

    async def update_schedule(self, request: Request) -> Any:
        """Change a schedule."""
        body: UpdateScheduleRequest = await requests.body(request, UpdateScheduleRequest)
        if isinstance(body.payload, str):
            kind = body.payload_type if isinstance(body.payload_type, str) else None
            await self._check_payload(body.payload, kind)
        attempt = access.attempt_of(caller_of(request), request)
        schedule_id = request.path_params["schedule"]
        row = await self._submit(
            commands.UpdateSchedule(schedule_id, body, access.request_id(request), attempt)
        )
        return await self._told(row.id)

    async def activate_schedule(self, request: Request) -> Any:
        """Let a schedule go on."""
        return await self._set_active(request, True)

    async def deactivate_schedule(self, request: Request) -> Any:
        """Pause a schedule."""
        return await self._set_active(request, False)

    async def delete_schedule(self, request: Request) -> Any:
        """Forget a schedule."""
        schedule_id = request.path_params["schedule"]
        attempt = access.attempt_of(caller_of(request), request)
        await self._submit(commands.DeleteSchedule(schedule_id, access.request_id(request), attempt))
        return ScheduleDeleted(schedule_id)

    async def list_timezones(self, request: Request) -> Any:
        """The time zones that this server knows."""
        return Timezones(sorted(await asyncio.to_thread(available_timezones)))

    async def _set_active(self, request: Request, is_active: bool) -> ScheduleObject:
        attempt = access.attempt_of(caller_of(request), request)
        row = await self._submit(
            commands.SetScheduleActive(
                request.path_params["schedule"], is_active, access.request_id(request), attempt
            )
        )
        return await self._told(row.id)

    async def _told(self, schedule_id: str) -> ScheduleObject:
        return await asyncio.to_thread(self._reader.schedule, schedule_id, upcoming=UPCOMING_SHOWN)

    async def _check_payload(self, payload: str | None, payload_type: str | None) -> None:
        item = TriggerItem("", payload, TriggerOptions(payload_type=payload_type))
        await doors.check_payloads([item], place="")
