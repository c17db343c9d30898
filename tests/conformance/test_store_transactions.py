"""The store as a whole: one writer, many readers, everything kept."""

import threading

import pytest
from sqlalchemy.exc import DatabaseError, IntegrityError

from conformance.conftest import OpenStore
from conformance.rows import insert, new_run, row_of, run_name
from milepost.errors import UnavailableError
from milepost.store import runs
from milepost.store.database import Store
from milepost.store.runs import RunFilter


def test_what_is_written_is_kept_when_the_store_is_opened_again(open_store: OpenStore) -> None:
    first = open_store()
    insert(first, new_run(1, tags=["a"], payload="{}", trigger_metadata=b'{"k":1}'))
    with first.read() as connection:
        before = runs.load_records(connection, [run_name(1)], values=True)
    first.close()
    with open_store().read() as connection:
        assert runs.load_records(connection, [run_name(1)], values=True) == before


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def fail_half_way() -> None:
        with store.write() as connection:
            runs.insert_runs(connection, [new_run(1, tags=["a"])])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with store.read() as connection:
        assert runs.list_ids(connection, RunFilter(), limit=10) == []
        assert runs.list_ids(connection, RunFilter(tags=("a",)), limit=10) == []


def test_the_writer_goes_on_after_a_statement_that_the_database_refused(store: Store) -> None:
    insert(store, new_run(1))
    with pytest.raises(IntegrityError):
        insert(store, new_run(2), new_run(1))
    insert(store, new_run(3))
    with store.read() as connection:
        assert runs.list_ids(connection, RunFilter(), limit=10) == [run_name(3), run_name(1)]


def test_a_reader_sees_what_was_committed_when_it_began_and_nothing_later(store: Store) -> None:
    insert(store, new_run(1))
    with store.read() as reader:
        assert runs.list_ids(reader, RunFilter(), limit=10) == [run_name(1)]
        insert(store, new_run(2))
        assert runs.list_ids(reader, RunFilter(), limit=10) == [run_name(1)]
    with store.read() as reader:
        assert runs.list_ids(reader, RunFilter(), limit=10) == [run_name(2), run_name(1)]


def test_a_reader_sees_nothing_of_an_open_transaction(store: Store) -> None:
    with store.write() as writer:
        runs.insert_runs(writer, [new_run(1)])
        with store.read() as reader:
            assert runs.list_ids(reader, RunFilter(), limit=10) == []


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises((DatabaseError, UnavailableError)), store.read() as connection:
        runs.insert_runs(connection, [new_run(1)])
    insert(store, new_run(1))
    assert row_of(store, 1).id == run_name(1)


def test_closing_twice_is_fine(open_store: OpenStore) -> None:
    store = open_store()
    store.close()
    store.close()


def test_closing_waits_for_the_transaction_of_another_thread(open_store: OpenStore) -> None:
    """Closed under its statements, SQLite would take the process down."""
    store = open_store()
    closing = threading.Thread(target=store.close)
    with store.write() as connection:
        runs.insert_runs(connection, [new_run(1)])
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        runs.insert_runs(connection, [new_run(2)])
    closing.join()
    with pytest.raises(UnavailableError), store.write():
        pass
    with open_store().read() as reader:
        assert runs.list_ids(reader, RunFilter(), limit=10) == [run_name(2), run_name(1)]
