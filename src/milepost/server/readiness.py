"""May a load balancer send requests here? That is another question than whether the server is alive (`health.py`).

Cheap, because it is asked every second: one small reading of the database, at most once a second for all who ask. Nothing is written,
and no wall clock is looked at.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from milepost.errors import UnavailableError
from milepost.protocol.problems import Problem
from milepost.store.database import Store

logger = logging.getLogger("milepost.server")

LOOK_SECONDS = 1.0
# Within which the database has to answer.
DATABASE_SECONDS = 2.0
# Within which a group has to be committed: the upkeep gives the committer something to do every second.
COMMIT_SECONDS = 5.0


class NotReady(msgspec.Struct, frozen=True):
    """Why no request should come here: a word for programs, and a sentence."""

    reason: str
    message: str


_DRAINING = NotReady("draining", "the server is about to end")


class Readiness:
    """Knows whether the server is ready.

    Args:
        committed_seconds: how long ago a group was last committed.
        clock: seconds of a clock that nobody sets.

    Attributes:
        is_draining: the server has been told to end, and still serves.
    """

    def __init__(
        self,
        store: Store,
        committed_seconds: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._committed_seconds = committed_seconds
        self._clock = clock
        self._look: asyncio.Task[NotReady | None] | None = None
        self._reading: asyncio.Future[str | None] | None = None
        self._looked_at = -LOOK_SECONDS
        self._found: NotReady | None = None
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """As of the last look; any thread may ask."""
        return not self.is_draining and self._found is None

    async def answer(self, request: Request) -> Any:
        """200, or 503 with the reason."""
        found = await self.check()
        if found is None:
            return {"status": "ready"}
        problem = Problem(found.message, "not_ready", details={"reason": found.reason})
        headers = {"x-should-retry": "true", "retry-after": "1"}
        return Response(msgspec.json.encode(problem), 503, headers, "application/json")

    async def check(self) -> NotReady | None:
        """What is in the way; None when the server is ready."""
        if self.is_draining:
            return _DRAINING
        if self._look is None and self._clock() - self._looked_at >= LOOK_SECONDS:
            # Whoever asks meanwhile waits for the same look.
            self._look = asyncio.create_task(self._look_now())
        found = self._found if self._look is None else await asyncio.shield(self._look)
        return _DRAINING if self.is_draining else found

    async def _look_now(self) -> NotReady | None:
        before = self._found
        try:
            self._found = await self._look_at_database() or self._look_at_committer()
        finally:
            self._looked_at = self._clock()
            self._look = None
        if self._found is not None and (before is None or before.reason != self._found.reason):
            logger.warning("this server is not ready: %s", self._found.message)
        elif self._found is None and before is not None:
            logger.warning("this server is ready again")
        return self._found

    async def _look_at_database(self) -> NotReady | None:
        # One that hangs is not joined by another every second.
        reading = self._reading or asyncio.ensure_future(asyncio.to_thread(self._store.present_schema))
        self._reading = reading
        done, _ = await asyncio.wait({reading}, timeout=DATABASE_SECONDS)
        if not done:
            return NotReady("database", f"the database has not answered for {DATABASE_SECONDS:g} s")
        self._reading = None
        try:
            present = reading.result()
        except UnavailableError as error:
            # What it says may name machines, and anybody may ask.
            logger.debug("the database cannot be read now: %s", error)
            return NotReady("database", "the database cannot be read now")
        if present != self._store.schema:
            return NotReady(
                "schema",
                f"the database has the schema {present}, this version of Milepost {self._store.schema}: another one runs on it",
            )
        return None

    def _look_at_committer(self) -> NotReady | None:
        seconds = self._committed_seconds()
        if seconds <= COMMIT_SECONDS:
            return None
        return NotReady("committer", f"nothing has been committed for {seconds:.0f} s")
