"""Reading and watching runs and batches."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from milepost.engine.announcements import RunChanged
from milepost.engine.commands import DeleteRun
from milepost.errors import NotFoundError, RunNotFoundError, UnavailableError
from milepost.feed import matching, streams
from milepost.feed.hub import Hub, RunEnd
from milepost.feed.waiting import in_reader, woken
from milepost.protocol.runs import RunDeleted, RunResult
from milepost.reading.reader import Reader
from milepost.reading.runs import result_from
from milepost.server import access, requests
from milepost.server.auth import caller_of
from milepost.server.handlers.answers import Submit

# Runs that one command deletes.
DELETED_MAX = 200
# Runs that one tree has.
TREE_SIZE_MAX = 1000


class Runs:
    """The endpoints that show runs and batches."""

    def __init__(self, reader: Reader, hub: Hub, clock: Callable[[], int], submit: Submit) -> None:
        self._submit = submit
        self._reader = reader
        self._hub = hub
        self._clock = clock

    async def retrieve_batch(self, request: Request) -> Any:
        """A batch."""
        return await asyncio.to_thread(self._reader.batch, request.path_params["batch"])

    async def batch_results(self, request: Request) -> Any:
        """The results of a batch, page by page."""
        after = requests.whole_number(request, "page[after]", default=-1)
        return await asyncio.to_thread(self._reader.batch_results, request.path_params["batch"], after=after)

    async def list_runs(self, request: Request) -> Any:
        """One page of runs."""
        view = caller_of(request).view
        filter, size = requests.run_filter(request, self._clock(), view), requests.page_size(request)
        after, before = request.query_params.get("page[after]"), request.query_params.get("page[before]")
        return await asyncio.to_thread(
            self._reader.page, filter, size=size, after=after, before=before, keys=view.keys
        )

    async def retrieve_run(self, request: Request) -> Any:
        """One run."""
        return await asyncio.to_thread(self._reader.run, request.path_params["run"], caller_of(request).view)

    async def delete_run(self, request: Request) -> Any:
        """Delete a finished run with all below it, in portions, so that nothing else has to wait for long."""
        run_id, caller = request.path_params["run"], caller_of(request)
        attempt = access.attempt_of(caller, request)
        command = DeleteRun(run_id, DELETED_MAX, access.request_id(request), attempt)
        deleted, left = await self._submit(command)
        while left:
            try:
                more, left = await self._submit(command)
            except RunNotFoundError:
                # Somebody else has deleted the rest meanwhile.
                break
            deleted += more
        return RunDeleted(run_id, deleted)

    def watch_run(self, request: Request) -> AsyncIterator[bytes]:
        """One run, live, with its children where they are asked for."""
        run_id, view = request.path_params["run"], caller_of(request).view.in_feeds()
        if "children" not in request.query_params:
            return streams.watch_run(self._hub, self._reader, run_id, view=view)
        size = requests.page_size(request, "children")
        return streams.watch_family(self._hub, self._reader, run_id, size=size, view=view)

    async def watch_list(self, request: Request) -> AsyncGenerator[bytes]:
        """The first page of a list, live."""
        view = caller_of(request).view.in_feeds()
        filter, size = requests.run_filter(request, self._clock(), view), requests.page_size(request)
        rows = streams.watch_list(self._hub, self._reader, filter, size=size, view=view)
        async with aclosing(rows) as frames:
            async for frame in frames:
                yield frame

    async def watch_matching(self, request: Request) -> AsyncGenerator[bytes]:
        """All runs that match, live."""
        view = caller_of(request).view.in_feeds()
        filter = requests.run_filter(request, self._clock(), view)
        runs = matching.watch_matching(self._hub, self._reader, filter, view)
        async with aclosing(runs) as frames:
            async for frame in frames:
                yield frame

    async def run_result(self, request: Request) -> Any:
        """The result of a finished run, as soon as there is one."""
        run_id, seconds = request.path_params["run"], requests.wait_seconds(request)
        end = RunEnd()
        # Before it is looked at, or an end in between would be missed.
        self._hub.watch_end(run_id, end)
        try:
            result = await in_reader(lambda: self._reader.result(run_id))
            if result is None and seconds and not self._hub.is_closed and await woken(end.wake, seconds):
                result = _told(end.changed) or await in_reader(lambda: self._reader.result(run_id))
        finally:
            self._hub.leave_end(run_id, end)
        if result is None and seconds and self._hub.is_closed:
            # Whoever waits asks again in a moment, perhaps another server.
            raise UnavailableError("the server is about to stop")
        if result is None:
            raise NotFoundError(f"run {run_id!r} has not finished yet, so it has no result")
        return result

    async def run_log(self, request: Request) -> Any:
        """Lines of the run's log."""
        after = requests.whole_number(request, "page[after]", default=0)
        filter, tree = requests.log_filter(request), requests.truth(request, "tree") or False
        run_id = request.path_params["run"]
        return await asyncio.to_thread(self._reader.log, run_id, after=after, filter=filter, tree=tree)

    async def run_tree(self, request: Request) -> Any:
        """The run and the runs below it."""
        size = requests.whole_number(request, "page[size]", default=TREE_SIZE_MAX)
        requests.check_page_size(size, "page[size]", most=TREE_SIZE_MAX)
        return await asyncio.to_thread(self._reader.tree, request.path_params["run"], size=size)

    def watch_batch(self, request: Request) -> AsyncIterator[bytes]:
        """How far a batch is, live."""
        return streams.watch_batch(self._hub, self._reader, request.path_params["batch"])


def _told(changed: RunChanged | None) -> RunResult | None:
    """The result as the commit has told it; None where it has to be read. Of an end that is told again the result is not."""
    if changed is None or not changed.state_changed or (changed.output is None and changed.error is None):
        return None
    return result_from(changed.row, changed.output, changed.error)
