"""The list of runs, watched while runs come and change."""

from playwright.sync_api import Locator, Page, expect

from dashboard.served import FakeWorker, RunningServer, increment, set_


def row(page: Page, run_id: str) -> Locator:
    return page.locator(f'#runs tr[data-run="{run_id}"]')


def count(page: Page, status: str) -> Locator:
    return page.locator(f'[data-count="{status}"]')


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


def test_a_tab_that_is_hidden_holds_no_connection(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """A browser has six for each server; ten tabs must not starve the one that is looked at."""
    expect(page.get_by_role("status")).to_have_text("Live")
    hide = """
        (hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }
    """
    page.evaluate(hide, True)
    others = [page.context.new_page() for _ in range(5)]
    for other in others:
        other.goto("/")
        expect(other.get_by_role("status")).to_have_text("Live")
    run_id = worker.trigger("handle-upload")
    for other in others:
        expect(row(other, run_id)).to_be_visible()
    expect(row(page, run_id)).to_have_count(0)
    others[0].close()
    page.evaluate(hide, False)
    expect(row(page, run_id)).to_be_visible()


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
    expect(page).to_have_url(f"{server.url}/?level=all&status=FAILED")
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
