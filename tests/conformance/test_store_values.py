"""What goes in comes out, and in the same order, whatever the database was made with."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from conformance.rows import NOW, insert, new_run, run_name
from milepost.store import attempts, documents, queues, records, runs, schema, search, streams
from milepost.store.attempts import AttemptRow
from milepost.store.database import Store
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.queues import QueueRow
from milepost.store.records import LogRow, TaskRow
from milepost.store.runs import RunFilter
from milepost.store.schema import metadata_values
from milepost.store.search import replace_values
from milepost.store.statements import HasBytes
from milepost.store.streams import StreamRow, WriterRow

# Two that are escaped, one that an escape could be mistaken for, ones that people sort differently, ones beyond 16 bits.
AWKWARD = [
    *("", "\x00", "\x01", "\x00\x01", "\x01\x01", "\x01\x02", "\x02", "a\x00b"),
    *("a", "A", "b", "B", "_", "-", "a b", "ab", "é", "z", "\ud7ff", "\ue000", "\uffff", "\U0001f600"),
]
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x00\x01\x02aAbB-_ é"), max_size=8
)
WHOLE_64_BITS = [0, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**63 - 1, -(2**63)]


def test_every_text_comes_back(store: Store) -> None:
    for number, value in enumerate(AWKWARD):
        check_text(store, number, value)


def check_text(store: Store, number: int, value: str) -> None:
    run = new_run(number, tags=[value], payload=value, task=value, queue=value, payload_type=value)
    insert(store, run)
    line = LogRow(run.id, 1, NOW, "INFO", value, value)
    attempt = AttemptRow(run.id, 1, value, None, None, NOW, "raised", value)
    writer = WriterRow(run.id, value, value, None, 1, error=value)
    with store.write() as connection:
        first = records.append_log(connection, line)
        records.append_logs(connection, [line])
        attempts.insert_attempts(connection, [attempt])
        streams.save_writers(connection, [writer])
        streams.save_streams(connection, [StreamRow(run.id, value)])
        records.save_tasks(connection, [TaskRow(value, value, None, b"{}", None, NOW)])
        queues.save_queues(connection, [QueueRow(value, 1)])
        records.save_answers(connection, [(value, b"\x00\x01", NOW)])
    with store.read() as connection:
        record = runs.load_records(connection, [run.id], values=True)[run.id]
        assert (record.tags, record.payload, record.row.task, record.row.queue) == (
            [value],
            value,
            value,
            value,
        )
        assert runs.list_ids(connection, RunFilter(tags=(value,)), limit=5) == [run.id]
        assert runs.list_ids(connection, RunFilter(tasks=(value,)), limit=5) == [run.id]
        assert records.load_logs(connection, run.id, after=0, limit=9) == [(first, line), (first + 1, line)]
        assert attempts.load_attempts(connection, run.id) == [attempt]
        assert streams.load_writer(connection, run.id, value, value) == writer
        assert records.load_tasks(connection)[value].queue == value
        assert queues.load_queues(connection, [value]) == {value: QueueRow(value, 1)}
        assert records.load_answers(connection, [value]) == {value: b"\x00\x01"}
        assert runs.due_ids(connection, [(value, value)], limit=1, now=NOW + 99) == [
            (NOW + number, run.id, value)
        ]


def test_texts_are_ordered_code_point_by_code_point(store: Store) -> None:
    rows = {run_name(number): {("[]", 4, 0.0, value)} for number, value in enumerate(AWKWARD)}
    insert(store, *(new_run(number) for number in range(len(AWKWARD))))
    with store.write() as connection:
        replace_values(connection, rows)
    column = metadata_values.c.text
    with store.read() as connection:
        assert list(connection.execute(select(column).order_by(column)).scalars()) == sorted(AWKWARD)
        for low, high in pairwise(sorted(AWKWARD)):
            between = select(column).where(column > low, column <= high)
            assert list(connection.execute(between).scalars()) == [high]


def test_ids_are_read_in_the_order_of_python(store: Store) -> None:
    """Cursors compare ids: an order of its own in the database would pass runs over."""
    ids = [f"run_{name}" for name in ("a", "B", "A", "b", "_", "Z", "é", "z", "0", "-")]
    insert(store, *(new_run(1, id=run_id, root_id=run_id, tags=["t"]) for run_id in ids))
    newest_first = sorted(ids, reverse=True)
    with store.read() as connection:
        for filter in (RunFilter(), RunFilter(tags=("t",))):
            assert runs.list_ids(connection, filter, limit=20) == newest_first
            found, after = [], None
            while page := runs.list_ids(connection, filter, limit=3, after=after):
                found += page
                after = page[-1]
            assert found == newest_first
        assert search.unindexed_ids(connection, limit=20) == []


def test_whole_numbers_have_64_bits(store: Store) -> None:
    for at, number in enumerate(WHOLE_64_BITS):
        check_number(store, at, number)


def check_number(store: Store, at: int, number: int) -> None:
    run_id = run_name(at)
    insert(store, new_run(at))
    with store.write() as connection:
        row = runs.load_rows(connection, [run_id])[run_id]
        row.report_sequence = row.attempt = row.charged = row.metadata_version = row.due_at = number
        row.claim_sequence = row.report_checksum = number
        runs.save_rows(connection, [row])
        change = ChangeRow(run_id, number, b"[]", run_id, number, number, None, number)
        documents.append_changes(connection, [change])
        documents.save_refusals(connection, [(run_id, number, number, b"[1]")])
    with store.read() as connection:
        assert runs.load_rows(connection, [run_id])[run_id] == row
        if number > 0:
            assert documents.load_changes(connection, {run_id: number - 1}) == {run_id: [change]}
        assert documents.load_refusals(connection, run_id, number, number) == b"[1]"


def test_a_number_of_more_bits_is_told_as_such(store: Store) -> None:
    insert(store, new_run(1))
    for number in (2**63, -(2**63) - 1, 2**200):
        with pytest.raises(OverflowError):
            save_due(store, number)
    with store.read() as connection:
        assert runs.load_rows(connection, [run_name(1)])[run_name(1)].due_at == NOW + 1


def save_due(store: Store, due_at: int) -> None:
    with store.write() as connection:
        row = runs.load_rows(connection, [run_name(1)])[run_name(1)]
        row.due_at = due_at
        runs.save_rows(connection, [row])


def test_any_number_of_keys_is_looked_up(store: Store) -> None:
    """PostgreSQL takes 65,535 parameters at most, and SQLite 32,766."""
    insert(store, *(new_run(number) for number in range(5)))
    count = 70_000
    ids = [run_name(number) for number in range(count)]
    with store.read() as connection:
        assert set(runs.load_rows(connection, ids)) == set(ids[:5])
        assert documents.load_snapshots(connection, ids) == {}
        assert documents.load_changes(connection, dict.fromkeys(ids, 0)) == {}
        assert documents.load_counted(connection, ids[0], [run_id.encode() for run_id in ids]) == set()


@given(st.lists(TEXTS, unique=True, max_size=20), st.data())
def test_searched_texts_are_found_by_range_as_python_compares_them(
    shared_store: Store, values: list[str], data: st.DataObject
) -> None:
    low = data.draw(TEXTS)
    column = metadata_values.c.text
    with shared_store.write() as connection:
        connection.execute(text("DELETE FROM metadata_values"))
        rows = [{"run_id": "r", "path": "p", "kind": 4, "number": 0.0, "text": value} for value in values]
        if rows:
            connection.execute(metadata_values.insert(), rows)
        found = connection.execute(select(column).where(column >= low).order_by(column)).scalars()
        assert list(found) == sorted(value for value in values if value >= low)


@given(st.binary(max_size=20), st.binary(min_size=1, max_size=3))
def test_bytes_are_found_in_documents_as_python_finds_them(
    shared_store: Store, value: bytes, part: bytes
) -> None:
    with shared_store.write() as connection:
        connection.execute(text("DELETE FROM documents"))
        documents.save_snapshots(connection, [Snapshot("run_1", 1, value)])
        assert documents.load_snapshots(connection, ["run_1"])["run_1"].value == value
        found = connection.execute(
            select(schema.documents.c.run_id).where(HasBytes(schema.documents.c.value, part))
        ).scalars()
        assert list(found) == (["run_1"] if part in value else [])
