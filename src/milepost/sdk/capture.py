"""What a run prints and logs goes into the run's log as well as to where it goes anyway.

Which run a line belongs to is told by the context of the code that writes it, as for `metadata`: code that belongs to no run, a thread
that was not bound for example, just prints. What a program that the run starts writes by itself, past this process, is not seen.

Python's logging is heard where every record passes that is not filtered out, whichever handlers there are and whatever becomes of them
later: `basicConfig` in the user's code works as ever.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from milepost.sdk.records import level_name, message_of
from milepost.sdk.safe_text import LINE_CHARACTERS_MAX, text_of, traceback_of
from milepost.sdk.scope import RunScope, live_scope

# Of a text that is printed at once: lines of its beginning and its end are logged, what is between them is counted.
HEAD_CHARACTERS_MAX = 64 * 1024
TAIL_CHARACTERS_MAX = 1024 * 1024

LOGGER = "milepost.log"


class _ThisThread(threading.local):
    is_logging = False


_this_thread = _ThisThread()
# Streams that were replaced; closing them would close what lies below.
_replaced: list[Any] = []
_is_off = False


def capture_output() -> None:
    """From now on, what runs of this process print and log goes into their logs. Call it once, before user code runs."""
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        if isinstance(before, io.TextIOWrapper):
            before.flush()
            _replaced.append(before)
            setattr(sys, name, _CapturedStream(cast("io.TextIOWrapper[Any]", before), name))
    _hear_logging()
    os.register_at_fork(after_in_child=_stop)


@contextmanager
def capturing_output() -> Generator[None]:
    """As `capture_output`, in this block: what was there before is there again afterwards. For a program that is no worker."""
    heard: list[tuple[str, Any, _HeardStream]] = []
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        stream = _HeardStream(before, name)
        setattr(sys, name, stream)
        heard.append((name, before, stream))
    call_handlers = logging.Logger.callHandlers
    _hear_logging()
    hearing = logging.Logger.callHandlers
    try:
        yield
    finally:
        # Somebody else may have put something in their place meanwhile.
        for name, before, stream in heard:
            if getattr(sys, name) is stream:
                setattr(sys, name, before)
            stream.is_over = True
        if logging.Logger.callHandlers is hearing:
            logging.Logger.callHandlers = call_handlers


def _stop() -> None:
    """A forked child just prints: it has no connection to the server."""
    global _is_off
    _is_off = True


@contextmanager
def uncaptured() -> Generator[None]:
    """What is printed and logged in this block, in this thread, is in the run's log already, or does not belong there."""
    before = _this_thread.is_logging
    _this_thread.is_logging = True
    try:
        yield
    finally:
        _this_thread.is_logging = before


def end_lines(scope: RunScope) -> None:
    """The run's code has ended: what was printed without a line feed at its end is a line now."""
    unended, scope.unended_lines = scope.unended_lines, None
    for (logger, _), text in (unended or {}).items():
        if line := _overprinted(text):
            scope.link.log(scope, "info", line, logger)


# --- print -------------------------------------------------------------------------------------------------


class _CapturedStream(io.TextIOWrapper):
    """Standard output or standard error, heard by the run that writes."""

    def __init__(self, before: io.TextIOWrapper[Any], logger: str) -> None:
        super().__init__(
            before.buffer,
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )
        self._logger = logger
        self._bytes = _CapturedBytes(before.buffer, logger, before.encoding)

    @property
    def buffer(self) -> BinaryIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same for those who write bytes."""
        return cast("BinaryIO", self._bytes)

    def write(self, text: str, /) -> int:
        """Write the text, and let the run hear it."""
        written = super().write(text)
        _hear(self._logger, text)
        return written


class _HeardStream:
    """Whatever stream was there before, heard by the run that writes text to it."""

    def __init__(self, before: Any, logger: str) -> None:
        self._before = before
        self._logger = logger
        self.is_over = False

    def write(self, text: str, /) -> Any:
        """Write the text, and let the run hear it."""
        written = self._before.write(text)
        if not self.is_over:
            _hear(self._logger, text)
        return written

    def writelines(self, lines: Iterable[str], /) -> None:
        """Write several pieces."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Any:
        return iter(self._before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._before, name)


class _CapturedBytes:
    """The bytes below a captured stream: everything is as it was but for `write`."""

    def __init__(self, before: BinaryIO, logger: str, encoding: str) -> None:
        self._before = before
        self._logger = logger
        self._encoding = encoding

    def write(self, data: Any, /) -> int:
        """Write the bytes, and let the run hear them as text."""
        written = self._before.write(data)
        if live_scope() is not None:
            _hear(self._logger, bytes(data).decode(self._encoding, "backslashreplace"))
        return written

    def writelines(self, lines: Iterable[Any], /) -> None:
        """Write several pieces."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._before, name)


def _hear(logger: str, text: str) -> None:
    """A run may have written this. Never raises."""
    scope = live_scope()
    if scope is None or _is_off or _this_thread.is_logging or not text:
        return
    # The print of a finalizer in the middle of this one finds nothing unended, and is a line of its own.
    key = logger, threading.get_ident()
    unended = scope.unended_lines
    if unended is None:
        unended = scope.unended_lines = {}
    text = unended.pop(key, "") + text
    place = 0
    last = text.rfind("\n")
    if last > HEAD_CHARACTERS_MAX + TAIL_CHARACTERS_MAX:
        head = text.rfind("\n", 0, HEAD_CHARACTERS_MAX) + 1
        tail = text.find("\n", last - TAIL_CHARACTERS_MAX) + 1
        place = _log_lines(scope, logger, text, place, head)
        count = text.count("\n", place, tail)
        if count:
            message = (
                f"{count:,} lines ({tail - place:,} characters) were left out here: they were written at once"
            )
            scope.link.log(scope, "warning", message, LOGGER)
            place = tail
    place = _log_lines(scope, logger, text, place, last + 1)
    rest = _without_overprinted(text[place:])
    if len(rest) > LINE_CHARACTERS_MAX:
        scope.link.log(scope, "info", rest, logger)
    elif rest:
        unended[key] = rest


def _log_lines(scope: RunScope, logger: str, text: str, start: int, end: int) -> int:
    """Log the whole lines between two places; the place behind the last of them."""
    while start < end:
        line_end = text.find("\n", start, end)
        if line_end < 0:
            break
        scope.link.log(scope, "info", _overprinted(text[start:line_end]), logger)
        start = line_end + 1
    return start


def _overprinted(line: str) -> str:
    """What a terminal shows of a line in the end, when the beginning was returned to (progress bars do)."""
    return _without_overprinted(line).rstrip("\r")


def _without_overprinted(line: str) -> str:
    if "\r" not in line:
        return line
    shown = line.rstrip("\r")
    return shown.rpartition("\r")[2] + ("\r" if len(shown) < len(line) else "")


# --- logging -----------------------------------------------------------------------------------------------


def _hear_logging() -> None:
    call_handlers = logging.Logger.callHandlers

    def heard(self: logging.Logger, record: logging.LogRecord) -> None:
        if _this_thread.is_logging or _is_off:
            call_handlers(self, record)
            return
        scope = live_scope()
        if scope is not None:
            scope.link.log(scope, level_name(record.levelno), _line_of(record), text_of(record.name))
        # What the handlers print is this record once more.
        with uncaptured():
            call_handlers(self, record)

    logging.Logger.callHandlers = heard


def _line_of(record: logging.LogRecord) -> str:
    """The text of a record with its traceback. Never raises."""
    text = message_of(record)
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None:
        text = f"{text}\n{traceback_of(error)}"
    return f"{text}\n{text_of(record.stack_info)}" if record.stack_info else text
