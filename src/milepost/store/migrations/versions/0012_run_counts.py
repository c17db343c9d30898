"""How many runs have each status is kept, and the runs of a tree are found by index."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "run_counts",
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("parent_id", "status"),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO run_counts SELECT '', status, count(*) FROM runs GROUP BY status")
    op.execute(
        "INSERT INTO run_counts SELECT parent_id, status, count(*) FROM runs WHERE parent_id IS NOT NULL GROUP BY parent_id, status"
    )
    op.create_index(
        "runs_root",
        "runs",
        ["root_id", "id"],
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
