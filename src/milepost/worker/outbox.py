"""What this executor has to report, and when: bookkeeping without I/O, used on the link's thread only.

Outcomes, flushes and waits leave at once. Metadata of runs that go on leaves together, the first after a quiet time at once, later
ones never more often than the flush interval (M35). One report is under way at a time; the next one gathers meanwhile.

A report that the server does not take is made smaller step by step, until it is known which part of which run is at fault: only that
part is given up, and whoever it belongs to is told. Log lines are no part of a report, see `log_book`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.errors import MetadataFlushError
from milepost.model.run import Outcome, RunError
from milepost.protocol.metadata import Refused
from milepost.protocol.work import RunReply, RunReport
from milepost.sdk.buffer import Batch, BufferBusy
from milepost.sdk.scope import RunScope, Stop
from milepost.worker.black_box import NOT_NOTED
from milepost.worker.log_book import AttemptLog

if TYPE_CHECKING:
    from milepost.sdk.task import Task

# Bounds of one request. A single run's report may be larger: it cannot be divided.
REPORT_RUNS_MAX = 1000
REPORT_BYTES_MAX = 4 * 1024 * 1024
# How long one look waits, in all, for buffers that other threads do not leave.
BUSY_SECONDS_MAX = 0.1
# From the beginning of one report of metadata to that of the next it is so many times as long as the last one has taken: a few
# milliseconds where the server is idle, and the flush interval where it is busy and larger groups cost it less.
PAUSE_SHARE = 2.0
ADAPTED_SECONDS_MAX = 0.05
# The texts of an error that the server did not take in full.
SHORT_TEXT_CHARACTERS_MAX = 1000

_encode = msgspec.json.Encoder().encode
# The one batch of an attempt that writes nothing.
_NOTHING = Batch(1, [], is_last=True)


class HeldRun:
    """One attempt of one run in this executor. Only the link's thread changes it.

    Attributes:
        task: what is to be run; None when this executor has no such task.
        admitted_at: when the run was claimed, on the loop's clock.
        holds_slot: it may run user code.
        is_alone: while it holds its slot no other run is given one; of a run that is apart, for a while.
        open_waits: how many things outside it waits for.
        said_waiting: what the server was last told, or will be told by the report under way.
        comes_back: what its code waits for while the server is asked whether the run may go on, or has said that it may not yet.
        asks_to_go_on: the server is to be asked (again), although it has been told.
        is_called: the server has said in the inbox that it may go on, while it was being asked.
        flushes: marks in the buffer, each with who waits until it is reached.
        log: the lines that have not been stored yet; None before the run is held.
        started_at: when its code was started, on the monotonic clock; 0 where nobody tells.
        is_begun: its code was started here.
        owes_begun: the server is to be told that it has.
        has_said_begun: the server has been told, or will be by the report under way.
        record: where it is noted in the black box.
        doubt: the number of the doubt whether the server has taken the run away meanwhile; 0 when there is none.
        is_held_back: the outcome waits for the last lines of the log, so that who sees the end finds them; not for long.
        stop: why it is to end, since it was asked to.
        is_given_up: its code has not ended within the grace time and executes still; what is said of it is said.
        seconds_max: how long it may execute; None for any time.
        seconds_left: the same from now on, as long as it waits and its clock stands still.
        is_over: nothing about it counts any more: it has been reported to its end, or the server gave it to someone else.
        is_behind: what may be new in the document is to be asked for: the last answer had no room for it, or nobody listened when it
            was said.
        last_batch: what its last report carries, where its code had no buffer: nothing.
    """

    scope: RunScope
    task: "Task[Any, Any] | None"
    # As most runs have it from their start to their end; a run that is different has its own.
    admitted_at: float = 0.0
    holds_slot: bool = False
    open_waits: int = 0
    said_waiting: bool = False
    comes_back: Future[None] | None = None
    asks_to_go_on: bool = False
    is_called: bool = False
    flushes: Sequence[tuple[int, Future[None]]] = ()
    log: AttemptLog | None = None
    started_at: float = 0.0
    is_begun: bool = False
    owes_begun: bool = False
    has_said_begun: bool = False
    record: int = NOT_NOTED
    doubt: int = 0
    outcome: Outcome | None = None
    stop: Stop | None = None
    is_given_up: bool = False
    seconds_max: float | None = None
    seconds_left: float = 0.0
    is_held_back: bool = False
    is_over: bool = False
    is_behind: bool = False
    last_batch: Batch | None = None

    def __init__(self, scope: RunScope, task: "Task[Any, Any] | None") -> None:
        self.scope = scope
        self.task = task
        self.is_alone = scope.run.is_apart

    @property
    def decided(self) -> Outcome | None:
        """How its code has ended, once that is decided; hooks may still run."""
        return None if self.scope.attempt is None else self.scope.attempt.outcome


@dataclass(eq=False, slots=True)
class Entry:
    """One run's part of a report."""

    held: HeldRun
    report: RunReport
    batch: Batch | None
    # The doubt that the answer settles, as `HeldRun.doubt` was.
    doubt: int = 0
    # What had to be left out of it, to be told when the rest is answered.
    given_up: list[Refused] = field(default_factory=list[Refused])
    body: bytes | None = None

    def encode(self) -> bytes:
        """As the request carries it. Raises ValueError when some text in it cannot be JSON."""
        if self.body is None:
            self.body = _encode(self.report)
        return self.body


class Outbox:
    """Gathers what is to be reported.

    Args:
        flush_interval_seconds: so long after the one before a report leaves that only carries metadata of running tasks, or as
            `PAUSE_SHARE` says where that is sooner. An interval above `ADAPTED_SECONDS_MAX` is kept whatever the server can do.
        tell: adds a line to the log of a run, with its level.
    """

    def __init__(
        self,
        flush_interval_seconds: float,
        tell: Callable[[HeldRun, str, str], None] = lambda held, level, message: None,
    ) -> None:
        self._flush_interval_seconds = flush_interval_seconds
        self._tell = tell
        self._urgent: dict[HeldRun, None] = {}
        self._changed: dict[HeldRun, None] = {}
        self._flushed_at = float("-inf")
        self._pause_seconds = flush_interval_seconds
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
            return self._flushed_at + self._pause_seconds
        return None

    def took(self, seconds: float) -> None:
        """So long it has taken until the last reports were answered."""
        if self._flush_interval_seconds <= ADAPTED_SECONDS_MAX:
            self._pause_seconds = min(self._flush_interval_seconds, seconds * PAUSE_SHARE)

    def take(self, now: float, *, everything: bool = False) -> list[Entry]:
        """What is to leave now. What is taken must be given to `answered` or `add` again."""
        taken = self._urgent
        self._urgent = {}
        if self._changed and (everything or now >= self._flushed_at + self._pause_seconds):
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
                entry = self._entry(held, patience)
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
        buffer = held.scope.made_buffer
        if buffer is None and (reply.delta is not None or reply.refused):
            # Its code may ask any time.
            buffer = held.scope.buffer
        if buffer is not None:
            sequence = entry.batch.sequence if entry.batch is not None else 0
            buffer.acknowledged(sequence, refused=[*reply.refused, *entry.given_up], delta=reply.delta)
        if report.outcome is not None:
            held.is_over = True
        if held.flushes:
            release_flushes(held)
        if (held.outcome is not None and not held.is_held_back) or held.flushes:
            self.add(held, urgent=True)
        elif buffer is None:
            held.is_behind = reply.behind
            if reply.behind:
                self.add(held)
        elif buffer.has_unacknowledged or buffer.needs_refresh or reply.behind:
            held.is_behind = reply.behind
            self.add(held)

    def _entry(self, held: HeldRun, patience_seconds: float) -> Entry | None:
        """The report of one attempt as it stands; None when there is nothing to say after all. Raises BufferBusy."""
        buffer = held.scope.made_buffer
        run = held.scope.run
        outcome = None if held.is_held_back else held.outcome
        version, needs_refresh = run.metadata_version, False
        if buffer is None or held.last_batch is not None:
            # Nothing was written. That is so to the end, whatever code does that the task has left running: the number may have been
            # sent.
            if outcome is not None:
                held.last_batch = _NOTHING
            batch = held.last_batch
        else:
            for remark in buffer.take_remarks():
                self._tell(held, "error", remark)
            batch = buffer.next_batch(anyway=outcome is not None, patience_seconds=patience_seconds)
            version, needs_refresh = buffer.version, buffer.needs_refresh
        # Who asks to go on still waits for the answer, but has said what it wants.
        waiting = held.open_waits > 0 and held.comes_back is None
        says_it = (waiting is not held.said_waiting or held.asks_to_go_on) and held.outcome is None
        change = waiting if says_it else None
        held.said_waiting, held.asks_to_go_on = waiting, False
        begun, held.owes_begun = held.owes_begun, False
        is_behind, held.is_behind = held.is_behind, False
        if batch is not None or begun or change is not None:
            held.has_said_begun = True
        if batch is None:
            if change is None and not begun and not held.doubt and not needs_refresh and not is_behind:
                return None
            report = RunReport(
                id=run.id, attempt=run.attempt, metadata_version=version, begun=begun, waiting=change
            )
            return Entry(held, report, None, held.doubt)
        if outcome is not None and not batch.is_last:
            # The rest of the operations goes first (M38): the outcome leaves with the last of them.
            outcome = None
        report = RunReport(
            id=run.id,
            attempt=run.attempt,
            sequence=batch.sequence,
            metadata_version=-1 if outcome is not None else version,
            changes=batch.changes,
            begun=begun,
            waiting=change,
            outcome=outcome,
        )
        return Entry(held, report, batch, held.doubt)

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


def fail(future: Future[None], error: BaseException) -> None:
    """Let the one who waits for this go on with an error, unless they have given up."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


def parcels(entries: Sequence[Entry]) -> Iterable[Sequence[Entry]]:
    """Divide a report into requests of bounded size; the order is kept. What cannot be encoded is a request of its own."""
    start = size = 0
    for index, entry in enumerate(entries):
        try:
            part = len(entry.encode())
        except ValueError:
            part = REPORT_BYTES_MAX
        if index > start and (size + part > REPORT_BYTES_MAX or index - start >= REPORT_RUNS_MAX):
            yield entries[start:index]
            start, size = index, 0
        size += part + 1
    if start < len(entries):
        yield entries[start:]


def body_of(entries: Sequence[Entry]) -> bytes:
    """The request that carries these reports. Raises ValueError when some text in it cannot be JSON."""
    return b'{"runs":[' + b",".join(entry.encode() for entry in entries) + b"]}"


def smaller(entry: Entry, reason: Exception) -> Entry | None:
    """The report of one run with less in it, because the server did not take it as it was; None when nothing can be left out.

    First the operations go without the outcome, then fewer and fewer of them, until one alone is refused. An outcome that is
    refused alone is cut down to what has to be said.

    Raises: BufferBusy when a thread of the run was stopped in the middle of a call.
    """
    report, batch = entry.report, entry.batch
    if report.changes and report.outcome is not None:
        return _changed(entry, outcome=None)
    if len(report.changes) > 1 or (report.changes and len(report.changes[0].operations) > 1):
        batch = entry.held.scope.buffer.divide(patience_seconds=BUSY_SECONDS_MAX)
        assert batch is not None, "there were several operations"
        return Entry(entry.held, msgspec.structs.replace(report, changes=batch.changes), batch, entry.doubt)
    if report.changes:
        [change] = report.changes
        refused = Refused(run=change.run, index=0, code="report_refused", message=str(reason))
        return _changed(entry, changes=[], given_up=[refused])
    if report.outcome is not None and (outcome := _smaller_outcome(report.outcome, reason)) is not None:
        return _changed(entry, outcome=outcome)
    return None


def _changed(entry: Entry, *, given_up: Sequence[Refused] = (), **fields: Any) -> Entry:
    report = msgspec.structs.replace(entry.report, **fields)
    return Entry(entry.held, report, entry.batch, entry.doubt, [*entry.given_up, *given_up])


def _smaller_outcome(outcome: Outcome, reason: Exception) -> Outcome | None:
    """What the server can be told instead of an outcome that it does not take; None when that is refused too."""
    error = outcome.error
    if error is None:
        size = len((outcome.output or "").encode("utf-8", "backslashreplace"))
        message = f"the server does not take the task's output of {size:,} bytes: {reason}; store it elsewhere and return where"
        return Outcome(error=RunError(name="ReportRefusedError", message=_plain(message)))
    if (
        error.stack_trace is None
        and error.message.isascii()
        and len(error.message) <= SHORT_TEXT_CHARACTERS_MAX
    ):
        return None
    short = RunError(
        message=_plain(error.message)[:SHORT_TEXT_CHARACTERS_MAX],
        name=_plain(error.name or "Error")[:SHORT_TEXT_CHARACTERS_MAX],
    )
    return msgspec.structs.replace(outcome, error=short)


def _plain(text: str) -> str:
    """Text that every server takes."""
    return text.encode("ascii", "backslashreplace").decode()
