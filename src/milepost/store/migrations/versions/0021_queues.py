"""Concurrency keys, rates and overridden limits of queues."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"
    text = sa.Text(collation="C") if is_postgres else sa.Text()
    integer = sa.BigInteger() if is_postgres else sa.Integer()
    op.drop_index("runs_due", "runs")
    _create_index("runs_due", "runs", ["task", "queue", "due_at", "id"], _QUEUED.format(""))
    _create_index(
        "runs_due_by_key",
        "runs",
        ["task", "queue", "concurrency_key", "due_at", "id"],
        _QUEUED.format("NOT "),
    )
    op.drop_index("runs_resuming", "runs")
    _create_index(
        "runs_resuming",
        "runs",
        ["queue", "concurrency_key", "resuming_at", "id"],
        "resuming_at IS NOT NULL",
    )
    op.add_column("tasks", sa.Column("queue_rate", text, nullable=True))
    op.add_column("queues", sa.Column("concurrency_override", integer, nullable=True))
    op.add_column("queues", sa.Column("overridden_at", sa.BigInteger(), nullable=True))
    op.add_column("queues", sa.Column("rate", text, nullable=True))
    op.add_column("queues", sa.Column("starts", text, nullable=True))
    op.create_table(
        "queue_keys",
        sa.Column("queue", text, nullable=False),
        sa.Column("key", text, nullable=False),
        sa.Column("executing", integer, nullable=False),
        sa.Column("resuming", integer, nullable=False),
        sa.PrimaryKeyConstraint("queue", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "key_places",
        sa.Column("queue", text, nullable=False),
        sa.Column("key", text, nullable=False),
        sa.Column("task", text, nullable=False),
        sa.Column("look_at", sa.BigInteger(), nullable=True),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "key", "task"),
        sqlite_with_rowid=False,
    )
    _create_index(
        "key_places_line", "key_places", ["task", "queue", "look_at", "turn", "key"], "look_at IS NOT NULL"
    )
    # Runs with a key that are queued already, where a version had the keys and not this line.
    op.execute(
        f"""
        INSERT INTO key_places (queue, key, task, look_at, turn)
        SELECT queue, concurrency_key, task, min(due_at), 0 FROM runs WHERE {_QUEUED.format("NOT ")}
        GROUP BY queue, concurrency_key, task
        """
    )
    for name, condition in (("executing", "status = 'EXECUTING'"), ("resuming", "resuming_at IS NOT NULL")):
        op.execute(
            f"""
            UPDATE queues SET {name} = (SELECT count(*) FROM runs WHERE runs.queue = queues.name
            AND runs.status IN ('EXECUTING', 'WAITING') AND runs.concurrency_key IS NULL AND {condition})
            """
        )
    op.execute(
        """
        INSERT INTO queue_keys (queue, key, executing, resuming)
        SELECT queue, concurrency_key, sum(CASE WHEN status = 'EXECUTING' THEN 1 ELSE 0 END),
            sum(CASE WHEN resuming_at IS NOT NULL THEN 1 ELSE 0 END)
        FROM runs WHERE status IN ('EXECUTING', 'WAITING') AND concurrency_key IS NOT NULL
            AND (status = 'EXECUTING' OR resuming_at IS NOT NULL) AND queue IN (SELECT name FROM queues)
        GROUP BY queue, concurrency_key
        """
    )


_QUEUED = "status = 'QUEUED' AND is_apart = 0 AND concurrency_key IS {}NULL"


def _create_index(name: str, table: str, columns: list[str], condition: str) -> None:
    op.create_index(
        name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
    )
