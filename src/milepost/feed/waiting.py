"""Waiting in a stream: for something to happen, and for what a reader thread finds in the store."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

PING_SECONDS = 10.0

_Result = TypeVar("_Result")


async def in_reader(read: Callable[[], _Result]) -> _Result:
    """What a reading of the store gives, done in another thread."""
    return await asyncio.to_thread(read)


async def woken(wake: asyncio.Event, seconds: float = PING_SECONDS) -> bool:
    """Wait for the event; False when it was quiet for so long that the connection should be shown to live."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    return True
