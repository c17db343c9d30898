"""How runs and batches have ended: waiting for it, and getting the results."""

from __future__ import annotations

import asyncio
import time

from milepost.client import calls
from milepost.client.connection import Connection
from milepost.client.run import Run
from milepost.client.subscription import BatchFollower, RunFollower
from milepost.errors import UnavailableError
from milepost.protocol.runs import RunResult


def wait_for_run(connection: Connection, run_id: str, timeout: float | None = None) -> Run:
    """Wait until a run has ended; see `runs.wait`."""
    until = None if timeout is None else time.monotonic() + timeout
    try:
        for run in connection.follow(calls.watch_run(run_id), RunFollower(), until=until):
            if run.is_completed:
                return run
    except TimeoutError:
        raise _too_late(run_id, timeout) from None
    raise _ended_early(run_id)


async def await_for_run(connection: Connection, run_id: str, timeout: float | None = None) -> Run:  # noqa: ASYNC109
    """As `wait_for_run`, without blocking."""
    try:
        async with asyncio.timeout(timeout):
            async for run in connection.afollow(calls.watch_run(run_id), RunFollower()):
                if run.is_completed:
                    return run
    except TimeoutError:
        raise _too_late(run_id, timeout) from None
    raise _ended_early(run_id)


def result_of_run(connection: Connection, run_id: str, timeout: float | None = None) -> RunResult:
    """Wait until a run has ended, and get its result. Raises TimeoutError after `timeout` seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        wait_for_run(connection, run_id, None if until is None else max(0.0, until - time.monotonic()))
        result = connection.send(calls.run_result(run_id), until=until)
        if result is not None:
            return result


async def aresult_of_run(
    connection: Connection,
    run_id: str,
    timeout: float | None = None,  # noqa: ASYNC109
) -> RunResult:
    """As `result_of_run`, without blocking."""
    async with asyncio.timeout(timeout):
        while True:
            await await_for_run(connection, run_id)
            result = await connection.asend(calls.run_result(run_id))
            if result is not None:
                return result


def results_of_batch(connection: Connection, batch_id: str) -> list[RunResult]:
    """Wait until every run of a batch has ended, and get their results in the order of the items."""
    for _ in connection.follow(calls.watch_batch(batch_id), BatchFollower()):
        pass
    return results_so_far(connection, batch_id)


async def aresults_of_batch(connection: Connection, batch_id: str) -> list[RunResult]:
    """As `results_of_batch`, without blocking."""
    async for _ in connection.afollow(calls.watch_batch(batch_id), BatchFollower()):
        pass
    return await aresults_so_far(connection, batch_id)


def results_so_far(connection: Connection, batch_id: str) -> list[RunResult]:
    """The results of the runs of a batch that have ended, in the order of the items."""
    page = connection.send(calls.batch_results(batch_id))
    results = page.items
    while page.next is not None:
        page = connection.send(calls.batch_results(batch_id, page.next))
        results += page.items
    return results


async def aresults_so_far(connection: Connection, batch_id: str) -> list[RunResult]:
    """As `results_so_far`, without blocking."""
    page = await connection.asend(calls.batch_results(batch_id))
    results = page.items
    while page.next is not None:
        page = await connection.asend(calls.batch_results(batch_id, page.next))
        results += page.items
    return results


def _too_late(run_id: str, timeout: float | None) -> TimeoutError:
    return TimeoutError(
        f"run {run_id} has not finished within {timeout} s; it goes on, and may be waited for again"
    )


def _ended_early(run_id: str) -> UnavailableError:
    return UnavailableError(f"the server ended the feed of run {run_id} before the run had finished")
