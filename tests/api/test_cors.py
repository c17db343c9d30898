"""Pages of other origins, as a browser asks for them (vectors 15)."""

from collections.abc import Iterator

import pytest

from api.test_tokens import token_of
from milepost.errors import ConfigurationError
from milepost.protocol.endpoints import ENDPOINTS, METRICS, Endpoint
from milepost.server.settings import load_settings
from support.served import KEY, Answer, Served

PAGE = "http://app.example:3000"
ASKED = "authorization,content-type,trigger-version,x-trigger-api-version,x-trigger-client,x-trigger-request-idempotency-key"


@pytest.fixture(scope="module", params=["*", PAGE, f"https://other.example, {PAGE}"])
def open_served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("cors"), cors_origins=request.param)
    yield served
    served.stop()


def preflight(served: Served, path: str, origin: str = PAGE, names: str = ASKED) -> Answer:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": names,
    }
    return served.call("OPTIONS", path, key=None, headers=headers)


# Metrics are for no page.
OF_PAGES = [endpoint for endpoint in ENDPOINTS if endpoint is not METRICS]


def test_metrics_are_for_no_page_of_another_origin(open_served: Served) -> None:
    assert preflight(open_served, METRICS.path).status == 405
    answer = open_served.call("GET", METRICS.path, headers={"origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("endpoint", OF_PAGES, ids=lambda endpoint: endpoint.name)
def test_every_preflight_is_answered_without_credentials(open_served: Served, endpoint: Endpoint) -> None:
    answer = preflight(open_served, endpoint.path.replace("{", "").replace("}", ""))
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] in ("*", PAGE)
    assert answer.headers["access-control-allow-headers"] == ASKED
    assert set(answer.headers["access-control-allow-methods"].split(",")) >= {
        "GET",
        "POST",
        "PUT",
        "HEAD",
        "PATCH",
        "DELETE",
    }
    assert "access-control-allow-credentials" not in answer.headers


def test_every_answer_can_be_read_refusals_included(open_served: Served) -> None:
    for path, key, status in (
        ("/api/v1/runs", KEY, 200), ("/api/v1/runs", "wrong", 401), ("/api/v1/workers/x/claim", token_of([]), 405),
        ("/api/v1/runs", token_of([]), 403),
        ("/api/v3/runs/x", KEY, 404), ("/api/nothing", KEY, 404), ("/realtime/v1/nothing", KEY, 404), ("/api/%ff", KEY, 400),
        ("/api/v1/runs?page[size]=x", KEY, 400), ("/api/v1/health", None, 200),
    ):  # fmt: skip
        answer = open_served.call("GET", path, key=key, headers={"origin": PAGE})
        assert answer.status == status, path
        assert answer.headers["access-control-allow-origin"] in ("*", PAGE), path
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_names_that_are_none_are_not_echoed(open_served: Served) -> None:
    for names in ("a b", "x\ty", "a:b", "x" * 5000, ",", "a,,b", ""):
        answer = preflight(open_served, "/api/v1/runs", names=names)
        assert answer.status == 204
        assert "access-control-allow-headers" not in answer.headers


def test_another_origin_is_told_nothing(open_served: Served) -> None:
    if open_served.server.settings.cors_origins == "*":
        return
    for origin in (
        "http://evil.example",
        "null",
        PAGE + ".evil.example",
        PAGE.upper(),
        "http://app.example",
        PAGE + "/",
    ):
        assert "access-control-allow-origin" not in preflight(open_served, "/api/v1/runs", origin).headers
        answer = open_served.call("GET", "/api/v1/runs", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "origin"


def test_the_dashboard_s_cookie_counts_for_no_other_origin(open_served: Served) -> None:
    authenticator = open_served.server.authenticator
    cookie = f"{authenticator.cookie}={authenticator.session_for_key(KEY)}"
    own = {"cookie": cookie, "sec-fetch-site": "same-origin"}
    assert open_served.call("GET", "/api/v1/runs", key=None, headers=own).status == 200
    for foreign in (
        {"origin": PAGE},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": PAGE},
        {"origin": "null"},
    ):
        for path in ("/api/v1/runs", "/api/openapi.json", "/api/v1/feed/runs"):
            answer = open_served.call("GET", path, key=None, headers={"cookie": cookie, **foreign})
            assert answer.status == 403, foreign
    # With a token beside it, the token counts.
    with_token = {"cookie": cookie, "origin": PAGE}
    assert open_served.call("GET", "/api/v1/runs", key=token_of([]), headers=with_token).status == 403


def test_the_dashboard_s_pages_are_for_no_other_origin(open_served: Served) -> None:
    for path in ("/", "/sign-in", "/static/dashboard.css"):
        answer = open_served.call("GET", path, key=None, headers={"origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers


def test_it_is_off_by_default(served: Served) -> None:
    assert preflight(served, "/api/v1/runs").status == 405
    answer = served.call("GET", "/api/v1/runs", headers={"origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins",
    [
        "app.example",
        "https://app.example/",
        "https://app.example/x",
        "https://App.example",
        "https://*.example",
        "https://",
        "https://a b",
    ],
)
def test_what_is_no_origin_stops_the_server(origins: str) -> None:
    with pytest.raises(ConfigurationError, match="MILEPOST_CORS_ORIGINS"):
        load_settings(secret_key=KEY, cors_origins=origins)
