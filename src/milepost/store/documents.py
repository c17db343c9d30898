"""Documents: snapshots, the changes committed since, refused operations. Section 13 of the metadata contract rests on this log."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, and_, bindparam, insert, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert

from milepost.store.bulk import Bulk
from milepost.store.schema import changes, documents, refusals


class Snapshot(msgspec.Struct):
    """A document at a version. `counted` are its `once` ids, JSON."""

    run_id: str
    version: int
    value: bytes
    counted: bytes | None


class ChangeRow(msgspec.Struct, gc=False):
    """One committed flush: the operations that took the document from `version - 1` to `version` (JSON)."""

    run_id: str
    version: int
    operations: bytes
    writer_id: str | None
    writer_attempt: int | None
    writer_sequence: int | None
    refused: bytes | None
    created_at: int


_CHANGE_NAMES = ChangeRow.__struct_fields__
_INSERT_CHANGES = Bulk(insert(changes), _CHANGE_NAMES)
_SNAPSHOTS = select(*(documents.c[name] for name in Snapshot.__struct_fields__)).where(
    documents.c.run_id.in_(bindparam("ids", expanding=True))
)
_NEW = upsert(documents)
_SAVE = _NEW.on_conflict_do_update(
    index_elements=["run_id"],
    set_={name: _NEW.excluded[name] for name in ("version", "value", "counted")},
)


def load_snapshots(connection: Connection, ids: Sequence[str]) -> dict[str, Snapshot]:
    """The newest snapshots that were saved, by run; a run that never had a fold has none."""
    return {values[0]: Snapshot(*values) for values in connection.execute(_SNAPSHOTS, {"ids": list(ids)})}


def load_changes(connection: Connection, since: dict[str, int]) -> dict[str, list[ChangeRow]]:
    """For each run, its changes above the given version, in order."""
    found: dict[str, list[ChangeRow]] = {}
    items = list(since.items())
    for start in range(0, len(items), 100):
        conditions = [
            and_(changes.c.run_id == run_id, changes.c.version > version)
            for run_id, version in items[start : start + 100]
        ]
        statement = (
            select(*(changes.c[name] for name in _CHANGE_NAMES))
            .where(or_(*conditions))
            .order_by(changes.c.run_id, changes.c.version)
        )
        for values in connection.execute(statement):
            found.setdefault(values[0], []).append(ChangeRow(*values))
    return found


def append_changes(connection: Connection, rows: Sequence[ChangeRow]) -> None:
    """Add to the logs. The primary key (run, version) refuses two writers at one version."""
    _INSERT_CHANGES.execute(connection, [msgspec.structs.astuple(row) for row in rows])


def save_snapshots(connection: Connection, snapshots: Sequence[Snapshot]) -> None:
    """Fold: replace the saved snapshots."""
    if snapshots:
        connection.execute(_SAVE, [msgspec.structs.asdict(snapshot) for snapshot in snapshots])


def save_refusals(connection: Connection, rows: Sequence[tuple[str, int, int, bytes]]) -> None:
    """Keep what was refused of a report (writer, attempt, sequence, JSON), so that a repeat is answered as the original was."""
    names = ("writer_id", "writer_attempt", "writer_sequence", "refused")
    if rows:
        connection.execute(insert(refusals), [dict(zip(names, row, strict=True)) for row in rows])


def load_refusals(connection: Connection, writer_id: str, attempt: int, sequence: int) -> bytes | None:
    """What was refused of that report; None when nothing was."""
    statement = select(refusals.c.refused).where(
        refusals.c.writer_id == writer_id,
        refusals.c.writer_attempt == attempt,
        refusals.c.writer_sequence == sequence,
    )
    return connection.execute(statement).scalar()
