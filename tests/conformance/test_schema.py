"""The tables that the migrations make are the tables that the code speaks of."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Inspector, create_engine, inspect

from conformance.conftest import OpenStore
from milepost.errors import ConfigurationError
from milepost.store import database, runs
from milepost.store import schema as store_schema
from milepost.store.database import Store, known_schemas
from milepost.store.schema import tables
from milepost.store.statements import Statement
from support import postgres
from support.old_databases import set_back


def described(connection: Connection) -> dict[str, Any]:
    """Tables with columns, keys, indexes and checks, as the database reports them."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": {
                column["name"]: (
                    column["type"].compile(connection.dialect),
                    column["nullable"],
                    column["default"],
                )
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": {
                index["name"]: (index["column_names"], index["unique"], _condition(index))
                for index in inspector.get_indexes(table)
            },
            "checks": _checks(inspector, table),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def _condition(index: Any) -> str | None:
    found = index.get("dialect_options", {})
    condition = next((value for name, value in found.items() if name.endswith("_where")), None)
    return None if condition is None else str(condition)


def _compact(connection: Connection) -> set[str]:
    texts = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return {name for name, sql in texts if re.search(r"WITHOUT\s+ROWID", sql)}


def _checks(inspector: Inspector, table: str) -> dict[Any, str]:
    return {check["name"]: check["sqltext"] for check in inspector.get_check_constraints(table)}


@pytest.fixture
def store(place: Path | str, open_store: OpenStore) -> Store:
    """An open store whose tables the migrations have made, one after the other."""
    if isinstance(place, Path):
        set_back(place, "head").dispose()
    return open_store()


@pytest.fixture
def fresh(place: Path | str) -> Iterator[Connection]:
    """A database of the same kind whose tables were made from `schema.py` alone."""
    if isinstance(place, Path):
        engine = create_engine("sqlite://")
        name = None
    else:
        name = postgres.server().create_database()
        engine = create_engine(postgres.server().url(name).replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        tables.create_all(connection)
        yield connection
    engine.dispose()
    if name is not None:
        postgres.server().drop_database(name)


def test_a_migrated_database_equals_a_fresh_one(store: Store, fresh: Connection) -> None:
    with store.read() as connection:
        migrated = described(connection)
    assert set(migrated) == set(tables.tables)
    for table, parts in described(fresh).items():
        assert migrated[table] == parts, table


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_new_file_has_what_the_migrations_make(
    open_store: OpenStore, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what only SQLite's own text tells, and the version: a later one migrates both from there."""

    def all_of(store: Store) -> tuple[dict[str, Any], set[str], list[Any]]:
        with store.read() as connection:
            versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").fetchall()
            return described(connection), _compact(connection), versions

    monkeypatch.setattr(database, "_upgrade", pytest.fail)
    new = Store(tmp_path / "new.db")
    try:
        assert all_of(new) == all_of(store)
    finally:
        new.close()
    Store(tmp_path / "new.db").close()


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_file_with_tables_of_others_is_not_taken_over(place: Path) -> None:
    with sqlite3.connect(place) as connection:
        connection.execute("CREATE TABLE runs (pace INTEGER)")
    connection.close()
    with pytest.raises(
        ConfigurationError, match="cannot be used as Milepost's database: table runs already exists"
    ):
        Store(place)
    with sqlite3.connect(place) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]
    connection.close()


def test_the_migration_tool_finds_nothing_left_to_do(store: Store) -> None:
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables) == []


def test_every_check_of_the_code_is_in_the_database(store: Store) -> None:
    with store.read() as connection:
        checks = {name for table in described(connection).values() for name in table["checks"]}
    assert checks == {
        "runs_status",
        "runs_held",
        "runs_finished",
        "batches_counts",
        "schedules_times",
        "schedules_active",
        "waitpoints_kind",
        "waitpoints_status",
        "waitpoints_ended",
    }


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "name", ["_INSERT", "_SAVE", "_SAVE_CLAIM", "_SAVE_COMPLETION", "_SAVE_REPORT", "_SAVE_PLACE"]
)
def test_no_table_is_built_to_check_a_row_of_a_run(store: Store, name: str) -> None:
    """SQLite builds one for a list of three or more in a check or in the condition of an index, each time that it writes a row."""
    statement: Statement = getattr(runs, name)
    with store.read() as connection:
        text, _ = statement._compile(connection)
        steps = connection.exec_driver_sql(f"EXPLAIN {text}", (None,) * text.count("?")).fetchall()
    names = {step[1] for step in steps}
    assert names & {"Insert", "Halt"}
    assert "OpenEphemeral" not in names


def test_opening_again_changes_nothing(open_store: OpenStore) -> None:
    first = open_store()
    with first.read() as connection:
        before = described(connection)
    first.close()
    with open_store().read() as connection:
        assert described(connection) == before


WITHOUT_ROW_IDS = {
    "waitpoint_tags",
    "waitpoint_waiters",
    "attempts",
    "batch_members",
    "counted_ids",
    "idempotency_keys",
    "key_places",
    "log_marks",
    "metadata_values",
    "queue_keys",
    "run_counts",
    "run_tags",
    "run_waiters",
    "scheduled_runs",
    "stream_writers",
    "streams",
}


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_tables_without_row_ids_are_so_in_both(store: Store, fresh: Connection) -> None:
    with store.read() as connection:
        assert _compact(connection) == _compact(fresh) == WITHOUT_ROW_IDS


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_every_text_has_one_order_and_every_number_64_bits(store: Store) -> None:
    """Whatever the database was made with: an order left to it, or a number that is full, would differ from SQLite."""
    with store.read() as connection:
        default = connection.exec_driver_sql("SELECT 'a' < 'B'").scalar()
        found = connection.exec_driver_sql(
            "SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        ).fetchall()
    assert default is True or postgres.server().locale != postgres.LOCALE, (
        "the database of the test sorts as people do"
    )
    assert {kind for _, _, kind, _ in found} == {"text", "bigint", "bytea", "double precision"}
    assert [column for *column, kind, collation in found if kind == "text" and collation != "C"] == []


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_what_is_updated_often_has_room_on_its_page(store: Store) -> None:
    with store.read() as connection:
        found = connection.exec_driver_sql(
            "SELECT relname, reloptions[1] AS option FROM pg_class WHERE relname IN ('runs', 'documents')"
        )
        assert {row.relname: row.option for row in found} == {
            "runs": "fillfactor=70",
            "documents": "fillfactor=80",
        }


def test_the_schemas_are_the_migrations_in_their_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(store_schema.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert list(known_schemas()) == [script.revision for script in scripts.walk_revisions()][::-1]
    assert scripts.get_current_head() == known_schemas()[-1]
