"""`queues`: how queues stand, pausing them, and changing their limits while runs come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.queue import Queue
from milepost.errors import UsageError
from milepost.protocol.queues import QueueObject

PAGE_SIZE = 100


class QueueList:
    """Queues in the order of their names, fetched page by page while they are iterated over."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    def __iter__(self) -> Iterator[QueueObject]:
        number = 1
        while True:
            page = self._connection().send(calls.list_queues(number, page_size=PAGE_SIZE))
            yield from page.data
            if number >= page.pagination.total_pages:
                return
            number += 1


class AsyncQueueList:
    """As `QueueList`, for `async for queue in queues.alist()`."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[QueueObject]:
        number = 1
        while True:
            page = await self._connection().asend(calls.list_queues(number, page_size=PAGE_SIZE))
            for queue in page.data:
                yield queue
            if number >= page.pagination.total_pages:
                return
            number += 1


class Queues:
    """Queues of one server. A queue is named by its name, or by a `Queue`; `task/<id>` is the queue of a task that names none.

    Each call that names a queue raises QueueNotFoundError where there is none of this name: no task names it, and no run waits in it.
    """

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    def list(self) -> QueueList:
        """All queues, in the order of their names: an iterator that reads page by page. Their concurrency keys are left out."""
        return QueueList(self._connection)

    def alist(self) -> AsyncQueueList:
        """As `list`, for `async for`."""
        return AsyncQueueList(self._connection)

    def retrieve(self, queue: str | Queue) -> QueueObject:
        """A queue as it is now, with its concurrency keys."""
        return self._connection().send(calls.retrieve_queue(_name(queue)))

    async def aretrieve(self, queue: str | Queue) -> QueueObject:
        """As `retrieve`, without blocking."""
        return await self._connection().asend(calls.retrieve_queue(_name(queue)))

    def pause(self, queue: str | Queue) -> QueueObject:
        """Let none of its queued runs begin until it is resumed. What has begun goes on, and new runs may be triggered."""
        return self._connection().send(calls.pause_queue(_name(queue), "pause"))

    async def apause(self, queue: str | Queue) -> QueueObject:
        """As `pause`, without blocking."""
        return await self._connection().asend(calls.pause_queue(_name(queue), "pause"))

    def resume(self, queue: str | Queue) -> QueueObject:
        """Let its queued runs begin again."""
        return self._connection().send(calls.pause_queue(_name(queue), "resume"))

    async def aresume(self, queue: str | Queue) -> QueueObject:
        """As `resume`, without blocking."""
        return await self._connection().asend(calls.pause_queue(_name(queue), "resume"))

    def override_concurrency_limit(self, queue: str | Queue, limit: int) -> QueueObject:
        """Set another limit than its tasks say, which holds until it is reset, also when workers register anew.

        Where more runs execute, none is ended, and none begins until there are fewer.

        Args:
            limit: 1 to 100,000; to let nothing begin, `pause` the queue.
        Raises: InvalidRequestError.
        """
        return self._connection().send(calls.override_queue(_name(queue), limit))

    async def aoverride_concurrency_limit(self, queue: str | Queue, limit: int) -> QueueObject:
        """As `override_concurrency_limit`, without blocking."""
        return await self._connection().asend(calls.override_queue(_name(queue), limit))

    def reset_concurrency_limit(self, queue: str | Queue) -> QueueObject:
        """Go by the limit that its tasks say again."""
        return self._connection().send(calls.reset_queue(_name(queue)))

    async def areset_concurrency_limit(self, queue: str | Queue) -> QueueObject:
        """As `reset_concurrency_limit`, without blocking."""
        return await self._connection().asend(calls.reset_queue(_name(queue)))


def _name(queue: str | Queue) -> str:
    name = queue.name if isinstance(queue, Queue) else queue
    if not name:
        raise UsageError("the name of a queue is empty")
    return name
