"""Following a run: frames in, states out. Nothing here does I/O; `connection` drives it.

A connection begins with a snapshot, and deltas lead on from it by version. A delta that does not continue what is here means
that something was missed: the loop connects anew and gets a snapshot. The same holds after a broken connection, so a subscriber
may lose it at any time and still ends with the newest state (M82).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from milepost.client.calls import Feed, unreadable
from milepost.client.retries import Patience
from milepost.client.run import Run, WholeRun, run_from_wire
from milepost.errors import MetadataError, MilepostError
from milepost.model.document import Document
from milepost.model.operations import Operation
from milepost.protocol.feed import BatchFrame, EventReader, MatchingRunFrame
from milepost.protocol.runs import RunSummary

StateT = TypeVar("StateT")
StateT_co = TypeVar("StateT_co", covariant=True)


class Gap(MilepostError):
    """A frame does not continue what is here."""

    def __init__(self) -> None:
        super().__init__("the server's feed left out a change, again after connecting anew")


class Follower(Protocol[StateT_co]):
    """Turns the events of one feed into states."""

    @property
    def has_ended(self) -> bool:
        """True when nothing will follow."""
        ...

    def take(self, event: str, data: bytes) -> None:
        """Take one event. Raises Gap."""
        ...

    def newest(self) -> StateT_co | None:
        """A state after all that was taken; None when there is none that this has not given."""
        ...


class _Frame(msgspec.Struct, rename="camel"):
    version: int
    from_version: int | None = None
    operations: list[Operation] = []
    run: dict[str, msgspec.Raw] | None = None


class _Delta(msgspec.Struct, rename="camel"):
    """`RunDelta` for reading."""

    id: str
    version: int
    from_version: int | None = None
    operations: list[Operation] = []
    run: dict[str, msgspec.Raw] = {}
    matches: bool = True


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_delta = msgspec.json.Decoder(_Delta).decode
_decode_run = msgspec.json.Decoder(WholeRun).decode
_decode_batch = msgspec.json.Decoder(BatchFrame).decode
_decode_match = msgspec.json.Decoder(MatchingRunFrame).decode
_decode_summary = msgspec.json.Decoder(RunSummary).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_EMPTY = msgspec.Raw(b"{}")
_NULL = msgspec.Raw(b"null")
# They differ between two snapshots of a run that has not changed otherwise.
_CLOCKS = frozenset({"updatedAt", "durationMs"})


class RunFollower:
    """The newest state of one run."""

    def __init__(self) -> None:
        self.has_ended = False
        self._fields: dict[str, msgspec.Raw] = {}
        self._document = Document(counted=None)
        self._shown: dict[str, msgspec.Raw] | None = None

    def take(self, event: str, data: bytes) -> None:
        """Take a `snapshot`, a `delta` or the `end`; a later server may say more, which is passed over."""
        if event == "snapshot":
            self._begin(_decode_frame(data))
        elif event == "delta":
            self._continue(_decode_frame(data))
        elif event == "end":
            self.has_ended = True

    def newest(self) -> Run | None:
        """The run as it is now; None when it has not changed since this was last asked."""
        if not self._fields:
            return None
        self._fields["metadataVersion"] = msgspec.Raw(str(self._document.version).encode())
        state = {name: value for name, value in self._fields.items() if name not in _CLOCKS}
        if state == self._shown:
            return None
        self._shown = state
        return run_from_wire(_decode_run(_encode(self._fields)), self._document.copy_value())

    def _begin(self, frame: _Frame) -> None:
        assert frame.run is not None, "a snapshot holds the run"
        self._fields = dict(frame.run)
        # The document is limited where it is written, not here.
        self._document = Document.load(
            bytes(self._fields["metadata"]), version=frame.version, limit=sys.maxsize, counted=None
        )
        # Neither is shown, so neither is read again with every delta.
        self._fields |= {"metadata": _EMPTY, "relatedRuns": _EMPTY}

    def _continue(self, frame: _Frame) -> None:
        if frame.operations or frame.from_version is not None:
            if frame.from_version != self._document.version:
                raise Gap
            _apply(frame.operations, self._document)
            self._document.version = frame.version
        _change(self._fields, frame.run or {})


def _apply(operations: list[Operation], document: Document) -> None:
    """Apply what the server has applied. Raises Gap where it cannot be applied to what is here."""
    try:
        document.apply_all(operations)
    except MetadataError:
        raise Gap from None


def _change(fields: dict[str, msgspec.Raw], changed: dict[str, msgspec.Raw]) -> None:
    for name, value in changed.items():
        if value == _NULL:
            fields.pop(name, None)
        else:
            fields[name] = value


class BatchFollower:
    """How far a batch is."""

    def __init__(self) -> None:
        self.has_ended = False
        self._newest: BatchFrame | None = None

    def take(self, event: str, data: bytes) -> None:
        """Take the counts of a `batch`, or the `end`."""
        if event == "batch":
            self._newest = _decode_batch(data)
        elif event == "end":
            self.has_ended = True

    def newest(self) -> BatchFrame | None:
        """The newest counts; None when there are none since this was last asked."""
        newest, self._newest = self._newest, None
        return newest


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """Which state of a run was given last."""

    version: int
    status: str
    attempt: int
    updated_at: datetime

    def precedes(self, later: _Seen) -> bool:
        """True when the other is a newer state, not the same one or an older one that was under way for longer."""
        return (
            later.version >= self.version
            and later.updated_at >= self.updated_at
            and (later.version, later.status, later.attempt) != (self.version, self.status, self.attempt)
        )


class _Held:
    """A run whose changes come as deltas: its newest state, as JSON, and the operations that have not been applied to it yet.

    Kept as text: as Python values documents take several times as much memory, and most of them do not change most of the time.
    """

    __slots__ = ("_changed", "_document", "_fields", "_operations", "_version", "is_followed")

    def __init__(self, run: RunSummary) -> None:
        # False when no delta will come: it is here until it has been given.
        self.is_followed = True
        self._document = bytes(run.metadata)
        self._version = run.metadata_version
        run.metadata = _EMPTY
        self._fields = _encode(run)
        self._operations: list[Operation] = []
        self._changed: dict[str, msgspec.Raw] = {}

    def continue_by(self, delta: _Delta) -> None:
        """Take a delta. Raises Gap when it does not continue what is here."""
        if delta.from_version is not None:
            if delta.from_version != self._version:
                raise Gap
            self._operations += delta.operations
            self._version = delta.version
        self._changed |= delta.run

    def newest(self) -> tuple[RunSummary, dict[str, Any]]:
        """The run as it is now, and its document, which is the caller's own. Raises Gap."""
        if self._changed:
            fields = _decode_fields(self._fields)
            _change(fields, self._changed)
            self._fields = _encode(fields)
            self._changed = {}
        run = _decode_summary(self._fields)
        run.metadata_version = self._version
        # The document is limited where it is written, not here.
        document = Document.load(self._document, limit=sys.maxsize)
        if self._operations:
            _apply(self._operations, document)
            self._operations = []
            self._document = document.encode()
        return run, document.value


class MatchFollower:
    """The newest states of all runs that match a filter: runs, and ids of runs that may have left it while the connection was broken.

    Whoever drives this asks for these runs and hands them to `catch_up`. As many documents are kept as the server says, see
    `MatchingRunFrame`.
    """

    has_ended = False

    def __init__(self) -> None:
        # Of the runs that match: what was given.
        self._matching: dict[str, _Seen] = {}
        # Runs with a newer state that waits to be given, in order, and whether they match.
        self._waiting: dict[str, bool] = {}
        # The newest state of each run that deltas may follow, or that waits.
        self._held: dict[str, _Held] = {}
        # Runs that this connection has not told of yet; None once it has told of all that match.
        self._unheard: set[str] | None = None
        self._missed: list[str] = []
        # Of the runs that were asked for: what was given. They may match again, and this connection would tell of the same state.
        self._caught_up: dict[str, _Seen] = {}

    def take(self, event: str, data: bytes) -> None:
        """Take `begin`, a `run`, a `delta`, a `forget`, or that all that match are `present`; a later server may say more, which is
        passed over. Raises Gap."""
        if event == "begin":
            self._unheard = set(self._matching)
            self._caught_up.clear()
            # This connection tells of every run as a whole first.
            for run_id in list(self._held):
                self._forget(run_id)
        elif event == "run":
            frame = _decode_match(data)
            assert frame.run is not None, "the frame of a run holds it"
            self._held[frame.run.id] = _Held(frame.run)
            self._await(frame.run.id, matches=frame.matches)
        elif event == "delta":
            delta = _decode_delta(data)
            held = self._held.get(delta.id)
            if held is None:
                raise Gap
            held.continue_by(delta)
            self._await(delta.id, matches=delta.matches)
        elif event == "forget":
            for run_id in _decode_match(data).ids:
                self._forget(run_id)
        elif event == "present" and self._unheard is not None:
            self._missed += sorted(self._unheard)
            self._unheard = None

    def _forget(self, run_id: str) -> None:
        if run_id in self._waiting:
            self._held[run_id].is_followed = False
        else:
            self._held.pop(run_id, None)

    def _await(self, run_id: str, *, matches: bool) -> None:
        # At the end of the line: it has moved on.
        self._waiting.pop(run_id, None)
        self._waiting[run_id] = matches
        if self._unheard is not None:
            self._unheard.discard(run_id)

    def newest(self) -> Run | str | None:
        """The next run that has a newer state, or the id of one that is to be asked for; None when there is none. Raises Gap."""
        while self._waiting:
            run_id = next(iter(self._waiting))
            matches = self._waiting.pop(run_id)
            held = self._held[run_id]
            wire, document = held.newest()
            if not matches or wire.status.is_final or not held.is_followed:
                del self._held[run_id]
            state = _Seen(wire.metadata_version, wire.status, wire.attempt_count, wire.updated_at)
            before = self._matching.get(run_id)
            if matches:
                before = before or self._caught_up.pop(run_id, None)
                if before is None or before.precedes(state):
                    self._matching[run_id] = state
                    return run_from_wire(wire, document)
                self._matching[run_id] = before
            elif before is not None:
                del self._matching[run_id]
                return run_from_wire(wire, document)
        return self._missed.pop() if self._missed else None

    def catch_up(self, run: Run) -> Run | None:
        """A run that was asked for. It is given once more, unless it has been heard of meanwhile or is as it was."""
        before = self._matching.pop(run.id, None)
        if before is None:
            return None
        state = _Seen(run.metadata_version, run.status, run.attempt_count, run.updated_at)
        is_newer = before.precedes(state)
        self._caught_up[run.id] = state if is_newer else before
        return run if is_newer else None


class Following(Generic[StateT]):
    """One feed over as many connections as it takes: what is opened, and the states that come of it.

    Args:
        feed: or what gives the feed to be opened next, where that depends on how far the follower is.
    """

    def __init__(
        self, feed: Feed | Callable[[], Feed], follower: Follower[StateT], patience: Patience
    ) -> None:
        self.patience = patience
        self._next_feed = feed if callable(feed) else lambda: feed
        self._follower = follower
        self.feed = self._next_feed()
        self._reader = EventReader()

    def open(self) -> Feed:
        """A connection begins: what it opens."""
        self.feed, self._reader = self._next_feed(), EventReader()
        return self.feed

    def take(self, chunk: bytes) -> Iterator[StateT]:
        """The states that there are after these bytes. Raises Gap; what cannot be read is told as that, and not as a server that is
        gone."""
        self.patience.connected()
        for event, data in self._reader.feed(chunk):
            try:
                self._follower.take(event, data)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise unreadable(data, f"GET {self.feed.target}", error) from None
        # A reader that was busy finds several events: it gets the newest state only (M82).
        while True:
            try:
                state = self._follower.newest()
            except (msgspec.MsgspecError, RecursionError) as error:
                raise unreadable(None, f"GET {self.feed.target}", error) from None
            if state is None:
                return
            yield state
