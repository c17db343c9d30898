"""Schema changes in order (Alembic)."""
