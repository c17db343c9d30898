"""How attempts end, and what follows: the run is over, or queued again, and whoever waits for it is told."""

import random

import msgspec

from milepost.engine import idempotency, queues
from milepost.engine.state import CLOCKS_APART_MICROSECONDS, EngineState
from milepost.engine.transaction import Transaction
from milepost.model.lifecycle import (
    Ending,
    Move,
    closed,
    crashed,
    lost,
    of_outcome,
    once_cancelled,
    released,
    to_be_closed,
)
from milepost.model.retry import RetryRule
from milepost.model.run import AttemptEnd, Closing, Outcome, RunError, RunStatus, asked_of
from milepost.protocol.triggering import OUTPUT_BYTES_MAX
from milepost.store.attempts import AttemptRow
from milepost.store.batches import BatchRow
from milepost.store.runs import RunRow

# The texts of an error, in characters. Our own workers send less.
ERROR_CHARACTERS_MAX = 100_000
_QUEUED_AGAIN = frozenset({Move.RETRY, Move.RELEASE, Move.CLOSE})
_ENDED_BY_ITSELF = frozenset({AttemptEnd.RETURNED, AttemptEnd.RAISED})
_ANY = msgspec.json.Decoder(msgspec.Raw)
_CLOSING = msgspec.json.Decoder(Closing)


def end_attempt(row: RunRow, ending: Ending, transaction: Transaction, state: EngineState) -> None:
    """The newest attempt of a run that is held has ended like this."""
    state.children.forget(row.id)
    attempt_error = ending.error
    if row.closing is not None and ending.move is not Move.RELEASE:
        ending = closed(_CLOSING.decode(row.closing))
        row.closing = None
    elif row.cancel_asked_at is not None:
        ending = once_cancelled(ending)
        attempt_error = ending.error
    error = _text(ending.error)
    move = ending.move
    if move is not Move.COMPLETE:
        _keep_attempt(row, ending, _text(attempt_error), transaction)
    if row.resuming_at is not None:
        queues.give_up_resuming(row, transaction)
    if row.is_apart and ending.end in _ENDED_BY_ITSELF:
        row.is_apart = 0
    queues.change_status(row, move, transaction)
    transaction.has_ended_attempt = True
    if move in _QUEUED_AGAIN:
        _queue_again(row, ending, transaction, state)
        if row.is_apart:
            state.may_have_apart = transaction.has_apart = True
        if move is not Move.RELEASE:
            transaction.save_result(row, None, error)
        return
    if move is Move.CANCEL:
        cancel_children(row, transaction)
    _finish(row, ending.output, error, transaction)


def end_unclaimed(row: RunRow, move: Move, error: RunError, transaction: Transaction) -> None:
    """A run that no worker holds is over: it has expired, or was cancelled."""
    row.is_apart = 0
    row.expires_at = None
    row.closing = None
    queues.change_status(row, move, transaction)
    if move is Move.CANCEL and row.attempt:
        cancel_children(row, transaction)
    _finish(row, None, _text(error), transaction)


def end_dead(row: RunRow, ending: Ending, transaction: Transaction, state: EngineState) -> None:
    """As `end_attempt`, of an attempt that could not run its hooks: its process is gone, or its code does not end.

    Where the run is over with it, and its task has hooks for that, a worker runs them first, as an attempt of their own."""
    closing = to_be_closed(ending)
    if (
        closing is not None
        and row.closing is None
        and row.cancel_asked_at is None
        and transaction.catalog.has_end_hooks(row.task)
    ):
        # The task's own code may be what has killed the process, and that does not run again.
        row.is_apart = 0
        end_attempt(row, msgspec.structs.replace(ending, move=Move.CLOSE), transaction, state)
        row.closing = msgspec.json.encode(closing).decode()
    else:
        end_attempt(row, ending, transaction, state)


def cancel_children(row: RunRow, transaction: Transaction) -> None:
    """Let the children of a run be cancelled, by this group and the following ones (`engine/promoting.py`)."""
    row.cancels_children = 1
    transaction.save_run(row)
    transaction.has_steps = True


def _finish(row: RunRow, output: str | None, error: str | None, transaction: Transaction) -> None:
    row.finished_at = transaction.now
    if abs(transaction.age_now - transaction.now) > CLOCKS_APART_MICROSECONDS:
        row.aged_from = transaction.age_now
    transaction.save_result(row, output, error)
    transaction.fold(row)
    _tell_parent(row, transaction)


def _keep_attempt(row: RunRow, ending: Ending, error: str | None, transaction: Transaction) -> None:
    transaction.ended_attempts.append(
        AttemptRow(
            row.id,
            row.attempt,
            row.worker_id,
            row.claimed_at,
            row.begun_at,
            transaction.now,
            ending.end.value,
            error,
        )
    )
    if ending.end.is_charged:
        row.charged += 1


def _queue_again(row: RunRow, ending: Ending, transaction: Transaction, state: EngineState) -> None:
    now = transaction.now
    row.worker_id = None
    if ending.move is Move.RETRY:
        row.due_at = now + ending.delay_ms * 1000
        if row.due_at > now:
            state.due_later(row.due_at)
    else:
        if ending.end is AttemptEnd.NEVER_BEGUN and row.started_at == row.claimed_at:
            # No earlier attempt has begun either.
            row.started_at = None
        # It keeps its place in the line, whatever clock it was queued by.
        row.due_at = min(row.due_at, now)
    transaction.offer(row.task, row.queue, row.concurrency_key, row.due_at)


def lose(row: RunRow, transaction: Transaction, state: EngineState) -> None:
    """The worker that holds the run has fallen silent, or says that it does not have it."""
    if row.begun_at is None:
        never_begun(row, transaction, state)
    elif row.status is RunStatus.WAITING and not row.is_apart:
        waited(row, "stopped answering for longer than its lease", transaction, state)
    else:
        retry = _retry_of(row, transaction)
        end_dead(row, lost(row, retry, random.random()), transaction, state)


def _retry_of(row: RunRow, transaction: Transaction) -> RetryRule:
    return asked_of(row.options).retry or transaction.catalog.retry_of(row.task)


def waited(row: RunRow, how: str, transaction: Transaction, state: EngineState) -> None:
    """The run's attempt is over because its worker is gone, and it only waited: that costs nothing."""
    why = f"the worker of attempt {row.attempt} {how} while the run waited"
    end_attempt(row, released(row, AttemptEnd.WAITING, why), transaction, state)


def crash(row: RunRow, how: str, transaction: Transaction, state: EngineState) -> None:
    """The process of the run's attempt has died, and no other run is suspected."""
    retry = _retry_of(row, transaction)
    end_dead(row, crashed(row, how, retry, random.random()), transaction, state)


def never_begun(row: RunRow, transaction: Transaction, state: EngineState) -> None:
    """The attempt is over, and as far as anybody knows its code has not begun."""
    end_attempt(row, released(row, AttemptEnd.NEVER_BEGUN), transaction, state)


def ending_of(outcome: Outcome) -> Ending:
    """How an attempt ends that reports this outcome."""
    return of_outcome(_storable(outcome))


def _storable(outcome: Outcome) -> Outcome:
    """The outcome as it can be kept. What cannot be has its own attempt fail, for good: running again would end the same way."""
    error = outcome.error
    if error is not None:
        if len(error.message) + len(error.stack_trace or "") + len(error.name or "") <= ERROR_CHARACTERS_MAX:
            return outcome
        shortened = RunError(
            message=error.message[: ERROR_CHARACTERS_MAX // 4],
            name=error.name and error.name[:1000],
            stack_trace=error.stack_trace and error.stack_trace[-ERROR_CHARACTERS_MAX // 2 :],
        )
        return msgspec.structs.replace(outcome, error=shortened)
    output = outcome.output
    if output is None:
        return outcome
    if len(output) * 4 > OUTPUT_BYTES_MAX and _bytes(output) > OUTPUT_BYTES_MAX:
        message = (
            f"the output is {_bytes(output):,} bytes of JSON, and at most {OUTPUT_BYTES_MAX:,} can be kept; "
            f"store it elsewhere and return where"
        )
    elif not _is_json(output):
        message = "the worker reported an output that is not JSON"
        return Outcome(error=RunError(name="OutputError", message=message), end=AttemptEnd.BROKEN)
    else:
        return outcome
    return Outcome(error=RunError(name="OutputError", message=message))


def tell_batch(batch: BatchRow, transaction: Transaction) -> None:
    """Announce how far a batch is; to the run that has triggered it, that it has ended."""
    transaction.announce_batch(batch)
    if batch.finished_count >= batch.run_count:
        _tell_end(batch.id, batch.parent_id, transaction)


def _tell_parent(row: RunRow, transaction: Transaction) -> None:
    if row.batch_id is not None:
        batch = transaction.batch(row.batch_id)
        assert batch is not None, "a run's batch is never deleted before the run"
        batch.finished_count += 1
        transaction.save_batch(batch)
        tell_batch(batch, transaction)
    else:
        _tell_end(row.id, row.parent_id, transaction)
    if row.is_shared:
        _tell_followers(row, transaction)


def _tell_followers(row: RunRow, transaction: Transaction) -> None:
    batches, waiters = idempotency.followers(row, transaction)
    for batch in batches:
        batch.finished_count += 1
        transaction.save_batch(batch)
    for batch in {batch.id: batch for batch in batches}.values():
        tell_batch(batch, transaction)
    for waiter_id in waiters:
        _tell_end(row.id, waiter_id, transaction)


def _tell_end(ended_id: str, parent_id: str | None, transaction: Transaction) -> None:
    parent = transaction.run(parent_id) if parent_id else None
    if parent is not None and parent.is_held:
        assert parent.worker_id is not None, "a held run has a worker"
        transaction.announce_finished_child(parent.worker_id, ended_id)


def _text(error: RunError | None) -> str | None:
    return None if error is None else msgspec.json.encode(error).decode()


def _bytes(text: str) -> int:
    return len(text.encode())


def _is_json(text: str) -> bool:
    try:
        _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
