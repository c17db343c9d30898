"""The version of a run's document stands in the run's row, where it only said whether there is one."""

from collections.abc import Sequence

from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.execute("ALTER TABLE runs RENAME COLUMN metadata_written TO metadata_version")
    # Changes may have been folded away, and there may be no snapshot yet.
    op.execute(
        """
        UPDATE runs SET metadata_version = coalesce(
            (SELECT max(version) FROM changes WHERE changes.run_id = runs.id),
            (SELECT version FROM documents WHERE documents.run_id = runs.id),
            0
        )
        WHERE metadata_version = 1
        """
    )
