"""Is the server up? It is when what it is sent can be stored."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from milepost.errors import MilepostError, UnavailableError

# Anyone may ask, and each look costs a write to the disk.
LOOK_SECONDS = 2.0
# A write that the database took tells as much, and one that it refused is not forgotten at once.
NEWS_SECONDS = 10.0
PATIENCE_SECONDS = 5.0


class Health:
    """Knows whether writing works: by what was written lately, else by writing something.

    Args:
        glance: what can be seen without a write, each time; raises UnavailableError.
        probe: writes something; raises UnavailableError when that does not work.
        clock: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        glance: Callable[[], None],
        probe: Callable[[], Awaitable[object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._glance = glance
        self._probe = probe
        self._clock = clock
        self._look: asyncio.Task[None] | None = None
        self._looked_at = -NEWS_SECONDS
        self._problem: str | None = None
        self._refused_at = -NEWS_SECONDS
        self._refusal = ""

    def refused(self, error: UnavailableError) -> None:
        """The database did not take something that had to be stored."""
        self._refused_at, self._refusal = self._clock(), str(error)

    async def check(self) -> None:
        """Raises UnavailableError, which says why, when what is sent cannot be stored now."""
        self._glance()
        if self._clock() - self._refused_at < NEWS_SECONDS:
            raise UnavailableError(self._refusal)
        if self._look is None and self._clock() - self._looked_at >= LOOK_SECONDS:
            # Whoever asks meanwhile waits for the same look.
            self._look = asyncio.create_task(self._look_now())
        if self._look is not None:
            await asyncio.shield(self._look)
        if self._problem is not None:
            raise UnavailableError(self._problem)

    async def _look_now(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._probe()
            self._problem = None
        except TimeoutError:
            self._problem = f"the database has not taken a write for {PATIENCE_SECONDS:g} s"
        except MilepostError as error:
            self._problem = str(error)
        finally:
            self._looked_at = self._clock()
            self._look = None
