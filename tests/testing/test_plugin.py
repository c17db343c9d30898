"""The pytest plugin, and what a plain test reaches: never the development server that happens to run in its folder."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import milepost
from milepost import Client, ConfigurationError, task
from milepost.client.default import default_client

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "PYTEST"))}

TASKS = """
from milepost import task

@task
def add_one(n: int) -> int:
    return n + 1

@task
def triggers(n: int) -> str:
    return add_one.trigger(n).id
"""

PLAIN = """
from tasks import add_one, triggers

def test_calling_is_a_plain_call():
    assert add_one(1) == 2

def test_it_triggers():
    triggers(1)
"""

ASKED = """
from tasks import add_one, triggers

def test_it_triggers(milepost_dev_server):
    assert triggers(1)

def test_in_a_sandbox(milepost_sandbox):
    run_id = triggers(1)
    milepost_sandbox.run_until_idle()
    assert milepost_sandbox.run(run_id).output == 2
"""


@task(id="of-dev-server")
def of_dev_server() -> None:
    pass


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A folder in which a development server runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(textwrap.dedent(TASKS))
    with milepost.serve(of_dev_server, server=True) as serving:
        assert json.loads((tmp_path / ".milepost" / "dev.json").read_text())["url"] == serving.url
        yield serving.client


def run_pytest(folder: Path, source: str, *arguments: str, **env: str) -> tuple[int, str]:
    """Run these tests in a process of their own."""
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "milepost_pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**CLEAN, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def runs_of(client: Client) -> list[str]:
    return [run.task_id for run in client.runs.list()]


def test_a_plain_test_does_not_reach_the_development_server(project: Client, tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, PLAIN)
    assert code == 1, said
    assert "1 failed, 1 passed" in said
    for cure in ("dev.json", "milepost_sandbox", "MILEPOST_DEV_SERVER=1", "run_task"):
        assert cure in said
    assert runs_of(project) == []


def test_a_test_that_asks_for_it_does(project: Client, tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, ASKED)
    assert code == 0, said
    # What the other test has triggered is in its sandbox.
    assert runs_of(project) == ["add_one"]
    code, said = run_pytest(tmp_path, PLAIN, MILEPOST_DEV_SERVER="1")
    assert code == 0, said
    assert runs_of(project) == ["add_one", "add_one"]


def test_a_program_that_a_test_starts_does_not_either(project: Client, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from tasks import triggers; triggers(1)"]
    inherited = {**CLEAN, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        program, cwd=tmp_path, env={**inherited, "PYTEST_CURRENT_TEST": "x"}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"ConfigurationError" in done.stderr
    assert runs_of(project) == []
    subprocess.run(program, cwd=tmp_path, env=inherited, check=True)
    assert runs_of(project) == ["add_one"]


def test_the_rule_can_be_turned_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".milepost").mkdir()
    (tmp_path / ".milepost" / "dev.json").write_text('{"url": "http://127.0.0.1:1", "secret_key": "k"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="a test does not use"):
        Client()
    with pytest.raises(ConfigurationError, match="a test does not use"):
        default_client()
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "")
    with pytest.raises(ConfigurationError, match="a test does not use"):
        Client()
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "1")
    assert Client().api_url == "http://127.0.0.1:1"
    for name in ("PYTEST_VERSION", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "no")
    with pytest.raises(ConfigurationError, match="MILEPOST_DEV_SERVER says"):
        Client()
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "perhaps")
    with pytest.raises(ConfigurationError, match="wrong setting MILEPOST_DEV_SERVER"):
        Client()
    monkeypatch.delenv("MILEPOST_DEV_SERVER")
    assert Client().api_url == "http://127.0.0.1:1"


def test_nothing_is_imported_before_a_test_asks(tmp_path: Path) -> None:
    source = """
    import sys

    def test_nothing():
        assert "milepost" not in sys.modules
        assert "milepost_pytest" in sys.modules
    """
    code, said = run_pytest(tmp_path, source)
    assert code == 0, said


def test_no_thread_is_left_by_a_server_of_this_process(project: Client) -> None:
    assert {"milepost-server", "milepost-tasks", "milepost-link"} <= {
        each.name for each in threading.enumerate()
    }
