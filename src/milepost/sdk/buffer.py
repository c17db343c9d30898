"""One attempt's metadata on its way to the server, as a state machine without I/O.

The updates of the user's code come in through `add`, the worker's link carries batches out through `next_batch`, and what the
server says comes back through `acknowledged` and `apply_delta`. In between stands what the user reads:

    view  =  acknowledged document  +  batch in flight  +  what waits for the next batches

Nothing leaves the buffer before it is acknowledged (M44), at most one batch is in flight, and a batch that failed is offered again
unchanged under the same number, so that the server can tell a repeat (M45). Thread-safe: the user's threads and the link meet here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import to_builtins

from milepost.client.portions import cut
from milepost.client.refused import RefusedChange, refused_change
from milepost.errors import MetadataError, MetadataTypeError
from milepost.model.counted import KnownIds, id_of, unpack
from milepost.model.document import Document
from milepost.model.operations import Append, Increment, Operation, Pending, Remove, Update
from milepost.model.path import parse
from milepost.protocol.metadata import MetadataChange, MetadataDelta, Refused
from milepost.protocol.work import ClaimedRun, TargetOperations

FoundT = TypeVar("FoundT")

BACKLOG_BYTES_MAX = 16 * 1024 * 1024
"""What may wait to be sent for one document, about, in bytes of memory; see `Buffer.add`."""

REFUSED_MAX = 1000
STASH_MAX = 1000


@dataclass(frozen=True)
class Batch:
    """What one report carries for this run.

    Attributes:
        sequence: counts the batches of the attempt from 1.
        changes: the operations per document, in the order of the calls; empty when `next_batch` was told to give a number anyway.
        is_last: nothing else waits behind this batch. The attempt's outcome may only travel with a batch that has it set, or
            operations would arrive after the end of their attempt.
    """

    sequence: int
    changes: list[TargetOperations]
    is_last: bool


class Buffer:
    """The metadata of one attempt, for its own document and for the documents of other runs that it writes to.

    Args:
        run_id: the run whose attempt this is; its document is the one that can be read here.
        attempt: number of the attempt.
        document: the run's document as it was when the attempt was claimed.
        counted: what stands for the `once` ids that were counted by then, as far as they are known (`id_of`).
        backlog_bytes_max: what may wait to be sent for one document, about.
    """

    def __init__(
        self,
        run_id: str,
        attempt: int,
        document: Document,
        *,
        counted: Iterable[bytes] = (),
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._limit = document.limit
        self._lock = threading.Lock()
        self._base = document
        # The acknowledged document takes whatever the server took, also when the server's limit was raised meanwhile.
        self._base.limit = sys.maxsize
        # A step of the log always counts. Whether an own call does, the view can only tell by what is known.
        self._base.counted = None
        self._known_ids = KnownIds(counted)
        # Own operations that were sent and are not in `_base` yet, by batch; None stands where the server refused one.
        self._sent: dict[int, list[Operation | None]] = {}
        self._pending: dict[str, Pending] = {}
        # Taken from `_pending`, but too much for the batch before.
        self._waiting: list[TargetOperations] = []
        self._view = self._copy_of_base()
        # Some own operation could not be applied to the view; the server may apply it all the same.
        self._view_is_partial = False

        self._in_flight: Batch | None = None
        self._sequence = 0
        # A round is what one look into `_pending` took out; a flush waits for the end of a round.
        self._rounds_taken = 0
        self._rounds_acknowledged = 0

        self._stash: list[MetadataDelta] = []
        self._has_lost_track = False
        self._refused: list[RefusedChange] = []
        self._refused_uncounted = 0
        self._backlog_bytes_max = backlog_bytes_max
        # Bytes of what is in `_waiting`, about: all of it until the last of it has left.
        self._waiting_bytes = 0
        self._overflown = 0

    @classmethod
    def of(cls, run: ClaimedRun, *, limit: int) -> Buffer:
        """The buffer of a run that was just claimed; `limit` is the largest size of its document in bytes."""
        document = Document(run.metadata, version=run.metadata_version, limit=limit)
        return cls(run.id, run.attempt, document, counted=unpack(run.counted))

    # --- the user's side -----------------------------------------------------------------------------------

    def add(self, run_id: str, operation: Operation) -> bool:
        """Take one operation for the document of `run_id`.

        An operation on the own document is applied to the view first: what it raises leaves view and buffer as they were. Only a
        `remove` from something that is no array is taken nevertheless, because the server reports it (M22).

        While the server does not answer, operations wait here, merged where that cannot be noticed (M30). When what waits for one
        document takes more than `BACKLOG_BYTES_MAX`, an operation that cannot be merged with it is not taken. Nothing is raised, since
        progress must not break the work: `flush` and the run's log tell of it (`take_refused`, `take_overflown`).

        Returns: True when nothing had been added since the last batch was taken: the link wants to be woken.
        Raises: MetadataError of the own document.
        """
        with self._lock:
            pending = self._pending.get(run_id)
            if pending is not None and not self._takes(pending, run_id, (operation,)):
                return False
            if run_id == self._run_id:
                try:
                    self._view.apply(operation)
                except MetadataTypeError:
                    if type(operation) is not Remove:
                        raise
                    self._view_is_partial = True
            if pending is not None:
                pending.add(operation)
                return False
            was_clean = not self._pending
            self._pending[run_id] = pending = Pending()
            pending.add(operation)
            return was_clean

    def add_all(self, run_id: str, operations: Sequence[Operation]) -> bool:
        """Take several operations for one document together: all, or none when one of them is refused.

        Returns and raises as `add`.
        """
        if not operations:
            return False
        with self._lock:
            pending = self._pending.get(run_id)
            if pending is not None and not self._takes(pending, run_id, operations):
                return False
            if run_id == self._run_id:
                self._view.apply_all(operations)
            was_clean = not self._pending
            if pending is None:
                pending = self._pending[run_id] = Pending()
            for operation in operations:
                pending.add(operation)
            return was_clean

    def _takes(self, pending: Pending, run_id: str, operations: Sequence[Operation]) -> bool:
        """Whether there is room for these beside what waits, or none is needed; if not, it notes that they are refused."""
        if pending.size_bytes + self._waiting_bytes <= self._backlog_bytes_max:
            return True
        if all(pending.absorbs(operation) for operation in operations):
            return True
        self._overflown += len(operations)
        message = f"{self._backlog_bytes_max:,} bytes of updates wait for the server: this one was refused"
        for operation in operations:
            self._note_refused(
                RefusedChange(run_id, to_builtins(operation), "metadata_backlog_full", message)
            )
        return False

    def take_overflown(self) -> int:
        """How many operations were refused since this was last asked because too much waits to be sent."""
        with self._lock:
            overflown, self._overflown = self._overflown, 0
        return overflown

    def refuse(self, change: RefusedChange) -> None:
        """Note an operation that was not even taken, so that the next flush tells of it."""
        with self._lock:
            self._note_refused(change)

    def get(self, key: str, default: Any = None) -> Any:
        """What the key or path holds in the view, as a copy; the default when there is nothing."""
        with self._lock:
            return self._view.get(key, default)

    def look(self, read: Callable[[dict[str, Any]], FoundT]) -> FoundT:
        """What a function finds in the view itself, which it must not change or keep. It must not run code of the user's."""
        with self._lock:
            return read(self._view.value)

    def contains(self, key: str) -> bool:
        """True when the key or path holds something in the view, null included."""
        with self._lock:
            return self._view.contains(key)

    def current(self) -> dict[str, Any]:
        """The whole view as a fresh dict."""
        with self._lock:
            return self._view.copy_value()

    @property
    def limit(self) -> int:
        """The largest size of a document in bytes."""
        return self._limit

    def take_refused(self) -> list[RefusedChange]:
        """What was refused since this was last asked, oldest first."""
        with self._lock:
            refused, self._refused = self._refused, []
            uncounted, self._refused_uncounted = self._refused_uncounted, 0
        if uncounted:
            message = f"{uncounted:,} more operations were refused"
            refused.append(RefusedChange(self._run_id, None, "metadata_flush_refused", message))
        return refused

    def mark(self) -> int:
        """A mark behind everything that was added so far; `reached` tells when all of it is acknowledged (M37)."""
        with self._lock:
            return self._rounds_taken + 1 if self._pending else self._rounds_taken

    def reached(self, mark: int) -> bool:
        """True when everything before the mark is acknowledged."""
        return self._rounds_acknowledged >= mark

    # --- the link's side -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the own document that is known; a report says it, and the answer brings what is newer."""
        return self._base.version

    @property
    def acknowledged_sequence(self) -> int:
        """The last batch that the server has acknowledged."""
        return self._sequence if self._in_flight is None else self._sequence - 1

    @property
    def has_unacknowledged(self) -> bool:
        """True while something has been added that the server has not acknowledged."""
        return self._in_flight is not None or bool(self._waiting) or bool(self._pending)

    @property
    def unacknowledged_count(self) -> int:
        """How many operations the server has not acknowledged, as far as they were not merged."""
        with self._lock:
            in_flight = self._in_flight.changes if self._in_flight is not None else []
            sent = sum(len(change.operations) for change in (*in_flight, *self._waiting))
            return sent + sum(map(len, self._pending.values()))

    @property
    def needs_refresh(self) -> bool:
        """True while steps of the own document are known to be missing. A report, even an empty one, brings them: its answer starts
        from `version`."""
        with self._lock:
            return (
                self._has_lost_track or bool(self._stash) or len(self._sent) > (self._in_flight is not None)
            )

    def next_batch(self, *, anyway: bool = False) -> Batch | None:
        """The next batch to send; None when there is nothing to send.

        While a batch is in flight it is that one again, unchanged: a report that failed is sent again as it was.

        Args:
            anyway: give a batch without operations rather than none, for a report that needs a number because it carries log
                lines or the outcome.
        """
        with self._lock:
            if self._in_flight is not None:
                return self._in_flight
            if not self._waiting and self._pending:
                self._rounds_taken += 1
                self._waiting_bytes = sum(pending.size_bytes for pending in self._pending.values())
                taken = ((run_id, pending.take()) for run_id, pending in self._pending.items())
                self._waiting = [
                    TargetOperations(run_id, operations) for run_id, operations in taken if operations
                ]
                self._pending = {}
                if not self._waiting:
                    # Everything cancelled out.
                    self._rounds_acknowledged = self._rounds_taken
            if not self._waiting and not anyway:
                return None
            changes, self._waiting = cut(self._waiting)
            if not self._waiting:
                self._waiting_bytes = 0
            self._sequence += 1
            own = _operations_for(self._run_id, changes)
            if own:
                self._sent[self._sequence] = list(own)
            self._in_flight = Batch(self._sequence, changes, is_last=not self._waiting and not self._pending)
            return self._in_flight

    def acknowledged(
        self, sequence: int, *, refused: Sequence[Refused] = (), delta: MetadataDelta | None = None
    ) -> None:
        """The server has answered the report with batch `sequence`, 0 for a report without one. Safe to repeat.

        Args:
            refused: the operations of the batch that were not applied.
            delta: what brings the own document from the version of the report to the newest.
        """
        with self._lock:
            batch = self._in_flight
            if batch is not None and batch.sequence == sequence:
                self._in_flight = None
                if not self._waiting:
                    self._rounds_acknowledged = self._rounds_taken
                for item in refused:
                    self._note_refused(refused_change(item))
                self._drop_refused(sequence, [item.index for item in refused if item.run == self._run_id])
            if delta is not None:
                # The answer was given after the commit, so a whole document in it holds the batch and all before it.
                self._take_delta(delta, holds_until=self._sequence if self._in_flight is None else 0)
            self._take_stashed()

    def failed(self, sequence: int) -> None:
        """The report of batch `sequence` got no answer. It stays in flight: `next_batch` offers it again."""
        assert self._in_flight is None or self._in_flight.sequence >= sequence, (self._in_flight, sequence)

    def apply_delta(self, delta: MetadataDelta) -> None:
        """Take what others wrote to the own document (M42, M66). Deltas may come twice, overlapping and out of order."""
        with self._lock:
            self._take_delta(delta, holds_until=0)
            self._take_stashed()

    def adopt(self, value: dict[str, Any], version: int, *, holds_until: int) -> bool:
        """Take the whole own document as the server has it; what is not acknowledged is kept on top of it (M43).

        Args:
            holds_until: `acknowledged_sequence` as it was before the server was asked.
        Returns: False when it has to wait until a batch is acknowledged, because nobody can tell whether it holds that one.
        """
        with self._lock:
            self._take_delta(MetadataDelta(self._run_id, 0, version, metadata=value), holds_until=holds_until)
            return self._base.version >= version

    # --- inside --------------------------------------------------------------------------------------------

    def _take_delta(self, delta: MetadataDelta, *, holds_until: int) -> None:
        """`holds_until`: a whole document in it surely holds the batches up to this one."""
        if delta.version <= self._base.version:
            return
        if delta.metadata is not None:
            if any(sequence > holds_until for sequence in self._sent):
                self._put_aside(delta)
                return
            self._base = Document(delta.metadata, version=delta.version, limit=sys.maxsize, counted=None)
            for id in unpack(delta.counted or b""):
                self._known_ids.add(id)
            self._sent.clear()
            self._has_lost_track = False
            self._rebuild_view()
        elif delta.from_version > self._base.version:
            self._put_aside(delta)
        else:
            self._take_steps(delta)

    def _put_aside(self, delta: MetadataDelta) -> None:
        if len(self._stash) >= STASH_MAX:
            self._stash.clear()
            self._has_lost_track = True
        self._stash.append(delta)

    def _take_stashed(self) -> None:
        if not self._stash:
            return
        stash, self._stash = sorted(self._stash, key=lambda delta: delta.from_version), []
        for delta in stash:
            self._take_delta(delta, holds_until=0)

    def _take_steps(self, delta: MetadataDelta) -> None:
        changes = delta.changes or []
        ours = self._own_unacknowledged() if any(change.attempt is None for change in changes) else []
        foreign: list[Operation] = []
        wants_rebuild = False
        reached = delta.from_version
        self._has_lost_track = False
        for change in changes:
            start, reached = reached, change.version
            if change.version <= self._base.version:
                continue
            # Steps of others are merged on the way, so one of them may begin before the version that is here and lead past it.
            operations = self._operations_of(change) if start == self._base.version else None
            if operations is None or not self._advance(operations, change.version):
                self._has_lost_track = True
                break
            if change.attempt is None:
                foreign.extend(operations)
            else:
                wants_rebuild = wants_rebuild or bool(change.refused) or self._view_is_partial
        if wants_rebuild or (foreign and not self._join_view(foreign, ours)):
            self._rebuild_view()

    def _operations_of(self, change: MetadataChange) -> Sequence[Operation] | None:
        """The operations of a step; None for an own step that is not known here, which no server should send."""
        if change.attempt is None:
            return change.operations
        sent = self._sent.pop(change.sequence or 0, None) if change.attempt == self._attempt else None
        if sent is None:
            return None
        refused = frozenset(change.refused)
        return [
            operation
            for index, operation in enumerate(sent)
            if operation is not None and index not in refused
        ]

    def _advance(self, operations: Sequence[Operation], version: int) -> bool:
        """Apply a committed step to the known document; False if it does not fit, which means that it is not the same document."""
        try:
            self._base.apply_all(operations)
        except MetadataError:
            return False
        self._base.version = version
        for operation in operations:
            if isinstance(operation, Increment | Append) and operation.once is not None:
                self._known_ids.add(id_of(operation.key, operation.once))
        return True

    def _drop_refused(self, sequence: int, indexes: Sequence[int]) -> None:
        sent = self._sent.get(sequence)
        if sent is None or not indexes:
            return
        for index in indexes:
            sent[index] = None
        if not any(sent):
            # Nothing was applied, so no step of this batch will ever come.
            del self._sent[sequence]
        self._rebuild_view()

    def _join_view(self, foreign: Sequence[Operation], ours: Sequence[Operation]) -> bool:
        """Apply what others wrote on top of the view; False when that is not the same as writing it below the own operations."""
        if ours and (self._view_is_partial or not _are_apart(ours, foreign)):
            return False
        try:
            self._view.apply_all(foreign)
        except MetadataError:
            return False
        return True

    def _rebuild_view(self) -> None:
        self._view = self._copy_of_base()
        self._view_is_partial = False
        for operation in self._own_unacknowledged():
            try:
                self._view.apply(operation)
            except MetadataError:
                # What others wrote came before it. The server will say whether it refuses it.
                self._view_is_partial = True

    def _copy_of_base(self) -> Document:
        view = self._base.copy()
        view.limit = self._limit
        view.counted = self._known_ids.copy()
        return view

    def _own_unacknowledged(self) -> list[Operation]:
        pending = self._pending.get(self._run_id)
        return [
            *(operation for sent in self._sent.values() for operation in sent if operation is not None),
            *_operations_for(self._run_id, self._waiting),
            *(pending.operations if pending is not None else ()),
        ]

    def _note_refused(self, change: RefusedChange) -> None:
        if len(self._refused) < REFUSED_MAX:
            self._refused.append(change)
        else:
            self._refused_uncounted += 1


def _operations_for(run_id: str, changes: Iterable[TargetOperations]) -> list[Operation]:
    return [operation for change in changes if change.run == run_id for operation in change.operations]


def _are_apart(ours: Iterable[Operation], theirs: Iterable[Operation]) -> bool:
    """True when the operations cannot meet: they touch different keys at the top level, so their order does not matter."""
    touched: set[object] = set()
    for operation in ours:
        if isinstance(operation, Update):
            return False
        touched.add(parse(operation.key)[0])
    return all(
        not isinstance(operation, Update) and parse(operation.key)[0] not in touched for operation in theirs
    )
