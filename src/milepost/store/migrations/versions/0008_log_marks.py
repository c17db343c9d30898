"""How far the log of each attempt has come."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "log_marks",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("writer_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("lines_left_out", sa.BigInteger(), nullable=False),
        sa.Column("bytes_left_out", sa.BigInteger(), nullable=False),
        sa.Column("notice_number", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "attempt", "writer_id"),
        sqlite_with_rowid=False,
    )
