"""Batches: every verb of `store.batches`."""

import pytest
from sqlalchemy.exc import IntegrityError

from conformance.rows import NOW, batch
from milepost.store import batches
from milepost.store.database import Store


def test_batches_come_back_as_they_were_given(store: Store) -> None:
    rows = [batch("batch_1", 3, parent_id="run_1", resume_parent=1), batch("batch_2", 1000, accepted_count=7)]
    with store.write() as connection:
        batches.insert_batches(connection, rows)
        batches.insert_batches(connection, [])
    with store.read() as connection:
        found = batches.load_batches(connection, ["batch_2", "batch_1", "batch_3", "batch_1"])
        assert batches.load_batches(connection, []) == {}
    assert found == {row.id: row for row in rows}


def test_counts_are_saved(store: Store) -> None:
    with store.write() as connection:
        batches.insert_batches(connection, [batch("batch_1"), batch("batch_2")])
    row = batch("batch_1", accepted_count=3, finished_count=2, updated_at=NOW + 1)
    with store.write() as connection:
        batches.save_batches(connection, [row])
        batches.save_batches(connection, [])
    with store.read() as connection:
        assert batches.load_batches(connection, ["batch_1", "batch_2"]) == {
            "batch_1": row,
            "batch_2": batch("batch_2"),
        }


@pytest.mark.parametrize(("accepted", "finished"), [(4, 0), (2, 3)])
def test_the_database_itself_refuses_counts_that_cannot_be(
    store: Store, accepted: int, finished: int
) -> None:
    with store.write() as connection:
        batches.insert_batches(connection, [batch("batch_1")])
    with pytest.raises(IntegrityError), store.write() as connection:
        batches.save_batches(connection, [batch("batch_1", accepted_count=accepted, finished_count=finished)])
