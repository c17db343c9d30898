"""Keeping the search index behind the documents, at a distance: a write only notes that its document is not indexed any more."""

from milepost.engine.commands import IndexDocuments
from milepost.engine.documents import load_documents
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.store import runs as run_store
from milepost.store import search
from milepost.store.metadata_values import values_of


def index_documents(command: IndexDocuments, transaction: Transaction, state: EngineState) -> int:
    """Index what is behind, oldest runs first.

    What this group itself writes may still be behind afterwards: what is noted of it is saved later.
    """
    connection = transaction.connection
    ids = search.unindexed_ids(connection, limit=command.limit)
    if not ids:
        return 0
    hot = {run_id: document for run_id in ids if (document := transaction.at_hand(run_id)) is not None}
    # Read past the cache: a document that is only indexed must not drive out one that is written to.
    rows = run_store.load_rows(connection, [run_id for run_id in ids if run_id not in hot])
    hot |= load_documents(connection, list(rows.values()), size_max=state.settings.metadata_size_max)
    search.replace_values(connection, {run_id: values_of(hot[run_id].document.value) for run_id in ids})
    return len(ids)
