"""Tabs of one site share one connection: one of them leads, and when it goes, the next one does.

Nothing is missing then, and nothing comes twice.
"""

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from browser.conftest import Site, Tokens
from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, set_, until_unwatched

SEEDS = int(os.environ.get("MILEPOST_TEST_TAB_SEEDS", "2"))
STEPS = 25
MORE = """
([id, token]) => {
  window.more ??= [];
  const numbers = [];
  more.push(numbers);
  milepost.stream(id, "numbers", { token }, (value) => numbers.push(value));
}
"""
FOLLOW = """
async ([url, id, token]) => {
  window.milepost = await import(url);
  window.numbers = [];
  window.newest = null;
  window.errors = [];
  const options = { token, onError: (error) => errors.push(error.status) };
  milepost.stream(id, "numbers", options, (value) => numbers.push(value));
  window.stop = milepost.watch(id, options, (run) => { newest = run.metadata.progress ?? 0; });
}
"""


class Tabs:
    """Tabs of the other site that follow a run, and what the server holds for them."""

    def __init__(self, context: BrowserContext, site: Site, server: RunningServer) -> None:
        self.context = context
        self.server = server
        self.pages: list[Page] = []
        self.faults: list[str] = []
        self.requests: set[Any] = set()
        context.on("request", self._begin)
        context.on("requestfinished", lambda request: self.requests.discard(request))
        context.on("requestfailed", lambda request: self.requests.discard(request))

    def _begin(self, request: Any) -> None:
        if request.method == "POST" and "/feed/watch" in request.url:
            self.requests.add(request)

    def open(self, run_id: str, token: str, *, clock: bool = False) -> Page:
        page = self.context.new_page()
        if clock:
            page.clock.install()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto("/")
        page.evaluate(FOLLOW, [f"{self.server.url}/client/milepost.js", run_id, token])
        page.wait_for_function("newest !== null || errors.length", polling=20)
        self.pages.append(page)
        return page

    def held_by(self) -> list[Page]:
        return [request.frame.page for request in self.requests]

    def until_one(self) -> Page:
        """The tab that holds the one connection."""
        page = self.pages[-1]
        for _ in range(500):
            if len(self.requests) == 1:
                return self.held_by()[0]
            page.wait_for_timeout(10)
        raise AssertionError(f"there are {len(self.requests)} connections")


@pytest.fixture
def tabs(context: BrowserContext, site: Site, server: RunningServer) -> Iterator[Tabs]:
    tabs = Tabs(context, site, server)
    yield tabs
    assert tabs.faults == []


def shows(page: Page, count: int, progress: float) -> None:
    page.wait_for_function(f"numbers.length >= {count} && newest === {progress}", polling=20)
    assert page.evaluate("numbers") == list(range(count))


def test_the_leader_goes_and_the_others_go_on(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "numbers")
    # Each with a token of its own.
    pages = [tabs.open(run_id, tokens.run(run_id)) for _ in range(3)]
    written = 0

    def work() -> None:
        nonlocal written
        for _ in range(8):
            writer.write(written, written + 1)
            written += 2
            worker.report(run_id, set_("progress", written))

    def assert_shown() -> None:
        for page in pages:
            shows(page, written, written)

    work()
    assert_shown()
    assert tabs.until_one() is pages[0]
    # The leader is closed in the middle of it, twice.
    while len(pages) > 1:
        leader = tabs.until_one()
        pages.remove(leader)
        work()
        leader.close()
        tabs.requests.clear()
        work()
        assert_shown()
        assert tabs.until_one() in pages
    pages[0].evaluate("stop()")
    work()
    shows(pages[0], written, pages[0].evaluate("newest"))


def test_a_leader_that_is_frozen_is_left(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "numbers")
    first = tabs.open(run_id, tokens.run(run_id))
    second = tabs.open(run_id, tokens.run(run_id), clock=True)
    writer.write(0)
    shows(second, 1, 0)
    assert tabs.until_one() is first
    # A tab that is frozen tells the others nothing.
    first.evaluate(
        """() => {
          window.tell = BroadcastChannel.prototype.postMessage;
          BroadcastChannel.prototype.postMessage = function (message) { if (message.kind === "want") tell.call(this, message); };
        }"""
    )
    writer.write(1, 2)
    worker.report(run_id, set_("progress", 1))
    second.clock.run_for(32_000)
    shows(second, 3, 1)
    first.evaluate("() => { BroadcastChannel.prototype.postMessage = tell; }")
    writer.write(3)
    shows(first, 4, 1)
    shows(second, 4, 1)
    assert tabs.until_one() is second


def test_tabs_that_all_take_the_place_of_a_silent_one_agree_on_one(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    """As when a browser has opened them all at the same moment: then they look at the same moment too."""
    run_id = worker.start("work")
    token = tokens.run(run_id)
    writer = StreamWriter(server, run_id, "numbers")
    # One clock for all of them.
    pages = [tabs.open(run_id, token, clock=True) for _ in range(6)]
    writer.write(0)
    for page in pages:
        shows(page, 1, 0)
    for progress in (1, 2, 3):
        pages[0].clock.run_for(40_000)
        writer.write(progress)
        worker.report(run_id, set_("progress", progress))
        for page in pages:
            shows(page, progress + 1, progress)
        tabs.until_one()


def test_each_tab_is_shown_what_its_own_token_shows(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    run_id, other = worker.start("work"), worker.start("work")
    worker.report(run_id, set_("progress", 1), set_("secret", "x"))
    whole = tabs.open(run_id, tokens.run(run_id))
    part = tabs.open(run_id, tokens.run(run_id, metadata_keys=["progress"]))
    foreign = tabs.open(run_id, tokens.run(other))
    foreign.wait_for_function("errors.length === 2")
    assert foreign.evaluate("[errors, newest, numbers]") == [[403, 403], None, []]
    keys = "(id) => new Promise((resolve) => milepost.watch(id, { token: window.token }, (run) => resolve(Object.keys(run.metadata))))"
    for page, token, shown in (
        (whole, tokens.run(run_id), ["progress", "secret"]),
        (part, tokens.run(run_id, metadata_keys=["progress"]), ["progress"]),
    ):
        page.evaluate("(token) => { window.token = token; }", token)
        assert page.evaluate(keys, run_id) == shown
    assert tabs.until_one() is whole


def test_a_tab_that_is_looked_at_takes_over_from_one_that_is_not(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "numbers")
    first = tabs.open(run_id, tokens.run(run_id), clock=True)
    second = tabs.open(run_id, tokens.run(run_id))
    first.evaluate(
        """() => {
          window.look = (isHidden) => {
            Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
          };
          look(true);
        }"""
    )
    first.clock.run_for(31_000)
    writer.write(0, 1)
    shows(second, 2, 0)
    assert tabs.until_one() is second
    assert first.evaluate("numbers") == []
    first.evaluate("look(false)")
    first.clock.run_for(1000)
    shows(first, 2, 0)
    assert tabs.until_one() is second
    for page in (first, second):
        page.close()
    until_unwatched(server)


def test_a_tab_that_has_lost_its_place_is_told_anew_however_much_comes(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    """The others' tab goes on telling it what it cannot use, until it has asked again."""
    run_id = worker.start("work")
    token = tokens.run(run_id)
    tabs.open(run_id, token)
    second = tabs.open(run_id, token)
    second.evaluate(
        """([id, token]) => {
          window.events = [];
          milepost.follow(() => ({ run: id }), { token }, (event, text) => {
            events.push(event);
            return event === "snapshot" || events.filter((one) => one === "snapshot").length > 1;
          });
        }""",
        [run_id, token],
    )
    second.wait_for_function("events.length > 0")
    for number in range(200):
        worker.report(run_id, set_("progress", number))
        second.wait_for_timeout(25)
        if second.evaluate(
            "events.filter((event) => event === 'snapshot').length > 1 && events.at(-1) === 'delta'"
        ):
            break
    else:
        raise AssertionError(second.evaluate("events"))
    shows(second, 0, number)
    assert len(tabs.requests) == 1


def test_without_locks_each_tab_has_its_own(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    """As in pages that are not secure, and in frames without an origin."""
    run_id = worker.start("work")
    tabs.context.add_init_script("delete Navigator.prototype.locks;")
    pages = [tabs.open(run_id, tokens.run(run_id)) for _ in range(2)]
    worker.report(run_id, set_("progress", 1))
    for page in pages:
        shows(page, 0, 1)
    assert len(tabs.requests) == 2


def test_locks_that_are_refused_do_no_harm(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer
) -> None:
    run_id = worker.start("work")
    tabs.context.add_init_script(
        "LockManager.prototype.request = async () => { throw new DOMException('no origin', 'SecurityError'); };"
    )
    tabs.open(run_id, tokens.run(run_id))
    assert len(tabs.requests) == 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_to_the_tabs_each_is_told_everything_once(
    tabs: Tabs, worker: FakeWorker, tokens: Tokens, server: RunningServer, seed: int
) -> None:
    chance = random.Random(seed)
    run_id = worker.start("work")
    token = tokens.run(run_id)
    writer = StreamWriter(server, run_id, "numbers")
    open_tabs = [tabs.open(run_id, token)]

    def write() -> None:
        writer.write(*range(writer.next, writer.next + chance.randint(1, 5)))
        worker.report(run_id, set_("progress", writer.next))

    for _ in range(STEPS):
        match chance.choice(["write", "write", "open", "close", "more", "lose", "restart"]):
            case "open" if len(open_tabs) < 5:
                open_tabs.append(tabs.open(run_id, token))
            case "close" if len(open_tabs) > 1:
                # The one that leads, as often as not.
                tab = open_tabs.pop(chance.choice([0, -1]))
                tab.close()
            case "more":
                # Something more is watched, and everything asked for anew.
                chance.choice(open_tabs).evaluate(MORE, [run_id, token])
            case "lose":
                chance.choice(open_tabs).evaluate("() => { window.dispatchEvent(new Event('offline')); }")
            case "restart" if chance.random() < 0.3:
                server.stop()
                server.start()
                worker.register()
            case _:
                pass
        write()
    for tab in open_tabs:
        shows(tab, writer.next, writer.next)
        tab.wait_for_function(f"(window.more ??= []).every((one) => one.length >= {writer.next})", polling=20)
        for numbers in tab.evaluate("more"):
            assert numbers == list(range(writer.next))
    tabs.requests = {request for request in tabs.requests if not request.frame.page.is_closed()}
    assert tabs.until_one() in open_tabs
