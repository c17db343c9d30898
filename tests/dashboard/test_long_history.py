"""A history of 10,000 versions of a large document, and one of which the beginning is no longer kept: right, and never in the way."""

import json
import os
import time
from typing import Any

import msgspec
from playwright.sync_api import Browser, Locator, Page, expect
from sqlalchemy import update

from dashboard.served import FakeWorker, RunningServer
from milepost.store import documents, history
from milepost.store.database import Store
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.schema import runs

VERSIONS = 10_000
# What a person notices as a page that stands still. It is time of the processor, because other programs may keep the machine busy;
# where there is much more to do than there are processors, that grows too, though not without bounds.
STANDSTILL_MILLISECONDS = 50
OVERBOOKED_MAX = 3

# 240 KB.
LARGE = {f"name {number}": "x" * 220 for number in range(1000)}


def fill(server: RunningServer, run_id: str, value: dict[str, Any], *, earliest: int, versions: int) -> None:
    """Give a run a history, the server being stopped: each version counts `step` up by one and sets `$.nested.twice`."""
    now = time.time_ns() // 1000
    store = Store(server.database_path)
    changes = [
        ChangeRow(
            run_id=run_id,
            version=version,
            operations=msgspec.json.encode(
                [
                    {"type": "increment", "key": "step", "value": 1},
                    {"type": "set", "key": "$.nested.twice", "value": 2 * version},
                ]
            ),
            writer_id=run_id,
            writer_attempt=1,
            writer_sequence=version,
            refused=None,
            created_at=now + version * 1000,
        )
        for version in range(earliest + 1, versions + 1)
    ]
    with store.write() as connection:
        documents.append_changes(connection, changes)
        connection.execute(update(runs).where(runs.c.id == run_id).values(metadata_version=versions))
        if earliest:
            kept = {**value, "step": earliest, "nested": {"twice": 2 * earliest}}
            start = Snapshot(run_id, earliest, msgspec.json.encode(kept), changed_at=now)
            documents.save_snapshots(connection, [start])
            history.save_starts(connection, [start])
    store.close()


def filled(
    server: RunningServer,
    worker: FakeWorker,
    value: dict[str, Any],
    *,
    earliest: int = 0,
    versions: int = VERSIONS,
) -> str:
    """The run with such a history, the server being up again."""
    run_id = worker.start("handle-upload", metadata=value)
    server.stop()
    fill(server, run_id, value, earliest=earliest, versions=versions)
    server.start()
    worker.register()
    return run_id


def sign_in(page: Page, server: RunningServer) -> None:
    page.goto(server.app.sign_in_path())


def line(page: Page) -> Locator:
    return page.locator("#history-line")


def leaf(page: Page, name: str) -> Locator:
    named = page.locator(".tree-name", has_text=name)
    return page.locator("#metadata .tree-leaf").filter(has=named).locator(".tree-value")


def standstills(trace: bytes) -> list[float]:
    """The tasks of the page's own thread that took the processor for too long, in milliseconds."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event.get("tdur", 0) / 1000
        for event in events
        if event.get("name") == "RunTask" and (event["pid"], event["tid"]) in threads
    ]
    assert tasks, "the trace has no tasks"
    overbooked = os.getloadavg()[0] / (os.cpu_count() or 1)
    most = STANDSTILL_MILLISECONDS * min(OVERBOOKED_MAX, max(1, overbooked))
    return sorted(round(task) for task in tasks if task > most)


def test_ten_thousand_versions_of_a_large_document(
    browser: Browser, page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    run_id = filled(server, worker, {**LARGE, "step": 0})
    sign_in(page, server)
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    browser.start_tracing(
        page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]
    )
    page.goto(f"/runs/{run_id}")
    expect(page.locator("#history-place")).to_have_text("10,000 / 10,000")
    # A version is there before the charts have read all of them.
    page.get_by_role("button", name="Previous version").click()
    expect(line(page)).to_contain_text("Version 10,000")
    slider = page.get_by_role("slider", name="Version")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 16)
    page.mouse.down()
    for share in range(100, 20, -2):
        page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + 16)
    page.mouse.up()
    version = int(slider.input_value())
    assert 1500 < version < 3000
    expect(line(page)).to_contain_text(f"Version {version:,} ")
    page.get_by_role("button", name="Show 500 more of 1,002 (these are the first 200)").click()
    page.get_by_role("button", name="Show all 1,002 (these are the first 700)").click()
    expect(leaf(page, "step")).to_have_text(str(version))
    expect(leaf(page, "twice")).to_have_text(str(2 * version))
    expect(page.locator(".chart-range")).to_have_text(["0 – 10,000", "2 – 20,000"])
    expect(page.locator(".chart-value").first).to_have_text(f"{version:,}")
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(line(page)).to_contain_text(f"Version {version + 20:,} ")
    expect(leaf(page, "step")).to_have_text(str(version + 20))
    page.get_by_role("button", name="Play the versions").click()
    expect(page.locator("#history-place")).not_to_have_text(f"{version + 20:,} / 10,000")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Now").click()
    expect(leaf(page, "step")).to_have_text("10000")
    assert standstills(browser.stop_tracing()) == []
    # The versions once, in pages; of the documents only those from which somebody had to begin.
    assert len([url for url in asked if "/metadata/history?" in url]) <= VERSIONS / 500 + 10
    assert len([url for url in asked if "/metadata?version=" in url]) <= 10


def test_a_history_that_begins_later(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = filled(server, worker, {"step": 0, "a": 1}, earliest=700, versions=712)
    sign_in(page, server)
    page.goto(f"/runs/{run_id}")
    expect(page.locator("#history-kept")).to_have_text("Versions before 700 are no longer kept.")
    slider = page.get_by_role("slider", name="Version")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(line(page)).to_contain_text("Version 711")
    expect(leaf(page, "step")).to_have_text("711")
    page.keyboard.press("Home")
    expect(line(page)).to_have_text("Version 700, the earliest that is kept")
    expect(leaf(page, "step")).to_have_text("700")
    page.keyboard.press("ArrowRight")
    expect(line(page)).to_contain_text("Version 701")
    expect(leaf(page, "step")).to_have_text("701")
    expect(page.locator(".chart-range")).to_have_text(["700 – 712", "1,400 – 1,424"])
    # A link to what is gone leads to the earliest that is left.
    page.goto("/")
    page.goto(f"/runs/{run_id}#version=3")
    expect(line(page)).to_have_text("Version 700, the earliest that is kept")


def test_a_history_of_which_nothing_is_kept(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = filled(server, worker, {"step": 0}, earliest=30, versions=30)
    sign_in(page, server)
    page.goto(f"/runs/{run_id}")
    expect(leaf(page, "step")).to_have_text("30")
    expect(page.locator("#history-kept")).to_have_text(
        "Earlier versions of this document are no longer kept."
    )
    expect(page.locator("#history-controls")).to_be_hidden()


def test_odd_documents_do_not_hold_the_page_up(
    browser: Browser, page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    """10,000 keys, 200 levels, a text of 200 KB, names that are markup: live and in the past."""
    deep: Any = 1
    for _ in range(190):
        deep = {"inner": deep}
    keys = {f"<img src=x onerror='window.pwned = {number}'>": number for number in range(3000)}
    documents_shown: list[tuple[dict[str, Any], str]] = [
        ({f"key {number}": number for number in range(10_000)}, "key 0"),
        (keys, "<img"),
        ({"deep": deep, "text": "long " * 40_000}, "deep"),
    ]
    for value, name in documents_shown:
        run_id = worker.start("handle-upload", metadata=value)
        browser.start_tracing(
            page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]
        )
        page.goto(f"/runs/{run_id}")
        expect(page.locator("#metadata .tree-name").first).to_contain_text(name)
        for step in range(3):
            worker.report(
                run_id,
                {"type": "set", "key": name, "value": step},
                {"type": "append", "key": "log", "value": step},
            )
        expect(page.locator("#history-place")).to_have_text("3 / 3")
        page.get_by_role("button", name="Previous version").click()
        expect(line(page)).to_contain_text("Version 3")
        page.get_by_role("slider", name="Version").press("Home")
        expect(line(page)).to_contain_text("Version 0")
        page.get_by_role("button", name="Now").click()
        assert standstills(browser.stop_tracing()) == [], name
    assert page.evaluate("window.pwned") is None
