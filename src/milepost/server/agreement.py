"""Servers on one database should have the same settings: each that starts compares its own with those of the one before, and says
where they differ. It starts all the same, because that is how a setting is changed in a fleet, one server after the other."""

import hashlib
import logging
import os
import platform

import msgspec

from milepost.server.settings import ServerSettings, variable_of
from milepost.store.database import Store
from milepost.store.server_settings import SettingRow, load_settings_rows, save_settings_rows

logger = logging.getLogger("milepost.server")

AGREED = (
    "metadata_size_max",
    "metadata_grace_seconds",
    "lease_seconds",
    "stop_grace_seconds",
    "log_bytes_max",
    "stream_bytes_max",
    "history_days",
    "stream_days",
    "keep_completed_runs",
    "keep_failed_runs",
    "keep_canceled_runs",
    "keep_logs",
    "keep_payloads",
    "cors_origins",
)
"""Settings by which a request is answered otherwise at a server that has another value."""
KEY = "secret_key"
# Whoever reads the database must not come to the key by trying many: each try takes as long as this and 16 MB.
_KEY_COST = {"n": 2**14, "r": 8, "p": 1, "dklen": 16}


def compare(store: Store, settings: ServerSettings, *, now: int) -> None:
    """Say in which settings this server differs from the one that has started before it, and leave its own for the next.

    Args:
        now: microseconds since 1970.
    Raises: UnavailableError.
    """
    server = f"{platform.node()}, process {os.getpid()}"
    own = {name: msgspec.json.encode(getattr(settings, name)).decode() for name in AGREED}
    own[KEY] = _fingerprint(settings.secret_key)
    with store.write() as connection:
        known = {row.name: row for row in load_settings_rows(connection)}
        changed = [
            SettingRow(name, value, server, now)
            for name, value in own.items()
            if name not in known or known[name].value != value
        ]
        save_settings_rows(connection, changed)
    for row in changed:
        before = known.get(row.name)
        if before is None:
            continue
        if row.name == KEY:
            logger.warning(
                "MILEPOST_SECRET_KEY of this server is another one than that of %s: requests, tokens and sessions that one of them "
                "accepts are refused by the other; give every server of the database %s the same",
                before.server,
                store.place,
            )
        else:
            logger.warning(
                "%s is %s at this server and %s at %s, on the same database %s: give every server the same, or what "
                "happens depends on which one is asked",
                variable_of(row.name),
                row.value,
                before.value,
                before.server,
                store.place,
            )


def _fingerprint(key: str) -> str:
    return hashlib.scrypt(
        key.encode("utf-8", "surrogateescape"), salt=b"milepost agreement", **_KEY_COST
    ).hex()
