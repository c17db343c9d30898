"""The examples for the browser, each started with its one command and used as a person would."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = os.environ.get("MILEPOST_TEST_PICTURES")


@contextmanager
def started(name: str, browser: Browser, folder: Path) -> Iterator[Page]:
    """The first page of an example, which has printed where it is."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MILEPOST_")}
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "--port", "0"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as example:  # fmt: skip
        page = browser.new_page()
        try:
            assert example.stdout is not None
            said = example.stdout.readline()
            found = re.match(r"Open (http://127\.0\.0\.1:\d+) ", said)
            assert found, said
            page.goto(found[1])
            yield page
        finally:
            page.close()
            example.send_signal(signal.SIGINT)
            example.wait(30)


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


def test_fastapi_shows_a_live_bar_of_an_upload(browser: Browser, tmp_path: Path) -> None:
    rows = "".join(f"{number},row {number}\n" for number in range(60))
    with started("fastapi_progress", browser, tmp_path) as page:
        upload = {"name": "people.csv", "mimeType": "text/csv", "buffer": f"id,name\n{rows},\n".encode()}
        page.get_by_label("File").set_input_files(upload)  # pyright: ignore[reportArgumentType]
        page.get_by_role("button", name="Import").click()
        bar = page.get_by_role("progressbar", name="people.csv")
        # Live: it is seen on its way.
        expect(bar).to_have_attribute("aria-valuetext", re.compile(r"^[1-5]?\d of 61 · \d+%$"))
        expect(page.get_by_role("status")).to_have_text("reading people.csv")
        picture(page, "fastapi")
        expect(bar).to_have_attribute("aria-valuenow", "100")
        expect(page.get_by_role("status")).to_have_text("61 rows are in, 1 of them empty")


def test_django_shows_a_bar_and_a_text_from_a_template(browser: Browser, tmp_path: Path) -> None:
    with started("django_progress", browser, tmp_path) as page:
        page.get_by_role("button", name="Make a report").click()
        bar = page.get_by_role("progressbar", name="Months")
        expect(bar).to_have_attribute("aria-valuetext", re.compile(r"^[1-5] of 6 · "))
        expect(page.get_by_role("log", name="What was found")).to_contain_text("January: 7 orders of Ada.")
        picture(page, "django")
        expect(bar).to_have_attribute("aria-valuenow", "100")
        expect(page.get_by_role("log")).to_contain_text("June: 42 orders of Ada.")
        # After a reload all of it is there again.
        page.reload()
        expect(page.locator("milepost-progress")).to_have_attribute("state", "completed")
        expect(page.get_by_role("log")).to_contain_text("June: 42 orders of Ada.")
