"""Carrying a run along: into threads and executors that do not inherit the context, and into child processes (M15).

In the process where it was bound, a function simply runs with the run as the current one. In a child process there is no worker: there
the run gets a scope of its own (`child_process`). A function may hand back work that is done later: a coroutine, a generator. The run
is the current one whenever that work goes on, and a child process waits until it has ended.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from milepost.sdk import child_process
from milepost.sdk.child_process import ChildLink
from milepost.sdk.scope import RunScope, current_scope

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")

_LAZY_ITERATORS = (map, filter, zip, enumerate)
# What makes `inspect` take an object for a function, so that others can ask whether it is a coroutine function.
_OF_A_FUNCTION = ("__code__", "__defaults__", "__kwdefaults__")


def bind_to(scope: RunScope, function: Callable[Parameters, ResultT]) -> Callable[Parameters, ResultT]:
    """A function that runs as part of the given run, whichever thread or process calls it.

    It may be of any kind: `async def`, a generator, an object that can be called. For another process it must be one that can be
    pickled, as always there.
    """
    return Bound(scope, function)


class Bound(Generic[Parameters, ResultT]):
    """A function and the run that it belongs to."""

    def __init__(
        self, scope: RunScope | None, function: Callable[Parameters, ResultT], carried: bytes | None = None
    ) -> None:
        assert scope is not None or carried is not None, "a function is bound to something"
        functools.update_wrapper(self, function)
        self._scope = scope
        self._carried = carried
        self._process = child_process.this_process()
        self._function = function
        inner = _inner(function)
        code = getattr(inner, "__code__", None)
        if isinstance(code, CodeType):
            for name in _OF_A_FUNCTION:
                setattr(self, name, getattr(inner, name, None))
            self.__name__ = getattr(inner, "__name__", code.co_name)
        self._is_coroutine_function = inspect.iscoroutinefunction(inner)

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> ResultT:
        if self._is_coroutine_function:
            return cast("ResultT", self._run_coroutine(lambda: cast("Any", self._function(*args, **kwargs))))
        scope, link = self._here()
        is_outermost = current_scope.get() is not scope
        token = current_scope.set(scope)
        try:
            result = self._function(*args, **kwargs)
        finally:
            current_scope.reset(token)
            if link is not None and is_outermost:
                link.settle(scope)
        return cast("ResultT", self._carried_on(result))

    def __reduce__(self) -> tuple[Any, ...]:
        carried = self._carried
        if carried is None:
            scope = cast("RunScope", self._scope)
            carried = child_process.carry(scope, is_copy=self._process is not child_process.this_process())
        return _restore, (self._function, carried)

    def _here(self) -> tuple[RunScope, ChildLink | None]:
        """The run's scope in this process, and the link to settle with when this is a child process."""
        scope = self._scope
        is_at_home = self._process is child_process.this_process()
        if scope is not None and is_at_home:
            return scope, None
        carried = self._carried
        if carried is None:
            carried = child_process.carry(cast("RunScope", scope), is_copy=True)
        return child_process.scope_of(carried)

    # --- what is done later --------------------------------------------------------------------------------

    def _carried_on(self, result: Any) -> Any:
        if inspect.isawaitable(result) and isinstance(result, Coroutine | Generator):
            return self._run_coroutine(lambda: cast("Any", result))
        if isinstance(result, AsyncGenerator):
            return self._run_async_generator(cast("AsyncGenerator[Any, Any]", result))
        if isinstance(result, Generator):
            return self._run_generator(cast("Generator[Any, Any, Any]", result))
        if isinstance(result, _LAZY_ITERATORS) or type(result).__module__ == itertools.__name__:
            return self._run_iterator(cast("Iterator[Any]", result))
        return result

    async def _run_coroutine(self, begin: Callable[[], Any]) -> Any:
        scope, link = self._here()
        token = current_scope.set(scope)
        try:
            return await begin()
        finally:
            # It is another context when the coroutine is thrown away unfinished.
            with suppress(ValueError):
                current_scope.reset(token)
            if link is not None:
                await link.asettle(scope)

    def _run_generator(self, body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """As `yield from body`, with the run as the current one while the body runs, and only then."""
        scope, link = self._here()
        try:
            item = _step(scope, body.send, None)
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    _step(scope, body.close)
                    raise
                except BaseException as error:
                    item = _step(scope, body.throw, error)
                else:
                    item = _step(scope, body.send, sent)
        except StopIteration as stop:
            return stop.value
        finally:
            if link is not None:
                link.settle(scope)

    def _run_iterator(self, body: Iterator[Any]) -> Iterator[Any]:
        scope, link = self._here()
        try:
            while True:
                try:
                    item = _step(scope, next, body)
                except StopIteration:
                    return
                yield item
        finally:
            if link is not None:
                link.settle(scope)

    async def _run_async_generator(self, body: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
        scope, link = self._here()
        try:
            item = await _astep(scope, body.asend(None))
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    await _astep(scope, body.aclose())
                    raise
                except BaseException as error:
                    item = await _astep(scope, body.athrow(error))
                else:
                    item = await _astep(scope, body.asend(sent))
        except StopAsyncIteration:
            return
        finally:
            if link is not None:
                await link.asettle(scope)


def _step(scope: RunScope, function: Callable[..., Any], *arguments: Any) -> Any:
    token = current_scope.set(scope)
    try:
        return function(*arguments)
    finally:
        current_scope.reset(token)


async def _astep(scope: RunScope, step: Any) -> Any:
    token = current_scope.set(scope)
    try:
        return await step
    finally:
        with suppress(ValueError):
            current_scope.reset(token)


def _inner(function: Callable[..., Any]) -> Any:
    """What holds the code: below `functools.partial`, and the `__call__` of an object."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = cast("functools.partial[Any]", inner).func
    if not hasattr(inner, "__code__") and not inspect.isclass(inner):
        inner = inspect.getattr_static(inner, "__call__", inner)
    return inner


def _restore(function: Callable[..., Any], carried: bytes) -> Callable[..., Any]:
    return Bound[..., Any](None, function, carried)
