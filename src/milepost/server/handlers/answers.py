"""What handlers are, and what they answer with beside messages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request

from milepost.engine.commands import Command

Handler = Callable[[Request], Awaitable[Any]]
StreamHandler = Callable[[Request], AsyncIterator[bytes]]
Submit = Callable[[Command], Awaitable[Any]]
"""Carries out a command; its result, once it is committed."""


class WithToken(NamedTuple):
    """An answer with a token in its header."""

    message: Any
    token: str
