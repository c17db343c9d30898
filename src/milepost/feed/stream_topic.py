"""A stream that is being read: what commits have added lately, encoded once for all readers, bounded in bytes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from milepost.engine.announcements import StreamGrown
from milepost.protocol.feed import encode_event
from milepost.protocol.streams import StreamState
from milepost.reading.streams import StreamPage
from milepost.store.streams import ChunkRow

# Frames that are kept for readers who are a little behind.
RECENT_BYTES = 1024 * 1024
EVENT_BYTES = 16 * 1024
# What a reader is given at once, about.
JOINED_BYTES = 64 * 1024
_encode = msgspec.json.Encoder().encode


class _Recent(NamedTuple):
    first_index: int
    next_index: int
    frame: bytes
    rows: Sequence[ChunkRow]


class StreamTopic:
    """A stream that is being read.

    Attributes:
        next_index: how many chunks it has, as far as that is known here.
        state: how it stands; None when that has to be looked up.
        looked_at: when it was last looked up, on the loop's clock.
        changes: how often something was announced that may change the state.
        readings: pages of the store that are being read, by place and size.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name
        self.watchers: set[asyncio.Event] = set()
        self.next_index = 0
        self.state: tuple[StreamState, str | None] | None = None
        self.changes = 0
        self.looked_at = 0.0
        self.readings: dict[tuple[int, int], asyncio.Future[StreamPage]] = {}
        self._recent: deque[_Recent] = deque()
        self._recent_bytes = 0

    def take_in(self, grown: StreamGrown) -> None:
        """A commit has added chunks, or a writer has ended."""
        if grown.rows:
            first = grown.rows[0].first_index
            if self._recent and self._recent[-1].next_index != first:
                # An announcement got lost: the chunks between are in the store.
                self._recent.clear()
                self._recent_bytes = 0
            frame = frame_of(grown.rows, first)
            self._recent.append(_Recent(first, grown.next_index, frame, grown.rows))
            self._recent_bytes += len(frame)
            while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
                self._recent_bytes -= len(self._recent.popleft().frame)
        self.next_index = max(self.next_index, grown.next_index)
        if grown.has_ended or self.state is None or self.state[0] is not StreamState.OPEN:
            self.may_have_changed()
        else:
            self._tell()

    def may_have_changed(self) -> None:
        """Something has happened that may have ended the stream."""
        self.state = None
        self.changes += 1
        self._tell()

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    def learn(self, page: StreamPage, *, is_newest: bool = True) -> None:
        """A reading of the store has found this. `is_newest`: nothing was announced while it was under way."""
        self.next_index = max(self.next_index, page.next_index)
        if is_newest:
            self.state = page.state, page.error

    def after(self, position: int) -> tuple[bytes, int] | None:
        """What comes next for a reader who has everything before a place, and where it is afterwards; None when it is not at hand."""
        if not self._recent or not self._recent[0].first_index <= position < self._recent[-1].next_index:
            return None
        frames: list[bytes] = []
        size = 0
        for recent in self._recent:
            if position >= recent.next_index:
                continue
            if size > JOINED_BYTES:
                break
            frame = recent.frame if position == recent.first_index else frame_of(recent.rows, position)
            frames.append(frame)
            size += len(frame)
            position = recent.next_index
        return b"".join(frames), position


def frame_of(rows: Sequence[ChunkRow], start: int) -> bytes:
    """`batch` events with the chunks of these rows from an index on.

    Several of bounded size: a reader whose connection breaks in the middle has what came before, and comes back for the rest only.
    """
    events: list[bytes] = []
    records: list[bytes] = []
    size = 0
    index = start
    for row in rows:
        index = max(start, row.first_index)
        tail = b',"headers":[],"timestamp":%d}' % (row.at // 1000)
        attempt = b',"attempt":%d}' % row.attempt
        for text in row.texts(start):
            if size > EVENT_BYTES:
                events.append(_event(records, index - 1))
                records, size = [], 0
            body = b'{"data":%b,"id":"%d"%b' % (text, index, attempt)
            record = b'{"seq_num":%d,"body":%b%b' % (index, _encode(body.decode()), tail)
            records.append(record)
            size += len(record)
            index += 1
    events.append(_event(records, index - 1))
    return b"".join(events)


def _event(records: Sequence[bytes], last_index: int) -> bytes:
    return b"id: %d\n" % last_index + encode_event("batch", b'{"records":[%b]}' % b",".join(records))
