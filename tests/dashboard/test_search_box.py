"""The search box for metadata: what can be typed, what it means, and what is said of what means nothing."""

import json
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from dashboard.served import FakeWorker, RunningServer, increment

READ = """
  async (text) => {
    const { stringify } = await import("/static/json.js");
    const { SearchError, parseSearch } = await import("/static/search.js");
    try {
      const filter = parseSearch(text);
      return filter === null ? "null" : stringify(filter);
    } catch (error) {
      if (!(error instanceof SearchError)) throw error;
      return [error.message];
    }
  }
"""


@pytest.fixture
def modules(context: BrowserContext) -> Page:
    """A page of the server, from which its modules can be imported; no session is needed."""
    page = context.new_page()
    page.goto("/sign-in")
    return page


def test_what_can_be_typed(modules: Page) -> None:
    cases: list[tuple[str, Any]] = [
        ("", None),
        ("   ", None),
        ("user.id=u1 done>=3", {"user.id": {"$eq": "u1"}, "done": {"$gte": 3}}),
        ("  a=1   b=2 ", {"a": {"$eq": 1}, "b": {"$eq": 2}}),
        ("n>1 n<=2.5", {"n": {"$gt": 1, "$lte": 2.5}}),
        ("n<-1e3", {"n": {"$lt": -1000.0}}),
        ('id="42" n=42', {"id": {"$eq": "42"}, "n": {"$eq": 42}}),
        ("a=true b=null c=truely", {"a": {"$eq": True}, "b": {"$eq": None}, "c": {"$eq": "truely"}}),
        ("tags~vip", {"tags": {"$contains": "vip"}}),
        ("error !warning", {"error": {"$exists": True}, "warning": {"$exists": False}}),
        ('name="a b \\" c"', {"name": {"$eq": 'a b " c'}}),
        ('"odd key"=1 ""=2', {"odd key": {"$eq": 1}, "": {"$eq": 2}}),
        ('$.steps[0].done=true $["a b"].c=x', {"$.steps[0].done": {"$eq": True}, '$["a b"].c': {"$eq": "x"}}),
        ("städte.é=ü", {"städte.é": {"$eq": "ü"}}),
        ("mail=a@b.c<d", {"mail": {"$eq": "a@b.c<d"}}),
        ("v=[1]", {"v": {"$eq": "[1]"}}),
        ("__proto__=1", {"__proto__": {"$eq": 1}}),
        ("n=12345678901234567890", {"n": {"$eq": 12345678901234567890}}),
        ("n=007", {"n": {"$eq": "007"}}),
    ]
    for typed, expected in cases:
        read = modules.evaluate(READ, typed)
        assert isinstance(read, str), (typed, read)
        assert json.loads(read) == expected, typed


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("=1", "a condition begins with a key, such as user.id=u1, and not with “=1”"),
        ("a=", 'a is compared with nothing; write a="" for an empty text'),
        ('a="open', "a quote is not closed: “\"open”"),
        ('a"b', "after a comes one of = > >= < <= ~ and not “\"b”"),
        ('a="x"y', "a space is missing before “y”"),
        ("!a=1", "“!” stands before a key that is not there: !a"),
        ("!", "a condition begins with a key, such as user.id=u1, and not with the end"),
        ("a=1 a=2", "a has this kind of condition twice; only one of them can hold"),
        ('a="\\x"', '"\\x" is no text in quotes as JSON has it'),
    ],
)  # fmt: skip
def test_what_means_nothing_is_said(modules: Page, typed: str, said: str) -> None:
    assert modules.evaluate(READ, typed) == [said]


def test_runs_are_found_by_their_metadata(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    first = worker.start("handle-upload", metadata={"user": {"id": "u1"}, "done": 1})
    worker.trigger("handle-upload", metadata={"user": {"id": "u2"}, "done": 9})
    child = worker.trigger("handle-row", metadata={"user": {"id": "u1"}, "done": 5}, parentRunId=first)
    box = page.get_by_role("searchbox", name="Metadata")
    # What is no search is not sent.
    box.fill("user.id=")
    page.keyboard.press("Enter")
    problem = page.get_by_role("alert")
    expect(problem).to_have_text('user.id is compared with nothing; write user.id="" for an empty text')
    expect(page).to_have_url(f"{server.url}/")
    box.fill("user.id=u1 done>=3")
    expect(problem).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_text("No run matches these filters.")).to_be_visible()
    page.get_by_role("link", name="Look among children too").click()
    rows = page.locator("#runs tr")
    expect(rows).to_have_attribute("data-run", child)
    expect(page.get_by_role("searchbox", name="Metadata")).to_have_value("user.id=u1 done>=3")
    # It is live, and goes with the other filters.
    worker.report(first, increment("done", 2))
    expect(rows).to_have_count(2)
    page.get_by_label("Task").fill("handle-upload")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_have_attribute("data-run", first)
    page.get_by_role("link", name="Remove the filter metadata").click()
    expect(rows).to_have_count(2)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("$.a[*]=1", "wildcard"),
        ("a>true", "cannot compare a boolean"),
        ("=1", "begins with a key"),
    ],
)
def test_what_the_server_refuses_is_said_beside_the_box(page: Page, typed: str, said: str) -> None:
    page.get_by_role("searchbox", name="Metadata").fill(typed)
    page.keyboard.press("Enter")
    if typed == "=1":
        # As it comes from a link.
        page.goto("/?metadata=%3D1")
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator("#connection")).to_have_text("Cannot be searched")
    expect(page.get_by_role("searchbox", name="Metadata")).to_have_value(typed)
    expect(page.get_by_role("searchbox", name="Metadata")).to_have_attribute("aria-invalid", "true")
    page.goto(f"/?metadata={typed.replace('>', '%3E')}&after=run_1")
    expect(page.get_by_role("alert")).to_contain_text(said)
