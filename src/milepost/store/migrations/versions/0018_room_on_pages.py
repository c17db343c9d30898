"""More room on the pages of `runs` of PostgreSQL. Runs that are inserted together are updated together: of 25 updates of 200 documents
89 % touched no index with 15 % of each page free, and 95 % with 30 % free."""

from collections.abc import Sequence

from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # For pages that are written from now on.
        op.execute("ALTER TABLE runs SET (fillfactor = 70)")
