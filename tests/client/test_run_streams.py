"""Following a run with its streams: every value once and in order, the newest states, and the last state behind all of them."""

import asyncio
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from milepost import (
    Client,
    MetadataValueError,
    Run,
    RunNotFoundError,
    StreamValue,
    UsageError,
    streams,
)
from milepost.client.retries import Retries
from milepost.client.run_streams import StreamChoice
from milepost.errors import InvalidRequestError
from support.cutter import Cutter
from support.served import KEY, HttpWorker, Served, set_to
from support.written import Source


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("run_streams"))
    yield served
    served.stop()


@pytest.fixture
def worker(served: Served) -> HttpWorker:
    return HttpWorker(served)


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url, KEY)


@pytest.fixture(params=["blocking", "async"])
def subscribe(request: pytest.FixtureRequest) -> Callable[..., Iterator[Any]]:
    """Both colours, for `for`."""

    def blocking(client: Client, run_id: str, choice: StreamChoice = True) -> Iterator[Any]:
        return client.runs.subscribe(run_id, streams=choice)

    def asynchronous(client: Client, run_id: str, choice: StreamChoice = True) -> Iterator[Any]:
        return pulled(lambda: client.runs.asubscribe(run_id, streams=choice))

    return blocking if request.param == "blocking" else asynchronous


def pulled(make: Callable[[], AsyncIterator[Any]]) -> Iterator[Any]:
    with asyncio.Runner() as runner:
        items = make()

        async def following() -> Any:
            return await anext(items, None)

        while (item := runner.run(following())) is not None:
            yield item


def values_of(items: list[Any], key: str) -> list[Any]:
    return [item.value for item in items if isinstance(item, StreamValue) and item.key == key]


def next_value(items: Iterator[Any]) -> StreamValue:
    """The next value; that a stream has begun or ended makes a new state of the run too."""
    return next(item for item in items if isinstance(item, StreamValue))


def test_states_and_values_as_they_come(
    worker: HttpWorker, client: Client, subscribe: Callable[..., Iterator[Any]]
) -> None:
    first = Source(worker, "first")
    items = subscribe(client, first.id)
    state = next(items)
    assert isinstance(state, Run)
    assert (state.id, state.is_completed) == (first.id, False)
    first.write("a", {"$bytes": "AP8="})
    assert next_value(items) == StreamValue("first", 0, 1, "a")
    assert next_value(items) == StreamValue("first", 1, 1, b"\x00\xff")
    worker.report(first.run, set_to("progress", 1))
    assert next(item for item in items if item.metadata).metadata == {"progress": 1}
    # A stream that begins later, with a key that has a hyphen and a slash.
    second = Source(worker, "second-1/x", run=first.run)
    second.write(1)
    assert next_value(items) == StreamValue("second-1/x", 0, 1, 1)
    first.write("c", end={})
    assert next_value(items) == StreamValue("first", 2, 1, "c")
    # Another writer of a stream that had ended.
    Source(worker, "first", run=first.run, writer="another").write_all("d")
    assert next_value(items) == StreamValue("first", 3, 1, "d")
    worker.finish(first.run, output='"done"')
    rest = list(items)
    assert [item.output for item in rest if item.is_completed] == ["done"]
    assert rest[-1].is_completed


def test_a_run_that_has_ended_long_ago(
    worker: HttpWorker, client: Client, subscribe: Callable[..., Iterator[Any]]
) -> None:
    source = Source(worker, "a")
    source.write(*range(50))
    Source(worker, "b", run=source.run).write_all("x", "y")
    worker.finish(source.run, set_to("n", 50))
    items = list(subscribe(client, source.id))
    assert values_of(items, "a") == list(range(50))
    assert values_of(items, "b") == ["x", "y"]
    assert [item.metadata for item in items if isinstance(item, Run)] == [{"n": 50}]
    assert isinstance(items[-1], Run)


def test_a_run_without_streams_and_an_unknown_one(
    worker: HttpWorker, client: Client, subscribe: Callable[..., Iterator[Any]]
) -> None:
    run = worker.take(worker.served.trigger())
    items = subscribe(client, run["id"])
    assert not next(items).is_completed
    worker.fail(run)
    assert [item.is_failed for item in items] == [True]
    with pytest.raises(RunNotFoundError):
        list(subscribe(client, "run_unknown"))
    # None at all is the usual subscription.
    assert [item.is_failed for item in subscribe(client, run["id"], False)] == [True]
    assert [item.is_failed for item in subscribe(client, run["id"], [])] == [True]


class Step(BaseModel):
    name: str


def test_chosen_streams_with_their_types(
    worker: HttpWorker, client: Client, subscribe: Callable[..., Iterator[Any]]
) -> None:
    steps = streams.define("steps", Step)
    source = Source(worker, "steps")
    items = subscribe(client, source.id, [steps, "log"])
    assert isinstance(next(items), Run)
    Source(worker, "other", run=source.run).write_all(1, 2)
    Source(worker, "log", run=source.run).write_all("line")
    assert next_value(items) == StreamValue("log", 0, 1, "line")
    source.write({"name": "one"})
    assert next_value(items) == StreamValue("steps", 0, 1, Step(name="one"))
    worker.finish(source.run)
    assert [item.is_completed for item in items][-1]


def test_a_value_that_does_not_fit_its_type(worker: HttpWorker, client: Client) -> None:
    source = Source(worker, "steps")
    source.write({"name": "one"}, {"nam": "two"})
    items = client.runs.subscribe(source.id, streams=[streams.define("steps", Step)])
    assert next_value(items) == StreamValue("steps", 0, 1, Step(name="one"))
    with pytest.raises(MetadataValueError, match="chunk 1 of stream 'steps' does not fit its type: name"):
        next(items)


@pytest.mark.parametrize("choice", ["tokens", b"tokens", 1, [1], [None], {"tokens": Step}])
def test_choices_that_are_none(client: Client, choice: Any) -> None:
    with pytest.raises(UsageError, match="streams"):
        client.runs.subscribe("run_1", streams=choice)


@pytest.mark.parametrize("key", ["", "x" * 257])
def test_keys_that_cannot_be(client: Client, key: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 256 characters"):
        client.runs.asubscribe("run_1", streams=[key])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retries, "pause", lambda self, error, wanted=None: 0.0)


@pytest.mark.usefixtures("at_once")
def test_connections_that_break_anywhere(
    served: Served,
    worker: HttpWorker,
    subscribe: Callable[..., Iterator[Any]],
    request: pytest.FixtureRequest,
) -> None:
    """Each value once and in order, of each stream, however often the connection breaks; and the last state once, at the end."""
    chance = random.Random(request.node.name)
    first = Source(worker, "0")
    sources = [first, *(Source(worker, str(number), run=first.run) for number in range(1, 5))]
    cutter = Cutter(served.port, chance, 20_000)
    items: list[Any] = []
    try:
        following = threading.Thread(
            target=lambda: items.extend(subscribe(Client(cutter.url, KEY), first.id))
        )
        following.start()
        for number in range(0, 400, 10):
            for source in sources:
                source.write(*(f"value {value}" for value in range(number, number + 10)))
            worker.report(first.run, set_to("n", number))
        worker.finish(first.run, set_to("n", 400))
        following.join(60)
        assert not following.is_alive()
    finally:
        cutter.close()
    for source in sources:
        assert values_of(items, source.key) == [f"value {value}" for value in range(400)]
    states = [item for item in items if isinstance(item, Run)]
    assert [state.is_completed for state in states].count(True) == 1
    assert all(
        before.metadata_version <= after.metadata_version for before, after in itertools.pairwise(states)
    )
    assert items[-1] is states[-1]
    assert states[-1].metadata == {"n": 400}
    assert cutter.count > 5


@pytest.mark.usefixtures("at_once")
def test_a_server_that_restarts(tmp_path: Path) -> None:
    served = Served(tmp_path)
    worker = HttpWorker(served)
    source = Source(worker)
    source.write(1, 2)
    items = Client(served.url, KEY).runs.subscribe(source.id, streams=True)
    try:
        assert isinstance(next(items), Run)
        assert [next(items), next(items)] == [
            StreamValue("tokens", index, 1, index + 1) for index in range(2)
        ]
        served.stop()
        # The same address: a reader comes back to where it was.
        served.start(served.port)
        worker.register(holding=(source.id,))
        source.write(3)
        assert next(item for item in items if isinstance(item, StreamValue)) == StreamValue("tokens", 2, 1, 3)
        worker.finish(source.run)
        assert list(items)[-1].is_completed
    finally:
        served.stop()


def test_a_reader_that_leaves_costs_nothing(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    source.write(*range(100))
    hub = worker.served.server.hub
    items = client.runs.subscribe(source.id, streams=True)
    assert isinstance(next(items), Run)
    assert source.id in hub.runs
    items.close()  # type: ignore[attr-defined]

    def has_left() -> bool:
        return source.id not in hub.runs and source.id not in hub.streams

    ticks = threading.Event()
    assert any(has_left() or ticks.wait(0.02) for _ in range(1000))


def test_many_streams_of_one_run(worker: HttpWorker, client: Client) -> None:
    first = Source(worker, "0")
    keys = [str(number) for number in range(300)]
    for key in keys:
        Source(worker, key, run=first.run).write_all(key, "end of " + key)
    worker.finish(first.run)
    items = list(client.runs.subscribe(first.id, streams=True))
    assert {key: values_of(items, key) for key in keys} == {key: [key, "end of " + key] for key in keys}


def test_what_a_run_says_of_its_streams_is_as_new_as_the_run(worker: HttpWorker, client: Client) -> None:
    """Not what was at the beginning of the subscription."""
    source = Source(worker)
    states = client.runs.subscribe(source.id)
    assert next(states).streams == []
    source.write("a", "b")
    [stream] = next(state for state in states if state.streams).streams
    assert (stream.key, stream.state) == ("tokens", "open")
    source.write("c")
    Source(worker, "more", run=source.run).write_all(1)
    found = next(state for state in states if len(state.streams) == 2).streams
    assert [(stream.key, stream.chunk_count) for stream in found] == [("tokens", 3), ("more", 1)]
    worker.finish(source.run)
    last = list(states)[-1]
    assert [(stream.key, stream.state) for stream in last.streams] == [("tokens", "ended"), ("more", "ended")]
    assert last.streams == client.runs.wait(source.id).streams == client.runs.retrieve(source.id).streams


def test_whoever_waits_for_a_run_has_its_streams(worker: HttpWorker, client: Client) -> None:
    source = Source(worker)
    found: list[Run] = []
    thread = threading.Thread(target=lambda: found.append(client.runs.wait(source.id)))
    thread.start()
    while source.id not in worker.served.server.hub.runs:
        threading.Event().wait(0.01)
    source.write_all("a")
    worker.finish(source.run)
    thread.join(20)
    assert [(stream.key, stream.chunk_count, stream.state) for stream in found[0].streams] == [
        ("tokens", 1, "ended")
    ]
