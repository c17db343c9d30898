"""Where the store is, who may see it, and what happens when it is taken away from under the server."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError, OperationalError

from conformance.rows import new_run
from milepost.errors import UnavailableError
from milepost.store import runs, sqlite
from milepost.store.database import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    before = os.umask(0o022)
    store = Store(folder / "milepost.db")
    os.umask(before)
    yield store
    store.close()


def insert(store: Store, number: int) -> None:
    with store.write() as connection:
        runs.insert_runs(connection, [new_run(number)])


def count(store: Store) -> int:
    with store.read() as connection:
        return connection.execute(text("SELECT count(*) FROM runs")).scalar_one()


def test_only_the_owner_can_read_the_files(store: Store, folder: Path) -> None:
    """Also the ones that SQLite makes."""
    insert(store, 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"milepost.db": 0o600, "milepost.db-wal": 0o600, "milepost.db-shm": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    Store(folder / "milepost.db").close()


def remove_the_log(folder: Path) -> None:
    (folder / "milepost.db-wal").unlink()


def restore_a_copy(folder: Path) -> None:
    copy = folder / "copy"
    copy.write_bytes((folder / "milepost.db").read_bytes())
    copy.replace(folder / "milepost.db")


AWAY: list[Callable[[Path], None]] = [
    remove,
    replace,
    remove_the_log,
    restore_a_copy,
    lambda folder: folder.rename(folder.with_name("moved")) and None,
]


@pytest.mark.parametrize(
    "take_away", AWAY, ids=["removed", "replaced", "log removed", "copy put there", "moved"]
)
def test_nothing_is_acknowledged_that_goes_to_files_which_are_gone(
    store: Store, folder: Path, take_away: Callable[[Path], None]
) -> None:
    insert(store, 1)
    assert not store.is_displaced
    take_away(folder)
    assert store.is_displaced
    for number in (2, 3):
        with pytest.raises(UnavailableError, match="the data folder was removed, replaced or moved"):
            insert(store, number)
    with pytest.raises(UnavailableError, match="data folder"):
        count(store)


def test_what_is_taken_away_during_a_transaction_is_not_committed(store: Store, folder: Path) -> None:
    insert(store, 1)

    def insert_while_it_goes() -> None:
        with store.write() as connection:
            runs.insert_runs(connection, [new_run(2)])
            folder.rename(folder.with_name("moved"))

    with pytest.raises(UnavailableError):
        insert_while_it_goes()
    folder.with_name("moved").rename(folder)
    assert count(store) == 1


def test_a_folder_that_is_put_back_goes_on(store: Store, folder: Path) -> None:
    insert(store, 1)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(UnavailableError):
        insert(store, 2)
    folder.with_name("moved").rename(folder)
    insert(store, 2)
    assert count(store) == 2


def test_a_late_reader_never_makes_a_database(folder: Path) -> None:
    """Readers connect when they are needed, and SQLite makes a file where there is none."""
    store = Store(folder / "milepost.db")
    remove(folder)
    folder.mkdir()
    with pytest.raises(UnavailableError):
        count(store)
    assert list(folder.iterdir()) == []
    store.close()


def test_another_working_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("data") / "milepost.db")
    insert(store, 1)
    monkeypatch.chdir("/")
    insert(store, 2)
    assert count(store) == 2
    store.close()


@pytest.mark.parametrize("name", ["a b", "100%", "who?", "a#b", "ü", "it's", "a&b=c;d"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name / "milepost.db")
    insert(store, 1)
    assert count(store) == 1
    store.close()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["milepost.db"]


# --- reading that fails ------------------------------------------------------------------------------------


def test_a_read_of_what_is_closed_may_be_tried_again(store: Store) -> None:
    insert(store, 1)
    assert count(store) == 1
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        count(store)


def test_a_damaged_file_is_unavailable(folder: Path) -> None:
    store = Store(folder / "milepost.db")
    for number in range(2000):
        insert(store, number)
    store.close()
    with (folder / "milepost.db").open("r+b") as file:
        # Not the first pages, which the server reads at its start.
        file.seek(150 * 4096)
        file.write(b"\xff" * 40 * 4096)
    store = Store(folder / "milepost.db")
    with pytest.raises(UnavailableError, match=r"cannot be read now.*malformed"), store.read() as connection:
        connection.execute(text("SELECT * FROM runs NOT INDEXED")).fetchall()
    store.close()


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOMEM,
    ],
    ids=["busy", "disk error", "no descriptor", "corrupt", "no memory"],
)
def test_a_failing_read_is_unavailable_and_not_a_mistake(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    insert(store, 1)

    def fail(connection: Connection, statement: str, *values: object) -> None:
        error = sqlite3.OperationalError("it does not work")
        error.sqlite_errorcode = code
        raise OperationalError(statement, None, error)

    monkeypatch.setattr(sqlite, "execute", fail)
    with pytest.raises(UnavailableError, match="cannot be read now: it does not work"):
        count(store)


def test_a_wrong_statement_is_a_mistake_all_the_same(store: Store) -> None:
    with pytest.raises(DatabaseError), store.read() as connection:
        connection.execute(text("SELECT nothing FROM nowhere"))


def test_the_log_is_cut_back_after_a_large_transaction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit it keeps the size of the largest transaction for ever."""
    monkeypatch.setattr(sqlite, "JOURNAL_BYTES_MAX", 256 * 1024)
    store = Store(folder / "milepost.db")
    with store.write() as connection:
        connection.execute(text("CREATE TABLE large (value BLOB)"))
        connection.execute(text("INSERT INTO large VALUES (zeroblob(30000000))"))
    log = sqlite.log_of(folder / "milepost.db")
    assert log.stat().st_size > 20_000_000
    for number in range(1, 4):
        # The log begins anew with the first write after everything in it has reached the file.
        insert(store, number)
    assert log.stat().st_size <= 256 * 1024
    assert not store.is_displaced
    store.close()
