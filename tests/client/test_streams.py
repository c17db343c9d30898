"""Reading streams: from any index, live or later, over connections that break anywhere: nothing missing, nothing twice (M58)."""

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from milepost import Client, MetadataValueError, RunNotFoundError, UsageError
from milepost.client.retries import Retries
from milepost.client.streams import ChunkFollower, StreamReader, reader, value_of
from milepost.errors import InvalidRequestError
from milepost.feed import stream_topic
from support.cutter import Cutter
from support.served import KEY, HttpWorker, Served
from support.written import Source


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("streams"))
    yield served
    served.stop()


@pytest.fixture
def worker(served: Served) -> HttpWorker:
    return HttpWorker(served)


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url, KEY)


def read(client: Client, source: Source, start: int = 0, kind: Any = None) -> StreamReader[Any]:
    return reader(client.connection, source.id, source.key, start, kind, False)


async def aread(reading: StreamReader[Any]) -> list[Any]:
    return [value async for value in reading]


VALUES = [1, "two", {"a": [None, 2.5]}, "é\n", {"$bytes": "AP8="}]


def test_values_in_order_from_any_index(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    source.write(*VALUES)
    source.write(end={})
    expected = [*VALUES[:-1], b"\x00\xff"]
    for start in range(7):
        reading = read(client, source, start)
        assert list(reading) == expected[start:]
        assert (reading.state, reading.error) == ("ended", None)
        assert asyncio.run(aread(read(client, source, start))) == expected[start:]
    assert (reading.index, reading.attempt) == (5, 0)
    reading = read(client, source, 3)
    assert reading.index == 2
    assert next(iter(reading)) == "é\n"
    assert (reading.index, reading.attempt) == (3, 1)


def test_a_failed_source_is_told_and_not_raised(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    source.write(1, end={"error": "no ink"})
    # The run goes on, and may try again: only its end is that of the stream.
    assert client.runs.retrieve(source.id).streams[0].state == "open"
    worker.finish(source.run)
    reading = read(client, source)
    assert list(reading) == [1]
    assert (reading.state, reading.error) == ("failed", "no ink")


def test_live_before_the_first_value_to_the_end_of_the_run(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    seen: list[Any] = []
    came = threading.Condition()

    def follow() -> None:
        for value in read(client, source):
            with came:
                seen.append(value)
                came.notify()

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(5):
        source.write(number)
        with came:
            assert came.wait_for(lambda number=number: len(seen) > number, 20)
    worker.finish(source.run)
    thread.join(20)
    assert seen == list(range(5))


def test_only_what_is_new(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    source.write(1, 2)

    async def follow() -> list[Any]:
        reading = reader(client.connection, source.id, source.key, 0, None, True)
        values = aiter(reading)
        first = asyncio.ensure_future(anext(values))
        # Until it knows where it begins, nobody does.
        while reading.index < 0:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        await asyncio.to_thread(source.write, 3, end={})
        return [await first, *[value async for value in values]]

    assert asyncio.run(follow()) == [3]


class Token(BaseModel):
    text: str


def test_typed_values(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    source.write({"text": "a"}, {"text": "b"}, {"txt": "c"}, end={})
    values = iter(read(client, source, kind=Token))
    assert [next(values), next(values)] == [Token(text="a"), Token(text="b")]
    with pytest.raises(MetadataValueError, match=r"chunk 2 of stream 'tokens' does not fit its type: text"):
        next(values)


def test_bytes_are_only_what_was_marked_as_such() -> None:
    assert value_of({"$bytes": "AP8="}) == b"\x00\xff"
    for value in ({"$bytes": "?"}, {"$bytes": 1}, {"$bytes": "", "a": 1}, ["$bytes"], None):
        assert value_of(value) == value


@pytest.mark.parametrize(
    ("start", "latest"), [(-1, False), (10**18, False), ("1", False), (True, False), (1.0, False), (3, True)]
)
def test_indexes_that_are_none(client: Client, start: Any, latest: bool) -> None:
    with pytest.raises(UsageError, match="start"):
        reader(client.connection, "run_1", "k", start, None, latest)


@pytest.mark.parametrize("key", ["", "x" * 257, "a\nb", "\ud800", 5, None])
def test_keys_that_are_none(client: Client, key: Any) -> None:
    with pytest.raises(InvalidRequestError, match="key of a stream"):
        reader(client.connection, "run_1", key, 0, None, False)


@pytest.mark.parametrize("run_id", [None, 5, b"run_1", "\ud800"])
def test_runs_that_cannot_be(client: Client, run_id: Any) -> None:
    """Wherever an id stands in the address of a call."""
    with pytest.raises(UsageError, match="run that a call names"):
        list(reader(client.connection, run_id, "k", 0, None, False))
    with pytest.raises(UsageError, match="run that a call names"):
        client.runs.retrieve(run_id)


def test_unknown_runs(client: Client) -> None:
    with pytest.raises(RunNotFoundError):
        list(reader(client.connection, "run_unknown", "k", 0, None, False))


def test_what_a_run_says_of_its_streams(worker: HttpWorker, client: Client) -> None:
    source = Source(worker, "a/b")
    source.write("x", "yz", end={})
    [stream] = client.runs.retrieve(source.id).streams
    assert (stream.key, stream.chunk_count, stream.size_bytes, stream.state) == ("a/b", 2, 7, "ended")
    # A key with a slash is read like any other.
    assert list(read(client, source)) == ["x", "yz"]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retries, "pause", lambda self, error, wanted=None: 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("colour", "cuts"), [("blocking", 1000), ("async", 200)])
def test_a_reader_that_is_cut_a_thousand_times(
    served: Served, worker: HttpWorker, colour: str, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 16: the connection breaks anywhere, within an event or its head, and the sequence is the same."""
    # Small events, or the reader would be done after a few connections.
    monkeypatch.setattr(stream_topic, "EVENT_BYTES", 1)
    source = Source(worker)
    # Some connections live for more than one event.
    count = cuts + cuts // 4
    for start in range(0, count, 50):
        source.write(*[f"value {number}" for number in range(start, start + 50)])
    source.write(end={})
    cutter = Cutter(served.port, random.Random(colour), bytes_max=900)
    try:
        reading = read(Client(cutter.url, KEY), source)
        seen = list(reading) if colour == "blocking" else asyncio.run(aread(reading))
    finally:
        cutter.close()
    assert seen == [f"value {number}" for number in range(count)]
    assert cutter.count > cuts


@pytest.mark.usefixtures("at_once")
def test_a_server_that_restarts(tmp_path: Path) -> None:
    served = Served(tmp_path)
    worker = HttpWorker(served)
    source = Source(worker)
    source.write(1, 2)
    client = Client(served.url, KEY)
    seen: list[Any] = []
    came = threading.Condition()

    def follow() -> None:
        for value in read(client, source):
            with came:
                seen.append(value)
                came.notify()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        with came:
            assert came.wait_for(lambda: len(seen) == 2, 20)
        served.stop()
        # The same address: a reader comes back to where it was.
        served.start(served.port)
        worker.register(holding=(source.id,))
        source.write(3, end={})
        thread.join(30)
        assert not thread.is_alive()
    finally:
        served.stop()
    assert seen == [1, 2, 3]


def test_many_readers_of_one_program_and_its_calls(worker: HttpWorker, client: Client) -> None:
    """A reader holds a connection for as long as it reads; nobody else waits for that."""
    source = Source(worker)
    source.write(0)

    async def follow() -> list[list[Any]]:
        readers = [asyncio.ensure_future(aread(read(client, source))) for _ in range(150)]
        topics = worker.served.server.hub.streams
        while not topics or sum(len(topic.watchers) for topic in topics[source.id].values()) < 150:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await client.runs.aretrieve(source.id)).id == source.id
        await asyncio.to_thread(source.write, 1, end={})
        return await asyncio.gather(*readers)

    assert asyncio.run(follow()) == [[0, 1]] * 150


def test_what_could_not_be_handed_on_comes_again() -> None:
    follower = ChunkFollower(0)
    records = [{"seq_num": number, "body": json.dumps({"data": number})} for number in range(2)]
    follower.take("batch", json.dumps({"records": records}).encode())
    first = follower.newest()
    assert first is not None
    follower.give_back(first)
    assert follower.given_index == -1
    assert [follower.newest(), follower.given_index] == [first, 0]
    assert follower.newest() is not None
    assert follower.newest() is None
