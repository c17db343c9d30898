"""`milepost trigger`, `runs`, `db`, `server`: results for people and programs, errors in one line."""

import json
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from real_processes import Command, House, write_tasks

TASKS = """
import asyncio
@task
async def count(steps: int) -> int:
    metadata.set("total", steps).set("note", "[bold]not markup[/]")
    for _ in metadata.track(range(steps), key="rows"):
        metadata.increment("processed")
        await metadata.aflush()
    return steps

@task
def echo(given: dict[str, str]) -> dict[str, str]:
    metadata.set(given["key"], given["value"])
    return given

@task(retry=Retry(max_attempts=1))
def fails() -> None:
    metadata.set("progress", 0.5)
    raise ValueError("no luck today")
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for all tests here; each looks at runs of its own."""
    folder = tmp_path_factory.mktemp("commands")
    write_tasks(folder / "jobs.py", TASKS)
    dev = House(["jobs.py", "--processes", "1"], folder=folder, env={})
    yield dev
    dev.clean_up()


@pytest.fixture
def run(dev: House, command: Callable[..., Command]) -> Callable[..., tuple[str, str]]:
    """Runs a command below the server's folder to its end: what it has written to standard output and standard error."""

    def run(
        *arguments: str,
        code: int = 0,
        folder: Path = dev.folder,
        env: dict[str, str] | None = None,
        given: bytes | None = None,
    ) -> tuple[str, str]:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(given or b"")
            stdin.seek(0)
            done = command(*arguments, folder=folder, env=env, stdin=stdin)
        output = done.rest()
        assert done.process.wait(30) == code, done.errors
        assert "Traceback" not in done.errors
        return output, done.errors

    return run


def test_queues(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    listed, _ = run("queues", "list")
    assert "task/count" in listed
    paused = json.loads(run("queues", "pause", "task/echo", "--json")[0])
    assert paused["paused"] is True
    run_id = dev.client.trigger("echo", {"key": "a", "value": "b"}).id
    assert "is paused: resume it; position 1" in run("runs", "get", run_id)[0].replace("\n", " ")
    assert "paused" in run("queues", "show", "task/echo")[0]
    assert run_id in run("runs", "list", "--queue", "task/echo")[0]
    limited = json.loads(run("queues", "limit", "task/echo", "3", "--json")[0])
    assert limited["concurrency"] == {
        "current": 3,
        "override": 3,
        "overriddenAt": limited["concurrency"]["overriddenAt"],
    }
    _, refused = run("queues", "limit", "task/echo", "0", code=1)
    assert "pause the queue" in refused
    _, refused = run("queues", "pause", "typo", code=1)
    assert "there is no queue 'typo'" in refused
    _, refused = run("queues", "limit", "task/echo", code=1)
    assert "--reset" in refused
    run("queues", "limit", "task/echo", "--reset")
    run("queues", "resume", "task/echo")
    assert dev.client.runs.wait(run_id, timeout=30).status == "COMPLETED"


def test_trigger_and_watch(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    output, _ = run(
        "trigger",
        "count",
        "5",
        "--metadata",
        '{"user": "u1"}',
        "--tag",
        "a",
        "--tag",
        "b",
        "--watch",
    )
    run_id, *lines = output.splitlines()
    assert lines[-1] == "output: 5"
    assert lines[-2].startswith("COMPLETED  processed 5 of 5 (100%)  rows 5 of 5 (100%)")
    assert "user=u1" in lines[-2]
    found = dev.client.runs.retrieve(run_id)
    assert sorted(found.tags) == ["a", "b"]


def test_a_failed_run_is_an_exit_code(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    output, errors = run("trigger", "fails", "--watch", code=1)
    assert output.splitlines()[-1].startswith("FAILED  progress 50%")
    assert errors.splitlines() == ["ValueError: no luck today"]
    run("runs", "watch", output.splitlines()[0], code=1)


def test_get_and_watch_for_people_and_programs(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    run_id = dev.trigger("count", 3, metadata={"user": "u1"})
    dev.finished(run_id)
    output, _ = run("runs", "get", run_id)
    for words in (run_id, "COMPLETED", "count", "3 of 3", "[bold]not markup[/]", "u1", "output"):
        assert words in output
    whole = json.loads(run("runs", "get", run_id, "--json")[0])
    assert whole["metadata"]["processed"] == 3
    states = [json.loads(line) for line in run("runs", "watch", run_id, "--json")[0].splitlines()]
    assert states[-1]["status"] == "COMPLETED"


ODD = {"key": "\x1b[31mkey\x9b", "value": "\x1b]0;title\x07 \u202eabc 😀"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_text_of_others_is_shown_as_text(
    dev: House, run: Callable[..., tuple[str, str]], encoding: str
) -> None:
    """Neither a control character reaches the terminal, nor is an emoji the end of the command."""
    run_id = dev.run("echo", ODD, tags=["tag 😀"]).id
    env = {"PYTHONIOENCODING": encoding}
    shown = [
        run("runs", "get", run_id, env=env)[0],
        run("runs", "watch", run_id, env=env)[0],
        run("runs", "list", "--task", "echo", env=env)[0],
        run("runs", "history", run_id, env=env)[0],
        run("trigger", "echo", json.dumps(ODD), "--watch", env=env)[0],
    ]
    for text in shown:
        assert not set(text) & set("\x1b\x9b\x07\u202e")
    assert r"\x1b]0;title\x07 \u202eabc" in shown[0]
    read = [
        json.loads(run("runs", "get", run_id, "--json", env=env)[0])["metadata"],
        json.loads(run("runs", "history", run_id, "--version", "1", env=env)[0]),
    ]
    assert read == [{ODD["key"]: ODD["value"]}] * 2


def test_a_payload_from_a_file_and_from_standard_input(
    dev: House, run: Callable[..., tuple[str, str]]
) -> None:
    (dev.folder / "payload.json").write_bytes(b"\xef\xbb\xbf 7\n")
    for arguments, given in ((["@payload.json"], None), (["-"], b"7")):
        run_id = run("trigger", "count", *arguments, given=given)[0].strip()
        assert dev.finished(run_id).output == 7
    assert "cannot be read" in run("trigger", "count", "@nothing.json", code=1)[1]
    assert "standard input is not JSON" in run("trigger", "count", "-", given=b"{", code=1)[1]
    assert "is not UTF-8" in run("trigger", "count", "-", given=b'"\xff"', code=1)[1]


def test_lists_of_a_tree_and_of_a_time(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    run_id = dev.trigger("count", 1, tags=["timed"])
    dev.finished(run_id)
    assert run_id in run("runs", "list", "--top-level", "--since", "10m", "--tag", "timed")[0]
    assert run("runs", "list", "--parent", run_id)[1] == "no runs\n"
    assert run("runs", "list", "--since", "2999-01-01")[1] == "no runs\n"
    assert (
        "either --parent or --top-level" in run("runs", "list", "--top-level", "--parent", run_id, code=1)[1]
    )
    assert "--since 'soon' is no time" in run("runs", "list", "--since", "soon", code=1)[1]


def test_a_failed_run_shows_its_traceback(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    run_id = dev.run("fails").id
    output, errors = run("runs", "get", run_id)
    assert 'raise ValueError("no luck today")' in output
    assert errors == "ValueError: no luck today\n"
    assert "ValueError: no luck today" in run("runs", "list", "--task", "fails")[0]


def test_in_a_pipe_nothing_is_cut(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    long = "x" * 90
    run_id = dev.run("echo", {"key": long, "value": long}).id
    shown = run("runs", "get", run_id, env={"COLUMNS": ""})[0]
    assert f"{long}  {long}" in shown
    assert run_id in run("runs", "list", "--task", "echo", env={"COLUMNS": "20"})[0]


def test_the_version(run: Callable[..., tuple[str, str]]) -> None:
    assert run("--version")[0] == f"milepost {version('milepost')}\n"


def test_a_backup_of_a_server_that_writes(
    dev: House, run: Callable[..., tuple[str, str]], tmp_path: Path, command: Callable[..., Command]
) -> None:
    """The copy is whole, only the owner may read it, and a server runs on it."""
    before = dev.run("count", 3)
    busy = dev.trigger("count", 2000)
    dev.until(busy, lambda run: run.metadata.get("processed", 0) > 10)
    copy = tmp_path / "data" / "milepost.db"
    copy.parent.mkdir()
    run("db", "backup", str(copy.parent))
    assert not dev.client.runs.retrieve(busy).is_completed
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [path.name for path in copy.parent.iterdir()] == ["milepost.db"]
    with sqlite3.connect(copy) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone()[0] >= 2
    database.close()
    write_tasks(tmp_path / "jobs.py", TASKS)
    other = House(["jobs.py", "--processes", "1", "--data", "data"], folder=tmp_path, env={})
    try:
        restored = other.client.runs.retrieve(before.id)
        assert (restored.output, restored.metadata) == (before.output, before.metadata)
    finally:
        other.clean_up()
    assert "is there already" in run("db", "backup", str(copy), code=1)[1]
    run("db", "backup", str(copy), "--overwrite")
    assert "there is no database in" in run("db", "backup", "x", "--data", str(tmp_path / "no"), code=1)[1]


def test_list_with_filters(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    assert run("runs", "list", "--tag", "nothing")[1] == "no runs\n"
    ids = [dev.trigger("count", 1, tags=["some"]) for _ in range(3)]
    failed = dev.trigger("fails")
    for run_id in (*ids, failed):
        dev.finished(run_id)
    output, _ = run("runs", "list", "--task", "count", "--status", "completed", "--tag", "some")
    assert all(run_id in output for run_id in ids)
    assert failed not in output
    lines = run("runs", "list", "--tag", "some", "--json", "--limit", "2")[0].splitlines()
    assert [json.loads(line)["id"] for line in lines] == [ids[2], ids[1]]
    found = run("runs", "list", "--metadata", '{"progress": {"$lt": 1}}', "--task", "fails", "--json")[0]
    assert failed in found
    found = run("runs", "list", "--metadata", '{"progress": {"$gte": 1}}', "--task", "fails", "--json")[0]
    assert found == ""


def test_history_and_the_document_as_it_was(dev: House, run: Callable[..., tuple[str, str]]) -> None:
    run_id = dev.trigger("count", 3, metadata={"user": "u1"})
    dev.finished(run_id)
    dev.client.runs.metadata(run_id).set("note", "line\x1b[31m one\n").append("odd key", {"a": [1]}).send()
    lines = run("runs", "history", run_id)[0].splitlines()
    version, date, time, *who = lines[0].split()
    assert (version, who[:3]) == ("1", [f"…{run_id[-8:]}", "attempt", "1"])
    assert datetime.fromisoformat(f"{date}T{time}").astimezone() > datetime.now(UTC) - timedelta(minutes=5)
    assert "set total 3" in lines[0]
    assert 'set note "[bold]not markup[/]"' in lines[0]
    assert any("increment processed 1" in line for line in lines)
    assert "outside" in lines[-1]
    assert lines[-1].endswith(r'set note "line\u001b[31m one\n", append "odd key" {"a": [1]}')

    output, errors = run("runs", "history", run_id, "--limit", "1", "--after", "1", "--json")
    [change] = map(json.loads, output.splitlines())
    assert (change["version"], change["writer_run_id"], change["attempt"]) == (2, run_id, 1)
    assert "--after 2" in errors
    newest = str(len(lines))
    assert run("runs", "history", run_id, "--after", newest) == ("", "no changes\n")
    assert run("runs", "history", run_id, "--limit", newest)[1] == ""

    output, errors = run("runs", "history", run_id, "--version", "0")
    assert (json.loads(output), errors) == ({"user": "u1"}, "version 0\n")
    found = json.loads(run("runs", "history", run_id, "--at", "2999-01-01", "--json")[0])
    assert found == {"version": len(lines), "metadata": dev.client.runs.retrieve(run_id).metadata}
    first = next(iter(dev.client.runs.metadata_history(run_id)))
    output, errors = run("runs", "history", run_id, "--at", first.at.isoformat())
    assert (json.loads(output)["total"], errors) == (3, "version 1\n")
    assert "was triggered at" in run("runs", "history", run_id, "--at", "2001-01-01T00:00Z", code=1)[1]
    assert "outside" in run("runs", "history", "--help")[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs", "history", "run_nothing"], "run_nothing"),
        (["runs", "history", "run_nothing", "--version", "1"], "run_nothing"),
        (["runs", "history", "run_nothing", "--at", "soon"], "--at 'soon' is no time"),
        (["runs", "history", "run_nothing", "--at", "2026-01-31", "--version", "1"], "not both"),
        (["trigger", "", "1"], "the id of a task has 1 to 256 characters"),
        (["trigger", "count", "{"], "the payload is not JSON"),
        (["trigger", "count", "hello"], "text needs quotes"),
        (["trigger", "count", "1", "--metadata", "[]"], "--metadata is not a JSON object"),
        (["trigger", "count", "1", "--metadata", "{"], "--metadata is not JSON"),
        (["runs", "get", "run_nothing"], "run_nothing"),
        (["runs", "watch", "run_nothing"], "run_nothing"),
        (["runs", "list", "--status", "SLEEPING"], "SLEEPING"),
        (["runs", "list", "--metadata", "[]"], "--metadata is not a JSON object"),
        (["runs", "list", "--metadata", '{"a": {"$near": 1}}'], "'$near' is no operator"),
    ],
)
def test_mistakes_are_said_in_one_line(
    dev: House, run: Callable[..., tuple[str, str]], arguments: list[str], words: str
) -> None:
    _, errors = run(*arguments, code=1)
    assert words in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


def test_without_a_server_the_way_to_one_is_said(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    _, errors = run("runs", "list", code=1, folder=tmp_path)
    assert "milepost dev" in errors
    assert len(errors.splitlines()) == 1


def test_a_server_needs_a_key(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    _, errors = run("server", "--port", "0", code=1, folder=tmp_path)
    assert "MILEPOST_SECRET_KEY is not set" in errors


def test_upgrading_the_database(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    _, errors = run("db", "upgrade", "--data", str(tmp_path / "data"))
    assert (tmp_path / "data" / "milepost.db").exists()
    assert "has the schema of Milepost" in errors


@pytest.mark.parametrize(
    "arguments",
    [[], ["dev"], ["worker"], ["server"], ["demo"], ["trigger"], ["runs"], ["runs", "list"], ["db"]],
)
def test_every_command_explains_itself(run: Callable[..., tuple[str, str]], arguments: list[str]) -> None:
    output, _ = run(*arguments, "--help")
    assert "Usage: " in output


def test_a_run_that_nobody_can_take_says_so(
    dev: House, run: Callable[..., tuple[str, str]], command: Callable[..., Command], tmp_path: Path
) -> None:
    """Triggered before any worker has offered its task; then a worker comes, and goes again."""
    out, told = run("trigger", "late")
    run_id = out.strip()
    assert "no worker has ever offered a task 'late': check the id" in told
    assert "queued    no worker has ever offered a task 'late'" in run("runs", "get", run_id)[0]
    watching = command("runs", "watch", run_id, folder=dev.folder)
    watching.says("the run stays queued: no worker has ever offered a task 'late'")
    write_tasks(tmp_path / "late.py", "@task\ndef late() -> str:\n    return 'here'\n")
    worker = command("worker", str(tmp_path / "late.py"), "--processes", "1", folder=dev.folder)
    assert watching.process.wait(60) == 0
    assert "output: here" in watching.rest()
    worker.end()
    out, told = run("trigger", "late")
    assert "no worker that offers task 'late' is online: start one" in told
    assert "no worker that offers" in run("runs", "get", out.strip())[0]
