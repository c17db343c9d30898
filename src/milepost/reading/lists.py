"""Lists of runs: pages, what a watched list begins with, which runs match; by their columns and by their documents."""

from collections.abc import Container, Sequence

import msgspec
from sqlalchemy import Connection

from milepost.model.run import FAILURE_STATUSES, HELD_STATUSES, QUEUED_STATUSES, RunStatus
from milepost.model.shown_keys import Keys
from milepost.protocol.runs import Pagination, RunPage, RunSummary
from milepost.reading import search
from milepost.reading.documents import Documents, only_keys, shown_documents
from milepost.reading.fields import summary_fields
from milepost.store import runs as run_store
from milepost.store.runs import RunFilter

_BY_URGENCY = (
    tuple(sorted(FAILURE_STATUSES)),
    tuple(sorted(HELD_STATUSES)),
    tuple(sorted(QUEUED_STATUSES)),
    (RunStatus.COMPLETED, RunStatus.CANCELED),
)


class RunMatch(msgspec.Struct, frozen=True):
    """A run, and whether it matches a filter. `run` is None when its own columns do not match, and it is of no further interest."""

    run: RunSummary | None
    is_match: bool


def summaries(
    connection: Connection, run_ids: Sequence[str], keys: Keys = None, known: Documents | None = None
) -> dict[str, RunSummary]:
    """The runs that exist, by id. `known`: their documents, where they have been read already."""
    if not run_ids:
        return {}
    found = run_store.load_records(connection, run_ids, values=False)
    documents = only_keys(known, keys) if known else shown_documents(connection, list(found), keys)
    return {
        run_id: RunSummary(**summary_fields(record, *documents[run_id])) for run_id, record in found.items()
    }


def page(
    connection: Connection, filter: RunFilter, *, size: int, after: str | None, before: str | None, keys: Keys
) -> RunPage:
    """One page of matching runs, newest first; `before` wins over `after` (protocol, section 5.3)."""
    # One more than asked tells whether there is a further page.
    ids, documents = search.find(connection, filter, limit=size + 1, after=after, before=before)
    more = len(ids) > size
    ids = ids[-size:] if before is not None else ids[:size]
    found = summaries(connection, ids, keys, documents)
    # What the way back leads to is not looked at: there was a run where the cursor came from.
    has_next = more if before is None else True
    has_previous = more if before is not None else after is not None
    return RunPage(
        data=[found[run_id] for run_id in ids],
        pagination=Pagination(
            next=ids[-1] if ids and has_next else None, previous=ids[0] if ids and has_previous else None
        ),
    )


def first_page(
    connection: Connection, filter: RunFilter, *, size: int, urgent_first: bool
) -> tuple[list[str], dict[str, int]]:
    """The ids of the newest matching runs, and how many runs match by status; no counts where documents decide."""
    ids = (
        _urgent(connection, filter, size) if urgent_first else search.find(connection, filter, limit=size)[0]
    )
    return ids, run_store.count_by_status(connection, filter) if filter.metadata is None else {}


def matches(
    connection: Connection, filter: RunFilter, run_ids: Sequence[str], among: Container[str], keys: Keys
) -> dict[str, RunMatch]:
    """Which of these runs match; see `Reader.matching`."""
    fitting = run_store.matching_ids(connection, filter, run_ids)
    wanted = [run_id for run_id in run_ids if run_id in fitting or run_id in among]
    records = run_store.load_records(connection, wanted, values=False)
    documents = shown_documents(connection, list(records), keys)
    found = {run_id: RunMatch(None, False) for run_id in run_ids}
    for run_id, record in records.items():
        is_match = run_id in fitting and search.is_meant(documents[run_id][0], filter)
        found[run_id] = RunMatch(RunSummary(**summary_fields(record, *documents[run_id])), is_match)
    return found


def _urgent(connection: Connection, filter: RunFilter, size: int) -> list[str]:
    """Up to `size` runs: failed ones, then those at work, queued, completed; the newest first of each.

    Failed ones take at most half of the places, unless the runs at work leave more of them.
    """
    failed, working, *others = (
        run_store.list_ids(connection, msgspec.structs.replace(filter, statuses=statuses), limit=size)
        for statuses in _BY_URGENCY
    )
    ids = [*failed[: max((size + 1) // 2, size - len(working))], *working]
    for more in others:
        ids += more
    return ids[:size]
