"""Attempts, workers and queues that are rows, and which runs execute apart."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.drop_index("runs_due", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("charged", sa.Integer(), nullable=False, server_default=sa.text("0")))
        runs.add_column(sa.Column("claim_sequence", sa.BigInteger()))
        runs.add_column(sa.Column("claimed_at", sa.BigInteger()))
        runs.add_column(sa.Column("begun_at", sa.BigInteger()))
        runs.add_column(sa.Column("is_apart", sa.Integer(), nullable=False, server_default=sa.text("0")))
        runs.add_column(sa.Column("resuming_at", sa.BigInteger()))
        runs.drop_constraint("runs_held", "check")
        runs.create_check_constraint(
            "runs_held",
            "(worker_id IS NOT NULL OR status NOT IN ('EXECUTING', 'WAITING')) AND (worker_id IS NULL OR status <> 'QUEUED')",
        )
    # Until now each attempt that had ended without success was charged, and what was held had begun as far as anybody knew.
    op.execute(
        "UPDATE runs SET charged = attempt - (CASE WHEN status IN ('QUEUED', 'FAILED') THEN 0 ELSE 1 END) WHERE attempt > 0"
    )
    op.execute(
        "UPDATE runs SET claimed_at = started_at, begun_at = started_at WHERE status IN ('EXECUTING', 'WAITING')"
    )
    queued = "status = 'QUEUED' AND is_apart = {}"
    op.create_index(
        "runs_due",
        "runs",
        ["task", "queue", "due_at", "id"],
        sqlite_where=sa.text(queued.format(0)),
        postgresql_where=sa.text(queued.format(0)),
    )
    op.create_index(
        "runs_apart",
        "runs",
        ["due_at", "id"],
        sqlite_where=sa.text(queued.format(1)),
        postgresql_where=sa.text(queued.format(1)),
    )
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("begun_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "runs_resuming",
        "runs",
        ["queue", "resuming_at", "id"],
        sqlite_where=sa.text("resuming_at IS NOT NULL"),
        postgresql_where=sa.text("resuming_at IS NOT NULL"),
    )
    op.create_table(
        "queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("is_paused", sa.Integer(), nullable=False),
        sa.Column("executing", sa.Integer(), nullable=False),
        sa.Column("resuming", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    # The limits that tasks have named so far.
    op.execute(
        """
        INSERT INTO queues (name, concurrency, is_paused, executing, resuming)
        SELECT queue, min(queue_concurrency), 0,
            (SELECT count(*) FROM runs WHERE runs.queue = tasks.queue AND runs.status = 'EXECUTING'), 0
        FROM tasks WHERE queue_concurrency IS NOT NULL GROUP BY queue
        """
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tasks", sa.Text(), nullable=False),
        sa.Column("registration", sa.BigInteger(), nullable=False),
        sa.Column("claims", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
