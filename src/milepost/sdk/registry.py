"""The tasks of this process by id: how workers find them, and how a trigger by name knows what it triggers.

An id names one task. What may take the place of a task that has the id already is the same definition again: a module that is
reloaded, a file that is imported under two names, a cell of a notebook that is run once more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol, cast

from milepost.errors import UsageError
from milepost.sdk.schema import MetadataSchema
from milepost.sdk.signature import Signature

_HERE = str(Path(__file__).parent)


class RegisteredTask(Protocol):
    """A task, as far as it has to be known to trigger it (`task.Task`)."""

    @property
    def id(self) -> str:
        """What the task is called on the server."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """The function that was made into a task."""
        ...

    @property
    def signature(self) -> Signature:
        """How the function wants to be called."""
        ...

    @property
    def metadata(self) -> MetadataSchema | None:
        """The declared type of its metadata."""
        ...


@dataclass(frozen=True, eq=False)
class _Definition:
    """Where a task comes from.

    Attributes:
        name: module and qualified name of the function.
        code: the function's code; None for a callable that has none.
        source: the code that was running when the function was made into a task: of the module, or of the function around it. It is
            compiled anew when a module is reloaded or imported under another name, and when a cell of a notebook is run again.
        namespace: the global names of that code.
        line: file and line in it.
        lines: the same of all the calls that led there, innermost first.
    """

    name: str
    code: CodeType | None
    source: CodeType
    namespace: dict[str, Any]
    line: tuple[str, int]
    lines: list[tuple[str, int]]

    @property
    def place(self) -> str:
        """The function, and the line that made a task of it."""
        return f"{self.name} ({self.line[0]}:{self.line[1]})"


@dataclass(frozen=True, eq=False)
class _Entry:
    task: RegisteredTask
    definition: _Definition


_tasks: dict[str, _Entry] = {}
_repeats_are_refused = False


def registered_tasks() -> dict[str, RegisteredTask]:
    """The tasks of this process by id, a new dict."""
    return {task_id: entry.task for task_id, entry in _tasks.items()}


def find_task(task_id: str) -> RegisteredTask | None:
    """The task of this id, if its module was imported in this process."""
    entry = _tasks.get(task_id)
    return None if entry is None else entry.task


@contextmanager
def refusing_repeats() -> Generator[None]:
    """In this block a definition that is reached twice is two tasks: a factory that is called twice makes two functions, and a worker
    would run only the last. Elsewhere it is one task that is made again, as by a test that runs with several parameters."""
    global _repeats_are_refused
    before, _repeats_are_refused = _repeats_are_refused, True
    try:
        yield
    finally:
        _repeats_are_refused = before


def register(new: RegisteredTask) -> None:
    """Make a task known. The same definition again takes its own place.

    Raises: UsageError for an id that another task has; it names both places.
    """
    definition = _definition_of(new.function, inspect.currentframe())
    known = _tasks.get(new.id)
    if known is not None and known.task is not new:
        _refuse_clash(new.id, known.definition, definition)
    _tasks[new.id] = _Entry(new, definition)


def _refuse_clash(task_id: str, known: _Definition, new: _Definition) -> None:
    is_same_execution = known.source is new.source and known.namespace is new.namespace
    if is_same_execution and known.code is new.code and known.line == new.line:
        if _repeats_are_refused:
            raise UsageError(
                f"two tasks have the id {task_id!r}: {new.place} is made twice{_difference(known, new)}; "
                f'give each an id of its own with @task(id="...")'
            )
    elif is_same_execution or not _is_same_definition(known, new):
        raise UsageError(
            f"two tasks have the id {task_id!r}: {known.place} and {new.place}; "
            f'give one of them another with @task(id="...")'
        )


def _is_same_definition(known: _Definition, new: _Definition) -> bool:
    """The same source again, compiled anew: after a reload, as `__main__` and by its name, or in an interactive session."""
    is_same_namespace = known.namespace is new.namespace
    if is_same_namespace and "__file__" not in new.namespace and not _repeats_are_refused:
        # An interactive session: what is defined last counts, as for every other name there.
        return True
    if known.code is None or new.code is None:
        return known.code is new.code and known.name == new.name
    if known.code.co_qualname != new.code.co_qualname:
        return False
    file = new.code.co_filename
    is_same_file = known.code.co_filename == file and not file.startswith("<")
    if _repeats_are_refused:
        return is_same_file and known.code.co_firstlineno == new.code.co_firstlineno
    return is_same_file or is_same_namespace


def _definition_of(function: Callable[..., Any], frame: FrameType | None) -> _Definition:
    inner = inspect.unwrap(function)
    code = _code_of(inner)
    frames: list[FrameType] = []
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith((_HERE, "<frozen importlib")):
            frames.append(frame)
        frame = frame.f_back
    assert frames, "a task is made by somebody"
    # A decorator of the user's around `@task` stands between it and the source that holds the function.
    around = next(
        (each for each in frames if any(constant is code for constant in each.f_code.co_consts)), frames[0]
    )
    lines = [(each.f_code.co_filename, each.f_lineno) for each in frames]
    return _Definition(
        name=f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', inner)}",
        code=code,
        source=around.f_code,
        namespace=around.f_globals,
        line=lines[frames.index(around)],
        lines=lines,
    )


def _code_of(function: Any) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _difference(known: _Definition, new: _Definition) -> str:
    """The two lines at which the ways to one definition part."""
    for one, other in zip(known.lines, new.lines, strict=False):
        if one != other:
            return f", at {one[0]}:{one[1]} and {other[0]}:{other[1]}"
    return ", by a loop for example"
