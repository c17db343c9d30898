"""The walk over all logs of documents: what of them is old enough to go.

What is below the newest version never changes. So everything is read and computed in reader threads, the documents at which pruned
logs begin too; the committer's thread only puts them in the place of the changes, a bounded number at a time.
"""

import msgspec
from sqlalchemy import Connection

from milepost.engine.commands import PrunableLog
from milepost.model.identifiers import lowest_id
from milepost.reading.documents import replay
from milepost.reading.history import base_of, earliest_of
from milepost.store import history
from milepost.store import runs as run_store
from milepost.store.database import Store
from milepost.store.documents import Snapshot
from milepost.store.history import LogSpan, Mark
from milepost.store.runs import RunRow

# What one command of the committer prunes at most, and how much is replayed for it, so that commits are not held up.
CHANGES_PER_STEP = 1000
BYTES_PER_STEP = 8 * 1024 * 1024


class PruneStep(msgspec.Struct, frozen=True):
    """A part of the walk over all logs: what to prune, and where the next step begins; None at the end."""

    logs: list[PrunableLog]
    next: str | None


def prunable(store: Store, *, cutoff: int, settled_before: int, rows: int, after: str = "") -> PruneStep:
    """What one command may prune of the logs of the runs behind `after`.

    Args:
        cutoff: changes from before this time go (microseconds since 1970).
        settled_before: a run that had finished by then, on the clock that is never set back, takes no writes and no repeated
            reports any more. Its log goes as a whole once all of it is old enough. Of any other log the document stays from which
            the rest can be replayed.
        rows: of each table, how many are looked at.
    """
    step = _Step()
    with store.read() as connection:
        # Ids are ordered by time: what was triggered later has no change that is old enough.
        ids, following = history.logged_ids(
            connection, after=after, before=lowest_id("run", cutoff), limit=rows
        )
        found = run_store.load_rows(connection, ids)
        spans = history.log_spans(connection, ids)
        snapshots = history.snapshot_marks(connection, ids)
        for run_id in ids:
            row, span = found[run_id], spans.get(run_id)
            if _is_settled(row, cutoff, settled_before) and _is_over(span, snapshots.get(run_id), cutoff):
                ended = step.take_whole(connection, run_id, span)
            elif span is not None:
                ended = step.take_part(connection, row, span, cutoff)
            else:
                ended = True
            if not ended:
                return PruneStep(step.logs, after)
            after = run_id
            if step.is_full:
                return PruneStep(step.logs, after)
    return PruneStep(step.logs, following)


class _Step:
    """What is to be pruned by one command, within its bounds."""

    def __init__(self) -> None:
        self.logs: list[PrunableLog] = []
        self._changes_left = CHANGES_PER_STEP
        self._bytes_left = BYTES_PER_STEP

    @property
    def is_full(self) -> bool:
        """True when there is room for no further log."""
        return self._changes_left <= 0 or self._bytes_left <= 0

    def take_whole(self, connection: Connection, run_id: str, span: LogSpan | None) -> bool:
        """The snapshot is all that is needed of this log. False when a part of it has to wait for the next step."""
        up_to = 0
        if span is not None:
            up_to = min(span.last, span.first - 1 + self._changes_left)
            self._changes_left -= up_to - span.first + 1
        ids = history.counted_ids_of(connection, run_id, limit=self._changes_left + 1)
        has_more = len(ids) > self._changes_left
        ids = ids[: self._changes_left]
        self._changes_left -= len(ids)
        self.logs.append(PrunableLog(run_id, up_to, counted=ids))
        return not has_more and (span is None or up_to == span.last)

    def take_part(self, connection: Connection, row: RunRow, span: LogSpan, cutoff: int) -> bool:
        """The part of this log that is old enough goes. False when some of that has to wait for the next step."""
        cut = history.newest_at(connection, row.id, cutoff - 1)
        earliest = earliest_of(connection, row)
        if cut is None or cut <= earliest.version:
            return True
        first = max(earliest.version + 1, span.first)
        document = base_of(connection, row, min(cut, first - 1 + self._changes_left), earliest)
        changed_at = None
        for change in history.load_page(
            connection, row.id, after=document.version - 1, up_to=min(cut, first - 1 + self._changes_left)
        ):
            if change.version > document.version:
                if self._bytes_left <= 0:
                    break
                self._bytes_left -= len(change.operations)
                replay(document, change)
            changed_at = change.created_at
        value = document.encode()
        self._bytes_left -= len(value)
        self._changes_left -= document.version - first + 1
        start = Snapshot(row.id, document.version, value, changed_at)
        self.logs.append(PrunableLog(row.id, document.version, start))
        return document.version == cut


def _is_settled(row: RunRow, cutoff: int, settled_before: int) -> bool:
    """The run has finished before both times, each by its own clock."""
    if row.finished_at is None or row.ended_at is None:
        return False
    return row.finished_at < cutoff and row.ended_at < settled_before


def _is_over(span: LogSpan | None, snapshot: Mark | None, cutoff: int) -> bool:
    """All of the log is old, and the snapshot is the newest document."""
    if span is None:
        return True
    return span.latest_at < cutoff and snapshot is not None and snapshot.version >= span.last
