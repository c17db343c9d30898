"""Signing in and out over HTTP, as an attacker and as an owner would."""

import time
from collections.abc import Iterator
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
import urllib3

from milepost.server.attempts import (
    ADDRESSES_MAX,
    SECONDS_BY_ADDRESS,
    SECONDS_OVERALL,
    TRIES_BY_ADDRESS,
    TRIES_OVERALL,
    SignInAttempts,
)
from support.served import KEY, Served


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for each test: wrong keys are counted."""
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


def send(served: Served, method: str, path: str, **options: object) -> urllib3.BaseHTTPResponse:
    return served.pool.request(method, served.url + path, redirect=False, **options)  # type: ignore[arg-type]


def sign_in(served: Served, key: str, *, next: str = "/", **headers: str) -> urllib3.BaseHTTPResponse:
    sent = {"content-type": "application/x-www-form-urlencoded", **headers}
    return send(served, "POST", "/sign-in", body=urlencode({"key": key, "next": next}), headers=sent)


def cookie_of(answer: urllib3.BaseHTTPResponse) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


PLACES = [
    "/",
    "/?status=FAILED&task=handle-upload&tag=user%3A1",
    "/?tag=a%2Fb%26c",
    "/runs/run_01m8",
    "/runs/run_01m8?at=7&x=%20",
    "/runs/a%20b",
]
ELSEWHERE = [
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "https://evil.example/",
    "javascript:alert(1)",
    "/runs/../../x\r\nset-cookie: a=b",
    "/\t/evil.example",
    "/ /evil.example",
    "/api/v1/runs",
    "/sign-out",
    "/sign-in",
    "runs/x",
    "",
    "x" * 100_000,
    "/?" + "x" * 100_000,
    "/%0d%0aset-cookie:a=b",
]


@pytest.mark.parametrize("place", PLACES)
def test_who_signs_in_comes_back_with_all_filters(served: Served, place: str) -> None:
    asked = send(served, "GET", place)
    assert asked.status == 303
    there = urlsplit(asked.headers["location"])
    assert there.path == "/sign-in"
    wanted = parse_qs(there.query).get("next", ["/"])[0]
    assert wanted == place
    page = send(served, "GET", asked.headers["location"])
    assert page.status == 200
    answer = sign_in(served, KEY, next=wanted)
    assert (answer.status, answer.headers["location"]) == (303, place)
    # By a link too.
    link = f"{served.server.sign_in_path()}&{urlencode({'next': place})}"
    assert send(served, "GET", link).headers["location"] == place
    # And who has a session already.
    known = send(
        served, "GET", f"/sign-in?{urlencode({'next': place})}", headers={"cookie": cookie_of(answer)}
    )
    assert known.headers["location"] == place


@pytest.mark.parametrize("place", ELSEWHERE, ids=lambda place: repr(place)[:30])
def test_signing_in_never_leads_elsewhere(served: Served, place: str) -> None:
    if len(place) < 10_000:
        answer = sign_in(served, KEY, next=place)
        assert (answer.status, answer.headers["location"]) == (303, "/")
        link = f"{served.server.sign_in_path()}&next={quote(place, safe='')}"
        opened = send(served, "GET", link)
        assert (opened.status, opened.headers.get("location", "/")) in ((303, "/"), (400, "/"))
    else:
        assert sign_in(served, KEY, next=place).status in (303, 413)


def test_the_cookie_is_kept_from_scripts_and_other_sites(served: Served) -> None:
    answer = sign_in(served, KEY)
    flags = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    assert answer.headers["cache-control"] == "no-store"
    assert KEY not in answer.headers["set-cookie"]


def test_signing_out_ends_the_session_also_where_the_cookie_was_copied(served: Served) -> None:
    session = {"cookie": cookie_of(sign_in(served, KEY))}
    assert send(served, "GET", "/", headers=session).status == 200
    answer = send(served, "POST", "/sign-out", headers={**session, "origin": served.url})
    assert (answer.status, answer.headers["location"]) == (303, "/sign-in")
    name = cookie_of(answer).partition("=")[0]
    assert name == served.server.authenticator.cookie
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    assert send(served, "GET", "/", headers=session).status == 303
    assert served.call("GET", "/api/v1/runs", key=None, headers=session).status == 401
    # A second time, and without a session, it is no error.
    assert send(served, "POST", "/sign-out", headers=session).status == 303
    # Other sessions go on.
    assert send(served, "GET", "/", headers={"cookie": cookie_of(sign_in(served, KEY))}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_forms_of_other_pages_do_nothing(served: Served, headers: dict[str, str]) -> None:
    """A page of another port of this host could sign a browser out, or use up its tries."""
    session = {"cookie": cookie_of(sign_in(served, KEY))}
    assert send(served, "POST", "/sign-out", headers={**session, **headers}).status == 403
    assert send(served, "GET", "/", headers=session).status == 200
    for _ in range(TRIES_BY_ADDRESS + 5):
        assert sign_in(served, "wrong", **headers).status == 403
    assert sign_in(served, KEY, **headers).status == 403
    assert sign_in(served, KEY).status == 303


def test_getting_the_page_signs_nobody_out(served: Served) -> None:
    session = {"cookie": cookie_of(sign_in(served, KEY))}
    assert send(served, "GET", "/sign-out", headers=session).status == 405
    assert send(served, "GET", "/", headers=session).status == 200


def test_wrong_keys_are_limited_and_the_owner_is_not_locked_out(served: Served) -> None:
    session = {"cookie": cookie_of(sign_in(served, KEY))}
    for _ in range(TRIES_BY_ADDRESS):
        assert sign_in(served, "wrong").status == 401
    for key in ("wrong", KEY):
        answer = sign_in(served, key)
        assert answer.status == 429
        assert 0 < int(answer.headers["retry-after"]) <= SECONDS_BY_ADDRESS
        assert b"Too many wrong keys" in answer.data
        assert "set-cookie" not in answer.headers
    # A link cannot be guessed and is not limited; sessions, workers and clients go on.
    assert send(served, "GET", served.server.sign_in_path()).status == 303
    assert send(served, "GET", "/", headers=session).status == 200
    assert served.call("POST", "/api/v1/sign-in-links").status == 200
    # Codes that were guessed wrongly lock nobody out either.
    for _ in range(50):
        assert send(served, "GET", "/sign-in?code=guess").status == 401
    assert send(served, "GET", served.server.sign_in_path()).status == 303


def test_right_keys_are_not_counted(served: Served) -> None:
    for _ in range(TRIES_BY_ADDRESS * 3):
        assert sign_in(served, KEY).status == 303


@pytest.mark.parametrize(
    "body",
    [b"", b"key", b"\xff\xfe=\x00", b"key=%ff", b"key=" + b"x" * 20_000, b"&&&===", b"key=a&key=b"],
    ids=lambda body: repr(body)[:20],
)
def test_odd_forms_sign_nobody_in(served: Served, body: bytes) -> None:
    answer = send(served, "POST", "/sign-in", body=body)
    assert answer.status in (401, 413)
    assert "set-cookie" not in answer.headers


def test_a_form_that_comes_too_slowly_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.server.dashboard import routes

    monkeypatch.setattr(routes, "FORM_SECONDS", 0.2)

    def slow() -> Iterator[bytes]:
        yield b"key="
        until = time.monotonic() + 2
        while time.monotonic() < until:
            time.sleep(0.05)
            yield b"x"

    began = time.monotonic()
    try:
        answer = send(served, "POST", "/sign-in", body=slow(), chunked=True)
        assert answer.status == 408
    except urllib3.exceptions.ProtocolError:
        assert time.monotonic() - began < 15


# --- the rules alone ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_address_has_its_own_tries() -> None:
    clock = Clock()
    attempts = SignInAttempts(clock)
    for _ in range(TRIES_BY_ADDRESS):
        assert attempts.wait_seconds("10.0.0.1") == 0
        attempts.failed("10.0.0.1")
    assert attempts.wait_seconds("10.0.0.1") == pytest.approx(SECONDS_BY_ADDRESS)
    assert attempts.wait_seconds("10.0.0.2") == 0
    clock.now += SECONDS_BY_ADDRESS
    assert attempts.wait_seconds("10.0.0.1") == 0
    attempts.failed("10.0.0.1")
    assert attempts.wait_seconds("10.0.0.1") > 0
    clock.now += SECONDS_BY_ADDRESS * TRIES_BY_ADDRESS
    for _ in range(TRIES_BY_ADDRESS):
        assert attempts.wait_seconds("10.0.0.1") == 0
        attempts.failed("10.0.0.1")


def test_all_addresses_together_are_limited_too() -> None:
    clock = Clock()
    attempts = SignInAttempts(clock)
    for number in range(TRIES_OVERALL):
        assert attempts.wait_seconds(f"10.0.{number // 250}.{number % 250}") == 0
        attempts.failed(f"10.0.{number // 250}.{number % 250}")
    assert 0 < attempts.wait_seconds("10.9.9.9") <= SECONDS_OVERALL
    clock.now += SECONDS_OVERALL
    assert attempts.wait_seconds("10.9.9.9") == 0


def test_a_network_of_ipv6_is_one_address() -> None:
    attempts = SignInAttempts(Clock())
    for number in range(TRIES_BY_ADDRESS):
        attempts.failed(f"2001:db8::{number:x}")
    assert attempts.wait_seconds("2001:db8::ffff") > 0
    assert attempts.wait_seconds("2001:db8:0:1::1") == 0
    for _ in range(TRIES_BY_ADDRESS):
        attempts.failed("::ffff:10.0.0.1")
    assert attempts.wait_seconds("10.0.0.1") > 0


def test_what_is_remembered_is_bounded() -> None:
    clock = Clock()
    attempts = SignInAttempts(clock)
    for number in range(ADDRESSES_MAX + 500):
        attempts.failed(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
        clock.now += SECONDS_OVERALL
    assert len(attempts._by_address) == ADDRESSES_MAX
