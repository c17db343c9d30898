"""Which tasks there are, and which workers are online."""

import asyncio
from typing import Any

from starlette.requests import Request

from milepost.reading.reader import Reader
from milepost.server import requests

PAGES_MAX = 1_000_000


class Tasks:
    """The endpoints that show tasks and workers."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def list_tasks(self, request: Request) -> Any:
        """One page of tasks."""
        number, size = _page(request)
        return await asyncio.to_thread(self._reader.task_page, number=number, size=size)

    async def retrieve_task(self, request: Request) -> Any:
        """One task."""
        return await asyncio.to_thread(self._reader.task, request.path_params["task"])

    async def list_workers(self, request: Request) -> Any:
        """One page of workers."""
        number, size = _page(request)
        return await asyncio.to_thread(self._reader.worker_page, number=number, size=size)


def _page(request: Request) -> tuple[int, int]:
    number = requests.whole_number(request, "page", default=1)
    return requests.check_page_size(number, "page", most=PAGES_MAX), requests.page_size(request, "perPage")
