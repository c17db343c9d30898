"""Schedules, and which of them has triggered a run."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0022"
down_revision: str | None = "0021"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    integer = sa.BigInteger() if is_postgres else sa.Integer()
    op.create_table(
        "schedules",
        sa.Column("id", text, nullable=False),
        sa.Column("task", text, nullable=False),
        sa.Column("type", text, nullable=False),
        sa.Column("cron", text),
        sa.Column("every", sa.BigInteger()),
        sa.Column("timezone", text, nullable=False),
        sa.Column("anchor_at", sa.BigInteger(), nullable=False),
        sa.Column("is_active", integer, nullable=False),
        sa.Column("next_at", sa.BigInteger()),
        sa.Column("last_at", sa.BigInteger()),
        sa.Column("last_run_id", text),
        sa.Column("note", text),
        sa.Column("external_id", text),
        sa.Column("deduplication_key", text),
        sa.Column("payload", text),
        sa.Column("payload_type", text),
        sa.Column("metadata", sa.LargeBinary()),
        sa.Column("tags", text),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(cron IS NULL) <> (every IS NULL)", name="schedules_times"),
        sa.CheckConstraint("(next_at IS NULL) = (is_active = 0)", name="schedules_active"),
        sa.PrimaryKeyConstraint("id"),
    )
    for name, columns, is_unique, condition in (
        ("schedules_next", ["next_at", "id"], False, "next_at IS NOT NULL"),
        ("schedules_declared", ["task"], True, "type = 'DECLARATIVE'"),
        ("schedules_task", ["task", "id"], False, None),
        ("schedules_deduplication_key", ["deduplication_key"], True, "deduplication_key IS NOT NULL"),
    ):
        where = None if condition is None else sa.text(condition)
        op.create_index(
            name, "schedules", columns, unique=is_unique, sqlite_where=where, postgresql_where=where
        )
    op.create_table(
        "scheduled_runs",
        sa.Column("run_id", text, nullable=False),
        sa.Column("schedule_id", text, nullable=False),
        sa.Column("scheduled_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("scheduled_runs_schedule", "scheduled_runs", ["schedule_id", "run_id"])
