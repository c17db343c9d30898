"""Reading a stream: its chunks in order, from any index, live or later; a lost connection is taken up again where it broke."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import msgspec

from milepost.client import calls
from milepost.client.calls import Feed
from milepost.client.connection import Connection
from milepost.client.shape import Shape, shape_of
from milepost.client.subscription import Gap
from milepost.errors import InvalidRequestError, MetadataValueError, UnavailableError, UsageError
from milepost.model.names import check_name
from milepost.model.typed import Misfit
from milepost.protocol.streams import BYTES_KEY, KEY_CHARACTERS_MAX, StreamState

ValueT = TypeVar("ValueT")

INDEX_MAX = 10**18


class _Body(msgspec.Struct):
    data: msgspec.Raw
    attempt: int = 0


class _Record(msgspec.Struct):
    seq_num: int
    body: str


class _Batch(msgspec.Struct):
    records: list[_Record]


class _Begin(msgspec.Struct):
    next: int


class _End(msgspec.Struct):
    state: str
    error: str | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_begin = msgspec.json.Decoder(_Begin).decode
_decode_end = msgspec.json.Decoder(_End).decode
_decode_value = msgspec.json.Decoder().decode


class StreamChunk(msgspec.Struct):
    """A chunk as it came: its JSON, and where it stands."""

    index: int
    attempt: int
    text: bytes


class ChunkFollower:
    """The chunks of one stream in order, each once, over as many connections as it takes.

    Attributes:
        position: the index of the next chunk; None while it is not known, because only what comes from now on is wanted.
        state: how the stream has ended; None before that.
    """

    def __init__(self, position: int | None) -> None:
        self.position = position
        self.has_ended = False
        self.state: StreamState | None = None
        self.error: str | None = None
        self._waiting: deque[StreamChunk] = deque()

    def take(self, event: str, data: bytes) -> None:
        """Take an event. Raises Gap; UnavailableError when the server says that it cannot go on."""
        if event == "batch":
            for record in _decode_batch(data).records:
                if self.position is None:
                    self.position = record.seq_num
                if record.seq_num > self.position:
                    raise Gap
                if record.seq_num == self.position:
                    body = _decode_body(record.body)
                    self._waiting.append(StreamChunk(record.seq_num, body.attempt, bytes(body.data)))
                    self.position += 1
        elif event == "begin":
            if self.position is None:
                self.position = _decode_begin(data).next
        elif event == "error":
            raise UnavailableError("the server cannot go on with the stream")
        elif event == "end":
            end = _decode_end(data)
            self.state, self.error = StreamState(end.state), end.error
            self.has_ended = True

    @property
    def given_index(self) -> int:
        """The index of the last chunk that was given."""
        return -1 if self.position is None else self.position - len(self._waiting) - 1

    def give_back(self, chunk: StreamChunk) -> None:
        """The chunk that was given last could not be handed on: it comes again."""
        self._waiting.appendleft(chunk)

    def newest(self) -> StreamChunk | None:
        """The next chunk; None when it has not come."""
        return self._waiting.popleft() if self._waiting else None


class StreamReader(Generic[ValueT]):
    """The values of a stream, for `for` or `async for`, until it has ended.

    Attributes:
        run_id: the run that the stream belongs to.
        key: its key.
        attempt: the attempt of the run that wrote that value; 0 for a writer from outside.
    """

    def __init__(
        self, connection: Connection, run_id: str, key: str, position: int | None, kind: Any
    ) -> None:
        self.run_id = run_id
        self.key = key
        self.attempt = 0
        self._connection = connection
        self._shape: Shape[Any] | None = None if kind is None else shape_of(kind)
        self._follower = ChunkFollower(position)

    @property
    def index(self) -> int:
        """The index of the value that was given last. Before the first one it is that before the beginning, and -1 while a reader of
        what is new does not know yet where that is."""
        return self._follower.given_index

    @property
    def state(self) -> StreamState:
        """How the stream stands, as far as it was read: `open`, `ended`, or `failed` when its source has failed."""
        return self._follower.state or StreamState.OPEN

    @property
    def error(self) -> str | None:
        """Why the source of the stream has failed; None unless it has."""
        return self._follower.error

    def __iter__(self) -> Iterator[ValueT]:
        for chunk in self._connection.follow(self._feed, self._follower):
            yield self._value(chunk)

    async def __aiter__(self) -> AsyncIterator[ValueT]:
        async for chunk in self._connection.afollow(self._feed, self._follower):
            yield self._value(chunk)

    def _feed(self) -> Feed:
        return calls.read_stream(self.run_id, self.key, start=self._follower.position)

    def _value(self, chunk: StreamChunk) -> ValueT:
        self.attempt = chunk.attempt
        shape = self._shape
        if shape is None:
            return cast("ValueT", value_of(_decode_value(chunk.text)))
        try:
            return cast("ValueT", shape.read(chunk.text))
        except Misfit as misfit:
            place = f"chunk {chunk.index:,} of stream {self.key!r}"
            raise MetadataValueError(f"{place} does not fit its type: {misfit.describe('value')}") from None

    def __repr__(self) -> str:
        return f"<stream {self.key!r} of run {self.run_id}, read up to index {self.index:,}>"


def value_of(value: Any) -> Any:
    """A chunk as Python has it: bytes that travelled as base64 are bytes again."""
    members = cast("dict[str, Any] | None", value if type(value) is dict else None)
    text = members.get(BYTES_KEY) if members is not None and len(members) == 1 else None
    if type(text) is str:
        with suppress(binascii.Error):
            return base64.b64decode(text, validate=True)
    return cast("Any", value)


def reader(
    connection: Connection, run_id: str, key: str, start: int, kind: Any, from_latest: bool
) -> StreamReader[Any]:
    """See `Streams.read`. Raises UsageError for an index that is none, InvalidRequestError for a key that is none."""
    if not isinstance(cast("Any", key), str):
        raise InvalidRequestError(f"the key of a stream is text, not {type(key).__name__}", field="key")
    check_name(key, "the key of a stream", field="key", characters_max=KEY_CHARACTERS_MAX)
    if type(start) is not int or not 0 <= start < INDEX_MAX:
        raise UsageError(
            f"start is the index of the first value, 0 or more and below 10**18, not {start!r:.100}"
        )
    if from_latest and start:
        raise UsageError(
            "give either start or from_latest: one says where to begin, the other to begin at the end"
        )
    return StreamReader(connection, run_id, key, None if from_latest else start, kind)
