"""Wrong requests get a problem body with a stable code, the field and the limit; never an error of the server."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from api.shapes import is_problem
from milepost.errors import MetadataTooLargeError, RunNotFoundError
from milepost.protocol.endpoints import ENDPOINTS, Endpoint
from milepost.protocol.problems import from_problem
from support.served import KEY, Answer, HttpWorker, Served, set_to

MEGABYTE = 1024 * 1024
_WITH_BODY = [endpoint for endpoint in ENDPOINTS if endpoint.request is not None]


def path_of(endpoint: Endpoint, worker: str = "worker_1") -> str:
    return endpoint.path.format(
        task="work",
        run="run_x",
        batch="batch_x",
        waitpoint="waitpoint_x",
        secret="0",
        schedule="sched_x",
        queue="queue_x",
        worker=worker,
        target="self",
        key="k",
    )


def refused(answer: Answer, status: int, code: str | None = None) -> dict[str, Any]:
    """The problem in an answer that must be one."""
    assert answer.status == status, answer
    assert is_problem(answer.json)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    if code is not None:
        assert answer.json["code"] == code
    return answer.json


@pytest.mark.parametrize("endpoint", _WITH_BODY, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nope",
        b'{"a":1}x',
        b"\xff\xfe",
        b'"\\ud800"',
        b"NaN",
        b"[" * 100_000,
        b'{"metadata":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b"1",
        b"null",
        b'"text"',
        b"[1,2]",
    ],
    ids=[
        "open",
        "word",
        "tail",
        "bytes",
        "surrogate",
        "nan",
        "deep",
        "deep inside",
        "number",
        "null",
        "text",
        "list",
    ],
)
def test_a_body_of_the_wrong_form_is_a_bad_request(
    served: Served, worker: HttpWorker, endpoint: Endpoint, body: bytes
) -> None:
    headers = {"content-type": "application/x-ndjson"} if endpoint.lines else {}
    refused(served.call(endpoint.method, path_of(endpoint), body, headers=headers), 400, "bad_request")


@pytest.mark.parametrize("endpoint", _WITH_BODY, ids=lambda endpoint: endpoint.name)
def test_a_missing_body_is_refused(served: Served, worker: HttpWorker, endpoint: Endpoint) -> None:
    answer = served.call(endpoint.method, path_of(endpoint))
    assert answer.status in (400, 404), answer
    assert is_problem(answer.json)


FIELDS: list[tuple[str, str, Any, str]] = [
    ("POST", "/api/v1/tasks/work/trigger", {"payload": {"a": 1}}, "payload"),
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"tags": 5}}, "options.tags"),
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"maxAttempts": "3"}}, "options.maxAttempts"),
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"queue": "q"}}, "options.queue"),
    ("POST", "/api/v2/tasks/batch", {"items": [{"task": "work"}, {"task": 1}]}, "items[1].task"),
    ("POST", "/api/v3/batches", {"runCount": "2"}, "runCount"),
    ("PUT", "/api/v1/runs/run_x/metadata", {"operations": {}}, "operations"),
    ("POST", "/api/v1/workers/worker_1/claim", {"sequence": 1, "slots": "x", "waitSeconds": 0}, "slots"),
    ("POST", "/api/v1/workers/worker_1/report", {"runs": [{"id": "r", "attempt": "1"}]}, "runs[0].attempt"),
    ("POST", "/api/v1/workers/worker_1/log", {"runs": [{"id": "r", "attempt": "1"}]}, "runs[0].attempt"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), FIELDS)
def test_a_wrong_type_is_named_by_its_field(
    served: Served, worker: HttpWorker, method: str, path: str, body: Any, field: str
) -> None:
    problem = refused(served.call(method, path, body), 400, "bad_request")
    assert problem["field"] == field
    assert field in problem["error"]


VALUES: list[tuple[str, Any, int, str, str | None, int | None]] = [
    ("/api/v1/tasks/a%01b/trigger", {}, 400, "bad_request", "path", None),
    ("/api/v1/tasks/work/trigger", {"payload": "{"}, 422, "invalid_request", "payload", None),
    ("/api/v1/tasks/work/trigger", {"payload": "[" * 100_000}, 422, "invalid_request", "payload", None),
    (
        "/api/v1/tasks/work/trigger",
        {"payload": '"' + "x" * (10 * MEGABYTE) + '"'},
        413,
        "too_large",
        "payload",
        3 * MEGABYTE,
    ),
    (
        "/api/v1/tasks/work/trigger",
        {"options": {"tags": ["x"] * 2 + list("abcdefghijk")}},
        422,
        "invalid_request",
        "options.tags",
        10,
    ),
    ("/api/v1/tasks/work/trigger", {"options": {"metadata": [1]}}, 422, "wrong_metadata_type", None, None),
    (
        "/api/v1/tasks/work/trigger",
        {"options": {"metadata": {"__proto__": 1}}},
        422,
        "invalid_metadata_path",
        None,
        None,
    ),
    (
        "/api/v1/tasks/work/trigger",
        {"options": {"metadata": {"a": "x" * 262_144}}},
        413,
        "metadata_too_large",
        None,
        262_144,
    ),
    (
        "/api/v1/tasks/work/trigger",
        {"options": {"parentRunId": "run_nobody"}},
        404,
        "run_not_found",
        "options.parentRunId",
        None,
    ),
    ("/api/v2/tasks/batch", {"items": []}, 422, "invalid_request", "items", 1000),
    ("/api/v2/tasks/batch", {"items": [{"task": "work"}] * 1001}, 422, "invalid_request", "items", 1000),
    (
        "/api/v2/tasks/batch",
        {"items": [{"task": "work"}, {"task": "x" * 257}]},
        422,
        "invalid_request",
        "items[1].task",
        256,
    ),
    ("/api/v3/batches", {"runCount": 2**31}, 422, "invalid_request", "runCount", None),
    (
        "/api/v1/workers/nobody/claim",
        {"sequence": 1, "slots": 1, "waitSeconds": 0},
        404,
        "not_found",
        None,
        None,
    ),
    ("/api/v1/workers/nobody/report", {"runs": []}, 404, "not_found", None, None),
    ("/api/v1/workers/nobody/log", {"runs": []}, 404, "not_found", None, None),
    (
        "/api/v1/workers",
        {"id": "w", "name": "w", "tasks": [{"id": "t", "queue": "q", "retry": {"maxAttempts": 0}}]},
        400,
        "bad_request",
        "tasks[0].retry",
        None,
    ),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "field", "limit"), VALUES, ids=lambda value: str(value)[:40]
)
def test_a_wrong_value_is_refused_with_code_field_and_limit(
    served: Served,
    worker: HttpWorker,
    path: str,
    body: Any,
    status: int,
    code: str,
    field: str | None,
    limit: int | None,
) -> None:
    problem = refused(served.call("POST", path, body), status, code)
    assert (problem.get("field"), problem.get("limit")) == (field, limit)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v3/runs/run_nobody",
        "/api/v1/runs/run_nobody/result",
        "/api/v1/runs/run_nobody/logs",
        "/api/v1/runs/run_nobody/metadata",
        "/api/v1/runs/run_nobody/feed",
        "/api/v2/batches/batch_nobody",
        "/api/v1/batches/batch_nobody/results",
        "/api/v1/batches/batch_nobody/feed",
        "/api/v3/runs/%F0%9F%92%A9",
        "/api/v3/runs/" + "x" * 5000,
    ],
)
def test_an_unknown_id_is_not_found(served: Served, path: str) -> None:
    problem = refused(served.call("GET", path), 404)
    assert problem["code"] in ("run_not_found", "batch_not_found")


def test_a_problem_becomes_the_same_error_again(served: Served, worker: HttpWorker) -> None:
    """The client raises what the engine raised."""
    answer = served.call("GET", "/api/v3/runs/run_nobody")
    assert isinstance(from_problem(answer.status, answer.body), RunNotFoundError)
    body = {"options": {"metadata": {"a": "x" * 262_144, "b": 1}}}
    answer = served.call("POST", "/api/v1/tasks/work/trigger", body)
    error = from_problem(answer.status, answer.body)
    assert isinstance(error, MetadataTooLargeError)
    assert (error.limit, error.largest_keys[0]) == (262_144, ("a", 262_146))


@pytest.mark.parametrize("value", ["", "-", "x", "1.5", "9" * 30, "-1", "9" * 5000])
def test_a_cursor_of_a_log_is_a_number(served: Served, worker: HttpWorker, value: str) -> None:
    run_id = served.trigger()
    answer = served.call("GET", f"/api/v1/runs/{run_id}/logs", query={"page[after]": value})
    assert answer.status in (200, 400), answer
    if answer.status == 400:
        assert refused(answer, 400)["field"] == "page[after]"


NUMBERS = [2**31, 2**53, 2**63, 2**63 - 1, 2**64, 2**70, -1, -(2**70)]


@pytest.mark.parametrize("number", NUMBERS)
def test_no_number_is_too_large_for_the_server(served: Served, worker: HttpWorker, number: int) -> None:
    """Each place that takes a whole number takes or refuses it."""
    run_id = served.trigger()
    task = {"id": "odd", "queue": "q", "queueConcurrency": number, "retry": {}}
    claimed = worker.take(run_id)
    report = {"id": run_id, "attempt": claimed["attempt"]}
    logged = {**report, "sequence": 1, "lines": []}
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/api/v1/workers", {"id": "odd", "name": "odd", "tasks": [task]}),
        ("POST", "/api/v1/workers/worker_1/claim", {"sequence": number, "slots": 1, "waitSeconds": 0}),
        ("POST", "/api/v1/workers/worker_1/claim", {"sequence": 99, "slots": number, "waitSeconds": 0}),
        (
            "POST",
            "/api/v1/workers/worker_1/claim",
            {"sequence": 98, "slots": 0, "waitSeconds": min(number, 0)},
        ),
        ("POST", "/api/v1/workers/worker_1/report", {"runs": [{**report, "metadataVersion": number}]}),
        ("POST", "/api/v1/workers/worker_1/report", {"runs": [{"id": run_id, "attempt": number}]}),
        (
            "POST",
            "/api/v1/workers/worker_1/log",
            {
                "runs": [
                    {**logged, "lines": [{"at": number, "level": "x", "message": "m", "attempt": number}]}
                ]
            },
        ),
        ("POST", "/api/v1/workers/worker_1/log", {"runs": [{**logged, "sequence": number}]}),
        ("POST", "/api/v1/workers/worker_1/log", {"runs": [{**logged, "attempt": number}]}),
        ("POST", "/api/v1/workers/worker_1/report", {"runs": [{**report, "sequence": number}]}),
        (
            "POST",
            "/api/v1/workers/worker_1/report",
            {"runs": [{**report, "outcome": {"error": {"message": "m"}, "retryAfterMs": number}}]},
        ),
        ("POST", "/api/v3/batches", {"runCount": number}),
        ("POST", "/api/v3/batches/batch_x/items", {"index": number, "task": "work"}),
        ("POST", "/api/v1/tasks/work/trigger", {"options": {"maxAttempts": number}}),
        ("PUT", f"/api/v1/runs/{run_id}/metadata", {"operations": [set_to("n", number)]}),
        (
            "PUT",
            f"/api/v1/runs/{run_id}/metadata",
            {"operations": [{"type": "append", "key": "l", "value": 1, "maxItems": number}]},
        ),
        (
            "PUT",
            f"/api/v1/runs/{run_id}/metadata",
            {"operations": [{"type": "increment", "key": "n", "value": number}]},
        ),
    ]
    for method, path, body in requests:
        answer = served.call(method, path, body)
        assert answer.status < 500, (path, body, answer)
    for path in (f"/api/v3/runs/{run_id}", f"/api/v1/runs/{run_id}/logs", "/api/v1/runs"):
        assert served.call("GET", path).status == 200
    # A worker whose claims were numbered too high begins anew by registering.
    worker.register()


def test_a_request_id_has_a_limit(served: Served, worker: HttpWorker) -> None:
    header = "x-trigger-request-idempotency-key"
    answer = served.call("POST", "/api/v1/tasks/work/trigger", {}, headers={header: "x" * 201})
    assert refused(answer, 400)["limit"] == 200
    assert served.call("POST", "/api/v1/tasks/work/trigger", {}, headers={header: "x" * 200}).status == 200


def test_the_attempt_that_writes_is_named_as_a_run_and_a_number(served: Served, worker: HttpWorker) -> None:
    run_id, stranger = served.trigger(), served.trigger()
    worker.take(run_id)
    body = {"operations": [set_to("a", 1)]}

    def put(target: str, attempt: str) -> Answer:
        return served.call(
            "PUT", f"/api/v1/runs/{target}/metadata", body, headers={"x-milepost-attempt": attempt}
        )

    for text in (
        "",
        "1",
        f"{run_id}",
        f"{run_id}:",
        f"{run_id}:0",
        f"{run_id}:-1",
        f"{run_id}:x",
        f"{run_id}:{10**9}",
    ):
        assert refused(put(run_id, text), 400)["field"] == "x-milepost-attempt"
    assert refused(put(run_id, "run_nobody:1"), 404)["code"] == "run_not_found"
    assert "refused" not in put(run_id, f"{run_id}:1").json
    [item] = put(stranger, f"{run_id}:1").json["refused"]
    assert item["code"] == "not_an_ancestor"
    whole = {"metadata": {"b": 1}}
    answer = served.call(
        "PUT", f"/api/v1/runs/{stranger}/metadata", whole, headers={"x-milepost-attempt": f"{run_id}:1"}
    )
    assert refused(answer, 403)["code"] == "forbidden"
    assert served.get(f"/api/v1/runs/{stranger}/metadata") == {"metadata": {}, "version": 0}


def test_operations_are_refused_one_by_one_and_the_answer_is_still_a_success(
    served: Served, worker: HttpWorker
) -> None:
    """M29"""
    run_id = served.trigger(metadata={"text": "a"})
    operations = [
        set_to("a", 1),
        {"type": "increment", "key": "text", "value": 1},
        {"type": "fly"},
        set_to("b", 2),
    ]
    answer = served.put_metadata(run_id, *operations)
    assert (answer["metadata"], answer["version"]) == ({"text": "a", "a": 1, "b": 2}, 1)
    assert [(item["index"], item["run"]) for item in answer["refused"]] == [(1, run_id), (2, run_id)]
    assert [item["operation"] for item in answer["refused"]] == operations[1:3]


@pytest.mark.parametrize(
    "body", [{}, {"metadata": None}, {"metadata": [1]}, {"metadata": "x"}, {"metadata": 1}]
)
def test_a_document_that_is_no_object_is_refused(served: Served, worker: HttpWorker, body: Any) -> None:
    """M73: 422 for what is there and no object, 400 for nothing at all."""
    run_id = served.trigger()
    answer = served.call("PUT", f"/api/v1/runs/{run_id}/metadata", body)
    refused(answer, 422 if body.get("metadata") is not None else 400)
    assert served.get(f"/api/v1/runs/{run_id}/metadata") == {"metadata": {}, "version": 0}


def test_a_whole_document_that_is_too_large_is_refused_with_its_size(
    served: Served, worker: HttpWorker
) -> None:
    """M84: the server answers 413 and says what is large."""
    run_id = served.trigger(metadata={"a": 1})
    body = {"metadata": {"big": "x" * 300_000, "small": 1}}
    problem = refused(served.call("PUT", f"/api/v1/runs/{run_id}/metadata", body), 413, "metadata_too_large")
    assert problem["limit"] == 262_144
    assert problem["details"]["size"] == len(json.dumps(body["metadata"], separators=(",", ":")))
    assert problem["details"]["largest_keys"][0] == ["big", 300_002]
    assert served.get(f"/api/v1/runs/{run_id}/metadata") == {"metadata": {"a": 1}, "version": 0}


@pytest.mark.parametrize("body", [{"metadata": {}}, {"operations": [set_to("a", 1)]}, {"rootOperations": []}])
def test_writing_to_an_unknown_run_is_not_found(served: Served, worker: HttpWorker, body: Any) -> None:
    refused(served.call("PUT", "/api/v1/runs/run_nobody/metadata", body), 404, "run_not_found")


def test_a_list_of_a_hundred_thousand_operations_is_refused_with_the_limit_and_the_cure(
    served: Served, worker: HttpWorker
) -> None:
    run_id = served.trigger()
    one = {"type": "increment", "key": "n", "value": 1}
    path = f"/api/v1/runs/{run_id}/metadata"
    for body in (
        {"operations": [one] * 100_000},
        {"operations": [one] * 5000, "parentOperations": [one] * 5000, "rootOperations": [one]},
    ):
        answer = served.call("PUT", path, body)
        assert answer.status == 413
        assert (answer.json["code"], answer.json["field"], answer.json["limit"]) == (
            "too_large",
            "operations",
            10_000,
        )
        assert "send them in several parts" in answer.json["error"]
    assert served.call("PUT", path, {"operations": [one] * 10_000}).status == 200
    assert served.get(path)["metadata"] == {"n": 10_000}
    claimed = worker.take(run_id)
    report = {
        "id": claimed["id"],
        "attempt": 1,
        "sequence": 1,
        "changes": [{"run": run_id, "operations": [one] * 10_001}],
    }
    answer = served.call("POST", f"/api/v1/workers/{worker.id}/report", {"runs": [report]})
    assert (answer.status, answer.json["limit"]) == (413, 10_000)
    assert run_id in answer.json["error"]


def test_a_write_for_another_version_is_a_conflict(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(metadata={"n": 1})
    path = f"/api/v1/runs/{run_id}/metadata"
    body = {"operations": [{"type": "set", "key": "n", "value": 2}], "ifVersion": 0}
    assert served.call("PUT", path, body).json["version"] == 1
    answer = served.call("PUT", path, body)
    assert answer.status == 409
    assert (answer.json["code"], answer.json["field"]) == ("version_conflict", "ifVersion")
    assert answer.json["details"] == {"version": 1}
    wrong = served.call("PUT", path, {**body, "ifVersion": "0"})
    assert (wrong.status, wrong.json["field"]) == (400, "ifVersion")


def test_a_request_id_that_comes_with_another_body_is_a_conflict(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    path = f"/api/v1/runs/{run_id}/metadata"
    headers = {"x-trigger-request-idempotency-key": "one"}
    bodies = [{"operations": [{"type": "increment", "key": "n", "value": value}]} for value in (1, 2)]
    answers = [served.call("PUT", path, body, headers=headers) for body in (bodies[0], bodies[0], bodies[1])]
    assert [answer.status for answer in answers] == [200, 200, 409]
    assert answers[0].body == answers[1].body
    assert answers[2].json["code"] == "conflict"
    assert served.get(path) == {"metadata": {"n": 1}, "version": 1}


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("/api/v1/tasks/work/trigger", [{"payload": "1"}, {"payload": "2"}]),
        ("/api/v2/tasks/batch", [{"items": [{"task": "work"}]}, {"items": [{"task": "work"}] * 2}]),
        ("/api/v3/batches", [{"runCount": 1}, {"runCount": 2}]),
    ],
)
def test_a_trigger_with_another_body_under_its_request_id_is_a_conflict(
    served: Served, worker: HttpWorker, path: str, bodies: list[dict[str, Any]]
) -> None:
    headers = {"x-trigger-request-idempotency-key": f"other {path}"}
    answers = [served.call("POST", path, body, headers=headers) for body in (bodies[0], bodies[0], bodies[1])]
    assert [answer.status for answer in answers][2] == 409
    assert answers[0].json.get("id") == answers[1].json.get("id")
    assert answers[2].json["code"] == "conflict"
    assert "request id" in answers[2].json["error"]
    # The clients would repeat it, and wait in vain.
    assert answers[2].headers["x-should-retry"] == "false"


def test_empty_lists_of_operations_change_nothing(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(metadata={"a": 1})
    body = {"operations": [], "parentOperations": [], "rootOperations": []}
    answer = served.call("PUT", f"/api/v1/runs/{run_id}/metadata", body)
    assert answer.json == {"metadata": {"a": 1}, "version": 0}


# --- bodies that are too large -----------------------------------------------------------------------------


def raw(served: Served, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Send bytes as they are, and read the answer: status and JSON."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        lines = f"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
        connection.sendall((lines + head + "\r\n\r\n").encode() + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    answer, _, content = received.partition(b"\r\n\r\n")
    return int(answer.split(b" ")[1]), json.loads(content) if content.startswith(b"{") else {}


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(
    served: Served, worker: HttpWorker
) -> None:
    status, problem = raw(served, f"content-length: {65 * MEGABYTE}")
    assert (status, problem["code"], problem["limit"]) == (413, "too_large", 64 * MEGABYTE)


def test_a_chunked_body_over_the_limit_is_refused_on_the_way(served: Served, worker: HttpWorker) -> None:
    """Nobody says how much is to come; the server stops reading at its limit."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        head = f"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        connection.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
        for _ in range(64 * 16 + 1):
            connection.sendall(chunk)
        received = connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 413")


def test_a_length_that_promises_more_than_comes_is_no_error_of_the_server(
    served: Served, worker: HttpWorker
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        head = f"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        connection.sendall((head + "content-length: 100\r\n\r\n{}").encode())
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(65536)
    assert not received.startswith(b"HTTP/1.1 5")
    assert served.get("/api/v1/health")["status"] == "ok"


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "999999999999999999999999999"])
def test_an_odd_length_is_no_error_of_the_server(served: Served, worker: HttpWorker, length: str) -> None:
    status, _ = raw(served, f"content-length: {length}", b"{}")
    assert 400 <= status < 500


def test_a_chunked_body_in_small_pieces_is_put_together(served: Served, worker: HttpWorker) -> None:
    body = json.dumps({"payload": '"ü"', "options": {"tags": ["ß"]}}, ensure_ascii=False).encode()

    def pieces() -> Iterator[bytes]:
        for position in range(len(body)):
            yield body[position : position + 1]

    answer = served.call("POST", "/api/v1/tasks/work/trigger", pieces(), chunked=True)
    assert answer.status == 200
    run = served.get(f"/api/v3/runs/{answer.json['id']}")
    assert (run["payload"], run["tags"]) == ("ü", ["ß"])


def test_blank_lines_between_items_are_passed_over(served: Served, worker: HttpWorker) -> None:
    batch = served.post("/api/v3/batches", {"runCount": 2})["id"]
    lines = b'\n{"index":0,"task":"work"}\r\n\n  \n{"index":1,"task":"work"}'
    assert served.add_items(batch, lines).json["itemsAccepted"] == 2


@pytest.mark.parametrize("kind", ["text/csv", "multipart/form-data", "application/octet-stream"])
def test_items_of_another_kind_are_an_unsupported_media_type(
    served: Served, worker: HttpWorker, kind: str
) -> None:
    """Protocol, section 4, and the table of endpoints."""
    batch = served.post("/api/v3/batches", {"runCount": 1})["id"]
    path, line = f"/api/v3/batches/{batch}/items", b'{"index":0,"task":"work"}'
    refused(served.call("POST", path, line, headers={"content-type": kind}), 415)
    assert served.add_items(batch, line).status == 200


def test_items_for_an_unknown_batch_are_not_taken(served: Served, worker: HttpWorker) -> None:
    refused(served.add_items("batch_nobody", b'{"index":0,"task":"work"}'), 404, "batch_not_found")


def test_a_bad_line_refuses_the_stream(served: Served, worker: HttpWorker) -> None:
    batch = served.post("/api/v3/batches", {"runCount": 2})["id"]
    refused(served.add_items(batch, b'{"index":0,"task":"work"}\n{nope\n'), 400)
    assert served.get(f"/api/v2/batches/{batch}")["runs"] == []


@pytest.mark.parametrize("name", ["a/b", "a b", "ü", "a%2Fb", "..", "a?b#c", "50%", "/", "a//b/"])
def test_any_text_is_a_task_id(served: Served, name: str) -> None:
    """Path segments are percent-encoded by the clients, a slash too (protocol, 1.2)."""
    task = {"id": name, "queue": "q", "retry": {}}
    HttpWorker(served, "worker_ids", task)
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    answer = served.call("POST", f"/api/v1/tasks/{encoded}/trigger", {})
    assert answer.status == 200, answer
    assert served.get(f"/api/v3/runs/{answer.json['id']}")["taskIdentifier"] == name
