"""What a process says on standard error while it works: one line for each thing that happens, as text or as JSON.

A run's start and end are told on the thread that talks to the server, which must never wait for a terminal that was stopped or a pipe
that nobody empties. So lines are written by a thread of their own, and beyond `LINES_MAX` they are counted and not kept. At thousands
of runs per second nobody reads a line for each: beyond `LINES_PER_SECOND` starts and ends are told together, once a second.
"""

import contextlib
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.model.run import Outcome
from milepost.model.text import visible
from milepost.sdk.records import level_name, message_of
from milepost.sdk.safe_text import carried, traceback_of
from milepost.worker.settings import LogFormat, LogLevel

if TYPE_CHECKING:
    # A server and a supervisor run nothing.
    from milepost.protocol.work import ClaimedRun
    from milepost.worker.outbox import HeldRun

LINES_MAX = 10_000
LINES_PER_SECOND = 100
TRACEBACKS_PER_SECOND = 20
SUMMARY_SECONDS = 1.0
MESSAGE_CHARACTERS_MAX = 300
FLUSH_SECONDS_MAX = 1.0

LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_COLORS: dict[str, str] = {"warning": "33", "error": "31", "debug": "2"}


def format_line(
    form: LogFormat,
    level: LogLevel,
    logger: str,
    message: str,
    *,
    trace: str = "",
    at: float | None = None,
    color: bool = False,
    **fields: Any,
) -> str:
    """One line with its line feed: local time to the millisecond, level, what happened. Control characters are made visible.

    Args:
        trace: a traceback, on lines of its own as text.
        at: seconds since 1970; now when it is left out.
        fields: what the message says, for programs that read JSON. None leaves one out.
    """
    moment = datetime.fromtimestamp(time.time() if at is None else at).astimezone()
    if form == "json":
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": level,
            "logger": logger,
            "message": carried(message),
            **{name: value for name, value in fields.items() if value is not None},
        }
        if trace:
            line["traceback"] = carried(trace)
        return msgspec.json.encode(line).decode() + "\n"
    name = f"{level.upper():<7}"
    if color and level in _COLORS:
        name = f"\x1b[{_COLORS[level]}m{name}\x1b[0m"
    when = moment.isoformat(sep=" ", timespec="milliseconds")[:23]
    return f"{when} {name} {visible(message)}\n" + (f"{visible(trace)}\n" if trace else "")


class LineWriter:
    """Writes lines to a descriptor, in order, on a thread of its own. `write` returns at once, from any thread."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | threading.Event | tuple[float, Callable[[], None]]] = (
            queue.SimpleQueue()
        )
        self._left_out = 0
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Write a line, line feed included; without a word to the caller if nobody takes it."""
        if self._lines.qsize() >= LINES_MAX:
            self._left_out += 1
            return
        self._put(line)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call this after some time, on the thread that writes."""
        self._put((time.monotonic() + seconds, call))

    def flush(self, seconds_max: float = FLUSH_SECONDS_MAX) -> None:
        """Wait until everything is written, but not long."""
        if self._thread is not None and self._thread.is_alive():
            written = threading.Event()
            self._lines.put(written)
            written.wait(seconds_max)

    def _put(self, item: "str | tuple[float, Callable[[], None]]") -> None:
        self._lines.put(item)
        if self._thread is None and self._starting.acquire(blocking=False):
            thread = threading.Thread(target=self._work, name="milepost-lines", daemon=True)
            # Without one more thread there are no lines; everything else goes on.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _work(self) -> None:
        due: list[tuple[float, Callable[[], None]]] = []
        while True:
            timeout = max(0.0, due[0][0] - time.monotonic()) if due else None
            try:
                item = self._lines.get(timeout=timeout)
            except queue.Empty:
                due.pop(0)[1]()
                continue
            if isinstance(item, tuple):
                due.append(item)
                continue
            if isinstance(item, threading.Event):
                for _, call in due:
                    call()
                due.clear()
                while self._lines.qsize():
                    another = self._lines.get()
                    if isinstance(another, str):
                        self._write(another)
                    elif isinstance(another, threading.Event):
                        another.set()
                item.set()
                continue
            if self._left_out:
                count, self._left_out = self._left_out, 0
                item = f"({count:,} lines were left out here: they came faster than they could be written)\n{item}"
            self._write(item)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                # Nobody reads any more.
                return


class Teller:
    """Says what happens.

    Args:
        level: what is below it is not said.
    """

    def __init__(self, writer: LineWriter, *, level: LogLevel = "info", form: LogFormat = "text") -> None:
        self.writer = writer
        self.form: LogFormat = form
        self.level: LogLevel = level
        self._least = LEVELS[level]
        self.is_limited = level != "debug"
        self._color = form == "text" and os.isatty(2) and not os.environ.get("NO_COLOR")

    def says(self, level: LogLevel) -> bool:
        """True when lines of this level are said."""
        return LEVELS[level] >= self._least

    def say(
        self, level: LogLevel, message: str, *, logger: str = "milepost", trace: str = "", **fields: Any
    ) -> None:
        """One line, if its level is said at all."""
        if self.says(level):
            self.writer.write(
                format_line(self.form, level, logger, message, trace=trace, color=self._color, **fields)
            )


class RunTeller:
    """Says what becomes of runs: a line for each start and end, and more than can be read in sum. Used on the link's thread."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._says_progress = teller.says("info")
        self._room = self._trace_room = 0
        self._window_ends_at = 0.0
        # What has not been said, by task and what happened; the thread that writes takes it.
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}

    def started(self, held: "HeldRun") -> None:
        """The run's code is started."""
        held.started_at = now = time.monotonic()
        if self._says_progress:
            if self._has_room(now):
                self._say(held, "info", "started", event="run.started")
            else:
                self._count(held.scope.run.task, "started")

    def ended(self, held: "HeldRun", outcome: Outcome) -> None:
        """The run's code has ended."""
        now = time.monotonic()
        seconds = now - held.started_at
        error = outcome.error
        if error is None:
            if self._says_progress and self._has_room(now):
                self._say(
                    held,
                    "info",
                    f"completed in {_duration(seconds)}",
                    event="run.completed",
                    duration=seconds,
                )
            elif self._says_progress:
                self._count(held.scope.run.task, "completed")
            return
        retry = outcome.retry_after_ms
        level: LogLevel = "error" if retry is None else "warning"
        if not self._teller.says(level):
            return
        if not self._has_trace_room(now):
            self._count(held.scope.run.task, "failed" if retry is None else "failed and will be tried again")
            return
        again = "" if retry is None else f", to be tried again in {_duration(retry / 1000)}"
        name = error.name or "Error"
        lines = error.message.splitlines() or [""]
        short = lines[0][:MESSAGE_CHARACTERS_MAX] + ("..." if len(lines[0]) > MESSAGE_CHARACTERS_MAX else "")
        self._say(
            held,
            level,
            f"failed in {_duration(seconds)}{again}: {name}: {short}",
            event="run.failed" if retry is None else "run.retried",
            trace=error.stack_trace or "",
            duration=seconds,
            retry_in_seconds=None if retry is None else retry / 1000,
            error={"name": name, "message": error.message},
        )

    def flush(self) -> None:
        """Say what was counted, and wait a moment until everything is written."""
        self._summarize()
        self._teller.writer.flush()

    def _say(
        self,
        held: "HeldRun",
        level: LogLevel,
        what: str,
        *,
        event: str,
        trace: str = "",
        duration: float | None = None,
        **fields: Any,
    ) -> None:
        run = held.scope.run
        self._teller.say(
            level,
            f"{run.task} {run.id} attempt {run.attempt} {what}",
            logger="milepost.worker",
            trace=trace,
            event=event,
            task=run.task,
            run_id=run.id,
            attempt=run.attempt,
            duration_seconds=None if duration is None else round(duration, 6),
            **fields,
        )

    def _open_window(self, now: float) -> None:
        if now >= self._window_ends_at:
            self._window_ends_at = now + 1.0
            self._room, self._trace_room = LINES_PER_SECOND, TRACEBACKS_PER_SECOND

    def _has_room(self, now: float) -> bool:
        self._open_window(now)
        self._room -= 1
        return self._room >= 0 or not self._teller.is_limited

    def _has_trace_room(self, now: float) -> bool:
        self._open_window(now)
        self._trace_room -= 1
        return self._trace_room >= 0 or not self._teller.is_limited

    def _count(self, task: str, what: str) -> None:
        with self._lock:
            if not self._counts:
                self._teller.writer.later(SUMMARY_SECONDS, self._summarize)
            key = task, what
            self._counts[key] = self._counts.get(key, 0) + 1

    def _summarize(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, {}
        by_task: dict[str, dict[str, int]] = {}
        for (task, what), count in counts.items():
            by_task.setdefault(task, {})[what] = count
        for task, whats in by_task.items():
            said = ", ".join(f"{count:,} {what}" for what, count in whats.items())
            level: LogLevel = "error" if "failed" in whats else "info"
            self._teller.say(
                level,
                f"{task}: within a second {said} (beside those told one by one; --log-level debug tells all)",
                logger="milepost.worker",
                event="runs.summary",
                task=task,
                counts=whats,
            )


def _duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 0.001:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"


# --- Python's logging --------------------------------------------------------------------------------------


class LineFormatter(logging.Formatter):
    """Records of Python's logging in the same form.

    Args:
        run: the run that a record is about, if it is about one; asked where the record was made.
    """

    def __init__(self, form: LogFormat, run: "Callable[[], ClaimedRun | None]") -> None:
        super().__init__()
        self._form: LogFormat = form
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its line feed. Never raises."""
        run = self._run()
        trace = ""
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            trace = traceback_of(record.exc_info[1])
        if record.stack_info:
            trace = f"{trace}\n{record.stack_info}".lstrip("\n")
        message = message_of(record)
        if self._form == "text":
            about = "" if run is None else f" [{run.id}]"
            message = f"{record.name}{about}: {message}"
        line = format_line(
            self._form,
            level_name(record.levelno),
            record.name,
            message,
            trace=trace,
            at=record.created,
            task=run and run.task,
            run_id=run and run.id,
            attempt=run and run.attempt,
        )
        return line.removesuffix("\n")


class LineHandler(logging.Handler):
    """Hands records to the thread that writes: whoever logs never waits for the terminal."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, some time soon."""
        self._writer.write(self.format(record) + "\n")


def show_logging_of_tasks(level: LogLevel, form: LogFormat) -> None:
    """Show what tasks log on standard error, unless the user's own code has set up Python's logging.

    Whoever logs writes the line, so that lines and prints keep their order.

    Args:
        level: what is below it is not shown. The logs of runs have everything from `info` on.
    """
    from milepost.sdk.scope import live_scope

    def run() -> "ClaimedRun | None":
        scope = live_scope()
        return None if scope is None else scope.run

    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(form, run))
    handler.setLevel(LEVELS[level])
    root.addHandler(handler)
    root.setLevel(min(logging.INFO, LEVELS[level]))


def show_logging_of_server(teller: Teller) -> None:
    """Show what the server logs. Of the libraries below it only warnings."""
    handler = LineHandler(teller.writer)
    handler.setFormatter(LineFormatter(teller.form, lambda: None))
    root, ours = logging.getLogger(), logging.getLogger("milepost")
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, LEVELS[teller.level]))
    ours.setLevel(LEVELS[teller.level])
