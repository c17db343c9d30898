"""`milepost server`: the server and its dashboard, without executors."""

from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

from milepost.cli.console import err, note
from milepost.cli.database import settings_of
from milepost.cli.hosting import bind, hosted, owned_folder
from milepost.cli.settings import name_unknown_settings
from milepost.cli.stopping import StopSignals, first_of
from milepost.errors import ConfigurationError
from milepost.server.auth import CODE_SECONDS

KEY_CHARACTERS_MIN = 16


async def serve(
    *, host: str, port: int, data: Path, database: str | None, drain_seconds: float | None
) -> None:
    """Run the server until a signal asks for the end. Raises ConfigurationError."""
    name_unknown_settings()
    settings = settings_of(data, database)
    if drain_seconds is not None:
        settings = settings.model_copy(update={"drain_seconds": drain_seconds})
    if not settings.secret_key:
        raise ConfigurationError(
            "MILEPOST_SECRET_KEY is not set: choose a long random text (openssl rand -hex 24) and give it to the server, "
            "to workers and to clients"
        )
    if len(settings.secret_key) < KEY_CHARACTERS_MIN:
        note(
            f"MILEPOST_SECRET_KEY has only {len(settings.secret_key)} characters, and who guesses it can do everything: "
            f"use {KEY_CHARACTERS_MIN} random ones or more (openssl rand -hex 24)"
        )
    # Only a folder has one user at a time.
    owned = owned_folder(data) if isinstance(settings.database, Path) else nullcontext()
    with StopSignals() as signals, bind(host, port) as listener, owned:
        async with hosted(settings, listener, signals.hurried) as server:
            note(
                f"Milepost {version('milepost')} serves at {server.url}", event="server.ready", url=server.url
            )
            if server.network_url:
                note(f"other machines reach it at {server.network_url}")
            # Whoever reads the log of a server must not be able to sign in with it.
            if err.is_terminal:
                note(f"dashboard: {server.sign_in_link()} (once, within {CODE_SECONDS // 60} minutes)")
            note("`milepost dashboard` prints a link that signs a browser in")
            await first_of(signals.asked.wait(), server.ended)
            if settings.drain_seconds > 0 and not server.ended.done():
                note(
                    f"not ready any more, and serving for another {settings.drain_seconds:g} s; a second signal ends it at once",
                    event="server.draining",
                )
            await server.drain(settings.drain_seconds, signals.hurried)
