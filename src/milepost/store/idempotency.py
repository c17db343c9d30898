"""Which key stands for which run, what else waits for a run, and the children of a run that later attempts of it find again."""

from collections.abc import Collection, Iterable, Sequence

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, or_, select, update

from milepost.store.schema import idempotency_keys, large_values, run_waiters, runs
from milepost.store.statements import Lookup, Row, Statement, upsert


class KeyRow(msgspec.Struct, frozen=True, gc=False):
    """What a key of a task stands for. Without a task it is the key of a batch. `expires_at` is microseconds since 1970."""

    key: str
    task: str
    target_id: str
    expires_at: int


class EarlierChild(msgspec.Struct, frozen=True, gc=False):
    """A child of a run; `is_large`: its payload is in `large_values`."""

    id: str
    task: str
    payload: str | None
    payload_type: str | None
    is_large: bool


_NAMES = KeyRow.__struct_fields__
_KEYS = Lookup(select(*(idempotency_keys.c[name] for name in _NAMES)), idempotency_keys.c.key)
_NEW_KEYS = upsert(idempotency_keys)
_SAVE_KEYS = Statement(
    _NEW_KEYS.on_conflict_do_update(
        index_elements=["key", "task"],
        set_={name: _NEW_KEYS.excluded[name] for name in ("target_id", "expires_at")},
    ),
    _NAMES,
    key=["key", "task"],
)
_SAVE_PARENT_ATTEMPTS = Statement(
    update(runs)
    .where(runs.c.id == bindparam("run", type_=runs.c.id.type))
    .values(parent_attempt=bindparam("number", type_=runs.c.parent_attempt.type)),
    ["number", "run"],
    key=["run"],
)
_SHARE = Statement(
    update(runs)
    .where(runs.c.id == bindparam("run", type_=runs.c.id.type))
    .values(is_shared=bindparam("shared", type_=runs.c.is_shared.type)),
    ["shared", "run"],
    key=["run"],
)
_SAVE_WAITERS = Statement(
    upsert(run_waiters).on_conflict_do_nothing(index_elements=["run_id", "waiter_id"]),
    ("run_id", "waiter_id"),
    key=["run_id", "waiter_id"],
)
_WAITERS = Lookup(select(run_waiters.c.waiter_id), run_waiters.c.run_id)
_PAYLOADS = Lookup(
    select(large_values.c.run_id, large_values.c.value).where(large_values.c.name == "payload"),
    large_values.c.run_id,
)


def load_keys(connection: Connection, keys: Collection[str]) -> list[KeyRow]:
    """What these keys stand for, whatever their task, expired ones too."""
    return [KeyRow(*values) for values in _KEYS.read(connection, sorted(keys))]


def save_keys(connection: Connection, rows: Iterable[KeyRow]) -> None:
    """Let keys stand for something, whatever they stood for before."""
    _SAVE_KEYS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def delete_key(connection: Connection, key: str, task: str) -> None:
    """Let a key of a task stand for nothing."""
    connection.execute(
        delete(idempotency_keys).where(idempotency_keys.c.key == key, idempotency_keys.c.task == task)
    )


def prune_keys(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` keys that have expired before a time; how many they were."""
    expired = (
        select(idempotency_keys.c.key, idempotency_keys.c.task)
        .where(idempotency_keys.c.expires_at < before)
        .order_by(idempotency_keys.c.expires_at)
        .limit(limit)
    )
    found = connection.execute(expired).all()
    if found:
        same = or_(
            *(and_(idempotency_keys.c.key == key, idempotency_keys.c.task == task) for key, task in found)
        )
        connection.execute(delete(idempotency_keys).where(same))
    return len(found)


def share(connection: Connection, run_ids: Iterable[str]) -> None:
    """Others than its parent and its batch are to know of the end of each of these runs."""
    _SHARE.write(connection, [(1, run_id) for run_id in run_ids])


def save_waiters(connection: Connection, rows: Iterable[Row]) -> None:
    """Runs that wait: (the run that is waited for, the run that waits)."""
    _SAVE_WAITERS.write(connection, sorted(rows))


def waiters_of(connection: Connection, run_id: str) -> list[str]:
    """The runs that wait for a run, beside its parent."""
    return [values[0] for values in _WAITERS.read(connection, [run_id])]


def earlier_children(connection: Connection, parent_id: str, attempt: int) -> list[EarlierChild]:
    """The children of a run that no attempt from this one on has, in the order in which they were triggered."""
    statement = (
        select(runs.c.id, runs.c.task, runs.c.payload, runs.c.payload_type, runs.c.large)
        .where(runs.c.parent_id == parent_id, runs.c.parent_attempt < attempt)
        .order_by(runs.c.id)
    )
    return [
        EarlierChild(id, task, payload, payload_type, "payload" in (large or "").split(","))
        for id, task, payload, payload_type, large in connection.execute(statement)
    ]


def large_payloads(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """The payloads of runs that have large ones."""
    return dict(_PAYLOADS.read(connection, run_ids))


def save_parent_attempts(connection: Connection, rows: Sequence[Row]) -> None:
    """Attempts have found children again: (attempt of the parent, child)."""
    _SAVE_PARENT_ATTEMPTS.write(connection, rows)
