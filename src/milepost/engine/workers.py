"""Deciding on workers: registering, leaving, dying, and leases that are over."""

from collections.abc import Sequence

import msgspec

from milepost.engine import ending, jobs, queues, schedules
from milepost.engine.commands import RegisterWorker, ReleaseLostRuns
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState, Worker
from milepost.engine.transaction import Transaction
from milepost.errors import NotFoundError
from milepost.model.lifecycle import UNCHARGED_MAX, killed_late, released
from milepost.model.run import AttemptEnd, RunStatus
from milepost.protocol.work import Death
from milepost.store import records
from milepost.store import runs as run_store
from milepost.store.records import TaskRow
from milepost.store.runs import RunRow

# The words of a supervisor, in characters.
HOW_CHARACTERS_MAX = 500


def register(command: RegisterWorker, transaction: Transaction, state: EngineState) -> None:
    """Learn a worker and its tasks. Runs that it should hold and does not know of are queued again: their claim got lost.

    What the worker said before it said something newer, and what arrives late, changes nothing.
    """
    known = transaction.worker(command.worker_id)
    if known is not None and 0 < command.sequence <= known.registration:
        return
    before = transaction.catalog
    catalog = transaction.catalog = before.with_offered(command.tasks)
    new_tasks = [task.id for task in command.tasks if task.id not in before.tasks]
    if new_tasks:
        transaction.newly_offered.update(new_tasks)
        transaction.has_steps = True
    if (catalog.queue_limits, catalog.queue_rates) != (before.queue_limits, before.queue_rates):
        queues.learn_rules(before, catalog, transaction)
    records.save_tasks(
        transaction.connection,
        [
            TaskRow(
                id=task.id,
                queue=task.queue,
                queue_concurrency=task.queue_concurrency,
                queue_rate=task.queue_rate,
                has_end_hooks=int(task.has_end_hooks),
                retry=msgspec.json.encode(task.retry),
                payload_schema=msgspec.json.encode(task.payload_schema) if task.payload_schema else None,
                updated_at=transaction.now,
                metadata_schema=msgspec.json.encode(task.metadata_schema) if task.metadata_schema else None,
            )
            for task in command.tasks
        ],
    )
    if known is None:
        schedules.declare(command.tasks, transaction, state)
    transaction.register_worker(
        Worker(
            command.worker_id,
            command.name,
            tuple(dict.fromkeys(task.id for task in command.tasks)),
            transaction.steady_now,
            registration=command.sequence,
            newest_claim=command.claims if command.sequence else -1,
        )
    )
    holding = set(command.holding)
    attempts = dict(zip(command.holding, command.attempts, strict=False))
    for row in _held_by(command.worker_id, transaction):
        if row.id not in holding or attempts.get(row.id, row.attempt) != row.attempt:
            # The answer to the word that it begins may not have reached the worker in time.
            _take_back_begin(row)
            ending.lose(row, transaction, state)


def worker_of(worker_id: str, transaction: Transaction) -> Worker:
    """The registered worker, seen now. Raises NotFoundError: the worker then registers anew."""
    worker = transaction.worker(worker_id)
    if worker is None:
        raise NotFoundError(f"worker {worker_id!r} is not registered with this server: register it first")
    worker.seen_at = max(worker.seen_at, transaction.steady_now)
    transaction.heard_workers.add(worker_id)
    return worker


def leave(worker_id: str, transaction: Transaction, state: EngineState) -> None:
    """The worker holds nothing any more. What it held is handed back."""
    for row in _held_by(worker_id, transaction):
        if row.begun_at is None:
            # Of all that had begun it has said so before. The answer to its last claim may never have reached it.
            ending.end_attempt(row, released(row, AttemptEnd.NEVER_BEGUN), transaction, state)
            continue
        handed_back = released(
            row, AttemptEnd.HANDED_BACK, f"the worker of attempt {row.attempt} has ended in order"
        )
        ending.end_attempt(row, handed_back, transaction, state)
    transaction.remove_workers([worker_id])


def die(worker_id: str, death: Death, transaction: Transaction, state: EngineState) -> None:
    """The process of the worker has died; see `Death` for who is charged."""
    told = {(begun.id, begun.attempt): begun for begun in death.begun}
    held = _held_by(worker_id, transaction)
    for row in held:
        if (row.id, row.attempt) not in told:
            _take_back_begin(row)
    begun = [row for row in held if (row.id, row.attempt) in told or row.begun_at is not None]
    was_in_it = told.keys() | {(row.id, row.attempt) for row in begun}
    executed = {attempt for attempt, one in told.items() if not one.waiting}
    # Also attempts that were given up before and went on all the same.
    suspects = executed or {(row.id, row.attempt) for row in begun}
    how = death.how[:HOW_CHARACTERS_MAX]
    for row in held:
        if row not in begun:
            ending.never_begun(row, transaction, state)
            continue
        if row.begun_at is None:
            row.begun_at = transaction.now
        if (row.id, row.attempt) in told and told[row.id, row.attempt].timed_out:
            ending.end_dead(row, killed_late(row, how), transaction, state)
            continue
        # Code that waits, or has ended a moment ago, is seldom why a process dies, and may be. So only who was quite alone is charged
        # at once; the one suspect among others that did not execute is charged when it was apart.
        is_alone = was_in_it == executed == {(row.id, row.attempt)}
        if is_alone or (row.is_apart and suspects == {(row.id, row.attempt)}):
            ending.crash(row, how, transaction, state)
            continue
        one = told.get((row.id, row.attempt))
        only_waited = row.status is RunStatus.WAITING and (one is None or one.waiting)
        if only_waited and not row.is_apart and row.attempt - row.charged < UNCHARGED_MAX:
            ending.waited(row, how, transaction, state)
            continue
        if (row.id, row.attempt) in suspects:
            row.is_apart = 1
        why = f"the process of attempt {row.attempt} {how}, and it need not be why"
        ending.end_attempt(row, released(row, AttemptEnd.BESIDE, why), transaction, state)
    transaction.remove_workers([worker_id])


def _take_back_begin(row: RunRow) -> None:
    """A run that is apart says that it begins before it does, and its process knows nothing of it: so its code has not begun, unless
    the attempt has waited or written something since."""
    if row.is_apart and row.status is RunStatus.EXECUTING and row.report_sequence == 0:
        row.begun_at = None


def release_lost(command: ReleaseLostRuns, transaction: Transaction, state: EngineState) -> int:
    """Give up the runs of workers that have been silent for longer than the lease; how many runs.

    Where the server itself was away for half a lease or longer, because it was frozen or its machine slept, all leases begin anew:
    nobody could have been heard.
    """
    lease = int(state.settings.lease_seconds * 1_000_000)
    now = transaction.steady_now
    if now - state.looked_at > lease // 2:
        state.leases_from = now
    state.looked_at = now
    if state.leases_from >= now - lease:
        return 0
    silent = [worker.id for worker in state.workers.values() if worker.seen_at < now - lease]
    silent = [worker_id for worker_id in silent if transaction.worker(worker_id)]
    holders = run_store.holders(transaction.connection)
    if not silent and all(transaction.worker(worker_id) for worker_id in holders):
        return 0
    if not jobs.is_ours(JobName.LEASES, transaction, state):
        return 0
    transaction.remove_workers(silent)
    lost = 0
    for worker_id in holders:
        if transaction.worker(worker_id) is None:
            for row in _held_by(worker_id, transaction):
                if lost == command.limit:
                    return lost
                if row.attempt - row.charged >= UNCHARGED_MAX:
                    # Perhaps it is the run that takes its machine along, before anything is heard of it.
                    row.is_apart = 1
                ending.lose(row, transaction, state)
                lost += 1
    return lost


def _held_by(worker_id: str, transaction: Transaction) -> Sequence[RunRow]:
    """What a worker holds, as this group leaves it."""
    ids = run_store.held_ids(transaction.connection, worker_id)
    transaction.load_runs(ids)
    rows = (transaction.run(run_id) for run_id in ids)
    return [row for row in rows if row is not None and row.is_held and row.worker_id == worker_id]
