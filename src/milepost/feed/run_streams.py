"""A run together with its streams on one connection: its states, and the chunks of every stream as they are written.

The run's last state is held back until all chunks before it have been told, so whoever sees that the run has ended has seen all of it.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from milepost.errors import UnavailableError
from milepost.feed.chunks import watch_stream
from milepost.feed.hub import Hub, RunTopic
from milepost.feed.streams import streams_of, watch_run
from milepost.feed.waiting import PING_SECONDS, woken
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.protocol.feed import PING, StreamFrame, encode_event
from milepost.reading.reader import Reader
from milepost.store.streams import OUTPUT

# Frames of the run and all its streams that wait for the reader. A stream whose frame has no room waits: the store has the rest.
WAITING_MAX = 16
# So many streams read their beginning at once, so that other readings are not behind two thousand of them.
BEGINNING_MAX = 8
# Data has no line breaks, so the name of an event is all that can stand so. A frame may have several events.
_EVENT = re.compile(rb"^event: ", re.MULTILINE)
_END = re.compile(rb"^event: end$", re.MULTILINE)
_encode = msgspec.json.Encoder().encode

logger = logging.getLogger("milepost.feed")


class _Ended(msgspec.Struct, frozen=True):
    """Nothing more comes: all has been told, or the reader has to connect again; or something has failed."""

    failure: Exception | None = None


async def watch_run_streams(
    hub: Hub,
    reader: Reader,
    run_id: str,
    starts: Mapping[str, int],
    *,
    only: bool = False,
    view: View = WHOLE_VIEW,
) -> AsyncGenerator[bytes]:
    """The run as by `watch_run`, and its streams as by `watch_stream`, with a number and a hyphen before the names of their events.

    An event `stream` says which key a number stands for, before the first event with that number. A stream is followed past the place
    where it has ended, because another writer may begin, until the run has ended. The feed ends without `end` when something cannot
    be read or the server stops: the reader connects again.

    Args:
        starts: by key, the index of the first chunk that the reader wants; other streams are told from their beginning.
        only: tell no other streams than those that `starts` names.
    Raises RunNotFoundError before the first frame.
    """
    # Registered before the first look: what begins afterwards is announced.
    wake = asyncio.Event()
    topic = hub.watch_run(run_id, wake, view)
    watch = _Watch(hub, reader, topic, starts)
    try:
        watch.begin(partial(watch.follow_run, is_complete=only))
        if only:
            watch.follow(starts)
        else:
            watch.begin(partial(watch.follow_keys, wake))
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    item = await watch.waiting.get()
            except TimeoutError:
                yield PING
                continue
            if isinstance(item, bytes):
                yield item
            elif item.failure is not None:
                raise item.failure
            else:
                return
    finally:
        # Shielded, because a reader that vanishes cancels whatever is awaited from here on.
        await asyncio.shield(asyncio.ensure_future(watch.close()))
        hub.leave_run(topic, wake)


class _Watch:
    """What is under way for one reader.

    Attributes:
        waiting: frames for the reader, in order.
    """

    def __init__(self, hub: Hub, reader: Reader, topic: RunTopic, starts: Mapping[str, int]) -> None:
        self.waiting: asyncio.Queue[bytes | _Ended] = asyncio.Queue(WAITING_MAX)
        self._hub = hub
        self._reader = reader
        self._topic = topic
        self._starts = starts
        self._tasks: list[asyncio.Task[None]] = []
        self._streams: dict[str, asyncio.Task[None]] = {}
        # The present state has been told, or is held back: then streams may be told.
        self._has_begun = asyncio.Event()
        self._has_finished = asyncio.Event()
        self._beginning = asyncio.Semaphore(BEGINNING_MAX)

    def begin(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Do this beside the rest. It is called when its turn comes, so nothing is left over of a reader that vanishes before."""
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.append(task)
        return task

    def follow(self, keys: Iterable[str]) -> None:
        """Follow those of these streams that are not followed yet."""
        for key in keys:
            if key not in self._streams:
                self._streams[key] = self.begin(partial(self._follow_stream, key, len(self._streams)))

    async def close(self) -> None:
        """Let everything go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def follow_run(self, *, is_complete: bool) -> None:
        """The states of the run, the last one behind all chunks. `is_complete`: no further streams are to be followed."""
        held: list[bytes] = []
        run = watch_run(
            self._hub,
            self._reader,
            self._topic.run_id,
            view=self._topic.view,
            has_finished=self._has_finished,
        )
        async with aclosing(run) as frames:
            async for frame in frames:
                if self._has_finished.is_set():
                    held.append(frame)
                elif frame is not PING:
                    await self.waiting.put(frame)
                self._has_begun.set()
        if self._has_finished.is_set():
            if not is_complete:
                self.follow(await self._keys())
            self._hub.look_at_streams(self._topic.run_id)
            await asyncio.gather(*self._streams.values())
            for frame in held:
                await self.waiting.put(frame)
        await self.waiting.put(_Ended())

    async def follow_keys(self, wake: asyncio.Event) -> None:
        """Follow every stream of the run, those too that begin later."""
        count = self._topic.stream_count
        self.follow(await self._keys())
        while not self._has_finished.is_set():
            # An announcement may have been lost, so there is a look from time to time as well.
            is_told = await woken(wake)
            wake.clear()
            if not is_told or self._topic.stream_count != count:
                count = self._topic.stream_count
                self.follow(await self._keys())

    async def _keys(self) -> list[str]:
        return [summary.key for summary in await streams_of(self._topic, self._reader)]

    async def _follow_stream(self, key: str, number: int) -> None:
        await self._has_begun.wait()
        await self.waiting.put(encode_event("stream", _encode(StreamFrame(number, key))))
        chunks = watch_stream(
            self._hub,
            self._reader,
            self._topic.run_id,
            OUTPUT + key,
            start=self._starts.get(key, 0),
            has_finished=self._has_finished,
        )
        prefix = b"event: %d-" % number
        has_ended = False
        async with aclosing(chunks):
            async with self._beginning:
                frame = await anext(chunks, None)
            while frame is not None:
                if frame is not PING:
                    has_ended = _END.search(frame) is not None
                    await self.waiting.put(_EVENT.sub(prefix, frame))
                frame = await anext(chunks, None)
        if not has_ended:
            await self.waiting.put(_Ended())

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let the reader know when this cannot go on."""
        try:
            await work()
        except (UnavailableError, SQLAlchemyError) as error:
            logger.warning("run %s cannot be told with its streams now: %s", self._topic.run_id, error)
            await self.waiting.put(_Ended())
        except Exception as error:
            await self.waiting.put(_Ended(error))
