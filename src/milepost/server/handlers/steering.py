"""Steering runs from outside: cancel, replay, reschedule, tags."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import TriggerItem
from milepost.engine.triggering import delay_of
from milepost.errors import ConflictError, InvalidRequestError
from milepost.model.durations import parse_delay
from milepost.model.run import asked_of
from milepost.protocol.runs import Replayed, RunId, TagsAnswer, TagsRequest
from milepost.protocol.triggering import QueueOption, ReplayRequest, RescheduleRequest, TriggerOptions
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import caller_of
from milepost.server.handlers.answers import Submit
from milepost.store.deletion import DELETED
from milepost.store.runs import RunRecord


class Steering:
    """The endpoints that change the life of a run that is there."""

    def __init__(self, submit: Submit, reader: Reader, clock: Callable[[], int]) -> None:
        self._submit = submit
        self._clock = clock
        self._reader = reader

    async def cancel(self, request: Request) -> Any:
        """Ask a run and its children to end."""
        run_id, attempt = request.path_params["run"], access.attempt_of(caller_of(request), request)
        await self._submit(commands.CancelRun(run_id, attempt))
        return RunId(run_id)

    async def replay(self, request: Request) -> Any:
        """Trigger the same again, as a run of its own."""
        attempt = access.attempt_of(caller_of(request), request)
        body: ReplayRequest = await requests.optional_body(request, ReplayRequest)
        record = await asyncio.to_thread(self._reader.triggered, request.path_params["run"])
        item = _again(record, body)
        await doors.check_payloads([item], place="")
        triggered = await self._submit(
            commands.Trigger(item, access.request_id(request), None, attempt, replay_of=record.row.id)
        )
        return Replayed(triggered.run_ids[0], item.task)

    async def reschedule(self, request: Request) -> Any:
        """Delay a delayed run to another time."""
        run_id, attempt = request.path_params["run"], access.attempt_of(caller_of(request), request)
        body: RescheduleRequest = await requests.body(request, RescheduleRequest)
        try:
            delay = parse_delay(body.delay)
        except ValueError as error:
            raise InvalidRequestError(str(error), field="delay") from None
        delay_of(body.delay, now=self._clock(), field="delay")
        await self._submit(
            commands.RescheduleRun(run_id, delay.at, delay.pause_ms, access.request_id(request), attempt)
        )
        return await asyncio.to_thread(self._reader.run, run_id, caller_of(request).view)

    async def add_tags(self, request: Request) -> Any:
        """Add tags to a run."""
        run_id, attempt = request.path_params["run"], access.attempt_of(caller_of(request), request)
        body: TagsRequest = await requests.body(request, TagsRequest)
        given = [body.tags] if isinstance(body.tags, str) else body.tags
        tags = await self._submit(commands.AddTags(run_id, given, attempt))
        return TagsAnswer(message=f"the run has {len(tags)} tags", tags=tags)


def _again(record: RunRecord, said: ReplayRequest) -> TriggerItem:
    """What triggers the same run again: the payload and the document of its trigger, its queue and key, priority, rule of retries and
    time for an attempt, unless something else was said (M2)."""
    asked = asked_of(record.row.options)
    options = TriggerOptions(
        payload_type=None if record.payload_type == DELETED else record.payload_type,
        metadata=msgspec.json.decode(record.trigger_metadata) if record.trigger_metadata else None,
        tags=record.tags,
        max_attempts=record.row.max_attempts,
        queue=QueueOption(record.row.queue),
        concurrency_key=record.row.concurrency_key,
        priority=asked.priority or None,
        retry=asked.retry,
        max_duration=None if asked.max_duration_ms is None else asked.max_duration_ms / 1000,
    )
    payload = record.payload
    if record.payload_type == DELETED and said.payload is msgspec.UNSET:
        raise ConflictError(
            f"the payload of run {record.row.id} was deleted, because the server keeps payloads for a time only "
            f"(MILEPOST_KEEP_PAYLOADS): give one to replay it with",
            field="payload",
        )
    for name in said.__struct_fields__:
        value = getattr(said, name)
        if value is msgspec.UNSET:
            continue
        if name == "payload":
            payload = value
            if said.payload_type is msgspec.UNSET:
                options.payload_type = None
        else:
            setattr(options, name, value)
    return TriggerItem(record.row.task, payload, options)
