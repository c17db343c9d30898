"""Many feeds on one connection: a browser opens at most six to one server, and a page may show fifty runs."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from milepost.errors import MilepostError, UnavailableError
from milepost.feed.waiting import PING_SECONDS
from milepost.protocol.feed import PING, encode_event
from milepost.protocol.problems import to_problem

# Frames of all feeds together that wait for the reader. A feed that cannot hand over its frame tells a newer state later.
WAITING_MAX = 16
# So many feeds of one connection read their beginning at once, so that the others' readings are not behind a thousand of them.
BEGINNING_MAX = 8
# Data has no line breaks, so the name of an event is all that can stand so. A frame may have several events.
_EVENT = re.compile(rb"^event: ", re.MULTILINE)
_END = re.compile(rb"^event: end$", re.MULTILINE)

logger = logging.getLogger("milepost.feed")


class _Ended(msgspec.Struct, frozen=True):
    """A feed has ended: for good, or because the reader has to connect again; or it has failed."""

    is_final: bool
    failure: Exception | None = None


async def watch_many(feeds: Sequence[AsyncGenerator[bytes]]) -> AsyncGenerator[bytes]:
    """The events of all feeds as they come, each with the number of its feed before its name.

    Ends when every feed has told its `end` or was refused, and as soon as one ends without that: the reader connects again. A feed
    that raises a MilepostError is told as `refused`, and the others go on.
    """
    waiting: asyncio.Queue[bytes | _Ended] = asyncio.Queue(WAITING_MAX)
    beginning = asyncio.Semaphore(BEGINNING_MAX)
    tasks = [
        asyncio.ensure_future(_hand_over(feed, number, waiting, beginning))
        for number, feed in enumerate(feeds)
    ]
    open_count = len(tasks)
    try:
        yield encode_event("begin", b"{}")
        while open_count > 0:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    item = await waiting.get()
            except TimeoutError:
                yield PING
                continue
            if not isinstance(item, _Ended):
                yield item
            elif item.failure is not None:
                raise item.failure
            elif item.is_final:
                open_count -= 1
            else:
                return
    finally:
        for task in tasks:
            task.cancel()
        # Shielded, because a reader that vanishes cancels whatever is awaited from here on.
        await asyncio.shield(asyncio.ensure_future(_close(tasks, feeds)))


async def _close(tasks: Sequence[asyncio.Future[None]], feeds: Sequence[AsyncGenerator[bytes]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
    for feed in feeds:
        # One whose task was cancelled before it began has not been closed.
        await feed.aclose()


async def _hand_over(
    feed: AsyncGenerator[bytes],
    number: int,
    waiting: asyncio.Queue[bytes | _Ended],
    beginning: asyncio.Semaphore,
) -> None:
    prefix = b"event: %d-" % number
    is_final = False
    try:
        async with aclosing(feed):
            async with beginning:
                frame = await anext(feed, None)
            while frame is not None:
                # The connection has its own.
                if frame is not PING:
                    is_final = _END.search(frame) is not None
                    await waiting.put(_EVENT.sub(prefix, frame))
                frame = await anext(feed, None)
    except (UnavailableError, SQLAlchemyError) as error:
        logger.warning("a feed of many ends early: %s", error)
        is_final = False
    except MilepostError as error:
        is_final = True
        problem: dict[str, Any] = msgspec.to_builtins(to_problem(error))
        data = msgspec.json.encode({"status": error.status, **problem})
        await waiting.put(encode_event(f"{number}-refused", data))
    except Exception as error:
        await waiting.put(_Ended(False, error))
        return
    await waiting.put(_Ended(is_final))
