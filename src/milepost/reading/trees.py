"""A run with the runs below it, as far as a person can look at them."""

from collections.abc import Sequence

from sqlalchemy import Connection

from milepost.model.run import AttemptEnd, RunStatus
from milepost.protocol.runs import RunTree, TreeAttempt, TreeRun
from milepost.reading.fields import time_of, time_or_none
from milepost.store import runs as run_store
from milepost.store import trees
from milepost.store.attempts import AttemptRow, load_newest_attempts
from milepost.store.runs import RunRow

ATTEMPTS_SHOWN_MAX = 20
_HAS_NEWEST_IN_ITS_ROW = (RunStatus.EXECUTING, RunStatus.WAITING, RunStatus.COMPLETED)


def tree(connection: Connection, run_id: str, *, size: int) -> RunTree:
    """A run, which is there, and the runs below it, `size` of all at most; what is read is bounded by that."""
    ids, generation = [run_id], [run_id]
    is_cut = False
    while generation:
        generation = trees.load_children(connection, generation, limit=size - len(ids) + 1)
        if len(ids) + len(generation) > size:
            generation, is_cut = generation[: size - len(ids)], True
        ids += generation
        if is_cut:
            break
    rows = run_store.load_rows(connection, ids)
    attempts = load_newest_attempts(connection, ids, limit=ATTEMPTS_SHOWN_MAX)
    return RunTree([_told(rows[found], attempts.get(found, [])) for found in ids], is_cut)


def _told(row: RunRow, ended: Sequence[AttemptRow]) -> TreeRun:
    told = [
        TreeAttempt(
            number=attempt.number,
            began_at=time_or_none(attempt.begun_at or attempt.claimed_at),
            ended_at=time_of(attempt.ended_at),
            end=AttemptEnd(attempt.end),
        )
        for attempt in ended
    ]
    if row.status in _HAS_NEWEST_IN_ITS_ROW:
        # The newest one stands in the run's own row.
        told.append(
            TreeAttempt(
                number=row.attempt,
                began_at=time_or_none(row.begun_at or row.claimed_at),
                ended_at=time_or_none(row.finished_at),
                end=AttemptEnd.RETURNED if row.status.is_final else None,
            )
        )
    return TreeRun(
        id=row.id,
        task_identifier=row.task,
        status=row.status,
        parent_id=row.parent_id,
        depth=row.depth,
        created_at=time_of(row.created_at),
        started_at=time_or_none(row.started_at),
        finished_at=time_or_none(row.finished_at),
        attempts=told,
    )
