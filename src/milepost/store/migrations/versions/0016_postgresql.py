"""What PostgreSQL is told besides: the order of texts, whole numbers of 64 bits, room for updates in place. And the announcements
that servers on one database read from each other, which SQLite has too, so that both have the same tables and one suite."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

# Rows that are updated often: a new version of a row fits on its page, and no index has to be told.
_FILL = {
    "runs": 80,
    "documents": 80,
    "streams": 70,
    "stream_writers": 70,
    "log_marks": 70,
    "batches": 70,
    "queues": 20,
    "run_counts": 50,
    "workers": 50,
}


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    op.create_table(
        "commit_numbers",
        sa.Column("name", text, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "announcements",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    if is_postgres:
        _tell_postgresql()


def _tell_postgresql() -> None:
    connection = op.get_bind()
    columns = sa.text(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = current_schema() "
        "AND table_name <> 'alembic_version' AND (data_type = 'text' AND collation_name IS DISTINCT FROM 'C' OR data_type = 'integer')"
    )
    changes: dict[str, list[str]] = {}
    for table, column, kind in connection.execute(columns):
        wanted = 'text COLLATE "C"' if kind == "text" else "bigint"
        changes.setdefault(table, []).append(f'ALTER COLUMN "{column}" TYPE {wanted}')
    # What an index or a check compares with a number is written anew by the statement itself.
    for table, parts in sorted(changes.items()):
        op.execute(f'ALTER TABLE "{table}" {", ".join(parts)}')
    op.execute("ALTER SEQUENCE logs_number_seq AS bigint")
    for table, percent in _FILL.items():
        op.execute(f'ALTER TABLE "{table}" SET (fillfactor = {percent})')
