"""Several triggers in one request: each is answered as if it had come by itself, and none touches another."""

from __future__ import annotations

from itertools import count
from typing import Any
from urllib.parse import quote

import pytest

from api.shapes import is_problem
from milepost import auth
from milepost.client.client import Client
from milepost.protocol.endpoints import ATTEMPT_HEADER, REQUEST_ID_HEADER
from support.served import KEY, HttpWorker, Served, offer

_numbers = count(1)


def several(served: Served, *triggers: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """The answers to these triggers in one request."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = served.call("POST", "/api/v1/triggers", {"triggers": list(triggers)}, headers=sent)
    assert answer.status == 200, answer
    return answer.json["answers"]


def trigger(task: str = "work", payload: str | None = None, **more: Any) -> dict[str, Any]:
    options = more.pop("options", {})
    request: dict[str, Any] = (
        {"options": options} if payload is None else {"payload": payload, "options": options}
    )
    return {"task": task, "request": request, **more}


def alone(served: Served, one: dict[str, Any]) -> tuple[int, Any, bool]:
    """What a trigger is answered that comes by itself: status, body, and whether there was a token."""
    headers: dict[str, str] = {}
    if "requestId" in one:
        headers[REQUEST_ID_HEADER] = one["requestId"]
    if "attempt" in one:
        headers[ATTEMPT_HEADER] = one["attempt"]
    path = f"/api/v1/tasks/{quote(one['task'], safe='')}/trigger"
    answer = served.call("POST", path, one["request"], headers=headers)
    return answer.status, answer.json, "x-trigger-jwt" in answer.headers


GOOD = [
    trigger(payload='{"n":1}', options={"payloadType": "application/json", "tags": ["a"]}),
    trigger(options={"delay": "1h", "metadata": {"a": 1}}),
    trigger("a task/with ä"),
    trigger("never offered by anybody"),
]
REFUSED = [
    trigger("x" * 1000),
    trigger(payload="{nope"),
    trigger(payload='{"a":1e999}'),
    trigger(payload='"' + "x" * (3 * 1024 * 1024) + '"'),
    trigger(options={"metadata": [1]}),
    trigger(options={"nothing": 1}),
    trigger(options={"test": True}),
    trigger(options={"delay": "soon"}),
    trigger(options={"tags": [str(number) for number in range(11)]}),
    trigger(options={"parentRunId": "run_nobody"}),
    trigger(requestId=""),
    trigger(requestId="x" * 201),
    trigger(attempt="run_nobody"),
    trigger(attempt="run_nobody:1"),
    {"task": "work", "request": 1},
    {"task": "work", "request": {"payload": 1}},
]


def test_each_is_answered_as_if_it_had_come_by_itself(served: Served, worker: HttpWorker) -> None:
    expected = [alone(served, one) for one in GOOD + REFUSED]
    assert {status for status, _, _ in expected[: len(GOOD)]} == {200}
    assert [
        one for one, (status, _, _) in zip(REFUSED, expected[len(GOOD) :], strict=True) if status < 400
    ] == []
    # In this order and in the other: what one is refused is not what another is told.
    for order in (1, -1):
        answers = several(served, *(GOOD + REFUSED)[::order])[::order]
        for one, (status, body, has_token), answer in zip(GOOD + REFUSED, expected, answers, strict=True):
            assert answer["status"] == status, one
            assert ("token" in answer) == has_token, one
            if status == 200:
                run = served.get(f"/api/v3/runs/{answer['body'].pop('id')}")
                assert run["taskIdentifier"] == one["task"]
                assert answer["body"] == {name: value for name, value in body.items() if name != "id"}
            else:
                assert is_problem(answer["body"])
                assert answer["body"] == body


def test_each_token_shows_its_own_run(served: Served) -> None:
    for answer in several(served, trigger(), trigger()):
        path = f"/api/v3/runs/{answer['body']['id']}"
        assert served.call("GET", path, key=answer["token"]).status == 200
    first, second = several(served, trigger(), trigger())
    assert served.call("GET", f"/api/v3/runs/{first['body']['id']}", key=second["token"]).status == 403


@pytest.mark.parametrize("task", ["work", "a task/with ä and %2F"])
def test_a_repeat_is_known_by_its_request_id_wherever_it_comes(served: Served, task: str) -> None:
    first, second = (trigger(task, requestId=f"several-{next(_numbers)}") for _ in range(2))
    _, body, _ = alone(served, first)
    again = several(served, first, second, first, trigger(task))
    assert again[0]["body"]["id"] == again[2]["body"]["id"] == body["id"]
    assert len({answer["body"]["id"] for answer in again}) == 3
    assert alone(served, second)[1]["id"] == again[1]["body"]["id"]
    [once, twice] = several(served, *([trigger(task, requestId=f"several-{next(_numbers)}")] * 2))
    assert once["body"] == twice["body"]


def test_a_key_gives_all_of_them_the_same_run(served: Served) -> None:
    keyed = trigger(options={"idempotencyKey": f"several-{next(_numbers)}"})
    first, second = several(served, keyed, keyed)
    assert (first["body"]["isCached"], second["body"]["isCached"]) == (False, True)
    assert first["body"]["id"] == second["body"]["id"]


def test_attempts_are_looked_at_one_by_one(served: Served) -> None:
    worker = HttpWorker(served, f"worker_{next(_numbers)}", offer("holder"))
    over, under_way = (worker.take(served.trigger("holder")) for _ in range(2))
    worker.finish(over)
    triggers = [
        trigger(attempt=f"{run['id']}:{run['attempt']}", options={"parentRunId": run["id"]})
        for run in (over, under_way)
    ]
    late, child, free = several(served, *triggers, trigger())
    assert (late["status"], late["body"]["code"]) == (409, "attempt_over")
    assert served.get(f"/api/v3/runs/{child['body']['id']}")["relatedRuns"]["parent"]["id"] == under_way["id"]
    assert free["status"] == 200
    # The header of the whole request is that of each that names no attempt.
    by_header = several(served, trigger(), triggers[1], x_milepost_attempt=triggers[0]["attempt"])
    assert [answer["status"] for answer in by_header] == [409, 200]


@pytest.mark.parametrize("number", [0, 1001])
def test_how_many_there_may_be(served: Served, number: int) -> None:
    answer = served.call("POST", "/api/v1/triggers", {"triggers": [trigger()] * number})
    assert (answer.status, answer.json["field"], answer.json["limit"]) == (422, "triggers", 1000)


def test_a_thousand_are_made_in_their_order(served: Served) -> None:
    answers = several(served, *(trigger(payload=str(number)) for number in range(1000)))
    ids = [answer["body"]["id"] for answer in answers]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    for number in (0, 499, 999):
        assert served.get(f"/api/v3/runs/{ids[number]}")["payload"] == number


def test_a_public_token_triggers_each_by_itself(served: Served) -> None:
    token = auth.create_trigger_token("work", multiple_use=True, client=Client(served.url, KEY))
    assert served.call("POST", "/api/v1/triggers", {"triggers": [trigger()]}, key=token).status == 403
    client = Client(served.url, token)
    assert client.trigger("work").id.startswith("run_")
