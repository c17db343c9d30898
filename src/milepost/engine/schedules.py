"""Schedules: made, changed, declared by the code of tasks; and what fires when its time has come.

A schedule has the time at which it fires next. The group in which that has come triggers the run and moves the time on, in one
transaction; groups of all servers come one after the other. So however many servers there are, and whenever one of them ends, each
time fires once.

- Of times that were missed because no server was there the last one fires, and no other.
- While nobody offers the task and the run of the time before still waits, no further run is queued: one waits for the worker.
- A schedule that names times of the wall clock fires for no time twice when that is set back. One that was set back by more than a day
  had been wrong: then it goes on from the time that it is now. A schedule that counts time moves along with the clock.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import UNSET
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from milepost.engine import triggering
from milepost.engine.commands import (
    CreateSchedule,
    DeleteSchedule,
    SetScheduleActive,
    TriggerItem,
    UpdateSchedule,
)
from milepost.engine.state import CLOCKS_APART_MICROSECONDS, EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import ConflictError, InvalidRequestError, MilepostError, NotFoundError
from milepost.model.names import check_name
from milepost.model.run import RunStatus
from milepost.model.timetable import Cron, Every, Timetable, latest_until, upcoming
from milepost.protocol.schedules import (
    EXTERNAL_ID_CHARACTERS_MAX,
    UPCOMING_SHOWN,
    ScheduledPayload,
    TaskSchedule,
    UpdateScheduleRequest,
)
from milepost.protocol.triggering import JSON_TYPE, TriggerOptions
from milepost.protocol.work import WorkerTask
from milepost.store import schedules as store
from milepost.store.schedules import ScheduledRun, ScheduleRow, ScheduleType

logger = logging.getLogger("milepost.engine")

# What one group fires at most; the next one goes on at once, with the commands that have come meanwhile.
FIRED_MAX = 100
# A clock that is set back by more had been wrong.
SET_BACK_MICROSECONDS = 24 * 3600 * 1_000_000
_NOTE_CHARACTERS_MAX = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timetable_of(row: ScheduleRow) -> Timetable:
    """When a schedule fires. Raises InvalidRequestError, also for a time zone that this machine does not know."""
    if row.cron is not None:
        return Cron(row.cron, row.timezone)
    assert row.every is not None, "it has one of the two"
    return Every(timedelta(microseconds=row.every), row.anchor_at)


# --- what is asked for -------------------------------------------------------------------------------------


class _Created(msgspec.Struct, frozen=True):
    """What stands under the id of a request that has made or deleted a schedule. By the checksum, which none has, a trigger under the
    same id is told that it was used."""

    schedule: str
    run_ids: list[str] = []
    checksum: int = -1


def create(command: CreateSchedule, transaction: Transaction, state: EngineState) -> ScheduleRow:
    """Make a schedule, or change the one that has its deduplication key."""
    request, now, connection = command.request, transaction.now, transaction.connection
    earlier = transaction.earlier_answer(command.request_id)
    if earlier is not None:
        return _earlier(earlier, transaction)
    key = request.deduplication_key
    if key is not None:
        check_name(key, "a deduplication key", field="deduplicationKey")
    known = None if key is None else store.schedule_with_key(connection, key)
    row = known or ScheduleRow(
        id=state.identifiers.make("sched", now),
        task=request.task,
        type=ScheduleType.IMPERATIVE.value,
        anchor_at=now,
        deduplication_key=key,
        created_at=now,
        updated_at=now,
    )
    given = {
        name: getattr(request, name)
        for name in (
            "task",
            "cron",
            "every",
            "timezone",
            "external_id",
            "payload",
            "payload_type",
            "metadata",
            "tags",
        )
    }
    row = _changed(row, UpdateScheduleRequest(**given), transaction, state)
    if request.active is not None:
        row.is_active = int(request.active)
    _set_next(row, now)
    if known is None:
        store.insert_schedule(connection, row)
    else:
        store.save_schedule(connection, row)
    transaction.schedules_changed = True
    transaction.keep_answer(command.request_id, msgspec.json.encode(_Created(row.id)))
    return row


def _earlier(answer: bytes, transaction: Transaction) -> ScheduleRow:
    try:
        created = msgspec.json.decode(answer, type=_Created)
    except msgspec.ValidationError:
        raise ConflictError(
            "this request id was used for a request that said something else: each request needs an id of its own"
        ) from None
    return _row_of(created.schedule, transaction)


def change(command: UpdateSchedule, transaction: Transaction, state: EngineState) -> ScheduleRow:
    """Change a schedule. Of one that code declares nothing can be changed from here."""
    row = _own(command.schedule_id, transaction, "changed")
    changed = _changed(row, command.request, transaction, state)
    _set_next(changed, transaction.now)
    return _save(changed, transaction)


def set_active(command: SetScheduleActive, transaction: Transaction, state: EngineState) -> ScheduleRow:
    """Pause a schedule, or let it go on from its next time: what it has missed meanwhile does not fire."""
    row = _row_of(command.schedule_id, transaction)
    if bool(row.is_active) != command.is_active:
        row.is_active = int(command.is_active)
        row.note = None
        _set_next(row, transaction.now)
        _save(row, transaction)
    return row


def delete(command: DeleteSchedule, transaction: Transaction, state: EngineState) -> None:
    """Forget a schedule; its runs go on. What code declares comes back with the next worker, so it can only be paused."""
    row = _own(command.schedule_id, transaction, "deleted")
    store.delete_schedules(transaction.connection, [row.id])
    transaction.schedules_changed = True


def current(command: UpdateSchedule | SetScheduleActive, transaction: Transaction) -> ScheduleRow:
    """The schedule as it is now."""
    return _row_of(command.schedule_id, transaction)


def _row_of(schedule_id: str, transaction: Transaction) -> ScheduleRow:
    row = store.load_schedules(transaction.connection, [schedule_id]).get(schedule_id)
    if row is None:
        raise NotFoundError(f"there is no schedule {schedule_id!r:.100}")
    return row


def _own(schedule_id: str, transaction: Transaction, what: str) -> ScheduleRow:
    row = _row_of(schedule_id, transaction)
    if row.type == ScheduleType.DECLARATIVE and transaction.is_offered(row.task):
        raise ConflictError(
            f"schedule {row.id!r} is declared by the code of task {row.task!r}, and is {what} there; it can be paused here"
        )
    return row


def _save(row: ScheduleRow, transaction: Transaction) -> ScheduleRow:
    row.updated_at = max(transaction.now, row.updated_at + 1)
    store.save_schedule(transaction.connection, row)
    transaction.schedules_changed = True
    return row


def _changed(
    row: ScheduleRow, request: UpdateScheduleRequest, transaction: Transaction, state: EngineState
) -> ScheduleRow:
    """A copy of the row with what is asked for; `_set_next` is up to the caller. Raises what refuses it."""
    row = msgspec.structs.replace(row)
    if request.task is not UNSET:
        check_name(request.task, "the id of a task", field="task")
        row.task = request.task
    _change_times(row, request, transaction.now)
    if request.external_id is not UNSET:
        row.external_id = request.external_id
        if request.external_id is not None:
            check_name(
                request.external_id,
                "an external id",
                field="externalId",
                characters_max=EXTERNAL_ID_CHARACTERS_MAX,
            )
    if request.payload is not UNSET:
        row.payload = request.payload
        row.payload_type = None if request.payload is None else JSON_TYPE
    if request.payload_type is not UNSET and row.payload is not None:
        row.payload_type = request.payload_type or JSON_TYPE
    if request.metadata is not UNSET:
        row.metadata = None if request.metadata is None else msgspec.json.encode(request.metadata)
    if request.tags is not UNSET:
        tags = [request.tags] if isinstance(request.tags, str) else request.tags
        row.tags = msgspec.json.encode(tags).decode() if tags else None
    # Whatever a run would be refused for is refused here.
    triggering.check_item(_item(row, row.payload, row.payload_type), transaction, state)
    return row


def _change_times(row: ScheduleRow, request: UpdateScheduleRequest, now: int) -> None:
    cron = None if request.cron is UNSET else request.cron
    every = None if request.every is UNSET else request.every
    zone = None if request.timezone is UNSET else request.timezone
    before = row.cron, row.every, row.timezone
    if cron is not None and every is not None:
        raise InvalidRequestError("a schedule has either cron or every, not both", field="every")
    if cron is not None:
        row.cron, row.every = cron, None
    elif every is not None:
        row.cron, row.every = None, Every(every, now).period
    elif request.cron is None if row.cron is not None else (row.every is None or request.every is None):
        raise InvalidRequestError(
            "a schedule needs cron, such as '0 5 * * *', or every, such as '5m'", field="cron"
        )
    if row.cron is None:
        if zone is not None and zone != "UTC":
            raise InvalidRequestError(
                "every counts time and knows no time zone: leave timezone out, or use cron", field="timezone"
            )
        row.timezone = "UTC"
    elif request.timezone is not UNSET:
        row.timezone = zone or "UTC"
    if (row.cron, row.every, row.timezone) != before:
        row.anchor_at = now
        # Reckoned anew.
        row.next_at = None


def _set_next(row: ScheduleRow, now: int) -> None:
    """When it fires next, where that is not known already. Raises InvalidRequestError."""
    if not row.is_active:
        row.next_at = None
    elif row.next_at is None:
        row.next_at = timetable_of(row).next_after(now)


def _item(row: ScheduleRow, payload: str | None, payload_type: str | None) -> TriggerItem:
    options = TriggerOptions(
        payload_type=payload_type,
        metadata=None if row.metadata is None else msgspec.json.decode(row.metadata),
        tags=row.tag_list or None,
    )
    return TriggerItem(row.task, payload, options)


# --- what code declares ------------------------------------------------------------------------------------


def declare(tasks: Iterable[WorkerTask], transaction: Transaction, state: EngineState) -> None:
    """A new worker has come: its code says which of its tasks have a schedule.

    The worker that has come last decides. One that only registers anew says nothing here, so that of two versions of the code that run
    side by side the older one does not bring its own back. A schedule that was paused stays paused.
    """
    offered = {task.id: task.schedule for task in tasks}
    known = store.declared_schedules(transaction.connection, list(offered))
    if not known and not any(offered.values()):
        return
    now = transaction.now
    for task, schedule in offered.items():
        row = known.get(task)
        if schedule is None:
            if row is not None:
                store.delete_schedules(transaction.connection, [row.id])
                transaction.schedules_changed = True
            continue
        try:
            _declare(task, schedule, row, transaction, state, now)
        except InvalidRequestError as error:
            # Its worker has checked it. Perhaps this machine does not know the time zone; the worker's other tasks are not to blame.
            logger.warning("the schedule of task %r cannot be used: %s", task, error)


def _declare(
    task: str,
    schedule: TaskSchedule,
    row: ScheduleRow | None,
    transaction: Transaction,
    state: EngineState,
    now: int,
) -> None:
    every = None if schedule.every is None else Every(schedule.every, now).period
    if row is not None and (row.cron, row.every, row.timezone) == (schedule.cron, every, schedule.timezone):
        return
    changed = msgspec.structs.replace(
        row
        or ScheduleRow(
            id=state.identifiers.make("sched", now),
            task=task,
            type=ScheduleType.DECLARATIVE.value,
            anchor_at=now,
            created_at=now,
            updated_at=now,
        ),
        cron=schedule.cron,
        every=every,
        timezone=schedule.timezone,
        anchor_at=now,
        next_at=None,
    )
    _set_next(changed, now)
    if row is None:
        store.insert_schedule(transaction.connection, changed)
        transaction.schedules_changed = True
    else:
        _save(changed, transaction)


# --- firing ------------------------------------------------------------------------------------------------


def fire(transaction: Transaction, state: EngineState) -> None:
    """Trigger what is due, and find out when the next schedule fires where that has changed."""
    next_at = state.next_schedule_at
    if not transaction.schedules_changed and (next_at is None or next_at > transaction.now):
        return
    connection = transaction.connection
    triggered: list[ScheduledRun] = []
    for row in store.due_schedules(connection, now=transaction.now, limit=FIRED_MAX):
        at = row.next_at
        try:
            run = _fire(row, transaction, state)
        except SQLAlchemyError:
            raise
        except Exception as error:
            # It must not keep the others from firing, nor any command from being carried out.
            logger.exception("schedule %s of task %r cannot fire, and is paused", row.id, row.task)
            row.is_active, row.next_at = 0, None
            row.note = f"paused, because it could not fire: {error}"[:_NOTE_CHARACTERS_MAX]
            run = None
        if run is not None:
            triggered.append(run)
        elif row.note is not None:
            logger.warning(
                "schedule %s of task %r has triggered no run for %s: %s",
                row.id,
                row.task,
                _text(at or 0),
                row.note,
            )
        store.save_schedule(connection, row)
    store.insert_scheduled_runs(connection, triggered)
    transaction.next_schedule_at = store.next_time(connection)
    transaction.schedules_changed = True


def _fire(row: ScheduleRow, transaction: Transaction, state: EngineState) -> ScheduledRun | None:
    assert row.next_at is not None, "it is due"
    timetable = timetable_of(row)
    at = latest_until(timetable, row.next_at, transaction.now)
    before, row.last_at = row.last_at, at
    row.next_at = timetable.next_after(max(at, transaction.now))
    row.note = _why_not(row, transaction)
    if row.note is not None:
        return None
    payload, payload_type = row.payload, row.payload_type
    if payload is None:
        payload, payload_type = _told(row, timetable, at, before), JSON_TYPE
    try:
        row.last_run_id = triggering.trigger_scheduled(_item(row, payload, payload_type), transaction, state)
    except MilepostError as refusal:
        row.note = str(refusal)[:_NOTE_CHARACTERS_MAX]
        return None
    return ScheduledRun(row.last_run_id, row.id, at)


def _why_not(row: ScheduleRow, transaction: Transaction) -> str | None:
    """Why no run is queued now; None when one is."""
    if row.last_run_id is None or transaction.is_offered(row.task):
        return None
    last = transaction.run(row.last_run_id)
    if last is None or last.status not in (RunStatus.QUEUED, RunStatus.PENDING_VERSION):
        return None
    return f"no worker is online that offers task {row.task!r}, and run {last.id} of an earlier time waits for one already"


def _told(row: ScheduleRow, timetable: Timetable, at: int, before: int | None) -> str:
    payload = ScheduledPayload(
        timestamp=_time(at),
        timezone=row.timezone,
        schedule_id=row.id,
        type=row.type,
        external_id=row.external_id,
        last_timestamp=None if before is None else _time(before),
        upcoming=[_time(following) for following in upcoming(timetable, at, UPCOMING_SHOWN)],
    )
    return msgspec.json.encode({"type": row.type, **msgspec.to_builtins(payload)}).decode()


def follow_clock(connection: Connection, microseconds: int, *, now: int) -> None:
    """The clock was set by so much, to `now`; 0: nobody knows whether it was set since schedules have fired last."""
    if microseconds:
        store.shift_periods(connection, microseconds)
    for row in store.fired_after(
        connection, periods_after=now + CLOCKS_APART_MICROSECONDS, crons_after=now + SET_BACK_MICROSECONDS
    ):
        assert row.last_at is not None, "it has fired"
        assert row.next_at is not None, "it is active"
        try:
            if row.cron is None:
                ahead = row.last_at - now
                row.anchor_at, row.next_at, row.last_at = row.anchor_at - ahead, row.next_at - ahead, now
            else:
                row.next_at = timetable_of(row).next_after(now)
                # What it has fired for has not been.
                row.last_at = None
        except InvalidRequestError as error:
            row.is_active, row.next_at, row.note = 0, None, str(error)[:_NOTE_CHARACTERS_MAX]
        store.save_schedule(connection, row)
        logger.warning("schedule %s of task %r goes on from now: the clock was set back", row.id, row.task)


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _text(microseconds: int) -> str:
    return _time(microseconds).isoformat(timespec="seconds")
