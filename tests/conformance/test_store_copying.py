"""A copy holds the same rows in all tables, whatever kind of database it is copied from and to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from conformance.rows import NOW, batch, change, insert, new_run
from milepost.errors import ConfigurationError
from milepost.store import (
    announcements,
    attempts,
    batches,
    copying,
    documents,
    history,
    idempotency,
    key_places,
    queues,
    records,
    schedules,
    server_settings,
    streams,
    waitpoints,
    workers,
)
from milepost.store.copying import copy_store
from milepost.store.database import Store
from milepost.store.metadata_values import values_of
from milepost.store.run_counts import ALL, add_counts
from milepost.store.schema import tables
from milepost.store.search import replace_values
from support import postgres

OpenNew = Callable[[str], Store]


@pytest.fixture
def open_new(tmp_path: Path) -> Iterator[OpenNew]:
    """Opens a new database of a kind."""
    opened: list[tuple[Store, str | None]] = []

    def open_kind(kind: str) -> Store:
        name = None if kind == "sqlite" else postgres.server().create_migrated_database()
        store = Store(tmp_path / f"{len(opened)}.db" if name is None else postgres.server().url(name))
        opened.append((store, name))
        return store

    yield open_kind
    for store, name in opened:
        store.close()
        if name is not None:
            postgres.server().drop_database(name)


def fill(store: Store) -> None:
    """Something in every table, awkward values among it."""
    large = "x\x00y" * 5000
    insert(
        store,
        *(
            new_run(number, tags=["a", "b\x00"], payload=large if number % 7 == 0 else "1")
            for number in range(1200)
        ),
    )
    with store.write() as connection:
        attempts.insert_attempts(
            connection, [attempts.AttemptRow("run_1", 1, None, None, 2**40, NOW, "raised", "\x01")]
        )
        key_places.offer_keys(connection, [(key_places.KeyPlace("q", "tenant ü", "work"), 2**40)])
        queues.save_queue_keys(connection, [queues.QueueKeyRow("q", "tenant ü", 1, 2)])
        queues.save_queues(connection, [queues.QueueRow("q", None), queues.QueueRow("r", 2**40)])
        add_counts(connection, [(ALL, "QUEUED", 1200)])
        workers.save_workers(connection, [workers.WorkerRow("w", "name", "[]", 1, 2, 3)])
        batches.insert_batches(connection, [batch("batch_1")])
        batches.insert_members(connection, [("batch_1", 0, "run_1")])
        schedules.insert_schedule(
            connection,
            schedules.ScheduleRow(
                id="sched_1",
                task="work",
                type="DECLARATIVE",
                cron="* * * * *",
                anchor_at=1,
                next_at=2,
                metadata=b"\x00",
                created_at=1,
                updated_at=2**40,
            ),
        )
        schedules.insert_scheduled_runs(connection, [schedules.ScheduledRun("run_1", "sched_1", 2**40)])
        idempotency.save_waiters(connection, [("run_1", "run_2")])
        idempotency.save_keys(connection, [idempotency.KeyRow("k\x00", "work", "run_1", 2**40)])
        documents.save_snapshots(connection, [documents.Snapshot("run_1", 3, bytes(range(256)) * 1000, None)])
        history.save_starts(connection, [documents.Snapshot("run_1", 2, b"{}", NOW)])
        documents.append_changes(
            connection, [change(1, version, b"\x00" * version) for version in range(1, 50)]
        )
        documents.save_counted(connection, [("run_1", b"\xff\x00")])
        documents.save_refusals(connection, [("run_1", 1, 2, b"[3]")])
        replace_values(connection, {"run_1": values_of({"a": 1.5, "b": "\x00", "c": [None, True, {}]})})
        records.append_logs(
            connection, [records.LogRow("run_1", 1, NOW, "INFO", "l", f"{n}\x00") for n in range(700)]
        )
        records.save_log_marks(connection, [records.LogMark("run_1", 1, "", notice_number=7)])
        records.save_tasks(connection, [records.TaskRow("t", "q", None, b"{}", None, NOW)])
        records.save_answers(connection, [("id", b"1", NOW)])
        records.save_used_tokens(connection, [records.UsedToken("t", None, 5)])
        streams.save_streams(connection, [streams.StreamRow("run_1", "out/a")])
        streams.save_writers(connection, [streams.WriterRow("run_1", "out/a", "w", None, 1)])
        streams.append_chunks(connection, [streams.ChunkRow("run_1", "out/a", 0, 1, NOW, 1, b"1")])
        token = waitpoints.WaitpointRow(
            "waitpoint_1", "TOKEN", "WAITING", NOW, 2**40, tags='["ü"]', key="key/k"
        )
        waitpoints.insert_waitpoint(connection, token)
        waitpoints.add_waiter(connection, token.id, "run_1")
        upkeep_row = {"name": "job", "holder": "server", "lease_until": 2**40, "finished_at": None}
        connection.execute(tables.tables["upkeep_jobs"].insert(), upkeep_row)
        announcements.append_announcement(connection, b"\x00", now=NOW)
        setting = server_settings.SettingRow("lease_seconds", "30.0", "host, process 7", NOW)
        server_settings.save_settings_rows(connection, [setting])


def rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All but the marks of servers, each of which is about its own database."""
    with store.read() as connection:
        found = {
            table.name: sorted((tuple(row) for row in connection.execute(select(*table.columns))), key=repr)
            for table in tables.sorted_tables
        }
    numbers = found["commit_numbers"]
    found["commit_numbers"] = [row for row in numbers if not row[0].startswith(announcements.MARKS)]
    return found


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres")]
)
def test_all_tables_are_copied(open_new: OpenNew, source: str, target: str) -> None:
    first, second = open_new(source), open_new(target)
    fill(first)
    before = rows(first)
    assert [name for name, found in before.items() if not found] == [], "a table without rows proves nothing"
    counts = copy_store(first, second)
    assert rows(second) == before == rows(first)
    assert counts == {name: len(found) for name, found in before.items()}
    for store in (first, second):
        with store.write() as connection:
            assert records.append_log(connection, records.LogRow("run_1", 1, NOW, "INFO", "l", "m")) == 701


def test_a_target_that_is_not_empty_is_left_alone(open_new: OpenNew) -> None:
    first, second = open_new("sqlite"), open_new("postgres")
    fill(first)
    with second.write() as connection:
        records.save_used_tokens(connection, [records.UsedToken("t", None, 5)])
    before = rows(second)
    with pytest.raises(ConfigurationError, match=r"is not empty \(there are rows in used_tokens\)"):
        copy_store(first, second)
    assert rows(second) == before


def test_a_copy_that_fails_leaves_nothing(open_new: OpenNew, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_new("sqlite"), open_new("postgres")
    fill(first)
    copy_table, last = copying._copy_table, tables.sorted_tables[-1]

    def fail_at_last(reading: Any, writing: Any, table: Any) -> int:
        if table is last:
            raise ZeroDivisionError
        return copy_table(reading, writing, table)

    monkeypatch.setattr(copying, "_copy_table", fail_at_last)
    with pytest.raises(ZeroDivisionError):
        copy_store(first, second)
    assert not any(rows(second).values())
