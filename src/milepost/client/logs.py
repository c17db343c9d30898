"""Reading the log of a run: what is there, and what comes as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from milepost.client import calls
from milepost.client.calls import Call
from milepost.client.connection import Connection
from milepost.model.run import RunStatus
from milepost.protocol.runs import RunLog, ToldLogLine

LogLevel = Literal["debug", "info", "warning", "error"]

LOOK_SECONDS = 1.0
"""How often the log of a tree is looked at."""
LATE_SECONDS = 0.5
"""So long after the end one looks again: the last lines may come behind the word that the run has ended."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LogLine(msgspec.Struct, frozen=True):
    """A line that a run has logged or printed.

    Attributes:
        at: when, an aware datetime.
        level: debug, info, warning or error.
        message: the text.
        attempt: the number of the run's attempt.
        logger: the name of the logger; empty for what was printed.
        run_id: the run.
    """

    at: datetime
    level: str
    message: str
    attempt: int
    logger: str
    run_id: str


class LogReader:
    """What is to be read next of a log; no I/O."""

    def __init__(
        self,
        run_id: str,
        *,
        tree: bool,
        level: str | None,
        attempt: int | None,
        search: str | None,
    ) -> None:
        self.run_id = run_id
        self.tree = tree
        given = {"level": level, "attempt": attempt, "search": search, "tree": "true" if tree else None}
        self._filters: Mapping[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._after = 0
        self._was_ended = self._has_ended = False
        self.has_more = True

    def call(self) -> Call[RunLog]:
        """Reads the next page."""
        return calls.run_log(self.run_id, self._filters, after=self._after)

    def take(self, page: RunLog) -> list[LogLine]:
        """The lines of a page; `has_more` says whether another one is there already."""
        is_late = page.has_ended and not page.data
        self._after, self.has_more = page.cursor, page.next is not None
        self._was_ended, self._has_ended = self._has_ended and is_late, page.has_ended
        return [self._line(line) for line in page.data]

    @property
    def is_over(self) -> bool:
        """True when the log had ended a moment ago already, and nothing has come since."""
        return self._was_ended

    def pause(self) -> float:
        """Seconds until one looks again."""
        return LATE_SECONDS if self._has_ended else LOOK_SECONDS

    def _line(self, line: ToldLogLine) -> LogLine:
        at = _EPOCH + timedelta(microseconds=line.at)
        run_id = line.run_id or self.run_id
        return LogLine(at, line.level, line.message, line.attempt, line.logger, run_id)


class _Growth:
    """Follows the feed of a run: a state, which is nothing but a reason to look, whenever the log has grown."""

    def __init__(self) -> None:
        self.has_ended = False
        self._has_grown = False

    def take(self, event: str, data: bytes) -> None:
        """Take one event of the feed."""
        # A snapshot comes first on each connection: what was logged in between is there.
        if event in ("snapshot", "log"):
            self._has_grown = True
        if event in ("snapshot", "delta"):
            run = msgspec.json.decode(data, type=_Frame).run
            if run is not None and run.status is not None:
                self.has_ended = RunStatus(run.status).is_final
        elif event == "end":
            self.has_ended = True

    def newest(self) -> bool | None:
        """True when there may be something to read; None when this has been said."""
        if not self._has_grown:
            return None
        self._has_grown = False
        return True


class _Run(msgspec.Struct):
    status: str | None = None


class _Frame(msgspec.Struct):
    run: _Run | None = None


def read_log(connection: Connection, reader: LogReader, *, follow: bool) -> Iterator[LogLine]:
    """The lines; with `follow` until the run has ended, or all runs of the tree have."""
    if follow and not reader.tree:
        for _ in connection.follow(calls.watch_run_log(reader.run_id), _Growth()):
            yield from _rest(connection, reader)
    while True:
        yield from _rest(connection, reader)
        if not follow or reader.is_over:
            return
        time.sleep(reader.pause())


async def aread_log(connection: Connection, reader: LogReader, *, follow: bool) -> AsyncIterator[LogLine]:
    """As `read_log`, without blocking."""
    import asyncio

    if follow and not reader.tree:
        async for _ in connection.afollow(calls.watch_run_log(reader.run_id), _Growth()):
            async for line in _arest(connection, reader):
                yield line
    while True:
        async for line in _arest(connection, reader):
            yield line
        if not follow or reader.is_over:
            return
        await asyncio.sleep(reader.pause())


def _rest(connection: Connection, reader: LogReader) -> Iterator[LogLine]:
    """What is there by now."""
    reader.has_more = True
    while reader.has_more:
        yield from reader.take(connection.send(reader.call()))


async def _arest(connection: Connection, reader: LogReader) -> AsyncIterator[LogLine]:
    reader.has_more = True
    while reader.has_more:
        for line in reader.take(await connection.asend(reader.call())):
            yield line
