"""Into a run: values that are sent to it from outside, and that its code waits for (an approval, a correction, a word to stop)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

from milepost.client import calls
from milepost.client.default import default_client
from milepost.client.shape import shape_of
from milepost.client.streams import ChunkFollower, StreamChunk
from milepost.errors import MetadataValueError, UsageError
from milepost.model.jsonvalue import to_json
from milepost.model.typed import Misfit
from milepost.sdk.scope import RunScope, live_scope
from milepost.sdk.streams_attempt import AttemptStreams
from milepost.sdk.streams_outlet import Outlet
from milepost.sdk.triggering import blocking_scope

ValueT = TypeVar("ValueT")
RetryFrom = Literal["start", "unread"]

QUICK_SECONDS = 0.05
"""What is there within this time is taken without giving the slot back."""

_decode_text = msgspec.json.Decoder(str).decode


class InputStream(Generic[ValueT]):
    """Values that are sent to a run under a key, in the order in which they were stored.

    In a task, `receive()` waits for the next one, and so does iterating over it; the run gives its slot back meanwhile. What was sent
    before the task listens is not lost. Each attempt reads from the first value on, or with `retry_from="unread"` from the first that
    no earlier attempt has taken.

        approvals = streams.input("approvals", Approval)

        @task
        async def publish() -> None:
            approval = await approvals.areceive(timeout=3600)

    From outside, `approvals.send(run.id, Approval(...))`.
    """

    def __init__(self, key: str, kind: Any, retry_from: RetryFrom) -> None:
        if retry_from not in ("start", "unread"):
            raise UsageError(
                f"retry_from says where a later attempt begins to read: 'start' or 'unread', not {retry_from!r:.100}"
            )
        self.key = key
        self.type = kind
        self.retry_from: RetryFrom = retry_from
        self._shape = None if kind is None else shape_of(kind)

    # --- from outside ----------------------------------------------------------------------------------------

    def send(self, run_id: str, value: ValueT) -> None:
        """Store a value for a run, once, however often the request has to be sent.

        Raises: MetadataValueError for a value that does not fit or cannot be JSON; RunNotFoundError; BadRequestError when the run has
            finished; TooLargeError above 1 MiB.
        """
        default_client().send(calls.send_input(run_id, self.key, self._written(value)))

    async def asend(self, run_id: str, value: ValueT) -> None:
        """As `send`, without blocking."""
        await default_client().asend(calls.send_input(run_id, self.key, self._written(value)))

    def _written(self, value: object) -> bytes:
        if self._shape is None:
            return msgspec.json.encode(to_json(value))
        try:
            return self._shape.write(value)
        except Misfit as misfit:
            raise MetadataValueError(f"input {self.key!r}: {misfit.describe('value')}") from None

    # --- in a run --------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> ValueT:
        """The next value that was sent to this run. Waits for it, without holding the run's slot.

        Args:
            timeout: seconds to wait at most.
        Raises: TimeoutError; UsageError outside of a run; MetadataValueError for a value that does not fit the type.
        """
        scope = self._needed(blocking_scope(f"streams.input({self.key!r}).receive"))
        until = None if timeout is None else time.monotonic() + timeout
        follower = self._follower(scope)
        try:
            return self._taken(scope, self._next(scope, follower, time.monotonic() + QUICK_SECONDS))
        except TimeoutError:
            if until is not None and time.monotonic() >= until:
                raise self._late(timeout) from None
        back = scope.link.step_aside(scope)
        try:
            found = self._next(scope, follower, until)
        except TimeoutError:
            raise self._late(timeout) from None
        finally:
            back(False).result()
        return self._taken(scope, found)

    async def areceive(self, timeout: float | None = None) -> ValueT:  # noqa: ASYNC109 - the twin of `receive`
        """As `receive`, without blocking."""
        scope = self._needed(live_scope())
        follower = self._follower(scope)
        began = time.monotonic()
        try:
            async with asyncio.timeout(QUICK_SECONDS):
                found = await self._anext(scope, follower)
            return self._taken(scope, found)
        except TimeoutError:
            pass
        left = None if timeout is None else began + timeout - time.monotonic()
        back = scope.link.step_aside(scope)
        try:
            async with asyncio.timeout(left):
                found = await self._anext(scope, follower)
        except TimeoutError:
            await asyncio.wrap_future(back(False))
            raise self._late(timeout) from None
        except BaseException:
            # The code goes on at once, with a slot or without.
            back(True)
            raise
        try:
            await asyncio.wrap_future(back(False))
        except BaseException:
            # Given up at the last moment: the next one who asks gets it.
            if found is not None:
                follower.give_back(found)
            raise
        return self._taken(scope, found)

    def __iter__(self) -> Iterator[ValueT]:
        while True:
            yield self.receive()

    async def __aiter__(self) -> AsyncIterator[ValueT]:
        while True:
            yield await self.areceive()

    def _needed(self, scope: RunScope | None) -> RunScope:
        if scope is None:
            raise UsageError(
                f"streams.input({self.key!r:.100}).receive() reads what was sent to the run that the code belongs to, and this code "
                f"belongs to none: call it in a task"
            )
        return scope

    def _follower(self, scope: RunScope) -> ChunkFollower:
        """How far this attempt has read."""
        start = None if self.retry_from == "unread" else 0
        return scope.inputs.setdefault(self.key, ChunkFollower(start))

    def _next(self, scope: RunScope, follower: ChunkFollower, until: float | None) -> StreamChunk | None:
        found = follower.newest()
        if found is None:
            states = default_client().connection.follow(
                lambda: calls.read_input(scope.run.id, self.key, start=follower.position),
                follower,
                until=until,
            )
            with closing(cast("Generator[Any]", states)):
                found = next(states, None)
        return found

    async def _anext(self, scope: RunScope, follower: ChunkFollower) -> StreamChunk | None:
        found = follower.newest()
        if found is None:
            states = default_client().connection.afollow(
                lambda: calls.read_input(scope.run.id, self.key, start=follower.position),
                follower,
            )
            try:
                async with aclosing(cast("AsyncGenerator[StreamChunk]", states)):
                    found = await anext(states, None)
            except BaseException:
                # The time was over while the connection was being closed.
                if found is not None:
                    follower.give_back(found)
                raise
        return found

    def _taken(self, scope: RunScope, found: StreamChunk | None) -> ValueT:
        """The value, which counts as taken from now on: also one that does not fit its type, or every attempt would fail of it."""
        if found is None:
            raise UsageError(f"the run has ended, and nothing more is sent to its input {self.key!r}")
        if self.retry_from == "unread":
            count_taken(scope, self.key)
        inner = _decode_text(found.text)
        if self._shape is None:
            return cast("ValueT", msgspec.json.decode(inner))
        try:
            return cast("ValueT", self._shape.read(inner))
        except Misfit as misfit:
            raise MetadataValueError(
                f"what was sent to input {self.key!r} does not fit its type: {misfit.describe('value')}"
            ) from None

    def _late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"nothing was sent to input {self.key!r} within {timeout} s")

    def __repr__(self) -> str:
        return f"<input {self.key!r}>"


class _Count:
    """The writer that counts what an attempt has taken of one input."""

    def __init__(self, scope: RunScope, key: str) -> None:
        self.outlet = Outlet(scope, scope.run.id, key, is_announced=False, is_of_input=True)
        scope.link.open_stream(self.outlet)

    def end(self, error: str | None) -> None:
        """See `Ending`."""
        self.outlet.close()


def count_taken(scope: RunScope, key: str) -> None:
    """A value of an input has been taken; the server knows it before it knows how the attempt has ended."""
    own = AttemptStreams.of(scope)
    found = own.inputs.get(key)
    if found is None:
        made = _Count(scope, key)
        found = own.inputs.setdefault(key, made)
        if found is made:
            own.add_writer(made)
        else:
            # Another thread was first.
            made.end(None)
    found.outlet.add(b"0")
