"""The streams of a run on its page: text that flows, values as lines, several keys as tabs."""

import time
from typing import Any

from playwright.sync_api import Page, expect

from dashboard.served import FakeWorker, RunningServer
from dashboard.test_run_page import MARKUP, open_run


class Source:
    """A run's writer of one stream."""

    def __init__(self, server: RunningServer, run_id: str, key: str) -> None:
        self.server, self.run_id, self.key, self.written = server, run_id, key, 0

    def write(self, *values: Any, end: dict[str, Any] | None = None) -> None:
        part: dict[str, Any] = {
            "run": self.run_id,
            "key": self.key,
            "writer": self.key,
            "first": self.written,
            "chunks": list(values),
        }
        if end is not None:
            part["end"] = end
        body = {"runs": [{"id": self.run_id, "attempt": 1, "parts": [part]}]}
        [reply] = self.server.request("POST", "/api/v1/workers/worker_1/chunks", body)["runs"]
        self.written += len(values)
        assert reply["parts"] == [{"next": self.written}]


def test_text_flows_and_values_are_lines(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = worker.start("handle-upload")
    open_run(page, run_id)
    section = page.locator("#streams-section")
    expect(section).to_be_hidden()
    answer = Source(server, run_id, "answer")
    answer.write("The ", "moon ")
    stream = page.locator("#stream")
    expect(stream).to_have_text("The moon ")
    answer.write(MARKUP, "\n", "is far.")
    expect(stream).to_have_text(f"The moon {MARKUP}\nis far.")
    expect(page.locator("#stream-about")).to_have_text("5 values, open")
    # Another one comes while the page is open.
    rows = Source(server, run_id, "rows/checked")
    rows.write({"row": 1, "ok": True}, [None, 2.5])
    tabs = page.get_by_role("tab")
    expect(tabs).to_have_text(["answer", "rows/checked"])
    tabs.nth(1).click()
    expect(tabs.nth(1)).to_have_attribute("aria-selected", "true")
    lines = page.locator(".stream-line")
    expect(lines).to_have_count(2)
    expect(lines.nth(0)).to_contain_text('{"row":1,"ok":true}')
    expect(lines.nth(1)).to_contain_text("[null,2.5]")
    rows.write("a word", 3, end={"error": "no ink"})
    expect(stream).to_contain_text("a word")
    expect(page.locator("#stream-about")).to_have_text("4 values, failed: no ink")
    # A value that is text among others that are not is JSON too, so that each line can be read.
    with page.expect_download() as download:
        page.locator("#stream-download").click()
    assert download.value.suggested_filename == "rows_checked.jsonl"
    lines_of_json = '{"row":1,"ok":true}\n[null,2.5]\n"a word"\n3\n'
    assert download.value.path().read_text() == lines_of_json
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#stream-copy").click()
    page.wait_for_function(
        "async (text) => (await navigator.clipboard.readText()) === text", arg=lines_of_json
    )
    answer.write("!", end={})
    tabs.nth(1).press("ArrowLeft")
    expect(tabs.nth(0)).to_be_focused()
    expect(stream).to_have_text(f"The moon {MARKUP}\nis far.!")
    expect(page.locator("#stream-about")).to_have_text("6 values, ended")
    with page.expect_download() as download:
        page.locator("#stream-download").click()
    assert download.value.suggested_filename == "answer.txt"
    assert download.value.path().read_text() == f"The moon {MARKUP}\nis far.!"
    assert page.evaluate("window.pwned") is None


def test_a_break_costs_nothing(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = worker.start("handle-upload")
    source = Source(server, run_id, "answer")
    source.write(*[f"{number} " for number in range(100)])
    open_run(page, run_id)
    expect(page.locator("#stream-about")).to_have_text("100 values, open")
    server.stop()
    server.start()
    worker.register()
    source.write(*[f"{number} " for number in range(100, 200)], end={})
    expect(page.locator("#stream-about")).to_have_text("200 values, ended", timeout=20_000)
    assert page.locator("#stream").text_content() == "".join(f"{number} " for number in range(200))


def test_a_long_stream_is_followed_and_does_not_stand_still(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    run_id = worker.start("handle-upload")
    source = Source(server, run_id, "rows")
    for start in range(0, 100_000, 10_000):
        source.write(*range(start, start + 10_000))
    began = time.monotonic()
    open_run(page, run_id)
    expect(page.locator("#stream-about")).to_have_text("100,000 values, open", timeout=60_000)
    view = page.locator("#stream")
    expect(view.locator(".stream-line").last).to_contain_text("99999", timeout=60_000)
    assert time.monotonic() - began < 60
    assert view.locator(".stream-line").count() == 1000
    expect(page.locator("#stream-earlier")).to_contain_text("99,000 earlier values not shown")
    at_end = "(view) => view.scrollTop + view.clientHeight >= view.scrollHeight - 4"
    assert view.evaluate(at_end)
    # Whoever has scrolled up is not taken away from there.
    view.evaluate("(view) => { view.scrollTop = 100; }")
    source.write("the end", end={})
    expect(page.locator("#stream-about")).to_contain_text("ended")
    assert not view.evaluate(at_end)
