"""Runs: every verb of `store.runs`."""

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from conformance.rows import NOW, insert, new_run, put, row_of, run_name
from milepost.model.run import RunStatus
from milepost.store import runs
from milepost.store.database import Store
from milepost.store.queues import QueueRow, all_queues, load_queues, save_queues
from milepost.store.run_counts import ALL, add_counts
from milepost.store.runs import INLINE_CHARACTERS, RunFilter
from milepost.store.schema import runs as table
from support.work import work_of_readers


def names(*numbers: int) -> list[str]:
    return [run_name(number) for number in numbers]


def test_a_new_run_is_queued_and_comes_back_as_it_was_given(store: Store) -> None:
    new = new_run(
        7,
        max_attempts=4,
        parent_id=run_name(1),
        root_id=run_name(0),
        batch_id="batch_1",
        batch_index=2,
        depth=3,
        trigger_function="batchTrigger",
        tags=["blue", "grün", "a,b"],
        payload='{"z": "ü"}',
        payload_type="application/json",
        trigger_metadata=b'{"k":1}',
    )
    insert(store, new)
    with store.read() as connection:
        record = runs.load_records(connection, names(7), values=True)[run_name(7)]
    row = record.row
    for name in ("id", "task", "queue", "max_attempts", "due_at", "created_at", "parent_id", "root_id"):
        assert getattr(row, name) == getattr(new, name), name
    assert (row.batch_id, row.depth, row.trigger_function) == ("batch_1", 3, "batchTrigger")
    assert row.status is RunStatus.QUEUED
    assert (row.attempt, row.report_sequence, row.metadata_version, row.updated_at) == (
        0,
        0,
        0,
        new.created_at,
    )
    assert (row.worker_id, row.started_at, row.finished_at, row.large) == (None, None, None, None)
    assert (record.tags, record.payload, record.payload_type) == (new.tags, new.payload, new.payload_type)
    assert (record.output, record.error, record.trigger_metadata) == (None, None, b'{"k":1}')


@pytest.mark.parametrize("count", [1, 2, 60], ids="{} at once".format)
def test_runs_come_back_as_they_were_given_however_many_are_inserted_at_once(
    store: Store, count: int
) -> None:
    """PostgreSQL takes one, a few and many rows in different ways."""
    odd = [
        "",
        "\\N",
        "\\.",
        "\\",
        "a\tb\nc\rd",
        "\0",
        "'\"%s{}",
        "ü\u2028\U0001f600",
        "null",
        "\x7f\x01",
        " x ",
    ]
    new = [
        new_run(
            number,
            payload=None if number % 7 == 5 else odd[number % len(odd)],
            tags=[odd[number % len(odd)] + str(number)],
            batch_id=None if number % 2 else "batch_1",
            batch_index=number,
            trigger_metadata=None if number % 3 else b'{"k":"\\\\N"}',
        )
        for number in range(count)
    ]
    insert(store, *new)
    with store.read() as connection:
        found = runs.load_records(connection, names(*range(count)), values=True)
    assert len(found) == count
    for run in new:
        record = found[run.id]
        assert (record.payload, record.tags, record.trigger_metadata, record.row.batch_id) == (
            run.payload,
            run.tags,
            run.trigger_metadata,
            run.batch_id,
        )


@pytest.mark.parametrize("length", [0, 8192, 8193, 260_000])
def test_a_trigger_document_comes_back_whatever_its_length(store: Store, length: int) -> None:
    """A report must not write it again, so a large one is not in the row; see `large_values`."""
    document = b'{"text":"' + b"x" * length + b'"}'
    insert(store, new_run(1, trigger_metadata=document, payload="y" * length), new_run(2))
    with store.read() as connection:
        found = runs.load_records(connection, [run_name(1), run_name(2)], values=True)
        given = runs.load_trigger_metadata(connection, [run_name(1), run_name(2)])
    assert found[run_name(1)].trigger_metadata == given[run_name(1)] == document
    assert found[run_name(2)].trigger_metadata is given[run_name(2)] is None


def test_saving_a_report_touches_nothing_else(store: Store) -> None:
    insert(store, new_run(1))
    put(store, 1, RunStatus.EXECUTING, worker="worker_1")
    before, row = row_of(store, 1), row_of(store, 1)
    row.report_sequence, row.report_checksum, row.updated_at = 7, 1 << 40, NOW + 9
    row.status = RunStatus.FAILED
    with store.write() as connection:
        runs.save_reports(connection, [row])
    row.status = RunStatus.EXECUTING
    assert row_of(store, 1) == row != before


@pytest.mark.parametrize("length", [0, INLINE_CHARACTERS, INLINE_CHARACTERS + 1, 3 * 1024 * 1024])
def test_a_payload_comes_back_whatever_its_length(store: Store, length: int) -> None:
    insert(store, new_run(1, payload="ß" * length, payload_type="text/plain"), new_run(2))
    with store.read() as connection:
        found = runs.load_records(connection, names(1, 2), values=True)
        without = runs.load_records(connection, names(1, 2), values=False)
    assert found[run_name(1)].payload == "ß" * length
    assert found[run_name(2)].payload is None
    assert without[run_name(1)].payload is None
    assert without[run_name(1)].payload_type == "text/plain"


def test_inserting_nothing_is_fine(store: Store) -> None:
    insert(store)
    with store.read() as connection:
        assert runs.list_ids(connection, RunFilter(), limit=1) == []


def test_rows_are_found_by_id_in_any_number_and_absent_ids_are_left_out(store: Store) -> None:
    insert(store, *(new_run(number) for number in range(2500)))
    wanted = [run_name(number) for number in range(2400, 2600)] + [run_name(number) for number in range(1100)]
    with store.read() as connection:
        found = runs.load_rows(connection, wanted + wanted[:10])
        assert runs.load_rows(connection, []) == {}
        records = runs.load_records(connection, wanted, values=True)
    assert set(found) == set(wanted) - {run_name(number) for number in range(2500, 2600)}
    assert set(records) == set(found)
    assert all(row.id == run_id for run_id, row in found.items())


def test_what_commands_may_change_is_saved(store: Store) -> None:
    insert(store, new_run(1), new_run(2))
    untouched = row_of(store, 2)
    row = row_of(store, 1)
    row.status, row.worker_id = RunStatus.WAITING, "worker_1"
    row.attempt, row.report_sequence, row.metadata_version = 3, 17, 1
    row.due_at, row.updated_at, row.started_at = NOW + 5, NOW + 6, NOW + 7
    with store.write() as connection:
        runs.save_rows(connection, [row])
        runs.save_rows(connection, [])
    assert row_of(store, 1) == row
    assert row_of(store, 2) == untouched


@pytest.mark.parametrize("length", [2, INLINE_CHARACTERS, INLINE_CHARACTERS + 1])
def test_an_output_is_saved_beside_a_payload_of_any_length(store: Store, length: int) -> None:
    insert(store, new_run(1, payload="p" * 10_000), new_run(2, payload="q"))
    rows = [row_of(store, 1), row_of(store, 2)]
    output = "o" * length
    with store.write() as connection:
        runs.save_results(connection, [(rows[0], output, None), (rows[1], None, '{"message":"no"}')])
        runs.save_results(connection, [])
    with store.read() as connection:
        found = runs.load_records(connection, names(1, 2), values=True)
        shown = runs.load_records(connection, names(1, 2), values=False)
    assert (found[run_name(1)].payload, found[run_name(1)].output) == ("p" * 10_000, output)
    assert (found[run_name(2)].output, found[run_name(2)].error) == (None, '{"message":"no"}')
    assert shown[run_name(1)].output is None
    assert shown[run_name(2)].error == '{"message":"no"}'


def test_a_later_result_replaces_the_error_of_the_attempt_before(store: Store) -> None:
    insert(store, new_run(1, payload="p" * 10_000))
    for output, error in ((None, "{}"), ("o" * 10_000, None)):
        with store.write() as connection:
            runs.save_results(
                connection, [(runs.load_rows(connection, names(1))[run_name(1)], output, error)]
            )
    with store.read() as connection:
        record = runs.load_records(connection, names(1), values=True)[run_name(1)]
    assert (record.payload, record.output, record.error) == ("p" * 10_000, "o" * 10_000, None)


def test_due_runs_are_found_oldest_first_over_all_tasks(store: Store) -> None:
    insert(
        store,
        new_run(1, task="a", due_at=NOW + 30),
        new_run(2, task="b", queue="other", due_at=NOW + 10),
        new_run(3, task="a", due_at=NOW + 20),
        new_run(4, task="a", due_at=NOW + 10),
        new_run(5, task="c", due_at=NOW),
        new_run(6, task="a", due_at=NOW + 31),
        new_run(7, task="b", due_at=NOW + 1),
    )
    put(store, 7, RunStatus.EXECUTING, worker="worker_1")
    with store.read() as connection:

        def due(*places: tuple[str, str], limit: int = 10) -> list[tuple[str, str]]:
            found = runs.due_ids(connection, places, limit=limit, now=NOW + 30)
            return [(run_id, queue) for _, run_id, queue in found]

        assert due(("a", "task/work"), ("b", "other"), ("b", "task/work")) == [
            (run_name(2), "other"),
            (run_name(4), "task/work"),
            (run_name(3), "task/work"),
            (run_name(1), "task/work"),
        ]
        # Up to so many of each place.
        both = due(("a", "task/work"), ("b", "other"), limit=1)
        assert [found[0] for found in both] == names(2, 4)
        assert [found[0] for found in due(("c", "task/work"))] == names(5)
        assert due(("a", "other")) == due(("nobody", "task/work")) == []
        assert sorted(runs.queued_places(connection)) == [
            ("a", "task/work"),
            ("b", "other"),
            ("c", "task/work"),
        ]
        assert runs.has_queued(connection, "b", "other")
        assert not runs.has_queued(connection, "b", "task/work")


def test_due_runs_are_found_for_a_worker_with_very_many_tasks(store: Store) -> None:
    insert(store, new_run(1, task="task_0"), new_run(2, task="task_799"))
    with store.read() as connection:
        places = [(f"task_{number}", "task/work") for number in range(800)]
        found = runs.due_ids(connection, places, limit=10, now=NOW + 10)
    assert [run_id for _, run_id, _ in found] == names(1, 2)


def test_the_next_due_time_is_that_of_a_queued_run_after_the_given_one(store: Store) -> None:
    insert(store, *(new_run(number, due_at=NOW + number) for number in (5, 6, 7)))
    insert(store, new_run(1, task="other", due_at=NOW + 6), new_run(2, task="third", due_at=NOW + 1))
    put(store, 6, RunStatus.FAILED)
    with store.read() as connection:

        def next_due(after: int, *tasks: str) -> int | None:
            return runs.next_due_at_after(connection, after, [(task, "task/work") for task in tasks])

        assert next_due(NOW, "work") == NOW + 5
        assert next_due(NOW + 5, "work") == NOW + 7
        assert next_due(NOW + 5, "work", "other") == NOW + 6
        assert next_due(NOW + 7, "work", "other") is None
        assert next_due(NOW, *(f"task_{number}" for number in range(700)), "work") == NOW + 5
        assert next_due(NOW) is None


def test_counts_that_are_kept_add_up(store: Store) -> None:
    with store.write() as connection:
        add_counts(connection, [(ALL, "QUEUED", 3), ("run_1", "QUEUED", 2), (ALL, "FAILED", 1)])
        add_counts(connection, [(ALL, "QUEUED", -1), ("run_1", "QUEUED", -2)])
    with store.read() as connection:
        assert runs.count_by_status(connection, RunFilter()) == {"QUEUED": 2, "FAILED": 1}
        assert runs.count_by_status(connection, RunFilter(parent_id="run_1")) == {}


@pytest.mark.parametrize(
    "filter",
    [
        RunFilter(),
        RunFilter(tags=("rare",)),
        RunFilter(tags=("common",)),
        RunFilter(tags=("rare", "common")),
        RunFilter(tags=("nobody's",)),
        RunFilter(parent_id=run_name(1)),
        RunFilter(root_id=run_name(1)),
        RunFilter(tasks=("work",)),
        RunFilter(top_level=True),
    ],
    ids=str,
)
def test_a_page_of_a_list_costs_the_page_and_not_the_list(store: Store, filter: RunFilter) -> None:
    insert(
        store,
        *(
            new_run(
                number,
                tags=["rare" if number % 1000 == 7 else "common"],
                parent_id=run_name(1) if number % 2 and number > 1 else None,
                root_id=run_name(1) if number % 2 else run_name(number),
            )
            for number in range(3000)
        ),
    )
    with work_of_readers(store) as work, store.read() as connection:
        found = runs.list_ids(connection, filter, limit=10)
    assert bool(found) is (filter.tags != ("nobody's",))
    assert work.steps < 1500, work.steps


def test_the_next_due_time_is_found_without_passing_by_what_is_queued(store: Store) -> None:
    insert(store, *(new_run(number, task="ab"[number % 2], due_at=NOW) for number in range(2000)))
    insert(store, new_run(2000, task="b", due_at=NOW + 9))
    with work_of_readers(store) as work, store.read() as connection:
        places = [("a", "task/work"), ("b", "task/work")]
        assert runs.next_due_at_after(connection, NOW, places) == NOW + 9
    assert work.steps < 200


def test_executing_runs_are_counted_by_queue_and_waiting_ones_are_not(store: Store) -> None:
    insert(store, *(new_run(number, queue="left" if number % 2 else "right") for number in range(8)))
    for number in (0, 1, 2, 3):
        put(store, number, RunStatus.EXECUTING, worker="worker_1")
    put(store, 4, RunStatus.WAITING, worker="worker_1")
    put(store, 5, RunStatus.COMPLETED)
    with store.read() as connection:
        counts = [runs.count_held(connection, queue) for queue in ("left", "right", "nobody")]
    assert counts == [[(None, 2, 0)], [(None, 2, 0)], []]


def test_a_long_line_in_one_queue_is_not_passed_by_when_another_one_is_looked_at(store: Store) -> None:
    insert(store, *(new_run(number, queue="full", due_at=NOW) for number in range(3000)))
    insert(store, new_run(3000, queue="free", due_at=NOW + 1))
    with work_of_readers(store) as work, store.read() as connection:
        found = runs.due_ids(connection, [("work", "free")], limit=5, now=NOW + 5)
    assert [run_id for _, run_id, _ in found] == names(3000)
    assert work.steps < 200


def test_who_waits_to_go_on_is_found_in_the_order_of_wanting(store: Store) -> None:
    insert(store, *(new_run(number, queue="left" if number < 4 else "right") for number in range(6)))
    for number in range(6):
        put(store, number, RunStatus.WAITING, worker="worker_1")
    with store.write() as connection:
        for number, wanted_at in ((0, NOW + 2), (1, NOW + 1), (2, NOW + 1), (4, NOW)):
            connection.execute(
                update(table).where(table.c.id == run_name(number)).values(resuming_at=wanted_at)
            )
    with store.read() as connection:
        assert runs.resuming_ids(connection, "left", None, limit=2) == names(1, 2)
        assert runs.resuming_ids(connection, "left", None, limit=None) == names(1, 2, 0)


def test_queues_are_kept_with_their_counts(store: Store) -> None:
    with store.write() as connection:
        save_queues(connection, [QueueRow("a", 2), QueueRow("b", None, is_paused=1)])
        save_queues(connection, [QueueRow("a", 3, executing=1, resuming=1)])
    with store.read() as connection:
        assert load_queues(connection, ["a", "nobody"]) == {"a": QueueRow("a", 3, 0, 1, 1)}
        assert {queue.name: queue.limit for queue in all_queues(connection)} == {"a": 3, "b": None}
    assert QueueRow("a", 3, concurrency_override=1).limit == 1


def test_held_runs_and_their_holders(store: Store) -> None:
    insert(store, *(new_run(number) for number in range(5)))
    put(store, 0, RunStatus.EXECUTING, worker="worker_1")
    put(store, 1, RunStatus.WAITING, worker="worker_1")
    put(store, 2, RunStatus.EXECUTING, worker="worker_2")
    put(store, 3, RunStatus.COMPLETED)
    with store.read() as connection:
        assert sorted(runs.held_ids(connection, "worker_1")) == names(0, 1)
        assert runs.held_ids(connection, "worker_3") == []
        assert sorted(runs.holders(connection)) == ["worker_1", "worker_2"]


def test_the_document_given_at_trigger_is_kept(store: Store) -> None:
    """M2: replay and "run again" start from it."""
    insert(store, new_run(1, trigger_metadata=b'{"a":1}'), new_run(2))
    with store.read() as connection:
        found = runs.load_trigger_metadata(connection, names(1, 2, 3))
    assert found == {run_name(1): b'{"a":1}', run_name(2): None}


def test_large_values_by_name(store: Store) -> None:
    insert(store, new_run(1, payload="x" * 10_000), new_run(2, payload="short"))
    with store.read() as connection:
        assert runs.load_large(connection, names(1, 2), "payload") == {run_name(1): "x" * 10_000}
        assert runs.load_large(connection, names(1, 2), "output") == {}


def list_of(
    store: Store, *, limit: int = 100, after: str | None = None, before: str | None = None, **fields: Any
):
    with store.read() as connection:
        return runs.list_ids(connection, RunFilter(**fields), limit=limit, after=after, before=before)


def test_lists_are_newest_first_and_cursors_lead_both_ways(store: Store) -> None:
    insert(store, *(new_run(number) for number in range(10)))
    assert list_of(store, limit=3) == names(9, 8, 7)
    assert list_of(store, limit=3, after=run_name(7)) == names(6, 5, 4)
    assert list_of(store, limit=3, after=run_name(1)) == names(0)
    assert list_of(store, limit=3, after=run_name(0)) == []
    assert list_of(store, limit=3, before=run_name(4)) == names(7, 6, 5)
    assert list_of(store, limit=3, before=run_name(8)) == names(9)
    assert list_of(store, limit=3, after=run_name(2), before=run_name(4)) == names(7, 6, 5)


def test_every_filter_narrows_the_list_and_the_counts(store: Store) -> None:
    insert(
        store,
        new_run(0, task="a", tags=["x", "y"]),
        new_run(1, task="b", tags=["y"], parent_id=run_name(0), root_id=run_name(0)),
        new_run(2, task="b", tags=["z"], parent_id=run_name(1), root_id=run_name(0)),
        new_run(3, task="c", batch_id="batch_1", batch_index=0),
        new_run(4, task="a"),
    )
    put(store, 2, RunStatus.COMPLETED)
    put(store, 4, RunStatus.FAILED)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [4, 3, 2, 1, 0]),
        ({"statuses": (RunStatus.COMPLETED,)}, [2]),
        ({"statuses": (RunStatus.COMPLETED, RunStatus.FAILED)}, [4, 2]),
        ({"tasks": ("a",)}, [4, 0]),
        ({"tasks": ("a", "c")}, [4, 3, 0]),
        ({"tags": ("y",)}, [1, 0]),
        ({"tags": ("x", "z")}, [2, 0]),
        ({"tags": ("x", "y")}, [1, 0]),
        ({"batch_id": "batch_1"}, [3]),
        ({"parent_id": run_name(0)}, [1]),
        ({"root_id": run_name(0)}, [2, 1, 0]),
        ({"top_level": True}, [4, 3, 0]),
        ({"top_level": False}, [2, 1]),
        ({"top_level": True, "root_id": run_name(0)}, [0]),
        ({"top_level": True, "statuses": (RunStatus.FAILED,)}, [4]),
        ({"created_from": NOW + 3}, [4, 3]),
        ({"created_to": NOW + 1}, [1, 0]),
        ({"created_from": NOW + 1, "created_to": NOW + 3}, [3, 2, 1]),
        ({"tasks": ("b",), "tags": ("y",)}, [1]),
        ({"tasks": ("b",), "statuses": (RunStatus.FAILED,)}, []),
    ]
    with store.read() as connection:
        for fields, numbers in cases:
            filter = RunFilter(**fields)
            assert runs.list_ids(connection, filter, limit=100) == names(*numbers), fields
            if fields.keys() not in ({}.keys(), {"parent_id"}):
                # Of all runs and of children the counts are kept.
                assert sum(runs.count_by_status(connection, filter).values()) == len(numbers), fields


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_list_without_children_does_not_read_past_them(store: Store) -> None:
    filter = RunFilter(top_level=True)
    statement = select(table.c.id).where(*runs.conditions(filter)).order_by(table.c.id.desc())
    with store.read() as connection:
        text = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert plan == ["SEARCH runs USING COVERING INDEX runs_parent (parent_id=?)"]


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
@pytest.mark.parametrize("statuses", [(RunStatus.FAILED,), (RunStatus.FAILED, RunStatus.DELAYED)])
def test_a_list_of_rare_statuses_reads_no_other_runs(store: Store, statuses: tuple[RunStatus, ...]) -> None:
    plans: list[list[str]] = []
    with store.read() as connection:
        for id, statement in runs._ways(RunFilter(statuses=statuses)):
            text = str(statement.order_by(id.desc()).limit(10).compile(connection))
            values = (statuses[0], 10, 0)
            plans.append([row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)])
    assert plans == [["SEARCH runs USING COVERING INDEX runs_rare (status=?)"]] * len(statuses)


def test_runs_of_a_batch_are_in_index_order_and_an_index_is_taken_once(store: Store) -> None:
    insert(
        store,
        *(new_run(number, batch_id="batch_1", batch_index=9 - number) for number in range(4)),
        new_run(5),
    )
    with store.read() as connection:
        assert list(runs.batch_runs(connection, "batch_1").items()) == list(
            zip(range(6, 10), names(3, 2, 1, 0), strict=True)
        )
        assert runs.batch_runs(connection, "batch_2") == {}
        assert list(runs.batch_runs(connection, "batch_1", after=6, to=8)) == [7, 8]
        assert list(runs.batch_runs(connection, "batch_1", after=6, limit=1)) == [7]
    with pytest.raises(IntegrityError):
        insert(store, new_run(6, batch_id="batch_1", batch_index=9))
    insert(store, new_run(6, batch_id="batch_2", batch_index=9))


@pytest.mark.parametrize(
    "values",
    [
        {"status": "SLEEPING"},
        {"status": "EXECUTING"},
        {"worker_id": "worker_1"},
        {"status": "COMPLETED"},
        {"finished_at": NOW},
        {"status": "WAITING", "worker_id": None},
    ],
)
def test_the_database_itself_refuses_states_that_cannot_be(store: Store, values: dict[str, Any]) -> None:
    insert(store, new_run(1))
    with pytest.raises(IntegrityError), store.write() as connection:
        connection.execute(update(table).where(table.c.id == run_name(1)).values(**values))
    assert row_of(store, 1).status is RunStatus.QUEUED


@pytest.mark.parametrize("count", range(1, 10))
def test_any_number_of_runs_is_looked_up(store: Store, count: int) -> None:
    insert(store, *(new_run(number) for number in range(10)))
    wanted = [run_name(number) for number in range(count)]
    with store.read() as connection:
        assert set(runs.load_rows(connection, wanted)) == set(wanted)
        assert set(runs.load_records(connection, wanted, values=False)) == set(wanted)
