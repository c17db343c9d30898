"""The first tables."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("answers_created_at", "answers", ["created_at"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("resume_parent", sa.Integer(), nullable=False),
        sa.Column("run_count", sa.Integer(), nullable=False),
        sa.Column("accepted_count", sa.Integer(), nullable=False),
        sa.Column("finished_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "finished_count <= accepted_count AND accepted_count <= run_count", name="batches_counts"
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "changes",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("operations", sa.LargeBinary(), nullable=False),
        sa.Column("writer_id", sa.Text(), nullable=True),
        sa.Column("writer_attempt", sa.Integer(), nullable=True),
        sa.Column("writer_sequence", sa.Integer(), nullable=True),
        sa.Column("refused", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "version"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "documents",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("counted", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "large_values",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "name"),
    )
    op.create_table(
        "logs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("logger", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("logs_run", "logs", ["run_id", "number"], unique=False)
    op.create_table(
        "refusals",
        sa.Column("writer_id", sa.Text(), nullable=False),
        sa.Column("writer_attempt", sa.Integer(), nullable=False),
        sa.Column("writer_sequence", sa.Integer(), nullable=False),
        sa.Column("refused", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("writer_id", "writer_attempt", "writer_sequence"),
    )
    op.create_table(
        "run_tags",
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "run_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=True),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("report_sequence", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("root_id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("batch_index", sa.Integer(), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("trigger_function", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("payload_type", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("trigger_metadata", sa.LargeBinary(), nullable=True),
        sa.Column("metadata_written", sa.Integer(), nullable=False),
        sa.Column("large", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('COMPLETED', 'FAILED'))", name="runs_finished"
        ),
        sa.CheckConstraint(
            "(worker_id IS NOT NULL) = (status IN ('EXECUTING', 'WAITING'))", name="runs_held"
        ),
        sa.CheckConstraint(
            "status IN ('QUEUED', 'EXECUTING', 'WAITING', 'COMPLETED', 'FAILED')", name="runs_status"
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "runs_batch",
        "runs",
        ["batch_id", "batch_index"],
        unique=True,
        sqlite_where=sa.text("batch_id IS NOT NULL"),
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "runs_due",
        "runs",
        ["task", "due_at", "id", "queue"],
        unique=False,
        sqlite_where=sa.text("status = 'QUEUED'"),
        postgresql_where=sa.text("status = 'QUEUED'"),
    )
    op.create_index(
        "runs_failed",
        "runs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("status = 'FAILED'"),
        postgresql_where=sa.text("status = 'FAILED'"),
    )
    op.create_index(
        "runs_held_by",
        "runs",
        ["worker_id"],
        unique=False,
        sqlite_where=sa.text("status IN ('EXECUTING', 'WAITING')"),
        postgresql_where=sa.text("status IN ('EXECUTING', 'WAITING')"),
    )
    op.create_index(
        "runs_parent",
        "runs",
        ["parent_id", "id"],
        unique=False,
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index("runs_task", "runs", ["task", "id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("queue_concurrency", sa.Integer(), nullable=True),
        sa.Column("retry", sa.LargeBinary(), nullable=False),
        sa.Column("payload_schema", sa.LargeBinary(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
