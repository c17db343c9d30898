"""What runs wait for beside other runs: tokens and times."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0023"
down_revision: str | None = "0022"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    integer = sa.BigInteger() if is_postgres else sa.Integer()
    op.create_table(
        "waitpoints",
        sa.Column("id", text, primary_key=True),
        sa.Column("kind", text, nullable=False),
        sa.Column("status", text, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("timeout_at", sa.BigInteger()),
        sa.Column("is_timeout_given", integer, nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("run_id", text),
        sa.Column("tags", text),
        sa.Column("key", text),
        sa.Column("key_expires_at", sa.BigInteger()),
        sa.Column("output", text),
        sa.CheckConstraint("kind IN ('TOKEN', 'TIME')", name="waitpoints_kind"),
        sa.CheckConstraint("status IN ('WAITING', 'COMPLETED', 'TIMED_OUT')", name="waitpoints_status"),
        sa.CheckConstraint("(ended_at IS NULL) = (status = 'WAITING')", name="waitpoints_ended"),
    )
    _index("waitpoints_due", ["timeout_at", "id"], "status = 'WAITING' AND timeout_at IS NOT NULL")
    _index("waitpoints_open", ["id"], "status = 'WAITING' AND kind = 'TOKEN'")
    _index("waitpoints_key", ["key"], "key IS NOT NULL", unique=True)
    _index("waitpoints_ended_at", ["ended_at", "id"], "ended_at IS NOT NULL")
    op.create_table(
        "waitpoint_waiters",
        sa.Column("waitpoint_id", text, primary_key=True),
        sa.Column("run_id", text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "waitpoint_tags",
        sa.Column("tag", text, primary_key=True),
        sa.Column("waitpoint_id", text, primary_key=True),
        sqlite_with_rowid=False,
    )


def _index(name: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    op.create_index(
        name,
        "waitpoints",
        columns,
        unique=unique,
        sqlite_where=sa.text(condition),
        postgresql_where=sa.text(condition),
    )
