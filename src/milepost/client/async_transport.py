"""The asynchronous way onto the wire, on aiohttp. One session for each event loop that uses it, which ends with its loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import aiohttp

from milepost.client.calls import Call, Feed
from milepost.client.retries import Retries, unreachable
from milepost.client.transport import (
    ANSWER_SECONDS_MAX,
    CONNECT_SECONDS_MAX,
    CONNECTIONS_MAX,
    PIECE_BYTES_MAX,
    SILENCE_SECONDS_MAX,
    checked_address,
    common_headers,
    reason_of,
)
from milepost.errors import UnavailableError
from milepost.protocol.endpoints import ATTEMPT_HEADER, REQUEST_ID_HEADER
from milepost.protocol.problems import from_problem

ResultT = TypeVar("ResultT")


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

    async def send(self, call: Call[ResultT]) -> ResultT:
        """As `SyncTransport.send`, without blocking."""
        session = (await self._session()).calls
        headers: dict[str, str] = {}
        if call.body is not None:
            headers["content-type"] = "application/json"
        if call.request_id is not None:
            headers[REQUEST_ID_HEADER] = call.request_id
        if call.attempt is not None:
            headers[ATTEMPT_HEADER] = call.attempt
        retries = Retries()
        while True:
            wanted: str | None = None
            try:
                async with session.request(
                    call.method,
                    self._api_url + call.target,
                    data=call.body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=_ANSWER_TIMEOUT,
                ) as response:
                    content = await response.read()
                wanted = response.headers.get("retry-after")
                return call.answer(response.status, content, response.headers)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                failure = unreachable(self._api_url, reason_of(error))
            except UnavailableError as error:
                failure = error
            await asyncio.sleep(retries.pause(failure, wanted=wanted))

    @asynccontextmanager
    async def open(self, feed: Feed) -> AsyncGenerator[AsyncIterator[bytes]]:
        """As `SyncTransport.open`, without blocking."""
        session = (await self._session()).feeds
        try:
            response = await session.get(
                self._api_url + feed.target,
                headers={"accept": "text/event-stream"},
                allow_redirects=False,
                timeout=_FEED_TIMEOUT,
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        try:
            if response.status != 200:
                raise from_problem(response.status, await response.read())
            yield self._read(response)
        finally:
            response.close()

    async def _read(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            while more := await response.content.readany():
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


_ANSWER_TIMEOUT = aiohttp.ClientTimeout(
    total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=ANSWER_SECONDS_MAX
)
_FEED_TIMEOUT = aiohttp.ClientTimeout(
    total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=SILENCE_SECONDS_MAX
)
