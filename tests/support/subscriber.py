"""A world that announces to a feed, and readers of its streams that hold what a client would hold."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from milepost.engine.announcements import Announcement
from milepost.feed.hub import Hub
from milepost.model.document import Document
from milepost.model.operations import decode_operations
from milepost.protocol.feed import EventReader
from support.world import World, new_store

Result = TypeVar("Result")
PATIENCE_SECONDS = 20


class FeedWorld(World):
    """A world whose commits reach a hub at once. `is_deaf`: what is announced meanwhile gets lost."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.hub = Hub()
        self.is_deaf = False
        super().__init__(*args, **settings)

    def announced(self, announcement: Announcement) -> None:
        super().announced(announcement)
        if not self.is_deaf:
            self.hub.announce(announcement)


@contextmanager
def feed_world_at(path: Path) -> Iterator[FeedWorld]:
    """A world with a hub, on a new database at this path."""
    world = FeedWorld(new_store(path))
    try:
        yield world
    finally:
        world.close()


def run_async(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run asynchronous work to its end; it must not take long."""

    async def bounded() -> Result:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await work()

    return asyncio.run(bounded())


class Frames:
    """A stream of events, read one frame at a time."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._frames = cast("AsyncGenerator[bytes]", frames)
        self._reader = EventReader()
        self.bytes_received = 0

    async def next(self) -> tuple[str, Any]:
        """The next event and its data. Raises StopAsyncIteration at the end."""
        while True:
            frame = await anext(self._frames)
            self.bytes_received += len(frame)
            if events := self._reader.feed(frame):
                [(event, data)] = events
                return event, msgspec.json.decode(data)

    async def close(self) -> None:
        """Go away."""
        await self._frames.aclose()


class Subscriber(Frames):
    """Who watches one run: its document, its version and its fields, from frames alone."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        super().__init__(frames)
        self.document = Document()
        self.run: dict[str, Any] = {}
        self.events: list[str] = []
        self.has_ended = False

    @property
    def value(self) -> dict[str, Any]:
        return self.document.value

    @property
    def version(self) -> int:
        return self.document.version

    async def read(self) -> str:
        """Take in one event; says which it was."""
        event, frame = await self.next()
        self.take_in(event, frame)
        return event

    def take_in(self, event: str, frame: dict[str, Any]) -> None:
        """Follow one event. A delta must begin where this reader is."""
        assert not self.has_ended
        self.events.append(event)
        if event == "snapshot":
            self.run = frame["run"]
            assert frame["version"] >= self.version
            assert frame["version"] == self.run["metadataVersion"]
            self.document = Document(self.run["metadata"], version=frame["version"])
        elif event == "delta":
            if "operations" in frame or frame.get("fromVersion") is not None:
                assert frame["fromVersion"] == self.version
                assert frame["version"] > self.version
                self.document.apply_all(decode_operations(msgspec.json.encode(frame.get("operations", []))))
                self.document.version = frame["version"]
            for name, value in frame.get("run", {}).items():
                assert name not in ("payload", "metadata")
                if value is None:
                    self.run.pop(name, None)
                else:
                    self.run[name] = value
        else:
            assert event == "end"
            self.has_ended = True
        assert frame["version"] == self.version

    async def read_to_end(self) -> None:
        """Read until the stream has ended by itself."""
        while not self.has_ended:
            await self.read()
        try:
            await self.next()
        except StopAsyncIteration:
            return
        raise AssertionError("something came after the end")
