"""What holds for SQLite alone: the file, its settings, and what is said when it cannot be used."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from milepost.errors import ConfigurationError
from milepost.store.database import Store


@pytest.mark.parametrize(("setting", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_the_writer_uses_the_log_and_the_durability_that_was_asked_for(
    tmp_path: Path, setting: str, number: int
) -> None:
    store = Store(tmp_path / "milepost.db", synchronous=setting)
    try:
        with store.write() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == number
        with store.read() as connection:
            assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
    finally:
        store.close()


def test_what_is_acknowledged_is_on_disk_unless_it_was_asked_otherwise(tmp_path: Path) -> None:
    store = Store(tmp_path / "milepost.db")
    try:
        with store.write() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    finally:
        store.close()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "milepost.db"
    Store(path).close()
    assert path.is_file()


def test_a_database_of_a_newer_version_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    store = Store(path)
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9876'"))
    store.close()
    with pytest.raises(ConfigurationError, match="newer version") as caught:
        Store(path)
    assert "9876" in str(caught.value)
    assert str(path) in str(caught.value)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9876",)]


@pytest.mark.parametrize("content", [b"PNG", b"not a database, however long it may be. " * 400])
def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "milepost.db"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (distance REAL)")
        connection.commit()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Store(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    path.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Store(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "data"
    with pytest.raises(ConfigurationError) as caught:
        Store(folder / "milepost.db")
    assert str(folder) in str(caught.value)


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    path.touch()
    Store(path).close()
    assert path.stat().st_size > 0
