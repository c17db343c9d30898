"""The small tables: every verb of `store.records`."""

import pytest
from sqlalchemy.exc import IntegrityError

from conformance.rows import NOW, run_name
from milepost.store import records
from milepost.store.database import Store
from milepost.store.records import LogMark, LogRow, TaskRow
from support.work import work_of_writer


def line(number: int, run: int = 1) -> LogRow:
    return LogRow(run_name(run), 1, NOW + number, "info", "app.mail", f"line {number}, größer")


def task(
    task_id: str, queue: str = "q", concurrency: int | None = None, schema: bytes | None = None
) -> TaskRow:
    return TaskRow(task_id, queue, concurrency, b"{}", schema, NOW)


def test_log_lines_come_in_the_order_they_were_added_page_by_page(store: Store) -> None:
    with store.write() as connection:
        records.append_logs(connection, [line(5), line(0, run=2), line(3), line(4)])
        records.append_logs(connection, [])
    with store.write() as connection:
        records.append_logs(connection, [line(1)])
    with store.read() as connection:
        whole = records.load_logs(connection, run_name(1), after=0, limit=100)
        first = records.load_logs(connection, run_name(1), after=0, limit=3)
        rest = records.load_logs(connection, run_name(1), after=first[-1][0], limit=3)
        assert records.load_logs(connection, run_name(3), after=0, limit=3) == []
    assert [row for _, row in whole] == [line(5), line(3), line(4), line(1)]
    assert first + rest == whole


def test_a_line_can_be_added_alone_and_say_something_else_later(store: Store) -> None:
    with store.write() as connection:
        records.append_logs(connection, [line(1)])
        number = records.append_log(connection, line(2))
        records.append_logs(connection, [line(3)])
    with store.write() as connection:
        records.change_log(connection, number, "something else")
    with store.read() as connection:
        found = records.load_logs(connection, run_name(1), after=0, limit=9)
    assert [row.message for _, row in found] == [line(1).message, "something else", line(3).message]
    assert found[1][0] == number


def test_marks_of_logs_are_kept_for_each_attempt_and_writer(store: Store) -> None:
    first = LogMark(run_name(1), 1, "worker_1", 3, 2**40, 7, 2**41, 12)
    others = [
        LogMark(run_name(1), 2, "worker_1", 1),
        LogMark(run_name(1), 1, "", 1),
        LogMark(run_name(2), 1, "", 9),
    ]
    with store.write() as connection:
        records.save_log_marks(connection, [LogMark(run_name(1), 1, "worker_1", 1, 5), *others])
        records.save_log_marks(connection, [first])
        records.save_log_marks(connection, [])
    with store.read() as connection:
        found = records.load_log_marks(connection, {run_name(1), run_name(3)})
        assert records.load_log_marks(connection, []) == []
    assert sorted(found, key=repr) == sorted([first, *others[:2]], key=repr)


def test_the_newest_word_about_a_task_wins(store: Store) -> None:
    with store.write() as connection:
        records.save_tasks(connection, [task("a"), task("b", concurrency=3, schema=b'{"type":"object"}')])
        records.save_tasks(connection, [])
    with store.write() as connection:
        records.save_tasks(connection, [task("a", queue="other", concurrency=1)])
    with store.read() as connection:
        assert records.load_tasks(connection) == {
            "a": task("a", queue="other", concurrency=1),
            "b": task("b", concurrency=3, schema=b'{"type":"object"}'),
        }


def test_answers_are_kept_until_they_are_pruned(store: Store) -> None:
    rows = [(f"id {number}", b"%d" % number, NOW + number) for number in range(4)]
    with store.write() as connection:
        records.save_answers(connection, rows)
        records.save_answers(connection, [])
    with store.read() as connection:
        assert records.load_answers(connection, ["id 0", "id 3", "id 9"]) == {"id 0": b"0", "id 3": b"3"}
    with store.write() as connection:
        assert records.prune_answers(connection, before=NOW + 2, limit=10) == 2
        assert records.prune_answers(connection, before=NOW + 2, limit=10) == 0
    with store.read() as connection:
        found = records.load_answers(connection, [f"id {number}" for number in range(4)])
    assert set(found) == {"id 2", "id 3"}


def test_pruning_answers_costs_what_is_pruned_and_not_what_there_is(store: Store) -> None:
    """The oldest go first, a few at a time: whoever writes waits for one step and not for all of them."""
    with store.write() as connection:
        records.save_answers(connection, [(f"id {number:05}", b"1", NOW + number) for number in range(5000)])
    with work_of_writer(store) as work, store.write() as connection:
        assert records.prune_answers(connection, before=NOW + 4000, limit=10) == 10
    assert work.steps < 1500
    with store.read() as connection:
        assert set(records.load_answers(connection, [f"id {number:05}" for number in range(12)])) == {
            "id 00010",
            "id 00011",
        }


def test_one_request_has_one_answer(store: Store) -> None:
    with store.write() as connection:
        records.save_answers(connection, [("id", b"1", NOW)])
    with pytest.raises(IntegrityError), store.write() as connection:
        records.save_answers(connection, [("id", b"2", NOW)])
