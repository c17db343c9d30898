"""Documents: snapshots, the changes committed since, refused operations. Section 13 of the metadata contract rests on this log."""

from collections.abc import Iterable, Sequence
from functools import cache

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    LargeBinary,
    Text,
    and_,
    any_,
    bindparam,
    column,
    func,
    insert,
    or_,
    select,
)

from milepost.store.schema import changes, counted_ids, documents, refusals
from milepost.store.statements import (
    KEYS_MAX,
    Lookup,
    Row,
    Statement,
    padded,
    parameters,
    takes_lists,
    upsert,
)


class Snapshot(msgspec.Struct):
    """A document at a version. `changed_at` is when it reached the version."""

    run_id: str
    version: int
    value: bytes
    changed_at: int | None = None


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
_INSERT_CHANGES = Statement(insert(changes), _CHANGE_NAMES)
_SNAPSHOT_NAMES = Snapshot.__struct_fields__
_SNAPSHOTS = Lookup(select(*(documents.c[name] for name in _SNAPSHOT_NAMES)), documents.c.run_id)
_NEW = upsert(documents)
_SAVE_SNAPSHOTS = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["run_id"],
        set_={name: _NEW.excluded[name] for name in _SNAPSHOT_NAMES if name != "run_id"},
        # A snapshot never becomes older: the changes up to it may be gone.
        where=_NEW.excluded.version >= documents.c.version,
    ),
    _SNAPSHOT_NAMES,
    key=["run_id"],
)
_REFUSAL_NAMES = ("writer_id", "writer_attempt", "writer_sequence", "refused")
_INSERT_REFUSALS = Statement(insert(refusals), _REFUSAL_NAMES)
_REFUSALS = Statement(
    select(refusals.c.refused).where(*(refusals.c[name] == bindparam(name) for name in _REFUSAL_NAMES[:3])),
    _REFUSAL_NAMES[:3],
)
_INSERT_COUNTED = Statement(insert(counted_ids), ("run_id", "id"))
_SOME_COUNTED = Statement(
    select(counted_ids.c.id).where(counted_ids.c.run_id == bindparam("run_id")).limit(bindparam("limit")),
    ("run_id", "limit"),
)
_COUNTED = Statement(
    select(counted_ids.c.id).where(
        counted_ids.c.run_id == bindparam("run_id"),
        counted_ids.c.id == any_(bindparam("ids", type_=ARRAY(LargeBinary))),
    ),
    ("run_id", "ids"),
)
_WANTED = (
    func.unnest(bindparam("runs", type_=ARRAY(Text)), bindparam("versions", type_=ARRAY(BigInteger)))
    .table_valued(column("run_id", Text), column("version", BigInteger))
    .render_derived(name="wanted")
)
_CHANGES_OF_LISTS = Statement(
    select(*(changes.c[name] for name in _CHANGE_NAMES))
    .join_from(
        _WANTED, changes, and_(changes.c.run_id == _WANTED.c.run_id, changes.c.version > _WANTED.c.version)
    )
    .order_by(changes.c.run_id, changes.c.version),
    ("runs", "versions"),
)
# Documents whose log is read by one statement; a power of two.
LOGS_MAX = 128


def load_snapshots(connection: Connection, ids: Sequence[str]) -> dict[str, Snapshot]:
    """The newest snapshots that were saved, by run; a run that never had a fold has none."""
    return {values[0]: Snapshot(*values) for values in _SNAPSHOTS.read(connection, ids)}


def load_changes(connection: Connection, since: dict[str, int]) -> dict[str, list[ChangeRow]]:
    """For each run, its changes above the given version, in order."""
    found: dict[str, list[ChangeRow]] = {}
    if takes_lists(connection) and since:
        for change in _CHANGES_OF_LISTS.read(connection, (list(since), list(since.values()))):
            found.setdefault(change[0], []).append(ChangeRow(*change))
        return found
    items = list(since.items())
    for start in range(0, len(items), LOGS_MAX):
        pairs = padded(tuple(items[start : start + LOGS_MAX]))
        values = tuple(value for pair in pairs for value in pair)
        for change in _changes_statement(len(pairs)).read(connection, values):
            found.setdefault(change[0], []).append(ChangeRow(*change))
    return found


@cache
def _changes_statement(count: int) -> Statement:
    names = [(f"run_{number}", f"version_{number}") for number in range(count)]
    conditions = [
        and_(changes.c.run_id == bindparam(run), changes.c.version > bindparam(version))
        for run, version in names
    ]
    statement = (
        select(*(changes.c[name] for name in _CHANGE_NAMES))
        .where(or_(*conditions))
        .order_by(changes.c.run_id, changes.c.version)
    )
    return Statement(statement, [name for pair in names for name in pair])


def load_written(
    connection: Connection, ids: Sequence[str]
) -> tuple[dict[str, Snapshot], dict[str, list[ChangeRow]]]:
    """The saved snapshots of documents that were written to, and the changes above them."""
    if not ids:
        return {}, {}
    snapshots = load_snapshots(connection, ids)
    return snapshots, load_changes(
        connection, {run_id: snapshots[run_id].version if run_id in snapshots else 0 for run_id in ids}
    )


def given_snapshot(run_id: str, given: bytes | None) -> Snapshot:
    """The document given at trigger: version 0."""
    return Snapshot(run_id, 0, given or b"{}")


def append_changes(connection: Connection, rows: Sequence[ChangeRow]) -> None:
    """Add to the logs. The primary key (run, version) refuses two writers at one version."""
    _INSERT_CHANGES.write(connection, [msgspec.structs.astuple(row) for row in rows])


def save_snapshots(connection: Connection, snapshots: Sequence[Snapshot]) -> None:
    """Fold: replace the saved snapshots. One that is older than what is saved changes nothing."""
    _SAVE_SNAPSHOTS.write(connection, [msgspec.structs.astuple(snapshot) for snapshot in snapshots])


def load_counted(connection: Connection, run_id: str, ids: Iterable[bytes]) -> set[bytes]:
    """Which of these `once` ids were counted in a run."""
    asked = tuple(ids)
    if takes_lists(connection):
        return {id for (id,) in _COUNTED.read(connection, (run_id, list(asked)))}
    found: set[bytes] = set()
    for start in range(0, len(asked), KEYS_MAX):
        some = padded(asked[start : start + KEYS_MAX])
        rows = _counted_statement(len(some)).read(connection, (run_id, *some))
        found.update(id for (id,) in rows)
    return found


@cache
def _counted_statement(count: int) -> Statement:
    names = [f"id_{number}" for number in range(count)]
    statement = select(counted_ids.c.id).where(
        counted_ids.c.run_id == bindparam("run_id"), counted_ids.c.id.in_(parameters(names))
    )
    return Statement(statement, ["run_id", *names])


def some_counted(connection: Connection, run_id: str, *, limit: int) -> list[bytes]:
    """Up to `limit` of the `once` ids that were counted in a run."""
    return [id for (id,) in _SOME_COUNTED.read(connection, (run_id, limit))]


def save_counted(connection: Connection, rows: Sequence[tuple[str, bytes]]) -> None:
    """Keep (run, id): these are counted. The primary key refuses to count one twice."""
    _INSERT_COUNTED.write(connection, rows)


def save_refusals(connection: Connection, rows: Sequence[Row]) -> None:
    """Keep what was refused of a report (writer, attempt, sequence, JSON), so that a repeat is answered as the original was."""
    _INSERT_REFUSALS.write(connection, rows)


def load_refusals(connection: Connection, writer_id: str, attempt: int, sequence: int) -> bytes | None:
    """What was refused of that report; None when nothing was."""
    found = _REFUSALS.read(connection, (writer_id, attempt, sequence))
    return found[0][0] if found else None
