"""The log of a run."""

from sqlalchemy import Connection

from milepost.protocol.runs import LogLine, RunLog
from milepost.store import records

LOG_PAGE = 500


def page(connection: Connection, run_id: str, *, after: int) -> RunLog:
    """Lines of a run's log above the cursor."""
    lines = records.load_logs(connection, run_id, after=after, limit=LOG_PAGE + 1)
    shown = lines[:LOG_PAGE]
    return RunLog(
        data=[
            LogLine(at=row.at, level=row.level, message=row.message, attempt=row.attempt, logger=row.logger)
            for _, row in shown
        ],
        next=shown[-1][0] if len(lines) > LOG_PAGE else None,
    )
