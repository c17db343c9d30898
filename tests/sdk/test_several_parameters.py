"""Tasks of several parameters: triggered as their function is called, on the wire one object by name, checked at both ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from milepost import BatchItem, Context, PayloadValidationError, Task, TooLargeError, UsageError, task
from milepost.client.requests import NO_PAYLOAD
from milepost.model.run import Outcome
from milepost.protocol.triggering import OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX
from milepost.sdk.attempt import needs_loop, run_attempt, run_attempt_in_thread
from milepost.sdk.triggering import encode_payload, prepare
from sdk.here import claimed, scope_of


class Row(BaseModel):
    id: int


class Point(msgspec.Struct):
    x: int


@dataclass
class Place:
    name: str


def carried_out(work: Task[Any, Any], text: str | None) -> Outcome:
    scope = scope_of(claimed(text=text, task=work.id, attempt=1))
    if needs_loop(work):
        return asyncio.run(run_attempt(work, scope.run, scope))
    return run_attempt_in_thread(work, scope.run, scope)


def called(work: Task[Any, Any], *args: Any, **kwargs: Any) -> Any:
    """What the task returns when it is triggered like this: the payload goes over the wire as a text."""
    payload, options = work._given(args, kwargs)
    assert options == {}
    outcome = carried_out(work, encode_payload(work.id, payload))
    assert outcome.error is None, outcome.error
    return None if outcome.output is None else msgspec.json.decode(outcome.output)


def test_arguments_arrive_as_the_function_takes_them() -> None:
    @task
    def add(a: int, b: str = "x", *, c: bool = False, ctx: Context) -> list[Any]:
        assert ctx.task.id == "add"
        return [a, b, c]

    assert called(add, 1) == [1, "x", False]
    assert called(add, 1, "y", c=True) == [1, "y", True]
    assert called(add, a=1, b="y") == [1, "y", False]
    assert encode_payload("add", add.signature.bind((1,), {"c": True})) == '{"a":1,"c":true}'


@pytest.mark.parametrize("is_async", [False, True])
def test_every_kind_of_parameter_and_type(is_async: bool) -> None:
    def work(
        row: Row, /, point: Point, ctx: Context, place: Place, *, at: datetime, rest: list[int] | None = None
    ) -> str:
        assert isinstance(row, Row)
        assert isinstance(point, Point)
        assert isinstance(place, Place)
        return f"{row.id} {point.x} {place.name} {at.year} {rest} {ctx.attempt.number}"

    async def in_async(
        row: Row, /, point: Point, ctx: Context, place: Place, *, at: datetime, rest: list[int] | None = None
    ) -> str:
        return work(row, point, ctx, place, at=at, rest=rest)

    made: Task[Any, Any] = task(id="every kind")(in_async if is_async else work)
    at = datetime(2026, 1, 1)
    assert called(made, Row(id=1), Point(2), Place("p"), at=at) == "1 2 p 2026 None 1"
    assert called(made, Row(id=1), point=Point(2), place=Place("p"), at=at, rest=[3]) == "1 2 p 2026 [3] 1"


def test_positional_only_defaults_before_a_given_one_stand_in() -> None:
    @task
    def work(a: int = 1, b: int = 2, /, c: int = 3) -> list[int]:
        return [a, b, c]

    for text, expected in (
        ("{}", [1, 2, 3]),
        ('{"b":5}', [1, 5, 3]),
        ('{"c":5}', [1, 2, 5]),
        (None, [1, 2, 3]),
    ):
        assert carried_out(work, text).output == msgspec.json.encode(expected).decode()


def test_a_context_by_position_before_positional_only_parameters() -> None:
    @task
    def work(ctx: Context, a: int, b: int = 2, /) -> list[Any]:
        return [ctx.task.id, a, b]

    assert called(work, 1) == ["work", 1, 2]
    assert called(work, 1, 5) == ["work", 1, 5]


def test_one_parameter_takes_its_payload_as_it_is() -> None:
    @task
    def work(path: str, ctx: Context) -> str:
        return path

    assert encode_payload("work", work._given(("a.csv",), {})[0]) == '"a.csv"'
    assert called(work, path="a.csv") == "a.csv"
    assert called(work, payload="a.csv") == "a.csv"


def add() -> Task[Any, Any]:
    def add(a: int, b: str = "x") -> str:
        return f"{a}{b}"

    return task(add)


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (lambda work: work.trigger(), r"task 'add' is called add\(a, b='x'\): missing a required argument: 'a'"),
        (lambda work: work.trigger(1, "y", 2), "too many positional arguments"),
        (lambda work: work.trigger(1, d=2), "unexpected keyword argument 'd'"),
        (lambda work: work.trigger(1, a=2), "multiple values for argument 'a'"),
        (lambda work: work.trigger("many"), "does not fit task 'add': a: "),
        (lambda work: work.trigger(a=1, b=2), "b: "),
        (lambda work: work.options(tags="t").trigger(1, tags="t"), "unexpected keyword argument 'tags'"),
        (lambda work: work.batch_trigger([{"a": 1}, {"a": 1, "z": 2}]), "item 1: .*z: "),
        (lambda work: work.batch_trigger([(1, "x", "y")]), "item 0: .*too many positional"),
    ],
)  # fmt: skip
def test_a_call_that_the_function_would_not_take_is_refused_before_the_request(
    trigger: Callable[[Task[Any, Any]], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILEPOST_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MILEPOST_SECRET_KEY", "k")
    with pytest.raises(PayloadValidationError, match=words):
        trigger(add())


def test_options_and_arguments_of_one_name_are_not_mixed_up() -> None:
    @task
    def send(to: str, priority: int, tags: list[str] | None = None) -> None: ...

    assert send._given(("x",), {"priority": 5, "tags": ["a"]}) == (
        {"to": "x", "priority": 5, "tags": ["a"]},
        {},
    )
    assert send._given(("x", 5), {"queue": "q"}) == ({"to": "x", "priority": 5}, {"queue": "q"})
    chosen = send.options(tags=["option"])
    assert chosen._payload(("x", 5), {"tags": ["argument"]}) == {
        "to": "x",
        "priority": 5,
        "tags": ["argument"],
    }
    assert chosen._options == {"tags": ["option"]}
    with pytest.raises(TypeError, match="there is no trigger option 'tagz'"):
        send.options(tagz="x")  # type: ignore[call-arg]

    @task
    def resize(queue: str = "x") -> None: ...

    assert resize._given(("a",), {"queue": "q"}) == ("a", {"queue": "q"})
    with pytest.raises(
        UsageError, match=r"'queue' is a trigger option, and a parameter of task 'resize'.*resize.options"
    ):
        resize.trigger(queue="q")
    assert resize.options(queue="q")._payload((), {"queue": "a"}) == "a"
    assert resize.options(queue="q")._payload((), {}) is NO_PAYLOAD
    with pytest.raises(UsageError, match="takes one payload, and was given 2 values"):
        resize.trigger("a", "b")


@pytest.mark.parametrize(
    "item", [(1, "y"), {"a": 1, "b": "y"}, BatchItem((1, "y"), tags="t"), BatchItem({"a": 1, "b": "y"})]
)
def test_items_of_a_batch(item: Any) -> None:
    work = add()
    payload = item.payload if isinstance(item, BatchItem) else item
    assert encode_payload(work.id, payload) == '{"a":1,"b":"y"}'


def test_a_bare_item_is_the_first_argument() -> None:
    assert encode_payload(add().id, 7) == '{"a":7}'


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"b":"y"}', "a", "a: Field required"),
        ('{"a":1,"z":2}', "z", "z: Extra inputs are not permitted"),
        ("[1]", "payload", "payload: "),
        ("null", "payload", "payload: "),
        (None, "a", "a: Field required"),
        ("{", "payload", "payload: "),
    ],
)
def test_what_arrives_is_checked_and_not_tried_again(text: str | None, field: str, words: str) -> None:
    outcome = carried_out(add(), text)
    assert outcome.error is not None
    assert outcome.error.name == "PayloadValidationError"
    assert words in outcome.error.message, field
    assert outcome.retry_after_ms is None


def test_the_schema_shows_the_object() -> None:
    schema = add().describe().payload_schema
    assert schema is not None
    assert schema["properties"]["a"]["type"] == "integer"
    assert schema["properties"]["b"]["type"] == "string"
    assert schema["required"] == ["a"]
    assert schema["additionalProperties"] is False


def test_hooks_get_the_arguments_by_name() -> None:
    seen: list[Any] = []
    work = add()
    work.on_success(lambda payload: seen.append(payload))
    carried_out(work, '{"a":1}')
    assert seen == [{"a": 1}]


def test_calling_the_task_calls_the_function() -> None:
    assert add()(1, b="z") == "1z"


def test_a_payload_above_the_limit_is_refused_before_the_request() -> None:
    @task
    def work(text: str) -> None: ...

    fits = "x" * (PAYLOAD_BYTES_MAX - 2)
    assert encode_payload("work", fits) == f'"{fits}"'
    words = r"the payload has 3,145,729 bytes as JSON, the limit is 3,145,728: store the data elsewhere"
    for task_id in ("work", "not known here"):
        with pytest.raises(TooLargeError, match=words) as refused:
            prepare(task_id, fits + "x", {}, limit=1000, scope=None, resume=False)
        assert (refused.value.field, refused.value.limit) == ("payload", PAYLOAD_BYTES_MAX)
    wide = "é" * (PAYLOAD_BYTES_MAX // 2)
    with pytest.raises(TooLargeError):
        encode_payload("work", wide)


def test_an_output_above_the_limit_fails_the_run_with_size_limit_and_cure() -> None:
    @task
    def work(size: int) -> str:
        return "x" * size

    assert OUTPUT_BYTES_MAX == 10 * 1024 * 1024
    assert carried_out(work, str(OUTPUT_BYTES_MAX - 2)).error is None
    outcome = carried_out(work, str(OUTPUT_BYTES_MAX - 1))
    assert outcome.error is not None
    assert outcome.error.message == (
        "the task's output is 10,485,761 bytes of JSON, and at most 10,485,760 can be kept; store it elsewhere and return where"
    )
    assert outcome.retry_after_ms is None
