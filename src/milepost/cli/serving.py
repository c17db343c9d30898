"""`milepost server`: the server and its dashboard, without executors."""

import asyncio
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

from milepost.cli.console import is_drawn, note
from milepost.cli.database import settings_of
from milepost.cli.hosting import bind, hosted, owned_folder
from milepost.cli.settings import name_unknown_settings
from milepost.cli.stopping import StopSignals, first_of
from milepost.errors import ConfigurationError
from milepost.server.auth import CODE_SECONDS
from milepost.server.settings import ServerSettings
from milepost.store.database import away_reason

KEY_CHARACTERS_MIN = 16


# Between two looks for a database that is away.
AWAY_SECONDS = 1.0


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
        await _wait_for_database(settings, signals.asked)
        if signals.asked.is_set():
            return
        async with hosted(settings, listener, signals.hurried) as server:
            note(
                f"Milepost {version('milepost')} serves at {server.url}", event="server.ready", url=server.url
            )
            if server.network_url:
                note(f"other machines reach it at {server.network_url}")
            # Whoever reads the log of a server must not be able to sign in with it.
            if is_drawn(sys.stderr):
                note(f"dashboard: {server.sign_in_link()} (once, within {CODE_SECONDS // 60} minutes)")
            note("`milepost dashboard` prints a link that signs a browser in")
            await first_of(signals.asked.wait(), server.ended)
            if settings.drain_seconds > 0 and not server.ended.done():
                note(
                    f"not ready any more, and serving for another {settings.drain_seconds:g} s; a second signal ends it at once",
                    event="server.draining",
                )
            await server.drain(settings.drain_seconds, signals.hurried)


async def _wait_for_database(settings: ServerSettings, asked: asyncio.Event) -> None:
    """Wait until the database can be reached, for as long as the settings say: in a fleet nobody says what starts first.

    It returns when it is there, when waiting would not help (opening it says why), and when the end is asked for.

    Raises: ConfigurationError when it does not come.
    """
    place = settings.database
    if isinstance(place, Path):
        return
    began = asyncio.get_running_loop().time()
    known: str | None = None
    # In a thread, so that a signal is heard while a connection is tried.
    while (reason := await asyncio.to_thread(away_reason, place)) is not None and not asked.is_set():
        left = began + settings.database_wait_seconds - asyncio.get_running_loop().time()
        if left <= 0:
            raise ConfigurationError(
                f"the database cannot be reached, {reason}; the server has waited for {settings.database_wait_seconds:g} s "
                "(MILEPOST_DATABASE_WAIT_SECONDS)"
            )
        if reason != known:
            note(
                f"waiting for the database, for {left:.0f} s at most: {reason}",
                level="warning",
                event="server.waiting",
            )
            known = reason
        await first_of(asyncio.sleep(min(left, AWAY_SECONDS)), asked.wait())
