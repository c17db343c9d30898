"""The worker's HTTP: one request by the table of endpoints, one answer of its declared shape; and event streams.

Every call here is safe to repeat, so what fails is told apart by one question only: may the next try succeed?
"""

import random
from collections.abc import AsyncGenerator
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from milepost.client.async_connections import FAILURES, AsyncConnections, Limits
from milepost.client.settings import checked_address
from milepost.client.transport import common_headers, common_lines
from milepost.errors import MilepostError
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.feed import EventReader
from milepost.protocol.problems import from_problem

CONNECT_SECONDS_MAX = 5.0
TRANSIENT_STATUSES = frozenset({408, 425, 429})

_JSON = {"content-type": "application/json"}
_EVENTS = {"accept": "text/event-stream"}

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
    """Connections to one server. Use it as an async context manager, on one event loop. Raises ConfigurationError for an address that
    cannot be asked."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        address = urlsplit(checked_address(api_url))
        self._headers = common_headers(secret_key)
        self._connections = AsyncConnections(address, common_lines(address, self._headers))
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.close()

    async def call(self, endpoint: Endpoint, body: Any = None, *, timeout_seconds: float, **path: str) -> Any:
        """One request. `body` is a message or its bytes; the answer has the type that the endpoint declares.

        Args:
            timeout_seconds: an answer that has not begun by then, or does not go on for so long, is not waited for.

        Raises: Unreachable, Refused.
        """
        data = body if isinstance(body, bytes) or body is None else _encode(body)
        try:
            answer, content = await self._connections.exchange(
                endpoint.method,
                endpoint.path.format(**path),
                data,
                {} if data is None else _JSON,
                Limits(CONNECT_SECONDS_MAX, timeout_seconds),
            )
        except FAILURES as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        self._check(answer.status, content)
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
        limits = Limits(CONNECT_SECONDS_MAX, silence_seconds_max)
        try:
            target = endpoint.path.format(**path)
            incoming = await self._connections.open(endpoint.method, target, None, _EVENTS, limits)
            try:
                if incoming.status != 200:
                    self._check(incoming.status, await incoming.rest())
                while data := await incoming.more():
                    for event in reader.feed(data):
                        yield event
            finally:
                incoming.close()
        except FAILURES as error:
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
