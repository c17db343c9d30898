"""A run's streams from the code's side of the wire to a reader's, with a network and processes that do as they are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from milepost.client.streams import ChunkFollower
from milepost.engine.commands import AddChunks, AttemptWritten, Written
from milepost.feed.chunks import watch_stream
from milepost.protocol.feed import EventReader
from milepost.protocol.streams import AttemptReply, ChunksRequest, StreamState
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.chunk_book import ChunkBook, Part, attempts_of, body_of
from support.subscriber import FeedWorld
from support.world import WorkerDouble

KEY = "tokens"
NAME = f"out/{KEY}"


class StreamWire:
    """The real book of a worker's chunks and the real engine, with a network in between."""

    def __init__(self, worker: WorkerDouble, run: ClaimedRun) -> None:
        self.worker = worker
        self.run = run
        self.book = ChunkBook()
        link = SimpleNamespace(send_chunks=self.book.add, log=lambda *line: None)
        self.scope = RunScope(run, Buffer.of(run, limit=262_144), cast("Any", link))
        # How many chunks of each writer the server is known to have.
        self.acknowledged: dict[Outlet, int] = {}

    def open(self) -> Outlet:
        """A writer of the run's stream."""
        outlet = Outlet(self.scope, self.run.id, KEY, is_announced=True)
        self.book.open(outlet)
        self.acknowledged[outlet] = 0
        return outlet

    def add(self, outlet: Outlet, count: int, first: int = 0) -> list[str]:
        """Add chunks that nobody else adds; what they are."""
        values = [f"{outlet.writer} {number}" for number in range(first, first + count)]
        for value in values:
            outlet.add(msgspec.json.encode(value))
        return values

    def send(self, fate: str = "arrives") -> bool:
        """Send the next request, or the last one again; False when there is none."""
        parts = list(self.book.take())
        if not parts or fate == "request lost":
            return bool(parts)
        replies = [self.deliver(parts) for _ in range(2 if fate == "twice" else 1)]
        if fate != "reply lost":
            self.hear(parts, replies[-1])
        return True

    def send_all(self) -> None:
        """Until nothing is left."""
        while self.send():
            pass

    def deliver(self, parts: list[Part]) -> list[AttemptReply]:
        """The request arrives."""
        request = msgspec.json.decode(body_of(parts), type=ChunksRequest)
        runs = [
            AttemptWritten(
                run.id,
                run.attempt,
                [
                    Written(
                        part.run,
                        f"out/{part.key}",
                        part.writer,
                        part.first,
                        list(map(bytes, part.chunks)),
                        part.end,
                    )
                    for part in run.parts
                ],
            )
            for run in request.runs
        ]
        return self.worker.world.do(AddChunks(self.worker.id, runs))

    def hear(self, parts: list[Part], replies: list[AttemptReply]) -> None:
        """The answer arrives."""
        for attempt, reply in zip(attempts_of(parts), replies, strict=True):
            for place, part in enumerate(attempt):
                if reply.lost:
                    self.book.lost(part)
                else:
                    self.acknowledged[part.writer.outlet] = reply.parts[place].next
                    self.book.answered(part, reply.parts[place])
            if reply.lost:
                self.book.stop(self.scope, "the attempt was given up", "lost")


class StreamReader:
    """A reader of the run's stream that comes and goes, and remembers the index of its last chunk."""

    def __init__(self, world: FeedWorld, run_id: str) -> None:
        self._world = world
        self._run_id = run_id
        self.follower = ChunkFollower(0)
        # Index, attempt and value.
        self.seen: list[tuple[int, int, str]] = []

    def read(self, frames_max: int = 1000) -> None:
        """Connect, take what is there, so many frames at most, and lose the connection."""
        asyncio.run(self._read(frames_max))

    async def _read(self, frames_max: int) -> None:
        start = len(self.seen)
        self.follower = ChunkFollower(start)
        frames = watch_stream(self._world.hub, self._world.reader, self._run_id, NAME, start=start)
        events = EventReader()
        try:
            while frames_max and not self.follower.has_ended:
                frame: asyncio.Future[bytes] = asyncio.ensure_future(cast("Any", anext(frames)))
                while not (await asyncio.wait({frame}, timeout=0.02))[0]:
                    if self._has_all():
                        # Nothing more has been written.
                        frame.cancel()
                        await asyncio.wait({frame})
                        return
                for event, data in events.feed(frame.result()):
                    self.follower.take(event, data)
                frames_max -= 1
        finally:
            await frames.aclose()
            while (chunk := self.follower.newest()) is not None:
                self.seen.append((chunk.index, chunk.attempt, msgspec.json.decode(chunk.text)))

    def _has_all(self) -> bool:
        """Whether it has all that is stored, and nothing says that more is not to come."""
        page = self._world.reader.stream_page(self._run_id, NAME, start=0, bytes_max=0)
        return page.state is StreamState.OPEN and (self.follower.position or 0) >= page.next_index

    @property
    def values(self) -> list[str]:
        """What it has seen. Raises AssertionError unless the indexes are 0, 1, 2 and so on."""
        assert [index for index, _, _ in self.seen] == list(range(len(self.seen)))
        return [value for _, _, value in self.seen]
