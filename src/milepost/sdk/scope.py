"""The run that the present code belongs to, and the one port through which the SDK speaks to the worker.

The worker makes a `RunScope` for each attempt and sets it in a context variable before the user's code starts; everything the user
touches (`metadata`, `ctx`, `wait`) finds it there. The SDK knows the worker only as `Link`.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from milepost.client.streams import ChunkFollower
from milepost.errors import MaxDurationError, RunCancelledError, UsageError
from milepost.model.run import AttemptEnd, Outcome, RunError
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.hooks import HookName
from milepost.sdk.schema import MetadataSchema

OutletT_contra = TypeVar("OutletT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why an attempt is to end before its code has come to its own end.

    Attributes:
        end: cancelled or timed_out.
        error: the error of the run.
    """

    end: AttemptEnd
    error: RunError

    @property
    def outcome(self) -> Outcome:
        """How the attempt ends by it."""
        return Outcome(error=self.error, end=self.end)

    def exception(self) -> RunCancelledError:
        """What is raised in a thread."""
        kind = MaxDurationError if self.end is AttemptEnd.TIMED_OUT else RunCancelledError
        return kind(self.error.message)


class RunningAttempt(Protocol):
    """The attempt under way, as far as waits and its worker know it."""

    @property
    def outcome(self) -> Outcome | None:
        """How it ends, as soon as that is decided; hooks may still run."""
        ...

    @property
    def stops_by_raising(self) -> bool:
        """True while the next call in a thread is to raise when the run is to end: the code of a `def` task runs."""
        ...

    @property
    def hook_began_at(self) -> float | None:
        """Since when a hook of the run's end executes in the thread of a `def` task, where nothing can stop it; None while none does.
        On the monotonic clock."""
        ...

    def stop(self) -> None:
        """The scope has been asked to stop: cancel what runs on the event loop, where that is how it hears. On the loop's thread."""
        ...

    async def run_hooks(self, name: HookName) -> None:
        """Run the hooks of one name. What raises is raised."""
        ...

    def run_hooks_blocking(self, name: HookName) -> None:
        """As `run_hooks`, from the thread of a `def` task."""
        ...

    def cancel(self, reason: str | None = None) -> None:
        """Cancel what runs of it on the event loop. On the loop's thread."""
        ...

    def abort(self, error: BaseException) -> None:
        """Something that it has started on the event loop has ended with SystemExit or KeyboardInterrupt. On the loop's thread."""
        ...


class AttemptEnding(Protocol):
    """What ends with the attempt, and what the attempt waits for before."""

    def end(self, error: str | None) -> None:
        """End it, in the thread of the attempt."""
        ...

    async def end_on_loop(self, error: str | None) -> None:
        """As `end`, on the worker's event loop."""
        ...


class Link(Protocol[OutletT_contra]):
    """What the SDK may ask of the worker. Every method is thread-safe and returns at once. An outlet is what a writer of a stream puts
    its chunks into (`streams_outlet.Outlet`)."""

    def wake(self, scope: RunScope) -> None:
        """The scope's buffer has something to send and had nothing before (called once per change from clean to dirty)."""
        ...

    def flush(self, scope: RunScope) -> Future[None]:
        """Done when everything added to the buffer before this call is committed (M37)."""
        ...

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """Done when the run or batch `target_id` has ended. The run gives its slot back meanwhile and is WAITING (M39: it is flushed
        first)."""
        ...

    def step_aside(self, scope: RunScope) -> Callable[[bool], Future[None]]:
        """The run waits for something that its own code looks for; it gives its slot back and is WAITING.

        Returns: what is to be called when it goes on. Done when it has a slot again; with True it is given one at once, free or not.
        """
        ...

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """Add a line to the run's log."""
        ...

    def open_stream(self, outlet: OutletT_contra) -> None:
        """A writer of a stream begins, in the run that it names. Raises UsageError where none can."""
        ...

    def send_chunks(self, outlet: OutletT_contra) -> None:
        """The outlet has something to send and had nothing before (called as `wake` is)."""
        ...

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a while, on another thread. It must not block, and not raise."""
        ...


# What a scope has of its own from when it is needed.
_BUFFER, _EVENT, _TOLD, _INPUTS, _PLACES, _UNBOUND = (
    "buffer",
    "_stop_event",
    "_told_threads",
    "_inputs",
    "_places",
    "_unbound",
)


class RunScope:
    """One attempt of one run in this process.

    The worker gives `run`, `buffer`, `link` and the thread in which its event loop runs; the attempt fills in the rest.

    Args:
        buffer: the buffer of the attempt, or the largest size of its document in bytes: then a buffer is made for whoever needs it
            first, as most runs never do.

    Attributes:
        schema: the task's metadata schema; own writes are checked against it (M76).
        attempt: the attempt under way, for the hooks around waits.
        is_lost: the worker has given this attempt up, and stops its code where it can; what it does does not count any more.
        stop: why the run is to end, since it was asked to; see `ask_to_stop`.
        unended_lines: what was printed without a line feed yet, by stream and thread; see `capture`.
        is_over: the user's code has returned. What it left running has no run any more: its calls do nothing (M9).
        streams: the streams that the attempt writes; None as long as there are none.
    """

    run: ClaimedRun
    buffer: Buffer
    link: Link[Any]
    loop_thread_id: int
    # What a run has of its own is set when it is needed.
    schema: MetadataSchema | None = None
    attempt: RunningAttempt | None = None
    is_lost: bool = False
    stop: Stop | None = None
    unended_lines: dict[tuple[str, int], str] | None = None
    is_over: bool = False
    streams: AttemptEnding | None = None

    def __init__(
        self, run: ClaimedRun, buffer: Buffer | int, link: Link[Any], loop_thread_id: int = 0
    ) -> None:
        self.run = run
        self.link = link
        self.loop_thread_id = loop_thread_id
        if isinstance(buffer, int):
            self._metadata_size_max = buffer
        else:
            self.buffer = buffer

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The buffer, made now; other attributes that are not there are not there."""
            if name != _BUFFER:
                raise AttributeError(name)
            # Whoever comes here meanwhile, in another thread or by interrupting this one, makes one too, and all are given the first.
            return self.__dict__.setdefault(_BUFFER, Buffer.of(self.run, limit=self._metadata_size_max))

    @property
    def made_buffer(self) -> Buffer | None:
        """The buffer, if anybody has needed it yet."""
        return self.__dict__.get(_BUFFER)

    @property
    def inputs(self) -> dict[str, ChunkFollower]:
        """How far the attempt has read what was sent to the run, by key."""
        return self.__dict__.setdefault(_INPUTS, {})

    @property
    def parent_id(self) -> str:
        """The run that `metadata.parent` writes to: the run itself when it has no parent (M64)."""
        return self.run.parent_id or self.run.id

    @property
    def root_id(self) -> str:
        """The run that `metadata.root` writes to."""
        return self.run.root_id or self.run.id

    @property
    def attempt_name(self) -> str:
        """See `CallingAttempt`."""
        return f"{self.run.id}:{self.run.attempt}"

    @property
    def has_ended(self) -> bool:
        """See `CallingAttempt`."""
        return self.is_lost or self.is_over

    def lose(self) -> None:
        """See `CallingAttempt`. The server has refused it: the worker will hear so too."""
        self.is_lost = True

    def place(self, what: str) -> str:
        """Where in the run it waits for `what` now: the first time, the second time... Another attempt counts from the start, and so
        finds what an earlier one has begun; that two things are waited for in another order or at the same time does not matter."""
        # Each step is atomic, so threads of one run do not get the same place.
        places: dict[str, Iterator[int]] = self.__dict__.setdefault(_PLACES, {})
        return f"{what}/{next(places.setdefault(what, itertools.count()))}"

    def is_first_unbound_call(self) -> bool:
        """Unbound code was noticed that may be the run's; whether for the first time, which is told."""
        calls: Iterator[int] = self.__dict__.setdefault(_UNBOUND, itertools.count())
        return next(calls) == 0

    @property
    def cancel_asked(self) -> bool:
        """True when the run is to end because it was cancelled."""
        return self.stop is not None and self.stop.end is AttemptEnd.CANCELLED

    def ask_to_stop(self, stop: Stop) -> None:
        """The run is to end. Its code hears so as it can: see `heed_stop` and `RunningAttempt.stop`."""
        self.stop = stop
        event = self.__dict__.get(_EVENT)
        if event is not None:
            event.set()

    def heed_stop(self) -> None:
        """Raise RunCancelledError in the thread of a `def` task that is to end, unless this thread has been told. Called where `stop`
        is set."""
        attempt = self.attempt
        if self.stop is None or attempt is None or not attempt.stops_by_raising or is_in_event_loop():
            return
        if not self.is_told_here():
            raise self.stop.exception()

    def is_told_here(self) -> bool:
        """Whether this thread has been told that the run is to end; from now on it has."""
        # Made by whoever needs it first, as most runs are never asked.
        told: set[int] = self.__dict__.setdefault(_TOLD, set())
        thread_id = threading.get_ident()
        if thread_id in told:
            return True
        told.add(thread_id)
        return False

    def heed(self) -> None:
        """See `CallingAttempt`."""
        if self.stop is not None:
            self.heed_stop()

    def wait_for_stop(self, seconds: float | None) -> bool:
        """Wait in this thread until the run is asked to end, at most so long; whether it is."""
        event: threading.Event = self.__dict__.setdefault(_EVENT, threading.Event())
        # In this order: whoever asks sets the event if there is one already.
        return self.stop is not None or event.wait(seconds)

    def refuse_blocking(self, form: str, right_form: str) -> None:
        """Raise UsageError if this is the thread of the worker's event loop, which a blocking call would stop for every run."""
        if threading.get_ident() == self.loop_thread_id and is_in_event_loop():
            raise UsageError(
                f"{form} would block the event loop that this run shares with others; write {right_form} in an `async def` task"
            )


def is_in_event_loop() -> bool:
    """True when an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


current_scope: ContextVar[RunScope | None] = ContextVar("milepost_run", default=None)


@dataclass
class Surroundings:
    """What a process knows beside the context of the code.

    Attributes:
        attached: the run that the whole process is part of, where it is a program that a run has started.
        unbound_call: told of each call of `metadata` by code that belongs to no run.
        sandbox_now: the time, microseconds since 1970, where runs are in a sandbox of a test: no wait may take real time there.
    """

    attached: RunScope | None = None
    unbound_call: Callable[[], None] | None = None
    sandbox_now: Callable[[], int] | None = None


surroundings = Surroundings()


def live_scope() -> RunScope | None:
    """The scope of the run that this code belongs to; None outside of a run and after its end."""
    scope = current_scope.get()
    if scope is None:
        return surroundings.attached
    return None if scope.is_over else scope


def scope_at_work() -> RunScope | None:
    """As `live_scope`, and also what code that an attempt has left running belongs to when that attempt was given up: to nothing that
    may still do anything."""
    scope = current_scope.get() or surroundings.attached
    return None if scope is None or (scope.is_over and not scope.is_lost) else scope


def scope_of_call() -> RunScope | None:
    """As `live_scope`, for what loses something where there is none: code that was not bound is told of.

    Raises: RunCancelledError in a thread whose run is to end, once.
    """
    scope = current_scope.get()
    if scope is None:
        if surroundings.attached is None and surroundings.unbound_call is not None:
            surroundings.unbound_call()
        return surroundings.attached
    if scope.stop is not None:
        scope.heed_stop()
    return None if scope.is_over else scope
