"""Where the server is and with which key: the environment, else the file that `milepost dev` writes next to the project."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from milepost.client.environment import WrongSetting, read_settings, setting, text, truth
from milepost.errors import ConfigurationError

DEVELOPMENT_FILE = Path(".milepost") / "dev.json"


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """What the environment says: `MILEPOST_API_URL`, `MILEPOST_SECRET_KEY` and `MILEPOST_DEV_SERVER`."""

    api_url: str = setting(text, "")
    secret_key: str = setting(text, "")
    # Whether the development server of this folder is used; when left out it is, but not by tests.
    dev_server: bool | None = setting(truth, None)


# Set by pytest for its process and inherited by those that a test starts: the first for the session, the second while a test runs.
_TEST_VARIABLES = ("PYTEST_VERSION", "PYTEST_CURRENT_TEST")


class DevelopmentServer(msgspec.Struct):
    """What `milepost dev` writes to `.milepost/dev.json`."""

    url: str
    secret_key: str


@dataclass(frozen=True)
class Address:
    """Where the server is, with which key, and the file that said so, if one did."""

    api_url: str
    secret_key: str
    file: Path | None = None


def find_address(api_url: str | None = None, secret_key: str | None = None) -> Address:
    """Fill in what is not given from the environment, else from the development server of this folder or one above.

    Tests do not find the development server by themselves: a forgotten sandbox would put runs of a test among those of its user.

    Raises: ConfigurationError when nothing says where the server is, or with which key.
    """
    try:
        settings = read_settings(ClientSettings, ignores_empty=True)
    except WrongSetting as wrong:
        raise ConfigurationError(
            f"wrong setting MILEPOST_{wrong.name.upper()}: {wrong.reason}, not {wrong.given!r}"
        ) from None
    api_url = api_url or settings.api_url
    secret_key = secret_key or settings.secret_key
    if api_url and secret_key:
        return Address(api_url, secret_key)
    file = find_development_file(Path.cwd())
    if file is not None and not _may_use_development_server(settings):
        raise ConfigurationError(
            f"a test does not use the development server that {file} names, and no other is set: run the task in "
            "milepost.testing.run_task, use the fixture milepost_sandbox or `with milepost.testing.Sandbox():`; "
            "MILEPOST_DEV_SERVER=1, or the fixture milepost_dev_server, allows the development server"
            if settings.dev_server is None
            else f"MILEPOST_DEV_SERVER says that the development server that {file} names is not to be used, and no other is set: set "
            "MILEPOST_API_URL and MILEPOST_SECRET_KEY"
        )
    if file is None:
        names = {"MILEPOST_API_URL": api_url, "MILEPOST_SECRET_KEY": secret_key}
        missing = " and ".join(name for name, value in names.items() if not value)
        raise ConfigurationError(
            f"which server? Start one with `milepost dev` in this folder or one above it, set {missing}, or call "
            f"milepost.configure(api_url=..., secret_key=...)"
        )
    found = read_development_file(file)
    return Address(api_url or found.url, secret_key or found.secret_key, file)


def checked_address(api_url: str) -> str:
    """The server's address without a slash at its end. Raises ConfigurationError for what is none."""
    parts = urlsplit(api_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"the API address {api_url!r} is no http:// or https:// address (MILEPOST_API_URL)"
        )
    return api_url.rstrip("/")


def checked_key(secret_key: str) -> str:
    """The secret key. Raises ConfigurationError for one that no header can carry."""
    if not (secret_key.isascii() and secret_key.isprintable()):
        raise ConfigurationError(
            "the secret key has line breaks or characters beyond ASCII, which no header can carry (MILEPOST_SECRET_KEY)"
        )
    return secret_key


def _may_use_development_server(settings: ClientSettings) -> bool:
    if settings.dev_server is not None:
        return settings.dev_server
    return not any(name in os.environ for name in _TEST_VARIABLES)


def find_development_file(folder: Path) -> Path | None:
    """`.milepost/dev.json` in the folder or the nearest one above it that has it."""
    for candidate in (folder, *folder.parents):
        file = candidate / DEVELOPMENT_FILE
        if file.is_file():
            return file
    return None


def read_development_file(file: Path) -> DevelopmentServer:
    """What the file says. Raises ConfigurationError when it is not what `milepost dev` writes."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=DevelopmentServer)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"{file} cannot be read ({error}); start `milepost dev` again, it writes the file anew"
        ) from None
