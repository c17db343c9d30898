"""The asynchronous way onto the wire. Each event loop that uses it has connections of its own, which end with the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from milepost.client.async_connections import FAILURES, AsyncConnections, Incoming, Limits
from milepost.client.retries import Patience, unreachable
from milepost.client.settings import checked_address
from milepost.client.transport import (
    ANSWER_SECONDS_MAX,
    CONNECT_SECONDS_MAX,
    CONNECTIONS_MAX,
    LOOK_SECONDS,
    SILENCE_SECONDS_MAX,
    Reply,
    common_headers,
    common_lines,
    reason_of,
)
from milepost.protocol.problems import from_problem


class AsyncTransport:
    """Sends calls without blocking. It may be used from several event loops; each has its own connections."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = checked_address(api_url)
        self._address = urlsplit(self._api_url)
        self._headers = common_headers(secret_key)
        self._common_lines = common_lines(self._address, self._headers)
        # With each the generator that closes it.
        self._connections: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[AsyncConnections, AsyncGenerator[AsyncConnections]]
        ] = WeakKeyDictionary()

    async def _connections_here(self) -> AsyncConnections:
        loop = asyncio.get_running_loop()
        known = self._connections.get(loop)
        if known is None:
            # The loop closes every async generator that was begun on it before it ends, and with this one the connections.
            holder = self._hold_connections()
            known = self._connections[loop] = await anext(holder), holder
        return known[0]

    async def _hold_connections(self) -> AsyncGenerator[AsyncConnections]:
        connections = AsyncConnections(self._address, self._common_lines, count_max=CONNECTIONS_MAX)
        try:
            yield connections
        finally:
            self._connections.pop(asyncio.get_running_loop(), None)
            await connections.close()

    async def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        """As `SyncTransport.exchange`, without blocking."""
        connections = await self._connections_here()
        limits = _limits(patience.seconds_of(ANSWER_SECONDS_MAX))
        try:
            async with while_under_way(patience):
                answer, content = await connections.exchange(method, target, body, headers, limits)
        except FAILURES as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        return Reply(answer.status, content, answer.headers)

    @asynccontextmanager
    async def open(
        self, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """As `SyncTransport.open`, without blocking."""
        connections = await self._connections_here()
        method = "GET" if body is None else "POST"
        headers = {**headers, "accept": "text/event-stream"}
        limits = _limits(patience.seconds_of(SILENCE_SECONDS_MAX))
        try:
            async with while_under_way(patience):
                incoming = await connections.open(method, target, body, headers, limits)
        except FAILURES as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        try:
            if incoming.status != 200:
                raise from_problem(incoming.status, await self._refusal(incoming))
            yield self._read(incoming, patience)
        finally:
            incoming.close()

    async def _refusal(self, incoming: Incoming) -> bytes:
        """What the server says in place of a stream. Raises UnavailableError when not all of it has come."""
        try:
            return await incoming.rest()
        except FAILURES as error:
            raise unreachable(self._api_url, reason_of(error)) from None

    async def _read(self, incoming: Incoming, patience: Patience) -> AsyncIterator[bytes]:
        try:
            while True:
                async with while_under_way(patience):
                    data = await incoming.more()
                if not data:
                    break
                yield data
        except FAILURES as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        raise unreachable(self._api_url, "the connection ended")

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        known = self._connections.pop(asyncio.get_running_loop(), None)
        if known is not None:
            await known[1].aclose()


def _limits(seconds: float) -> Limits:
    return Limits(min(seconds, CONNECT_SECONDS_MAX), seconds)


@asynccontextmanager
async def while_under_way(patience: Patience) -> AsyncGenerator[None]:
    """What is awaited inside ends with TimeoutError once the attempt that waits is over."""
    if patience.attempt is None:
        yield
        return
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def look() -> None:
            nonlocal handle
            if patience.has_ended:
                limit.reschedule(loop.time())
            else:
                handle = loop.call_later(LOOK_SECONDS, look)

        handle = loop.call_later(LOOK_SECONDS, look)
        try:
            yield
        finally:
            handle.cancel()
