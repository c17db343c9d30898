"""Calls of `metadata` by code that belongs to no run: a plain thread, or an executor's, that was not bound (M15).

Such a call does nothing, and nobody would notice: the progress is just not there. So the run is told once, in its log, with the cure.

Which run it is the call does not say. From Python 3.12 on a thread's starter is known, because each start is announced as an audit
event, in the context of whoever starts it. Where it is not known, or that run has ended (a pool that the whole program shares), every
run under way is told once that the call may have been its own.
"""

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from milepost.sdk.scope import RunScope, current_scope, surroundings

_STARTS = frozenset({"_thread.start_new_thread", "_thread.start_joinable_thread"})
_STARTED_BY = "_milepost_started_by"
# The threads of the worker; in them no code is a run's.
_OWN_NAMES = "milepost-"

LOOK_SECONDS = 0.1

logger = logging.getLogger("milepost.metadata")


class UnboundCalls:
    """Looks out for them, in one executor.

    Args:
        scopes: the runs that the executor holds. Called in any thread.
    """

    def __init__(self, scopes: Callable[[], Iterable[RunScope]]) -> None:
        self._scopes = scopes
        self._thread = threading.get_ident()
        # When a thread was looked at last, and how many runs there had been then. A loop of calls costs no more than one look.
        self._looked = threading.local()
        self._runs = 0

    def watch(self) -> None:
        """Begin. The calling thread is the one of the executor's event loop."""
        surroundings.unbound_call = self._called
        if sys.version_info >= (3, 12):
            sys.addaudithook(self._heard)

    def run_comes(self) -> None:
        """There is one more run that an unbound call may belong to."""
        self._runs += 1

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _STARTS:
            return
        scope = current_scope.get()
        thread = getattr(arguments[0], "__self__", None)
        if scope is not None and isinstance(thread, threading.Thread):
            # On the thread itself, so that it goes with it.
            thread.__dict__[_STARTED_BY] = weakref.ref(scope)

    def _called(self) -> None:
        looked, now = self._looked, time.monotonic()
        if getattr(looked, "runs", -1) == self._runs and now < looked.at + LOOK_SECONDS:
            return
        looked.runs, looked.at = self._runs, now
        thread = threading.current_thread()
        if thread.ident == self._thread or thread.name.startswith(_OWN_NAMES):
            # A finalizer or a signal handler, whose thread says nothing about it.
            return
        started_by: Callable[[], RunScope | None] = thread.__dict__.get(_STARTED_BY, _nobody)
        starter = started_by()
        if starter is not None and _is_under_way(starter):
            self._tell(starter, f"thread {thread.name!r}, which this run has started")
            return
        for scope in self._scopes():
            if _is_under_way(scope):
                self._tell(scope, f"thread {thread.name!r}, perhaps for this run")

    def _tell(self, scope: RunScope, where: str) -> None:
        if not scope.is_first_unbound_call():
            return
        message = (
            f"metadata was called in {where}, but the thread belongs to no run, so the call did nothing. "
            f"Bind what it runs: metadata.bind(function); or use asyncio.to_thread, or contextvars.copy_context().run"
        )
        scope.link.log(scope, "warning", message, logger.name)
        logger.warning("run %s: %s", scope.run.id, message)


def _is_under_way(scope: RunScope) -> bool:
    return scope.attempt is not None and not scope.is_over


def _nobody() -> None:
    return None
