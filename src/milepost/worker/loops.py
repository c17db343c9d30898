"""The event loop that the runs of an executor share: no run stops it for the others.

asyncio hands a SystemExit or KeyboardInterrupt that comes out of a task or a callback to whoever runs the loop, which is right for
a program and wrong here. Every callback is therefore called by `_contain`, in whose context the run can be told, and that run fails.
What cannot be told (a signal handler may raise anywhere) ends nothing either: the loop is run again.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from milepost.errors import UsageError
from milepost.sdk.scope import current_scope, live_scope

# A loop that fails this often without coming to its next callback is broken.
FAILURES_MAX = 3


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


_Base = asyncio.SelectorEventLoop if TYPE_CHECKING else object


class _SharedLoop(_Base):
    """What is different about the loop; put in front of a class of event loops."""

    def __init__(self) -> None:
        super().__init__()
        # On the instance, without a frame of Python in between: each step of each task comes by here.
        self.__dict__["call_soon"] = partial(super().call_soon, _contain)
        self.__dict__["call_soon_threadsafe"] = partial(super().call_soon_threadsafe, _contain)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_later(delay, _contain, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_at(when, _contain, callback, *args, context=context)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        return super().add_reader(fd, _contain, callback, *args)

    def add_writer(self, fd: Any, callback: Any, *args: Any) -> None:
        return super().add_writer(fd, _contain, callback, *args)

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        super().add_signal_handler(sig, _contain, callback, *args)

    def stop(self) -> None:
        _refuse_in_run("stop()", "would stop")
        super().stop()

    def close(self) -> None:
        _refuse_in_run("close()", "would close")
        super().close()


def shared_loop(kind: type[asyncio.AbstractEventLoop] | None = None) -> asyncio.AbstractEventLoop:
    """A new event loop for the code of runs.

    Args:
        kind: the class of the loop; uvloop's where there is one when left out.
    """
    if kind is None:
        example = loop_factory()()
        kind = type(example)
        example.close()
    return type("SharedLoop", (_SharedLoop, kind), {})()


def run_shared(
    loop: asyncio.AbstractEventLoop,
    is_ended: Callable[[], bool],
    tell: Callable[[BaseException], None],
) -> None:
    """Run the loop until it is stopped and `is_ended`; nothing else ends it.

    Args:
        tell: called with what has come out of the loop and is no run's.
    Raises: what comes out of a loop that is broken and does not turn any more.
    """
    failures = 0

    def turns() -> None:
        nonlocal failures
        failures = 0

    while not is_ended():
        try:
            loop.call_soon(turns)
            loop.run_forever()
        except BaseException as error:
            failures += 1
            if failures > FAILURES_MAX:
                raise
            tell(error)


def _contain(callback: Callable[..., Any], *args: Any) -> Any:
    """Call a callback; what would end a program ends the run in whose context it is called."""
    try:
        return callback(*args)
    except (SystemExit, KeyboardInterrupt) as error:
        scope = current_scope.get()
        if scope is None:
            raise
        if scope.attempt is not None:
            scope.attempt.abort(error)
        else:
            message = (
                f"what run {scope.run.id} of task {scope.run.task} has left running has ended with {error!r}"
            )
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


def _refuse_in_run(call: str, would: str) -> None:
    if live_scope() is not None:
        raise UsageError(
            f"loop.{call} {would} the event loop that this run shares with others; to end the run, return or raise"
        )
