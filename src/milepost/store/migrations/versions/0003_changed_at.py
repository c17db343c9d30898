"""When the version of a snapshot, and of the beginning of a pruned log, was reached."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("changed_at", sa.BigInteger(), nullable=True))
    op.add_column("log_starts", sa.Column("changed_at", sa.BigInteger(), nullable=True))
