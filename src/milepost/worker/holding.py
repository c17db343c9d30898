"""The runs that an executor holds: who has a slot, who waits for what, what is to be reported. Bookkeeping without I/O.

It belongs to the link's thread; the link tells it what has happened and asks it what to do. It speaks to the executor through
`Host`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

import msgspec

from milepost.errors import AttemptOverError
from milepost.model.lifecycle import CANCELLED, took_too_long
from milepost.model.run import AttemptEnd, Outcome
from milepost.protocol.work import ClaimedRun, InboxFrame, RunReply
from milepost.sdk.attempt import may_hang_in_hooks
from milepost.sdk.scope import RunScope, Stop
from milepost.sdk.settings import task_settings
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.black_box import NOT_NOTED, BlackBox
from milepost.worker.chunk_book import ChunkBook
from milepost.worker.lease import Lease
from milepost.worker.log_book import LogBook
from milepost.worker.outbox import Entry, HeldRun, Outbox, fail, release_flushes, resolve
from milepost.worker.pace import Pace
from milepost.worker.settings import ALONE_SECONDS
from milepost.worker.slots import Slots
from milepost.worker.telling import RunTeller
from milepost.worker.waits import Waits

# How long an outcome waits for the last lines of its run's log. Who sees the end of a run then finds its log whole, but no log may
# keep a run from ending.
HOLD_BACK_SECONDS_MAX = 2.0
# The server is told that code has begun when it has run for this long and has said nothing: runs that are short need not say so.
BEGUN_SECONDS = 1.0
# How often to ask whether a run may go on whose queue was full; the inbox says it sooner.
ASK_AGAIN_SECONDS = 5.0
# The time for which a run is alone doubles with its attempts so often, at most.
DOUBLINGS_MAX = 20
# How long code may go on that was asked to end, until the server has said it.
GRACE_SECONDS = 30.0
# How much later than the link would have its process killed a supervisor does so, for one whose link is held up.
KILL_MARGIN_SECONDS = 2.0

_CANCELLED = Stop(AttemptEnd.CANCELLED, CANCELLED)


class Host(Protocol):
    """What is asked of the executor. Called on the link's thread; every method returns at once."""

    def admit(self, run: ClaimedRun, metadata_size_max: int) -> HeldRun:
        """The first record of a claimed run; its code is not started yet."""
        ...

    def start(self, runs: Sequence[HeldRun]) -> None:
        """Run the user's code; each run will be handed to `WorkerLink.finished`."""
        ...

    def interrupt(self, run: HeldRun) -> None:
        """The word of this attempt does not count any more: stop its code where that is possible."""
        ...

    def stop(self, run: HeldRun) -> None:
        """The run is to end, as its scope knows: tell its code, where that can be told something."""
        ...

    def left_running(self, run: HeldRun) -> None:
        """The run is over and its code is not: it was asked to end and has not, within the grace time."""
        ...

    def waits(self, *, waits: bool) -> None:
        """The one run of an isolated executor waits from now on, or does not."""
        ...

    def registered(self) -> None:
        """The server knows this worker; runs are claimed from now on."""
        ...

    def notice(self, message: str) -> None:
        """Something that the operator should see, in one line."""
        ...

    def finishing(self, runs: int) -> None:
        """Nothing more is claimed, and this many runs are left to finish without a limit of time."""
        ...

    def server_is_away(self, reason: str) -> None:
        """The server has not answered for a while; what is reported waits."""
        ...

    def server_is_back(self, away_seconds: float) -> None:
        """The server answers again."""
        ...

    def left(self, error: BaseException | None, *, abandoned: int) -> None:
        """The link has ended: the server has released this worker, or `error` says what went wrong; `Unreachable` that the server has
        not heard it. `abandoned` runs had not ended."""
        ...


class Holding:
    """What this executor holds. After each change, `advance` does what has become possible.

    Args:
        call_later: puts a call in the line of the link's thread; for what may happen on other threads.
        book: where the log lines of the runs wait; a new one when none is given.
        chunks: where the chunks of their streams are gathered; a new one when none is given.
        teller: says which runs start and end.
        black_box: where it is noted which code has begun; one that nobody reads when none is given.
        lease: this worker's; one without an end when none is given.
        alone_seconds: for how long a run that is apart keeps other runs out once its code has begun, at its first attempt; twice as
            long with each one that follows, so that one that kills its process late is found too.
        is_isolated: one run is held at a time, and no other while it waits.
    """

    def __init__(
        self,
        host: Host,
        *,
        concurrency: int,
        flush_interval_seconds: float,
        call_later: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        book: LogBook | None = None,
        chunks: ChunkBook | None = None,
        teller: RunTeller | None = None,
        black_box: BlackBox | None = None,
        lease: Lease | None = None,
        alone_seconds: float = ALONE_SECONDS,
        is_isolated: bool = False,
    ) -> None:
        self._alone_seconds = alone_seconds
        # Runs that are alone, with until when.
        self._alone: dict[HeldRun, float] = {}
        self._host = host
        self._is_isolated = is_isolated
        self._call_later = call_later
        # By scope for the calls of user code, by run for what the server says.
        self._by_scope: dict[RunScope, HeldRun] = {}
        self._by_run: dict[str, HeldRun] = {}
        # Claimed again under the number of the attempt that is held: the answer came twice, or the run was taken away and given back,
        # and the report that will tell of the loss is still under way.
        self._given_again: dict[str, tuple[ClaimedRun, int, float]] = {}
        self._clock = clock
        self._pace = Pace()
        self._slots: Slots[HeldRun, tuple[HeldRun, Future[None], bool]] = Slots(concurrency)
        self.waits: Waits[HeldRun] = Waits()
        self._teller = teller
        self.book = LogBook(lambda: None) if book is None else book
        self.chunks = ChunkBook() if chunks is None else chunks
        self.outbox = Outbox(flush_interval_seconds, self.tell)
        # Runs whose code has ended and whose streams are still being stored.
        self._streaming: dict[HeldRun, None] = {}
        # Runs that have ended and whose outcome waits for their log, with the time until which it may; oldest first.
        self._held_back: dict[HeldRun, float] = {}
        self._starts = True
        self._black_box = BlackBox() if black_box is None else black_box
        self._lease = Lease() if lease is None else lease
        # Counts the times that the lease was over; and the runs that have not begun and may have been taken away by the server.
        self._doubts = 0
        self._doubtful: set[HeldRun] = set()
        # The run that is apart and has a slot, and whose code starts when the server has heard so.
        self._confirming: HeldRun | None = None
        # Runs whose code has begun and of which the server has not heard it, with when that was.
        self._unsaid: dict[HeldRun, float] = {}
        # Those whose last hooks run in a thread that nothing can stop.
        self._hooked: dict[HeldRun, None] = {}
        # What those wait for that stand in line for a slot after a wait.
        self._in_line: dict[Future[None], HeldRun] = {}
        # Runs that the server does not let go on yet, with when to ask again; and those that go on nevertheless.
        self._not_let: dict[HeldRun, float] = {}
        # How long code may go on that was asked to end.
        self.stop_grace_seconds = GRACE_SECONDS
        # When runs have executed for long enough, or have had time enough to end; and the earliest time, or one before it.
        self._deadlines: dict[HeldRun, float] = {}
        self.deadline: float | None = None
        # Runs that are over and whose code executes still, each with a slot.
        self._left_running: set[HeldRun] = set()

    @property
    def room(self) -> int:
        """How many more runs to claim: for the free slots, and ahead where runs are short."""
        if self._is_isolated:
            return 0 if self._by_scope else 1
        return self._slots.room(self._pace.ahead(self._clock()))

    @property
    def has_free_slot(self) -> bool:
        """True when a run that was claimed now could start at once."""
        return self._slots.has_free

    @property
    def is_at_rest(self) -> bool:
        """True when no run has a slot or stands in line for one, and nothing is left to be told."""
        return self._slots.is_unused and not (self.outbox or self._held_back or self._streaming)

    def seconds_in_line(self, now: float) -> float:
        """How long the first of the claimed runs has been waiting for a slot; 0 when none does."""
        first = self._slots.first_in_line
        return 0.0 if first is None else now - first.admitted_at

    def __len__(self) -> int:
        """How many runs have not ended. Code that has outlived its run is not waited for."""
        return len(self._by_scope) - len(self._left_running)

    def scopes(self) -> list[RunScope]:
        """The runs that are held. Any thread may call it."""
        return list(self._by_scope)

    def attempts(self) -> dict[str, int]:
        """The runs that this executor believes to hold, each with its attempt."""
        return {run_id: held.scope.run.attempt for run_id, held in self._by_run.items() if not held.is_over}

    def has_only_waiting(self) -> bool:
        """True when every run that is left waits for something outside, and has been reported up to there."""
        return all(
            held.open_waits and held.outcome is None
            for held in self._by_scope.values()
            if held not in self._left_running
        )

    # --- what user code does -------------------------------------------------------------------------------

    def wake(self, scope: RunScope) -> None:
        """The scope has something to send."""
        held = self._by_scope.get(scope)
        if held is not None:
            self.outbox.add(held)

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """Add a line to the run's log, if it is held. Any thread may call it; see `LogBook.add`."""
        held = self._by_scope.get(scope)
        if held is not None and held.log is not None and not held.is_given_up:
            self.book.add(held.log, level, message, logger)

    def tell(self, held: HeldRun, level: str, message: str) -> None:
        """Add a line of our own to the run's log."""
        if held.log is not None:
            self.book.add(held.log, level, message, "milepost.metadata")

    def open_stream(self, outlet: Outlet) -> None:
        """The run begins to write a stream."""
        held = self._by_scope.get(outlet.scope)
        if held is None or held.is_over or held.outcome is not None:
            outlet.stop(_given_up(outlet.scope), "lost")
        else:
            self.chunks.open(outlet)

    def flush(self, scope: RunScope, mark: int, future: Future[None]) -> None:
        """Someone waits until the buffer has reached `mark`."""
        held = self._by_scope.get(scope)
        if held is None:
            resolve(future)
            return
        held.flushes = [*held.flushes, (mark, future)]
        if held.is_over:
            release_flushes(held)
        else:
            self.outbox.add(held, urgent=True)

    def wait(
        self, scope: RunScope, target_id: str, future: Future[None], *, now: float, heard_at: float
    ) -> None:
        """The run waits until `target_id` has ended; with the first thing that it waits for it gives its slot back.

        Args:
            heard_at: since when the inbox has been heard without a break; infinite when it is not.
        """
        held = self._by_scope.get(scope)
        if held is None or held.is_over or held.is_given_up:
            # Code that was given up waits for nothing, and keeps its slot until it ends.
            fail(future, _attempt_over(scope))
            return
        # An inbox that has been heard for longer than the run has been here has announced all that the run has begun; but not what
        # an earlier attempt of it began, if that ended while nobody held the run.
        may_be_missed = held.admitted_at < heard_at or scope.run.attempt > 1
        if self.waits.add(target_id, held, future, now=now, check_now=may_be_missed):
            resolve(future)
            return
        future.add_done_callback(lambda done: self._call_later(self._wait_is_done, held, target_id, done))
        self._begin_wait(held)

    def _begin_wait(self, held: HeldRun) -> None:
        held.open_waits += 1
        is_not_let = self._not_let.pop(held, None) is not None
        if held.open_waits == 1:
            self._release(held)
            self._black_box.wait(held.record)
            self._stop_clock(held)
            self.outbox.add(held, urgent=True)
        elif is_not_let and held.comes_back is not None:
            # Another task of it was about to go on. The run waits, so that one needs neither a slot nor the server's leave.
            self._go_on(held, held.comes_back)
            self.outbox.add(held, urgent=True)

    def _wait_is_done(self, held: HeldRun, target_id: str, future: Future[None]) -> None:
        """Only of interest when user code gave up waiting."""
        if not future.cancelled() or held.is_over:
            return
        was_in_line = self._in_line.pop(future, None) is not None
        if was_in_line or held.comes_back is future or self.waits.cancel(target_id, future):
            self._go_on_anyway(held, future)

    def _go_on_anyway(self, held: HeldRun, future: Future[None]) -> None:
        """User code has given up waiting, whatever the wait had come to. It goes on already, so it is given a slot, free or not."""
        was_not_let = False
        if held.comes_back is future:
            was_not_let = not held.holds_slot
            held.comes_back = None
            self._not_let.pop(held, None)
        held.open_waits = max(0, held.open_waits - 1)
        if held.outcome is not None:
            return
        if held.open_waits:
            # Another task of it waits.
            self._release(held)
            self.outbox.add(held, urgent=True)
            return
        if not held.holds_slot:
            self._slots.seize(apart=held.is_alone)
            held.holds_slot = True
        self._black_box.go_on(held.record)
        self._start_clock(held)
        if was_not_let:
            # The server knows that it wants to go on, and lets it when it can.
            self._not_let[held] = self._clock() + ASK_AGAIN_SECONDS
        else:
            self.outbox.add(held, urgent=True)

    def step_aside(self, scope: RunScope) -> None:
        """The run waits for something that its own code looks for: it gives its slot back."""
        held = self._by_scope.get(scope)
        if held is not None and not (held.is_over or held.is_given_up):
            self._begin_wait(held)

    def come_back(self, scope: RunScope, future: Future[None], *, at_once: bool) -> None:
        """The run goes on, when it has a slot again. `at_once`: it does so already, and is given a slot, free or not."""
        held = self._by_scope.get(scope)
        if held is None or held.is_over or held.outcome is not None or not held.open_waits:
            # What ended it has settled its slot.
            resolve(future)
        elif at_once:
            self._go_on_anyway(held, future)
            resolve(future)
        else:
            future.add_done_callback(lambda done: self._call_later(self._wait_is_done, held, "", done))
            self._enter_again(held, future)

    def _enter_again(self, held: HeldRun, future: Future[None]) -> None:
        self._in_line[future] = held
        self._slots.enter_again((held, future, held.is_alone), apart=held.is_alone)

    def finish(self, held: HeldRun, outcome: Outcome) -> None:
        """The user's code has ended."""
        if held.is_given_up:
            self._end_at_last(held)
            return
        held.outcome = outcome
        if self._is_isolated:
            self._host.waits(waits=False)
            self._black_box.end_by(0.0)
        if held.seconds_max is not None or held.stop is not None:
            self._deadlines.pop(held, None)
        if self._teller is not None and not held.is_over:
            self._teller.ended(held, outcome)
        self._pace.ended(self._clock())
        self._release(held)
        self._black_box.wait(held.record)
        self._unsaid.pop(held, None)
        self._hooked.pop(held, None)
        self._stop_asking(held)
        if held.open_waits:
            self._abandon_waits(held)
        if held.log is not None:
            self.book.end(held.log)
        if held.is_over:
            self._drop(held)
            return
        self.chunks.end(held.scope)
        if self.chunks.is_clear(held.scope):
            self._report_outcome(held)
        else:
            # The end of a run waits for its streams, however long that takes (M57).
            held.is_held_back = True
            self._streaming[held] = None

    def let_go_of_streams(self) -> None:
        """Report the outcomes whose streams are stored."""
        for held in list(self._streaming):
            if held.is_over or self.chunks.is_clear(held.scope):
                del self._streaming[held]
                if not held.is_over:
                    held.is_held_back = False
                    self._report_outcome(held)

    def _report_outcome(self, held: HeldRun) -> None:
        if held.log is not None and not self.book.is_clear(held.log):
            held.is_held_back = True
            self._held_back[held] = self._clock() + HOLD_BACK_SECONDS_MAX
        else:
            self.outbox.add(held, urgent=True)

    def held_back_until(self) -> float | None:
        """When the first outcome has waited long enough for its log; None when none waits."""
        return next(iter(self._held_back.values()), None)

    def let_go(self, now: float) -> None:
        """Report the outcomes whose log is stored, and those that have waited long enough."""
        for held, until in list(self._held_back.items()):
            if until <= now or held.is_over or held.log is None or self.book.is_clear(held.log):
                del self._held_back[held]
                held.is_held_back = False
                self.outbox.add(held, urgent=True)

    # --- what the server says ------------------------------------------------------------------------------

    def admit(
        self, runs: Iterable[ClaimedRun], *, metadata_size_max: int, now: float, is_doubtful: bool = False
    ) -> None:
        """Take claimed runs; those that are held already (an answer that came twice) stay as they are.

        An attempt that was lost and whose code still goes on is held no more: the run may come back even under the same number.

        Args:
            is_doubtful: the claim is older than a lease, so the server may have taken these runs away again.
        """
        for run in runs:
            earlier = self._by_run.get(run.id)
            if earlier is not None and not earlier.is_over:
                if earlier.scope.run.attempt == run.attempt:
                    self._given_again[run.id] = run, metadata_size_max, now
                if earlier.scope.run.attempt >= run.attempt:
                    continue
                # The server has given up the earlier attempt, or it would not hand out the next one.
                self.lose(earlier)
            held = self._host.admit(run, metadata_size_max)
            held.admitted_at = now
            held.log = self.book.open(run.id, run.attempt)
            self._by_scope[held.scope] = self._by_run[run.id] = held
            self._slots.enter(held, apart=held.is_alone)
            if is_doubtful:
                self._ask_after([held])

    def answered(self, entry: Entry, reply: RunReply) -> None:
        """The server has answered what was reported of one run."""
        held = entry.held
        if held.is_over:
            return
        if reply.lost:
            self.lose(held)
            return
        if entry.batch is not None:
            # This attempt is the one that the server means.
            self._given_again.pop(held.scope.run.id, None)
        self.outbox.answered(entry, reply)
        if held.is_over:
            if held.is_given_up:
                self._leave_running(held)
            else:
                self._drop(held)
            return
        if reply.cancel:
            self.cancel(held)
        if entry.doubt == held.doubt:
            held.doubt = 0
            self._doubtful.discard(held)
        if entry.report.begun and held is self._confirming:
            self._is_confirmed(held)
        if entry.report.waiting is False:
            if reply.resumed is None and entry.batch is not None and held.scope.run.has_queue_limit:
                # The report has come to the server a second time, and its answer has no word on this.
                held.asks_to_go_on = True
                self.outbox.add(held, urgent=True)
            else:
                self._has_asked(held, is_let=reply.resumed is not False)

    def hear(self, frame: InboxFrame) -> None:
        """A message of the inbox."""
        for delta in frame.deltas:
            held = self._by_run.get(delta.run)
            if held is not None and not held.is_over:
                held.scope.buffer.apply_delta(delta)
                if held.scope.buffer.needs_refresh:
                    self.outbox.add(held)
        for target_id in frame.finished:
            self.target_ended(target_id)
        for run_id in frame.resumed:
            held = self._by_run.get(run_id)
            if held in self._not_let:
                self._ask_again(held)
            elif held is not None and held.comes_back is not None:
                held.is_called = True
        for run_id in frame.cancelled:
            held = self._by_run.get(run_id)
            if held is not None:
                self.cancel(held)
        if frame.hello:
            # It may have been said while nobody listened.
            for held in list(self._not_let):
                self._ask_again(held)
            for held in self._by_run.values():
                held.is_behind = True
                self.outbox.add(held)

    def target_ended(self, target_id: str) -> None:
        """A run or batch has ended: whoever waits for it may go on, as soon as there is a slot."""
        for held, future in self.waits.ended(target_id):
            if held.open_waits > 1:
                # The run has no slot before the last of its waits has ended: while one task of it goes on and others wait, holding
                # a slot could keep the very runs from starting that the others wait for.
                self._go_on(held, future)
            else:
                self._enter_again(held, future)

    def lose(self, held: HeldRun) -> None:
        """The run is not this attempt's any more. Its code may go on for a while; it keeps its slot and says nothing.

        What it has not sent yet will never be stored: the operator is told.
        """
        run = held.scope.run
        if held.is_begun:
            buffer = held.scope.made_buffer
            unsent = 0 if buffer is None else buffer.unacknowledged_count
            self._host.notice(
                f"run {run.id}: the server has given up attempt {run.attempt}, its retry rule decides what follows; "
                f"{unsent:,} metadata operations of the attempt are not confirmed and will not be sent"
            )
        self.outbox.forget(held)
        self._streaming.pop(held, None)
        self.chunks.stop(held.scope, _given_up(held.scope), "lost")
        self._unsaid.pop(held, None)
        self._hooked.pop(held, None)
        self._doubtful.discard(held)
        self._deadlines.pop(held, None)
        self._stop_asking(held)
        self._abandon_waits(held)
        given_again = self._given_again.pop(run.id, None)
        if held.is_given_up:
            self._leave_running(held)
        elif held.outcome is not None:
            self._drop(held)
        elif held is self._confirming:
            self._do_not_begin(held)
        else:
            self._host.interrupt(held)
        if given_again is not None:
            again, metadata_size_max, now = given_again
            self.admit([again], metadata_size_max=metadata_size_max, now=now)

    # --- runs that are to end ---------------------------------------------------------------------------------

    def cancel(self, held: HeldRun) -> None:
        """The run is to end, because somebody has cancelled it."""
        if held.stop is None:
            self._stop(held, _CANCELLED)

    def _stop(self, held: HeldRun, stop: Stop) -> None:
        """Ask the run's code to end; code that has not begun never does."""
        if held.is_over or held.outcome is not None:
            return
        held.stop = stop
        held.scope.ask_to_stop(stop)
        if not held.is_begun:
            if held is self._confirming:
                self._confirming = None
                self._release(held)
            self._doubtful.discard(held)
            held.outcome = stop.outcome
            self.outbox.add(held, urgent=True)
            return
        self._set_deadline(held, self._clock() + self.stop_grace_seconds)
        if self._is_isolated:
            self._see_to_its_end(held)
        if held.task is None or not held.task.is_async:
            # A thread that waits hears nothing else. On the event loop the waiting is cancelled, and then given up from there.
            futures = self.waits.forget(held)
            if held.comes_back is not None:
                futures.append(held.comes_back)
            for future in futures:
                fail(future, stop.exception())
                self._go_on_anyway(held, future)
        self._host.stop(held)

    def look_for_deadlines(self, now: float) -> None:
        """Stop what has executed for long enough, and give up what has had time enough to end."""
        for held, at in list(self._deadlines.items()):
            if at > now:
                continue
            del self._deadlines[held]
            if held.stop is not None:
                self._give_up(held, held.stop)
            elif held.seconds_max is not None:
                self._stop(held, Stop(AttemptEnd.TIMED_OUT, took_too_long(held.seconds_max)))
        self.deadline = min(self._deadlines.values(), default=None)

    def _set_deadline(self, held: HeldRun, at: float) -> None:
        self._deadlines[held] = at
        if self.deadline is None or at < self.deadline:
            self.deadline = at

    def _stop_clock(self, held: HeldRun) -> None:
        """The run executes nothing from now on, which does not count."""
        if self._is_isolated:
            self._host.waits(waits=True)
            self._black_box.end_by(0.0)
        if held.seconds_max is not None and held.stop is None and held in self._deadlines:
            held.seconds_left = self._deadlines.pop(held) - self._clock()

    def _start_clock(self, held: HeldRun) -> None:
        """The run executes from now on."""
        if self._is_isolated:
            self._host.waits(waits=False)
            self._see_to_its_end(held)
        if held.seconds_max is not None and held.stop is None and held.is_begun:
            self._set_deadline(held, self._clock() + held.seconds_left)

    def _see_to_its_end(self, held: HeldRun) -> None:
        """Have the process killed in time, should its code hold up the link."""
        left: float | None = None
        if held.stop is not None:
            left = self._deadlines.get(held, self._clock()) - self._clock()
        elif held.seconds_max is not None:
            left = held.seconds_left + self.stop_grace_seconds
        self._black_box.end_by(0.0 if left is None else self._lease.now() + left + KILL_MARGIN_SECONDS)

    def _give_up(self, held: HeldRun, stop: Stop) -> None:
        """The code was asked to end and has not."""
        decided = held.decided
        if decided is None or decided.error is not None:
            decided = msgspec.structs.replace(stop.outcome, lacks_hooks=decided is None)
        # What the task has returned counts, although its hooks have not ended.
        told = f"{stop.error.message}; its code was asked to end and has not within {self.stop_grace_seconds:g} s"
        self._leave_behind(held, decided, told)

    def _give_up_hook(self, held: HeldRun) -> None:
        """A hook of the run's end does not return. How the run ends was decided before."""
        seconds = task_settings().hook_seconds_max
        told = f"a hook took longer than {seconds:g} s (MILEPOST_HOOK_SECONDS_MAX)"
        self._leave_behind(held, held.decided or Outcome(), told)

    def _leave_behind(self, held: HeldRun, outcome: Outcome, told: str) -> None:
        """End the run now, with what it has written so far; what its code does then is nobody's. Its slot is lost until that ends."""
        scope, run = held.scope, held.scope.run
        held.is_given_up = True
        held.outcome = outcome
        self._hooked.pop(held, None)
        self._deadlines.pop(held, None)
        self.tell(held, "error", f"{told}: what it does from here on does not count")
        self._host.notice(f"run {run.id} ({run.task}): {told}; it keeps its slot until it does")
        if self._teller is not None:
            self._teller.ended(held, held.outcome)
        scope.is_over = True
        if self._is_isolated:
            # The link is well, and has the process killed when the server knows.
            self._black_box.end_by(0.0)
        self._stop_asking(held)
        self._abandon_waits(held)
        self._unsaid.pop(held, None)
        self.chunks.end(scope)
        if held.log is not None:
            self.book.end(held.log)
        if self.chunks.is_clear(scope):
            self._report_outcome(held)
        else:
            held.is_held_back = True
            self._streaming[held] = None
        self._host.interrupt(held)

    def _leave_running(self, held: HeldRun) -> None:
        """The server knows that the run is over, and its code executes still."""
        run = held.scope.run
        self._left_running.add(held)
        if self._by_run.get(run.id) is held:
            del self._by_run[run.id]
            self._given_again.pop(run.id, None)
        self._host.left_running(held)

    def _end_at_last(self, held: HeldRun) -> None:
        """The code of a run that was given up has ended after all."""
        held.is_given_up = False
        self._left_running.discard(held)
        self._release(held)
        self._black_box.wait(held.record)
        if held.is_over:
            self._drop(held)

    # --- the end of the link ----------------------------------------------------------------------------------

    def start_no_more(self) -> None:
        """Runs that have not started stay in line from now on."""
        self._starts = False

    def withdraw(self) -> bool:
        """Hold the runs that have not started no longer; True when there were any. The server has to be told."""
        withdrawn = self._slots.withdraw()
        if self._confirming is not None:
            withdrawn.append(self._confirming)
        for held in withdrawn:
            self.outbox.forget(held)
            self._doubtful.discard(held)
            self._do_not_begin(held)
        return bool(withdrawn)

    def _do_not_begin(self, held: HeldRun) -> None:
        """A claimed run whose code has not been started is held no longer."""
        if held is self._confirming:
            self._confirming = None
        self._release(held)
        self._drop(held)

    def abandon(self) -> None:
        """The link ends: nobody hears any more of what is held."""
        for held in self._by_scope.values():
            self.outbox.forget(held)
        self.chunks.stop_all("the worker has ended, and nothing more can be sent from here", "worker_ended")

    def lost_stream(self, scope: RunScope) -> None:
        """The server says that a run that adds to a stream is not this attempt's any more."""
        held = self._by_scope.get(scope)
        if held is not None and not held.is_over:
            self.lose(held)

    def end_logs(self) -> None:
        """Nothing more is waited for: what waits of any log may go."""
        for held in self._by_scope.values():
            if held.log is not None:
                self.book.end(held.log)

    # --- what is told after some time -------------------------------------------------------------------------

    @property
    def needs_pulse(self) -> bool:
        """True when something has to be said or asked as time goes by: `pulse` is to be called about once a second."""
        return bool(self._unsaid or self._not_let or self._alone or self._hooked)

    def pulse(self, now: float) -> None:
        """Tell which code has begun, all in one report; ask for runs that were not let go on; give who has been alone for long
        enough company."""
        for held, until in list(self._alone.items()):
            # Where it waits, or stands in line, it keeps nobody out for longer than others keep it.
            if until <= now and held.holds_slot:
                del self._alone[held]
                held.is_alone = False
                self._slots.let_join()
        for held, begun_at in list(self._unsaid.items()):
            if held.has_said_begun:
                del self._unsaid[held]
            elif now - begun_at >= BEGUN_SECONDS:
                del self._unsaid[held]
                held.owes_begun = True
                self.outbox.add(held, urgent=True)
        for held, ask_at in list(self._not_let.items()):
            if ask_at <= now:
                self._ask_again(held)
        for held in list(self._hooked):
            attempt = held.scope.attempt
            began_at = None if attempt is None else attempt.hook_began_at
            if began_at is not None and now - began_at > task_settings().hook_seconds_max:
                self._give_up_hook(held)

    def say_what_has_begun(self) -> None:
        """Tell it of all runs, whether they execute for long or not: this worker leaves, and they go on somewhere else."""
        for held in self._by_scope.values():
            if held.is_begun and not held.has_said_begun:
                held.owes_begun = True
                self.outbox.add(held, urgent=True)

    # --- after the lease was over ----------------------------------------------------------------------------

    def doubt(self) -> None:
        """The lease was over: ask the server which runs it has taken away. Those that have not begun wait for its answer."""
        self._ask_after(
            [held for held in self._by_scope.values() if not held.is_over and held.outcome is None]
        )

    def _ask_after(self, runs: Sequence[HeldRun]) -> None:
        self._doubts += 1
        for held in runs:
            held.doubt = self._doubts
            self.outbox.add(held, urgent=True)
            if not held.is_begun:
                self._doubtful.add(held)

    # --- slots ---------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Let go on and start who may."""
        while (resumed := self._slots.take_resumed()) is not None:
            held, future, is_alone = resumed
            if self._in_line.pop(future, None) is None:
                # Its code has gone on meanwhile.
                self._slots.leave(apart=is_alone)
                continue
            if held.open_waits > 1:
                # Another task of it has begun to wait meanwhile: it needs no slot.
                self._slots.leave(apart=is_alone)
                self._go_on(held, future)
                if held.said_waiting is False:
                    self.outbox.add(held, urgent=True)
                continue
            held.holds_slot = True
            if held.scope.run.has_queue_limit:
                held.comes_back = future
                held.asks_to_go_on = True
                self.outbox.add(held, urgent=True)
            else:
                self._go_on(held, future)
        if self._starts and self._slots.has_claimed:
            self._start_claimed()

    def _start_claimed(self) -> None:
        if not self._doubtful and self._lease.is_over():
            self.doubt()
        while not self._doubtful and (claimed := self._slots.take_claimed()):
            for held in claimed:
                held.holds_slot = True
                if held.is_over:
                    self._do_not_begin(held)
                elif held.outcome is not None:
                    # It is to end, and that is being reported.
                    self._release(held)
            starting = [held for held in claimed if not held.is_over and held.outcome is None]
            if starting and starting[0].scope.run.is_apart:
                # Should its process die, the server is to know that this code had begun, and alone.
                [self._confirming] = starting
                self._confirming.owes_begun = True
                self.outbox.add(self._confirming, urgent=True)
            elif starting:
                self._start(starting)

    def _is_confirmed(self, held: HeldRun) -> None:
        """The server has heard that the code of a run that is apart begins."""
        if self._lease.is_over():
            self.doubt()
        if held.doubt:
            held.owes_begun = True
            self.outbox.add(held, urgent=True)
        elif self._starts:
            self._confirming = None
            self._start([held])

    def _start(self, runs: Sequence[HeldRun]) -> None:
        now = self._clock()
        for held in runs:
            run = held.scope.run
            held.is_begun = True
            held.record = self._black_box.begin(run.id, run.attempt)
            if held.is_alone:
                doublings = min(run.attempt - 1, DOUBLINGS_MAX)
                self._alone[held] = now + self._alone_seconds * 2**doublings
            if not held.has_said_begun:
                self._unsaid[held] = now
            limit_ms = run.max_duration_ms
            if limit_ms is None and held.task is not None:
                limit_ms = held.task.max_duration_ms
            # What closes a run executes hooks alone, which have a limit of their own.
            if limit_ms is not None and run.closing is None:
                held.seconds_max = held.seconds_left = limit_ms / 1000
                self._start_clock(held)
            if held.task is not None and may_hang_in_hooks(held.task):
                self._hooked[held] = None
            if self._teller is not None:
                self._teller.started(held)
        self._host.start(runs)

    def _go_on(self, held: HeldRun, future: Future[None]) -> None:
        held.comes_back = None
        held.is_called = False
        held.open_waits = max(0, held.open_waits - 1)
        if held.open_waits == 0:
            if held.outcome is None:
                self._black_box.go_on(held.record)
                self._start_clock(held)
            self.outbox.add(held, urgent=True)
        resolve(future)

    # --- going on with the server's leave ----------------------------------------------------------------------

    def _has_asked(self, held: HeldRun, *, is_let: bool) -> None:
        """The server has answered whether a run goes on whose waits are over."""
        future = held.comes_back
        if future is None:
            if not is_let and held.open_waits == 0 and held.outcome is None:
                # Its code goes on already, because it gave up waiting. The server lets it when it can.
                self._not_let[held] = self._clock() + ASK_AGAIN_SECONDS
        elif held.open_waits > 1:
            # Another task of the run has begun to wait meanwhile: the run waits on, and this one needs no leave.
            self._release(held)
            self._go_on(held, future)
            self.outbox.add(held, urgent=True)
        elif is_let:
            self._go_on(held, future)
        else:
            self._release(held)
            self._not_let[held] = self._clock() + ASK_AGAIN_SECONDS
            if held.is_called:
                self._ask_again(held)

    def _ask_again(self, held: HeldRun) -> None:
        """The run stands in line for a slot again, and asks when it has one."""
        del self._not_let[held]
        held.is_called = False
        if held.comes_back is not None:
            self._enter_again(held, held.comes_back)
        else:
            held.asks_to_go_on = True
            self.outbox.add(held, urgent=True)

    def _stop_asking(self, held: HeldRun) -> None:
        self._not_let.pop(held, None)
        held.asks_to_go_on = False
        if held.comes_back is not None:
            fail(held.comes_back, _attempt_over(held.scope))
            held.comes_back = None

    def _release(self, held: HeldRun) -> None:
        if held.holds_slot:
            held.holds_slot = False
            self._slots.leave(apart=held.is_alone)

    def _abandon_waits(self, held: HeldRun) -> None:
        if held.open_waits:
            held.open_waits = 0
            if not held.holds_slot and (held.outcome is None or held.is_given_up):
                # Its code waits no longer and has not ended: it executes, for nobody.
                self._slots.seize(apart=held.is_alone)
                held.holds_slot = True
                self._black_box.go_on(held.record)
            in_line = [future for future, waiting in self._in_line.items() if waiting is held]
            for future in in_line:
                del self._in_line[future]
            for future in (*self.waits.forget(held), *in_line):
                fail(future, _attempt_over(held.scope))

    def _drop(self, held: HeldRun) -> None:
        if not self.chunks.is_clear(held.scope):
            self.chunks.stop(held.scope, _given_up(held.scope), "lost")
        if held.log is not None and not held.log.has_ended:
            self.book.end(held.log)
        self._black_box.end(held.record)
        self._alone.pop(held, None)
        held.record = NOT_NOTED
        self._by_scope.pop(held.scope, None)
        if self._by_run.get(held.scope.run.id) is held:
            del self._by_run[held.scope.run.id]
            self._given_again.pop(held.scope.run.id, None)


def _attempt_over(scope: RunScope) -> AttemptOverError:
    run = scope.run
    return AttemptOverError(
        f"attempt {run.attempt} of run {run.id} is over: it has ended, or the server has given it up. Nothing waits for it any more"
    )


def _given_up(scope: RunScope) -> str:
    run = scope.run
    return (
        f"attempt {run.attempt} of run {run.id} was given up by the server (its worker was silent for longer than the lease), so "
        f"nothing more that it adds to a stream is stored; the run's retry rule decides what follows"
    )
