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


def ask(folder: Path, code: str, *sources: str) -> list[str]:
    """Load in a process of its own, run this code there, and say what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom milepost.worker import loader\n"
         "modules = loader.load(sys.argv[1:])\n" + code, *sources],
        cwd=folder, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


WHERE = "print(*(module.WHERE for module in modules))\n"


def test_files_of_one_name_are_all_loaded(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.py").write_text(f"WHERE = {name!r}\ndef work(): ...\n")
    files = [f"{name}/tasks.py" for name in "abcd"]
    names = ["tasks", "milepost_tasks_tasks", "milepost_tasks_tasks_2", "milepost_tasks_tasks_3"]
    assert load(tmp_path, *files) == names
    assert load(tmp_path, *"abcd") == names
    assert load(tmp_path, "a/tasks.py", "b", "b/tasks.py", "a") == [*names[:2], *reversed(names[:2])]
    pickled = "import pickle\nfor m in modules: assert pickle.loads(pickle.dumps(m.work)) is m.work\n"
    assert ask(tmp_path, WHERE + pickled + "print(*map(str, loader.user_files()))", *files) == [
        "a b c d",
        " ".join(str(tmp_path / file) for file in files),
    ]


def test_files_of_one_name_find_what_lies_beside_them(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.py").write_text("from helper import WHERE\nimport shared\n")
        (tmp_path / name / "helper.py").write_text(
            f"import sys, tasks\nassert tasks.__file__ == {str(tmp_path / name / 'tasks.py')!r}\nWHERE = {name!r}\n"
        )
    (tmp_path / "shared.py").write_text("print('shared')\n")
    # The name of the first one, and what it found, stay as they were.
    kept = "import helper, tasks\nprint(helper.WHERE, tasks is modules[0])\n"
    files = [f"{name}/tasks.py" for name in "abc"]
    assert ask(tmp_path, WHERE + kept, *files) == ["shared", "a b c", "a True"]
    helpers = "print(sum('helper' in str(file) for file in loader.user_files()))"
    assert ask(tmp_path, helpers, *files) == ["shared", "3"], "each of them is watched"


def test_differently_named_files_find_what_lies_beside_them_too(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"tasks_{name}.py").write_text(
            "from helper import WHERE\nfrom z_helper import Z\n"
        )
        (tmp_path / name / "helper.py").write_text(f"WHERE = {name!r}\nprint('once', WHERE)\n")
        (tmp_path / name / "z_helper.py").write_text(f"WHERE = Z = {name!r}\nprint('z once', Z)\n")
    lines = ask(tmp_path, WHERE, *"abc")
    assert lines == ["once a", "z once a", "once b", "z once b", "once c", "z once c", "a a a b b b c c c"]


def test_packages_of_one_name_are_all_loaded(tmp_path: Path) -> None:
    for name in "abc":
        package = tmp_path / name / "app" / "jobs"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "tasks.py").write_text(
            "from ..where import WHERE\nfrom . import helper\nimport app.where\nassert app.where.WHERE == WHERE\n"
            "def later():\n    from ..where import WHERE\n    return WHERE\n"
        )
        (package / "helper.py").touch()
        (package.parent / "where.py").write_text(f"WHERE = {name!r}\n")
    files = [f"{name}/app/jobs/tasks.py" for name in "abc"]
    later = "print(*(module.later() for module in modules), *(module.__name__ for module in modules))\n"
    names = ["app.jobs.tasks", "milepost_tasks_app.jobs.tasks", "milepost_tasks_app_2.jobs.tasks"]
    assert ask(tmp_path, WHERE + later, *files) == ["a b c", "a b c " + " ".join(names)]


def test_an_error_in_a_file_whose_name_is_taken_names_the_file(tmp_path: Path) -> None:
    for name, content in (
        ("a", "x = 1\n"),
        ("b", "raise ValueError('no luck')\n"),
        ("c", "import no_such\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.py").write_text(content)
    for name, words in (("b", "no luck"), ("c", "no_such")):
        with pytest.raises(TaskLoadError, match=words) as caught:
            load(tmp_path, "a", name)
        assert f"{name}/tasks.py" in str(caught.value)


def test_a_factory_that_makes_two_tasks_of_one_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "factory.py").write_text(
        "from milepost import task\ndef make(region):\n    @task\n    def work(): return region\n    return work\n"
    )
    (tmp_path / "jobs.py").write_text("from factory import make\neu = make('eu')\n\nus = make('us')\n")
    with pytest.raises(TaskLoadError) as caught:
        load(tmp_path, "jobs.py")
    for words in (
        "two tasks have the id 'work'",
        "factory.make.<locals>.work",
        "jobs.py:2",
        "jobs.py:4",
        '@task(id="...")',
    ):
        assert words in str(caught.value)
    (tmp_path / "jobs.py").write_text("import factory\nfor region in ('eu', 'us'): factory.make(region)\n")
    with pytest.raises(TaskLoadError, match="is made twice, by a loop"):
        load(tmp_path, "jobs.py")


def test_a_file_that_is_imported_under_two_names_has_one_task(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(
        "from milepost import task\ndef make(name):\n    @task(id=name)\n    def work(): ...\nmake('eu')\nmake('us')\n"
        "@task\ndef own(): ...\n"
    )
    (package / "other.py").write_text("import sys\nsys.path.insert(0, 'app')\nimport tasks\n")
    assert load(tmp_path, "app") == ["app", "app.other", "app.tasks"]
