"""A run in a process that has no worker: a child process that runs a bound function, or a program that a task has started (M15).

There the run has a scope whose link sends updates through the ordinary API, each batch under a request id of its own, so that a repeat
changes nothing there either. Each request names the attempt that it is part of, and the server holds it to the same documents.

A forked child begins with a copy of everything that its parent had in that moment, held locks and half-done changes included, and
without the threads that would go on. So it uses nothing of that but what it can read.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import msgspec

from milepost.client import calls
from milepost.client.calling import NamedAttempt, acting_as
from milepost.client.calls import Call, MetadataDocument
from milepost.client.default import default_client
from milepost.client.environment import ATTEMPT_VARIABLE, RUN_VARIABLE, attempt_of_environment
from milepost.client.request_ids import new_request_id
from milepost.errors import MilepostError, UnavailableError, UsageError
from milepost.protocol.metadata import MetadataRequest, Refused
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Batch, Buffer, BufferBusy
from milepost.sdk.calling import know_runs
from milepost.sdk.scope import RunScope, current_scope, is_in_event_loop, live_scope, surroundings
from milepost.sdk.streams_outlet import Outlet

# An executor's process id; for those below it.
EXECUTOR_VARIABLE = "_MILEPOST_EXECUTOR"

FLUSH_SECONDS = 0.05
RETRY_SECONDS = 1.0
BUSY_SECONDS_MAX = 0.1
# A process that has done its work waits this long for a server that is away.
FAREWELL_SECONDS_MAX = 10.0
# A process of a pool sees many runs. Of those that have nothing to send this many are kept, so that they read what was last known.
SCOPES_KEPT_MAX = 64

logger = logging.getLogger("milepost.metadata")

# Where code can be part of a run, calls know so, whatever else the program has imported.
know_runs()


class CarriedRun(msgspec.Struct, frozen=True):
    """What a child process has to know of a run. `document` is what the run saw when the function left for the child."""

    run: ClaimedRun
    document: bytes
    limit: int


def carry(scope: RunScope, *, is_copy: bool) -> bytes:
    """What another process has to know of a run.

    Args:
        is_copy: the scope belongs to the process that this one was forked from.
    """
    buffer = scope.buffer
    document = msgspec.json.encode(buffer.current_in_fork() if is_copy else buffer.current())
    run = msgspec.structs.replace(scope.run, payload=None, metadata={}, metadata_version=buffer.version)
    return msgspec.json.encode(CarriedRun(run, document, buffer.limit))


# --- the process --------------------------------------------------------------------------------------------


@dataclass
class Process:
    """What one process has of the runs that were carried into it. A forked child has another one than its parent."""

    scopes: dict[tuple[str, int], RunScope] = field(default_factory=dict[tuple[str, int], RunScope])
    links: dict[str, ChildLink] = field(default_factory=dict[str, "ChildLink"])


_process = Process()


def this_process() -> Process:
    """The same object as long as it is the same process."""
    return _process


def scope_of(carried: bytes) -> tuple[RunScope, ChildLink]:
    """The scope of a run that was carried into this process, and the link that it has here."""
    told = msgspec.json.decode(carried, type=CarriedRun)
    scope = _process.scopes.get((told.run.id, told.run.attempt))
    if scope is None:
        run = msgspec.structs.replace(told.run, metadata=msgspec.json.decode(told.document))
        scope = _new_scope(run, limit=told.limit)
    return scope, _link()


def _link() -> ChildLink:
    # Of two threads that are here at once, both get the one that was there first. No lock: see `default_client`.
    links = _process.links
    return links.get("one") or links.setdefault("one", ChildLink())


def _new_scope(run: ClaimedRun, *, limit: int) -> RunScope:
    scopes = _process.scopes
    for key, idle in list(scopes.items())[: max(0, len(scopes) + 1 - SCOPES_KEPT_MAX)]:
        if not idle.buffer.has_unacknowledged:
            scopes.pop(key, None)
    return scopes.setdefault((run.id, run.attempt), RunScope(run, Buffer.of(run, limit=limit), _link()))


def _after_fork() -> None:
    # Scope and link of the parent are of no use here: the threads behind them have stayed there. Unbound code is outside of any run.
    global _process
    _process = Process()
    forked_by = live_scope()
    current_scope.set(None)
    surroundings.attached = None
    surroundings.unbound_call = None if forked_by is None else _tell_unbound


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _tell_unbound() -> None:
    """A child process of a run calls `metadata` without being part of the run: say so once for each process, which cannot ask the
    others whether they have."""
    surroundings.unbound_call = None
    logger.warning(
        "metadata was called in process %d, a child process of a run that is not part of it, so the call did nothing. "
        "Bind what it runs: metadata.bind(function)",
        os.getpid(),
    )


def _look_at_parent() -> None:
    surroundings.unbound_call = None
    # Not imported: then this is no child process of that kind.
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = multiprocessing.parent_process() if multiprocessing is not None else None
    if parent is not None and str(parent.pid) == os.environ.get(EXECUTOR_VARIABLE):
        _tell_unbound()


if EXECUTOR_VARIABLE in os.environ:
    # Perhaps a child process that was not forked but started anew.
    surroundings.unbound_call = _look_at_parent


# --- programs -----------------------------------------------------------------------------------------------


def environment(scope: RunScope | None, base: Mapping[str, str] | None) -> dict[str, str]:
    """The environment for a program that is to be part of the run."""
    variables = dict(os.environ if base is None else base)
    if scope is not None:
        variables |= default_client().environment()
        variables[RUN_VARIABLE] = scope.run.id
        variables[ATTEMPT_VARIABLE] = str(scope.run.attempt)
        # What was called before leaves at once, so that the program is likely to find it.
        scope.link.flush(scope)
    return variables


def attach() -> None:
    """From now on this whole process is part of the run that its environment names; see `Metadata.attach`."""
    if live_scope() is not None:
        return
    named = attempt_of_environment()
    if named is None:
        return
    client = default_client()
    with acting_as(NamedAttempt(*named)):
        limit = client.learn_metadata_limit()
        run = client.runs.retrieve(named[0])
    claimed = ClaimedRun(
        id=run.id,
        task=run.task_id,
        attempt=named[1],
        metadata=run.metadata,
        metadata_version=run.metadata_version,
        tags=run.tags,
        queue=run.queue,
        parent_id=run.parent_id,
        root_id=run.root_id,
        batch_id=run.batch_id,
        depth=run.depth or 0,
    )
    scope, link = _new_scope(claimed, limit=limit), _link()
    surroundings.attached = scope
    atexit.register(_settle_if_here, _process, link, scope)


def _settle_if_here(process: Process, link: ChildLink, scope: RunScope) -> None:
    if process is _process:
        link.settle(scope)


# --- the link -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Flush:
    """Someone waits until the scope's buffer has reached the mark."""

    scope: RunScope
    mark: int
    future: Future[None]


class ChildLink:
    """The link of a process without a worker: sends updates through the ordinary API, from a thread of its own."""

    def __init__(self) -> None:
        # Of what the library has, only this may be put into at any moment, also by a finalizer that interrupts another `put`.
        self._asked: SimpleQueue[RunScope | _Flush] = SimpleQueue()
        self._dirty: dict[RunScope, None] = {}
        self._flushes: list[_Flush] = []
        # The calls of a scope's batch in flight that have not been answered, and what the answered ones have refused.
        self._unanswered: dict[RunScope, list[Call[MetadataDocument]]] = {}
        self._refused: dict[RunScope, list[Refused]] = {}
        self._thread = threading.Thread(target=self._run, name="milepost-metadata", daemon=True)
        self._thread.start()

    def wake(self, scope: RunScope) -> None:
        """See `Link`."""
        self._asked.put(scope)

    def flush(self, scope: RunScope) -> Future[None]:
        """See `Link`."""
        future: Future[None] = Future()
        if threading.current_thread() is self._thread:
            # A finalizer, run by the collector in whichever thread is at hand.
            future.set_exception(
                UsageError(
                    "a finalizer cannot wait for the server: it may run in the thread that talks to it"
                )
            )
        elif scope.buffer.is_interrupted_here:
            # The buffer is free when the interrupted call has ended, and that one goes on when this one has.
            self._asked.put(scope)
            future.set_result(None)
        else:
            self._asked.put(_Flush(scope, scope.buffer.mark(), future))
        return future

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """See `Link`. A child process holds no run, so none can be resumed in it."""
        future: Future[None] = Future()
        future.set_exception(
            UsageError("a child process of a run cannot wait for other runs; do it in the task itself")
        )
        return future

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        """See `Link`."""
        raise UsageError("a child process of a run cannot wait for its input; do it in the task itself")

    def open_stream(self, outlet: Outlet) -> None:
        """See `Link`. Only the worker writes streams."""
        raise UsageError(
            f"stream {outlet.key!r:.100}: a child process or a program of a run cannot write streams; hand the values to the task "
            f"itself, as by a queue, a pipe or the program's standard output, and write them there"
        )

    def send_chunks(self, outlet: Outlet) -> None:
        """See `Link`. No writer is ever opened here."""

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """See `Link`."""
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        timer.start()

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """See `Link`. Only the worker writes to the run's log; Python's logging has the line as well."""

    def settle(self, scope: RunScope) -> None:
        """The work is done, and the process may end: wait until its updates are committed, but not for ever."""
        if scope.buffer.has_unacknowledged:
            try:
                self.flush(scope).result(FAREWELL_SECONDS_MAX)
            except TimeoutError:
                _tell_uncommitted(scope)
            except UsageError:
                return
        _tell_refused(scope)

    async def asettle(self, scope: RunScope) -> None:
        """As `settle`, without blocking."""
        if not is_in_event_loop():
            # Another library than asyncio runs this.
            self.settle(scope)
            return
        if scope.buffer.has_unacknowledged:
            try:
                async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                    await asyncio.wrap_future(self.flush(scope))
            except TimeoutError:
                _tell_uncommitted(scope)
            except UsageError:
                return
        _tell_refused(scope)

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        due_at = time.monotonic()
        is_failing = False
        while True:
            self._take_in(None if not self._dirty else max(0.0, due_at - time.monotonic()))
            # A flush need not wait for the interval; a server that is away needs its pause.
            if time.monotonic() < due_at and (is_failing or not self._flushes):
                continue
            is_failing = False
            for scope in list(self._dirty):
                try:
                    self._send(scope)
                except (UnavailableError, BufferBusy):
                    is_failing = True
                except Exception:  # one run must not keep the others from being sent
                    logger.exception("metadata of run %s could not be sent", scope.run.id)
                    is_failing = True
                else:
                    del self._dirty[scope]
            self._answer_flushes()
            due_at = time.monotonic() + (RETRY_SECONDS if is_failing else FLUSH_SECONDS)

    def _take_in(self, seconds: float | None) -> None:
        """Wait for something to do, or for the time to be over, and take in all that was asked."""
        try:
            asked = self._asked.get(timeout=seconds)
            while True:
                if isinstance(asked, _Flush):
                    self._flushes.append(asked)
                    self._dirty[asked.scope] = None
                else:
                    self._dirty[asked] = None
                asked = self._asked.get_nowait()
        except Empty:
            return

    def _send(self, scope: RunScope) -> None:
        """Send what waits. Raises UnavailableError; what was not answered then is sent again as it was. Raises BufferBusy."""
        buffer = scope.buffer
        while (batch := buffer.next_batch(patience_seconds=BUSY_SECONDS_MAX)) is not None:
            unanswered = self._unanswered.setdefault(scope, _calls_of(batch))
            refused = self._refused.setdefault(scope, [])
            while unanswered:
                call, own = unanswered[0], batch.changes[len(batch.changes) - len(unanswered)]
                answer: MetadataDocument | None = None
                try:
                    with acting_as(scope):
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
        waiting, self._flushes = self._flushes, []
        for flush in waiting:
            if not flush.scope.buffer.reached(flush.mark):
                self._flushes.append(flush)
                self._dirty[flush.scope] = None
                continue
            # It was cancelled: nobody waits any more.
            with suppress(InvalidStateError):
                flush.future.set_result(None)


def _calls_of(batch: Batch) -> list[Call[MetadataDocument]]:
    return [
        calls.put_metadata(change.run, MetadataRequest(operations=list(change.operations)), new_request_id())
        for change in batch.changes
    ]


def _tell_uncommitted(scope: RunScope) -> None:
    logger.warning("metadata of run %s could not be committed: the server cannot be reached", scope.run.id)


def _tell_refused(scope: RunScope) -> None:
    for change in scope.buffer.take_refused():
        logger.error("metadata of run %s was refused: %s", change.run_id, change.message)
