"""Where pruned logs begin, and what the newest report of a run said."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "log_starts",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("counted", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.add_column("runs", sa.Column("report_checksum", sa.BigInteger(), nullable=True))
