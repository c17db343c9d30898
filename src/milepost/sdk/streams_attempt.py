"""The streams that one attempt writes, and how they end with it.

A run that succeeds waits until its sources have come to their ends. Where the attempt fails, or was given up, the sources are closed,
since one of them may have no end, and readers are told why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

from milepost.sdk.context import LOGGER
from milepost.sdk.safe_text import name_of, text_of
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import Bell
from milepost.sdk.streams_values import ERROR_CHARACTERS_MAX

# The run's log tells what a run waits for that has returned so long ago.
TELL_SECONDS = 10.0
# How long a failed attempt waits for its sources to clean up behind themselves.
CLOSE_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.5


class Pipe(Protocol):
    """A source that is being captured."""

    key: str

    @property
    def is_done(self) -> bool:
        """The source has come to its end, or was closed."""
        ...

    @property
    def is_closing(self) -> bool:
        """The source is cleaning up, and that will have an end."""
        ...

    def leave_to_background(self) -> None:
        """There is no local reader any more: capture the rest without one. Never waits."""
        ...

    def stop(self, error: str) -> None:
        """Close the source; readers are told of this error. Never waits."""
        ...


class Ending(Protocol):
    """A writer that ends with the attempt if it has not before."""

    def end(self, error: str | None) -> None:
        """Nothing more comes. Safe to repeat. Never waits."""
        ...


class AttemptStreams:
    """What one attempt has to end. Any thread may add to it, at any moment: no lock, each step is one."""

    def __init__(self, scope: RunScope) -> None:
        self._scope = scope
        self._pipes: dict[Pipe, None] = {}
        self._writers: dict[Ending, None] = {}
        # The writers of `streams.append`, by run and key.
        self.appending: dict[tuple[str, str], Any] = {}
        # Those that count what was taken of inputs, by key.
        self.inputs: dict[str, Any] = {}
        self._bell = Bell()

    @staticmethod
    def of(scope: RunScope) -> AttemptStreams:
        """Those of an attempt; made when they are first asked for."""
        if scope.streams is None:
            # One step: of two threads that are here at once, both get the same.
            scope.streams = scope.__dict__.setdefault("_streams", AttemptStreams(scope))
        return cast("AttemptStreams", scope.streams)

    def add_pipe(self, pipe: Pipe) -> None:
        """A source is being captured from now on."""
        self._pipes[pipe] = None

    def add_writer(self, writer: Ending) -> None:
        """A writer has begun."""
        self._writers[writer] = None

    def forget_writer(self, writer: Ending) -> None:
        """A writer has ended by itself."""
        self._writers.pop(writer, None)

    def pipe_is_done(self, pipe: Pipe) -> None:
        """A source has come to its end."""
        self._pipes.pop(pipe, None)
        self._bell.ring()

    def has_ended(self) -> bool:
        """True when no source is left to be captured, or nobody cares any more."""
        return not self._pipes or self._scope.is_lost

    def _has_closed(self) -> bool:
        return not any(pipe.is_closing for pipe in list(self._pipes))

    def end(self, error: str | None) -> None:
        """End all streams with the attempt, in its thread; see the module."""
        if error is None and not self._scope.is_lost:
            self._go_on_without_readers()
            told = False
            waited = 0.0
            while not self._bell.wait(self.has_ended, LOOK_SECONDS):
                waited += LOOK_SECONDS
                if waited >= TELL_SECONDS and not told:
                    told = True
                    self._tell()
            self._end_writers(None)
        else:
            self._close(error)
            self._bell.wait(self._has_closed, CLOSE_SECONDS_MAX)

    async def end_on_loop(self, error: str | None) -> None:
        """As `end`, on the worker's event loop."""
        if error is None and not self._scope.is_lost:
            self._go_on_without_readers()
            if not await self._bell.wait_on_loop(self.has_ended, TELL_SECONDS):
                self._tell()
                while not await self._bell.wait_on_loop(self.has_ended, LOOK_SECONDS):
                    pass
            self._end_writers(None)
        else:
            self._close(error)
            if not self._scope.is_lost:
                await self._bell.wait_on_loop(self._has_closed, CLOSE_SECONDS_MAX)

    def _go_on_without_readers(self) -> None:
        for pipe in list(self._pipes):
            pipe.leave_to_background()

    def _close(self, error: str | None) -> None:
        message = error or "the attempt was given up"
        for pipe in list(self._pipes):
            pipe.stop(message)
        self._end_writers(message)

    def _end_writers(self, error: str | None) -> None:
        for writer in list(self._writers):
            writer.end(error)
        self._writers.clear()

    def _tell(self) -> None:
        keys = ", ".join(sorted({repr(pipe.key) for pipe in list(self._pipes)}))
        message = (
            f"the task has returned, and the run goes on until its streams have come to their ends: {keys}"
        )
        self._scope.link.log(self._scope, "info", message[:1000], LOGGER)


def message_of(error: BaseException) -> str:
    """What readers of a stream are told of an error. Never raises."""
    name, text = name_of(type(error)), text_of(error)
    return (f"{name}: {text}" if text else name)[:ERROR_CHARACTERS_MAX]


def tell_of_failure(scope: RunScope, key: str, error: BaseException) -> None:
    """A source has failed without anybody in the task to see it: the run's log has it."""
    message = f"stream {key!r:.100}: its source has failed, and nothing in the task was reading: {message_of(error)}"
    scope.link.log(scope, "error", message[:2000], LOGGER)


def start_thread(work: Callable[[], None]) -> None:
    """Run something in a thread of its own. Raises RuntimeError when the system gives none."""
    threading.Thread(target=work, name="milepost-stream", daemon=True).start()
