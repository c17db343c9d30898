"""Attempts that have ended."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, func, insert, select

from milepost.store.schema import attempts
from milepost.store.statements import Lookup, Statement, among


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """An attempt that has ended. Times are microseconds since 1970; `begun_at` is when the server heard that its code has begun, `end`
    a word of `AttemptEnd`, `error` JSON."""

    run_id: str
    number: int
    worker_id: str | None
    claimed_at: int | None
    begun_at: int | None
    ended_at: int
    end: str
    error: str | None


_COLUMNS = [attempts.c[name] for name in AttemptRow.__struct_fields__]
_INSERT = Statement(insert(attempts), AttemptRow.__struct_fields__)
_OF_RUNS = Lookup(select(*_COLUMNS), attempts.c.run_id)


def insert_attempts(connection: Connection, rows: Sequence[AttemptRow]) -> None:
    """Keep attempts that have ended."""
    _INSERT.write(connection, [msgspec.structs.astuple(row) for row in rows])


def load_attempts(connection: Connection, run_id: str) -> list[AttemptRow]:
    """The ended attempts of a run that are rows of their own, in order."""
    return sorted(
        (AttemptRow(*values) for values in _OF_RUNS.read(connection, [run_id])), key=lambda row: row.number
    )


def load_newest_attempts(
    connection: Connection, run_ids: Sequence[str], *, limit: int
) -> dict[str, list[AttemptRow]]:
    """The ended attempts of several runs, at most `limit` newest ones of each, in order."""
    place = func.row_number().over(partition_by=attempts.c.run_id, order_by=attempts.c.number.desc())
    ranked = (
        select(*_COLUMNS, place.label("place"))
        .where(among(connection, attempts.c.run_id, run_ids))
        .subquery()
    )
    statement = (
        select(*(ranked.c[name] for name in AttemptRow.__struct_fields__))
        .where(ranked.c.place <= limit)
        .order_by(ranked.c.run_id, ranked.c.number)
    )
    found: dict[str, list[AttemptRow]] = {}
    for values in connection.execute(statement):
        row = AttemptRow(*values)
        found.setdefault(row.run_id, []).append(row)
    return found
