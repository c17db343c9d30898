"""Finding the runs of a list, by their documents too."""

import msgspec
from sqlalchemy import Connection

from milepost.model import jsonvalue
from milepost.reading.documents import Documents, shown_documents
from milepost.store import runs as run_store
from milepost.store.runs import RunFilter
from milepost.store.search import Search

# Candidates of a search whose documents are read at once.
CANDIDATES_MIN = 20
CANDIDATES_MAX = 500


def find(
    connection: Connection,
    filter: RunFilter,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
) -> tuple[list[str], Documents]:
    """Up to `limit` matching runs as `run_store.list_ids` gives them, and the documents that were read for it.

    The index only finds candidates: each is checked against its document.
    """
    if filter.metadata is None:
        ids = run_store.list_ids(connection, filter, limit=limit, after=after, before=before)
        return ids, {}
    search = Search(connection, filter)
    found: Documents = {}
    # The index is seldom wrong: the first step is nearly always the last. Documents that are not indexed yet may take many.
    step = min(max(limit, CANDIDATES_MIN), CANDIDATES_MAX)
    while len(found) < limit:
        candidates = search.candidates(limit=step, after=after, before=before)
        documents = shown_documents(connection, candidates)
        for run_id in candidates:
            if is_meant(documents[run_id][0], filter) and len(found) < limit:
                found[run_id] = documents[run_id]
        if len(candidates) < step:
            break
        after, before = (candidates[-1], None) if before is None else (None, candidates[-1])
        step = min(2 * step, CANDIDATES_MAX)
    return list(found) if before is None else list(found)[::-1], found


def is_meant(document: msgspec.Raw, filter: RunFilter) -> bool:
    """Whether a document is what the filter asks for."""
    return filter.metadata is None or filter.metadata.matches(jsonvalue.decode(bytes(document)))
