"""What travels beside the reports: lines of logs, and chunks of streams. One request of each kind at a time; the next one gathers
meanwhile. No volume of them holds up outcomes or heartbeats."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from milepost.protocol import endpoints
from milepost.protocol.streams import ChunksResponse
from milepost.worker import chunk_book, log_book
from milepost.worker.channel import Refused
from milepost.worker.chunk_book import ChunkBook
from milepost.worker.holding import Holding, Host
from milepost.worker.log_book import LogBook
from milepost.worker.membership import Membership

# When to look again for log lines that another thread is just sorting.
BUSY_SECONDS = 0.002


class LogSender:
    """Sends what the runs have logged. Belongs to the link's thread and its event loop.

    Args:
        sent: called after lines have been stored.
    """

    def __init__(
        self,
        membership: Membership,
        book: LogBook,
        host: Host,
        *,
        flush_interval_seconds: float,
        sent: Callable[[], None],
    ) -> None:
        self._membership = membership
        self._book = book
        self._host = host
        self._flush_interval_seconds = flush_interval_seconds
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._is_sent = asyncio.Event()

    def lines_have_come(self) -> None:
        """There is something to send."""
        self._due.set()

    def look(self) -> None:
        """Something has changed: the last lines of a run go at once. Also of an attempt that was lost: they wait for nothing else."""
        if self._book.has_urgent:
            self._is_urgent.set()
            self._due.set()

    async def send_all(self) -> None:
        """Wait until nothing is left to send."""
        while not self._book.is_empty:
            self._is_sent.clear()
            self._is_urgent.set()
            self._due.set()
            await self._is_sent.wait()

    async def run(self) -> None:
        """Send one request after the other, for ever.

        The first lines after a quiet time and the last ones of a run go at once, others never more often than the flush interval.
        """
        while True:
            await self._due.wait()
            self._due.clear()
            self._is_urgent.clear()
            began_at = self._loop.time()
            parts = self._book.take()
            if parts is None:
                # Another thread sorts lines at this moment.
                await asyncio.sleep(BUSY_SECONDS)
            elif parts:
                await self._send(list(parts))
                self._sent()
            self._is_sent.set()
            if not self._book.is_empty:
                self._due.set()
                if not self._book.has_urgent:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(began_at + self._flush_interval_seconds):
                            await self._is_urgent.wait()

    async def _send(self, parts: Sequence[log_book.Part]) -> None:
        """Send parts of logs until the server has taken them, or will not take them ever."""
        try:
            await self._membership.repeat(endpoints.REPORT_LOG, log_book.body_of(parts), "log")
        except Refused as refused:
            if len(parts) > 1:
                middle = len(parts) // 2
                await self._send(parts[:middle])
                await self._send(parts[middle:])
                return
            [part] = parts
            if self._book.divide(part):
                await self._send([part])
            else:
                self._host.notice(
                    f"the server does not take a line of the log of run {part.log.run_id}: {refused}"
                )
        else:
            for part in parts:
                self._book.acknowledged(part)


class ChunkSender:
    """Sends what the runs add to streams. Belongs to the link's thread and its event loop.

    Args:
        sent: called after chunks have been stored.
    """

    def __init__(
        self, membership: Membership, book: ChunkBook, holding: Holding, *, sent: Callable[[], None]
    ) -> None:
        self._membership = membership
        self._book = book
        self._holding = holding
        self._sent = sent
        self._due = asyncio.Event()

    def chunks_have_come(self) -> None:
        """There is something to send."""
        self._due.set()

    async def run(self) -> None:
        """Send for ever: the first chunk after a quiet time at once, and then one request after the other, each with what has come
        while the one before was under way."""
        while True:
            await self._due.wait()
            self._due.clear()
            if parts := self._book.take():
                await self._send(list(parts))
                self._sent()
            if not self._book.is_idle:
                self._due.set()

    async def _send(self, parts: Sequence[chunk_book.Part]) -> None:
        """Send parts of streams until the server has answered for them, or will not take them ever."""
        try:
            body = chunk_book.body_of(parts)
            answer: ChunksResponse = await self._membership.repeat(
                endpoints.REPORT_CHUNKS, body, "chunks of streams"
            )
        except Refused as refused:
            if len(parts) > 1:
                middle = len(parts) // 2
                await self._send(parts[:middle])
                await self._send(parts[middle:])
                return
            [part] = parts
            if self._book.divide(part):
                await self._send([part])
            else:
                self._book.refuse(part, f"the server does not take a chunk: {refused}", refused.error.code)
            return
        for attempt, reply in zip(chunk_book.attempts_of(parts), answer.runs, strict=True):
            if reply.lost:
                for part in attempt:
                    self._book.lost(part)
                self._holding.lost_stream(attempt[0].writer.outlet.scope)
            else:
                for part, own in zip(attempt, reply.parts, strict=True):
                    self._book.answered(part, own)
