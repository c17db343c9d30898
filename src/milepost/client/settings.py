"""Where the server is and with which key: the environment, else the file that `milepost dev` writes next to the project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic_settings import BaseSettings, SettingsConfigDict

from milepost.errors import ConfigurationError

DEVELOPMENT_FILE = Path(".milepost") / "dev.json"


class ClientSettings(BaseSettings):
    """What the environment says: `MILEPOST_API_URL` and `MILEPOST_SECRET_KEY`."""

    model_config = SettingsConfigDict(env_prefix="MILEPOST_", extra="ignore")

    api_url: str = ""
    secret_key: str = ""


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

    Raises: ConfigurationError when nothing says where the server is, or with which key.
    """
    settings = ClientSettings()
    api_url = api_url or settings.api_url
    secret_key = secret_key or settings.secret_key
    if api_url and secret_key:
        return Address(api_url, secret_key)
    file = find_development_file(Path.cwd())
    if file is None:
        names = {"MILEPOST_API_URL": api_url, "MILEPOST_SECRET_KEY": secret_key}
        missing = " and ".join(name for name, value in names.items() if not value)
        raise ConfigurationError(
            f"which server? Start one with `milepost dev` in this folder or one above it, set {missing}, or call "
            f"milepost.configure(api_url=..., secret_key=...)"
        )
    found = read_development_file(file)
    return Address(api_url or found.url, secret_key or found.secret_key, file)


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
