"""`runs`: retrieving, listing page by page, and writing metadata from outside."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from client.scripted import Answer, Asked, Drop, ScriptedServer, wire_run
from milepost import (
    Client,
    HistoryPrunedError,
    MetadataFlushError,
    MetadataPathError,
    MetadataTypeError,
    RunFinishedError,
    RunNotFoundError,
    UnavailableError,
    UsageError,
    VersionConflictError,
    VersionNotFoundError,
)
from milepost.client import retries
from milepost.client.calls import HistoryPage, MetadataVersion
from milepost.model.operations import Increment


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)


def test_retrieve(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, wire_run(payload=[1, None], output="done", metadata={"a": 1}))
    run = client.runs.retrieve("run_1")
    assert (run.payload, run.output, run.metadata) == ([1, None], "done", {"a": 1})
    assert asyncio.run(client.runs.aretrieve("run/1")) == run
    assert [asked.path for asked in server.asked] == ["/api/v3/runs/run_1", "/api/v3/runs/run%2F1"]
    server.answer = lambda asked: Answer(404, {"error": "no", "code": "run_not_found"})
    with pytest.raises(RunNotFoundError):
        client.runs.retrieve("run_1")


def pages(asked: Asked) -> Answer:
    """Five runs, two on a page."""
    start = int(asked.query.get("page[after]", "0"))
    rows = [wire_run(id=f"run_{index}") for index in range(start, min(start + 2, 5))]
    pagination = {"next": str(start + 2)} if start + 2 < 5 else {}
    return Answer(200, {"data": rows, "pagination": pagination})


def test_lists_fetch_their_pages_while_iterated(server: ScriptedServer, client: Client) -> None:
    server.answer = pages
    runs = iter(client.runs.list(page_size=2))
    assert server.asked == []
    assert [next(runs).id, next(runs).id] == ["run_0", "run_1"]
    assert len(server.asked) == 1
    assert [run.id for run in runs] == ["run_2", "run_3", "run_4"]

    async def collect() -> list[str]:
        return [run.id async for run in client.runs.alist(page_size=2, after="2")]

    assert asyncio.run(collect()) == ["run_2", "run_3", "run_4"]


def test_pages_tell_where_to_go_on(server: ScriptedServer, client: Client) -> None:
    server.answer = pages
    first = next(client.runs.list(page_size=2).pages())
    assert ([run.id for run in first.runs], first.next) == (["run_0", "run_1"], "2")
    rest = list(client.runs.list(page_size=2, after=first.next).pages())
    assert [(len(page.runs), page.next) for page in rest] == [(2, "4"), (1, None)]


def test_filters(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, {"data": [], "pagination": {}})
    at = datetime(2026, 1, 1, tzinfo=UTC)
    filters: dict[str, Any] = {
        "status": ["QUEUED", "EXECUTING"], "task": "t", "tag": ("a", "b"), "batch": "batch_1", "parent": "run_p", "root": "run_r",
        "top_level": True,
        "created_after": at, "created_before": at,
    }  # fmt: skip
    assert list(client.runs.list(**filters)) == []
    assert server.asked[0].query == {
        "page[size]": "100",
        "filter[status]": "QUEUED,EXECUTING",
        "filter[taskIdentifier]": "t",
        "filter[tag]": "a,b",
        "filter[batch]": "batch_1",
        "filter[parent]": "run_p",
        "filter[root]": "run_r",
        "filter[topLevel]": "true",
        "filter[createdAt][from]": "1767225600000",
        "filter[createdAt][to]": "1767225600000",
    }
    with pytest.raises(ValueError, match="time zone"):
        client.runs.list(created_after=datetime(2026, 1, 1))
    with pytest.raises(TypeError):
        client.runs.list(stats="x")  # type: ignore[call-arg]


# --- metadata from outside ----------------------------------------------------------------------------------


def test_outside_updates_travel_together(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, {"metadata": {"n": 3}, "version": 2})
    writer = client.runs.metadata("run_1")
    for _ in range(3):
        writer.increment("n")
    assert writer.set("a", {"at": datetime(2026, 1, 1, tzinfo=UTC)}).append("log", 1, max_items=5) is writer
    assert server.asked == []
    assert writer.send() == {"n": 3}
    [asked] = server.asked
    assert (asked.method, asked.path) == ("PUT", "/api/v1/runs/run_1/metadata")
    assert asked.body == {
        "operations": [
            # As they were called: a declared type of the document may refuse one of them.
            *[{"type": "increment", "key": "n", "value": 1}] * 3,
            {"type": "set", "key": "a", "value": {"at": "2026-01-01T00:00:00Z"}},
            {"type": "append", "key": "log", "value": 1, "maxItems": 5},
        ]
    }
    assert asyncio.run(writer.set("b", 1).asend()) == {"n": 3}
    assert server.asked[1].body == {"operations": [{"type": "set", "key": "b", "value": 1}]}
    names = {asked.headers["x-trigger-request-idempotency-key"] for asked in server.asked}
    assert len(names) == 2


def test_outside_updates_raise_the_callers_mistakes_at_the_call(client: Client) -> None:
    writer = client.runs.metadata("run_1")
    with pytest.raises(MetadataPathError):
        writer.set("__proto__", 1)
    with pytest.raises(MetadataPathError):
        writer.update({"a": 1, "$$x": 2})
    with pytest.raises(MetadataTypeError):
        writer.increment("n", True)


def test_refused_outside_updates_are_listed(server: ScriptedServer, client: Client) -> None:
    refused = [{"run": "run_1", "index": 0, "code": "wrong_metadata_type", "message": "no number"}]
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 2, "refused": refused})
    writer = client.runs.metadata("run_1").increment("text").set("a", 1)
    with pytest.raises(MetadataFlushError, match="no number") as caught:
        writer.send()
    assert [item.run_id for item in caught.value.refused] == ["run_1"]
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 2})
    writer.send()
    assert server.asked[-1].body == {"operations": []}


def test_after_an_unanswered_send_the_same_request_is_repeated_first(
    server: ScriptedServer, client: Client
) -> None:
    def drop(asked: Asked) -> Answer:
        raise Drop

    server.answer = drop
    writer = client.runs.metadata("run_1").increment("n")
    with pytest.raises(UnavailableError):
        writer.send()
    tried = len(server.asked)
    writer.increment("n").set("later", 1)
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 1})
    writer.send()
    first, repeat, rest = server.asked[0], server.asked[tried], server.asked[tried + 1]
    name = "x-trigger-request-idempotency-key"
    assert first.body == repeat.body == {"operations": [{"type": "increment", "key": "n", "value": 1}]}
    assert first.headers[name] == repeat.headers[name] != rest.headers[name]
    assert [operation["key"] for operation in rest.body["operations"]] == ["n", "later"]


def test_what_was_refused_as_a_whole_is_not_sent_again(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(422, {"error": "ended long ago", "code": "run_finished"})
    writer = client.runs.metadata("run_1").increment("n")
    with pytest.raises(RunFinishedError):
        writer.send()
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 1})
    asyncio.run(writer.set("a", 1).asend())
    assert server.asked[-1].body == {"operations": [{"type": "set", "key": "a", "value": 1}]}


def test_very_many_outside_updates_go_in_several_requests_in_their_order(
    server: ScriptedServer, client: Client
) -> None:
    server.answer = lambda asked: Answer(200, {"metadata": {"n": 1}, "version": 1})
    writer = client.runs.metadata("run_1")
    for number in range(25_000):
        writer.append("log", number)
    assert writer.send() == {"n": 1}
    assert [len(asked.body["operations"]) for asked in server.asked] == [10_000, 10_000, 5_000]
    sent = [operation["value"] for asked in server.asked for operation in asked.body["operations"]]
    assert sent == list(range(25_000))
    assert len({asked.headers["x-trigger-request-idempotency-key"] for asked in server.asked}) == 3


def test_a_send_for_one_version_is_one_request(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 4})
    client.runs.metadata("run_1").set("a", 1).send(if_version=3)
    assert server.asked[0].body == {
        "operations": [{"type": "set", "key": "a", "value": 1}],
        "ifVersion": 3,
    }
    writer = client.runs.metadata("run_1")
    for number in range(10_001):
        writer.append("log", number)
    with pytest.raises(UsageError, match="one commit"):
        writer.send(if_version=3)
    assert len(server.asked) == 1
    asyncio.run(writer.asend())
    assert [len(asked.body["operations"]) for asked in server.asked[1:]] == [10_000, 1]


def test_a_send_for_another_version_says_which_version_there_is(
    server: ScriptedServer, client: Client
) -> None:
    problem = {"error": "is at version 5", "code": "version_conflict", "details": {"version": 5}}
    server.answer = lambda asked: Answer(409, problem)
    with pytest.raises(VersionConflictError, match="at version 5") as caught:
        client.runs.metadata("run_1").set("a", 1).send(if_version=3)
    assert caught.value.version == 5


def history(asked: Asked) -> Answer:
    """Five changes, two on a page; the first one is from outside."""
    after = int(asked.query["page[after]"])
    data = [
        {
            "version": version,
            "at": 1_800_000_000_000_000 + version,
            "operations": [{"type": "increment", "key": "n", "value": version}],
            "writer": None if version == 1 else {"run": "run_2", "attempt": version},
        }
        for version in range(after + 1, min(after + 3, 6))
    ]
    page: dict[str, Any] = {"data": data, "earliestVersion": 0}
    return Answer(200, page | ({"next": after + 2} if after + 2 < 5 else {}))


def test_history_fetches_its_pages_while_iterated(server: ScriptedServer, client: Client) -> None:
    """Section 13: times are exact to the microsecond, operations are typed."""
    server.answer = history
    versions = iter(client.runs.metadata_history("run_1", page_size=2))
    assert server.asked == []
    began = datetime(2027, 1, 15, 8, tzinfo=UTC)
    assert next(versions) == MetadataVersion(
        1, began + timedelta(microseconds=1), [Increment("n", 1)], None, None
    )
    assert next(versions) == MetadataVersion(
        2, began + timedelta(microseconds=2), [Increment("n", 2)], "run_2", 2
    )
    assert len(server.asked) == 1
    assert [version.version for version in versions] == [3, 4, 5]
    assert [(asked.path, asked.query) for asked in server.asked] == [
        ("/api/v1/runs/run_1/metadata/history", {"page[size]": "2", "page[after]": str(after)})
        for after in (0, 2, 4)
    ]

    async def collect() -> list[int]:
        history = client.runs.ametadata_history("run_1", page_size=2, after=2)
        return [version.version async for version in history]

    assert asyncio.run(collect()) == [3, 4, 5]
    assert [page.next for page in client.runs.metadata_history("run_1", page_size=2).pages()] == [2, 4, None]


def test_pages_tell_what_is_kept(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, {"data": [], "earliestVersion": 7})
    assert list(client.runs.metadata_history("run_1").pages()) == [HistoryPage([], 7, None)]
    assert list(client.runs.metadata_history("run_1")) == []


def test_the_document_as_it_was(server: ScriptedServer, client: Client) -> None:
    server.answer = lambda asked: Answer(200, {"metadata": {"a": 1}, "version": 3})
    found = client.runs.metadata_at("run_1", version=3)
    assert (found.value, found.version) == ({"a": 1}, 3)
    at = datetime(2027, 1, 15, 10, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert asyncio.run(client.runs.ametadata_at("run_1", at=at)) == found
    assert client.runs.metadata_at("run_1", version=0) == found
    assert [(asked.path, asked.query) for asked in server.asked] == [
        ("/api/v1/runs/run_1/metadata", {"version": "3"}),
        ("/api/v1/runs/run_1/metadata", {"at": "1800000000000001"}),
        ("/api/v1/runs/run_1/metadata", {"version": "0"}),
    ]


def test_one_way_to_name_a_version(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(TypeError, match="either version= or at="):
        client.runs.metadata_at("run_1")
    with pytest.raises(TypeError, match="either version= or at="):
        asyncio.run(client.runs.ametadata_at("run_1", version=1, at=datetime.now(UTC)))
    with pytest.raises(ValueError, match="at needs a time zone"):
        client.runs.metadata_at("run_1", at=datetime(2027, 1, 1))
    assert server.asked == []


def test_what_is_not_to_be_had_any_more_or_yet(server: ScriptedServer, client: Client) -> None:
    problem = {"error": "gone", "code": "history_pruned", "details": {"earliest_version": 9}}
    server.answer = lambda asked: Answer(410, problem)
    with pytest.raises(HistoryPrunedError, match="gone") as caught:
        client.runs.metadata_at("run_1", version=3)
    assert caught.value.earliest_version == 9
    server.answer = lambda asked: Answer(404, {"error": "the newest is 2", "code": "version_not_found"})
    with pytest.raises(VersionNotFoundError, match="newest is 2"):
        client.runs.metadata_at("run_1", version=3)
    assert len(server.asked) == 2


def test_refusals_of_an_earlier_portion_are_told_by_the_send_that_succeeds(
    server: ScriptedServer, client: Client
) -> None:
    def drop(asked: Asked) -> Answer:
        raise Drop

    def refuse_the_first(asked: Asked) -> Answer:
        if any(operation["key"] == "later" for operation in asked.body["operations"]):
            raise Drop
        refused = [{"run": "run_1", "index": 0, "code": "wrong_metadata_type", "message": "no number"}]
        return Answer(200, {"metadata": {}, "version": 1, "refused": refused})

    server.answer = drop
    writer = client.runs.metadata("run_1").increment("text")
    with pytest.raises(UnavailableError):
        writer.send()
    writer.set("later", 1)
    server.answer = refuse_the_first
    with pytest.raises(UnavailableError):
        writer.send()
    server.answer = lambda asked: Answer(200, {"metadata": {}, "version": 2})
    with pytest.raises(MetadataFlushError, match="no number"):
        writer.send()
