"""What user code does with streams: it writes to them in every way there is, with a witness at the door by which chunks come in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from milepost.errors import StreamStoppedError, UnavailableError
from milepost.protocol.streams import PartReply
from milepost.sdk.metadata import metadata
from milepost.sdk.scope import RunScope
from milepost.sdk.streams import streams
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.chunk_book import ChunkBook, Part

if TYPE_CHECKING:
    from simulation.records import Attempt
    from simulation.simulation import Simulation

KEYS = ("a", "b/c")
INPUT_KEY = "in"


@dataclass(eq=False)
class Writer:
    """One writer of a stream, as the code that writes sees it.

    Attributes:
        outlet: where its chunks enter the system.
        chunks: what was taken, in order.
        acknowledged: so many chunks the server is known to have stored.
        end_is_acknowledged: the server is known to have stored its end as well.
    """

    outlet: Outlet
    attempt: Attempt
    chunks: list[bytes] = field(default_factory=list[bytes])
    acknowledged: int = 0
    end_is_acknowledged: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """The run and the name of the stream in the store."""
        return self.outlet.run_id, ("taken/" if self.outlet.is_of_input else "out/") + self.outlet.key

    @property
    def is_stored(self) -> bool:
        """All of it is known to be stored."""
        return self.end_is_acknowledged and self.acknowledged == len(self.chunks)

    def __str__(self) -> str:
        return f"writer {self.outlet.writer} of {self.place} in {self.attempt}"


class RecordingOutlet(Outlet):
    """The real one, with a witness."""

    def __init__(self, scope: RunScope, run_id: str, key: str, **given: Any) -> None:
        super().__init__(scope, run_id, key, **given)
        attempt: Attempt = scope.buffer.attempt  # type: ignore[attr-defined]
        self._record = Writer(self, attempt)
        attempt.writers[self.writer] = self._record

    def add(self, chunk: bytes) -> None:
        super().add(chunk)
        self._record.chunks.append(chunk)


class RecordingBook(ChunkBook):
    """The real one, with a witness of what the server says."""

    def answered(self, part: Part, reply: PartReply) -> None:
        outlet = part.writer.outlet
        if isinstance(outlet, RecordingOutlet) and reply.code is None:
            record = outlet._record
            record.acknowledged = max(record.acknowledged, reply.next)
            is_whole = reply.next == part.first + len(part.chunks)
            record.end_is_acknowledged |= part.end is not None and is_whole
        super().answered(part, reply)


class SourceError(Exception):
    """What a source raises."""


class StreamCode:
    """The streams that one execution of a run writes, drawn from its seed."""

    def __init__(self, simulation: Simulation, scope: RunScope, label: str) -> None:
        self._simulation = simulation
        self._scope = scope
        self._label = label
        # A random source of its own: all else must be as it is without streams.
        self._random = Random(f"{simulation.seed}/{label}/streams")
        self._values = 0
        self._open: list[Any] = []
        self._input = streams.input(INPUT_KEY, retry_from=self._random.choice(["start", "unread"]))

    async def step(self) -> None:
        """Do something with a stream, or nothing. What stops a writer is no error of this code."""
        random, plan = self._random, self._simulation.plan
        if random.random() >= plan.streams:
            return
        ways = [
            self._append, self._append, self._write, self._leave_open, self._go_on, self._pipe, self._pipe,
            self._pipe_plainly, self._receive,
        ]  # fmt: skip
        try:
            await random.choice(ways)()
        except (StreamStoppedError, SourceError):
            pass
        except UnavailableError:
            # The process ends, or the attempt is over.
            pass

    def _key(self) -> str:
        return self._random.choice(KEYS)

    def _target(self) -> str | None:
        """Mostly a run that may be written to; now and then some run, which may be none."""
        place = self._random.random()
        if place < 0.55:
            return None
        if place < 0.75:
            return "parent"
        if place < 0.95:
            return "root"
        return self._random.choice(sorted(self._simulation.records.run_ids) or ["run_unknown"])

    def _value(self) -> str:
        """No value is there twice."""
        self._values += 1
        size = self._random.choice(self._simulation.plan.chunk_sizes)
        return f"{self._label}|{self._values}|" + self._random.choice("x\n€") * size

    def _some(self) -> list[str]:
        return [self._value() for _ in range(self._random.choice([0, 1, 3, 10]))]

    async def _sleep(self) -> None:
        await asyncio.sleep(self._random.choice([0.0, 0.0, 0.001, 0.05, 0.5]) * self._random.random())

    async def _append(self) -> None:
        target, key = self._target(), self._key()
        for value in self._some():
            room = streams.append(key, value, target)
            if self._random.random() < 0.5:
                await room

    async def _write(self) -> None:
        fails = self._random.random() < 0.2
        async with streams.writer(self._key(), self._target()) as write:
            for value in self._some():
                await write(value)
                await self._sleep()
            if fails:
                raise SourceError(self._label)

    async def _leave_open(self) -> None:
        """Until the attempt ends, or is over."""
        self._open.append(streams.writer(self._key(), self._target()))
        await self._go_on()

    async def _go_on(self) -> None:
        if self._open:
            write = self._random.choice(self._open)
            for value in self._some():
                write(value)
            if self._random.random() < 0.2:
                self._open.remove(write)
                write.close()

    async def _pipe(self) -> None:
        values, fails = self._some(), self._random.random() < 0.2

        async def source() -> AsyncIterator[str]:
            for value in values:
                await self._sleep()
                yield value
            if fails:
                raise SourceError(self._label)

        captured = metadata.stream(self._key(), source())
        leaves_after = self._random.choice([0, 2, 1000, 1000])
        seen: list[str] = []
        try:
            if leaves_after:
                async for value in captured:
                    seen.append(value)
                    if len(seen) == leaves_after:
                        break
        finally:
            assert seen == values[: len(seen)], f"{self._label} has read {seen} of {values}"
        if leaves_after == 1000 and not fails and not self._scope.is_lost:
            assert seen == values, f"{self._label} has read {seen} of {values}"

    async def _pipe_plainly(self) -> None:
        values = self._some()
        seen = list(streams.pipe(self._key(), iter(values), self._target()))
        assert seen == values, f"{self._label} has read {seen} of {values}"

    async def _receive(self) -> None:
        """Wait for something that is sent to the run, for a while."""
        if self._random.random() < 0.7:
            return
        try:
            value = await self._input.areceive(timeout=self._random.choice([0.01, 0.3, 2.0]))
        except TimeoutError:
            return
        self._scope.buffer.attempt.received.append(value)  # type: ignore[attr-defined]
