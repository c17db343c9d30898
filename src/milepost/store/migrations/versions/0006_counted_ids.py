"""The `once` ids that were counted, in a table of their own."""

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_IDS = msgspec.json.Decoder(list[str])
_OPERATIONS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_ROWS = 1000


def upgrade() -> None:
    counted = op.create_table(
        "counted_ids",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "id"),
        sqlite_with_rowid=False,
    )
    # Until now an id counted once over all keys, so what was counted counts for every key.
    connection = op.get_bind()
    insert = sa.insert(counted).prefix_with("OR IGNORE", dialect="sqlite")
    rows: list[dict[str, object]] = []
    for run_id, once in _counted_before(connection):
        # As `milepost.model.counted.id_over_all_keys` makes it.
        id = hashlib.blake2b(msgspec.json.encode([once]), digest_size=12).digest()
        rows.append({"run_id": run_id, "id": id})
        if len(rows) == _ROWS:
            connection.execute(insert, rows)
            rows = []
    if rows:
        connection.execute(insert, rows)
    op.drop_column("documents", "counted")
    op.drop_column("log_starts", "counted")


def _counted_before(connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """(run, id) as they stand with the snapshots and in the logs; some of them more than once."""
    for table in ("documents", "log_starts"):
        texts = sa.text(f"SELECT run_id, counted FROM {table} WHERE counted IS NOT NULL")
        for run_id, ids in connection.execute(texts):
            for once in _IDS.decode(ids):
                yield run_id, once
    is_there = {
        "sqlite": "instr(operations, CAST('\"once\"' AS BLOB)) > 0",
        "postgresql": "position('\"once\"'::bytea IN operations) > 0",
    }[connection.dialect.name]
    with_ids = sa.text(f"SELECT run_id, operations FROM changes WHERE {is_there}")
    for run_id, operations in connection.execute(with_ids):
        for operation in _OPERATIONS.decode(operations):
            if "once" in operation:
                yield run_id, msgspec.json.decode(operation["once"], type=str)
