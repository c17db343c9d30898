"""`runs`: reading runs, watching them, and writing to their metadata from outside."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack, overload

from milepost.client import bulk, calls, endings
from milepost.client.bulk import BulkProgress
from milepost.client.calling import check_blocking
from milepost.client.calls import HistoryPage, MetadataDocument, MetadataVersion, Page
from milepost.client.connection import Connection
from milepost.client.handles import RunHandle
from milepost.client.logs import LogLevel, LogLine, LogReader, aread_log, read_log
from milepost.client.matching import afollow_matching, follow_matching
from milepost.client.requests import NO_PAYLOAD, RunOptions, replay_request, reschedule_request
from milepost.client.run import Run
from milepost.client.run_streams import StreamChoice, StreamValue, afollow_run, follow_run
from milepost.client.steps import Steps
from milepost.client.steps import arun as arun_steps
from milepost.client.steps import run as run_steps
from milepost.client.updater import OutsideMetadata
from milepost.errors import InvalidRequestError
from milepost.model.durations import parse_duration
from milepost.model.filters import MetadataFilter, parse_filter
from milepost.model.jsonvalue import to_json
from milepost.model.run import RunStatus

PAGE_SIZE_DEFAULT = 100
HISTORY_PAGE_SIZE_DEFAULT = 25


class RunFilters(TypedDict, total=False):
    """Which runs a list shows; all conditions hold together.

    status: one status or several, such as "COMPLETED".
    task: one task id or several.
    tag: one tag or several; runs with any of them.
    batch: a batch id.
    schedule: the id of the schedule that has triggered them.
    queue: the name of a queue, or several; `task/<id>` is the queue of a task that names none.
    parent: the id of the parent run.
    root: the id of the run at the top of the tree.
    top_level: True for runs without a parent, False for runs that have one.
    created_after: an aware datetime.
    created_before: an aware datetime.
    metadata: conditions on the document, all of which must hold: `{"user.id": "user_1234", "$.progress": {"$gte": 50}}`. A key is
        a name at the top level, a path (`$.steps[0].done`), or names joined with dots. What is expected is a value, which must
        be equal as JSON is, or operators: `$eq`, `$gt`, `$gte`, `$lt`, `$lte`, `$exists`, `$contains` (an array with this item).
    """

    status: str | Sequence[str]
    task: str | Sequence[str]
    tag: str | Sequence[str]
    batch: str
    schedule: str
    queue: str | Sequence[str]
    parent: str
    root: str
    top_level: bool
    created_after: datetime
    created_before: datetime
    metadata: Mapping[str, Any]


class RunList:
    """Runs, newest first, fetched page by page while they are iterated over: `for run in runs.list(...)`."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        filters: Mapping[str, Any],
        page_size: int,
        after: str | None,
    ) -> None:
        self._connection = connection
        self._filters = filters
        self._page_size = page_size
        self._after = after

    def pages(self) -> Iterator[Page]:
        """The pages. `page.next` is the cursor at which a later list goes on (`after=`); None on the last one."""
        after = self._after
        while True:
            page = self._connection().send(
                calls.list_runs(self._filters, page_size=self._page_size, after=after)
            )
            yield page
            if page.next is None:
                return
            after = page.next

    def __iter__(self) -> Iterator[Run]:
        for page in self.pages():
            yield from page.runs


class AsyncRunList:
    """As `RunList`, for `async for run in runs.alist(...)`."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        filters: Mapping[str, Any],
        page_size: int,
        after: str | None,
    ) -> None:
        self._connection = connection
        self._filters = filters
        self._page_size = page_size
        self._after = after

    async def pages(self) -> AsyncIterator[Page]:
        """The pages."""
        after = self._after
        while True:
            page = await self._connection().asend(
                calls.list_runs(self._filters, page_size=self._page_size, after=after)
            )
            yield page
            if page.next is None:
                return
            after = page.next

    async def __aiter__(self) -> AsyncIterator[Run]:
        async for page in self.pages():
            for run in page.runs:
                yield run


class MetadataHistory:
    """What was changed in a document, oldest first, fetched page by page while it is iterated over."""

    def __init__(self, connection: Callable[[], Connection], run_id: str, page_size: int, after: int) -> None:
        self._connection = connection
        self._run_id = run_id
        self._page_size = page_size
        self._after = after

    def pages(self) -> Iterator[HistoryPage]:
        """The pages. Each says what the earliest version is that is kept."""
        after: int | None = self._after
        while after is not None:
            page = self._connection().send(
                calls.metadata_history(self._run_id, page_size=self._page_size, after=after)
            )
            yield page
            after = page.next

    def __iter__(self) -> Iterator[MetadataVersion]:
        for page in self.pages():
            yield from page.versions


class AsyncMetadataHistory:
    """As `MetadataHistory`, for `async for version in runs.ametadata_history(...)`."""

    def __init__(self, connection: Callable[[], Connection], run_id: str, page_size: int, after: int) -> None:
        self._connection = connection
        self._run_id = run_id
        self._page_size = page_size
        self._after = after

    async def pages(self) -> AsyncIterator[HistoryPage]:
        """The pages."""
        after: int | None = self._after
        while after is not None:
            page = await self._connection().asend(
                calls.metadata_history(self._run_id, page_size=self._page_size, after=after)
            )
            yield page
            after = page.next

    async def __aiter__(self) -> AsyncIterator[MetadataVersion]:
        async for page in self.pages():
            for version in page.versions:
                yield version


@dataclass(frozen=True)
class _Match:
    """What the document of a run is waited to be."""

    run_id: str
    filter: MetadataFilter
    wanted: str

    def steps(self) -> Steps[Run]:
        return endings.match_of_run(self.run_id, lambda run: self.filter.matches(run.metadata), self.wanted)

    def late(self, timeout: object) -> TimeoutError:
        return TimeoutError(
            f"the metadata of run {self.run_id} has not become {self.wanted} within {timeout!r}; the run goes on"
        )


def _match(run_id: str, metadata: Mapping[str, Any]) -> _Match:
    given = to_json(metadata, place="metadata")
    if not isinstance(given, dict) or not given:
        raise InvalidRequestError(
            'metadata= names what is waited for: {"status": "ready"}, as in runs.list', field="metadata"
        )
    return _Match(run_id, parse_filter(given), f"{given!r:.200}")


def _seconds(timeout: timedelta | float | str | None) -> float | None:
    try:
        return None if timeout is None else parse_duration(timeout).total_seconds()
    except ValueError as error:
        raise InvalidRequestError(f"timeout: {error}", field="timeout") from None


class Runs:
    """Calls about runs, through one client."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        self._connection = connection

    def retrieve(self, run_id: str) -> Run:
        """A run as it is now. Raises RunNotFoundError."""
        return self._connection().send(calls.retrieve_run(run_id))

    async def aretrieve(self, run_id: str) -> Run:
        """As `retrieve`, without blocking."""
        return await self._connection().asend(calls.retrieve_run(run_id))

    def cancel(self, run_id: str) -> None:
        """Let a run and its children end as CANCELED; returns as soon as that is asked.

        What no worker holds ends at once. A task that executes is asked to end (`ctx.cancelled`, or CancelledError in an `async def`);
        until it has, `run.cancel_asked_at` says since when. A run that has ended stays as it is. Repeatable.

        Raises: RunNotFoundError.
        """
        self._connection().send(calls.cancel_run(run_id))

    async def acancel(self, run_id: str) -> None:
        """As `cancel`, without blocking."""
        await self._connection().asend(calls.cancel_run(run_id))

    def replay(self, run_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]) -> RunHandle[Any]:
        """Trigger the same again as a run of its own: with the payload and the metadata of its trigger (M2), its tags and queue.

        Args:
            payload: another payload, plain JSON.
            options: what is to be another way; see `RunOptions`.
        Raises: RunNotFoundError.
        """
        connection = self._connection()
        replayed = connection.send(calls.replay_run(run_id, replay_request(options, payload=payload)))
        return RunHandle(replayed.id, replayed.task_identifier, None, connection)

    async def areplay(
        self, run_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """As `replay`, without blocking."""
        connection = self._connection()
        replayed = await connection.asend(calls.replay_run(run_id, replay_request(options, payload=payload)))
        return RunHandle(replayed.id, replayed.task_identifier, None, connection)

    def cancel_all(
        self,
        *,
        on_progress: Callable[[BulkProgress], None] | None = None,
        resume: str | None = None,
        **filters: Unpack[RunFilters],
    ) -> BulkProgress:
        """Cancel every run that matches and has not ended, the newest first: `runs.cancel_all(task="mail", status="QUEUED")`.

        Runs that are triggered after the first page was read are left alone. What was cancelled stays so when this is interrupted, and
        calling it again goes on.

        Args:
            on_progress: called after every hundred runs.
            resume: `BulkProgress.resume` of an earlier call, which leaves alone what was triggered since that one.
            filters: at least one; see `RunFilters`. Without `status` it is every status of a run that has not ended.
        Returns: how many runs were cancelled or asked to end, and those for which it was refused.
        Raises: UsageError without a filter; UnavailableError, with a note that says how far it had come.
        """
        check_blocking("runs.cancel_all")
        query = self._unfinished(filters)
        return bulk.carry_out(self._connection(), query, bulk.cancelling, on_progress, resume)

    async def acancel_all(
        self,
        *,
        on_progress: Callable[[BulkProgress], None] | None = None,
        resume: str | None = None,
        **filters: Unpack[RunFilters],
    ) -> BulkProgress:
        """As `cancel_all`, without blocking."""
        query = self._unfinished(filters)
        return await bulk.acarry_out(self._connection(), query, bulk.cancelling, on_progress, resume)

    def _unfinished(self, filters: RunFilters) -> dict[str, Any]:
        checked = bulk.checked("runs.cancel_all", filters)
        if "filter[status]" in checked:
            return checked
        statuses = [status.value for status in RunStatus if not status.is_final]
        return {**checked, **calls.run_filters(status=statuses)}

    def replay_all(
        self,
        *,
        on_progress: Callable[[BulkProgress], None] | None = None,
        resume: str | None = None,
        **filters: Unpack[RunFilters],
    ) -> BulkProgress:
        """Replay every run that matches, each once: `runs.replay_all(task="mail", status="FAILED")`.

        Its own replays and whatever else is triggered after the first page was read are left alone.

        Args:
            on_progress: called after every hundred runs.
            resume: `BulkProgress.resume` of an earlier call that was interrupted, less than a day ago: this one goes on with it, and
                replays nothing a second time.
            filters: at least one; see `RunFilters`.
        Returns: how many runs were replayed, the ids of the new ones, and the runs for which it was refused.
        Raises: as `cancel_all`.
        """
        check_blocking("runs.replay_all")
        query = bulk.checked("runs.replay_all", filters)
        make = bulk.replaying(replay_request({}, payload=NO_PAYLOAD))
        return bulk.carry_out(self._connection(), query, make, on_progress, resume)

    async def areplay_all(
        self,
        *,
        on_progress: Callable[[BulkProgress], None] | None = None,
        resume: str | None = None,
        **filters: Unpack[RunFilters],
    ) -> BulkProgress:
        """As `replay_all`, without blocking."""
        query = bulk.checked("runs.replay_all", filters)
        make = bulk.replaying(replay_request({}, payload=NO_PAYLOAD))
        return await bulk.acarry_out(self._connection(), query, make, on_progress, resume)

    def reschedule(self, run_id: str, delay: timedelta | float | str | datetime) -> Run:
        """Delay a run that is DELAYED to another time.

        Args:
            delay: from now on, or an aware datetime; see `RunOptions`.
        Raises: RunNotFoundError; ConflictError unless the run is delayed.
        """
        return self._connection().send(calls.reschedule_run(run_id, reschedule_request(delay)))

    async def areschedule(self, run_id: str, delay: timedelta | float | str | datetime) -> Run:
        """As `reschedule`, without blocking."""
        return await self._connection().asend(calls.reschedule_run(run_id, reschedule_request(delay)))

    def add_tags(self, run_id: str, tags: str | Sequence[str]) -> Sequence[str]:
        """Add tags to a run, at any time; all that it has now, at most ten. Repeatable.

        Raises: RunNotFoundError; InvalidRequestError for more than ten.
        """
        return self._connection().send(calls.add_tags(run_id, [tags] if isinstance(tags, str) else tags))

    async def aadd_tags(self, run_id: str, tags: str | Sequence[str]) -> Sequence[str]:
        """As `add_tags`, without blocking."""
        return await self._connection().asend(
            calls.add_tags(run_id, [tags] if isinstance(tags, str) else tags)
        )

    @overload
    def subscribe(self, run_id: str, *, streams: Literal[False] = False) -> Iterator[Run]: ...
    @overload
    def subscribe(self, run_id: str, *, streams: StreamChoice) -> Iterator[Run | StreamValue]: ...
    def subscribe(self, run_id: str, *, streams: StreamChoice = False) -> Iterator[Any]:
        """The run now and after each change that the reader is fast enough to see, until it has finished (M82).

        One may subscribe late, early or often: the first state is the present one, the last one is final and holds the final document.
        A slow reader skips states, never the last. A broken connection is taken up again.

        With `streams` it gives the values of the run's streams too, as `StreamValue`: of each from the first on, also of those that
        begin later, each value once and in its order, none left out for a slow reader. The run's last state comes behind all of them.

        Args:
            streams: True for all streams, or a list of keys and of what `streams.define` has made, whose values come with their type.
        Raises: RunNotFoundError; UnavailableError when the server stays away for longer than a minute; UsageError and
            InvalidRequestError for streams that cannot be; MetadataValueError for a value that does not fit its type.
        """
        return follow_run(self._connection(), run_id, streams)

    @overload
    def asubscribe(self, run_id: str, *, streams: Literal[False] = False) -> AsyncIterator[Run]: ...
    @overload
    def asubscribe(self, run_id: str, *, streams: StreamChoice) -> AsyncIterator[Run | StreamValue]: ...
    def asubscribe(self, run_id: str, *, streams: StreamChoice = False) -> AsyncIterator[Any]:
        """As `subscribe`, for `async for`."""
        return afollow_run(self._connection(), run_id, streams)

    def subscribe_where(self, **filters: Unpack[RunFilters]) -> Iterator[Run]:
        """Every run that matches, as it is now, newest first; then each newer state of any of them, for ever.

        The newest state is always delivered; a slow reader skips states in between. A run that matched and does so no longer comes
        once more, so that what the reader knows of it is not out of date. No state (metadata version, status, attempt) comes
        twice. A broken connection is taken up again. Payload and output may be missing, as in lists.

        What is known of a run that matches takes about 300 bytes, here and at the server. The documents of runs that have not ended
        are kept here too, 64 MB of them at most, because the server sends what has changed and not the whole document.

        Args:
            filters: see `RunFilters`.
        Raises: as `list`; UnavailableError when the server stays away for longer than a minute.
        """
        return follow_matching(self._connection(), calls.run_filters(**filters))

    def asubscribe_where(self, **filters: Unpack[RunFilters]) -> AsyncIterator[Run]:
        """As `subscribe_where`, for `async for`."""
        return afollow_matching(self._connection(), calls.run_filters(**filters))

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """Wait until the run has finished, successfully or not, and return it.

        Args:
            timeout: seconds to wait at most.
        Raises: TimeoutError, RunNotFoundError, UnavailableError.
        """
        check_blocking("runs.wait")
        return endings.wait_for_run(self._connection(), run_id, timeout)

    async def await_(self, run_id: str, timeout: float | None = None) -> Run:  # noqa: ASYNC109 - the twin of `wait`
        """As `wait`, without blocking. (`await` alone is a keyword.)"""
        return await endings.await_for_run(self._connection(), run_id, timeout)

    def delete(self, run_id: str) -> int:
        """Delete a finished run, and all runs below it, with everything that belongs to them; how many runs that were.

        Raises: RunNotFoundError; ConflictError while one of them, or the run's parent, has not finished.
        """
        return self._connection().send(calls.delete_run(run_id))

    async def adelete(self, run_id: str) -> int:
        """As `delete`, without blocking."""
        return await self._connection().asend(calls.delete_run(run_id))

    def wait_for(
        self,
        run_id: str,
        *,
        metadata: Mapping[str, Any],
        timeout: timedelta | float | str | None = None,
    ) -> Run:
        """Wait until a run's metadata matches: `runs.wait_for(run_id, metadata={"status": "ready"}, timeout="10m")`.

        In a run it gives the run's slot back meanwhile. What the document is for a moment only may be missed: the newest state is
        looked at.

        Args:
            metadata: conditions, all of which must hold; see `RunFilters`.
            timeout: how long to wait at most, as seconds, a `timedelta` or a text.
        Returns: the run as it was when its metadata matched.
        Raises: RunFinishedError when the run has ended and its last document does not match; TimeoutError; RunNotFoundError;
            InvalidRequestError for conditions that cannot be; UnavailableError.
        """
        check_blocking("runs.wait_for")
        match, seconds = _match(run_id, metadata), _seconds(timeout)
        until = None if seconds is None else time.monotonic() + seconds
        try:
            return run_steps(self._connection(), match.steps(), until=until)
        except TimeoutError:
            raise match.late(timeout) from None

    async def await_for(
        self,
        run_id: str,
        *,
        metadata: Mapping[str, Any],
        timeout: timedelta | float | str | None = None,  # noqa: ASYNC109 - the twin of `wait_for`
    ) -> Run:
        """As `wait_for`, without blocking."""
        import asyncio

        match, seconds = _match(run_id, metadata), _seconds(timeout)
        try:
            async with asyncio.timeout(seconds):
                return await arun_steps(self._connection(), match.steps())
        except TimeoutError:
            raise match.late(timeout) from None

    def logs(
        self,
        run_id: str,
        *,
        follow: bool = False,
        tree: bool = False,
        level: LogLevel | None = None,
        attempt: int | None = None,
        search: str | None = None,
    ) -> Iterator[LogLine]:
        """What a run has logged and printed, oldest first: `for line in runs.logs(run_id)`; fetched page by page.

        Args:
            follow: wait for more until the run has ended; with `tree` until all runs of it have. A broken connection is taken up
                again, and no line comes twice.
            tree: the lines of the run and of all runs below it, in the order in which the server got them.
            level: only lines of this level and of more severe ones.
            attempt: only the lines of this attempt.
            search: only lines with this text in message or logger, whatever the case of its letters.
        Raises: RunNotFoundError, BadRequestError and UnavailableError, while iterating.
        """
        reader = LogReader(run_id, tree=tree, level=level, attempt=attempt, search=search)
        return read_log(self._connection(), reader, follow=follow)

    def alogs(
        self,
        run_id: str,
        *,
        follow: bool = False,
        tree: bool = False,
        level: LogLevel | None = None,
        attempt: int | None = None,
        search: str | None = None,
    ) -> AsyncIterator[LogLine]:
        """As `logs`, for `async for`."""
        reader = LogReader(run_id, tree=tree, level=level, attempt=attempt, search=search)
        return aread_log(self._connection(), reader, follow=follow)

    def metadata(self, run_id: str) -> OutsideMetadata:
        """Updates of a run's document from outside: `runs.metadata(run_id).set("approved", True).send()`.

        It works before the run has started, while it runs, and for a while after its end (M48, M69).
        """
        return OutsideMetadata(self._connection, run_id)

    def metadata_history(
        self, run_id: str, *, page_size: int = HISTORY_PAGE_SIZE_DEFAULT, after: int = 0
    ) -> MetadataHistory:
        """What was changed in a run's document, oldest first: `for version in runs.metadata_history(run_id)`.

        One object per committed change, with its version, time, operations, and the run and attempt that wrote it. Changes that the
        server has pruned (MILEPOST_HISTORY_DAYS) are left out. Further pages are fetched while iterating.

        Args:
            page_size: changes fetched at once, 1 to 100.
            after: a version: only the changes after it.
        Raises: RunNotFoundError, while iterating.
        """
        return MetadataHistory(self._connection, run_id, page_size, after)

    def ametadata_history(
        self, run_id: str, *, page_size: int = HISTORY_PAGE_SIZE_DEFAULT, after: int = 0
    ) -> AsyncMetadataHistory:
        """As `metadata_history`, for `async for`."""
        return AsyncMetadataHistory(self._connection, run_id, page_size, after)

    def metadata_at(
        self, run_id: str, *, version: int | None = None, at: datetime | None = None
    ) -> MetadataDocument:
        """A run's document as it was: `runs.metadata_at(run_id, version=7).value`.

        Args:
            version: the version; 0 is the document given at trigger.
            at: an aware datetime; the answer is the highest version that was reached by then.
        Raises: TypeError unless exactly one of them is given; ValueError for a time without a time zone; RunNotFoundError;
            VersionNotFoundError for what has not been; HistoryPrunedError for what is no longer kept.
        """
        return self._connection().send(calls.metadata_at(run_id, version=version, at=at))

    async def ametadata_at(
        self, run_id: str, *, version: int | None = None, at: datetime | None = None
    ) -> MetadataDocument:
        """As `metadata_at`, without blocking."""
        return await self._connection().asend(calls.metadata_at(run_id, version=version, at=at))

    def list(
        self, *, page_size: int = PAGE_SIZE_DEFAULT, after: str | None = None, **filters: Unpack[RunFilters]
    ) -> RunList:
        """Runs, newest first; further pages are fetched while iterating.

        Args:
            page_size: runs fetched at once, 1 to 100.
            after: the cursor of an earlier page: go on behind it.
            filters: see `RunFilters`.
        """
        return RunList(self._connection, calls.run_filters(**filters), page_size, after)

    def alist(
        self, *, page_size: int = PAGE_SIZE_DEFAULT, after: str | None = None, **filters: Unpack[RunFilters]
    ) -> AsyncRunList:
        """As `list`, for `async for`."""
        return AsyncRunList(self._connection, calls.run_filters(**filters), page_size, after)
