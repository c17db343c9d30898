"""The history of documents: the part of each log that is kept, where it begins, and which runs have something to prune.

The kept log of a document begins with the document given at trigger (version 0), with a row of `log_starts` once older changes were
pruned, or with the snapshot when nothing else is left. Changes are immutable, so whoever reads below the newest version needs no lock.
"""

from collections.abc import Iterator, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, select

from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.schema import changes, counted_ids, documents, log_starts, refusals
from milepost.store.statements import among, upsert

VERSION_MAX = 2**63 - 1
_SNAPSHOT_NAMES = Snapshot.__struct_fields__
_CHANGE_COLUMNS = [changes.c[name] for name in ChangeRow.__struct_fields__]
_NEW = upsert(log_starts)
_SAVE = _NEW.on_conflict_do_update(
    index_elements=["run_id"],
    set_={name: _NEW.excluded[name] for name in _SNAPSHOT_NAMES if name != "run_id"},
)
_DELETE_STARTS = delete(log_starts).where(log_starts.c.run_id == bindparam("id"))
_DELETE_CHANGES = delete(changes).where(
    changes.c.run_id == bindparam("id"), changes.c.version <= bindparam("up_to")
)
_DELETE_REFUSALS = delete(refusals).where(refusals.c.writer_id == bindparam("id"))
_DELETE_COUNTED = delete(counted_ids).where(
    counted_ids.c.run_id == bindparam("run"), counted_ids.c.id == bindparam("counted")
)
_LOGGED = (changes.c.run_id, log_starts.c.run_id, refusals.c.writer_id, counted_ids.c.run_id)


class Mark(msgspec.Struct, frozen=True):
    """A version of a document, and when it was reached (microseconds; None where that was not kept)."""

    version: int
    changed_at: int | None


class LogSpan(msgspec.Struct, frozen=True):
    """The changes of a run that are kept: their first and last version, and the latest time at which one was made."""

    first: int
    last: int
    latest_at: int


def load_page(
    connection: Connection, run_id: str, *, after: int, limit: int | None = None, up_to: int = VERSION_MAX
) -> Iterator[ChangeRow]:
    """Changes of a run with a version above `after` and not above `up_to`, in order, at most `limit`; read as they are asked for."""
    statement = (
        select(*_CHANGE_COLUMNS)
        .where(changes.c.run_id == run_id, changes.c.version > after, changes.c.version <= up_to)
        .order_by(changes.c.version)
        .limit(limit)
    )
    for values in connection.execute(statement):
        yield ChangeRow(*values)


def newest_at(connection: Connection, run_id: str, at: int, *, above: int = 0) -> int | None:
    """The highest version above `above` whose change was made at or before a time; None when there is none."""
    statement = (
        select(changes.c.version)
        .where(changes.c.run_id == run_id, changes.c.version > above, changes.c.created_at <= at)
        .order_by(changes.c.version.desc())
        .limit(1)
    )
    return connection.execute(statement).scalar()


def first_version(connection: Connection, run_id: str) -> int | None:
    """The lowest version whose change is kept; None when none is."""
    return connection.execute(select(func.min(changes.c.version)).where(changes.c.run_id == run_id)).scalar()


def last_version(connection: Connection, run_id: str) -> int | None:
    """The highest version whose change is kept; None when none is."""
    return connection.execute(select(func.max(changes.c.version)).where(changes.c.run_id == run_id)).scalar()


def snapshot_marks(connection: Connection, ids: Sequence[str]) -> dict[str, Mark]:
    """The versions of the saved snapshots, without the documents."""
    statement = select(documents.c.run_id, documents.c.version, documents.c.changed_at).where(
        among(connection, documents.c.run_id, ids)
    )
    return {run_id: Mark(version, at) for run_id, version, at in connection.execute(statement)}


def start_marks(connection: Connection, ids: Sequence[str]) -> dict[str, Mark]:
    """Where pruned logs begin, without the documents."""
    statement = select(log_starts.c.run_id, log_starts.c.version, log_starts.c.changed_at).where(
        among(connection, log_starts.c.run_id, ids)
    )
    return {run_id: Mark(version, at) for run_id, version, at in connection.execute(statement)}


def load_start(connection: Connection, run_id: str) -> Snapshot | None:
    """The document at the version where a pruned log begins; None for a log that is whole or gone."""
    statement = select(*(log_starts.c[name] for name in _SNAPSHOT_NAMES)).where(log_starts.c.run_id == run_id)
    found = connection.execute(statement).one_or_none()
    return None if found is None else Snapshot(*found)


def save_starts(connection: Connection, starts: Sequence[Snapshot]) -> None:
    """Say where logs begin from now on."""
    if starts:
        connection.execute(_SAVE, [msgspec.structs.asdict(start) for start in starts])


def delete_starts(connection: Connection, ids: Sequence[str]) -> None:
    """These logs begin with their snapshots."""
    if ids:
        connection.execute(_DELETE_STARTS, [{"id": run_id} for run_id in ids])


def delete_changes(connection: Connection, up_to: dict[str, int]) -> None:
    """For each run, forget its changes up to the given version, that one included."""
    if up_to:
        connection.execute(
            _DELETE_CHANGES, [{"id": run_id, "up_to": version} for run_id, version in up_to.items()]
        )


def delete_refusals(connection: Connection, writer_ids: Sequence[str]) -> None:
    """Forget what was refused of the reports of these runs."""
    if writer_ids:
        connection.execute(_DELETE_REFUSALS, [{"id": writer_id} for writer_id in writer_ids])


def counted_ids_of(connection: Connection, run_id: str, *, limit: int) -> list[bytes]:
    """Up to `limit` of the `once` ids that are kept of a run."""
    statement = select(counted_ids.c.id).where(counted_ids.c.run_id == run_id).limit(limit)
    return list(connection.execute(statement).scalars())


def delete_counted(connection: Connection, ids: Sequence[tuple[str, bytes]]) -> None:
    """Forget these (run, `once` id)."""
    if ids:
        connection.execute(_DELETE_COUNTED, [{"run": run_id, "counted": id} for run_id, id in ids])


def logged_ids(
    connection: Connection, *, after: str, before: str, limit: int
) -> tuple[list[str], str | None]:
    """Runs that have something to prune (changes, a log start, refusals, `once` ids), in id order: `after` < id < `before`.

    At most `limit` rows of each table are looked at, however long a log is. The second value is where the walk goes on (its next
    `after`), None at the end.
    """
    found: set[str] = set()
    horizon: str | None = None
    for column in _LOGGED:
        statement = select(column).where(column > after, column < before).order_by(column).limit(limit)
        ids = list(connection.execute(statement).scalars())
        found.update(ids)
        if len(ids) == limit:
            horizon = ids[-1] if horizon is None else min(horizon, ids[-1])
    return sorted(run_id for run_id in found if horizon is None or run_id <= horizon), horizon


def log_spans(connection: Connection, ids: Sequence[str]) -> dict[str, LogSpan]:
    """What is kept of the logs of these runs; a run without changes has no span."""
    statement = (
        select(
            changes.c.run_id,
            func.min(changes.c.version),
            func.max(changes.c.version),
            func.max(changes.c.created_at),
        )
        .where(among(connection, changes.c.run_id, ids))
        .group_by(changes.c.run_id)
    )
    return {run_id: LogSpan(*values) for run_id, *values in connection.execute(statement)}
