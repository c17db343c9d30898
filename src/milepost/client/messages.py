"""HTTP/1.1 as a caller needs it: the head of a request, and an answer as a whole, by the parser that the server reads requests with.

The standard library writes a head line by line, and reads that of an answer as that of a mail: half of what a call cost its caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from socket import socket
from typing import Any
from urllib.parse import SplitResult

from httptools import HttpParserError, HttpResponseParser

READ_BYTES = 65_536

_TARGET = re.compile("[!-~]+")
_VALUE = re.compile("[ -~]*")


def host_of(address: SplitResult) -> str:
    """The server as the header `host` names it."""
    host = address.netloc.rpartition("@")[2]
    return host if host.isascii() else host.encode("idna").decode()


def request_line(method: str, target: str) -> bytes:
    """The first line of a request. Raises ValueError for a target that is none: it is to be quoted."""
    if _TARGET.fullmatch(target) is None:
        raise ValueError(
            f"{target!r:.200} cannot be asked for: it has spaces, control characters or others beyond ASCII"
        )
    return f"{method} {target} HTTP/1.1\r\n".encode()


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent. Raises ValueError for a value that no header can carry."""
    for name, value in headers.items():
        if _VALUE.fullmatch(value) is None:
            raise ValueError(f"the header {name} cannot carry line breaks or characters beyond ASCII")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


def length_line(method: str, body: bytes | None) -> bytes:
    """The end of the head."""
    if body is None:
        return b"\r\n" if method == "GET" else b"content-length: 0\r\n\r\n"
    return b"content-length: %d\r\n\r\n" % len(body)


class AnswerHeaders(dict[str, str]):
    """Headers by their names in lower case."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """The value of a header, or the default; the case of the name does not matter."""
        return super().get(name.lower(), default)


class Answer:
    """An answer, read from pieces as they come.

    Attributes:
        has_head: status and headers are there.
        is_whole: the body has come to its end.
        will_close: nothing more comes on this connection.
        size: bytes of the body that `take` would give.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.has_head = self.is_whole = False
        self.status = 0
        self.headers = AnswerHeaders()
        self.will_close = True
        self.size = 0
        self._parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take in what has come. Raises HTTPException for what is no answer."""
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if not self.is_whole:
                raise HTTPException(f"no HTTP answer: {error}") from None
            # What stands behind it was not asked for.
            self.will_close = True

    def end(self) -> None:
        """The connection has ended. Raises HTTPException, or ConnectionError, when that was not all."""
        if self.is_whole:
            return
        if not self.has_head:
            raise RemoteDisconnected("the connection ended without an answer")
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            raise IncompleteRead(b"".join(self._parts))
        # The end of the connection is the end of the body.
        self.is_whole = True

    def let_go(self) -> None:
        """Nothing more is read. The parser knows this object: neither is left for the garbage collector."""
        del self._parser

    def take(self) -> bytes:
        """What has come of the body since the last time."""
        content = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return content

    # --- what the parser calls -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins. What was not asked for may not stand behind a whole one: it is refused, as what is no answer is."""
        if self.is_whole:
            raise HttpParserError("an answer that was not asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.status = self._parser.get_status_code()
        self.has_head = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)
        self.size += len(body)

    def on_message_complete(self) -> None:
        """An answer is there as a whole, which need not be the last one."""
        if not self.has_head:
            # It says that more comes.
            self.headers.clear()
            return
        self.will_close = not self._parser.should_keep_alive()
        self.is_whole = True


def read_answer(sock: socket) -> tuple[Answer, bytes]:
    """Read an answer as a whole; with its body.

    Raises: OSError when the connection breaks, HTTPException for what is no answer or not all of one.
    """
    answer = Answer()
    try:
        while not answer.is_whole:
            if data := sock.recv(READ_BYTES):
                answer.feed(data)
            else:
                answer.end()
    finally:
        answer.let_go()
    return answer, answer.take()
