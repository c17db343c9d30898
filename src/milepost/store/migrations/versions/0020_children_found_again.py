"""Idempotency keys, children that later attempts of their parent find again, and batches with runs that were there before."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    integer = sa.BigInteger() if is_postgres else sa.Integer()
    op.add_column("runs", sa.Column("parent_attempt", integer))
    op.add_column("runs", sa.Column("is_shared", integer, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "batch_members",
        sa.Column("batch_id", text, nullable=False),
        sa.Column("batch_index", integer, autoincrement=False, nullable=False),
        sa.Column("run_id", text, nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "batch_index"),
        sqlite_with_rowid=False,
    )
    op.create_index("batch_members_run", "batch_members", ["run_id"])
    op.create_table(
        "run_waiters",
        sa.Column("run_id", text, nullable=False),
        sa.Column("waiter_id", text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "waiter_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", text, nullable=False),
        sa.Column("task", text, nullable=False),
        sa.Column("target_id", text, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "task"),
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])
