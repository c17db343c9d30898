"""Loading tasks: files, folders and modules under their natural names, and errors that name the user's line."""

import subprocess
import sys
from pathlib import Path

import pytest

from milepost.worker.loader import TaskLoadError, check_sources


def load(folder: Path, *sources: str) -> list[str]:
    """Load in a process of its own, and say the modules' names; the error's text raises."""
    code = (
        "import sys\nfrom milepost.worker import loader\n"
        "try:\n    print(*(m.__name__ for m in loader.load(sys.argv[1:])))\n"
        "except loader.TaskLoadError as e:\n    print(e, *e.files, sep='\\n', file=sys.stderr)\n    sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sources],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise TaskLoadError(done.stderr)
    return done.stdout.split()


def test_a_file_has_its_natural_name(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("import jobs\nassert jobs.__name__ == 'jobs'\n")
    assert load(tmp_path, "jobs.py") == ["jobs"]
    assert load(tmp_path.parent, str(tmp_path / "jobs.py")) == ["jobs"]


def test_a_file_in_a_package_has_a_dotted_name(tmp_path: Path) -> None:
    package = tmp_path / "app" / "jobs"
    package.mkdir(parents=True)
    (tmp_path / "app" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "mail.py").write_text("from . import shared\n")
    (package / "shared.py").touch()
    assert load(tmp_path, "app/jobs/mail.py") == ["app.jobs.mail"]
    assert load(tmp_path, "app.jobs") == ["app.jobs", "app.jobs.mail", "app.jobs.shared"]
    assert load(tmp_path, "app") == ["app", "app.jobs", "app.jobs.mail", "app.jobs.shared"]


def test_a_folder_brings_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    (folder / "deep").mkdir(parents=True)
    (folder / ".venv").mkdir()
    (folder / "a.py").touch()
    (folder / "deep" / "b.py").touch()
    (folder / ".venv" / "c.py").write_text("1/0")
    assert load(tmp_path, "jobs") == ["a", "deep.b"]


def test_names_that_others_have_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "traceback.py").write_text("import traceback\nassert traceback.format_exc\n")
    (tmp_path / "my-tasks.py").touch()
    assert load(tmp_path, "my-tasks.py") == ["milepost_tasks_my-tasks"]
    assert load(tmp_path.parent, str(tmp_path / "other" / "traceback.py")) == ["milepost_tasks_traceback"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import milepost_no_such_module\n", ["jobs.py", "line 1", "milepost_no_such_module"]),
        ("x = 1\n\ndef f(:\n    pass\n", ["jobs.py", "line 3", "SyntaxError"]),
        ("x = 1\nraise ValueError('no luck')\n", ["jobs.py", "line 2", "ValueError: no luck"]),
        ("import sys\nsys.exit(5)\n", ["jobs.py", "line 2", "SystemExit"]),
        ("raise KeyError('x')\n", ["jobs.py", "KeyError"]),
    ],
)
def test_errors_name_the_users_line(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "jobs.py").write_text(content)
    with pytest.raises(TaskLoadError) as caught:
        load(tmp_path, "jobs.py")
    for word in words:
        assert word in str(caught.value)
    assert "importlib" not in str(caught.value)
    assert "loader.py" not in str(caught.value)


def test_an_error_in_an_imported_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("def f(:\n")
    with pytest.raises(TaskLoadError) as caught:
        load(tmp_path, "jobs.py")
    assert str(tmp_path / "helper.py") in str(caught.value).splitlines(), "it is among the files to watch"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TaskLoadError, match=r"nothing\.py: there is no such file"):
        check_sources([str(tmp_path / "nothing.py")])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TaskLoadError, match="is not a Python file"):
        check_sources([str(tmp_path / "notes.txt")])
    with pytest.raises(TaskLoadError, match=r"no\.such\.module: there is no such"):
        load(tmp_path, "no.such.module")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskLoadError, match="no Python file in this folder"):
        load(tmp_path, "empty/")
