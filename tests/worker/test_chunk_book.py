"""Chunks on their way to the server: in order for each writer, each once, in bounded requests; whatever gets lost or is refused."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import StreamStoppedError
from milepost.protocol.streams import ChunksRequest, PartReply
from milepost.protocol.work import ClaimedRun
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.sdk.streams_outlet import Outlet
from milepost.sdk.streams_values import ChunkEncoder
from milepost.worker import chunk_book
from milepost.worker.chunk_book import ChunkBook, Part, attempts_of, body_of
from support.streams import StreamStore


class Link:
    """Hands what an outlet says to the book at once."""

    def __init__(self, book: ChunkBook) -> None:
        self.book = book
        self.calls = 0
        self.log_lines: list[str] = []

    def send_chunks(self, outlet: Outlet) -> None:
        self.calls += 1
        self.book.add(outlet)

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        self.log_lines.append(message)


class World:
    """A book, a store, and what happens in between."""

    def __init__(self, body_bytes_max: int = 10**9) -> None:
        self.book = ChunkBook()
        self.link = Link(self.book)
        self.store = StreamStore()
        self.body_bytes_max = body_bytes_max
        self.largest_body = 0
        self.scopes: dict[str, RunScope] = {}

    def scope(self, run_id: str) -> RunScope:
        if run_id not in self.scopes:
            run = ClaimedRun(id=run_id, task="t", attempt=1)
            self.scopes[run_id] = RunScope(run, Buffer.of(run, limit=262_144), self.link)  # type: ignore[arg-type]
        return self.scopes[run_id]

    def outlet(self, run_id: str, key: str = "k", *, is_announced: bool = False) -> Outlet:
        outlet = Outlet(self.scope(run_id), run_id, key, is_announced=is_announced)
        self.book.open(outlet)
        return outlet

    def send(self, *, loses_reply: bool = False, loses_request: bool = False) -> bool:
        """One request; False when there is none."""
        parts = list(self.book.take())
        if parts and not loses_request:
            self._send(parts, loses_reply)
        return bool(parts)

    def _send(self, parts: list[Part], loses_reply: bool) -> None:
        body = body_of(parts)
        if len(body) > self.body_bytes_max:
            if len(parts) > 1:
                self._send(parts[:1], loses_reply)
                self._send(parts[1:], loses_reply)
            elif self.book.divide(parts[0]):
                self._send(parts, loses_reply)
            else:
                self.book.refuse(parts[0], "too large", "too_large")
            return
        self.largest_body = max(self.largest_body, len(body))
        answer = self.store.take(msgspec.json.decode(body, type=ChunksRequest))
        if not loses_reply:
            for attempt, reply in zip(attempts_of(parts), answer.runs, strict=True):
                for part, own in zip(attempt, reply.parts, strict=True):
                    self.book.answered(part, own)

    def send_everything(self) -> int:
        count = 0
        while self.send():
            count += 1
            assert count < 10_000
        return count


def values(world: World, run_id: str, outlet: Outlet) -> list[Any]:
    return [value for writer, value in world.store.chunks[run_id, outlet.key] if writer == outlet.writer]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), st.integers(0, 2000)),  # which writer, how large a chunk
        st.tuples(st.just("send"), st.sampled_from(["", "request", "reply"]), st.just(0)),
        st.tuples(st.just("close"), st.integers(0, 5), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([10**9, 3000, 6000]), st.integers(1, 4), st.booleans())
def test_whatever_gets_lost_each_chunk_of_each_writer_is_stored_once_and_in_order(
    steps: list[tuple[str, Any, int]], body_bytes_max: int, runs: int, is_announced: bool
) -> None:
    world = World(body_bytes_max)
    outlets = [world.outlet(f"run_{n % runs}", f"k{n % 3}", is_announced=is_announced) for n in range(6)]
    added: dict[Outlet, list[Any]] = defaultdict(list)
    for what, which, size in steps:
        if what == "add" and outlets[which].end is None:
            value = [len(added[outlets[which]]), "x" * size]
            added[outlets[which]].append(value)
            outlets[which].add(msgspec.json.encode(value))
        elif what == "close":
            outlets[which].close(f"why {which}")
        elif what == "send":
            world.send(loses_request=which == "request", loses_reply=which == "reply")
    for scope in list(world.scopes.values()):
        world.book.end(scope)
    world.send_everything()
    for number, outlet in enumerate(outlets):
        assert values(world, f"run_{number % runs}", outlet) == added[outlet]
        assert world.store.ends[outlet.writer] in (None, f"why {number}")
        assert outlet.waiting_bytes == outlet.under_way == 0
        assert outlet.end_is_taken
    assert all(world.book.is_clear(scope) for scope in world.scopes.values())
    assert world.book.is_idle
    assert world.largest_body <= body_bytes_max


def test_a_repeat_is_the_same_until_it_is_answered() -> None:
    world = World()
    outlet = world.outlet("run_1")
    outlet.add(b"1")
    first = body_of(world.book.take())
    outlet.add(b"2")
    outlet.close()
    assert body_of(world.book.take()) == first
    world.send_everything()
    assert values(world, "run_1", outlet) == [1, 2]


def test_the_link_is_called_once_for_what_comes_together() -> None:
    world = World()
    outlet = world.outlet("run_1")
    for _ in range(5):
        outlet.add(b"1")
    assert world.link.calls == 1
    world.send_everything()
    outlet.add(b"1")
    assert world.link.calls == 2


def test_a_stream_is_known_before_its_first_chunk_where_that_is_wanted() -> None:
    world = World()
    world.outlet("run_1", "quiet")
    world.outlet("run_1", "announced", is_announced=True)
    world.send_everything()
    assert list(world.store.known) == [("run_1", "announced")]


def test_nobody_waits_for_a_writer_that_has_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_book, "REQUEST_BYTES_MAX", 100_000)
    monkeypatch.setattr(chunk_book, "SHARE_BYTES_MIN", 1000)
    world = World()
    large, small = world.outlet("run_1"), [world.outlet(f"run_{number}") for number in range(2, 12)]
    for _ in range(200):
        large.add(b'"' + b"x" * 1000 + b'"')
    for outlet in small:
        outlet.add(b"1")
    world.send()
    assert all(values(world, outlet.run_id, outlet) == [1] for outlet in small)
    stored = len(values(world, "run_1", large))
    assert 1 <= stored < 20
    assert large.waiting_bytes == (200 - stored) * 1002
    assert world.send_everything() <= 3
    assert len(values(world, "run_1", large)) == 200


def test_many_writers_have_less_room_each() -> None:
    world = World()
    outlets = [world.outlet("run_1", f"k{number}") for number in range(2000)]
    assert outlets[0].bounds.bytes_max == chunk_book.WAITING_BYTES_MIN
    world.book.end(world.scope("run_1"))
    world.send_everything()
    assert world.outlet("run_2").bounds.bytes_max == 1024 * 1024


def test_a_part_that_is_stored_in_part_goes_on_behind_it() -> None:
    world = World()
    outlet = world.outlet("run_1")
    for number in range(5):
        outlet.add(msgspec.json.encode(number))
    outlet.close()
    [part] = world.book.take()
    world.store.take(
        msgspec.json.decode(
            body_of([Part(part.writer, part.first, part.chunks[:2], None)]), type=ChunksRequest
        )
    )
    world.book.answered(part, PartReply(next=2))
    world.send_everything()
    assert values(world, "run_1", outlet) == list(range(5))
    assert world.store.ends[outlet.writer] is None


@pytest.mark.parametrize("stop", ["code", "lost", "gap", "refused"])
def test_a_writer_that_is_stopped_ends_and_the_others_go_on(stop: str) -> None:
    world = World()
    bad, good = world.outlet("run_1", "bad"), world.outlet("run_2", "good")
    bad.add(b"1")
    good.add(b"1")
    parts = list(world.book.take())
    for part in parts:
        if part.writer.outlet is good:
            world.book.answered(part, PartReply(next=1))
        elif stop == "code":
            world.book.answered(part, PartReply(code="run_finished", message="it has finished"))
        elif stop == "gap":
            part.first = 1
            world.book.answered(part, PartReply(next=0))
        elif stop == "refused":
            assert not world.book.divide(part)
            world.book.refuse(part, "not taken", "x")
        else:
            world.book.stop(bad.scope, "given up", "lost")
            world.book.lost(part)
    with pytest.raises(StreamStoppedError):
        bad.add(b"2")
    assert bad.has_room()
    assert world.book.is_clear(bad.scope)
    # Code that adds nothing more would never see it.
    assert len(world.link.log_lines) == (stop != "lost")
    assert all("stream 'bad'" in line for line in world.link.log_lines)
    good.add(b"2")
    good.close()
    world.send_everything()
    assert world.book.is_idle


# --- the decoding of bytes -----------------------------------------------------------------------------------


def joined(chunks: list[bytes]) -> bytes:
    data = b""
    for chunk in chunks:
        value = msgspec.json.decode(chunk)
        data += (
            value.encode()
            if isinstance(value, str)
            else msgspec.convert(value["$bytes"], bytes, builtin_types=())
        )
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def chunks_of(values: list[bytes]) -> list[bytes]:
    encoder = ChunkEncoder("k")
    return [chunk for value in values for chunk in encoder.encode(value)] + encoder.rest()


@given(st.text(st.characters(codec="utf-8")), st.lists(st.integers(0, 1000)))
def test_text_is_text_however_its_bytes_are_cut(text: str, places: list[int]) -> None:
    chunks = [msgspec.json.decode(chunk) for chunk in chunks_of(cut(text.encode(), places))]
    assert all(isinstance(chunk, str) for chunk in chunks)
    assert "".join(chunks) == text


@given(
    st.lists(st.one_of(st.binary(), st.text(st.characters(codec="utf-8")).map(str.encode))),
    st.lists(st.integers(0, 1000)),
)
def test_whatever_bytes_come_nothing_is_lost_or_changed(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    assert joined(chunks_of(cut(data, places))) == data
    assert joined(chunks_of(parts)) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind(kind: Callable[[bytes], Any]) -> None:
    encoder = ChunkEncoder("k")
    assert encoder.encode(kind("é".encode()[:1])) == []
    assert encoder.encode(kind("é".encode()[1:])) == ['"é"'.encode()]
    assert encoder.encode_alone(kind(b"\x00\x01")) == b'"\\u0000\\u0001"'
    assert encoder.encode_alone(kind(b"\xff")) == b'{"$bytes":"/w=="}'
    assert encoder.encode(kind(b"a\xe2")) == [b'"a"']
    # Something else comes, so the character will never be whole.
    assert encoder.encode(5) == [b'{"$bytes":"4g=="}', b"5"]
