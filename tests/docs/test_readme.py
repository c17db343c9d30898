"""Every command and snippet of the README, run as a newcomer would."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text.strip() for language, text in BLOCKS if language == "sh"]


def milepost(*arguments: str) -> list[str]:
    """The installed command, as `milepost ...` on the PATH of the test's own environment."""
    return [str(Path(sys.executable).parent / "milepost"), *arguments]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the README's tasks.py and `milepost dev tasks.py` running in it, ready."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "tasks.py").write_text("\n".join((PYTHON[0], PYTHON[3], PYTHON[5])))
    command = next(text for text in SHELL if text.startswith("milepost dev"))
    server = subprocess.Popen(
        [*milepost(*command.split()[1:]), "--port", "0", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    ready = json.loads(server.stdout.readline())
    assert set(ready) == {"url", "secret_key", "dashboard"}
    yield folder
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0
    server.stdout.close()


def run(command: list[str], folder: Path, seconds: float = 60) -> str:
    """Run a command to its end; what it printed."""
    # As outside of tests.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "PYTEST_"))
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_the_snippets_that_are_tested_here() -> None:
    """A new snippet needs a test of its own."""
    assert len(PYTHON) == 7
    assert [text.split()[:2] for text in SHELL] == [
        ["make", "demo"],
        ["make", "test"],
        ["pip", "install"],
        ["pip", "wheel"],
        ["milepost", "dev"],
        ["milepost", "trigger"],
    ]


def test_the_example_is_short() -> None:
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) <= 20


def test_trigger_and_watch_from_python(project: Path) -> None:
    (project / "watch.py").write_text(PYTHON[1] + "\nprint(run.output, run.metadata)\n")
    lines = run([sys.executable, "watch.py"], project).splitlines()
    assert lines[-2].startswith("COMPLETED 3 of 3")
    assert lines[-1].startswith("3 {'user': 'user_1234'")


def test_find_runs_and_read_their_history(project: Path) -> None:
    run([sys.executable, "-c", PYTHON[1]], project)
    lines = run([sys.executable, "-c", PYTHON[2]], project).splitlines()
    found = [line for line in lines if re.match(r"run_\w+ COMPLETED \['\w+', '\w+', '\w+'\]$", line)]
    assert found
    assert any(line.startswith("1 20") and "Set(key='total', value=3)" in line for line in lines)


def test_a_stream_is_read(project: Path) -> None:
    begin = "from tasks import answer\nhandle = answer.trigger()\n"
    shown = run([sys.executable, "-c", f"{begin}{PYTHON[4]}\nprint(handle.result(30).unwrap())"], project)
    assert shown == "The moon is far.The moon is far.\n"


def test_a_run_is_delayed_and_cancelled(project: Path) -> None:
    end = "print(runs.retrieve(handle.id).status)\n"
    assert (
        run([sys.executable, "-c", f"from tasks import send_mail\n{PYTHON[6]}{end}"], project) == "CANCELED\n"
    )


def test_delivery_as_it_is_written_down(project: Path) -> None:
    """The snippet about writers from outside, on a run that is there."""
    text = (ROOT / "docs" / "delivery.md").read_text()
    outside = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".send(" in block
    )
    begin = "from tasks import import_people\nrun_id = import_people.trigger(['Ada']).id\n"
    end = "print(runs.retrieve(run_id).metadata)\n"
    shown = run([sys.executable, "-c", f"{begin}{outside}{end}"], project)
    assert "'approved': True" in shown
    assert "'owner': 'ada'" in shown or "somebody was faster" in shown


def test_settings_that_are_written_down_exist() -> None:
    """A setting that a document names is one that the code reads."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for document in (README, (ROOT / "docs" / "delivery.md").read_text()):
        for name in set(re.findall(r"MILEPOST_[A-Z_]+", document)):
            assert name in source or name.removeprefix("MILEPOST_").lower() in source, name


def test_trigger_and_watch_from_the_terminal(project: Path) -> None:
    command = next(text for text in SHELL if text.startswith("milepost trigger"))
    payload = re.search(r"'(.*)'", command)
    assert payload is not None
    output = run(milepost("trigger", "import_people", payload[1], "--watch"), project)
    assert "COMPLETED" in output


def test_make_demo() -> None:
    """The demo as it is, 10,000 rows, checks its own totals and says so by its exit code."""
    output = run(["make", "demo"], ROOT, seconds=110)
    assert "10,000" in output
    assert "runs per second" in output


def test_make_demo_with_a_file_of_ones_own(tmp_path: Path) -> None:
    """Columns as in the demo's own file; one broken row is found."""
    people = tmp_path / "people.csv"
    people.write_text("id,name,email,age\n1,Ada,ada@example.com,36\n2,,nobody@example.com,40\n")
    output = run(["make", "demo", f"FILE={people}"], ROOT)
    assert "broken" in output


def test_continuous_integration_runs_the_documented_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_targets_that_are_written_down_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (README, (ROOT / "docs" / "delivery.md").read_text()):
        assert set(re.findall(r"`?make ([a-z]+)", document)) <= targets
