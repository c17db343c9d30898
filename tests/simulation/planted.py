"""Mistakes outside metadata, to be put into engine, worker, SDK, feed and client, so that the simulation can be tested. Many of those
outside streams were made before.

PYTHONPATH=tests python -m simulation --planted        finds each of them within 150 seeds
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from milepost.client import calls
from milepost.client.streams import ChunkFollower
from milepost.client.together import Sharing
from milepost.client.transport import Request
from milepost.client.waitpoints import token_result
from milepost.engine import (
    claiming,
    debouncing,
    ending,
    logs,
    queues,
    reporting,
    rules,
    schedules,
    triggering,
    waitpoints,
    workers,
)
from milepost.engine import streams as engine_streams
from milepost.engine.commands import (
    CompleteToken,
    OverrideQueueLimit,
    PauseQueue,
    ReleaseLostRuns,
    TokenCompletion,
)
from milepost.engine.idempotency import Finding
from milepost.engine.state import Worker
from milepost.engine.transaction import Transaction
from milepost.feed import run_streams
from milepost.feed.stream_topic import StreamTopic
from milepost.model import lifecycle
from milepost.model.lifecycle import Move
from milepost.model.retry import RetryRule
from milepost.model.run import AttemptEnd, RunStatus
from milepost.model.timetable import Every
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.protocol.streams import StreamState
from milepost.protocol.work import InboxFrame
from milepost.reading import streams as stream_reading
from milepost.sdk import wait
from milepost.sdk.attempt import Attempt
from milepost.sdk.streams_attempt import AttemptStreams
from milepost.server import streaming
from milepost.store import runs as run_store
from milepost.store import waitpoints as waitpoint_store
from milepost.store.queues import QueueRow
from milepost.worker.black_box import BlackBox
from milepost.worker.chunk_book import ChunkBook, Part
from milepost.worker.holding import Holding
from milepost.worker.lease import Lease
from milepost.worker.slots import Slots
from milepost.worker.waits import Waits
from simulation.database import Database
from simulation.network import Faults
from simulation.running import simulate
from simulation.simulation import Failed, Plan

SEEDS_MAX = 150
Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Planted:
    """A mistake, and how it is found quickly.

    Attributes:
        seed: one that finds it.
        adjust: what makes it show early, beyond what the seeds draw.
    """

    plant: Plant
    seed: int
    adjust: Callable[[Plan], None] = lambda plan: None

    @property
    def name(self) -> str:
        return self.plant.__name__


def find(planted: Planted, database: Database, seeds: Iterable[int]) -> tuple[int, Failed] | None:
    """The first of these seeds that finds a mistake which was put in, with what it says; None when none does."""
    for seed in seeds:
        try:
            simulate(seed, database, adjust=planted.adjust)
        except Failed as found:
            if isinstance(found.__cause__, TypeError | AttributeError | NameError | KeyError):
                # A planted mistake that is one in itself proves nothing.
                raise
            return seed, found
    return None


# --- outputs and errors ----------------------------------------------------------------------------------------


def an_output_is_dropped(patch: pytest.MonkeyPatch) -> None:
    save_result = Transaction.save_result
    patch.setattr(
        Transaction, "save_result", lambda self, row, output, error: save_result(self, row, None, error)
    )


def outputs_are_swapped(patch: pytest.MonkeyPatch) -> None:
    """Of two runs that end one after the other, the second has the output of the first."""
    save_result = Transaction.save_result
    last: list[Any] = [None]

    def swapped(self: Transaction, row: Any, output: str | None, error: str | None) -> None:
        other, last[0] = last[0], output or last[0]
        save_result(self, row, other if output and other else output, error)

    patch.setattr(Transaction, "save_result", swapped)


def an_error_is_dropped(patch: pytest.MonkeyPatch) -> None:
    save_result = Transaction.save_result
    nothing = '{"message":""}'
    patch.setattr(
        Transaction,
        "save_result",
        lambda self, row, output, error: save_result(self, row, output, nothing if error else None),
    )


def errors_of_earlier_attempts_vanish(patch: pytest.MonkeyPatch) -> None:
    end_attempt = ending.end_attempt

    def forgetful(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        end_attempt(row, end, transaction, state)
        if end.move is Move.RETRY:
            transaction.ended_attempts.pop()

    _patch_end_attempt(patch, forgetful)


def _patch_end_attempt(patch: pytest.MonkeyPatch, function: Any) -> None:
    patch.setattr(ending, "end_attempt", function)


# --- executions ------------------------------------------------------------------------------------------------


def a_run_that_has_returned_is_executed_again(patch: pytest.MonkeyPatch) -> None:
    """If it did so at its first attempt."""
    end_attempt = ending.end_attempt

    def released(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        if end.move is Move.COMPLETE and row.attempt == 1:
            end = msgspec.structs.replace(end, move=Move.RELEASE)
        end_attempt(row, end, transaction, state)

    _patch_end_attempt(patch, released)


def a_number_is_used_again_after_an_attempt_that_never_began(patch: pytest.MonkeyPatch) -> None:
    """As it was: the attempt is taken back."""
    end_attempt = ending.end_attempt

    def taken_back(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        end_attempt(row, end, transaction, state)
        if end.end is AttemptEnd.NEVER_BEGUN:
            row.attempt -= 1
            transaction.ended_attempts.pop()

    _patch_end_attempt(patch, taken_back)


def a_run_goes_to_two_workers(patch: pytest.MonkeyPatch) -> None:
    """A claim that finds nothing due is given what another worker has just got."""
    claim_runs = claiming.claim_runs

    def given_twice(command: Any, transaction: Transaction, state: Any, among: Any = None) -> Any:
        runs = claim_runs(command, transaction, state, among)
        if not runs and command.slots:
            query = "SELECT id FROM runs WHERE status = 'EXECUTING' AND worker_id <> ? LIMIT 1"
            ids = list(transaction.connection.exec_driver_sql(query, (command.worker_id,)).scalars())
            records = run_store.load_records(transaction.connection, ids, values=True)
            return claiming._claimed([records[run_id] for run_id in ids], set(), transaction)
        return runs

    patch.setattr(claiming, "claim_runs", given_twice)


def a_claim_brings_more_than_it_asks_for(patch: pytest.MonkeyPatch) -> None:
    claim_runs = claiming.claim_runs

    def generous(command: Any, *given: Any) -> Any:
        return claim_runs(msgspec.structs.replace(command, slots=command.slots and command.slots + 1), *given)

    patch.setattr(claiming, "claim_runs", generous)


def the_word_of_an_attempt_that_was_given_up_counts(patch: pytest.MonkeyPatch) -> None:
    """It ends the run although the next attempt executes."""

    report_run = reporting._report_run

    def renamed(item: Any, worker_id: str, transaction: Transaction, *more: Any) -> Any:
        row = transaction.run(item.id)
        if row is not None and row.is_held and item.attempt < row.attempt and item.outcome is not None:
            item = msgspec.structs.replace(item, attempt=row.attempt, sequence=row.report_sequence + 1)
            worker_id = row.worker_id or worker_id
        return report_run(item, worker_id, transaction, *more)

    patch.setattr(reporting, "_report_run", renamed)


def a_worker_begins_runs_after_its_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "is_over", lambda self: False)
    patch.setattr(Lease, "is_older", lambda self, asked_at: False)
    patch.setattr(Lease, "confirm", lambda self, asked_at: False)


# --- charging --------------------------------------------------------------------------------------------------


def an_attempt_is_charged_twice(patch: pytest.MonkeyPatch) -> None:
    end_attempt = ending.end_attempt

    def twice(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        end_attempt(row, end, transaction, state)
        if end.end.is_charged:
            row.charged += 1

    _patch_end_attempt(patch, twice)


def an_attempt_that_never_began_is_charged(patch: pytest.MonkeyPatch) -> None:
    """And ends the run, as it did."""
    released = lifecycle.released

    def charged(run: Any, end: AttemptEnd, why: str | None = None) -> Any:
        if end is not AttemptEnd.NEVER_BEGUN:
            return released(run, end, why)
        return lifecycle.lost(run, RetryRule(max_attempts=1), 0.0)

    _patch_released(patch, charged)


def an_attempt_that_is_handed_back_is_charged(patch: pytest.MonkeyPatch) -> None:
    released = lifecycle.released

    def charged(run: Any, end: AttemptEnd, why: str | None = None) -> Any:
        if end is not AttemptEnd.HANDED_BACK:
            return released(run, end, why)
        return lifecycle.lost(run, RetryRule(max_attempts=1), 0.0)

    _patch_released(patch, charged)


def _patch_released(patch: pytest.MonkeyPatch, function: Any) -> None:
    for module in (lifecycle, ending, workers):
        patch.setattr(module, "released", function)


def a_crash_is_charged_to_all_that_were_in_the_process(patch: pytest.MonkeyPatch) -> None:
    def die(worker_id: str, death: Any, transaction: Transaction, state: Any) -> None:
        for row in workers._held_by(worker_id, transaction):
            ending.crash(row, death.how, transaction, state)
        transaction.remove_workers([worker_id])

    patch.setattr(workers, "die", die)


def _ahead(find: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda connection, *, now, limit: find(connection, now=now + 2_500_000, limit=limit)


def a_delay_is_cut_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_store, "delayed_due", _ahead(run_store.delayed_due))


def a_time_to_live_is_cut_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_store, "expired_ids", _ahead(run_store.expired_ids))


def a_crash_costs_nothing(patch: pytest.MonkeyPatch) -> None:
    """So a run that kills its process is tried for ever."""
    patch.setattr(
        ending,
        "crash",
        lambda row, how, transaction, state: ending.end_attempt(
            row, lifecycle.released(row, AttemptEnd.BESIDE, how), transaction, state
        ),
    )


def nobody_runs_the_hooks_of_a_run_whose_process_died(patch: pytest.MonkeyPatch) -> None:
    """As it was."""
    patch.setattr(ending, "to_be_closed", lambda ending: None)


def a_run_is_executed_once_more_instead_of_its_last_hooks(patch: pytest.MonkeyPatch) -> None:
    claimed = claiming._claimed

    def whole(*given: Any) -> Any:
        return [msgspec.structs.replace(run, closing=None) for run in claimed(*given)]

    patch.setattr(claiming, "_claimed", whole)


def last_hooks_that_kill_their_process_are_run_again(patch: pytest.MonkeyPatch) -> None:
    end_attempt = ending.end_attempt

    def again(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        if row.closing is not None and end.end.is_charged and end.end is not AttemptEnd.RAISED:
            end = lifecycle.released(row, AttemptEnd.BESIDE)
        end_attempt(row, end, transaction, state)

    _patch_end_attempt(patch, again)


def a_death_report_leaves_out_what_executes(patch: pytest.MonkeyPatch) -> None:
    begun = BlackBox.begun
    patch.setattr(BlackBox, "begun", lambda self: [one for one in begun(self) if one.waiting])


# --- retries ---------------------------------------------------------------------------------------------------


def retries_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    of_outcome = lifecycle.of_outcome

    def final(outcome: Any) -> Any:
        return of_outcome(msgspec.structs.replace(outcome, retry_after_ms=None))

    patch.setattr(ending, "of_outcome", final)


def a_retry_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    end_attempt = ending.end_attempt

    def at_once(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        end_attempt(row, msgspec.structs.replace(end, delay_ms=0), transaction, state)

    _patch_end_attempt(patch, at_once)


def one_retry_too_many(patch: pytest.MonkeyPatch) -> None:
    delay_ms = RetryRule.delay_ms

    def generous(
        self: RetryRule, attempt: int, *, jitter: float, max_attempts: int | None = None
    ) -> int | None:
        return delay_ms(self, attempt, jitter=jitter, max_attempts=(max_attempts or self.max_attempts) + 1)

    patch.setattr(RetryRule, "delay_ms", generous)


def retries_are_counted_by_the_number_of_the_attempt(patch: pytest.MonkeyPatch) -> None:
    """As they were: what was not charged counts as well."""
    run = Attempt.run

    async def counted(self: Attempt) -> Any:
        self._run = msgspec.structs.replace(self._run, charged=self._run.attempt - 1)
        return await run(self)

    patch.setattr(Attempt, "run", counted)


def a_rule_of_the_run_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    delay_ms = RetryRule.delay_ms

    def without(
        self: RetryRule, attempt: int, *, jitter: float, max_attempts: int | None = None
    ) -> int | None:
        return delay_ms(self, attempt, jitter=jitter)

    patch.setattr(RetryRule, "delay_ms", without)


def what_must_not_be_retried_is(patch: pytest.MonkeyPatch) -> None:
    from milepost.sdk import attempt

    patch.setattr(attempt, "is_final", lambda error: False)


# --- leases ----------------------------------------------------------------------------------------------------


def leases_end_at_a_third(patch: pytest.MonkeyPatch) -> None:
    release_lost = workers.release_lost

    def early(command: Any, transaction: Transaction, state: Any) -> int:
        shift = round(state.settings.lease_seconds * 2 / 3 * 1_000_000)
        known = list(state.workers.values())
        state.leases_from -= shift
        for worker in known:
            worker.seen_at -= shift
        try:
            return release_lost(command, transaction, state)
        finally:
            state.leases_from += shift
            for worker in known:
                worker.seen_at += shift

    _patch_release_lost(patch, early)


def leases_go_on_while_the_server_is_away(patch: pytest.MonkeyPatch) -> None:
    release_lost = workers.release_lost

    def heedless(command: Any, transaction: Transaction, state: Any) -> int:
        state.looked_at = transaction.steady_now
        return release_lost(command, transaction, state)

    _patch_release_lost(patch, heedless)


def an_old_claim_is_served_once_the_server_has_started_anew(patch: pytest.MonkeyPatch) -> None:
    """As it was."""
    patch.setattr(Worker, "is_restored", property(lambda worker: False, lambda worker, value: None))


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    _patch_release_lost(patch, lambda command, transaction, state: 0)


def _patch_release_lost(patch: pytest.MonkeyPatch, function: Any) -> None:
    rule = rules._RULES[ReleaseLostRuns]
    patch.setitem(rules._RULES, ReleaseLostRuns, msgspec.structs.replace(rule, decide=function))


# --- queues and slots ------------------------------------------------------------------------------------------


def limits_of_queues_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues.Room, "of_key", lambda self, name, key: 1000)


def a_limit_is_exceeded_by_one(patch: pytest.MonkeyPatch) -> None:
    of_key = queues.Room.of_key
    patch.setattr(queues.Room, "of_key", lambda self, name, key: of_key(self, name, key) + 1)


def a_pause_holds_up_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues.Room, "of_queue", lambda self, name: 1000)


def that_a_queue_goes_on_is_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues, "_rule_changed", lambda queue, transaction: transaction.save_queue(queue))


def a_limit_that_was_set_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(QueueRow, "limit", property(lambda row: row.concurrency))


def a_request_that_comes_late_pauses_again(patch: pytest.MonkeyPatch) -> None:
    """As it did."""
    for command, decide in ((PauseQueue, queues.pause), (OverrideQueueLimit, queues.override_limit)):
        patch.setitem(rules._RULES, command, msgspec.structs.replace(rules._RULES[command], decide=decide))


def a_run_goes_on_although_its_queue_is_full(patch: pytest.MonkeyPatch) -> None:
    """As it did."""

    def go_on(row: Any, transaction: Transaction) -> None:
        if row.status is not RunStatus.EXECUTING:
            queues.change_status(row, Move.RESUME, transaction)

    patch.setattr(queues, "go_on", go_on)
    patch.setattr(reporting, "go_on", go_on, raising=False)


def a_run_that_is_due_behind_another_one_of_its_key_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """As it was. No queue of the simulation has a rate, so nothing else is looked at again."""
    patch.setattr(Transaction, "look_again_at", lambda self, at: None)


def a_worker_does_not_ask_whether_its_run_may_go_on(patch: pytest.MonkeyPatch) -> None:
    admit = Holding.admit

    def unlimited(self: Holding, runs: Iterable[Any], **given: Any) -> None:
        admit(self, [msgspec.structs.replace(run, has_queue_limit=False) for run in runs], **given)

    patch.setattr(Holding, "admit", unlimited)


def a_place_in_a_queue_is_not_given_back(patch: pytest.MonkeyPatch) -> None:
    """When a run ends while it executes."""
    change_status = queues.change_status

    def forgetful(row: Any, move: Move, transaction: Transaction) -> None:
        queue = transaction.queue(row.queue)
        counted = None if queue is None else queues._counted(queue, row.concurrency_key, transaction)
        before = None if counted is None else counted.executing
        change_status(row, move, transaction)
        if counted is not None and before is not None and move is Move.FAIL:
            counted.executing = before

    for module in (queues, ending):
        patch.setattr(module, "change_status", forgetful, raising=False)


def a_worker_ignores_its_slots(patch: pytest.MonkeyPatch) -> None:
    def take_claimed(self: Slots[Any, Any]) -> list[Any]:
        taken = list(self._claimed)
        self._claimed.clear()
        self.held += len(taken)
        return taken

    patch.setattr(Slots, "take_claimed", take_claimed)


def a_lost_run_keeps_its_slot(patch: pytest.MonkeyPatch) -> None:
    release = Holding._release

    def forgetful(self: Holding, held: Any) -> None:
        if not held.is_over:
            release(self, held)

    patch.setattr(Holding, "_release", forgetful)


def what_was_written_while_the_inbox_was_away_is_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """A run that writes learns of it with the answer to its next report; one that only reads never does."""
    hear = Holding.hear

    def heard(self: Holding, frame: InboxFrame) -> None:
        hear(self, msgspec.structs.replace(frame, hello=False))
        for held in list(self._not_let) if frame.hello else ():
            self._ask_again(held)

    patch.setattr(Holding, "hear", heard)


def a_run_that_waits_keeps_its_slot(patch: pytest.MonkeyPatch) -> None:
    """Where all slots wait for runs that need one, nothing goes on."""
    wait = Holding.wait

    def holding_on(self: Holding, *given: Any, **more: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Holding, "_release", lambda self, held: None)
            wait(self, *given, **more)

    patch.setattr(Holding, "wait", holding_on)


def a_run_that_is_apart_has_company(patch: pytest.MonkeyPatch) -> None:
    enter = Slots.enter
    patch.setattr(Slots, "enter", lambda self, claimed, *, apart=False: enter(self, claimed))
    leave = Slots.leave
    patch.setattr(Slots, "leave", lambda self, *, apart=False: leave(self))


# --- the same trigger again -------------------------------------------------------------------------------------


def a_debounced_run_is_not_put_off(patch: pytest.MonkeyPatch) -> None:
    put_off = debouncing.put_off

    def puts_off(item: Any, transaction: Transaction, state: Any, run: Any) -> Any:
        row = transaction.run_made(key.target_id) if (key := _debounce_key(item, transaction)) else None
        due_at = None if row is None else row.due_at
        found = put_off(item, transaction, state, run)
        if found is not None and due_at is not None:
            found.due_at = due_at
            run_store.change_due(transaction.connection, found.id, due_at=due_at, is_given=None)
        return found

    patch.setattr(debouncing, "put_off", puts_off)


def _debounce_key(item: Any, transaction: Transaction) -> Any:
    return transaction.key(item.options.debounce.key, debouncing._OF_TASK + item.task)


def a_debounced_trigger_makes_a_run_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(debouncing, "put_off", lambda item, transaction, state, run: None)


def a_debounced_trigger_that_comes_again_puts_off_again(patch: pytest.MonkeyPatch) -> None:
    earlier = triggering._earlier

    def puts_off(request_id: Any, checksum: Any, transaction: Transaction) -> Any:
        found = earlier(request_id, checksum, transaction)
        row = transaction.run_made(found.run_ids[0]) if found is not None and found.run_ids else None
        if row is not None and row.status is RunStatus.DELAYED:
            due_at = row.due_at = transaction.now + 2_000_000
            queues.change_status(row, Move.RESCHEDULE, transaction)
            transaction.save()
            run_store.change_due(transaction.connection, row.id, due_at=due_at, is_given=None)
        return found

    patch.setattr(triggering, "_earlier", puts_off)


def idempotency_keys_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Finding, "_by_key", lambda self, wanted: None)


def an_idempotency_key_stands_for_what_has_failed(patch: pytest.MonkeyPatch) -> None:
    by_key = Finding._by_key

    def heedless(self: Finding, wanted: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(RunStatus, "stands", property(lambda status: True))
            return by_key(self, wanted)

    patch.setattr(Finding, "_by_key", heedless)


def a_later_attempt_makes_its_children_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Finding, "_by_child", lambda self, item, attempt: None)


def triggers_share_a_request_without_their_ids(patch: pytest.MonkeyPatch) -> None:
    shared_request = Sharing.shared_request

    def nameless(self: Sharing, triggers: Sequence[tuple[str, Request]], patience: Any) -> Request:
        stripped = [(task, request._replace(headers={})) for task, request in triggers]
        return shared_request(self, stripped, patience)

    patch.setattr(Sharing, "shared_request", nameless)


def answers_of_a_shared_request_are_swapped(patch: pytest.MonkeyPatch) -> None:
    replies = Sharing.replies
    patch.setattr(Sharing, "replies", lambda self, reply, count: replies(self, reply, count)[::-1])


# --- schedules -------------------------------------------------------------------------------------------------


def a_schedule_fires_twice_for_a_time(patch: pytest.MonkeyPatch) -> None:
    """The first one of each."""
    fire = schedules._fire
    repeated: set[str] = set()

    def again(row: Any, transaction: Transaction, state: Any) -> Any:
        at = row.next_at
        run = fire(row, transaction, state)
        if row.id not in repeated:
            repeated.add(row.id)
            row.next_at = at
        return run

    patch.setattr(schedules, "_fire", again)


def a_schedule_leaves_out_every_other_time(patch: pytest.MonkeyPatch) -> None:
    next_after = Every.next_after
    patch.setattr(Every, "next_after", lambda self, at: next_after(self, next_after(self, at)))


def what_a_schedule_was_late_for_is_made_up_for(patch: pytest.MonkeyPatch) -> None:
    """By firing ahead: its times are counted from when it fired."""
    fire = schedules._fire

    def counted(row: Any, transaction: Transaction, state: Any) -> Any:
        run = fire(row, transaction, state)
        row.next_at = transaction.now + row.every * 2 // 3
        return run

    patch.setattr(schedules, "_fire", counted)


# --- times and tokens ------------------------------------------------------------------------------------------


def a_token_is_completed_whenever_somebody_says_so(patch: pytest.MonkeyPatch) -> None:
    """Not only by the first, and also after its timeout."""
    end = waitpoints._end

    def complete(command: Any, transaction: Transaction, state: Any) -> TokenCompletion:
        row = waitpoints._load(command.token_id, transaction)
        end([row], WaitpointStatus.COMPLETED, command.output, transaction)
        return TokenCompletion(True, WaitpointStatus.COMPLETED)

    rule = rules._RULES[CompleteToken]
    patch.setitem(rules._RULES, CompleteToken, msgspec.structs.replace(rule, decide=complete))


def what_a_token_is_completed_with_gets_lost(patch: pytest.MonkeyPatch) -> None:
    end = waitpoints._end
    patch.setattr(
        waitpoints,
        "_end",
        lambda rows, status, output, transaction: end(rows, status, output and '""', transaction),
    )


def who_waits_for_a_token_is_told_that_it_has_timed_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        wait,
        "token_result",
        lambda token, shape: token_result(
            msgspec.structs.replace(token, status=WaitpointStatus.TIMED_OUT), shape
        ),
    )


def times_and_timeouts_are_cut_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(waitpoint_store, "due", _ahead(waitpoint_store.due))


def times_are_looked_at_only_when_something_happens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(waitpoint_store, "next_due_after", lambda connection, after: None)


def the_end_of_a_token_is_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """Its waiters ask after a while."""
    patch.setattr(waitpoint_store, "take_waiters", lambda connection, ids: [])


def a_later_attempt_makes_tokens_of_its_own(patch: pytest.MonkeyPatch) -> None:
    key = waitpoints._key
    patch.setattr(waitpoints, "_key", lambda command: f"{key(command)}/{command.attempt.number}")


def a_time_begins_anew_in_a_later_attempt(patch: pytest.MonkeyPatch) -> None:
    key = waitpoints._key

    def of_attempt(command: Any) -> str | None:
        is_time = command.kind is WaitpointKind.TIME
        return f"{key(command)}/{command.attempt.number}" if is_time else key(command)

    patch.setattr(waitpoints, "_key", of_attempt)


# --- waits, hooks, logs ----------------------------------------------------------------------------------------


def a_run_goes_on_before_its_child_has_ended(patch: pytest.MonkeyPatch) -> None:
    add = Waits.add

    def impatient(self: Waits[Any], target_id: str, held: Any, future: Any, **given: Any) -> bool:
        add(self, target_id, held, future, **given)
        return True

    patch.setattr(Waits, "add", impatient)


def the_end_of_a_child_is_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holding, "target_ended", lambda self, target_id: None)


def on_start_runs_at_each_attempt(patch: pytest.MonkeyPatch) -> None:
    run = Attempt.run

    async def anew(self: Attempt) -> Any:
        self._run = msgspec.structs.replace(self._run, has_begun=False)
        return await run(self)

    patch.setattr(Attempt, "run", anew)


def on_start_runs_at_the_first_number_only(patch: pytest.MonkeyPatch) -> None:
    """As it did."""
    run = Attempt.run

    async def by_number(self: Attempt) -> Any:
        self._run = msgspec.structs.replace(self._run, has_begun=self._run.attempt > 1)
        return await run(self)

    patch.setattr(Attempt, "run", by_number)


def on_failure_runs_before_each_retry(patch: pytest.MonkeyPatch) -> None:
    fail = Attempt._fail

    async def loud(self: Attempt, error: BaseException) -> None:
        await fail(self, error)
        if self._outcome is not None and self._outcome.retry_after_ms is not None:
            await self.run_hooks("on_failure")

    patch.setattr(Attempt, "_fail", loud)


def on_complete_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    run_hooks_after = Attempt._run_hooks_after

    async def forgetful(self: Attempt, name: Any, **values: Any) -> None:
        if name != "on_complete":
            await run_hooks_after(self, name, **values)

    patch.setattr(Attempt, "_run_hooks_after", forgetful)


def lines_of_logs_are_doubled(patch: pytest.MonkeyPatch) -> None:
    write = logs._write
    patch.setattr(
        logs,
        "_write",
        lambda lines, *more: write([line for line in lines for _ in range(2)], *more),
    )


# --- streams -----------------------------------------------------------------------------------------------------


def _patch_add(patch: pytest.MonkeyPatch, change: Callable[[Any, Transaction], Any]) -> None:
    """Change the parts of streams before they are stored."""
    add = engine_streams._add

    def changed(part: Any, source: Any, target: Any, transaction: Transaction, state: Any) -> Any:
        return add(change(part, transaction), source, target, transaction, state)

    patch.setattr(engine_streams, "_add", changed)


def a_part_that_comes_twice_is_stored_twice(patch: pytest.MonkeyPatch) -> None:
    """As if its numbers went on where the writer stands."""

    def renumbered(part: Any, transaction: Transaction) -> Any:
        writer = transaction.stream_writer(part.run_id, part.name, part.writer)
        first = part.first if writer is None else max(part.first, writer.next_number)
        return msgspec.structs.replace(part, first=first)

    _patch_add(patch, renumbered)


def the_last_chunk_of_a_large_part_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """And acknowledged, by the server."""
    rows_of = engine_streams._rows_of
    patch.setattr(engine_streams, "_rows_of", lambda chunks: rows_of(chunks)[:3])


def what_a_divided_part_leaves_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """By the worker."""
    give_back = ChunkBook._return

    def forgetful(self: ChunkBook, writer: Any, chunks: Any) -> None:
        give_back(self, writer, chunks)
        writer.returned.popleft()

    patch.setattr(ChunkBook, "_return", forgetful)


def what_a_divided_part_leaves_changes_its_order(patch: pytest.MonkeyPatch) -> None:
    give_back = ChunkBook._return
    patch.setattr(
        ChunkBook, "_return", lambda self, writer, chunks: give_back(self, writer, list(reversed(chunks)))
    )


def two_parts_of_a_writer_change_their_order(patch: pytest.MonkeyPatch) -> None:
    """What was added last goes first when a request is full."""
    take_part = ChunkBook._take_part

    def turned(self: ChunkBook, writer: Any, *bounds: int) -> Any:
        if len(writer.outlet.waiting) > 3:
            writer.outlet.waiting.rotate(1)
        return take_part(self, writer, *bounds)

    patch.setattr(ChunkBook, "_take_part", turned)


def an_index_is_left_out_for_each_new_writer(patch: pytest.MonkeyPatch) -> None:
    save_stream = Transaction.save_stream

    def with_gap(
        self: Transaction, row: Any, stream: Any, writer: Any, chunks: Any, *, has_ended: bool
    ) -> None:
        save_stream(self, row, stream, writer, chunks, has_ended=has_ended)
        stream.next_index += has_ended and stream.next_index > 0

    patch.setattr(Transaction, "save_stream", with_gap)


def an_attempt_that_is_over_still_writes_its_streams(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine_streams, "holds", lambda row, worker_id, attempt: True)


def a_run_that_has_ended_still_takes_chunks(patch: pytest.MonkeyPatch) -> None:
    refusal = engine_streams._refusal

    def heedless(*given: Any) -> Any:
        found = refusal(*given)
        return None if found is not None and found.code == "run_finished" else found

    patch.setattr(engine_streams, "_refusal", heedless)


def anyone_may_write_to_any_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine_streams, "is_ancestor", lambda run_id, row, transaction: True)


def chunks_are_said_to_be_of_the_first_attempt(patch: pytest.MonkeyPatch) -> None:
    row = engine_streams.ChunkRow

    def first(run_id: str, name: str, index: int, count: int, at: int, attempt: int, data: bytes) -> Any:
        return row(run_id, name, index, count, at, min(attempt, 1), data)

    patch.setattr(engine_streams, "ChunkRow", first)


def an_outcome_does_not_wait_for_its_streams(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChunkBook, "is_clear", lambda self, scope: True)


def writers_that_are_left_open_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AttemptStreams, "_end_writers", lambda self, error: None)
    patch.setattr(ChunkBook, "end", lambda self, scope: self.stop(scope, "the attempt has ended", "lost"))


def an_end_goes_before_the_last_chunks(patch: pytest.MonkeyPatch) -> None:
    """If the server did not take them together."""
    divide = ChunkBook.divide

    def with_end(self: ChunkBook, part: Part) -> bool:
        end = part.end
        is_smaller = divide(self, part)
        part.end = end
        return is_smaller

    patch.setattr(ChunkBook, "divide", with_end)


def the_error_of_a_source_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    _patch_add(
        patch,
        lambda part, transaction: (
            part
            if part.end is None
            else msgspec.structs.replace(part, end=msgspec.structs.replace(part.end, error=None))
        ),
    )


def a_stream_ends_with_the_first_of_its_writers(patch: pytest.MonkeyPatch) -> None:
    state_of = stream_reading.state_of

    def hasty(writers: Any, *, run_has_finished: bool) -> Any:
        ended = [writer for writer in writers if writer.has_ended and writer.error is None]
        if ended and not run_has_finished:
            return StreamState.ENDED, None
        return state_of(writers, run_has_finished=run_has_finished)

    patch.setattr(stream_reading, "state_of", hasty)


def the_writer_of_an_attempt_that_died_counts_as_ended(patch: pytest.MonkeyPatch) -> None:
    state_of = stream_reading.state_of

    def early(writers: Any, *, run_has_finished: bool) -> Any:
        told = [msgspec.structs.replace(one, has_ended=one.has_ended or not one.is_alive) for one in writers]
        return state_of(told, run_has_finished=run_has_finished)

    patch.setattr(stream_reading, "state_of", early)


def _patch_reader(patch: pytest.MonkeyPatch, offset: int) -> None:
    """A reader that comes back begins elsewhere, and takes what comes."""
    read_stream = calls.read_stream
    take = ChunkFollower.take

    def elsewhere(run_id: str, key: str, *, start: int | None) -> Any:
        return read_stream(run_id, key, start=start + offset if start else start)

    def heedless(self: ChunkFollower, event: str, data: bytes) -> None:
        if event == "batch" and self.position is not None:
            first: int = msgspec.json.decode(data)["records"][0]["seq_num"]
            if first == self.position + offset:
                self.position = first
        take(self, event, data)

    patch.setattr(calls, "read_stream", elsewhere)
    patch.setattr(ChunkFollower, "take", heedless)


def a_reader_that_comes_back_leaves_one_out(patch: pytest.MonkeyPatch) -> None:
    _patch_reader(patch, 1)


def a_reader_that_comes_back_sees_one_twice(patch: pytest.MonkeyPatch) -> None:
    _patch_reader(patch, -1)


def chunks_whose_announcement_got_lost_are_told_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """And readers take the next ones for them."""
    after = StreamTopic.after

    def heedless(self: StreamTopic, position: int) -> Any:
        if self._recent and position < self._recent[0].first_index:
            position = self._recent[0].first_index
        return after(self, position)

    patch.setattr(StreamTopic, "after", heedless)
    patch.setattr(ChunkFollower, "take", _take_any)


def _take_any(self: ChunkFollower, event: str, data: bytes) -> None:
    if event == "batch":
        self.position = msgspec.json.decode(data)["records"][0]["seq_num"]
    _TAKE(self, event, data)


_TAKE = ChunkFollower.take


def the_end_of_a_run_is_told_before_its_last_chunks(patch: pytest.MonkeyPatch) -> None:
    follow_run = run_streams._Watch.follow_run

    async def hasty(self: Any, *, is_complete: bool) -> None:
        self._streams, kept = {}, self._streams
        try:
            await follow_run(self, is_complete=True)
        finally:
            self._streams = kept

    patch.setattr(run_streams._Watch, "follow_run", hasty)


def what_is_sent_again_to_a_run_is_stored_again(patch: pytest.MonkeyPatch) -> None:
    counts = iter(range(10**9))
    patch.setattr(streaming, "_request_id", lambda request: f"{next(counts)}")


def runs_wait(plan: Plan) -> None:
    plan.waits, plan.failure, plan.retry = 0.8, 0.4, RetryRule(max_attempts=4, min_delay_seconds=0.1)


def runs_wait_and_nothing_fails(plan: Plan) -> None:
    runs_wait(plan)
    plan.faults, plan.troubles, plan.servers_troubles, plan.crash = Faults(), [], [], 0.0


def crowds_trigger(plan: Plan) -> None:
    plan.crowd, plan.faults.lose_reply, plan.faults.slow = 6, 0.3, 0.3


def keys_are_shared(plan: Plan) -> None:
    plan.keyed, plan.failure = 3, 0.4


def schedules_fire(plan: Plan) -> None:
    plan.schedules, plan.chaos_seconds = 2, 8.0


def schedules_fire_and_nothing_fails(plan: Plan) -> None:
    schedules_fire(plan)
    plan.faults, plan.troubles, plan.servers_troubles, plan.crash = Faults(), [], [], 0.0


def attempts_find_children(plan: Plan) -> None:
    many_runs(plan)
    plan.finds_children, plan.failure = True, 0.4
    plan.retry = RetryRule(max_attempts=4, min_delay_seconds=0.1)


def many_runs(plan: Plan) -> None:
    plan.roots, plan.runs_max, plan.workers, plan.children = 5, 12, 1, 4


def queues_are_full(plan: Plan) -> None:
    many_runs(plan)
    plan.workers, plan.parent_limit, plan.child_limit, plan.pause_seconds_max = 2, 1, 1, 4.0
    plan.keys = 0


def keys_are_few(plan: Plan) -> None:
    many_runs(plan)
    plan.keys, plan.failure, plan.parent_limit, plan.child_limit = 1, 0.6, None, None
    plan.faults, plan.troubles, plan.crash, plan.lease_seconds = Faults(), [], 0.0, 16.0
    plan.retry = RetryRule(max_attempts=4, min_delay_seconds=1.5)


def many_leases_are_lost(plan: Plan) -> None:
    plan.lease_seconds, plan.chaos_seconds, plan.request_seconds_max = 4.0, 20.0, 3.0
    plan.workers, plan.in_thread, plan.pause_seconds_max = 2, 1.0, 4.0
    plan.troubles += ["part_worker", "freeze_worker"] * 3


def workers_are_stopped(plan: Plan) -> None:
    """With their claims open, so that what they bring waits for them."""
    many_runs(plan)
    plan.lease_seconds, plan.request_seconds_max, plan.chaos_seconds = 4.0, 30.0, 8.0
    plan.workers, plan.retry, plan.crash = 2, RetryRule(max_attempts=4, min_delay_seconds=1.5), 0.0
    plan.failure, plan.parent_limit, plan.child_limit = 0.4, None, None
    plan.faults = Faults()
    plan.troubles = ["freeze_worker"] * 12


def workers_are_drained(plan: Plan) -> None:
    plan.pause_seconds_max, plan.workers, plan.chaos_seconds = 12.0, 2, 8.0
    plan.troubles += ["drain_worker"] * 6


def everything_is_stopped(plan: Plan) -> None:
    plan.lease_seconds, plan.pause_seconds_max, plan.chaos_seconds = 4.0, 12.0, 20.0
    plan.troubles += ["freeze_all"] * 4


def processes_die(plan: Plan) -> None:
    many_runs(plan)
    plan.pause_seconds_max, plan.chaos_seconds = 4.0, 8.0
    plan.troubles += ["kill_worker"] * 6


def runs_only_read(plan: Plan) -> None:
    plan.readers, plan.roots, plan.workers, plan.chaos_seconds, plan.lease_seconds = 6, 0, 3, 3.0, 16.0
    plan.faults, plan.troubles, plan.parent_limit, plan.crash = Faults(), ["cut_streams"] * 20, None, 0.0


def streams_are_long(plan: Plan) -> None:
    plan.streams, plan.stream_readers, plan.stream_subscribers, plan.input_senders = 0.9, 3, 1, 2


def many_runs_have_streams(plan: Plan) -> None:
    many_runs(plan)
    streams_are_long(plan)


def chunks_are_large(plan: Plan) -> None:
    streams_are_long(plan)
    plan.chunk_sizes, plan.body_bytes_max, plan.chunk_row_bytes_max = [30, 100], 1500, 100


def chunks_come_twice(plan: Plan) -> None:
    streams_are_long(plan)
    plan.faults.repeat = plan.faults.lose_reply = 0.3


def streams_of_lost_attempts(plan: Plan) -> None:
    many_leases_are_lost(plan)
    streams_are_long(plan)
    plan.retry = RetryRule(max_attempts=4, min_delay_seconds=0.1)


def runs_have_times(plan: Plan) -> None:
    """Delays, and times to live that are over before a worker is there; no clock is set."""
    plan.delay = plan.ttl = 1.0
    plan.workers = 0
    # Nobody would ever do what these trigger.
    plan.keyed = plan.schedules = plan.readers = plan.crowd = plan.operators = 0
    plan.debouncers = 0
    plan.troubles = [kind for kind in plan.troubles if kind in ("kill_server", "kill_worker")]


def servers_start_again(plan: Plan) -> None:
    many_runs(plan)
    plan.servers, plan.workers, plan.chaos_seconds, plan.lease_seconds = 1, 3, 8.0, 16.0
    plan.faults.repeat = 0.5
    plan.troubles = ["kill_server"] * 8
    plan.crash = plan.failure = 0.0


def triggers_are_debounced(plan: Plan) -> None:
    plan.debouncers, plan.faults.repeat = 3, 0.5
    plan.troubles = [kind for kind in plan.troubles if kind != "jump"]
    # What else is delayed.
    plan.delay = 0.0


def queues_are_operated(plan: Plan) -> None:
    plan.operators = 2
    plan.faults.repeat = 0.3


def limits_are_lowered(plan: Plan) -> None:
    many_runs(plan)
    queues_are_operated(plan)
    plan.parent_limit = plan.child_limit = 3
    plan.crowd, plan.keys = 6, 0


def queues_are_operated_and_nothing_fails(plan: Plan) -> None:
    plan.operators = 2
    plan.faults, plan.troubles, plan.servers_troubles, plan.crash = Faults(), [], [], 0.0


def readers_come_back(plan: Plan) -> None:
    streams_are_long(plan)
    plan.faults.cut = 0.3
    plan.troubles += ["cut_streams", "lose_announcements"] * 3


PLANTS: list[Planted] = [
    Planted(an_output_is_dropped, seed=0),
    Planted(outputs_are_swapped, seed=3),
    Planted(an_error_is_dropped, seed=0),
    Planted(errors_of_earlier_attempts_vanish, seed=24),
    Planted(a_run_that_has_returned_is_executed_again, seed=3),
    Planted(a_number_is_used_again_after_an_attempt_that_never_began, seed=15),
    Planted(a_run_goes_to_two_workers, seed=2),
    Planted(a_claim_brings_more_than_it_asks_for, seed=0, adjust=many_runs),
    Planted(the_word_of_an_attempt_that_was_given_up_counts, seed=114, adjust=many_leases_are_lost),
    Planted(a_worker_begins_runs_after_its_lease, seed=45, adjust=workers_are_stopped),
    Planted(an_attempt_is_charged_twice, seed=0),
    Planted(an_attempt_that_never_began_is_charged, seed=15),
    Planted(an_attempt_that_is_handed_back_is_charged, seed=55, adjust=workers_are_drained),
    Planted(a_crash_is_charged_to_all_that_were_in_the_process, seed=17),
    Planted(a_crash_costs_nothing, seed=11),
    Planted(nobody_runs_the_hooks_of_a_run_whose_process_died, seed=2),
    Planted(a_run_is_executed_once_more_instead_of_its_last_hooks, seed=2),
    Planted(last_hooks_that_kill_their_process_are_run_again, seed=36, adjust=processes_die),
    Planted(a_death_report_leaves_out_what_executes, seed=11),
    Planted(retries_are_forgotten, seed=24),
    Planted(a_retry_does_not_wait, seed=24),
    Planted(one_retry_too_many, seed=2),
    Planted(retries_are_counted_by_the_number_of_the_attempt, seed=56),
    Planted(a_rule_of_the_run_is_forgotten, seed=24),
    Planted(what_must_not_be_retried_is, seed=35),
    Planted(leases_end_at_a_third, seed=2),
    Planted(leases_go_on_while_the_server_is_away, seed=6, adjust=everything_is_stopped),
    Planted(leases_never_end, seed=2),
    Planted(an_old_claim_is_served_once_the_server_has_started_anew, seed=8, adjust=servers_start_again),
    Planted(limits_of_queues_are_ignored, seed=38),
    Planted(a_limit_is_exceeded_by_one, seed=38),
    Planted(a_pause_holds_up_nothing, seed=0, adjust=queues_are_operated),
    Planted(that_a_queue_goes_on_is_told_to_nobody, seed=3, adjust=queues_are_operated_and_nothing_fails),
    Planted(a_limit_that_was_set_does_not_count, seed=0, adjust=limits_are_lowered),
    Planted(a_request_that_comes_late_pauses_again, seed=1, adjust=queues_are_operated),
    Planted(a_run_goes_on_although_its_queue_is_full, seed=1, adjust=queues_are_full),
    Planted(a_run_that_is_due_behind_another_one_of_its_key_is_forgotten, seed=186, adjust=keys_are_few),
    Planted(a_worker_does_not_ask_whether_its_run_may_go_on, seed=5, adjust=queues_are_full),
    Planted(a_place_in_a_queue_is_not_given_back, seed=18),
    Planted(a_worker_ignores_its_slots, seed=12),
    Planted(a_lost_run_keeps_its_slot, seed=6, adjust=many_leases_are_lost),
    Planted(what_was_written_while_the_inbox_was_away_is_not_asked_for, seed=3, adjust=runs_only_read),
    Planted(a_run_that_waits_keeps_its_slot, seed=16),
    Planted(a_run_that_is_apart_has_company, seed=15, adjust=processes_die),
    Planted(a_run_goes_on_before_its_child_has_ended, seed=3),
    Planted(the_end_of_a_child_is_told_to_nobody, seed=3),
    Planted(on_start_runs_at_each_attempt, seed=1),
    Planted(on_start_runs_at_the_first_number_only, seed=15),
    Planted(on_failure_runs_before_each_retry, seed=24),
    Planted(on_complete_is_forgotten, seed=0),
    Planted(lines_of_logs_are_doubled, seed=0),
    Planted(a_part_that_comes_twice_is_stored_twice, seed=2, adjust=chunks_come_twice),
    Planted(the_last_chunk_of_a_large_part_is_dropped, seed=2, adjust=chunks_are_large),
    Planted(what_a_divided_part_leaves_is_dropped, seed=2, adjust=chunks_are_large),
    Planted(what_a_divided_part_leaves_changes_its_order, seed=2, adjust=chunks_are_large),
    Planted(two_parts_of_a_writer_change_their_order, seed=0, adjust=streams_are_long),
    Planted(an_index_is_left_out_for_each_new_writer, seed=0, adjust=streams_are_long),
    Planted(an_attempt_that_is_over_still_writes_its_streams, seed=26, adjust=streams_of_lost_attempts),
    Planted(a_run_that_has_ended_still_takes_chunks, seed=0, adjust=chunks_come_twice),
    Planted(anyone_may_write_to_any_run, seed=7, adjust=many_runs_have_streams),
    Planted(chunks_are_said_to_be_of_the_first_attempt, seed=0, adjust=streams_of_lost_attempts),
    Planted(an_outcome_does_not_wait_for_its_streams, seed=3, adjust=streams_are_long),
    Planted(writers_that_are_left_open_never_end, seed=0, adjust=streams_are_long),
    Planted(an_end_goes_before_the_last_chunks, seed=2, adjust=chunks_are_large),
    Planted(the_error_of_a_source_is_forgotten, seed=0, adjust=streams_are_long),
    Planted(a_stream_ends_with_the_first_of_its_writers, seed=6, adjust=streams_are_long),
    Planted(the_writer_of_an_attempt_that_died_counts_as_ended, seed=11, adjust=streams_of_lost_attempts),
    Planted(a_reader_that_comes_back_leaves_one_out, seed=3, adjust=readers_come_back),
    Planted(a_reader_that_comes_back_sees_one_twice, seed=7, adjust=readers_come_back),
    Planted(chunks_whose_announcement_got_lost_are_told_to_nobody, seed=48, adjust=readers_come_back),
    Planted(the_end_of_a_run_is_told_before_its_last_chunks, seed=10, adjust=readers_come_back),
    Planted(a_delay_is_cut_short, seed=0, adjust=runs_have_times),
    Planted(a_time_to_live_is_cut_short, seed=2, adjust=runs_have_times),
    Planted(triggers_share_a_request_without_their_ids, seed=2, adjust=crowds_trigger),
    Planted(answers_of_a_shared_request_are_swapped, seed=2, adjust=crowds_trigger),
    Planted(a_debounced_run_is_not_put_off, seed=1, adjust=triggers_are_debounced),
    Planted(a_debounced_trigger_makes_a_run_of_its_own, seed=0, adjust=triggers_are_debounced),
    Planted(a_debounced_trigger_that_comes_again_puts_off_again, seed=1, adjust=triggers_are_debounced),
    Planted(idempotency_keys_are_ignored, seed=5, adjust=keys_are_shared),
    Planted(an_idempotency_key_stands_for_what_has_failed, seed=3, adjust=keys_are_shared),
    Planted(a_later_attempt_makes_its_children_anew, seed=76, adjust=attempts_find_children),
    Planted(a_schedule_fires_twice_for_a_time, seed=5, adjust=schedules_fire),
    Planted(a_schedule_leaves_out_every_other_time, seed=0, adjust=schedules_fire_and_nothing_fails),
    Planted(what_a_schedule_was_late_for_is_made_up_for, seed=5, adjust=schedules_fire),
    Planted(a_token_is_completed_whenever_somebody_says_so, seed=2, adjust=runs_wait),
    Planted(what_a_token_is_completed_with_gets_lost, seed=0, adjust=runs_wait),
    Planted(who_waits_for_a_token_is_told_that_it_has_timed_out, seed=0, adjust=runs_wait),
    Planted(times_and_timeouts_are_cut_short, seed=9, adjust=runs_wait),
    Planted(times_are_looked_at_only_when_something_happens, seed=3, adjust=runs_wait_and_nothing_fails),
    Planted(the_end_of_a_token_is_told_to_nobody, seed=0, adjust=runs_wait_and_nothing_fails),
    Planted(a_later_attempt_makes_tokens_of_its_own, seed=2, adjust=runs_wait),
    Planted(a_time_begins_anew_in_a_later_attempt, seed=3, adjust=runs_wait),
    Planted(what_is_sent_again_to_a_run_is_stored_again, seed=14, adjust=chunks_come_twice),
]
