"""Idempotency keys over HTTP, as the official JavaScript client uses them, and children that a later attempt finds again."""

import json
import secrets
from typing import Any

import msgspec
import pytest

from milepost.protocol.endpoints import ATTEMPT_HEADER
from support.served import HttpWorker, Served


@pytest.fixture
def key() -> str:
    """A key that no other test has."""
    return secrets.token_hex(32)


def trigger(served: Served, payload: str = "1", task: str = "work", **options: Any) -> dict[str, Any]:
    return served.post(f"/api/v1/tasks/{task}/trigger", {"payload": payload, "options": options})


def test_the_same_key_is_the_same_run(served: Served, worker: HttpWorker, key: str) -> None:
    said = {
        "idempotencyKey": key,
        "idempotencyKeyTTL": "10m",
        "idempotencyKeyOptions": {"key": "order-1", "scope": "run"},
    }
    first = trigger(served, **said)
    assert first["isCached"] is False
    again = trigger(served, "2", metadata={"a": 1}, **said)
    assert again == {**first, "isCached": True}
    assert served.get(f"/api/v1/runs/{first['id']}/metadata")["metadata"] == {}
    assert trigger(served, task="other", **said)["id"] != first["id"]


def test_a_request_that_is_repeated_is_answered_as_it_was(
    served: Served, worker: HttpWorker, key: str
) -> None:
    """Its run is no earlier one: the client that lost the answer has made it."""
    headers = {"x-trigger-request-idempotency-key": f"1 {key}"}
    body = {"payload": "1", "options": {"idempotencyKey": key}}
    first = served.post("/api/v1/tasks/work/trigger", body, headers=headers)
    assert served.post("/api/v1/tasks/work/trigger", body, headers=headers) == first
    headers = {"x-trigger-request-idempotency-key": f"2 {key}"}
    for _ in range(2):
        again = served.post("/api/v1/tasks/work/trigger", body, headers=headers)
        assert again == {**first, "isCached": True}


def test_a_key_is_reset(served: Served, worker: HttpWorker, key: str) -> None:
    first = trigger(served, idempotencyKey=f"with/a {key}")
    path = f"/api/v1/idempotencyKeys/with%2Fa%20{key}/reset"
    assert served.call("POST", path, {"taskIdentifier": "other"}).status == 404
    assert served.post(path, {"taskIdentifier": "work"}) == {"id": f"with/a {key}"}
    assert served.call("POST", path, {"taskIdentifier": "work"}).status == 404
    assert trigger(served, idempotencyKey=f"with/a {key}")["id"] != first["id"]


def test_a_batch_in_two_phases_is_cached_when_it_has_its_items(
    served: Served, worker: HttpWorker, key: str
) -> None:
    announced = {"runCount": 2, "idempotencyKey": key}
    first = served.post("/api/v3/batches", announced)
    assert (first["isCached"], first["idempotencyKey"]) == (False, key)
    line = msgspec.json.encode({"index": 0, "task": "work", "payload": "1"})
    assert served.add_items(first["id"], line).status == 200
    # The client that was to send the rest may be gone: whoever comes sends it.
    second = served.post("/api/v3/batches", announced)
    assert (second["id"], second["isCached"]) == (first["id"], False)
    lines = line + b"\n" + msgspec.json.encode({"index": 1, "task": "work", "payload": "2"})
    answer = served.add_items(first["id"], lines)
    assert (answer.json["itemsAccepted"], answer.json["itemsDeduplicated"], answer.json["sealed"]) == (
        1,
        1,
        True,
    )
    third = served.post("/api/v3/batches", announced)
    assert (third["id"], third["isCached"], third["runCount"]) == (first["id"], True, 2)
    assert served.post(f"/api/v1/idempotencyKeys/{key}/reset", {}) == {"id": key}
    assert served.post("/api/v3/batches", announced)["id"] != first["id"]


def test_a_whole_batch_and_its_items_say_what_was_there_before(
    served: Served, worker: HttpWorker, key: str
) -> None:
    items = [
        {"task": "work", "payload": "1", "options": {"idempotencyKey": key}},
        {"task": "work", "payload": "2"},
    ]
    first = served.post("/api/v2/tasks/batch", {"items": items, "idempotencyKey": f"all {key}"})
    assert "cached" not in first
    other = served.post("/api/v2/tasks/batch", {"items": items})
    assert (other["cached"], other["runs"][0]) == ([0], first["runs"][0])
    again = served.post("/api/v2/tasks/batch", {"items": items[:1], "idempotencyKey": f"all {key}"})
    assert (again["id"], again["runs"], again["isCached"]) == (first["id"], first["runs"], True)


def test_a_token_of_a_batch_shows_the_runs_that_were_there_before(
    served: Served, worker: HttpWorker, key: str
) -> None:
    run = trigger(served, idempotencyKey=key)["id"]
    items = [{"task": "work", "payload": "1", "options": {"idempotencyKey": key}}]
    answer = served.call("POST", "/api/v2/tasks/batch", {"items": items})
    assert answer.json["runs"] == [run]
    token = answer.headers["x-trigger-jwt"]
    shown = served.call("GET", f"/api/v3/runs/{run}", headers={"authorization": f"Bearer {token}"})
    assert (shown.status, shown.json["id"]) == (200, run)
    page = served.get("/api/v1/runs", **{"filter[batch]": answer.json["id"]})
    assert [each["id"] for each in page["data"]] == [run]


def test_a_later_attempt_is_given_the_children_of_the_first(served: Served, worker: HttpWorker) -> None:
    parent = trigger(served)["id"]
    run = worker.take(parent)

    def child(attempt: int, **options: Any) -> dict[str, Any]:
        body = {"payload": json.dumps({"n": 1}), "options": {"parentRunId": parent, **options}}
        headers = {ATTEMPT_HEADER: f"{parent}:{attempt}"}
        return served.post("/api/v1/tasks/child/trigger", body, headers=headers)

    first = child(1)
    assert first["isCached"] is False
    worker.fail(run, retryAfterMs=0)
    assert worker.take(parent)["attempt"] == 2
    assert child(2, alwaysNew=True)["isCached"] is False
    assert child(2) == {**first, "isCached": True}
    assert child(2)["isCached"] is False


def test_an_attempt_that_is_over_resets_no_key(served: Served, worker: HttpWorker, key: str) -> None:
    parent = trigger(served)["id"]
    run = worker.take(parent)
    trigger(served, idempotencyKey=key)
    path, body = f"/api/v1/idempotencyKeys/{key}/reset", {"taskIdentifier": "work"}
    headers = {ATTEMPT_HEADER: f"{parent}:1"}
    worker.finish(run)
    answer = served.call("POST", path, body, headers=headers)
    assert (answer.status, answer.json["code"]) == (409, "attempt_over")
    assert served.post(path, body) == {"id": key}
