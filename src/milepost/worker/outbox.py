"""What this executor has to report, and when: bookkeeping without I/O, used on the link's thread only.

Outcomes, flushes and waits leave at once. Metadata and log lines of runs that go on leave together, the first after a quiet time at
once, later ones never more often than the flush interval (M35). One report is under way at a time; the next one gathers meanwhile.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.errors import MetadataFlushError
from milepost.model.run import Outcome, RunError
from milepost.protocol.metadata import Refused
from milepost.protocol.runs import LogLine
from milepost.protocol.work import RunReply, RunReport
from milepost.sdk.buffer import Batch, BufferBusy
from milepost.sdk.scope import RunScope

if TYPE_CHECKING:
    from milepost.sdk.task import Task

# Bounds of one request. A single run's report may be larger: it cannot be divided.
REPORT_RUNS_MAX = 1000
REPORT_BYTES_MAX = 4 * 1024 * 1024
LOG_LINES_MAX = 10_000
# How long one look waits, in all, for buffers that other threads do not leave.
BUSY_SECONDS_MAX = 0.1

_encode = msgspec.json.Encoder().encode


@dataclass(eq=False, slots=True)
class HeldRun:
    """One attempt of one run in this executor. Only the link's thread changes it, except `logs`, which any thread extends.

    Attributes:
        task: what is to be run; None when this executor has no such task.
        admitted_at: when the run was claimed, on the loop's clock.
        holds_slot: it may run user code.
        open_waits: how many things outside it waits for.
        said_waiting: what the server was last told, or will be told by the report under way.
        flushes: marks in the buffer, each with who waits until it is reached.
        logs: lines for the run's log; when the server is away for long, the oldest give way.
        is_over: nothing about it counts any more: it has been reported to its end, or the server gave it to someone else.
    """

    scope: RunScope
    task: "Task[Any, Any] | None"
    admitted_at: float = 0.0
    holds_slot: bool = False
    open_waits: int = 0
    said_waiting: bool = False
    flushes: list[tuple[int, Future[None]]] = field(default_factory=list[tuple[int, Future[None]]])
    logs: deque[LogLine] = field(default_factory=lambda: deque[LogLine](maxlen=LOG_LINES_MAX))
    outcome: Outcome | None = None
    is_over: bool = False


@dataclass(eq=False, slots=True)
class Entry:
    """One run's part of a report."""

    held: HeldRun
    report: RunReport
    batch: Batch | None


class Outbox:
    """Gathers what is to be reported.

    Args:
        flush_interval_seconds: no two reports that only carry metadata or logs of running tasks are closer than this.
    """

    def __init__(self, flush_interval_seconds: float) -> None:
        self._flush_interval_seconds = flush_interval_seconds
        self._urgent: dict[HeldRun, None] = {}
        self._changed: dict[HeldRun, None] = {}
        self._flushed_at = float("-inf")
        # Their buffers could not be looked into the last time.
        self._stuck: set[HeldRun] = set()

    def __bool__(self) -> bool:
        return bool(self._urgent or self._changed)

    def add(self, held: HeldRun, *, urgent: bool = False) -> None:
        """This attempt has something to report."""
        if not held.is_over:
            (self._urgent if urgent else self._changed)[held] = None

    def due_at(self) -> float | None:
        """When the next report should leave, on the loop's clock; None when there is nothing to report."""
        if self._urgent:
            return float("-inf")
        if self._changed:
            return self._flushed_at + self._flush_interval_seconds
        return None

    def take(self, now: float, *, everything: bool = False) -> list[Entry]:
        """What is to leave now. What is taken must be given to `answered` or `add` again."""
        taken = self._urgent
        self._urgent = {}
        if self._changed and (everything or now >= self._flushed_at + self._flush_interval_seconds):
            taken |= self._changed
            self._changed = {}
            self._flushed_at = now
        else:
            for held in taken:
                self._changed.pop(held, None)
        entries: list[Entry] = []
        patience_ends_at = time.monotonic() + BUSY_SECONDS_MAX
        for held in taken:
            if held.is_over:
                continue
            patience = 0.0 if held in self._stuck else max(0.0, patience_ends_at - time.monotonic())
            try:
                entry = _entry(held, patience)
            except BufferBusy:
                # A thread of the run was stopped in the middle of a call. The other runs do not wait for it.
                self._stuck.add(held)
                self._changed[held] = None
                self._flushed_at = now
                continue
            self._stuck.discard(held)
            if entry is not None:
                entries.append(entry)
            elif held.flushes:
                # Everything has been acknowledged, or cancelled out.
                release_flushes(held)
        return entries

    def answered(self, entry: Entry, reply: RunReply) -> None:
        """The server has applied this part of the report: take in its answer, release who waited for it."""
        held, report = entry.held, entry.report
        buffer = held.scope.buffer
        sequence = entry.batch.sequence if entry.batch is not None else 0
        buffer.acknowledged(sequence, refused=reply.refused, delta=reply.delta)
        if report.outcome is not None:
            held.is_over = True
        if held.flushes:
            release_flushes(held)
        if held.outcome is not None or held.flushes:
            self.add(held, urgent=True)
        elif buffer.has_unacknowledged or buffer.needs_refresh or held.logs:
            self.add(held)

    def forget(self, held: HeldRun) -> None:
        """Nothing about this attempt is to be reported any more."""
        held.is_over = True
        self._urgent.pop(held, None)
        self._changed.pop(held, None)
        self._stuck.discard(held)
        release_flushes(held)


def release_flushes(held: HeldRun) -> None:
    """Let those go on whose operations are all committed; with an error those whose operations never will be (M37)."""
    buffer = held.scope.buffer
    left: list[tuple[int, Future[None]]] = []
    for mark, future in held.flushes:
        if buffer.reached(mark):
            resolve(future)
        elif held.is_over:
            run = held.scope.run
            message = (
                f"attempt {run.attempt} of run {run.id} was given up before its metadata was committed; "
                f"what it writes does not count any more"
            )
            fail(future, MetadataFlushError(message))
        else:
            left.append((mark, future))
    held.flushes = left


def resolve(future: Future[None]) -> None:
    """Let the one who waits for this go on, unless they have given up."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(None)


def fail(future: Future[None], error: Exception) -> None:
    """Let the one who waits for this go on with an error, unless they have given up."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


def parcels(entries: Sequence[Entry]) -> Iterable[tuple[Sequence[Entry], bytes]]:
    """Divide a report into requests of bounded size, each with its body; the order is kept."""
    parts: list[bytes] = []
    start = size = 0
    for index, entry in enumerate(entries):
        part = _encode(entry.report)
        if parts and (size + len(part) > REPORT_BYTES_MAX or len(parts) >= REPORT_RUNS_MAX):
            yield entries[start:index], _body(parts)
            parts, start, size = [], index, 0
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield entries[start:], _body(parts)


def without_content(entry: Entry, reason: str) -> Entry:
    """The report of one run that the server cannot take (an output that is too large, for example), cut down to what it must take:
    the same number, no operations, a line in the log and an outcome that say why."""
    report = entry.report
    count = sum(len(change.operations) for change in report.changes)
    message = (
        f"{reason}; {count:,} metadata operations and {len(report.logs):,} lines of the log went with it"
    )
    outcome = report.outcome and Outcome(error=RunError(name="ReportRefusedError", message=reason))
    cut = RunReport(
        id=report.id,
        attempt=report.attempt,
        sequence=report.sequence,
        waiting=report.waiting,
        logs=[_error_line(message, report.attempt)],
        outcome=outcome,
    )
    return Entry(entry.held, cut, entry.batch)


def operations_refused(entry: Entry, reason: Exception) -> list[Refused]:
    """Every operation of a report that the server cannot take, as refused: who flushes them hears of it (M37)."""
    return [
        Refused(run=change.run, index=index, code="report_refused", message=str(reason))
        for change in entry.report.changes
        for index in range(len(change.operations))
    ]


def _body(parts: Sequence[bytes]) -> bytes:
    return b'{"runs":[' + b",".join(parts) + b"]}"


def _entry(held: HeldRun, patience_seconds: float) -> Entry | None:
    """The report of one attempt as it stands; None when there is nothing to say after all. Raises BufferBusy."""
    buffer = held.scope.buffer
    run = held.scope.run
    outcome = held.outcome
    for remark in buffer.take_remarks():
        held.logs.append(_error_line(remark, run.attempt))
    anyway = outcome is not None or bool(held.logs)
    batch = buffer.next_batch(anyway=anyway, patience_seconds=patience_seconds)
    logs = _take_logs(held) if batch is not None and held.logs else []
    waiting = held.open_waits > 0
    change = waiting if waiting is not held.said_waiting and outcome is None else None
    held.said_waiting = waiting
    if batch is None:
        if change is None and not buffer.needs_refresh:
            return None
        return Entry(
            held,
            RunReport(id=run.id, attempt=run.attempt, metadata_version=buffer.version, waiting=change),
            None,
        )
    if outcome is not None and not batch.is_last:
        # The rest of the operations goes first (M38): the outcome leaves with the last of them.
        outcome = None
    report = RunReport(
        id=run.id,
        attempt=run.attempt,
        sequence=batch.sequence,
        metadata_version=-1 if outcome is not None else buffer.version,
        changes=batch.changes,
        waiting=change,
        logs=logs,
        outcome=outcome,
    )
    return Entry(held, report, batch)


def _error_line(message: str, attempt: int) -> LogLine:
    return LogLine(
        at=time.time_ns() // 1000, level="error", message=message, attempt=attempt, logger="milepost.metadata"
    )


def _take_logs(held: HeldRun) -> list[LogLine]:
    lines: list[LogLine] = []
    # Other threads add lines meanwhile; those that come now go with the next report.
    for _ in range(len(held.logs)):
        lines.append(held.logs.popleft())
    return lines
