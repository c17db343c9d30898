"""Fixtures: the server, a worker, a page of another origin that has nothing but a token."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from dashboard.conftest import PATIENCE_MILLISECONDS, browser
from dashboard.served import SECRET_KEY, FakeWorker, RunningServer
from milepost import auth
from milepost.auth import TokenScopes
from milepost.client.client import Client

__all__ = ["browser"]


class Site:
    """A site of somebody else: pages by their path, on a port of its own, which makes another origin."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {"/": "<!doctype html><html lang=en><title>A page</title><body>"}
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.get(self.path)
                self.send_response(404 if page is None else 200)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, format: str, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.stop()


@pytest.fixture
def server(tmp_path: Path, site: Site) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path, cors_origins=site.url)
    yield server
    server.stop()


@pytest.fixture
def worker(server: RunningServer) -> FakeWorker:
    return FakeWorker(server, "work")


class Tokens:
    """Makes public tokens as a user's server does."""

    def __init__(self, server: RunningServer) -> None:
        self._client = Client(server.url, SECRET_KEY)

    def make(self, scopes: TokenScopes, **options: Any) -> str:
        return auth.create_public_token(scopes, client=self._client, **options)

    def run(self, *run_ids: str, **options: Any) -> str:
        return self.make({"read": {"runs": run_ids}}, **options)


@pytest.fixture
def tokens(server: RunningServer) -> Tokens:
    return Tokens(server)


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=site.url, locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page of the other site. At the end: no error went uncaught in it."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert not faults


@pytest.fixture
def client(page: Page, server: RunningServer) -> Page:
    """The page with the module at hand: `milepost` in its scripts."""
    page.goto("/")
    page.evaluate(
        "async (url) => { window.milepost = await import(url); }", f"{server.url}/client/milepost.js"
    )
    return page
