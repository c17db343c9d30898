"""A load balancer in front of several servers, as small as one can be: each connection goes to the next server that accepts it."""

import contextlib
import socket
import threading
from collections.abc import Sequence
from itertools import count

import urllib3


class Balancer:
    """Passes connections on to ports of this machine, in turn. When one side closes its connection, the other one is closed.

    Args:
        asks_seconds: so often it asks each server whether it is ready, and sends connections only to those that are; without it,
            to any that accepts.

    Attributes:
        url: what clients and workers connect to.
        ready: the ports of the servers that were ready when they were last asked.
    """

    def __init__(self, ports: Sequence[int], *, asks_seconds: float | None = None) -> None:
        self._ports = ports
        self._turns = count()
        self.ready = set(ports)
        self._closing = threading.Event()
        if asks_seconds is not None:
            for port in ports:
                threading.Thread(target=self._ask, args=(port, asks_seconds), daemon=True).start()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _ask(self, port: int, seconds: float) -> None:
        with urllib3.PoolManager(retries=False, timeout=1.0) as pool:
            while not self._closing.wait(seconds):
                try:
                    is_ready = pool.request("GET", f"http://127.0.0.1:{port}/api/v1/ready").status == 200
                except urllib3.exceptions.HTTPError:
                    is_ready = False
                if is_ready:
                    self.ready.add(port)
                else:
                    self.ready.discard(port)

    def _serve(self, near: socket.socket) -> None:
        with near:
            far = self._connect()
            if far is None:
                return
            with far:
                back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
                back.start()
                _pass_on(near, far)
                back.join()

    def _connect(self) -> socket.socket | None:
        turn = next(self._turns)
        for number in range(len(self._ports)):
            port = self._ports[(turn + number) % len(self._ports)]
            if port not in self.ready:
                continue
            try:
                far = socket.create_connection(("127.0.0.1", port), timeout=1)
            except OSError:
                continue
            far.settimeout(None)
            return far
        return None


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
