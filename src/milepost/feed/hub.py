"""The hub: takes in what each commit announces and wakes those who watch it. Cost follows the watchers concerned, not the runs."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

from milepost.engine.announcements import Announcement, BatchProgressed, LoggedChange, RunChanged
from milepost.engine.measures import Histogram
from milepost.feed.steps import RECENT_BYTES, Place, RunNews, leaves_gap
from milepost.feed.stream_topic import StreamTopic
from milepost.feed.waiting import Lags, Turns, Wake
from milepost.model.filters import MetadataFilter
from milepost.model.run import QueuedReason
from milepost.model.scopes import WHOLE_VIEW, RunScope, View
from milepost.protocol.streams import StreamSummary
from milepost.protocol.work import InboxFrame
from milepost.store.runs import RunFilter, RunRow
from milepost.store.streams import OUTPUT

# Steps of documents that wait for one watcher of several runs; beyond them it reads the documents.
MAILBOX_BYTES = 1024 * 1024
# Changed runs that may wait for one watcher of matching runs.
CHANGED_MAX = 10_000
# After a gap: for how long a reader that does not take anything may hold up those who come anew.
REOPEN_SECONDS = 30


class Queued(NamedTuple):
    """A run that is queued, of this task, and why nobody could take it when that was last told."""

    task: str
    reason: QueuedReason | None


class Snapshot(NamedTuple):
    """A run as it was read, for all who ask at that moment.

    Attributes:
        frame: the event.
        place: how far its readers are.
        reading: the number of the reading, by which it is known whether its counts of children are the newest.
        is_final: True when the run has ended.
        queued: what a queued run waits for; None for one that is not queued.
    """

    frame: bytes
    place: Place
    reading: int
    is_final: bool
    queued: Queued | None


class RunTopic:
    """A run that is being watched, for all who are shown the same of it: its news, bounded, for watchers who are at different places,
    and how its children stand.

    Args:
        news: of the run, taken in by the hub; those who are shown something else read the same.
        hears_late: as of `Hub`.

    Attributes:
        turn: of who reads the run, where each reading helps only those who have asked before it began.
        child_counts: the children by status, as the reading of number `counted_by` has found them.
        children_changed: a child has changed since the children were counted.
    """

    def __init__(self, run_id: str, view: View, news: RunNews, *, hears_late: bool) -> None:
        self.hears_late = hears_late
        self.turn = asyncio.Lock()
        self.run_id = run_id
        self.view = view
        self.watchers: set[asyncio.Event] = set()
        self.news = news
        # Frames that one watcher has encoded and others, at the same place, can send too.
        self.frames: dict[tuple[int, ...], bytes] = {}
        self.snapshot: asyncio.Task[Snapshot] | None = None
        # How often the run's log has grown.
        self.log_count = 0
        # How often streams have begun or writers of them ended; and whether there is any stream, as far as that is known.
        self.stream_count = 0
        self.has_streams = False
        # A look at its streams that is under way, for all who ask at that moment.
        self.streams_reading: asyncio.Future[list[StreamSummary]] | None = None
        self.child_counts: dict[str, int] = {}
        self.counted_by = 0
        self.children_changed = False
        # One watcher's task counts for all of them, and not before this time of the loop.
        self.counting: asyncio.Task[None] | None = None
        self.count_at = 0.0
        self._readings = 0
        self._newest_reading = 0

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed the run; its news are taken in already."""
        self.log_count += changed.logged
        if changed.row.status.is_final:
            # With the run its streams have ended.
            self.streams_reading = None
        self._tell()

    def stream_changed(self) -> None:
        """The run has a new stream, or a writer of one has ended."""
        self.stream_count += 1
        self.has_streams = True
        self.streams_reading = None
        self._tell()

    def child_changed(self) -> None:
        """A child has been triggered, or its status has changed."""
        self.children_changed = True
        self._tell()

    def begin_reading(self) -> int:
        """The number of a reading of the store that begins now. A later one knows more."""
        self._readings += 1
        return self._readings

    def take_in_counts(self, counts: dict[str, int], reading: int) -> None:
        """A reading has found how the children stand."""
        if reading < self._newest_reading:
            return
        self._newest_reading = reading
        if counts != self.child_counts:
            self.child_counts, self.counted_by = counts, reading
            self._tell()

    def _tell(self) -> None:
        self.frames.clear()
        # What is read from now on is newer.
        self.snapshot = None
        for watcher in self.watchers:
            watcher.set()


class WatchedRun:
    """The news of a run that is being watched, and its topics: one for each view that its watchers have."""

    def __init__(self) -> None:
        self.news = RunNews()
        self.topics: dict[View, RunTopic] = {}

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed the run."""
        self.news.take_in(changed)
        for topic in self.topics.values():
            topic.take_in(changed)

    def stream_changed(self) -> None:
        """The run has a new stream, or a writer of one has ended."""
        for topic in self.topics.values():
            topic.stream_changed()

    def child_changed(self) -> None:
        """A child has been triggered, or its status has changed."""
        for topic in self.topics.values():
            topic.child_changed()


class RunEnd:
    """One who waits for the end of a run, and for nothing else of it.

    Attributes:
        wake: is set when the run has ended, or is no more, or nothing is told any more.
        changed: the end, if that is what has been told.
    """

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.changed: RunChanged | None = None


class BatchTopic:
    """A batch that is being watched."""

    def __init__(self) -> None:
        self.watchers: set[asyncio.Event] = set()
        self.newest: BatchProgressed | None = None


class Mailbox:
    """What has changed of several runs since their watcher last looked: news of each, bounded in bytes over all of them.

    Beyond the bound the steps of a run are let go, and its watcher reads the document instead: a slow reader costs a bounded amount
    of memory, skips states in between and never the last.
    """

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        # In the order of their first change, so that nobody waits for ever.
        self.changed: dict[str, RunNews] = {}
        self._bytes = 0

    def put(self, changed: RunChanged) -> None:
        """A commit has changed a run that the watcher wants to know of."""
        news = self.changed.get(changed.row.id)
        if news is None:
            news = self.changed[changed.row.id] = RunNews()
        self._bytes -= news.size
        news.take_in(changed)
        self._bytes += news.size
        if self._bytes > MAILBOX_BYTES:
            self._bytes -= news.size
            news.drop_steps()
        self.wake.set()

    def take(self, run_id: str) -> RunNews:
        """The news of a run, which are no longer here then."""
        news = self.changed.pop(run_id)
        self._bytes -= news.size
        return news

    def clear(self) -> None:
        """Let everything go."""
        self.changed.clear()
        self._bytes = 0


class ListWatch(Mailbox):
    """One watcher of a list of runs: whether the list has to be read again, and what has changed of the runs shown.

    Args:
        filter: with conditions on documents these too decide which runs the list holds.
    """

    def __init__(self, filter: RunFilter) -> None:
        super().__init__()
        self.filter = filter
        self.is_stale = True
        self.shown: frozenset[str] = frozenset()

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed a run: of this list or not, the watcher will see when it reads."""
        if changed.row.id in self.shown:
            self.put(changed)
        if not self.is_stale and (
            (changed.state_changed and may_match(self.filter, changed.row))
            or (self.filter.metadata is not None and decides(self.filter.metadata, changed.changes))
        ):
            self.is_stale = True
            self.wake.set()


class RowsWatch(ListWatch):
    """One watcher of a list of runs that reads them as a whole: which of those shown have changed, also by a new stream."""

    def __init__(self, filter: RunFilter) -> None:
        super().__init__(filter)
        self.touched: set[str] = set()

    def put(self, changed: RunChanged) -> None:
        """A commit has changed a run of the list."""
        self.touch(changed.row.id)

    def touch(self, run_id: str) -> None:
        """A run of the list is another than it was."""
        self.touched.add(run_id)
        self.wake.set()


class MatchWatch(Mailbox):
    """One watcher of all runs that match a filter: news of the runs that have changed and may match.

    Bounded: beyond `CHANGED_MAX` runs it overflows, and its stream ends.
    """

    def __init__(self, filter: RunFilter) -> None:
        super().__init__()
        self.filter = filter
        self.has_overflown = False
        # Runs below this id are still to be read, so that it does not matter what changes of them until then; None: there are none.
        self.unread_below: str | None = None

    def leave_unread(self, below: str | None) -> None:
        """A reading of the runs from this id on is done, the others are still to be read. While it was under way all were of interest,
        because nobody knew how far it would come."""
        self.unread_below = below
        for run_id in [run_id for run_id in self.changed if below is not None and run_id < below]:
            self.take(run_id)

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed a run. One that leaves the filter is of interest too."""
        if self.has_overflown or not may_match(self.filter, changed.row):
            return
        if self.unread_below is not None and changed.row.id < self.unread_below:
            return
        self.put(changed)
        if len(self.changed) > CHANGED_MAX:
            self.has_overflown = True
            self.clear()


def may_match(filter: RunFilter, row: RunRow) -> bool:
    """Whether a run can match, now or later, by what never changes of it."""
    return (
        (not filter.tasks or row.task in filter.tasks)
        and (filter.batch_id in (None, row.batch_id) or row.is_shared == 1)
        and filter.parent_id in (None, row.parent_id)
        and filter.root_id in (None, row.root_id)
        and filter.top_level in (None, row.parent_id is None)
        and (filter.created_from is None or row.created_at >= filter.created_from)
        and (filter.created_to is None or row.created_at <= filter.created_to)
        and (filter.shown is None or _may_be_shown(filter.shown, row))
    )


def _may_be_shown(shown: RunScope, row: RunRow) -> bool:
    """Whether a token may show the run, whatever its tags are."""
    if row.is_shared and (shown.any_batch or shown.batches):
        # It may be in one of these batches beside its own.
        return True
    return bool(shown.tags) or shown.any_tag or shown.shows(row.id, row.task, (), row.batch_id)


def decides(filter: MetadataFilter, steps: Sequence[LoggedChange]) -> bool:
    """Whether these steps of a document may decide anew if it matches."""
    return any(filter.may_depend_on(operation) for step in steps for operation in step.operations)


WatchT = TypeVar("WatchT", ListWatch, MatchWatch)


class Watches(Generic[WatchT]):
    """Watchers of several runs. Those of the children of one run are found by it, so that other runs do not pass by them."""

    def __init__(self) -> None:
        self._by_parent: dict[str | None, set[WatchT]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_parent)

    def __iter__(self) -> Iterator[WatchT]:
        for watches in list(self._by_parent.values()):
            yield from watches

    def add(self, watch: WatchT) -> None:
        """Tell this one from now on."""
        self._by_parent.setdefault(watch.filter.parent_id, set()).add(watch)

    def discard(self, watch: WatchT) -> None:
        """Tell it no more."""
        watches = self._by_parent.get(watch.filter.parent_id, set())
        watches.discard(watch)
        if not watches:
            self._by_parent.pop(watch.filter.parent_id, None)

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed a run."""
        for parent_id in {None, changed.row.parent_id}:
            for watch in self._by_parent.get(parent_id, ()):
                watch.take_in(changed)


class Inbox:
    """What a worker's runs should know: steps that others wrote to documents of runs it holds, children that have ended.

    Bounded: beyond `RECENT_BYTES` of steps, a run's document is sent as a whole instead.
    """

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self.finished: list[str] = []
        self.resumed: list[str] = []
        self.cancelled: list[str] = []
        # Set while there is more in it than documents, which may wait for a moment.
        self.is_urgent = asyncio.Event()
        self.changes: dict[str, list[LoggedChange]] = {}
        self._attempts: dict[str, int] = {}
        self.overflown: set[str] = set()
        self._bytes: dict[str, int] = defaultdict(int)

    def take_in(self, changed: RunChanged) -> None:
        """Someone else has written to the document of a run that this worker holds."""
        run_id = changed.row.id
        self._attempts[run_id] = changed.row.attempt
        if run_id not in self.overflown:
            steps = self.changes.setdefault(run_id, [])
            gap = leaves_gap(steps, changed.changes)
            steps.extend(changed.changes)
            self._bytes[run_id] += sum(change.size for change in changed.changes)
            if gap or self._bytes[run_id] > RECENT_BYTES:
                self.overflown.add(run_id)
                del self.changes[run_id]
        self.wake.set()

    def holds(self, run_id: str) -> bool:
        """True when steps of this run wait to be sent: then its own steps belong between them, so that there is no gap."""
        return run_id in self.changes

    def tell_at_once(
        self, *, finished: Sequence[str] = (), resumed: Sequence[str] = (), cancelled: Sequence[str] = ()
    ) -> None:
        """Runs and batches have ended, runs may go on, or are to end."""
        self.finished += finished
        self.resumed += resumed
        self.cancelled += cancelled
        self.is_urgent.set()
        self.wake.set()

    async def quiet(self, seconds: float) -> None:
        """Let documents gather for so long, and no longer than until something comes that is to be told at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.is_urgent.wait()

    def take_frame(self) -> InboxFrame:
        """Take out what is no document: ended children, runs that go on, runs that are to end."""
        frame = InboxFrame(finished=self.finished, resumed=self.resumed, cancelled=self.cancelled)
        self.finished, self.resumed, self.cancelled = [], [], []
        self.is_urgent.clear()
        return frame

    def take_documents(self) -> tuple[list[tuple[str, int, list[LoggedChange]]], set[str]]:
        """Empty the inbox of documents: run, attempt and steps; runs whose document has to be sent as a whole."""
        steps = [(run_id, self._attempts[run_id], changes) for run_id, changes in self.changes.items()]
        taken = steps, self.overflown
        self.changes, self.overflown = {}, set()
        self._attempts.clear()
        self._bytes.clear()
        self.wake.clear()
        return taken


class Hub:
    """Who watches what. Belongs to one event loop; `announce` is called in it.

    Args:
        hears_late: other servers commit as well, and may have told somebody what is not announced here yet. So what was read a moment
            ago need not be new enough for who comes now.
    """

    def __init__(self, *, hears_late: bool = False) -> None:
        self._hears_late = hears_late
        self.lags = Lags()
        self._turns = Turns()
        self.runs: dict[str, WatchedRun] = {}
        self.batches: dict[str, BatchTopic] = {}
        # Who waits for the end of a run, and for nothing else of it.
        self._ends: dict[str, set[RunEnd]] = {}
        self.lists: Watches[ListWatch] = Watches()
        # Those of `lists` that want to know of new streams.
        self.rows: set[RowsWatch] = set()
        self.matches: Watches[MatchWatch] = Watches()
        self.inboxes: dict[str, Inbox] = {}
        # By run, then by name.
        self.streams: dict[str, dict[str, StreamTopic]] = {}
        # Who is connected with a session of the dashboard, by its id.
        self._sessions: dict[str, set[asyncio.Event]] = {}
        # Set when the server stops, or has missed something: every stream ends at its next waking.
        self.is_closed = False
        self._is_stopping = False

    @property
    def is_watched(self) -> bool:
        """True while anybody is connected. Any thread may ask: who connects at this very moment reads the store afterwards."""
        return bool(
            self.runs
            or self._ends
            or self.lists
            or self.matches
            or self.inboxes
            or self.batches
            or self.streams
        )

    def close(self) -> None:
        """End every event stream: readers see a clean end and come back later. May be called twice."""
        self._is_stopping = True
        self._end_streams()

    def interrupt(self) -> None:
        """Commits were missed that may have changed anything: end every event stream, so that their readers come back and read anew.
        New ones are taken as soon as all have ended."""
        if not self.is_closed:
            self._end_streams()
            self._reopen(asyncio.get_running_loop(), attempts=REOPEN_SECONDS * 20)

    def _reopen(self, loop: asyncio.AbstractEventLoop, attempts: int) -> None:
        if self._is_stopping:
            return
        if self.is_watched and attempts:
            loop.call_later(0.05, self._reopen, loop, attempts - 1)
        else:
            self.is_closed = False

    def _end_streams(self) -> None:
        self.is_closed = True
        run_topics = [topic for watched in self.runs.values() for topic in watched.topics.values()]
        for topic in (*run_topics, *self.batches.values()):
            for watcher in topic.watchers:
                watcher.set()
        for watch in (*self.lists, *self.matches):
            watch.wake.set()
        for run_id in self._ends:
            self._tell_end(run_id, None)
        for inbox in self.inboxes.values():
            inbox.wake.set()
        for topics in self.streams.values():
            for topic in topics.values():
                for watcher in topic.watchers:
                    watcher.set()

    def announce(self, announcement: Announcement, committed_at: float | None = None) -> None:
        """A commit has been made: tell those who watch what it changed.

        Args:
            committed_at: when that was, or when it was heard of, on the clock of `perf_counter`.
        """
        self.lags.committed_at = committed_at
        try:
            self._announce(announcement)
        finally:
            self.lags.committed_at = None

    def new_wake(self, seconds: Histogram) -> Wake:
        """What a stream waits with; how soon it is told goes into `seconds`."""
        return Wake(self.lags, seconds, self._turns)

    def new_inbox(self) -> Inbox:
        """An inbox of which it is measured how soon it is told."""
        # A worker does not stand in line behind those who watch.
        return Inbox(Wake(self.lags, self.lags.of_inboxes, Turns()))

    def _announce(self, announcement: Announcement) -> None:
        if announcement.is_gap:
            self.interrupt()
        if self._ends:
            for changed in announcement.runs:
                if changed.row.status.is_final:
                    self._tell_end(changed.row.id, changed)
        if self.runs or self.lists or self.matches or self.inboxes:
            for changed in announcement.runs:
                self._announce_run(changed)
        if announcement.streams or self.streams:
            self._announce_streams(announcement)
        for progressed in announcement.batches:
            batch = self.batches.get(progressed.batch_id)
            if batch is not None:
                batch.newest = progressed
                for watcher in batch.watchers:
                    watcher.set()
        for gone_on in announcement.resumed:
            inbox = self.inboxes.get(gone_on.holder)
            if inbox is not None:
                inbox.tell_at_once(resumed=gone_on.ids)
        for asked in announcement.cancel_asked:
            inbox = self.inboxes.get(asked.holder)
            if inbox is not None:
                inbox.tell_at_once(cancelled=asked.ids)
        for run_id in announcement.deleted_runs:
            self._tell_end(run_id, None)
        if announcement.deleted_runs:
            for watch in self.lists:
                # Whether it has shown one of them is found out by reading it again.
                watch.is_stale = True
                watch.wake.set()
        for session_id in announcement.ended_sessions:
            for session_ended in self._sessions.get(session_id, ()):
                session_ended.set()
        for ended in announcement.children_finished:
            inbox = self.inboxes.get(ended.holder)
            if inbox is not None:
                inbox.tell_at_once(finished=ended.ids)

    def watch_session(self, session_id: str, ended: asyncio.Event) -> None:
        """Set this event when the session is signed out, until `leave_session`."""
        self._sessions.setdefault(session_id, set()).add(ended)

    def leave_session(self, session_id: str, ended: asyncio.Event) -> None:
        """Stop watching."""
        watchers = self._sessions.get(session_id, set())
        watchers.discard(ended)
        if not watchers:
            self._sessions.pop(session_id, None)

    def watch_run(self, run_id: str, watcher: asyncio.Event, view: View = WHOLE_VIEW) -> RunTopic:
        """Be woken when the run changes, until `leave_run`."""
        watched = self.runs.setdefault(run_id, WatchedRun())
        topic = watched.topics.get(view)
        if topic is None:
            topic = watched.topics[view] = RunTopic(run_id, view, watched.news, hears_late=self._hears_late)
        topic.watchers.add(watcher)
        return topic

    def leave_run(self, topic: RunTopic, watcher: asyncio.Event) -> None:
        """Stop watching; the topic goes with its last watcher."""
        topic.watchers.discard(watcher)
        watched = self.runs.get(topic.run_id)
        if not topic.watchers and watched is not None and watched.topics.get(topic.view) is topic:
            del watched.topics[topic.view]
            if not watched.topics:
                del self.runs[topic.run_id]
            for task in (topic.snapshot, topic.counting, topic.streams_reading):
                if task is not None:
                    task.cancel()

    def watch_end(self, run_id: str, end: RunEnd) -> None:
        """Tell this one when the run ends, until `leave_end`."""
        self._ends.setdefault(run_id, set()).add(end)

    def leave_end(self, run_id: str, end: RunEnd) -> None:
        """Stop waiting."""
        waiting = self._ends.get(run_id, set())
        waiting.discard(end)
        if not waiting:
            self._ends.pop(run_id, None)

    def _tell_end(self, run_id: str, changed: RunChanged | None) -> None:
        for end in self._ends.get(run_id, ()):
            end.changed = changed or end.changed
            end.wake.set()

    def watch_stream(self, run_id: str, name: str, watcher: asyncio.Event) -> StreamTopic:
        """Be woken when the stream has grown or may have ended, until `leave_stream`."""
        topics = self.streams.setdefault(run_id, {})
        topic = topics.get(name)
        if topic is None:
            topic = topics[name] = StreamTopic(run_id, name)
        topic.watchers.add(watcher)
        return topic

    def leave_stream(self, topic: StreamTopic, watcher: asyncio.Event) -> None:
        """Stop reading; the topic goes with its last reader."""
        topic.watchers.discard(watcher)
        topics = self.streams.get(topic.run_id, {})
        if not topic.watchers and topics.get(topic.name) is topic:
            del topics[topic.name]
            if not topics:
                del self.streams[topic.run_id]

    def watch_rows(self, watch: RowsWatch) -> None:
        """Tell this one of changed runs and new streams, until `leave_rows`."""
        self.lists.add(watch)
        self.rows.add(watch)

    def leave_rows(self, watch: RowsWatch) -> None:
        """Stop watching."""
        self.lists.discard(watch)
        self.rows.discard(watch)

    def look_at_streams(self, run_id: str) -> None:
        """The run may have ended: whoever reads one of its streams looks whether that has ended."""
        for topic in self.streams.get(run_id, {}).values():
            topic.may_have_changed()

    def _announce_streams(self, announcement: Announcement) -> None:
        for grown in announcement.streams:
            run = self.runs.get(grown.run_id) if grown.is_new or grown.has_ended else None
            if run is not None and grown.name.startswith(OUTPUT):
                run.stream_changed()
            for watch in self.rows if grown.is_new else ():
                if grown.run_id in watch.shown:
                    watch.touch(grown.run_id)
            topic = self.streams.get(grown.run_id, {}).get(grown.name)
            if topic is not None:
                topic.take_in(grown)
        for changed in announcement.runs:
            if changed.state_changed:
                self.look_at_streams(changed.row.id)

    def watch_batch(self, batch_id: str, watcher: asyncio.Event) -> BatchTopic:
        """Be woken when runs of the batch end, until `leave_batch`."""
        topic = self.batches.setdefault(batch_id, BatchTopic())
        topic.watchers.add(watcher)
        return topic

    def leave_batch(self, batch_id: str, watcher: asyncio.Event) -> None:
        """Stop watching."""
        topic = self.batches.get(batch_id)
        if topic is not None:
            topic.watchers.discard(watcher)
            if not topic.watchers:
                del self.batches[batch_id]

    def _announce_run(self, changed: RunChanged) -> None:
        row = changed.row
        watched = self.runs.get(row.id)
        if watched is not None:
            watched.take_in(changed)
        if not (changed.state_changed or changed.changes):
            # Only its log has grown, which no list shows.
            return
        if changed.state_changed and row.parent_id is not None:
            parent = self.runs.get(row.parent_id)
            if parent is not None:
                parent.child_changed()
        self.lists.take_in(changed)
        self.matches.take_in(changed)
        if changed.changes and row.is_held and row.worker_id is not None:
            inbox = self.inboxes.get(row.worker_id)
            if inbox is not None and (
                # Without a number it was a child process of the run, and not what the worker itself has reported.
                any(change.writer_id != row.id or change.sequence is None for change in changed.changes)
                or inbox.holds(row.id)
            ):
                inbox.take_in(changed)
