"""Candidates among documents that are not indexed yet: what their texts tell, document by document."""

from conformance.rows import change, insert, new_run, row_of, run_name
from milepost.model.filters import parse_filter
from milepost.store import documents, runs
from milepost.store.database import Store
from milepost.store.documents import Snapshot
from milepost.store.runs import RunFilter
from milepost.store.search import Search


def test_changes_count_from_the_snapshot_of_their_own_run_on(store: Store) -> None:
    """The snapshot of another run, however new, hides no change of this one."""
    insert(store, new_run(1), new_run(2), new_run(3))
    with store.write() as connection:
        documents.save_snapshots(
            connection, [Snapshot(run_name(1), 90, b"{}"), Snapshot(run_name(3), 1, b"{}")]
        )
        for number in (2, 3):
            documents.append_changes(
                connection, [change(number, 2, b'[{"type":"set","key":"color","value":"blue"}]')]
            )
        for number, version in ((1, 90), (2, 2), (3, 2)):
            row = runs.load_rows(connection, [run_name(number)])[run_name(number)]
            row.metadata_version, row.metadata_unindexed = version, 1
            runs.save_rows(connection, [row])
    assert row_of(store, 2).metadata_unindexed == 1
    with store.read() as connection:
        search = Search(connection, RunFilter(metadata=parse_filter({"color": "blue"})))
        assert search.candidates(limit=9) == [run_name(3), run_name(2)]
