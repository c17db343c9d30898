"""Which runs and log lines are old enough to go. Found in reader threads; commands of the committer delete them, a few at a time."""

from collections.abc import Mapping
from datetime import timedelta

from milepost.model.identifiers import lowest_id
from milepost.model.run import RunStatus
from milepost.store import deletion
from milepost.store.database import Store
from milepost.store.deletion import OldPayloads

_CANCELED = frozenset({"CANCELED", "EXPIRED"})


def cutoffs_of(
    now: int, *, completed: timedelta | None, failed: timedelta | None, canceled: timedelta | None
) -> dict[RunStatus, int]:
    """Before which time a run must have finished to be old, by status; statuses that are kept for ever are left out."""
    found: dict[RunStatus, int] = {}
    for status in RunStatus:
        if not status.is_final:
            continue
        kept = (
            completed if status is RunStatus.COMPLETED else canceled if status.value in _CANCELED else failed
        )
        if kept is not None:
            found[status] = now - kept // timedelta(microseconds=1)
    return found


def old_roots(
    store: Store, *, after: str, limit: int, cutoffs: Mapping[RunStatus, int], settled_before: int
) -> tuple[list[str], str | None]:
    """See `store.deletion.old_roots`; what was triggered after the latest of the times is not looked at."""
    before = lowest_id("run", max(cutoffs.values()))
    with store.read() as connection:
        return deletion.old_roots(
            connection,
            after=after,
            before=before,
            limit=limit,
            cutoffs=cutoffs,
            settled_before=settled_before,
        )


def old_payloads(store: Store, *, after: str, limit: int, finished_before: int) -> OldPayloads:
    """See `store.deletion.old_payloads`; what was triggered after the time is not looked at."""
    with store.read() as connection:
        return deletion.old_payloads(
            connection,
            after=after,
            before=lowest_id("run", finished_before),
            limit=limit,
            finished_before=finished_before,
        )


def old_log_lines(
    store: Store, *, after: int, finished_before: int, limit: int
) -> tuple[list[int], int | None]:
    """See `store.deletion.old_log_lines`."""
    with store.read() as connection:
        return deletion.old_log_lines(connection, after=after, finished_before=finished_before, limit=limit)
