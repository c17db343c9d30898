"""How runs and batches have ended: waiting for it, and getting the results. Each is a row of steps; see `steps`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.run import Run
from milepost.client.steps import Steps, Watch, arun, run
from milepost.client.subscription import BatchFollower, RunFollower
from milepost.errors import RunFinishedError, UnavailableError
from milepost.protocol.runs import RunResult

# One request waits for so long: less than any way there or back is cut for its silence.
WAIT_SECONDS = 20


def end_of_run(run_id: str) -> Steps[Run]:
    """Wait until a run has ended; the run."""
    ended: Run | None = yield Watch(calls.watch_run(run_id), RunFollower(), lambda state: state.is_completed)
    if ended is None:
        raise UnavailableError(f"the server ended the feed of run {run_id} before the run had finished")
    return ended


@dataclass(frozen=True, slots=True)
class AwaitResult:
    """Wait until a run has ended; its result, as the answer to the request that waits. See `Step`."""

    run_id: str

    def carry_out(self, connection: Connection, until: float | None) -> RunResult:
        """See `Step`."""
        patience = connection.patience(until)
        while True:
            # The server need not wait for longer than anybody here does.
            seconds = WAIT_SECONDS if until is None else min(WAIT_SECONDS, ceil(until - time.monotonic()))
            call = calls.run_result(self.run_id, wait_seconds=max(1, seconds))
            result = connection.send(call, patience=patience)
            if result is not None:
                return result
            patience.connected()

    async def acarry_out(self, connection: Connection) -> RunResult:
        """See `Step`."""
        patience = connection.patience(None)
        while True:
            call = calls.run_result(self.run_id, wait_seconds=WAIT_SECONDS)
            result = await connection.asend(call, patience=patience)
            if result is not None:
                return result
            patience.connected()


def result_of_run(run_id: str) -> Steps[RunResult]:
    """Wait until a run has ended; its result."""
    return (yield AwaitResult(run_id))


def results_of_batch(batch_id: str) -> Steps[list[RunResult]]:
    """Wait until every run of a batch has ended; their results in the order of the items."""
    yield Watch(calls.watch_batch(batch_id), BatchFollower(), lambda _: False)
    return (yield from results_so_far(batch_id))


def end_of_batch(batch_id: str) -> Steps[None]:
    """Wait until every run of a batch has ended."""
    yield Watch(calls.watch_batch(batch_id), BatchFollower(), lambda _: False)


class Gathering:
    """The results of a batch as its runs end, each once. What was given is not fetched again, as far as runs end in their order.

    Args:
        run_ids: the runs of the batch, in the order of the items.
    """

    def __init__(self, batch_id: str, run_ids: Sequence[str]) -> None:
        self._batch_id = batch_id
        self._run_ids = run_ids
        self._given: set[str] = set()
        # All before this one have been given.
        self._first = 0

    def new(self) -> Steps[list[RunResult]]:
        """The results that have not been given yet."""
        found: list[RunResult] = []
        after: int | None = self._first - 1
        while after is not None:
            page = yield calls.batch_results(self._batch_id, after)
            for result in page.items:
                # One run may stand for several items that have the same key.
                if result.id not in self._given:
                    self._given.add(result.id)
                    found.append(result)
            after = page.next
        while self._first < len(self._run_ids) and self._run_ids[self._first] in self._given:
            self._first += 1
        return found


def results_so_far(batch_id: str) -> Steps[list[RunResult]]:
    """The results of the runs of a batch that have ended, in the order of the items; fetched page by page."""
    results: list[RunResult] = []
    after: int | None = None
    while True:
        page = yield calls.batch_results(batch_id, after)
        results += page.items
        after = page.next
        if after is None:
            return results


def wait_for_run(connection: Connection, run_id: str, timeout: float | None) -> Run:
    """See `runs.wait`. Raises TimeoutError, which names the run, after `timeout` seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    try:
        return run(connection, end_of_run(run_id), until=until)
    except TimeoutError:
        raise _too_late(run_id, timeout) from None


async def await_for_run(connection: Connection, run_id: str, timeout: float | None) -> Run:  # noqa: ASYNC109
    """As `wait_for_run`, without blocking."""
    import asyncio

    try:
        async with asyncio.timeout(timeout):
            return await arun(connection, end_of_run(run_id))
    except TimeoutError:
        raise _too_late(run_id, timeout) from None


def match_of_run(run_id: str, matches: Callable[[Run], bool], wanted: str) -> Steps[Run]:
    """Wait until the document of a run matches; the run as it was then.

    Args:
        wanted: what is looked for, for the error.
    Raises: RunFinishedError when the run has ended without.
    """
    found: Run | None = yield Watch(
        calls.watch_run(run_id), RunFollower(), lambda state: matches(state) or state.is_completed
    )
    if found is None:
        raise UnavailableError(f"the server ended the feed of run {run_id} before the run had finished")
    if not matches(found):
        raise RunFinishedError(f"run {run_id} has ended as {found.status}, and its metadata is not {wanted}")
    return found


def wait_for_result(connection: Connection, run_id: str, timeout: float | None) -> RunResult:
    """As `wait_for_run`, and get the run's result."""
    until = None if timeout is None else time.monotonic() + timeout
    try:
        return run(connection, result_of_run(run_id), until=until)
    except TimeoutError:
        raise _too_late(run_id, timeout) from None


async def await_for_result(connection: Connection, run_id: str, timeout: float | None) -> RunResult:  # noqa: ASYNC109
    """As `wait_for_result`, without blocking."""
    import asyncio

    try:
        async with asyncio.timeout(timeout):
            return await arun(connection, result_of_run(run_id))
    except TimeoutError:
        raise _too_late(run_id, timeout) from None


def _too_late(run_id: str, timeout: float | None) -> TimeoutError:
    return TimeoutError(
        f"run {run_id} has not finished within {timeout} s; it goes on, and may be waited for again"
    )
