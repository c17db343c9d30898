"""One run, watched while it works."""

import json
import time
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, append, increment, set_

MARKUP = '<img src=x onerror="window.pwned = 1"><script>window.pwned = 1</script>'


# Lets a test see how many connections a page holds open, and speak in the server's name.
KEEP_FEEDS = """
    window.feeds = [];
    const ask = window.fetch;
    window.fetch = async (url, options) => {
      const response = await ask(url, options);
      if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
      const feed = {
        isOpen: true,
        start: (controller) => {
          feed.say = (text) => controller.enqueue(new TextEncoder().encode(text));
        },
      };
      window.feeds.push(feed);
      options.signal.addEventListener("abort", () => { feed.isOpen = false; });
      return new Response(response.body.pipeThrough(new TransformStream(feed)), response);
    };
"""


def until_it_holds(page: Page, count: int) -> None:
    _until(page, f"feeds.filter((feed) => feed.isOpen).length === {count}")


def _until(page: Page, condition: str) -> None:
    """Asked from outside: what a page asks itself again and again its own policy forbids, as it is a text."""
    until = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(20)


def tree(page: Page, name: str = "metadata") -> Locator:
    return page.locator(f"#{name}")


def leaf(page: Page, key: str) -> Locator:
    """The value of a leaf at any depth of the metadata tree, by the name before it."""
    name = page.locator(".tree-name", has_text=key)
    return page.locator("#metadata .tree-leaf").filter(has=name).locator(".tree-value")


def fact(page: Page, name: str) -> Locator:
    return page.locator("#facts > div").filter(has=page.locator("dt", has_text=name)).locator("dd")


def connection(page: Page) -> Locator:
    return page.locator("#connection")


def open_run(page: Page, run_id: str) -> None:
    page.goto(f"/runs/{run_id}")
    expect(page.get_by_role("heading", level=1)).not_to_have_text("Run")
    page.evaluate("window.sameDocument = true")


def test_a_run_from_its_start_to_its_end(page: Page, worker: FakeWorker) -> None:
    run_id = worker.trigger(
        "handle-upload",
        json.dumps({"path": "people.csv"}),
        metadata={"user": {"id": "user_1234"}},
        tags=["night"],
    )
    open_run(page, run_id)
    expect(page.locator("#status")).to_have_text("Queued")
    expect(connection(page)).to_have_text("Live")
    expect(tree(page, "payload")).to_contain_text('path "people.csv"')
    expect(leaf(page, "id")).to_have_text('"user_1234"')
    expect(page.locator("#metadata-version")).to_have_text("version 0")
    expect(fact(page, "Tags")).to_have_text("night")
    expect(fact(page, "Attempt")).to_have_text("not started")
    worker.claim()
    expect(page.locator("#status")).to_have_text("Executing")
    expect(fact(page, "Attempt")).to_have_text("1")
    worker.report(run_id, set_("status", "processing"), set_("processed", 0), set_("total", 3))
    expect(leaf(page, "status")).to_have_text('"processing"')
    for done in (1, 2, 3):
        worker.report(run_id, increment("processed"), append("log", f"row {done}"), set_("$.user.seen", done))
        expect(leaf(page, "processed")).to_have_text(str(done))
        expect(page.locator("#progress")).to_contain_text(f"{done} of 3")
        expect(page.locator("#progress progress")).to_have_js_property("value", done)
        expect(tree(page)).to_contain_text(f'{done - 1} "row {done}"')
        expect(leaf(page, "seen")).to_have_text(str(done))
    expect(page.locator("#metadata-version")).to_have_text("version 4")
    worker.report(
        run_id, {"type": "delete", "key": "$.user.id"}, {"type": "remove", "key": "log", "value": "row 2"}
    )
    expect(leaf(page, "id")).to_have_count(0)
    expect(tree(page)).to_contain_text("log [2 items]")
    worker.report(run_id, waiting=True)
    expect(page.locator("#status")).to_have_text("Waiting")
    worker.report(run_id, waiting=False)
    expect(page.locator("#status")).to_have_text("Executing")
    worker.report(
        run_id, {"type": "update", "value": {"status": "complete"}}, outcome={"output": '{"ok": 3}'}
    )
    expect(page.locator("#status")).to_have_text("Completed")
    expect(tree(page, "output")).to_have_text("ok 3")
    expect(tree(page)).to_have_text('status "complete"')
    expect(page.locator("#progress")).to_be_hidden()
    expect(connection(page)).to_have_text("Finished")
    expect(fact(page, "Finished")).to_be_visible()
    expect(page.locator("#error")).to_be_hidden()
    assert page.evaluate("window.sameDocument")


def test_a_failed_attempt_and_the_failed_run(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    open_run(page, run_id)
    worker.fail(run_id, "the file is locked", name="OSError", retryAfterMs=0)
    expect(page.locator("#error")).to_contain_text("An earlier attempt failed")
    expect(page.locator("#error")).to_contain_text("OSError: the file is locked")
    expect(page.locator("#error-trace")).to_be_hidden()
    worker.claim()
    expect(fact(page, "Attempt")).to_have_text("2")
    worker.report(run_id, set_("step", 1))
    worker.fail(run_id, "the file is gone", name="FileNotFoundError", trace="Traceback: line 12")
    expect(page.locator("#status")).to_have_text("Failed")
    expect(page.locator("#error")).to_contain_text("The run failed")
    expect(page.locator("#error")).to_contain_text("FileNotFoundError: the file is gone")
    # Nobody has to open it.
    expect(page.locator("#error-trace-text")).to_be_visible()
    expect(page.locator("#error-trace-text")).to_have_text("Traceback: line 12")
    expect(page.locator("#output-section")).to_be_hidden()
    expect(page.locator("#attempts li")).to_have_count(2)
    expect(page.locator("#attempts li").first).to_contain_text("Attempt 1 failed")
    expect(page.locator("#attempts li").first).to_contain_text("OSError: the file is locked")
    expect(page.locator("#attempts li").last).to_contain_text("FileNotFoundError: the file is gone")
    # The same for who comes later.
    open_run(page, run_id)
    expect(page.locator("#error")).to_contain_text("FileNotFoundError: the file is gone")
    expect(page.locator("#attempts li")).to_have_count(2)
    expect(connection(page)).to_have_text("Finished")


def test_an_attempt_that_cost_nothing_is_told_as_such(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    open_run(page, run_id)
    expect(page.locator("#attempts-section")).to_be_hidden()
    worker.report(run_id, set_("step", 1))
    worker.leave()
    expect(page.locator("#attempts li").first).to_contain_text("Attempt 1 was handed back, at no cost")
    expect(page.locator("#error")).to_be_hidden()


def test_children(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    parent = worker.start("handle-upload", metadata={"processed": 0, "total": 12})
    open_run(page, parent)
    expect(page.locator("#children-section")).to_be_hidden()
    children = [worker.trigger("handle-row", parentRunId=parent) for _ in range(12)]
    expect(page.locator("#child-counts")).to_have_text("12 queued")
    expect(page.locator("#children tr")).to_have_count(10)
    expect(page.locator("#children tr").first).to_have_attribute("data-run", children[-1])
    worker.claim()
    expect(page.locator("#child-counts")).to_have_text("12 executing")
    for position, child in enumerate(children[:4]):
        changes = [{"run": parent, "operations": [increment("processed")]}]
        if position:
            worker.report(child, changes=changes, outcome={"output": "null"})
        else:
            worker.report(child, changes=changes, outcome={"error": {"message": "no"}})
    expect(page.locator("#child-counts li")).to_have_text(["8 executing", "3 completed", "1 failed"])
    expect(leaf(page, "processed")).to_have_text("4")
    expect(page.locator("#progress progress")).to_have_js_property("value", 4)
    # The run ends first; its children are still followed.
    worker.complete(parent)
    expect(page.locator("#status")).to_have_text("Completed")
    for child in children[4:]:
        worker.complete(child)
    expect(page.locator("#child-counts li")).to_have_text(["11 completed", "1 failed"])
    page.get_by_role("link", name="All 12 children").click()
    expect(page.locator("#runs tr")).to_have_count(12)
    page.locator(f'#runs tr[data-run="{children[0]}"]').get_by_role("link", name="handle-row").click()
    expect(fact(page, "Parent").get_by_role("link")).to_have_text(parent)
    expect(fact(page, "Root").get_by_role("link")).to_have_text(parent)
    fact(page, "Root").get_by_role("link").click()
    expect(page).to_have_url(f"{server.url}/runs/{parent}")


def test_a_child_of_the_last_moment(page: Page, worker: FakeWorker) -> None:
    page.add_init_script(KEEP_FEEDS)
    parent = worker.start("handle-upload")
    open_run(page, parent)
    expect(connection(page)).to_have_text("Live")
    child = worker.trigger("handle-row", parentRunId=parent)
    worker.complete(parent)
    expect(page.locator("#child-counts")).to_have_text("1 queued")
    worker.claim()
    worker.complete(child)
    expect(page.locator("#child-counts")).to_have_text("1 completed")
    # Nothing is left to happen, so nothing is watched.
    until_it_holds(page, 0)


def test_the_children_that_need_a_look_come_first_and_lead_to_their_like(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    parent = worker.start("handle-upload")
    children = [worker.trigger("handle-row", parentRunId=parent) for _ in range(14)]
    worker.claim()
    for child in children[:3]:
        worker.fail(child, "no")
    for child in children[5:]:
        worker.complete(child)
    open_run(page, parent)
    expect(page.locator("#child-counts li")).to_have_text(["2 executing", "9 completed", "3 failed"])
    expect(page.locator("#children tr")).to_have_count(10)
    shown = page.locator("#children tr").evaluate_all("rows => rows.map(row => row.dataset.run)")
    assert shown[:5] == [*children[2::-1], *children[4:2:-1]]
    expect(page.locator("#children tr").first.locator(".error-text")).to_have_text("ValueError: no")
    page.get_by_role("link", name="3 failed").click()
    expect(page).to_have_url(f"{server.url}/?parent={parent}&status=FAILED")
    expect(page.locator("#runs tr")).to_have_count(3)
    page.go_back()
    worker.complete(children[3])
    expect(page.locator("#child-counts li")).to_have_text(["1 executing", "10 completed", "3 failed"])


def test_a_page_holds_one_connection_and_asks_for_nothing_by_the_clock(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """Children, counts, log and a stream included; a browser has six connections for all its tabs."""
    page.add_init_script(KEEP_FEEDS)
    parent = worker.start("handle-upload", metadata={"n": 0})
    children = [worker.trigger("handle-row", parentRunId=parent) for _ in range(3)]
    worker.claim()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/logs" in request.url else None)
    open_run(page, parent)
    expect(page.locator("#child-counts")).to_have_text("3 executing")
    for number in range(3):
        worker.report(
            parent, increment("n"), logs=[{"at": number, "level": "info", "message": f"line {number}"}]
        )
        expect(page.locator("#log li").last).to_contain_text(f"line {number}")
        worker.complete(children[number])
        expect(page.locator("#child-counts")).to_contain_text(f"{number + 1} completed")
    StreamWriter(server, parent, "answer").write("The moon")
    expect(page.locator("#stream")).to_have_text("The moon")
    until_it_holds(page, 1)
    # Once at the beginning, once for each time that it was announced, and once when the stream came onto the connection; what is
    # announced while it asks may be found with the next one.
    assert 1 < len(asked) <= 5


def test_a_run_that_nobody_can_take_says_so(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    body = {"payload": "null"}
    run_id = server.request("POST", "/api/v1/tasks/summarize/trigger", body)["id"]
    open_run(page, run_id)
    notice = page.get_by_role("status").filter(has_text="Nobody can take this run")
    expect(notice).to_contain_text("no worker has ever offered a task “summarize”")
    late = FakeWorker(server, "summarize", worker_id="worker_late")
    expect(notice).to_be_hidden()
    [claimed] = late.claim()
    assert claimed == run_id
    late.complete(run_id)
    expect(page.locator("#status")).to_have_text("Completed")


def test_the_title_says_how_far_it_is(page: Page, worker: FakeWorker) -> None:
    run_id = worker.trigger("handle-upload", metadata={"done": 0, "total": None})
    open_run(page, run_id)
    expect(page).to_have_title("Queued · handle-upload")
    worker.claim()
    expect(page).to_have_title("Executing · handle-upload")
    worker.report(run_id, set_("done", 3), set_("total", 7))
    expect(page).to_have_title("42 % · handle-upload")
    worker.fail(run_id, "no")
    expect(page).to_have_title("Failed · handle-upload")


def test_ids_and_stack_traces_are_copied(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    run_id = worker.start("handle-upload", metadata={"n": 1})
    trace = "Traceback (most recent call last):\n  line 1"
    worker.fail(run_id, "no", trace=trace)
    open_run(page, run_id)
    for name, text in [("Copy id", run_id), ("Copy stack trace", trace)]:
        button = page.get_by_role("button", name=name)
        button.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        expect(button).to_be_visible()
    # Where a browser has no clipboard for pages, as over plain http, there is the old way.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    page.get_by_role("button", name="Copy id").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.evaluate("delete navigator.clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == run_id


def test_the_log(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")

    def log(*lines: tuple[str, str]) -> None:
        at = 1_800_000_000_123_456
        worker.report(
            run_id,
            logs=[
                {"at": at, "level": level, "message": message, "logger": "app"} for level, message in lines
            ],
        )

    log(("info", "reading"), ("warning", MARKUP))
    open_run(page, run_id)
    lines = page.locator("#log li")
    expect(lines).to_have_count(2)
    expect(lines.nth(0)).to_contain_text("08:00:00.123")
    expect(lines.nth(1)).to_contain_text(MARKUP)
    log(("error", "disk full"))
    expect(lines).to_have_count(3)
    expect(lines.nth(2)).to_contain_text("disk full")
    # More than a page of the API, more than is shown at once.
    for start in range(0, 1300, 100):
        log(*[("debug", f"line {number}") for number in range(start, start + 100)])
    expect(lines.last).to_contain_text("line 1299")
    expect(lines).to_have_count(500)
    page.get_by_role("button", name="Show 803 earlier lines").click()
    expect(lines).to_have_count(1303)
    worker.report(run_id, logs=[{"at": 1, "level": "info", "message": "the end"}], outcome={"output": "null"})
    expect(lines.last).to_contain_text("the end")
    expect(lines).to_have_count(1304)


def test_progress_bars(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    open_run(page, run_id)
    worker.report(
        run_id,
        set_("progress", 0.255),
        set_("rows", {"done": 30, "total": 20}),
        set_("pages", {"done": 7, "total": None}),
        set_("no", {"done": "x", "total": 5}),
        set_("zero", {"done": 0, "total": 0}),
    )
    bars = page.locator("#progress .progress")
    expect(bars).to_have_text(["progress25%", "rows30 of 20 · 150%", "pages7 of an unknown total"])
    expect(bars.nth(0).get_by_role("progressbar", name="progress")).to_have_js_property("value", 0.255)
    expect(bars.nth(1).locator("progress")).to_have_js_property("position", 1)
    expect(bars.nth(2).locator("progress")).to_have_js_property("position", -1)
    worker.report(run_id, set_("progress", 2), {"type": "delete", "key": "pages"})
    expect(bars).to_have_text(["rows30 of 20 · 150%"])


@pytest.mark.parametrize("where", ["metadata", "payload", "output"])
def test_what_users_send_is_text(page: Page, worker: FakeWorker, where: str) -> None:
    value: dict[str, Any] = {
        MARKUP: MARKUP,
        "list": [MARKUP, {"deep": MARKUP}],
        "__proto__": {"polluted": 1},
        "constructor": {"prototype": "x"},
    }
    if where == "metadata":
        del value["__proto__"]
        value["inner"] = {"__proto__": {"polluted": 1}, "toString": 2, "hasOwnProperty": None}
    options: dict[str, Any] = {"metadata": value} if where == "metadata" else {}
    run_id = worker.start("handle-upload", json.dumps(value), tags=[MARKUP], **options)
    if where == "output":
        worker.complete(run_id, json.dumps(value))
    open_run(page, run_id)
    expect(tree(page, where).locator(".tree-name").first).to_have_text(MARKUP)
    expect(tree(page, where)).to_contain_text(json.dumps(MARKUP))
    expect(tree(page, where)).to_contain_text("__proto__ {1 key}")
    expect(fact(page, "Tags")).to_have_text(MARKUP)
    if where == "metadata":
        worker.report(run_id, set_("$.inner.toString", 3), append("list", {"__proto__": MARKUP}))
        expect(leaf(page, "toString")).to_have_text("3")
        expect(tree(page)).to_contain_text("list [3 items]")
        worker.fail(run_id, MARKUP, name=MARKUP, trace=MARKUP)
        expect(page.locator("#error-message")).to_have_text(f"{MARKUP}: {MARKUP}")
        expect(page.locator("#error-trace-text")).to_have_text(MARKUP)
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("[window.pwned, {}.polluted]") == [None, None]
    page.goto("/")
    expect(page.locator("#runs .tag")).to_have_text(MARKUP)
    assert page.evaluate("window.pwned") is None


def test_numbers_are_shown_as_they_are(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload", metadata={"big": 2**63 + 1, "whole": 1.0, "small": 1e-7})
    open_run(page, run_id)
    expect(leaf(page, "big")).to_have_text("9223372036854775809")
    expect(leaf(page, "whole")).to_have_text("1.0")
    expect(leaf(page, "small")).to_have_text("1e-7")
    worker.report(run_id, increment("big", 1), increment("whole", 1))
    expect(leaf(page, "big")).to_have_text("9223372036854775810")
    expect(leaf(page, "whole")).to_have_text("2.0")


def test_a_restart_of_the_server_is_survived(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = worker.start("handle-upload", metadata={"n": 1})
    open_run(page, run_id)
    expect(connection(page)).to_have_text("Live")
    server.stop()
    expect(connection(page)).to_have_text("Reconnecting…")
    server.start()
    expect(connection(page)).to_have_text("Live")
    worker.register()
    worker.report(run_id, increment("n"))
    expect(leaf(page, "n")).to_have_text("2")
    worker.complete(run_id)
    expect(connection(page)).to_have_text("Finished")
    assert page.evaluate("window.sameDocument")


def test_a_gap_in_the_versions_is_healed_by_a_snapshot(page: Page, worker: FakeWorker) -> None:
    page.add_init_script(KEEP_FEEDS)
    run_id = worker.start("handle-upload", metadata={"n": 1})
    open_run(page, run_id)
    expect(connection(page)).to_have_text("Live")
    gap = {"fromVersion": 5, "version": 6, "operations": [increment("n", 100)]}
    with page.expect_request("**/feed/watch"):
        page.evaluate("(text) => feeds[0].say(text)", f"event: 0-delta\ndata: {json.dumps(gap)}\n\n")
        _until(page, "!feeds[0].isOpen")
    expect(connection(page)).to_have_text("Live")
    worker.report(run_id, increment("n"))
    expect(leaf(page, "n")).to_have_text("2")


def test_a_run_that_is_gone(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    problem = '{"status": 404, "error": "there is no such run", "code": "run_not_found"}'
    page.route(
        "**/feed/watch",
        lambda route: route.fulfill(
            body=f"event: 0-refused\ndata: {problem}\n\n", content_type="text/event-stream"
        ),
    )
    page.goto(f"/runs/{run_id}")
    expect(connection(page)).to_have_text("Not found")
    # What could be done with a run is offered as soon as it is known, with its payload.
    expect(page.locator("#actions").get_by_role("button")).to_have_count(0)


def test_what_cannot_be_read_is_said(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    too_deep = "[" * 1100 + "]" * 1100
    frame = f'event: 0-snapshot\ndata: {{"version": 0, "run": {{"payload": {too_deep}}}}}\n\n'
    page.route(
        "**/feed/watch",
        lambda route: route.fulfill(body=frame, content_type="text/event-stream"),
    )
    page.goto(f"/runs/{run_id}")
    expect(connection(page)).to_have_text("Cannot be shown")


def test_an_id_counts_once(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    open_run(page, run_id)
    for _ in range(2):
        worker.report(run_id, increment("n", once="row 1"), increment("all"))
    expect(leaf(page, "all")).to_have_text("2")
    expect(leaf(page, "n")).to_have_text("1")


def test_a_large_document_is_drawn_in_part_and_changed_in_place(page: Page, worker: FakeWorker) -> None:
    log = [{"line": number, "text": "x" * 180} for number in range(1000)]
    run_id = worker.start("handle-upload", metadata={"log": log, "step": 1, "notes": "y" * 5000})
    open_run(page, run_id)
    assert tree(page).locator("li").count() < 200
    expect(leaf(page, "notes").locator("..").get_by_role("button")).to_have_text("Show all 5,000 characters")
    leaf(page, "notes").locator("..").get_by_role("button").click()
    expect(leaf(page, "notes")).to_have_text(json.dumps("y" * 5000))
    items = page.locator("#metadata > ul > li > details > ul > li > details")
    expect(items).to_have_count(50)
    expect(items.last).to_contain_text("999 {2 keys}")
    page.get_by_role("button", name="Show 500 more of 1,000 (these are the last 50)").click()
    expect(items).to_have_count(550)
    page.get_by_role("button", name="Show all 1,000 (these are the last 550)").click()
    expect(items).to_have_count(1000)
    page.get_by_role("button", name="Show the last 50 only").click()
    expect(items).to_have_count(50)
    watch = """
        () => {
          window.observer?.disconnect();
          window.changes = { added: 0, removed: 0, texts: 0 };
          window.observer = new MutationObserver((records) => {
            for (const record of records) {
              const onlyText = [...record.addedNodes, ...record.removedNodes].every((node) => node.nodeType === Node.TEXT_NODE);
              if (onlyText) window.changes.texts += 1;
              else {
                window.changes.added += record.addedNodes.length;
                window.changes.removed += record.removedNodes.length;
              }
            }
          });
          window.observer.observe(document.getElementById("metadata"), { childList: true, characterData: true, subtree: true });
        }
    """
    page.evaluate(watch)
    worker.report(run_id, append("log", "one more"), increment("step"))
    expect(tree(page)).to_contain_text('1000 "one more"')
    expect(leaf(page, "step")).to_have_text("2")
    changes = page.evaluate("window.changes")
    assert (changes["added"], changes["removed"]) == (1, 1)
    assert changes["texts"] <= 4
    # A window that slides: the others move up and stay the elements that they are.
    page.evaluate(
        "document.querySelector('#metadata > ul > li > details > ul > li:last-child').dataset.mark = 'this'"
    )
    page.evaluate(watch)
    worker.report(run_id, append("log", "the last", maxItems=1001))
    expect(tree(page)).to_contain_text('1000 "the last"')
    expect(page.locator("[data-mark]")).to_have_text('999 "one more"')
    changes = page.evaluate("window.changes")
    assert (changes["added"], changes["removed"]) == (1, 1)


def test_the_keyboard_opens_and_closes(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload", metadata={"user": {"id": 1}})
    open_run(page, run_id)
    summary = page.locator("#metadata summary")
    summary.focus()
    expect(leaf(page, "id")).to_be_visible()
    page.keyboard.press("Enter")
    expect(leaf(page, "id")).to_have_count(0)
    worker.report(run_id, set_("$.user.id", 2))
    expect(page.locator("#metadata-version")).to_have_text("version 1")
    page.keyboard.press("Space")
    expect(leaf(page, "id")).to_have_text("2")
    expect(summary).to_be_focused()


def test_a_value_changes_its_kind(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload", metadata={"v": 1})
    open_run(page, run_id)
    for value, text in [
        ([1, 2], "v [2 items]0 11 2"),
        ({"a": None}, "v {1 key}a null"),
        ("text", 'v "text"'),
        ([], "v [0 items]"),
        (True, "v true"),
    ]:
        worker.report(run_id, set_("v", value))
        expect(tree(page)).to_have_text(text)
    worker.report(run_id, {"type": "update", "value": {}})
    expect(tree(page)).to_have_text("This run has no metadata.")
