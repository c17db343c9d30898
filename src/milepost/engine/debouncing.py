"""Triggers that come one after the other and mean one run: each puts it off again, until there was a pause.

A debounce key stands in the table of idempotency keys, for the run of a task that it has delayed. Once that run is not delayed any
more, the key is free.
"""

from datetime import timedelta

from milepost.engine.commands import TriggerItem
from milepost.engine.queues import change_status
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import InvalidRequestError
from milepost.model.durations import Delay, parse_delay, parse_duration
from milepost.model.lifecycle import Move
from milepost.model.names import check_name
from milepost.model.run import RunStatus
from milepost.protocol.triggering import DebounceOption, TriggerOptions
from milepost.store import runs as run_store
from milepost.store.idempotency import KeyRow
from milepost.store.runs import NewRun, RunRow

KEY_CHARACTERS_MAX = 512
# Of each kind a task may have a key of the same text. No task has a control character in its id.
_OF_TASK = "\n"
_DAY_MICROSECONDS = 86_400 * 1_000_000
_SPAN_MOST = timedelta(days=365)


def delay_of(options: TriggerOptions, given: Delay | None, *, now: int, place: str) -> Delay:
    """The delay of a run that others may put off: that of the debounce, or the given one where that ends later. Raises
    InvalidRequestError for what cannot be asked."""
    asked = options.debounce
    assert asked is not None, "the trigger has one"
    if place:
        raise InvalidRequestError(
            "debounce is for single triggers: the runs of a batch are all made",
            field=f"{place}options.debounce",
        )
    check_name(asked.key, "a debounce key", field="options.debounce.key", characters_max=KEY_CHARACTERS_MAX)
    own = Delay(pause_ms=(_debounced_until(asked, now, now) - now) // 1000)
    return own if given is None or given.due_at(now) <= own.due_at(now) else given


def key_row(item: TriggerItem, run: NewRun) -> KeyRow:
    """The key of a run that this trigger makes."""
    assert item.options.debounce is not None, "the trigger has one"
    return KeyRow(item.options.debounce.key, _OF_TASK + item.task, run.id, run.due_at + _DAY_MICROSECONDS)


def put_off(item: TriggerItem, transaction: Transaction, state: EngineState, run: NewRun) -> RunRow | None:
    """The delayed run that this trigger means, which begins later now; None where `run` is to be made. Nothing may refuse the trigger
    any more."""
    asked = item.options.debounce
    assert asked is not None, "the trigger has one"
    key = transaction.key(asked.key, _OF_TASK + item.task)
    row = None if key is None else transaction.run_made(key.target_id)
    if key is None or row is None or row.status is not RunStatus.DELAYED:
        return None
    now = transaction.now
    due_at = _debounced_until(asked, now, row.created_at)
    if item.options.delay is not None:
        due_at = max(due_at, parse_delay(item.options.delay).due_at(now))
    row.due_at = due_at
    change_status(row, Move.RESCHEDULE, transaction)
    transaction.save()
    run_store.change_due(transaction.connection, row.id, due_at=row.due_at, is_given=None)
    if asked.mode == "trailing":
        run_store.change_payload(transaction.connection, row, run.payload, run.payload_type)
    transaction.save_key(KeyRow(key.key, key.task, row.id, row.due_at + _DAY_MICROSECONDS))
    state.due_later(row.due_at)
    return row


def _debounced_until(asked: DebounceOption, now: int, first_at: int) -> int:
    """When a run begins whose last trigger comes now and whose first one has come then. Raises InvalidRequestError."""
    until = now + _microseconds(asked.delay, "options.debounce.delay")
    if asked.max_delay is None:
        return until
    return max(now, min(until, first_at + _microseconds(asked.max_delay, "options.debounce.maxDelay")))


def _microseconds(text: str, field: str) -> int:
    try:
        span = parse_duration(text)
    except ValueError as error:
        raise InvalidRequestError(f"{field}: {error}", field=field) from None
    if not timedelta(0) < span <= _SPAN_MOST:
        raise InvalidRequestError(
            f"{field} is more than nothing and at most a year, not {text!r:.100}", field=field
        )
    return span // timedelta(microseconds=1)
