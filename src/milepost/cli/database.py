"""`milepost db`: which database it is, its schema, and copying it into another one."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

from milepost.cli.console import note, print_line
from milepost.cli.hosting import owned_folder
from milepost.errors import ConfigurationError
from milepost.server.settings import ServerSettings, load_settings
from milepost.store import files
from milepost.store.copying import copy_store
from milepost.store.database import Store, schema_of


def settings_of(data: Path, database: str | None) -> ServerSettings:
    """The settings with the database that the options name: a URL, or else the folder. Raises ConfigurationError."""
    given = {} if database is None else {"database_url": database}
    return load_settings(data_folder=data, **given)


def upgrade(data: Path, database: str | None) -> None:
    """Bring the database to the schema of this version. Raises ConfigurationError."""
    settings = settings_of(data, database)
    # Servers that share a database wait for each other in it.
    with owned_folder(data) if isinstance(settings.database, Path) else nullcontext():
        store = Store(settings.database, synchronous=settings.sqlite_synchronous)
        store.close()
        note(f"{store.place} has the schema of Milepost {version('milepost')}")


def show_status(data: Path, database: str | None) -> None:
    """Say which database it is and which schema it has, and change nothing. Raises ConfigurationError when it cannot be asked."""
    schema = schema_of(settings_of(data, database).database)
    if schema.present == schema.newest:
        verdict = "is the newest one"
    elif schema.present is None:
        verdict = "means that it has no tables yet: `milepost db upgrade` makes them, and a server does at its start"
    elif schema.is_known:
        verdict = f"is older than this version's {schema.newest}: `milepost db upgrade` brings it there, and so does a server"
    else:
        verdict = f"is newer than this version's {schema.newest}: upgrade Milepost"
    print_line(schema.place)
    print_line(f"schema {schema.present or 'none'} {verdict}")


def copy(source: str, target: str) -> None:
    """Copy a database into an empty one; each is a data folder or the URL of a PostgreSQL database. Raises ConfigurationError."""
    if "://" not in source and not (Path(source) / files.DATABASE).is_file():
        raise ConfigurationError(f"there is no database in the folder {source}")
    with _opened(source) as reading, _opened(target) as writing:
        copied = copy_store(reading, writing)
    note(
        f"{sum(copied.values()):,} rows of {reading.place} are in {writing.place} now, {copied['runs']:,} of them runs"
    )


@contextmanager
def _opened(place: str) -> Generator[Store]:
    is_url = "://" in place
    with nullcontext() if is_url else owned_folder(Path(place)):
        store = Store(place if is_url else Path(place) / files.DATABASE)
        try:
            yield store
        finally:
            store.close()
