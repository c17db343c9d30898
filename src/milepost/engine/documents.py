"""Hot documents: the fold of snapshot and log that a writer or a reader needs now, kept while there is room.

The cache may vanish at any moment: snapshot plus changes in the store always give the document. It belongs to the committer's
thread; a transaction that fails throws away the documents it touched.
"""

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
from sqlalchemy import Connection

from milepost.engine.announcements import LoggedChange, steps_after
from milepost.errors import MetadataError
from milepost.model import jsonvalue
from milepost.model.counted import id_of, id_over_all_keys, pack
from milepost.model.document import Document
from milepost.model.operations import (
    Append,
    Increment,
    Operation,
    Refusal,
    check,
    collapse,
    decode_operations,
    encode_operations,
)
from milepost.model.typed import Declared, check_operation
from milepost.protocol.metadata import MetadataChange, MetadataDelta
from milepost.store import documents as store
from milepost.store import runs as run_store
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.runs import RunRow

CACHE_BYTES = 64 * 1024 * 1024
RECENT_BYTES = 256 * 1024
FOLD_BYTES_MIN = 8 * 1024
# A document that is further behind is read anew: snapshot and log since then are bounded by its size, and these steps are not.
CHANGES_BEHIND_MAX = 1000
# What a cached document costs beside its JSON: objects, dictionaries, the cache itself. A rough figure is enough.
_OVERHEAD_BYTES = 1024
_NUMBERS = msgspec.json.Decoder(list[int])


class Writer(msgspec.Struct, frozen=True, gc=False):
    """Who writes: a run's report; without a `sequence`, something else that is part of the run, such as a child process of it; or
    nobody in particular (an outside caller)."""

    run_id: str | None = None
    attempt: int | None = None
    sequence: int | None = None


class HotDocument:
    """A document at its newest version, with the steps that led there as far as they are at hand."""

    def __init__(
        self,
        run_id: str,
        document: Document,
        *,
        snapshot_version: int,
        snapshot_bytes: int,
        changed_at: int | None = None,
    ) -> None:
        self.run_id = run_id
        self.document = document
        self.snapshot_version = snapshot_version
        # When the newest version was reached.
        self._changed_at = changed_at
        self._snapshot_bytes = snapshot_bytes
        self._tail_bytes = 0
        self._recent: deque[LoggedChange] = deque()
        self._recent_bytes = 0

    @property
    def weight(self) -> int:
        """What it takes in the cache, in bytes, about."""
        return self.document.size + self._recent_bytes + _OVERHEAD_BYTES

    @property
    def wants_fold(self) -> bool:
        """True when the log since the snapshot has outgrown it, so that reading both costs more than writing a new one."""
        return self._tail_bytes > max(FOLD_BYTES_MIN, self._snapshot_bytes)

    def write(
        self,
        operations: Sequence[Operation],
        writer: Writer,
        now: int,
        *,
        ids: Sequence[tuple[bytes, ...]],
        counted: set[bytes],
        declared: Declared | None = None,
        type_name: str = "",
    ) -> tuple[ChangeRow | None, list[Refusal]]:
        """Apply what can be applied, in order, as one new version. Nothing applied, no new version (M29, M31).

        Args:
            ids: what `ids_of` gives for the operations.
            counted: which of these ids were counted before; what is counted now is added.
            declared: the type that the document must have after each operation (M76); `type_name` is what messages call it.
        """
        refusals: list[Refusal] = []
        applied: list[Operation] = []
        left_out: list[int] = []
        for index, operation in enumerate(operations):
            try:
                check(operation)
                if ids[index] and not counted.isdisjoint(ids[index]):
                    # The log has what changes something, so whoever reads it need not know what was counted (M46).
                    left_out.append(index)
                    continue
                if declared is not None:
                    check_operation(operation, self.document.value, declared, type_name)
                self.document.apply(operation)
            except MetadataError as error:
                refusals.append(Refusal(index, error.code, error.message))
            else:
                counted.update(ids[index][:1])
                applied.append(self._as_logged(operation))
        if not applied and not left_out:
            return None, refusals
        self.document.version += 1
        data = encode_operations(applied)
        refused = sorted([*left_out, *(refusal.index for refusal in refusals)])
        row = ChangeRow(
            run_id=self.run_id,
            version=self.document.version,
            operations=data,
            writer_id=writer.run_id,
            writer_attempt=writer.attempt,
            writer_sequence=writer.sequence,
            refused=msgspec.json.encode(refused) if refused else None,
            created_at=now,
        )
        self._remember(row, applied, refused)
        return row, refusals

    def _as_logged(self, operation: Operation) -> Operation:
        """An integer that was added to a float is logged as a float, so that readers who join steps never sum it: sums of floats
        depend on how they are grouped (M30)."""
        if (
            isinstance(operation, Increment)
            and type(operation.value) is int
            and type(self.document.get(operation.key)) is float
        ):
            return msgspec.structs.replace(operation, value=float(operation.value))
        return operation

    def replay(self, row: ChangeRow) -> None:
        """Apply a step that was committed before."""
        operations = decode_operations(row.operations)
        for operation in operations:
            self.document.apply(operation)
        self.document.version = row.version
        self._remember(row, operations, _NUMBERS.decode(row.refused) if row.refused else ())

    def catch_up(self, changes: Iterable[ChangeRow]) -> None:
        """Apply steps that others have committed since. Without the limit: what was applied once fits, also after it was lowered."""
        limit, self.document.limit = self.document.limit, sys.maxsize
        for change in changes:
            self.replay(change)
        self.document.limit = limit

    def fold(self) -> Snapshot:
        """The document as a snapshot to be saved; from then on the log before it is not needed to read it."""
        value = jsonvalue.encode(self.document.value)
        self.snapshot_version = self.document.version
        self._snapshot_bytes = len(value)
        self._tail_bytes = 0
        return Snapshot(self.run_id, self.document.version, value, self._changed_at)

    def last_change(self) -> LoggedChange:
        """The newest step; there must have been one."""
        return self._recent[-1]

    def delta(
        self, since: int, reader: Writer, known_ids: Callable[[], Iterable[bytes]]
    ) -> MetadataDelta | None:
        """What brings a reader from version `since` to the newest: steps where they are at hand, else the whole document, and with it
        some of the ids that were counted.

        Steps that the reader wrote itself carry its sequence and no operations; others are joined and collapsed.
        """
        if since >= self.document.version:
            return None
        steps = steps_after(self._recent, since)
        if steps is None:
            return MetadataDelta(
                run=self.run_id,
                from_version=since,
                version=self.document.version,
                # Raw, because it is sent by another thread while this one may write on.
                metadata=msgspec.Raw(jsonvalue.encode(self.document.value)),  # pyright: ignore[reportArgumentType]
                counted=pack(known_ids()),
            )
        return MetadataDelta(
            run=self.run_id,
            from_version=since,
            version=self.document.version,
            changes=join_steps(steps, reader),
        )

    def _remember(self, row: ChangeRow, operations: Sequence[Operation], refused: Sequence[int]) -> None:
        size = len(row.operations)
        self._changed_at = row.created_at
        self._tail_bytes += size
        self._recent.append(
            LoggedChange(
                row.version, operations, size, row.writer_id, row.writer_attempt, row.writer_sequence, refused
            )
        )
        self._recent_bytes += size
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popleft().size


def ids_of(operations: Sequence[Operation]) -> list[tuple[bytes, ...]]:
    """For each operation with a `once` id what stands for it: by its key, and as if it counted for every key. Else nothing."""
    return [_ids_of(operation) for operation in operations]


def _ids_of(operation: Operation) -> tuple[bytes, ...]:
    once = getattr(operation, "once", None)
    if once is None or not isinstance(operation, Increment | Append):
        return ()
    try:
        return id_of(operation.key, once), id_over_all_keys(once)
    except (MetadataError, UnicodeEncodeError):
        # It will be refused.
        return ()


def join_steps(steps: Iterable[LoggedChange], reader: Writer) -> list[MetadataChange]:
    """Steps of a log as this reader needs them: its own by sequence, those of others joined and collapsed in between."""
    changes: list[MetadataChange] = []
    foreign: list[Operation] = []
    version = 0
    for step in steps:
        is_own = step.writer_id == reader.run_id and step.attempt == reader.attempt
        # Without a number it was a child process of the reader, so the reader does not have it.
        if reader.run_id is not None and is_own and step.sequence is not None:
            if foreign:
                changes.append(MetadataChange(version=version, operations=collapse(foreign)))
                foreign = []
            changes.append(
                MetadataChange(
                    version=step.version,
                    attempt=step.attempt,
                    sequence=step.sequence,
                    refused=list(step.refused),
                )
            )
        else:
            foreign.extend(step.operations)
            version = step.version
    if foreign:
        changes.append(MetadataChange(version=version, operations=collapse(foreign)))
    return changes


class DocumentCache:
    """Hot documents by run, least recently used first out, bounded in bytes."""

    def __init__(self, *, size_max: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._size_max = size_max
        self._cache_bytes = cache_bytes
        self._documents: OrderedDict[str, HotDocument] = OrderedDict()
        self._weights: dict[str, int] = {}
        self._bytes = 0

    def at_hand(self, run_id: str) -> HotDocument | None:
        """The document, when it is in the cache."""
        return self._documents.get(run_id)

    def newest(self, connection: Connection, row: RunRow) -> HotDocument:
        """The document of one run at its newest version, as `load` has it."""
        hot = self._documents.get(row.id)
        if hot is None or hot.document.version != row.metadata_version:
            return self.load(connection, [row])[row.id]
        self._documents.move_to_end(row.id)
        return hot

    def load(self, connection: Connection, rows: Sequence[RunRow]) -> dict[str, HotDocument]:
        """The documents of these runs at their newest version. One in the cache to which another server has written since is led on by
        the log."""
        behind = [row for row in rows if self._is_behind(row)]
        if behind:
            self._catch_up(connection, behind)
        missing = [row for row in rows if not self._is_newest(row)]
        if missing:
            self.forget(row.id for row in missing)
            for hot in load_documents(connection, missing, size_max=self._size_max).values():
                self._documents[hot.run_id] = hot
        for row in rows:
            self._documents.move_to_end(row.id)
        return {row.id: self._documents[row.id] for row in rows}

    def _is_newest(self, row: RunRow) -> bool:
        """True when the document is in the cache, and nobody else has written to it since."""
        hot = self._documents.get(row.id)
        return hot is not None and hot.document.version == row.metadata_version

    def _is_behind(self, row: RunRow) -> bool:
        """True when the document is in the cache, and so little was written to it since that the log is read sooner than all of it."""
        hot = self._documents.get(row.id)
        return hot is not None and 0 < row.metadata_version - hot.document.version <= CHANGES_BEHIND_MAX

    def _catch_up(self, connection: Connection, rows: Sequence[RunRow]) -> None:
        """Lead documents on. One whose log has a gap, because it was pruned meanwhile, stays as it is."""
        since = {row.id: self._documents[row.id].document.version for row in rows}
        for run_id, changes in store.load_changes(connection, since).items():
            if changes[0].version == since[run_id] + 1:
                self._documents[run_id].catch_up(changes)

    def settle(self, run_ids: Iterable[str]) -> None:
        """After a commit: weigh what was touched anew and drop the least recently used beyond the bound."""
        for run_id in run_ids:
            hot = self._documents.get(run_id)
            if hot is not None:
                self._bytes += hot.weight - self._weights.get(run_id, 0)
                self._weights[run_id] = hot.weight
        while self._bytes > self._cache_bytes and self._documents:
            run_id, _ = self._documents.popitem(last=False)
            self._bytes -= self._weights.pop(run_id, 0)

    def forget(self, run_ids: Iterable[str]) -> None:
        """Drop documents: what was done to them was not committed, or they will not be needed again."""
        for run_id in run_ids:
            if self._documents.pop(run_id, None) is not None:
                self._bytes -= self._weights.pop(run_id, 0)


def load_documents(
    connection: Connection, rows: Sequence[RunRow], *, size_max: int
) -> dict[str, HotDocument]:
    """Documents from the store: the saved snapshot, else the document given at trigger, and the log above it."""
    written = [row.id for row in rows if row.metadata_version]
    snapshots, tails = store.load_written(connection, written)
    plain = [row.id for row in rows if row.id not in snapshots]
    given = run_store.load_trigger_metadata(connection, plain) if plain else {}
    return {
        row.id: _hot(
            row.id,
            snapshots.get(row.id) or store.given_snapshot(row.id, given.get(row.id)),
            tails.get(row.id, ()),
            size_max=size_max,
        )
        for row in rows
    }


def _hot(run_id: str, snapshot: Snapshot, tail: Iterable[ChangeRow], *, size_max: int) -> HotDocument:
    document = Document.load(snapshot.value, version=snapshot.version, limit=sys.maxsize, counted=None)
    hot = HotDocument(
        run_id,
        document,
        snapshot_version=snapshot.version,
        snapshot_bytes=len(snapshot.value),
        changed_at=snapshot.changed_at,
    )
    hot.catch_up(tail)
    document.limit = size_max
    return hot
