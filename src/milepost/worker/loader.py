"""Loading the user's tasks: Python files, folders and module names become imported modules.

A file is imported under the name that the user's own code would import it by, so that `from tasks import handle_row` elsewhere
means the same module and the same task. Of several files with one name the first has it; each of the others gets one of its own,
and finds the files beside it first, as if it were run from its folder.
"""

import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
# Files whose natural name another one has, by the names that were made for them; each name begins in one folder.
_aliases: dict[str, tuple[Path, str]] = {}
# What lies in a folder, by the names of modules.
_siblings: dict[Path, set[str]] = {}
# By folder, the modules whose names in `sys.modules` have gone back to those from another folder that had them first.
_displaced: dict[Path, dict[str, ModuleType]] = {}


def load(sources: Sequence[str]) -> list[ModuleType]:
    """Import every module that the sources name, in order.

    Args:
        sources: paths of Python files, paths of folders (searched for Python files) and names of modules (a package with all
            that is in it).

    Raises: TaskLoadError, which names the file and line in the user's code.
    """
    # Only here: a supervisor looks at the sources, and loads nothing of what they need.
    from milepost.sdk.registry import refusing_repeats

    _make_importable(Path.cwd())
    modules: list[ModuleType] = []
    with refusing_repeats():
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
    # A copy: another thread may import while this one looks.
    found = {_user_file(module) for module in list(sys.modules.values())}
    found.update(_user_file(module) for modules in _displaced.values() for module in modules.values())
    return sorted(file for file in found if file is not None)


def explain(error: BaseException) -> str:
    """An error of the user's code in the words of Python, with the frames of this program and of the import machinery left out."""
    summary = traceback.TracebackException.from_exception(error)
    summary.stack = traceback.StackSummary.from_list(
        [frame for frame in summary.stack if _is_users(frame.filename)]
    )
    return "".join(summary.format()).rstrip()


def _user_file(module: ModuleType) -> Path | None:
    """The file of a module of the user's; None for every other module."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    # A path takes long to make, for hundreds of modules: most are told apart by their text.
    parts = file.split(os.sep)  # noqa: PTH206
    if not SKIPPED_FOLDERS.isdisjoint(parts) or not any(root.name in file for root in _roots):
        return None
    path = Path(file)
    return path if any(root in path.parents for root in _roots) else None


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
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    name = ".".join(parts)
    if _is_file_of(sys.modules.get(name), file):
        return sys.modules[name]
    with _siblings_first(root) as hidden:
        if _is_file_of(sys.modules.get(name), file):
            return sys.modules[name]
        if name not in hidden and name not in sys.modules and all(part.isidentifier() for part in parts):
            module = _import_name(name)
            if _is_file_of(module, file):
                return module
            # Another module of this name came first, of the standard library for example.
        return _import_by_alias(file, root, parts)


def _is_file_of(module: ModuleType | None, file: Path) -> bool:
    return module is not None and Path(module.__file__ or "").resolve() == file


@contextmanager
def _siblings_first(root: Path) -> Generator[dict[str, ModuleType]]:
    """While a file of this folder is imported, its siblings come before modules of the same names from other folders of the user.

    Gives the modules that are hidden meanwhile; afterwards they have their names again. What is imported only later, inside of a
    function, finds them and not the siblings.
    """
    if root not in _siblings:
        _siblings[root] = {
            path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
    tops = {
        name
        for name in _siblings[root] & sys.modules.keys()
        if (file := _user_file(sys.modules[name])) is not None
        and file not in (root / f"{name}.py", root / name / "__init__.py")
    }
    hidden = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in tops}
    for name in hidden:
        del sys.modules[name]
    displaced = _displaced.setdefault(root, {})
    sys.modules.update(displaced)
    sys.path.insert(0, str(root))
    try:
        yield hidden
    finally:
        with suppress(ValueError):
            sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            displaced[name] = sys.modules.pop(name)
        sys.modules.update(hidden)


def _import_by_alias(file: Path, root: Path, parts: Sequence[str]) -> ModuleType:
    """Import a file under a name that nobody else has. In a package it is the package's name that is replaced, so that relative
    imports work."""
    top, rest = parts[0], parts[1:]
    alias = _alias_of(root, top)
    if not rest:
        return _import_as(alias, file, stands_in_for=top)
    if alias not in sys.modules:
        init = root / top / "__init__.py"
        if init.exists():
            _import_as(alias, init, stands_in_for=None)
        else:
            folder = ModuleType(alias)
            folder.__path__ = [str(root / top)]
            sys.modules[alias] = folder
    return _import_name(".".join([alias, *rest]), str(file))


def _alias_of(root: Path, top: str) -> str:
    base = f"milepost_tasks_{top.replace('.', '_')}"
    number = 1
    while True:
        alias = base if number == 1 else f"{base}_{number}"
        if _aliases.setdefault(alias, (root, top)) == (root, top):
            return alias
        number += 1


def _import_name(name: str, shown: str | None = None) -> ModuleType:
    return _import(lambda: importlib.import_module(name), name, shown or name)


def _import_as(name: str, file: Path, *, stands_in_for: str | None) -> ModuleType:
    """Import a file under a given name. For its siblings it has its natural name as well, where that is free."""
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if stands_in_for is not None:
        sys.modules.setdefault(stands_in_for, module)

    def execute() -> ModuleType:
        assert spec.loader is not None, file
        try:
            spec.loader.exec_module(module)
        except BaseException:
            for each in (name, stands_in_for):
                if each is not None and sys.modules.get(each) is module:
                    del sys.modules[each]
            raise
        return module

    return _import(execute, name, str(file))


def _import(execute: Callable[[], ModuleType], name: str, shown: str) -> ModuleType:
    """Import something. Raises TaskLoadError for whatever the user's code raises, sys.exit() included."""
    try:
        return execute()
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise TaskLoadError(f"{shown}: there is no such Python file, folder or module") from error
        raise _failed(shown, error) from error
    except BaseException as error:
        raise _failed(shown, error) from error


def _failed(name: str, error: BaseException) -> TaskLoadError:
    frames = traceback.extract_tb(error.__traceback__)
    files = {frame.filename for frame in frames if _is_users(frame.filename)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    return TaskLoadError(f"{name} cannot be loaded:\n{explain(error)}", files)
