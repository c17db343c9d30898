"""Databases as older versions made them."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

MIGRATIONS = "milepost:store/migrations"


def set_back(path: Path, revision: str) -> sa.Engine:
    """The tables of an older version, in a new file."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", MIGRATIONS)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine
