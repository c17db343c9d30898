"""Sessions of the dashboard over all servers of a database: a code opens one session, and one that was signed out opens nothing.

Both are looked up in the database for each request, so what one server was told holds at every other one at once. Whoever reads a
feed with a session is found by the hub, and the feed ends as soon as this server hears of the signing out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import HTTPConnection

from milepost.engine.commands import EndSession, OneTimeToken, UseToken
from milepost.server.auth import Authenticator, Ticket, no_credentials
from milepost.server.doors import AT_MAX


class Sessions:
    """Begins and ends sessions.

    Args:
        submit: gives a command to the engine.
        is_used: whether a token works no more, as the database has it; called in a thread.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        submit: Callable[[Any], Awaitable[Any]],
        is_used: Callable[[str], bool],
    ) -> None:
        self._authenticator = authenticator
        self._submit = submit
        self._is_used = is_used

    async def begin_with_code(self, code: str) -> str | None:
        """The cookie for a code, which is used up; None for a code that is unknown, used or expired. Raises UnavailableError."""
        ticket = self._authenticator.read_code(code)
        if ticket is None or not await self._submit(UseToken(OneTimeToken(ticket.id, _microseconds(ticket)))):
            return None
        return self._authenticator.new_session()

    async def of(self, connection: HTTPConnection) -> Ticket | None:
        """The session that a request carries; None when it has none, or one that was signed out. Raises UnavailableError."""
        session = self._authenticator.session_of(connection)
        return None if session is None or await self._has_ended(session) else session

    async def check(self, session: Ticket) -> None:
        """Raises UnauthorizedError for a session that was signed out, UnavailableError."""
        if await self._has_ended(session):
            raise no_credentials()

    async def sign_out(self, connection: HTTPConnection) -> None:
        """End the session that the request carries, at every server, also where its cookie was copied. Raises UnavailableError."""
        session = self._authenticator.session_of(connection)
        if session is not None:
            await self._submit(EndSession(session.id, _microseconds(session)))

    async def _has_ended(self, session: Ticket) -> bool:
        return await asyncio.to_thread(self._is_used, session.id)


def _microseconds(ticket: Ticket) -> int:
    return min(round(ticket.expires_at * 1_000_000), AT_MAX)
