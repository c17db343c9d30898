"""On SQLite the log of documents is kept in the order in which it is written, and found by an index.

In the order of runs, a commit that writes to many documents wrote a page for each of them.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0026"
down_revision: str | None = "0025"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table("changes", recreate="always", table_kwargs={"sqlite_with_rowid": True}):
            pass
