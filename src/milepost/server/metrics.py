"""`/metrics`: what the server does, in the form of Prometheus.

Everything is counted where it happens, in plain numbers (`engine/measures.py`), and put into this form when somebody asks, at most
once a second. Of the database only kept counts and bounded looks into indexes are read.
"""

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from milepost.server.metric_sources import Sources

if TYPE_CHECKING:
    from milepost.server.metric_families import MetricFamilies

# An answer is kept for so long, and for so many times as long as it took to read.
KEPT_SECONDS = 1.0
READING_SHARE = 10

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The form that every version of Prometheus reads."""


class Metrics:
    """Answers with the metrics. Belongs to one event loop.

    Args:
        clock: the engine's wall clock, microseconds since 1970.
    """

    def __init__(self, sources: Sources, clock: Callable[[], int]) -> None:
        self._sources = sources
        self._clock = clock
        self._kept: tuple[float, bytes] = 0.0, b""
        self._making: asyncio.Future[bytes] | None = None

    async def answer(self, request: Request) -> Response:
        """The metrics as text, which every Prometheus takes, whatever form it would rather have."""
        until, text = self._kept
        if time.monotonic() >= until:
            if self._making is None:
                # Whoever asks meanwhile waits for the same.
                self._making = asyncio.ensure_future(self._make())
            text = await asyncio.shield(self._making)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    @cached_property
    def _families(self) -> "MetricFamilies":
        # Only now: most servers are never asked, and the library takes a megabyte.
        from milepost.server.metric_families import MetricFamilies

        return MetricFamilies(self._sources, self._clock)

    async def _make(self) -> bytes:
        try:
            began = time.monotonic()
            text = await asyncio.to_thread(lambda: self._families.text())
            now = time.monotonic()
            self._kept = now + max(KEPT_SECONDS, (now - began) * READING_SHARE), text
            return text
        finally:
            self._making = None
