"""A `Context` for unit tests of functions that take one: no server, no run, and what is logged and written can be looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import Token
from itertools import count
from types import TracebackType
from typing import Any, Self

import msgspec

from milepost.errors import UsageError
from milepost.model.document import SIZE_LIMIT
from milepost.protocol.runs import LogLine
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.context import Context
from milepost.sdk.scope import RunScope, current_scope

_numbers = count(1)


class LocalContext(Context):
    """A context that belongs to no server. As a `with` block it makes the code inside part of its run: `metadata` writes to a document
    of its own there.

    Attributes:
        logs: what was logged by `logger`, in order.
    """

    __slots__ = ("_tokens", "logs")

    def __init__(self, scope: RunScope, logs: list[LogLine]) -> None:
        super().__init__(scope)
        self.logs = logs
        self._tokens: list[Token[RunScope | None]] = []

    @property
    def metadata(self) -> dict[str, Any]:
        """The document, as the code has left it."""
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self._scope.buffer.current()))
        return document

    def __enter__(self) -> Self:
        self._tokens.append(current_scope.set(self._scope))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current_scope.reset(self._tokens.pop())


class _NoLink:
    """There is no server: what is written stays here, and nothing can be waited for."""

    def __init__(self, logs: list[LogLine]) -> None:
        self._logs = logs

    def wake(self, scope: RunScope) -> None:
        """See `Link`."""

    def flush(self, scope: RunScope) -> Future[None]:
        """See `Link`."""
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """See `Link`."""
        raise _no_server()

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        """See `Link`."""
        raise _no_server()

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """See `Link`."""
        at = time.time_ns() // 1000
        self._logs.append(
            LogLine(at=at, level=level, message=message, attempt=scope.run.attempt, logger=logger)
        )

    def open_stream(self, outlet: Any) -> None:
        """See `Link`."""
        raise _no_server()

    def send_chunks(self, outlet: Any) -> None:
        """See `Link`."""

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """See `Link`."""


def context(
    *,
    run_id: str | None = None,
    task_id: str = "test",
    attempt: int = 1,
    tags: Iterable[str] = (),
    metadata: Mapping[str, Any] | None = None,
    parent_id: str | None = None,
    root_id: str | None = None,
    batch_id: str | None = None,
    queue: str | None = None,
    max_attempts: int | None = None,
    is_replay: bool = False,
) -> LocalContext:
    """A context for a unit test of a function that takes one.

    `with context() as ctx:` also lets `metadata` work in the block; `ctx.metadata` and `ctx.logs` then tell what was written.

    Args:
        run_id: the run's id; one of its own when left out.
        attempt: the number of the attempt, from 1.
        metadata: the document at the beginning.
        queue: the queue's name; that of the task when left out.
        is_replay: what `ctx.run.is_replay` says.
    Raises: UsageError for an attempt below 1.
    """
    if attempt < 1:
        raise UsageError(f"attempt={attempt}: attempts are counted from 1")
    logs: list[LogLine] = []
    run_id = run_id or f"run_test{next(_numbers)}"
    run = ClaimedRun(
        id=run_id,
        task=task_id,
        attempt=attempt,
        queue=queue or f"task/{task_id}",
        tags=list(tags),
        metadata=dict(metadata or {}),
        metadata_version=0,
        parent_id=parent_id,
        root_id=root_id or parent_id or run_id,
        batch_id=batch_id,
        max_attempts=max_attempts,
        replay_of="run_test" if is_replay else None,
        created_at=time.time_ns() // 1000,
    )
    return LocalContext(RunScope(run, Buffer.of(run, limit=SIZE_LIMIT), _NoLink(logs)), logs)


def _no_server() -> UsageError:
    return UsageError(
        "a context that was made for a unit test has no server: run the task with milepost.testing.run_task"
    )
