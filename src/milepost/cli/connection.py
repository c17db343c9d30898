"""A client's connection: what it may send before anybody knows who it is, and how answers leave."""

import asyncio
from enum import Enum
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from milepost.protocol.problems import Problem

HEAD_BYTES_MAX = 64 * 1024
"""Request line and headers together. A filter of documents travels in the address, and takes up to 48 KB there."""

HEAD_SECONDS = 15.0
"""From the first byte of a request (or from connecting) to the end of its headers."""

REST_SECONDS = 15.0
"""How long the rest of a body is awaited that nobody reads, because the request has been answered already."""


class _Stage(Enum):
    BETWEEN = "between two requests"
    HEAD = "a request has begun"
    BODY = "its headers are there"


class _HeadTooLarge(Exception):
    """Raised through the parser, which then reports a broken request."""


class Connection(HttpToolsProtocol):
    """The server's protocol, with limits, and with one write for all that is sent in one turn of the event loop.

    The parser itself keeps whatever it is sent until a header is complete, however long that takes and however much it is. So who
    knows no key could fill the memory with one header, and the table of descriptors with half requests.

    The server writes the head of an answer and its body one after the other. Each write is a system call here and may wake the client
    there, which can do nothing with the head alone.
    """

    _stage = _Stage.BETWEEN
    # Of the present request: bytes of its address and headers, and bytes that have come without completing either or a body.
    _head_bytes = 0
    _loose_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client has connected."""
        super().connection_made(_GatheringTransport(transport, self.loop))
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            # A header, a trailer or the frame of a chunk that does not end.
            self._is_too_large = True
            self.send_400_response("")
        elif self._stage is not _Stage.BODY and self._timer is None and self._loose_bytes:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._stage = _Stage.HEAD
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer."""
        # As `_count`, written out: each request has several.
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES_MAX:
            self._is_too_large = True
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are there: the application may begin."""
        self._stage = _Stage.BODY
        self._loose_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        self._stage = _Stage.BETWEEN
        self._loose_bytes = 0
        self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete:
            # It was answered before it had come as a whole, so nothing else waits for the next request.
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_response_complete(self) -> None:
        """The answer to a request has been written."""
        super().on_response_complete()
        if self._stage is _Stage.BODY and self.cycle.response_complete and self._timer is None:
            # Not closed at once: a client that is still sending would lose the answer with the connection.
            self._timer = self.loop.call_later(REST_SECONDS, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one that is too large, and close the connection."""
        self._stop_timer()
        # None before the first request.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if is_answering or self.pipeline:
            # In the middle of an answer there is no place for another one.
            self.transport.abort()
            return
        status, problem = 400, Problem("this is not an HTTP request", "bad_request")
        if self._is_too_large:
            message = f"address and headers of a request have at most {HEAD_BYTES_MAX:,} bytes together: send less in them"
            status, problem = 431, Problem(message, "headers_too_large", limit=HEAD_BYTES_MAX)
        body = msgspec.json.encode(problem)
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            b"x-content-type-options: nosniff\r\ncache-control: no-store\r\nx-should-retry: false\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._is_too_large = True
            raise _HeadTooLarge

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class _GatheringTransport(asyncio.Transport):
    """Passes everything on at once, except for what is written."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)

    def _flush(self) -> None:
        data = b"".join(self._gathered)
        self._gathered.clear()
        # A client may vanish between the writing and now; then nobody is left to write to, and that is no error of ours.
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
