"""`streams`: what passes by while a run works (tokens of a model, lines of a program, rows), for whoever watches, live or later.

Values of a stream do not count toward the size of the document. They are stored in the order of each writer, each once.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Generator, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar, cast, overload

from milepost.client.default import default_client
from milepost.client.shape import Shape, shape_of
from milepost.client.streams import StreamReader, reader
from milepost.errors import InvalidRequestError, UsageError
from milepost.model.names import check_name
from milepost.protocol.streams import KEY_CHARACTERS_MAX
from milepost.sdk.inputs import InputStream, RetryFrom
from milepost.sdk.scope import RunScope, is_in_event_loop, scope_of_call
from milepost.sdk.streams_attempt import AttemptStreams, message_of
from milepost.sdk.streams_outlet import Outlet
from milepost.sdk.streams_pipes import AsyncPipe, CapturedAsyncIterator, CapturedIterator, SyncPipe
from milepost.sdk.streams_values import ChunkEncoder

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


class Room(Awaitable[None]):
    """What adding a value gives back: the value is taken already, and `await` waits until there is room for the next one."""

    __slots__ = ("_outlet",)

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def __await__(self) -> Generator[Any, Any, None]:
        return self._outlet.wait_for_room_on_loop().__await__()


class StreamWriter(Generic[ValueT]):
    """Adds values to a stream. As a context manager it ends when the block does; otherwise by `close()`, or with the attempt.

        with streams.writer("log") as write:
            write("one")

        async with streams.writer("log") as write:
            await write("one")

    An error that leaves the block is told to readers as the reason why the stream ends. A writer is used by one thread at a time.
    """

    def __init__(self, scope: RunScope, run_id: str, key: str, shape: Shape[Any] | None) -> None:
        self._scope = scope
        self._outlet = Outlet(scope, run_id, key, is_announced=True)
        self._encoder = ChunkEncoder(key, shape)
        scope.link.open_stream(self._outlet)
        AttemptStreams.of(scope).add_writer(self)

    def write(self, value: ValueT) -> Awaitable[None]:
        """Add a value.

        In a thread it blocks while the buffer is full. On an event loop it never blocks: `await` what it gives back, which waits until
        there is room again; the value is taken either way.

        Raises: StreamValueError, StreamChunkTooLargeError; StreamStoppedError when the server takes no more; UsageError after the end,
            and on an event loop when 16 MB wait because nobody awaits.
        """
        outlet = self._outlet
        if is_in_event_loop():
            outlet.refuse_to_pile_up()
            for chunk in self._encoder.encode(value):
                outlet.add(chunk)
        else:
            for chunk in self._encoder.encode(value):
                outlet.wait_for_room()
                outlet.add(chunk)
        return Room(outlet)

    __call__ = write

    async def awrite(self, value: ValueT) -> None:
        """Add a value, waiting first while the buffer is full. Raises as `write`."""
        for chunk in self._encoder.encode(value):
            await self._outlet.wait_for_room_on_loop()
            self._outlet.add(chunk)

    def close(self) -> None:
        """Nothing more comes. Safe to repeat."""
        self.end(None)
        AttemptStreams.of(self._scope).forget_writer(self)

    def end(self, error: str | None) -> None:
        """Nothing more comes, because of an error when there is one. Safe to repeat."""
        outlet = self._outlet
        if outlet.end is None and not outlet.is_stopped:
            for chunk in self._encoder.rest():
                outlet.add(chunk)
            outlet.close(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(None if error is None else message_of(error))
        AttemptStreams.of(self._scope).forget_writer(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<{self._outlet!r}>"


class _Appender:
    """The writer behind all that an attempt appends to one stream."""

    def __init__(self, scope: RunScope, run_id: str, key: str) -> None:
        self.outlet = Outlet(scope, run_id, key, is_announced=False)
        scope.link.open_stream(self.outlet)

    def end(self, error: str | None) -> None:
        """See `Ending`."""
        self.outlet.close(error)


class TypedStream(Generic[ValueT]):
    """A stream whose values have a type: checked when they are written, and read as that type.

    Attributes:
        key: the stream's key.
        type: what its values are.
    """

    def __init__(self, key: str, kind: Any) -> None:
        check_key(key)
        self.key = key
        self.type = kind
        self._shape: Shape[ValueT] = shape_of(kind)

    @overload
    def pipe(self, source: AsyncIterable[ValueT], target: str | None = None) -> AsyncIterator[ValueT]: ...
    @overload
    def pipe(self, source: Iterable[ValueT], target: str | None = None) -> Iterator[ValueT]: ...
    def pipe(self, source: Any, target: str | None = None) -> Any:
        """As `streams.pipe`; a value of another type stops the source with StreamValueError."""
        return capture(self.key, source, target, self._shape)

    def append(self, value: ValueT, target: str | None = None) -> Awaitable[None]:
        """As `streams.append`."""
        return _append(self.key, value, target, self._shape)

    async def aappend(self, value: ValueT, target: str | None = None) -> None:
        """As `streams.aappend`."""
        await _append(self.key, value, target, self._shape)

    def writer(self, target: str | None = None) -> StreamWriter[ValueT]:
        """As `streams.writer`."""
        return _writer(self.key, target, self._shape)

    def read(self, run_id: str, start: int = 0, *, from_latest: bool = False) -> StreamReader[ValueT]:
        """As `streams.read`, with values of this type."""
        return reader(default_client().connection, run_id, self.key, start, self.type, from_latest)

    def aread(self, run_id: str, start: int = 0, *, from_latest: bool = False) -> StreamReader[ValueT]:
        """As `read`, for `async for`."""
        return reader(default_client().connection, run_id, self.key, start, self.type, from_latest)

    def __repr__(self) -> str:
        return f"<stream {self.key!r} of {self.type!r}>"


class Streams:
    """The streams of runs: writing to that of the calling code and to those above it, reading any.

    `target` says whose stream it is: `self` (the run itself, also when it is left out), `parent`, `root`, or the id of an ancestor.
    """

    @overload
    def pipe(
        self, key: str, source: AsyncIterable[ItemT], target: str | None = None
    ) -> AsyncIterator[ItemT]: ...
    @overload
    def pipe(self, key: str, source: Iterable[ItemT], target: str | None = None) -> Iterator[ItemT]: ...
    def pipe(self, key: str, source: Any, target: str | None = None) -> Any:
        """Capture what a source gives, and give back an iterable of the same values and kind; the same as `metadata.stream` (M50-M59).

        Every value is captured, whether it is read here or not: read at once, the source goes at the reader's pace; unread, or left
        half-way, it is captured in the background, and the run ends when the source has. A slow network slows the source. Values
        become JSON by the rules of metadata; the reader here gets the original objects. Bytes that are text are decoded as they
        come, others travel in base64. An error of the source is raised to the reader here; other readers get its message.

        Args:
            key: 1 to 256 characters; a slash is fine.
            source: any iterable or async iterable. Outside a run it comes back as it is.
        Raises: InvalidRequestError for a key that cannot be; UsageError for what is no iterable. While reading: StreamValueError,
            StreamChunkTooLargeError (1 MiB), StreamStoppedError; the source is closed then.
        """
        return capture(key, source, target, None)

    def append(self, key: str, value: object, target: str | None = None) -> Awaitable[None]:
        """Add one value to a stream.

        In a thread it blocks while the buffer is full. On an event loop it never blocks: `await` what it gives back, which waits until
        there is room again; the value is taken either way.

        Raises: UsageError outside of a run; StreamValueError, StreamChunkTooLargeError, StreamStoppedError, InvalidRequestError.
        """
        return _append(key, value, target, None)

    async def aappend(self, key: str, value: object, target: str | None = None) -> None:
        """As `append`, and waits until there is room again."""
        await _append(key, value, target, None)

    def writer(self, key: str, target: str | None = None) -> StreamWriter[Any]:
        """A writer for code that pushes its values; see `StreamWriter`.

        Raises: UsageError outside of a run; InvalidRequestError.
        """
        return _writer(key, target, None)

    @overload
    def read(
        self, run_id: str, key: str, start: int = 0, *, type: type[ValueT], from_latest: bool = False
    ) -> StreamReader[ValueT]: ...
    @overload
    def read(
        self, run_id: str, key: str, start: int = 0, *, type: None = None, from_latest: bool = False
    ) -> StreamReader[Any]: ...
    def read(
        self, run_id: str, key: str, start: int = 0, *, type: Any = None, from_latest: bool = False
    ) -> StreamReader[Any]:
        """The values of a stream in order, live or later, until it has ended: `for value in streams.read(run.id, "tokens")` (M58).

        A stream has ended when every writer that has begun has ended, and with its run at the latest. One may come before the first
        value, before the run starts, or a week later. A lost connection is taken up again with the next value: none is missing, none
        comes twice. A slow reader misses nothing. An error of the source is not raised here: `reader.state` and `reader.error` tell.

        Args:
            start: the index of the first value.
            type: what values are read as; plain JSON without it, and bytes where bytes were written.
            from_latest: begin with what is written from now on.
        Raises: UsageError for an index that is none. While reading: RunNotFoundError; MetadataValueError for a value that does not
            fit the type; UnavailableError when the server stays away for longer than a minute.
        """
        return reader(default_client().connection, run_id, key, start, type, from_latest)

    @overload
    def aread(
        self, run_id: str, key: str, start: int = 0, *, type: type[ValueT], from_latest: bool = False
    ) -> StreamReader[ValueT]: ...
    @overload
    def aread(
        self, run_id: str, key: str, start: int = 0, *, type: None = None, from_latest: bool = False
    ) -> StreamReader[Any]: ...
    def aread(
        self, run_id: str, key: str, start: int = 0, *, type: Any = None, from_latest: bool = False
    ) -> StreamReader[Any]:
        """As `read`, for `async for`."""
        return reader(default_client().connection, run_id, key, start, type, from_latest)

    @overload
    def input(
        self, key: str, type: type[ValueT], *, retry_from: RetryFrom = "start"
    ) -> InputStream[ValueT]: ...
    @overload
    def input(self, key: str, type: None = None, *, retry_from: RetryFrom = "start") -> InputStream[Any]: ...
    def input(self, key: str, type: Any = None, *, retry_from: RetryFrom = "start") -> InputStream[Any]:
        """Values that are sent to a run from outside; see `InputStream`.

        Args:
            retry_from: where an attempt begins to read after one that has failed: `start`, at the first value that was ever sent,
                because its code begins anew; or `unread`, at the first that no attempt has taken. A value is taken when `receive`
                gives it. Of an attempt whose process died, the last values may come again.
        Raises: InvalidRequestError for a key that cannot be; UsageError.
        """
        check_key(key)
        return InputStream[Any](key, type, retry_from)

    def define(self, id: str, type: type[ValueT]) -> TypedStream[ValueT]:
        """A stream whose values have a type; to be kept in a module that writers and readers share."""
        return TypedStream[ValueT](id, type)


streams = Streams()
"""The streams of the run that the calling code belongs to."""


def check_key(key: object) -> None:
    """Make sure that something can be the key of a stream. Raises InvalidRequestError."""
    if not isinstance(key, str):
        raise InvalidRequestError(f"the key of a stream is text, not {type(key).__name__}", field="key")
    check_name(key, "the key of a stream", field="key", characters_max=KEY_CHARACTERS_MAX)


def capture(
    key: str, source: Any, target: str | None, shape: Shape[Any] | None, scope: RunScope | None = None
) -> Any:
    """See `Streams.pipe`; `target` may be any run's id."""
    scope = scope_of_call() if scope is None else scope
    if scope is None:
        return source
    check_key(key)
    is_async = _is_async(key, source)
    outlet = Outlet(scope, _run_of(scope, target), key, is_announced=True)
    encoder = ChunkEncoder(key, shape)
    if is_async:
        return CapturedAsyncIterator[Any](AsyncPipe(scope, source, outlet, encoder))
    return CapturedIterator[Any](SyncPipe(scope, source, outlet, encoder))


def _is_async(key: str, source: Any) -> bool:
    """Whether a source is read by `async for`. Raises UsageError for what is no source."""
    if isinstance(source, str | bytes | bytearray):
        raise UsageError(
            f"stream {key!r:.100}: {type(source).__name__} is one value; add it with streams.append(key, value)"
        )
    kind = cast("Any", type(source))
    is_async, is_plain = hasattr(kind, "__aiter__"), hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")
    if is_async and is_plain:
        return is_in_event_loop()
    if not is_async and not is_plain:
        cure = "pass an iterable or an async iterable of its values"
        if hasattr(kind, "iter_text"):
            cure = "pass what its iter_text(), iter_lines() or iter_bytes() gives, or aiter_text() and so on"
        elif hasattr(source, "content") and hasattr(cast("Any", type(source.content)), "__aiter__"):
            cure = "pass its content"
        elif hasattr(kind, "__aenter__") or hasattr(kind, "__enter__"):
            cure = "enter it first, as in `with source as stream:`, and pass the stream"
        elif hasattr(kind, "__await__"):
            cure = "await it first"
        raise UsageError(f"stream {key!r:.100}: {kind.__name__} cannot be iterated; {cure}")
    return is_async


def _append(key: str, value: object, target: str | None, shape: Shape[Any] | None) -> Awaitable[None]:
    scope = _needed_scope("streams.append(key, value)")
    check_key(key)
    chunk = ChunkEncoder(key, shape).encode_alone(value)
    outlet = _appender(scope, _run_of(scope, target), key).outlet
    if is_in_event_loop():
        outlet.refuse_to_pile_up()
    else:
        outlet.wait_for_room()
    outlet.add(chunk)
    return Room(outlet)


def _appender(scope: RunScope, run_id: str, key: str) -> _Appender:
    own = AttemptStreams.of(scope)
    found = own.appending.get((run_id, key))
    if found is None:
        made = _Appender(scope, run_id, key)
        found = own.appending.setdefault((run_id, key), made)
        if found is made:
            own.add_writer(made)
        else:
            # Another thread was first.
            made.end(None)
    return cast("_Appender", found)


def _writer(key: str, target: str | None, shape: Shape[Any] | None) -> StreamWriter[Any]:
    scope = _needed_scope("streams.writer(key)")
    check_key(key)
    return StreamWriter[Any](scope, _run_of(scope, target), key, shape)


def _needed_scope(form: str) -> RunScope:
    scope = scope_of_call()
    if scope is None:
        raise UsageError(
            f"{form} adds to a stream of the run that the code belongs to, and this code belongs to none: call it in a task. In a "
            f"thread or an executor, bind the function to the run first: metadata.bind(function)"
        )
    return scope


def _run_of(scope: RunScope, target: object) -> str:
    if target is None or target == "self":
        return scope.run.id
    if target == "parent":
        return scope.parent_id
    if target == "root":
        return scope.root_id
    if not isinstance(target, str) or not target:
        raise UsageError(
            f"the target of a stream is `self`, `parent`, `root` or the id of a run above, not {target!r:.100}"
        )
    return target
