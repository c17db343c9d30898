"""The witness of streams: looks at the database after each group of commands.

It judges at once who wrote and whether a run has ended before its streams, and notes how each stream has stood at any time, by rules
of its own, for those who read.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from simulation.records import Attempt

if TYPE_CHECKING:
    from simulation.watch import Row

FINAL = ("COMPLETED", "FAILED", "CRASHED", "SYSTEM_FAILURE", "CANCELED", "TIMED_OUT", "EXPIRED")
# The run, and the name of the stream in the store.
Place = tuple[str, str]


class WriterRow(NamedTuple):
    """A writer as it is committed."""

    run_id: str
    name: str
    writer: str
    source_id: str | None
    attempt: int
    next_number: int
    has_ended: int
    error: str | None
    updated_at: int


_SELECT_WRITERS = f"SELECT {', '.join(WriterRow._fields)} FROM stream_writers"
_SELECT_STREAMS = "SELECT run_id, name, next_index FROM streams"
_SELECT_CHUNKS = "SELECT run_id, name, sum(chunk_count) FROM chunks GROUP BY run_id, name"


class StreamWatch:
    """The witness of the streams of one simulation.

    Attributes:
        writers: how far each has come, by the run, the stream's name and its own name.
        counts: how many chunks each stream has.
        ends: how each stream has stood whenever it had ended: how many chunks it had, the state, and the error.
    """

    def __init__(self, connection: sqlite3.Connection, fail: Callable[[str], None]) -> None:
        self._connection = connection
        self._fail = fail
        self.writers: dict[tuple[str, str, str], WriterRow] = {}
        self.counts: dict[Place, int] = defaultdict(int)
        self.ends: dict[Place, set[tuple[int, str, str | None]]] = defaultdict(set)
        # Of each stream, in the order in which they wrote last.
        self._by_stream: dict[Place, dict[tuple[str, str, str], None]] = defaultdict(dict)

    def look(self, before: Mapping[str, Row], now: Mapping[str, Row]) -> None:
        """Something was committed. `before` and `now` are the runs."""
        found = {row[:3]: WriterRow(*row) for row in self._connection.execute(_SELECT_WRITERS)}
        if not found:
            return
        if not self.writers.keys() <= found.keys():
            self._fail("a writer of a stream has vanished")
        # Which of one group came last can only be known from what is stored.
        changed = [key for key, row in found.items() if self.writers.get(key) != row]
        changed.sort(key=lambda key: found[key].updated_at)
        for key in changed:
            self._judge_change(self.writers.get(key), found[key], before, now)
            writers = self._by_stream[key[:2]]
            writers.pop(key, None)
            writers[key] = None
        self.writers = found
        if changed:
            self.counts = defaultdict(
                int, {row[:2]: row[2] for row in self._connection.execute(_SELECT_STREAMS)}
            )
            for run_id, name, count in self._connection.execute(_SELECT_CHUNKS):
                if self.counts[run_id, name] != count:
                    self._fail(
                        f"{name} of {run_id} has {count} chunks, and its next index is {self.counts[run_id, name]}"
                    )
        for place in self._by_stream:
            self._note_end(place, now)

    def _judge_change(
        self, old: WriterRow | None, new: WriterRow, before: Mapping[str, Row], now: Mapping[str, Row]
    ) -> None:
        target = before.get(new.run_id)
        if target is not None and target.status in FINAL:
            self._fail(f"{new} has written to {new.run_id}, which had ended")
        if old is not None and (new.next_number < old.next_number or old.has_ended):
            self._fail(f"{new} has gone on from {old}")
        if new.source_id is not None:
            rows = (before.get(new.source_id), now.get(new.source_id))
            if not any(
                row is not None and row.holder is not None and row.attempt == new.attempt for row in rows
            ):
                self._fail(f"{new} has written, and attempt {new.attempt} of {new.source_id} is over: {rows}")

    def _note_end(self, place: Place, runs: Mapping[str, Row]) -> None:
        """How the stream stands now, if it has ended: when nobody writes and the last one has come to its end, and with its run."""
        writers = [self.writers[key] for key in self._by_stream[place]]
        last = writers[-1]
        if runs[place[0]].status in FINAL:
            self.ends[place].add((self.counts[place], "failed" if last.error else "ended", last.error))
            return
        is_open = any(self._is_at_work(writer, runs) for writer in writers)
        if last.error is None and last.has_ended and not is_open:
            self.ends[place].add((self.counts[place], "ended", None))

    def _is_at_work(self, writer: WriterRow, runs: Mapping[str, Row]) -> bool:
        if writer.has_ended:
            return False
        if writer.source_id is None:
            return True
        run = runs[writer.source_id]
        return run.holder is not None and run.attempt == writer.attempt

    def judge_outcome(self, attempt: Attempt) -> None:
        """The outcome of an attempt is stored: then all that it wrote is (M57)."""
        for writer in attempt.writers.values():
            if writer.outlet.is_stopped:
                continue
            row = self.writers.get((*writer.place, writer.outlet.writer))
            stored = 0 if row is None else row.next_number
            if stored != len(writer.chunks):
                self._fail(
                    f"{attempt} has ended, and of {len(writer.chunks)} chunks of {writer} {stored} are stored"
                )
            elif row is None or not row.has_ended:
                self._fail(f"{attempt} has ended, and {writer} has not")
