"""Checks of statuses in words that cost SQLite less: it builds a table for a list of three or more, for each row that it writes."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0025"
down_revision: str | None = "0024"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_COMMON = ("QUEUED", "EXECUTING", "COMPLETED", "WAITING")
_RARE = ("PENDING_VERSION", "DELAYED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT")  # fmt: skip
_FINAL = ("COMPLETED", *_RARE[2:])


def _is_one_of(*statuses: str) -> str:
    return "(" + " OR ".join(f"status = '{status}'" for status in statuses) + ")"


def _is_none_of(*statuses: str) -> str:
    return "(" + " AND ".join(f"status <> '{status}'" for status in statuses) + ")"


def upgrade() -> None:
    op.drop_index("runs_rare", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.drop_constraint("runs_status", "check")
        runs.create_check_constraint("runs_status", _is_one_of(*_COMMON, *_RARE))
        runs.drop_constraint("runs_held", "check")
        runs.create_check_constraint(
            "runs_held",
            f"(worker_id IS NOT NULL OR {_is_none_of('EXECUTING', 'WAITING')}) AND "
            f"(worker_id IS NULL OR {_is_none_of('QUEUED', 'DELAYED', 'PENDING_VERSION')})",
        )
        runs.drop_constraint("runs_finished", "check")
        runs.create_check_constraint("runs_finished", f"(finished_at IS NOT NULL) = {_is_one_of(*_FINAL)}")
    rare = sa.text(_is_none_of(*_COMMON))
    op.create_index("runs_rare", "runs", ["status", "id"], sqlite_where=rare, postgresql_where=rare)
    with op.batch_alter_table("waitpoints") as waitpoints:
        waitpoints.drop_constraint("waitpoints_status", "check")
        waitpoints.create_check_constraint(
            "waitpoints_status", "status = 'WAITING' OR status = 'COMPLETED' OR status = 'TIMED_OUT'"
        )
