"""The history of a run's metadata on its page: going through the versions, what each has changed, charts of the numbers."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from dashboard.served import FakeWorker, RunningServer, append, increment, set_

MARKUP = '<img src=x onerror="window.pwned = 1">'


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    return shared_server


@pytest.fixture(scope="module")
def worker(shared_server: RunningServer) -> FakeWorker:
    return FakeWorker(shared_server, "count-rows", "count-one", worker_id="worker_history")


def tree(page: Page) -> Locator:
    return page.locator("#metadata")


def mark(page: Page, kind: str) -> Locator:
    """The places of the tree with this mark; what only has marks inside is not one of them."""
    return page.locator(f'#metadata [data-mark="{kind}"]')


def line(page: Page) -> Locator:
    return page.locator("#history-line")


def place(page: Page) -> Locator:
    return page.locator("#history-place")


def slider(page: Page) -> Locator:
    return page.get_by_role("slider", name="Version")


def chart(page: Page, name: str) -> Locator:
    return page.locator(".chart").filter(has=page.locator(".chart-name", has_text=name))


def operations(page: Page) -> Locator:
    return page.locator("#history-operations li")


def places(page: Page) -> Locator:
    return page.locator("#history-places li")


def now(page: Page) -> Locator:
    return page.get_by_role("button", name="Now")


@pytest.fixture
def run_of_five(worker: FakeWorker, server: RunningServer) -> tuple[str, str]:
    """A run at version 5, and its child, which has written one of the versions. Another one was written from outside."""
    parent = worker.start("count-rows", metadata={"done": 0, "total": 4, "log": ["a", "b"]})
    worker.report(parent, increment("done"), set_("$.user.name", "Zoë"))
    server.request("PUT", f"/api/v1/runs/{parent}/metadata", {"operations": [set_("note", "by hand")]})
    child = worker.start("count-one", parentRunId=parent)
    worker.report(child, changes=[{"run": parent, "operations": [increment("done", 2)]}])
    worker.report(
        parent,
        append("log", "c", maxItems=2),
        {"type": "delete", "key": "note"},
        set_("$.user.name", "Zoé"),
    )
    worker.report(parent, {"type": "update", "value": {"done": 4, "total": 4}})
    worker.complete(child)
    return parent, child


def open_run(page: Page, run_id: str, hash: str = "") -> None:
    page.goto(f"/runs/{run_id}{hash}")
    expect(page.locator("#history-controls")).to_be_visible()


def test_going_through_the_versions(page: Page, run_of_five: tuple[str, str]) -> None:
    run_id, child = run_of_five
    open_run(page, run_id)
    expect(place(page)).to_have_text("5 / 5")
    expect(now(page)).to_have_attribute("aria-pressed", "true")
    expect(line(page)).to_be_hidden()
    # The newest version, and what it has changed.
    page.get_by_role("button", name="Previous version").click()
    expect(line(page)).to_contain_text("Version 5")
    expect(now(page)).to_have_attribute("aria-pressed", "false")
    expect(operations(page)).to_have_text(['replace the whole document with {"done": 4, "total": 4}'])
    expect(places(page)).to_have_text(['done 3 → 4', 'log ["b", "c"]', 'user {"name": "Zoé"}'])  # fmt: skip
    expect(mark(page, "removed")).to_have_count(2)
    expect(mark(page, "changed")).to_have_text("done 3 4")
    # By keys, one version after the other.
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    expect(line(page)).to_contain_text("Version 4")
    expect(line(page)).to_contain_text("written by attempt 1 of this run")
    expect(operations(page)).to_have_text(
        ['append log: "c" keeping 2', "delete note", 'set $.user.name to "Zoé"']
    )
    expect(places(page)).to_have_text(['log[0] "a"', 'log[1] "c"', 'user.name "Zoë" → "Zoé"', 'note "by hand"'])  # fmt: skip
    expect(mark(page, "added")).to_have_text('1 "c"')
    expect(mark(page, "removed")).to_have_text(['0 "a"', 'note "by hand"'])
    expect(mark(page, "changed").locator("del")).to_have_text('"Zoë"')
    expect(page.locator("#progress")).to_contain_text("3 of 4 · 75%")
    page.keyboard.press("ArrowLeft")
    expect(line(page)).to_contain_text(f"written by {child}, attempt 1")
    expect(line(page).get_by_role("link")).to_have_attribute("href", f"/runs/{child}")
    expect(operations(page)).to_have_text(["increment done by 2"])
    page.keyboard.press("ArrowLeft")
    expect(line(page)).to_contain_text("Version 2")
    expect(line(page)).to_contain_text("written from outside")
    page.keyboard.press("Home")
    expect(line(page)).to_have_text("Version 0, as it was given at trigger")
    expect(page.locator("#history-lists")).to_be_hidden()
    expect(tree(page)).to_have_text('done 0total 4log [2 items]0 "a"1 "b"')
    expect(page.locator("#metadata [data-mark]")).to_have_count(0)
    expect(page.get_by_role("button", name="Previous version")).to_be_disabled()
    page.get_by_role("button", name="Next version").click()
    expect(line(page)).to_contain_text("Version 1")
    expect(place(page)).to_have_text("1 / 5")
    expect(page.locator("#metadata-version")).to_have_text("version 1 of 5")
    expect(slider(page)).to_have_attribute("aria-valuetext", _containing("Version 1", "2 places changed"))
    page.keyboard.press("End")
    page.get_by_role("button", name="Next version").click()
    slider(page).focus()
    page.keyboard.press("End")
    expect(line(page)).to_contain_text("Version 5")
    now(page).click()
    expect(line(page)).to_be_hidden()
    expect(tree(page)).to_have_text("done 4total 4")
    expect(page.locator("#metadata [data-mark]")).to_have_count(0)


def _containing(*parts: str) -> Any:
    return re.compile(".*".join(re.escape(part) for part in parts))


def test_the_present_goes_on_while_the_past_is_looked_at(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows", metadata={"done": 0})
    worker.report(run_id, increment("done"))
    open_run(page, run_id)
    page.get_by_role("button", name="Previous version").click()
    expect(tree(page)).to_have_text("done 0 1")
    worker.report(run_id, increment("done"))
    expect(place(page)).to_have_text("1 / 2")
    expect(tree(page)).to_have_text("done 0 1")
    page.get_by_role("button", name="Next version").click()
    expect(tree(page)).to_have_text("done 1 2")
    now(page).click()
    expect(tree(page)).to_have_text("done 2")
    worker.report(run_id, increment("done"))
    expect(tree(page)).to_have_text("done 3")
    expect(place(page)).to_have_text("3 / 3")
    expect(chart(page, "done").locator(".chart-value")).to_have_text("3")
    worker.complete(run_id)
    expect(page.locator("#connection")).to_have_text("Finished")
    page.get_by_role("button", name="Previous version").click()
    expect(tree(page)).to_have_text("done 2 3")


def test_versions_are_played_up_to_the_present(page: Page, run_of_five: tuple[str, str]) -> None:
    open_run(page, run_of_five[0])
    page.evaluate(
        """
        () => {
          window.seen = [];
          const line = document.getElementById("history-line");
          new MutationObserver(() => {
            const version = line.querySelector("strong")?.textContent;
            if (version && window.seen.at(-1) !== version) window.seen.push(version);
          }).observe(line, { childList: true, subtree: true });
        }
        """
    )
    page.get_by_role("button", name="Play the versions").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(now(page)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Play the versions")).to_be_visible()
    assert page.evaluate("window.seen") == [f"Version {version}" for version in range(6)]
    expect(tree(page)).to_have_text("done 4total 4")


def test_playing_can_be_paused_anywhere(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows")
    for _ in range(60):
        worker.report(run_id, increment("n"))
    open_run(page, run_id, "#version=7")
    expect(line(page)).to_contain_text("Version 7")
    page.get_by_role("button", name="Play the versions").click()
    expect(line(page)).not_to_contain_text("Version 7 ")
    page.get_by_role("button", name="Pause").click()
    stopped = str(place(page).text_content()).split()[0]
    assert 7 < int(stopped) < 60
    expect(line(page)).to_contain_text(f"Version {stopped} ")
    expect(tree(page)).to_have_text(f"n {int(stopped) - 1} {stopped}")


def test_charts(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows", metadata={"rows": {"done": 0}, "constant": 7, "big": 10**40})
    for step in range(1, 5):
        worker.report(run_id, set_("$.rows.done", step * 1000), increment("big"), set_("load", step / 3))
    open_run(page, run_id)
    expect(page.locator(".chart-name")).to_have_text(["rows.done", "big", "load"])
    done = chart(page, "rows.done")
    expect(done.locator(".chart-value")).to_have_text("4,000")
    expect(done.locator(".chart-range")).to_have_text("0 – 4,000")
    expect(done).to_have_attribute("aria-valuetext", "4,000 at version 4")
    # Keys lead from one change of this number to the next.
    done.focus()
    page.keyboard.press("ArrowLeft")
    expect(line(page)).to_contain_text("Version 3")
    expect(done).to_have_attribute("aria-valuetext", "3,000 at version 3")
    expect(chart(page, "load").locator(".chart-value")).to_have_text("1")
    page.keyboard.press("Home")
    expect(line(page)).to_contain_text("Version 0")
    expect(chart(page, "load").locator(".chart-value")).to_have_text("none")
    page.keyboard.press("End")
    expect(line(page)).to_contain_text("Version 4")
    # The pointer tells what was; a click goes there.
    page.get_by_label("over versions").check()
    box = done.locator("svg").bounding_box()
    assert box is not None
    half = box["x"] + box["width"] * 0.55, box["y"] + box["height"] / 2
    page.mouse.move(*half)
    expect(done.locator(".chart-value")).to_have_text("2,000")
    expect(done.locator(".chart-when")).to_have_text("version 2")
    expect(line(page)).to_contain_text("Version 4")
    page.mouse.click(*half)
    expect(line(page)).to_contain_text("Version 2")
    expect(tree(page)).to_contain_text("done 1000 2000")
    page.mouse.down()
    page.mouse.move(box["x"] + 1, half[1])
    page.mouse.up()
    expect(line(page)).to_contain_text("Version 0")
    page.get_by_label("over time").check()
    page.mouse.move(*half)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 50, half[1])
    page.mouse.up()
    expect(line(page)).to_contain_text("Version 4")
    # Integers that differ in the last of forty digits are told apart.
    heights = chart(page, "big").locator(".chart-line").get_attribute("d")
    assert heights is not None
    assert len({part.partition("H")[0] for part in heights.split("V")[1:]}) == 4


def test_a_link_leads_to_a_version(page: Page, run_of_five: tuple[str, str], server: RunningServer) -> None:
    run_id, _ = run_of_five
    open_run(page, run_id, "#version=3")
    expect(line(page)).to_contain_text("Version 3")
    slider(page).focus()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(f"{server.url}/runs/{run_id}#version=2")
    now(page).click()
    expect(page).to_have_url(f"{server.url}/runs/{run_id}")
    page.evaluate("location.hash = '#version=1'")
    expect(line(page)).to_contain_text("Version 1")
    page.evaluate("location.hash = '#version=99999'")
    expect(line(page)).to_contain_text("Version 5")
    page.goto("/")
    open_run(page, run_id, "#version=x")
    expect(now(page)).to_have_attribute("aria-pressed", "true")


def test_what_changed_leads_to_its_place(page: Page, worker: FakeWorker) -> None:
    deep: Any = {"value": 1}
    for _ in range(30):
        deep = {"inner": deep}
    run_id = worker.start("count-rows", metadata={"list": list(range(3000)), "deep": deep})
    worker.report(run_id, set_("$.list[7]", "seven"), set_("$.deep" + ".inner" * 30 + ".value", 2))
    open_run(page, run_id)
    page.get_by_role("button", name="Previous version").click()
    expect(places(page)).to_have_count(2)
    expect(mark(page, "changed")).to_have_count(0)
    page.get_by_role("button", name="list[7]").click()
    expect(mark(page, "changed")).to_have_text('7 7 "seven"')
    expect(mark(page, "changed")).to_be_focused()
    expect(mark(page, "changed")).to_be_in_viewport()
    page.get_by_role("button", name="deep.inner").click()
    expect(mark(page, "changed").last).to_have_text("value 1 2")
    expect(mark(page, "changed").last).to_be_focused()


def test_a_version_that_changed_nothing(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows", metadata={"n": 1})
    worker.report(run_id, increment("n", once="row 1"))
    worker.report(run_id, increment("n", once="row 1"))
    worker.report(run_id, set_("n", 2), set_("$.n.inside", 3))
    open_run(page, run_id)
    expect(place(page)).to_have_text("3 / 3")
    for version in (3, 2):
        page.get_by_role("button", name="Previous version").click()
        expect(line(page)).to_contain_text(f"Version {version}")
        expect(page.locator("#history-nothing")).to_be_visible()
        expect(tree(page)).to_have_text("n 2")
    page.get_by_role("button", name="Previous version").click()
    expect(operations(page)).to_have_text(['increment n by 1 once for "row 1"'])
    expect(page.locator("#history-nothing")).to_be_hidden()
    expect(tree(page)).to_have_text("n 1 2")


def test_a_run_without_changes_has_no_history(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows", metadata={"n": 1})
    page.goto(f"/runs/{run_id}")
    expect(tree(page)).to_have_text("n 1")
    expect(page.locator("#history")).to_be_hidden()
    worker.report(run_id, increment("n"))
    expect(place(page)).to_have_text("1 / 1")


def test_many_changes_in_one_version(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows")
    worker.report(run_id, *(set_(f"key {number}", number) for number in range(2000)))
    open_run(page, run_id)
    page.get_by_role("button", name="Previous version").click()
    expect(operations(page)).to_have_count(6)
    expect(places(page)).to_have_count(6)
    page.get_by_role("button", name="Show the first 500 of 2,000 places").click()
    expect(places(page)).to_have_count(500)
    page.get_by_role("button", name="Show 6 only").click()
    expect(places(page)).to_have_count(6)


def test_what_users_send_is_text_in_the_history_too(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows", metadata={MARKUP: {MARKUP: 1}, "constructor": {"x": 1}})
    worker.report(
        run_id,
        set_(MARKUP, {MARKUP: 2, "toString": MARKUP}),
        append(f"list{MARKUP}", MARKUP, once=MARKUP),
        increment("$.n.hasOwnProperty"),
    )
    worker.report(run_id, increment("$.n.hasOwnProperty"), set_(MARKUP, {"toString": "x"}))
    open_run(page, run_id)
    pathed = f"[{json.dumps(MARKUP)}]" * 2
    expect(page.locator(".chart-name")).to_have_text([pathed, "n.hasOwnProperty"])
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("#history-places")).to_contain_text(
        f'["{MARKUP}"]'.replace('"window', '\\"window')[:10]
    )
    page.get_by_role("button", name="Previous version").click()
    expect(operations(page).nth(1)).to_contain_text(MARKUP)
    expect(mark(page, "added").first).to_contain_text(json.dumps(MARKUP))
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("[window.pwned, {}.x]") == [None, None]


def test_a_history_that_cannot_be_read_is_said_and_comes_back(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("count-rows")
    for _ in range(3):
        worker.report(run_id, increment("n"))
    page.context.route("**/metadata/history**", lambda route: route.abort())
    open_run(page, run_id)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("#history-problem")).to_contain_text("The server cannot be reached.")
    # The present is not touched by it.
    now(page).click()
    worker.report(run_id, increment("n"))
    expect(tree(page)).to_have_text("n 4")
    page.context.unroute("**/metadata/history**")
    page.get_by_role("button", name="Previous version").click()
    expect(tree(page)).to_have_text("n 3 4")
    expect(page.locator("#history-problem")).to_be_hidden()


def test_who_is_signed_out_meanwhile_is_led_to_the_sign_in_page(
    page: Page, run_of_five: tuple[str, str]
) -> None:
    open_run(page, run_of_five[0])
    expect(page.locator(".chart")).not_to_have_count(0)
    page.context.clear_cookies()
    page.context.route("**/api/v1/**", lambda route: route.fulfill(status=401, body="{}"))
    page.evaluate("location.hash = '#version=1'")
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
