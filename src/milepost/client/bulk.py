"""Cancelling or replaying every run that a filter finds: the list is read page by page, and each run is one ordinary call.

Nothing is kept at the server for it. A bulk that was interrupted is done again: a run that was cancelled is cancelled already, and a
replay goes under a request id that is made of the bulk and the run, so the server answers a repeat with the run that there is.
"""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from milepost.client import calls
from milepost.client.calls import Call
from milepost.client.connection import Connection
from milepost.client.run import Run
from milepost.errors import MilepostError, RequestError, UsageError
from milepost.protocol.triggering import ReplayRequest

CALLS_AT_ONCE = 8
PAGE_SIZE = 100
_NAMES = uuid.UUID("6f0d1e0a-3a5e-4f0e-9d8a-0f4b1f4f6a52")


@dataclass
class BulkProgress:
    """How far a bulk is.

    Attributes:
        done: how many runs it has been carried out for.
        refused: the runs for which the server has refused it, each with the error.
        new_ids: the ids of the new runs by those of the replayed ones; only of replays.
        resume: what to give to the same call to go on with this bulk after an interruption; None before the first run was found.
    """

    done: int = 0
    refused: dict[str, RequestError] = field(default_factory=dict[str, RequestError])
    new_ids: dict[str, str] = field(default_factory=dict[str, str])
    resume: str | None = None

    def take(self, run_id: str, result: Any) -> None:
        """What one run has come to."""
        if isinstance(result, RequestError):
            self.refused[run_id] = result
            return
        self.done += 1
        if result is not None:
            self.new_ids[run_id] = result.id

    def those_of(self, runs: list[Run]) -> list[Run]:
        """The runs of a page that belong to the bulk: none that was triggered after it had begun, such as its own replays."""
        if self.resume is None and runs:
            self.resume = runs[0].id
        return [run for run in runs if self.resume is not None and run.id <= self.resume]


OnProgress = Callable[[BulkProgress], None]
MakeCall = Callable[[BulkProgress, Run], Call[Any]]


def cancelling(progress: BulkProgress, run: Run) -> Call[None]:
    """The call for one run of a bulk cancel."""
    return calls.cancel_run(run.id)


def replaying(request: ReplayRequest) -> MakeCall:
    """The calls of a bulk replay."""

    def make(progress: BulkProgress, run: Run) -> Call[Any]:
        request_id = str(uuid.uuid5(_NAMES, f"{progress.resume} {run.id}"))
        return calls.replay_run(run.id, request, request_id=request_id)

    return make


def checked(form: str, filters: Mapping[str, Any]) -> dict[str, Any]:
    """The query of a bulk. Raises UsageError for one that would mean every run there is, and what `run_filters` raises."""
    query = calls.run_filters(**filters)
    if not query:
        raise UsageError(
            f"{form} without a filter would mean every run there is; say which, such as {form}(status='QUEUED')"
        )
    return query


def carry_out(
    connection: Connection,
    query: Mapping[str, Any],
    make: MakeCall,
    on_progress: OnProgress | None,
    resume: str | None,
) -> BulkProgress:
    """Do it, several calls at a time. Raises UnavailableError and its kind; a note on the error says how to go on."""
    progress = BulkProgress(resume=resume)

    def one(run: Run) -> Any:
        try:
            return connection.send(make(progress, run))
        except RequestError as error:
            return error

    with _noting(progress), ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="milepost-bulk") as pool:
        for runs in _pages(connection, query, progress):
            # Each with a context of its own: calls know by it which run makes them.
            futures = [pool.submit(contextvars.copy_context().run, one, run) for run in runs]
            try:
                for run, future in zip(runs, futures, strict=True):
                    progress.take(run.id, future.result())
            finally:
                for future in futures:
                    future.cancel()
            if on_progress is not None:
                on_progress(progress)
    return progress


async def acarry_out(
    connection: Connection,
    query: Mapping[str, Any],
    make: MakeCall,
    on_progress: OnProgress | None,
    resume: str | None,
) -> BulkProgress:
    """As `carry_out`, without blocking."""
    import asyncio

    progress = BulkProgress(resume=resume)
    room = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(run: Run) -> None:
        async with room:
            try:
                result = await connection.asend(make(progress, run))
            except RequestError as error:
                result = error
            progress.take(run.id, result)

    with _noting(progress):
        async for runs in _apages(connection, query, progress):
            tasks = [asyncio.ensure_future(one(run)) for run in runs]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            if on_progress is not None:
                on_progress(progress)
    return progress


def _pages(connection: Connection, query: Mapping[str, Any], progress: BulkProgress) -> Iterator[list[Run]]:
    after: str | None = None
    while True:
        page = connection.send(calls.list_runs(query, page_size=PAGE_SIZE, after=after))
        yield progress.those_of(page.runs)
        if page.next is None:
            return
        after = page.next


async def _apages(
    connection: Connection, query: Mapping[str, Any], progress: BulkProgress
) -> AsyncIterator[list[Run]]:
    after: str | None = None
    while True:
        page = await connection.asend(calls.list_runs(query, page_size=PAGE_SIZE, after=after))
        yield progress.those_of(page.runs)
        if page.next is None:
            return
        after = page.next


@contextmanager
def _noting(progress: BulkProgress) -> Generator[None]:
    """An error that ends a bulk says how far that had come."""
    import asyncio

    try:
        yield
    except (MilepostError, KeyboardInterrupt, asyncio.CancelledError) as error:
        error.add_note(
            f"it had been done for {progress.done:,} runs; the same call with resume={progress.resume!r} goes on"
        )
        raise


__all__ = ["BulkProgress"]
