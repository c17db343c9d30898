"""The tasks of this process by id: how workers find them, and how a trigger by name knows what it triggers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from milepost.errors import UsageError

if TYPE_CHECKING:
    from milepost.sdk.task import Task

_tasks: dict[str, Task[Any, Any]] = {}


def registered_tasks() -> dict[str, Task[Any, Any]]:
    """The tasks of this process by id, a new dict."""
    return dict(_tasks)


def find_task(task_id: str) -> Task[Any, Any] | None:
    """The task of this id, if its module was imported in this process."""
    return _tasks.get(task_id)


def register(new: Task[Any, Any]) -> None:
    """Make a task known. The same function imported again takes its own place. Raises UsageError for an id that another one has."""
    known = _tasks.get(new.id)
    if known is not None and not _is_same_function(known.function, new.function):
        raise UsageError(
            f"two tasks have the id {new.id!r}: {_place_of(known.function)} and {_place_of(new.function)}; "
            f'give one of them another with @task(id="...")'
        )
    _tasks[new.id] = new


def _is_same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """The same source imported again: after a reload, or as `__main__` and by its name."""
    one, other = inspect.unwrap(one), inspect.unwrap(other)
    if getattr(one, "__qualname__", None) != getattr(other, "__qualname__", None):
        return False
    return (
        getattr(one, "__module__", "") == getattr(other, "__module__", "")
        or _file_of(one) == _file_of(other) != ""
    )


def _file_of(function: Callable[..., Any]) -> str:
    return getattr(getattr(function, "__code__", None), "co_filename", "")


def _place_of(function: Callable[..., Any]) -> str:
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    name = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', inner)}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name
