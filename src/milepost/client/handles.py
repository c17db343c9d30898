"""What a trigger answers with: a handle to watch the run, to wait for it, or only to remember its id."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, overload

from milepost.client import calls, endings
from milepost.client.connection import Connection
from milepost.client.results import TaskResult, task_result
from milepost.client.run import Run
from milepost.client.run_streams import StreamChoice, StreamValue, afollow_run, follow_run
from milepost.client.shape import Shape
from milepost.model.run import QueuedReason

OutputT = TypeVar("OutputT")


@dataclass(frozen=True)
class RunHandle(Generic[OutputT]):
    """A run that was triggered.

    Attributes:
        id: the run's id.
        task_id: the task that it is of.
        public_access_token: lets others watch this run and nothing else; None when the server gives none.
        queued_reason: why nobody could take the run when it was triggered, see `Run`; None when a worker is online that can.
        is_cached: the run was there before: its idempotency key stood for it, or an earlier attempt of its parent has triggered it.
    """

    id: str
    task_id: str
    public_access_token: str | None
    _connection: Connection = field(repr=False)
    _shape: Shape[Any] | None = field(default=None, repr=False)
    queued_reason: QueuedReason | None = None
    is_cached: bool = False

    def retrieve(self) -> Run:
        """The run as it is now."""
        return self._connection.send(calls.retrieve_run(self.id))

    async def aretrieve(self) -> Run:
        """As `retrieve`, without blocking."""
        return await self._connection.asend(calls.retrieve_run(self.id))

    @overload
    def subscribe(self, *, streams: Literal[False] = False) -> Iterator[Run]: ...
    @overload
    def subscribe(self, *, streams: StreamChoice) -> Iterator[Run | StreamValue]: ...
    def subscribe(self, *, streams: StreamChoice = False) -> Iterator[Any]:
        """The run now and after each change, until it has finished, with the values of its streams if wanted; see `runs.subscribe`."""
        return follow_run(self._connection, self.id, streams)

    @overload
    def asubscribe(self, *, streams: Literal[False] = False) -> AsyncIterator[Run]: ...
    @overload
    def asubscribe(self, *, streams: StreamChoice) -> AsyncIterator[Run | StreamValue]: ...
    def asubscribe(self, *, streams: StreamChoice = False) -> AsyncIterator[Any]:
        """As `subscribe`, for `async for`."""
        return afollow_run(self._connection, self.id, streams)

    def result(self, timeout: float | None = None) -> TaskResult[OutputT]:
        """Wait until the run has ended. A failed run does not raise; `unwrap()` does.

        Raises: TimeoutError after `timeout` seconds.
        """
        return task_result(endings.wait_for_result(self._connection, self.id, timeout), self._shape)

    async def aresult(self, timeout: float | None = None) -> TaskResult[OutputT]:  # noqa: ASYNC109 - the twin of `result`
        """As `result`, without blocking."""
        return task_result(await endings.await_for_result(self._connection, self.id, timeout), self._shape)


@dataclass(frozen=True)
class BatchHandle(Generic[OutputT]):
    """A batch that was triggered.

    Attributes:
        id: the batch's id; empty for a batch without items, which nobody was asked to run.
        runs: handles of its runs, in the order of the items.
        public_access_token: lets others watch the batch and its runs; None when the server gives none.
        is_cached: the batch was there before, by its idempotency key.
    """

    id: str
    runs: list[RunHandle[OutputT]]
    public_access_token: str | None
    is_cached: bool = False
