"""Reading an answer of HTTP as a whole, by the parser that the server reads requests with.

The standard library reads the head of an answer as that of a mail, which took more than a third of what a call cost its caller.
"""

from __future__ import annotations

from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from socket import socket
from typing import Any

from httptools import HttpParserError, HttpResponseParser

READ_BYTES = 65_536


class AnswerHeaders(dict[str, str]):
    """Headers by their names in lower case."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """The value of a header, or the default; the case of the name does not matter."""
        return super().get(name.lower(), default)


class WholeAnswer:
    """An answer with its body, in the place of `http.client.HTTPResponse` (`HTTPConnection.response_class`).

    Attributes:
        will_close: nothing more comes on this connection.
    """

    def __init__(self, sock: socket, *_: Any, **__: Any) -> None:
        self._sock = sock
        self._parts: list[bytes] = []
        self._has_head = self._is_whole = False
        self.status = 0
        self.headers = AnswerHeaders()
        self.content = b""
        self.will_close = True

    def begin(self) -> None:
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
            raise HTTPException(f"no HTTP answer: {error}") from None
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

    def isclosed(self) -> bool:
        """True: nothing of it is left on the connection."""
        return True

    def close(self) -> None:
        """Nothing is left to be closed."""

    # --- what the parser calls -------------------------------------------------------------------------------

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
