"""One rule of typed values: what goes through an annotation comes out of it equal, or is refused where it is sent, with the place.

Held for payloads, outputs and typed metadata: over the types that tasks are written with, one by one and nested in each other.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import keyword
import re
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    PydanticSchemaGenerationError,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    Tag,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)

from milepost import MetadataValueError, PayloadValidationError, UsageError, metadata, task
from milepost.client.results import task_result
from milepost.client.shape import shape_of
from milepost.model.run import Outcome
from milepost.model.typed import Misfit
from milepost.protocol.runs import RunResult
from milepost.sdk import registry
from milepost.sdk.attempt import run_attempt_in_thread
from milepost.sdk.schema import MetadataSchema
from milepost.sdk.triggering import encode_payload
from sdk.here import claimed, running, scope_of

# --- the ways -----------------------------------------------------------------------------------------------


class Refused(Exception):
    """The value was refused where it was sent."""


def by_payload(annotation: Any, value: Any) -> Any:
    """What a task gets that is triggered with the value."""
    received: list[Any] = []

    def work(payload: Any) -> None:
        received.append(payload)

    work.__annotations__ = {"payload": annotation, "return": None}
    registry._tasks.clear()
    made = task(id="work")(work)
    texts: list[str | None] = []
    refusal = refusal_of(lambda: texts.append(encode_payload("work", value)))
    if refusal is not None:
        assert not refusal.startswith(":"), refusal
        raise Refused(refusal)
    [text] = texts
    run = claimed(text=text)
    outcome = run_attempt_in_thread(made, run, scope_of(run))
    assert outcome.error is None, outcome.error
    [payload] = received
    return payload


def by_output(annotation: Any, value: Any) -> Any:
    """What the output of a task is that returns the value."""

    def work() -> Any:
        return value

    work.__annotations__ = {"return": annotation}
    registry._tasks.clear()
    made = task(id="work")(work)
    run = claimed()
    outcome: Outcome = run_attempt_in_thread(made, run, scope_of(run))
    if outcome.error is not None:
        assert outcome.error.name == "OutputError", outcome.error
        assert outcome.retry_after_ms is None, "the work is not done again"
        assert "output" in outcome.error.message
        raise Refused(outcome.error.message)
    wire = RunResult(
        ok=True, id="run_1", task_identifier="work", output=outcome.output, output_type="application/json"
    )
    return task_result(wire, made.signature.output_shape).output


def by_metadata(annotation: Any, value: Any) -> Any:
    """What a typed field of the metadata is after the value was set."""
    try:
        kind: Any = create_model("Progress", field=(annotation, ...))
    except PydanticSchemaGenerationError:
        kind = msgspec.defstruct("Progress", [("field", annotation)])
    with running() as (scope, _):
        scope.schema = MetadataSchema(kind)
        refusal = refusal_of(lambda: metadata.set("field", value))
        if refusal is not None:
            assert "field" in refusal
            assert metadata.current() == {}
            raise Refused(refusal)
        typed: Any = metadata.current(kind)
        return typed.field


def refusal_of(call: Callable[[], object]) -> str | None:
    """What a call is refused with, which names the place; None when it is not."""
    try:
        call()
    except PayloadValidationError as error:
        return f"{error.field or ''}: {error.message}"
    except MetadataValueError as error:
        return error.message
    return None


WAYS: list[Callable[[Any, Any], Any]] = [by_payload, by_output, by_metadata]

# --- types that must come back --------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


class Text(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Flags(enum.IntFlag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    data: bytes = b""


@dataclasses.dataclass
class Data:
    n: int
    data: bytes = b""
    at: datetime | None = None


@dataclasses.dataclass(eq=False)
class Unequal:
    n: int


@pydantic.dataclasses.dataclass
class Checked:
    n: int
    data: bytes = b""


class Row(typing_extensions.TypedDict):
    n: int
    data: typing_extensions.NotRequired[bytes]


class Model(BaseModel):
    data: bytes = b""
    secret: SecretStr = SecretStr("")
    numbers: dict[int, str] = {}


class Aliased(BaseModel):
    one: int = Field(serialization_alias="One", validation_alias=AliasChoices("uno", AliasPath("all", 0)))
    two: int = Field(0, alias="Two")
    three: int = Field(0, validation_alias="drei")
    four: int = Field(0, serialization_alias="Vier")


class Swapped(BaseModel):
    left: int = Field(serialization_alias="right")
    right: int = Field(serialization_alias="left")


class Computed(BaseModel, extra="forbid"):
    n: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.n


class WithPrivate(BaseModel):
    n: int = 0
    _count: int = PrivateAttr(default=3)


class WithLock(BaseModel):
    n: int = 0
    _lock: Any = PrivateAttr(default_factory=object)


class HexBytes(BaseModel):
    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="utf8")
    data: bytes


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    n: int = 0


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    n: int = 0


class Tree(BaseModel):
    children: list[Tree] = []
    data: bytes = b""


ItemT = TypeVar("ItemT")


class Box(BaseModel, Generic[ItemT]):
    item: ItemT


class StrictModel(BaseModel, strict=True):
    n: int
    at: datetime


class Twice(BaseModel):
    seconds: timedelta

    @field_serializer("seconds")
    def write(self, value: timedelta) -> float:
        return value.total_seconds()


class Struct(msgspec.Struct):
    n: int
    data: bytes = b""
    numbers: dict[int, str] = {}


class Tagged(msgspec.Struct, tag="t", rename={"n": "N"}):
    n: int


class Foreign(msgspec.Struct):
    model: Model
    path: Path


@attrs.define
class Attrs:
    n: int
    data: bytes = b""


COMES_BACK: list[tuple[Any, Any]] = [
    (bytes, b"hello"),
    (bytes, b"\xff\xfe"),
    (bytearray, bytearray(b"\xff")),
    (list[bytes], [b"\xff", b""]),
    (bytes | None, b"\xff"),
    (SecretStr, SecretStr("open sesame")),
    (SecretBytes, SecretBytes(b"\xff")),
    (Secret[date], Secret[date](date(2026, 1, 1))),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[date, int], {date(2026, 1, 1): 1}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Number, int], {Number.ONE: 1}),
    (dict[uuid.UUID, bytes], {uuid.UUID(int=1): b"\xff"}),
    (dict[bytes, int], {b"\xff": 1}),
    (Model, Model(data=b"\xff", secret=SecretStr("s"), numbers={7: "x"})),
    (list[Model], [Model(data=b"\xff")]),
    (dict[str, Model], {"a": Model(secret=SecretStr("s"))}),
    (Aliased, Aliased(uno=1, Two=2, drei=3, four=4)),  # type: ignore[call-arg]
    (Swapped, Swapped(left=1, right=2)),
    (Computed, Computed(n=1)),
    (WithPrivate, WithPrivate(n=1)),
    (HexBytes, HexBytes(data=b"\xff")),
    (Cat | Dog, Dog(n=1)),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(n=1)),
    (
        Annotated[
            Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")],
            Discriminator(lambda value: value["kind"] if isinstance(value, dict) else value.kind),
        ],
        Dog(n=1),
    ),
    (Tree, Tree(children=[Tree(data=b"\xff")])),
    (Box[bytes], Box[bytes](item=b"\xff")),
    (RootModel[list[bytes]], RootModel[list[bytes]]([b"\xff"])),
    (StrictModel, StrictModel(n=1, at=datetime(2026, 1, 1))),
    (Twice, Twice(seconds=timedelta(seconds=1.5))),
    (Data, Data(1, b"\xff", datetime(2026, 1, 1, tzinfo=UTC))),
    (Checked, Checked(1, b"\xff")),
    (Row, {"n": 1, "data": b"\xff"}),
    (Point, Point(1, b"\xff")),
    (Struct, Struct(1, b"\xff", {1: "x"})),
    (Tagged | None, Tagged(1)),
    (list[Struct], [Struct(1)]),
    (Foreign, Foreign(Model(data=b"\xff"), Path("a"))),
    (Attrs, Attrs(1, b"\xff")),
    (Colour, Colour.TWO),
    (Text, Text.A),
    (Number, Number.ONE),
    (Flags, Flags.READ | Flags.WRITE),
    (Literal["a", 1, None], 1),
    (Decimal, Decimal("1.00")),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 678901)),
    (datetime, datetime(2026, 1, 1, tzinfo=UTC)),
    (datetime, datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
    (AwareDatetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (date, date(2026, 1, 1)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (uuid.UUID, uuid.UUID(int=5)),
    (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("10.0.0.1")),
    (AnyUrl, AnyUrl("http://example.org/a")),
    (re.Pattern[str], re.compile("a+")),
    (complex, 1 + 2j),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (collections.deque[int], collections.deque([1, 2])),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (collections.Counter[str], collections.Counter("aab")),
    (collections.defaultdict[str, list[int]], collections.defaultdict(list, a=[1])),
    (Iterable[int], [1, 2]),
    (date | datetime, datetime(2026, 1, 1)),
    (date | datetime, date(2026, 1, 1)),
    (int | str, "5"),
    (int | str, 5),
    (float | int, 1.0),
    (bool | int, True),
    (float, 0.1),
    (int, 2**200),
    (None, None),
    (Any, {"a": [1, None]}),
    (object, "x"),
    (dict[str, Any], {"a": [1, {"b": None}]}),
    (list, [1, "x"]),
    (Optional[int], None),  # noqa: UP045 - users write it
    (Union[int, None], 3),  # noqa: UP007
]  # fmt: skip


def _in_short(value: object) -> str:
    """The name of a case, the same in every process: sets have no order of their own."""
    return "a set" if isinstance(value, set | frozenset) else str(value)[:50]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("annotation", "value"), COMES_BACK, ids=_in_short)
def test_it_comes_back(way: Callable[[Any, Any], Any], annotation: Any, value: Any) -> None:
    back = way(annotation, value)
    assert back == value
    assert type(back) is type(value)


# --- what cannot come back is refused where it is sent, with the place ------------------------------------------


class SubModel(Model):
    more: int = 1


class SubStruct(Struct):
    more: int = 1


@dataclasses.dataclass
class SubData(Data):
    more: int = 1


class Excluded(BaseModel):
    n: int = Field(0, exclude=True)


class Hashed(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def hash(cls, word: str) -> str:
        return f"hashed {word}"


def with_private() -> WithPrivate:
    value = WithPrivate()
    value._count = 5
    return value


def assigned() -> Model:
    value = Model()
    value.numbers = {"x": 1}  # type: ignore[dict-item]
    return value


REFUSED: list[tuple[Any, Any, str]] = [
    (Model, SubModel(), "instance of SubModel comes back as an instance of Model"),
    (list[Model], [Model(), SubModel()], r"\[1\]: .*SubModel"),
    (Data, SubData(1), "SubData"),
    (Struct, SubStruct(1), "SubStruct"),
    (Excluded, Excluded(n=5), r"\bn: 5 comes back as 0"),
    (Hashed, Hashed(word="x"), "word: 'hashed x' comes back as 'hashed hashed x'"),
    (Annotated[int, PlainSerializer(lambda value: value + 1)], 1, "1 comes back as 2"),
    (WithPrivate, with_private(), "_count: is a private attribute"),
    (Model, assigned(), "numbers"),
    (dict[tuple[int, int], int], {(1, 2): 3}, r"1,2\S*: would not be read back"),
    (Path | str, "x", "comes back as"),
    (float, float("nan"), "JSON has no such number"),
    (list[float | None], [1.0, float("inf")], r"\[1\]: inf"),
    (dict[str, Any], {"a": [float("nan")]}, r"a\[0\]: NaN"),
    (dict[str, Any], {"f": len}, "f: a function"),
    (list[str], ["x", "\ud800"], r"\[1\]: text with a lone surrogate"),
    (int, 10**400, "1,024 bits"),
    (list[int], [1, 10**400], "1,024 bits"),
    (datetime, datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), "comes back as"),
    (typing_extensions.TypedDict("Loose", {"a": int}), {"a": 1, "b": (1, 2)}, "b"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("annotation", "value", "message"), REFUSED, ids=_in_short)
def test_it_is_refused(way: Callable[[Any, Any], Any], annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        way(annotation, value)


def test_keys_that_a_typed_dict_does_not_declare_come_back_too() -> None:
    for way in WAYS:
        assert way(Row, {"n": 1, "more": "x"}) == {"n": 1, "more": "x"}


def test_what_is_equal_by_its_fields_only_comes_back() -> None:
    for way in WAYS:
        back = way(Unequal, Unequal(3))
        assert (type(back), back.n) == (Unequal, 3)
        assert way(WithLock, WithLock(n=2)).n == 2


def test_a_time_in_the_hour_that_comes_twice_is_the_same_time() -> None:
    for fold in (0, 1):
        at = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin"))
        for way in WAYS:
            back = way(datetime, at)
            assert (back.utcoffset(), back.replace(tzinfo=None)) == (
                at.utcoffset(),
                at.replace(tzinfo=None, fold=0),
            )


def test_without_a_type_a_value_is_plain_json_M72() -> None:
    value = {"at": datetime(2026, 1, 1), "pair": (1, 2), "data": b"\xff"}
    plain = {"at": "2026-01-01T00:00:00", "pair": [1, 2], "data": "/w=="}
    for annotation in (Any, object, dict[str, Any], dict):
        for way in WAYS:
            assert way(annotation, value) == plain


# --- over types nested in each other --------------------------------------------------------------------------

Typed = tuple[Any, st.SearchStrategy[Any]]

LEAVES: list[Typed] = [
    (int, st.integers()),
    (str, st.text(max_size=5)),
    (bool, st.booleans()),
    (type(None), st.none()),
    (float, st.floats()),
    (bytes, st.binary(max_size=5)),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (datetime, st.datetimes(timezones=st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))))),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (Path, st.sampled_from([Path("a"), Path("/b/c"), Path()])),
    (Colour, st.sampled_from(Colour)),
    (Number, st.sampled_from(Number)),
    (Text, st.sampled_from(Text)),
    (Literal["a", 1, "1"], st.sampled_from(["a", 1, "1"])),
    (complex, st.complex_numbers()),
    (Annotated[int, Field(ge=0, multiple_of=2)], st.integers(0, 50).map(lambda n: 2 * n)),
    (Annotated[str, AfterValidator(str.upper)], st.text(max_size=3)),
]  # fmt: skip
HASHABLE = [leaf for leaf in LEAVES if leaf[0] not in (float, complex)]
NAMES = st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and not hasattr(BaseModel, name)
)


def lists(inner: Typed) -> Typed:
    return list[inner[0]], st.lists(inner[1], max_size=3)


def tuples(inner: Typed) -> Typed:
    return tuple[inner[0], ...], st.lists(inner[1], max_size=3).map(tuple)


def optionals(inner: Typed) -> Typed:
    return inner[0] | None, st.none() | inner[1]


def unions(left: Typed, right: Typed) -> Typed:
    return left[0] | right[0], left[1] | right[1]


def sets(inner: Typed) -> Typed:
    return set[inner[0]], st.sets(inner[1], max_size=3)


def dicts(keys: Typed, inner: Typed) -> Typed:
    return dict[keys[0], inner[0]], st.dictionaries(keys[1], inner[1], max_size=3)


def models(inner: Typed, name: str, alias: str, other: str) -> Typed:
    definition: Any = (inner[0], Field(validation_alias=alias, serialization_alias=other))
    try:
        kind: Any = create_model("Made", **{name: definition})
    except PydanticSchemaGenerationError:
        # There is a Struct in it.
        return structs(inner, name)
    return kind, inner[1].map(lambda value: kind(**{alias: value}))


def dataclasses_of(inner: Typed, name: str) -> Typed:
    kind: Any = dataclasses.make_dataclass("MadeData", [(name, inner[0])])
    return kind, inner[1].map(kind)


def typed_dicts(inner: Typed, name: str) -> Typed:
    return typing_extensions.TypedDict("MadeDict", {name: inner[0]}), inner[1].map(
        lambda value: {name: value}
    )  # type: ignore[operator]


def named_tuples(inner: Typed, name: str) -> Typed:
    kind: Any = NamedTuple("MadeTuple", [(name, inner[0])])  # type: ignore[misc]
    return kind, inner[1].map(kind)


def structs(inner: Typed, name: str) -> Typed:
    kind: Any = msgspec.defstruct("MadeStruct", [(name, inner[0])], rename="upper")
    return kind, inner[1].map(kind)


SOME_TYPES = st.sampled_from(LEAVES)
TYPES: st.SearchStrategy[Typed] = SOME_TYPES | st.recursive(
    SOME_TYPES,
    lambda inner: st.one_of(
        st.builds(lists, inner),
        st.builds(tuples, inner),
        st.builds(optionals, inner),
        st.builds(unions, inner, inner),
        st.builds(sets, st.sampled_from(HASHABLE)),
        st.builds(dicts, st.sampled_from(HASHABLE), inner),
        st.builds(models, inner, NAMES, NAMES, NAMES),
        st.builds(dataclasses_of, inner, NAMES),
        st.builds(typed_dicts, inner, NAMES),
        st.builds(named_tuples, inner, NAMES),
        st.builds(structs, st.sampled_from(LEAVES), NAMES),
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_sent_comes_back_equal_or_is_refused(
    way: Callable[[Any, Any], Any], data: st.DataObject
) -> None:
    annotation, values = data.draw(TYPES)
    try:
        shape_of(annotation)
    except UsageError:
        # No library reads this type, so no task can be made with it.
        return
    value = data.draw(values)
    try:
        # What a lenient type makes of the value before it is sent is the caller's value.
        value = shape_of(annotation).check(value)
        back = way(annotation, value)
    except (Refused, Misfit):
        return
    assert back == value


# --- what others send and read --------------------------------------------------------------------------------


def test_readers_take_the_names_that_the_json_schema_tells_and_those_of_the_model() -> None:
    shape = shape_of(Aliased)
    for text in ('{"uno":1,"Two":2}', '{"all":[1],"two":2}', '{"one":1,"two":2}', '{"One":1,"Two":2}'):
        assert shape.read(text) == Aliased(uno=1, Two=2)  # type: ignore[call-arg]
    assert set((shape.json_schema() or {})["properties"]) == {"One", "Two", "drei", "Vier"}


def test_bytes_are_base64_for_everyone() -> None:
    assert shape_of(Model).write(Model(data=b"\xfb\xff")) == b'{"data":"+/8=","secret":"","numbers":{}}'
    assert shape_of(bytes).read('"+/8="') == shape_of(bytes).read('"-_8="') == b"\xfb\xff"
    schema = shape_of(Model).json_schema() or {}
    assert schema["properties"]["data"]["contentEncoding"] == "base64"


def test_a_run_object_reads_its_metadata_as_a_type_M77() -> None:
    with running() as _:
        metadata.set("data", b"\xff\xfe").set("numbers", {"7": "x"}).set("secret", "s")
        document = metadata.current()
    expected = Model(data=b"\xff\xfe", numbers={7: "x"}, secret=SecretStr("s"))
    assert shape_of(Model).read(msgspec.json.encode(document)) == expected
