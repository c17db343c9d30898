"""Who may ask is a column of the table of endpoints, and every endpoint is tried with every kind of caller."""

from typing import cast

import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route

from api.shapes import is_problem
from milepost.errors import ForbiddenError, UnauthorizedError
from milepost.protocol.endpoints import ENDPOINTS, KEY_ONLY, OPEN, READERS, Access, Endpoint
from milepost.server.app import SafeAnswers
from milepost.server.auth import CODE_SECONDS, SESSION_SECONDS, Authenticator
from milepost.server.cors import Cors
from support.served import KEY, HttpWorker, Served

_PROTECTED = [endpoint for endpoint in ENDPOINTS if not endpoint.access.anyone]
_FOR_SESSIONS = [endpoint for endpoint in _PROTECTED if endpoint.access.session]
_READING = [
    endpoint for endpoint in _FOR_SESSIONS if not endpoint.stream and not endpoint.access.from_own_page
]
_ACTING = [endpoint for endpoint in _FOR_SESSIONS if endpoint.access.from_own_page]
_KEY_ONLY = [endpoint for endpoint in _PROTECTED if not endpoint.access.session]
_COOKIE = Authenticator(KEY).cookie
# Routes that are pages for people, and not endpoints of the API: who is not signed in is led to the sign-in page.
_FILES = {"/client/milepost.js", "/client/milepost.d.ts"}
_PAGES = {
    "/",
    "/runs/{run}",
    "/tasks",
    "/queues",
    "/schedules",
    "/workers",
    "/sign-in",
    "/sign-out",
    "/static",
    *_FILES,
}


def name(endpoint: Endpoint) -> str:
    return endpoint.name


def path_of(endpoint: Endpoint) -> str:
    """Its path with ids that nobody has."""
    return endpoint.path.format(
        task="work",
        run="run_x",
        batch="batch_x",
        waitpoint="waitpoint_x",
        secret="0",
        schedule="sched_x",
        worker="worker_x",
        queue="queue_x",
        target="self",
        key="k",
    )


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
        {"cookie": f"{_COOKIE}=forged"},
        {"cookie": f"{_COOKIE}={KEY}"},
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
    if endpoint.method != "HEAD":
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
    return {"cookie": f"other=1; {_COOKIE}={session}"}


@pytest.mark.parametrize("endpoint", _READING, ids=name)
def test_a_session_may_read(served: Served, cookie: dict[str, str], endpoint: Endpoint) -> None:
    query = {"tags": "a"} if endpoint.name == "realtime_runs" else None
    answer = served.call("GET", path_of(endpoint), key=None, headers=cookie, query=query)
    assert answer.status in (200, 404)


def test_a_session_may_watch(served: Served, worker: HttpWorker, cookie: dict[str, str]) -> None:
    run_id = served.trigger()
    worker.finish(worker.claim()[0])
    answer = served.call("GET", f"/api/v1/runs/{run_id}/feed", key=None, headers=cookie)
    assert answer.status == 200
    assert answer.body.startswith(b"event: snapshot")


_FOREIGN = {
    "no word of a browser": {},
    "typed": {"sec-fetch-site": "none"},
    "another port": {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"},
    "another site": {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    "another origin": {"origin": "https://evil.example"},
    "a sandbox": {"origin": "null"},
    "an empty origin": {"origin": ""},
    "two words": {"sec-fetch-site": "same-origin", "origin": "https://evil.example"},
}


@pytest.mark.parametrize("forged", _FOREIGN.values(), ids=_FOREIGN)
@pytest.mark.parametrize("endpoint", _ACTING, ids=name)
def test_no_other_page_makes_a_session_act(
    served: Served, cookie: dict[str, str], endpoint: Endpoint, forged: dict[str, str]
) -> None:
    answer = served.call(endpoint.method, path_of(endpoint), {}, key=None, headers={**cookie, **forged})
    assert answer.status == 403
    assert answer.json["code"] == "forbidden"
    assert "own pages" in answer.json["error"]


@pytest.mark.parametrize("endpoint", _ACTING, ids=name)
def test_an_own_page_acts_with_its_session(
    served: Served, cookie: dict[str, str], endpoint: Endpoint
) -> None:
    for own in ({"sec-fetch-site": "same-origin", "origin": served.url}, {"origin": served.url}):
        answer = served.call(endpoint.method, path_of(endpoint), {}, key=None, headers={**cookie, **own})
        assert answer.status in (200, 404, 422, 400), answer.body


def test_a_page_cancels_a_run_and_another_one_does_not(served: Served, cookie: dict[str, str]) -> None:
    run_id = served.trigger("nobody")
    path = f"/api/v2/runs/{run_id}/cancel"
    foreign = {**cookie, "sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    assert served.call("POST", path, {}, key=None, headers=foreign).status == 403
    assert served.get(f"/api/v3/runs/{run_id}")["isCancelled"] is False
    own = {**cookie, "sec-fetch-site": "same-origin", "origin": served.url}
    assert served.call("POST", path, {}, key=None, headers=own).status == 200
    assert served.get(f"/api/v3/runs/{run_id}")["isCancelled"] is True


@pytest.mark.parametrize("endpoint", _KEY_ONLY, ids=name)
def test_a_session_is_not_enough_where_the_key_is_needed(
    served: Served, worker: HttpWorker, cookie: dict[str, str], endpoint: Endpoint
) -> None:
    """Nothing changes by what a page could make a browser send, and nobody reads a worker's inbox with it."""
    path = endpoint.path.format(
        task="work",
        run="run_x",
        batch="batch_x",
        waitpoint="waitpoint_x",
        secret="0",
        schedule="sched_x",
        worker=worker.id,
        queue="queue_x",
        target="self",
        key="k",
    )
    body = None if endpoint.method == "GET" else {}
    answer = served.call(endpoint.method, path, body, key=None, headers=cookie)
    assert answer.status == 403
    assert endpoint.method == "HEAD" or answer.json["code"] == "forbidden"


def test_the_table_says_of_every_endpoint_who_may_call_it() -> None:
    """What is for workers takes the key. What changes something takes the key too, or a session in a request of an own page.
    Whoever adds an endpoint has to think of it."""
    for endpoint in ENDPOINTS:
        assert isinstance(endpoint.access, Access)
        # An event stream changes nothing, also where what is watched is said in a body.
        if endpoint.method != "GET" and not endpoint.stream and not endpoint.access.anyone:
            assert endpoint.access.from_own_page or not endpoint.access.session, endpoint.name
        if endpoint.tag == "workers":
            assert endpoint.access == KEY_ONLY, endpoint.name
    assert {endpoint.name for endpoint in _ACTING} == {
        "trigger",
        "cancel_run",
        "replay_run",
        "reschedule_run",
        "pause_queue",
        "override_queue",
        "reset_queue",
        "activate_schedule",
        "deactivate_schedule",
    }
    assert [endpoint.name for endpoint in ENDPOINTS if endpoint.access.anyone] == [
        "health",
        "ready",
        "call_back",
    ]


def test_an_endpoint_without_a_rule_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        Endpoint("new", "GET", "/new", "New")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="scopes"):
        Access(session=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="does not say who may call it"):
        Endpoint("new", "GET", "/new", "New", dict)  # type: ignore[arg-type]


def test_every_route_is_an_endpoint_of_the_table_or_a_page(served: Served) -> None:
    """No way in beside the table."""
    application = cast("Starlette", cast("Cors", cast("SafeAnswers", served.server.app).inner).inner)
    routes = {
        route.path.replace(":path}", "}") for route in application.routes if isinstance(route, Route | Mount)
    }
    assert routes == {endpoint.path for endpoint in ENDPOINTS} | _PAGES
    assert len(application.routes) == len(ENDPOINTS) + len(_PAGES) + 1  # GET and POST of /sign-in


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://host:3030"}, False),
        ({"origin": "http://host:3030"}, True),
        ({"origin": "http://host:8000"}, False),
        ({"origin": "http://host"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://evil.example"}, False),
    ],
    ids=str,
)
def test_a_session_counts_in_requests_of_own_pages_only(headers: dict[str, str], allowed: bool) -> None:
    """A page of another port of the same host is of the same site for a browser: it sends the cookie along, also to read."""
    authenticator = Authenticator(KEY)
    session = authenticator.session_for_key(KEY)
    sent = {"host": "host:3030", "cookie": f"{authenticator.cookie}={session}", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    if allowed:
        authenticator.check(Request(scope), READERS)
    else:
        with pytest.raises(ForbiddenError):
            authenticator.check(Request(scope), READERS)
    authenticator.check(Request({**scope, "headers": []}), OPEN)
    with pytest.raises(UnauthorizedError):
        authenticator.check(Request({**scope, "headers": []}), READERS)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "..",
        "a.b.c",
        "\xff\xfe",
        "é" * 500,
        "=" * 1000,
        '"',
        "eyJhbGciOiJub25lIn0.e30.",
        "0" * 20_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_cookie_that_was_tampered_with_is_no_session(served: Served, value: str) -> None:
    answer = served.call("GET", "/api/v1/runs", key=None, headers={"cookie": f"{_COOKIE}={value}"})
    assert answer.status == 401


def test_each_part_of_a_session_is_signed(served: Served) -> None:
    session = served.server.authenticator.session_for_key(KEY)
    assert session is not None
    for position in range(0, len(session) - 1, 7):
        other = "A" if session[position] != "A" else "B"
        changed = session[:position] + other + session[position + 1 :]
        answer = served.call("GET", "/api/v1/runs", key=None, headers={"cookie": f"{_COOKIE}={changed}"})
        assert answer.status == 401, position


def test_servers_with_other_keys_use_other_cookies() -> None:
    """Browsers keep cookies by host: two development servers of one machine would sign each other out."""
    names = {Authenticator(key).cookie for key in ("one", "two", "three")}
    assert len(names) == 3
    assert all(name.startswith("milepost_session_") for name in names)
    assert Authenticator("one").cookie == Authenticator("one").cookie


def test_a_code_works_for_a_quarter_of_an_hour() -> None:
    now = [1_000_000.0]
    authenticator = Authenticator(KEY, clock=lambda: now[0])
    early, late = authenticator.new_code(), authenticator.new_code()
    now[0] += CODE_SECONDS - 1
    assert authenticator.read_code(early) is not None
    now[0] += 2
    assert authenticator.read_code(late) is None
    assert CODE_SECONDS <= 15 * 60


def test_a_session_ends_by_the_clock_of_the_server_and_not_by_that_of_the_machine() -> None:
    """Servers on one database go by its clock, and that of a machine may be wrong by minutes."""
    now = [1_000_000.0]
    authenticator = Authenticator(KEY, clock=lambda: now[0])
    cookie = f"{authenticator.cookie}={authenticator.new_session()}".encode()
    request = Request({"type": "http", "headers": [(b"cookie", cookie)]})
    assert authenticator.session_of(request) is not None
    now[0] += SESSION_SECONDS
    assert authenticator.session_of(request) is None


def test_each_part_of_a_code_is_signed() -> None:
    authenticator = Authenticator(KEY)
    code = authenticator.new_code()
    ticket = authenticator.read_code(code)
    assert ticket is not None
    for position in range(len(code)):
        for letter in "A_b0":
            changed = code[:position] + letter + code[position + 1 :]
            # In the last letter some bits stand for nothing; then it is still the same code, and used up with it.
            found = authenticator.read_code(changed)
            assert found is None or (found == ticket and (changed == code or position == len(code) - 1))
    for odd in (
        "",
        "x",
        code[:-1],
        code + "A",
        code + "=",
        code * 2,
        "é" * 50,
        "\0" * 50,
        "=" * 50,
        " " + code,
    ):
        assert authenticator.read_code(odd) in (None, ticket)
    assert Authenticator("another key").read_code(code) is None


def test_codes_that_nobody_uses_take_nothing_away() -> None:
    authenticator = Authenticator(KEY)
    codes = [authenticator.new_code() for _ in range(3000)]
    assert len({authenticator.read_code(code) for code in codes}) == 3000


def test_a_link_is_made_with_the_key(served: Served) -> None:
    answer = served.call("POST", "/api/v1/sign-in-links")
    assert answer.status == 200
    assert answer.json["expiresInSeconds"] == CODE_SECONDS
    opened = served.pool.request("GET", served.url + answer.json["path"], redirect=False)
    assert (opened.status, opened.headers["location"]) == (303, "/")
    assert served.pool.request("GET", served.url + answer.json["path"], redirect=False).status == 401


def test_a_wrong_key_is_not_saved_by_a_session(served: Served, cookie: dict[str, str]) -> None:
    assert served.call("GET", "/api/v1/runs", key="wrong", headers=cookie).status == 401


def test_a_session_of_another_key_or_for_something_else_is_no_session(served: Served) -> None:
    other = Authenticator("another key").session_for_key("another key")
    signed_with_the_key = jwt.encode({"aud": "milepost-dashboard"}, KEY.ljust(32, "x"), algorithm="HS256")
    unsigned = jwt.encode({"aud": "milepost-dashboard"}, "", algorithm="none")
    expired = Authenticator(KEY, clock=lambda: 0).session_for_key(KEY)
    for token in (other, signed_with_the_key, unsigned, expired):
        answer = served.call("GET", "/api/v1/runs", key=None, headers={"cookie": f"{_COOKIE}={token}"})
        assert answer.status == 401


def test_a_code_opens_one_session(served: Served) -> None:
    path = f"/sign-in?code={served.server.authenticator.new_code()}"
    answer = served.pool.request("GET", served.url + path, redirect=False)
    assert answer.status == 303
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert served.call("GET", "/api/v1/runs", key=None, headers={"cookie": cookie}).status == 200
    assert served.pool.request("GET", served.url + path, redirect=False).status == 401
    assert served.pool.request("GET", f"{served.url}/sign-in?code=guess", redirect=False).status == 401
    assert served.server.authenticator.session_for_key("guess") is None
    assert served.server.authenticator.session_for_key("") is None
