"""The two elements in a page of another origin: what they show, when it cannot be shown, accessibility."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Locator, Page, expect

from browser.conftest import Site, Tokens
from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, append, set_, until_unwatched

PICTURES = os.environ.get("MILEPOST_TEST_PICTURES")


def put(site: Site, server: RunningServer, body: str, *, policy: str = "") -> None:
    """The other site's page, with elements and nothing else of ours but the module."""
    site.pages["/elements"] = f"""<!doctype html><html lang="en"><head><title>A page</title>{policy}
        <script type="module" src="{server.url}/client/milepost.js"></script></head>
        <body><main><h1>Your import</h1>{body}</main></body></html>"""


def element(name: str, **attributes: Any) -> str:
    given = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name}{given}></{name}>"


def part(page: Page, name: str, of: str = "") -> Locator:
    return page.locator(f"{of} [part~={name}]".strip())


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def assert_accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not found, json.dumps(found, indent=1)[:3000]


def test_a_bar_follows_its_run(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    put(
        site,
        server,
        element("milepost-progress", run=run_id, token=tokens.run(run_id), label="Rows of people.csv"),
    )
    page.goto("/elements")
    bar = page.get_by_role("progressbar", name="Rows of people.csv")
    expect(part(page, "status")).to_have_text("Executing")
    assert bar.get_attribute("aria-valuenow") is None
    worker.report(run_id, set_("progress", {"done": 25, "total": 200}), set_("status", "reading"))
    expect(bar).to_have_attribute("aria-valuenow", "12")
    expect(bar).to_have_attribute("aria-valuetext", "25 of 200 · 12%")
    expect(part(page, "value")).to_have_text("25 of 200 · 12%")
    expect(part(page, "status")).to_have_text("reading")
    assert_accessible(page)
    picture(page, "bar")
    worker.report(run_id, set_("progress", {"done": 200, "total": 200}), set_("status", ""))
    worker.complete(run_id)
    expect(page.locator("milepost-progress")).to_have_attribute("state", "completed")
    expect(bar).to_have_attribute("aria-valuenow", "100")
    expect(part(page, "status")).to_have_text("Completed")
    assert_accessible(page)
    # Everything has been told: nothing is held any more.
    assert page.evaluate(
        "document.querySelector('milepost-progress').shadowRoot.querySelector('[part=connection]').hidden"
    )


@pytest.mark.parametrize(
    ("document", "attributes", "value", "text"),
    [
        ({"progress": 0.5}, {}, "50", "50%"),
        ({"progress": 0.999}, {}, "99", "99%"),
        ({"progress": 42}, {"max": "100"}, "42", "42%"),
        ({"processed": 3, "total": 4}, {}, "75", "3 of 4 · 75%"),
        ({"rows": {"done": 1500, "total": 3000}}, {}, "50", "1,500 of 3,000 · 50%"),
        ({"rows": {"done": 1, "total": 4}, "progress": 1}, {"key": "rows"}, "25", "1 of 4 · 25%"),
        ({"a": {"b": 0.25}}, {"key": "a.b"}, "25", "25%"),
        ({"a.b": 0.25}, {"key": "a.b"}, "25", "25%"),
        ({"progress": {"done": 7, "total": None}}, {}, None, "7"),
        ({"progress": {"percent": 30}}, {}, "30", "30%"),
        ({"progress": 3}, {}, "100", "100%"),
        ({"progress": "half"}, {}, None, ""),
        ({"progress": -1}, {}, None, ""),
        ({"__proto__x": 1, "constructor": {"done": 1, "total": 2}}, {"key": "toString"}, None, ""),
    ],
)
def test_where_progress_is_found(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens,
    document: dict[str, Any], attributes: dict[str, str], value: str | None, text: str,
) -> None:  # fmt: skip
    run_id = worker.start("work")
    worker.report(run_id, {"type": "update", "value": document})
    put(site, server, element("milepost-progress", run=run_id, token=tokens.run(run_id), **attributes))
    page.goto("/elements")
    expect(part(page, "status")).to_have_text("Executing")
    assert part(page, "track").get_attribute("aria-valuenow") == value
    assert (part(page, "value").text_content() or "") == text


def test_a_run_that_fails_says_why(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    worker.report(run_id, set_("progress", 0.4), set_("status", "reading"))
    put(site, server, element("milepost-progress", run=run_id, token=tokens.run(run_id)))
    page.goto("/elements")
    worker.fail(run_id, "row 7 <b>has no name</b>")
    expect(part(page, "error")).to_have_text("ValueError: row 7 <b>has no name</b>")
    expect(part(page, "status")).to_have_text("Failed")
    expect(page.locator("milepost-progress")).to_have_attribute("state", "failed")
    assert_accessible(page)
    picture(page, "failed")


@pytest.mark.parametrize("kind", ["foreign", "rubbish", "none", "no run", "no such run"])
@pytest.mark.parametrize("name", ["milepost-progress", "milepost-stream"])
def test_what_cannot_be_shown_is_said_in_its_place(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens, name: str, kind: str
) -> None:
    run_id, other = worker.start("work"), worker.start("work")
    attributes: dict[str, Any] = {"run": run_id, "token": tokens.run(other)}
    attributes |= {
        "foreign": {}, "rubbish": {"token": "ey.e30.x"}, "none": {"token": ""}, "no run": {"run": ""},
        "no such run": {"run": "run_nobody", "token": tokens.make({"read": {"runs": True}})},
    }[kind]  # fmt: skip
    put(site, server, element(name, key="rows", **attributes))
    page.goto("/elements")
    words = {
        "foreign": "does not show this", "rubbish": "is not valid", "none": "is not valid", "no run": "the id of a run",
        "no such run": "Not found",
    }  # fmt: skip
    expect(page.get_by_role("alert")).to_contain_text(words[kind])
    expect(page.locator(name)).to_have_attribute("state", "refused")
    expect(part(page, "connection")).to_be_hidden()
    assert_accessible(page)
    picture(page, f"refused {name} {kind}")
    # A better token, and it goes on.
    page.locator(name).evaluate(
        "(element, [run, token]) => { element.setAttribute('run', run); element.token = token; }",
        [run_id, tokens.run(run_id)],
    )
    expect(page.get_by_role("alert")).to_be_hidden()
    if name == "milepost-progress":
        expect(part(page, "status")).to_have_text("Executing")


def test_text_is_joined_and_the_end_is_followed(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "answer")
    put(
        site,
        server,
        element("milepost-stream", run=run_id, key="answer", token=tokens.run(run_id), label="The answer"),
    )
    page.goto("/elements")
    log = page.get_by_role("log", name="The answer")
    writer.write("Hel", "lo ", "<i>w", "orld</i>\n")
    expect(log).to_have_text("Hello <i>world</i>\n")
    assert log.get_attribute("aria-live") == "polite"
    assert part(page, "text").count() == 1
    writer.write(*(f"line {number}\n" for number in range(200)))
    expect(log).to_contain_text("line 199")
    at_end = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight < 8"
    assert log.evaluate(at_end)
    log.evaluate("(log) => { log.scrollTop = 40; }")
    writer.write("more\n")
    expect(log).to_contain_text("more")
    assert log.evaluate("(log) => log.scrollTop") == 40
    log.evaluate("(log) => { log.scrollTop = log.scrollHeight; }")
    writer.write("and more\n", end=True)
    expect(part(page, "status")).to_have_text("Ended")
    assert log.evaluate(at_end)
    assert_accessible(page)
    picture(page, "text")


def test_json_comes_as_lines(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "rows")
    put(site, server, element("milepost-stream", run=run_id, key="rows", token=tokens.run(run_id)))
    page.goto("/elements")
    writer.write(
        {"row": 1}, [2, "x"], "text ", "joined", None, {"$bytes": "AAE="}, error="the file <b>ended</b> early"
    )
    # While the run goes on, another attempt might write more.
    worker.fail(run_id, "no more")
    expect(part(page, "error")).to_have_text("The stream has failed: the file <b>ended</b> early")
    assert part(page, "log").locator("> *").all_text_contents() == [
        '{"row":1}',
        '[2,"x"]',
        "text joined",
        "null",
        "2 bytes",
    ]
    assert_accessible(page)
    picture(page, "lines")


def test_a_long_stream_stays_small_in_the_page(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    rows, text = StreamWriter(server, run_id, "rows"), StreamWriter(server, run_id, "text", writer="t")
    for first in range(0, 30_000, 10_000):
        rows.write(*range(first, first + 10_000), end=first == 20_000)
    for _ in range(3):
        text.write("x" * 999_990, "\n")
    text.write("the end", end=True)
    body = "".join(
        element("milepost-stream", id=key, run=run_id, key=key, token=tokens.run(run_id))
        for key in ("rows", "text")
    )
    put(site, server, body)
    page.goto("/elements")
    for key in ("rows", "text"):
        expect(part(page, "status", f"#{key}")).to_have_text("Ended")
    lines = part(page, "line", "#rows").all_text_contents()
    assert lines == [str(number) for number in range(28_000, 30_000)]
    shown = part(page, "text", "#text").text_content() or ""
    assert len(shown) == 1_000_000
    assert shown.endswith("the end")


def test_a_stream_that_nobody_wrote(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    worker.complete(run_id)
    put(site, server, element("milepost-stream", run=run_id, key="rows", token=tokens.run(run_id)))
    page.goto("/elements")
    expect(part(page, "status")).to_have_text("Nothing was written.")


def test_an_element_that_is_moved_goes_on_and_one_that_is_removed_lets_go(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    writer = StreamWriter(server, run_id, "rows")
    writer.write("one ")
    put(
        site,
        server,
        element("milepost-stream", run=run_id, key="rows", token=tokens.run(run_id)) + "<aside></aside>",
    )
    requests: list[str] = []
    page.on(
        "request",
        lambda request: requests.append(request.method) if request.url.endswith("/feed/watch") else None,
    )
    page.goto("/elements")
    expect(part(page, "text")).to_have_text("one ")
    page.evaluate("document.querySelector('aside').append(document.querySelector('milepost-stream'))")
    writer.write("two")
    expect(part(page, "text")).to_have_text("one two")
    assert requests.count("POST") == 1
    page.evaluate("document.querySelector('milepost-stream').remove()")
    until_unwatched(server)


def test_a_page_with_a_strict_policy(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    """Without inline styles and scripts, and with connections to the server only."""
    run_id = worker.start("work")
    worker.report(run_id, set_("progress", 0.5))
    StreamWriter(server, run_id, "rows").write("text")
    policy = (
        '<meta http-equiv="content-security-policy" content="'
        f"default-src 'none'; script-src {server.url}; connect-src {server.url}; require-trusted-types-for 'script'\">"
    )
    token = tokens.run(run_id)
    body = element("milepost-progress", run=run_id, token=token) + element(
        "milepost-stream", run=run_id, key="rows", token=token
    )
    put(site, server, body, policy=policy)
    refused: list[str] = []
    page.on(
        "console",
        lambda message: refused.append(message.text) if "Content Security" in message.text else None,
    )
    page.goto("/elements")
    expect(part(page, "value")).to_have_text("50%")
    expect(part(page, "text")).to_have_text("text")
    # The bar has its width, and the sheet its effect.
    page.wait_for_function(
        """() => {
          const root = document.querySelector("milepost-progress").shadowRoot;
          const [track, bar] = ["track", "bar"].map((name) => root.querySelector(`[part=${name}]`).getBoundingClientRect());
          return track.height > 5 && Math.abs(bar.width - track.width / 2) < 2;
        }"""
    )
    assert not refused


def test_looks_are_the_page_s(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    worker.report(run_id, set_("progress", 0.5))
    style = (
        "<style>milepost-progress { --milepost-color: rgb(1, 2, 3) } "
        "milepost-progress::part(label) { color: rgb(4, 5, 6) }</style>"
    )
    put(site, server, style + element("milepost-progress", run=run_id, token=tokens.run(run_id)))
    page.goto("/elements")
    expect(part(page, "value")).to_have_text("50%")
    expect(part(page, "bar")).to_have_css("background-color", "rgb(1, 2, 3)")
    expect(part(page, "label")).to_have_css("color", "rgb(4, 5, 6)")


def test_the_page_is_told_by_events(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    put(site, server, "")
    page.goto("/elements")
    page.evaluate(
        """([run, token]) => {
          window.told = [];
          for (const name of ["update", "end", "error"]) {
            document.addEventListener(`milepost-${name}`, (event) => told.push([name, event.target.id, event.detail.status ?? null]));
          }
          document.querySelector("main").innerHTML = `<milepost-progress id="a" run="${run}" token="${token}"></milepost-progress>
            <milepost-progress id="b" run="${run}" token="x"></milepost-progress>`;
        }""",
        [run_id, tokens.run(run_id)],
    )
    page.wait_for_function("told.length === 2")
    worker.complete(run_id)
    page.wait_for_function("told.some(([name]) => name === 'end')")
    told = page.evaluate("told")
    assert ["error", "b", 401] in told
    assert [one for one in told if one[1] == "a"] == [
        ["update", "a", "EXECUTING"], ["update", "a", "COMPLETED"], ["end", "a", "COMPLETED"],
    ]  # fmt: skip


def test_a_token_from_a_function(
    page: Page, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    put(site, server, element("milepost-progress", run=run_id))
    page.goto("/elements")
    page.locator("milepost-progress").evaluate(
        "(element, token) => { element.token = async () => token; }", tokens.run(run_id)
    )
    expect(part(page, "status")).to_have_text("Executing")


def test_a_server_that_cannot_be_reached(
    page: Page, context: BrowserContext, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    run_id = worker.start("work")
    worker.report(run_id, append("steps", 1), set_("progress", 0.5))
    put(site, server, element("milepost-progress", run=run_id, token=tokens.run(run_id)))
    page.goto("/elements")
    expect(part(page, "value")).to_have_text("50%")
    server.stop()
    expect(part(page, "connection")).to_contain_text("Connecting again")
    expect(part(page, "connection")).to_contain_text("cannot be reached")
    expect(part(page, "value")).to_have_text("50%")
    assert_accessible(page)
    picture(page, "unreachable")
    server.start()
    worker.register()
    worker.report(run_id, set_("progress", 0.75))
    expect(part(page, "value")).to_have_text("75%")
    expect(part(page, "connection")).to_be_hidden()
