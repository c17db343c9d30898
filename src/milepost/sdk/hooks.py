"""Lifecycle hooks: functions that run around every attempt, of all tasks (`hooks`) or of one (`@handle_row.on_success`).

A hook is a `def` or an `async def` and names as parameters what it wants, in any order:

    payload   the validated payload (as it arrived, when it was not valid)
    output    what the task returned; on_success only, None elsewhere
    error     the exception; None where there is none
    result    the `TaskResult`; on_success, on_failure, on_cancel and on_complete
    ctx       the `Context`
    run       the same as `ctx.run`
    next      middleware that is no context manager: runs what the middleware wraps

A middleware is a function that makes a context manager, plain or asynchronous: a generator with one `yield`, with or without
`@contextmanager`, or a class with `__enter__`; what it yields is ignored. Or it is a function with a parameter `next`.

When they run: `middleware` around everything else; `on_start_attempt` before each attempt, and after it `on_start` once per run;
`catch_error` after an attempt has failed; `on_success`, or `on_failure` after the last attempt has failed, or `on_cancel` in a run
that was cancelled, and then `on_complete`; `on_wait` and `on_resume` around each wait for other runs. Global hooks come before the
task's own, each in the order of registration. See docs/hooks.md.

What raises in middleware, `on_start_attempt`, `on_start`, `on_wait` and `on_resume` fails the attempt. What raises in the hooks
after the task's own code is written to the run's log and changes nothing. `metadata` works in all of them (M12-M14).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from milepost.errors import UsageError

HookName: TypeAlias = Literal[
    "on_start_attempt",
    "on_start",
    "on_success",
    "on_failure",
    "on_cancel",
    "on_complete",
    "on_wait",
    "on_resume",
    "catch_error",
    "middleware",
]
HOOK_NAMES: tuple[HookName, ...] = get_args(HookName)
HOOK_PARAMETERS = ("payload", "output", "error", "result", "ctx", "run")

HookFunction = TypeVar("HookFunction", bound=Callable[..., Any])


class Hook:
    """One registered function and the parameters that it asks for."""

    __slots__ = ("_named", "function", "is_async", "parameters")

    def __init__(self, name: HookName, function: Callable[..., Any]) -> None:
        self._named = function
        if name == "middleware":
            function = _around(function)
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - whether it is async, not whether it can be called
        )
        known = (*HOOK_PARAMETERS, "next") if name == "middleware" else HOOK_PARAMETERS
        self.parameters: list[str] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name in known and parameter.kind is not parameter.POSITIONAL_ONLY:
                self.parameters.append(parameter.name)
            elif parameter.default is parameter.empty:
                raise UsageError(
                    f"{name} hook {self.name}: unknown parameter {parameter.name!r}; a hook may ask for {', '.join(known)}"
                )
        if name == "middleware" and "next" not in self.parameters:
            form = "`await next()`" if self.is_async else "`next()`"
            raise UsageError(
                f"middleware {self.name} is no context manager: write `yield` where the run goes on, or take a parameter `next` "
                f"and call {form} there"
            )

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self._named, "__qualname__", None) or repr(self._named)

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the function is called with, out of everything that there is."""
        return {name: values.get(name) for name in self.parameters}


class Hooks:
    """A set of hooks: the global one, and one that each task has. The methods are decorators; they return the function."""

    def __init__(self) -> None:
        self._hooks: dict[HookName, list[Hook]] = {}

    def on_start_attempt(self, function: HookFunction) -> HookFunction:
        """Run before each attempt."""
        return self._add("on_start_attempt", function)

    def on_start(self, function: HookFunction) -> HookFunction:
        """Run once per run: in the first attempt whose code begins, whatever number it has."""
        return self._add("on_start", function)

    def on_success(self, function: HookFunction) -> HookFunction:
        """Run after the task has returned."""
        return self._add("on_success", function)

    def on_failure(self, function: HookFunction) -> HookFunction:
        """Run after the run has failed for good; not before a retry."""
        return self._add("on_failure", function)

    def on_cancel(self, function: HookFunction) -> HookFunction:
        """Run when the run was cancelled while its code ran, after that code has ended."""
        return self._add("on_cancel", function)

    def on_complete(self, function: HookFunction) -> HookFunction:
        """Run at the end of the run, whether it succeeded, failed or was cancelled."""
        return self._add("on_complete", function)

    def on_wait(self, function: HookFunction) -> HookFunction:
        """Run before the run waits for other runs."""
        return self._add("on_wait", function)

    def on_resume(self, function: HookFunction) -> HookFunction:
        """Run after such a wait."""
        return self._add("on_resume", function)

    def catch_error(self, function: HookFunction) -> HookFunction:
        """Run after each failed attempt, before it is decided whether to retry.

        It may return an exception, which takes the place of the error: an `AbortTaskRun` means no retry. Or a `Caught`, which can
        also keep the error and skip the retry, or say when it comes.
        """
        return self._add("catch_error", function)

    def middleware(self, function: HookFunction) -> HookFunction:
        """Run around each attempt and its hooks: a context manager, or a function with a parameter `next`.

        `next()`, in an `async def` `await next()`, runs what is inside and raises its error. The first middleware is the outermost.
        What it returns is ignored; a failed attempt stays failed when it swallows the error.
        """
        return self._add("middleware", function)

    def hooks_for(self, name: HookName) -> list[Hook]:
        """The hooks of one name, in the order of registration."""
        return self._hooks.get(name, [])

    @property
    def has_hooks(self) -> bool:
        """True when there is any hook."""
        return bool(self._hooks)

    @property
    def are_plain(self) -> bool:
        """True when no hook is an `async def`, so that none needs an event loop."""
        return not any(hook.is_async for found in self._hooks.values() for hook in found)

    def _add(self, name: HookName, function: HookFunction) -> HookFunction:
        self._hooks.setdefault(name, []).append(Hook(name, function))
        return function


def _around(function: Callable[..., Any]) -> Callable[..., Any]:
    """A middleware that makes a context manager, as one that calls `next`; any other as it is."""
    innermost = inspect.unwrap(function)
    is_wrapped = innermost is not function
    make: Callable[..., Any] = function
    if inspect.isgeneratorfunction(innermost):
        make = function if is_wrapped else contextlib.contextmanager(function)
        is_async = False
    elif inspect.isasyncgenfunction(innermost):
        make = function if is_wrapped else contextlib.asynccontextmanager(function)
        is_async = True
    elif isinstance(function, type) and hasattr(function, "__enter__"):
        is_async = False
    elif isinstance(function, type) and hasattr(function, "__aenter__"):
        is_async = True
    else:
        return function
    around: Callable[..., Any]
    if is_async:

        async def around_async(*, next: Callable[[], Any], **given: Any) -> None:
            async with make(**given):
                await next()

        around = around_async
    else:

        def around_plain(*, next: Callable[[], Any], **given: Any) -> None:
            with make(**given):
                next()

        around = around_plain
    parameters = [
        each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD
    ]
    next_parameter = inspect.Parameter("next", inspect.Parameter.KEYWORD_ONLY)
    around.__signature__ = inspect.Signature([*parameters, next_parameter])  # type: ignore[attr-defined]
    return around


hooks = Hooks()
"""The hooks of every task."""


def has_end_hooks(task: Hooks) -> bool:
    """Whether a run of the task has hooks that run when it has failed, its global ones included."""
    return any(of.hooks_for(name) for of in (hooks, task) for name in ("on_failure", "on_complete"))
