"""The package as others install it: a wheel in an environment that has nothing else, away from the checkout."""

import json
import os
import re
import shlex
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TASKS = """
from milepost import metadata, task

@task
def count(steps: int) -> int:
    for step in metadata.track(range(steps)):
        metadata.append("steps", step)
    return steps
"""
CALLER = """
from tasks import count

handle = count.trigger(3)
for run in handle.subscribe():
    pass
print(run.status, run.output, run.metadata)
"""
# Nothing of the environment that runs the tests.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MILEPOST_", "PYTHON", "VIRTUAL_ENV", "PYTEST"))
}


def run(*command: str | Path, folder: Path, seconds: float = 500) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(
        command, cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the README's way to a wheel: its `environment` has the wheel and what that asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "environment", with_pip=True)
    block = next(text for text in BLOCKS if text.startswith("pip wheel"))
    for line in block.splitlines():
        program, *arguments = shlex.split(line.replace("path/to/checkout", str(ROOT)))
        assert program == "pip"
        run(folder / "environment" / "bin" / "python", "-m", "pip", "--quiet", *arguments, folder=folder)
    return folder


@pytest.mark.timeout(900)
def test_a_wheel_has_all_that_is_needed(clean: Path) -> None:
    [wheel] = clean.glob("milepost-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "milepost").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


@pytest.mark.timeout(900)
def test_a_wheel_in_a_clean_environment_runs_a_task(clean: Path, tmp_path: Path) -> None:
    installed = clean / "environment" / "bin"
    assert run(installed / "milepost", "--version", folder=tmp_path).startswith("milepost ")
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "caller.py").write_text(CALLER)
    with subprocess.Popen(
        [installed / "milepost", "dev", "tasks.py", "--port", "0", "--json"],
        cwd=tmp_path,
        env=CLEAN,
        stdout=subprocess.PIPE,
        text=True,
    ) as dev:
        try:
            assert dev.stdout is not None
            ready = json.loads(dev.stdout.readline())
            told = run(installed / "python", "caller.py", folder=tmp_path)
            page = run(
                installed / "python", "-c", f"from urllib.request import urlopen; print(urlopen({ready['dashboard']!r}).read())",
                folder=tmp_path,
            )  # fmt: skip
        finally:
            dev.terminate()
        assert dev.wait(30) == 0
    assert told.strip() == "COMPLETED 3 {'progress': {'done': 3, 'total': 3}, 'steps': [0, 1, 2]}"
    assert "<title>" in page
