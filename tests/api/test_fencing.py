"""What an attempt sends is refused once the attempt is over, at every endpoint that changes something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from milepost import auth
from milepost.client.client import Client
from milepost.protocol import endpoints
from milepost.protocol.endpoints import ENDPOINTS
from support.served import KEY, Answer, HttpWorker, Served, offer, set_to

HEADER = "x-milepost-attempt"
# A worker speaks for its attempts in its own words, and is refused in its own way.
OF_WORKERS = {"register_worker", "claim_runs", "report", "report_log", "report_chunks"}
# They change nothing that is stored.
# What operators do. It is no part of what a run does, and an attempt may do it as anybody.
OF_OPERATORS = {
    "pause_queue", "override_queue", "reset_queue", "create_schedule", "update_schedule", "delete_schedule", "activate_schedule",
    "deactivate_schedule", "delete_run",
}  # fmt: skip
CHANGE_NOTHING = {"watch_feed", "create_sign_in_link", "token_claims", "create_public_token"}

_numbers = count(1)


@dataclass
class Held:
    """A run that a worker holds, and a server to call as its attempt."""

    served: Served
    worker: HttpWorker
    run: dict[str, Any]
    target: str
    batch: str
    # A run that can be rescheduled.
    delayed: str
    token: str

    @property
    def name(self) -> str:
        return f"{self.run['id']}:{self.run['attempt']}"

    def call(self, request: tuple[str, str, Any], attempt: str | None = None, key: str = KEY) -> Answer:
        method, path, body = request
        headers = {HEADER: self.name if attempt is None else attempt}
        if path.endswith("/items"):
            headers["content-type"] = "application/x-ndjson"
        return self.served.call(method, path, body, headers=headers, key=key)

    def all_there_is(self) -> Any:
        """What these requests might change."""
        return (
            [run["id"] for run in self.served.get("/api/v1/runs", **{"page[size]": 100})["data"]],
            self.served.get(f"/api/v1/runs/{self.run['id']}/metadata"),
            self.served.get(f"/api/v1/runs/{self.target}/streams"),
            self.served.get(f"/api/v2/batches/{self.batch}")["runCount"],
        )


@pytest.fixture
def held(served: Served) -> Held:
    worker = HttpWorker(served, f"worker_{next(_numbers)}", offer("holder", retry={"maxAttempts": 3}))
    run = worker.take(served.trigger("holder"))
    batch = served.post("/api/v3/batches", {})["id"]
    return Held(
        served,
        worker,
        run,
        served.trigger("target"),
        batch,
        served.trigger("target", delay="1h"),
        served.post("/api/v1/waitpoints/tokens", {})["id"],
    )


REQUESTS: dict[str, Callable[[Held], tuple[str, str, Any]]] = {
    "trigger": lambda held: ("POST", "/api/v1/tasks/child/trigger", {"options": {"parentRunId": held.run["id"]}}),
    "trigger_batch": lambda held: (
        "POST", "/api/v2/tasks/batch", {"items": [{"task": "child", "options": {}}], "parentRunId": held.run["id"]},
    ),
    "create_batch": lambda held: ("POST", "/api/v3/batches", {"parentRunId": held.run["id"]}),
    "add_batch_items": lambda held: (
        "POST", f"/api/v3/batches/{held.batch}/items", b'{"index": 0, "task": "child", "options": {}}\n',
    ),
    "put_metadata": lambda held: (
        "PUT", f"/api/v1/runs/{held.run['id']}/metadata", {"operations": [set_to("a", next(_numbers))]},
    ),
    "send_input": lambda held: ("POST", f"/realtime/v1/streams/{held.target}/input/k", {"data": 1}),
    "cancel_run": lambda held: ("POST", f"/api/v2/runs/{held.target}/cancel", None),
    "replay_run": lambda held: ("POST", f"/api/v1/runs/{held.target}/replay", None),
    "reschedule_run": lambda held: ("POST", f"/api/v1/runs/{held.delayed}/reschedule", {"delay": "1h"}),
    "add_tags": lambda held: ("POST", f"/api/v1/runs/{held.target}/tags", {"tags": "t"}),
    "create_token": lambda held: ("POST", "/api/v1/waitpoints/tokens", {"place": "token/1/0"}),
    "complete_token": lambda held: ("POST", f"/api/v1/waitpoints/tokens/{held.token}/complete", {"data": 1}),
    "await_waitpoint": lambda held: ("POST", f"/api/v1/waitpoints/{held.token}/wait", None),
    "wait_for_time": lambda held: ("POST", "/api/v1/waitpoints/times", {"until": "1h", "place": "for/1h/0"}),
    "create_stream": lambda held: ("PUT", f"/realtime/v1/streams/{held.target}/self/new", None),
    "append_chunk": lambda held: ("POST", f"/realtime/v1/streams/{held.target}/self/k/append", b"text"),
    "write_stream": lambda held: ("POST", f"/realtime/v1/streams/{held.target}/self/lines", b"1\n2\n"),
}  # fmt: skip


def test_every_endpoint_that_changes_something_is_here() -> None:
    changing = {endpoint.name for endpoint in ENDPOINTS if endpoint.method not in ("GET", "HEAD")}
    # Tested with the keys, of which each can be reset once; and whoever calls back is no attempt. Several triggers are answered each
    # by itself (`test_trigger_several`).
    assert changing == {
        *REQUESTS,
        *OF_WORKERS,
        *OF_OPERATORS,
        *CHANGE_NOTHING,
        "reset_idempotency_key",
        "call_back",
        "trigger_several",
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_an_attempt_under_way_is_heard_also_while_it_waits(held: Held, name: str) -> None:
    assert held.call(REQUESTS[name](held)).status < 300
    held.worker.report(held.run, waiting=True)
    assert held.served.get(f"/api/v3/runs/{held.run['id']}")["status"] == "WAITING"
    if name != "write_stream":
        assert held.call(REQUESTS[name](held)).status < 300


def failed(held: Held) -> None:
    held.worker.fail(held.run)


def tried_again(held: Held) -> None:
    held.worker.fail(held.run, retryAfterMs=0)
    assert held.worker.take(held.run["id"])["attempt"] == held.run["attempt"] + 1


def queued_again(held: Held) -> None:
    held.worker.fail(held.run, retryAfterMs=3_600_000)


def succeeded(held: Held) -> None:
    held.worker.finish(held.run)


@pytest.mark.parametrize("end", [failed, tried_again, queued_again, succeeded])
def test_an_attempt_that_is_over_changes_nothing(held: Held, end: Callable[[Held], None]) -> None:
    end(held)
    before = held.all_there_is()
    for name, request in REQUESTS.items():
        answer = held.call(request(held))
        assert (name, answer.status, answer.json["code"]) == (name, 409, "attempt_over")
        assert f"attempt {held.run['attempt']} of run {held.run['id']} is over" in answer.json["error"]
    assert held.all_there_is() == before


def test_nobody_acts_for_a_later_attempt_or_for_no_run(held: Held) -> None:
    before = held.all_there_is()
    for name, request in REQUESTS.items():
        later = held.call(request(held), f"{held.run['id']}:{held.run['attempt'] + 1}")
        assert (name, later.status, later.json["code"]) == (name, 409, "attempt_over")
        unknown = held.call(request(held), "run_nobody:1")
        assert (name, unknown.status, unknown.json["code"]) == (name, 404, "run_not_found")
        odd = held.call(request(held), "run_nobody")
        assert (name, odd.status, odd.json["field"]) == (name, 400, HEADER)
    assert held.all_there_is() == before


def test_what_an_attempt_triggers_is_a_child_of_its_own_run(held: Held) -> None:
    stranger = held.target
    for request, field in (
        (("POST", "/api/v1/tasks/child/trigger", {"options": {"parentRunId": stranger}}), "options.parentRunId"),
        (("POST", "/api/v2/tasks/batch", {"items": [{"task": "a", "options": {}}], "parentRunId": stranger}), "parentRunId"),
        (
            ("POST", "/api/v2/tasks/batch", {"items": [{"task": "a", "options": {"parentRunId": stranger}}]}),
            "items[0].options.parentRunId",
        ),
        (("POST", "/api/v3/batches", {"parentRunId": stranger}), "parentRunId"),
        (
            (
                "POST", f"/api/v3/batches/{held.batch}/items",
                b'{"index": 0, "task": "a", "options": {"parentRunId": "%s"}}' % stranger.encode(),
            ),
            "items[0].options.parentRunId",
        ),
    ):  # fmt: skip
        answer = held.call(request)
        assert (answer.status, answer.json["field"]) == (422, field)
    # Without a parent it is a run of its own, also where an attempt has triggered it.
    assert held.call(("POST", "/api/v1/tasks/child/trigger", {"options": {}})).status == 200


def test_a_repeat_is_answered_as_it_was_also_after_the_end(held: Held) -> None:
    """Its answer got lost: what was done is done, and nothing changes."""
    headers = {HEADER: held.name, "x-trigger-request-idempotency-key": f"request-{next(_numbers)}"}
    method, path, body = REQUESTS["trigger"](held)
    first = held.served.call(method, path, body, headers=headers)
    held.worker.finish(held.run)
    again = held.served.call(method, path, body, headers=headers)
    assert again.status == 200
    assert again.json["id"] == first.json["id"]
    assert again.json["isCached"] is False


def test_who_is_no_attempt_is_not_asked(held: Held) -> None:
    held.worker.finish(held.run)
    for name in (
        "trigger",
        "trigger_batch",
        "create_batch",
        "add_batch_items",
        "put_metadata",
        "send_input",
        "append_chunk",
    ):
        method, path, body = REQUESTS[name](held)
        headers = {"content-type": "application/x-ndjson"} if path.endswith("/items") else {}
        assert held.served.call(method, path, body, headers=headers).status < 300, name


def test_reading_is_allowed_to_anybody(held: Held) -> None:
    held.worker.finish(held.run)
    for path in (
        f"/api/v3/runs/{held.run['id']}", "/api/v1/runs", f"/api/v1/runs/{held.run['id']}/metadata",
        f"/api/v1/runs/{held.run['id']}/result", f"/api/v1/runs/{held.run['id']}/streams",
    ):  # fmt: skip
        assert held.call(("GET", path, None)).status == 200


def test_a_public_token_is_nobody_s_attempt(held: Held) -> None:
    client = Client(held.served.url, KEY)
    token = auth.create_public_token(
        {
            "trigger": {"tasks": ["child"]}, "batchTrigger": {"tasks": ["child"]},
            "write": {"metadata": {held.run["id"]: True}, "inputStreams": [held.target], "batch": [held.batch]},
        },
        client=client,
    )  # fmt: skip
    for request in (
        ("POST", "/api/v1/tasks/child/trigger", {"options": {}}),
        ("POST", "/api/v2/tasks/batch", {"items": [{"task": "child", "options": {}}]}),
        REQUESTS["add_batch_items"](held), REQUESTS["put_metadata"](held), REQUESTS["send_input"](held),
    ):  # fmt: skip
        answer = held.call(request, key=token)
        assert (request[1], answer.status) == (request[1], 403)
        assert "not sent by an attempt" in answer.body.decode()
    assert endpoints.ATTEMPT_HEADER == HEADER
