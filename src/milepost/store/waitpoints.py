"""Waitpoints, and who waits for them."""

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import Connection, Select, and_, delete, func, insert, select, update

from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.store.schema import waitpoint_tags, waitpoint_waiters, waitpoints
from milepost.store.statements import among, upsert


class WaitpointRow(msgspec.Struct, gc=False):
    """One waitpoint; the same names as in the table. Times are microseconds since 1970, `tags` and `output` JSON texts."""

    id: str
    kind: str
    status: str
    created_at: int
    timeout_at: int | None = None
    is_timeout_given: int = 0
    ended_at: int | None = None
    run_id: str | None = None
    tags: str | None = None
    key: str | None = None
    key_expires_at: int | None = None
    output: str | None = None


class WaitpointFilter(msgspec.Struct, frozen=True):
    """Which tokens a list shows. `tags`: those with any of them; `key` as it is in the table; times are microseconds since 1970."""

    statuses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    key: str | None = None
    created_from: int | None = None
    created_to: int | None = None


USER_KEY = "key/"


def user_key(key: str) -> str:
    """A user's own key as it stands in the table."""
    return USER_KEY + key


_NAMES = WaitpointRow.__struct_fields__
_ROWS = select(*(waitpoints.c[name] for name in _NAMES))
# What may be large is not read for a list.
_SUMMARIES = select(*(waitpoints.c[name] for name in _NAMES if name != "output"))
_WAITS = waitpoints.c.status == WaitpointStatus.WAITING
_DUE = and_(_WAITS, waitpoints.c.timeout_at.is_not(None))
_RELATIVE = and_(_DUE, waitpoints.c.is_timeout_given == 0)


def insert_waitpoint(connection: Connection, row: WaitpointRow) -> None:
    """Insert a waitpoint with its tags."""
    connection.execute(insert(waitpoints).values(msgspec.structs.asdict(row)))
    tags = msgspec.json.decode(row.tags, type=list[str]) if row.tags else []
    if tags:
        connection.execute(insert(waitpoint_tags), [{"tag": tag, "waitpoint_id": row.id} for tag in tags])


def load_waitpoint(connection: Connection, waitpoint_id: str) -> WaitpointRow | None:
    """A waitpoint, or None when there is no such one."""
    found = connection.execute(_ROWS.where(waitpoints.c.id == waitpoint_id)).first()
    return None if found is None else WaitpointRow(*found)


def load_by_key(connection: Connection, key: str) -> WaitpointRow | None:
    """The waitpoint that was made with a key, or None."""
    found = connection.execute(_ROWS.where(waitpoints.c.key == key)).first()
    return None if found is None else WaitpointRow(*found)


def forget_key(connection: Connection, waitpoint_id: str) -> None:
    """The key of this waitpoint is free again."""
    connection.execute(update(waitpoints).where(waitpoints.c.id == waitpoint_id).values(key=None))


def due(connection: Connection, *, now: int, limit: int) -> list[WaitpointRow]:
    """Up to `limit` waitpoints whose time is over, those first for which it was over first; without their outputs."""
    statement = _SUMMARIES.where(_DUE, waitpoints.c.timeout_at <= now)
    found = connection.execute(statement.order_by(waitpoints.c.timeout_at, waitpoints.c.id).limit(limit))
    return [WaitpointRow(*values) for values in found]


def next_due_after(connection: Connection, after: int) -> int | None:
    """When the next time is over that is not at `after`; None when there is none."""
    return connection.execute(
        select(func.min(waitpoints.c.timeout_at)).where(_DUE, waitpoints.c.timeout_at > after)
    ).scalar()


def shift(connection: Connection, microseconds: int) -> None:
    """The clock was set by that much. Times that somebody has named stay."""
    # When it was made moves along: by that `newest_of_relative` sees by which clock the time was reckoned.
    connection.execute(
        update(waitpoints)
        .where(_RELATIVE)
        .values(
            timeout_at=waitpoints.c.timeout_at + microseconds,
            created_at=waitpoints.c.created_at + microseconds,
        )
    )


def newest_of_relative(connection: Connection, now: int) -> int | None:
    """When the newest waitpoint was made whose time is not over at `now`, and was not named; None when there is none."""
    return connection.execute(
        select(func.max(waitpoints.c.created_at)).where(_RELATIVE, waitpoints.c.timeout_at > now)
    ).scalar()


def end(
    connection: Connection, ids: Collection[str], status: WaitpointStatus, *, at: int, output: str | None
) -> None:
    """These waitpoints have ended."""
    statement = update(waitpoints).where(among(connection, waitpoints.c.id, ids))
    connection.execute(statement.values(status=status.value, ended_at=at, output=output))


def add_waiter(connection: Connection, waitpoint_id: str, run_id: str) -> None:
    """A run waits for it. Repeatable."""
    statement = upsert(waitpoint_waiters).values(waitpoint_id=waitpoint_id, run_id=run_id)
    connection.execute(statement.on_conflict_do_nothing())


def take_waiters(connection: Connection, ids: Collection[str]) -> list[tuple[str, str]]:
    """Who waits for these waitpoints, as pairs of waitpoint and run; nobody does any more."""
    waits = among(connection, waitpoint_waiters.c.waitpoint_id, ids)
    statement = select(waitpoint_waiters.c.waitpoint_id, waitpoint_waiters.c.run_id).where(waits)
    found = [(waitpoint_id, run_id) for waitpoint_id, run_id in connection.execute(statement)]
    if found:
        connection.execute(delete(waitpoint_waiters).where(waits))
    return sorted(found)


def list_tokens(
    connection: Connection,
    filter: WaitpointFilter,
    *,
    limit: int,
    after: str | None = None,
    before: str | None = None,
) -> list[WaitpointRow]:
    """Up to `limit` tokens, newest first, without their outputs: those behind `after`, or the nearest ones before `before`."""
    statement = _filtered(connection, filter)
    if before is not None:
        found = connection.execute(
            statement.where(waitpoints.c.id > before).order_by(waitpoints.c.id).limit(limit)
        )
        return [WaitpointRow(*values) for values in reversed(list(found))]
    if after is not None:
        statement = statement.where(waitpoints.c.id < after)
    return [
        WaitpointRow(*values)
        for values in connection.execute(statement.order_by(waitpoints.c.id.desc()).limit(limit))
    ]


def _filtered(connection: Connection, filter: WaitpointFilter) -> Select[*tuple[object, ...]]:
    statement = _SUMMARIES.where(waitpoints.c.kind == WaitpointKind.TOKEN)
    if filter.statuses:
        statement = statement.where(among(connection, waitpoints.c.status, filter.statuses))
    if filter.tags:
        tagged = select(waitpoint_tags.c.waitpoint_id).where(
            among(connection, waitpoint_tags.c.tag, filter.tags)
        )
        statement = statement.where(waitpoints.c.id.in_(tagged))
    if filter.key is not None:
        statement = statement.where(waitpoints.c.key == filter.key)
    if filter.created_from is not None:
        statement = statement.where(waitpoints.c.created_at >= filter.created_from)
    if filter.created_to is not None:
        statement = statement.where(waitpoints.c.created_at <= filter.created_to)
    return statement


def delete_ended(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` waitpoints that have ended before a time; how many. Less than `limit`: all."""
    old = (
        select(waitpoints.c.id)
        .where(waitpoints.c.ended_at.is_not(None), waitpoints.c.ended_at < before)
        .order_by(waitpoints.c.ended_at, waitpoints.c.id)
        .limit(limit)
    )
    ids: Sequence[str] = list(connection.execute(old).scalars())
    if ids:
        connection.execute(
            delete(waitpoint_tags).where(among(connection, waitpoint_tags.c.waitpoint_id, ids))
        )
        connection.execute(delete(waitpoints).where(among(connection, waitpoints.c.id, ids)))
    return len(ids)
