"""`milepost metadata ...`: every operation, what a value is, whose document it is, and what fails."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from milepost.cli.main import main
from support.served import KEY, HttpWorker, Served, offer


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    output: str
    errors: str


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    # A task has to be known before it is triggered.
    HttpWorker(served, "worker_cli", offer("work"))
    yield served
    served.stop()


@pytest.fixture
def milepost(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Runs `milepost metadata ARGUMENTS`; `run` and `attempt` are the run that it is part of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, run: str = "", attempt: int | str = 1, stdin: bytes = b"") -> Ended:
        for name in ("MILEPOST_RUN_ID", "MILEPOST_ATTEMPT"):
            monkeypatch.delenv(name, raising=False)
        if run:
            monkeypatch.setenv("MILEPOST_RUN_ID", run)
            monkeypatch.setenv("MILEPOST_ATTEMPT", str(attempt))
        monkeypatch.setenv("MILEPOST_API_URL", served.url)
        monkeypatch.setenv("MILEPOST_SECRET_KEY", KEY)
        monkeypatch.setattr(sys, "argv", ["milepost", "metadata", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        captured = capfd.readouterr()
        return Ended(int(code or 0), captured.out, captured.err)

    return run


def document(served: Served, run_id: str) -> Any:
    return served.get(f"/api/v1/runs/{run_id}/metadata")["metadata"]


@pytest.fixture
def line(served: Served) -> list[str]:
    """A run, its child and its grandchild, and a stranger; each in its first attempt."""
    root = served.trigger()
    child = served.trigger(parentRunId=root)
    line = [root, child, served.trigger(parentRunId=child), served.trigger()]
    held = {run["id"]: run["attempt"] for run in HttpWorker(served, "worker_cli", offer("work")).claim(1000)}
    assert [held[run_id] for run_id in line] == [1] * 4
    return line


def test_every_operation(milepost: Run, served: Served, line: list[str]) -> None:
    run_id = line[0]
    for arguments in (
        ["set", "total", "10"],
        ["set", "$.deep.name", "a b"],
        ["set", "gone", "1"],
        ["delete", "gone"],
        ["append", "log", "one"],
        ["append", "log", "two", "--max-items", "2"],
        ["append", "log", '{"three": 3}', "--max-items", "2"],
        ["extend", "list", "1", "two", "[3]", "two", "-4"],
        ["remove", "list", "two"],
        ["increment", "n"],
        ["increment", "n", "5", "--once", "a"],
        ["increment", "n", "5", "--once", "a"],
        ["increment", "n", "-2"],
        ["decrement", "n", "0.5"],
        ["update", '{"x": null, "y": [true]}'],
    ):
        ended = milepost(*arguments, run=run_id)
        assert (ended.code, ended.output, ended.errors) == (0, "", ""), arguments
    assert document(served, run_id) == {
        "total": 10,
        "deep": {"name": "a b"},
        "log": ["two", {"three": 3}],
        "list": [1, [3], -4],
        "n": 3.5,
        "x": None,
        "y": [True],
    }
    assert milepost("replace", '{"all": "new"}', run=run_id).code == 0
    assert document(served, run_id) == {"all": "new"}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["10"], 10),
        (["-10"], -10),
        (["-1.5e3"], -1500.0),
        (["1.5"], 1.5),
        (["true"], True),
        (["null"], None),
        (['"10"'], "10"),
        (['{"a": [1]}'], {"a": [1]}),
        (["hello world"], "hello world"),
        (["007"], "007"),
        (["1.2.3"], "1.2.3"),
        (["NaN"], "NaN"),
        (["1e400"], "1e400"),
        (["[1,"], "[1,"),
        ([""], ""),
        (["10", "--text"], "10"),
        (["--text", "-10"], "-10"),
        (["--json", "10"], 10),
        (["--", "--text"], "--text"),
        (["é 😀"], "é 😀"),
    ],
)
def test_a_value_is_json_where_it_is_json(
    milepost: Run, served: Served, line: list[str], arguments: list[str], value: Any
) -> None:
    assert milepost("set", "key", *arguments, run=line[0]).code == 0
    assert document(served, line[0]) == {"key": value}
    assert type(document(served, line[0])["key"]) is type(value)


def test_standard_input_is_a_value(milepost: Run, served: Served, line: list[str]) -> None:
    assert milepost("set", "a", "-", run=line[0], stdin=b"two\nlines\n").code == 0
    assert milepost("set", "b", "-", run=line[0], stdin=b'{"c": 1}\n').code == 0
    assert milepost("update", "-", run=line[0], stdin=b'{"d": 2}').code == 0
    assert document(served, line[0]) == {"a": "two\nlines", "b": {"c": 1}, "d": 2}
    assert "UTF-8" in milepost("set", "a", "-", run=line[0], stdin=b"\xff\xfe").errors


def test_whose_document_it_is(milepost: Run, served: Served, line: list[str]) -> None:
    """M60-M63, M15: part of a run, it may write to that and its ancestors; from outside, to any."""
    root, child, grandchild, stranger = line
    for arguments, target in (
        ([], grandchild),
        (["--parent"], child),
        (["--root"], root),
        (["--run", child], child),
        (["--run", child, "--parent"], root),
    ):
        assert milepost("increment", "n", *arguments, run=grandchild).code == 0
        assert document(served, target)["n"] >= 1
    assert [document(served, run_id) for run_id in line] == [{"n": 2}, {"n": 2}, {"n": 1}, {}]
    ended = milepost("set", "a", "1", "--run", stranger, run=grandchild)
    assert ended.code == 1
    assert "ancestors" in ended.errors
    assert document(served, stranger) == {}
    assert milepost("set", "a", "1", "--run", stranger).code == 0
    assert document(served, stranger) == {"a": 1}


def test_the_history_says_whose_it_was(milepost: Run, served: Served, line: list[str]) -> None:
    milepost("set", "a", "1", "--parent", run=line[1], attempt=1)
    milepost("set", "a", "2", "--run", line[0])
    history = served.get(f"/api/v1/runs/{line[0]}/metadata/history")["data"]
    assert [change["writer"] for change in history] == [{"run": line[1], "attempt": 1}, None]


def test_reading(milepost: Run, served: Served, line: list[str]) -> None:
    root, child, *_ = line
    milepost("update", '{"text": "a b", "n": 1.5, "list": [1, {"a": "b"}], "null": null}', run=root)
    for arguments, output in (
        (["text"], "a b\n"),
        (["text", "--json"], '"a b"\n'),
        (["n"], "1.5\n"),
        (["$.list[-1].a"], "b\n"),
        (["$.list[1]"], '{"a":"b"}\n'),
        (["null"], "null\n"),
        (["text", "--run", root], "a b\n"),
    ):
        ended = milepost("get", *arguments, run=root)
        assert (ended.code, ended.output) == (0, output)
    assert milepost("get", "text", "--parent", run=child).output == "a b\n"
    assert milepost("get", "text", "--root", run=line[2]).output == "a b\n"
    missing = milepost("get", "nothing", run=root)
    assert (missing.code, missing.output) == (1, "")
    assert "nothing" in missing.errors
    for name in ("current", "show"):
        assert json.loads(milepost(name, run=root).output) == document(served, root)
        assert json.loads(milepost(name, "--root", run=line[2]).output) == document(served, root)


def test_what_a_terminal_would_take_for_a_command_is_shown(milepost: Run, line: list[str]) -> None:
    milepost("set", "text", '"\\u001b[2J"', run=line[0])
    assert "\x1b" not in milepost("get", "text", run=line[0]).output
    assert "\x1b" not in milepost("current", run=line[0]).output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["set", "a"], 2, "value"),
        (["set", "a", "1", "--text", "--json"], 2, "either"),
        (["set", "a", "--parent", "--root", "1"], 2, "either"),
        (["set", "a", "[1", "--json"], 2, "not JSON"),
        (["set", "a", "--prent"], 2, "No such option: --prent"),
        (["increment", "a", "--by"], 2, "No such option: --by"),
        (["increment", "a", "many"], 2, "no number"),
        (["increment", "a", "true"], 2, "no number"),
        (["update", "[1]"], 2, "not a JSON object"),
        (["update", "text"], 2, "not a JSON object"),
        (["append", "a", "1", "--max-items", "0"], 2, "max-items"),
        (["set", "$.", "1"], 1, "$."),
        (["set", "__proto__", "1"], 1, "__proto__"),
        (["increment", "text", "1"], 1, "text"),
        (["increment", "text", "1", "--once", "x" * 200], 1, "128"),
        (["set", "big", json.dumps("x" * 300_000)], 1, "262,144"),
        (["set", "a", "1", "--run", "run_nobody"], 1, "run_nobody"),
        (["get", "a", "--run", "run_nobody"], 1, "run_nobody"),
    ],
)
def test_mistakes_are_one_clear_line(
    milepost: Run, served: Served, line: list[str], arguments: list[str], code: int, words: str
) -> None:
    milepost("set", "text", "a", run=line[0])
    ended = milepost(*arguments, run=line[0])
    assert ended.code == code
    assert words in ended.errors
    assert "Traceback" not in ended.errors
    assert document(served, line[0]) == {"text": "a"}


def test_outside_of_a_run_it_says_what_to_do(milepost: Run) -> None:
    for arguments in (["set", "a", "1"], ["get", "a"], ["current"]):
        ended = milepost(*arguments)
        assert ended.code == 2
        assert "MILEPOST_RUN_ID" in ended.errors
        assert "--run" in ended.errors


@pytest.mark.parametrize("attempt", ["", "0", "x", "-1"])
def test_half_of_the_environment_is_told(milepost: Run, line: list[str], attempt: str) -> None:
    ended = milepost("set", "a", "1", run=line[0], attempt=attempt)
    assert ended.code == 1
    assert "MILEPOST_ATTEMPT" in ended.errors


def test_an_attempt_that_is_over_writes_nothing(milepost: Run, served: Served, line: list[str]) -> None:
    ended = milepost("set", "a", "1", run=line[0], attempt=2)
    assert (ended.code, ended.output) == (1, "")
    assert f"attempt 2 of run {line[0]} is over" in ended.errors
    assert document(served, line[0]) == {}


def test_refusals_of_the_parent_stand_in_the_log_of_the_run(
    milepost: Run, served: Served, line: list[str]
) -> None:
    milepost("set", "n", "text", "--run", line[0])
    assert milepost("increment", "n", "--parent", run=line[1]).code == 1
    [logged] = served.get(f"/api/v1/runs/{line[1]}/logs")["data"]
    assert line[0] in logged["message"]
