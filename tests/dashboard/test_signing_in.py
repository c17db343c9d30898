"""Signing in: a link that works once, or the key in a form; and what a browser without a session gets."""

import pytest
import urllib3
from playwright.sync_api import Browser, BrowserContext, Page, expect

from dashboard.served import SECRET_KEY, RunningServer


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    return shared_server


@pytest.fixture
def http(server: RunningServer) -> urllib3.HTTPConnectionPool:
    return urllib3.HTTPConnectionPool("127.0.0.1", server.port, retries=False)


def test_a_link_signs_in_once(browser: Browser, context: BrowserContext, server: RunningServer) -> None:
    link = server.app.sign_in_path()
    page = context.new_page()
    page.goto(link)
    expect(page).to_have_url(f"{server.url}/")
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    other = browser.new_context(base_url=server.url)
    stranger = other.new_page()
    answer = stranger.goto(link)
    assert answer is not None
    assert answer.status == 401
    expect(stranger.get_by_role("alert")).to_contain_text("used or has expired")
    expect(stranger.locator("main")).to_contain_text("milepost dashboard prints one")
    stranger.goto("/")
    expect(stranger).to_have_url(f"{server.url}/sign-in")
    other.close()
    # Who has a session already is let in by the old link too.
    page.goto(link)
    expect(page).to_have_url(f"{server.url}/")


def test_who_only_looks_at_a_link_does_not_use_it_up(
    http: urllib3.HTTPConnectionPool, server: RunningServer
) -> None:
    link = server.app.sign_in_path()
    assert http.request("HEAD", link, redirect=False).status == 200
    assert http.request("GET", link, redirect=False).status == 303


def test_the_cookie(http: urllib3.HTTPConnectionPool, server: RunningServer) -> None:
    answer = http.request("GET", server.app.sign_in_path(), redirect=False)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    name, *flags = [part.strip() for part in cookie.split(";")]
    assert name.startswith(f"{server.app.authenticator.cookie}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(flags)
    assert "Secure" not in flags
    assert SECRET_KEY not in cookie
    # Behind a proxy on this machine that speaks https.
    secured = http.request(
        "GET", server.app.sign_in_path(), headers={"x-forwarded-proto": "https"}, redirect=False
    )
    assert "Secure" in secured.headers["set-cookie"]


@pytest.mark.parametrize("path", ["/", "/?status=FAILED", "/runs/run_1", "/queues", "/tasks?task=a%2Fb"])
def test_without_a_session_a_page_leads_to_the_sign_in_page(
    http: urllib3.HTTPConnectionPool, server: RunningServer, path: str
) -> None:
    for cookie in ("", f"{server.app.authenticator.cookie}=nonsense"):
        answer = http.request("GET", path, headers={"cookie": cookie}, redirect=False)
        assert answer.status == 303
        assert answer.headers["location"].partition("?")[0] == "/sign-in"


def test_the_key_signs_in_and_is_never_in_an_address(context: BrowserContext, server: RunningServer) -> None:
    page = context.new_page()
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("framenavigated", lambda frame: addresses.append(frame.url))
    page.goto("/runs/run_1")
    expect(page).to_have_url(f"{server.url}/sign-in?next=%2Fruns%2Frun_1")
    page.get_by_label("secret key").fill("tr_dev_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not the secret key")
    page.get_by_label("secret key").fill(f" {SECRET_KEY} ")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{server.url}/runs/run_1")
    assert [address for address in addresses if SECRET_KEY in address or "wrong" in address] == []


@pytest.mark.parametrize(
    "place",
    [
        "https://example.org/",
        "//example.org",
        "/runs/../sign-in",
        "/runs/",
        "/runs/a/b",
        "/runs/é",
        "/runs/..?a",
        "/runs/a#b",
        "\\\\x",
    ],
)
def test_signing_in_leads_to_no_other_site(http: urllib3.HTTPConnectionPool, place: str) -> None:
    answer = http.request(
        "POST", "/sign-in", fields={"key": SECRET_KEY, "next": place}, encode_multipart=False, redirect=False
    )
    assert (answer.status, answer.headers["location"]) == (303, "/")


def test_a_form_that_is_too_long(http: urllib3.HTTPConnectionPool) -> None:
    answer = http.request("POST", "/sign-in", body=b"key=" + b"x" * 20_000, redirect=False)
    assert answer.status == 413
    assert b"too long" in answer.data


def test_a_link_on_another_site_does_not_ask_again_who_has_signed_in(
    page: Page, server: RunningServer
) -> None:
    """A strict cookie is not sent along with such a link; the sign-in page notices and goes on."""
    link = f'<a href="{server.url}/">runs</a>'
    other = page.context.new_page()
    other.route("http://localhost/", lambda route: route.fulfill(body=link, content_type="text/html"))
    other.goto("http://localhost/")
    other.get_by_role("link").click()
    expect(other.get_by_role("heading", name="Runs")).to_be_visible()
    expect(other).to_have_url(f"{server.url}/")


def test_the_session_of_a_browser_reads_and_acts_but_is_not_the_key(page: Page) -> None:
    statuses = page.evaluate(
        """
        async () => {
          const read = await fetch("/api/v1/runs");
          const act = await fetch("/api/v1/tasks/handle-upload/trigger", { method: "POST", body: "{}" });
          const metadata = await fetch("/api/v1/runs/run_1/metadata", { method: "PUT", body: "{}" });
          const token = await fetch("/api/v1/auth/public-tokens", { method: "POST", body: "{}" });
          return [read.status, act.status, metadata.status, token.status];
        }
        """
    )
    assert statuses == [200, 200, 403, 403]
