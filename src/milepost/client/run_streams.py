"""Following a run together with its streams: states and values as they come, on one connection."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from milepost.client import calls
from milepost.client.calls import Feed
from milepost.client.connection import Connection
from milepost.client.run import Run
from milepost.client.shape import Shape, shape_of
from milepost.client.streams import ChunkFollower, StreamChunk, value_of
from milepost.client.subscription import RunFollower
from milepost.errors import MetadataValueError, UsageError
from milepost.model.names import check_name
from milepost.model.typed import Misfit
from milepost.protocol.feed import StreamFrame
from milepost.protocol.problems import from_problem
from milepost.protocol.streams import KEY_CHARACTERS_MAX


class DefinedStream(Protocol):
    """What `streams.define` makes."""

    @property
    def key(self) -> str:
        """The stream's key."""
        ...

    @property
    def type(self) -> Any:
        """What its values are."""
        ...


StreamChoice = bool | Sequence[str | DefinedStream]
"""Which streams of a run: all, none, or these, where those that `streams.define` has made come with their type."""


class StreamValue(msgspec.Struct, frozen=True):
    """A value that a run has written to one of its streams.

    Attributes:
        key: the stream's key.
        index: its place in the stream, from 0 and without gaps.
        attempt: the attempt of the run that wrote it; 0 for a writer from outside.
        value: of the stream's type where it was given, otherwise plain JSON, and bytes where bytes were written.
    """

    key: str
    index: int
    attempt: int
    value: Any


class _Problem(msgspec.Struct):
    status: int


_decode_stream = msgspec.json.Decoder(StreamFrame).decode
_decode_problem = msgspec.json.Decoder(_Problem).decode
_decode_value = msgspec.json.Decoder().decode
# The feed may carry several things; this is the only one here.
_NUMBER = "0-"


class RunStreamsFollower:
    """The newest states of a run and the values of its streams, each value once, over as many connections as it takes."""

    def __init__(self, run_id: str, shapes: Mapping[str, Shape[Any] | None], *, only: bool) -> None:
        self.has_ended = False
        self._run_id = run_id
        self._shapes = shapes
        self._only = only
        self._run = RunFollower()
        self._streams: dict[str, ChunkFollower] = {key: ChunkFollower(0) for key in shapes}
        # Of this connection.
        self._keys: dict[str, str] = {}
        # What has come, in order: a chunk of the stream with this key; None: the run has changed.
        self._waiting: deque[tuple[str, StreamChunk] | None] = deque()

    def feed(self) -> Feed:
        """What is to be opened next: it goes on where this stands."""
        self._keys.clear()
        starts = {key: stream.position or 0 for key, stream in self._streams.items()}
        return calls.watch_run_streams(self._run_id, starts, only=self._only)

    def take(self, event: str, data: bytes) -> None:
        """Take an event of the feed for many things. Raises Gap, and what the run was refused with."""
        if not event.startswith(_NUMBER):
            return
        event = event.removeprefix(_NUMBER)
        number, _, name = event.partition("-")
        if name and number in self._keys:
            key = self._keys[number]
            stream = self._streams[key]
            stream.take(name, data)
            while (chunk := stream.newest()) is not None:
                self._waiting.append((key, chunk))
        elif event == "stream":
            frame = _decode_stream(data)
            self._keys[str(frame.number)] = frame.key
            self._streams.setdefault(frame.key, ChunkFollower(0))
        elif event == "refused":
            raise from_problem(_decode_problem(data).status, data)
        else:
            self._run.take(event, data)
            self.has_ended = self._run.has_ended
            if not self._waiting or self._waiting[-1] is not None:
                self._waiting.append(None)

    def newest(self) -> Run | StreamValue | None:
        """The next value, or the run as it is now; None when there is neither. Raises MetadataValueError."""
        while self._waiting:
            item = self._waiting.popleft()
            if item is not None:
                return self._value(*item)
            if self.has_ended and self._waiting:
                # What is told last is the last state.
                continue
            run = self._run.newest()
            if run is not None:
                return run
        return None

    def _value(self, key: str, chunk: StreamChunk) -> StreamValue:
        shape = self._shapes.get(key)
        if shape is None:
            value = value_of(_decode_value(chunk.text))
        else:
            try:
                value = shape.read(chunk.text)
            except Misfit as misfit:
                place = f"chunk {chunk.index:,} of stream {key!r}"
                raise MetadataValueError(
                    f"{place} does not fit its type: {misfit.describe('value')}"
                ) from None
        return StreamValue(key, chunk.index, chunk.attempt, value)


def follow_run(connection: Connection, run_id: str, choice: StreamChoice) -> Iterator[Run | StreamValue]:
    """See `Runs.subscribe`."""
    if choice is False:
        return connection.follow(calls.watch_run(run_id), RunFollower())
    follower = _follower(run_id, choice)
    return connection.follow(follower.feed, follower)


def afollow_run(
    connection: Connection, run_id: str, choice: StreamChoice
) -> AsyncIterator[Run | StreamValue]:
    """See `Runs.asubscribe`."""
    if choice is False:
        return connection.afollow(calls.watch_run(run_id), RunFollower())
    follower = _follower(run_id, choice)
    return connection.afollow(follower.feed, follower)


def _follower(run_id: str, choice: StreamChoice) -> RunStreamsFollower:
    if choice is True:
        return RunStreamsFollower(run_id, {}, only=False)
    if isinstance(choice, str | bytes) or not isinstance(choice, Sequence):
        raise UsageError(
            f"streams is True for all streams of the run, or a list of keys and of what streams.define has made, not {choice!r:.100}"
        )
    shapes: dict[str, Shape[Any] | None] = {}
    for stream in choice:
        if isinstance(stream, str):
            key, shape = stream, None
        elif hasattr(stream, "key") and hasattr(stream, "type"):
            key, shape = stream.key, shape_of(stream.type)
        else:
            raise UsageError(
                f"streams names keys and what streams.define has made, and {stream!r:.100} is neither"
            )
        check_name(key, "the key of a stream", field="key", characters_max=KEY_CHARACTERS_MAX)
        shapes[key] = shape
    return RunStreamsFollower(run_id, shapes, only=True)
