"""Logs, trees, tasks, workers and many runs at once on the command line; what a shell is offered."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from milepost.cli import completing
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
    yield served
    served.stop()


@pytest.fixture(scope="module")
def worker(served: Served) -> HttpWorker:
    return HttpWorker(served, "worker_cli", offer("work"), offer("other", queueConcurrency=3))


@pytest.fixture
def milepost(
    served: Served,
    worker: HttpWorker,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Run:
    """Runs `milepost ARGUMENTS`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILEPOST_API_URL", served.url)
    monkeypatch.setenv("MILEPOST_SECRET_KEY", KEY)

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "argv", ["milepost", *arguments])
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


def test_a_log_is_printed_filtered_and_as_a_tree(milepost: Run, served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger())
    child = worker.take(served.trigger(parentRunId=run["id"]))
    worker.log(
        run,
        {"at": 1_700_000_000_000_000, "level": "info", "message": "first\nsecond \x1b[2J"},
        {"at": 1_700_000_000_000_000, "level": "warning", "message": "careful", "logger": "app"},
    )
    worker.log(child, {"at": 1_700_000_000_000_000, "level": "error", "message": "from below"})
    worker.finish(run)
    worker.finish(child)
    plain = milepost("runs", "logs", run["id"])
    assert plain.code == 0
    assert "#1 info    first\n    second" in plain.output
    assert "\x1b" not in plain.output
    assert "careful  app" in plain.output
    assert "from below" not in plain.output
    tree = milepost("runs", "logs", run["id"], "--tree", "-f", "--level", "warning").output.splitlines()
    assert [line.split("#1 ")[1].rstrip() for line in tree] == ["warning careful  app", "error   from below"]
    assert f"…{child['id'][-8:]}" in tree[1]
    [found] = milepost("runs", "logs", run["id"], "--search", "CARE", "--json").output.splitlines()
    assert json.loads(found)["message"] == "careful"
    assert milepost("runs", "logs", run["id"], "--attempt", "2").errors.strip() == "no lines"
    refused = milepost("runs", "logs", run["id"], "--level", "loud")
    assert refused.code == 1
    assert "use debug, info, warning, error" in refused.errors


def test_a_tree_of_runs(milepost: Run, served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger())
    child = served.trigger(parentRunId=run["id"])
    grandchild = served.trigger("other", parentRunId=child)
    lines = milepost("runs", "tree", run["id"]).output.splitlines()
    assert [line.lstrip("│└├─ ").split()[:3] for line in lines] == [
        ["work", run["id"], "EXECUTING"],
        ["work", child, "QUEUED"],
        ["other", grandchild, "QUEUED"],
    ]
    cut = milepost("runs", "tree", run["id"], "--limit", "2")
    assert len(cut.output.splitlines()) == 2
    assert "there are more" in cut.errors
    assert len(json.loads(milepost("runs", "tree", run["id"], "--json").output)["data"]) == 3
    missing = milepost("runs", "tree", "run_nobody")
    assert (missing.code, "run_nobody" in missing.errors) == (1, True)


def test_tasks_and_workers(milepost: Run) -> None:
    rows = [line.split() for line in milepost("tasks").output.splitlines()[1:]]
    assert rows == [["other", "task/other", "3", "1", "1"], ["work", "task/work", "-", "1", "1"]]
    listed = [json.loads(line)["id"] for line in milepost("tasks", "--json").output.splitlines()]
    assert listed == ["other", "work"]
    [worker] = milepost("workers", "--json").output.splitlines()
    assert json.loads(worker)["tasks"] == ["work", "other"]
    assert "worker_cli" in milepost("workers").output


def test_many_runs_are_cancelled_and_replayed(milepost: Run, served: Served) -> None:
    ids = {served.trigger("other", tags=["many"]) for _ in range(3)}
    beside = served.trigger("other", tags=["beside"])
    assert milepost("runs", "cancel").code == 1
    assert "filters such as --status" in milepost("runs", "cancel").errors
    assert milepost("runs", "cancel", "--tag", "many").output.split() == ["3"]
    assert {served.get(f"/api/v3/runs/{run_id}")["status"] for run_id in ids} == {"CANCELED"}
    assert served.get(f"/api/v3/runs/{beside}")["status"] == "QUEUED"
    assert milepost("runs", "replay", "--tag", "many", "--status", "canceled").output.split() == ["3"]
    again = [
        run for run in served.get("/api/v1/runs", **{"filter[tag]": "many"})["data"] if run["id"] not in ids
    ]
    assert {run["replayOf"] for run in again} == ids
    assert milepost("runs", "replay", "--tag", "none").output.split() == ["0"]


def test_a_shell_is_offered_what_begins_so_and_nothing_where_nobody_answers(
    milepost: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = served.trigger("other")
    assert completing.task_ids("w") == ["work"]
    assert (run_id, "other QUEUED") in completing.run_ids(run_id[:-2])
    assert completing.run_ids("x") == []
    monkeypatch.setenv("_MILEPOST_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "milepost trigger o")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert milepost("trigger", "o").output.split() == ["plain,other"]
    monkeypatch.setenv("MILEPOST_API_URL", "http://127.0.0.1:9")
    assert completing.task_ids("w") == []
    monkeypatch.setenv("MILEPOST_SECRET_KEY", "wrong")
    monkeypatch.setenv("MILEPOST_API_URL", served.url)
    assert completing.task_ids("w") == []
