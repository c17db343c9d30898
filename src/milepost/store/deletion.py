"""Deleting runs with everything that belongs to them, and finding those that are old enough."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    update,
)

from milepost.model.run import RunStatus
from milepost.store.run_counts import ALL, add_counts
from milepost.store.schema import (
    attempts,
    batch_members,
    batches,
    changes,
    chunks,
    counted_ids,
    documents,
    large_values,
    log_marks,
    log_starts,
    logs,
    metadata_values,
    refusals,
    run_counts,
    run_tags,
    run_waiters,
    runs,
    scheduled_runs,
    stream_writers,
    streams,
    waitpoint_waiters,
    waitpoints,
)
from milepost.store.statements import among

# The type of a payload that is no more.
DELETED: Final = "deleted"
# Every table whose rows belong to a run, and the column that says to which. A test holds that none is missing.
OF_RUNS: Sequence[tuple[Table, ColumnElement[str]]] = (
    (run_tags, run_tags.c.run_id),
    (large_values, large_values.c.run_id),
    (documents, documents.c.run_id),
    (changes, changes.c.run_id),
    (counted_ids, counted_ids.c.run_id),
    (log_starts, log_starts.c.run_id),
    (metadata_values, metadata_values.c.run_id),
    (refusals, refusals.c.writer_id),
    (logs, logs.c.run_id),
    (log_marks, log_marks.c.run_id),
    (streams, streams.c.run_id),
    (stream_writers, stream_writers.c.run_id),
    (chunks, chunks.c.run_id),
    (attempts, attempts.c.run_id),
    (scheduled_runs, scheduled_runs.c.run_id),
    (batch_members, batch_members.c.run_id),
    (run_waiters, run_waiters.c.run_id),
    (run_waiters, run_waiters.c.waiter_id),
    (waitpoints, waitpoints.c.run_id),
    (waitpoint_waiters, waitpoint_waiters.c.run_id),
    (run_counts, run_counts.c.parent_id),
    (runs, runs.c.id),
)


class DoomedRun(msgspec.Struct, frozen=True):
    """A run that is to be deleted."""

    id: str
    status: RunStatus
    parent_id: str | None
    batch_id: str | None


_DOOMED = [runs.c.id, runs.c.status, runs.c.parent_id, runs.c.batch_id]


def _doomed(values: Sequence[Any]) -> DoomedRun:
    return DoomedRun(values[0], RunStatus(values[1]), values[2], values[3])


def old_roots(
    connection: Connection,
    *,
    after: str,
    before: str,
    limit: int,
    cutoffs: Mapping[RunStatus, int],
    settled_before: int,
) -> tuple[list[str], str | None]:
    """Runs without a parent whose whole tree may go; of `limit` such runs behind `after` that are looked at, oldest first.

    Args:
        before: runs from this id on are too young.
        cutoffs: a run may go that has finished before the time of its status; with another status never.
        settled_before: and before this one, by the clock that is never set back.
    Returns: their ids, and where to go on; None at the end.
    """
    found = select(runs.c.id).where(runs.c.parent_id.is_(None), runs.c.id > after, runs.c.id < before)
    ids = list(connection.execute(found.order_by(runs.c.id).limit(limit)).scalars())
    kept = _kept(connection, ids, _is_old(cutoffs, settled_before))
    return [run_id for run_id in ids if run_id not in kept], ids[-1] if len(ids) == limit else None


def _kept(connection: Connection, roots: Sequence[str], is_old: ColumnElement[bool]) -> set[str]:
    """Those of these roots in whose tree a run is that must stay."""
    of_tree = (
        select(runs.c.root_id)
        .where(runs.c.parent_id.is_not(None), among(connection, runs.c.root_id, roots), not_(is_old))
        .distinct()
    )
    own = select(runs.c.id).where(among(connection, runs.c.id, roots), not_(is_old))
    return {*connection.execute(of_tree).scalars(), *connection.execute(own).scalars()}


def _is_old(cutoffs: Mapping[RunStatus, int], settled_before: int) -> ColumnElement[bool]:
    # A run that goes on has no time at which it has finished, and what is compared with that is not true.
    finished = [
        and_(runs.c.status == status.value, func.coalesce(runs.c.finished_at, cutoff) < cutoff)
        for status, cutoff in cutoffs.items()
    ]
    ended = func.coalesce(runs.c.aged_from, runs.c.finished_at, settled_before) < settled_before
    return and_(or_(false(), *finished), ended)


def old_tree(
    connection: Connection,
    root_id: str,
    *,
    limit: int,
    cutoffs: Mapping[RunStatus, int],
    settled_before: int,
) -> list[DoomedRun]:
    """Up to `limit` runs of a tree, the deepest first and the root last; none when a run of it must stay after all."""
    if _kept(connection, [root_id], _is_old(cutoffs, settled_before)):
        return []
    of_tree = select(*_DOOMED).where(runs.c.parent_id.is_not(None), runs.c.root_id == root_id)
    found = connection.execute(of_tree.order_by(runs.c.depth.desc(), runs.c.id).limit(limit)).all()
    if len(found) < limit:
        found = [*found, *connection.execute(select(*_DOOMED).where(runs.c.id == root_id)).all()]
    return [_doomed(tuple(values)) for values in found]


def with_descendants(connection: Connection, run_id: str) -> list[DoomedRun]:
    """A run and all runs below it, the deepest first."""
    levels: list[list[DoomedRun]] = []
    found = connection.execute(select(*_DOOMED).where(runs.c.id == run_id)).all()
    while found:
        levels.append([_doomed(tuple(values)) for values in found])
        below = select(*_DOOMED).where(among(connection, runs.c.parent_id, [run.id for run in levels[-1]]))
        found = connection.execute(below.order_by(runs.c.id)).all()
    return [run for level in reversed(levels) for run in level]


def delete_runs(connection: Connection, doomed: Sequence[DoomedRun]) -> None:
    """Delete runs with all rows that belong to them, and batches of which no run is left. Whatever counts runs is kept exact."""
    ids = [run.id for run in doomed]
    gone: dict[tuple[str, str], int] = {}
    for run in doomed:
        for parent in (ALL,) if run.parent_id is None else (ALL, run.parent_id):
            gone[parent, run.status.value] = gone.get((parent, run.status.value), 0) - 1
    add_counts(connection, [(parent, status, count) for (parent, status), count in gone.items()])
    for table, column in OF_RUNS:
        connection.execute(delete(table).where(among(connection, column, ids)))
    batch_ids = sorted({run.batch_id for run in doomed if run.batch_id is not None})
    of_these = or_(among(connection, batches.c.id, batch_ids), among(connection, batches.c.parent_id, ids))
    has_runs = exists().where(runs.c.batch_id == batches.c.id)
    has_members = exists().where(batch_members.c.batch_id == batches.c.id)
    connection.execute(delete(batches).where(of_these, not_(has_runs), not_(has_members)))


class OldPayloads(NamedTuple):
    """Runs whose payloads may go, of those that were looked at. `done_to`: nothing is left to look at up to this id, ever; None where
    that is not further on than before. `next`: where to go on; None at the end."""

    ids: list[str]
    done_to: str | None
    next: str | None


def old_payloads(
    connection: Connection, *, after: str, before: str, limit: int, finished_before: int
) -> OldPayloads:
    """Runs with a payload that have finished before a time, as has the run that their tree begins with, of `limit` runs behind `after`
    that are looked at. A run that goes on may still be given its finished children, which it knows by their payloads.

    Args:
        before: runs from this id on are too young.
    """
    root = runs.alias()
    found = connection.execute(
        select(
            runs.c.id,
            and_(runs.c.finished_at < finished_before, root.c.finished_at < finished_before),
            or_(runs.c.payload.is_not(None), runs.c.large.contains("payload")),
        )
        .join_from(runs, root, root.c.id == runs.c.root_id)
        .where(runs.c.id > after, runs.c.id < before)
        .order_by(runs.c.id)
        .limit(limit)
    ).all()
    done_to: str | None = None
    for run_id, is_old, _ in found:
        if not is_old:
            break
        done_to = run_id
    ids = [run_id for run_id, is_old, has_payload in found if is_old and has_payload]
    return OldPayloads(ids, done_to, found[-1][0] if len(found) == limit else None)


def delete_payloads(connection: Connection, ids: Collection[str]) -> None:
    """Delete the payloads of finished runs; that they had one stays known."""
    connection.execute(
        delete(large_values).where(
            large_values.c.name == "payload", among(connection, large_values.c.run_id, ids)
        )
    )
    by_large: dict[str | None, list[str]] = {}
    for run_id, large in connection.execute(
        select(runs.c.id, runs.c.large).where(among(connection, runs.c.id, ids))
    ):
        left = [name for name in (large or "").split(",") if name not in ("", "payload")]
        by_large.setdefault(",".join(left) or None, []).append(run_id)
    for large, some in by_large.items():
        values = {"payload": None, "payload_type": DELETED, "large": large}
        connection.execute(update(runs).where(among(connection, runs.c.id, some)).values(values))


def old_log_lines(
    connection: Connection, *, after: int, finished_before: int, limit: int
) -> tuple[list[int], int | None]:
    """Lines of runs that have finished before a time, of `limit` lines behind the number `after` that are looked at, and where to go
    on; None once all that is left is younger."""
    found = connection.execute(
        select(logs.c.number, logs.c.at, runs.c.finished_at)
        .join_from(logs, runs, runs.c.id == logs.c.run_id)
        .where(logs.c.number > after)
        .order_by(logs.c.number)
        .limit(limit)
    ).all()
    old = [
        number
        for number, _, finished_at in found
        if finished_at is not None and finished_at < finished_before
    ]
    is_last = len(found) < limit or all(at >= finished_before for _, at, _ in found)
    return old, None if is_last else found[-1][0]


def delete_log_lines(connection: Connection, numbers: Collection[int]) -> None:
    """Delete lines of logs."""
    connection.execute(delete(logs).where(among(connection, logs.c.number, numbers)))
