"""The engine: carries out groups of commands, each group as one transaction.

For a group: load what all its commands speak of at once, decide in pure code, save with one statement per table, commit, and only then
answer. A refused command does not touch its neighbours. A group whose transaction fails is tried again, then command by command,
so that only the one that cannot be carried out is answered with the failure.
"""

import logging
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from milepost.engine import claiming, fencing, promoting, queues, schedules
from milepost.engine.announcements import Announcement
from milepost.engine.catalog import Catalog
from milepost.engine.commands import Claim, Command
from milepost.engine.documents import DocumentCache
from milepost.engine.measures import EngineMeasures
from milepost.engine.others import Gap, HeardWorker, Learnt, Others, is_worth_telling, learn, were_told
from milepost.engine.rules import rule_of
from milepost.engine.state import (
    CLOCKS_APART_MICROSECONDS,
    EngineSettings,
    EngineState,
    ParkedClaim,
    ParkedClaims,
    Worker,
)
from milepost.engine.transaction import Transaction
from milepost.errors import CommitUnknownError, InvalidRequestError, MilepostError, UnavailableError
from milepost.model.identifiers import Identifiers
from milepost.model.run import RunStatus
from milepost.protocol.work import ClaimedRun
from milepost.store import key_places, records
from milepost.store import queues as queue_store
from milepost.store import runs as run_store
from milepost.store import schedules as schedule_store
from milepost.store import upkeep as upkeep_store
from milepost.store import workers as worker_store
from milepost.store.database import Store
from milepost.store.workers import WorkerRow

logger = logging.getLogger("milepost.engine")

# How long to wait before looking for due runs again when the database could not be reached.
AWAY_MICROSECONDS = 1_000_000
# Between two groups the wall clock may move against the steady one by this much; more means that somebody has set it.
JUMP_MICROSECONDS = CLOCKS_APART_MICROSECONDS
# A clock that is so far ahead may be wrong. It is trusted again when the server has run for a day.
FAR_MICROSECONDS = 24 * 3600 * 1_000_000
DOUBT_MICROSECONDS = 24 * 3600 * 1_000_000

Answer = Callable[[Any], None]


class Request:
    """A command and who waits for its result. `answer` is called once, after the commit, with the result or an exception."""

    __slots__ = ("answer", "command", "result")

    def __init__(self, command: Command, answer: Answer) -> None:
        self.command = command
        self.answer = answer
        self.result: Any = None


class Engine:
    """Runs in one thread: the committer's, or a test's.

    Args:
        clock: microseconds since 1970; it may be set forward and back while the engine runs.
        steady: microseconds of a clock that nobody sets, by which leases and waiting are measured. Without one, `clock` is taken
            for such a clock.
        server_id: by what the database shall know this server; without one, an id of its own where several servers may work on the
            database.
    """

    def __init__(
        self,
        store: Store,
        settings: EngineSettings,
        clock: Callable[[], int],
        steady: Callable[[], int] | None = None,
        *,
        server_id: str | None = None,
    ) -> None:
        self._store = store
        # What others have committed, for the feed, and what that answers, as far as it has not been handed on.
        self._heard: list[Announcement] = []
        self._heard_answers: list[tuple[Answer, Any]] = []
        self._has_gap = False
        self._clock = clock
        self._steady = steady or clock
        # How far the wall clock is ahead of the steady one, as far as that is known.
        self._ahead = self._clock() - self._steady()
        # The time of the last group.
        self._last_now = self._clock()
        self._documents = DocumentCache(size_max=settings.metadata_size_max)
        if server_id is None:
            server_id = Identifiers().make("server", clock()) if store.is_shared else ""
        self.measures = EngineMeasures()
        self._others = Others() if store.is_shared else None
        self.state = EngineState(settings, started_at=self._steady(), server_id=server_id)
        # On the steady clock, when a group was last committed; any thread may look.
        self.committed_at = self._steady()
        with store.write() as connection:
            self._doubts_clock_until = self._settle_clock(connection)
            times = run_store.newest_time(connection), upkeep_store.newest_time(connection), self._clock()
            self._age_ahead = max(at for at in times if at is not None) - self._steady()
            self._load_state(connection)

    def _load_state(self, connection: Connection) -> None:
        """Take everything from the store, within a transaction beside which nothing is committed."""
        state = self.state
        state.held_rows.clear()
        self._load_catalog(connection)
        state.places.add(run_store.queued_places(connection))
        state.keyed.add(key_places.keyed_pairs(connection))
        # At once, because much may have become due meanwhile.
        state.next_due_at = self._clock()
        state.newly_offered.update(set(run_store.pending_tasks(connection)) & state.catalog.tasks.keys())
        schedules.follow_clock(connection, 0, now=self._clock())
        state.next_schedule_at = schedule_store.next_time(connection)
        known = {row.id: row for row in worker_store.load_workers(connection)}
        state.change_workers(
            [_known(row, self._steady()) for row in known.values()],
            [id for id in state.workers if id not in known],
        )
        state.leases_from = self._steady()
        if self._others is not None:
            self._others.begin_from(connection)

    def _load_catalog(self, connection: Connection) -> None:
        self.state.catalog = Catalog.of_rows(
            records.load_tasks(connection), queue_store.all_queues(connection)
        )

    @property
    def doubts_clock(self) -> bool:
        """True while the wall clock may be far wrong: it was far ahead of everything in the database, or was set far ahead, and has
        not gone on for a day since. Nothing may be forgotten for its age then."""
        return self._steady() < self._doubts_clock_until

    @property
    def now(self) -> int:
        """Microseconds since 1970 by the wall clock. Thread-safe."""
        return self._clock()

    @property
    def age_now(self) -> int:
        """Microseconds since 1970 by a clock that is never set back: it goes on with the steady one from the newest time in the
        database, or from the wall clock if that is later. Thread-safe."""
        return self._age(self._clock(), self._steady())

    def _age(self, now: int, steady_now: int) -> int:
        age = steady_now + self._age_ahead
        # It follows a wall clock that drifts ahead; one that was set is none to follow.
        return now if 0 < now - age <= JUMP_MICROSECONDS else age

    def _settle_clock(self, connection: Connection) -> int:
        """Make the best of a wall clock that another one was before; until when, on the steady clock, it is not to be trusted."""
        now, steady_now = self._clock(), self._steady()
        newest = None if self._others else claiming.newest_reckoned(connection, now)
        if newest is not None and newest > now + JUMP_MICROSECONDS:
            claiming.shift_times(connection, now - newest, now=now)
            logger.warning(
                "the clock is %.1f s behind the newest of what waits for its time: it was set back since; what waits has moved along",
                (newest - now) / 1_000_000,
            )
        newest = run_store.newest_time(connection)
        if newest is None or now - newest <= FAR_MICROSECONDS:
            return steady_now
        logger.warning(
            "the newest run is %.1f days old: either nothing was triggered for so long, or the clock is wrong; for a day nothing is "
            "deleted for its age",
            (now - newest) / 86_400_000_000,
        )
        return steady_now + DOUBT_MICROSECONDS

    def catch_up(self) -> tuple[list[tuple[Answer, Any]], list[Announcement]]:
        """Hear of what other servers have committed: answers and announcements as of `execute`.

        Raises: UnavailableError.
        """
        if self._others is not None:
            try:
                with self._store.read() as connection:
                    self._hear(connection)
            except Gap:
                self._has_gap = True
        return self._take_heard_answers(), self._take_heard()

    @property
    def heard_number(self) -> int | None:
        """The number of the newest commit that this server knows of; None where it is alone on its database. Thread-safe."""
        return None if self._others is None else self._others.number

    @property
    def is_alone(self) -> bool:
        """True when no other server commits to the database."""
        return self._others is None

    @property
    def has_offers(self) -> bool:
        """True when a group has to look at what others have committed, also one without commands: there may be work for claims that
        are parked here, or everything has to be taken from the store."""
        return self._has_gap or self.state.has_offers

    def execute(self, requests: Sequence[Request]) -> tuple[list[tuple[Answer, Any]], list[Announcement]]:
        """Carry out a group; what to answer to whom, and what to announce, each in order. Nothing is answered here: the caller does,
        after it has announced.

        A claim without due runs is parked and answered by a later group, or when its time is over.
        """
        answers, own = self._commit(requests)
        return [*self._take_heard_answers(), *answers], [*self._take_heard(), *own]

    def _commit(self, requests: Sequence[Request]) -> tuple[list[tuple[Answer, Any]], list[Announcement]]:
        try:
            return self._execute(requests)
        except CommitUnknownError as error:
            return _all_failed(requests, error), []
        except Exception as error:
            logger.warning(
                "a group of %d commands could not be committed, trying once more: %s", len(requests), error
            )
        try:
            return self._execute(requests)
        except CommitUnknownError as error:
            return _all_failed(requests, error), []
        except Exception as error:
            if len(requests) == 1:
                return [(requests[0].answer, _failure(error, requests[0].command))], []
            if not requests:
                logger.warning("parked claims cannot be served while the database is away: %s", error)
                return self._without_database(), []
        answers: list[tuple[Answer, Any]] = []
        announcements: list[Announcement] = []
        for request in requests:
            own_answers, own = self._commit([request])
            answers += own_answers
            announcements += [*self._take_heard(), *own]
        return answers, announcements

    def _without_database(self) -> list[tuple[Answer, Any]]:
        """Answer the parked claims whose time is over; look for due runs a little later."""
        now = self._clock()
        over = list(self.state.parked.over(self._steady()))
        result: Any = []
        if self._others is not None:
            # Another server may have given runs to the same claim, or may give some yet: it has to be asked once more.
            result = UnavailableError(
                "the database is away, so nobody knows what this claim has brought; ask again"
            )
        for parked in over:
            self.state.parked.remove(parked)
            if self._others is None:
                self.state.answered(parked.claim)
        if self.state.next_due_at is not None:
            self.state.next_due_at = max(self.state.next_due_at, now + AWAY_MICROSECONDS)
        if self.state.next_schedule_at is not None:
            self.state.next_schedule_at = max(self.state.next_schedule_at, now + AWAY_MICROSECONDS)
        return [(answer, result) for parked in over for answer in parked.answers]

    def wake_at(self) -> int | None:
        """When `execute` should be called even without a command, on the steady clock: a parked claim is over, or something happens by
        itself."""
        deadline = self.state.parked.next_deadline()
        by_itself = (self.state.next_due_at, self.state.next_schedule_at)
        times = [at - self._ahead for at in by_itself if at is not None]
        return min(times if deadline is None else [deadline, *times], default=None)

    @property
    def has_claims_to_release(self) -> bool:
        """True when claims are parked although the server is about to stop."""
        return bool(self.state.parked) and not self.state.accepts_parking

    def release_parked(self) -> tuple[list[tuple[Answer, Any]], list[Announcement]]:
        """The server stops: answer every parked claim, with no runs where it has not been given any; answers and announcements as of
        `execute`."""
        if not self.state.parked:
            return [], []
        if self._others is None:
            parked, self.state.parked = self.state.parked, ParkedClaims()
            return [(answer, []) for claim in parked for answer in claim.answers], []
        # Another server may know the same claim. So this is a group like any other: what was given to the claim elsewhere is heard of
        # first, and that it was answered here is told.
        self._end_waiting()
        answers, announcements = self.execute([])
        self._end_waiting()
        return [*answers, *self._without_database()], announcements

    def _end_waiting(self) -> None:
        """Let the time of every parked claim be over."""
        parked, self.state.parked = self.state.parked, ParkedClaims()
        for claim in parked:
            self.state.parked.add(ParkedClaim(claim.claim, self._steady(), claim.answers, claim.tasks))

    def _execute(self, requests: Sequence[Request]) -> tuple[list[tuple[Answer, Any]], list[Announcement]]:
        claims = [request for request in requests if isinstance(request.command, Claim)]
        others = [request for request in requests if not isinstance(request.command, Claim)]
        if len(others) > 1:
            others.sort(key=lambda request: rule_of(request.command).order)
        transaction: Transaction | None = None
        try:
            with self._store.write() as connection:
                self._hear_before(connection)
                now, steady_now = self._clock(), self._steady()
                if self._others is not None:
                    # What another server has queued as due is due here too, although its clock may be a moment ahead. One that is
                    # further ahead is none to follow.
                    ahead = self._others.newest_time - now
                    now += ahead if 0 < ahead <= JUMP_MICROSECONDS else 0
                transaction = Transaction(
                    connection,
                    self._documents,
                    self.state,
                    now=now,
                    steady_now=steady_now,
                    age_now=self._age(now, steady_now),
                )
                jump = self._jump(transaction)
                if not jump and now < self._last_now:
                    self._clock_went_back(now)
                self._load(others, transaction)
                for request in others:
                    request.result = self._decide(request.command, transaction)
                schedules.fire(transaction, self.state)
                transaction.save()
                if transaction.has_steps or self._is_due(transaction.now):
                    promoting.carry_on(transaction, self.state)
                if transaction.freed_queues:
                    queues.use_room(transaction)
                    transaction.save()
                if transaction.has_ended_attempt:
                    claiming.offer_apart(transaction, self.state)
                served = self._claim(claims, transaction)
                announcement = transaction.announcement()
                learnt = number = None
                if self._others is not None:
                    learnt = self._learnt(transaction, served)
                    number = self._tell_others(transaction, learnt, announcement)
        except BaseException:
            # What a claim has found is undone with the rest, and may be there again.
            self.state.may_have_apart = True
            self.state.children.clear()
            self.state.held_rows.clear()
            if transaction is not None:
                self._documents.forget(transaction.touched)
            raise
        self.committed_at = self._steady()
        self._ahead = transaction.now - transaction.steady_now
        self._last_now = transaction.now
        self._age_ahead = transaction.age_now - transaction.steady_now
        if jump > FAR_MICROSECONDS:
            self._doubts_clock_until = transaction.steady_now + DOUBT_MICROSECONDS
        if jump:
            logger.warning("the clock was set by %.1f s; queued runs have moved along", jump / 1_000_000)
        self._documents.settle(transaction.touched)
        self._documents.forget(transaction.done_with)
        self._remember(transaction, served)
        if self._others is not None and learnt is not None and number is not None:
            self._others.told(number)
            steady_now = transaction.steady_now
            were_told(learnt, self.state, steady_now=steady_now, told_at=steady_now)
        answers = [(request.answer, request.result) for request in others]
        # Claims first: who waits for the end of a run is nearer to it than who has triggered one.
        return served.answers + answers, [announcement]

    def _is_due(self, now: int) -> bool:
        return self.state.next_due_at is not None and self.state.next_due_at <= now

    def _hear_before(self, connection: Connection) -> None:
        """Hear of every commit before this group. Where some can no longer be heard of, everything is taken from the store."""
        if self._others is None and self._store.was_changed(connection):
            self.state.held_rows.clear()
        try:
            self._hear(connection)
        except Gap:
            logger.warning("this server was away for so long that it takes everything from the database anew")
            self._load_state(connection)
            self.state.everything_offered_elsewhere = self.state.may_have_apart = True
            self.state.may_have_asked = True
            # Their workers may have claimed anew or been answered since.
            self.state.answered_elsewhere.update(parked.claim.worker_id for parked in self.state.parked)
            self._heard.append(Announcement([], [], [], is_gap=True))
        self._has_gap = False

    def _hear(self, connection: Connection) -> None:
        if self._others is not None:
            self._others.hear(connection, partial(self._take_in, connection))

    def _take_in(self, connection: Connection, learnt: Learnt, announcement: Announcement) -> None:
        state = self.state
        state.held_rows.clear()
        if learnt.tasks_changed:
            before = state.catalog.tasks.keys()
            self._load_catalog(connection)
            if new := state.catalog.tasks.keys() - before:
                state.newly_offered |= new
                state.due_later(0)
        if learnt.schedules_changed:
            state.next_schedule_at = schedule_store.next_time(connection)
        now, steady_now, others = self._clock(), self._steady(), self._others
        assert others is not None, "somebody else has told it"
        self.measures.told_seconds.observe(max(0, now - others.told_at) / 1_000_000)
        # Of a clock that is ahead of this one it is not known how long ago that was.
        is_known = others.told_at - now <= CLOCKS_APART_MICROSECONDS
        told_at = steady_now - max(0, now - others.told_at) if is_known else None
        learn(learnt, state, steady_now=steady_now, told_at=told_at)
        if others.told_at > now:
            # What was due there is due here then, at the latest.
            state.due_later(others.told_at)
        registered = [worker.id for worker in learnt.registered]
        for worker_id in dict.fromkeys(
            [*registered, *learnt.gone, *learnt.newest_claims, *learnt.answered_claims]
        ):
            parked = state.parked.get(worker_id)
            worker = state.workers.get(worker_id)
            if parked is None:
                continue
            if worker is None or worker.newest_claim > parked.claim.sequence:
                # Nobody listens to it any more.
                state.parked.remove(parked)
                self._heard_answers += [(answer, []) for answer in parked.answers]
            elif worker.answered_claim >= parked.claim.sequence:
                state.answered_elsewhere.add(worker_id)
            elif worker.tasks != parked.tasks:
                state.parked.remove(parked)
                state.parked.add(ParkedClaim(parked.claim, parked.deadline, parked.answers, worker.tasks))
        for changed in announcement.runs:
            row = changed.row
            if changed.state_changed and row.status is RunStatus.EXECUTING and row.claimed_at is not None:
                state.recent_starts.note(row.queue, row.concurrency_key, row.claimed_at)
        self._heard.append(announcement)

    def _take_heard(self) -> list[Announcement]:
        heard, self._heard = self._heard, []
        return heard

    def _take_heard_answers(self) -> list[tuple[Answer, Any]]:
        answers, self._heard_answers = self._heard_answers, []
        return answers

    def _tell_others(
        self, transaction: Transaction, learnt: Learnt, announcement: Announcement
    ) -> int | None:
        """Tell the other servers what this group changes; the number under which it is told, None when there is nothing to tell."""
        assert self._others is not None, "a server alone has nobody to tell"
        # Others keep rows, too, and forget them with each commit that they hear of.
        has_changed_runs = bool(transaction.saved_rows or transaction.changed_otherwise)
        is_quiet = announcement.is_empty and not has_changed_runs
        if is_quiet and not is_worth_telling(learnt, self.state, steady_now=transaction.steady_now):
            return None
        return self._others.tell(transaction.connection, learnt, announcement, now=transaction.now)

    def _learnt(self, transaction: Transaction, served: "_Served") -> Learnt:
        """What this group teaches the engines of other servers."""
        due_at, told = served.next_due_at, self.state.due_told
        is_news = due_at is not None and due_at > transaction.now
        if told is not None and due_at is not None and transaction.now < told <= due_at:
            is_news = False
        return Learnt(
            registered=tuple(
                HeardWorker(worker.id, worker.name, worker.tasks, worker.registration, worker.newest_claim)
                for worker in transaction.registered_workers.values()
            ),
            gone=tuple(sorted(transaction.gone_workers)),
            heard=tuple(sorted(transaction.heard_workers)),
            newest_claims=served.newest,
            answered_claims={
                # One that arrives late tells nobody who has missed the newer ones that there were none.
                worker_id: max(sequence, worker.answered_claim)
                if (worker := self.state.workers.get(worker_id)) is not None
                else sequence
                for worker_id, sequence in served.answered_claims().items()
            },
            places=tuple(sorted(transaction.places)),
            keyed=tuple(sorted(transaction.keyed)),
            offered=tuple(sorted(transaction.offered_tasks)),
            everything_offered=bool(transaction.freed_queues),
            tasks_changed=transaction.catalog is not self.state.catalog,
            next_due_at=due_at if is_news else None,
            has_apart=transaction.has_apart,
            has_steps=transaction.has_more_steps,
            schedules_changed=transaction.schedules_changed,
        )

    def _jump(self, transaction: Transaction) -> int:
        """By how much the wall clock was set since the last group. Queued runs move along, so that none becomes due too early, or
        only when a clock that was set back has caught up."""
        jump = transaction.now - transaction.steady_now - self._ahead
        if abs(jump) <= JUMP_MICROSECONDS or self._others is not None:
            # Servers on one database go by its clock, and none of them could say for all that it was set.
            return 0
        claiming.shift_times(transaction.connection, jump, now=transaction.now)
        self.state.held_rows.clear()
        schedules.follow_clock(transaction.connection, jump, now=transaction.now)
        transaction.schedules_changed = True
        # Looked at by this group: something may have been due already and not been done, and a group that failed may have known of
        # times by either clock.
        self.state.next_due_at = transaction.now
        transaction.everything_offered = True
        return jump

    def _clock_went_back(self, now: int) -> None:
        """What was due by the last group is due again in a while, and this server has to look then. After a larger step it looks at
        once: that time would be too late for what was due long before that group."""
        is_large = self._last_now - now > JUMP_MICROSECONDS
        self.state.due_later(now if is_large else self._last_now)

    def _remember(self, transaction: Transaction, served: "_Served") -> None:
        # Only now: what a failed transaction has learnt or handed out is not so.
        self.state.offered_elsewhere.clear()
        self.state.everything_offered_elsewhere = False
        self.state.answered_elsewhere.clear()
        self.state.catalog = transaction.catalog
        self.state.places.add(transaction.places)
        self.state.places.remove(transaction.empty_places)
        self.state.newly_offered |= transaction.newly_offered
        self.state.newly_offered -= transaction.wholly_offered
        self.state.children.gave(transaction.child_positions.items())
        self.state.held_rows.committed(transaction.saved_rows.values())
        self.state.held_rows.forget(transaction.changed_otherwise)
        self.state.keyed.add(transaction.keyed)
        self.state.keyed.remove(transaction.empty_keyed)
        for queue, key, count in transaction.starts:
            self.state.recent_starts.note(queue, key, transaction.now, count)
        if transaction.gone_workers or transaction.registered_workers:
            self.state.change_workers(transaction.registered_workers.values(), transaction.gone_workers)
        for microseconds in transaction.claim_waits:
            self.measures.claim_seconds.observe(microseconds / 1_000_000)
        served.park(self.state.parked)
        self.state.next_due_at = served.next_due_at
        if transaction.schedules_changed:
            self.state.next_schedule_at = transaction.next_schedule_at
        for worker_id, sequence in served.newest.items():
            if worker_id in self.state.workers:
                self.state.workers[worker_id].newest_claim = sequence
        for claim in served.in_vain:
            self.state.answered(claim)
        for claim, _ in served.granted.values():
            self.state.answered(claim)

    def _load(self, requests: Sequence[Request], transaction: Transaction) -> None:
        ids: set[str] = set()
        request_ids: list[str] = []
        logged: set[str] = set()
        written: set[str] = set()
        keys: set[str] = set()
        for request in requests:
            command = request.command
            rule = rule_of(command)
            found = [run_id for run_id in rule.runs(command) if run_id is not None]
            ids.update(found)
            if rule.logs:
                logged.update(found)
            written.update(rule.writes(command))
            keys.update(rule.keys(command))
            attempt = fencing.attempt_of(command)
            if attempt is not None:
                ids.add(attempt.run)
            request_id = getattr(command, "request_id", None)
            if request_id is not None:
                request_ids.append(request_id)
        # Most groups are one command, which speaks of little of this.
        if ids:
            transaction.load_runs(ids)
            transaction.load_runs(transaction.parents_of(ids))
        if written:
            transaction.load_documents(written)
        if request_ids:
            transaction.load_answers(request_ids)
        if logged:
            transaction.load_log_marks(logged)
        if keys:
            transaction.load_keys(keys)

    def _decide(self, command: Command, transaction: Transaction) -> Any:
        try:
            rule = rule_of(command)
            fencing.check(command, rule.parents(command), transaction)
            return rule.decide(command, transaction, self.state)
        except MilepostError as refusal:
            return refusal

    def _claim(self, claims: Sequence[Request], transaction: Transaction) -> "_Served":
        """Serve new claims and, where there may be work for them, parked ones."""
        now, state = transaction.now, self.state
        served = _Served(state.parked, state.next_due_at)
        for request in claims:
            assert isinstance(request.command, Claim)
            served.hear_of(request.command, transaction)
        for worker_id in {
            *transaction.gone_workers,
            *(worker_id for worker_id, _ in transaction.withdrawn_claims),
        }:
            parked = served.parked_of(worker_id)
            if parked is not None and not transaction.may_claim(worker_id, parked.claim.sequence):
                served.answer(parked, [])
        for worker_id in state.answered_elsewhere:
            parked = served.parked_of(worker_id)
            if parked is not None:
                served.answer(parked, claiming.claimed_before(parked.claim, transaction))
        if served.next_due_at is not None and served.next_due_at <= now:
            transaction.everything_offered = True
            self.state.places.add(transaction.places)
            self.state.keyed.add(transaction.keyed)
            served.next_due_at = promoting.next_due_at_after(transaction.connection, now, self.state)
        if transaction.has_more_steps:
            served.next_due_at = now
        self._hand_on(transaction, served)
        for request in claims:
            command = request.command
            assert isinstance(command, Claim)
            deadline = transaction.steady_now + int(command.wait_seconds * 1_000_000)
            self._serve(ParkedClaim(command, deadline, [request.answer]), transaction, served)
        for parked in served.over(transaction.steady_now):
            served.answer(parked, [])
        if transaction.next_start_at is not None:
            served.due_later(transaction.next_start_at)
        return served

    def _hand_on(self, transaction: Transaction, served: "_Served") -> None:
        """Give what this group has offered to the claims that are parked for it, those that have waited longest first.

        Of no other task there is a run that a parked claim could have: it would have been handed on when it was offered.
        """
        for worker_id in transaction.registered_workers:
            parked, worker = served.parked_of(worker_id), transaction.worker(worker_id)
            if parked is not None and worker is not None:
                served.wait(parked, worker.tasks)
        offered = transaction.offered_tasks | self.state.offered_elsewhere
        if (
            transaction.everything_offered
            or transaction.freed_queues
            or self.state.everything_offered_elsewhere
        ):
            offered = set(self.state.parked.tasks)
        for task in sorted(offered):
            for parked in self.state.parked.waiting_for(task):
                if task not in offered:
                    break
                if served.parked_of(parked.claim.worker_id) is not parked:
                    continue
                granted = self._serve(parked, transaction, served, among=offered)
                if granted < parked.claim.slots and not self.state.may_have_apart:
                    # It has looked for all of these, and what there was it has taken.
                    offered = offered.difference(parked.tasks)

    def _serve(
        self,
        claim: ParkedClaim,
        transaction: Transaction,
        served: "_Served",
        among: Container[str] | None = None,
    ) -> int:
        """Answer a claim with runs, or park it; how many runs it was given. `among` as for `claim_runs`."""
        worker_id = claim.claim.worker_id
        if served.is_behind(claim.claim):
            served.answer(claim, [])
            return 0
        if (worker_id, claim.claim.sequence) in transaction.withdrawn_claims:
            # It takes nothing new; but where it has come again meanwhile, what it has brought before is still asked for.
            served.answer(claim, claiming.claimed_before(claim.claim, transaction))
            return 0
        older = served.parked_of(worker_id)
        if older is not None and older is not claim:
            if older.claim.sequence == claim.claim.sequence:
                # The same once more. Nobody knows which of the two the worker listens to.
                served.leave(older)
                claim = ParkedClaim(claim.claim, claim.deadline, [*older.answers, *claim.answers])
            else:
                # A worker has one claim at a time; the newer one knows better how many slots are free.
                served.answer(older, [])
        try:
            runs = served.granted_to(claim.claim) or claiming.claim_runs(
                claim.claim, transaction, self.state, among
            )
        except MilepostError as refusal:
            served.answer(claim, refusal)
            return 0
        worker = transaction.worker(worker_id)
        assert worker is not None, "a claim of an unknown worker is refused"
        if not runs and claim.claim.sequence > worker.answered_claim:
            served.wait(claim, worker.tasks)
            return 0
        if not runs:
            served.answer(claim, [])
            return 0
        # The next claim of this group must not find the same runs queued.
        transaction.save()
        served.granted[worker_id, claim.claim.sequence] = claim.claim, runs
        served.answer(claim, runs)
        return len(runs)


class _Served:
    """What a group does with the claims: granted, to be answered, parked. Those that were parked before stay so until the commit."""

    def __init__(self, parked: ParkedClaims, next_due_at: int | None) -> None:
        self.next_due_at = next_due_at
        self.granted: dict[tuple[str, int], tuple[Claim, list[ClaimedRun]]] = {}
        self.in_vain: list[Claim] = []
        # The newest claim of each worker that this group has heard of.
        self.newest: dict[str, int] = {}
        self.answers: list[tuple[Answer, Any]] = []
        self._parked_before = parked
        self._gone: set[ParkedClaim] = set()
        self._new: dict[str, ParkedClaim] = {}

    def parked_of(self, worker_id: str) -> ParkedClaim | None:
        """The claim of a worker that waits, as things stand in this group."""
        parked = self._new.get(worker_id) or self._parked_before.get(worker_id)
        return None if parked in self._gone else parked

    def wait(self, claim: ParkedClaim, tasks: tuple[str, ...]) -> None:
        """The claim waits for runs of these tasks."""
        if self.parked_of(claim.claim.worker_id) is claim:
            if claim.tasks == tasks:
                return
            self.leave(claim)
        self._new[claim.claim.worker_id] = ParkedClaim(claim.claim, claim.deadline, claim.answers, tasks)

    def due_later(self, due_at: int) -> None:
        """There may be runs for claims at this time."""
        self.next_due_at = due_at if self.next_due_at is None else min(self.next_due_at, due_at)

    def leave(self, claim: ParkedClaim) -> None:
        """The claim, if it did wait, does so no longer."""
        worker_id = claim.claim.worker_id
        if self._new.get(worker_id) is claim:
            del self._new[worker_id]
        elif self._parked_before.get(worker_id) is claim:
            self._gone.add(claim)

    def over(self, now: int) -> list[ParkedClaim]:
        """The waiting claims whose time is over."""
        before = [claim for claim in self._parked_before.over(now) if claim not in self._gone]
        return [*before, *(claim for claim in self._new.values() if claim.deadline <= now)]

    def park(self, parked: ParkedClaims) -> None:
        """It is committed: let those wait that have to."""
        for claim in self._gone:
            parked.remove(claim)
        for claim in self._new.values():
            parked.add(claim)

    def hear_of(self, claim: Claim, transaction: Transaction) -> None:
        """This claim is one of the group's."""
        worker = transaction.worker(claim.worker_id)
        if worker is not None:
            known = self.newest.get(worker.id, worker.newest_claim)
            self.newest[worker.id] = max(known, claim.sequence)

    def answered_claims(self) -> dict[str, int]:
        """The newest claim of each worker that this group answers."""
        answered: dict[str, int] = {}
        for claim in (*self.in_vain, *(claim for claim, _ in self.granted.values())):
            answered[claim.worker_id] = max(answered.get(claim.worker_id, -1), claim.sequence)
        return answered

    def is_behind(self, claim: Claim) -> bool:
        """True when the worker has sent a newer claim: it would not hear what this one brings."""
        return claim.sequence < self.newest.get(claim.worker_id, -1)

    def granted_to(self, claim: Claim) -> list[ClaimedRun]:
        """What this group has given to the same claim, which came twice."""
        _, runs = self.granted.get((claim.worker_id, claim.sequence), (claim, []))
        return runs

    def answer(self, claim: ParkedClaim, result: Any) -> None:
        """The claim waits no longer, and gets this."""
        self.leave(claim)
        if result == []:
            self.in_vain.append(claim.claim)
        self.answers.extend((answer, result) for answer in claim.answers)


def _known(row: WorkerRow, seen_at: int) -> Worker:
    """A worker that held a lease before the server started: it begins anew."""
    tasks = msgspec.json.decode(row.tasks, type=tuple[str, ...])
    return Worker(
        row.id,
        row.name,
        tasks,
        seen_at,
        registration=row.registration,
        newest_claim=row.claims,
        is_restored=True,
    )


def _all_failed(requests: Sequence[Request], error: Exception) -> list[tuple[Answer, Any]]:
    """Nothing of the group may be tried again: it may be stored."""
    logger.error("a group of %d commands may be stored or not: %s", len(requests), error)
    return [(request.answer, error) for request in requests]


def _failure(error: Exception, command: Command) -> Exception:
    if isinstance(error, MilepostError):
        logger.error("%s could not be committed: %s", type(command).__name__, error)
        return error
    if isinstance(error, SQLAlchemyError):
        reason = getattr(error, "orig", None) or error
        logger.error("%s could not be committed: %s", type(command).__name__, reason)
        return UnavailableError(
            f"the database did not take the change, nothing was stored: {reason}; try again"
        )
    if isinstance(error, OverflowError):
        return InvalidRequestError(
            "a number in the request is out of range: whole numbers have at most 64 bits"
        )
    logger.error("%s failed", type(command).__name__, exc_info=error)
    return error
