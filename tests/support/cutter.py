"""A way to a server that breaks after a few bytes, again and again."""

import contextlib
import random
import socket
import threading


class Cutter:
    """Passes each connection on to a port of this machine, and cuts it off after some bytes of the answer.

    Attributes:
        url: what a client connects to.
        count: how many connections there were.
    """

    def __init__(self, port: int, chance: random.Random, bytes_max: int = 40_000) -> None:
        self._target, self._chance, self._bytes_max = port, chance, bytes_max
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.count += 1
            with near, socket.create_connection(("127.0.0.1", self._target)) as far:
                near.settimeout(20)
                threading.Thread(target=_pass_on, args=(near, far), daemon=True).start()
                left = self._chance.randrange(1, self._bytes_max)
                with contextlib.suppress(OSError):
                    while left > 0 and (answer := far.recv(min(left, 4096))):
                        near.sendall(answer)
                        left -= len(answer)
                with contextlib.suppress(OSError):
                    near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while request := near.recv(65536):
            far.sendall(request)
