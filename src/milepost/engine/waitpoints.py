"""Deciding on waitpoints: made once, ended once, and whoever waits is told.

A waitpoint is a row, so its end depends on no process. Nothing is known of it in memory but when the next one is due.
"""

from collections.abc import Sequence

import msgspec

from milepost.engine import jobs
from milepost.engine.commands import (
    AwaitWaitpoint,
    CompleteToken,
    CreatedWaitpoint,
    CreateWaitpoint,
    PruneWaitpoints,
    TokenCompletion,
)
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import NotFoundError
from milepost.model.waitpoints import WAITPOINT_PREFIX, WaitpointKind, WaitpointStatus
from milepost.store import waitpoints as store
from milepost.store.waitpoints import WaitpointRow


def create(command: CreateWaitpoint, transaction: Transaction, state: EngineState) -> CreatedWaitpoint:
    """Make a waitpoint, or find the one that was made with this key, at this place, or by this request."""
    earlier = transaction.earlier_answer(command.request_id)
    if earlier is not None:
        return msgspec.json.decode(earlier, type=CreatedWaitpoint)
    connection, now = transaction.connection, transaction.now
    key = _key(command)
    if key is not None and (found := store.load_by_key(connection, key)) is not None:
        if found.key_expires_at is None or found.key_expires_at > now:
            found = _as_of_now(found, transaction)
            return CreatedWaitpoint(found.id, WaitpointStatus(found.status), is_cached=True)
        store.forget_key(connection, found.id)
    timeout_at = command.timeout_at
    if command.timeout_ms is not None:
        timeout_at = now + command.timeout_ms * 1000
    row = WaitpointRow(
        id=state.identifiers.make(WAITPOINT_PREFIX, now),
        kind=command.kind.value,
        status=WaitpointStatus.WAITING.value,
        created_at=now,
        timeout_at=timeout_at,
        is_timeout_given=int(command.timeout_at is not None),
        run_id=None if command.attempt is None else command.attempt.run,
        tags=msgspec.json.encode(command.tags).decode() if command.tags else None,
        key=key,
        key_expires_at=None if command.key_ttl_ms is None else now + command.key_ttl_ms * 1000,
    )
    store.insert_waitpoint(connection, row)
    row = _as_of_now(row, transaction)
    if row.timeout_at is not None and row.status == WaitpointStatus.WAITING:
        state.due_later(row.timeout_at)
    created = CreatedWaitpoint(row.id, WaitpointStatus(row.status))
    if key is None:
        # By its key it is found without that.
        transaction.keep_answer(command.request_id, msgspec.json.encode(created))
    return created


def complete(command: CompleteToken, transaction: Transaction, state: EngineState) -> TokenCompletion:
    """End a token, unless it has ended: then nothing changes, and the answer says so. Raises NotFoundError."""
    earlier = transaction.earlier_answer(command.request_id)
    if earlier is not None:
        return msgspec.json.decode(earlier, type=TokenCompletion)
    row = _load(command.token_id, transaction)
    if row.kind != WaitpointKind.TOKEN:
        raise _unknown(command.token_id)
    is_first = row.status == WaitpointStatus.WAITING
    if is_first:
        _end([row], WaitpointStatus.COMPLETED, command.output, transaction)
    completion = TokenCompletion(is_first, WaitpointStatus(row.status))
    if is_first:
        transaction.keep_answer(command.request_id, msgspec.json.encode(completion))
    return completion


def await_end(command: AwaitWaitpoint, transaction: Transaction, state: EngineState) -> WaitpointRow:
    """A run waits for a waitpoint; how that stands now. Raises NotFoundError."""
    row = _load(command.waitpoint_id, transaction)
    if row.status == WaitpointStatus.WAITING and command.attempt.run != _awaited_by(row):
        store.add_waiter(transaction.connection, row.id, command.attempt.run)
    return row


def prune(command: PruneWaitpoints, transaction: Transaction, state: EngineState) -> int:
    """Forget waitpoints that have ended long ago; how many."""
    if not jobs.is_ours(JobName.WAITPOINTS, transaction, state):
        return 0
    return store.delete_ended(transaction.connection, before=command.before, limit=command.limit)


def carry_on(transaction: Transaction, *, limit: int) -> None:
    """End up to `limit` waitpoints whose time is over."""
    rows = store.due(transaction.connection, now=transaction.now, limit=limit)
    _time_out(rows, transaction)
    transaction.has_more_steps |= len(rows) == limit


def _key(command: CreateWaitpoint) -> str | None:
    if command.key is not None:
        return store.user_key(command.key)
    if command.place is None:
        return None
    assert command.attempt is not None, "only a run has places"
    return f"run/{command.attempt.run}/{command.place}"


def _load(waitpoint_id: str, transaction: Transaction) -> WaitpointRow:
    row = store.load_waitpoint(transaction.connection, waitpoint_id)
    if row is None:
        raise _unknown(waitpoint_id)
    return _as_of_now(row, transaction)


def _unknown(waitpoint_id: str) -> NotFoundError:
    return NotFoundError(f"there is no wait token {waitpoint_id!r:.100}")


def _as_of_now(row: WaitpointRow, transaction: Transaction) -> WaitpointRow:
    """The same; its time may be over, and nobody have looked yet."""
    is_over = row.timeout_at is not None and row.timeout_at <= transaction.now
    if is_over and row.status == WaitpointStatus.WAITING:
        _time_out([row], transaction)
    return row


def _time_out(rows: Sequence[WaitpointRow], transaction: Transaction) -> None:
    """The time of these is over: that is what a time was waited for, and all that becomes of a token."""
    for kind, status in (
        (WaitpointKind.TIME, WaitpointStatus.COMPLETED),
        (WaitpointKind.TOKEN, WaitpointStatus.TIMED_OUT),
    ):
        _end([row for row in rows if row.kind == kind], status, None, transaction)


def _end(
    rows: Sequence[WaitpointRow], status: WaitpointStatus, output: str | None, transaction: Transaction
) -> None:
    if not rows:
        return
    for row in rows:
        row.status, row.ended_at, row.output = status.value, transaction.now, output
    ids = [row.id for row in rows]
    store.end(transaction.connection, ids, status, at=transaction.now, output=output)
    waiting = store.take_waiters(transaction.connection, ids)
    waiting += [(row.id, run_id) for row in rows if (run_id := _awaited_by(row)) is not None]
    transaction.load_runs({run_id for _, run_id in waiting})
    for waitpoint_id, run_id in waiting:
        run = transaction.run(run_id)
        if run is not None and run.is_held:
            assert run.worker_id is not None, "a held run has a worker"
            transaction.announce_finished_child(run.worker_id, waitpoint_id)


def _awaited_by(row: WaitpointRow) -> str | None:
    """The run that waits for it without having said so."""
    return row.run_id if row.kind == WaitpointKind.TIME else None
