"""One attempt's metadata on its way to the server, as a state machine without I/O.

The updates of the user's code come in through `add`, the worker's link carries batches out through `next_batch`, and what the
server says comes back through `acknowledged` and `apply_delta`. In between stands what the user reads:

    view  =  acknowledged document  +  batch in flight  +  what waits for the next batches

Nothing leaves the buffer before it is acknowledged (M44), at most one batch is in flight, and a batch that failed is offered again
unchanged under the same number, so that the server can tell a repeat (M45).

Thread-safe: the user's threads and the link meet here. And safe when one call interrupts another in the same thread (M15), as
finalizers, signal handlers and trace functions do at any instruction:

*   Such a call changes nothing. It reads a state that is whole (`_seen_from_inside`), and what it wants to do goes into `_line`, which
    the next call works off before anything else. So the order stays that of the calls (M31).
*   Nobody waits without an end. Whoever is inside may have been interrupted by code that waits in turn for the one who wants to get
    in: a finalizer that logs, for example, while in another thread a logging handler calls `increment`. After `PATIENCE_SECONDS` an
    operation is put in line unchecked, and a reader gets what is there. The link has less patience and comes again, because the
    other runs of its process depend on it.
*   An error that a signal handler raises in the middle of a call leaves nothing locked and nothing half done (`_mend`).

A lock of the library can do none of the three: that it was just taken is not known yet when an error comes in between. So the one who
is inside is whoever has put a ticket into an empty dict by `setdefault`, which is one step for all threads.
"""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from msgspec import to_builtins

from milepost.client.portions import cut, halve
from milepost.client.refused import RefusedChange, refused_change
from milepost.errors import MetadataError, MetadataTypeError
from milepost.model.counted import KnownIds, id_of, unpack
from milepost.model.document import Document
from milepost.model.jsonvalue import encode
from milepost.model.operations import Append, Increment, Operation, Pending, Remove, Update
from milepost.model.path import Segment, parse
from milepost.protocol.metadata import MetadataChange, MetadataDelta, Refused
from milepost.protocol.work import ClaimedRun, TargetOperations

FoundT = TypeVar("FoundT")

BACKLOG_BYTES_MAX = 16 * 1024 * 1024
"""What may wait to be sent for one document, about, in bytes of memory; see `Buffer.add`."""

DOCUMENTS_MAX = 1000
"""For how many documents something may be added between two batches."""

PATIENCE_SECONDS = 1.0
LINK_PATIENCE_SECONDS = 0.02

REFUSED_MAX = 1000
STASH_MAX = 1000
LINE_MAX = 100_000
# As long as no more stand in line, what comes is checked against the document; and among the last of them increments are joined.
LINE_CHECKED_MAX = 100
LINE_LOOK_BACK = 8
PAUSE_SECONDS_MIN = 0.000_05
PAUSE_SECONDS_MAX = 0.002

# A ticket names its thread. Each call has one of its own.
_Ticket = tuple[int]
_INSIDE = "inside"


class BufferBusy(Exception):
    """Another thread was stopped in the middle of a call; ask again later."""


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


@dataclass(frozen=True, slots=True)
class _Late:
    """The operations of one call that could not be taken when it was made: all of them or none."""

    run_id: str
    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class _LateSum:
    """As `_Late`, of increments by whole numbers, to which more may be added while it is in line."""

    run_id: str
    key: str
    amounts: list[int]


class Buffer:
    """The metadata of one attempt, for its own document and for the documents of other runs that it writes to.

    Args:
        run_id: the run whose attempt this is; its document is the one that can be read here.
        attempt: number of the attempt.
        document: the run's document as it was when the attempt was claimed.
        counted: what stands for the `once` ids that were counted by then, as far as they are known (`id_of`).
        backlog_bytes_max: what may wait to be sent for one document, about.
        merges_others: whether operations on documents of other runs may be merged. Not where one of them has a declared type,
            which is not known here: it may refuse one operation and not the next. Those on the own document are held to its type
            before they come here.
    """

    def __init__(
        self,
        run_id: str,
        attempt: int,
        document: Document,
        *,
        counted: Iterable[bytes] = (),
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
        merges_others: bool = True,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._limit = document.limit
        # The ticket of the call that is inside, if any.
        self._inside: dict[str, _Ticket] = {}
        # While the view is being changed, everything that it is computed from is whole; at any other time the view itself is.
        self._view_is_changing = False
        # What came while it could not be taken in, in the order in which it came; what of it is being taken in just now, and whether
        # the view has that already.
        self._line: deque[_Late | _LateSum | Callable[[], None]] = deque()
        self._in_hand: _Late | None = None
        self._in_hand_is_seen = False
        # Something is in line, or the last call has left something half done: to be looked after before anything else.
        self._is_behind = False
        self._is_torn = False
        # Operations that belong together and are being put behind the others.
        self._unfinished: _Late | None = None
        self._base = document
        # The acknowledged document takes whatever the server took, also when the server's limit was raised meanwhile.
        self._base.limit = sys.maxsize
        # A step of the log always counts. Whether an own call does, the view can only tell by what is known.
        self._base.counted = None
        self._known_ids = KnownIds(counted)
        # Own operations that were sent and are not in `_base` yet, by batch; None stands where the server refused one.
        self._sent: dict[int, list[Operation | None]] = {}
        self._pending: dict[str, Pending] = {}
        self._merges_others = merges_others
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
        self._refused: deque[RefusedChange] = deque()
        self._refused_uncounted = 0
        self._backlog_bytes_max = backlog_bytes_max
        # Bytes of what is in `_waiting` for each document, about: all of it until the last of it has left.
        self._waiting_bytes: dict[str, int] = {}
        # Why operations were refused here, without the server, and how many since `take_remarks` was last called.
        self._refused_here: dict[str, int] = {}

    @classmethod
    def of(cls, run: ClaimedRun, *, limit: int) -> Buffer:
        """The buffer of a run that was just claimed; `limit` is the largest size of its document in bytes."""
        document = Document(run.metadata, version=run.metadata_version, limit=limit)
        counted = unpack(run.counted)
        return cls(run.id, run.attempt, document, counted=counted, merges_others=not run.has_typed_ancestor)

    # --- the user's side -----------------------------------------------------------------------------------

    def add(self, run_id: str, operation: Operation) -> bool:
        """Take one operation for the document of `run_id`.

        An operation on the own document is applied to the view first: what it raises leaves view and buffer as they were. Only a
        `remove` from something that is no array is taken nevertheless, because the server reports it (M22). In a call that interrupts
        another one, an operation is checked against the document as the other call has found it; what turns out to be wrong later is
        refused by the server.

        While the server does not answer, operations wait here, merged where that cannot be noticed (M30). When what waits for one
        document takes more than `BACKLOG_BYTES_MAX`, an operation that cannot be merged with it is not taken. Nothing is raised, since
        progress must not break the work: `flush` and the run's log tell of it (`take_refused`, `take_remarks`).

        Returns: True when the link wants to be woken.
        Raises: MetadataError of the own document.
        """
        inside = self._inside
        ticket = (get_ident(),)
        try:
            if inside.setdefault(_INSIDE, ticket) is not ticket and not self._gets_in(
                ticket, PATIENCE_SECONDS
            ):
                return self._add_later(run_id, (operation,))
            if self._is_behind:
                self._catch_up()
            pending = self._pending.get(run_id)
            # Where little waits, which is the rule, there is room.
            has_room = (
                pending is not None
                and not self._waiting_bytes
                and pending.size_bytes <= self._backlog_bytes_max
            )
            if not has_room and not self._takes(run_id, pending, (operation,)):
                return False
            if run_id == self._run_id:
                self._view_is_changing = True
                try:
                    self._view.apply(operation)
                except MetadataTypeError as error:
                    if type(operation) is not Remove or not _is_refusal(error):
                        raise
                    self._view_is_partial = True
                self._view_is_changing = False
            if pending is not None:
                pending.add(operation)
                return False
            return self._add_pending(run_id, (operation,))
        except BaseException as error:
            # No call before this is noted: the stack may have come to its end.
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._is_torn = self._is_behind = True
                if _is_refusal(error):
                    self._is_torn = False
            raise
        finally:
            # No call in here: after each one a signal handler may raise.
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._view_is_changing = False
                del inside[_INSIDE]

    def add_all(self, run_id: str, operations: Sequence[Operation]) -> bool:
        """Take several operations for one document together: all, or none when one of them is refused.

        Returns and raises as `add`.
        """
        if not operations:
            return False
        inside = self._inside
        ticket = (get_ident(),)
        try:
            if inside.setdefault(_INSIDE, ticket) is not ticket and not self._gets_in(
                ticket, PATIENCE_SECONDS
            ):
                return self._add_later(run_id, operations)
            if self._is_behind:
                self._catch_up()
            pending = self._pending.get(run_id)
            if not self._takes(run_id, pending, operations):
                return False
            if run_id == self._run_id:
                self._view_is_changing = True
                self._view.apply_all(operations)
                self._view_is_changing = False
            return self._add_pending(run_id, operations)
        except BaseException as error:
            # No call before this is noted: the stack may have come to its end.
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._is_torn = self._is_behind = True
                if _is_refusal(error):
                    self._is_torn = False
            raise
        finally:
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._view_is_changing = False
                del inside[_INSIDE]

    def refuse(self, change: RefusedChange) -> None:
        """Note an operation that was not even taken, so that the next flush tells of it."""
        self._note_refused(change)

    def get(self, key: str, default: Any = None) -> Any:
        """What the key or path holds in the view, as a copy; the default when there is nothing."""
        # As `_read`, written out: reading in a loop is common.
        inside = self._inside
        ticket = (get_ident(),)
        try:
            if inside.setdefault(_INSIDE, ticket) is ticket and not self._is_behind:
                return self._view.get(key, default)
        finally:
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                del inside[_INSIDE]
        return self._read(Document.get, key, default)

    def look(self, read: Callable[[dict[str, Any]], FoundT]) -> FoundT:
        """What a function finds in the view itself, which it must not change or keep. It must not run code of the user's."""

        def look(document: Document) -> FoundT:
            return read(document.value)

        return self._read(look)

    def contains(self, key: str) -> bool:
        """True when the key or path holds something in the view, null included."""
        return self._read(Document.contains, key)

    def current(self) -> dict[str, Any]:
        """The whole view as a fresh dict."""
        return self._read(Document.copy_value)

    @property
    def limit(self) -> int:
        """The largest size of a document in bytes."""
        return self._limit

    def take_refused(self) -> list[RefusedChange]:
        """What was refused since this was last asked, oldest first."""
        refused: list[RefusedChange] = []
        # One by one, so that of two who ask at once each change goes to one.
        while self._refused:
            try:
                refused.append(self._refused.popleft())
            except IndexError:
                break
        uncounted, self._refused_uncounted = self._refused_uncounted, 0
        if uncounted:
            message = f"{uncounted:,} more operations were refused"
            refused.append(RefusedChange(self._run_id, None, "metadata_flush_refused", message))
        return refused

    def mark(self) -> int:
        """A mark behind everything that was added so far; `reached` tells when all of it is acknowledged (M37)."""
        found: list[int] = []
        if self._do(lambda: found.append(self._rounds_taken + bool(self._pending)), PATIENCE_SECONDS):
            return found[0]
        # In the middle of another call nobody can tell whether another round will be needed, or two.
        return self._rounds_taken + 2

    def reached(self, mark: int) -> bool:
        """True when everything before the mark is acknowledged."""
        return self._rounds_acknowledged >= mark or not self.has_unacknowledged

    @property
    def is_interrupted_here(self) -> bool:
        """True in code that has interrupted a call of this buffer in its own thread. It must not wait for anything that needs the
        buffer, as a flush does: that call cannot go on before."""
        owner = self._inside.get(_INSIDE)
        return owner is not None and owner[0] == get_ident()

    def current_in_fork(self) -> dict[str, Any]:
        """As `current`, in a forked child, which has a copy of this buffer as it was in that moment: other threads may have been
        inside, and are not here to leave it."""
        return (self._seen_from_inside(None) if self._inside else self._view).copy_value()

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
        # In the order in which operations move on, and each of these moves puts them into the next place before it takes them out of
        # the last one. So none is overlooked, whatever other threads do meanwhile.
        return (
            bool(self._line)
            or self._in_hand is not None
            or bool(self._pending)
            or bool(self._waiting)
            or self._in_flight is not None
        )

    @property
    def unacknowledged_count(self) -> int:
        """How many operations the server has not acknowledged, as far as they were not merged."""
        in_flight = self._in_flight
        sent = [*(in_flight.changes if in_flight is not None else ()), *self._waiting]
        late = [_as_late(item) for item in list(self._line) if isinstance(item, _Late | _LateSum)]
        return (
            sum(len(change.operations) for change in sent)
            + sum(map(len, list(self._pending.values())))
            + sum(len(item.operations) for item in late)
        )

    @property
    def needs_refresh(self) -> bool:
        """True while steps of the own document are known to be missing. A report, even an empty one, brings them: its answer starts
        from `version`."""
        return self._has_lost_track or bool(self._stash) or len(self._sent) > (self._in_flight is not None)

    def next_batch(self, *, anyway: bool = False, patience_seconds: float = PATIENCE_SECONDS) -> Batch | None:
        """The next batch to send; None when there is nothing to send.

        While a batch is in flight it is that one again, unchanged: a report that failed is sent again as it was.

        Args:
            anyway: give a batch without operations rather than none, for a report that needs a number because it carries log
                lines or the outcome.
        Raises: BufferBusy when another thread has not ended its call in that time.
        """
        found: list[Batch | None] = []
        if not self._do(lambda: found.append(self._in_flight or self._begin_batch(anyway)), patience_seconds):
            raise BufferBusy
        return found[0]

    def divide(self, *, patience_seconds: float = PATIENCE_SECONDS) -> Batch | None:
        """The batch in flight with the first half of its operations, because the server does not take it as it is: it has applied
        nothing of it. The rest goes with the next batches. None when there is only one operation in it, or none.

        Raises: BufferBusy when another thread has not ended its call in that time.
        """
        found: list[Batch | None] = []
        if not self._do(lambda: found.append(self._divide()), patience_seconds):
            raise BufferBusy
        return found[0]

    def acknowledged(
        self, sequence: int, *, refused: Sequence[Refused] = (), delta: MetadataDelta | None = None
    ) -> None:
        """The server has answered the report with batch `sequence`, 0 for a report without one. Safe to repeat.

        Args:
            refused: the operations of the batch that were not applied.
            delta: what brings the own document from the version of the report to the newest.
        """
        self._do_now_or_next(partial(self._acknowledge, sequence, refused, delta))

    def failed(self, sequence: int) -> None:
        """The report of batch `sequence` got no answer. It stays in flight: `next_batch` offers it again."""
        assert self._in_flight is None or self._in_flight.sequence >= sequence, (self._in_flight, sequence)

    def apply_delta(self, delta: MetadataDelta) -> None:
        """Take what others wrote to the own document (M42, M66). Deltas may come twice, overlapping and out of order."""
        self._do_now_or_next(partial(self._take_deltas, delta, 0))

    def adopt(self, value: dict[str, Any], version: int, *, holds_until: int) -> bool:
        """Take the whole own document as the server has it; what is not acknowledged is kept on top of it (M43).

        Args:
            holds_until: `acknowledged_sequence` as it was before the server was asked.
        Returns: False when it has to wait until a batch is acknowledged, because nobody can tell whether it holds that one.
        """
        delta = MetadataDelta(self._run_id, 0, version, metadata=value)
        self._do_now_or_next(partial(self._take_delta, delta, holds_until=holds_until))
        return self._base.version >= version

    def take_remarks(self) -> list[str]:
        """What the run's log should say of operations that were refused here and never sent, since this was last asked."""
        refused, self._refused_here = self._refused_here, {}
        return [f"{count:,} metadata operations were refused: {reason}" for reason, count in refused.items()]

    # --- getting in ----------------------------------------------------------------------------------------

    def _gets_in(self, ticket: _Ticket, seconds: float) -> bool:
        """Wait until this call is the one inside; False after `seconds`, and when this thread is there already, up its stack."""
        inside = self._inside
        ends_at: float | None = None
        pause = PAUSE_SECONDS_MIN
        while True:
            owner = inside.setdefault(_INSIDE, ticket)
            if owner is ticket:
                return True
            if owner[0] == ticket[0]:
                return False
            now = time.monotonic()
            if ends_at is None:
                ends_at = now + seconds
            if now >= ends_at:
                return False
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    def _do(self, work: Callable[[], object], seconds: float) -> bool:
        """Do this inside; False when somebody else is there, another thread for `seconds` or this one further up its stack."""
        inside = self._inside
        ticket = (get_ident(),)
        try:
            if inside.setdefault(_INSIDE, ticket) is not ticket and not self._gets_in(ticket, seconds):
                return False
            if self._is_behind:
                self._catch_up()
            work()
            return True
        except BaseException as error:
            # No call before this is noted: the stack may have come to its end.
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._is_torn = self._is_behind = True
                if _is_refusal(error):
                    self._is_torn = False
            raise
        finally:
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                self._view_is_changing = False
                del inside[_INSIDE]

    def _do_now_or_next(self, work: Callable[[], None]) -> None:
        """Do this now, or as soon as somebody gets in."""
        if self._do(work, 0.0 if self._line else LINK_PATIENCE_SECONDS):
            return
        if len(self._line) < LINE_MAX:
            self._line.append(work)
            self._is_behind = True
        else:
            # The next report asks for what is lost here.
            self._has_lost_track = True

    def _read(self, look: Callable[..., Any], *arguments: Any) -> Any:
        inside = self._inside
        ticket = (get_ident(),)
        try:
            if inside.setdefault(_INSIDE, ticket) is ticket or self._gets_in(ticket, PATIENCE_SECONDS):
                if self._is_behind:
                    self._catch_up()
                return look(self._view, *arguments)
            if not self.is_interrupted_here:
                document = self._view.copy()
            elif arguments:
                document = self._seen_from_inside({parse(arguments[0])[0]})
            else:
                document = self._seen_from_inside(None)
        finally:
            if _INSIDE in inside and inside[_INSIDE] is ticket:
                del inside[_INSIDE]
        return look(document, *arguments)

    def _seen_from_inside(self, names: Collection[Segment] | None) -> Document:
        """The own document as code sees it that has interrupted another call of its thread: without what that call is about to do, and
        with what has been put in line since.

        Args:
            names: what is of interest at the top level; None for everything.
        """
        source = self._base if self._view_is_changing else self._view
        counted = self._known_ids if self._view_is_changing else source.counted
        value = source.value
        if names is not None:
            value = {name: value[name] for name in names if isinstance(name, str) and name in value}
        document = Document(value, limit=sys.maxsize, counted=counted)
        operations: list[Operation] = self._own_unacknowledged() if self._view_is_changing else []
        for operation in operations:
            _apply_part(document, (operation,), names)
        for late in self._late():
            if late.run_id == self._run_id:
                _apply_part(document, late.operations, names)
        document.limit = max(0, self._limit - (source.size - len(encode(value))))
        return document

    def _late(self) -> list[_Late]:
        """What the view does not have yet of what is in line, from inside."""
        late = [_as_late(item) for item in list(self._line) if isinstance(item, _Late | _LateSum)]
        if self._in_hand is not None and (self._view_is_changing or not self._in_hand_is_seen):
            late.insert(0, self._in_hand)
        return late

    def _add_later(self, run_id: str, operations: Sequence[Operation]) -> bool:
        if not self.is_interrupted_here:
            return self._put_in_line(run_id, operations)
        if len(operations) == 1 and self._joins_line(run_id, operations[0]):
            return True
        if run_id == self._run_id and len(self._line) <= LINE_CHECKED_MAX:
            try:
                self._seen_from_inside(_names_of(operations)).apply_all(operations)
            except MetadataTypeError:
                if len(operations) > 1 or type(operations[0]) is not Remove:
                    raise
        return self._put_in_line(run_id, operations)

    def _joins_line(self, run_id: str, operation: Operation) -> bool:
        """Add to an increment that is in line already, past other increments only. So a collector that frees a million objects in the
        middle of one call, each with a finalizer that counts, takes one place in the line."""
        if type(operation) is not Increment or type(operation.value) is not int or operation.once is not None:
            return False
        for place in range(-1, -1 - min(len(self._line), LINE_LOOK_BACK), -1):
            item = self._line[place]
            if not isinstance(item, _LateSum):
                return False
            if item.run_id == run_id and item.key == operation.key:
                item.amounts.append(operation.value)
                return True
        return False

    def _put_in_line(self, run_id: str, operations: Sequence[Operation]) -> bool:
        if len(self._line) < LINE_MAX:
            self._line.append(_late_of(run_id, operations))
            self._is_behind = True
            return True
        message = f"{LINE_MAX:,} calls came while another call was interrupted, and no more are taken"
        self._refuse(run_id, operations, "metadata_backlog_full", message)
        return False

    def _catch_up(self) -> None:
        """Mend what is torn, and do what is in line: first come, first served. What comes meanwhile is left to the next call."""
        # A trace function sees this work too. One that calls metadata at each line would make more of it than is done here.
        tracing, profiling = sys.gettrace(), sys.getprofile()
        if tracing is not None or profiling is not None:
            sys.settrace(None)
            sys.setprofile(None)
        try:
            self._catch_up_unseen()
        finally:
            if tracing is not None or profiling is not None:
                sys.settrace(tracing)
                sys.setprofile(profiling)

    def _catch_up_unseen(self) -> None:
        line = self._line
        if self._is_torn:
            self._mend()
        # Until the end it is, in case that something is raised.
        self._is_torn = True
        for _ in range(len(line)):
            item = line[0]
            if isinstance(item, _Late | _LateSum):
                self._in_hand_is_seen = False
                self._in_hand = _as_late(item)
                line.popleft()
                # Once more: until it was out of the line, it may have grown.
                self._in_hand = late = _as_late(item)
                self._take_late(late.run_id, late.operations)
                self._in_hand = None
            else:
                # If this fails, what the server has said is lost here; the next report asks for it again.
                lost_track, self._has_lost_track = self._has_lost_track, True
                line.popleft()
                item()
                self._has_lost_track = lost_track and self._has_lost_track
        self._is_torn = self._is_behind = False
        if line:
            self._is_behind = True

    def _take_late(self, run_id: str, operations: Sequence[Operation]) -> None:
        pending = self._pending.get(run_id)
        if not self._takes(run_id, pending, operations):
            return
        if run_id == self._run_id:
            self._view_is_changing = True
            try:
                self._view.apply_all(operations)
            except MetadataError as error:
                # The call cannot raise it any more. The server says it, and the run's log; but what goes together must not go in part.
                if len(operations) > 1:
                    self._refuse(run_id, operations, error.code, error.message)
                    return
                self._view_is_partial = True
            finally:
                self._in_hand_is_seen = True
                self._view_is_changing = False
        self._add_pending(run_id, operations)

    def _mend(self) -> None:
        """Put in order what an error has left half done that came in between: from the end of the stack, or from a signal handler.
        What was being added is added as a whole or not at all."""
        if self._in_hand is not None and not self._in_hand_is_seen:
            self._line.appendleft(self._in_hand)
        self._in_hand = None
        unfinished = self._unfinished
        for run_id, torn in list(self._pending.items()):
            mended = self._new_pending(run_id)
            try:
                operations = torn.operations
                if unfinished is not None and unfinished.run_id == run_id and len(unfinished.operations) > 1:
                    there = {id(operation) for operation in operations}
                    operations += [one for one in unfinished.operations if id(one) not in there]
                for operation in operations:
                    mended.add(operation)
            except RecursionError:
                raise
            except Exception:  # cut off in the middle of merging: what it held cannot be told any more
                message = "an error that was raised in the middle of a metadata call has destroyed them"
                self._refused_here[message] = self._refused_here.get(message, 0) + len(torn)
                self._note_refused(RefusedChange(run_id, None, "metadata_interrupted", message))
            self._pending[run_id] = mended
        self._unfinished = None
        self._rebuild_view()

    # --- inside --------------------------------------------------------------------------------------------

    def _takes(self, run_id: str, pending: Pending | None, operations: Sequence[Operation]) -> bool:
        """Whether there is room for these beside what waits for the same document, or none is needed; if not, they are refused."""
        if pending is not None:
            held = pending.size_bytes
        elif run_id == self._run_id or len(self._pending) < DOCUMENTS_MAX:
            held = 0
        else:
            message = f"updates of {DOCUMENTS_MAX:,} documents wait for the server, and no further document is taken"
            self._refuse(run_id, operations, "metadata_backlog_full", message)
            return False
        if self._waiting_bytes:
            held += self._waiting_bytes.get(run_id, 0)
        if held <= self._backlog_bytes_max:
            return True
        if pending is not None and all(pending.absorbs(operation) for operation in operations):
            return True
        message = f"{self._backlog_bytes_max:,} bytes of updates of one document wait for the server, and no more are taken"
        self._refuse(run_id, operations, "metadata_backlog_full", message)
        return False

    def _add_pending(self, run_id: str, operations: Sequence[Operation]) -> bool:
        """Put operations behind what waits for this document; True when nothing has waited for any."""
        pending = self._pending.get(run_id)
        if pending is not None:
            self._unfinished = _Late(run_id, operations)
            for operation in operations:
                pending.add(operation)
            self._unfinished = None
            return False
        was_clean = not self._pending
        pending = self._new_pending(run_id)
        for operation in operations:
            pending.add(operation)
        self._pending[run_id] = pending
        return was_clean

    def _new_pending(self, run_id: str) -> Pending:
        return Pending(merges=self._merges_others or run_id == self._run_id)

    def _refuse(self, run_id: str, operations: Sequence[Operation], code: str, message: str) -> None:
        """Refuse operations here, before the server sees them: flush tells each of them, the run's log how many there were."""
        self._refused_here[message] = self._refused_here.get(message, 0) + len(operations)
        for operation in operations:
            self._note_refused(RefusedChange(run_id, to_builtins(operation), code, message))

    def _begin_batch(self, anyway: bool) -> Batch | None:
        if not self._waiting and self._pending:
            self._rounds_taken += 1
            self._waiting_bytes = {run_id: pending.size_bytes for run_id, pending in self._pending.items()}
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
        changes, left = cut(self._waiting)
        self._waiting_bytes = {change.run: self._waiting_bytes[change.run] for change in left}
        self._sequence += 1
        own = _operations_for(self._run_id, changes)
        if own:
            self._sent[self._sequence] = list(own)
        is_last = not left and not self._pending and not self._line
        self._in_flight = batch = Batch(self._sequence, changes, is_last)
        self._waiting = left
        return batch

    def _divide(self) -> Batch | None:
        batch = self._in_flight
        count = 0 if batch is None else sum(len(change.operations) for change in batch.changes)
        if batch is None or count < 2:
            return None
        changes, rest = halve(batch.changes, count // 2)
        for change in rest:
            self._waiting_bytes.setdefault(change.run, 0)
        own = _operations_for(self._run_id, changes)
        if own:
            self._sent[batch.sequence] = list(own)
        else:
            self._sent.pop(batch.sequence, None)
        self._in_flight = divided = Batch(batch.sequence, changes, is_last=False)
        self._waiting = [*rest, *self._waiting]
        return divided

    def _acknowledge(self, sequence: int, refused: Sequence[Refused], delta: MetadataDelta | None) -> None:
        batch = self._in_flight
        if batch is not None and batch.sequence == sequence:
            # First what was refused: whoever sees that nothing is in flight any more asks for it.
            for item in refused:
                self._note_refused(refused_change(item))
            if not self._waiting:
                self._rounds_acknowledged = self._rounds_taken
            self._in_flight = None
            self._drop_refused(sequence, [item.index for item in refused if item.run == self._run_id])
        # The answer was given after the commit, so a whole document in it holds the batch and all before it.
        self._take_deltas(delta, self._sequence if self._in_flight is None else 0)

    def _take_deltas(self, delta: MetadataDelta | None, holds_until: int) -> None:
        if delta is not None:
            self._take_delta(delta, holds_until=holds_until)
        self._take_stashed()

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
        self._view_is_changing = True
        try:
            self._view.apply_all(foreign)
        except MetadataError:
            return False
        finally:
            self._view_is_changing = False
        return True

    def _rebuild_view(self) -> None:
        self._view, self._view_is_partial = self._computed_view()

    def _computed_view(self) -> tuple[Document, bool]:
        """The view as it follows from what the server has taken and what it has not, and whether something of it did not apply."""
        view, is_partial = self._copy_of_base(), False
        for operation in self._own_unacknowledged():
            try:
                view.apply(operation)
            except MetadataError:
                # What others wrote came before it. The server will say whether it refuses it.
                is_partial = True
        return view, is_partial

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


def _late_of(run_id: str, operations: Sequence[Operation]) -> _Late | _LateSum:
    first = operations[0]
    if len(operations) == 1 and type(first) is Increment and type(first.value) is int and first.once is None:
        return _LateSum(run_id, first.key, [first.value])
    return _Late(run_id, operations)


def _as_late(item: _Late | _LateSum) -> _Late:
    if isinstance(item, _Late):
        return item
    return _Late(item.run_id, (Increment(item.key, sum(item.amounts)),))


def _names_of(operations: Iterable[Operation]) -> set[Segment] | None:
    """The names at the top level that operations touch; None for all."""
    names: set[Segment] = set()
    for operation in operations:
        if isinstance(operation, Update):
            return None
        names.add(parse(operation.key)[0])
    return names


def _apply_part(
    document: Document, operations: Sequence[Operation], names: Collection[Segment] | None
) -> None:
    """Apply operations to a document of which only these names are there, as far as they can be."""
    touched = _names_of(operations)
    if names is not None and touched is not None and touched.isdisjoint(names):
        return
    with suppress(MetadataError):
        document.apply_all(operations)


def _is_refusal(error: BaseException) -> bool:
    """True when the model has refused the operation, and has left everything as it was. An error of the same class that a signal
    handler raises in the middle, by a metadata call of its own for example, has come through other frames."""
    if not isinstance(error, MetadataError):
        return False
    place = error.__traceback__.tb_next if error.__traceback__ is not None else None
    while place is not None:
        if not place.tb_frame.f_globals.get("__name__", "").startswith("milepost.model."):
            return False
        place = place.tb_next
    return True


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
