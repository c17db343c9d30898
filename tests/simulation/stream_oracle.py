"""The judge of streams, once nothing moves any more: what was committed, against what was written and what was read."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec
from sqlalchemy import select

from milepost.reading.reader import Reader
from milepost.store import schema
from milepost.store.database import Store
from simulation.records import Records, SeenStream, SentInput
from simulation.stream_code import Writer
from simulation.stream_watch import Place
from simulation.watch import FINAL, Watch


class StreamOracle:
    """Judges the streams of one simulation. Raises AssertionError.

    Args:
        has_small_limits: some requests, or streams, are too large for the server.
    """

    def __init__(self, store: Store, records: Records, watch: Watch, *, has_small_limits: bool) -> None:
        self._records = records
        self._watch = watch
        self._has_small_limits = has_small_limits
        self._reader = Reader(store)
        self._writers = {
            name: writer for attempt in records.attempts for name, writer in attempt.writers.items()
        }
        with store.read() as connection:
            self._streams = {
                (row.run_id, row.name): row for row in connection.execute(select(schema.streams))
            }
            self._rows = connection.execute(
                select(schema.chunks).order_by(
                    schema.chunks.c.run_id, schema.chunks.c.name, schema.chunks.c.first_index
                )
            ).all()
        # Of each stream all chunks in order, each with the attempt that is told to readers.
        self._chunks: dict[Place, list[tuple[int, bytes]]] = defaultdict(list)

    def judge(self) -> None:
        """Everything."""
        self._judge_places()
        for place in self._streams:
            kind = place[1].partition("/")[0]
            if kind == "out":
                self._judge_chunks(place)
            elif kind == "in":
                self._judge_inputs(place)
            self._judge_end(place)
        for writer in self._writers.values():
            self._judge_writer(writer)
        for seen in self._records.seen_streams:
            self._judge_reader(seen)
        self._judge_senders()
        self._judge_received()

    # --- what is stored ----------------------------------------------------------------------------------------

    def _judge_places(self) -> None:
        """The indexes of each stream have no gap, and the counts are right."""
        sizes: Counter[Place] = Counter()
        for row in self._rows:
            place = row.run_id, row.name
            chunks = self._chunks[place]
            assert row.first_index == len(chunks), f"{place} has {row.first_index} in place of {len(chunks)}"
            texts = row.data.split(b"\n")
            assert len(texts) == row.chunk_count, f"{place} has {row.chunk_count} chunks in {row.data!r}"
            chunks += [(row.attempt, text) for text in texts]
            sizes[place] += sum(map(len, texts))
        assert self._chunks.keys() <= self._streams.keys(), "there are chunks of no stream"
        for place, stream in self._streams.items():
            assert (stream.next_index, stream.size_bytes) == (len(self._chunks[place]), sizes[place]), (
                f"{place} is said to have {stream.next_index} chunks of {stream.size_bytes} bytes"
            )

    def _judge_chunks(self, place: Place) -> None:
        """Each chunk is one that a writer of this stream has added, and those of each writer are there once and in order."""
        sources = {
            text: (writer, number)
            for writer in self._writers.values()
            if writer.place == place
            for number, text in enumerate(writer.chunks)
        }
        counts: Counter[Writer] = Counter()
        for index, (attempt, text) in enumerate(self._chunks[place]):
            assert text in sources, f"nobody has written {text!r} to {place}"
            writer, number = sources[text]
            assert number == counts[writer], (
                f"{place} has at {index} chunk {number} of {writer} in place of {counts[writer]}"
            )
            counts[writer] += 1
            assert attempt == writer.attempt.number, (
                f"chunk {index} of {place} is said to be of attempt {attempt}, not of {writer}"
            )

    def _judge_writer(self, writer: Writer) -> None:
        """What was acknowledged is stored, and what was not stored is missing for a reason."""
        row = self._watch.streams.writers.get((*writer.place, writer.outlet.writer))
        stored = 0 if row is None else row.next_number
        stopped = writer.outlet._stopped
        assert stored >= writer.acknowledged, (
            f"{stored} of {writer.acknowledged} acknowledged chunks are stored of {writer}"
        )
        assert stored <= len(writer.chunks), (
            f"{stored} chunks are stored of {writer}, which has written {len(writer.chunks)}"
        )
        if row is not None:
            assert (row.source_id, row.attempt) == (writer.attempt.run_id, writer.attempt.number), (
                f"{row} is of {writer}"
            )
        if row is not None and row.has_ended:
            end = writer.outlet.end
            assert end is not None, f"{writer} has not ended, and {row} says so"
            assert end.error == row.error, f"{writer} has ended by {end.error!r}, and {row} says otherwise"
            assert stored == len(writer.chunks), (
                f"{writer} has ended with {len(writer.chunks)} chunks, and {stored} are stored"
            )
        assert not writer.end_is_acknowledged or (row is not None and row.has_ended), (
            f"the end of {writer} is missing"
        )
        if not self._may_write(writer):
            assert row is None, f"{writer} was stored, and may not write there"
        if stopped is not None:
            self._judge_stop(writer, *stopped)

    def _may_write(self, writer: Writer) -> bool:
        """It writes to its own run, or to one above it."""
        run_id: str | None = writer.attempt.run_id
        while run_id is not None and run_id != writer.outlet.run_id:
            run_id = self._watch.rows[run_id].parent_id
        return run_id is not None

    def _judge_stop(self, writer: Writer, message: str, reason: str) -> None:
        """The code was told that nothing more of a writer is stored; that has to be so for a reason."""
        target = self._watch.rows.get(writer.outlet.run_id)
        what = f"{writer} was stopped, because {reason}: {message}"
        if reason == "not_an_ancestor":
            assert not self._may_write(writer), what
        elif reason == "run_finished":
            assert target is not None, what
            assert target.status in FINAL, what
        elif reason in ("stream_too_large", "too_large"):
            assert self._has_small_limits, what
        else:
            # Its last report was not heard in time, or its process has ended. All is stored of an attempt whose outcome is.
            assert reason in ("lost", "worker_ended"), what
            attempt = writer.attempt
            ends = [end for end in self._watch.ledgers[attempt.run_id].ends if end.number == attempt.number]
            assert not any(end.ends & {"returned", "raised"} for end in ends), what

    # --- ends ----------------------------------------------------------------------------------------------------

    def _judge_end(self, place: Place) -> None:
        run_id, name = place
        ends = {end for end in self._watch.streams.ends[place] if end[0] == len(self._chunks[place])}
        kind, _, key = name.partition("/")
        [summary] = [one for one in self._reader.streams(run_id, f"{kind}/") if one.key == key]
        told = summary.chunk_count, summary.state.value, summary.error
        assert told in ends, f"{place} is said to stand as {told}, and it can only be {ends}"
        assert summary.size_bytes == sum(len(text) for _, text in self._chunks[place]), f"{summary}"

    # --- readers -------------------------------------------------------------------------------------------------

    def _judge_reader(self, seen: SeenStream) -> None:
        """Whoever reads a stream sees its chunks from one place on, each once, in order, and its end when it has ended."""
        place = seen.run_id, seen.name
        chunks = self._chunks.get(place, [])
        first = seen.first if seen.first is not None else len(chunks)
        expected = [
            (index, *chunks[index]) for index in range(first, min(len(chunks), first + len(seen.chunks)))
        ]
        assert seen.chunks == expected, (
            f"{seen.reader} has read {seen.chunks} from {place}, which has {expected}"
        )
        if seen.is_whole:
            assert len(seen.chunks) == len(chunks), (
                f"{seen.reader} has seen the end of {seen.run_id}, and {len(seen.chunks)} of {len(chunks)} chunks of {place}"
            )
        if seen.end is None:
            return
        count, state, error = seen.end
        known = self._watch.streams.ends[place]
        if place not in self._streams:
            # Nobody has ever written to it, and the run has ended.
            known = {(0, "ended", None)}
        found = {
            end
            for end in known
            if end[1:] == (state, error)
            and (end[0] == count or end[0] < first == count or seen.first is None)
        }
        assert found, (
            f"{seen.reader} was told that {place} has ended as {seen.end}, and it has stood so: {known}"
        )

    # --- inputs --------------------------------------------------------------------------------------------------

    def _judge_inputs(self, place: Place) -> None:
        """Everything that was sent is there once, and what one sender sent after another is behind it."""
        stored = [msgspec.json.decode(msgspec.json.decode(text)) for _, text in self._chunks[place]]
        assert len(stored) == len(set(stored)), f"{place} has something twice: {stored}"
        sent = [one.value for one in self._records.inputs if one.run_id == place[0]]
        assert set(stored) <= set(sent), f"nobody has sent some of {stored}"
        for sender in {value.partition(":")[0] for value in stored}:
            own = [value for value in stored if value.partition(":")[0] == sender]
            assert own == sorted(own, key=sent.index), f"{place} has {own} out of order"

    def _judge_senders(self) -> None:
        for sent in self._records.inputs:
            is_stored = sent.value in self._received_by(sent)
            assert sent.fate, f"{sent} was never answered"
            assert is_stored == (sent.fate == "acknowledged"), f"{sent} is stored: {is_stored}"

    def _received_by(self, sent: SentInput) -> list[str]:
        chunks = self._chunks.get((sent.run_id, "in/in"), [])
        return [msgspec.json.decode(msgspec.json.decode(text)) for _, text in chunks]

    def _judge_received(self) -> None:
        """Each attempt is given what was sent in order and without gaps, from the beginning or from what no other has taken."""
        for attempt in self._records.attempts:
            if attempt.received:
                stored = self._received_by(SentInput(attempt.run_id, ""))
                first = stored.index(attempt.received[0])
                assert attempt.received == stored[first : first + len(attempt.received)], (
                    f"{attempt} was given {attempt.received} of {stored}"
                )
