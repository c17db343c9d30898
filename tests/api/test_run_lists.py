"""Lists of runs: pages of every size lead forwards and backwards over the same runs, filters mean what they say."""

from datetime import datetime
from typing import Any

import pytest

from api.shapes import is_problem, is_summary
from support.served import HttpWorker, Served, offer

COUNT = 60


@pytest.fixture(scope="module")
def worker(served: Served) -> HttpWorker:
    """A worker with two tasks."""
    return HttpWorker(served, "worker_1", offer("work"), offer("other"))


@pytest.fixture(scope="module")
def runs(served: Served, worker: HttpWorker) -> list[str]:
    """Sixty runs, newest first; of the others, every third has the tag `third`."""
    served.trigger("other", tags=["outside"])
    ids = [served.trigger(tags=["all", "third"] if number % 3 == 0 else ["all"]) for number in range(COUNT)]
    return ids[::-1]


def page(served: Served, **query: Any) -> tuple[list[str], dict[str, str]]:
    found = served.get("/api/v1/runs", **query)
    assert all(map(is_summary, found["data"]))
    assert found["pagination"].keys() <= {"next", "previous"}
    assert None not in found["pagination"].values()
    return [run["id"] for run in found["data"]], found["pagination"]


@pytest.mark.parametrize("size", [*range(1, 21), 29, 30, 31, 59, 60, 61, 100])
def test_pages_of_every_size_lead_through_all_runs_and_back(
    served: Served, runs: list[str], size: int
) -> None:
    query = {"page[size]": size, "filter[tag]": "all"}
    expected = [runs[start : start + size] for start in range(0, COUNT, size)]
    pages: list[list[str]] = []
    cursors: dict[str, str] = {}
    after: str | None = None
    while True:
        found, cursors = page(served, **query, **({"page[after]": after} if after else {}))
        pages.append(found)
        assert ("previous" in cursors) == (len(pages) > 1)
        after = cursors.get("next")
        if after is None:
            break
    assert pages == expected
    back: list[list[str]] = [pages[-1]]
    while "previous" in cursors:
        # The official client repeats the old `after` beside `before`; `before` must win.
        found, cursors = page(
            served, **query, **{"page[before]": cursors["previous"], "page[after]": back[0][0]}
        )
        assert "next" in cursors
        back.insert(0, found)
    assert back == expected


def test_without_a_size_a_page_has_twenty_five(served: Served, runs: list[str]) -> None:
    found, cursors = page(served)
    assert found == runs[:25]
    assert "next" in cursors


@pytest.mark.parametrize("cursor", ["run_0", "zzz", "%", "ü", "'; --", "0" * 3000])
def test_any_text_is_a_cursor(served: Served, runs: list[str], cursor: str) -> None:
    """Cursors are opaque; a made-up one gives some page and no error."""
    page(served, **{"page[after]": cursor})
    page(served, **{"page[before]": cursor})


def test_a_page_walk_is_not_confused_by_new_runs(served: Served, runs: list[str]) -> None:
    thirds = runs[COUNT - 1 - 57 :: 3]
    first, cursors = page(served, **{"page[size]": 10, "filter[tag]": "third"})
    served.trigger(tags=["third"])
    second, _ = page(served, **{"page[size]": 10, "filter[tag]": "third", "page[after]": cursors["next"]})
    assert first + second == thirds


def test_filters(served: Served, worker: HttpWorker, runs: list[str]) -> None:
    parent = served.trigger("other", tags=["family"])
    batch = served.post("/api/v2/tasks/batch", {"items": [{"task": "other"}] * 2, "parentRunId": parent})
    child, grandchild = batch["runs"][0], served.trigger("other", parentRunId=batch["runs"][0])
    claimed = {run["id"]: run for run in worker.claim(1000)}
    worker.finish(claimed[child])
    worker.fail(claimed[grandchild])
    worker.report(claimed[parent], waiting=True)
    newest = grandchild
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"filter[batch]": batch["id"]}, set(batch["runs"])),
        ({"filter[parent]": parent}, set(batch["runs"])),
        ({"filter[root]": parent}, {parent, *batch["runs"], grandchild}),
        ({"filter[root]": parent, "filter[status]": "COMPLETED"}, {child}),
        ({"filter[root]": parent, "filter[status]": "COMPLETED,FAILED"}, {child, grandchild}),
        ({"filter[root]": parent, "filter[status]": "WAITING"}, {parent}),
        ({"filter[tag]": "family"}, {parent}),
        ({"filter[tag]": "family,outside"}, {parent, page(served, **{"filter[tag]": "outside"})[0][0]}),
        ({"filter[tag]": "nobody"}, set()),
        ({"filter[topLevel]": "true", "filter[tag]": "family"}, {parent}),
        ({"filter[topLevel]": "true", "filter[root]": parent}, {parent}),
        ({"filter[topLevel]": "false"}, {*batch["runs"], grandchild}),
        ({"filter[topLevel]": "false", "filter[status]": "FAILED"}, {grandchild}),
        ({"filter[topLevel]": "true", "filter[parent]": parent}, set()),
        ({"filter[root]": parent, "filter[taskIdentifier]": "work"}, set()),
        (
            {"filter[root]": parent, "filter[taskIdentifier]": "work,other"},
            {parent, *batch["runs"], grandchild},
        ),
        ({"filter[root]": parent, "filter[createdAt][period]": "1d"}, {parent, *batch["runs"], grandchild}),
        ({"filter[createdAt][to]": 1_000_000}, set()),
        ({"filter[createdAt][from]": 2**52}, set()),
        ({"filter[batch]": "batch_nobody"}, set()),
        ({"filter[parent]": newest}, set()),
    ]
    for query, expected in cases:
        assert set(page(served, **query, **{"page[size]": 100})[0]) == expected, query


def test_times_in_a_filter_are_milliseconds_and_inclusive(served: Served, runs: list[str]) -> None:
    created = [served.get(f"/api/v3/runs/{run_id}")["createdAt"] for run_id in (runs[40], runs[20])]
    first, last = (datetime.fromisoformat(text).timestamp() for text in created)
    query = {"filter[createdAt][from]": int(first * 1000), "filter[createdAt][to]": int(last * 1000) + 1}
    found, _ = page(served, **query, **{"page[size]": 100})
    assert set(runs[20:41]) <= set(found)
    assert runs[0] not in found
    assert runs[59] not in found


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"page[size]": 0}, "page[size]"),
    ({"filter[topLevel]": "yes"}, "filter[topLevel]"),
    ({"filter[topLevel]": ""}, "filter[topLevel]"),
    ({"page[size]": 101}, "page[size]"),
    ({"page[size]": -1}, "page[size]"),
    ({"page[size]": "ten"}, "page[size]"),
    ({"page[size]": ""}, "page[size]"),
    ({"page[size]": "1.5"}, "page[size]"),
    ({"page[size]": "9" * 5000}, "page[size]"),
    ({"filter[status]": "SLEEPING"}, "filter[status]"),
    ({"filter[status]": "COMPLETED,completed"}, "filter[status]"),
    ({"filter[createdAt][from]": "yesterday"}, "filter[createdAt][from]"),
    ({"filter[createdAt][from]": -1}, "filter[createdAt][from]"),
    ({"filter[createdAt][to]": 2**70}, "filter[createdAt][to]"),
    ({"filter[createdAt][period]": "soon"}, "filter[createdAt][period]"),
    ({"filter[createdAt][period]": "1y"}, "filter[createdAt][period]"),
    ({"filter[createdAt][period]": "9" * 30 + "d"}, "filter[createdAt][period]"),
]


@pytest.mark.parametrize(("query", "field"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_value_is_named(served: Served, query: dict[str, Any], field: str) -> None:
    for path in ("/api/v1/runs", "/api/v1/feed/runs"):
        answer = served.call("GET", path, query=query)
        assert answer.status == 400, answer
        assert is_problem(answer.json)
        assert answer.json["field"] == field


@pytest.mark.parametrize(
    ("filter", "status"),
    [
        ("", 400),
        ("{", 400),
        ("[1]", 400),
        ("1", 400),
        ('"user"', 400),
        ("null", 400),
        ('{"a": NaN}', 400),
        ('{"a":' * 3000, 400),
        ('{"a":' * 300 + "1" + "}" * 300, 422),
        ('{"a": {"$near": 1}}', 422),
        ('{"a": {}}', 422),
        ('{"a": {"$gt": null}}', 422),
        ('{"a": {"$exists": "yes"}}', 422),
        ('{"$.a.__proto__": 1}', 422),
        ('{"$$a": 1}', 422),
        ('{"a": 1' + "0" * 400 + "}", 422),
        ("{" + ", ".join(f'"k{number}": 1' for number in range(21)) + "}", 422),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_filter_of_documents_is_named(served: Served, filter: str, status: int) -> None:
    for path in ("/api/v1/runs", "/api/v1/feed/runs", "/api/v1/feed/matching-runs"):
        answer = served.call("GET", path, query={"filter[metadata]": filter})
        assert answer.status == status, answer
        assert is_problem(answer.json)
        assert answer.json["field"] == "filter[metadata]"


def test_runs_are_found_by_what_their_documents_say_now(served: Served, worker: HttpWorker) -> None:
    first = served.trigger(metadata={"user": {"id": "user_1234"}, "labels": ["a", "b"]}, tags=["searched"])
    second = served.trigger(tags=["searched"])

    def found(filter: str, **query: Any) -> list[str]:
        return page(served, **{"filter[metadata]": filter, "filter[tag]": "searched"}, **query)[0]

    assert found('{"user.id": "user_1234"}') == [first]
    served.put_metadata(second, {"type": "set", "key": "$.user.id", "value": "user_1234"})
    assert found('{"user.id": "user_1234"}') == [second, first]
    assert found('{"user.id": "user_1234"}', **{"page[size]": 1}) == [second]
    assert found('{"user.id": "user_1234", "labels": {"$contains": "b"}}') == [first]
    assert found('{"labels": {"$exists": false}}') == [second]
    assert found("{}") == [second, first]


def test_the_limit_of_a_page_is_told(served: Served) -> None:
    assert served.call("GET", "/api/v1/runs", query={"page[size]": 101}).json["limit"] == 100


@pytest.mark.parametrize(
    "query",
    [
        {"filter[createdAt][period]": "99999999w"},
        {"filter[status]": ",".join(["COMPLETED"] * 1500)},
        {"filter[tag]": ",".join(f"t{number}" for number in range(8000))},
        {"filter[taskIdentifier]": ",".join(["work"] * 8000)},
        {"filter[status]": ","},
        {"filter[tag]": "%00"},
    ],
    ids=["ages ago", "one status often", "many tags", "many tasks", "nothing", "zero"],
)
def test_an_odd_value_is_no_error_of_the_server(served: Served, query: dict[str, Any]) -> None:
    answer = served.call("GET", "/api/v1/runs", query=query)
    assert answer.status in (200, 400), answer
