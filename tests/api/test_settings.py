"""Settings: a value that cannot be used stops the server at start with a message that names it (M86)."""

from pathlib import Path

import pytest

from milepost.errors import ConfigurationError
from milepost.server.app import Server
from milepost.server.settings import load_settings
from support.served import HttpWorker, Served, set_to


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", "1e3"])
def test_a_metadata_limit_that_is_no_positive_whole_number_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TASK_RUN_METADATA_MAXIMUM_SIZE", value)
    with pytest.raises(ConfigurationError, match="TASK_RUN_METADATA_MAXIMUM_SIZE"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILEPOST_LEASE_SECONDS", "0"),
        ("MILEPOST_LEASE_SECONDS", "soon"),
        ("MILEPOST_METADATA_GRACE_SECONDS", "-1"),
        ("MILEPOST_SQLITE_SYNCHRONOUS", "OFF"),
    ],
)
def test_other_wrong_settings_are_named_too(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TASK_RUN_METADATA_MAXIMUM_SIZE", "1000")
    monkeypatch.setenv("MILEPOST_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("MILEPOST_LEASE_SECONDS", "12.5")
    settings = load_settings(secret_key="k")
    assert (settings.metadata_size_max, settings.lease_seconds, settings.secret_key) == (1000, 12.5, "k")
    assert settings.database_path == tmp_path / "data" / "milepost.db"


def test_a_data_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="data folder"):
        Server(load_settings(data_folder=tmp_path / "file" / "data", secret_key="k"))


def test_another_metadata_limit_holds_everywhere_and_is_told_to_workers(tmp_path: Path) -> None:
    """M86: workers and clients learn it from the server."""
    served = Served(tmp_path, metadata_size_max=100)
    try:
        worker = HttpWorker(served)
        assert worker.register()["metadataSizeMax"] == 100
        exact, over = {"a": "x" * 92}, {"a": "x" * 93}
        run_id = served.trigger(metadata=exact)
        answer = served.call("POST", "/api/v1/tasks/work/trigger", {"options": {"metadata": over}})
        assert (answer.status, answer.json["limit"]) == (413, 100)
        assert [item["code"] for item in served.put_metadata(run_id, set_to("b", 1))["refused"]] == [
            "metadata_too_large"
        ]
        [run] = worker.claim()
        assert [item["code"] for item in worker.report(run, set_to("b", 1))["refused"]] == [
            "metadata_too_large"
        ]
    finally:
        served.stop()
