"""Streams of runs: chunks in order, and how far each writer has come."""

import zlib
from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, literal_column, or_, select

from milepost.store.schema import chunks, runs, stream_writers, streams
from milepost.store.statements import Lookup, Statement, among, upsert

OUTPUT = "out/"
INPUT = "in/"
TAKEN = "taken/"
"""What the name of a stream in the store begins with, before its key: what a run writes, what is sent to it, and a chunk for
each value that it has taken of that."""


class StreamRow(msgspec.Struct, gc=False):
    """A stream: how many chunks it has, and their bytes. Times are microseconds since 1970.

    By `created_at` the streams of a run are in the order in which they were begun: each has a later one than those before it, also
    when the clock was set back meanwhile, or when two were begun in one commit.
    """

    run_id: str
    name: str
    next_index: int = 0
    size_bytes: int = 0
    created_at: int = 0
    updated_at: int = 0


class WriterRow(msgspec.Struct, gc=False):
    """A writer of a stream. `next_number` is the number of its first chunk that is not stored; `source_id` is the run whose attempt
    it is part of. `checksum` is that of all chunks of a writer from outside; None where it is not known."""

    run_id: str
    name: str
    writer: str
    source_id: str | None
    attempt: int
    next_number: int = 0
    has_ended: int = 0
    error: str | None = None
    updated_at: int = 0
    checksum: int | None = None


class ChunkRow(msgspec.Struct, gc=False):
    """Chunks in a row, joined by line feeds. `at` is when they were committed."""

    run_id: str
    name: str
    first_index: int
    chunk_count: int
    at: int
    attempt: int
    data: bytes

    @property
    def next_index(self) -> int:
        """The index of the chunk behind these."""
        return self.first_index + self.chunk_count

    def texts(self, start: int = 0) -> list[bytes]:
        """The chunks from an index on, each as JSON."""
        return self.data.split(b"\n")[max(0, start - self.first_index) :]


_STREAM_NAMES = StreamRow.__struct_fields__
_WRITER_NAMES = WriterRow.__struct_fields__
_CHUNK_NAMES = ChunkRow.__struct_fields__
_STREAMS_OF_RUNS = Lookup(select(*(streams.c[name] for name in _STREAM_NAMES)), streams.c.run_id)
_WRITER = Statement(
    select(*(stream_writers.c[name] for name in _WRITER_NAMES)).where(
        stream_writers.c.run_id == bindparam("run"),
        stream_writers.c.name == bindparam("stream"),
        stream_writers.c.writer == bindparam("by"),
    ),
    ["run", "stream", "by"],
)
_STREAM = Statement(
    select(*(streams.c[name] for name in _STREAM_NAMES)).where(
        streams.c.run_id == bindparam("run"), streams.c.name == bindparam("stream")
    ),
    ["run", "stream"],
)
_NEW_STREAMS = upsert(streams)
_SAVE_STREAMS = Statement(
    _NEW_STREAMS.on_conflict_do_update(
        index_elements=["run_id", "name"],
        set_={name: _NEW_STREAMS.excluded[name] for name in ("next_index", "size_bytes", "updated_at")},
    ),
    _STREAM_NAMES,
    key=["run_id", "name"],
)
_NEW_WRITERS = upsert(stream_writers)
_SAVE_WRITERS = Statement(
    _NEW_WRITERS.on_conflict_do_update(
        index_elements=["run_id", "name", "writer"],
        set_={
            name: _NEW_WRITERS.excluded[name]
            for name in ("next_number", "has_ended", "error", "updated_at", "checksum")
        },
    ),
    _WRITER_NAMES,
    key=["run_id", "name", "writer"],
)
_INSERT_CHUNKS = Statement(insert(chunks), _CHUNK_NAMES)
# The row that holds an index is the last one that begins at it or before.
_CHUNKS_FROM = Statement(
    select(*(chunks.c[name] for name in _CHUNK_NAMES))
    .where(
        chunks.c.run_id == bindparam("run"),
        chunks.c.name == bindparam("stream"),
        chunks.c.first_index
        >= func.coalesce(
            select(chunks.c.first_index)
            .where(
                chunks.c.run_id == bindparam("run"),
                chunks.c.name == bindparam("stream"),
                chunks.c.first_index <= bindparam("start"),
            )
            .order_by(chunks.c.first_index.desc())
            .limit(literal_column("1"))
            .scalar_subquery(),
            0,
        ),
    )
    .order_by(chunks.c.first_index)
    .limit(bindparam("rows")),
    ["run", "stream", "start", "rows"],
)


def checksum_of(chunks: Iterable[bytes], before: int = 0) -> int:
    """The checksum of all chunks of a writer, of what it was before these."""
    for chunk in chunks:
        before = zlib.crc32(b"\n", zlib.crc32(chunk, before))
    return before


def load_stream(connection: Connection, run_id: str, name: str) -> StreamRow | None:
    """One stream; None when nobody has written to it."""
    found = _STREAM.read(connection, (run_id, name))
    return StreamRow(*found[0]) if found else None


def load_streams(connection: Connection, run_ids: Collection[str]) -> list[StreamRow]:
    """All streams of these runs."""
    return [StreamRow(*values) for values in _STREAMS_OF_RUNS.read(connection, run_ids)]


class StreamCount(msgspec.Struct, frozen=True):
    """How many streams a run has, and when the newest was begun, 0 when there is none."""

    count: int
    newest_at: int


def count_streams(connection: Connection, run_id: str) -> StreamCount:
    """The streams of a run, counted."""
    counted = select(func.count(), func.coalesce(func.max(streams.c.created_at), 0))
    count, newest_at = connection.execute(counted.where(streams.c.run_id == run_id)).one()
    return StreamCount(count, newest_at)


def save_streams(connection: Connection, rows: Iterable[StreamRow]) -> None:
    """Keep what streams have come to."""
    _SAVE_STREAMS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_writer(connection: Connection, run_id: str, name: str, writer: str) -> WriterRow | None:
    """One writer of a stream; None when it has written nothing."""
    found = _WRITER.read(connection, (run_id, name, writer))
    return WriterRow(*found[0]) if found else None


def save_writers(connection: Connection, rows: Iterable[WriterRow]) -> None:
    """Keep how far writers have come."""
    _SAVE_WRITERS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def append_chunks(connection: Connection, rows: Iterable[ChunkRow]) -> None:
    """Add chunks to streams."""
    _INSERT_CHUNKS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_chunks(connection: Connection, run_id: str, name: str, *, start: int, rows: int) -> list[ChunkRow]:
    """Up to `rows` rows of chunks, in order, the first of which holds the index `start`."""
    found = [ChunkRow(*values) for values in _CHUNKS_FROM.read(connection, (run_id, name, start, rows))]
    return [row for row in found if row.next_index > start]


class WriterState(msgspec.Struct, frozen=True):
    """A writer, and whether it may still write: its attempt is under way."""

    has_ended: bool
    is_alive: bool
    error: str | None


def writer_states(
    connection: Connection, run_id: str, name: str | None = None
) -> dict[str, list[WriterState]]:
    """Every writer of a run's streams, or of one of them, by the stream's name; the one that wrote last is at the end."""
    # Nobody knows of a writer from outside whether it is still there.
    is_alive = or_(
        stream_writers.c.source_id.is_(None),
        and_(runs.c.attempt == stream_writers.c.attempt, runs.c.status.in_(("EXECUTING", "WAITING"))),
    )
    statement = (
        select(stream_writers.c.name, stream_writers.c.has_ended, is_alive, stream_writers.c.error)
        .join_from(stream_writers, runs, runs.c.id == stream_writers.c.source_id, isouter=True)
        .where(stream_writers.c.run_id == run_id)
        .order_by(stream_writers.c.updated_at, stream_writers.c.writer)
    )
    if name is not None:
        statement = statement.where(stream_writers.c.name == name)
    found: dict[str, list[WriterState]] = {}
    for stream, has_ended, alive, error in connection.execute(statement):
        found.setdefault(stream, []).append(WriterState(bool(has_ended), bool(alive), error))
    return found


def prunable_runs(connection: Connection, *, before: int, limit: int) -> list[str]:
    """Up to `limit` runs that have ended before a time and have streams."""
    statement = (
        select(streams.c.run_id)
        .distinct()
        .join_from(streams, runs, runs.c.id == streams.c.run_id)
        .where(runs.c.finished_at < before)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def delete_streams(connection: Connection, run_ids: Collection[str]) -> None:
    """Forget all streams of these runs."""
    for table in (chunks, stream_writers, streams):
        connection.execute(delete(table).where(among(connection, table.c.run_id, run_ids)))
