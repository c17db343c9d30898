"""Carrying a run along: into threads and executors that do not inherit the context, and into child processes (M15).

In the worker's own process a bound function simply runs with the run as the current one. In a child process there is no worker:
the first bound function that runs there gets a scope whose link sends updates through the ordinary API, each batch under a
request id of its own, so that a repeat changes nothing there either.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar, cast

import msgspec

from milepost.client import calls
from milepost.client.calls import Call, MetadataDocument
from milepost.client.default import default_client
from milepost.errors import MilepostError, UnavailableError, UsageError
from milepost.protocol.metadata import MetadataRequest, Refused
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Batch, Buffer
from milepost.sdk.scope import RunScope, current_scope

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")

FLUSH_SECONDS = 0.05
RETRY_SECONDS = 1.0
# A child that has done its work waits this long for a server that is away.
FAREWELL_SECONDS_MAX = 10.0

logger = logging.getLogger("milepost.metadata")


def bind_to(scope: RunScope, function: Callable[Parameters, ResultT]) -> Callable[Parameters, ResultT]:
    """A function that runs as part of the given run, whichever thread or process calls it.

    For another process the function must be one that can be pickled, as always there; an `async def` is bound for this process only.
    """
    if not inspect.iscoroutinefunction(function):
        return Bound(scope, function)

    @functools.wraps(function)
    async def bound(*args: Any, **kwargs: Any) -> Any:
        token = current_scope.set(scope)
        try:
            return await function(*args, **kwargs)
        finally:
            current_scope.reset(token)

    return cast("Callable[Parameters, ResultT]", bound)


class CarriedRun(msgspec.Struct, frozen=True):
    """What a child process has to know of a run. `document` is what the run saw when the function left for the child."""

    run: ClaimedRun
    document: bytes
    limit: int


class Bound(Generic[Parameters, ResultT]):
    """A function and the run that it belongs to."""

    def __init__(
        self, scope: RunScope | None, function: Callable[Parameters, ResultT], carried: bytes | None = None
    ) -> None:
        assert scope is not None or carried is not None, "a function is bound to something"
        self._scope = scope
        self._carried = carried
        self._process_id = os.getpid()
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> ResultT:
        scope = self._scope
        child: ChildLink | None = None
        if scope is None or self._process_id != os.getpid():
            carried = self._carried if self._carried is not None else _carry(cast("RunScope", scope))
            scope, child = _scope_in_child(carried)
        token = current_scope.set(scope)
        try:
            return self._function(*args, **kwargs)
        finally:
            current_scope.reset(token)
            if child is not None:
                child.settle(scope)

    def __reduce__(self) -> tuple[Any, ...]:
        carried = self._carried if self._carried is not None else _carry(cast("RunScope", self._scope))
        return _restore, (self._function, carried)


def _restore(function: Callable[..., Any], carried: bytes) -> Callable[..., Any]:
    return Bound[..., Any](None, function, carried)


def _carry(scope: RunScope) -> bytes:
    run = msgspec.structs.replace(scope.run, payload=None, metadata={}, metadata_version=scope.buffer.version)
    document = msgspec.json.encode(scope.buffer.current())
    return msgspec.json.encode(CarriedRun(run, document, scope.buffer.limit))


# --- in the child -------------------------------------------------------------------------------------------


@dataclass
class _Process:
    """What one child process has of the runs that were carried into it."""

    id: int = 0
    scopes: dict[tuple[str, int], RunScope] = field(default_factory=dict[tuple[str, int], RunScope])
    link: ChildLink | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_process = _Process()


def _after_fork() -> None:
    # Scope and link of the parent are of no use here: the threads behind them have stayed there. Unbound code is outside of any run.
    global _process
    _process = _Process()
    current_scope.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _scope_in_child(carried: bytes) -> tuple[RunScope, ChildLink]:
    with _process.lock:
        if _process.link is None:
            _process.link = ChildLink()
        told = msgspec.json.decode(carried, type=CarriedRun)
        key = told.run.id, told.run.attempt
        scope = _process.scopes.get(key)
        if scope is None:
            run = msgspec.structs.replace(told.run, metadata=msgspec.json.decode(told.document))
            scope = _process.scopes[key] = RunScope(run, Buffer.of(run, limit=told.limit), _process.link)
        return scope, _process.link


class ChildLink:
    """The link of a child process: sends updates through the ordinary API, from a thread of its own."""

    def __init__(self) -> None:
        self._wanted = threading.Condition()
        self._dirty: set[RunScope] = set()
        self._flushes: list[tuple[RunScope, int, Future[None]]] = []
        # The calls of a scope's batch in flight that have not been answered, and what the answered ones have refused.
        self._unanswered: dict[RunScope, list[Call[MetadataDocument]]] = {}
        self._refused: dict[RunScope, list[Refused]] = {}
        threading.Thread(target=self._run, name="milepost-metadata", daemon=True).start()

    def wake(self, scope: RunScope) -> None:
        """See `Link`."""
        with self._wanted:
            self._dirty.add(scope)
            self._wanted.notify()

    def flush(self, scope: RunScope) -> Future[None]:
        """See `Link`."""
        future: Future[None] = Future()
        with self._wanted:
            self._dirty.add(scope)
            self._flushes.append((scope, scope.buffer.mark(), future))
            self._wanted.notify()
        return future

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """See `Link`. A child process holds no run, so none can be resumed in it."""
        future: Future[None] = Future()
        future.set_exception(
            UsageError("a child process of a run cannot wait for other runs; do it in the task itself")
        )
        return future

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """See `Link`. Only the worker writes to the run's log; Python's logging has the line as well."""

    def settle(self, scope: RunScope) -> None:
        """The function is over, and so may be the process: wait until its updates are committed, but not for ever."""
        try:
            if scope.buffer.has_unacknowledged:
                self.flush(scope).result(FAREWELL_SECONDS_MAX)
        except TimeoutError:
            logger.warning(
                "metadata of run %s could not be committed: the server cannot be reached", scope.run.id
            )
        for change in scope.buffer.take_refused():
            logger.error("metadata of run %s was refused: %s", change.run_id, change.message)

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._dirty)
                scopes, is_urgent = list(self._dirty), bool(self._flushes)
                self._dirty.clear()
            pause = 0.0 if is_urgent else FLUSH_SECONDS
            for scope in scopes:
                try:
                    self._send(scope)
                except UnavailableError:
                    pause = RETRY_SECONDS
                    self.wake(scope)
            self._answer_flushes()
            time.sleep(pause)

    def _send(self, scope: RunScope) -> None:
        """Send what waits. Raises UnavailableError; what was not answered then is sent again as it was."""
        buffer = scope.buffer
        while (batch := buffer.next_batch()) is not None:
            unanswered = self._unanswered.setdefault(scope, _calls_of(batch))
            refused = self._refused.setdefault(scope, [])
            while unanswered:
                call, own = unanswered[0], batch.changes[len(batch.changes) - len(unanswered)]
                answer: MetadataDocument | None = None
                try:
                    answer = default_client().send(call)
                    refused.extend(answer.refused)
                except UnavailableError:
                    raise
                except MilepostError as error:
                    # Refused as a whole: the run has ended long ago, for instance.
                    refused += [
                        Refused(own.run, index, error.code, error.message, msgspec.to_builtins(operation))
                        for index, operation in enumerate(own.operations)
                    ]
                del unanswered[0]
                if answer is not None and own.run == scope.run.id:
                    buffer.adopt(answer.value, answer.version, holds_until=batch.sequence)
            buffer.acknowledged(batch.sequence, refused=refused)
            del self._unanswered[scope], self._refused[scope]

    def _answer_flushes(self) -> None:
        with self._wanted:
            waiting = self._flushes
            self._flushes = [item for item in waiting if not item[0].buffer.reached(item[1])]
        for scope, mark, future in waiting:
            if scope.buffer.reached(mark):
                # It was cancelled: nobody waits any more.
                with suppress(InvalidStateError):
                    future.set_result(None)


def _calls_of(batch: Batch) -> list[Call[MetadataDocument]]:
    return [
        calls.put_metadata(
            change.run, MetadataRequest(operations=list(change.operations)), calls.new_request_id()
        )
        for change in batch.changes
    ]
