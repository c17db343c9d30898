"""Ending on Ctrl-C and SIGTERM: the first asks, the second hurries."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

# Some programs hand on a signal that the terminal sends as well; a person takes longer to ask twice.
SAME_SIGNAL_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a command on an event loop, on uvloop where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class StopSignals:
    """Turns signals into events while its block runs.

    Attributes:
        asked: the user wants an end.
        hurried: the user has asked twice.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self._asked_at = 0.0

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def _arrived(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self.asked.is_set():
            self._asked_at = now
            self.asked.set()
        elif now - self._asked_at > SAME_SIGNAL_SECONDS:
            self.hurried.set()


async def first_of(*work: Awaitable[Any]) -> None:
    """Wait until one of these is done; how it ended is not looked into. Coroutines that are not done are cancelled and waited for;
    tasks are somebody else's and go on."""
    futures = [asyncio.ensure_future(each) for each in work]
    own = [future for future, each in zip(futures, work, strict=True) if future is not each]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in own:
            future.cancel()
        await asyncio.gather(*own, return_exceptions=True)
