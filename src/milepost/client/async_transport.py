"""The asynchronous way onto the wire, on aiohttp. One session for each event loop that uses it, which ends with its loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import aiohttp

from milepost.client.retries import Patience, unreachable
from milepost.client.transport import (
    ANSWER_SECONDS_MAX,
    CONNECT_SECONDS_MAX,
    CONNECTIONS_MAX,
    LOOK_SECONDS,
    PIECE_BYTES_MAX,
    SILENCE_SECONDS_MAX,
    Reply,
    checked_address,
    common_headers,
    reason_of,
)
from milepost.protocol.problems import from_problem


class _Sessions(NamedTuple):
    """The connections of one event loop. An event stream has its own for as long as it is read: calls must not wait for it."""

    calls: aiohttp.ClientSession
    feeds: aiohttp.ClientSession


class AsyncTransport:
    """Sends calls without blocking. It may be used from several event loops; each has its own connections."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = checked_address(api_url)
        self._headers = common_headers(secret_key)
        # With each the generator that closes it.
        self._sessions: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[_Sessions, AsyncGenerator[_Sessions]]
        ] = WeakKeyDictionary()

    async def _session(self) -> _Sessions:
        loop = asyncio.get_running_loop()
        known = self._sessions.get(loop)
        if known is not None and not known[0].calls.closed:
            return known[0]
        # The loop closes every async generator that was begun on it before it ends, and with this one the sessions.
        holder = self._hold_sessions()
        sessions = await anext(holder)
        self._sessions[loop] = sessions, holder
        return sessions

    async def _hold_sessions(self) -> AsyncGenerator[_Sessions]:
        # As many feeds as are wanted; zero is no limit.
        async with self._new_session(CONNECTIONS_MAX) as calls, self._new_session(0) as feeds:
            yield _Sessions(calls, feeds)

    def _new_session(self, connections_max: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=connections_max),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent"),
        )

    async def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        """As `SyncTransport.exchange`, without blocking."""
        session = (await self._session()).calls
        seconds = patience.seconds_of(ANSWER_SECONDS_MAX)
        try:
            async with (
                _while_under_way(patience),
                session.request(
                    method,
                    self._api_url + target,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=_timeout(seconds),
                ) as response,
            ):
                return Reply(response.status, await response.read(), response.headers)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None

    @asynccontextmanager
    async def open(
        self, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """As `SyncTransport.open`, without blocking."""
        session = (await self._session()).feeds
        seconds = patience.seconds_of(SILENCE_SECONDS_MAX)
        try:
            async with _while_under_way(patience):
                response = await session.request(
                    "GET" if body is None else "POST",
                    self._api_url + target,
                    data=body,
                    headers={**headers, "accept": "text/event-stream"},
                    allow_redirects=False,
                    timeout=_timeout(seconds),
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        try:
            if response.status != 200:
                raise from_problem(response.status, await self._refusal(response))
            yield self._read(response, patience)
        finally:
            response.close()

    async def _refusal(self, response: aiohttp.ClientResponse) -> bytes:
        """What the server says in place of a stream. Raises UnavailableError when not all of it has come."""
        try:
            return await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None

    async def _read(self, response: aiohttp.ClientResponse, patience: Patience) -> AsyncIterator[bytes]:
        try:
            while True:
                async with _while_under_way(patience):
                    more = await response.content.readany()
                if not more:
                    break
                parts, size = [more], len(more)
                while more and size < PIECE_BYTES_MAX:
                    # What has come meanwhile is read off the socket in the loop's next round.
                    await asyncio.sleep(0)
                    more = response.content.read_nowait()
                    parts.append(more)
                    size += len(more)
                yield b"".join(parts)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        raise unreachable(self._api_url, "the connection ended")

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        known = self._sessions.pop(asyncio.get_running_loop(), None)
        if known is not None:
            await known[1].aclose()


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None, sock_connect=min(seconds, CONNECT_SECONDS_MAX), sock_read=seconds
    )


@asynccontextmanager
async def _while_under_way(patience: Patience) -> AsyncGenerator[None]:
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
