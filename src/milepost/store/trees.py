"""A run and all runs below it."""

from collections.abc import Sequence

from sqlalchemy import CTE, Connection, select

from milepost.model.run import FINAL_STATUSES
from milepost.store.schema import runs
from milepost.store.statements import among


def tree_of(run_id: str) -> CTE:
    """The ids of a run and of all runs below it, in a column `id`."""
    tree = select(runs.c.id).where(runs.c.id == run_id).cte("tree", recursive=True)
    return tree.union_all(select(runs.c.id).join(tree, runs.c.parent_id == tree.c.id))


def load_children(connection: Connection, parent_ids: Sequence[str], *, limit: int) -> list[str]:
    """The ids of up to `limit` children of these runs, the oldest first."""
    statement = (
        select(runs.c.id)
        .where(among(connection, runs.c.parent_id, parent_ids))
        .order_by(runs.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def has_unfinished(connection: Connection, run_id: str) -> bool:
    """Whether the run or one below it has not finished."""
    tree = tree_of(run_id)
    statement = (
        select(runs.c.id)
        .join(tree, runs.c.id == tree.c.id)
        .where(runs.c.status.not_in([status.value for status in sorted(FINAL_STATUSES)]))
        .limit(1)
    )
    return connection.execute(statement).first() is not None
