"""Loading the user's tasks: Python files, folders and module names become imported modules.

A file is imported under the name that the user's own code would import it by, so that `from tasks import handle_row` elsewhere
means the same module and the same task.
"""

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


class TaskLoadError(Exception):
    """The user's tasks cannot be loaded. The message is for the user: it names the file, the line and the error.

    Attributes:
        files: the files in which the error lies; a change of one of them may mend it.
    """

    def __init__(self, message: str, files: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.files = list(files)


# The folders in which user code has its module names.
_roots: set[Path] = set()


def load(sources: Sequence[str]) -> list[ModuleType]:
    """Import every module that the sources name, in order.

    Args:
        sources: paths of Python files, paths of folders (searched for Python files) and names of modules (a package with all
            that is in it).

    Raises: TaskLoadError, which names the file and line in the user's code.
    """
    _make_importable(Path.cwd())
    modules: list[ModuleType] = []
    for source in sources:
        modules.extend(_load_one(source))
    return modules


def check_sources(sources: Iterable[str]) -> None:
    """See that files and folders exist, without importing anything.

    Raises: TaskLoadError.
    """
    for source in sources:
        path = Path(source)
        looks_like_path = path.suffix == ".py" or "/" in source or path.name in {".", ".."}
        if looks_like_path and not path.exists():
            raise TaskLoadError(f"{source}: there is no such file or folder")
        if path.is_file() and path.suffix != ".py":
            raise TaskLoadError(
                f"{source} is not a Python file; give files that end in .py, folders or module names"
            )


def user_files() -> list[Path]:
    """The files of the user's code that are imported now: a change of one of them means that the tasks may have changed."""
    files: set[Path] = set()
    # A copy: another thread may import while this one looks.
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file)
        if SKIPPED_FOLDERS.isdisjoint(path.parts) and any(root in path.parents for root in _roots):
            files.add(path)
    return sorted(files)


def explain(error: BaseException) -> str:
    """An error of the user's code in the words of Python, with the frames of this program and of the import machinery left out."""
    summary = traceback.TracebackException.from_exception(error)
    summary.stack = traceback.StackSummary.from_list(
        [frame for frame in summary.stack if _is_users(frame.filename)]
    )
    return "".join(summary.format()).rstrip()


def _is_users(filename: str) -> bool:
    ours = str(Path(__file__).parent.parent)
    return not filename.startswith(("<frozen", ours)) and filename != importlib.__file__


def _load_one(source: str) -> Iterator[ModuleType]:
    check_sources([source])
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file for file in path.resolve().rglob("*.py") if _is_wanted(file.relative_to(path.resolve()))
        )
        if not files:
            raise TaskLoadError(f"{source}: there is no Python file in this folder")
        for file in files:
            yield _import_file(file, folder=path.resolve())
    elif path.is_file():
        yield _import_file(path.resolve(), folder=path.resolve().parent)
    else:
        module = _import_name(source)
        yield module
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
            if not found.name.endswith(".__main__"):
                yield _import_name(found.name)


def _is_wanted(relative: Path) -> bool:
    return relative.name != "__main__.py" and not any(
        part.startswith(".") or part in SKIPPED_FOLDERS for part in relative.parts
    )


def _root_of(file: Path) -> Path:
    """The folder that the file's module name starts from: the first one above it that is not a package."""
    folder = file.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _make_importable(root: Path) -> None:
    _roots.add(root)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _import_file(file: Path, folder: Path) -> ModuleType:
    """Import a file by its natural name; `folder` is where names start for files that lie in no package."""
    root = _root_of(file)
    if root.is_relative_to(folder):
        root = folder
    _make_importable(root)
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__ or "").resolve() == file:
        return known
    taken = known is not None or not all(part.isidentifier() for part in parts)
    return _import_as(f"milepost_tasks_{name}", file) if taken else _import_name(name, file)


def _import_name(name: str, file: Path | None = None) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise TaskLoadError(f"{name}: there is no such Python file, folder or module") from error
        raise _failed(name, error) from error
    except (
        BaseException
    ) as error:  # whatever a module does when imported, sys.exit() included, is an error to show
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _failed(name, error) from error
    if file is not None and Path(module.__file__ or "").resolve() != file:
        # Another module of this name came first on the path, of the standard library for example.
        return _import_as(f"milepost_tasks_{name}", file)
    return module


def _import_as(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # as in _import_name
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _failed(str(file), error) from error
    return module


def _failed(name: str, error: BaseException) -> TaskLoadError:
    frames = traceback.extract_tb(error.__traceback__)
    files = {frame.filename for frame in frames if _is_users(frame.filename)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    return TaskLoadError(f"{name} cannot be loaded:\n{explain(error)}", files)
