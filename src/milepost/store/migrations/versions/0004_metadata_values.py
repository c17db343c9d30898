"""The search index over documents."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "metadata_values",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("kind", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Double[float](), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "path", "kind", "number", "text"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "metadata_values_place", "metadata_values", ["path", "kind", "number", "text", "run_id"], unique=False
    )
    op.add_column(
        "runs", sa.Column("metadata_unindexed", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    # What is there already is indexed once the server runs.
    op.execute(
        "UPDATE runs SET metadata_unindexed = 1 WHERE metadata_written = 1 OR trigger_metadata IS NOT NULL"
    )
    op.create_index(
        "runs_unindexed",
        "runs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("metadata_unindexed = 1"),
        postgresql_where=sa.text("metadata_unindexed = 1"),
    )
