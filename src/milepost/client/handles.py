"""What a trigger answers with: a handle to watch the run, to wait for it, or only to remember its id."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, overload

from milepost.client import calls, endings
from milepost.client.connection import Connection
from milepost.client.matching import afollow_matching, follow_matching
from milepost.client.results import TaskResult, task_result
from milepost.client.run import Run
from milepost.client.run_streams import StreamChoice, StreamValue, afollow_run, follow_run
from milepost.client.shape import Shape
from milepost.client.steps import arun, run
from milepost.client.subscription import BatchFollower
from milepost.model.run import QueuedReason
from milepost.protocol.runs import RunResult

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
    _connection: Connection | None = field(default=None, repr=False)
    _shape: Shape[Any] | None = field(default=None, repr=False)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all runs of the batch have ended. In a run this keeps the slot; `batch_trigger_and_wait` gives it back.

        Raises: TimeoutError after `timeout` seconds.
        """
        for _ in self._counts(timeout):
            pass

    async def await_(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the twin of `wait`
        """As `wait`, without blocking. (`await` alone is a keyword.)"""
        import asyncio

        if self._connection is not None and self.runs:
            try:
                async with asyncio.timeout(timeout):
                    await arun(self._connection, endings.end_of_batch(self.id))
            except TimeoutError:
                raise self._late(timeout) from None

    def results(self, timeout: float | None = None) -> list[TaskResult[OutputT]]:
        """Wait until all runs have ended; their results in the order of the items. A failed run does not raise; `unwrap()` does.

        Raises: TimeoutError after `timeout` seconds.
        """
        if self._connection is None or not self.runs:
            return []
        self.wait(timeout)
        return self._results(run(self._connection, endings.results_so_far(self.id)))

    async def aresults(self, timeout: float | None = None) -> list[TaskResult[OutputT]]:  # noqa: ASYNC109 - the twin of `results`
        """As `results`, without blocking."""
        if self._connection is None or not self.runs:
            return []
        await self.await_(timeout)
        return self._results(await arun(self._connection, endings.results_so_far(self.id)))

    def iter_results(self, timeout: float | None = None) -> Iterator[TaskResult[OutputT]]:
        """The results, each once, as the runs end; `result.run_id` says which it is. Ends after the last one.

        Raises: TimeoutError when not all have ended after `timeout` seconds.
        """
        if self._connection is None or not self.runs:
            return
        gathering = endings.Gathering(self.id, [handle.id for handle in self.runs])
        for _ in self._counts(timeout):
            yield from self._results(run(self._connection, gathering.new()))
        yield from self._results(run(self._connection, gathering.new()))

    async def aiter_results(self, timeout: float | None = None) -> AsyncIterator[TaskResult[OutputT]]:  # noqa: ASYNC109 - the twin
        """As `iter_results`, for `async for`."""
        import asyncio

        if self._connection is None or not self.runs:
            return
        gathering = endings.Gathering(self.id, [handle.id for handle in self.runs])
        until = None if timeout is None else time.monotonic() + timeout
        counts = aiter(self._connection.afollow(calls.watch_batch(self.id), BatchFollower()))
        has_ended = False
        while not has_ended:
            try:
                async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                    has_ended = await anext(counts, None) is None
            except TimeoutError:
                raise self._late(timeout) from None
            for result in self._results(await arun(self._connection, gathering.new())):
                yield result

    def subscribe(self) -> Iterator[Run]:
        """Every run that the batch has triggered, as it is now and after each change, until all have finished; each as
        `runs.subscribe_where` gives it.

        A slow reader skips states, never the last of a run.
        """
        if self._connection is None or not self.runs:
            return
        left = {handle.id for handle in self.runs if not handle.is_cached}
        states = follow_matching(self._connection, calls.run_filters(batch=self.id))
        while left:
            state = next(states)
            if state.is_completed:
                left.discard(state.id)
            yield state

    async def asubscribe(self) -> AsyncIterator[Run]:
        """As `subscribe`, for `async for`."""
        if self._connection is None or not self.runs:
            return
        left = {handle.id for handle in self.runs if not handle.is_cached}
        if not left:
            return
        async for state in afollow_matching(self._connection, calls.run_filters(batch=self.id)):
            if state.is_completed:
                left.discard(state.id)
            yield state
            if not left:
                return

    def _counts(self, timeout: float | None) -> Iterator[Any]:
        """How many have ended, as often as there are more, until all have."""
        if self._connection is None or not self.runs:
            return
        until = None if timeout is None else time.monotonic() + timeout
        try:
            yield from self._connection.follow(calls.watch_batch(self.id), BatchFollower(), until=until)
        except TimeoutError:
            raise self._late(timeout) from None

    def _results(self, results: Iterable[RunResult]) -> list[TaskResult[OutputT]]:
        return [task_result(result, self._shape) for result in results]

    def _late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"batch {self.id} has not ended within {timeout} s; it goes on")
