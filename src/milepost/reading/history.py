"""The history of documents (contract, section 13): what was changed when and by whom, the document at a version or a time.

What is below the newest version never changes, so no reader needs a lock.
"""

from collections.abc import Container

from sqlalchemy import Connection

from milepost.errors import HistoryPrunedError, VersionNotFoundError
from milepost.model.document import Document
from milepost.model.operations import decode_operations
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.model.shown_keys import Keys, shown_document, shown_operations
from milepost.protocol.metadata import ChangeWriter, CommittedChange, MetadataHistory
from milepost.reading.documents import opened, replay
from milepost.reading.runs import row_of
from milepost.store import documents as document_store
from milepost.store import history as store
from milepost.store import runs as run_store
from milepost.store.database import Store
from milepost.store.documents import ChangeRow
from milepost.store.history import Mark
from milepost.store.runs import RunFilter, RunRow

# A page ends early when its operations are more than this: each change may be as large as a document.
PAGE_BYTES = 4 * 1024 * 1024


class History:
    """Reads logs. Every method takes one consistent view of the store; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def page(self, run_id: str, *, size: int, after: int = 0, view: View = WHOLE_VIEW) -> MetadataHistory:
        """Up to `size` changes above a version, oldest first; those that were pruned are left out. Raises RunNotFoundError.

        Of each change what is shown is told, and nothing of one that is hidden. A writer that is not shown is told as none.
        """
        with self._store.read() as connection:
            row = row_of(connection, run_id)
            earliest = earliest_of(connection, row)
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
            row = row_of(connection, run_id)
            earliest = earliest_of(connection, row)
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
            row = row_of(connection, run_id)
            earliest = earliest_of(connection, row)
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


def earliest_of(connection: Connection, row: RunRow) -> Mark:
    """Where the kept log of a run's document begins."""
    start = store.start_marks(connection, [row.id]).get(row.id)
    if start is not None:
        return start
    if not row.metadata_version or store.first_version(connection, row.id) == 1:
        return Mark(0, row.created_at)
    return store.snapshot_marks(connection, [row.id])[row.id]


def _document(connection: Connection, row: RunRow, version: int, earliest: Mark) -> Document:
    """The document at a version that is kept."""
    document = base_of(connection, row, version, earliest)
    for change in store.load_page(connection, row.id, after=document.version, up_to=version):
        replay(document, change)
    return document


def base_of(connection: Connection, row: RunRow, version: int, earliest: Mark) -> Document:
    """The nearest saved document at or below a version that is kept."""
    snapshot = store.snapshot_marks(connection, [row.id]).get(row.id)
    if snapshot is not None and earliest.version <= snapshot.version <= version:
        base = document_store.load_snapshots(connection, [row.id]).get(row.id)
    else:
        base = store.load_start(connection, row.id)
    if base is None:
        given = run_store.load_trigger_metadata(connection, [row.id]).get(row.id)
        base = document_store.given_snapshot(row.id, given)
    return opened(base)


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
