"""Batches, and the results of their runs."""

from sqlalchemy import Connection

from milepost.errors import BatchNotFoundError
from milepost.protocol.runs import RunResult
from milepost.protocol.triggering import BatchObject, BatchProcessing, BatchResults
from milepost.reading.fields import text_of
from milepost.reading.runs import result_of
from milepost.store import batches as batch_store
from milepost.store import runs as run_store
from milepost.store.batches import BatchRow

# Of one page of a batch's results, and how many runs of it are looked at together: an output has up to 10 MB.
RESULTS_MAX = 1000
RESULTS_READ = 20
RESULTS_CHARACTERS_MAX = 8 * 1024 * 1024


def row_of(connection: Connection, batch_id: str) -> BatchRow:
    """The counts of a batch. Raises BatchNotFoundError."""
    batch = batch_store.load_batches(connection, [batch_id]).get(batch_id)
    if batch is None:
        raise BatchNotFoundError(f"there is no batch {batch_id!r}")
    return batch


def whole(connection: Connection, batch_id: str) -> BatchObject:
    """A batch with the ids of its runs. Raises BatchNotFoundError."""
    batch = row_of(connection, batch_id)
    return BatchObject(
        id=batch.id,
        status=_status(batch),
        created_at=text_of(batch.created_at),
        updated_at=text_of(batch.updated_at),
        run_count=batch.accepted_count if batch.known_count is None else batch.known_count,
        finished_count=batch.finished_count,
        runs=list(run_store.batch_runs(connection, batch_id).values()),
        processing=BatchProcessing(errors=[]),
    )


def results(connection: Connection, batch_id: str, *, after: int) -> BatchResults:
    """The results of the runs behind an index that have ended, in index order: a page of at most `RESULTS_MAX` runs, and of not
    much more than `RESULTS_CHARACTERS_MAX` of outputs. Raises BatchNotFoundError."""
    row_of(connection, batch_id)
    items: list[RunResult] = []
    characters = read = 0
    page = list(run_store.batch_runs(connection, batch_id, after=after, limit=RESULTS_MAX).items())
    while read < len(page) and characters < RESULTS_CHARACTERS_MAX:
        part = [run_id for _, run_id in page[read : read + RESULTS_READ]]
        room = RESULTS_CHARACTERS_MAX - characters
        found = run_store.load_records(connection, part, values=True, large=["output"], characters_max=room)
        ended = [record for record in found.values() if record.row.status.is_final]
        items += map(result_of, ended)
        characters += sum(len(record.output or "") for record in ended)
        read += len(found)
    is_last = read == len(page) < RESULTS_MAX
    return BatchResults(id=batch_id, items=items, next=None if is_last else page[read - 1][0])


def _status(batch: BatchRow) -> str:
    if batch.finished_count >= batch.run_count:
        return "COMPLETED"
    return "PROCESSING" if batch.accepted_count >= batch.run_count else "PENDING"
