"""The hub: takes in what each commit announces and wakes those who watch it. Cost follows the watchers, not the runs."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence

from milepost.engine.announcements import Announcement, BatchProgressed, LoggedChange, RunChanged
from milepost.model.run import RunStatus
from milepost.store.runs import RunFilter, RunRow

RECENT_BYTES = 256 * 1024
# Changed runs that may wait for one watcher of matching runs.
CHANGED_MAX = 10_000


class RunTopic:
    """A run that is being watched: the newest steps of its document, bounded in bytes, and its newest state."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.watchers: set[asyncio.Event] = set()
        self.row: RunRow | None = None
        self.output: str | None = None
        self.error: str | None = None
        # How often the run's log has grown.
        self.log_count = 0
        self._changes: deque[LoggedChange] = deque()
        self._bytes = 0
        # Frames that one watcher has encoded and others, at the same place, can send too.
        self.frames: dict[tuple[int, int, int, int], bytes] = {}
        self.snapshot: asyncio.Task[tuple[bytes, int, int, bool]] | None = None

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed the run."""
        self.log_count += changed.logged
        if changed.state_changed:
            self.row = changed.row
            self.output = changed.output
            # While the next attempt runs, why the last one failed is still to be seen, also by who skipped that state.
            self.error = changed.error or (None if changed.row.status is RunStatus.COMPLETED else self.error)
        if _leaves_gap(self._changes, changed.changes):
            self._changes.clear()
            self._bytes = 0
        for change in changed.changes:
            self._changes.append(change)
            self._bytes += change.size
        while self._bytes > RECENT_BYTES and len(self._changes) > 1:
            self._bytes -= self._changes.popleft().size
        self.frames.clear()
        # What is read from now on is newer.
        self.snapshot = None
        for watcher in self.watchers:
            watcher.set()

    def newer_than(self, version: int) -> list[LoggedChange] | None:
        """The steps above a version, in order; None when the oldest of them is no longer at hand."""
        steps = [change for change in self._changes if change.version > version]
        if steps and steps[0].version != version + 1:
            return None
        return steps


def _leaves_gap(steps: Sequence[LoggedChange], further: Sequence[LoggedChange]) -> bool:
    """True when an announcement in between got lost: what is at hand cannot be joined."""
    return bool(steps and further) and further[0].version != steps[-1].version + 1


class BatchTopic:
    """A batch that is being watched."""

    def __init__(self) -> None:
        self.watchers: set[asyncio.Event] = set()
        self.newest: BatchProgressed | None = None


class ListWatch:
    """One watcher of a list of runs: whether the list has to be read again, and which of the runs shown have changed.

    Args:
        by_document: documents too decide which runs the list holds.
    """

    def __init__(self, *, by_document: bool = False) -> None:
        self._by_document = by_document
        self.wake = asyncio.Event()
        self.stale = False
        self.shown: frozenset[str] = frozenset()
        self.changed: set[str] = set()

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed a run: of this list or not, the watcher will see when it reads."""
        if changed.row.id in self.shown:
            self.changed.add(changed.row.id)
            self.wake.set()
        if (changed.state_changed or self._by_document) and not self.stale:
            self.stale = True
            self.wake.set()


class MatchWatch:
    """One watcher of all runs that match a filter: the runs that have changed and may match.

    Bounded: beyond `CHANGED_MAX` it overflows, and its stream ends.
    """

    def __init__(self, filter: RunFilter) -> None:
        self._filter = filter
        self.wake = asyncio.Event()
        # In the order of their first change, so that nobody waits for ever.
        self.changed: dict[str, None] = {}
        self.has_overflown = False

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed a run."""
        if self.has_overflown or not self._may_match(changed.row):
            return
        self.changed[changed.row.id] = None
        if len(self.changed) > CHANGED_MAX:
            self.has_overflown = True
            self.changed.clear()
        self.wake.set()

    def _may_match(self, row: RunRow) -> bool:
        """By what never changes of a run. A run that leaves the filter is of interest too."""
        filter = self._filter
        return (
            (not filter.tasks or row.task in filter.tasks)
            and filter.batch_id in (None, row.batch_id)
            and filter.parent_id in (None, row.parent_id)
            and filter.root_id in (None, row.root_id)
            and filter.top_level in (None, row.parent_id is None)
            and (filter.created_from is None or row.created_at >= filter.created_from)
            and (filter.created_to is None or row.created_at <= filter.created_to)
        )


class Inbox:
    """What a worker's runs should know: steps that others wrote to documents of runs it holds, children that have ended.

    Bounded: beyond `RECENT_BYTES` of steps, a run's document is sent as a whole instead.
    """

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.finished: list[str] = []
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
            gap = _leaves_gap(steps, changed.changes)
            steps.extend(changed.changes)
            self._bytes[run_id] += sum(change.size for change in changed.changes)
            if gap or self._bytes[run_id] > RECENT_BYTES:
                self.overflown.add(run_id)
                del self.changes[run_id]
        self.wake.set()

    def holds(self, run_id: str) -> bool:
        """True when steps of this run wait to be sent: then its own steps belong between them, so that there is no gap."""
        return run_id in self.changes

    def take(self) -> tuple[list[str], list[tuple[str, int, list[LoggedChange]]], set[str]]:
        """Empty the inbox: ended children; run, attempt and steps; runs whose document has to be sent as a whole."""
        steps = [(run_id, self._attempts[run_id], changes) for run_id, changes in self.changes.items()]
        taken = self.finished, steps, self.overflown
        self.finished, self.changes, self.overflown = [], {}, set()
        self._attempts.clear()
        self._bytes.clear()
        self.wake.clear()
        return taken


class Hub:
    """Who watches what. Belongs to one event loop; `announce` is called in it."""

    def __init__(self) -> None:
        self.runs: dict[str, RunTopic] = {}
        self.batches: dict[str, BatchTopic] = {}
        self.lists: set[ListWatch] = set()
        self.matches: set[MatchWatch] = set()
        self.inboxes: dict[str, Inbox] = {}
        # Set when the server stops: every stream ends at its next waking.
        self.is_closed = False

    @property
    def is_watched(self) -> bool:
        """True while anybody is connected. Any thread may ask: who connects at this very moment reads the store afterwards."""
        return bool(self.runs or self.lists or self.matches or self.inboxes or self.batches)

    def close(self) -> None:
        """End every event stream: readers see a clean end and come back later. May be called twice."""
        self.is_closed = True
        for watchers in [topic.watchers for topic in (*self.runs.values(), *self.batches.values())]:
            for watcher in watchers:
                watcher.set()
        for watch in (*self.lists, *self.matches):
            watch.wake.set()
        for inbox in self.inboxes.values():
            inbox.wake.set()

    def announce(self, announcement: Announcement) -> None:
        """A commit has been made: tell those who watch what it changed."""
        if self.runs or self.lists or self.matches or self.inboxes:
            for changed in announcement.runs:
                self._announce_run(changed)
        for progressed in announcement.batches:
            batch = self.batches.get(progressed.batch_id)
            if batch is not None:
                batch.newest = progressed
                for watcher in batch.watchers:
                    watcher.set()
        for ended in announcement.children_finished:
            inbox = self.inboxes.get(ended.holder)
            if inbox is not None:
                inbox.finished.extend(ended.ids)
                inbox.wake.set()

    def watch_run(self, run_id: str, watcher: asyncio.Event) -> RunTopic:
        """Be woken when the run changes, until `leave_run`."""
        topic = self.runs.get(run_id)
        if topic is None:
            topic = self.runs[run_id] = RunTopic(run_id)
        topic.watchers.add(watcher)
        return topic

    def leave_run(self, topic: RunTopic, watcher: asyncio.Event) -> None:
        """Stop watching; the topic goes with its last watcher."""
        topic.watchers.discard(watcher)
        if not topic.watchers and self.runs.get(topic.run_id) is topic:
            del self.runs[topic.run_id]

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
        topic = self.runs.get(row.id)
        if topic is not None:
            topic.take_in(changed)
        if not (changed.state_changed or changed.changes):
            # Only its log has grown, which no list shows.
            return
        for watch in (*self.lists, *self.matches):
            watch.take_in(changed)
        if changed.changes and row.worker_id is not None:
            inbox = self.inboxes.get(row.worker_id)
            if inbox is not None and (
                any(change.writer_id != row.id for change in changed.changes) or inbox.holds(row.id)
            ):
                inbox.take_in(changed)
