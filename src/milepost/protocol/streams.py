"""Streams on the wire: chunks that a run writes beside its metadata, kept in order and read live or later.

A stream belongs to a run and has a key. Its chunks are JSON values, indexed from 0 without gaps in the order in which they were
committed. Whoever adds to it is a *writer*: it numbers its own chunks from 0, so that a repeat is known, and each is stored once.
Several writers may share a stream.

Readers of `GET /realtime/v1/streams/{run}/{key}` get events as the official clients expect them (protocol, section 8.1, version 2).
"""

from enum import StrEnum
from typing import Any

import msgspec

CHUNK_BYTES_MAX = 1024 * 1024
"""Bytes of one chunk as compact JSON."""

STREAMS_MAX = 2000
"""Keys of one run."""

KEY_CHARACTERS_MAX = 256

CHUNKS_MAX = 10_000
"""Chunks of one part, and of all parts of one request."""

BYTES_KEY = "$bytes"
"""Bytes that are no text travel as an object with this one member, whose value is base64: `{"$bytes": "AAE="}`."""


class WriterEnd(msgspec.Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """A writer adds no more: it has come to its end, or its source has failed with this message for readers."""

    error: str | None = None


class StreamPart(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True
):
    """Chunks of one writer, in order.

    `run` is the run that the stream belongs to: the writing run itself or one of its ancestors. `writer` is a name that the writer
    has chosen for itself, 1 to 64 characters, and no other one uses. `first` is the writer's own number of the first chunk here:
    what the server has of them already is passed over, and a gap is refused. With `end` the writer adds no more, behind these
    chunks; a part without chunks and end only makes the stream known.

    `taken`: no stream that anybody reads, but the count of what was taken of the run's input with this key: a chunk for each value,
    whatever it is. Who reads the input with `start=unread` begins behind these.
    """

    run: str
    key: str
    writer: str
    first: int = 0
    chunks: list[msgspec.Raw] = []
    end: WriterEnd | None = None
    taken: bool = False


class AttemptParts(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """What one attempt of a run adds to streams; at most one part of each writer."""

    id: str
    attempt: int
    parts: list[StreamPart]


class ChunksRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Chunks of many attempts."""

    runs: list[AttemptParts]


class PartReply(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """How far a writer has come: `next` is the number of the first chunk that is not stored.

    With `code` nothing of the part was stored and nothing more of this writer will be, because of `message`: `not_an_ancestor`,
    `run_finished`, `stream_too_large`, `too_many_streams`, `chunk_too_large`, `invalid_key`, `chunk_gap`, `writer_ended`.
    """

    next: int = 0
    code: str | None = None
    message: str = ""


class AttemptReply(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The answers in the order of the parts. `lost`: the run is no longer this attempt's, and nothing of it was stored."""

    id: str
    lost: bool = False
    parts: list[PartReply] = []


class ChunksResponse(msgspec.Struct):
    """One reply per attempt, in the order of the request."""

    runs: list[AttemptReply]


class InputRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Something that is sent to a run."""

    data: msgspec.Raw


class InputResponse(msgspec.Struct):
    """It is stored."""

    ok: bool = True


class StreamCreated(msgspec.Struct):
    """How the stream is to be written (protocol, section 8.2)."""

    version: str = "v1"


class StreamState(StrEnum):
    """Where a stream stands.

    open: a writer is at work, or the newest one has failed or died and the run goes on: another attempt may come.
    ended: every writer that has begun has come to its end, or the run has finished.
    failed: the run has finished, and the source of the newest writer had failed.
    """

    OPEN = "open"
    ENDED = "ended"
    FAILED = "failed"


class StreamSummary(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """One stream of a run, as `run.streams` and `GET /api/v1/runs/{run}/streams` list it."""

    key: str
    chunk_count: int
    size_bytes: int
    state: StreamState
    error: str | None = None
    created_at: str
    updated_at: str


class StreamList(msgspec.Struct):
    """The streams of a run, in the order in which they were begun."""

    data: list[StreamSummary]


class StreamRecord(msgspec.Struct):
    """One chunk of a `batch` event. `body` is JSON text `{"data": chunk, "id": unique text, "attempt": number}`.

    `timestamp` is milliseconds since 1970, when the chunk was committed. `attempt` is the attempt of the run that wrote it, 0 for a
    writer from outside of runs.
    """

    seq_num: int
    timestamp: int
    body: str
    headers: list[Any] = []


class StreamBatch(msgspec.Struct):
    """A `batch` event; its id is the index of its last chunk."""

    records: list[StreamRecord]


class StreamBegun(msgspec.Struct):
    """The `begin` event, which the official clients pass over: the index of the first chunk that will follow."""

    next: int


class StreamEnded(msgspec.Struct, omit_defaults=True):
    """The `end` event, which the official clients pass over: nothing follows. The connection closes cleanly behind it and only then,
    or after the time that `timeout-seconds` gives; a server that stops cuts it off, so that readers come back."""

    state: StreamState
    next: int
    error: str | None = None
