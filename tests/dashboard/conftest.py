"""Fixtures: the server, a worker, Debian's chromium, a page that has signed in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from dashboard.served import FakeWorker, RunningServer

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Generous, for machines that do other things too; nothing waits longer than it has to.
PATIENCE_MILLISECONDS = 20_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # Not for the session: while it is open, an event loop counts as running in this thread, and other folders' tests need their own.
    if not CHROMIUM.exists():
        pytest.fail(
            f"the dashboard's tests need {CHROMIUM}: apt-get install chromium fonts-dejavu-core",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of a test's own. Modules whose tests do not disturb one another replace it by the one that they share."""
    server = RunningServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture(scope="package")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("shared"))
    yield server
    server.stop()


@pytest.fixture
def worker(server: RunningServer) -> FakeWorker:
    return FakeWorker(server, "handle-upload", "handle-row")


@pytest.fixture
def context(browser: Browser, server: RunningServer) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=server.url, locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: RunningServer) -> Iterator[Page]:
    """A page whose browser has signed in by the link. At the end: nothing has gone wrong in it, and nothing was asked elsewhere."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    page.on(
        "request", lambda request: None if request.url.startswith(server.url) else faults.append(request.url)
    )
    page.goto(server.app.sign_in_path())
    yield page
    assert not faults
