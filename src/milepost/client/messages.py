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


def with_length(method: str, body: bytes | None) -> bytes:
    """The end of the head, and the body."""
    if body is None:
        return b"\r\n" if method == "GET" else b"content-length: 0\r\n\r\n"
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


class AnswerHeaders(dict[str, str]):
    """Headers by their names in lower case."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """The value of a header, or the default; the case of the name does not matter."""
        return super().get(name.lower(), default)


class WholeAnswer:
    """An answer with its body.

    Attributes:
        will_close: nothing more comes on this connection.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._parts: list[bytes] = []
        self._has_head = self._is_whole = False
        self.status = 0
        self.headers = AnswerHeaders()
        self.content = b""
        self.will_close = True

    def read(self) -> None:
        """Read all of it. Raises OSError when the connection breaks, HTTPException for what is no answer or not all of one."""
        self._parser = HttpResponseParser(self)
        try:
            while not self._is_whole:
                data = self._sock.recv(READ_BYTES)
                if not data:
                    self._has_come_to_an_end()
                    break
                self._parser.feed_data(data)
        except HttpParserError as error:
            if not self._is_whole:
                raise HTTPException(f"no HTTP answer: {error}") from None
            # What stands behind it was not asked for.
            self.will_close = True
        finally:
            # It knows this object: neither is left for the garbage collector.
            del self._parser
        self.content = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _has_come_to_an_end(self) -> None:
        if not self._has_head:
            raise RemoteDisconnected("the connection ended without an answer")
        if self._says_its_length:
            raise IncompleteRead(b"".join(self._parts))
        # The end of the connection is the end of the body.
        self.status = self._parser.get_status_code()

    @property
    def _says_its_length(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    # --- what the parser calls -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins. What was not asked for may not stand behind a whole one: it is refused, as what is no answer is."""
        if self._is_whole:
            raise HttpParserError("an answer that was not asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._has_head = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """An answer is there as a whole, which need not be the last one."""
        if not self._has_head:
            # It says that more comes.
            self.headers.clear()
            return
        self.status = self._parser.get_status_code()
        self.will_close = not self._parser.should_keep_alive()
        self._is_whole = True
