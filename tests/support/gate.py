"""A way to a server that a test opens and shuts: nobody listens, nobody answers, or what is answered gets lost."""

from __future__ import annotations

import enum
import socket
import threading
from contextlib import suppress


class Mode(enum.Enum):
    """What happens to a new connection, and to what is under way on the open ones."""

    OPEN = "passed on"
    SHUT = "nobody listens"
    SILENT = "accepted, and nothing is read or answered"
    DEAF = "requests arrive at the server, and no answer comes back"


class Gate:
    """Stands before the server on this port. `turn` ends the connections that there are."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._mode = Mode.OPEN
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.came = 0
        self._watch(self._listener)

    def turn(self, mode: Mode) -> None:
        """From now on; what is under way breaks."""
        was, self._mode = self._mode, mode
        if mode is Mode.SHUT and was is not Mode.SHUT:
            # A listener that is closed while somebody accepts on it would take one connection more.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        elif was is Mode.SHUT and mode is not Mode.SHUT:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._watch(self._listener)
        with self._lock:
            broken, self._open = self._open, set()
        for end in broken:
            _end(end)

    def close(self) -> None:
        """Nobody listens any more."""
        self.turn(Mode.SHUT)

    def _watch(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.came += 1
            with self._lock:
                self._open.add(near)
            if self._mode is Mode.SILENT:
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open.add(far)
            is_deaf = self._mode is Mode.DEAF
            threading.Thread(target=self._carry, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, is_deaf), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, swallow: bool) -> None:
        with suppress(OSError):
            while more := source.recv(65536):
                if not swallow:
                    target.sendall(more)
        for end in (source, target):
            _end(end)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
