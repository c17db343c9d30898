"""`milepost dev`: ready when it says so, clear words for what is in the way, nothing left behind."""

import os
import signal
import socket
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_processes import Command, House, wait_until, write_tasks

HELLO = """
@task
async def hello(name: str) -> str:
    metadata.set("greeted", name)
    return f"hello {name}"

@task
def hello_plain(name: str) -> str:
    print("a line of the task")
    metadata.set("greeted", name)
    return f"hello {name}"
"""


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, "2"), (signal.SIGINT, "1")])
def test_it_runs_tasks_when_it_says_that_it_is_ready_and_ends_cleanly(
    house: Callable[..., House], number: int, processes: str
) -> None:
    dev = house(HELLO, "--processes", processes)
    for task_id in ("hello", "hello_plain"):
        run = dev.run(task_id, "you")
        assert run.output == "hello you"
        assert run.metadata == {"greeted": "you"}
    assert dev.end(number) == 0
    assert "Traceback" not in dev.errors
    assert "a line of the task" in dev.errors, "output of tasks stays out of the one line for programs"
    assert dev.rest() == ""


def test_code_below_the_folder_finds_the_server_and_the_key_survives_a_restart(
    house: Callable[..., House], command: Callable[..., Command], tmp_path: Path
) -> None:
    dev = house(HELLO, "--processes", "1")
    file = tmp_path / ".milepost" / "dev.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    below = tmp_path / "deep" / "down"
    below.mkdir(parents=True)
    trigger = command("trigger", "hello", '"you"', "--watch", folder=below)
    assert trigger.line().startswith("run_")
    assert "hello you" in trigger.rest()
    assert trigger.process.wait(30) == 0
    dev.end()
    assert house(None, "--processes", "1").secret_key == dev.secret_key


def test_a_port_in_use_is_said_in_one_line(command: Callable[..., Command], tmp_path: Path) -> None:
    write_tasks(tmp_path / "jobs.py", HELLO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dev = command("dev", "jobs.py", "--port", str(taken.getsockname()[1]))
        assert dev.process.wait(30) == 1
    assert len(dev.errors.splitlines()) == 1
    assert "is in use" in dev.errors
    assert "--port" in dev.errors


def test_a_data_folder_that_cannot_be_written_is_said_in_one_line(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    write_tasks(tmp_path / "jobs.py", HELLO)
    (tmp_path / "locked").mkdir(mode=0o555)
    # The superuser may write everywhere, except where there is nothing to write to.
    folder = "/proc/milepost" if os.geteuid() == 0 else str(tmp_path / "locked" / "data")
    dev = command("dev", "jobs.py", "--port", "0", "--data", folder)
    assert dev.process.wait(30) == 1
    assert len(dev.errors.splitlines()) == 1
    assert "cannot be written" in dev.errors


def test_a_data_folder_has_one_server(house: Callable[..., House], command: Callable[..., Command]) -> None:
    house(HELLO, "--processes", "1")
    second = command("dev", "jobs.py", "--port", "0")
    assert second.process.wait(30) == 1
    assert len(second.errors.splitlines()) == 1
    assert "another Milepost server uses the data folder" in second.errors


def test_a_database_of_a_newer_version_is_left_alone(command: Callable[..., Command], tmp_path: Path) -> None:
    write_tasks(tmp_path / "jobs.py", HELLO)
    assert command("db", "upgrade").ended() == 0
    with sqlite3.connect(tmp_path / ".milepost" / "milepost.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    database.close()
    dev = command("dev", "jobs.py", "--port", "0")
    assert dev.process.wait(30) == 1
    assert len(dev.errors.splitlines()) == 1
    assert "newer version" in dev.errors


@pytest.mark.parametrize(
    ("source", "words", "processes"),
    [
        ("def f(:\n", ["jobs.py", "SyntaxError", "line 2"], "2"),
        ("import no_such_module\n", ["jobs.py", "line 2", "no_such_module"], "1"),
        ("x = 1\n", ["there is no task in jobs.py"], "2"),
        (
            "@task\ndef a() -> None: ...\n@task(id='a')\ndef b() -> None: ...\n",
            ["two tasks have the id 'a'"],
            "1",
        ),
    ],
)
def test_tasks_that_cannot_be_loaded_are_said_with_their_place(
    command: Callable[..., Command], tmp_path: Path, source: str, words: list[str], processes: str
) -> None:
    write_tasks(tmp_path / "jobs.py", source)
    dev = command("dev", "jobs.py", "--port", "0", "--no-reload", "--processes", processes)
    assert dev.process.wait(60) == 1
    for word in words:
        assert word in dev.errors
    assert dev.errors.count("error:") == 1


def test_a_file_that_is_not_there_is_said_at_once(command: Callable[..., Command]) -> None:
    dev = command("dev", "nothing.py")
    assert dev.process.wait(30) == 1
    assert dev.errors.splitlines() == ["error: nothing.py: there is no such file or folder"]


def test_a_wrong_setting_is_said_in_one_line(command: Callable[..., Command], tmp_path: Path) -> None:
    write_tasks(tmp_path / "jobs.py", HELLO)
    dev = command("dev", "jobs.py", "--port", "0", env={"TASK_RUN_METADATA_MAXIMUM_SIZE": "-5"})
    assert dev.process.wait(30) == 1
    assert "TASK_RUN_METADATA_MAXIMUM_SIZE" in dev.errors
    assert len(dev.errors.splitlines()) == 1


def test_it_ends_cleanly_while_it_is_starting(command: Callable[..., Command], tmp_path: Path) -> None:
    write_tasks(tmp_path / "jobs.py", "import time\nopen('loading', 'w').close()\ntime.sleep(60)\n" + HELLO)
    dev = command("dev", "jobs.py", "--port", "0", "--grace", "1", "--processes", "1")
    wait_until((tmp_path / "loading").exists)
    assert dev.end(signal.SIGINT) == 0
    assert "Traceback" not in dev.errors


def test_a_changed_file_takes_over_and_a_broken_one_does_not(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house("@task\ndef which() -> int:\n    return 1\n", "--processes", "1")
    assert dev.run("which").output == 1

    write_tasks(tmp_path / "jobs.py", "@task\ndef which() -> int:\n    return (\n")
    dev.says("SyntaxError")
    dev.says("keep running")
    assert dev.run("which").output == 1

    write_tasks(
        tmp_path / "jobs.py",
        "import numbers_of_mine\n@task\ndef which() -> int:\n    return numbers_of_mine.X\n",
    )
    dev.says("ModuleNotFoundError")
    write_tasks(tmp_path / "numbers_of_mine.py", "X = 2\n")
    dev.says("reloaded: which")
    assert dev.run("which").output == 2

    write_tasks(tmp_path / "numbers_of_mine.py", "X = 3\n")
    wait_until(lambda: dev.errors.count("reloaded: which") == 2)
    assert dev.run("which").output == 3
    assert dev.end() == 0


def test_a_run_under_way_ends_where_it_began_when_the_code_changes(
    house: Callable[..., House], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    source = f"""
    import asyncio, pathlib
    @task
    async def slow() -> str:
        metadata.set("began", True)
        while not pathlib.Path({str(gate)!r}).exists():
            await asyncio.sleep(0.01)
        return VERSION
    VERSION = "old"
    """
    dev = house(source, "--processes", "1")
    run_id = dev.trigger("slow")
    dev.until(run_id, lambda run: run.metadata.get("began"))
    write_tasks(tmp_path / "jobs.py", source.replace('"old"', '"new"'))
    dev.says("reloaded: slow")
    gate.touch()
    run = dev.finished(run_id)
    assert (run.output, run.attempt_count) == ("old", 1)
    assert dev.run("slow").output == "new"


GATED = """
import asyncio, os, pathlib, time
VERSION = 0
@task
async def gated(name: str) -> int:
    metadata.set("began", VERSION)
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)
    return VERSION
@task
def gated_plain(name: str) -> int:
    metadata.set("began", VERSION)
    while not pathlib.Path(name).exists():
        time.sleep(0.01)
    return VERSION
@task
async def parent(name: str) -> list[int]:
    metadata.set("began", VERSION)
    result = await gated.atrigger_and_wait(name)
    again = await which.atrigger_and_wait()
    return [VERSION, result.unwrap(), again.unwrap()]
@task
def which() -> int:
    return VERSION
"""


def save(folder: Path, version: int) -> None:
    write_tasks(folder / "jobs.py", GATED.replace("VERSION = 0", f"VERSION = {version}"))


def test_many_saves_leave_few_processes_and_the_newest_code(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(GATED, "--processes", "2")
    wait_until(lambda: len(dev.executors()) == 2)
    most, saves = 0, 15
    for version in range(1, saves + 1):
        save(tmp_path, version)
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            most = max(most, len(dev.executors()))
            time.sleep(0.01)
    last_save_at = time.monotonic()
    while dev.run("which").output != saves:
        most = max(most, len(dev.executors()))
        assert time.monotonic() < last_save_at + 30
    wait_until(lambda: len(dev.executors()) == 2)
    # Two that work and one that starts; and while a new one takes over, its sibling and the two before.
    assert most <= 6
    assert dev.end() == 0
    assert "Traceback" not in dev.errors


@pytest.mark.parametrize("task_ids", [["gated", "gated_plain"], ["parent"]], ids=["two runs", "a parent"])
def test_runs_end_in_the_code_in_which_they_began_however_long_it_takes(
    house: Callable[..., House], tmp_path: Path, task_ids: list[str]
) -> None:
    dev = house(GATED, "--processes", "1", "--grace", "0.1")
    run_ids = [dev.trigger(task_id, str(tmp_path / "gate")) for task_id in task_ids]
    for run_id in run_ids:
        dev.until(run_id, lambda run: run.metadata.get("began") == 0)
    if task_ids == ["parent"]:
        [child] = wait_until(lambda: list(dev.client.runs.list(task="gated")))
        dev.until(child.id, lambda run: run.metadata.get("began") == 0)
    for version in (1, 2, 3):
        save(tmp_path, version)
        wait_until(lambda version=version: dev.errors.count("reloaded:") == version)
    assert dev.run("which").output == 3
    dev.says("2 runs go on with the code as it was")
    # One that works, and one for the runs: what has nothing to do is gone.
    wait_until(lambda: len(dev.executors()) == 2)
    (tmp_path / "gate").touch()
    for run_id in run_ids:
        run = dev.finished(run_id)
        assert run.output == ([0, 0, 3] if task_ids == ["parent"] else 0)
        assert run.attempt_count == 1
    wait_until(lambda: len(dev.executors()) == 1)
    assert dev.errors.count("with the code as it was") == 1
    assert dev.end() == 0


def test_runs_of_old_code_end_with_everything_else(house: Callable[..., House], tmp_path: Path) -> None:
    dev = house(GATED, "--processes", "1", "--grace", "0.2")
    for version in (1, 2):
        run_id = dev.trigger("gated", str(tmp_path / "gate"))
        dev.until(run_id, lambda run, version=version: run.metadata.get("began") == version - 1)
        save(tmp_path, version)
        wait_until(lambda version=version: dev.errors.count("reloaded:") == version)
    assert len(dev.executors()) == 3
    assert dev.end(signal.SIGINT, seconds=20) == 0
    assert not dev.executors()


def test_an_executor_of_old_code_that_dies_gives_its_runs_to_the_new(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(GATED, "--processes", "1", env={"MILEPOST_LEASE_SECONDS": "600"})
    run_id = dev.trigger("gated", str(tmp_path / "gate"))
    dev.until(run_id, lambda run: run.metadata.get("began") == 0)
    [old] = dev.executors()
    save(tmp_path, 1)
    dev.says("reloaded:")
    old.kill()
    dev.until(run_id, lambda run: run.metadata.get("began") == 1)
    (tmp_path / "gate").touch()
    assert dev.finished(run_id).output == 1
    dev.says("executor-1 was killed by SIGKILL while it was ending; its runs are tried again")
    assert dev.end() == 0


def test_two_tasks_of_one_id_are_said_when_the_code_changes(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(GATED, "--processes", "1")
    factory = "\ndef make(region: str) -> object:\n    @task\n    def work() -> str:\n        return region\n    return work\n"
    write_tasks(tmp_path / "jobs.py", GATED + factory + "eu = make('eu')\nus = make('us')\n")
    dev.says("two tasks have the id 'work'")
    dev.says("keep running")
    assert dev.run("which").output == 0
    assert dev.end() == 0
