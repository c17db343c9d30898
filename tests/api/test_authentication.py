"""Who may ask: the secret key for everything, a signed-in browser for reading, nobody else for anything but health."""

import jwt
import pytest

from api.shapes import is_problem
from milepost.protocol.endpoints import ENDPOINTS, Endpoint
from milepost.server.auth import COOKIE, Authenticator
from support.served import KEY, HttpWorker, Served

_PROTECTED = [endpoint for endpoint in ENDPOINTS if not endpoint.public]
_READING = [endpoint for endpoint in _PROTECTED if endpoint.method == "GET" and not endpoint.stream]
_WRITING = [endpoint for endpoint in _PROTECTED if endpoint.method != "GET"]


def name(endpoint: Endpoint) -> str:
    return endpoint.name


def path_of(endpoint: Endpoint) -> str:
    """Its path with ids that nobody has."""
    return endpoint.path.format(task="work", run="run_x", batch="batch_x", worker="worker_x")


@pytest.mark.parametrize("endpoint", _PROTECTED, ids=name)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"cookie": f"{COOKIE}=forged"},
        {"cookie": f"{COOKIE}={KEY}"},
    ],
    ids=[
        "none",
        "empty",
        "no token",
        "blank",
        "wrong",
        "longer",
        "basic",
        "bare",
        "forged cookie",
        "key as cookie",
    ],
)
def test_nothing_is_open_without_the_key(served: Served, endpoint: Endpoint, headers: dict[str, str]) -> None:
    answer = served.call(endpoint.method, path_of(endpoint), {}, key=None, headers=headers)
    assert answer.status == 401
    assert is_problem(answer.json)
    assert answer.json["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"
    assert KEY not in answer.body.decode()


def test_health_needs_no_key(served: Served) -> None:
    assert served.call("GET", "/api/v1/health", key=None).status == 200
    assert served.call("GET", "/api/v1/health", key="wrong").status == 200


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_scheme_is_written_in_any_case(served: Served, scheme: str) -> None:
    answer = served.call("GET", "/api/v1/runs", key=None, headers={"authorization": scheme + KEY})
    assert answer.status == 200


@pytest.fixture(scope="module")
def cookie(served: Served) -> dict[str, str]:
    """What a browser sends that has signed in."""
    session = served.server.authenticator.session_for_key(KEY)
    assert session is not None
    return {"cookie": f"other=1; {COOKIE}={session}"}


@pytest.mark.parametrize("endpoint", _READING, ids=name)
def test_a_session_may_read(served: Served, cookie: dict[str, str], endpoint: Endpoint) -> None:
    answer = served.call("GET", path_of(endpoint), key=None, headers=cookie)
    assert answer.status in (200, 404)


def test_a_session_may_watch(served: Served, worker: HttpWorker, cookie: dict[str, str]) -> None:
    run_id = served.trigger()
    worker.finish(worker.claim()[0])
    answer = served.call("GET", f"/api/v1/runs/{run_id}/feed", key=None, headers=cookie)
    assert answer.status == 200
    assert answer.body.startswith(b"event: snapshot")


@pytest.mark.parametrize("endpoint", _WRITING, ids=name)
def test_a_session_may_not_write(served: Served, cookie: dict[str, str], endpoint: Endpoint) -> None:
    """Nothing changes by what a page of another origin could make a browser send."""
    answer = served.call(endpoint.method, path_of(endpoint), {}, key=None, headers=cookie)
    assert answer.status == 401


def test_a_wrong_key_is_not_saved_by_a_session(served: Served, cookie: dict[str, str]) -> None:
    assert served.call("GET", "/api/v1/runs", key="wrong", headers=cookie).status == 401


def test_a_session_of_another_key_or_for_something_else_is_no_session(served: Served) -> None:
    other = Authenticator("another key").session_for_key("another key")
    signed_with_the_key = jwt.encode({"aud": "milepost-dashboard"}, KEY.ljust(32, "x"), algorithm="HS256")
    unsigned = jwt.encode({"aud": "milepost-dashboard"}, "", algorithm="none")
    expired = Authenticator(KEY, clock=lambda: 0).session_for_key(KEY)
    for token in (other, signed_with_the_key, unsigned, expired):
        answer = served.call("GET", "/api/v1/runs", key=None, headers={"cookie": f"{COOKIE}={token}"})
        assert answer.status == 401


def test_a_code_opens_one_session(served: Served) -> None:
    authenticator = served.server.authenticator
    code = authenticator.new_code()
    session = authenticator.session_for_code(code)
    assert session is not None
    assert (
        served.call("GET", "/api/v1/runs", key=None, headers={"cookie": f"{COOKIE}={session}"}).status == 200
    )
    assert authenticator.session_for_code(code) is None
    assert authenticator.session_for_code("guess") is None
    assert authenticator.session_for_key("guess") is None
    assert authenticator.session_for_key("") is None
