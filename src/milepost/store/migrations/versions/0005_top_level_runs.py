"""Runs without a parent are found by index too."""

from collections.abc import Sequence

from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.drop_index("runs_parent", "runs")
    op.create_index("runs_parent", "runs", ["parent_id", "id"], unique=False)
