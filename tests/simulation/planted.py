"""Mistakes outside metadata, to be put into engine, worker and SDK, so that the simulation can be tested. Many were made before.

PYTHONPATH=tests python -m simulation --planted        finds each of them within 150 seeds
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from milepost.engine import claiming, ending, logs, queues, reporting, rules, workers
from milepost.engine.commands import ReleaseLostRuns
from milepost.engine.transaction import Transaction
from milepost.model import lifecycle
from milepost.model.lifecycle import Move
from milepost.model.retry import Retry
from milepost.model.run import AttemptEnd, RunStatus
from milepost.sdk.attempt import Attempt
from milepost.store import runs as run_store
from milepost.store.database import Store
from milepost.worker.black_box import BlackBox
from milepost.worker.holding import Holding
from milepost.worker.lease import Lease
from milepost.worker.slots import Slots
from milepost.worker.waits import Waits
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


def find(planted: Planted, store: Store, seeds: Iterable[int]) -> tuple[int, Failed] | None:
    """The first of these seeds that finds a mistake which was put in, with what it says; None when none does."""
    for seed in seeds:
        try:
            simulate(seed, store, adjust=planted.adjust)
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
        return lifecycle.lost(run, Retry(max_attempts=1), 0.0)

    _patch_released(patch, charged)


def an_attempt_that_is_handed_back_is_charged(patch: pytest.MonkeyPatch) -> None:
    released = lifecycle.released

    def charged(run: Any, end: AttemptEnd, why: str | None = None) -> Any:
        if end is not AttemptEnd.HANDED_BACK:
            return released(run, end, why)
        return lifecycle.lost(run, Retry(max_attempts=1), 0.0)

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


def a_crash_costs_nothing(patch: pytest.MonkeyPatch) -> None:
    """So a run that kills its process is tried for ever."""
    patch.setattr(
        ending,
        "crash",
        lambda row, how, transaction, state: ending.end_attempt(
            row, lifecycle.released(row, AttemptEnd.BESIDE, how), transaction, state
        ),
    )


def a_death_report_leaves_out_what_executes(patch: pytest.MonkeyPatch) -> None:
    begun = BlackBox.begun
    patch.setattr(BlackBox, "begun", lambda self: [one for one in begun(self) if one.waiting])


# --- retries ---------------------------------------------------------------------------------------------------


def retries_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    of_outcome = lifecycle.of_outcome

    def final(outcome: Any) -> Any:
        return of_outcome(msgspec.structs.replace(outcome, retry_after_ms=None))

    patch.setattr(reporting, "of_outcome", final)


def a_retry_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    end_attempt = ending.end_attempt

    def at_once(row: Any, end: Any, transaction: Transaction, state: Any) -> None:
        end_attempt(row, msgspec.structs.replace(end, delay_ms=0), transaction, state)

    _patch_end_attempt(patch, at_once)


def one_retry_too_many(patch: pytest.MonkeyPatch) -> None:
    delay_ms = Retry.delay_ms

    def generous(self: Retry, attempt: int, *, jitter: float, max_attempts: int | None = None) -> int | None:
        return delay_ms(self, attempt, jitter=jitter, max_attempts=(max_attempts or self.max_attempts) + 1)

    patch.setattr(Retry, "delay_ms", generous)


def retries_are_counted_by_the_number_of_the_attempt(patch: pytest.MonkeyPatch) -> None:
    """As they were: what was not charged counts as well."""
    run = Attempt.run

    async def counted(self: Attempt) -> Any:
        self._run = msgspec.structs.replace(self._run, charged=self._run.attempt - 1)
        return await run(self)

    patch.setattr(Attempt, "run", counted)


def a_rule_of_the_run_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    delay_ms = Retry.delay_ms

    def without(self: Retry, attempt: int, *, jitter: float, max_attempts: int | None = None) -> int | None:
        return delay_ms(self, attempt, jitter=jitter)

    patch.setattr(Retry, "delay_ms", without)


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


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    _patch_release_lost(patch, lambda command, transaction, state: 0)


def _patch_release_lost(patch: pytest.MonkeyPatch, function: Any) -> None:
    rule = rules._RULES[ReleaseLostRuns]
    patch.setitem(rules._RULES, ReleaseLostRuns, msgspec.structs.replace(rule, decide=function))


# --- queues and slots ------------------------------------------------------------------------------------------


def limits_of_queues_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues.Room, "has", lambda self, name: True)


def a_limit_is_exceeded_by_one(patch: pytest.MonkeyPatch) -> None:
    has = queues.Room.has

    def one_more(self: queues.Room, name: str) -> bool:
        self._taken[name] = self._taken.get(name, 0) - 1
        try:
            return has(self, name)
        finally:
            self._taken[name] += 1

    patch.setattr(queues.Room, "has", one_more)


def a_run_goes_on_although_its_queue_is_full(patch: pytest.MonkeyPatch) -> None:
    """As it did."""

    def go_on(row: Any, transaction: Transaction) -> None:
        if row.status is not RunStatus.EXECUTING:
            queues.change_status(row, Move.RESUME, transaction)

    patch.setattr(queues, "go_on", go_on)
    patch.setattr(reporting, "go_on", go_on, raising=False)


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
        before = None if queue is None else queue.executing
        change_status(row, move, transaction)
        if queue is not None and before is not None and move is Move.FAIL:
            queue.executing = before

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


def many_runs(plan: Plan) -> None:
    plan.roots, plan.runs_max, plan.workers, plan.children = 5, 12, 1, 4


def queues_are_full(plan: Plan) -> None:
    many_runs(plan)
    plan.workers, plan.parent_limit, plan.child_limit, plan.pause_seconds_max = 2, 1, 1, 4.0


def many_leases_are_lost(plan: Plan) -> None:
    plan.lease_seconds, plan.chaos_seconds, plan.request_seconds_max = 4.0, 20.0, 3.0
    plan.workers, plan.in_thread, plan.pause_seconds_max = 2, 1.0, 4.0
    plan.troubles += ["part_worker", "freeze_worker"] * 3


def workers_are_stopped(plan: Plan) -> None:
    """With their claims open, so that what they bring waits for them."""
    many_runs(plan)
    plan.lease_seconds, plan.request_seconds_max, plan.chaos_seconds = 4.0, 30.0, 8.0
    plan.workers, plan.retry, plan.crash = 2, Retry(max_attempts=4, min_delay_seconds=1.5), 0.0
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


PLANTS: list[Planted] = [
    Planted(an_output_is_dropped, seed=1),
    Planted(outputs_are_swapped, seed=2),
    Planted(an_error_is_dropped, seed=0),
    Planted(errors_of_earlier_attempts_vanish, seed=0),
    Planted(a_run_that_has_returned_is_executed_again, seed=2),
    Planted(a_number_is_used_again_after_an_attempt_that_never_began, seed=3),
    Planted(a_run_goes_to_two_workers, seed=2),
    Planted(a_claim_brings_more_than_it_asks_for, seed=1, adjust=many_runs),
    Planted(the_word_of_an_attempt_that_was_given_up_counts, seed=50, adjust=many_leases_are_lost),
    Planted(a_worker_begins_runs_after_its_lease, seed=12, adjust=workers_are_stopped),
    Planted(an_attempt_is_charged_twice, seed=0),
    Planted(an_attempt_that_never_began_is_charged, seed=3),
    Planted(an_attempt_that_is_handed_back_is_charged, seed=17, adjust=workers_are_drained),
    Planted(a_crash_is_charged_to_all_that_were_in_the_process, seed=39),
    Planted(a_crash_costs_nothing, seed=1),
    Planted(a_death_report_leaves_out_what_executes, seed=1),
    Planted(retries_are_forgotten, seed=0),
    Planted(a_retry_does_not_wait, seed=0),
    Planted(one_retry_too_many, seed=15),
    Planted(retries_are_counted_by_the_number_of_the_attempt, seed=83),
    Planted(a_rule_of_the_run_is_forgotten, seed=24),
    Planted(what_must_not_be_retried_is, seed=48),
    Planted(leases_end_at_a_third, seed=3),
    Planted(leases_go_on_while_the_server_is_away, seed=6, adjust=everything_is_stopped),
    Planted(leases_never_end, seed=3),
    Planted(limits_of_queues_are_ignored, seed=15),
    Planted(a_limit_is_exceeded_by_one, seed=15),
    Planted(a_run_goes_on_although_its_queue_is_full, seed=0, adjust=queues_are_full),
    Planted(a_worker_does_not_ask_whether_its_run_may_go_on, seed=0, adjust=queues_are_full),
    Planted(a_place_in_a_queue_is_not_given_back, seed=15),
    Planted(a_worker_ignores_its_slots, seed=34),
    Planted(a_lost_run_keeps_its_slot, seed=4, adjust=many_leases_are_lost),
    Planted(a_run_that_waits_keeps_its_slot, seed=16),
    Planted(a_run_that_is_apart_has_company, seed=1, adjust=processes_die),
    Planted(a_run_goes_on_before_its_child_has_ended, seed=1),
    Planted(the_end_of_a_child_is_told_to_nobody, seed=1),
    Planted(on_start_runs_at_each_attempt, seed=0),
    Planted(on_start_runs_at_the_first_number_only, seed=3),
    Planted(on_failure_runs_before_each_retry, seed=0),
    Planted(on_complete_is_forgotten, seed=0),
    Planted(lines_of_logs_are_doubled, seed=0),
]
