"""`milepost db`."""

from pathlib import Path

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, Group, argument, flag


@click.group(cls=Group)
def db() -> None:
    """Care for the database."""


@db.command(cls=Command)
@options.data
@options.database
def upgrade(*, data: Path, database: str | None) -> None:
    """Bring the database to the schema of this version. `milepost dev` and `milepost server` do it by themselves."""
    from milepost.cli import database as command

    command.upgrade(data, database)


@db.command(cls=Command)
@options.data
@options.database
def status(*, data: Path, database: str | None) -> None:
    """Say which database is used and whether its schema is the one of this version. Changes nothing."""
    from milepost.cli import database as command

    command.show_status(data, database)


@db.command(cls=Command)
@argument("source", metavar="FROM", help="A data folder, or the URL of a PostgreSQL database.")
@argument("target", metavar="TO", help="A folder or URL likewise; it must be empty or new.")
def copy(*, source: str, target: str) -> None:
    """Copy everything into another database: from SQLite to PostgreSQL, back, or between two of a kind.

    No server may use them meanwhile. Leave passwords out of the URLs: PGPASSWORD and ~/.pgpass are read.
    Example:  milepost db copy .milepost postgresql://milepost@db.example/milepost
    """
    from milepost.cli import database as command

    command.copy(source, target)


@db.command(cls=Command)
@argument(
    "file",
    type=click.Path(path_type=Path, readable=False),
    help="The file to write, or a folder for milepost.db.",
)
@options.data
@flag("--overwrite", help="Replace the file if it is there.")
def backup(*, file: Path, data: Path, overwrite: bool) -> None:
    """Copy the database to a file, also while a server uses it.

    To use the copy, put it into the data folder of a server that does not run, as milepost.db, and remove milepost.db-wal and
    milepost.db-shm there.  Example:  milepost db backup monday.db
    """
    from milepost.cli.backup import back_up

    back_up(data, file, overwrite=overwrite)
