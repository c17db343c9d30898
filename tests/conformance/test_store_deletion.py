"""Deleting runs, and finding those that are old enough: every verb of `store.deletion`. That nothing is left of a run is tried in
`tests/engine/test_deletion.py`, where runs have everything that they can have."""

from typing import Any

import pytest
from sqlalchemy import insert as insert_rows
from sqlalchemy import select

from conformance.rows import NOW, batch, insert, new_run, put, row_of, run_name
from milepost.model.run import RunStatus
from milepost.store import batches, deletion, run_counts, runs
from milepost.store.database import Store
from milepost.store.deletion import DoomedRun
from milepost.store.schema import batch_members, logs
from milepost.store.schema import batches as batches_table

FAR = 2**63 - 1
COMPLETED, FAILED, QUEUED = RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.QUEUED


def below(parent: int, number: int, *, root: int | None = None, depth: int = 1, **fields: Any) -> Any:
    """A child to be inserted."""
    return new_run(
        number, parent_id=run_name(parent), root_id=run_name(root or parent), depth=depth, **fields
    )


def end(store: Store, number: int, status: RunStatus, at: int, aged_from: int | None = None) -> None:
    """Let a run finish then."""
    put(store, number, status)
    row = row_of(store, number)
    row.finished_at, row.aged_from = at, aged_from
    with store.write() as connection:
        runs.save_rows(connection, [row])


def doomed(
    number: int, status: RunStatus, parent: int | None = None, batch_id: str | None = None
) -> DoomedRun:
    return DoomedRun(run_name(number), status, None if parent is None else run_name(parent), batch_id)


def old_roots(store: Store, **fields: Any) -> tuple[list[int], str | None]:
    values: dict[str, Any] = {
        "after": "", "before": run_name(99999), "limit": 100, "cutoffs": {COMPLETED: NOW}, "settled_before": FAR,
    }  # fmt: skip
    with store.read() as connection:
        found, after = deletion.old_roots(connection, **{**values, **fields})
    return [int(run_id.removeprefix("run_")) for run_id in found], after


def test_roots_are_old_by_the_time_of_their_status(store: Store) -> None:
    insert(store, *map(new_run, range(1, 7)))
    for number, status, at in (
        (1, COMPLETED, NOW - 1), (2, COMPLETED, NOW), (3, FAILED, 0), (4, COMPLETED, 0), (6, RunStatus.CANCELED, 0),
    ):  # fmt: skip
        end(store, number, status, at)
    assert old_roots(store) == ([1, 4], None)
    assert old_roots(store, cutoffs={COMPLETED: FAR, FAILED: 1}) == ([1, 2, 3, 4], None)
    assert old_roots(store, cutoffs={FAILED: 0}) == old_roots(store, cutoffs={}) == ([], None)
    assert old_roots(store, before=run_name(4)) == ([1], None)
    # Portions are of those that are looked at, whether or not they may go.
    assert old_roots(store, limit=3) == ([1], run_name(3))
    assert old_roots(store, limit=3, after=run_name(3)) == ([4], run_name(6))
    assert old_roots(store, limit=3, after=run_name(6)) == ([], None)


def test_what_may_still_be_repeated_stays(store: Store) -> None:
    insert(store, new_run(1), new_run(2), new_run(3))
    end(store, 1, COMPLETED, NOW - 5)
    end(store, 2, COMPLETED, NOW - 5, aged_from=NOW + 5)
    end(store, 3, COMPLETED, NOW - 5, aged_from=-FAR)
    assert old_roots(store, settled_before=NOW) == ([1, 3], None)
    assert old_roots(store, settled_before=NOW - 5) == ([3], None)
    assert old_roots(store, settled_before=NOW + 6) == ([1, 2, 3], None)


def test_a_tree_goes_as_a_whole_from_below_in_portions(store: Store) -> None:
    insert(store, new_run(1), new_run(9))
    insert(store, below(1, 3), below(1, 2), below(2, 4, root=1, depth=2), below(9, 10))
    for number in (1, 2, 3, 9):
        end(store, number, COMPLETED, NOW - 1)
    ages: dict[str, Any] = {"cutoffs": {COMPLETED: NOW, FAILED: NOW}, "settled_before": FAR}

    def tree(root: int, limit: int) -> list[DoomedRun]:
        with store.read() as connection:
            return deletion.old_tree(connection, run_name(root), limit=limit, **ages)

    assert tree(1, 10) == []
    assert old_roots(store, **ages) == ([], None)
    end(store, 4, FAILED, NOW - 1)
    whole = [doomed(4, FAILED, 2), doomed(2, COMPLETED, 1), doomed(3, COMPLETED, 1), doomed(1, COMPLETED)]
    assert tree(1, 10) == whole
    assert tree(1, 2) == whole[:2]
    assert old_roots(store, **ages) == ([1], None)
    assert tree(9, 10) == tree(77, 10) == []
    with store.read() as connection:
        assert deletion.with_descendants(connection, run_name(1)) == whole
        assert deletion.with_descendants(connection, run_name(2)) == whole[:2]
        assert deletion.with_descendants(connection, run_name(77)) == []


def test_whatever_counts_runs_is_kept_exact_and_empty_batches_go(store: Store) -> None:
    with store.write() as connection:
        batches.insert_batches(connection, [batch(f"batch_{number}") for number in (1, 2, 3)])
        batches.insert_batches(connection, [batch("batch_4", parent_id=run_name(2))])
        connection.execute(
            insert_rows(batch_members).values(batch_id="batch_3", batch_index=0, run_id=run_name(5))
        )
    insert(store, new_run(1), new_run(5, batch_id="batch_1"))
    insert(
        store,
        below(1, 2, batch_id="batch_1"),
        below(1, 3, batch_id="batch_2"),
        below(1, 4, batch_id="batch_3"),
    )
    for number in (2, 3, 4):
        end(store, number, COMPLETED, NOW)
    going = [doomed(number, COMPLETED, 1, f"batch_{number - 1}") for number in (2, 3, 4)]

    def counts(parent: str) -> dict[str, int]:
        with store.read() as connection:
            return run_counts.load_counts(connection, parent)

    parent, everything = run_name(1), run_counts.ALL
    with store.write() as connection:
        run_counts.add_counts(
            connection, [(parent, "COMPLETED", 3), (everything, "COMPLETED", 4), (everything, "QUEUED", 2)]
        )
        deletion.delete_runs(connection, going)
        deletion.delete_runs(connection, [])
    assert counts(parent) == {}
    assert counts(everything) == {"COMPLETED": 1, "QUEUED": 2}
    with store.read() as connection:
        left = runs.load_rows(connection, [run_name(number) for number in range(1, 6)])
        assert sorted(left) == [run_name(1), run_name(5)]
        assert set(connection.execute(select(batches_table.c.id)).scalars()) == {"batch_1", "batch_3"}


def test_lines_of_runs_that_have_finished_long_ago_are_found_in_portions(store: Store) -> None:
    insert(store, new_run(1), new_run(2), new_run(3))
    end(store, 1, COMPLETED, NOW - 1)
    end(store, 2, FAILED, NOW)
    lines = [(1, NOW - 9), (2, NOW - 9), (3, NOW - 9), (1, NOW - 2), (1, NOW - 2)]
    with store.write() as connection:
        for number, (run, at) in enumerate(lines, 1):
            connection.execute(
                insert_rows(logs).values(
                    number=number,
                    run_id=run_name(run),
                    attempt=1,
                    at=at,
                    level="info",
                    logger="",
                    message="é",
                )
            )

    def old(after: int, limit: int, finished_before: int = NOW) -> tuple[list[int], int | None]:
        with store.read() as connection:
            return deletion.old_log_lines(
                connection, after=after, finished_before=finished_before, limit=limit
            )

    assert old(0, 10) == ([1, 4, 5], None)
    assert old(0, 3) == ([1], 3)
    assert old(3, 2) == ([4, 5], 5)
    assert old(5, 2) == ([], None)
    # All that is left was written later than that.
    assert old(0, 2, NOW - 9) == ([], None)
    with store.write() as connection:
        deletion.delete_log_lines(connection, [1, 5, 77])
        deletion.delete_log_lines(connection, [])
    assert old(0, 10) == ([4], None)


@pytest.mark.parametrize("count", [0, 3000])
def test_any_number_of_runs_goes_at_once(store: Store, count: int) -> None:
    insert(store, *map(new_run, range(count)), new_run(99999))
    with store.write() as connection:
        run_counts.add_counts(connection, [(run_counts.ALL, QUEUED.value, count + 1)])
        deletion.delete_runs(connection, [doomed(number, QUEUED) for number in range(count)])
    with store.read() as connection:
        assert run_counts.load_counts(connection, run_counts.ALL)[QUEUED.value] == 1
        assert list(runs.load_rows(connection, [run_name(99999), run_name(0)])) == [run_name(99999)]
