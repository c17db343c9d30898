"""The link: the one thread of an executor that talks to the server, on an event loop of its own.

It claims runs and hands them to the executor in batches, takes what they report in batches, keeps the lease alive and hears from
the inbox what the runs should know. User code that blocks its own event loop keeps none of this from going on.

Other threads reach it through the methods of `sdk.scope.Link`: they put a call in line and ring once for as many calls as have come
together by the time the link looks.
"""

import asyncio
import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from milepost.errors import UnavailableError, UsageError
from milepost.model.run import Outcome
from milepost.model.waitpoints import WAITPOINT_PREFIX, WaitpointStatus
from milepost.protocol import endpoints
from milepost.protocol.work import (
    InboxFrame,
    ReportRequest,
    ReportResponse,
)
from milepost.sdk.buffer import BufferBusy
from milepost.sdk.capture import end_lines
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.black_box import BlackBox
from milepost.worker.channel import Backoff, Channel, Refused, Unreachable
from milepost.worker.chunk_book import ChunkBook
from milepost.worker.claiming import Claiming
from milepost.worker.control import Order
from milepost.worker.holding import Holding, Host
from milepost.worker.lease import Lease, lease_clock
from milepost.worker.log_book import LogBook
from milepost.worker.membership import REQUEST_SECONDS_MAX, LinkOptions, Membership
from milepost.worker.outbox import Entry, HeldRun, body_of, fail, parcels, resolve, smaller
from milepost.worker.sending import ChunkSender, LogSender
from milepost.worker.telling import RunTeller

# The server sends a comment now and then; without one for this long the connection is taken for dead.
INBOX_SILENCE_SECONDS_MAX = 30.0
CHECKS_AT_ONCE_MAX = 16
# How long a worker that leaves tries to reach the server: with runs to report on, and without.
LEAVE_SECONDS_MAX = 5.0
LEAVE_SECONDS_MIN = 1.0
LAST_REPORTS_MAX = 10
LAST_LOG_SECONDS_MAX = 2.0
# How long a worker that has to end tries to find out what it has claimed, and to give back what has not started.
SETTLE_SECONDS_MAX = 2.0
# How often to look which runs have executed for long without a word.
PULSE_SECONDS = 1.0
# With only waiting runs left after the order to stop, the end of what they wait for may be on its way.
LINGER_SECONDS = 0.3

_encode = msgspec.json.Encoder().encode
_decode_frame = msgspec.json.Decoder(InboxFrame).decode


class WorkerLink:
    """One worker's link to the server. Implements `milepost.sdk.scope.Link`.

    `start` once, then `order` to end; `host.left` is called when it has ended.

    Args:
        loop_factory: makes the event loop of the link's thread.
        open_channel: makes the connection to the server, of its address and the secret key.
        teller: says which runs start and end.
        black_box: where it is noted which code has begun; one that nobody reads when none is given.
        clock: the clock of leases.
    """

    def __init__(
        self,
        options: LinkOptions,
        host: Host,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        *,
        open_channel: Callable[[str, str], Channel] = Channel,
        teller: RunTeller | None = None,
        black_box: BlackBox | None = None,
        clock: Callable[[], float] = lease_clock,
    ) -> None:
        self._options = options
        self._host = host
        self._loop_factory = loop_factory
        self._open_channel = open_channel
        self._thread = threading.Thread(target=self._live, name="milepost-link", daemon=True)
        self._is_up = threading.Event()
        self._loop: asyncio.AbstractEventLoop

        # Calls of other threads, and whether the link has been told that there are some. The flag is set after the call is in line
        # and cleared before the line is worked off, so no call is left behind.
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_rung = False
        self._is_closed = False

        self._black_box = BlackBox() if black_box is None else black_box
        self._lease = Lease(clock)
        self._book = LogBook(lambda: self._call(self._log_has_come))
        self._chunks = ChunkBook()
        self._holding = Holding(
            host,
            concurrency=options.concurrency,
            flush_interval_seconds=options.flush_interval_seconds,
            call_later=self._call,
            clock=lambda: self._loop.time(),
            book=self._book,
            chunks=self._chunks,
            teller=teller,
            black_box=self._black_box,
            lease=self._lease,
            alone_seconds=options.alone_seconds,
            is_isolated=options.is_isolated,
        )
        self._teller = teller
        self._heard_at = float("inf")
        self._is_leaving = False
        # The server believes that this worker holds something, or may do so.
        self._owes_goodbye = False
        self._waiting_runs_count = True
        # When the grace time is over, on the loop's clock; None while runs may take as long as they like.
        self._drain_until: float | None = None

    # --- from any thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it registers the worker as soon as the server answers."""
        self._thread.start()
        self._is_up.wait()

    async def run(self) -> None:
        """Live on the running event loop instead, until the link has ended and `host.left` was called."""
        error: BaseException | None = None
        try:
            await self._run()
        except Refused as raised:
            error = raised
        finally:
            self._end(error)

    async def offer(self) -> None:
        """The tasks of the options have changed: present them. On the link's loop."""
        await self._membership.register_again(self._membership.registrations)

    @property
    def is_at_rest(self) -> bool:
        """True when no code of a run executes here, or will without something new. On the link's loop."""
        return not self._calls and self._holding.is_at_rest

    def order(self, order: Order) -> None:
        """End as `order` says. Safe in a signal handler, and more than once."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ordered, order)

    def after_fork(self) -> None:
        """This is a forked child: it has this object but not its thread, and must not speak for its parent."""
        self._is_closed = True
        self._calls.clear()
        self._black_box.after_fork()

    def wake(self, scope: RunScope) -> None:
        """See `milepost.sdk.scope.Link`."""
        self._call(self._holding.wake, scope)

    def flush(self, scope: RunScope) -> Future[None]:
        """See `milepost.sdk.scope.Link`. Fails with UnavailableError when this process has no link (any more)."""
        future: Future[None] = Future()
        self._call(self._holding.flush, scope, scope.buffer.mark(), future)
        if scope.buffer.is_interrupted_here:
            # The link gets at the buffer when the interrupted call has ended, and that one goes on when this one has.
            future = Future()
            resolve(future)
        return self._unless_in_vain(future)

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """See `milepost.sdk.scope.Link`. Fails with UnavailableError when this process has no link (any more)."""
        future: Future[None] = Future()
        self._call(self._wait, scope, target_id, future)
        return self._unless_in_vain(future)

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        """See `milepost.sdk.scope.Link`."""
        self._call(self._step_aside, scope)

        def come_back(at_once: bool) -> Future[None]:
            future: Future[None] = Future()
            self._call(self._come_back, scope, future, at_once)
            return self._unless_in_vain(future)

        return come_back

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """See `milepost.sdk.scope.Link`."""
        if not self._is_closed:
            self._holding.log(scope, level, message, logger)

    def open_stream(self, outlet: Outlet) -> None:
        """See `milepost.sdk.scope.Link`."""
        if self._is_closed:
            outlet.stop("this process has no connection to the server (any more)", "worker_ended")
        self._call(self._open_stream, outlet)

    def send_chunks(self, outlet: Outlet) -> None:
        """See `milepost.sdk.scope.Link`."""
        self._call(self._chunks_have_come, outlet)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """See `milepost.sdk.scope.Link`."""
        self._call(self._call_later, seconds, call)

    def scopes(self) -> list[RunScope]:
        """The runs that are held here."""
        return self._holding.scopes()

    def finished(self, held: HeldRun, outcome: Outcome) -> None:
        """The user's code has ended."""
        end_lines(held.scope)
        self._call(self._finish, held, outcome)

    def _call(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._is_closed:
            return
        self._calls.append((call, arguments))
        if self._is_rung:
            return
        try:
            self._is_rung = True
            self._loop.call_soon_threadsafe(self._take_calls)
        except RuntimeError:
            # A closed loop: the process is about to end, and everything that counts has been reported.
            pass
        except BaseException:
            # A signal handler raised in the middle: the next call rings.
            self._is_rung = False
            raise

    def _unless_in_vain(self, future: Future[None]) -> Future[None]:
        """The future, or one that has failed where nobody could ever be answered."""
        if self._is_closed:
            fail(future, UnavailableError("this process has no connection to the server (any more)"))
        elif threading.current_thread() is self._thread:
            # A finalizer, run by the collector in whichever thread is at hand.
            future = Future()
            fail(
                future,
                UsageError(
                    "a finalizer cannot wait for the server: it may run in the thread that talks to it"
                ),
            )
        return future

    # --- the thread ----------------------------------------------------------------------------------------

    def _live(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._run())
        except Refused as raised:
            error = raised
        except BaseException as raised:  # the process must learn of it: without a link it is of no use
            error = raised
            traceback.print_exc()
        self._is_up.set()
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Nobody hears of this worker any more."""
        self._is_closed = True
        abandoned = len(self._holding)
        self._holding.abandon()
        if self._teller is not None:
            self._teller.flush()
        if error is None and self._owes_goodbye:
            error = Unreachable("the server did not answer in time")
        self._host.left(error, abandoned=abandoned)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._checks_due = asyncio.Event()
        self._report_due = asyncio.Event()
        self._report_timer: asyncio.TimerHandle | None = None
        self._hold_back_timer: asyncio.TimerHandle | None = None
        self._pulse_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_timer_at = 0.0
        self._inbox_is_heard = asyncio.Event()
        self._end_ordered = asyncio.Event()
        self._is_settled = asyncio.Event()
        options, host, holding = self._options, self._host, self._holding
        async with self._open_channel(options.api_url, options.secret_key) as self._channel:
            self._membership = membership = Membership(
                options,
                host,
                self._channel,
                holding,
                lease=self._lease,
                black_box=self._black_box,
                limit_log=self._book.limit,
            )
            self._claiming = claiming = Claiming(
                membership,
                holding,
                host,
                worker_id=options.worker_id,
                lease=self._lease,
                changed=self._advance,
            )
            self._log_sender = LogSender(
                membership,
                self._book,
                host,
                flush_interval_seconds=options.flush_interval_seconds,
                sent=self._log_is_stored,
            )
            self._chunk_sender = ChunkSender(membership, self._chunks, holding, sent=self._chunks_are_stored)
            self._is_up.set()
            if not await self._unless_ended(membership.register()):
                return
            self._owes_goodbye = True
            host.registered()
            async with asyncio.TaskGroup() as group:
                others = [
                    group.create_task(self._listen()),
                    group.create_task(self._check_targets()),
                    group.create_task(self._log_sender.run()),
                    group.create_task(self._chunk_sender.run()),
                ]
                reporting = group.create_task(self._send_reports())
                claims = group.create_task(claiming.run(self._inbox_is_heard))
                await self._end_ordered.wait()
                holding.start_no_more()
                claims.cancel()
                await asyncio.wait({claims})
                settling = group.create_task(claiming.settle())
                settling.add_done_callback(lambda done: self._is_settled.set())
                # While the server is away this goes on beside what follows.
                await asyncio.wait({settling}, timeout=SETTLE_SECONDS_MAX)
                if self._drain_until is None:
                    host.finishing(len(holding))
                await self._drain()
                self._is_leaving = True
                self._report_due.set()
                something_is_left = bool(holding or holding.outbox) or not self._book.is_empty
                await asyncio.wait(
                    {reporting}, timeout=LEAVE_SECONDS_MAX if something_is_left else LEAVE_SECONDS_MIN
                )
                for task in (*others, reporting, settling):
                    task.cancel()

    async def _unless_ended(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do this, unless the order to end comes first; True when it was done."""
        task = asyncio.create_task(work)
        ended = asyncio.create_task(self._end_ordered.wait())
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    def _ordered(self, order: Order) -> None:
        if order is Order.STOP:
            self._waiting_runs_count = False
        if order is not Order.FINISH and self._drain_until is None:
            self._drain_until = self._loop.time() + self._options.grace_seconds
        self._end_ordered.set()
        self._changed.set()

    async def _drain(self) -> None:
        """Wait until no run is left, or none that could go on, or the grace time is over."""
        with contextlib.suppress(TimeoutError):
            while self._holding:
                # A later order may set the end.
                async with asyncio.timeout_at(self._drain_until):
                    if not self._waiting_runs_count and self._holding.has_only_waiting():
                        await asyncio.sleep(LINGER_SECONDS)
                        if self._holding.has_only_waiting():
                            return
                    self._changed.clear()
                    await self._changed.wait()

    # --- what has come in ----------------------------------------------------------------------------------

    def _take_calls(self) -> None:
        self._is_rung = False
        calls = self._calls
        while calls:
            call, arguments = calls.popleft()
            call(*arguments)
        self._advance()

    def _finish(self, held: HeldRun, outcome: Outcome) -> None:
        self._holding.finish(held, outcome)
        self._look_for_held_back()

    def _look_for_held_back(self) -> None:
        if self._hold_back_timer is None and self._holding.held_back_until() is not None:
            self._look_for_outcomes()

    def _look_for_outcomes(self) -> None:
        """Let go the outcomes that have waited long enough for their logs, and look again when the next one has."""
        self._hold_back_timer = None
        self._holding.let_go(self._loop.time())
        until = self._holding.held_back_until()
        if until is not None:
            self._hold_back_timer = self._loop.call_at(until, self._look_for_outcomes)
        self._look_for_reports()

    def _log_has_come(self) -> None:
        self._log_sender.lines_have_come()

    def _log_is_stored(self) -> None:
        self._holding.let_go(self._loop.time())
        self._advance()

    def _chunks_are_stored(self) -> None:
        self._holding.let_go_of_streams()
        self._look_for_held_back()
        self._advance()

    def _open_stream(self, outlet: Outlet) -> None:
        self._holding.open_stream(outlet)
        self._chunk_sender.chunks_have_come()

    def _chunks_have_come(self, outlet: Outlet) -> None:
        self._chunks.add(outlet)
        self._chunk_sender.chunks_have_come()

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds > 0:
            self._loop.call_later(seconds, call)
        else:
            call()

    def _wait(self, scope: RunScope, target_id: str, future: Future[None]) -> None:
        self._holding.wait(scope, target_id, future, now=self._loop.time(), heard_at=self._heard_at)
        self._checks_due.set()

    def _step_aside(self, scope: RunScope) -> None:
        self._holding.step_aside(scope)

    def _come_back(self, scope: RunScope, future: Future[None], at_once: bool) -> None:
        self._holding.come_back(scope, future, at_once=at_once)

    def _advance(self) -> None:
        """Something has changed: start what may start, and wake the loops that have something to do."""
        self._holding.advance()
        self._log_sender.look()
        # In this order: who waits for the end of a run is nearer to it than who waits for a place.
        self._look_for_reports()
        self._claiming.look()
        if self._pulse_timer is None and self._holding.needs_pulse:
            self._pulse_timer = self._loop.call_later(PULSE_SECONDS, self._pulse)
        if self._holding.deadline is not None:
            self._look_at_deadline(self._holding.deadline)
        self._changed.set()

    def _look_at_deadline(self, deadline: float) -> None:
        if self._deadline_timer is not None:
            if self._deadline_timer_at <= deadline:
                return
            self._deadline_timer.cancel()
        # Noted here: what uvloop gives for a time that has come, or nearly so, does not know its time.
        self._deadline_timer_at = deadline
        self._deadline_timer = self._loop.call_at(deadline, self._deadline_has_come)

    def _deadline_has_come(self) -> None:
        self._deadline_timer = None
        self._holding.look_for_deadlines(self._loop.time())
        self._advance()

    def _pulse(self) -> None:
        self._pulse_timer = None
        self._holding.pulse(self._loop.time())
        self._advance()

    # --- reporting -----------------------------------------------------------------------------------------

    def _look_for_reports(self) -> None:
        """Wake the reporter now or when the time has come. While a report is under way it is not disturbed: it looks afterwards."""
        due_at = self._holding.outbox.due_at()
        if due_at is None:
            return
        if due_at <= self._loop.time():
            self._report_due.set()
        elif self._report_timer is None:
            self._report_timer = self._loop.call_at(due_at, self._report_timer_rings)

    def _report_timer_rings(self) -> None:
        self._report_timer = None
        self._look_for_reports()

    async def _send_reports(self) -> None:
        """Send one report after the other, and a heartbeat when none was sent for some time: there is nothing to report, or the
        buffers that have something cannot be looked into."""
        membership = self._membership
        while not self._is_leaving:
            try:
                async with asyncio.timeout_at(
                    membership.reported_at + membership.registration.heartbeat_seconds
                ):
                    await self._report_due.wait()
            except TimeoutError:
                await self._report(b"{}")
            self._report_due.clear()
            await self._send_what_is_due()
            self._advance()
        # What has not begun is given back first: what is left then has begun, and that is said.
        await self._is_settled.wait()
        self._holding.say_what_has_begun()
        # Code that was abandoned may go on writing: it is not waited for.
        for _ in range(LAST_REPORTS_MAX):
            if not self._holding.outbox:
                break
            await self._send_what_is_due()
        self._holding.end_logs()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_LOG_SECONDS_MAX):
                await self._log_sender.send_all()
        with contextlib.suppress(Refused):
            await self._report(_encode(ReportRequest(leaving=True)))
        self._owes_goodbye = False

    async def _send_what_is_due(self) -> None:
        began = self._loop.time()
        entries = self._holding.outbox.take(began, everything=self._is_leaving)
        for some in parcels(entries):
            await self._send(some)
        if entries:
            self._holding.outbox.took(self._loop.time() - began)

    async def _send(self, entries: Sequence[Entry]) -> None:
        """Send one request until it is answered, and take in the answers."""
        try:
            body = body_of(entries)
        except ValueError as error:
            await self._send_smaller(entries, error)
            return
        try:
            answer = await self._report(body)
        except Refused as refused:
            await self._send_smaller(entries, refused)
        else:
            for entry, reply in zip(entries, answer.runs, strict=True):
                self._holding.answered(entry, reply)

    async def _send_smaller(self, entries: Sequence[Entry], reason: Exception) -> None:
        """The request as such cannot be sent, or is refused: find what it is about, so that nothing else is held up."""
        if len(entries) > 1:
            middle = len(entries) // 2
            for half in (entries[:middle], entries[middle:]):
                for some in parcels(half):
                    await self._send(some)
            return
        [entry] = entries
        try:
            less = smaller(entry, reason)
        except BufferBusy:
            # The other runs do not wait for a thread that was stopped: the same is tried again later.
            self._holding.outbox.add(entry.held)
            return
        if less is None:
            self._holding.lose(entry.held)
            return
        if what := _what_is_given_up(entry, less):
            message = f"the server does not take {what} of run {entry.report.id}: {reason}"
            self._host.notice(message)
            self._holding.tell(entry.held, "error", message)
        await self._send([less])

    async def _report(self, body: bytes) -> ReportResponse:
        """One report; see `Membership.repeat`."""
        return await self._membership.repeat(endpoints.REPORT, body, "reports")

    # --- hearing -------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Read the inbox, for as long as it takes."""
        backoff = Backoff(seconds_max=2.0)
        while True:
            registrations = self._membership.registrations
            try:
                events = self._channel.events(
                    endpoints.INBOX,
                    silence_seconds_max=INBOX_SILENCE_SECONDS_MAX,
                    worker=self._options.worker_id,
                )
                async with contextlib.aclosing(events) as stream:
                    async for _, data in stream:
                        backoff.reset()
                        self._hear(_decode_frame(data))
            except Unreachable:
                pass
            except Refused as refused:
                if refused.status == 404:
                    await self._membership.register_again(registrations)
            self._heard_at = float("inf")
            await asyncio.sleep(backoff.next())

    def _hear(self, frame: InboxFrame) -> None:
        if frame.hello:
            self._heard_at = self._loop.time()
            self._inbox_is_heard.set()
            self._holding.waits.check_all()
            self._checks_due.set()
        self._holding.hear(frame)
        self._advance()

    async def _check_targets(self) -> None:
        """Ask the server after those that have been waited for long, or whose end may have been missed."""
        waits = self._holding.waits
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(waits.next_check_at()):
                    await self._checks_due.wait()
            self._checks_due.clear()
            due = waits.to_check(self._loop.time())
            for start in range(0, len(due), CHECKS_AT_ONCE_MAX):
                await asyncio.gather(*map(self._check_target, due[start : start + CHECKS_AT_ONCE_MAX]))

    async def _check_target(self, target_id: str) -> None:
        """Ask for one target; what cannot be answered now is asked again later."""
        try:
            if target_id.startswith("batch_"):
                batch = await self._membership.ask(
                    endpoints.RETRIEVE_BATCH, timeout_seconds=REQUEST_SECONDS_MAX, batch=target_id
                )
                if batch.status != "COMPLETED":
                    return
            elif target_id.startswith(f"{WAITPOINT_PREFIX}_"):
                token = await self._membership.ask(
                    endpoints.RETRIEVE_TOKEN, timeout_seconds=REQUEST_SECONDS_MAX, waitpoint=target_id
                )
                if token.status is WaitpointStatus.WAITING:
                    return
            else:
                await self._membership.ask(
                    endpoints.RUN_RESULT, timeout_seconds=REQUEST_SECONDS_MAX, run=target_id
                )
        except (Refused, Unreachable):
            return
        self._holding.target_ended(target_id)
        self._advance()


def _what_is_given_up(entry: Entry, less: Entry) -> str:
    """What the smaller report does without for good; "" when the rest only goes later."""
    if len(less.given_up) > len(entry.given_up):
        return f"an operation on the metadata of {less.given_up[-1].run}"
    if less.report.outcome is not None and less.report.outcome is not entry.report.outcome:
        return "the output" if entry.report.outcome and entry.report.outcome.error is None else "the error"
    return ""


__all__ = ["LinkOptions", "WorkerLink"]
