"""Rows of runs that workers hold: kept for the next report, and never other than what is stored.

All tests of engines and the whole simulation compare each kept row with the stored one when it is taken (`support/held_rows.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from milepost.engine import rows
from milepost.engine.commands import IndexDocuments
from milepost.engine.engine import Engine
from milepost.engine.rows import HeldRows
from milepost.errors import UnavailableError
from milepost.model.operations import Set
from milepost.store import runs
from milepost.store.database import Store
from support import held_rows
from support.faults import faults
from support.world import WorkerDouble, World, new_sqlite_store


@contextmanager
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The runs whose rows are read from the store meanwhile."""
    found: list[str] = []
    load = runs.load_rows

    def noting(connection, ids):  # type: ignore[no-untyped-def]
        wanted = list(ids)
        found.extend(wanted)
        return load(connection, wanted)

    with monkeypatch.context() as patch:
        patch.setattr("milepost.engine.transaction.Transaction.load_runs", held_rows.load_runs)
        patch.setattr(runs, "load_rows", noting)
        yield found


def test_a_report_does_not_read_its_run(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.trigger()
    run = worker.claim_one()
    with loaded(monkeypatch) as read:
        for number in range(5):
            worker.report(run, Set("progress", number))
        worker.finish(run)
    assert read == []
    assert len(world.engine.state.held_rows) == 0, "it has ended"


def test_a_run_that_was_changed_past_its_row_is_read_anew(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("progress", 1))
    world.do(IndexDocuments(limit=10))
    with loaded(monkeypatch) as read:
        worker.report(run, Set("progress", 2))
        worker.report(run, Set("progress", 3))
    assert read == [run_id]


def test_after_a_group_that_failed_everything_is_read_anew(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = world.trigger()
    run = worker.claim_one()
    with faults(world.store, lambda number, text: text == "COMMIT"), pytest.raises(UnavailableError):
        worker.report(run, Set("progress", 1))
    with loaded(monkeypatch) as read:
        worker.report(run, Set("progress", 2))
    assert read == [run_id]


@pytest.mark.sqlite_only("several servers on PostgreSQL tell each other what they commit")
def test_a_second_server_on_the_same_file_is_seen(tmp_path: Path) -> None:
    """It should not be there; but if it is, nothing is decided by a row that it has changed."""
    path = tmp_path / "milepost.db"
    world = World(new_sqlite_store(path))
    worker = WorkerDouble(world)
    run_id = world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("progress", 1))
    own = world.engine
    other = Store(path, synchronous="NORMAL")
    world.engine = Engine(other, world.settings, world.clock)
    world.write(run_id, Set("theirs", 2))
    world.engine = own
    worker.report(run, Set("progress", 3))
    assert world.document(run_id) == ({"progress": 3, "theirs": 2}, 3)
    other.close()
    world.store.close()


def test_as_many_are_kept_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, world: World, worker: WorkerDouble
) -> None:
    monkeypatch.setattr(rows, "ROWS_MAX", 2)
    for _ in range(3):
        world.trigger()
    first, second, third = worker.claim(3)
    kept = world.engine.state.held_rows
    assert len(kept) == 2
    worker.report(first, Set("progress", 1))
    assert kept.copies_of([first.id, second.id, third.id]).keys() == {first.id, third.id}


def test_whoever_takes_a_row_may_change_it(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.claim_one()
    kept = world.engine.state.held_rows
    kept.copies_of([run_id])[run_id].metadata_version = 99
    assert kept.copies_of([run_id])[run_id].metadata_version == 0
    assert HeldRows().copies_of([run_id]) == {}
