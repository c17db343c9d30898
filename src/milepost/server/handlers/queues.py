"""Queues: how they stand, pausing them, and their limits."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from milepost.engine.commands import Command, OverrideQueueLimit, PauseQueue
from milepost.errors import BadRequestError
from milepost.model.names import default_queue
from milepost.protocol.queues import OverrideRequest, PauseRequest, QueueType, ResetRequest
from milepost.reading.reader import Reader
from milepost.server import access, requests

PAGES_MAX = 1_000_000
_TYPES = ("id", "name", "task", "custom")


class Queues:
    """The endpoints about queues."""

    def __init__(self, submit: Callable[[Command], Awaitable[Any]], reader: Reader) -> None:
        self._submit = submit
        self._reader = reader

    async def list_queues(self, request: Request) -> Any:
        """One page of queues."""
        number = requests.whole_number(request, "page", default=1)
        if not 1 <= number <= PAGES_MAX:
            raise BadRequestError(
                f"page must be from 1 to {PAGES_MAX:,}, not {number}", field="page", limit=PAGES_MAX
            )
        size = requests.page_size(request, "perPage")
        return await asyncio.to_thread(self._reader.queue_page, number=number, size=size)

    async def retrieve_queue(self, request: Request) -> Any:
        """One queue."""
        kind = request.query_params.get("type")
        if kind not in (None, *_TYPES):
            raise BadRequestError(f"type is one of {', '.join(_TYPES)}, not {kind!r:.40}", field="type")
        return await self._now(_name(request, kind))

    async def pause_queue(self, request: Request) -> Any:
        """Pause a queue, or resume it."""
        body: PauseRequest = await requests.body(request, PauseRequest)
        name = _name(request, body.type)
        await self._submit(PauseQueue(name, body.action == "pause", access.request_id(request)))
        return await self._now(name)

    async def override_queue(self, request: Request) -> Any:
        """Set another limit."""
        body: OverrideRequest = await requests.body(request, OverrideRequest)
        name = _name(request, body.type)
        await self._submit(OverrideQueueLimit(name, body.concurrency_limit, access.request_id(request)))
        return await self._now(name)

    async def reset_queue(self, request: Request) -> Any:
        """Go by what tasks say."""
        body: ResetRequest = await requests.body(request, ResetRequest)
        name = _name(request, body.type)
        await self._submit(OverrideQueueLimit(name, None, access.request_id(request)))
        return await self._now(name)

    async def _now(self, name: str) -> Any:
        return await asyncio.to_thread(self._reader.queue, name)


def _name(request: Request, kind: QueueType | str | None) -> str:
    name: str = request.path_params["queue"]
    return default_queue(name) if kind == "task" else name
