"""A page with many runs holds one connection, whatever happens to the page, the server and the network."""

import os
import random
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, expect

from browser.conftest import Site, Tokens
from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, append, increment, set_, until_unwatched

PICTURES = os.environ.get("MILEPOST_TEST_PICTURES")
COUNT = 50
WORDS = [
    "Sunlight",
    "holds",
    "all",
    "colours,",
    "and",
    "the",
    "air",
    "scatters",
    "blue",
    "light",
    "best.",
    "",
]


class Connections:
    """How many event streams a page has opened, and how many it holds."""

    def __init__(self, page: Page) -> None:
        self.opened = 0
        self.held: set[Any] = set()
        self.held_max = 0
        page.on("request", self._begin)
        page.on("requestfinished", lambda request: self.held.discard(request))
        page.on("requestfailed", lambda request: self.held.discard(request))

    def _begin(self, request: Any) -> None:
        if "/feed" in request.url or "/realtime/" in request.url:
            self.opened += 1
            self.held.add(request)
            self.held_max = max(self.held_max, len(self.held))


def page_of(site: Site, server: RunningServer, body: str) -> None:
    site.pages["/many"] = f"""<!doctype html><html lang="en"><head><title>Many</title>
        <style>main {{ display: grid; grid-template-columns: repeat(5, 1fr); gap: 1em; font: 14px sans-serif }}
        milepost-stream {{ grid-column: 1 / -1 }}</style>
        <script type="module" src="{server.url}/client/milepost.js"></script></head>
        <body><h1>Imports</h1><main>{body}</main></body></html>"""


def bar(run_id: str, token: str) -> str:
    return f'<milepost-progress run="{run_id}" token="{token}" label="{run_id[-6:]}"></milepost-progress>'


def test_fifty_runs_and_an_answer_on_one_connection(
    page: Page, context: BrowserContext, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    """Each run with a token of its own; the server restarts, the network goes, and every bar ends where its run does."""
    runs = worker.trigger_many("work", COUNT)
    assert sorted(worker.claim()) == sorted(runs)
    writer = StreamWriter(server, runs[0], "answer")
    answer = f'<milepost-stream run="{runs[0]}" key="answer" token="{tokens.run(runs[0])}" label="The answer"></milepost-stream>'
    page_of(site, server, answer + "".join(bar(run_id, tokens.run(run_id)) for run_id in runs))
    connections = Connections(page)
    page.goto("/many")
    source = random.Random(7)
    done = dict.fromkeys(runs, 0)
    told = 0

    def work(rounds: int) -> None:
        nonlocal told
        for _ in range(rounds):
            run_id = source.choice(runs)
            done[run_id] += 1
            worker.report(
                run_id,
                increment("$.progress.done"),
                set_("$.progress.total", 10),
                append("steps", done[run_id]),
            )
            writer.write(WORDS[told % len(WORDS)] + " ")
            told += 1

    def assert_shown() -> None:
        text = "".join(WORDS[index % len(WORDS)] + " " for index in range(told))
        expect(page.locator("[part=text]")).to_have_text(text, use_inner_text=False)
        for position in {0, COUNT - 1, *source.sample(range(COUNT), 5)}:
            count = done[runs[position]]
            shown = page.locator("milepost-progress").nth(position).locator("[part=value]")
            expect(shown).to_have_text(f"{count} of 10 · {count * 10}%" if count else "")

    def restore() -> None:
        server.start()
        worker.register()

    work(60)
    assert_shown()
    assert connections.opened <= 2
    assert connections.held_max <= 2
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / "fifty.png"), full_page=True)
    server.stop()
    expect(page.locator("[part=connection]").first).to_be_visible()
    restore()
    work(20)
    assert_shown()
    context.set_offline(True)
    expect(page.locator("[part=connection]").first).to_be_visible()
    work(20)
    context.set_offline(False)
    assert_shown()
    writer.write("The end.", end=True)
    for run_id in runs:
        worker.complete(run_id)
    for position in range(COUNT):
        expect(page.locator("milepost-progress").nth(position)).to_have_attribute("state", "completed")
    expect(page.locator("milepost-stream")).to_have_attribute("state", "ended")
    assert connections.held_max <= 2
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / "fifty-ended.png"), full_page=True)


def test_runs_come_and_go_without_losing_anything(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    """Watches are added and stopped while a stream flows and documents change; nothing is missing and nothing twice."""
    runs = worker.trigger_many("work", COUNT)
    worker.claim()
    connections = Connections(client)
    writer = StreamWriter(server, runs[0], "numbers")
    token = tokens.make({"read": {"tasks": ["work"]}})
    client.evaluate(
        """([runs, token]) => {
          window.numbers = [];
          window.newest = {};
          window.stops = {};
          milepost.stream(runs[0], "numbers", { token }, (value) => numbers.push(value));
          window.add = (id) => {
            stops[id] = milepost.watch(id, { token }, (run) => {
              const steps = run.metadata.steps ?? [];
              if (steps.some((step, index) => step !== index)) throw new Error(`${id}: ${steps}`);
              newest[id] = steps.length;
            });
          };
          window.remove = (id) => { stops[id](); delete stops[id]; delete newest[id]; };
        }""",
        [runs, token],
    )
    source = random.Random(11)
    counts = dict.fromkeys(runs, 0)
    shown: set[str] = set()
    written = 0
    for _ in range(60):
        run_id = source.choice(runs)
        if run_id in shown:
            client.evaluate("(id) => remove(id)", run_id)
            shown.discard(run_id)
        else:
            client.evaluate("(id) => add(id)", run_id)
            shown.add(run_id)
        for other in source.sample(runs, 3):
            worker.report(other, append("steps", counts[other]))
            counts[other] += 1
        writer.write(*range(written, written + 5))
        written += 5
    client.wait_for_function(f"numbers.length >= {written}")
    expected = {run_id: counts[run_id] for run_id in shown}
    client.wait_for_function(
        "(expected) => Object.entries(expected).every(([id, count]) => newest[id] === count)", arg=expected
    )
    assert client.evaluate("numbers") == list(range(written))
    assert sorted(client.evaluate("Object.keys(newest)")) == sorted(shown)
    # One that is being opened, one that it takes the place of, and one that the browser has not finished ending.
    assert connections.held_max <= 3


def test_readers_that_reconnect_again_and_again(
    client: Page, context: BrowserContext, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "numbers")
    client.evaluate(
        """([id, token]) => {
          window.numbers = [];
          window.ended = null;
          milepost.stream(id, "numbers", { token, onEnd: (end) => { ended = end.state; } }, (value) => numbers.push(value));
        }""",
        [run_id, tokens.run(run_id)],
    )
    for number in range(0, 600, 20):
        writer.write(*range(number, number + 20))
        context.set_offline(True)
        context.set_offline(False)
        # Not for luck: where it is cut in its way is to be different each time.
        client.wait_for_timeout(number % 70)
    writer.write(end=True)
    client.wait_for_function("ended === 'ended'")
    assert client.evaluate("numbers") == list(range(600))


def test_a_page_that_nobody_looks_at_gives_its_connection_back(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "numbers")
    connections = Connections(client)
    client.clock.install()
    client.evaluate(
        """([id, token]) => {
          window.numbers = [];
          window.newest = null;
          window.look = (isHidden) => {
            Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
          };
          milepost.stream(id, "numbers", { token }, (value) => numbers.push(value));
          milepost.watch(id, { token }, (run) => { newest = run.metadata.progress ?? 0; });
        }""",
        [run_id, tokens.run(run_id)],
    )
    client.clock.run_for(100)
    writer.write(0, 1)
    client.wait_for_function("numbers.length === 2 && newest === 0", polling=50)
    client.evaluate("look(true)")
    client.clock.run_for(29_000)
    writer.write(2)
    client.wait_for_function("numbers.length === 3", polling=50)
    client.clock.run_for(2000)
    until_unwatched(server)
    assert connections.opened == 1
    writer.write(3, 4)
    worker.report(run_id, set_("progress", 0.5))
    client.clock.run_for(60_000)
    assert client.evaluate("[numbers.length, newest]") == [3, 0]
    client.evaluate("look(false)")
    client.clock.run_for(100)
    client.wait_for_function("numbers.length === 5 && newest === 0.5", polling=50)
    assert client.evaluate("numbers") == [0, 1, 2, 3, 4]


def test_more_than_one_connection_takes_is_said(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    found = client.evaluate(
        """(token) => new Promise((resolve) => {
          for (let number = 0; number < 1001; number += 1) {
            milepost.watch(`run_${number}`, { token, onError: (error) => resolve([error.status, error.message]) }, () => {});
          }
        })""",
        tokens.make({"read": {"runs": True}}),
    )
    assert found[0] == 413
    assert "1,000" in found[1]


def test_a_page_is_told_of_two_servers(
    client: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens, site: Site, tmp_path: Path
) -> None:
    other = RunningServer(tmp_path / "other", cors_origins=site.url)
    try:
        there = FakeWorker(other, "work")
        runs = [worker.start("work"), there.start("work")]
        client.evaluate(
            """(watched) => {
              window.told = {};
              for (const [id, token, baseUrl] of watched) {
                milepost.watch(id, { token, baseUrl }, (run) => { told[id] = Object.keys(run.metadata).join(); });
              }
            }""",
            [[runs[0], tokens.run(runs[0]), None], [runs[1], Tokens(other).run(runs[1]), other.url]],
        )
        worker.report(runs[0], set_("here", 1))
        there.report(runs[1], set_("there", 1))
        client.wait_for_function(f"told['{runs[0]}'] === 'here' && told['{runs[1]}'] === 'there'")
    finally:
        other.stop()
