"""Schedules: what is triggered when, and which runs that has come to."""

from collections.abc import Collection, Sequence
from enum import StrEnum

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, or_, select, update

from milepost.store.schema import scheduled_runs, schedules
from milepost.store.statements import Lookup, Row, Statement, among


class ScheduleType(StrEnum):
    """Who has made a schedule: the code of its task, or a call."""

    DECLARATIVE = "DECLARATIVE"
    IMPERATIVE = "IMPERATIVE"


class ScheduleRow(msgspec.Struct, kw_only=True):
    """One schedule; the same names as in the table. `every` is in microseconds, `tags` is a JSON list."""

    id: str
    task: str
    type: str
    cron: str | None = None
    every: int | None = None
    timezone: str = "UTC"
    anchor_at: int
    is_active: int = 1
    next_at: int | None = None
    last_at: int | None = None
    last_run_id: str | None = None
    note: str | None = None
    external_id: str | None = None
    deduplication_key: str | None = None
    payload: str | None = None
    payload_type: str | None = None
    metadata: bytes | None = None
    tags: str | None = None
    created_at: int
    updated_at: int

    @property
    def tag_list(self) -> list[str]:
        """The tags of its runs."""
        return msgspec.json.decode(self.tags, type=list[str]) if self.tags else []


class ScheduledRun(msgspec.Struct, frozen=True):
    """A run that a schedule has triggered, and the time that it was for."""

    run_id: str
    schedule_id: str
    scheduled_at: int


_NAMES = ScheduleRow.__struct_fields__
_COLUMNS = [schedules.c[name] for name in _NAMES]
_SCHEDULES = Lookup(select(*_COLUMNS), schedules.c.id)
_DECLARED = Lookup(
    select(*_COLUMNS).where(schedules.c.type == ScheduleType.DECLARATIVE.value), schedules.c.task
)
_BY_KEY = Lookup(select(*_COLUMNS), schedules.c.deduplication_key)
_NEXT = Statement(select(func.min(schedules.c.next_at)).where(schedules.c.next_at.is_not(None)), [])
_DUE = Statement(
    select(*_COLUMNS)
    .where(schedules.c.next_at <= bindparam("now"))
    .order_by(schedules.c.next_at, schedules.c.id)
    .limit(bindparam("count")),
    ["now", "count"],
)
_INSERT_RUNS = Statement(insert(scheduled_runs), ScheduledRun.__struct_fields__)
_RUNS = Lookup(
    select(*(scheduled_runs.c[name] for name in ScheduledRun.__struct_fields__)), scheduled_runs.c.run_id
)


def _row(values: Row) -> ScheduleRow:
    return ScheduleRow(**dict(zip(_NAMES, values, strict=True)))


def insert_schedule(connection: Connection, row: ScheduleRow) -> None:
    """Insert a schedule."""
    connection.execute(insert(schedules), msgspec.structs.asdict(row))


def save_schedule(connection: Connection, row: ScheduleRow) -> None:
    """Write back a schedule."""
    values = msgspec.structs.asdict(row)
    connection.execute(update(schedules).where(schedules.c.id == values.pop("id")).values(values))


def delete_schedules(connection: Connection, ids: Collection[str]) -> None:
    """Forget schedules. Which runs they have triggered stays known."""
    if ids:
        connection.execute(delete(schedules).where(among(connection, schedules.c.id, ids)))


def load_schedules(connection: Connection, ids: Collection[str]) -> dict[str, ScheduleRow]:
    """The schedules that exist, by id."""
    return {values[0]: _row(values) for values in _SCHEDULES.read(connection, ids)}


def declared_schedules(connection: Connection, tasks: Collection[str]) -> dict[str, ScheduleRow]:
    """The schedules that the code of these tasks declares, by task."""
    rows = [_row(values) for values in _DECLARED.read(connection, tasks)]
    return {row.task: row for row in rows}


def schedule_with_key(connection: Connection, deduplication_key: str) -> ScheduleRow | None:
    """The schedule with this deduplication key."""
    return next(iter([_row(values) for values in _BY_KEY.read(connection, [deduplication_key])]), None)


def next_time(connection: Connection) -> int | None:
    """When the next schedule fires; None when none will."""
    [(found,)] = _NEXT.read(connection, ())
    return found


def due_schedules(connection: Connection, *, now: int, limit: int) -> list[ScheduleRow]:
    """Up to `limit` schedules that should have fired by now, those first that are overdue longest."""
    return [_row(values) for values in _DUE.read(connection, (now, limit))]


def list_schedules(
    connection: Connection, *, limit: int, offset: int, task: str | None = None
) -> tuple[list[ScheduleRow], int]:
    """A page of schedules, newest first, and how many there are in all."""
    condition = [] if task is None else [schedules.c.task == task]
    statement = select(*_COLUMNS).where(*condition).order_by(schedules.c.id.desc())
    rows = [_row(tuple(values)) for values in connection.execute(statement.limit(limit).offset(offset))]
    count = connection.execute(select(func.count()).select_from(schedules).where(*condition)).scalar_one()
    return rows, count


def shift_periods(connection: Connection, microseconds: int) -> None:
    """Move all schedules that count time along with a clock that was set by that much."""
    connection.execute(
        update(schedules)
        .where(schedules.c.every.is_not(None))
        .values(
            anchor_at=schedules.c.anchor_at + microseconds,
            next_at=schedules.c.next_at + microseconds,
            last_at=schedules.c.last_at + microseconds,
        )
    )


def fired_after(connection: Connection, *, periods_after: int, crons_after: int) -> list[ScheduleRow]:
    """Active schedules that have fired for a time after these: the clock was set back since."""
    statement = select(*_COLUMNS).where(
        schedules.c.next_at.is_not(None),
        or_(
            and_(schedules.c.every.is_not(None), schedules.c.last_at > periods_after),
            and_(schedules.c.cron.is_not(None), schedules.c.last_at > crons_after),
        ),
    )
    return [_row(tuple(values)) for values in connection.execute(statement)]


def insert_scheduled_runs(connection: Connection, rows: Sequence[ScheduledRun]) -> None:
    """Note which runs schedules have triggered."""
    _INSERT_RUNS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_scheduled_runs(connection: Connection, run_ids: Collection[str]) -> dict[str, ScheduledRun]:
    """Those of these runs that a schedule has triggered."""
    return {values[0]: ScheduledRun(*values) for values in _RUNS.read(connection, run_ids)}
