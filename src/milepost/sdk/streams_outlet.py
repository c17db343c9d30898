"""Where the chunks of one writer wait until they are stored; the user's code puts them in, the worker's link takes them out.

    add -> waiting -> (the link) one part under way -> acknowledged

Bounded: whoever adds waits for room, in a thread by blocking and on an event loop by awaiting. Nothing is ever dropped.

No lock is held here by anybody. A finalizer, a signal handler or a logging handler may add in the middle of another call of its
thread: `deque.append` is one step, and the sizes are counted without a lock. Two threads that add at once may so count one chunk
too little, never one too much, and the count is put right whenever nothing waits. Whoever waits for room waits for the link's
thread alone, on a lock of its own; code that runs on an event loop never waits here, since others share that thread.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from milepost.errors import StreamStoppedError, UsageError
from milepost.protocol.streams import WriterEnd
from milepost.sdk.scope import RunScope, is_in_event_loop

LOGGER = "milepost.streams"
"""Whose lines they are that the log of a run has about its streams."""

WAITING_CHUNKS_MAX = 10_000
WAITING_BYTES_MAX = 1024 * 1024
UNAWAITED_BYTES_MAX = 16 * 1024 * 1024
"""What may wait of a writer whose code runs on an event loop and does not wait for room."""

LOOK_AGAIN_SECONDS = 1.0


class Bell:
    """Wakes whoever waits for something to change, threads and tasks alike. Ringing never waits."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def ring(self) -> None:
        """Let all who wait look again."""
        for _ in range(len(self._waiting)):
            try:
                self._waiting.popleft()()
            except IndexError:
                return

    def wait(self, is_so: Callable[[], bool], seconds: float | None = None) -> bool:
        """Block until something is so; False when it is not after some seconds."""
        while not is_so():
            own = threading.Lock()
            own.acquire()
            wake = partial(_release, own)
            self._waiting.append(wake)
            # What came in between has not rung for this one.
            if is_so() or (not own.acquire(timeout=LOOK_AGAIN_SECONDS if seconds is None else seconds)):
                with suppress(ValueError):
                    self._waiting.remove(wake)
                if seconds is not None:
                    return is_so()
        return True

    async def wait_on_loop(self, is_so: Callable[[], bool], seconds: float | None = None) -> bool:
        """As `wait`, without blocking."""
        loop = asyncio.get_running_loop()
        while not is_so():
            future: asyncio.Future[None] = loop.create_future()
            wake = partial(_wake, loop, future)
            self._waiting.append(wake)
            try:
                if is_so():
                    break
                if seconds is None:
                    await future
                elif not (await asyncio.wait({future}, timeout=seconds))[0]:
                    return is_so()
            finally:
                with suppress(ValueError):
                    self._waiting.remove(wake)
        return True


def _release(lock: threading.Lock) -> None:
    # Rung once by whoever has taken it out of the line.
    lock.release()


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    # The loop may be closed: then nobody waits any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(slots=True)
class Bounds:
    """What may wait of each writer, in bytes; the less, the more writers there are."""

    bytes_max: int = WAITING_BYTES_MAX


class Outlet:
    """The chunks of one writer of one attempt.

    Args:
        scope: the attempt that writes.
        run_id: the run that the stream belongs to.
        key: the stream's.
        is_announced: readers are to know of the stream before its first chunk.
        is_of_input: it counts what was taken of the run's input with this key, and nobody reads it.

    Attributes:
        writer: the name under which the server counts the chunks.
        waiting: chunks that the link has not taken yet.
        end: set when nothing more is added.
        bounds: what may wait; shared by all writers of an executor.
        under_way: how many chunks the link has taken and that are not stored. Only the link's thread changes it.
        settled_bytes: of all chunks that do not wait any more. Only the link's thread changes it.
        has_called: the link knows that something is here.
        end_is_taken: the link has seen the end, so what is added now will not be seen.
        bell: rings when there may be room, and when the outlet has been stopped.
    """

    __slots__ = (
        "_process_id",
        "_stopped",
        "added_bytes",
        "bell",
        "bounds",
        "end",
        "end_is_taken",
        "has_called",
        "is_announced",
        "is_of_input",
        "key",
        "run_id",
        "scope",
        "settled_bytes",
        "under_way",
        "waiting",
        "writer",
    )

    def __init__(
        self, scope: RunScope, run_id: str, key: str, *, is_announced: bool, is_of_input: bool = False
    ) -> None:
        self.scope = scope
        self.run_id = run_id
        self.key = key
        self.is_announced = is_announced
        self.is_of_input = is_of_input
        self.writer = f"{scope.run.attempt}-{secrets.token_hex(10)}"
        self.waiting: deque[bytes] = deque()
        self.end: WriterEnd | None = None
        self.bounds = Bounds()
        self.under_way = 0
        self.added_bytes = 0
        self.settled_bytes = 0
        self.has_called = False
        self.end_is_taken = False
        self.bell = Bell()
        self._stopped: tuple[str, str] | None = None
        self._process_id = os.getpid()

    def __repr__(self) -> str:
        return f"<writer {self.writer} of stream {self.key!r} of run {self.run_id}>"

    # --- the user's side -----------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not stored yet, about."""
        return self.added_bytes - self.settled_bytes

    def has_room(self) -> bool:
        """True when the next chunk can be added at once, or adding raises."""
        return self.end is not None or self._stopped is not None or self._is_below(self.bounds.bytes_max)

    def _is_below(self, bytes_max: int) -> bool:
        return self.waiting_bytes < bytes_max and len(self.waiting) + self.under_way < WAITING_CHUNKS_MAX

    def wait_for_room(self) -> None:
        """Block until there is room. On an event loop it never blocks."""
        self._check_process()
        if not self.has_room() and not is_in_event_loop():
            self.bell.wait(self.has_room)

    def wait_for_room_blocking(self) -> None:
        """As `wait_for_room`, for a source that blocks the event loop anyway: there it blocks when far too much waits."""
        if is_in_event_loop():
            if self.waiting_bytes >= UNAWAITED_BYTES_MAX:
                self.bell.wait(self.has_room)
        else:
            self.wait_for_room()

    async def wait_for_room_on_loop(self) -> None:
        """Wait until there is room."""
        if not self.has_room():
            self._check_process()
            await self.bell.wait_on_loop(self.has_room)

    def refuse_to_pile_up(self) -> None:
        """Raise UsageError when far too much waits, because code on an event loop adds without waiting for room."""
        if self.waiting_bytes >= UNAWAITED_BYTES_MAX:
            raise UsageError(
                f"{self.waiting_bytes:,} bytes of stream {self.key!r} wait for the server, more than the {UNAWAITED_BYTES_MAX:,} that "
                f"code on an event loop may add without waiting: await the call, as in `await streams.append(key, value)` or "
                f"`await write(value)`"
            )

    def add(self, chunk: bytes) -> None:
        """Add a chunk, JSON text, whether there is room or not. Raises StreamStoppedError; UsageError after the end."""
        self._check()
        self.added_bytes += len(chunk)
        self.waiting.append(chunk)
        if self.end_is_taken:
            # Another thread has ended it in this moment.
            self._check()
        self._call_link()

    def close(self, error: str | None = None) -> None:
        """Nothing more is added. Safe to repeat: the first end counts.

        Args:
            error: for readers, when it is the source that has failed.
        """
        if self.end is None:
            self.end = WriterEnd(error)
            self._call_link()
            self.bell.ring()

    def raise_if_stopped(self) -> None:
        """Raise StreamStoppedError when nothing of this writer will be stored any more."""
        if self._stopped is not None:
            message, reason = self._stopped
            raise StreamStoppedError(message, key=self.key, reason=reason)

    @property
    def is_stopped(self) -> bool:
        """True when nothing of this writer will be stored any more."""
        return self._stopped is not None

    def _check(self) -> None:
        self.raise_if_stopped()
        if self.end is not None:
            raise UsageError(f"this writer of stream {self.key!r} has been closed, and takes no more")
        self._check_process()

    def _check_process(self) -> None:
        if self._process_id != os.getpid():
            raise UsageError(
                f"stream {self.key!r} was opened in the process that this one was forked from, and only that one can write to it"
            )

    def _call_link(self) -> None:
        if not self.has_called:
            self.has_called = True
            self.scope.link.send_chunks(self)

    # --- the link's side -----------------------------------------------------------------------------------

    def stop(self, message: str, reason: str) -> None:
        """Nothing of this writer will be stored any more: whoever adds or waits is told."""
        if self._stopped is None:
            self._stopped = message, reason
            if reason not in ("lost", "worker_ended"):
                # The code may add nothing more, and would never see it.
                self.scope.link.log(self.scope, "error", message[:2000], LOGGER)
        self.waiting.clear()
        self.bell.ring()
