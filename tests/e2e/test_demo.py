"""`milepost demo`: sums that are right, files that are wrong, and an end at any moment."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import urllib3
from real_processes import MILEPOST, Command, wait_until


def long_file(folder: Path) -> None:
    """So many rows that the demo is under way for a while."""
    rows = "".join(f"{number},Ada Allen,ada@example.com,36\n" for number in range(60_000))
    (folder / "people.csv").write_text("id,name,email,age\n" + rows)


def test_ten_thousand_rows_are_counted_once_each(command: Callable[..., Command]) -> None:
    demo = command("demo")
    assert demo.process.wait(100) == 0
    told = demo.rest()
    assert "9,675 rows are fine and 325 are broken: 10,000 in all, every one counted once." in told
    assert "runs per second" in told
    assert "its page: http://127.0.0.1:" in demo.errors
    assert "Traceback" not in demo.errors


def test_a_file_of_the_users_own(command: Callable[..., Command], tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "id,name,email,age,city\na1,Ann,ann@example.com,30,Ulm\na2,,bob@example.com,31,Rom\na3,Cid,nothing,32,Bern\n"
    )
    demo = command("demo", "mine.csv", "--processes", "1")
    assert demo.process.wait(60) == 0
    told = demo.rest()
    assert "1 rows are fine and 2 are broken: 3 in all" in told
    assert "2 rows: a2, a3" in told


@pytest.mark.parametrize("end", ["enter", "ctrl-c"])
def test_the_page_stays_open_for_somebody_who_watches(tmp_path: Path, end: str) -> None:
    """In a terminal the demo ends when it is told to, and not with the last row."""
    (tmp_path / "mine.csv").write_text("id,name,email,age\na1,Ann,ann@example.com,30\n")
    ours, theirs = pty.openpty()
    told = b""
    with subprocess.Popen(
        [*MILEPOST, "demo", "mine.csv", "--processes", "1"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as demo:
        os.close(theirs)
        while b"Enter or Ctrl-C ends the demo" not in told:
            told += os.read(ours, 65_536)
        address = re.search(rb"(http://127.0.0.1:\d+)/", told)
        assert address is not None
        assert urllib3.request("GET", address[1].decode() + "/api/v1/health").status == 200
        assert demo.poll() is None
        if end == "enter":
            os.write(ours, b"\n")
        else:
            demo.send_signal(signal.SIGINT)
        with suppress(OSError):
            while os.read(ours, 65_536):
                pass
        assert demo.wait(30) == 0
    os.close(ours)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing.csv", None, "there is no such file"),
        ("empty.csv", "", "is empty"),
        ("header.csv", "id,name,email,age\n", "no rows"),
        ("columns.csv", "id,name\n1,a\n", "no column email and no column age"),
        ("picture.png", "\x89PNG\x00", "not a CSV file"),
    ],
)
def test_files_that_cannot_be_used_are_said_in_one_line(
    command: Callable[..., Command], tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    demo = command("demo", name)
    assert demo.process.wait(60) == 1
    assert words in demo.errors
    assert len(demo.errors.splitlines()) == 1


MOMENTS: dict[str, Callable[[Command], object]] = {
    "while the server starts": lambda demo: wait_until(lambda: any((demo.folder / "temporary").iterdir())),
    "while the executors start": lambda demo: wait_until(demo.executors),
    "when the work begins": lambda demo: demo.says("its page:"),
    "in the middle": lambda demo: demo.says("processed "),
}


# The signals take turns: both set the same event.
@pytest.mark.parametrize(
    ("moment", "number"),
    list(zip(MOMENTS, [signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT], strict=True)),
)
def test_it_ends_cleanly_at_any_moment(
    command: Callable[..., Command], tmp_path: Path, moment: str, number: int
) -> None:
    long_file(tmp_path)
    (tmp_path / "temporary").mkdir()
    demo = command("demo", "people.csv", env={"TMPDIR": str(tmp_path / "temporary")})
    MOMENTS[moment](demo)
    assert demo.end(number, seconds=15) == 130
    assert "Traceback" not in demo.errors
    assert not list((tmp_path / "temporary").iterdir())
