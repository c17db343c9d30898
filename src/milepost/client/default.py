"""The default client: what `configure` says, else the environment, else the development server of this folder.

There is no lock here: two threads that ask at once for the first time may make a client each, which does no harm. So a finalizer or a
signal handler that asks in the middle of it does not hang, nor does a child that is forked then.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from milepost.client.client import Client


@dataclass(frozen=True)
class _Given:
    """What `configure` said."""

    api_url: str | None = None
    secret_key: str | None = None


@dataclass(frozen=True)
class _Made:
    """The client at hand, what it was made from, and the file among that, with the time of its last change."""

    client: Client
    given: _Given
    file: Path | None
    changed_at: int

    @property
    def is_fresh(self) -> bool:
        """False when `configure` was called since, or the file was written anew: another development server is running now."""
        return self.given is _given and (self.file is None or _changed_at(self.file) == self.changed_at)


_given = _Given()
_made: _Made | None = None
# Clients that stand in for the default one, the innermost last.
_stand_ins: list[Client] = []


def configure(*, api_url: str | None = None, secret_key: str | None = None) -> None:
    """Say where the server is, for every call that follows. What is left out comes from the environment or the development server."""
    global _given
    _given = _Given(api_url, secret_key)


def default_client() -> Client:
    """The client that `runs`, `tasks` and every task use.

    Raises: ConfigurationError when nothing says where the server is, or with which key.
    """
    global _made
    if _stand_ins:
        return _stand_ins[-1]
    made = _made
    if made is None or not made.is_fresh:
        made = _made = _make(_given)
    return made.client


@contextmanager
def default_client_is(client: Client) -> Generator[None]:
    """In this block the default client is this one, in every thread of the process, whatever settings say."""
    _stand_ins.append(client)
    try:
        yield
    finally:
        _stand_ins.remove(client)


def _make(given: _Given) -> _Made:
    # Reading settings takes a library that a program which only imports its tasks should not pay for.
    from milepost.client.settings import find_address

    address = find_address(given.api_url, given.secret_key)
    changed_at = _changed_at(address.file) if address.file else 0
    client = Client(api_url=address.api_url, secret_key=address.secret_key)
    return _Made(client, given, address.file, changed_at)


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        # It was removed: the server has stopped, and calls say so themselves.
        return 0
