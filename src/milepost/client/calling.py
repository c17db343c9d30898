"""The code that makes a call, as far as calls have to know it: whether it may block, and which attempt of a run it belongs to.

The client knows no runs of its own. Whoever knows which code belongs to which run says so once, by `set_calling_code`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class CallingAttempt(Protocol):
    """The attempt of a run that a call is part of."""

    @property
    def attempt_name(self) -> str:
        """How the attempt is named to the server, see `ATTEMPT_HEADER`."""
        ...

    @property
    def has_ended(self) -> bool:
        """True when nothing that the attempt does counts any more."""
        ...

    def lose(self) -> None:
        """The server has said that the attempt is over."""
        ...

    def heed(self) -> None:
        """Called now and then while a blocking call waits: raise what ends the code, where the attempt is to end."""
        ...


class CallingCode(Protocol):
    """What is known of the code that makes a call in this moment."""

    def refuse_blocking(self, form: str) -> None:
        """Raise UsageError where the blocking call `form` would stop an event loop that others share."""
        ...

    def attempt_at(self, api_url: str, secret_key: str) -> CallingAttempt | None:
        """The attempt that the code belongs to, where its run is one of that server; None for code outside of runs."""
        ...


class _Outside:
    """Code of which nothing is known."""

    def refuse_blocking(self, form: str) -> None:
        pass

    def attempt_at(self, api_url: str, secret_key: str) -> CallingAttempt | None:
        return None


@dataclass(eq=False)
class NamedAttempt:
    """An attempt of which only the name is known, as that of a program which a run has started."""

    run_id: str
    number: int
    has_ended: bool = False

    @property
    def attempt_name(self) -> str:
        """See `CallingAttempt`."""
        return f"{self.run_id}:{self.number}"

    def lose(self) -> None:
        """See `CallingAttempt`."""
        self.has_ended = True

    def heed(self) -> None:
        """See `CallingAttempt`. Nobody tells it."""


_calling_code: CallingCode = _Outside()
_acting: ContextVar[CallingAttempt | None] = ContextVar("milepost_acting_attempt", default=None)


def set_calling_code(calling_code: CallingCode) -> None:
    """Have this asked at each call."""
    global _calling_code
    _calling_code = calling_code


@contextmanager
def acting_as(attempt: CallingAttempt) -> Generator[None]:
    """Calls inside are made by this attempt, whichever code makes them."""
    token = _acting.set(attempt)
    try:
        yield
    finally:
        _acting.reset(token)


def check_blocking(form: str) -> None:
    """Raise UsageError where a blocking call would stop an event loop that others share."""
    _calling_code.refuse_blocking(form)


def attempt_at(api_url: str, secret_key: str) -> CallingAttempt | None:
    """The attempt that the present code belongs to, where its run is one of that server."""
    return _acting.get() or _calling_code.attempt_at(api_url, secret_key)
