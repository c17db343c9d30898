"""Streams of a run: which there are, where each stands, and pages of chunks."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from milepost.protocol.streams import StreamState, StreamSummary
from milepost.reading.fields import text_of
from milepost.store import streams as stream_store
from milepost.store.runs import RunRow
from milepost.store.streams import ChunkRow, WriterState

# Rows of chunks that are read at once: few at first, because a row may be large.
ROWS_FEW = 4
ROWS = 100


class StreamPage(msgspec.Struct, frozen=True):
    """Chunks of a stream in order, how many it has in all, and how it stands."""

    rows: list[ChunkRow]
    next_index: int
    state: StreamState
    error: str | None


def state_of(writers: Sequence[WriterState], *, run_has_finished: bool) -> tuple[StreamState, str | None]:
    """Where a stream stands, and why the source of its newest writer has failed, if it has.

    A stream ends when every writer that has begun has come to its end, and with its run. A failure and an attempt that has died do not
    end it while the run goes on: another attempt may come, or the task itself tries again.
    """
    newest = writers[-1] if writers else None
    error = newest.error if newest is not None else None
    if run_has_finished:
        return (StreamState.ENDED if error is None else StreamState.FAILED), error
    is_at_work = any(writer.is_alive and not writer.has_ended for writer in writers)
    if is_at_work or newest is None or not newest.has_ended or error is not None:
        return StreamState.OPEN, error
    return StreamState.ENDED, None


def page(connection: Connection, row: RunRow, name: str, *, start: int, bytes_max: int) -> StreamPage:
    """Chunks of a stream of a run from an index on, and how it stands; see `Reader.stream_page`."""
    stream = stream_store.load_stream(connection, row.id, name)
    next_index = stream.next_index if stream is not None else 0
    rows: list[ChunkRow] = []
    size, at = 0, start
    while at < next_index and size < bytes_max:
        found = stream_store.load_chunks(
            connection, row.id, name, start=at, rows=ROWS_FEW if not rows else ROWS
        )
        if not found:
            break
        rows += found
        size += sum(len(chunk.data) for chunk in found)
        at = rows[-1].next_index
    writers = stream_store.writer_states(connection, row.id, name).get(name, [])
    state, error = state_of(writers, run_has_finished=row.status.is_final)
    return StreamPage(rows, next_index, state, error)


def position(connection: Connection, run_id: str, name: str, writer: str) -> int:
    """The number of the first chunk of a writer that is not stored."""
    found = stream_store.load_writer(connection, run_id, name, writer)
    return found.next_number if found is not None else 0


def keys_of(connection: Connection, run_ids: Sequence[str], kind: str) -> dict[str, list[str]]:
    """The keys of the streams of some runs, the oldest first."""
    found: dict[str, list[str]] = {}
    rows = stream_store.load_streams(connection, run_ids)
    for row in sorted(rows, key=lambda row: row.created_at):
        if row.name.startswith(kind):
            found.setdefault(row.run_id, []).append(row.name.removeprefix(kind))
    return found


def summaries(connection: Connection, row: RunRow, kind: str) -> list[StreamSummary]:
    """The streams of a run, in the order in which they were begun."""
    found = [
        stream for stream in stream_store.load_streams(connection, [row.id]) if stream.name.startswith(kind)
    ]
    writers = stream_store.writer_states(connection, row.id) if found else {}
    shown: list[StreamSummary] = []
    for stream in sorted(found, key=lambda stream: stream.created_at):
        state, error = state_of(writers.get(stream.name, []), run_has_finished=row.status.is_final)
        shown.append(
            StreamSummary(
                key=stream.name.removeprefix(kind),
                chunk_count=stream.next_index,
                size_bytes=stream.size_bytes,
                state=state,
                error=error,
                created_at=text_of(stream.created_at),
                updated_at=text_of(stream.updated_at),
            )
        )
    return shown
