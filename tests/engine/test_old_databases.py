"""A database that an older version has written goes on."""

from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from milepost.model.counted import id_over_all_keys, unpack
from milepost.model.operations import Append, Increment, Operation, Set, encode_operations
from milepost.store.database import Store
from support.old_databases import set_back
from support.world import WorkerDouble, World, new_store


@pytest.mark.sqlite_only("that version knew no other one")
@pytest.mark.parametrize("where", ["snapshot", "log start", "log"])
def test_ids_that_were_counted_over_all_keys_count_for_every_key(tmp_path: Path, where: str) -> None:
    """M46: what an older version has counted once is not counted again, whatever its key was."""
    # A run as this version writes it, and then its ids as the older one did.
    source = tmp_path / "new.db"
    world = World(new_store(source))
    worker = WorkerDouble(world)
    world.trigger()
    run = worker.claim_one()
    counting: list[Operation] = [
        Set("t", '"once"'),
        Increment("n", 1, "first"),
        Append("l", 1, None, "é" * 100),
    ]
    worker.report(run, *counting)
    worker.fail(run, retry_after_ms=0)
    world.close()

    target = tmp_path / "old.db"
    engine = set_back(target, "0005")
    with engine.begin() as connection:
        connection.execute(sa.text("ATTACH DATABASE :path AS new"), {"path": str(source)})
        runs = sa.inspect(engine).get_columns("runs")
        names = ", ".join(column["name"] for column in runs)
        # It only knew whether there is a version.
        values = names.replace("metadata_written", "min(metadata_version, 1)")
        connection.execute(sa.text(f"INSERT INTO runs ({names}) SELECT {values} FROM new.runs"))
        known = ", ".join(column["name"] for column in sa.inspect(engine).get_columns("tasks"))
        connection.execute(sa.text(f"INSERT INTO tasks ({known}) SELECT {known} FROM new.tasks"))
        ids = msgspec.json.encode(["first", "é" * 100])
        document = msgspec.json.encode({"t": '"once"', "n": 1, "l": [1]})
        values = {"run": run.id, "value": document, "ids": ids, "operations": encode_operations(counting)}
        if where == "snapshot":
            connection.execute(
                sa.text(
                    "INSERT INTO documents (run_id, version, value, counted) VALUES (:run, 1, :value, :ids)"
                ),
                values,
            )
        elif where == "log start":
            connection.execute(
                sa.text(
                    "INSERT INTO log_starts (run_id, version, value, counted) VALUES (:run, 1, :value, :ids)"
                ),
                values,
            )
            connection.execute(
                sa.text("INSERT INTO documents (run_id, version, value) VALUES (:run, 1, :value)"), values
            )
        else:
            connection.execute(
                sa.text(
                    "INSERT INTO changes (run_id, version, operations, created_at) VALUES (:run, 1, :operations, 1)"
                ),
                values,
            )
    engine.dispose()

    world = World(Store(target), clock=world.clock)
    try:
        worker = WorkerDouble(world)
        worker.register()
        again = worker.claim_one()
        assert set(unpack(again.counted)) == {id_over_all_keys("first"), id_over_all_keys("é" * 100)}
        worker.report(again, *counting, Increment("other", 1, "first"), Increment("other", 1, "second"))
        worker.report(again, Increment("n", 1, "second"), Increment("n", 1, "second"))
        assert world.document(run.id)[0] == {"t": '"once"', "n": 2, "l": [1], "other": 1}
    finally:
        world.close()


@pytest.mark.sqlite_only("the log of the other one was always kept so")
def test_a_log_that_was_kept_in_the_order_of_runs_is_taken_over_whole(tmp_path: Path) -> None:
    engine = set_back(tmp_path / "old.db", "0025")
    columns = "run_id, version, operations, writer_id, writer_attempt, writer_sequence, refused, created_at"
    rows = [
        (f"run_{run}", version, b'[{"type":"set"}]', *writer, version)
        for version in range(1, 4)
        for run, writer in ((2, ("run_2", 1, version, b"[0]")), (1, (None, None, None, None)))
    ]
    with engine.begin() as connection:
        for row in rows:
            connection.exec_driver_sql(
                f"INSERT INTO changes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
            )
    engine.dispose()
    store = Store(tmp_path / "old.db")
    try:
        with store.read() as connection:
            found = connection.exec_driver_sql(f"SELECT {columns} FROM changes ORDER BY run_id, version")
            assert [tuple(row) for row in found] == sorted(rows, key=lambda row: row[:2])
            [(text,)] = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'changes'")
            assert "ROWID" not in text
    finally:
        store.close()
