"""The list of runs, watched while runs come and change."""

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Request, expect

from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, increment, set_, until_unwatched


def row(page: Page, run_id: str) -> Locator:
    return page.locator(f'#runs tr[data-run="{run_id}"]')


def count(page: Page, status: str) -> Locator:
    # A tab may stand for several statuses; each stands in one.
    return page.locator(f'[data-count*="{status}"]')


def test_runs_appear_and_change_without_reload(page: Page, worker: FakeWorker) -> None:
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_text("No runs yet.")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    first = worker.trigger("handle-upload", tags=["user:1234"])
    expect(row(page, first)).to_contain_text("Queued")
    expect(row(page, first).get_by_role("link", name="user:1234")).to_be_visible()
    expect(page.get_by_text("No runs yet.")).to_be_hidden()
    second = worker.trigger("handle-row")
    expect(page.locator("#runs tr")).to_have_count(2)
    # The newest first.
    assert page.locator("#runs tr").evaluate_all("rows => rows.map(row => row.dataset.run)") == [
        second,
        first,
    ]
    worker.claim()
    expect(row(page, first)).to_contain_text("Executing")
    expect(count(page, "EXECUTING")).to_have_text("2")
    worker.report(first, set_("processed", 1), set_("total", 4))
    bar = row(page, first).get_by_role("progressbar")
    expect(bar).to_have_js_property("value", 1)
    worker.report(first, increment("processed", 2))
    expect(bar).to_have_js_property("value", 3)
    expect(row(page, first)).to_contain_text("3 of 4 · 75%")
    worker.complete(first)
    expect(row(page, first)).to_contain_text("Completed")
    worker.fail(second, "no")
    expect(row(page, second)).to_contain_text("Failed")
    expect(count(page, "all")).to_have_text("2")
    expect(count(page, "COMPLETED")).to_have_text("1")
    expect(count(page, "FAILED")).to_have_text("1")
    assert page.evaluate("window.sameDocument")
    row(page, first).get_by_role("link", name="handle-upload").click()
    expect(page.get_by_role("heading", name="handle-upload")).to_be_visible()


def test_a_row_that_changes_stays_the_same_element(page: Page, worker: FakeWorker) -> None:
    """So what a reader has selected or focused is not taken away."""
    run_id = worker.start("handle-upload")
    link = row(page, run_id).get_by_role("link", name="handle-upload")
    link.focus()
    worker.trigger("handle-row")
    expect(page.locator("#runs tr")).to_have_count(2)
    worker.complete(run_id)
    expect(row(page, run_id)).to_contain_text("Completed")
    expect(link).to_be_focused()


def test_filters(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    upload = worker.start("handle-upload", tags=["night"])
    done = worker.start("handle-row", tags=["night"])
    worker.complete(done)
    queued = worker.trigger("handle-row")
    expect(page.locator("#runs tr")).to_have_count(3)
    page.get_by_role("link", name="Completed").click()
    expect(page).to_have_url(f"{server.url}/?status=COMPLETED")
    expect(row(page, done)).to_be_visible()
    expect(page.locator("#runs tr")).to_have_count(1)
    expect(page.get_by_role("link", name="Completed")).to_have_attribute("aria-current", "page")
    # A run joins the list when it comes to match.
    worker.complete(upload)
    expect(row(page, upload)).to_be_visible()
    page.get_by_label("Task").fill("handle-row")
    page.keyboard.press("Enter")
    expect(page.locator("#runs tr")).to_have_count(1)
    expect(row(page, done)).to_be_visible()
    page.get_by_role("link", name="All").click()
    expect(page.locator("#runs tr")).to_have_count(2)
    expect(row(page, queued)).to_be_visible()
    page.get_by_role("link", name="Remove the filter task").click()
    expect(page.locator("#runs tr")).to_have_count(3)
    row(page, upload).get_by_role("link", name="night").click()
    expect(page.locator("#runs tr")).to_have_count(2)
    page.goto("/?task=none&status=FAILED")
    expect(page.get_by_text("No run matches these filters.")).to_be_visible()


def test_older_runs(page: Page, worker: FakeWorker) -> None:
    ids = worker.trigger_many("handle-row", 110)
    expect(page.locator("#runs tr").first).to_have_attribute("data-run", ids[-1])
    expect(page.locator("#runs tr")).to_have_count(50)
    shown = page.locator("#runs tr").evaluate_all("rows => rows.map(row => row.dataset.run)")
    page.get_by_role("button", name="Older runs").click()
    expect(page.get_by_text("These are older runs.")).to_be_visible()
    expect(page.locator("#runs tr")).to_have_count(50)
    shown += page.locator("#runs tr").evaluate_all("rows => rows.map(row => row.dataset.run)")
    page.get_by_role("button", name="Older runs").click()
    expect(page.locator("#runs tr")).to_have_count(10)
    shown += page.locator("#runs tr").evaluate_all("rows => rows.map(row => row.dataset.run)")
    assert shown == ids[::-1]
    expect(page.get_by_role("button", name="Older runs")).to_be_hidden()
    page.get_by_role("button", name="Newer runs").click()
    expect(page.locator("#runs tr")).to_have_count(50)
    page.get_by_role("link", name="Go to the newest").click()
    expect(page.locator("#runs tr").first).to_have_attribute("data-run", ids[-1])


def test_a_restart_of_the_server_is_survived(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    first = worker.trigger("handle-upload")
    expect(row(page, first)).to_be_visible()
    server.stop()
    expect(page.get_by_role("status")).to_have_text("Reconnecting…")
    expect(row(page, first)).to_be_visible()
    server.start()
    expect(page.get_by_role("status")).to_have_text("Live")
    worker.register()
    second = worker.trigger("handle-upload")
    expect(row(page, second)).to_be_visible()


def test_a_session_that_has_ended_leads_to_the_sign_in_page(page: Page, server: RunningServer) -> None:
    expect(page.get_by_role("status")).to_have_text("Live")
    page.context.clear_cookies()
    server.stop()
    server.start()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


HIDE = """
(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}
"""


class Connections:
    """The event streams that the pages of a browser hold."""

    def __init__(self, context: BrowserContext) -> None:
        self.held: list[Request] = []
        context.on("request", self._begin)
        for end in ("requestfinished", "requestfailed"):
            context.on(end, lambda request: self.held.remove(request) if request in self.held else None)

    def _begin(self, request: Request) -> None:
        if "/feed" in request.url or "/realtime/" in request.url:
            self.held.append(request)

    def until_one(self, page: Page) -> Page:
        """The page that holds the only one. Raises AssertionError when there are more, or none, for long."""
        for _ in range(1000):
            # Of a page that is closed nothing is told any more.
            self.held = [request for request in self.held if not request.frame.page.is_closed()]
            if len(self.held) == 1:
                return self.held[0].frame.page
            page.wait_for_timeout(10)
        raise AssertionError([request.url for request in self.held])


@pytest.fixture
def connections(context: BrowserContext) -> Connections:
    return Connections(context)


def test_tabs_share_a_connection_and_one_that_is_hidden_lets_another_hold_it(
    connections: Connections, page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """A browser has six for each server, and whoever looks after many runs has many tabs."""
    # This page alone sees the time go by that a hidden one keeps its connection.
    page.add_init_script(
        "const wait = setTimeout; window.setTimeout = (call, delay) => wait(call, delay === 30_000 ? 100 : delay);"
    )
    page.goto("/")
    expect(page.get_by_role("status")).to_have_text("Live")
    parent = worker.start("handle-upload", metadata={"big": 2**63 + 1})
    writer = StreamWriter(server, parent, "answer")
    paths = ["/", f"/runs/{parent}", "/?task=handle-row&level=all", f"/runs/{parent}", "/", "/", "/"]
    others = [page.context.new_page() for _ in paths]
    for other, path in zip(others, paths, strict=True):
        other.goto(path)
        expect(other.locator("#connection")).to_have_text("Live")
    assert connections.until_one(page) is page
    child = worker.trigger("handle-row", parentRunId=parent)
    writer.write("The ", "moon")
    worker.report(parent, increment("big"))
    expect(row(others[2], child)).to_be_visible()
    for other in (others[1], others[3]):
        expect(other.locator("#child-counts")).to_have_text("1 queued")
        expect(other.locator("#stream")).to_have_text("The moon")
        # What one tab hands to another is as exact as what the server tells.
        expect(other.locator("#metadata")).to_contain_text(str(2**63 + 2))
    assert connections.until_one(page) is page
    page.evaluate(HIDE, True)
    expect(page.get_by_role("status")).to_have_text("Reconnecting…")
    writer.write(" is far.")
    new = worker.trigger("handle-upload")
    expect(row(others[0], new)).to_be_visible()
    for other in (others[1], others[3]):
        expect(other.locator("#stream")).to_have_text("The moon is far.")
    expect(row(page, new)).to_have_count(0)
    leader = connections.until_one(page)
    assert leader is not page
    leader.close()
    others.remove(leader)
    page.evaluate(HIDE, False)
    expect(row(page, new)).to_be_visible()
    last = worker.trigger("handle-upload")
    expect(row(page, last)).to_be_visible()
    for other in others:
        expect(other.locator("#connection")).to_have_text("Live")
    assert connections.until_one(page) is not page


def test_a_hidden_tab_that_shares_nothing_holds_no_connection(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """As in pages that are not secure: ten tabs must not starve the one that is looked at."""
    page.context.add_init_script("delete Navigator.prototype.locks;")
    hidden = [page.context.new_page() for _ in range(6)]
    for tab in hidden:
        tab.goto("/")
        expect(tab.locator("#connection")).to_have_text("Live")
        tab.evaluate(HIDE, True)
        expect(tab.locator("#connection")).to_have_text("Reconnecting…")
    page.goto("/")
    expect(page.locator("#connection")).to_have_text("Live")
    run_id = worker.trigger("handle-upload")
    expect(row(page, run_id)).to_be_visible()
    expect(row(hidden[0], run_id)).to_have_count(0)
    hidden[0].evaluate(HIDE, False)
    expect(row(hidden[0], run_id)).to_be_visible()


def test_whoever_signs_out_sees_nothing_in_other_tabs_either(
    connections: Connections, page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    run_id = worker.start("handle-upload", metadata={"n": 1})
    other, third = page.context.new_page(), page.context.new_page()
    other.goto(f"/runs/{run_id}")
    third.goto("/")
    for tab in (page, other, third):
        expect(tab.locator("#connection")).to_have_text("Live")
    assert connections.until_one(page) is page
    other.get_by_role("button", name="Sign out").click()
    for tab in (page, other, third):
        expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
    until_unwatched(server)


def test_a_tab_without_a_session_sees_nothing_through_the_others(
    connections: Connections, page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """Its browser has lost the cookie, and the connection of another tab is still open."""
    run_id = worker.start("handle-upload", metadata={"secret": "x"})
    expect(row(page, run_id)).to_be_visible()
    page.context.clear_cookies()
    stranger = page.context.new_page()
    stranger.goto("/client/milepost.d.ts")
    follow = """
        async (id) => {
          const { follow } = await import("/client/milepost.js");
          const told = [];
          const error = await new Promise((onError) => {
            follow(() => ({ run: id }), { onError }, (event, data) => { told.push(event, data); });
          });
          return [error.status, told];
        }
    """
    assert stranger.evaluate(follow, run_id) == [401, []]
    # Nor does the other tab see anything from now on.
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    until_unwatched(server)


def test_the_runs_at_the_top_are_shown_and_all_on_demand(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    parent = worker.start("handle-upload")
    child = worker.trigger("handle-row", parentRunId=parent, tags=["night"])
    worker.claim()
    worker.fail(child, "the row\nis broken", name="RowError")
    expect(row(page, parent)).to_be_visible()
    expect(page.locator("#runs tr")).to_have_count(1)
    expect(count(page, "all")).to_have_text("1")
    expect(count(page, "FAILED")).to_have_text("0")
    page.get_by_role("link", name="With children").click()
    expect(page).to_have_url(f"{server.url}/?level=all")
    expect(page.locator("#runs tr")).to_have_count(2)
    expect(count(page, "FAILED")).to_have_text("1")
    error = row(page, child).locator(".error-text")
    expect(error).to_have_text("RowError: the row is broken")
    expect(error).to_have_attribute("title", "RowError: the row\nis broken")
    expect(row(page, parent).locator(".error-text")).to_be_empty()
    # The level goes along with the other filters, also into a search.
    page.get_by_role("link", name="Failed").click()
    failures = "FAILED%2CCRASHED%2CSYSTEM_FAILURE%2CEXPIRED%2CTIMED_OUT"
    expect(page).to_have_url(f"{server.url}/?level=all&status={failures}")
    expect(page.get_by_role("link", name="Failed")).to_have_attribute("aria-current", "page")
    page.get_by_label("Task").fill("handle-row")
    page.keyboard.press("Enter")
    expect(row(page, child)).to_be_visible()
    page.get_by_role("link", name="Top level").click()
    expect(page.get_by_text("No run matches these filters.")).to_be_visible()
    page.get_by_role("link", name="Look among children too").click()
    expect(row(page, child)).to_be_visible()
    # A tag leads to every run that has it, a family has no levels.
    row(page, child).get_by_role("link", name="night").click()
    expect(row(page, child)).to_be_visible()
    page.goto(f"/?parent={parent}&status=FAILED")
    expect(row(page, child)).to_be_visible()
    expect(page.get_by_role("navigation", name="Level")).to_have_count(0)


def test_many_tags_take_one_line(page: Page, worker: FakeWorker) -> None:
    few, many = worker.trigger("handle-row", tags=["a"]), worker.trigger("handle-row", tags=list("abcde"))
    expect(row(page, many).locator(".tag")).to_have_count(2)
    expect(row(page, many)).to_contain_text("+3")
    expect(row(page, few)).not_to_contain_text("+")
    heights = page.locator("#runs tr").evaluate_all("rows => rows.map((row) => row.offsetHeight)")
    assert len(set(heights)) == 1
    assert heights[0] < 40


def test_the_header_signs_out(page: Page) -> None:
    form = page.get_by_role("banner").locator("form")
    expect(form.get_by_role("button", name="Sign out")).to_be_visible()
    assert form.evaluate("form => [form.method, form.getAttribute('action')]") == ["post", "/sign-out"]
    page.context.clear_cookies()
    page.goto("/sign-in")
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
