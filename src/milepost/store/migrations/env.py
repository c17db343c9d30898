"""Alembic's entry: runs the migrations on the connection that `milepost.store.database` hands over."""

from alembic import context

from milepost.store.schema import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables)
context.run_migrations()
