"""The worker's HTTP: one request by the table of endpoints, one answer of its declared shape; and event streams.

Every call here is safe to repeat, so what fails is told apart by one question only: may the next try succeed?
"""

import io
import random
from collections.abc import AsyncGenerator
from typing import Any, Self

import aiohttp
import msgspec

from milepost.errors import MilepostError
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.feed import EventReader
from milepost.protocol.problems import from_problem

CONNECT_SECONDS_MAX = 5.0
PIECE_BYTES_MAX = 512 * 1024
TRANSIENT_STATUSES = frozenset({408, 425, 429})

_encode = msgspec.json.Encoder().encode


class Unreachable(Exception):
    """No answer, or one that says "not now": the same request may succeed later."""


class Refused(Exception):
    """The server refused the request; repeating it unchanged does not help."""

    def __init__(self, status: int, error: MilepostError) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


class Backoff:
    """Growing pauses between tries, spread by chance so that workers do not return all together.

    Args:
        seconds_max: no pause is longer.
    """

    def __init__(self, *, seconds_min: float = 0.05, seconds_max: float = 5.0) -> None:
        self._seconds_min = seconds_min
        self._seconds_max = seconds_max
        self._seconds = seconds_min

    def next(self) -> float:
        """The next pause in seconds."""
        pause = self._seconds * random.uniform(0.5, 1.0)
        self._seconds = min(self._seconds * 2, self._seconds_max)
        return pause

    def reset(self) -> None:
        """The last try succeeded."""
        self._seconds = self._seconds_min


class Channel:
    """A connection pool to one server. Use it as an async context manager, on one event loop."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = api_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {secret_key}"}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, endpoint: Endpoint, body: Any = None, *, timeout_seconds: float, **path: str) -> Any:
        """One request. `body` is a message or its bytes; the answer has the type that the endpoint declares.

        Raises: Unreachable, Refused.
        """
        data = body if isinstance(body, bytes) or body is None else _encode(body)
        try:
            async with self._session.request(
                endpoint.method,
                self._api_url + endpoint.path.format(**path),
                # A large body is sent piece by piece, so that the loop has its turn in between.
                data=io.BytesIO(data) if data is not None and len(data) > PIECE_BYTES_MAX else data,
                headers={"Content-Type": "application/json"} if data is not None else None,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS_MAX),
                allow_redirects=False,
            ) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        self._check(status, content)
        try:
            return self._decoder(endpoint).decode(content)
        except msgspec.MsgspecError as error:
            raise Unreachable(
                f"{endpoint.path} was answered with something else than expected: {error}"
            ) from error

    async def events(
        self, endpoint: Endpoint, *, silence_seconds_max: float, **path: str
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """The events of a stream until it ends.

        Args:
            silence_seconds_max: with no byte for this long, comments included, the connection is taken for dead.

        Raises: Unreachable, Refused.
        """
        reader = EventReader()
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=silence_seconds_max
        )
        try:
            async with self._session.get(
                self._api_url + endpoint.path.format(**path),
                headers={"Accept": "text/event-stream"},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    self._check(response.status, await response.read())
                async for data in response.content.iter_any():
                    for event in reader.feed(data):
                        yield event
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error

    def _check(self, status: int, content: bytes) -> None:
        if 200 <= status < 300:
            return
        error = from_problem(status, content)
        if status >= 500 or status in TRANSIENT_STATUSES:
            raise Unreachable(f"the server answered with status {status}: {error}")
        raise Refused(status, error)

    def _decoder(self, endpoint: Endpoint) -> "msgspec.json.Decoder[Any]":
        decoder = self._decoders.get(endpoint.name)
        if decoder is None:
            decoder = self._decoders[endpoint.name] = msgspec.json.Decoder(endpoint.response)
        return decoder
