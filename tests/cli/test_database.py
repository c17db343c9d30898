"""`milepost db` on PostgreSQL: what it says, what it refuses, and that no password is shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.cli import backup, database
from milepost.errors import ConfigurationError
from milepost.server.settings import load_settings
from milepost.store.database import Store
from support import postgres


@pytest.fixture
def url() -> Iterator[str]:
    name = postgres.server().create_database()
    yield postgres.server().url(name)
    postgres.server().drop_database(name)


def test_the_setting_names_the_database_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MILEPOST_DATABASE_URL", "postgresql://me:hidden@host/name")
    settings = load_settings(data_folder=tmp_path)
    assert settings.database == "postgresql://me:hidden@host/name"
    assert "hidden" not in repr(settings)
    assert load_settings(data_folder=tmp_path, database_url="").database == tmp_path / "milepost.db"


def test_status_says_what_upgrade_would_do(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.show_status(tmp_path, url)
    assert "has no tables yet" in capsys.readouterr().out
    database.upgrade(tmp_path, url)
    assert list(tmp_path.iterdir()) == []
    database.show_status(tmp_path, url)
    told = capsys.readouterr()
    assert "is the newest one" in told.out
    assert "p%40ss" not in told.out + told.err


def test_copying_there_and_back(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, back = tmp_path / "data", tmp_path / "back"
    database.upgrade(source, None)
    database.copy(str(source), url)
    database.copy(url, str(back))
    assert (back / "milepost.db").is_file()
    Store(back / "milepost.db").close()
    with pytest.raises(ConfigurationError, match="there is no database in the folder"):
        database.copy(str(tmp_path / "nowhere"), url)
    assert "p%40ss" not in capsys.readouterr().err


def test_a_backup_is_for_the_tools_of_postgresql(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILEPOST_DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match="pg_dump"):
        backup.back_up(tmp_path, tmp_path / "copy.db", overwrite=False)
