"""`metadata`: the document of the run that the present code belongs to, and the documents of its ancestors.

Updates are plain calls that touch memory only: the operation goes into the run's buffer, and the worker's link sends it. Outside a run
every call does nothing (M9-M11), so a library may use `metadata` unconditionally.
"""

from __future__ import annotations

import asyncio
import operator
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from milepost.client.default import default_client
from milepost.client.refused import RefusedChange
from milepost.client.shape import read_document
from milepost.client.updater import Sink, UntypedSink, Updater
from milepost.errors import MetadataFlushError, MetadataTooLargeError
from milepost.model.jsonvalue import JSONValue, json_size, to_json
from milepost.model.operations import Delete, Operation, Set, Update, check
from milepost.model.path import check_key, read
from milepost.sdk import child_process
from milepost.sdk.binding import bind_to
from milepost.sdk.scope import RunScope, current_scope, scope_of_call
from milepost.sdk.streams import capture

Parameters = ParamSpec("Parameters")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ShapeT = TypeVar("ShapeT")


class OwnSink:
    """The document of the run itself. Applied to the local view first, so every fault of the call is raised by the call."""

    __slots__ = ("_scope",)

    def __init__(self, scope: RunScope) -> None:
        self._scope = scope

    def value_of(self, key: str, value: object) -> JSONValue:
        schema = self._scope.schema
        return to_json(value, place=key) if schema is None else schema.value_of(key, value)

    def item_of(self, key: str, value: object, place: str) -> JSONValue:
        schema = self._scope.schema
        return to_json(value, place=place, key=key) if schema is None else schema.item_of(key, value, place)

    def wanted_of(self, key: str, value: object) -> JSONValue:
        schema = self._scope.schema
        return to_json(value, place=key) if schema is None else schema.wanted_of(key, value)

    def object_of(self, values: object) -> JSONValue:
        schema = self._scope.schema
        return to_json(values) if schema is None else schema.object_of(values)

    def add(self, operation: Operation) -> None:
        scope = self._scope
        if scope.schema is not None:
            scope.schema.check((operation,), scope.buffer)
        if scope.buffer.add(scope.run.id, operation):
            scope.link.wake(scope)

    def add_all(self, operations: list[Operation]) -> None:
        scope = self._scope
        if scope.schema is not None and operations:
            scope.schema.check(operations, scope.buffer)
        if scope.buffer.add_all(scope.run.id, operations):
            scope.link.wake(scope)


class RemoteSink(UntypedSink):
    """The document of another run. What depends on that document is decided by the server."""

    __slots__ = ("_run_id", "_scope")

    def __init__(self, scope: RunScope, run_id: str) -> None:
        self._scope = scope
        self._run_id = run_id

    def add(self, operation: Operation) -> None:
        self.add_all([operation])

    def add_all(self, operations: list[Operation]) -> None:
        for operation in operations:
            check(operation)
        scope = self._scope
        sendable = [operation for operation in operations if self._may_fit(operation)]
        if scope.buffer.add_all(self._run_id, sendable):
            scope.link.wake(scope)

    def _may_fit(self, operation: Operation) -> bool:
        """False, and a line in the run's log, for a value that no document can hold (M85): it need not travel to be refused."""
        value: JSONValue = None if isinstance(operation, Delete) else operation.value
        if not isinstance(value, str | list | dict):
            return True
        size, limit = json_size(value), self._scope.buffer.limit
        if size <= limit:
            return True
        key = None if isinstance(operation, Update) else operation.key
        error = MetadataTooLargeError(size, limit, key)
        self._scope.buffer.refuse(RefusedChange(self._run_id, None, error.code, error.message))
        self._scope.link.log(
            self._scope, "error", f"metadata of {self._run_id}: {error.message}", "milepost.metadata"
        )
        return False


def sink_to(scope: RunScope, run_id: str) -> Sink:
    """Where updates of a run's document go from inside `scope`."""
    return OwnSink(scope) if run_id == scope.run.id else RemoteSink(scope, run_id)


class _Streaming(Updater):
    """A document beside which streams can be written."""

    @abstractmethod
    def _run_of(self, scope: RunScope) -> str:
        """Whose document it is."""

    @overload
    def stream(self, key: str, source: AsyncIterable[ItemT]) -> AsyncIterator[ItemT]: ...
    @overload
    def stream(self, key: str, source: Iterable[ItemT]) -> Iterator[ItemT]: ...
    def stream(self, key: str, source: Any) -> Any:
        """Capture what a source gives as a stream of the run, and give back an iterable of the same values and kind (M50-M59); see
        `streams.pipe`, which is the same under its other name."""
        scope = scope_of_call()
        return source if scope is None else capture(key, source, self._run_of(scope), None, scope)


class RunMetadata(_Streaming):
    """The document of another run, addressed anew at each call (M60-M65). Write-only, except for `get`, which asks the server."""

    def __init__(self, name: str, address: Callable[[RunScope], str]) -> None:
        self._name = name
        self._address = address

    def _sink(self) -> Sink | None:
        scope = scope_of_call()
        return None if scope is None else sink_to(scope, self._address(scope))

    def _run_of(self, scope: RunScope) -> str:
        return self._address(scope)

    def get(self, key: str, default: Any = None) -> Any:
        """Ask the server what the key or path holds, after what was written here before; the default outside a run.

        Raises: UnavailableError, RunNotFoundError; UsageError on the worker's event loop.
        """
        scope = scope_of_call()
        if scope is None:
            return default
        run_id = self._address(scope)
        if run_id == scope.run.id:
            return scope.buffer.get(key, default)
        scope.refuse_blocking(f"{self._name}.get(key)", f"`await {self._name}.aget(key)`")
        if scope.buffer.has_unacknowledged:
            scope.link.flush(scope).result()
        return read(default_client().get_metadata(run_id).value, key, default)

    async def aget(self, key: str, default: Any = None) -> Any:
        """As `get`, without blocking."""
        scope = scope_of_call()
        if scope is None:
            return default
        run_id = self._address(scope)
        if run_id == scope.run.id:
            return scope.buffer.get(key, default)
        if scope.buffer.has_unacknowledged:
            await asyncio.shield(asyncio.wrap_future(scope.link.flush(scope)))
        return read((await default_client().aget_metadata(run_id)).value, key, default)


class Metadata(_Streaming):
    """The document of the run that the calling code belongs to.

    Attributes:
        parent: the parent run's document; without a parent it is the run's own (M64).
        root: the document of the run at the top of the tree.
    """

    def __init__(self) -> None:
        self.parent = RunMetadata("metadata.parent", _parent_of)
        self.root = RunMetadata("metadata.root", _root_of)

    def _sink(self) -> Sink | None:
        scope = current_scope.get()
        if scope is None or scope.stop is not None:
            scope = scope_of_call()
            return None if scope is None else OwnSink(scope)
        return None if scope.is_over else OwnSink(scope)

    def _run_of(self, scope: RunScope) -> str:
        return scope.run.id

    def set(self, key: str, value: object) -> Self:
        """Give the key a value, whatever was there. Missing objects on the way of a path are created."""
        # The common case, written out: it is the one that is called in loops.
        scope = current_scope.get()
        if scope is None or scope.is_over or scope.stop is not None or scope.schema is not None:
            return super().set(key, value)
        name = key if type(key) is str else check_key(key)
        if scope.buffer.add(scope.run.id, Set(name, to_json(value, place=name))):
            scope.link.wake(scope)
        return self

    def run(self, run_id: str) -> RunMetadata:
        """The document of any ancestor by its id. The server refuses runs that are no ancestors."""
        return RunMetadata(f"metadata.run({run_id!r})", lambda _: run_id)

    # --- reading -------------------------------------------------------------------------------------------

    @overload
    def current(self) -> dict[str, Any] | None: ...
    @overload
    def current(self, kind: type[ShapeT]) -> ShapeT | None: ...
    def current(self, kind: Any = None) -> Any:
        """The whole document as a fresh `dict`, own writes included; None outside a run (M3).

        Args:
            kind: a type to read it as: a Pydantic model, dataclass, TypedDict or msgspec Struct (M77).
        Raises: MetadataValueError when the document does not have that form.
        """
        scope = scope_of_call()
        if scope is None:
            return None
        document = scope.buffer.current()
        return document if kind is None else read_document(document, kind)

    def get(self, key: str, default: Any = None) -> Any:
        """What the key or path holds, own writes included; the default when there is nothing, and outside a run (M4)."""
        scope = scope_of_call()
        return default if scope is None else scope.buffer.get(key, default)

    def __getitem__(self, key: str) -> Any:
        scope = scope_of_call()
        if scope is None:
            return None
        found = scope.buffer.get(key, _NOTHING)
        if found is _NOTHING:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        scope = scope_of_call()
        return scope is not None and scope.buffer.contains(cast("str", key))

    def __iter__(self) -> Iterator[str]:
        return iter(self.current() or {})

    # --- delivery ------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything called before is committed, for the own document and for others (M37).

        In code that interrupts another metadata call of its thread, as a finalizer or a signal handler may, it returns at once: that
        call cannot go on before, and so the updates leave when both have ended.

        Args:
            timeout: seconds to wait at most; what is not committed then stays on its way.
        Raises:
            MetadataFlushError: everything else is committed, but the server refused these operations; or the server has given up this
                attempt (its worker was silent for longer than the lease), and nothing more of it will be committed.
            TimeoutError: it took longer.
            UsageError: on the worker's event loop, where it is `await metadata.aflush()`.
        """
        scope = scope_of_call()
        if scope is None:
            return
        scope.refuse_blocking("metadata.flush()", "`await metadata.aflush()`")
        if scope.buffer.has_unacknowledged:
            try:
                scope.link.flush(scope).result(timeout)
            except TimeoutError:
                raise _too_late(timeout) from None
        _raise_refused(scope)

    async def aflush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the twin of `flush`
        """As `flush`, without blocking."""
        scope = scope_of_call()
        if scope is None:
            return
        if scope.buffer.has_unacknowledged:
            # Shielded: giving up here must not cancel the link's own future.
            flushed = asyncio.shield(asyncio.wrap_future(scope.link.flush(scope)))
            try:
                async with asyncio.timeout(timeout):
                    await flushed
            except TimeoutError:
                raise _too_late(timeout) from None
        _raise_refused(scope)

    def refresh(self) -> Self:
        """Fetch the newest document; pending operations are kept on top of it (M43).

        Raises: UnavailableError; UsageError on the worker's event loop.
        """
        scope = scope_of_call()
        if scope is None:
            return self
        scope.refuse_blocking("metadata.refresh()", "`await metadata.arefresh()`")
        holds_until = scope.buffer.acknowledged_sequence
        newest = default_client().get_metadata(scope.run.id)
        if not scope.buffer.adopt(newest.value, newest.version, holds_until=holds_until):
            # A batch is under way, and its answer tells what the document above holds.
            scope.link.flush(scope).result()
        return self

    async def arefresh(self) -> Self:
        """As `refresh`, without blocking."""
        scope = scope_of_call()
        if scope is None:
            return self
        holds_until = scope.buffer.acknowledged_sequence
        newest = await default_client().aget_metadata(scope.run.id)
        if not scope.buffer.adopt(newest.value, newest.version, holds_until=holds_until):
            await asyncio.shield(asyncio.wrap_future(scope.link.flush(scope)))
        return self

    # --- carrying the run along ----------------------------------------------------------------------------

    def bind(self, function: Callable[Parameters, ResultT]) -> Callable[Parameters, ResultT]:
        """A function that runs as part of the present run, in whatever thread, executor or child process it is called (M15).

        It may be of any kind: `async def`, a generator, an object that can be called; the run is the current one whenever its body
        runs. `asyncio.create_task`, `TaskGroup` and `asyncio.to_thread` need it not. Outside a run the function comes back as it is.
        A child process waits at the end of the function until its updates are committed.
        """
        scope = scope_of_call()
        return function if scope is None else bind_to(scope, function)

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment with which a program is part of the present run (M15):

            subprocess.run(["python", "convert.py"], env=metadata.environment())

        The program calls `metadata.attach()` once, or a shell script `milepost metadata set done 3`. The environment also says where
        the server is, and with which key. What was called before is on its way; where the program must see it, call `flush()` first.

        Args:
            base: what else is in it; the environment of this process when left out. Outside a run nothing is added.
        """
        return child_process.environment(scope_of_call(), base)

    def attach(self) -> Self:
        """In a program that a run has started with `metadata.environment()`: from now on the whole program is part of that run, all
        its threads included (M15).

        At its end the program waits up to 10 seconds until its updates are committed. It writes to the same documents as the run
        itself: its own, and those of its ancestors. Inside a run, a second time, and where the environment names no run, it does
        nothing.

        Raises: UnavailableError, RunNotFoundError; ConfigurationError when the environment names the run but not its attempt, or no
            server.
        """
        child_process.attach()
        return self

    @overload
    def track(self, iterable: AsyncIterable[ItemT], key: str = "progress") -> AsyncIterable[ItemT]: ...
    @overload
    def track(self, iterable: Iterable[ItemT], key: str = "progress") -> Iterable[ItemT]: ...
    def track(self, iterable: Any, key: str = "progress") -> Any:
        """The same items, while `key` holds how many of them are done: `{"done": 3, "total": 10}`.

        An item is done when the next one is asked for. `total` is null when the iterable does not know its length. Outside a run the
        iterable comes back as it is.
        """
        if scope_of_call() is None:
            return iterable
        total = operator.length_hint(iterable, -1)
        return (
            self._track_async(iterable, key, total)
            if hasattr(iterable, "__aiter__")
            else self._track(iterable, key, total)
        )

    def _track(self, iterable: Iterable[ItemT], key: str, total: int) -> Generator[ItemT]:
        done = 0
        self._count(key, done, total)
        for item in iterable:
            yield item
            done += 1
            self._count(key, done, total)

    async def _track_async(
        self, iterable: AsyncIterable[ItemT], key: str, total: int
    ) -> AsyncIterator[ItemT]:
        done = 0
        self._count(key, done, total)
        async for item in iterable:
            yield item
            done += 1
            self._count(key, done, total)

    def _count(self, key: str, done: int, total: int) -> None:
        self.set(key, {"done": done, "total": total if total >= 0 else None})


_NOTHING = object()


def _parent_of(scope: RunScope) -> str:
    return scope.parent_id


def _root_of(scope: RunScope) -> str:
    return scope.root_id


def _raise_refused(scope: RunScope) -> None:
    refused = scope.buffer.take_refused()
    if refused:
        raise MetadataFlushError(refused=refused)


def _too_late(timeout: float | None) -> TimeoutError:
    return TimeoutError(
        f"metadata was not committed within {timeout} s; it stays on its way, and flush() may be called again"
    )


metadata = Metadata()
"""The metadata of the run that the calling code belongs to."""
