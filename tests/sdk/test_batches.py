"""Batches of any length: portions bounded in items and bytes, sent while the items come, and nothing left half when they break off."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NotRequired

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from client.scripted import Answer, Asked, ScriptedServer, scripted
from milepost import (
    BatchHandle,
    BatchItem,
    Client,
    PayloadValidationError,
    UsageError,
    configure,
    task,
    tasks,
)
from milepost.sdk import batches
from milepost.sdk.batches import Sending
from milepost.sdk.triggering import Commit

Items = Iterator[Any]


class Row(TypedDict):
    """A payload that may be long."""

    number: int
    text: NotRequired[str]


class Api:
    """A server that keeps the items of announced batches, as the real one does: by index, each once."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.items: dict[int, str] = {}
        self.portions: list[list[int]] = []
        self.run_count: int | None = None
        server.answer = self

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/api/v2/tasks/batch":
            self.items = {index: item["payload"] for index, item in enumerate(asked.body["items"])}
            self.run_count = len(self.items)
            runs = [f"run_{index}" for index in self.items]
            return Answer(202, {"id": "batch_new", "runCount": len(runs), "runs": runs})
        if asked.path == "/api/v3/batches":
            assert asked.body.get("runCount") is None
            return Answer(202, {"id": "batch_new", "runCount": None, "isCached": False})
        assert asked.path == "/api/v3/batches/batch_new/items", asked.path
        lines = asked.body
        if "runCount" in asked.query:
            self.run_count = int(asked.query["runCount"])
        self.portions.append([line["index"] for line in lines])
        self.items |= {line["index"]: line["payload"] for line in lines}
        return Answer(
            200,
            {
                "id": "batch_new",
                "itemsAccepted": len(lines),
                "itemsDeduplicated": 0,
                "sealed": self.run_count == len(self.items),
                "enqueuedCount": len(self.items),
                "expectedCount": self.run_count,
                "runs": [f"run_{line['index']}" for line in lines],
            },
        )


@pytest.fixture
def api() -> Iterator[Api]:
    with scripted() as server:
        configure(api_url=server.url, secret_key="key")
        yield Api(server)


@pytest.fixture(params=["blocking", "async", "async items"])
def trigger(request: pytest.FixtureRequest) -> Callable[[Items], BatchHandle[None]]:
    """`batch_trigger` in each of its forms."""

    @task
    def work(row: Row) -> None: ...

    async def each(items: Items) -> AsyncIterator[Any]:
        for item in items:
            yield item

    def send(items: Items) -> BatchHandle[Any]:
        if request.param == "blocking":
            return work.batch_trigger(items)
        given: Any = items if request.param == "async" else each(items)
        return asyncio.run(work.abatch_trigger(given))

    return send


def test_a_generator_of_any_length_is_one_batch(
    api: Api, trigger: Callable[[Items], BatchHandle[None]]
) -> None:
    handle = trigger({"number": number} for number in range(2500))
    assert handle.id == "batch_new"
    assert [run.id for run in handle.runs] == [f"run_{number}" for number in range(2500)]
    assert [json.loads(api.items[index])["number"] for index in sorted(api.items)] == list(range(2500))
    assert [len(portion) for portion in api.portions] == [1000, 1000, 500]
    assert api.run_count == 2500


def test_portions_are_bounded_in_bytes_and_sent_while_the_items_come(
    api: Api, trigger: Callable[[Items], BatchHandle[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PORTION_BYTES_MAX", 100_000)
    sent_when_taken: list[int] = []

    def items() -> Items:
        for number in range(40):
            sent_when_taken.append(len(api.items))
            yield BatchItem({"number": number, "text": "x" * 10_000}, metadata={"note": "y" * 10_000})

    assert len(trigger(items()).runs) == 40
    assert [len(portion) for portion in api.portions] == [4] * 10
    # Never more than one portion and the item behind it were held back.
    assert all(taken - sent <= 5 for taken, sent in enumerate(sent_when_taken))


def test_one_item_that_is_larger_than_a_portion_travels_alone(
    api: Api, trigger: Callable[[Items], BatchHandle[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PORTION_BYTES_MAX", 1000)
    trigger({"number": number, "text": "x" * 5000} for number in range(3))
    assert api.portions == [[0], [1], [2]]
    assert api.run_count == 3


def test_when_the_items_break_off_what_was_sent_is_a_whole_batch(
    api: Api, trigger: Callable[[Items], BatchHandle[None]]
) -> None:
    def items() -> Items:
        yield from ({"number": number} for number in range(1500))
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here") as caught:
        trigger(items())
    assert len(api.items) == api.run_count == 1000
    assert "1,000 items had been triggered before, in batch batch_new" in caught.value.__notes__[0]


def test_a_bad_item_is_named_by_its_position(api: Api, trigger: Callable[[Items], BatchHandle[None]]) -> None:
    with pytest.raises(PayloadValidationError, match="item 7: ") as caught:
        trigger({"number": "seven" if number == 7 else number} for number in range(10))
    assert api.server.asked == []
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(PayloadValidationError, match="item 1200: "):
        trigger({"number": None if number == 1200 else number} for number in range(2000))
    assert api.run_count == 1000


def test_async_items_need_the_async_form(api: Api) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(UsageError, match="abatch_trigger"):
        tasks.batch_trigger("work", items())  # pyright: ignore[reportArgumentType]


@given(sizes=st.lists(st.integers(0, 60), max_size=40), most=st.integers(1, 5), room=st.integers(10, 100))
def test_nothing_is_left_out_and_no_portion_is_too_large(sizes: list[int], most: int, room: int) -> None:
    """Law: what leaves is what came in, in its order; each portion fits, or is one item."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_ITEMS_MAX", most)
        patch.setattr(batches, "PORTION_BYTES_MAX", room)
        sending = Sending("nobody", None, {}, resume=False)
        sent: list[list[int]] = []

        def send(steps: Any) -> None:
            answer: Any = None
            try:
                while True:
                    call = steps.send(answer)
                    if isinstance(call, Commit):
                        continue
                    if call.target == "/api/v3/batches":
                        answer = batches.TriggeredBatch("batch", [], None)
                        continue
                    is_whole = "tasks" in call.target
                    lines = json.loads(call.body)["items"] if is_whole else _lines(call.body)
                    sent.append([len(json.loads(line["payload"])) for line in lines])
                    answer = batches.TriggeredBatch("batch", [""] * len(lines), None)
            except StopIteration:
                pass

        client = Client("http://localhost", "key")
        for size in sizes:
            send(sending.take(client, "x" * size))
        send(sending.finish())
    assert [size for portion in sent for size in portion] == sizes
    assert all(len(portion) <= most for portion in sent)
    assert all(sum(size + 2 for size in portion) <= room or len(portion) == 1 for portion in sent)


def _lines(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]
