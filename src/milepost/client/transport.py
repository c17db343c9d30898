"""The blocking way onto the wire, on the connections of `http.client`; and what both ways share. A transport sends a request once."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Container, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import socket
from ssl import SSLCertVerificationError, SSLError, SSLSocket
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from milepost.client.messages import READ_BYTES, header_lines, host_of, length_line, read_answer, request_line
from milepost.client.retries import LOOK_SECONDS, Patience, unreachable
from milepost.client.settings import checked_address, checked_key
from milepost.errors import ConfigurationError
from milepost.protocol.problems import from_problem

CONNECT_SECONDS_MAX = 3.0
ANSWER_SECONDS_MAX = 30.0
# A server sends a sign of life more often than this.
SILENCE_SECONDS_MAX = 35.0
CONNECTIONS_MAX = 100
# What has come while a reader was busy is read in pieces of this size; of each it sees the newest state.
PIECE_BYTES_MAX = 1024 * 1024


class Headers(Protocol):
    """The headers of an answer, whatever library has read them; the case of a name does not matter."""

    def get(self, name: str, /) -> str | None:
        """The value of a header; None where there is none."""
        ...


class Request(NamedTuple):
    """What a transport sends, and how long it waits for the answer."""

    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]
    patience: Patience


class Reply(NamedTuple):
    """An answer as it came."""

    status: int
    content: bytes
    headers: Headers


def common_headers(secret_key: str) -> dict[str, str]:
    """What every request says. Raises ConfigurationError for a key that no header can carry."""
    return {"authorization": f"Bearer {checked_key(secret_key)}", "user-agent": "milepost-python"}


def common_lines(address: SplitResult, headers: Mapping[str, str]) -> bytes:
    """What every request to a server says, as it is sent. Raises ConfigurationError for an address that cannot be asked."""
    try:
        request_line("GET", address.path + "/")
        return header_lines({"host": host_of(address), **headers})
    except ValueError as error:
        raise ConfigurationError(
            f"the API address {address.geturl()!r} cannot be asked: {error} (MILEPOST_API_URL)"
        ) from None


class _Closing:
    """Mixed into a connection: whoever lets go of a client need not close it."""

    def __del__(self) -> None:
        # At the end of the interpreter nothing may be left to do it with.
        with suppress(Exception):
            self.close()  # type: ignore[attr-defined]


class _HTTPConnection(_Closing, HTTPConnection):
    pass


class _HTTPSConnection(_Closing, HTTPSConnection):
    pass


class SyncTransport:
    """Sends calls and waits for their answers. Thread-safe, and safe to have across a fork."""

    def __init__(self, api_url: str, secret_key: str) -> None:
        self._api_url = checked_address(api_url)
        self._address = urlsplit(self._api_url)
        self._headers = common_headers(secret_key)
        self._common_lines = common_lines(self._address, self._headers)
        self._open()

    def _open(self) -> None:
        self._process_id = os.getpid()
        # The connections that are not in use, the last used first. There is no lock: each step is atomic, and a finalizer or a signal
        # handler that sends a request while another one takes its connection would wait for a lock for ever, as would a child that is
        # forked in that moment.
        self._resting: list[HTTPConnection] = []

    def _connection(self, seconds: float) -> HTTPConnection:
        """A connection that nobody else uses. Raises OSError, HTTPException."""
        if self._process_id != os.getpid():
            # A child process must not speak on its parent's connections.
            self._open()
        with suppress(IndexError):
            while True:
                connection = self._resting.pop()
                if connection.sock is not None and not _is_readable(connection.sock, 0):
                    return connection
                # The server has closed it.
                connection.close()
        connect = _HTTPSConnection if self._address.scheme == "https" else _HTTPConnection
        connection = connect(
            self._address.hostname or "", self._address.port, timeout=min(seconds, CONNECT_SECONDS_MAX)
        )
        connection.connect()
        return connection

    def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Reply:
        """Send one request, once, and wait for its answer.

        Raises: UnavailableError when there is none; AttemptOverError, TimeoutError as `patience` says.
        """
        seconds = patience.seconds_of(ANSWER_SECONDS_MAX)
        connection: HTTPConnection | None = None
        try:
            connection = self._connection(seconds)
            sock = connection.sock
            sock.settimeout(seconds)
            request = request_line(method, self._address.path + target) + self._common_lines
            # In one write, which saves a system call and a packet.
            sock.sendall(request + header_lines(headers) + length_line(method, body) + (body or b""))
            _wait_for(sock, seconds, patience)
            answer, content = read_answer(sock)
        except (HTTPException, OSError, UnicodeError) as error:
            _close(connection)
            raise unreachable(self._api_url, reason_of(error)) from None
        except BaseException:
            # Whatever has interrupted it: an answer may still come, which nobody is to take for another one.
            _close(connection)
            raise
        if not answer.will_close and len(self._resting) < CONNECTIONS_MAX:
            self._resting.append(connection)
        else:
            connection.close()
        return Reply(answer.status, content, answer.headers)

    @contextmanager
    def open(
        self, target: str, body: bytes | None, headers: Mapping[str, str], patience: Patience
    ) -> Generator[Iterator[bytes]]:
        """Open an event stream; iterate over its bytes as they come. Each piece is all that is there when it is asked for.

        Raises: UnavailableError when the connection cannot be had or breaks, or the error of a refusal; AttemptOverError, TimeoutError
            as `patience` says.
        """
        # A connection of its own, because the stream has no end that one could wait for.
        connect = HTTPSConnection if self._address.scheme == "https" else HTTPConnection
        seconds = patience.seconds_of(CONNECT_SECONDS_MAX)
        connection = connect(self._address.hostname or "", self._address.port, timeout=seconds)
        with closing(connection):
            try:
                connection.connect()
                # The library forgets the socket when the server says that it will close the connection.
                sock = connection.sock
                seconds = patience.seconds_of(SILENCE_SECONDS_MAX)
                sock.settimeout(seconds)
                sent = {**self._headers, **headers, "accept": "text/event-stream"}
                method = "GET" if body is None else "POST"
                connection.request(method, self._address.path + target, body, sent)
                _wait_for(sock, seconds, patience)
                response = connection.getresponse()
            except (HTTPException, OSError) as error:
                patience.seconds_of(SILENCE_SECONDS_MAX)
                raise unreachable(self._api_url, reason_of(error)) from None
            with closing(response):
                if response.status != 200:
                    raise from_problem(response.status, self._refusal(response))
                yield self._read(sock, response, patience)

    def _refusal(self, response: HTTPResponse) -> bytes:
        """What the server says in place of a stream. Raises UnavailableError when not all of it has come."""
        try:
            content = response.read()
        except (HTTPException, OSError) as error:
            raise unreachable(self._api_url, reason_of(error)) from None
        if not content and not _says_its_length(response.headers):
            raise unreachable(self._api_url, "the connection broke within the answer")
        return content

    def _read(self, sock: socket, response: HTTPResponse, patience: Patience) -> Iterator[bytes]:
        chunks = ChunkDecoder() if response.chunked else None
        # Some of it may have been read together with the head; later nothing is kept between this and the socket.
        may_be_here = True
        while True:
            seconds = patience.seconds_of(SILENCE_SECONDS_MAX)
            sock.settimeout(seconds)
            try:
                if not may_be_here:
                    _wait_for(sock, seconds, patience)
                may_be_here = False
                more = response.fp.read1(READ_BYTES)
                parts, size = [more], len(more)
                while more and size < PIECE_BYTES_MAX and _is_readable(sock, 0):
                    more = response.fp.read1(READ_BYTES)
                    parts.append(more)
                    size += len(more)
                raw = b"".join(parts)
            except (HTTPException, OSError) as error:
                patience.seconds_of(SILENCE_SECONDS_MAX)
                raise unreachable(self._api_url, reason_of(error)) from None
            data = raw if chunks is None else chunks.decode(raw)
            if data:
                yield data
            if not raw or (chunks is not None and chunks.has_ended):
                raise unreachable(self._api_url, "the connection ended")


class ChunkDecoder:
    """Takes the frame of HTTP's chunked transfer coding off a stream that may be cut anywhere (RFC 9112, 7.1).

    `http.client` does the same, but chunk by chunk; a reader that is late wants all that has come.
    """

    def __init__(self) -> None:
        self.has_ended = False
        self._rest = b""
        # Bytes of the present chunk that are still to come.
        self._missing = 0

    def decode(self, raw: bytes) -> bytes:
        """The content in these bytes."""
        found: list[bytes] = []
        data = self._rest + raw
        place = 0
        while place < len(data):
            if self._missing > 0:
                part = data[place : place + self._missing]
                found.append(part)
                place += len(part)
                self._missing -= len(part)
                continue
            end = data.find(b"\r\n", place)
            if end < 0:
                break
            # The line between two chunks is empty, the one before a chunk has its length.
            size, _, _ = data[place:end].partition(b";")
            if size:
                self._missing = int(size, 16)
                if self._missing == 0:
                    self.has_ended = True
                    break
            place = end + 2
        self._rest = data[place:]
        return b"".join(found)


def _close(connection: HTTPConnection | None) -> None:
    if connection is not None:
        connection.close()


def _is_readable(sock: socket, seconds: float) -> bool:
    """Wait until something has come, or the other side has closed the connection, but not longer than this."""
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], seconds)[0])
    # Not `select`, which knows no descriptors beyond 1,024.
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def _says_its_length(headers: Container[str]) -> bool:
    return "content-length" in headers or "transfer-encoding" in headers


def _wait_for(sock: socket, seconds: float, patience: Patience) -> None:
    """Wait until something comes, or the attempt that waits is over. Raises TimeoutError after `seconds`."""
    if patience.attempt is None or (isinstance(sock, SSLSocket) and sock.pending()):
        return
    until = time.monotonic() + seconds
    while not _is_readable(sock, min(LOOK_SECONDS, max(0.0, until - time.monotonic()))):
        patience.heed()
        if patience.has_ended or time.monotonic() >= until:
            raise TimeoutError


def reason_of(error: BaseException) -> str:
    """Why there was no answer, in words; the libraries put several errors around the one that says it."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for each in chain:
        # By their types: libraries derive errors of their own from them, which say less.
        if type(each) is SSLCertVerificationError:
            return f"its certificate is not accepted: {each.verify_message}"
        if type(each) is SSLError:
            return f"it speaks no TLS that is understood here: {each.reason}"
    for each in chain:
        number = each.errno if isinstance(each, OSError) else None
        if number is not None:
            # Numbers below zero are those of name resolution.
            return os.strerror(number).lower() if number > 0 else "its name cannot be resolved"
    is_late = isinstance(error, TimeoutError)
    return "no answer in time" if is_late else "the connection broke"
