"""The default client: what `configure` says, else the environment, else the development server of this folder."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from milepost.client.client import Client


@dataclass
class _Given:
    """What `configure` said."""

    api_url: str | None = None
    secret_key: str | None = None


@dataclass(frozen=True)
class _Made:
    """The client at hand, and the file that it was made from, with the time of its last change."""

    client: Client
    file: Path | None
    changed_at: int

    @property
    def is_fresh(self) -> bool:
        """False when the file was written anew: another development server is running now."""
        return self.file is None or _changed_at(self.file) == self.changed_at


_lock = threading.Lock()
_given = _Given()
_made: _Made | None = None


def configure(*, api_url: str | None = None, secret_key: str | None = None) -> None:
    """Say where the server is, for every call that follows. What is left out comes from the environment or the development server."""
    global _made
    with _lock:
        _given.api_url = api_url
        _given.secret_key = secret_key
        _made = None


def default_client() -> Client:
    """The client that `runs`, `tasks` and every task use.

    Raises: ConfigurationError when nothing says where the server is, or with which key.
    """
    global _made
    made = _made
    if made is None or not made.is_fresh:
        with _lock:
            made = _made
            if made is None or not made.is_fresh:
                made = _made = _make()
    return made.client


def _make() -> _Made:
    # Reading settings takes a library that a program which only imports its tasks should not pay for.
    from milepost.client.settings import find_address

    address = find_address(_given.api_url, _given.secret_key)
    changed_at = _changed_at(address.file) if address.file else 0
    return _Made(Client(api_url=address.api_url, secret_key=address.secret_key), address.file, changed_at)


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        # It was removed: the server has stopped, and calls say so themselves.
        return 0
