"""Carrying out what has been found to be old: the logs of documents become shorter, a bounded number at a time."""

from milepost.engine import jobs
from milepost.engine.commands import PruneHistory
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.store import documents as document_store
from milepost.store import history as store


def prune_history(command: PruneHistory, transaction: Transaction, state: EngineState) -> None:
    """Shorten logs, and fold first where the log is all that there is.

    The newest document is read from the snapshot and the changes above it; the snapshot is never older than the changes that go.
    """
    if not jobs.is_ours(JobName.HISTORY, transaction, state):
        return
    # What this group has written must be seen here.
    transaction.save()
    connection = transaction.connection
    parts = {log.run_id: log.start for log in command.logs if log.start is not None}
    present = store.start_marks(connection, list(parts))
    saved = store.snapshot_marks(connection, list(parts))
    starts = [
        start
        for run_id, start in parts.items()
        if run_id not in present or present[run_id].version < start.version
    ]
    document_store.save_snapshots(
        connection,
        [
            start
            for start in starts
            if start.run_id not in saved or saved[start.run_id].version < start.version
        ],
    )
    store.save_starts(connection, starts)
    whole = [log.run_id for log in command.logs if log.start is None]
    store.delete_starts(connection, whole)
    store.delete_refusals(connection, whole)
    store.delete_changes(connection, {log.run_id: log.up_to for log in command.logs})
    store.delete_counted(connection, [(log.run_id, id) for log in command.logs for id in log.counted])
