"""Runs that are delayed, wait for a worker that knows their task, expire, are cancelled, or time out."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_STATUSES = (
    "PENDING_VERSION", "DELAYED", "QUEUED", "EXECUTING", "WAITING", "COMPLETED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE",
    "EXPIRED", "TIMED_OUT",
)  # fmt: skip
_FINAL = _STATUSES[5:]
_RARE = ("PENDING_VERSION", "DELAYED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT")  # fmt: skip
_HELD = (
    "(worker_id IS NOT NULL OR status NOT IN ('EXECUTING', 'WAITING')) "
    "AND (worker_id IS NULL OR status NOT IN ('PENDING_VERSION', 'DELAYED', 'QUEUED'))"
)


def _list(statuses: Sequence[str]) -> str:
    return ", ".join(f"'{status}'" for status in statuses)


def upgrade() -> None:
    text = sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.drop_index("runs_failed", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("concurrency_key", text))
        runs.add_column(sa.Column("expires_at", sa.BigInteger()))
        runs.add_column(
            sa.Column("is_due_at_given", sa.Integer().with_variant(sa.BigInteger(), "postgresql"))
        )
        runs.add_column(sa.Column("cancel_asked_at", sa.BigInteger()))
        runs.add_column(
            sa.Column("cancels_children", sa.Integer().with_variant(sa.BigInteger(), "postgresql"))
        )
        runs.add_column(sa.Column("options", text))
        runs.drop_constraint("runs_status", "check")
        runs.create_check_constraint("runs_status", f"status IN ({_list(_STATUSES)})")
        runs.drop_constraint("runs_held", "check")
        runs.create_check_constraint("runs_held", _HELD)
        runs.drop_constraint("runs_finished", "check")
        runs.create_check_constraint(
            "runs_finished", f"(finished_at IS NOT NULL) = (status IN ({_list(_FINAL)}))"
        )
    _index("runs_rare", ["status", "id"], f"status IN ({_list(_RARE)})")
    _index("runs_delayed", ["due_at", "id"], "status = 'DELAYED'")
    _index("runs_pending", ["task", "id"], "status = 'PENDING_VERSION'")
    _index("runs_expiring", ["expires_at", "id"], "expires_at IS NOT NULL")
    _index("runs_cancelling", ["id"], "cancels_children = 1")
    never_offered = "status = 'QUEUED' AND task NOT IN (SELECT id FROM tasks)"
    waiting = f"SELECT coalesce(parent_id, ''), count(*) FROM runs WHERE {never_offered} GROUP BY coalesce(parent_id, '')"
    counts = list(op.get_bind().execute(sa.text(waiting)))
    op.execute(f"UPDATE runs SET status = 'PENDING_VERSION' WHERE {never_offered}")
    total = sum(count for _, count in counts)
    for parent_id, count in [*((parent, count) for parent, count in counts if parent), ("", total)]:
        if count:
            _move_count(parent_id, count)


def _index(name: str, columns: list[str], condition: str) -> None:
    op.create_index(
        name, "runs", columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
    )


def _move_count(parent_id: str, count: int) -> None:
    values = {"parent": parent_id, "count": count}
    connection = op.get_bind()
    connection.execute(
        sa.text(
            "UPDATE run_counts SET count = count - :count WHERE parent_id = :parent AND status = 'QUEUED'"
        ),
        values,
    )
    connection.execute(
        sa.text(
            "INSERT INTO run_counts (parent_id, status, count) VALUES (:parent, 'PENDING_VERSION', :count)"
        ),
        values,
    )
