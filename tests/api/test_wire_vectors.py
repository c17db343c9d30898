"""Requests of the official JavaScript client, as they were recorded, get answers that it accepts."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.shapes import boolean, has, is_batch, is_problem, is_run, is_summary, mapping, number, text, texts
from milepost.protocol.endpoints import FILTERS_NOT_SUPPORTED
from milepost.protocol.triggering import TriggerOptions
from support.served import Answer, HttpWorker, Served, offer

_FOLDER = Path(__file__).parent.parent / "vectors_wire"


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((_FOLDER / f"{name}.json").read_text())


def case_name(case: dict[str, Any]) -> str:
    return case["case"]


@pytest.fixture(scope="module", autouse=True)
def tasks(served: Served) -> HttpWorker:
    """A worker that offers the tasks of the recordings."""
    names = ["example-echo", "example-sleep", "example-fail", "example/slash id"]
    return HttpWorker(served, "worker_1", *map(offer, names))


def send(served: Served, request: dict[str, Any], path: str | None = None) -> Answer:
    headers = {name: value for name, value in request["headers"].items() if name != "transfer-encoding"}
    body, chunked = request.get("body"), "transfer-encoding" in request["headers"]
    if chunked:
        lines = "".join(json.dumps(line) + "\n" for line in body).encode()
        # Lines may be split across chunks.
        body = iter([lines[:7], lines[7:60], lines[60:]])
    return served.call(
        request["method"],
        path or request["path"],
        body,
        headers=headers,
        query=request.get("query"),
        chunked=chunked,
    )


def without_what_is_not_supported(served: Served, request: dict[str, Any]) -> dict[str, Any]:
    """The recorded request with only what this version carries out. What is taken out is refused by name, each alone."""
    options, kept = request["body"]["options"], {}
    for name, value in options.items():
        if name not in TriggerOptions.not_supported:
            kept[name] = value
            continue
        body = {**request["body"], "options": {name: value}}
        refusal = send(served, {**request, "headers": {}, "body": body})
        assert (refusal.status, refusal.json["field"]) == (422, f"options.{name}")
        assert name in refusal.json["error"]
    return {**request, "body": {**request["body"], "options": kept}}


@pytest.mark.parametrize("case", cases("trigger"), ids=case_name)
def test_triggering(served: Served, case: dict[str, Any]) -> None:
    """Protocol, section 3.1; the same request id gets the same run (1.4)."""
    case = without_what_is_not_supported(served, case)
    answer = send(served, case)
    assert answer.status == case["status"]
    if answer.status != 200:
        assert is_problem(answer.json)
        return
    assert has(answer.json, {"id": text, "isCached": boolean}, {})
    assert answer.json["isCached"] is False
    run = served.get(f"/api/v3/runs/{answer.json['id']}")
    assert is_run(run)
    options = case["body"]["options"]
    tags = options.get("tags", [])
    assert run["tags"] == ([tags] if isinstance(tags, str) else tags)
    assert run["metadata"] == options.get("metadata", {})
    if "payload" not in case["body"]:
        assert "payload" not in run
    elif options["payloadType"] == "text/plain":
        assert run["payload"] == case["body"]["payload"]
    else:
        assert run["payload"] == json.loads(case["body"]["payload"])["json"]
    again = send(served, case)
    assert again.json["id"] == answer.json["id"]


@pytest.mark.parametrize("case", cases("batch"), ids=case_name)
def test_batches_in_two_phases(served: Served, case: dict[str, Any]) -> None:
    """Protocol, section 4: the whole stream may be repeated."""
    announce, items = case["exchanges"]
    created = send(served, announce)
    assert created.status == 202
    assert has(created.json, {"id": text, "runCount": number, "isCached": boolean}, {})
    path = f"/api/v3/batches/{created.json['id']}/items"
    required = {"id": text, "itemsAccepted": number, "itemsDeduplicated": number, "sealed": boolean}
    for accepted in (2, 0):
        answer = send(served, items, path)
        assert answer.status == items["status"]
        assert has(answer.json, required, {"enqueuedCount": number, "expectedCount": number, "runs": texts})
        assert (answer.json["itemsAccepted"], answer.json["sealed"]) == (accepted, True)
        assert answer.json["itemsDeduplicated"] == 2 - accepted
    batch = served.get(f"/api/v2/batches/{created.json['id']}")
    assert is_batch(batch)
    runs = [served.get(f"/api/v3/runs/{run_id}") for run_id in batch["runs"]]
    assert [run["taskIdentifier"] for run in runs] == [line["task"] for line in items["body"]]
    delayed = ["delay" in line["options"] for line in items["body"]]
    assert [run["status"] == "DELAYED" for run in runs] == delayed


def test_a_repeated_announcement_is_the_same_batch(served: Served) -> None:
    """Protocol, section 1.4: the same request id on the same path gets the first result."""
    announce = cases("batch")[0]["exchanges"][0]
    assert send(served, announce).json["id"] == send(served, announce).json["id"]


@pytest.mark.parametrize("case", cases("lists"), ids=case_name)
def test_lists(served: Served, case: dict[str, Any]) -> None:
    """Protocol, section 5.3: a filter that is not carried out is refused by name, because without it the list is another one."""
    query = dict(case["query"])
    for name in FILTERS_NOT_SUPPORTED.keys() & query.keys():
        value = query.pop(name)
        refusal = served.call("GET", case["path"], query={name: value})
        if value in FILTERS_NOT_SUPPORTED[name]:
            assert refusal.status == 200
        else:
            assert (refusal.status, refusal.json["field"]) == (422, name)
    answer = send(served, {**case, "query": query})
    assert answer.status == case["status"]
    assert isinstance(answer.json["data"], list)
    assert all(map(is_summary, answer.json["data"]))
    assert has(answer.json["pagination"], {}, {"next": text, "previous": text})


@pytest.fixture(scope="module")
def written_run(served: Served) -> str:
    """The run of the recordings of section 6."""
    return served.trigger("example-echo", metadata={"base": 1})


@pytest.mark.parametrize("case", cases("metadata"), ids=case_name)
def test_metadata(served: Served, written_run: str, case: dict[str, Any]) -> None:
    """Protocol, section 6.1, in the order of the recording."""
    answer = send(served, case, f"/api/v1/runs/{written_run}/metadata")
    assert answer.status == case["status"]
    assert has(answer.json, {"metadata": mapping, "version": number}, {})
    assert answer.json["metadata"] == case["metadata"]
