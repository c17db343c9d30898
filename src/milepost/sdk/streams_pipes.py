"""Sources that are captured into a stream while they are read: what `metadata.stream` gives back (M50-M52).

    source -> one step: pull, capture (waiting for room), hand out -> the local reader

A plain iterable is pulled by whoever reads it, in the reader's own thread. Where nobody reads (no reader has come within a moment,
it has stopped half-way, or the task has returned) a thread pulls the rest; what it has pulled is kept for a reader that comes late,
and such a reader then pulls again itself. Exactly one of them pulls at any time: whoever has put a ticket into an empty dict, which
is one step, so that a finalizer may come in between.

An async iterable is pulled by one task from beginning to end, a little ahead of its reader. So a reader that is cancelled (by a
timeout, say) does not end the source, and timeouts, task groups and context variables inside of an async generator see one task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from _thread import get_ident
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar, cast

from milepost.errors import UsageError
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_attempt import AttemptStreams, message_of, start_thread, tell_of_failure
from milepost.sdk.streams_outlet import Bell, Outlet
from milepost.sdk.streams_values import ChunkEncoder

ItemT = TypeVar("ItemT")

# A reader that has not begun, or has gone, is waited for so long before somebody else pulls.
BEGIN_SECONDS = 0.05
# What is kept for a reader that comes late; beyond it there can be none.
KEPT_BYTES_MAX = 64 * 1024 * 1024
KEPT_VALUES_MAX = 100_000
# How far an async source is pulled ahead of its reader, and after how many values that are there at once others get their turn.
AHEAD_MAX = 64

_PULLING = "pulling"
_END = object()


class _Pipe:
    """What both kinds have in common: what was captured, what is kept, and how it has ended."""

    def __init__(self, scope: RunScope, source: Any, outlet: Outlet, encoder: ChunkEncoder) -> None:
        self.key = outlet.key
        self.scope = scope
        self.source = source
        self._outlet = outlet
        self._encoder = encoder
        self._bell = Bell()
        self._streams = AttemptStreams.of(scope)
        self._kept: deque[Any] = deque()
        self._kept_bytes = 0
        self._has_kept_too_much = False
        # Those that read at this moment, each by its id.
        self._readers: dict[int, None] = {}
        self._is_detached = False
        self._is_over = False
        self._stopped_by: str | None = None
        self._is_done = False
        # What the source has raised, until a reader has been told.
        self._error: BaseException | None = None
        scope.link.open_stream(outlet)
        self._streams.add_pipe(self)  # pyright: ignore[reportArgumentType]

    @property
    def is_done(self) -> bool:
        """See `Pipe`."""
        return self._is_done

    def _keep(self, value: Any, size: int) -> None:
        """Keep a value for the local reader, unless there can be none."""
        if self._is_detached or self._has_kept_too_much:
            return
        if not self._readers and (
            self._kept_bytes + size > KEPT_BYTES_MAX or len(self._kept) >= KEPT_VALUES_MAX
        ):
            self._has_kept_too_much = True
            self._kept.clear()
            return
        self._kept_bytes += size
        self._kept.append(value)

    def _take_kept(self) -> Any:
        """The next value that is kept; `_END` when there is none. Raises UsageError for a reader that came too late."""
        if self._has_kept_too_much:
            raise UsageError(
                f"the reader of stream {self.key!r:.100} in the task came too late: more than {KEPT_BYTES_MAX:,} bytes or "
                f"{KEPT_VALUES_MAX:,} values had been captured by then, and are not kept here; begin to read at once"
            )
        try:
            value = self._kept.popleft()
        except IndexError:
            return _END
        if not self._kept:
            self._kept_bytes = 0
        return value

    def _finish(self, error: BaseException | None) -> None:
        """The source has come to its end, or has raised."""
        if self._is_done:
            return
        if not self._outlet.is_stopped and self._outlet.end is None:
            for chunk in self._encoder.rest():
                self._outlet.add(chunk)
        self._outlet.close(self._stopped_by or (None if error is None else message_of(error)))
        if self._stopped_by is None and error is not None:
            if self._readers and not self._is_detached:
                self._error = error
            else:
                self._error = None if self._is_detached else error
                tell_of_failure(self.scope, self.key, error)
        self._is_done = True
        self._streams.pipe_is_done(self)  # pyright: ignore[reportArgumentType]
        self._bell.ring()

    def _end_for_reader(self) -> Exception | None:
        """Why there is nothing more for a local reader; None when it is simply the end. Raises what the source has raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        if not self._is_done and self._is_over:
            return UsageError(
                f"the task that reads stream {self.key!r:.100} has returned; the rest is captured for the stream's readers"
            )
        return None

    def detach(self) -> None:
        """No local reader will come (any more). Never waits."""
        self._is_detached = True
        self._kept.clear()
        self._error = None
        self._bell.ring()


class SyncPipe(_Pipe):
    """A plain iterable that is captured."""

    def __init__(self, scope: RunScope, source: Any, outlet: Outlet, encoder: ChunkEncoder) -> None:
        self._iterator: Iterator[Any] = iter(source)
        self._context = contextvars.copy_context()
        # Who pulls: the ticket names the thread.
        self._pulling: dict[str, tuple[int]] = {}
        super().__init__(scope, source, outlet, encoder)
        scope.link.call_later(BEGIN_SECONDS, self._pump_if_unread)

    # --- the local reader ----------------------------------------------------------------------------------

    def read_next(self) -> Any:
        """The next value for the local reader. Raises StopIteration, and what the source raises."""
        while True:
            value = self._take_kept()
            if value is not _END:
                return value
            if self._is_done or self._is_detached:
                raise self._end_for_reader() or StopIteration
            ticket = (get_ident(),)
            holder = self._pulling.setdefault(_PULLING, ticket)
            if holder is ticket:
                try:
                    if not self._kept and not self._is_done:
                        value = self._pull(has_reader=True)
                finally:
                    self._pull_no_more(ticket)
                if value is not _END:
                    return value
            elif holder == ticket:
                raise ValueError(f"the source of stream {self.key!r:.100} is being read already")
            else:
                self._bell.wait(self._has_something)

    def _has_something(self) -> bool:
        return bool(self._kept) or self._is_done or self._is_detached or not self._pulling

    def begin(self, reader: int) -> None:
        """Somebody begins to read."""
        self._readers[reader] = None

    def stop_reading(self, reader: int) -> None:
        """A reader has gone; another one may come. Never waits."""
        self._readers.pop(reader, None)
        if not self._is_done and not self._readers and not self._is_detached:
            self.scope.link.call_later(BEGIN_SECONDS, self._pump_if_unread)

    def detach(self) -> None:
        super().detach()
        if not self._is_done:
            self.scope.link.call_later(0, self._pump_if_unread)

    # --- pulling -------------------------------------------------------------------------------------------

    def _pull(self, *, has_reader: bool) -> Any:
        """One value from the source, captured; `_END` when there are no more. By whoever has the ticket."""
        try:
            if self._stopped_by is not None:
                self._close_source()
                self._finish(None)
                return _END
            value = next(self._iterator)
        except StopIteration:
            self._finish(None)
            return _END
        except BaseException as error:
            self._finish(error)
            if has_reader:
                self._error = None
            raise
        try:
            size = 0
            for chunk in self._encoder.encode(value):
                self._outlet.wait_for_room_blocking()
                self._outlet.add(chunk)
                size += len(chunk)
        except BaseException as error:
            self._close_source()
            self._finish(error)
            if self._stopped_by is not None:
                return _END
            if has_reader:
                self._error = None
            raise
        if not has_reader:
            self._keep(value, size)
        return value

    def _pull_no_more(self, ticket: tuple[int]) -> None:
        if self._pulling.get(_PULLING) is ticket:
            del self._pulling[_PULLING]
        self._bell.ring()
        # Who wanted somebody to pull meanwhile has gone away.
        if not self._is_done and (self._is_detached or self._stopped_by is not None):
            self.scope.link.call_later(0, self._pump_if_unread)

    def _wants_pump(self) -> bool:
        return not self._is_done and (not self._readers or self._is_detached)

    def _pump_if_unread(self) -> None:
        """On the link's thread: a moment has passed, or the reader has gone."""
        if self._wants_pump() and not self._pulling:
            # Where the system gives no thread, the reader or the end of the attempt pulls.
            with suppress(RuntimeError):
                start_thread(self._pump)

    def _pump(self) -> None:
        # A context can be entered once at a time.
        self._context.copy().run(self._pump_in_context)

    def _pump_in_context(self) -> None:
        ticket = (get_ident(),)
        if self._pulling.setdefault(_PULLING, ticket) is not ticket:
            return
        try:
            while self._wants_pump():
                if self._pull(has_reader=False) is _END:
                    break
                if not self._is_detached:
                    self._bell.ring()
        except BaseException:
            # Told to readers, to the log, and to a local reader that comes.
            pass
        finally:
            self._pull_no_more(ticket)

    # --- the end of the attempt ----------------------------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        """A source that is waited for in a thread cannot be told to end."""
        return False

    def leave_to_background(self) -> None:
        """See `Pipe`."""
        self._is_over = True
        self.detach()

    def stop(self, error: str) -> None:
        """See `Pipe`."""
        self._stopped_by = error
        super().detach()
        self._outlet.close(error)
        ticket = (get_ident(),)
        if self._pulling.setdefault(_PULLING, ticket) is ticket:
            try:
                self._close_source()
                self._finish(None)
            finally:
                self._pull_no_more(ticket)

    def _close_source(self) -> None:
        """The rest of the source is not wanted."""
        for each in (self._iterator, self.source):
            close = getattr(each, "close", None)
            if callable(close):
                # It is the user's, and may raise anything.
                with suppress(BaseException):
                    close()


class AsyncPipe(_Pipe):
    """An async iterable that is captured."""

    def __init__(self, scope: RunScope, source: Any, outlet: Outlet, encoder: ChunkEncoder) -> None:
        self._iterator: AsyncIterator[Any] = aiter(source)
        self._context = contextvars.copy_context()
        self._pump_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: dict[str, object] = {}
        self._is_closing = False
        self._is_cleaning_up = False
        super().__init__(scope, source, outlet, encoder)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Made where no event loop runs: on the loop of the first reader, or else on one of its own.
            scope.link.call_later(BEGIN_SECONDS, self._pump_in_thread)
        else:
            self._pump_on(loop)

    # --- the local reader ----------------------------------------------------------------------------------

    async def read_next(self) -> Any:
        """The next value for the local reader. Raises StopAsyncIteration, and what the source raises."""
        if not self._begun:
            self._pump_on(asyncio.get_running_loop())
        while True:
            value = self._take_kept()
            if value is not _END:
                if len(self._kept) == AHEAD_MAX // 2:
                    self._bell.ring()
                return value
            if self._is_done or self._is_detached:
                raise self._end_for_reader() or StopAsyncIteration
            self._bell.ring()
            await self._bell.wait_on_loop(self._has_something)

    def _has_something(self) -> bool:
        return bool(self._kept) or self._is_done or self._is_detached

    def begin(self, reader: int) -> None:
        """Somebody begins to read."""
        self._readers[reader] = None

    def stop_reading(self, reader: int) -> None:
        """A reader has gone; another one may come. Never waits."""
        self._readers.pop(reader, None)
        self._bell.ring()

    # --- pulling -------------------------------------------------------------------------------------------

    def _pump_on(self, loop: asyncio.AbstractEventLoop) -> None:
        ticket = object()
        if self._begun.setdefault(_PULLING, ticket) is ticket:
            self._loop = loop
            self._pump_task = loop.create_task(self._pump(), context=self._context.copy())
            # A task that is cancelled before its first step has done nothing, not even ended.
            self._pump_task.add_done_callback(lambda _: self._finish(asyncio.CancelledError()))

    def _pump_in_thread(self) -> None:
        """On the link's thread: no reader has come, and no event loop runs where the source was made."""
        if not self._begun and not self._is_done:
            with suppress(RuntimeError):
                start_thread(self._pump_on_own_loop)

    def _pump_on_own_loop(self) -> None:
        async def pump() -> None:
            self._pump_on(asyncio.get_running_loop())
            if self._pump_task is not None and self._loop is asyncio.get_running_loop():
                await asyncio.wait({self._pump_task})

        self._context.copy().run(asyncio.run, pump())

    def _may_go_ahead(self) -> bool:
        return not self._readers or self._is_detached or len(self._kept) < AHEAD_MAX

    async def _pump(self) -> None:
        error: BaseException | None = None
        at_once = 0
        try:
            while True:
                if not self._may_go_ahead():
                    await self._bell.wait_on_loop(self._may_go_ahead)
                    at_once = 0
                try:
                    value = await anext(self._iterator)
                except StopAsyncIteration:
                    break
                size = 0
                for chunk in self._encoder.encode(value):
                    await self._outlet.wait_for_room_on_loop()
                    self._outlet.add(chunk)
                    size += len(chunk)
                self._keep(value, size)
                self._bell.ring()
                at_once += 1
                if at_once >= AHEAD_MAX:
                    at_once = 0
                    await asyncio.sleep(0)
        except BaseException as raised:
            # Told to the local reader, or to the log: this task has nobody who looks at it.
            error = raised
            self._is_cleaning_up = True
            await self._close_source()
        self._finish(error)
        self._is_closing = False

    # --- the end of the attempt ----------------------------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        """See `Pipe`."""
        return self._is_closing and not self._is_done

    def leave_to_background(self) -> None:
        """See `Pipe`."""
        self._is_over = True
        self.detach()
        self._pump_in_thread()

    def stop(self, error: str) -> None:
        """See `Pipe`."""
        self._stopped_by = error
        self.detach()
        self._outlet.close(error)
        if self._loop is None:
            if self._begun.setdefault(_PULLING, self) is self:
                # Nothing of the source has run.
                self._finish(None)
            return
        self._is_closing = True
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            # The loop is closed, and the source with it.
            self._finish(None)

    def _cancel(self) -> None:
        # It may have seen already that it is to end: its source then cleans up, and is not disturbed.
        if self._pump_task is not None and not self._is_cleaning_up:
            self._pump_task.cancel()

    async def _close_source(self) -> None:
        """The rest of the source is not wanted."""
        for each in (self._iterator, self.source):
            close = getattr(each, "aclose", None) or getattr(each, "close", None)
            if callable(close):
                # It is the user's, and may raise anything.
                with suppress(BaseException):
                    closing = close()
                    if inspect.isawaitable(closing):
                        await closing


# --- what the user gets ------------------------------------------------------------------------------------


class _Captured:
    """What `metadata.stream` gives back: the same values, and beyond that whatever the source offers."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._detach: Callable[[], None] = pipe.detach

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_pipe":
            raise AttributeError(name)
        return getattr(self._pipe.source, name)

    def __del__(self) -> None:
        # Nobody can read any more; what is left goes to the stream's readers alone.
        with suppress(AttributeError):
            self._detach()

    def __repr__(self) -> str:
        return f"<stream {self._pipe.key!r:.100} of {type(self._pipe.source).__name__}>"


class CapturedIterator(_Captured, Iterator[ItemT], Generic[ItemT]):
    """The values of a plain iterable, each captured before it is handed out. What is not read here is captured all the same."""

    _pipe: SyncPipe

    def __iter__(self) -> Iterator[ItemT]:
        return _Cursor[ItemT](self)

    def __next__(self) -> ItemT:
        self._pipe.begin(0)
        return cast("ItemT", self._pipe.read_next())

    def close(self) -> None:
        """Read no further. The rest is captured nevertheless."""
        self._pipe.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Cursor(Iterator[ItemT], Generic[ItemT]):
    """One loop over the values; when it is left half-way, nobody reads until the next one comes."""

    __slots__ = ("_captured", "_pipe")

    def __init__(self, captured: CapturedIterator[ItemT]) -> None:
        self._captured = captured
        self._pipe = captured._pipe  # pyright: ignore[reportPrivateUsage]

    def __next__(self) -> ItemT:
        pipe = self._pipe
        if not pipe._readers:  # pyright: ignore[reportPrivateUsage]
            pipe.begin(id(self))
        return cast("ItemT", pipe.read_next())

    def __del__(self) -> None:
        self._pipe.stop_reading(id(self))


class CapturedAsyncIterator(_Captured, AsyncIterator[ItemT], Generic[ItemT]):
    """The values of an async iterable, each captured before it is handed out. What is not read here is captured all the same."""

    _pipe: AsyncPipe

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return _AsyncCursor[ItemT](self)

    async def __anext__(self) -> ItemT:
        self._pipe.begin(0)
        return cast("ItemT", await self._pipe.read_next())

    async def aclose(self) -> None:
        """Read no further. The rest is captured nevertheless."""
        self._pipe.detach()

    async def close(self) -> None:
        """As `aclose`."""
        self._pipe.detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pipe.detach()


class _AsyncCursor(AsyncIterator[ItemT], Generic[ItemT]):
    """As `_Cursor`."""

    __slots__ = ("_captured", "_pipe")

    def __init__(self, captured: CapturedAsyncIterator[ItemT]) -> None:
        self._captured = captured
        self._pipe = captured._pipe  # pyright: ignore[reportPrivateUsage]

    async def __anext__(self) -> ItemT:
        pipe = self._pipe
        if not pipe._readers:  # pyright: ignore[reportPrivateUsage]
            pipe.begin(id(self))
        return cast("ItemT", await pipe.read_next())

    def __del__(self) -> None:
        self._pipe.stop_reading(id(self))
