"""What can be done on the pages: with one run, with all that match, with tasks, queues and schedules."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from dashboard.served import FakeWorker, RunningServer

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "the file"},
        "rows": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mode": {"$ref": "#/$defs/Mode"},
        "more": {"type": "array"},
    },
    "required": ["path"],
    "$defs": {"Mode": {"enum": ["fast", "slow"], "type": "string"}},
}


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    return shared_server


def run_of(server: RunningServer, run_id: str) -> Any:
    return server.request("GET", f"/api/v3/runs/{run_id}")


def test_a_run_is_cancelled_and_until_then_that_is_asked(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    page.goto(f"/runs/{run_id}")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.locator("#status")).to_have_text("Executing")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.locator("#asked")).to_contain_text("Cancel asked")
    expect(page.get_by_role("button", name="Cancel…")).to_be_hidden()
    expect(page.get_by_role("dialog")).to_have_count(0)
    worker.fail(run_id, "it was asked to end", end="cancelled")
    expect(page.locator("#status")).to_have_text("Canceled")
    expect(page.locator("#asked")).to_be_hidden()


def test_a_run_is_replayed_with_another_payload(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    run_id = worker.start("handle-upload", '{"path":"a.csv","big":12345678901234567890}')
    worker.complete(run_id)
    page.goto(f"/runs/{run_id}")
    page.get_by_role("button", name="Replay…").click()
    payload = page.get_by_label("Payload, JSON")
    expect(payload).to_have_value('{\n  "path": "a.csv",\n  "big": 12345678901234567890\n}')
    payload.fill('{"path": "b.csv"')
    page.get_by_role("dialog").get_by_role("button", name="Replay").click()
    expect(page.get_by_role("alert")).to_contain_text("not JSON")
    payload.fill('{"path": "b.csv", "big": 12345678901234567891}')
    page.get_by_role("dialog").get_by_role("button", name="Replay").click()
    expect(page.locator("#run-id")).not_to_have_text(run_id)
    expect(page.get_by_role("link", name=run_id)).to_be_visible()
    replayed = page.locator("#run-id").inner_text()
    assert run_of(server, replayed)["payload"] == {"path": "b.csv", "big": 12345678901234567891}
    assert run_of(server, replayed)["replayOf"] == run_id
    server.request("POST", f"/api/v2/runs/{replayed}/cancel")


def test_a_delayed_run_is_rescheduled(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    run_id = worker.trigger("handle-upload", delay="1h")
    before = run_of(server, run_id)["delayedUntil"]
    page.goto(f"/runs/{run_id}")
    expect(page.locator("#facts")).to_contain_text("in 59 min")
    page.get_by_role("button", name="Reschedule…").click()
    page.get_by_label("From now on, or a time").fill("soon")
    page.get_by_role("dialog").get_by_role("button", name="Reschedule").click()
    expect(page.get_by_role("alert")).to_contain_text("soon")
    page.get_by_label("From now on, or a time").fill("5h")
    page.get_by_role("dialog").get_by_role("button", name="Reschedule").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert run_of(server, run_id)["delayedUntil"] > before
    server.request("POST", f"/api/v2/runs/{run_id}/cancel")


def test_all_runs_that_match_are_cancelled_and_no_other(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    ids = worker.trigger_many("handle-row", 130, tags=["many"], delay="1h")
    beside = worker.trigger("handle-row", tags=["beside"], delay="1h")
    page.goto("/?tag=many&status=DELAYED")
    expect(page.get_by_role("button", name="Replay all…")).to_be_disabled()
    page.get_by_role("button", name="Cancel all…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel all").click()
    expect(page.get_by_role("dialog")).to_contain_text("130 runs cancelled")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("No run matches these filters.")).to_be_visible()
    assert run_of(server, ids[0])["status"] == run_of(server, ids[-1])["status"] == "CANCELED"
    assert run_of(server, beside)["status"] == "DELAYED"
    server.request("POST", f"/api/v2/runs/{beside}/cancel")


def test_a_run_is_triggered_by_the_form_of_its_task(
    page: Page, worker: FakeWorker, server: RunningServer
) -> None:
    worker.offers["handle-upload"] = {"payloadSchema": SCHEMA}
    worker.register()
    page.goto("/tasks")
    page.locator("#things").get_by_role("link", name="handle-upload").click()
    page.get_by_label("path").fill("people.csv")
    page.get_by_label("rows").fill("many")
    page.get_by_role("button", name="Trigger").click()
    expect(page.get_by_role("alert")).to_contain_text("rows: this is not a whole number")
    page.get_by_label("rows").fill("12345678901234567890")
    page.get_by_label("mode").select_option("slow")
    page.get_by_label("more").fill("[1.0]")
    page.get_by_text("Options").click()
    page.get_by_label("Delay").fill("1h")
    page.get_by_label("Tags").fill("a, b")
    page.get_by_role("button", name="Trigger").click()
    link = page.locator("#triggered a")
    expect(link).to_be_visible()
    run = run_of(server, link.inner_text())
    assert run["payload"] == {
        "path": "people.csv",
        "rows": 12345678901234567890,
        "mode": "slow",
        "more": [1.0],
    }
    assert (run["status"], run["tags"]) == ("DELAYED", ["a", "b"])
    server.request("POST", f"/api/v2/runs/{run['id']}/cancel")


def test_queues_and_schedules_are_paused(page: Page, worker: FakeWorker, server: RunningServer) -> None:
    schedule = server.request("POST", "/api/v1/schedules", {"task": "handle-row", "cron": "0 5 * * *"})["id"]
    page.goto("/queues")
    page.get_by_role("button", name="Pause queue handle-row").click()
    resume = page.get_by_role("button", name="Resume queue handle-row")
    expect(resume).to_be_visible()
    assert server.request("GET", "/api/v1/queues/handle-row")["paused"] is True
    resume.click()
    expect(page.get_by_role("button", name="Pause queue handle-row")).to_be_visible()
    page.get_by_role("button", name="Limit of queue handle-row").click()
    page.get_by_label("How many of its runs").fill("7")
    page.get_by_role("button", name="Set the limit").click()
    expect(page.locator("#things")).to_contain_text("7 (set)")
    page.get_by_role("button", name="Limit of queue handle-row").click()
    page.get_by_label("How many of its runs").fill("")
    page.get_by_role("button", name="Set the limit").click()
    expect(page.locator("#things")).not_to_contain_text("7 (set)")
    page.goto("/schedules")
    page.get_by_role("button", name=f"Pause schedule {schedule}").click()
    expect(page.get_by_role("button", name=f"Resume schedule {schedule}")).to_be_visible()
    assert server.request("GET", f"/api/v1/schedules/{schedule}")["active"] is False
    page.goto("/workers")
    expect(page.locator("#things")).to_contain_text("handle-upload, handle-row")


def test_the_log_is_filtered(page: Page, worker: FakeWorker) -> None:
    run_id = worker.start("handle-upload")
    lines = [
        {"at": 1, "level": level, "message": f"a {level}"} for level in ("debug", "info", "warning", "error")
    ]
    worker.report(run_id, logs=lines)
    page.goto(f"/runs/{run_id}")
    shown = page.locator("#log-lines .log-message")
    expect(shown).to_have_text(["a debug", "a info", "a warning", "a error"])
    page.get_by_label("Level", exact=True).select_option("warning")
    expect(shown).to_have_text(["a warning", "a error"])
    # What comes is filtered too.
    worker.report(
        run_id,
        logs=[{"at": 2, "level": "info", "message": "more"}, {"at": 2, "level": "error", "message": "MORE"}],
    )
    expect(shown).to_have_text(["a warning", "a error", "MORE"])
    page.locator("#log-search").fill("more")
    expect(shown).to_have_text(["MORE"])
    page.get_by_label("Level", exact=True).select_option("")
    expect(shown).to_have_text(["more", "MORE"])
    page.get_by_label("Attempt", exact=True).fill("2")
    expect(page.locator("#log-nothing")).to_be_visible()
    page.get_by_label("Attempt", exact=True).fill("1")
    page.locator("#log-search").fill("")
    expect(shown).to_have_count(6)
    worker.complete(run_id)


def test_a_tree_stands_on_one_time_axis(page: Page, worker: FakeWorker) -> None:
    parent = worker.start("handle-upload")
    child = worker.trigger("handle-row", parentRunId=parent)
    worker.claim()
    worker.fail(child, "once", trace="Traceback: line 12", retryAfterMs=0)
    assert worker.claim() == [child]
    grandchild = worker.trigger("handle-row", parentRunId=child)
    page.goto(f"/runs/{parent}")
    rows = page.locator("#family li")
    expect(rows).to_have_count(3)
    names = rows.locator("a").evaluate_all("links => links.map(link => link.title)")
    assert names == [parent, child, grandchild]
    expect(rows.nth(1).locator('.family-bar[data-status="FAILED"]')).to_have_count(1)
    expect(rows.nth(1).locator('.family-bar[data-status="EXECUTING"]')).to_have_count(1)
    worker.complete(child)
    expect(rows.nth(1).locator('.family-bar[data-status="COMPLETED"]')).to_have_count(1)
    page.goto(f"/runs/{child}")
    expect(page.locator("#attempts")).to_contain_text("Traceback: line 12")
    worker.complete(parent)
