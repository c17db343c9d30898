"""`milepost db backup`: a copy of the database that is whole, also while a server writes to it."""

import os
import sqlite3
from pathlib import Path

from milepost.cli.console import note
from milepost.errors import ConfigurationError
from milepost.server.settings import load_settings
from milepost.store.sqlite import copy_database


def back_up(data: Path, target: Path, *, overwrite: bool) -> None:
    """Write the database of a data folder to a file: everything that was committed when the command began, and nothing half.

    The file appears under its name when it is complete. To use it, put it into the place of `milepost.db` in the data folder of
    a server that does not run, and remove the files that end in `-wal` and `-shm` beside it.

    Raises: ConfigurationError, which says what is in the way.
    """
    settings = load_settings(data_folder=data)
    if not isinstance(settings.database, Path):
        raise ConfigurationError(
            "the database is PostgreSQL (MILEPOST_DATABASE_URL is set), which is backed up by its own tools: pg_dump, or what your "
            "provider has"
        )
    source = settings.database_path
    if not source.is_file():
        raise ConfigurationError(f"there is no database in {data}; name its folder with --data")
    if target.is_dir():
        target = target / source.name
    if target.exists() and not overwrite:
        raise ConfigurationError(f"{target} is there already; choose another name, or add --overwrite")
    if target.exists() and target.samefile(source):
        raise ConfigurationError(f"{target} is the database itself; choose another name")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        # Payloads are nobody else's business, in a copy neither.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            copy_database(source, partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise ConfigurationError(f"{source} could not be copied to {target}: {error}") from error
    note(f"{target}: {target.stat().st_size:,} bytes")
