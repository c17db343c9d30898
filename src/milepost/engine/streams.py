"""Deciding on streams: which chunks are new, where they stand, and what is refused (M50-M58).

Every writer numbers its chunks. What is stored of them already is passed over, so that a request may be sent again; a stream
numbers all of them in the order in which they are committed.
"""

from collections.abc import Sequence

from milepost.engine import jobs
from milepost.engine.commands import AddChunks, AddOutsideChunks, AttemptWritten, PruneStreams, Written
from milepost.engine.jobs import JobName
from milepost.engine.metadata import is_ancestor, not_an_ancestor
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.engine.workers import worker_of
from milepost.errors import RunNotFoundError
from milepost.model.lifecycle import holds
from milepost.protocol.streams import STREAMS_MAX, AttemptReply, PartReply
from milepost.store import streams as stream_store
from milepost.store.runs import RunRow
from milepost.store.streams import ChunkRow, StreamRow, WriterRow

ERROR_CHARACTERS_MAX = 10_000
# A row is read as a whole, whatever of it is wanted.
ROW_BYTES_MAX = 256 * 1024


def add_chunks(command: AddChunks, transaction: Transaction, state: EngineState) -> list[AttemptReply]:
    """Store what the attempts of a worker have written. Raises NotFoundError: the worker then registers anew."""
    worker_of(command.worker_id, transaction)
    return [_add_of_attempt(written, command.worker_id, transaction, state) for written in command.runs]


def add_outside_chunks(command: AddOutsideChunks, transaction: Transaction, state: EngineState) -> PartReply:
    """Store what a writer has sent that is no part of a run. Raises RunNotFoundError."""
    row = transaction.run(command.part.run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {command.part.run_id!r}")
    return _add(command.part, None, row, transaction, state)


def prune(command: PruneStreams, transaction: Transaction, state: EngineState) -> int:
    """Forget the streams of runs that ended long ago."""
    found = stream_store.prunable_runs(transaction.connection, before=command.before, limit=command.limit)
    if not found or not jobs.is_ours(JobName.STREAMS, transaction, state):
        return 0
    stream_store.delete_streams(transaction.connection, found)
    return len(found)


def _add_of_attempt(
    written: AttemptWritten, worker_id: str, transaction: Transaction, state: EngineState
) -> AttemptReply:
    row = transaction.run(written.run_id)
    if row is None or not holds(row, worker_id, written.attempt):
        return AttemptReply(id=written.run_id, lost=True)
    replies = [_add(part, row, transaction.run(part.run_id), transaction, state) for part in written.parts]
    return AttemptReply(id=written.run_id, parts=replies)


def _add(
    part: Written,
    source: RunRow | None,
    target: RunRow | None,
    transaction: Transaction,
    state: EngineState,
) -> PartReply:
    """Store a part. `source` is the run that writes, None for a writer from outside; `target` has the stream."""
    if part.fault is not None:
        return part.fault
    if target is None or (source is not None and not is_ancestor(target.id, source, transaction)):
        assert source is not None, "a writer from outside has been told that there is no such run"
        return PartReply(code="not_an_ancestor", message=not_an_ancestor(part.run_id, source))
    stream = transaction.stream(target.id, part.name)
    writer = transaction.stream_writer(target.id, part.name, part.writer)
    source_id, attempt = (source.id, source.attempt) if source is not None else (None, 0)
    if writer is None:
        checksum = 0 if source is None else None
        writer = WriterRow(target.id, part.name, part.writer, source_id, attempt, checksum=checksum)
    elif (writer.source_id, writer.attempt) != (source_id, attempt):
        message = (
            f"another one writes to the stream under the name {part.writer!r}: choose a name of your own"
        )
        return PartReply(code="writer_taken", message=message)
    if part.first > writer.next_number:
        message = (
            f"the next chunk of this writer is number {writer.next_number:,}, and {part.first:,} was sent"
        )
        return PartReply(next=writer.next_number, code="chunk_gap", message=message)
    if _says_something_else(part, writer):
        message = f"the writer {part.writer!r} has sent other chunks under the same numbers"
        return PartReply(next=writer.next_number, code="other_content", message=message)
    fresh = part.chunks[writer.next_number - part.first :]
    ends = part.end is not None and not writer.has_ended
    if stream is not None and not fresh and not ends:
        # All of it was stored before.
        return PartReply(next=writer.next_number)
    refusal = _refusal(fresh, stream, writer, target, transaction, state)
    if refusal is not None:
        return refusal
    now = transaction.now
    if stream is None:
        newest_at = transaction.count_streams(target.id).newest_at
        stream = StreamRow(target.id, part.name, created_at=max(now, newest_at + 1))
    # By this the writers of a stream are in order, also when the clock is set back.
    stream.updated_at = writer.updated_at = max(now, stream.updated_at + 1, stream.created_at)
    if writer.checksum is not None:
        writer.checksum = stream_store.checksum_of(fresh, writer.checksum)
    if part.end is not None:
        writer.has_ended = 1
        writer.error = part.end.error and _storable(part.end.error)
    rows: list[ChunkRow] = []
    for chunks in _rows_of(fresh):
        data = b"\n".join(chunks)
        rows.append(ChunkRow(target.id, part.name, stream.next_index, len(chunks), now, attempt, data))
        stream.next_index += len(chunks)
        stream.size_bytes += len(data) - len(chunks) + 1
        writer.next_number += len(chunks)
    transaction.save_stream(target, stream, writer, rows, has_ended=ends)
    return PartReply(next=writer.next_number)


def _says_something_else(part: Written, writer: WriterRow) -> bool:
    """Whether chunks that were sent before are other ones now."""
    stored_count = writer.next_number - part.first
    if part.checksum_before is None or writer.checksum is None:
        return False
    if stored_count > len(part.chunks):
        # The next part may reach as far, unless this was the last.
        return part.end is not None
    return stream_store.checksum_of(part.chunks[:stored_count], part.checksum_before) != writer.checksum


def _refusal(
    fresh: Sequence[bytes],
    stream: StreamRow | None,
    writer: WriterRow,
    target: RunRow,
    transaction: Transaction,
    state: EngineState,
) -> PartReply | None:
    """Why nothing of the part is stored; None when it is."""
    next = writer.next_number
    if writer.has_ended:
        return PartReply(next=next, code="writer_ended", message="the writer has said that it adds no more")
    if target.status.is_final:
        message = f"run {target.id} has finished, and its streams take no more"
        return PartReply(next=next, code="run_finished", message=message)
    if stream is None and transaction.count_streams(target.id).count >= STREAMS_MAX:
        message = f"run {target.id} has {STREAMS_MAX:,} streams already, and takes no further key"
        return PartReply(next=next, code="too_many_streams", message=message)
    size = sum(map(len, fresh)) + (stream.size_bytes if stream is not None else 0)
    most = state.settings.stream_bytes_max
    if size > most:
        message = (
            f"the stream would have {size:,} bytes, the limit is {most:,}: write less, or raise MILEPOST_STREAM_BYTES_MAX "
            f"at the server"
        )
        return PartReply(next=next, code="stream_too_large", message=message)
    return None


def _rows_of(chunks: Sequence[bytes]) -> list[Sequence[bytes]]:
    """The chunks in portions, each small enough for one row."""
    rows: list[Sequence[bytes]] = []
    start = size = 0
    for index, chunk in enumerate(chunks):
        if index > start and size + len(chunk) > ROW_BYTES_MAX:
            rows.append(chunks[start:index])
            start, size = index, 0
        size += len(chunk) + 1
    if start < len(chunks):
        rows.append(chunks[start:])
    return rows


def _storable(error: str) -> str:
    return error.replace("\x00", "\ufffd")[:ERROR_CHARACTERS_MAX]
