"""Documents: snapshots, the log, refusals."""

import pytest
from sqlalchemy.exc import IntegrityError

from conformance.rows import change, run_name
from milepost.store import documents
from milepost.store.database import Store
from milepost.store.documents import Snapshot


def test_a_snapshot_is_replaced_by_the_next_one(store: Store) -> None:
    first = Snapshot(run_name(1), 3, b'{"a":1}')
    other = Snapshot(run_name(2), 1, b"{}", 5)
    with store.write() as connection:
        documents.save_snapshots(connection, [first, other])
        documents.save_snapshots(connection, [])
    second = Snapshot(run_name(1), 9, b'{"a":2}', 7)
    with store.write() as connection:
        documents.save_snapshots(connection, [second])
    with store.read() as connection:
        found = documents.load_snapshots(connection, [run_name(1), run_name(2), run_name(3)])
    assert found == {run_name(1): second, run_name(2): other}


def test_the_log_gives_each_run_its_steps_above_a_version_in_order(store: Store) -> None:
    steps = {
        number: [change(number, version, b"[%d]" % version) for version in (1, 2, 3)] for number in (1, 2, 3)
    }
    with store.write() as connection:
        documents.append_changes(connection, [*steps[2], *reversed(steps[1]), *steps[3]])
        documents.append_changes(connection, [])
    with store.read() as connection:
        found = documents.load_changes(
            connection, {run_name(1): 0, run_name(2): 2, run_name(3): 3, run_name(4): 0}
        )
        assert documents.load_changes(connection, {}) == {}
    assert found == {run_name(1): steps[1], run_name(2): steps[2][2:]}


def test_the_log_of_very_many_runs_is_read_at_once(store: Store) -> None:
    with store.write() as connection:
        documents.append_changes(connection, [change(number, 1) for number in range(1050)])
    with store.read() as connection:
        found = documents.load_changes(connection, {run_name(number): 0 for number in range(1050)})
    assert len(found) == 1050
    assert all(len(steps) == 1 for steps in found.values())


def test_a_step_keeps_who_wrote_it(store: Store) -> None:
    """M44: (run, attempt, sequence) of the writer stands with the step."""
    step = change(1, 1, writer_id=run_name(5), writer_attempt=2, writer_sequence=17)
    with store.write() as connection:
        documents.append_changes(connection, [step])
    with store.read() as connection:
        assert documents.load_changes(connection, {run_name(1): 0}) == {run_name(1): [step]}


def test_two_writers_cannot_both_reach_a_version(store: Store) -> None:
    """M32: a lost update is impossible, not only unlikely."""
    with store.write() as connection:
        documents.append_changes(connection, [change(1, 1)])
    with pytest.raises(IntegrityError), store.write() as connection:
        documents.append_changes(connection, [change(1, 1, b'["other"]')])


def test_refusals_are_found_by_writer_attempt_and_sequence(store: Store) -> None:
    with store.write() as connection:
        documents.save_refusals(
            connection, [("run_1", 1, 1, b"[1]"), ("run_1", 1, 2, b"[2]"), ("run_1", 2, 1, b"[3]")]
        )
        documents.save_refusals(connection, [])
    with store.read() as connection:
        assert documents.load_refusals(connection, "run_1", 1, 2) == b"[2]"
        assert documents.load_refusals(connection, "run_1", 2, 1) == b"[3]"
        assert documents.load_refusals(connection, "run_1", 2, 2) is None
        assert documents.load_refusals(connection, "run_2", 1, 1) is None


def test_ids_that_were_counted_are_found_again(store: Store) -> None:
    """However many are asked for, and only those of the run."""
    ids = [number.to_bytes(12, "big") for number in range(3000)]
    with store.write() as connection:
        documents.save_counted(connection, [(run_name(1), id) for id in ids[:2500]])
        documents.save_counted(connection, [(run_name(2), ids[2999])])
        documents.save_counted(connection, [])
    with store.read() as connection:
        for asked in (ids, ids[2499:2501], ids[:1], ids[2999:], []):
            found = documents.load_counted(connection, run_name(1), asked)
            assert found == set(asked) & set(ids[:2500])
        assert documents.load_counted(connection, run_name(3), ids) == set()
        some = documents.some_counted(connection, run_name(1), limit=10)
        assert len(set(some)) == 10
        assert set(some) < set(ids)
        assert documents.some_counted(connection, run_name(2), limit=10) == [ids[2999]]
    with pytest.raises(IntegrityError), store.write() as connection:
        documents.save_counted(connection, [(run_name(1), ids[0])])
