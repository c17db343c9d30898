"""The history of documents (contract, section 13): what was changed when and by whom, the document at a version or a time, pruning.

What is below the newest version never changes. So everything is read and computed in reader threads, the documents at which pruned
logs begin too; the committer's thread only puts them in the place of the changes, a bounded number at a time.
"""

import sys
from collections.abc import Container

import msgspec
from sqlalchemy import Connection

from milepost.engine.commands import PrunableLog, PruneHistory
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import HistoryPrunedError, RunNotFoundError, VersionNotFoundError
from milepost.model.document import Document
from milepost.model.identifiers import lowest_id
from milepost.model.operations import decode_operations
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.model.shown_keys import Keys, shown_document, shown_operations
from milepost.protocol.metadata import ChangeWriter, CommittedChange, MetadataHistory
from milepost.store import documents as document_store
from milepost.store import history as store
from milepost.store import runs as run_store
from milepost.store.database import Store
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.history import LogSpan, Mark
from milepost.store.runs import RunFilter, RunRow

# A page ends early when its operations are more than this: each change may be as large as a document.
PAGE_BYTES = 4 * 1024 * 1024
# What one command of the committer prunes at most, and how much is replayed for it, so that commits are not held up.
CHANGES_PER_STEP = 1000
BYTES_PER_STEP = 8 * 1024 * 1024
# Rows of each table that one step of the walk looks at.
ROWS_PER_STEP = 250


class PruneStep(msgspec.Struct, frozen=True):
    """A part of the walk over all logs: what to prune, and where the next step begins; None at the end."""

    logs: list[PrunableLog]
    next: str | None


class History:
    """Reads logs. Every method takes one consistent view of the store; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def page(self, run_id: str, *, size: int, after: int = 0, view: View = WHOLE_VIEW) -> MetadataHistory:
        """Up to `size` changes above a version, oldest first; those that were pruned are left out. Raises RunNotFoundError.

        Of each change what is shown is told, and nothing of one that is hidden. A writer that is not shown is told as none.
        """
        with self._store.read() as connection:
            row = _row(connection, run_id)
            earliest = _earliest(connection, row)
            # One more than asked tells whether there is a further page.
            rows = store.load_page(connection, run_id, after=max(after, earliest.version), limit=size + 1)
            shown: list[ChangeRow] = []
            room = PAGE_BYTES
            more = False
            for change in rows:
                if len(shown) == size or (shown and len(change.operations) > room):
                    more = True
                    break
                room -= len(change.operations)
                shown.append(change)
            writers = {change.writer_id for change in shown if change.writer_id is not None} - {run_id}
            if view.runs is not None and writers:
                only = RunFilter(shown=view.runs)
                writers &= run_store.matching_ids(connection, only, sorted(writers))
        changes = [_committed(change, {run_id, *writers}, view.keys) for change in shown]
        return MetadataHistory(
            data=[change for change in changes if view.keys is None or change.operations],
            earliest_version=earliest.version,
            next=shown[-1].version if more else None,
        )

    def at_version(self, run_id: str, version: int, keys: Keys = None) -> tuple[bytes, int]:
        """The document as it was at a version, as JSON, and the version.

        Raises: RunNotFoundError; VersionNotFoundError for a version that there has not been; HistoryPrunedError for one that is not
            kept any more.
        """
        with self._store.read() as connection:
            row = _row(connection, run_id)
            earliest = _earliest(connection, row)
            newest = max(earliest.version, store.last_version(connection, run_id) or 0)
            if not 0 <= version <= newest:
                raise VersionNotFoundError(
                    f"the metadata of run {run_id!r} has no version {version}: the newest is {newest}",
                    field="version",
                )
            if version < earliest.version:
                raise _pruned(f"version {version}", run_id, earliest.version, field="version")
            document = _document(connection, row, version, earliest)
        return shown_document(document.encode(), keys), version

    def at_time(self, run_id: str, at: int, keys: Keys = None) -> tuple[bytes, int]:
        """The document as it was at a time (microseconds since 1970), as JSON, and its version then.

        That is the highest version that was reached at or before the time, also where the server's clock has jumped.

        Raises: RunNotFoundError; VersionNotFoundError for a time before the run; HistoryPrunedError for one that is not kept any more.
        """
        with self._store.read() as connection:
            row = _row(connection, run_id)
            earliest = _earliest(connection, row)
            version = store.newest_at(connection, run_id, at, above=earliest.version)
            if version is None:
                if earliest.changed_at is not None and earliest.changed_at <= at:
                    version = earliest.version
                elif earliest.version == 0 or at < row.created_at:
                    raise VersionNotFoundError(
                        f"run {run_id!r} was triggered at {row.created_at} (microseconds since 1970): there was no metadata "
                        f"at {at}",
                        field="at",
                    )
                else:
                    raise _pruned(f"what held at {at}", run_id, earliest.version, field="at")
            document = _document(connection, row, version, earliest)
        return shown_document(document.encode(), keys), version

    def prunable(self, *, cutoff: int, settled_before: int, after: str = "") -> PruneStep:
        """What one command may prune of the logs of the runs behind `after`.

        Args:
            cutoff: changes from before this time go (microseconds since 1970).
            settled_before: a run that had finished by then takes no writes and no repeated reports any more. Its log goes as a
                whole once all of it is old enough. Of any other log the document stays from which the rest can be replayed.
        """
        step = _Step()
        with self._store.read() as connection:
            # Ids are ordered by time: what was triggered later has no change that is old enough.
            ids, following = store.logged_ids(
                connection, after=after, before=lowest_id("run", cutoff), limit=ROWS_PER_STEP
            )
            rows = run_store.load_rows(connection, ids)
            spans = store.log_spans(connection, ids)
            snapshots = store.snapshot_marks(connection, ids)
            for run_id in ids:
                row, span = rows[run_id], spans.get(run_id)
                settled = row.finished_at is not None and row.finished_at < settled_before
                if settled and _is_over(span, snapshots.get(run_id), cutoff):
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
        ids = store.counted_ids_of(connection, run_id, limit=self._changes_left + 1)
        has_more = len(ids) > self._changes_left
        ids = ids[: self._changes_left]
        self._changes_left -= len(ids)
        self.logs.append(PrunableLog(run_id, up_to, counted=ids))
        return not has_more and (span is None or up_to == span.last)

    def take_part(self, connection: Connection, row: RunRow, span: LogSpan, cutoff: int) -> bool:
        """The part of this log that is old enough goes. False when some of that has to wait for the next step."""
        cut = store.newest_at(connection, row.id, cutoff - 1)
        earliest = _earliest(connection, row)
        if cut is None or cut <= earliest.version:
            return True
        first = max(earliest.version + 1, span.first)
        document = _base(connection, row, min(cut, first - 1 + self._changes_left), earliest)
        changed_at = None
        for change in store.load_page(
            connection, row.id, after=document.version - 1, up_to=min(cut, first - 1 + self._changes_left)
        ):
            if change.version > document.version:
                if self._bytes_left <= 0:
                    break
                self._bytes_left -= len(change.operations)
                _replay(document, change)
            changed_at = change.created_at
        value = document.encode()
        self._bytes_left -= len(value)
        self._changes_left -= document.version - first + 1
        start = Snapshot(row.id, document.version, value, changed_at)
        self.logs.append(PrunableLog(row.id, document.version, start))
        return document.version == cut


def prune(command: PruneHistory, transaction: Transaction, state: EngineState) -> None:
    """Shorten logs, and fold first where the log is all that there is.

    The newest document is read from the snapshot and the changes above it; the snapshot is never older than the changes that go.
    """
    # What this group has written must be seen here.
    transaction.save()
    connection = transaction.connection
    parts = {log.run_id: log.start for log in command.logs if log.start is not None}
    present = store.start_marks(connection, list(parts))
    saved = store.snapshot_marks(connection, list(parts))
    starts = [
        start
        for run_id, start in parts.items()
        if run_id not in present or present[run_id].version < start.version
    ]
    document_store.save_snapshots(
        connection,
        [
            start
            for start in starts
            if start.run_id not in saved or saved[start.run_id].version < start.version
        ],
    )
    store.save_starts(connection, starts)
    whole = [log.run_id for log in command.logs if log.start is None]
    store.delete_starts(connection, whole)
    store.delete_refusals(connection, whole)
    store.delete_changes(connection, {log.run_id: log.up_to for log in command.logs})
    store.delete_counted(connection, [(log.run_id, id) for log in command.logs for id in log.counted])


def _is_over(span: LogSpan | None, snapshot: Mark | None, cutoff: int) -> bool:
    """All of the log is old, and the snapshot is the newest document."""
    if span is None:
        return True
    return span.latest_at < cutoff and snapshot is not None and snapshot.version >= span.last


def _row(connection: Connection, run_id: str) -> RunRow:
    row = run_store.load_rows(connection, [run_id]).get(run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    return row


def _earliest(connection: Connection, row: RunRow) -> Mark:
    """Where the kept log of a run's document begins."""
    start = store.start_marks(connection, [row.id]).get(row.id)
    if start is not None:
        return start
    if not row.metadata_version or store.first_version(connection, row.id) == 1:
        return Mark(0, row.created_at)
    return store.snapshot_marks(connection, [row.id])[row.id]


def _document(connection: Connection, row: RunRow, version: int, earliest: Mark) -> Document:
    """The document at a version that is kept."""
    document = _base(connection, row, version, earliest)
    for change in store.load_page(connection, row.id, after=document.version, up_to=version):
        _replay(document, change)
    return document


def _base(connection: Connection, row: RunRow, version: int, earliest: Mark) -> Document:
    """The nearest saved document at or below a version that is kept."""
    snapshot = store.snapshot_marks(connection, [row.id]).get(row.id)
    if snapshot is not None and earliest.version <= snapshot.version <= version:
        base = document_store.load_snapshots(connection, [row.id]).get(row.id)
    else:
        base = store.load_start(connection, row.id)
    if base is None:
        given = run_store.load_trigger_metadata(connection, [row.id]).get(row.id)
        base = Snapshot(row.id, 0, given or b"{}")
    # No limit: what was applied once fits, also after the limit was lowered.
    return Document.load(base.value, version=base.version, limit=sys.maxsize, counted=None)


def _replay(document: Document, change: ChangeRow) -> None:
    for operation in decode_operations(change.operations):
        document.apply(operation)
    document.version = change.version


def _pruned(what: str, run_id: str, earliest_version: int, *, field: str) -> HistoryPrunedError:
    return HistoryPrunedError(
        f"{what} of the metadata of run {run_id!r} is no longer kept: the earliest version that is, is {earliest_version} "
        f"(MILEPOST_HISTORY_DAYS on the server says how long changes are kept)",
        field=field,
        earliest_version=earliest_version,
    )


def _committed(change: ChangeRow, writers: Container[str], keys: Keys) -> CommittedChange:
    writer = None
    if change.writer_id is not None and change.writer_id in writers:
        writer = ChangeWriter(run=change.writer_id, attempt=change.writer_attempt or 0)
    return CommittedChange(
        version=change.version,
        at=change.created_at,
        operations=list(shown_operations(decode_operations(change.operations), keys)),
        writer=writer,
    )
