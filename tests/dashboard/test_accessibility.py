"""What axe-core finds: nothing, on every page, in light and dark, on a screen and on a phone; targets of 24 pixels included."""

from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect

from dashboard.served import FakeWorker, RunningServer, append, increment, set_
from dashboard.test_streams import Source

SCREEN = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
RUN_AXE = """
    async () => {
      const found = await axe.run(document, { resultTypes: ["violations"], rules: { "target-size": { enabled: true } } });
      return found.violations.map(({ id, help, nodes }) => [id, help, nodes.map((node) => node.target.join(" "))]);
    }
"""


def violations(page: Page) -> dict[str, Any]:
    """What axe finds on the page as it is, by theme and width."""
    # By the debugger: the page itself lets no foreign script in.
    page.evaluate(AXE_SCRIPT)
    found: dict[str, Any] = {}
    for size in (SCREEN, PHONE):
        page.set_viewport_size(size)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            for violation in page.evaluate(RUN_AXE):
                found[f"{theme}, {size['width']} px: {violation[0]}"] = violation[1:]
    return found


@pytest.fixture
def family(worker: FakeWorker) -> str:
    """A run with everything that its page can show, and children that failed, are at work and have completed."""
    parent = worker.start(
        "handle-upload", '{"path": "people.csv"}', metadata={"done": 0, "total": 9, "user": {"id": 1}}, tags=["night"]
    )  # fmt: skip
    children = [worker.trigger("handle-row", parentRunId=parent, tags=["a", "b", "c", "d"]) for _ in range(3)]
    worker.claim()
    worker.fail(children[0], "the row is broken", trace="Traceback: line 12")
    worker.complete(children[1])
    lines = [
        {"at": 1, "level": level, "message": f"a line: {level}"}
        for level in ("debug", "info", "warning", "error")
    ]
    for step in range(3):
        worker.report(parent, increment("done"), append("log", step, maxItems=2), logs=lines)
    worker.report(parent, {"type": "delete", "key": "user"}, set_("text", "x" * 2000), set_("done", "many"))
    worker.report(parent, set_("done", 9))
    worker.fail(parent, "the file is broken", trace="Traceback (most recent call last):\n" + "  line\n" * 60)
    return parent


def test_the_page_of_a_run(page: Page, family: str) -> None:
    page.goto(f"/runs/{family}")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator(".chart")).to_have_count(1)
    expect(page.locator("#children tr")).to_have_count(3)
    expect(page.locator("#log li")).to_have_count(12)
    assert violations(page) == {}
    page.get_by_role("button", name="Previous version").click()
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("#history-line")).to_contain_text("Version 4")
    expect(page.locator("#metadata [data-mark]")).to_have_count(3)
    assert violations(page) == {}


def test_the_pages_beside_the_runs(
    page: Page, family: str, worker: FakeWorker, server: RunningServer
) -> None:
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "rows": {"type": "integer"}}}
    worker.offers["handle-upload"] = {"payloadSchema": schema}
    worker.register()
    server.request("POST", "/api/v1/schedules", {"task": "handle-row", "cron": "0 5 * * *"})
    for section in ("Tasks", "Queues", "Schedules", "Workers"):
        page.get_by_role("link", name=section, exact=True).click()
        expect(page.locator("#things tr").first).to_be_visible()
        assert violations(page) == {}, section
    page.goto("/tasks?task=handle-upload")
    expect(page.get_by_label("rows")).to_be_visible()
    page.get_by_text("Options").click()
    assert violations(page) == {}
    page.goto(f"/runs/{family}")
    page.get_by_role("button", name="Replay…").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == {}


def test_the_streams_of_a_run(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = worker.start("handle-upload")
    Source(server, run_id, "answer").write("The moon ", "is far. " * 2000)
    rows = Source(server, run_id, "rows/checked")
    rows.write(*({"row": number, "text": "x" * 200} for number in range(200)))
    Source(server, run_id, "broken").write("a", end={"error": "no ink"})
    page.goto(f"/runs/{run_id}")
    expect(page.locator("#stream")).to_contain_text("The moon")
    tabs = page.get_by_role("tab")
    expect(tabs).to_have_count(3)
    assert violations(page) == {}
    for number, text in ((1, '"row":199'), (2, "a")):
        tabs.nth(number).click()
        expect(page.locator("#stream")).to_contain_text(text)
        assert violations(page) == {}


def test_lists_of_runs(page: Page, family: str) -> None:
    expect(page.locator("#runs tr")).to_have_count(1)
    page.get_by_text("How to search").click()
    assert violations(page) == {}
    page.goto(f"/?parent={family}&metadata=%3D")
    expect(page.locator("#metadata-problem")).to_be_visible()
    assert violations(page) == {}
    page.goto(f"/?parent={family}")
    expect(page.locator("#runs tr")).to_have_count(3)
    assert violations(page) == {}


def test_pages_with_nothing_on_them(page: Page) -> None:
    expect(page.get_by_text("No runs yet.")).to_be_visible()
    assert violations(page) == {}
    page.goto("/?task=none")
    expect(page.get_by_text("No run matches these filters.")).to_be_visible()
    assert violations(page) == {}
    page.goto("/runs/run_unknown")
    expect(page.get_by_role("heading", name="There is no such run")).to_be_visible()
    assert violations(page) == {}
    page.context.clear_cookies()
    page.goto("/sign-in")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert violations(page) == {}
