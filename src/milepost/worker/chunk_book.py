"""The chunks of an executor's runs on their way to the server: bookkeeping without I/O, used on the link's thread only.

The user's code adds chunks to an `Outlet`, one for each writer; here they are numbered and gathered into requests, one of which is
under way at a time while the next one gathers. A part stays until the server has answered for it, and is offered again unchanged
until then: by its numbers the server knows what it has. What waits is bounded by the outlets, so nothing here gives way or is left
out.

    Outlet.waiting -> one part of each writer under way -> acknowledged, or the writer is stopped
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from milepost.protocol.streams import CHUNKS_MAX, PartReply, WriterEnd
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import WAITING_BYTES_MAX, Bounds, Outlet

# What may wait of all writers together, about; each may always have the least.
ALL_WAITING_BYTES_MAX = 64 * 1024 * 1024
WAITING_BYTES_MIN = 64 * 1024
# One request, and what a writer may have of it when others wait too.
REQUEST_BYTES_MAX = 2 * 1024 * 1024
SHARE_BYTES_MIN = 16 * 1024

_encode = msgspec.json.Encoder().encode


@dataclass(eq=False, slots=True)
class Writer:
    """What is known of an outlet here.

    Attributes:
        next: the number of the first chunk that was not taken.
        returned: chunks that were taken, and go again under the same numbers.
        is_announced: the server knows of the stream, or will by the part under way.
    """

    outlet: Outlet
    next: int = 0
    returned: deque[bytes] = field(default_factory=deque[bytes])
    is_announced: bool = True


@dataclass(eq=False, slots=True)
class Part:
    """Chunks of one writer that are under way, and its end."""

    writer: Writer
    first: int
    chunks: list[bytes]
    end: WriterEnd | None

    def encode(self) -> bytes:
        """As the request carries it."""
        outlet = self.writer.outlet
        head = _encode(
            {
                "run": outlet.run_id,
                "key": outlet.key,
                "writer": outlet.writer,
                "first": self.first,
                "taken": outlet.is_of_input,
            }
        )
        end = b"" if self.end is None else b',"end":' + _encode(self.end)
        return head[:-1] + b',"chunks":[' + b",".join(self.chunks) + b"]" + end + b"}"


class ChunkBook:
    """The writers of all attempts of an executor."""

    def __init__(self) -> None:
        self._writers: dict[Outlet, Writer] = {}
        self._by_scope: dict[RunScope, dict[Writer, None]] = {}
        self._changed: dict[Writer, None] = {}
        self._under_way: list[Part] = []
        self._bounds = Bounds()
        # Less than `REQUEST_BYTES_MAX` once the server, or what stands before it, did not take a request.
        self._request_bytes_max = REQUEST_BYTES_MAX

    # --- writers ---------------------------------------------------------------------------------------------

    def open(self, outlet: Outlet) -> None:
        """A writer begins."""
        writer = Writer(outlet, is_announced=not outlet.is_announced)
        outlet.bounds = self._bounds
        self._writers[outlet] = writer
        self._by_scope.setdefault(outlet.scope, {})[writer] = None
        self._share_room()
        self._changed[writer] = None

    def add(self, outlet: Outlet) -> None:
        """The outlet has something to send."""
        writer = self._writers.get(outlet)
        if writer is not None:
            self._changed[writer] = None

    def end(self, scope: RunScope) -> None:
        """The user's code of an attempt has ended: its writers add nothing more."""
        for writer in self._by_scope.get(scope, ()):
            writer.outlet.close()

    def is_clear(self, scope: RunScope) -> bool:
        """True when every writer of the attempt has ended and all of it is stored, or never will be."""
        return scope not in self._by_scope

    def stop(self, scope: RunScope, message: str, reason: str) -> None:
        """Nothing of the attempt will be stored any more."""
        for writer in list(self._by_scope.get(scope, ())):
            self._stop(writer, message, reason)

    def stop_all(self, message: str, reason: str) -> None:
        """Nobody takes anything any more."""
        for scope in list(self._by_scope):
            self.stop(scope, message, reason)

    @property
    def is_idle(self) -> bool:
        """True when nothing is under way and nothing can be sent now."""
        return not (self._changed or self._under_way)

    # --- requests --------------------------------------------------------------------------------------------

    def take(self) -> Sequence[Part]:
        """What is to be sent next, the parts of an attempt together; given out again until it is answered."""
        if self._under_way or not self._changed:
            return self._under_way
        share = max(SHARE_BYTES_MIN, self._request_bytes_max // len(self._changed))
        room_bytes, room_chunks = self._request_bytes_max, CHUNKS_MAX
        by_scope: dict[RunScope, list[Part]] = {}
        for writer in list(self._changed):
            if room_bytes <= 0 or room_chunks <= 0:
                break
            # The next request begins with those that have not had their turn.
            del self._changed[writer]
            part = self._take_part(writer, min(share, room_bytes), room_chunks)
            if part is not None:
                by_scope.setdefault(writer.outlet.scope, []).append(part)
                room_bytes -= sum(map(len, part.chunks))
                room_chunks -= len(part.chunks)
            # In this order: whoever adds from now on calls.
            outlet = writer.outlet
            outlet.has_called = False
            says_end = part is not None and part.end is not None
            if outlet.waiting or writer.returned or (outlet.end is not None and not says_end):
                outlet.has_called = True
                self._changed[writer] = None
        self._under_way = [part for parts in by_scope.values() for part in parts]
        return self._under_way

    def _take_part(self, writer: Writer, bytes_max: int, chunks_max: int) -> Part | None:
        """The next chunks of a writer: at least one when there are any. None when there is nothing to say."""
        outlet = writer.outlet
        chunks: list[bytes] = []
        size = 0
        for line in (writer.returned, outlet.waiting):
            while line and len(chunks) < chunks_max:
                if chunks and size + len(line[0]) > bytes_max:
                    break
                chunks.append(line.popleft())
                size += len(chunks[-1])
            if line:
                break
        end: WriterEnd | None = None
        if outlet.end is not None and not (writer.returned or outlet.waiting):
            outlet.end_is_taken = True
            if not outlet.waiting:
                end = outlet.end
        if not chunks and end is None and writer.is_announced:
            return None
        writer.is_announced = True
        part = Part(writer, writer.next, chunks, end)
        writer.next += len(chunks)
        outlet.under_way += len(chunks)
        return part

    def answered(self, part: Part, reply: PartReply) -> None:
        """The server has answered for this part."""
        writer, outlet = part.writer, part.writer.outlet
        if reply.code is not None:
            self._stop(writer, f"stream {outlet.key!r:.100}: {reply.message or reply.code}", reply.code)
            self._under_way.remove(part)
            return
        stored = reply.next - part.first
        if stored < 0:
            message = f"stream {outlet.key!r:.100}: the server has lost chunks that it had stored"
            self._stop(writer, message, "chunk_gap")
        self._under_way.remove(part)
        if outlet.is_stopped:
            return
        left = part.chunks[stored:]
        self._settle(outlet, part.chunks[:stored])
        if left:
            self._return(writer, left)
        elif part.end is not None:
            self._forget(writer)

    def lost(self, part: Part) -> None:
        """The run is no longer this attempt's; see `stop` for all of its writers."""
        self._under_way.remove(part)

    def divide(self, part: Part) -> bool:
        """Leave the first half of the chunks in a part under way that the server does not take; the others go with the next parts.

        Returns: False when it cannot be divided: the server does not take this writer.
        """
        middle = len(part.chunks) // 2
        if part.writer.outlet.is_stopped or not (middle or (part.chunks and part.end)):
            return False
        if middle:
            size = sum(map(len, part.chunks))
            self._request_bytes_max = max(SHARE_BYTES_MIN, min(self._request_bytes_max, size // 2))
            self._return(part.writer, part.chunks[middle:])
            del part.chunks[middle:]
        part.end = None
        self._changed[part.writer] = None
        return True

    def refuse(self, part: Part, message: str, reason: str) -> None:
        """The server does not take this part, and it cannot be divided."""
        self._stop(part.writer, f"stream {part.writer.outlet.key!r:.100}: {message}", reason)
        self._under_way.remove(part)

    def _return(self, writer: Writer, chunks: Sequence[bytes]) -> None:
        writer.returned.extendleft(reversed(chunks))
        writer.next -= len(chunks)
        writer.outlet.under_way -= len(chunks)
        self._changed[writer] = None

    def _settle(self, outlet: Outlet, chunks: Sequence[bytes]) -> None:
        outlet.under_way -= len(chunks)
        outlet.settled_bytes += sum(map(len, chunks))
        if not outlet.waiting and not outlet.under_way:
            # Nothing waits: the count is put right, see `streams_outlet`.
            outlet.settled_bytes = outlet.added_bytes
        outlet.bell.ring()

    def _stop(self, writer: Writer, message: str, reason: str) -> None:
        writer.returned.clear()
        writer.outlet.stop(message, reason)
        self._forget(writer)

    def _forget(self, writer: Writer) -> None:
        self._changed.pop(writer, None)
        if self._writers.pop(writer.outlet, None) is None:
            return
        scope = writer.outlet.scope
        siblings = self._by_scope[scope]
        del siblings[writer]
        if not siblings:
            del self._by_scope[scope]
        self._share_room()

    def _share_room(self) -> None:
        share = ALL_WAITING_BYTES_MAX // max(1, len(self._writers))
        self._bounds.bytes_max = max(WAITING_BYTES_MIN, min(WAITING_BYTES_MAX, share))


def attempts_of(parts: Iterable[Part]) -> list[list[Part]]:
    """The parts of each attempt, which stand together."""
    groups: list[list[Part]] = []
    scope: RunScope | None = None
    for part in parts:
        if part.writer.outlet.scope is not scope:
            scope = part.writer.outlet.scope
            groups.append([])
        groups[-1].append(part)
    return groups


def body_of(parts: Iterable[Part]) -> bytes:
    """The request that carries these parts."""
    return b'{"runs":[' + b",".join(map(_encode_attempt, attempts_of(parts))) + b"]}"


def _encode_attempt(parts: Sequence[Part]) -> bytes:
    run = parts[0].writer.outlet.scope.run
    head = _encode({"id": run.id, "attempt": run.attempt})
    return head[:-1] + b',"parts":[' + b",".join(part.encode() for part in parts) + b"]}"
