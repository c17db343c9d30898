"""Reading what runs have logged: filters, trees, pages, and following, by the API and by the client."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from milepost import Client, LogLine
from milepost.errors import BadRequestError, RunNotFoundError
from milepost.reading import logs
from support.served import KEY, HttpWorker, Served


def line(message: str, level: str = "info", **fields: Any) -> dict[str, Any]:
    return {"at": 1_700_000_000_000_000, "level": level, "message": message, **fields}


def told(served: Served, run_id: str, **query: Any) -> list[str]:
    """The messages of all pages."""
    found: list[str] = []
    after = 0
    while True:
        page = served.get(f"/api/v1/runs/{run_id}/logs", **{"page[after]": after, **query})
        found += [line["message"] for line in page["data"]]
        if "next" not in page:
            return found
        assert page["next"] == page["cursor"] > after
        after = page["next"]


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url, KEY)


def test_a_level_lets_more_severe_lines_through_and_a_search_those_with_the_text(
    served: Served, worker: HttpWorker
) -> None:
    run = worker.take(served.trigger())
    worker.log(
        run,
        line("fine", "debug"),
        line("Größe 5"),
        line("careful", "warning", logger="app.Disk"),
        line("broken", "error"),
    )
    for level, expected in (
        ("debug", ["fine", "Größe 5", "careful", "broken"]),
        ("info", ["Größe 5", "careful", "broken"]),
        ("warning", ["careful", "broken"]),
        ("error", ["broken"]),
    ):
        assert told(served, run["id"], level=level) == expected
    assert told(served, run["id"], search="GRÖSSE") == ["Größe 5"]
    assert told(served, run["id"], search="disk") == ["careful"]
    assert told(served, run["id"], search="%") == []
    assert told(served, run["id"], search="e", level="error") == ["broken"]


def test_an_attempt_is_told_alone(served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger(maxAttempts=2))
    worker.log(run, line("first"))
    worker.fail(run, retryAfterMs=0)
    worker.log(worker.take(run["id"]), line("second"))
    assert told(served, run["id"]) == ["first", "second"]
    assert told(served, run["id"], attempt=2) == ["second"]
    assert told(served, run["id"], attempt=3) == []


def test_a_tree_is_told_in_one_order_with_the_run_of_each_line(served: Served, worker: HttpWorker) -> None:
    stranger, parent = worker.take(served.trigger()), worker.take(served.trigger())
    child = worker.take(served.trigger(parentRunId=parent["id"]))
    grandchild = worker.take(served.trigger(parentRunId=child["id"]))
    family = [grandchild, parent, child, grandchild]
    for index, run in enumerate(family):
        worker.log(stranger, line("beside"))
        worker.log(run, line(str(index)))
    page = served.get(f"/api/v1/runs/{parent['id']}/logs", tree="true")
    assert [(line["runId"], line["message"]) for line in page["data"]] == [
        (run["id"], str(index)) for index, run in enumerate(family)
    ]
    assert told(served, child["id"], tree="true") == ["0", "2", "3"]
    assert "hasEnded" not in page
    for run in (parent, child):
        worker.finish(run)
    assert "hasEnded" not in served.get(f"/api/v1/runs/{parent['id']}/logs", tree="true")
    assert served.get(f"/api/v1/runs/{parent['id']}/logs")["hasEnded"]
    worker.finish(grandchild)
    assert served.get(f"/api/v1/runs/{parent['id']}/logs", tree="true")["hasEnded"]


def test_no_page_looks_at_more_than_its_share(
    served: Served, worker: HttpWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sought may stand at the very end of a long log; then pages are empty, and lead on."""
    run = worker.take(served.trigger())
    worker.log(run, *(line(f"line {number}") for number in range(1100)), line("needle"))
    monkeypatch.setattr(logs, "LOOKED_AT_LINES_MAX", 300)
    first = served.get(f"/api/v1/runs/{run['id']}/logs", search="needle")
    assert first["data"] == []
    assert "next" in first
    assert told(served, run["id"], search="needle") == ["needle"]
    assert len(told(served, run["id"])) == 1101
    monkeypatch.setattr(logs, "LOOKED_AT_LINES_MAX", 10_000)
    monkeypatch.setattr(logs, "LOOKED_AT_CHARACTERS_MAX", 1000)
    assert len(served.get(f"/api/v1/runs/{run['id']}/logs")["data"]) < 200
    assert len(told(served, run["id"])) == 1101


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"level": "loud"}, "no level of a log; use debug, info, warning, error"),
        ({"attempt": 0}, "from 1"),
        ({"attempt": "x"}, "whole number"),
        ({"tree": "yes"}, "true or false"),
        ({"search": "x" * 1001}, "1,000 characters"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_name(served: Served, query: dict[str, Any], said: str) -> None:
    answer = served.call("GET", f"/api/v1/runs/{served.trigger()}/logs", query=query)
    assert answer.status == 400
    assert said in answer.json["error"]
    assert answer.json["field"] == next(iter(query))


def followed(read: Callable[[], list[LogLine]]) -> tuple[threading.Thread, list[LogLine]]:
    found: list[LogLine] = []
    thread = threading.Thread(target=lambda: found.extend(read()))
    thread.start()
    return thread, found


@pytest.mark.parametrize("tree", [False, True], ids=["run", "tree"])
def test_following_tells_every_line_once_until_the_end(
    served: Served, worker: HttpWorker, client: Client, tree: bool
) -> None:
    run = worker.take(served.trigger())
    worker.log(run, line("before"))

    async def read() -> list[LogLine]:
        return [line async for line in client.runs.alogs(run["id"], follow=True, tree=tree)]

    readers = [
        followed(lambda: list(client.runs.logs(run["id"], follow=True, tree=tree))),
        followed(lambda: asyncio.run(read())),
    ]
    for number in range(5):
        worker.log(run, line(str(number)))
    child = worker.take(served.trigger(parentRunId=run["id"])) if tree else None
    worker.finish(run)
    if child is not None:
        worker.log(child, line("below"))
        worker.finish(child)
    expected = ["before", "0", "1", "2", "3", "4", *(["below"] if tree else [])]
    for thread, found in readers:
        thread.join(20)
        assert [line.message for line in found] == expected
        assert found[0].run_id == run["id"]
        assert found[0].at.tzinfo is not None


def test_the_client_filters_and_refuses_as_the_server_does(
    served: Served, worker: HttpWorker, client: Client
) -> None:
    run = worker.take(served.trigger())
    worker.log(run, line("quiet", "debug"), line("loud", "error"))
    assert [line.message for line in client.runs.logs(run["id"], level="warning")] == ["loud"]
    assert [line.message for line in client.runs.logs(run["id"], search="QUI", attempt=1)] == ["quiet"]
    with pytest.raises(BadRequestError, match="no level"):
        list(client.runs.logs(run["id"], level="loud"))  # type: ignore[arg-type]
    with pytest.raises(RunNotFoundError):
        list(client.runs.logs("run_nobody", follow=True))
