"""The server's side of writing streams as a model, and a link that delivers to it without a network."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import msgspec

from milepost.protocol.streams import (
    AttemptParts,
    AttemptReply,
    ChunksRequest,
    ChunksResponse,
    PartReply,
    StreamPart,
)
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.chunk_book import ChunkBook, attempts_of, body_of

SECONDS_MAX = 20.0


@dataclass
class StreamStore:
    """Takes parts of streams as the server does: by the numbers of each writer, each chunk once.

    Attributes:
        chunks: what was stored, by run and key, each with its writer, in the order of the commits.
        ends: how each writer has ended.
        known: the streams that there are, in the order in which they were begun.
        answers: for a key, what its next parts are answered instead.
        lost: runs that are no longer the attempt's that writes.
    """

    chunks: dict[tuple[str, str], list[tuple[str, Any]]] = field(
        default_factory=lambda: defaultdict(list[tuple[str, Any]])
    )
    next: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ends: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    known: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    answers: dict[str, PartReply] = field(default_factory=dict[str, PartReply])
    lost: set[str] = field(default_factory=set[str])

    def take(self, request: ChunksRequest) -> ChunksResponse:
        return ChunksResponse([self._take_attempt(attempt) for attempt in request.runs])

    def _take_attempt(self, attempt: AttemptParts) -> AttemptReply:
        if attempt.id in self.lost:
            return AttemptReply(id=attempt.id, lost=True)
        writers = [part.writer for part in attempt.parts]
        assert len(set(writers)) == len(writers), "two parts of one writer"
        return AttemptReply(id=attempt.id, parts=[self._take_part(part) for part in attempt.parts])

    def _take_part(self, part: StreamPart) -> PartReply:
        if part.key in self.answers:
            return self.answers[part.key]
        self.known[part.run, part.key] = None
        behind = self.next[part.writer] - part.first
        if behind < 0:
            return PartReply(code="chunk_gap", message="there is a gap")
        new = part.chunks[behind:]
        assert not (new and part.writer in self.ends), "chunks behind the end"
        self.chunks[part.run, part.key] += [(part.writer, msgspec.json.decode(chunk)) for chunk in new]
        self.next[part.writer] += len(new)
        if part.end is not None:
            self.ends[part.writer] = part.end.error
        return PartReply(next=self.next[part.writer])

    def values(self, run: str, key: str) -> list[Any]:
        """What a stream holds."""
        return [value for _, value in self.chunks[run, key]]

    def end_of(self, run: str, key: str) -> list[str | None]:
        """How the writers of a stream have ended that have written something."""
        writers = dict.fromkeys(writer for writer, _ in self.chunks[run, key])
        return [self.ends[writer] for writer in writers if writer in self.ends]


class StreamLink:
    """A `Link` whose thread takes chunks to a store.

    Attributes:
        is_up: cleared while the server is away.
        lines: what was logged.
        taken: how many chunks have been asked for, in the order of the requests.
    """

    def __init__(self, store: StreamStore | None = None) -> None:
        self.store = StreamStore() if store is None else store
        self.book = ChunkBook()
        self.is_up = threading.Event()
        self.is_up.set()
        self.lines: list[tuple[str, str]] = []
        self.requests: list[ChunksRequest] = []
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            while self.is_up.is_set() and (parts := list(self.book.take())):
                request = msgspec.json.decode(body_of(parts), type=ChunksRequest)
                self.requests.append(request)
                answer = self.store.take(request)
                for attempt, reply in zip(attempts_of(parts), answer.runs, strict=True):
                    for index, part in enumerate(attempt):
                        if reply.lost:
                            self.book.lost(part)
                        else:
                            self.book.answered(part, reply.parts[index])
                    if reply.lost:
                        self.book.stop(attempt[0].writer.outlet.scope, "the attempt was given up", "lost")

    def do(self, call: Callable[[], Any]) -> None:
        """Do something on the link's thread."""
        self._calls.put(call)

    def go_away(self) -> None:
        self.is_up.clear()

    def come_back(self) -> None:
        self.is_up.set()
        self.do(lambda: None)

    def finish(self, scope: RunScope) -> None:
        """The attempt is over: wait until all of its streams are stored."""
        clear = threading.Event()

        def look() -> None:
            if self.book.is_clear(scope):
                clear.set()
            else:
                threading.Timer(0.005, self.do, [look]).start()

        self.do(lambda: self.book.end(scope))
        self.do(look)
        assert clear.wait(SECONDS_MAX), "the streams of the attempt do not end"

    def stop(self) -> None:
        self._calls.put(None)
        self._thread.join(SECONDS_MAX)

    # --- Link ----------------------------------------------------------------------------------------------

    def wake(self, scope: RunScope) -> None: ...

    def flush(self, scope: RunScope) -> Future[None]:
        raise NotImplementedError

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        raise NotImplementedError

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        self.lines.append((level, message))

    def open_stream(self, outlet: Outlet) -> None:
        self.do(lambda: self.book.open(outlet))

    def send_chunks(self, outlet: Outlet) -> None:
        self.do(lambda: self.book.add(outlet))

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds > 0:
            timer = threading.Timer(seconds, self.do, [call])
            timer.daemon = True
            timer.start()
        else:
            self.do(call)
