"""The history: pages of the log, times, where pruned logs begin, the walk over what may be pruned."""

from conformance.rows import NOW, change, run_name
from milepost.store import documents, history
from milepost.store.database import Store
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.history import LogSpan, Mark


def log(store: Store, number: int, *times: int) -> list[ChangeRow]:
    """A log whose changes were made at these times."""
    rows = [change(number, version, b"[%d]" % version) for version in range(1, len(times) + 1)]
    for row, time in zip(rows, times, strict=True):
        row.created_at = time
    with store.write() as connection:
        documents.append_changes(connection, rows)
    return rows


def test_pages_of_a_log(store: Store) -> None:
    rows = log(store, 1, *range(10))
    log(store, 2, 0)
    with store.read() as connection:

        def page(after: int, **bounds: int) -> list[ChangeRow]:
            return list(history.load_page(connection, run_name(1), after=after, **bounds))

        assert page(0) == rows
        assert page(0, limit=3) == rows[:3]
        assert page(3, limit=3) == rows[3:6]
        assert page(8, limit=5) == rows[8:]
        assert page(2, up_to=4) == rows[2:4]
        assert page(10) == []
        assert list(history.load_page(connection, run_name(3), after=0)) == []


def test_the_first_and_the_last_version(store: Store) -> None:
    log(store, 1, 1, 2, 3)
    log(store, 2, 1)
    with store.write() as connection:
        history.delete_changes(connection, {run_name(1): 1})
    with store.read() as connection:
        assert history.first_version(connection, run_name(1)) == 2
        assert history.last_version(connection, run_name(1)) == 3
        assert history.first_version(connection, run_name(3)) is None
        assert history.last_version(connection, run_name(3)) is None


def test_the_newest_version_at_a_time(store: Store) -> None:
    """Also where the clock has jumped back: the highest version counts."""
    log(store, 1, 10, 20, 90, 30, 40)
    with store.read() as connection:

        def newest(at: int, above: int = 0) -> int | None:
            return history.newest_at(connection, run_name(1), at, above=above)

        assert [newest(at) for at in (9, 10, 19, 20, 35, 40, 89, 90)] == [None, 1, 1, 2, 4, 5, 5, 5]
        assert (newest(35, above=3), newest(35, above=4)) == (4, None)
        assert history.newest_at(connection, run_name(2), 100) is None


def test_where_a_log_begins(store: Store) -> None:
    first = Snapshot(run_name(1), 3, b'{"a":1}', NOW)
    second = Snapshot(run_name(1), 9, b'{"a":2}', None)
    other = Snapshot(run_name(2), 1, b"{}", NOW + 1)
    ids = [run_name(number) for number in (1, 2, 3)]
    with store.write() as connection:
        history.save_starts(connection, [first, other])
        history.save_starts(connection, [])
    with store.read() as connection:
        assert history.load_start(connection, run_name(1)) == first
        assert history.start_marks(connection, ids) == {
            run_name(1): Mark(3, NOW),
            run_name(2): Mark(1, NOW + 1),
        }
    with store.write() as connection:
        history.save_starts(connection, [second])
        history.delete_starts(connection, [run_name(2), run_name(3)])
        history.delete_starts(connection, [])
    with store.read() as connection:
        assert history.load_start(connection, run_name(1)) == second
        assert history.load_start(connection, run_name(2)) is None
        assert history.start_marks(connection, ids) == {run_name(1): Mark(9, None)}


def test_marks_of_snapshots(store: Store) -> None:
    with store.write() as connection:
        documents.save_snapshots(
            connection,
            [Snapshot(run_name(1), 3, b"{}", NOW), Snapshot(run_name(2), 1, b"{}")],
        )
    with store.read() as connection:
        marks = history.snapshot_marks(connection, [run_name(1), run_name(2), run_name(3)])
        assert history.snapshot_marks(connection, []) == {}
    assert marks == {run_name(1): Mark(3, NOW), run_name(2): Mark(1, None)}


def test_changes_are_forgotten_up_to_a_version(store: Store) -> None:
    rows = {number: log(store, number, 1, 2, 3) for number in (1, 2, 3)}
    with store.write() as connection:
        history.delete_changes(connection, {run_name(1): 2, run_name(2): 9, run_name(4): 1})
        history.delete_changes(connection, {})
    with store.read() as connection:
        left = documents.load_changes(connection, {run_name(number): 0 for number in (1, 2, 3)})
    assert left == {run_name(1): rows[1][2:], run_name(3): rows[3]}


def test_refusals_are_forgotten_by_writer(store: Store) -> None:
    with store.write() as connection:
        documents.save_refusals(
            connection,
            [(run_name(1), 1, 1, b"[1]"), (run_name(1), 2, 1, b"[2]"), (run_name(2), 1, 1, b"[3]")],
        )
        history.delete_refusals(connection, [run_name(1), run_name(9)])
        history.delete_refusals(connection, [])
    with store.read() as connection:
        assert documents.load_refusals(connection, run_name(1), 1, 1) is None
        assert documents.load_refusals(connection, run_name(1), 2, 1) is None
        assert documents.load_refusals(connection, run_name(2), 1, 1) == b"[3]"


def test_the_walk_finds_every_run_with_something_to_prune_once(store: Store) -> None:
    """Whatever the size of a step, and however long a log is."""
    for number in (1, 4, 5, 8):
        log(store, number, *range(number))
    with store.write() as connection:
        history.save_starts(connection, [Snapshot(run_name(number), 1, b"{}") for number in (2, 4, 9)])
        documents.save_counted(
            connection, [(run_name(number), b"%d" % id) for number in (1, 7) for id in range(number)]
        )
        documents.save_refusals(
            connection,
            [(run_name(number), 1, sequence, b"[]") for number in (3, 4, 6) for sequence in (1, 2, 3)],
        )
    with store.read() as connection:
        for limit in (1, 2, 3, 100):
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                ids, after = history.logged_ids(connection, after=after, before=run_name(9), limit=limit)
                found += ids
            assert found == [run_name(number) for number in (1, 2, 3, 4, 5, 6, 7, 8)]


def test_counted_ids_are_forgotten_one_by_one(store: Store) -> None:
    with store.write() as connection:
        documents.save_counted(
            connection, [(run_name(number), b"%d" % id) for number in (1, 2) for id in range(5)]
        )
    with store.read() as connection:
        assert history.counted_ids_of(connection, run_name(1), limit=3) == [b"0", b"1", b"2"]
        assert history.counted_ids_of(connection, run_name(3), limit=3) == []
    with store.write() as connection:
        history.delete_counted(connection, [(run_name(1), b"0"), (run_name(1), b"4"), (run_name(3), b"0")])
        history.delete_counted(connection, [])
    with store.read() as connection:
        assert history.counted_ids_of(connection, run_name(1), limit=9) == [b"1", b"2", b"3"]
        assert len(history.counted_ids_of(connection, run_name(2), limit=9)) == 5


def test_spans_of_logs(store: Store) -> None:
    log(store, 1, 5, 9, 7)
    log(store, 2, 1)
    with store.write() as connection:
        history.delete_changes(connection, {run_name(1): 1})
    with store.read() as connection:
        spans = history.log_spans(connection, [run_name(1), run_name(2), run_name(3)])
    assert spans == {run_name(1): LogSpan(2, 3, 9), run_name(2): LogSpan(1, 1, 1)}
