"""What the pages and their files say about themselves."""

from pathlib import Path

import pytest
import urllib3

import milepost.server.dashboard
from dashboard.served import FakeWorker, RunningServer

STATIC = Path(milepost.server.dashboard.__file__).parent / "static"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    return shared_server


@pytest.fixture
def http(server: RunningServer) -> urllib3.HTTPConnectionPool:
    """Requests with a session."""
    pool = urllib3.HTTPConnectionPool("127.0.0.1", server.port, retries=False)
    cookie = pool.request("GET", server.app.sign_in_path(), redirect=False).headers["set-cookie"]
    pool.headers = {"cookie": cookie.partition(";")[0]}
    return pool


@pytest.mark.parametrize("name", sorted(path.name for path in STATIC.iterdir()))
def test_files(http: urllib3.HTTPConnectionPool, name: str) -> None:
    answer = http.request("GET", f"/static/{name}")
    assert answer.status == 200
    assert answer.data == (STATIC / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = http.request("GET", f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status, again.data) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/../routes.py", "/static/%2e%2e/routes.py", "/nothing"]
)
def test_what_is_not_there(http: urllib3.HTTPConnectionPool, path: str) -> None:
    assert http.request("GET", path).status == 404


def test_pages_guard_themselves(http: urllib3.HTTPConnectionPool, worker: FakeWorker) -> None:
    run_id = worker.trigger("handle-upload")
    for path, status in [
        ("/", 200),
        (f"/runs/{run_id}", 200),
        ("/runs/run_unknown", 404),
        ("/tasks", 200),
        ("/tasks?task=handle-row", 200),
        ("/tasks?task=%3Cb%3E%2Fnobody", 404),
        ("/queues", 200),
        ("/schedules", 200),
        ("/workers", 200),
        ("/sign-in", 303),
        ("/?status=NONE&task=%3Cb%3E", 200),
    ]:
        answer = http.request("GET", path, redirect=False)
        assert answer.status == status, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert b"<b>" not in answer.data


def test_an_unknown_run_has_a_page_that_says_so(http: urllib3.HTTPConnectionPool) -> None:
    answer = http.request("GET", "/runs/run_%3Cb%3Eunknown")
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"There is no such run" in answer.data
    assert b"run_&lt;b&gt;unknown" in answer.data


def test_no_script_writes_markup() -> None:
    """What users send is only ever inserted as text."""
    ways = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
        "DOMParser",
    ]
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert [way for way in ways if way in text] == [], path.name
