"""From Python values to JSON values (M72-M75, M78) and JSON equality (M22)."""

import asyncio
import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import io
import ipaddress
import json
import pathlib
import types
import typing
import uuid
import zoneinfo
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import MetadataValueError
from milepost.model.jsonvalue import (
    DEPTH_MAX,
    INTEGER_MAX,
    check_json,
    decode,
    encode,
    json_equal,
    json_size,
    to_json,
)

from . import strategies

# --- laws --------------------------------------------------------------------------------------------------


@given(strategies.values)
def test_m75_conversion_is_a_fresh_equal_copy(value: Any) -> None:
    converted = to_json(value)
    assert encode(converted) == encode(value)
    assert encode(to_json(converted)) == encode(converted)
    if isinstance(value, (list, dict)):
        assert converted is not value


@given(strategies.values)
def test_m84_size_is_the_length_of_compact_utf8(value: Any) -> None:
    assert json_size(value) == len(encode(value))
    assert json_equal(decode(encode(value)), value)
    assert json_equal(json.loads(encode(value)), value)


@given(strategies.values, strategies.values, strategies.values)
def test_m22_equality_is_an_equivalence(first: Any, second: Any, third: Any) -> None:
    assert json_equal(first, first)
    assert json_equal(first, second) == json_equal(second, first)
    if json_equal(first, second) and json_equal(second, third):
        assert json_equal(first, third)


equal_pairs = st.recursive(
    st.one_of(
        st.integers(-(2**40), 2**40).map(lambda number: (number, float(number))),
        strategies.scalars.map(lambda value: (value, value)),
    ),
    lambda pairs: st.one_of(
        st.lists(pairs, max_size=3).map(
            lambda items: ([left for left, _ in items], [right for _, right in items])
        ),
        st.dictionaries(st.sampled_from("abc"), pairs, max_size=3).map(
            lambda items: (
                {name: left for name, (left, _) in items.items()},
                {name: right for name, (_, right) in reversed(items.items())},
            )
        ),
    ),
    max_leaves=8,
)


@given(equal_pairs)
def test_m22_numbers_by_value_and_objects_without_order(pair: tuple[Any, Any]) -> None:
    assert json_equal(*pair)
    assert not json_equal([pair[0]], [pair[1], None])


@pytest.mark.parametrize(
    ("left", "right"),
    [(True, 1), (False, 0), (None, False), ("1", 1), ([], {}), ([True], [1]), ({"a": 1}, {"a": True})],
)
def test_m22_true_is_not_one(left: Any, right: Any) -> None:
    assert not json_equal(left, right)
    assert not json_equal(right, left)


# --- the table ---------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class State(enum.StrEnum):
    OPEN = "open"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class OldState(str, enum.Enum):  # noqa: UP042 - the older spelling, whose str() is not its value
    OPEN = "open"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not the text"


class Number(int):
    pass


class Fraction(float):
    pass


class Point(typing.NamedTuple):
    x: int
    at: dt.date


@dataclasses.dataclass
class Row:
    name: str
    points: list[Point]


@dataclasses.dataclass(slots=True, frozen=True)
class SlottedRow:
    name: str


@attrs.define
class Step:
    title: str
    done: bool = False


class Progress(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    step: int
    started_at: dt.datetime = pydantic.Field(alias="startedAt")
    link: pydantic.HttpUrl | None = None


class Shape(msgspec.Struct, rename="camel", tag="shape", tag_field="kind"):
    side_length: int
    note: str | msgspec.UnsetType = msgspec.UNSET


class Plain(msgspec.Struct):
    tags: set[str]


class Scalar:
    """What NumPy and pandas scalars look like from outside."""

    dtype = "float64"

    def __init__(self, item: Any, shape: tuple[int, ...] = ()) -> None:
        self._item = item
        self.shape = shape

    def item(self) -> Any:
        return self._item


class LongScalar(Scalar):
    def item(self) -> Any:
        return self

    def __float__(self) -> float:
        return 1.5

    def __eq__(self, other: object) -> bool:
        return other == 1.5

    __hash__ = None  # type: ignore[assignment]


UTC = dt.UTC
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
MOMENT = dt.datetime(2026, 11, 23, 13, 25, 12, 790001, tzinfo=UTC)

TABLE: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (5, 5),
    (2**80, 2**80),
    (INTEGER_MAX, INTEGER_MAX),
    (1.5, 1.5),
    ("é", "é"),
    ((1, (2,)), [1, [2]]),
    (collections.deque([1, 2]), [1, 2]),
    (range(3), [0, 1, 2]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", "a"}), ["a", "b"]),
    ({1, 2.5}, [1, 2.5]),
    ({(2,), (1,)}, [[1], [2]]),
    ({"a", 1, None}, ["a", 1, None]),
    (MOMENT, "2026-11-23T13:25:12.790001Z"),
    (MOMENT.replace(microsecond=0), "2026-11-23T13:25:12Z"),
    (MOMENT.astimezone(BERLIN), "2026-11-23T14:25:12.790001+01:00"),
    (MOMENT.replace(tzinfo=None), "2026-11-23T13:25:12.790001"),
    (dt.date(2026, 11, 23), "2026-11-23"),
    (dt.time(1, 2, 3, 4), "01:02:03.000004"),
    (dt.time(1, 2, 3, tzinfo=UTC), "01:02:03Z"),
    (dt.time(1, 2, 3, tzinfo=BERLIN), "01:02:03"),
    (dt.timedelta(0), "PT0S"),
    (dt.timedelta(days=1), "P1D"),
    (dt.timedelta(days=1, hours=2, minutes=3, seconds=4, microseconds=500_000), "P1DT2H3M4.5S"),
    (dt.timedelta(microseconds=1), "PT0.000001S"),
    (dt.timedelta(hours=36), "P1DT12H"),
    (-dt.timedelta(minutes=1), "-PT1M"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("a/b"), "a/b"),
    (pathlib.Path("a"), "a"),
    (ipaddress.ip_address("::1"), "::1"),
    (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (State.OPEN, "open"),
    (OldState.OPEN, "open"),
    (Access.READ | Access.WRITE, 3),
    ({State.OPEN: 1, OldState.OPEN: 2, Text("t"): 3}, {"open": 2, "t": 3}),
    (decimal.Decimal("1.10"), "1.10"),
    (b"\x00\xff", "AP8="),
    (bytearray(b"a"), "YQ=="),
    (memoryview(b"a"), "YQ=="),
    (Text("plain"), "plain"),
    (Number(7), 7),
    (Fraction(0.5), 0.5),
    (Point(1, dt.date(2026, 1, 2)), {"x": 1, "at": "2026-01-02"}),
    (Row("r", [Point(1, dt.date(2026, 1, 2))]), {"name": "r", "points": [{"x": 1, "at": "2026-01-02"}]}),
    (SlottedRow("r"), {"name": "r"}),
    (Step("one"), {"title": "one", "done": False}),
    (
        Progress(step=1, startedAt=MOMENT, link=pydantic.HttpUrl("https://example.com/")),
        {"step": 1, "startedAt": "2026-11-23T13:25:12.790001Z", "link": "https://example.com/"},
    ),
    (Shape(2), {"kind": "shape", "sideLength": 2}),
    (Plain({"b", "a"}), {"tags": ["a", "b"]}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
    (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    (collections.UserDict(a=1), {"a": 1}),
    (Scalar(1.5), 1.5),
    (Scalar(True), True),
    (Scalar("x"), "x"),
    (LongScalar(None), 1.5),
    ({"list": [{"deep": {1}}]}, {"list": [{"deep": [1]}]}),
]


@pytest.mark.parametrize(("value", "expected"), TABLE, ids=lambda value: type(value).__name__)
def test_m72_the_table(value: Any, expected: Any) -> None:
    converted = to_json(value)
    assert encode(converted) == encode(expected) or json_equal(converted, expected)
    check_json(converted)
    # The plain types and nothing that only compares like them.
    assert type(converted) is type(expected)
    nested = to_json({"outer": [value]})
    assert json_equal(nested, {"outer": [expected]})


def test_m72_an_exact_type_comes_out() -> None:
    for value in (Text("t"), State.OPEN, OldState.OPEN):
        assert type(to_json(value)) is str
        assert [type(name) for name in typing.cast("dict[str, Any]", to_json({value: 1}))] == [str]
    assert type(to_json(Number(1))) is int
    assert type(to_json(Level.HIGH)) is int
    assert type(to_json(Fraction(1))) is float


def test_m72_equal_sets_give_equal_arrays() -> None:
    mixed = ["a", 1, None, (1, 2), 2.5, "b"]
    expected = encode(to_json(set(mixed)))
    for shift in range(len(mixed)):
        assert encode(to_json(frozenset(mixed[shift:] + mixed[:shift]))) == expected


def test_m75_the_value_of_a_datetime_reads_back_as_text() -> None:
    once = to_json(MOMENT)
    assert to_json(once) == once == "2026-11-23T13:25:12.790001Z"
    assert dt.datetime.fromisoformat(typing.cast("str", once)) == MOMENT


@given(st.datetimes(timezones=st.timezones()))
def test_m72_datetimes_keep_microseconds_and_offset(moment: dt.datetime) -> None:
    read = dt.datetime.fromisoformat(typing.cast("str", to_json(moment)))
    assert read.replace(tzinfo=None) == moment.replace(tzinfo=None)
    assert read.utcoffset() == moment.utcoffset()


@given(st.timedeltas())
def test_m72_durations_are_read_back_by_pydantic_and_msgspec(duration: dt.timedelta) -> None:
    text = typing.cast("str", to_json(duration))
    with contextlib.suppress(pydantic.ValidationError):
        assert pydantic.TypeAdapter(dt.timedelta).validate_python(text) == duration
    with contextlib.suppress(msgspec.ValidationError):
        assert msgspec.convert(text, dt.timedelta) == duration


# --- refusals ----------------------------------------------------------------------------------------------


def a_function() -> None: ...


async def a_coroutine_function() -> None: ...


class Anything:
    def method(self) -> None: ...


class NotATime(dt.datetime):
    """pandas' NaT: a datetime that does not equal itself."""

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = dt.datetime.__hash__


def generator() -> Any:
    yield 1


REFUSED: list[tuple[Any, str]] = [
    (a_function, "a function"),
    (lambda: None, "a function"),
    (print, "a function"),
    (Anything().method, "a function"),
    ("".join, "a function"),
    (int, "a class"),
    (Anything, "a class"),
    (Row, "a class"),
    (Anything(), "an instance of Anything"),
    (object(), "an instance of object"),
    (generator(), "a generator"),
    (io.StringIO(), "an open file"),
    (io.BytesIO(), "an open file"),
    (1j, "a complex number"),
    (json, "a module"),
    (float("nan"), "NaN"),
    (float("inf"), "infinity"),
    (float("-inf"), "-infinity"),
    (decimal.Decimal("NaN"), "NaN"),
    (decimal.Decimal("-Infinity"), "-infinity"),
    (Fraction("nan"), "NaN"),
    (Scalar(float("nan")), "NaN"),
    (Scalar(None, shape=(3,)), "an array (Scalar) cannot be stored; use .tolist()"),
    (Scalar(None), "a missing time"),
    (NotATime(2026, 1, 1), "a missing time"),
    ("\ud800", "lone surrogate"),
    (INTEGER_MAX + 1, "1,024 bits"),
    (Number(-INTEGER_MAX - 1), "1,024 bits"),
]


@pytest.mark.parametrize(
    ("value", "name"), REFUSED, ids=lambda value: str(value)[:20].encode("ascii", "replace")
)
def test_m74_m78_refused_with_its_place(value: Any, name: str) -> None:
    with pytest.raises(MetadataValueError) as alone:
        to_json(value)
    assert name in str(alone.value)
    assert not str(alone.value).startswith(":")
    with pytest.raises(MetadataValueError) as nested:
        to_json({"steps": [0, {"callback": value}]}, place="user")
    assert str(nested.value) == f"user.steps[1].callback: {alone.value}"
    assert nested.value.key == "user"


def test_m74_the_message_of_the_contract() -> None:
    with pytest.raises(MetadataValueError) as caught:
        to_json({"callback": a_function}, place="user")
    assert str(caught.value) == "user.callback: a function cannot be stored"


def test_m74_a_coroutine_is_refused_and_not_reported_as_forgotten() -> None:
    with pytest.raises(MetadataValueError, match="a coroutine cannot be stored; await it first"):
        to_json([a_coroutine_function()])


def test_m74_a_future_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(MetadataValueError, match="an awaitable"):
            to_json({"later": asyncio.get_running_loop().create_future()})

    asyncio.run(main())


@pytest.mark.parametrize("name", [1, None, True, 1.5, (1,), b"a", Level.HIGH, Colour])
def test_m78_keys_are_text(name: Any) -> None:
    with pytest.raises(MetadataValueError, match=r"^user\.rows\[0\]\..*: .* cannot be a key") as caught:
        to_json({"rows": [{name: 1}]}, place="user")
    assert caught.value.key == "user"


def test_m78_a_key_with_a_lone_surrogate() -> None:
    with pytest.raises(MetadataValueError, match=r"^a\.\\ud800: .*surrogate"):
        to_json({"a": {"\ud800": 1}})


def test_m78_cycles() -> None:
    items: list[Any] = [1]
    items.append({"again": items})
    with pytest.raises(MetadataValueError, match=r"^user\[1\]\.again: a value that contains itself"):
        to_json(items, place="user")
    row = Row("r", [])
    row.points.append(row)  # type: ignore[arg-type]
    with pytest.raises(MetadataValueError, match=r"^points\[0\]: a value that contains itself"):
        to_json(row)
    first: dict[str, Any] = {}
    second: dict[str, Any] = {"first": first}
    first["second"] = second
    with pytest.raises(MetadataValueError, match=r"^outer\.second\.first: a value that contains itself"):
        to_json({"outer": first})


def test_m75_one_value_in_two_places_is_no_cycle() -> None:
    shared = [1]
    converted: Any = to_json({"a": shared, "b": shared})
    assert converted == {"a": [1], "b": [1]}
    assert converted["a"] is not converted["b"]


def test_m78_depth() -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX):
        value = [value]
    assert encode(to_json(value)) == encode(value)
    check_json(value)
    for convert in (to_json, check_json):
        with pytest.raises(MetadataValueError, match="nested more than 200 levels deep"):
            convert({"a": value})


def test_m78_a_stack_that_is_almost_used_up_is_no_crash() -> None:
    value: Any = 1
    for _ in range(150):
        value = {"a": value}

    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            to_json(value)

    with pytest.raises((MetadataValueError, RecursionError)):
        deeper(900)


@pytest.mark.parametrize(
    "value", [float("nan"), "\ud800", (1,), {1: 2}, {"\ud800": 1}, INTEGER_MAX + 1, object(), Text("t")]
)
def test_check_json_accepts_plain_json_only(value: Any) -> None:
    check_json({"a": [None, True, 1, 1.5, "é", {}]})
    with pytest.raises(MetadataValueError, match=r"^k\.a\[0\]"):
        check_json({"a": [value]}, place="k")
