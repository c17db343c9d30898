"""What takes several calls, written once: a generator yields the steps, and is driven in either colour.

def trigger(...) -> Steps[RunHandle]:
    triggered = yield calls.trigger(...)
    return RunHandle(triggered.id, ...)

run(connection, trigger(...))
await arun(connection, trigger(...))
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from milepost.client.calls import Call, Feed
from milepost.client.connection import Connection
from milepost.client.subscription import Follower

ResultT = TypeVar("ResultT")
StateT = TypeVar("StateT")


class Step(Protocol):
    """Something that is waited for and is no call."""

    def carry_out(self, connection: Connection, until: float | None) -> Any:
        """Do it, and wait for it. Raises TimeoutError past `until`, on the monotonic clock."""
        ...

    async def acarry_out(self, connection: Connection) -> Any:
        """As `carry_out`, without blocking."""
        ...


Steps: TypeAlias = Generator[Call[Any] | Step, Any, ResultT]


@dataclass(frozen=True, slots=True)
class Watch(Generic[StateT]):
    """Follow a feed until a state is what is waited for; that state. None when the feed has ended before."""

    feed: Feed
    follower: Follower[StateT]
    is_enough: Callable[[StateT], bool]

    def carry_out(self, connection: Connection, until: float | None) -> StateT | None:
        """See `Step`."""
        states = connection.follow(self.feed, self.follower, until=until)
        return next((state for state in states if self.is_enough(state)), None)

    async def acarry_out(self, connection: Connection) -> StateT | None:
        """See `Step`."""
        states = connection.afollow(self.feed, self.follower)
        async with aclosing(cast("AsyncGenerator[StateT]", states)) as found:
            async for state in found:
                if self.is_enough(state):
                    return state
        return None


def run(connection: Connection, steps: Steps[ResultT], *, until: float | None = None) -> ResultT:
    """Carry out steps, one after the other; what they come to. An error of a step ends them.

    Args:
        until: on the monotonic clock; past it TimeoutError is raised.
    """
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        is_call = isinstance(step, Call)
        answer = connection.send(step, until=until) if is_call else step.carry_out(connection, until)


async def arun(connection: Connection, steps: Steps[ResultT], *, until: float | None = None) -> ResultT:
    """As `run`, without blocking. `until` holds for the calls; a timeout around this holds for everything."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        is_call = isinstance(step, Call)
        answer = await (connection.asend(step, until=until) if is_call else step.acarry_out(connection))
