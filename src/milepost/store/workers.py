"""Workers that hold a lease."""

from collections.abc import Collection, Iterable

import msgspec
from sqlalchemy import Connection, delete, select

from milepost.store.schema import workers
from milepost.store.statements import among, upsert


class WorkerRow(msgspec.Struct, frozen=True):
    """A registered worker. `tasks` are the ids of what it offers, as a JSON list; `registration` is the number of its newest
    registration, `claims` that of its last claim by then, `registered_at` microseconds since 1970."""

    id: str
    name: str
    tasks: str
    registration: int
    claims: int
    registered_at: int


_NEW = upsert(workers)
_SAVE = _NEW.on_conflict_do_update(
    index_elements=["id"],
    set_={name: _NEW.excluded[name] for name in WorkerRow.__struct_fields__ if name != "id"},
)


def save_workers(connection: Connection, rows: Iterable[WorkerRow]) -> None:
    """Keep workers; the newest word of each wins."""
    connection.execute(_SAVE, [msgspec.structs.asdict(row) for row in rows])


def load_workers(connection: Connection) -> list[WorkerRow]:
    """Every worker that holds a lease."""
    columns = [workers.c[name] for name in WorkerRow.__struct_fields__]
    return [WorkerRow(*values) for values in connection.execute(select(*columns))]


def delete_workers(connection: Connection, ids: Collection[str]) -> None:
    """These workers hold no lease any more."""
    connection.execute(delete(workers).where(among(connection, workers.c.id, ids)))
