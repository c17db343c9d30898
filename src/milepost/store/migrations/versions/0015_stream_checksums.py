"""What a writer from outside has sent, in short: other content under the same id is refused."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("stream_writers", sa.Column("checksum", sa.BigInteger(), nullable=True))
