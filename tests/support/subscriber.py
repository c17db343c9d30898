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
PATIENCE_SECONDS = 60


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


class RawFrames:
    """A stream of events, read one frame at a time, as they are."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._frames = cast("AsyncGenerator[bytes]", frames)
        self._reader = EventReader()
        self._pending: asyncio.Future[bytes] | None = None
        self.bytes_received = 0

    async def next(self) -> tuple[str, bytes]:
        """The next event and its data. Raises StopAsyncIteration at the end."""
        while True:
            frame = await self._next_frame()
            self.bytes_received += len(frame)
            if events := self._reader.feed(frame):
                [event] = events
                return event

    async def _next_frame(self) -> bytes:
        pending, self._pending = self._pending, None
        return await (anext(self._frames) if pending is None else pending)

    async def comes_within(self, seconds: float) -> bool:
        """True when there is a frame within this time. It is the next one that is read."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._frames))
        await asyncio.wait({self._pending}, timeout=seconds)
        return self._pending.done()

    async def close(self) -> None:
        """Go away."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await self._frames.aclose()


class Frames(RawFrames):
    """A stream of events whose data is JSON."""

    async def next(self) -> tuple[str, Any]:  # type: ignore[override]
        """The next event and its data. Raises StopAsyncIteration at the end."""
        event, data = await super().next()
        return event, msgspec.json.decode(data)


class Rows(dict[str, dict[str, Any]]):
    """Runs as a feed of several tells of them, by id: whole ones, then deltas, each of which must begin where the reader is."""

    def whole(self, run: dict[str, Any]) -> None:
        """A run in full; it is never older than what is known of it."""
        known = self.get(run["id"])
        assert known is None or run["metadataVersion"] >= known["metadataVersion"]
        self[run["id"]] = run

    def delta(self, delta: dict[str, Any]) -> None:
        """What leads on from there."""
        run = self[delta["id"]]
        if "operations" in delta or "fromVersion" in delta:
            assert delta["fromVersion"] == run["metadataVersion"] < delta["version"]
            document = Document(run["metadata"])
            document.apply_all(decode_operations(msgspec.json.encode(delta.get("operations", []))))
            run["metadata"] = document.value
        run["metadataVersion"] = delta["version"]
        for name, value in delta.get("run", {}).items():
            assert name not in ("payload", "output", "metadata")
            if value is None:
                run.pop(name, None)
            else:
                run[name] = value


class ListSubscriber(Frames):
    """Who watches a list: its rows from top to bottom, and the counts.

    Attributes:
        whole: the rows that the last event carried in full.
        changed: those of which it told deltas.
    """

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        super().__init__(frames)
        self.rows = Rows()
        self.order: list[str] = []
        self.counts: dict[str, int] = {}
        self.whole: list[str] = []
        self.changed: list[str] = []

    async def read(self) -> str:
        """Take in one event."""
        event, frame = await self.next()
        self.take_in(frame)
        return event

    def take_in(self, frame: dict[str, Any]) -> None:
        """Follow one event."""
        self.order, self.counts = frame.get("order", self.order), frame.get("counts", self.counts)
        self.whole = [row["id"] for row in frame.get("rows", [])]
        self.changed = [delta["id"] for delta in frame.get("deltas", [])]
        assert frame.keys() - {"rows"} or self.whole, "an event tells something"
        for row in frame.get("rows", []):
            self.rows.whole(row)
        for delta in frame.get("deltas", []):
            self.rows.delta(delta)
        assert set(self.order) <= set(self.rows)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Read until the condition holds; a list may be told in one event or in several."""
        while not condition():
            await self.read()


class MatchSubscriber(Frames):
    """Who watches matching runs: the newest state told of each, and the documents that it keeps, which are no more than it must."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        super().__init__(frames)
        self.told: list[tuple[str, bool]] = []
        self.runs = Rows()
        self.matching: set[str] = set()
        self.kept: set[str] = set()
        self.events: list[str] = []

    async def read(self) -> str:
        """Take in one event."""
        event, frame = await self.next()
        self.events.append(event)
        if event == "forget":
            assert self.kept >= set(frame["ids"])
            self.kept -= set(frame["ids"])
        elif event in ("run", "delta"):
            told = frame["run"] if event == "run" else frame
            run_id, matches = told["id"], frame.get("matches", True)
            if event == "run":
                self.runs.whole(told)
            else:
                assert run_id in self.kept
                self.runs.delta(frame)
            assert matches or run_id in self.matching
            self.told.append((run_id, matches))
            keeps = matches and not self.runs[run_id]["isCompleted"]
            (self.matching.add if matches else self.matching.discard)(run_id)
            (self.kept.add if keeps else self.kept.discard)(run_id)
        return event

    async def read_until_present(self) -> list[str]:
        """The runs told up to here."""
        while await self.read() != "present":
            pass
        return [run_id for run_id, _ in self.told]

    async def until_told(self, run_id: str, *, matches: bool = True) -> dict[str, Any]:
        """Read until this is told."""
        self.told.clear()
        while (run_id, matches) not in self.told:
            await self.read()
        return self.runs[run_id]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Read until the condition holds."""
        while not condition():
            await self.read()


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
