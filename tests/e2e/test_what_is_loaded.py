"""What each process loads: a module that is not used costs every start its time and every process its memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_processes import House

from support.old_databases import set_back

SERVER = {"alembic", "jinja2", "prometheus_client", "sqlalchemy", "starlette", "uvicorn"}
SERVER |= {f"milepost.{part}" for part in ("engine", "feed", "reading", "server", "store", "upkeep")}
COMMAND_LINE = {"milepost.cli", "click", "rich", "watchfiles"}
# What takes a while to load, and what only some need.
HEAVY = {
    "aiohttp",
    "jsonschema_rs",
    "pydantic",
    "pydantic_settings",
    "typer",
    "urllib3",
    "cronsim",
    "zoneinfo",
}
# Pydantic loads the second. With it Milepost checks what passes an annotation.
OF_PYDANTIC = {"pydantic", "zoneinfo"}
TASKS = """\
import sys
from milepost import task

@task
def loaded():
    return sorted(sys.modules)

@task
async def loaded_on_the_loop():
    return sorted(sys.modules)

@task
def square(number: int) -> int:
    return number * number

@task
def total(numbers: list[int]) -> int:
    return sum(numbers)
"""
# Says what is loaded when the code has ended, whatever ended it.
TELLER = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
"""


def loaded_by(code: str, folder: Path, **env: str) -> set[str]:
    """The modules that a new Python has loaded after this code."""
    # Neither settings nor the width of a terminal, which a library sets in the processes of parallel tests.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MILEPOST_") and name not in ("COLUMNS", "LINES")
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", TELLER + code],
        cwd=folder,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*arguments: str) -> str:
    """The code that the script `milepost` is."""
    return f"sys.argv = {['milepost', *arguments]!r}\nfrom milepost.cli.main import main\nmain()\n"


def test_the_package_alone_loads_nothing(tmp_path: Path) -> None:
    loaded = loaded_by("import milepost", tmp_path)
    assert loaded & (SERVER | COMMAND_LINE | HEAVY | {"asyncio", "msgspec"}) == set()
    assert [name for name in loaded if name.startswith("milepost.")] == []


def test_a_module_of_tasks_loads_no_client_and_no_server(tmp_path: Path) -> None:
    loaded = loaded_by("from milepost import Context, metadata, task\n@task\ndef work(): ...", tmp_path)
    assert loaded & (SERVER | COMMAND_LINE | HEAVY | {"milepost.worker"}) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["worker", "--help"], ["runs", "--help"], ["runs", "list", "--help"]],
)
def test_what_asks_nobody_loads_no_client(arguments: list[str], tmp_path: Path) -> None:
    loaded = loaded_by(command(*arguments), tmp_path)
    assert (
        loaded & (SERVER | HEAVY | {"asyncio", "milepost.client", "milepost.sdk", "msgspec", "rich"}) == set()
    )


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--version"], set[str]()),
        (["worker", "--help"], {"options", "running"}),
        (["runs", "list", "--help"], {"options", "runs"}),
        (["trigger", "--help"], {"asking", "options"}),
        (["metadata", "get", "--help"], {"metadata", "options"}),
    ],
)
def test_a_command_loads_its_own_module_and_no_other(
    arguments: list[str], modules: set[str], tmp_path: Path
) -> None:
    prefix = "milepost.cli.commands."
    loaded = loaded_by(command(*arguments), tmp_path)
    assert {name.removeprefix(prefix) for name in loaded if name.startswith(prefix)} == modules


def test_a_supervisor_loads_nothing_of_what_tasks_need(tmp_path: Path) -> None:
    loaded = loaded_by(
        "import milepost.cli.commands.running, milepost.cli.settings, milepost.cli.working", tmp_path
    )
    unwanted = {"rich", "watchfiles", "milepost.protocol", "milepost.sdk.scope", "milepost.sdk.task"}
    # To make a file without a name, where the system has nothing better.
    unwanted |= {"tempfile"} if sys.platform == "linux" else set()
    assert loaded & (SERVER | HEAVY | unwanted) == set()


def test_an_executor_loads_what_it_runs(house: Callable[..., House], tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(TASKS)
    dev = house(None, "--processes", "1")
    for task_id in ("loaded", "loaded_on_the_loop"):
        loaded = set(dev.run(task_id).output)
        assert "milepost.worker.executor" in loaded
        assert loaded & (SERVER | COMMAND_LINE | HEAVY) - OF_PYDANTIC == set()
    assert "pydantic" in loaded, "`total` is described with its types"
    assert dev.end() == 0


def test_with_plain_annotations_no_pydantic_and_what_asks_a_server_loads_no_worker_and_draws_nothing(
    house: Callable[..., House], tmp_path: Path
) -> None:
    (tmp_path / "jobs.py").write_text(TASKS.partition("@task\ndef total")[0])
    dev = house(None, "--processes", "1")
    assert dev.run("square", 7).output == 49
    assert "pydantic" not in dev.run("loaded").output
    environment = {"MILEPOST_API_URL": dev.url, "MILEPOST_SECRET_KEY": dev.secret_key}
    run_id = dev.run("loaded").id
    for arguments in (
        ["runs", "list"],
        ["trigger", "loaded"],
        ["metadata", "current", "--run", run_id],
        ["runs", "logs", run_id],
        ["tasks"],
        ["queues", "list"],
        ["schedules", "list"],
    ):
        loaded = loaded_by(command(*arguments), dev.folder, **environment)
        assert loaded & (SERVER | HEAVY | {"asyncio", "rich", "milepost.sdk", "milepost.worker"}) == set(), (
            arguments
        )
    assert dev.end() == 0


def test_a_server_whose_database_is_new_or_ready_loads_no_migrations(tmp_path: Path) -> None:
    code = "from pathlib import Path\nfrom milepost.store.database import Store\nStore(Path({!r})).close()\n"
    assert "alembic" not in loaded_by(code.format("m.db"), tmp_path)
    assert "alembic" not in loaded_by(code.format("m.db"), tmp_path)
    set_back(tmp_path / "old.db", "0001").dispose()
    assert "alembic" in loaded_by(code.format("old.db"), tmp_path)


def test_a_server_loads_no_dashboard_and_no_metrics_before_somebody_asks(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from milepost.server.app import Server\n"
        "from milepost.server.settings import load_settings\n"
        "Server(load_settings(data_folder=Path('data'), secret_key='x' * 40))\n"
    )
    loaded = loaded_by(code, tmp_path)
    assert {"starlette", "sqlalchemy"} <= loaded
    assert loaded & {"alembic", "jinja2", "prometheus_client"} == set()
