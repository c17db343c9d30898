"""The witness of the runs: looks at the database after each group of commands, and at user code when it begins and goes on.

What it sees is judged at once, by rules of its own: who may hold a run, what an attempt may end with and what that costs, when a run
may be tried again, and how many may execute at a time.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from milepost.engine.cancelling import MARGIN_SECONDS
from milepost.engine.commands import Claim, Command, EndUnheededRuns, RegisterWorker, Report, WithdrawClaim
from milepost.engine.jobs import RENEWED_MICROSECONDS
from milepost.engine.state import EngineSettings
from milepost.model.lifecycle import CANCELLED, NOT_TOLD
from milepost.model.retry import RetryRule
from milepost.model.run import AttemptEnd, Closing, Outcome, RunError
from milepost.store.database import Store
from simulation.debounce_watch import DebounceWatch
from simulation.queue_watch import QueueWatch
from simulation.records import Attempt, Records
from simulation.schedule_watch import ScheduleWatch
from simulation.stream_watch import StreamWatch
from simulation.wait_watch import WaitWatch

HELD = ("EXECUTING", "WAITING")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "CANCELED", "TIMED_OUT", "EXPIRED")
# A trigger that means a run of these makes a new one.
FAILED = ("FAILED", "CRASHED", "SYSTEM_FAILURE", "TIMED_OUT", "EXPIRED")
# What a worker says of an output, or of an error, that no request can carry.
REFUSED_ERRORS = ("ReportRefusedError", "OutputError")
MICROSECONDS = 1_000_000
# A clock that is set by less than this between two groups is not noticed.
JUMP_MICROSECONDS = 1_000_000
# So long a run may be due, and not be given to a claim that waits for it: servers that hear of nothing look once in a second.
CLAIMS_WAIT_MICROSECONDS = 3 * MICROSECONDS
# One that has to execute apart is given to a busy worker only after a while, and with a claim that comes after that.
APART_WAITS_MICROSECONDS = 40 * MICROSECONDS
# So long the word that a run has ended, or may go on, is under way to who waits for it, where nothing is lost.
WORD_MICROSECONDS = 3 * MICROSECONDS
# For so long at least nobody else does what a server does of the upkeep: its lease is renewed in time, by clocks that may be apart.
UPKEEP_MICROSECONDS = RENEWED_MICROSECONDS - 2 * MICROSECONDS
# A server that was stopped for at least this share of a lease starts all leases anew.
AWAY_SHARE = 0.5
_error = msgspec.json.Decoder(RunError)
closing_of = msgspec.json.Decoder(Closing).decode
LAST_HOOKS = ["on_failure", "on_complete"]


class Row(NamedTuple):
    """A run as it is committed."""

    id: str
    queue: str
    status: str
    attempt: int
    worker_id: str | None
    max_attempts: int | None
    parent_id: str | None
    output: str | None
    error: str | None
    payload: str | None
    charged: int
    begun_at: int | None
    task: str
    due_at: int
    is_apart: int
    concurrency_key: str | None
    cancel_asked_at: int | None = None
    closing: str | None = None

    @property
    def holder(self) -> tuple[int, str] | None:
        """The attempt and the worker that hold the run."""
        return (self.attempt, self.worker_id) if self.status in HELD and self.worker_id else None


_SELECT = f"SELECT {', '.join(Row._fields)} FROM runs"


def name_of(row: Row) -> str:
    """What its code is told to be."""
    return msgspec.json.decode(row.payload or '""')


@dataclass(frozen=True)
class End:
    """How an attempt has ended, as far as the witness knows: what may be said of it."""

    number: int
    ends: frozenset[str]
    message: str | None = None


@dataclass
class Ledger:
    """What the witness knows of one run.

    Attributes:
        charged: attempts that count against the rule of retries.
        ends: the attempts that have ended, in order.
        ready_at: before this time on the steady clock it may not be tried again.
        due_at: before this time on the steady clock it may not be claimed, unless a clock was set.
        ended_at: when the last attempt has ended.
    """

    charged: int = 0
    ends: list[End] = field(default_factory=list[End])
    ready_at: int = 0
    due_at: int = 0
    ended_at: int = 0


class Watch:
    """The witness of one simulation.

    Args:
        retry: the rule of all tasks.
        limits: how many runs of a queue may execute at once, for the queues that have a limit.
        steady: the clock that nobody sets, microseconds.
        failed: called with what should not have happened.
        max_duration_seconds: how long an attempt may execute.
        are_several: there are several servers.
        clocks_apart: seconds by which each may be wrong about the time.
        has_waits: runs wait for times and tokens.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        settings: EngineSettings,
        *,
        retry: RetryRule,
        limits: dict[str, int],
        steady: Callable[[], int],
        failed: Callable[[BaseException], None],
        max_duration_seconds: float | None,
        are_several: bool,
        clocks_apart: float,
        has_waits: bool,
    ) -> None:
        self._has_waits = has_waits
        self.max_duration_seconds = max_duration_seconds
        self._connection = sqlite3.connect(store.place, isolation_level=None)
        self._records = records
        self.asked_at: dict[str, int] = {}
        self._stop_grace = round(settings.stop_grace_seconds * MICROSECONDS)
        self._lease = round(settings.lease_seconds * MICROSECONDS)
        self._retry = retry
        self._steady = steady
        self._failed = failed
        self._are_several = are_several
        self._clocks_apart = clocks_apart
        records.clock_went_back |= clocks_apart > 0
        # By how much in all the wall clock was set.
        self._jumped = 0.0
        self.rows: dict[str, Row] = {}
        self._before: dict[str, Row] = {}
        self.ledgers: dict[str, Ledger] = defaultdict(Ledger)
        # Who each attempt was given to.
        self.claims: dict[tuple[str, int], set[str]] = defaultdict(set)
        # When any server heard each worker last, and from when the leases of each server count at all.
        self._heard_at: dict[str, int] = {}
        # The newest claims and registrations.
        self._claims: dict[str, int] = {}
        self._registrations: dict[str, int] = {}
        self._leases_from: dict[str, int] = defaultdict(int)
        # When each server has given up runs of lost workers.
        self._given_up_at: dict[str, int] = {}
        # Since when each run waits although a claim waits for it.
        self._waiting_since: dict[str, int] = {}
        # From when on nothing is lost or late that servers and workers tell each other; None where something may be.
        self.quiet_from: int | None = None
        # When each run has ended, and when one that waited was let go on.
        self._ended_at: dict[str, int] = {}
        self._let_at: dict[str, int] = {}
        self._server = ""
        # When the wall clock was set.
        self._jumps: list[int] = []
        self._begun: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
        self.executing: dict[str, list[Attempt]] = defaultdict(list)
        # The workers whose processes are no more.
        self._dead: set[str] = set()
        # Which attempts have tried to trigger a run, by its name.
        self.triggers: dict[str, set[tuple[str, int]]] = defaultdict(set)
        # The runs of each name, and of each idempotency key with until when it stands for them.
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_key: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
        self._version = -1
        self.streams = StreamWatch(self._connection, self.fail)
        self.queues = QueueWatch(self._connection, self.fail, limits)
        self._schedules = ScheduleWatch(
            self._connection,
            self.fail,
            self._judge_end_of_time,
            lambda: bool(self._jumps),
            lambda: self.is_quiet,
        )
        self._debounces = DebounceWatch(
            self.fail,
            lambda run_id: name_of(self.rows[run_id]) in records.debounced,
            self._put_off,
            lambda: bool(self._jumps),
        )
        self.waits = WaitWatch(self._connection, self.fail, self._judge_end_of_time, self._ended_at)

    @property
    def now(self) -> int:
        """Microseconds on the clock that nobody sets."""
        return self._steady()

    @property
    def is_quiet(self) -> bool:
        """Nothing is lost or late that servers and workers tell each other."""
        return self.quiet_from is not None

    def ended_at(self, run_id: str) -> int:
        """When a run has ended, on the clock that nobody sets."""
        return self._ended_at[run_id]

    def close(self) -> None:
        """Look no more."""
        self._connection.close()

    def fail(self, message: str) -> None:
        """Something is wrong."""
        self._failed(AssertionError(message))

    def _expect(self, condition: object, message: str) -> None:
        if not condition:
            self.fail(message)

    # --- the machine ---------------------------------------------------------------------------------------------

    def server_starts(self, server: str) -> None:
        """For it no lease counts from before: it could not hear anybody."""
        self._leases_from[server] = self._steady()

    def server_goes_on(self, server: str, stopped_microseconds: int) -> None:
        """It had been stopped."""
        if stopped_microseconds >= AWAY_SHARE * self._lease:
            self._leases_from[server] = self._steady()

    def clock_was_set(self, seconds: float) -> None:
        """The wall clock."""
        self._jumps.append(self._steady())
        self._jumped += abs(seconds) * MICROSECONDS
        self._records.clock_went_back |= seconds < 0 or self._clocks_apart > 0

    def is_disturbed(self) -> None:
        """Something happens to a server, so that claims may have to wait."""
        self._waiting_since.clear()
        if self.quiet_from is not None:
            self.quiet_from = max(self.quiet_from, self._steady())

    # --- the database --------------------------------------------------------------------------------------------

    def look(
        self,
        server: str,
        commands: Sequence[Command],
        heard: Sequence[Command],
        known_workers: Collection[str],
    ) -> None:
        """A server has carried out a group, or has tried to: see what is different.

        Args:
            commands: those that were not refused.
            heard: those of them that were not in vain, as far as that is known.
        """
        self._server = server
        self._hear(heard, known_workers, (RegisterWorker, Report))
        [(version,)] = self._connection.execute("PRAGMA data_version")
        if version != self._version:
            self._version = version
            now = self._steady()
            rows = {row[0]: Row(*row) for row in self._connection.execute(_SELECT)}
            changed = [(self.rows.get(row.id), row) for row in rows.values() if self.rows.get(row.id) != row]
            self._expect(self.rows.keys() <= rows.keys(), "a run has vanished")
            self._before, self.rows = self.rows, rows
            self.queues.look()
            self.streams.look(self._before, rows)
            if self._records.scheduled:
                scheduled = {
                    row.id
                    for before, row in changed
                    if before is None and name_of(row) in self._records.scheduled
                }
                self._schedules.look(scheduled, now)
            if self._has_waits:
                self.waits.look(commands, now)
            if self._records.debounced:
                self._debounces.look(self._before, [row for _, row in changed], commands, heard, now)
            for before, row in changed:
                self._judge_change(before, row, commands, now)
            self.queues.judge_occupancy(self._before.values(), rows.values())
        self._hear(heard, known_workers, None)

    def look_at_claims(self, tasks: Collection[str], now: int) -> None:
        """No run waits for long that a claim could have.

        Args:
            tasks: of which claims take runs, each at a server that is at work.
            now: by the wall clock of each server that is at work it is at least so late.
        """
        steady = self._steady()
        for row in self.rows.values():
            since = self._waiting_since.get(row.id)
            if not (
                row.status == "QUEUED" and row.task in tasks and row.due_at <= now and self._has_room(row)
            ):
                if since is not None:
                    del self._waiting_since[row.id]
            elif since is None:
                self._waiting_since[row.id] = steady
            else:
                most = APART_WAITS_MICROSECONDS if row.is_apart else CLAIMS_WAIT_MICROSECONDS
                self._expect(
                    steady - since <= most,
                    f"{row.id} is due since {(steady - since) / 1e6} s, and a claim waits for it",
                )

    def _has_room(self, run: Row) -> bool:
        return not self.queues.is_paused(run.queue) and self.queues.limit(run.queue) > sum(
            (row.queue, row.concurrency_key) == (run.queue, run.concurrency_key) and row.status in HELD
            for row in self.rows.values()
        )

    def _hear(
        self, commands: Sequence[Command], known_workers: Iterable[str], kinds: tuple[type[Any], ...] | None
    ) -> None:
        now = self._steady()
        withdrawn = {command.worker_id for command in commands if isinstance(command, WithdrawClaim)}
        for command in commands:
            worker_id = None if isinstance(command, WithdrawClaim) else getattr(command, "worker_id", None)
            if worker_id in known_workers and (kinds is None or isinstance(command, kinds)):
                if isinstance(command, Claim):
                    # A late one, or one whose connection has gone, need not count.
                    newest = self._claims.get(worker_id, 0)
                    if command.sequence < newest or worker_id in withdrawn:
                        continue
                    self._claims[worker_id] = command.sequence
                if isinstance(command, RegisterWorker):
                    if command.sequence <= self._registrations.get(worker_id, 0):
                        continue
                    self._registrations[worker_id] = command.sequence
                self._heard_at[worker_id] = now

    def _judge_change(self, before: Row | None, row: Row, commands: Sequence[Command], now: int) -> None:
        if before is None:
            self._judge_new(row, now)
            before = row._replace(status="QUEUED", attempt=0, worker_id=None)
        if before.status in FINAL:
            self._expect(
                (before.status, before.output, before.error, before.attempt)
                == (row.status, row.output, row.error, row.attempt),
                f"{row.id} had ended as {before} and is {row}",
            )
            return
        was_asked = row.cancel_asked_at is not None
        if was_asked and before.cancel_asked_at is None:
            self._judge_cancel(row, now)
        if row.status in FINAL:
            self._ended_at[row.id] = now
            self._judge_promptness(row, now)
        elif (before.status, row.status) == ("WAITING", "EXECUTING"):
            # Code whose queue has no limit is not let: it goes on, and says so.
            if self.queues.limit(row.queue) < math.inf:
                self._let_at[row.id] = now
        elif row.status == "WAITING":
            self._let_at.pop(row.id, None)
        if before.holder is not None and before.holder != row.holder:
            self._judge_end(before, row, commands, now)
        elif row.status == "EXPIRED":
            self._judge_expiry(row, now)
        elif (
            before.status not in HELD and row.status in FINAL and not (was_asked and row.status == "CANCELED")
        ):
            self.fail(f"{row.id} has ended as {row.status} while nobody held it")
        if row.holder is not None and before.holder != row.holder:
            self._judge_claim(before, row, now)
        elif row.status == "QUEUED":
            self._judge_charges(row)

    def _judge_cancel(self, row: Row, now: int) -> None:
        """Somebody has asked for it, or for the end of a run above."""
        self.asked_at[row.id] = now
        above: Row | None = row
        while above is not None and above.id not in self._records.cancelled:
            above = self.rows[above.parent_id] if above.parent_id else None
        self._expect(above is not None, f"{row.id} is cancelled, and nobody has asked for that")

    def _judge_promptness(self, row: Row, now: int) -> None:
        """Where nothing is lost, what was asked to end has done so when its grace time is over."""
        asked_at = self.asked_at.get(row.id)
        if asked_at is not None and self.quiet_from is not None:
            late = now - max(asked_at, self.quiet_from) - self._stop_grace
            self._expect(
                late <= 2 * WORD_MICROSECONDS, f"{row.id} has ended {late / 1e6} s after its grace time"
            )

    def _judge_new(self, row: Row, now: int) -> None:
        name = name_of(row)
        self._expect(name in self._records.wanted, f"nobody wanted {name}")
        for same in self._by_name[name] if name not in self._records.scheduled else ():
            self._expect(
                self.rows[same].status in FAILED and row.parent_id is not None,
                f"{name} was triggered again, and {self.rows[same]} is there",
            )
        self._by_name[name].append(row.id)
        self._judge_key(name, row, now)
        self.ledgers[row.id].due_at = now + self._records.delays.get(name, 0) * MICROSECONDS
        self._expect(
            (row.status == "DELAYED") == (name in self._records.delays), f"{name} is {row.status} at first"
        )
        if row.parent_id is None:
            return
        parent = self.rows[row.parent_id]
        self._expect(
            parent.status in HELD and (parent.id, parent.attempt) in self.triggers[name],
            f"{name} was triggered by an attempt that is over: {self.triggers[name]}, {parent.id} is at {parent.attempt}",
        )

    def _judge_key(self, name: str, row: Row, now: int) -> None:
        """An idempotency key stands for one run, until that has failed or the key has been kept for long enough."""
        if name not in self._records.keys:
            return
        key, ttl = self._records.keys[name]
        for earlier, until in self._by_key[key]:
            # A clock that was set may have gone on by more than any key is kept.
            is_forgotten = self._jumps or (until is not None and now + self._clocks_slack(Ledger()) >= until)
            self._expect(
                self.rows[earlier].status in FAILED or is_forgotten,
                f"{row.id} was made for {key}, which stands for {self.rows[earlier]}",
            )
        self._by_key[key].append((row.id, None if ttl is None else now + ttl * MICROSECONDS))

    def failed_of_key(self, key: str) -> set[str]:
        """The runs of an idempotency key that have failed."""
        return {run_id for run_id, _ in self._by_key[key] if self.rows[run_id].status in FAILED}

    def judge_answer(
        self, name: str, key: str, run_id: str, *, is_cached: bool, failed: Collection[str]
    ) -> None:
        """Who triggers by a key has an answer. `failed` had failed before anything was asked."""
        self._expect(
            run_id in {one for one, _ in self._by_key[key]} - set(failed),
            f"{name} with {key} is {self.rows.get(run_id)}, and {failed} had failed",
        )
        self._expect(
            is_cached or name_of(self.rows[run_id]) == name,
            f"{name} is said to be new, and is {self.rows[run_id]}",
        )

    def _put_off(self, run_id: str, until: int) -> None:
        # What was due by this very group may begin.
        if self.rows[run_id].status == "DELAYED":
            self.ledgers[run_id].due_at = until

    def judge_debounced(self, name: str, run_id: str, *, is_cached: bool) -> None:
        """Who triggers by the debounce key has an answer."""
        run = self.rows[run_id]
        self._expect(name_of(run) in self._records.debounced, f"{name} is {run}, which is not debounced")
        self._expect(
            (name_of(run) == name) != is_cached, f"{name} is {run}, and that it was there: {is_cached}"
        )

    def _judge_expiry(self, row: Row, now: int) -> None:
        """It has a time to live, which is over, and nobody has ever taken it."""
        ttl = self._records.ttls.get(name_of(row))
        ledger = self.ledgers[row.id]
        self._expect(ttl is not None, f"{row.id} has expired, and has no time to live")
        self._expect(row.attempt == 0 and not ledger.ends, f"{row.id} has expired, and was claimed before")
        self._judge_time(f"{row.id} has expired", ledger.due_at + (ttl or 0) * MICROSECONDS, ledger, now)

    def _judge_time(self, what: str, at: int, ledger: Ledger, now: int) -> None:
        """It is not before its time. A server that was away when the clock was set cannot tell that from a time that has passed."""
        early = at - now - self._clocks_slack(ledger)
        self._expect(bool(self._jumps) or early <= 0, f"{what} {early / 1e6} s too early")

    def _judge_end_of_time(self, what: str, at: int, since: int, now: int) -> None:
        """As `_judge_time`, of what waits for its time since then; and where nothing is lost it is not late either."""
        self._judge_time(what, at, Ledger(ended_at=since), now)
        if self.quiet_from is not None:
            late = now - max(at, self.quiet_from)
            self._expect(late <= WORD_MICROSECONDS, f"{what}, {late / 1e6} s late")

    def _clocks_slack(self, ledger: Ledger) -> int:
        if self._are_several:
            # Each goes by the database's clock as it has read it last, and follows one that is a moment ahead.
            return JUMP_MICROSECONDS + 2 * round(self._clocks_apart * MICROSECONDS) + self._jumped
        return sum(JUMP_MICROSECONDS for jump in self._jumps if jump >= ledger.ended_at)

    def _judge_claim(self, before: Row, row: Row, now: int) -> None:
        assert row.worker_id is not None
        ledger = self.ledgers[row.id]
        key = row.id, row.attempt
        self._expect(
            row.attempt == before.attempt + 1 and not self.claims[key],
            f"attempt {row.attempt} of {row.id} follows {before.attempt} and was given to {self.claims[key]} before",
        )
        self.claims[key].add(row.worker_id)
        self.queues.judge_claim(row)
        # What an earlier attempt was let do is of no interest any more.
        self._let_at.pop(row.id, None)
        self._expect(
            now + self._clocks_slack(ledger) >= ledger.ready_at,
            f"{row.id} was tried again {(ledger.ready_at - now) / 1e6} s too early",
        )
        if row.attempt == 1:
            self._judge_time(f"{row.id} was claimed", ledger.due_at, ledger, now)

    def _judge_charges(self, row: Row) -> None:
        charged = self.ledgers[row.id].charged
        self._expect(row.charged == charged, f"{row.id} is charged {row.charged} times instead of {charged}")

    # --- how an attempt ends --------------------------------------------------------------------------------------

    def _judge_end(self, before: Row, row: Row, commands: Sequence[Command], now: int) -> None:
        """The attempt that held the run has ended: for a reason, and with what follows from it."""
        assert before.worker_id is not None
        number, worker_id = before.attempt, before.worker_id
        ledger = self.ledgers[row.id]
        ledger.ended_at = now
        attempt = self._attempt(row.id, number, worker_id)
        outcome = self._outcome_in(commands, row.id, number, worker_id)
        if before.closing is not None:
            self._judge_closed(before, row, attempt, outcome, commands, now)
            return
        if outcome is not None:
            is_registered_again = any(
                isinstance(command, RegisterWorker) and command.worker_id == worker_id for command in commands
            )
            self._judge_outcome(before, row, attempt, outcome, now, is_registered_again=is_registered_again)
            return
        if row.status == "COMPLETED":
            self.fail(f"{row.id} is COMPLETED and nobody said so")
            return
        ends = self._ends_without_outcome(before, attempt, commands, now)
        ledger.ends.append(End(number, frozenset(ends)))
        is_charged = any(AttemptEnd(end).is_charged for end in ends)
        self._follow(
            before, row, now, is_charged=is_charged, delay_ms=None, can_be_retried=True, final=("CRASHED",)
        )

    def _judge_closed(
        self,
        before: Row,
        row: Row,
        attempt: Attempt | None,
        outcome: Outcome | None,
        commands: Sequence[Command],
        now: int,
    ) -> None:
        """An attempt has ended that was to run the last hooks of a run whose process is dead, and nothing else. It costs nothing, and
        the run ends with it, unless it was given back before it could."""
        assert before.closing is not None
        ledger, closing = self.ledgers[row.id], closing_of(before.closing)
        what = f"attempt {before.attempt} of {row.id}, which was to run its last hooks,"
        if outcome is not None:
            is_over = True
            self._expect(
                attempt is not None
                and (
                    attempt.hooks == LAST_HOOKS or attempt.is_over_early or before.cancel_asked_at is not None
                ),
                f"{what} has ended, and has run {attempt and attempt.hooks}",
            )
            ends = {"closed"}
        else:
            ends = self._ends_without_outcome(before, attempt, commands, now)
            is_charged = {end for end in ends if AttemptEnd(end).is_charged}
            is_over = bool(is_charged) and (len(is_charged) == len(ends) or row.status in FINAL)
            ends = {"closed"} if is_over else ends - is_charged
        ledger.ends.append(End(before.attempt, frozenset(ends)))
        if is_over:
            stored = _error.decode(row.error) if row.error else None
            self._expect(
                row.status == closing.status and stored == closing.error and row.output is None,
                f"{what} is to end it as {closing}, and it is {row}",
            )
        elif row.cancel_asked_at is not None:
            self._expect(row.status == "CANCELED", f"{row.id} was to end, and goes on as {row.status}")
        else:
            ledger.ready_at = now
            self._expect(
                row.status not in FINAL and row.closing == before.closing,
                f"{what} was given back, and it is {row}",
            )
        self._judge_charges(row)

    def _is_to_be_closed(self, row: Row, status: str) -> None:
        """The process of its last attempt is dead: a worker is to run its hooks before it has ended."""
        self._expect(
            row.status not in FINAL and row.closing is not None and closing_of(row.closing).status == status,
            f"nobody has run the last hooks of {row.id}, which is to end as {status}, and it is {row}",
        )

    def _follow(
        self,
        before: Row,
        row: Row,
        now: int,
        *,
        is_charged: bool,
        delay_ms: int | None,
        can_be_retried: bool,
        final: Collection[str],
    ) -> None:
        """Judge what follows an attempt that has not returned.

        Args:
            final: how the run may have ended, if it has.
            delay_ms: what the worker has said, None where the server decides.
        """
        ledger = self.ledgers[row.id]
        if row.cancel_asked_at is not None:
            ledger.charged += is_charged
            self._expect(row.status == "CANCELED", f"{row.id} was to end, and goes on as {row.status}")
            self._judge_charges(row)
            return
        if not is_charged:
            ledger.ready_at = now
            self._expect(
                row.status not in FINAL,
                f"{row.id} has ended as {row.status}, and attempt {before.attempt} is not charged",
            )
            return
        ledger.charged += 1
        most = row.max_attempts or self._retry.max_attempts
        is_last = ledger.charged >= most or not can_be_retried
        if is_last and delay_ms is None and final == ("CRASHED",):
            ledger.ready_at = now
            self._is_to_be_closed(row, "CRASHED")
            self._judge_charges(row)
            return
        self._expect(row.closing is None, f"{row.id} is to be tried again, and to end as {row.closing}")
        self._expect(
            (row.status in FINAL) == is_last and (not is_last or row.status in final),
            f"{row.id} is {row.status} after {ledger.charged} of {most} attempts (worth a retry: {can_be_retried})",
        )
        if not is_last:
            seconds = min(
                self._retry.max_delay_seconds,
                self._retry.min_delay_seconds * self._retry.factor ** (ledger.charged - 1),
            )
            if delay_ms is not None:
                self._expect(
                    seconds * 500 - 1 <= delay_ms <= seconds * 1000,
                    f"{row.id} is tried again after {delay_ms} ms, and the rule says {seconds} s",
                )
            least = seconds * 500 - 1 if delay_ms is None else delay_ms
            ledger.ready_at = now + round(least * 1000) - 1000
        self._judge_charges(row)

    def _outcome_in(
        self, commands: Sequence[Command], run_id: str, number: int, worker_id: str
    ) -> Outcome | None:
        for command in commands:
            if isinstance(command, Report) and command.worker_id == worker_id:
                for item in command.runs:
                    if (item.id, item.attempt) == (run_id, number) and item.outcome is not None:
                        return item.outcome
        return None

    def _judge_outcome(
        self,
        before: Row,
        row: Row,
        attempt: Attempt | None,
        outcome: Outcome,
        now: int,
        *,
        is_registered_again: bool = False,
    ) -> None:
        """The outcome that was stored is what this very execution came to."""
        what = f"attempt {before.attempt} of {row.id}"
        ledger = self.ledgers[row.id]
        if outcome.end in (AttemptEnd.CANCELLED, AttemptEnd.TIMED_OUT):
            self._judge_stop(before, row, outcome, is_registered_again=is_registered_again)
            return
        real = None if attempt is None else attempt.outcome
        if attempt is not None and real is None and attempt.is_over_early:
            # It was given up while its last hooks ran.
            real = attempt.returned
        if attempt is None or real is None:
            self.fail(f"{what} has ended, and nobody has executed it to its end: {attempt}")
            return
        if outcome.end is not None:
            self.fail(f"{what} has ended as {outcome.end}")
        self.streams.judge_outcome(attempt)
        if outcome.error is None:
            ledger.ends.append(End(before.attempt, frozenset({"returned"})))
            self._expect(row.status == "COMPLETED", f"{what} has returned, and the run is {row.status}")
            self._expect(
                real.error is None and row.output == real.output and row.error is None,
                f"{what} has returned {real.output!r}, and {row.output!r} is stored",
            )
            return
        was_refused = outcome.error.name in REFUSED_ERRORS and real.error is None
        if not was_refused and real.error is None:
            self.fail(f"{what} has returned, and is said to have raised {outcome.error}")
            return
        ledger.ends.append(End(before.attempt, frozenset({"raised"}), outcome.error.message))
        if real.error is not None:
            self._expect(
                outcome.error.message == real.error.message[: len(outcome.error.message)],
                f"{what} has raised {real.error.message!r}, and {outcome.error.message!r} is reported",
            )
        if row.status in FINAL:
            stored = _error.decode(row.error) if row.error else None
            if before.cancel_asked_at is None and row.cancel_asked_at is not None and stored == CANCELLED:
                # Queued again, and cancelled with its parent by the same group.
                stored = outcome.error
            self._expect(
                stored is not None and stored.message == outcome.error.message and row.output is None,
                f"{what} has raised {outcome.error.message!r}, and {row.error!r} is stored",
            )
        self._follow(
            before,
            row,
            now,
            is_charged=True,
            delay_ms=outcome.retry_after_ms,
            can_be_retried=attempt.can_be_retried and not was_refused,
            final=("FAILED", "SYSTEM_FAILURE") if was_refused else ("FAILED",),
        )

    def _judge_stop(self, before: Row, row: Row, outcome: Outcome, *, is_registered_again: bool) -> None:
        """An attempt was ended from outside, by its own code or over its head."""
        assert outcome.end is not None
        assert outcome.error is not None
        was_asked = before.cancel_asked_at is not None or row.cancel_asked_at is not None
        is_cancelled = outcome.end is AttemptEnd.CANCELLED
        what = f"attempt {before.attempt} of {row.id}"
        self._expect(was_asked or not is_cancelled, f"{what} was cancelled, and nobody has asked for it")
        self._expect(
            is_cancelled or self.max_duration_seconds is not None, f"{what} has timed out, and has no time"
        )
        expected = "CANCELED" if was_asked else "TIMED_OUT"
        if outcome.lacks_hooks and not was_asked:
            self.ledgers[row.id].ready_at = 0
            self._is_to_be_closed(row, "TIMED_OUT")
        else:
            self._expect(
                row.status == expected, f"{what} is to end as {expected}, and the run is {row.status}"
            )
        end = End(before.attempt, frozenset({outcome.end.value}), outcome.error.message)
        if is_registered_again and before.begun_at is None:
            # The worker has handed it back meanwhile, and either may have been heard first.
            end = End(before.attempt, frozenset({outcome.end.value, "never_begun"}))
        self.ledgers[row.id].ends.append(end)
        self._judge_charges(row)

    def _ends_without_outcome(
        self, before: Row, attempt: Attempt | None, commands: Sequence[Command], now: int
    ) -> set[str]:
        """What may be said of an attempt that ends without a word of its own. Raises nothing: what is wrong is told."""
        worker_id = before.worker_id
        assert worker_id is not None
        has_started = attempt is not None and attempt.started_at is not None
        for command in commands:
            if isinstance(command, Report) and command.worker_id == worker_id:
                if command.death is not None:
                    has_come_back = any(
                        (item.id, item.attempt, item.waiting) == (before.id, before.attempt, False)
                        for other in commands
                        if isinstance(other, Report)
                        for item in other.runs
                    )
                    return self._ends_by_death(
                        before, attempt, has_started, command.death, has_come_back=has_come_back
                    )
                if command.leaving:
                    # Of all that has begun it says so before it leaves, or with that.
                    return {"handed_back"} if has_started or before.begun_at is not None else {"never_begun"}
            if isinstance(command, RegisterWorker) and command.worker_id == worker_id:
                held = dict(zip(command.holding, command.attempts, strict=False))
                if held.get(before.id) != before.attempt:
                    self._expect(
                        not has_started or (attempt is not None and attempt.outcome is not None),
                        f"attempt {before.attempt} of {before.id} executes in {worker_id}, which says not to hold it",
                    )
                    return {"never_begun"}
        if any(isinstance(command, EndUnheededRuns) for command in commands):
            stored = self.rows[before.id].error
            if stored is not None and _error.decode(stored) == NOT_TOLD:
                patience = self._stop_grace + round(MARGIN_SECONDS * MICROSECONDS)
                self._expect(
                    now - self.asked_at.get(before.id, now) >= patience,
                    f"{before.id} was ended over the head of its worker {worker_id}, which had time left to say so",
                )
                return {"cancelled"}
        from_ = max(self._heard_at.get(worker_id, 0), self._leases_from[self._server])
        self._expect(
            now - from_ >= self._lease,
            f"attempt {before.attempt} of {before.id} was given up {(now - from_) / 1e6} s after its worker {worker_id} was heard",
        )
        self._judge_who_gives_up(now)
        if before.begun_at is not None:
            # A run that is apart is said to begin before its code does.
            may_have_begun = has_started or (attempt is not None and attempt.is_apart)
            self._expect(
                may_have_begun, f"attempt {before.attempt} of {before.id} is lost, and it has never begun"
            )
            charged = self.ledgers[before.id].charged
            if before.status == "WAITING":
                # One that this happens to again and again is tried apart, and charged.
                is_often = before.is_apart or before.attempt - charged >= 3
                return {"waiting", "lost"} if is_often else {"waiting"}
            return {"lost"}
        return {"never_begun"}

    def _judge_who_gives_up(self, now: int) -> None:
        """One server at a time looks after leases."""
        for server, at in self._given_up_at.items():
            self._expect(
                server == self._server or self._jumps or now - at >= UPKEEP_MICROSECONDS,
                f"{self._server} gives up runs {(now - at) / 1e6} s after {server} did",
            )
        self._given_up_at[self._server] = now

    def _ends_by_death(
        self, before: Row, attempt: Attempt | None, has_started: bool, death: Any, *, has_come_back: bool
    ) -> set[str]:
        what = f"attempt {before.attempt} of {before.id}"
        worker_id = before.worker_id
        assert worker_id is not None
        if worker_id not in self._dead:
            self.fail(f"the death of {worker_id} is reported, and it lives")
            return {"crashed"}
        begun = {(item.id, item.attempt): item.waiting for item in death.begun}
        key = before.id, before.attempt
        if not has_started:
            self._expect(key not in begun, f"{what} is said to have begun in {worker_id}, and has not")
            return {"never_begun"}
        assert attempt is not None
        if attempt.begun_at is not None and attempt.outcome is None:
            self._expect(
                key in begun, f"{what} had begun in {worker_id}, and its death report does not say so"
            )
        if key not in begun:
            return {"never_begun"}
        # Those that were given up before and execute all the same are suspects as well.
        executed = {item for item in begun if not begun[item]}
        held = [row for row in self._before.values() if row.worker_id == worker_id and row.holder is not None]
        waited = {
            (row.id, row.attempt)
            for row in held
            if (row.id, row.attempt) in begun or row.begun_at is not None
        }
        is_alone = begun.keys() | waited == executed == {key}
        was_apart = attempt.is_apart and (executed or waited) == {key}
        if is_alone or was_apart:
            return {"crashed"}
        is_often = before.is_apart or before.attempt - self.ledgers[before.id].charged >= 3
        if is_often or not begun[key]:
            return {"beside"}
        # The word that it waits, or waits no longer, may have come in the same group.
        return {"waiting"} if before.status == "WAITING" and not has_come_back else {"waiting", "beside"}

    def _attempt(self, run_id: str, number: int, worker_id: str) -> Attempt | None:
        """The execution of an attempt in a worker: the one that has come furthest."""
        found = [
            attempt for attempt in self._records.attempts_of(run_id, number) if attempt.worker_id == worker_id
        ]
        return max(found, key=lambda one: (one.outcome is not None, one.started_at is not None), default=None)

    # --- user code -----------------------------------------------------------------------------------------------

    def begins(self, attempt: Attempt, *, slots: int) -> None:
        """The user's code of an attempt begins."""
        key = attempt.run_id, attempt.number
        row = self.rows[attempt.run_id]
        self._expect(
            attempt.worker_id in self.claims[key],
            f"{attempt} executes and was never claimed by {attempt.worker_id}",
        )
        for earlier in self._begun[key]:
            self.fail(f"{attempt} executes a second time, after {earlier}")
        self._begun[key].append(attempt)
        self._expect(
            row.holder == (attempt.number, attempt.worker_id), f"{attempt} begins, and the run is {row}"
        )
        self._expect(
            (row.closing is not None) == attempt.is_closing,
            f"{attempt} begins {'the last hooks' if attempt.is_closing else 'the code'}, and the run is {row}",
        )
        charged = self.ledgers[attempt.run_id].charged
        self._expect(
            attempt.charged_before == charged,
            f"{attempt} is told of {attempt.charged_before} charged attempts, and there are {charged}",
        )
        self.goes_on(attempt, slots=slots)

    def goes_on(self, attempt: Attempt, *, slots: int) -> None:
        """The code executes from now on, after its beginning or a wait."""
        here = self.executing[attempt.process]
        if attempt not in here:
            here.append(attempt)
        if not self._is_held(attempt):
            return
        self.learns_that_it_may(attempt.process, attempt.run_id)
        held = [one for one in here if self._is_held(one)]
        self._expect(len(held) <= slots, f"{[str(one) for one in held]} execute at once, with {slots} slots")
        self._expect(
            len(here) == 1 or not any(self._is_alone(one) for one in here),
            f"{[str(one) for one in here]} execute beside each other, and one is to be apart",
        )
        most = self.queues.highest(attempt.queue)
        if most < math.inf:
            of_queue = [
                one
                for executing in self.executing.values()
                for one in executing
                if one.queue == attempt.queue
                and self._key_of(one.run_id) == self._key_of(attempt.run_id)
                and self._is_held(one)
            ]
            self._expect(
                len(of_queue) <= most,
                f"code of {[str(one) for one in of_queue]} executes at once, and the limit is {most}",
            )

    def _key_of(self, run_id: str) -> str | None:
        row = self.rows.get(run_id)
        return None if row is None else row.concurrency_key

    def _is_alone(self, attempt: Attempt) -> bool:
        """It is apart, and has not executed for so long that others may join it."""
        if not attempt.is_apart or attempt.started_at is None:
            return attempt.is_apart
        return self._steady() - attempt.started_at < attempt.alone_seconds * 1_000_000

    def learns_of_end(self, process: str, run_id: str, waits_since: int) -> None:
        """A worker in which code waits for a run has learnt that it has ended."""
        self._judge_delay(
            f"{process} learns that {run_id} has ended", max(waits_since, self._ended_at[run_id])
        )

    def learns_that_it_may(self, process: str, run_id: str) -> None:
        """A worker has learnt that a run that waited may go on; then it needs a slot."""
        let_at = self._let_at.pop(run_id, None)
        if let_at is not None:
            self._judge_delay(f"{process} learns that {run_id} may go on", let_at)

    def _judge_delay(self, what: str, since: int) -> None:
        if self.quiet_from is not None:
            late = self._steady() - max(since, self.quiet_from)
            self._expect(late <= WORD_MICROSECONDS, f"{what}, {late / 1e6} s late")

    def pauses(self, attempt: Attempt) -> None:
        """The code waits for another run, or has ended."""
        here = self.executing[attempt.process]
        if attempt in here:
            here.remove(attempt)

    def process_dies(self, process: str, worker_id: str, attempts: Iterable[Attempt]) -> None:
        """Whatever was running there runs no more."""
        self._dead.add(worker_id)
        for one in attempts:
            one.was_killed = one.started_at is not None and one.outcome is None
        self.executing.pop(process, None)

    def _is_held(self, attempt: Attempt) -> bool:
        row = self.rows[attempt.run_id]
        return row.holder == (attempt.number, attempt.worker_id)
