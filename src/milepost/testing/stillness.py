"""An event loop that notices when nothing happens any more.

The server and the worker's link of a sandbox live on one loop, and what they hand to threads is done on it at once. So there is a
moment at which the loop is about to sleep and the committer has nothing to do: then nothing is under way, and only time, or somebody
outside, can bring something new.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# How long to sleep while only the committer's thread is at work: it does not say when it is done.
COMMITTER_SECONDS = 0.0005


class StillnessLoop(asyncio.SelectorEventLoop):
    """An event loop that tells when all is still.

    Attributes:
        is_still: asked when the loop is about to sleep; None when the committer is all that is at work.
        still: called when all is still; True when that has changed something.
    """

    def __init__(self) -> None:
        self.is_still: Callable[[], bool | None] = lambda: False
        self.still: Callable[[], bool] = lambda: False
        super().__init__(_Selector(self))  # pyright: ignore[reportArgumentType]
        self.set_default_executor(_Here())


class _Selector(selectors.DefaultSelector):
    """Asked by the loop for what has happened, with how long it may sleep."""

    def __init__(self, loop: StillnessLoop) -> None:
        super().__init__()
        self._loop = loop
        # All was still when the loop was last about to sleep, and nothing has come since. It takes two such looks: what the committer
        # has handed to the loop after it had looked at its line is in line at the second one.
        self._was_still = False

    def select(self, timeout: float | None = None) -> Any:
        """See `selectors`."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        is_still = self._loop.is_still()
        if is_still and not self._was_still:
            self._was_still = True
            return super().select(0)
        self._was_still = False
        if is_still and self._loop.still():
            return super().select(0)
        if is_still is None:
            timeout = COMMITTER_SECONDS if timeout is None else min(timeout, COMMITTER_SECONDS)
        return super().select(timeout)


class _Here(ThreadPoolExecutor):
    """Does what the server hands to threads on the spot: reading takes no time that another request could use."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See `Executor`."""
        future: Future[Any] = Future()
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        return future
