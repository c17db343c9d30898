"""A run in this process: a scope whose link delivers to a model server at once, without worker and network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from milepost.model.jsonvalue import encode
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope, current_scope
from milepost.sdk.streams_outlet import Outlet
from sdk.model_server import ATTEMPT, RUN, ModelServer, deliver


class HereLink:
    """A `Link` that remembers what it was asked."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.woken = 0
        self.waited_for: list[str] = []
        self.lines: list[tuple[str, str, str]] = []
        # Flushes wait here while the network is down.
        self.is_down = False
        self.flushes: list[Future[None]] = []

    def wake(self, scope: RunScope) -> None:
        self.woken += 1

    def flush(self, scope: RunScope) -> Future[None]:
        future: Future[None] = Future()
        if self.is_down:
            self.flushes.append(future)
        else:
            deliver(scope.buffer, self.server)
            future.set_result(None)
        return future

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        self.waited_for.append(target_id)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        def back(at_once: bool) -> Future[None]:
            future: Future[None] = Future()
            future.set_result(None)
            return future

        return back

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        self.lines.append((level, message, logger))

    def open_stream(self, outlet: Outlet) -> None:
        raise AssertionError("no stream is written here")

    def send_chunks(self, outlet: Outlet) -> None:
        raise AssertionError("no stream is written here")

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        raise AssertionError("no stream is written here")


def claimed(payload: object = None, **fields: Any) -> ClaimedRun:
    """A run that this process holds. `payload` is put into JSON; `text` and `payload_type` give the text itself."""
    text = fields.pop("text", None if payload is None else encode(payload).decode())
    defaults = {"id": RUN, "task": "a-task", "attempt": ATTEMPT, "queue": "task/a-task", "root_id": RUN}
    return ClaimedRun(**{**defaults, "payload": text, "payload_type": "application/json", **fields})


def scope_of(run: ClaimedRun, server: ModelServer | None = None) -> RunScope:
    """The scope of a run's attempt."""
    server = server if server is not None else ModelServer(run.metadata)
    return RunScope(run, Buffer.of(run, limit=server.document.limit), HereLink(server))


@contextmanager
def running(
    value: dict[str, Any] | None = None, *, limit: int = 262_144, **fields: Any
) -> Iterator[tuple[RunScope, HereLink]]:
    """Inside the block, `metadata` belongs to a run with this document."""
    server = ModelServer(value, limit=limit)
    scope = scope_of(claimed(metadata=server.document.copy_value(), **fields), server)
    token = current_scope.set(scope)
    try:
        link = scope.link
        assert isinstance(link, HereLink)
        yield scope, link
    finally:
        current_scope.reset(token)
