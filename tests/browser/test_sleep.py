"""A tab that sleeps while its runs go on: when it wakes, nothing is missing, nothing comes twice, and the bar is right.

Its process is stopped, so that really nothing of it runs. `MILEPOST_TEST_SLEEP_SECONDS=60` tries it for so long that the other tab
takes it for dead.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, expect

from browser.conftest import Site, Tokens
from browser.writing import StreamWriter
from dashboard.served import FakeWorker, RunningServer, append, set_

SLEEP_SECONDS = float(os.environ.get("MILEPOST_TEST_SLEEP_SECONDS", "3"))
PICTURES = os.environ.get("MILEPOST_TEST_PICTURES")
BUSY_SECONDS = 0.5

FOLLOW = """
async ([url, id, token]) => {
  const milepost = await import(url);
  window.told = { times: [], numbers: [], steps: [], versions: [] };
  milepost.stream(id, "numbers", { token }, (value) => {
    told.numbers.push(value);
    told.times.push(Date.now());
  });
  milepost.watch(id, { token }, (run) => {
    told.steps = run.metadata.steps ?? [];
    told.versions.push(run.metadataVersion);
  });
}
"""


def ticks_of(process: int) -> int:
    """The processor time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def renderer_of(page: Page) -> int:
    """The process that runs a page: the one that is busy when its script is."""
    session = page.context.browser.new_browser_cdp_session()  # pyright: ignore[reportOptionalMemberAccess]
    found: list[dict[str, Any]] = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    before = {info["id"]: ticks_of(info["id"]) for info in found if info["type"] == "renderer"}
    page.evaluate(
        f"() => {{ const end = performance.now() + {BUSY_SECONDS * 1000}; while (performance.now() < end); }}"
    )
    return max(before, key=lambda process: ticks_of(process) - before[process])


@contextmanager
def asleep(page: Page) -> Iterator[None]:
    process = renderer_of(page)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_tab_that_sleeps_misses_nothing(
    context: BrowserContext, site: Site, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    """It holds the connection for another tab too, which goes on when the sleeper is taken for dead, or wakes."""
    run_id = worker.start("work")
    token = tokens.run(run_id)
    module = f"{server.url}/client/milepost.js"
    site.pages[
        "/sleep"
    ] = f"""<!doctype html><html lang="en"><title>Asleep</title><script type="module" src="{module}"></script>
        <milepost-progress run="{run_id}" token="{token}"></milepost-progress>
        <milepost-stream run="{run_id}" key="answer" token="{token}"></milepost-stream>"""
    pages = [context.new_page() for _ in range(2)]
    for page in pages:
        page.goto("/sleep")
        page.evaluate(FOLLOW, [module, run_id, token])
    numbers, answer = StreamWriter(server, run_id, "numbers"), StreamWriter(server, run_id, "answer")

    def work() -> None:
        number = numbers.next
        numbers.write(number)
        answer.write(f"{number} ")
        worker.report(run_id, append("steps", number), set_("progress", number / 10_000))

    def assert_shown(page: Page) -> None:
        count = numbers.next
        page.wait_for_function(f"told.steps.length >= {count} && told.numbers.length >= {count}")
        told = page.evaluate("told")
        assert told["numbers"] == told["steps"] == list(range(count))
        # No state is older than the one before.
        assert told["versions"] == sorted(told["versions"])
        expect(page.get_by_role("log")).to_have_text("".join(f"{number} " for number in range(count)))
        percent = str((count - 1) * 100 // 10_000)
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", percent)

    for _ in range(5):
        work()
    for page in pages:
        assert_shown(page)
    sleeper, other = pages
    with asleep(sleeper):
        until = time.monotonic() + SLEEP_SECONDS
        while time.monotonic() < until:
            work()
            other.wait_for_timeout(50)
        if SLEEP_SECONDS > 40:
            # The sleeper is silent for longer than a connection may be.
            assert_shown(other)
    assert_shown(sleeper)
    times = sleeper.evaluate("told.times")
    gap = max(after - before for before, after in pairwise(times)) / 1000
    assert gap > SLEEP_SECONDS - 1, "it did not sleep"
    for _ in range(5):
        work()
    for page in pages:
        assert_shown(page)
    if PICTURES:
        for name, page in (("sleeper", sleeper), ("other", other)):
            page.screenshot(path=f"{PICTURES}/asleep_{name}.png")


def test_a_page_that_is_resumed_connects_at_once(
    page: Page, server: RunningServer, worker: FakeWorker, tokens: Tokens
) -> None:
    """A browser that froze a page says so when it goes on; the connection has been silent for long by then."""
    run_id = worker.start("work")
    # Nothing looks by the clock.
    page.add_init_script("window.setInterval = () => 0;")
    page.goto("/")
    page.evaluate(FOLLOW, [f"{server.url}/client/milepost.js", run_id, tokens.run(run_id)])
    page.wait_for_function("told.versions.length > 0")
    with page.expect_request("**/feed/watch"):
        page.evaluate(
            "() => { const now = Date.now; Date.now = () => now() + 30_000; document.dispatchEvent(new Event('resume')); }"
        )
    worker.report(run_id, append("steps", "awake"))
    page.wait_for_function("told.steps.length === 1")
