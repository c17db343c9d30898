"""What every answer says, and what attackers try on paths."""

import socket
from typing import Any

import pytest

from milepost.protocol.endpoints import ENDPOINTS
from support.served import KEY, HttpWorker, Served


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize("key", [KEY, None, "wrong"], ids=["key", "no key", "wrong key"])
def test_every_answer_is_safe_in_a_browser(
    served: Served, worker: HttpWorker, endpoint: Any, key: str | None
) -> None:
    if endpoint.stream and key == KEY:
        run_id = served.trigger()
        worker.finish(worker.take(run_id))
        if endpoint.name != "run_feed":
            return
        path = endpoint.path.format(run=run_id)
    else:
        path = endpoint.path.format(
            task="work",
            run="run_x",
            batch="batch_x",
            waitpoint="waitpoint_x",
            secret="0",
            schedule="sched_x",
            queue="queue_x",
            worker="worker_1",
            target="self",
            key="k",
        )
    body = b"{" if endpoint.request is not None else None
    answer = served.call(endpoint.method, path, body, key=key)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.headers.getlist("cache-control")) == 1


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/api/v1/nothing", "/api/v1/runs/", "/api/v1/health?x=1", "/api/v1/%ff", "/static/none.js"],
)
def test_refusals_are_safe_too(served: Served, path: str) -> None:
    answer = served.call("GET", path)
    assert answer.status >= 400
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


TRAVERSALS = [
    "/static/../routes.py",
    "/static/%2e%2e/routes.py",
    "/static/%2e%2e%2froutes.py",
    "/static/..%2froutes.py",
    "/static/..%5croutes.py",
    "/static/..\\routes.py",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/%00",
    "/static/api.js%00.css",
    "/static/..%00/routes.py",
    "/static/....//....//routes.py",
    "/static/%252e%252e/routes.py",
    "/static/" + "../" * 20 + "etc/passwd",
    "/static/" + "x" * 5000,
    "/static/.",
    "/static/",
    "/static",
    "/static/%ff",
]


@pytest.mark.parametrize("path", TRAVERSALS, ids=lambda path: path[:40])
def test_nothing_but_the_files_of_the_pages_is_served(served: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    status = int(received.split(b" ")[1])
    assert status in (400, 404, 405), received[:200]
    assert b"root:" not in received
    assert b"import " not in received


def test_a_task_named_by_a_slash_is_not_reached_by_a_nul(served: Served) -> None:
    """An encoded slash is kept apart inside; no other character may stand for it."""
    HttpWorker(
        served, "slashes", {"id": "/", "queue": "q", "retry": {}}, {"id": "a/b", "queue": "q", "retry": {}}
    )
    assert served.call("POST", "/api/v1/tasks/%2F/trigger", {}).status == 200
    assert served.call("POST", "/api/v1/tasks/a%2Fb/trigger", {}).status == 200
    assert served.call("POST", "/api/v1/tasks/a%2fb/trigger", {}).status == 200
    for path in ("%00", "a%00b", "%2F%00"):
        answer = served.call("POST", f"/api/v1/tasks/{path}/trigger", {})
        assert (answer.status, answer.json["field"]) == (400, "path")


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_a_query_of_a_megabyte_is_refused(served: Served, size: int) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        try:
            head = f"GET /api/v1/runs?filter[tag]={'x' * size} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n"
            connection.sendall(head.encode())
            received = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return
    assert received.startswith(b"HTTP/1.1 431")
