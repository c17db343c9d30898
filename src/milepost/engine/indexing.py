"""Keeping the search index behind the documents, at a distance: a write only notes that its document is not indexed any more."""

from milepost.engine import jobs
from milepost.engine.commands import IndexDocuments
from milepost.engine.documents import load_documents
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.store import runs as run_store
from milepost.store import search
from milepost.store.metadata_values import IndexedValue, values_of

# After so much one command leaves the rest to the next one, so that it does not hold up commits: a document may have 250 KB, and 2,000
# rows in the index, which take some 30 µs each.
ROWS_PER_STEP = 500
BYTES_PER_STEP = 512 * 1024
LOADED_AT_ONCE = 4


def index_documents(command: IndexDocuments, transaction: Transaction, state: EngineState) -> int:
    """Index what is behind, oldest runs first, as much as one step may.

    What this group itself writes may still be behind afterwards: what is noted of it is saved later.
    """
    connection = transaction.connection
    ids = search.unindexed_ids(connection, limit=command.limit)
    if not ids or not jobs.is_ours(JobName.INDEX, transaction, state):
        return 0
    indexed: dict[str, set[IndexedValue]] = {}
    rows_left, bytes_left = ROWS_PER_STEP, BYTES_PER_STEP
    for first in range(0, len(ids), LOADED_AT_ONCE):
        if rows_left <= 0 or bytes_left <= 0:
            break
        part = ids[first : first + LOADED_AT_ONCE]
        rows = run_store.load_rows(connection, part)
        hot = {
            run_id: found for run_id, row in rows.items() if (found := transaction.at_hand(row)) is not None
        }
        # Read past the cache: a document that is only indexed must not drive out one that is written to.
        others = [row for run_id, row in rows.items() if run_id not in hot]
        hot |= load_documents(connection, others, size_max=state.settings.metadata_size_max)
        for run_id in part:
            if rows_left <= 0 or bytes_left <= 0:
                break
            indexed[run_id] = values_of(hot[run_id].document.value)
            rows_left -= len(indexed[run_id])
            bytes_left -= hot[run_id].document.size
            if rows[run_id].status.is_final:
                transaction.done_with.add(run_id)
    if indexed:
        search.replace_values(connection, indexed)
        transaction.changed_otherwise.update(indexed)
    return len(indexed)
