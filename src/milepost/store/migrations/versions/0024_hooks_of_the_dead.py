"""Runs whose process has died and whose last hooks another one runs."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0024"
down_revision: str | None = "0023"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    integer = sa.BigInteger() if is_postgres else sa.Integer()
    op.add_column("runs", sa.Column("closing", text))
    op.add_column("tasks", sa.Column("has_end_hooks", integer, nullable=False, server_default=sa.text("0")))
