"""The chunks of a stream for its readers: those behind the newest wait for a commit, those behind it read the store.

What a commit has added is encoded once and given to every reader that is there. A reader that is slower finds it no more and reads a
page of the store; readers at one place share one reading. So a reader costs the server one frame, however slow it is.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from milepost.errors import UnavailableError
from milepost.feed.hub import Hub
from milepost.feed.stream_topic import StreamTopic, frame_of
from milepost.feed.waiting import PING_SECONDS, in_reader, woken
from milepost.protocol.feed import PING, encode_event
from milepost.protocol.streams import StreamBegun, StreamEnded, StreamState
from milepost.reading.reader import Reader
from milepost.reading.streams import StreamPage

# What is read of a stream at once, about.
PAGE_BYTES = 256 * 1024
# A stream that many read is told to each of them less often: so long for each reader, between these bounds.
SECONDS_EACH = 0.0001
PAUSE_SECONDS_MIN = 0.002
PAUSE_SECONDS_MAX = 0.25
_COME_BACK = encode_event("error", b'{"error":"the server cannot go on; connect again"}')
_encode = msgspec.json.Encoder().encode

logger = logging.getLogger("milepost.feed")


async def watch_stream(
    hub: Hub,
    reader: Reader,
    run_id: str,
    name: str,
    *,
    start: int | None,
    idle_seconds: float | None = None,
    has_finished: asyncio.Event | None = None,
) -> AsyncGenerator[bytes]:
    """The chunks of a stream from an index on, as `batch` events, and an `end` when it has ended.

    Args:
        start: the index of the first chunk; None: only what is written from now on.
        idle_seconds: end without `end` after so long without a chunk.
        has_finished: go on past the place where the stream has ended, because another writer may begin, until this is set and
            `Hub.look_at_streams` has been called.
    When the server stops, or cannot read, an `error` event tells the reader to come back: a clean end alone would mean that the stream
    has ended. Raises RunNotFoundError before the first frame.
    """
    wake = hub.new_wake(hub.lags.of_streams)
    topic = hub.watch_stream(run_id, name, wake)
    loop = asyncio.get_running_loop()
    position: int | None = None
    try:
        page = await _read(topic, reader, start or 0, bytes_max=PAGE_BYTES if start is not None else 0)
        position = page.next_index if start is None else start
        # At once, whenever the first chunk comes; and a reader of what is new learns where it has begun.
        yield encode_event("begin", _encode(StreamBegun(position)))
        if start is not None and page.rows:
            yield frame_of(page.rows, position)
            position = page.rows[-1].next_index
        quiet_since = loop.time()
        while True:
            wake.clear()
            found = topic.after(position)
            if found is None:
                found = await _page(topic, reader, position)
            if found is not None:
                frame, position = found
                quiet_since = loop.time()
                yield frame
                wake.sent()
                pause = len(topic.watchers) * SECONDS_EACH
                if pause >= PAUSE_SECONDS_MIN:
                    # What is written meanwhile goes to each of the many at once.
                    await asyncio.sleep(min(pause, PAUSE_SECONDS_MAX))
                continue
            may_end = has_finished is None or has_finished.is_set()
            if may_end and position >= topic.next_index and await _has_ended(topic, reader):
                if position < topic.next_index:
                    continue
                assert topic.state is not None, "it was read just now"
                state, error = topic.state
                yield encode_event("end", _encode(StreamEnded(state, topic.next_index, error)))
                return
            if hub.is_closed:
                yield _COME_BACK
                return
            seconds = PING_SECONDS
            if idle_seconds is not None:
                seconds = min(seconds, quiet_since + idle_seconds - loop.time())
                if seconds <= 0:
                    return
            if not await woken(wake, seconds):
                # A commit of another kind may have ended it: an attempt that died, an announcement that was lost.
                if loop.time() - topic.looked_at >= PING_SECONDS:
                    topic.state = None
                yield PING
    except (UnavailableError, SQLAlchemyError) as error:
        if position is None:
            raise
        logger.warning("the stream of run %s cannot be read now: %s", run_id, error)
        yield _COME_BACK
    finally:
        wake.close()
        hub.leave_stream(topic, wake)


async def _has_ended(topic: StreamTopic, reader: Reader) -> bool:
    """Whether nothing will come any more; learns of chunks that no announcement has told."""
    if topic.state is None:
        await _read(topic, reader, topic.next_index, bytes_max=0)
    return topic.state is not None and topic.state[0] is not StreamState.OPEN


async def _page(topic: StreamTopic, reader: Reader, position: int) -> tuple[bytes, int] | None:
    """The chunks from a place on that are not at hand any more; None when there are none."""
    if position >= topic.next_index:
        return None
    page = await _read(topic, reader, position, bytes_max=PAGE_BYTES)
    return (frame_of(page.rows, position), page.rows[-1].next_index) if page.rows else None


async def _read(topic: StreamTopic, reader: Reader, position: int, *, bytes_max: int) -> StreamPage:
    """A page of the store. Readers that ask for the same one share the reading."""
    reading = topic.readings.get((position, bytes_max))
    if reading is None:
        reading = asyncio.ensure_future(_read_alone(topic, reader, position, bytes_max))
        topic.readings[position, bytes_max] = reading
        reading.add_done_callback(_look_at_failure)
    return await asyncio.shield(reading)


async def _read_alone(topic: StreamTopic, reader: Reader, position: int, bytes_max: int) -> StreamPage:
    changes = topic.changes
    try:
        page = await in_reader(
            lambda: reader.stream_page(topic.run_id, topic.name, start=position, bytes_max=bytes_max)
        )
    finally:
        topic.readings.pop((position, bytes_max), None)
    topic.learn(page, is_newest=changes == topic.changes)
    topic.looked_at = asyncio.get_running_loop().time()
    return page


def _look_at_failure(reading: asyncio.Future[StreamPage]) -> None:
    """Whoever asked is told of it; when they have all gone meanwhile, nobody is."""
    if not reading.cancelled():
        reading.exception()
