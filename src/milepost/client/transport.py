"""The blocking way onto the wire, on urllib3; and what both ways share. A transport sends `Call` values and knows nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Timeout

from milepost.client.calls import Call, Feed
from milepost.client.retries import Retries, unreachable
from milepost.errors import ConfigurationError, UnavailableError
from milepost.protocol.endpoints import REQUEST_ID_HEADER
from milepost.protocol.problems import from_problem

ResultT = TypeVar("ResultT")

CONNECT_SECONDS_MAX = 3.0
ANSWER_SECONDS_MAX = 30.0
# A server sends a sign of life more often than this.
SILENCE_SECONDS_MAX = 35.0
CONNECTIONS_MAX = 100

_before_blocking: Callable[[str], None] | None = None


def set_blocking_guard(guard: Callable[[str], None]) -> None:
    """Have `guard(form)` called before each blocking call; it raises where blocking would stop others."""
    global _before_blocking
    _before_blocking = guard


def check_blocking(form: str) -> None:
    """Raise UsageError where a blocking call would stop an event loop that others share."""
    if _before_blocking is not None:
        _before_blocking(form)


def common_headers(secret_key: str) -> dict[str, str]:
    """What every request says."""
    return {"authorization": f"Bearer {secret_key}", "user-agent": "milepost-python"}


def checked_address(api_url: str) -> str:
    """The server's address without a slash at its end. Raises ConfigurationError for what is none."""
    parts = urlsplit(api_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"the API address {api_url!r} is no http:// or https:// address (MILEPOST_API_URL)"
        )
    return api_url.rstrip("/")


class _OneWrite:
    """Mixed into a connection: a request leaves in one write, head and body together, which saves a system call and a packet."""

    _held: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = []
        try:
            super().request(*args, **kwargs)  # pyright: ignore
            held = b"".join(self._held)
        finally:
            self._held = None
        self.send(held)

    def send(self, data: Any) -> None:
        if self._held is not None and isinstance(data, bytes):
            self._held.append(data)
        else:
            super().send(data)  # pyright: ignore


class _HTTPConnection(_OneWrite, HTTPConnection):
    pass


class _HTTPSConnection(_OneWrite, HTTPSConnection):
    pass


class _HTTPConnectionPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection  # pyright: ignore[reportAssignmentType]


class _HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection  # pyright: ignore[reportAssignmentType]


class SyncTransport:
    """Sends calls and waits for their answers. Thread-safe, and safe to have across a fork."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = checked_address(api_url)
        self._headers = common_headers(secret_key)
        self._prefix = urlsplit(self._api_url).path
        self._open()

    def _open(self) -> None:
        self._process_id = os.getpid()
        parts = urlsplit(self._api_url)
        kind = _HTTPSConnectionPool if parts.scheme == "https" else _HTTPConnectionPool
        self._pool = kind(
            parts.hostname or "", parts.port, maxsize=CONNECTIONS_MAX, block=False, retries=False
        )

    def _connections(self) -> urllib3.HTTPConnectionPool:
        if self._process_id != os.getpid():
            # A child process must not speak on its parent's connections.
            self._open()
        return self._pool

    def send(self, call: Call[ResultT]) -> ResultT:
        """Send one call, again if need be, and read its answer.

        Raises: UnavailableError, or the error that the server's refusal stands for.
        """
        check_blocking(call.form)
        headers = self._headers
        if call.body is not None:
            headers = {**headers, "content-type": "application/json"}
        if call.request_id is not None:
            headers = {**headers, REQUEST_ID_HEADER: call.request_id}
        retries = Retries()
        while True:
            wanted: str | None = None
            try:
                response = self._connections().urlopen(
                    call.method,
                    self._prefix + call.target,
                    body=call.body,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    timeout=_ANSWER_TIMEOUT,
                )
                wanted = response.headers.get("retry-after")
                return call.answer(response.status, response.data, response.headers)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = unreachable(self._api_url, reason_of(error))
            except UnavailableError as error:
                failure = error
            time.sleep(retries.pause(failure, wanted=wanted))

    @contextmanager
    def open(self, feed: Feed, *, until: float | None = None) -> Generator[Iterator[bytes]]:
        """Open an event stream; iterate over its bytes as they come.

        Args:
            until: on the monotonic clock; past it the reading ends with TimeoutError.
        Raises: UnavailableError when the connection cannot be had or breaks, or the error of a refusal.
        """
        try:
            response = self._connections().urlopen(
                "GET",
                self._prefix + feed.target,
                headers={**self._headers, "accept": "text/event-stream"},
                retries=False,
                redirect=False,
                preload_content=False,
                timeout=_FEED_TIMEOUT,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        try:
            if response.status != 200:
                raise from_problem(response.status, response.read())
            yield self._read(response, until)
        finally:
            # Not given back to the pool: the stream has no end that one could wait for.
            response.close()

    def _read(self, response: urllib3.BaseHTTPResponse, until: float | None) -> Iterator[bytes]:
        while True:
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                sock = getattr(response.connection, "sock", None)
                if sock is not None:
                    sock.settimeout(min(left, SILENCE_SECONDS_MAX))
            try:
                data = response.read1(65536)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if until is not None and time.monotonic() >= until:
                    raise TimeoutError from None
                raise unreachable(self._api_url, reason_of(error)) from None
            if not data:
                raise unreachable(self._api_url, "the connection ended")
            yield data


_ANSWER_TIMEOUT = Timeout(connect=CONNECT_SECONDS_MAX, read=ANSWER_SECONDS_MAX)
_FEED_TIMEOUT = Timeout(connect=CONNECT_SECONDS_MAX, read=SILENCE_SECONDS_MAX)


def reason_of(error: BaseException) -> str:
    """Why there was no answer, in words; the libraries put several errors around the one that says it."""
    innermost: BaseException | None = error
    while innermost is not None:
        number = innermost.errno if isinstance(innermost, OSError) else None
        if number is not None:
            # Numbers below zero are those of name resolution.
            return os.strerror(number).lower() if number > 0 else "its name cannot be resolved"
        innermost = innermost.__cause__ or innermost.__context__
    is_late = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
    return "no answer in time" if is_late else "the connection broke"
