"""The way to a server behind TLS: a certificate that is trusted, and one that is not."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from milepost.client.async_transport import AsyncTransport
from milepost.client.retries import Patience
from milepost.client.transport import SyncTransport
from milepost.errors import UnavailableError

# Made for these tests alone, for `localhost`, and valid for a hundred years; its key is in the same file.
CERTIFICATE = Path(__file__).parent / "localhost.pem"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Listener:
    """Answers every request on every connection alike, behind TLS."""

    def __init__(self) -> None:
        self.connections = 0
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(CERTIFICATE)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as answering:
                self.connections += 1
                while answering.recv(65_536):
                    answering.sendall(ANSWER)

    def close(self) -> None:
        """Take no more."""
        self._listener.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def ask(url: str, colour: str, times: int) -> list[bytes]:
    """What so many requests, one after the other, are answered."""
    if colour == "blocking":
        transport = SyncTransport(url, "key")
        return [transport.exchange("GET", "/", None, {}, Patience(None)).content for _ in range(times)]

    async def main() -> list[bytes]:
        transport = AsyncTransport(url, "key")
        try:
            return [
                (await transport.exchange("GET", "/", None, {}, Patience(None))).content for _ in range(times)
            ]
        finally:
            await transport.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if colour == "uvloop" else None) as runner:
        return runner.run(main())


@pytest.mark.parametrize("colour", ["blocking", "async", "uvloop"])
def test_a_trusted_server_is_asked_on_one_connection(listener: Listener, colour: str) -> None:
    """In a process of its own: a library reads once for all which certificates are trusted."""
    program = f"from client.test_tls import ask; print(ask({listener.url!r}, {colour!r}, 3))"
    environment = {**os.environ, "SSL_CERT_FILE": str(CERTIFICATE), "PYTHONPATH": str(CERTIFICATE.parents[1])}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert said.stdout == f"{[b'ok'] * 3}\n", said.stderr
    assert listener.connections == 1


@pytest.mark.parametrize("colour", ["blocking", "async", "uvloop"])
def test_another_one_is_not_asked_and_it_says_why(listener: Listener, colour: str) -> None:
    with pytest.raises(UnavailableError, match="its certificate is not accepted: self-signed certificate"):
        ask(listener.url, colour, 1)
    assert listener.connections == 0
