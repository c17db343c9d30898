"""What is said of runs: a line for each start and end, more than can be read in sum, and nobody waits for the terminal."""

import json
import os
import re
import time
from typing import Any

import pytest

from milepost.model.run import Outcome, RunError
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.worker import telling
from milepost.worker.outbox import HeldRun
from milepost.worker.settings import LogFormat, LogLevel
from milepost.worker.telling import LineWriter, RunTeller, Teller, format_line

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
FAILED = Outcome(
    error=RunError(
        name="ValueError", message="out of \x1b[31mink\nline two", stack_trace="Traceback:\n  here \x1b[0m"
    )
)
RETRIED = Outcome(error=FAILED.error, retry_after_ms=2500)


class Pipe:
    """A pipe whose reader is this test."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        self.writer = LineWriter(self.writing)

    def teller(self, level: LogLevel = "info", form: LogFormat = "text") -> RunTeller:
        return RunTeller(Teller(self.writer, level=level, form=form))

    def read(self) -> str:
        """What was written, up to now."""
        self.writer.flush(10)
        os.set_blocking(self._reading, False)
        chunks: list[bytes] = []
        while True:
            try:
                chunk = os.read(self._reading, 1 << 20)
            except BlockingIOError:
                return b"".join(chunks).decode()
            chunks.append(chunk)

    def lines(self) -> list[str]:
        return self.read().splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def held(number: int = 1, task: str = "import_row") -> HeldRun:
    run = ClaimedRun(id=f"run_{number}", task=task, attempt=2)
    link: Any = None
    return HeldRun(RunScope(run, Buffer.of(run, limit=1000), link), None)


def test_a_line_has_time_level_and_what_happens() -> None:
    line = format_line("text", "warning", "milepost", "red \x1b[31m \u202e", trace="one\n\ttwo \x07", at=0.5)
    first, *rest = line.splitlines()
    assert TIME.match(first)
    assert first[24:] == "WARNING red \\x1b[31m \\u202e"
    assert rest == ["one", "\ttwo \\x07"]
    found = json.loads(format_line("json", "info", "app", "lone \ud800 \x1b", trace="t", at=0.5, a=1, b=None))
    assert found.pop("time")[-6] in "+-"
    assert found == {
        "level": "info",
        "logger": "app",
        "message": "lone \\ud800 \x1b",
        "a": 1,
        "traceback": "t",
    }


def test_start_end_failure_and_retry_are_told(pipe: Pipe) -> None:
    teller = pipe.teller()
    run = held()
    teller.started(run)
    teller.ended(run, Outcome(output="1"))
    teller.ended(run, RETRIED)
    teller.ended(run, FAILED)
    lines = pipe.lines()
    assert all(TIME.match(line) for line in lines if "run_1" in line)
    said = [TIME.sub("", line) for line in lines]
    assert said[0] == "INFO    import_row run_1 attempt 2 started"
    assert re.fullmatch(r"INFO    import_row run_1 attempt 2 completed in [\d.]+ m?s", said[1])
    again, failed = said[2], said[5]
    assert re.fullmatch(
        r"WARNING import_row run_1 attempt 2 failed in [\d.]+ m?s, to be tried again in 2.50 s: ValueError: out of \\x1b\[31mink",
        again,
    )
    assert said[3:5] == ["Traceback:", "  here \\x1b[0m"]
    assert re.fullmatch(
        r"ERROR   import_row run_1 attempt 2 failed in [\d.]+ m?s: ValueError: out of \\x1b\[31mink", failed
    )
    assert said[6:] == ["Traceback:", "  here \\x1b[0m"]


def test_the_same_for_programs(pipe: Pipe) -> None:
    teller = pipe.teller(form="json")
    run = held()
    teller.started(run)
    teller.ended(run, Outcome(output="1"))
    teller.ended(run, RETRIED)
    teller.ended(run, FAILED)
    objects = pipe.objects()
    assert [each["event"] for each in objects] == [
        "run.started",
        "run.completed",
        "run.retried",
        "run.failed",
    ]
    for each in objects:
        assert (each["task"], each["run_id"], each["attempt"]) == ("import_row", "run_1", 2)
    assert all(each["duration_seconds"] >= 0 for each in objects[1:])
    assert [each["level"] for each in objects] == ["info", "info", "warning", "error"]
    assert objects[2]["retry_in_seconds"] == 2.5
    assert objects[3]["error"] == {"name": "ValueError", "message": "out of \x1b[31mink\nline two"}
    assert objects[3]["traceback"].startswith("Traceback")


@pytest.mark.parametrize(
    ("level", "count"),
    [("debug", 4), ("info", 4), ("warning", 2), ("error", 1)],
    ids=lambda given: str(given),
)
def test_what_is_below_the_level_is_not_said(pipe: Pipe, level: LogLevel, count: int) -> None:
    teller = pipe.teller(level, "json")
    run = held()
    teller.started(run)
    for outcome in (Outcome(output="1"), RETRIED, FAILED):
        teller.ended(run, outcome)
    assert len(pipe.objects()) == count


def test_very_many_runs_are_told_in_sum_and_none_is_forgotten(pipe: Pipe) -> None:
    teller = pipe.teller(form="json")
    for number in range(5000):
        run = held(number, "import_row" if number % 2 else "check")
        teller.started(run)
        teller.ended(run, FAILED if number % 50 == 0 else Outcome())
    teller.flush()
    objects = pipe.objects()
    told = [each for each in objects if each["event"] != "runs.summary"]
    seconds = 1 + len({each["time"][:19] for each in objects})
    assert len(told) <= seconds * (telling.LINES_PER_SECOND + telling.TRACEBACKS_PER_SECOND)
    sums = {"started": 0, "completed": 0, "failed": 0}
    for each in objects:
        if each["event"] == "runs.summary":
            for what, count in each["counts"].items():
                sums[what] += count
        else:
            sums[each["event"].removeprefix("run.")] += 1
    assert sums == {"started": 5000, "completed": 4900, "failed": 100}


def test_at_debug_every_run_is_told(pipe: Pipe) -> None:
    teller = pipe.teller("debug", "json")
    for number in range(300):
        teller.started(held(number))
    assert [each["run_id"] for each in pipe.objects()] == [f"run_{number}" for number in range(300)]


def test_the_sum_is_said_a_second_later_by_itself(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SUMMARY_SECONDS", 0.05)
    teller = pipe.teller(form="json")
    for number in range(telling.LINES_PER_SECOND + 7):
        teller.started(held(number))
    end = time.monotonic() + 20
    found: list[dict[str, Any]] = []
    while not any(each["event"] == "runs.summary" for each in found):
        assert time.monotonic() < end
        found += pipe.objects()
    assert found[-1]["counts"] == {"started": 7}


def test_nobody_waits_for_a_terminal_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LINES_MAX", 50)
    pipe = Pipe()
    began_at = time.monotonic()
    for number in range(5000):
        # Far more than a pipe holds.
        pipe.writer.write(f"{number} {'x' * 1000}\n")
    pipe.writer.flush(0.05)
    assert time.monotonic() - began_at < 10
    text = ""
    while "lines were left out here" not in text:
        text += pipe.read()
        pipe.writer.write("one more\n")
    numbers = [int(found) for found in re.findall(r"^(\d+) x", text, re.MULTILINE)]
    assert numbers == sorted(numbers)
    [count] = re.findall(r"^\(([\d,]+) lines were left out here", text, re.MULTILINE)
    assert int(count.replace(",", "")) + len(numbers) >= 5000


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe._reading)
    for _ in range(3):
        pipe.writer.write("nobody reads this\n")
    pipe.writer.flush(10)
