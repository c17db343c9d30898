"""`milepost server`: the server and its dashboard, without executors; and the care of its database."""

from importlib.metadata import version
from pathlib import Path

from milepost.cli.console import err, note
from milepost.cli.hosting import bind, hosted, owned_folder
from milepost.cli.stopping import StopSignals, first_of
from milepost.errors import ConfigurationError
from milepost.server.settings import load_settings
from milepost.store.database import Store


async def serve(*, host: str, port: int, data: Path) -> None:
    """Run the server until a signal asks for the end. Raises ConfigurationError."""
    settings = load_settings(data_folder=data)
    if not settings.secret_key:
        raise ConfigurationError(
            "MILEPOST_SECRET_KEY is not set: choose a long random text (openssl rand -hex 24) and give it to the server, "
            "to workers and to clients"
        )
    with StopSignals() as signals, bind(host, port) as listener, owned_folder(data):
        async with hosted(settings, listener) as server:
            err.print(f"[bold]Milepost {version('milepost')}[/] serves at {server.url}", soft_wrap=True)
            note(f"dashboard: {server.sign_in_link()}")
            await first_of(signals.asked.wait(), server.ended)


def upgrade_database(data: Path) -> None:
    """Bring the database to the schema of this version. Raises ConfigurationError."""
    with owned_folder(data):
        settings = load_settings(data_folder=data)
        Store(settings.database_path, synchronous=settings.sqlite_synchronous).close()
        note(f"{settings.database_path} has the schema of Milepost {version('milepost')}")
