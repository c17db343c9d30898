"""Runs: insert, load, save, find the due ones, list, count."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, product
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Executable,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    union,
    union_all,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from milepost.model.filters import MetadataFilter
from milepost.model.run import HELD_STATUSES, RunStatus
from milepost.model.scopes import RunScope
from milepost.store.key_places import KeyPlace
from milepost.store.run_counts import ALL, load_counts
from milepost.store.schema import COMMON, RARE, batch_members, large_values, run_tags, runs, scheduled_runs
from milepost.store.statements import Lookup, Row, Statement, among, padded

# A payload, output or trigger document above this many characters moves to `large_values`.
INLINE_CHARACTERS = 8192
LARGE_NAMES = ("payload", "output", "trigger_metadata")
# Of how many runs large values are read at once, where it is not known how large they are: at first, and at most.
LARGE_AT_ONCE = 4
LARGE_AT_ONCE_MAX = 64
# Tasks and queues in one statement; a power of two. SQLite joins at most 500 selects into one.
DUE_PLACES = 256


class RunRow(msgspec.Struct, gc=False):
    """The columns that commands read and change; the same names as in the table."""

    id: str
    task: str
    queue: str
    status: RunStatus
    due_at: int
    created_at: int
    updated_at: int
    root_id: str
    trigger_function: str
    depth: int = 0
    parent_id: str | None = None
    batch_id: str | None = None
    attempt: int = 0
    charged: int = 0
    max_attempts: int | None = None
    worker_id: str | None = None
    claim_sequence: int | None = None
    claimed_at: int | None = None
    begun_at: int | None = None
    is_apart: int = 0
    resuming_at: int | None = None
    report_sequence: int = 0
    report_checksum: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    aged_from: int | None = None
    metadata_version: int = 0
    metadata_unindexed: int = 0
    large: str | None = None
    concurrency_key: str | None = None
    expires_at: int | None = None
    cancel_asked_at: int | None = None
    cancels_children: int | None = None
    options: str | None = None
    parent_attempt: int | None = None
    is_shared: int = 0
    closing: str | None = None
    reckoned_at: int | None = None

    @property
    def ended_at(self) -> int | None:
        """When it has finished, by the clock that is never set back; None while it goes on."""
        return self.finished_at if self.aged_from is None else self.aged_from

    @property
    def is_held(self) -> bool:
        """True while a worker holds the run."""
        return self.status in HELD_STATUSES


class NewRun(msgspec.Struct, kw_only=True, gc=False):
    """A run to be inserted: QUEUED, DELAYED or PENDING_VERSION."""

    id: str
    task: str
    queue: str
    max_attempts: int | None = None
    due_at: int
    created_at: int
    parent_id: str | None = None
    root_id: str
    batch_id: str | None = None
    batch_index: int | None = None
    depth: int = 0
    trigger_function: str
    tags: list[str] = []
    payload: str | None = None
    payload_type: str | None = None
    trigger_metadata: bytes | None = None
    status: RunStatus = RunStatus.QUEUED
    concurrency_key: str | None = None
    expires_at: int | None = None
    is_due_at_given: int | None = None
    options: str | None = None
    parent_attempt: int | None = None


class RunRecord(msgspec.Struct, gc=False):
    """A whole run as readers want it, without its document."""

    row: RunRow
    tags: list[str]
    payload: str | None
    payload_type: str | None
    output: str | None
    error: str | None
    trigger_metadata: bytes | None


class GivenDocument(msgspec.Struct, frozen=True, gc=False):
    """The document that a run was triggered with. `has_moved`: it is in `large_values`. `is_written`: it may have changed since."""

    value: bytes | None
    has_moved: bool
    is_written: bool


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs a list holds; everything given must match, within one field any.

    `top_level`: only runs without a parent (True), or only children (False). `shown`: only runs that a token shows. `all_tags`: runs
    with every one of these, beside any of `tags`.
    """

    statuses: tuple[RunStatus, ...] = ()
    tasks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    batch_id: str | None = None
    queues: tuple[str, ...] = ()
    parent_id: str | None = None
    root_id: str | None = None
    top_level: bool | None = None
    created_from: int | None = None
    created_to: int | None = None
    metadata: MetadataFilter | None = None
    shown: RunScope | None = None
    all_tags: tuple[str, ...] = ()
    schedule_id: str | None = None


_ROW = [runs.c[name] for name in RunRow.__struct_fields__]
_RECORD = [
    *_ROW,
    runs.c.tags,
    runs.c.payload,
    runs.c.payload_type,
    runs.c.output,
    runs.c.error,
    runs.c.trigger_metadata,
]
_SUMMARY = [
    *_ROW,
    runs.c.tags,
    null(),
    runs.c.payload_type,
    null(),
    runs.c.error,
    null(),
]


def _literal(status: RunStatus) -> ColumnElement[str]:
    # The partial indexes have these conditions: see `Statement`.
    return literal_column(f"'{status}'")


_HELD = runs.c.status.in_([_literal(status) for status in sorted(HELD_STATUSES)])
_EXECUTING = runs.c.status == _literal(RunStatus.EXECUTING)
_QUEUED = runs.c.status == _literal(RunStatus.QUEUED)
_BESIDE = and_(_QUEUED, runs.c.is_apart == literal_column("0"))
_DUE = and_(_BESIDE, runs.c.concurrency_key.is_(None))
_DUE_BY_KEY = and_(_BESIDE, runs.c.concurrency_key.is_not(None))
_APART = and_(_QUEUED, runs.c.is_apart == literal_column("1"))
_DELAYED = runs.c.status == _literal(RunStatus.DELAYED)
# Delayed by a pause, and not to a time that somebody has named.
_PAUSED = and_(_DELAYED, runs.c.is_due_at_given.is_(None))
_PENDING = runs.c.status == _literal(RunStatus.PENDING_VERSION)
_CANCELLING = runs.c.cancels_children == literal_column("1")
# Without a type: as a boolean it would be compared with 1, and then the index is not found by it.
_RARE: ColumnElement[Any] = literal_column(RARE.replace("status", "runs.status"))
_ALL_QUEUED = (_DUE, _DUE_BY_KEY, _APART)

_INSERT_NAMES = (
    "id",
    "task",
    "queue",
    "status",
    "attempt",
    "max_attempts",
    "report_sequence",
    "due_at",
    "created_at",
    "updated_at",
    "parent_id",
    "root_id",
    "batch_id",
    "batch_index",
    "depth",
    "trigger_function",
    "tags",
    "payload",
    "payload_type",
    "trigger_metadata",
    "metadata_version",
    "metadata_unindexed",
    "large",
    "concurrency_key",
    "expires_at",
    "is_due_at_given",
    "options",
    "parent_attempt",
)
_STATE_NAMES = (
    "status",
    "attempt",
    "charged",
    "worker_id",
    "claim_sequence",
    "claimed_at",
    "begun_at",
    "is_apart",
    "resuming_at",
    "report_sequence",
    "report_checksum",
    "due_at",
    "updated_at",
    "started_at",
    "finished_at",
    "aged_from",
    "metadata_version",
    "metadata_unindexed",
    "expires_at",
    "cancel_asked_at",
    "cancels_children",
    "closing",
    "reckoned_at",
)
_RESULT_NAMES = (*_STATE_NAMES, "output", "error", "large")
# SQLite looks at each index with a column that is set, whether it changes or not: what most runs go through sets only what it changes.
# No index has one of the first, so that most reports write one page of the table and no other.
_REPORT_NAMES = (
    "begun_at",
    "report_sequence",
    "report_checksum",
    "updated_at",
    "reckoned_at",
    "metadata_version",
)
_CLAIM_NAMES = (
    "status",
    "attempt",
    "worker_id",
    "claim_sequence",
    "claimed_at",
    "begun_at",
    "report_sequence",
    "updated_at",
    "reckoned_at",
    "started_at",
)
_COMPLETION_NAMES = (
    "status",
    "begun_at",
    "is_apart",
    "report_sequence",
    "report_checksum",
    "updated_at",
    "reckoned_at",
    "finished_at",
    "aged_from",
    "metadata_version",
    "output",
    "error",
    "large",
)
_PLACE_NAMES = ("status", "queue", "due_at", "expires_at", "updated_at", "reckoned_at")
# The first one, the status, is written as its text.
_STATE_BUT_STATUS = attrgetter(*_STATE_NAMES[1:])
_CLAIM_BUT_STATUS = attrgetter(*_CLAIM_NAMES[1:], "id")
_PLACE_BUT_STATUS = attrgetter(*_PLACE_NAMES[1:], "id")
_COMPLETION_BUT_STATUS = attrgetter(*_COMPLETION_NAMES[1:-3])
_REPORT_VALUES = attrgetter(*_REPORT_NAMES, "id")


def _update(names: Sequence[str]) -> Statement:
    values = {name: bindparam(f"new_{name}", type_=runs.c[name].type) for name in names}
    statement = update(runs).where(runs.c.id == bindparam("run", type_=runs.c.id.type)).values(values)
    return Statement(statement, [*(f"new_{name}" for name in names), "run"], key=["run"])


_INSERT = Statement(insert(runs), _INSERT_NAMES)
_SAVE = _update(_STATE_NAMES)
_SAVE_RESULT = _update(_RESULT_NAMES)
_SAVE_COMPLETION = _update(_COMPLETION_NAMES)
_SAVE_CLAIM = _update(_CLAIM_NAMES)
_SAVE_REPORT = _update(_REPORT_NAMES)
_SAVE_PLACE = _update(_PLACE_NAMES)
_INSERT_LARGE = Statement(insert(large_values), ("run_id", "name", "value"))
_INSERT_TAGS = Statement(insert(run_tags), ("tag", "run_id"))
_ROWS = Lookup(select(*_ROW), runs.c.id)
_RECORDS = Lookup(select(*_RECORD), runs.c.id)
_SUMMARIES = Lookup(select(*_SUMMARY), runs.c.id)
_GIVEN_DOCUMENTS = Lookup(
    select(runs.c.id, runs.c.trigger_metadata, runs.c.large, runs.c.metadata_version), runs.c.id
)
_TRIGGER_METADATA = Lookup(select(runs.c.id, runs.c.trigger_metadata, runs.c.large), runs.c.id)


# Looking a member up costs less than calling the enumeration.
_STATUSES: dict[str, RunStatus] = {status.value: status for status in RunStatus}
_STATUS_TEXT: dict[RunStatus, str] = {status: status.value for status in RunStatus}


def _row(values: Sequence[Any]) -> RunRow:
    row = RunRow(*values[: len(_ROW)])
    row.status = _STATUSES[values[3]]
    return row


def _pairs(connection: Connection, statement: Executable) -> dict[Any, Any]:
    return {values[0]: values[1] for values in connection.execute(statement)}


def insert_runs(connection: Connection, new: Sequence[NewRun]) -> None:
    """Insert runs, with their tags."""
    rows: list[Row] = []
    large: list[Row] = []
    tagged: list[Row] = []
    for run in new:
        payload, metadata = run.payload, run.trigger_metadata
        moved: list[str] = []
        if payload is not None and len(payload) > INLINE_CHARACTERS:
            large.append((run.id, "payload", payload))
            moved.append("payload")
            payload = None
        if metadata is not None and len(metadata) > INLINE_CHARACTERS:
            large.append((run.id, "trigger_metadata", metadata.decode()))
            moved.append("trigger_metadata")
            metadata = None
        if run.tags:
            tagged.extend((tag, run.id) for tag in run.tags)
        rows.append(
            (
                run.id,
                run.task,
                run.queue,
                _STATUS_TEXT[run.status],
                0,
                run.max_attempts,
                0,
                run.due_at,
                run.created_at,
                run.created_at,
                run.parent_id,
                run.root_id,
                run.batch_id,
                run.batch_index,
                run.depth,
                run.trigger_function,
                msgspec.json.encode(run.tags).decode() if run.tags else None,
                payload,
                run.payload_type,
                metadata,
                0,
                is_unindexed(run.trigger_metadata),
                ",".join(moved) or None,
                run.concurrency_key,
                run.expires_at,
                run.is_due_at_given,
                run.options,
                run.parent_attempt,
            )
        )
    _INSERT.write(connection, rows)
    _INSERT_LARGE.write(connection, large)
    _INSERT_TAGS.write(connection, tagged)


def is_unindexed(trigger_metadata: bytes | None) -> int:
    """1 for a document that will have rows in the search index; an empty one has none."""
    return int(trigger_metadata not in (None, b"{}"))


def load_rows(connection: Connection, ids: Iterable[str]) -> dict[str, RunRow]:
    """The rows that exist, by id."""
    return {values[0]: _row(values) for values in _ROWS.read(connection, sorted(set(ids)))}


def save_rows(connection: Connection, rows: Iterable[RunRow]) -> None:
    """Write back what commands may change."""
    _SAVE.write(connection, [(_STATUS_TEXT[row.status], *_STATE_BUT_STATUS(row), row.id) for row in rows])


def save_reports(connection: Connection, rows: Iterable[RunRow]) -> None:
    """Write back which report was applied last, for rows of which nothing else has changed."""
    _SAVE_REPORT.write(connection, [_REPORT_VALUES(row) for row in rows])


def save_claims(connection: Connection, rows: Iterable[RunRow]) -> None:
    """Write back rows that were claimed, of which nothing else has changed."""
    _SAVE_CLAIM.write(connection, [(_STATUS_TEXT[row.status], *_CLAIM_BUT_STATUS(row)) for row in rows])


def save_places(connection: Connection, rows: Iterable[RunRow]) -> None:
    """Write back rows that were queued, or are delayed to another time, of which nothing else has changed."""
    _SAVE_PLACE.write(connection, [(_STATUS_TEXT[row.status], *_PLACE_BUT_STATUS(row)) for row in rows])


def save_completions(
    connection: Connection, results: Iterable[tuple[RunRow, str | None, str | None]]
) -> None:
    """Write back rows of runs that completed, of which nothing else has changed: (row, output, error), as of `save_results`."""
    _save_results(connection, _SAVE_COMPLETION, _COMPLETION_BUT_STATUS, results)


def save_results(connection: Connection, results: Iterable[tuple[RunRow, str | None, str | None]]) -> None:
    """Write back rows of attempts that ended, with output and error (JSON texts): (row, output, error)."""
    _save_results(connection, _SAVE_RESULT, _STATE_BUT_STATUS, results)


def _save_results(
    connection: Connection,
    statement: Statement,
    but_status: Callable[[RunRow], Row],
    results: Iterable[tuple[RunRow, str | None, str | None]],
) -> None:
    values: list[Row] = []
    large: list[Row] = []
    for row, output, error in results:
        if output is not None and len(output) > INLINE_CHARACTERS:
            # Only a completed run has an output, and it completes once: there is nothing to overwrite.
            large.append((row.id, "output", output))
            row.large = "output" if row.large is None else f"{row.large},output"
            output = None
        values.append((_STATUS_TEXT[row.status], *but_status(row), output, error, row.large, row.id))
    statement.write(connection, values)
    _INSERT_LARGE.write(connection, large)


def due_ids(
    connection: Connection, places: Sequence[tuple[str, str]], *, limit: int, now: int
) -> list[tuple[int, str, str]]:
    """(due_at, id, queue) of due runs without a concurrency key, oldest first: up to `limit` of each place, a task and a queue.

    One look into the index per place, however many runs are queued there or elsewhere.
    """
    found: list[tuple[int, str, str]] = []
    for start in range(0, len(places), DUE_PLACES):
        chunk = padded(tuple(places[start : start + DUE_PLACES]), ("", ""))
        statement = _due_statement(len(chunk))
        found += statement.read(connection, (now, limit, *chain.from_iterable(chunk)))  # pyright: ignore[reportArgumentType]
    found.sort()
    return found


@cache
def _due_statement(place_count: int) -> Statement:
    names = [(f"task_{number}", f"queue_{number}") for number in range(place_count)]
    parts = [
        select(runs.c.due_at, runs.c.id, runs.c.queue)
        .where(
            _DUE,
            runs.c.task == bindparam(task),
            runs.c.queue == bindparam(queue),
            runs.c.due_at <= bindparam("now"),
        )
        .order_by(runs.c.due_at, runs.c.id)
        .limit(bindparam("count", type_=Integer))
        .subquery()
        for task, queue in names
    ]
    rows = union_all(*(select(part) for part in parts)).subquery()
    return Statement(
        select(rows.c.due_at, rows.c.id, rows.c.queue), ["now", "count", *chain.from_iterable(names)]
    )


def first_of_keys(
    connection: Connection, places: Sequence[KeyPlace], *, limit: int
) -> dict[KeyPlace, list[tuple[int, str]]]:
    """(due_at, id) of the first queued runs of each place, whether they are due yet or not: up to `limit`."""
    found: dict[KeyPlace, list[tuple[int, str]]] = {place: [] for place in places}
    for start in range(0, len(places), DUE_PLACES):
        chunk = places[start : start + DUE_PLACES]
        given = padded(tuple((place.task, place.queue, place.key) for place in chunk), ("", "", ""))
        statement = _first_of_keys_statement(len(given))
        for number, due_at, run_id in statement.read(connection, (limit, *chain.from_iterable(given))):  # pyright: ignore[reportArgumentType]
            found[chunk[int(number)]].append((due_at, run_id))
    for runs_of_place in found.values():
        runs_of_place.sort()
    return found


@cache
def _first_of_keys_statement(place_count: int) -> Statement:
    names = [(f"task_{number}", f"queue_{number}", f"key_{number}") for number in range(place_count)]
    parts = [
        select(literal_column(str(number), Integer).label("place"), runs.c.due_at, runs.c.id)
        .where(
            _DUE_BY_KEY,
            runs.c.task == bindparam(task),
            runs.c.queue == bindparam(queue),
            runs.c.concurrency_key == bindparam(key),
        )
        .order_by(runs.c.due_at, runs.c.id)
        .limit(bindparam("count", type_=Integer))
        .subquery()
        for number, (task, queue, key) in enumerate(names)
    ]
    rows = union_all(*(select(part) for part in parts)).subquery()
    return Statement(select(rows.c.place, rows.c.due_at, rows.c.id), ["count", *chain.from_iterable(names)])


def queued_places(connection: Connection) -> list[tuple[str, str]]:
    """Each task and queue with a queued run that has no concurrency key and need not execute apart."""
    found = connection.execute(select(runs.c.task, runs.c.queue).where(_DUE).distinct())
    return [(task, queue) for task, queue in found]


def has_queued(connection: Connection, task: str, queue: str) -> bool:
    """Whether a run of this task is queued in this queue that has no concurrency key and need not execute apart."""
    return bool(_HAS_QUEUED.read(connection, (task, queue)))


_HAS_QUEUED = Statement(
    select(runs.c.id)
    .where(_DUE, runs.c.task == bindparam("of_task"), runs.c.queue == bindparam("in_queue"))
    .limit(literal_column("1")),
    ["of_task", "in_queue"],
)


def apart_due(
    connection: Connection, tasks: Collection[str], *, now: int
) -> list[tuple[str, str, str | None, int]]:
    """(id, queue, concurrency key, due_at) of the due runs of these tasks that have to execute apart, oldest first. They are few."""
    found = connection.execute(
        select(runs.c.id, runs.c.queue, runs.c.concurrency_key, runs.c.due_at, runs.c.task)
        .where(_APART, runs.c.due_at <= now)
        .order_by(runs.c.due_at, runs.c.id)
    )
    return [(run_id, queue, key, due_at) for run_id, queue, key, due_at, task in found if task in tasks]


def apart_tasks(connection: Connection, *, now: int) -> list[str]:
    """The tasks of due runs that have to execute apart."""
    return list(
        connection.execute(select(runs.c.task).where(_APART, runs.c.due_at <= now).distinct()).scalars()
    )


def has_apart(connection: Connection) -> bool:
    """Whether any queued run has to execute apart."""
    return bool(connection.execute(select(exists().where(_APART))).scalar())


def next_due_at_after(connection: Connection, after: int, places: Sequence[tuple[str, str]]) -> int | None:
    """When the next queued run becomes due that is not due at `after` yet, of these tasks and queues; None when there is none.

    One look into the index per place, however many runs are queued.
    """
    apart = select(func.min(runs.c.due_at)).where(_APART, runs.c.due_at > after)
    found: list[int] = [due_at for due_at in connection.execute(apart).scalars() if due_at is not None]
    for start in range(0, len(places), DUE_PLACES):
        chunk = padded(tuple(places[start : start + DUE_PLACES]), ("", ""))
        rows = _next_due_statement(len(chunk)).read(connection, (after, *chain.from_iterable(chunk)))
        found += [due_at for (due_at,) in rows]
    return min(found, default=None)


@cache
def _next_due_statement(place_count: int) -> Statement:
    names = [(f"task_{number}", f"queue_{number}") for number in range(place_count)]
    parts = [
        select(runs.c.due_at)
        .where(
            _DUE,
            runs.c.task == bindparam(task),
            runs.c.queue == bindparam(queue),
            runs.c.due_at > bindparam("after"),
        )
        .order_by(runs.c.due_at)
        .limit(literal_column("1"))
        .subquery()
        for task, queue in names
    ]
    rows = union_all(*(select(part) for part in parts)).subquery()
    return Statement(select(rows.c.due_at), ["after", *chain.from_iterable(names)])


def shift_due(connection: Connection, microseconds: int, *, now: int) -> None:
    """Move the time at which each queued or delayed run becomes due: the clock was set by that much, to `now`.

    What is due already stays so where it was set forward, and stays in its order where it was set back. Times that somebody has named
    stay; the time to live of a run moves along.
    """
    moved = runs.c.expires_at + microseconds
    connection.execute(update(runs).where(runs.c.expires_at.is_not(None)).values(expires_at=moved))
    for queued in (*_ALL_QUEUED, _PAUSED):
        statement = update(runs).where(
            queued, runs.c.due_at > (now - microseconds if microseconds > 0 else 0)
        )
        # By these `newest_of_delayed` sees by which clock the time was reckoned.
        is_ahead = runs.c.updated_at >= now
        touched = case((is_ahead, runs.c.updated_at + 1), else_=now)
        reckoned = case((is_ahead, now), else_=None)
        due_at = runs.c.due_at + microseconds
        connection.execute(statement.values(due_at=due_at, updated_at=touched, reckoned_at=reckoned))


def newest_of_delayed(connection: Connection, now: int) -> int | None:
    """When the newest of the queued and delayed runs that are not due yet was queued; None when there is none."""
    reckoned_at = func.max(func.coalesce(runs.c.reckoned_at, runs.c.updated_at))
    newest = [
        connection.execute(select(reckoned_at).where(queued, runs.c.due_at > now)).scalar()
        for queued in (*_ALL_QUEUED, _PAUSED)
    ]
    return max((at for at in newest if at is not None), default=None)


def delayed_due(connection: Connection, *, now: int, limit: int) -> list[str]:
    """Up to `limit` runs whose delay is over, those first for which it was over first."""
    statement = select(runs.c.id).where(_DELAYED, runs.c.due_at <= now).order_by(runs.c.due_at, runs.c.id)
    return list(connection.execute(statement.limit(limit)).scalars())


def pending_ids(connection: Connection, task: str, *, limit: int) -> list[str]:
    """Up to `limit` runs of a task that nobody had offered, oldest first."""
    statement = select(runs.c.id).where(_PENDING, runs.c.task == task).order_by(runs.c.id)
    return list(connection.execute(statement.limit(limit)).scalars())


def pending_tasks(connection: Connection) -> list[str]:
    """Every task of which a run waits until somebody offers it."""
    return list(connection.execute(select(runs.c.task).where(_PENDING).distinct()).scalars())


def expired_ids(connection: Connection, *, now: int, limit: int) -> list[str]:
    """Up to `limit` runs whose time to live is over."""
    statement = select(runs.c.id).where(runs.c.expires_at <= now).order_by(runs.c.expires_at, runs.c.id)
    return list(connection.execute(statement.limit(limit)).scalars())


def cancelling_ids(connection: Connection, *, limit: int) -> list[str]:
    """Up to `limit` runs whose children are to be cancelled."""
    return list(
        connection.execute(select(runs.c.id).where(_CANCELLING).order_by(runs.c.id).limit(limit)).scalars()
    )


def unfinished_children(connection: Connection, parent_id: str, *, limit: int) -> list[str]:
    """Up to `limit` children of a run that have not ended and were not asked to."""
    statement = (
        select(runs.c.id)
        .where(runs.c.parent_id == parent_id, runs.c.finished_at.is_(None), runs.c.cancel_asked_at.is_(None))
        .order_by(runs.c.id)
    )
    return list(connection.execute(statement.limit(limit)).scalars())


def asked_and_held(connection: Connection) -> list[str]:
    """Every run that was asked to end and that a worker holds still."""
    return list(
        connection.execute(select(runs.c.id).where(_HELD, runs.c.cancel_asked_at.is_not(None))).scalars()
    )


def next_step_after(connection: Connection, after: int) -> int | None:
    """When the next delay is over, or the next time to live, that is not at `after`; None when there is none."""
    times = [
        connection.execute(select(func.min(runs.c.due_at)).where(_DELAYED, runs.c.due_at > after)).scalar(),
        connection.execute(select(func.min(runs.c.expires_at)).where(runs.c.expires_at > after)).scalar(),
    ]
    return min((at for at in times if at is not None), default=None)


def change_due(connection: Connection, run_id: str, *, due_at: int, is_given: int | None) -> None:
    """A delayed run is delayed to another time."""
    statement = update(runs).where(runs.c.id == run_id)
    connection.execute(statement.values(due_at=due_at, is_due_at_given=is_given))


def change_payload(
    connection: Connection, row: RunRow, payload: str | None, payload_type: str | None
) -> None:
    """A run that no worker has taken yet has this payload now."""
    moved = [] if row.large is None else [name for name in row.large.split(",") if name != "payload"]
    connection.execute(
        delete(large_values).where(large_values.c.run_id == row.id, large_values.c.name == "payload")
    )
    if payload is not None and len(payload) > INLINE_CHARACTERS:
        _INSERT_LARGE.write(connection, [(row.id, "payload", payload)])
        moved.append("payload")
        payload = None
    row.large = ",".join(moved) or None
    values = {"payload": payload, "payload_type": payload_type, "large": row.large}
    connection.execute(update(runs).where(runs.c.id == row.id).values(values))


def load_tags(connection: Connection, run_id: str) -> list[str]:
    """The tags of a run."""
    tags = connection.execute(select(runs.c.tags).where(runs.c.id == run_id)).scalar()
    return msgspec.json.decode(tags, type=list[str]) if tags else []


def add_tags(connection: Connection, run_id: str, tags: Sequence[str], new: Sequence[str]) -> None:
    """A run has these tags now, of which the `new` ones it did not have."""
    encoded = msgspec.json.encode(tags).decode()
    connection.execute(update(runs).where(runs.c.id == run_id).values(tags=encoded))
    _INSERT_TAGS.write(connection, [(tag, run_id) for tag in new])


def newest_time(connection: Connection) -> int | None:
    """When the newest run was triggered; None when there is none."""
    newest = select(runs.c.created_at).order_by(runs.c.id.desc()).limit(1)
    return connection.execute(newest).scalar()


def count_held(connection: Connection, queue: str) -> list[tuple[str | None, int, int]]:
    """How many runs of a queue execute, and how many waiting ones would go on, by concurrency key."""
    executing = func.sum(case((_EXECUTING, 1), else_=0))
    resuming = func.sum(case((runs.c.resuming_at.is_not(None), 1), else_=0))
    statement = (
        select(runs.c.concurrency_key, executing, resuming)
        .where(_HELD, runs.c.queue == queue)
        .group_by(runs.c.concurrency_key)
    )
    return [(key, int(first), int(second)) for key, first, second in connection.execute(statement)]


def resuming_ids(connection: Connection, queue: str, key: str | None, *, limit: int | None) -> list[str]:
    """The waiting runs of a queue and a concurrency key (None: without one) that would go on, those first that have wanted it
    longest."""
    of_key = runs.c.concurrency_key.is_(None) if key is None else runs.c.concurrency_key == key
    statement = (
        select(runs.c.id)
        .where(runs.c.resuming_at.is_not(None), runs.c.queue == queue, of_key)
        .order_by(runs.c.resuming_at, runs.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def held_ids(connection: Connection, worker_id: str, *, claim: int | None = None) -> list[str]:
    """The runs that a worker holds; `claim`: those that this claim of it has brought."""
    statement = select(runs.c.id).where(_HELD, runs.c.worker_id == worker_id)
    if claim is not None:
        statement = statement.where(runs.c.claim_sequence == claim)
    return list(connection.execute(statement.order_by(runs.c.due_at, runs.c.id)).scalars())


def holds_any(connection: Connection, worker_id: str) -> bool:
    """Whether a worker holds a run."""
    return bool(connection.execute(select(exists().where(_HELD, runs.c.worker_id == worker_id))).scalar())


def holders(connection: Connection) -> list[str]:
    """Every worker that holds a run."""
    return [
        worker
        for worker in connection.execute(select(runs.c.worker_id).where(_HELD).distinct()).scalars()
        if worker
    ]


def load_trigger_metadata(connection: Connection, ids: Sequence[str]) -> dict[str, bytes | None]:
    """The documents given at trigger, by run."""
    found: dict[str, bytes | None] = {}
    moved: list[str] = []
    for run_id, metadata, large in _TRIGGER_METADATA.read(connection, ids):
        found[run_id] = metadata
        if _has_moved("trigger_metadata", large):
            moved.append(run_id)
    for run_id, value in load_large(connection, moved, "trigger_metadata").items() if moved else ():
        found[run_id] = value.encode()
    return found


def load_given_documents(connection: Connection, ids: Sequence[str]) -> dict[str, GivenDocument]:
    """The documents given at trigger, of the runs that exist; large ones are left where they are."""
    return {
        run_id: GivenDocument(value, _has_moved("trigger_metadata", large), bool(written))
        for run_id, value, large, written in _GIVEN_DOCUMENTS.read(connection, ids)
    }


def _has_moved(name: str, large: str | None) -> bool:
    return large is not None and name in large.split(",")


def load_large(connection: Connection, ids: Sequence[str], name: str) -> dict[str, str]:
    """Large values of one name, by run."""
    statement = select(large_values.c.run_id, large_values.c.value).where(
        large_values.c.name == name, among(connection, large_values.c.run_id, ids)
    )
    return _pairs(connection, statement)


def load_records(
    connection: Connection,
    ids: Sequence[str],
    *,
    values: bool,
    large: Collection[str] = LARGE_NAMES,
    characters_max: int | None = None,
) -> dict[str, RunRecord]:
    """Whole runs by id; payload, output and trigger document only with `values`, a large trigger document only where it is the present
    one.

    Args:
        large: which of the three are read where they are large.
        characters_max: with it the first runs in the order of `ids` whose large values come to about so many characters; the others
            are left out. One run at least is there.
    """
    lookup = _RECORDS if values else _SUMMARIES
    records = {found[0]: _record(found) for found in lookup.read(connection, ids)}
    if not values:
        return records
    if characters_max is None:
        _fill_in_large(connection, records, large)
        return records
    return _fitting(connection, [records[id] for id in ids if id in records], large, characters_max)


def due_records(
    connection: Connection, task: str, queue: str, *, limit: int, now: int, characters_max: int
) -> list[RunRecord]:
    """The due runs of one task in one queue, oldest first, whole: one reading, where `due_ids` and `load_records` take two.

    Args:
        characters_max: as of `load_records`.
    """
    found = _DUE_RECORDS.read(connection, (task, queue, now, limit))
    records = [_record(values) for values in found]
    return list(_fitting(connection, records, LARGE_NAMES, characters_max).values())


def _fitting(
    connection: Connection, records: Sequence[RunRecord], large: Collection[str], characters_max: int
) -> dict[str, RunRecord]:
    """The first of these whose large values come to about so many characters, one at least, with these values.

    They are read in portions that grow while they are small, so that little is read in vain.
    """
    places = [place for place, record in enumerate(records) if record.row.large is not None]
    end, done, at_once, characters, largest = len(records), 0, LARGE_AT_ONCE, 0, 1
    while done < len(places):
        portion = places[done : done + at_once]
        _fill_in_large(connection, {records[place].row.id: records[place] for place in portion}, large)
        for place in portion:
            if characters >= characters_max:
                break
            size = _characters(records[place])
            characters, largest, done = characters + size, max(largest, size), done + 1
        if characters >= characters_max:
            end = places[done] if done < len(places) else end
            break
        at_once = min(2 * at_once, LARGE_AT_ONCE_MAX, max(1, (characters_max - characters) // largest))
    return {record.row.id: record for record in records[:end]}


def _characters(record: RunRecord) -> int:
    return sum(len(value) for value in (record.payload, record.output, record.trigger_metadata) if value)


_DUE_RECORDS = Statement(
    select(*_RECORD)
    .where(
        _DUE,
        runs.c.task == bindparam("of_task"),
        runs.c.queue == bindparam("in_queue"),
        runs.c.due_at <= bindparam("now"),
    )
    .order_by(runs.c.due_at, runs.c.id)
    .limit(bindparam("count", type_=Integer)),
    ["of_task", "in_queue", "now", "count"],
)


def _fill_in_large(
    connection: Connection, records: dict[str, RunRecord], large: Collection[str] = LARGE_NAMES
) -> None:
    """Read what has moved to `large_values`, but a trigger document only where it is the present one."""
    moved = {record.row.id: record for record in records.values() if record.row.large is not None}
    if not moved:
        return
    for name in ("payload", "output"):
        if name not in large:
            continue
        ids = [run_id for run_id, record in moved.items() if _has_moved(name, record.row.large)]
        for run_id, value in load_large(connection, ids, name).items() if ids else ():
            setattr(records[run_id], name, value)
    if "trigger_metadata" not in large:
        return
    given = [
        run_id
        for run_id, record in moved.items()
        if _has_moved("trigger_metadata", record.row.large) and not record.row.metadata_version
    ]
    for run_id, value in load_large(connection, given, "trigger_metadata").items() if given else ():
        records[run_id].trigger_metadata = value.encode()


def _record(values: Sequence[Any]) -> RunRecord:
    tags, payload, payload_type, output, error, trigger_metadata = values[len(_ROW) :]
    return RunRecord(
        row=_row(values),
        tags=msgspec.json.decode(tags, type=list[str]) if tags else [],
        payload=payload,
        payload_type=payload_type,
        output=output,
        error=error,
        trigger_metadata=trigger_metadata,
    )


def list_ids(
    connection: Connection,
    filter: RunFilter,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
) -> list[str]:
    """Ids of up to `limit` matching runs, newest first. Ids grow with time, so an id is the cursor: `after` gives older runs,
    `before` newer ones (the ones nearest to it). The filter's `metadata` is not looked at."""
    found: set[str] = set()
    for id, statement in _ways(filter):
        if before is not None:
            statement = statement.where(id > before).order_by(id)
        elif after is not None:
            statement = statement.where(id < after).order_by(id.desc())
        else:
            statement = statement.order_by(id.desc())
        found.update(connection.execute(statement.limit(limit)).scalars().all())
    ids = sorted(found, reverse=True)
    return ids[-limit:] if before is not None else ids[:limit]


def _ways(filter: RunFilter) -> Iterator[tuple[ColumnElement[str], Select[str]]]:
    """Selects that find all matching runs between them, each off an index that has them in their order."""
    if filter.schedule_id is not None:
        scheduled = scheduled_runs.join(runs, runs.c.id == scheduled_runs.c.run_id)
        yield (
            scheduled_runs.c.run_id,
            select(scheduled_runs.c.run_id)
            .select_from(scheduled)
            .where(
                scheduled_runs.c.schedule_id == filter.schedule_id,
                *conditions(msgspec.structs.replace(filter, schedule_id=None)),
            ),
        )
        return
    by_status = [filter.statuses]
    if not filter.tags and len(filter.statuses) > 1 and _are_rare(filter.statuses):
        by_status = [(status,) for status in filter.statuses]
    rests = [
        conditions(msgspec.structs.replace(filter, tags=(), root_id=None, statuses=statuses))
        for statuses in by_status
    ]
    of_tree: list[list[ColumnElement[bool]]] = [[]]
    if filter.root_id is not None:
        of_tree = [
            [runs.c.parent_id.is_not(None), runs.c.root_id == filter.root_id],
            [runs.c.id == filter.root_id, runs.c.parent_id.is_(None)],
        ]
    for tree, rest in product(of_tree, rests):
        if not filter.tags:
            yield runs.c.id, select(runs.c.id).where(*tree, *rest)
        for tag in filter.tags:
            tagged = run_tags.join(runs, runs.c.id == run_tags.c.run_id)
            yield (
                run_tags.c.run_id,
                select(run_tags.c.run_id).select_from(tagged).where(run_tags.c.tag == tag, *tree, *rest),
            )


def count_held_by(connection: Connection, worker_ids: Collection[str]) -> dict[tuple[str, RunStatus], int]:
    """How many runs these workers hold, by worker and status."""
    statement = (
        select(runs.c.worker_id, runs.c.status, func.count())
        .where(_HELD, among(connection, runs.c.worker_id, worker_ids))
        .group_by(runs.c.worker_id, runs.c.status)
    )
    return {
        (worker_id, RunStatus(status)): count for worker_id, status, count in connection.execute(statement)
    }


def count_by_status(connection: Connection, filter: RunFilter) -> dict[str, int]:
    """How many matching runs have each status. The filter's `metadata` is not looked at.

    Of all runs and of the children of one it is kept; whatever else is asked for is counted.
    """
    if filter == RunFilter(parent_id=filter.parent_id):
        return load_counts(connection, ALL if filter.parent_id is None else filter.parent_id)
    statement = select(runs.c.status, func.count()).where(*conditions(filter)).group_by(runs.c.status)
    return _pairs(connection, statement)


def _are_rare(statuses: Iterable[RunStatus]) -> bool:
    return not any(status in COMMON for status in statuses)


def conditions(filter: RunFilter) -> list[ColumnElement[bool]]:
    """What a run's own columns and tags must say; its document is looked at by `store/search.py`."""
    found: list[ColumnElement[bool]] = []
    if filter.statuses:
        found.append(or_(*(runs.c.status == status.value for status in filter.statuses)))
        if _are_rare(filter.statuses):
            # In the words of the partial index, which is found by them.
            found.append(_RARE)
    if filter.tasks:
        found.append(runs.c.task.in_(filter.tasks))
    if filter.queues:
        found.append(runs.c.queue.in_(filter.queues))
    if filter.tags:
        found.append(exists().where(and_(run_tags.c.run_id == runs.c.id, run_tags.c.tag.in_(filter.tags))))
    if filter.batch_id is not None:
        found.append(runs.c.id.in_(union_all(*_of_batches(lambda column: column == filter.batch_id))))
    if filter.parent_id is not None:
        found.append(runs.c.parent_id == filter.parent_id)
    if filter.schedule_id is not None:
        of_schedule = and_(
            scheduled_runs.c.run_id == runs.c.id, scheduled_runs.c.schedule_id == filter.schedule_id
        )
        found.append(exists().where(of_schedule))
    if filter.root_id is not None:
        in_tree = and_(runs.c.parent_id.is_not(None), runs.c.root_id == filter.root_id)
        found.append(or_(in_tree, runs.c.id == filter.root_id))
    if filter.top_level is not None:
        found.append(runs.c.parent_id.is_(None) if filter.top_level else runs.c.parent_id.is_not(None))
    if filter.created_from is not None:
        found.append(runs.c.created_at >= filter.created_from)
    if filter.created_to is not None:
        found.append(runs.c.created_at <= filter.created_to)
    if filter.shown is not None:
        found.append(_is_shown(filter.shown))
    for tag in filter.all_tags:
        # By a name of its own, because the list itself may be read off this table.
        also = run_tags.alias()
        found.append(exists().where(and_(also.c.run_id == runs.c.id, also.c.tag == tag)))
    return found


def _of_batches(
    condition: Callable[[ColumnElement[str]], ColumnElement[bool]],
) -> list[Select[tuple[str]]]:
    """The ids of the runs of the batches that a condition on their ids chooses, also those that were there before them."""
    return [
        select(runs.c.id).where(condition(runs.c.batch_id)),
        select(batch_members.c.run_id).where(condition(batch_members.c.batch_id)),
    ]


def _is_shown(shown: RunScope) -> ColumnElement[bool]:
    """The runs that a token shows. They are few, and are gathered; of tasks there may be many, which are read in their order."""
    if shown == RunScope(tasks=shown.tasks):
        return runs.c.task.in_(shown.tasks)
    # One flat union: SQLite takes none inside of another.
    parts: list[Select[tuple[str]]] = []
    if shown.any_tag or shown.tags:
        tagged = select(run_tags.c.run_id)
        parts.append(tagged if shown.any_tag else tagged.where(run_tags.c.tag.in_(shown.tags)))
    if shown.any_batch or shown.batches:
        parts += _of_batches(
            lambda column: column.is_not(None) if shown.any_batch else column.in_(shown.batches)
        )
    if shown.tasks:
        parts.append(select(runs.c.id).where(runs.c.task.in_(shown.tasks)))
    if shown.runs:
        parts.append(select(runs.c.id).where(runs.c.id.in_(shown.runs)))
    return runs.c.id.in_(union(*parts))


def matching_ids(connection: Connection, filter: RunFilter, ids: Sequence[str]) -> set[str]:
    """The runs among these that match. The filter's `metadata` is not looked at."""
    statement = select(runs.c.id).where(among(connection, runs.c.id, ids), *conditions(filter))
    return set(connection.execute(statement).scalars())


def batch_runs(
    connection: Connection, batch_id: str, *, after: int = -1, to: int | None = None, limit: int | None = None
) -> dict[int, str]:
    """The runs of a batch by index, in index order: those behind the index `after`, up to `to`."""
    parts: list[Select[*tuple[Any, ...]]] = []
    for table, run_id in ((runs, runs.c.id), (batch_members, batch_members.c.run_id)):
        part = select(table.c.batch_index.label("place"), run_id).where(
            table.c.batch_id == batch_id, table.c.batch_index > after
        )
        parts.append(part if to is None else part.where(table.c.batch_index <= to))
    return _pairs(connection, union_all(*parts).order_by("place").limit(limit))
