"""Where the server is: `configure`, the environment, the development server of this folder or one above."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost import Client, ConfigurationError, configure
from milepost.client.default import default_client


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and an environment that says nothing."""
    monkeypatch.delenv("MILEPOST_API_URL", raising=False)
    monkeypatch.delenv("MILEPOST_SECRET_KEY", raising=False)
    # As outside of tests.
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "1")
    monkeypatch.chdir(tmp_path)
    configure()
    yield
    configure()


def start_development_server(folder: Path, port: int, key: str = "tr_dev_1") -> Path:
    file = folder / ".milepost" / "dev.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "secret_key": key}))
    # Two writes within one tick of the file system's clock would look like one.
    os.utime(file, ns=(port, port))
    return file


def test_nothing_says_where_the_server_is() -> None:
    for attempt in (default_client, Client):
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        for part in ("milepost dev", "MILEPOST_API_URL and MILEPOST_SECRET_KEY", "configure("):
            assert part in str(caught.value)


def test_only_what_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_API_URL", "http://one")
    with pytest.raises(ConfigurationError, match="set MILEPOST_SECRET_KEY,"):
        default_client()


def test_the_environment_wins_over_the_development_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_development_server(tmp_path, 1)
    assert default_client().api_url == "http://127.0.0.1:1"
    configure()
    monkeypatch.setenv("MILEPOST_API_URL", "http://environment")
    monkeypatch.setenv("MILEPOST_SECRET_KEY", "key")
    assert default_client().api_url == "http://environment"
    assert Client().api_url == "http://environment"
    configure(api_url="http://configured", secret_key="key")
    assert default_client().api_url == "http://configured"
    assert default_client() is default_client()
    configure()
    assert default_client().api_url == "http://environment"


def test_the_development_server_of_a_folder_above_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_development_server(tmp_path, 1)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert default_client().api_url == "http://127.0.0.1:1"


def test_a_development_server_that_was_started_anew_is_noticed(tmp_path: Path) -> None:
    file = start_development_server(tmp_path, 1)
    first = default_client()
    assert default_client() is first
    start_development_server(tmp_path, 2)
    assert default_client().api_url == "http://127.0.0.1:2"
    # It has stopped: the address stays, and calls to it say what is wrong.
    file.unlink()
    with pytest.raises(ConfigurationError):
        default_client()


@pytest.mark.parametrize("text", ["", "[]", '{"url": 1}', "{"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    file = start_development_server(tmp_path, 1)
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"dev\.json"):
        default_client()
