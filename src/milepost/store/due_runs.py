"""How many runs are due in each queue, and since when: bounded looks into the index by which they are claimed."""

from collections.abc import Sequence
from functools import cache
from itertools import chain

import msgspec
from sqlalchemy import Connection, Integer, and_, bindparam, func, literal_column, select, union_all

from milepost.store.schema import runs
from milepost.store.statements import Statement, padded

# Places in one statement. To compile one with many takes long, and nobody else gets on meanwhile.
PLACES = 16
# In the words of the partial index, which is found by them.
_DUE = and_(runs.c.status == literal_column("'QUEUED'"), runs.c.is_apart == literal_column("0"))


class DueRuns(msgspec.Struct, frozen=True, gc=False):
    """The due runs of a place, counted up to a limit. `oldest_at` is when the oldest of them became due, microseconds since 1970."""

    task: str
    queue: str
    count: int
    oldest_at: int


def due_runs(
    connection: Connection, places: Sequence[tuple[str, str]], *, limit: int, now: int
) -> list[DueRuns]:
    """The places, each a task and a queue, in which runs are due; up to `limit` runs are counted of each.

    Runs that have to execute apart, which are few, are not counted.
    """
    found: list[DueRuns] = []
    for start in range(0, len(places), PLACES):
        chunk = padded(tuple(places[start : start + PLACES]), ("", ""))
        rows = _statement(len(chunk)).read(connection, (now, limit, *chain.from_iterable(chunk)))  # pyright: ignore[reportArgumentType]
        for number, count, oldest_at in rows:
            task, queue = places[start + int(number)]
            found.append(DueRuns(task, queue, count, oldest_at))
    return found


@cache
def _statement(place_count: int) -> Statement:
    names = [(f"task_{number}", f"queue_{number}") for number in range(place_count)]
    parts = [
        select(runs.c.due_at)
        .where(
            _DUE,
            runs.c.task == bindparam(task),
            runs.c.queue == bindparam(queue),
            runs.c.due_at <= bindparam("now"),
        )
        .order_by(runs.c.due_at)
        .limit(bindparam("count", type_=Integer))
        .subquery()
        for task, queue in names
    ]
    counts = [
        select(
            literal_column(str(number), Integer).label("place"),
            func.count().label("count"),
            func.min(part.c.due_at, type_=Integer).label("oldest"),
        )
        for number, part in enumerate(parts)
    ]
    counted = union_all(*counts).subquery()
    return Statement(
        select(counted.c.place, counted.c.count, counted.c.oldest).where(
            counted.c.count > literal_column("0")
        ),
        ["now", "count", *chain.from_iterable(names)],
    )
