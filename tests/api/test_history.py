"""The history over HTTP: pages, the document as it was, what is refused and how, and the setting that prunes (section 13)."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.shapes import is_problem
from milepost.engine.jobs import JobName
from milepost.errors import ConfigurationError
from milepost.server.settings import load_settings
from support.served import HttpWorker, Served, set_to

DAY_SECONDS = 86_400


pytestmark = pytest.mark.usefixtures("worker")


def path(run_id: str, rest: str = "") -> str:
    return f"/api/v1/runs/{run_id}/metadata{rest}"


def refused(served: Served, target: str, status: int, code: str, **query: Any) -> dict[str, Any]:
    answer = served.call("GET", target, query=query)
    assert (answer.status, answer.json.get("code")) == (status, code), answer
    assert is_problem(answer.json)
    return answer.json


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of the test's own, whose clock it may set forward. Changes are kept for a day."""
    served = Served(tmp_path, history_days=1, metadata_grace_seconds=60)
    yield served
    served.stop()


def prune(served: Served) -> None:
    asyncio.run_coroutine_threadsafe(served.server.upkeep.do(JobName.HISTORY), served.loop).result(20)


def test_pages_and_documents(served: Served) -> None:
    run_id = served.trigger(metadata={"n": 0})
    for number in range(1, 6):
        served.put_metadata(run_id, set_to("n", number))
    first = served.get(path(run_id, "/history"), **{"page[size]": 2})
    assert [change["version"] for change in first["data"]] == [1, 2]
    assert (first["next"], first["earliestVersion"]) == (2, 0)
    last = served.get(path(run_id, "/history"), **{"page[size]": 2, "page[after]": 4})
    assert [change["operations"] for change in last["data"]] == [[set_to("n", 5)]]
    assert "next" not in last
    for version in range(6):
        expected = {"metadata": {"n": version}, "version": version}
        assert served.get(path(run_id), version=version) == expected
        if version in (1, 2):
            assert served.get(path(run_id), at=first["data"][version - 1]["at"]) == expected
    assert served.get(path(run_id), at=2**62)["version"] == 5
    # Nothing was applied, so nothing was committed.
    served.put_metadata(run_id, {"type": "increment", "key": "$.n.x", "value": 1})
    assert served.get(path(run_id, "/history"), **{"page[after]": 5})["data"] == []
    assert served.get(path(run_id, "/history"), **{"page[after]": 2**63 - 1})["data"] == []


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ({"version": -1}, 400, "bad_request", "version"),
        ({"version": "newest"}, 400, "bad_request", "version"),
        ({"version": "1.0"}, 400, "bad_request", "version"),
        ({"version": ""}, 400, "bad_request", "version"),
        ({"version": 2**63}, 400, "bad_request", "version"),
        ({"version": 2}, 404, "version_not_found", "version"),
        ({"version": 2**63 - 1}, 404, "version_not_found", "version"),
        ({"at": "yesterday"}, 400, "bad_request", "at"),
        ({"at": 2**63}, 400, "bad_request", "at"),
        ({"at": 1}, 404, "version_not_found", "at"),
        ({"at": 1 - 2**63}, 404, "version_not_found", "at"),
        ({"at": 1, "version": 1}, 400, "bad_request", "at"),
    ],
)
def test_versions_and_times_that_cannot_be_shown(
    served: Served, query: dict[str, Any], status: int, code: str, field: str
) -> None:
    run_id = served.trigger()
    served.put_metadata(run_id, set_to("a", 1))
    assert refused(served, path(run_id), status, code, **query)["field"] == field


@pytest.mark.parametrize(
    "query", [{"page[size]": 0}, {"page[size]": 1001}, {"page[size]": "x"}, {"page[after]": "x"}]
)
def test_pages_that_cannot_be_shown(served: Served, query: dict[str, Any]) -> None:
    problem = refused(served, path(served.trigger(), "/history"), 400, "bad_request", **query)
    assert problem["field"] == next(iter(query))


def test_a_run_that_nobody_knows(served: Served) -> None:
    refused(served, path("run_x", "/history"), 404, "run_not_found")
    refused(served, path("run_x"), 404, "run_not_found", version=0)
    refused(served, path("run_x"), 404, "run_not_found", at=0)


def test_old_changes_go_and_the_final_document_stays(own: Served) -> None:
    """Retention is configurable; the final document outlives it."""
    HttpWorker(own)
    run_id = own.trigger(metadata={"n": 0})
    own.put_metadata(run_id, set_to("n", 1))
    own.put_metadata(run_id, set_to("n", 2))
    began = own.get(path(run_id, "/history"))["data"][0]["at"]
    own.clock.ahead_seconds = 2 * DAY_SECONDS
    own.put_metadata(run_id, set_to("n", 3))
    prune(own)
    page = own.get(path(run_id, "/history"))
    assert [change["version"] for change in page["data"]] == [3]
    assert page["earliestVersion"] == 2
    assert own.get(path(run_id), version=2)["metadata"] == {"n": 2}
    for query in ({"version": 1}, {"at": began}):
        problem = refused(own, path(run_id), 410, "history_pruned", **query)
        assert problem["details"] == {"earliest_version": 2}
        assert "MILEPOST_HISTORY_DAYS" in problem["error"]
    with own.events(f"/api/v1/runs/{run_id}/feed") as events:
        snapshot = events.next()[1]["run"]
        assert (snapshot["metadata"], snapshot["metadataVersion"]) == ({"n": 3}, 3)
        own.clock.ahead_seconds = 5 * DAY_SECONDS
        prune(own)
        # What watchers follow is not noticed to be gone.
        own.put_metadata(run_id, set_to("n", 4))
        delta = events.until(lambda event, _: event == "delta")
        assert (delta["fromVersion"], delta["version"]) == (3, 4)
    worker = HttpWorker(own)
    worker.finish(worker.take(run_id), set_to("n", 5))
    own.clock.ahead_seconds = 9 * DAY_SECONDS
    prune(own)
    assert own.get(path(run_id, "/history")) == {"data": [], "earliestVersion": 5}
    final = {"metadata": {"n": 5}, "version": 5}
    assert own.get(path(run_id)) == own.get(path(run_id), version=5) == final
    assert own.get(path(run_id), at=2**62) == final
    own.stop()
    own.start()
    assert own.get(path(run_id)) == final


@pytest.mark.parametrize("value", ["-1", "long", "nan"])
def test_a_wrong_retention_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MILEPOST_HISTORY_DAYS", value)
    with pytest.raises(ConfigurationError, match="MILEPOST_HISTORY_DAYS"):
        load_settings()


def test_the_retention_may_be_a_part_of_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_HISTORY_DAYS", "0.5")
    assert load_settings().history_days == 0.5
