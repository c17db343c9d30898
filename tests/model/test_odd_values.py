"""Every odd value is stored right, or refused with the place: no raw error of somebody else's code, nothing that changes silently."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import threading
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import attrs
import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.errors import MetadataTypeError, MetadataValueError
from milepost.model import jsonvalue
from milepost.model.document import Document
from milepost.model.jsonvalue import INTEGER_MAX, check_json, decode, encode, json_equal, to_json
from milepost.model.operations import Increment, Remove, Set

from . import strategies


class Rows(pydantic.RootModel[list[dt.date]]):
    pass


class AsNumber(pydantic.BaseModel):
    a: int

    @pydantic.model_serializer
    def made(self) -> int:
        return self.a


class AsItself(pydantic.BaseModel):
    a: int = 1

    @pydantic.model_serializer
    def made(self) -> Any:
        return self


class AsFailure(pydantic.BaseModel):
    @pydantic.computed_field
    @property
    def broken(self) -> int:
        raise KeyError("no such thing")


class Nested(pydantic.BaseModel):
    rows: Rows


@dataclasses.dataclass
class Unset:
    a: int
    later: int = dataclasses.field(init=False)


@attrs.define
class UnsetAttrs:
    a: int
    later: int = attrs.field(init=False)


class Plain(msgspec.Struct):
    a: int


class ByPlace(msgspec.Struct, array_like=True, tag="by place"):
    a: int
    b: int | msgspec.UnsetType = msgspec.UNSET


@dataclasses.dataclass
class Property:
    a: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            raise ZeroDivisionError("division by zero")
        return super().__getattribute__(name)


class Pair(typing.NamedTuple):
    a: int
    b: Any


class ShortPair(Pair):
    """A named tuple that has fewer items than names."""

    def __new__(cls) -> ShortPair:
        return tuple.__new__(cls, (1,))


class OddEnum(enum.Enum):
    OBJECT = object()
    FUNCTION = staticmethod(len)
    NESTED = (1, {"a": dt.date(2026, 1, 2)})


class LyingEnum(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        raise OSError("gone")


class LyingDict(dict[Any, Any]):
    def items(self) -> Any:
        return [1, 2, 3]


class GrowingDict(dict[Any, Any]):
    def items(self) -> Any:
        for name, value in super().items():
            self[f"{name} again"] = value
            yield name, value


class FailingDict(dict[Any, Any]):
    def items(self) -> Any:
        raise ValueError("no items today")


class EndlessMapping(Mapping[str, int]):
    def __getitem__(self, name: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"{number}"

    def __len__(self) -> int:
        return 2


class EndlessList(list[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class LyingText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def encode(self, *arguments: Any) -> Any:
        return b"not the text"

    def isascii(self) -> bool:
        return True


class LyingNumber(int):
    def __int__(self) -> int:
        raise RuntimeError("no number")

    def __le__(self, other: object) -> bool:
        raise RuntimeError("no comparison")


class LyingPath(pathlib.PurePosixPath):
    def __str__(self) -> str:
        return LyingText("a/b")


class LyingTime(dt.datetime):
    @property
    def hour(self) -> int:
        return 99


class LyingZone(dt.tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        raise OverflowError("no zone")


class LyingType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise MemoryError(f"no {name}")

    def __hash__(cls) -> int:
        raise MemoryError("no hash")


class OfLyingType(metaclass=LyingType):
    pass


class NoText:
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class RaisesNoText(dict[str, Any]):
    def items(self) -> Any:
        class Odd(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        raise Odd


class Weak:
    pass


def dead_proxy() -> Any:
    return weakref.proxy(Weak())


def without_value() -> Plain:
    value = Plain(1)
    del value.a
    return value


MOMENT = "2026-11-23T13:25:12.790001002"
STRUCTURED = np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
MASKED_ROW = np.ma.array([(1, 2.5)], mask=[(False, True)], dtype=[("a", "i4"), ("b", "f8")])

STORED: dict[str, tuple[Callable[[], Any], Any]] = {
    "root model": (lambda: Rows([dt.date(2026, 1, 2)]), ["2026-01-02"]),
    "root model inside": (lambda: Nested(rows=Rows([dt.date(2026, 1, 2)])), {"rows": ["2026-01-02"]}),
    "model as a number": (lambda: AsNumber(a=5), 5),
    "struct by place": (lambda: ByPlace(1), ["by place", 1, None]),
    "named tuple": (lambda: Pair(1, (2,)), {"a": 1, "b": [2]}),
    "nested enum": (lambda: OddEnum.NESTED, [1, {"a": "2026-01-02"}]),
    "lying text": (lambda: LyingText("é"), "é"),
    "lying path": (lambda: LyingPath("a/b"), "a/b"),
    "lying number": (lambda: LyingNumber(7), 7),
    "lying text as a name": (lambda: dict.fromkeys([LyingNameOnly("a")], 1), {"a": 1}),
    "decimal": (lambda: decimal.Decimal("1E+30"), "1E+30"),
    "largest integer": (lambda: INTEGER_MAX, INTEGER_MAX),
    "counter": (lambda: collections.Counter("aab"), {"a": 2, "b": 1}),
    # NumPy.
    "bool": (lambda: np.True_, True),
    "int64": (lambda: np.int64(2**62), 2**62),
    "uint64": (lambda: np.uint64(2**64 - 1), 2**64 - 1),
    "float32": (lambda: np.float32(0.1), float(np.float32(0.1))),
    "float64": (lambda: np.float64(0.1), 0.1),
    "long double": (lambda: np.longdouble(0.1), 0.1),
    "np.str_": (lambda: np.str_("é"), "é"),
    "np.bytes_": (lambda: np.bytes_(b"a"), "YQ=="),
    "array of no dimension": (lambda: np.array(5), 5),
    "array of no dimension, not masked": (lambda: np.ma.array(5, mask=False), 5),
    "object in an array": (lambda: np.array({"a": (1,)}, dtype=object), {"a": [1]}),
    "structured row": (lambda: STRUCTURED[0], {"a": 1, "b": 2.5}),
    "datetime64 in seconds": (lambda: np.datetime64("2026-11-23T13:25:12"), "2026-11-23T13:25:12"),
    "datetime64 in days": (lambda: np.datetime64("2026-11-23"), "2026-11-23T00:00:00"),
    "datetime64 in years": (lambda: np.datetime64("2026"), "2026-01-01T00:00:00"),
    "datetime64 in nanoseconds": (lambda: np.datetime64(MOMENT), MOMENT),
    "datetime64 in whole microseconds": (
        lambda: np.datetime64("2026-11-23T13:25:12.790001000"),
        "2026-11-23T13:25:12.790001",
    ),
    "datetime64 in attoseconds": (
        lambda: np.datetime64("1970-01-01T00:00:00.123456789123456789"),
        "1970-01-01T00:00:00.123456789123456789",
    ),
    "timedelta64 in nanoseconds": (lambda: np.timedelta64(-1, "ns"), "-PT0.000000001S"),
    "timedelta64 in attoseconds": (lambda: np.timedelta64(10**18 + 1, "as"), "PT1.000000000000000001S"),
    "timedelta64 in seconds": (lambda: np.timedelta64(90, "s"), "PT1M30S"),
    "timedelta64 in weeks": (lambda: np.timedelta64(10**6, "W"), "P7000000D"),
    # pandas.
    "Timestamp": (lambda: pd.Timestamp("2026-11-23T13:25:12.790001"), "2026-11-23T13:25:12.790001"),
    "Timestamp with nanoseconds": (lambda: pd.Timestamp(MOMENT), MOMENT),
    "Timestamp with nanoseconds only": (
        lambda: pd.Timestamp("2026-11-23T13:25:12.000000002", tz="UTC"),
        "2026-11-23T13:25:12.000000002Z",
    ),
    "Timestamp in a zone": (
        lambda: pd.Timestamp(MOMENT, tz="Europe/Berlin"),
        "2026-11-23T13:25:12.790001002+01:00",
    ),
    "Timedelta": (lambda: pd.Timedelta(days=1, seconds=1), "P1DT1S"),
    "Timedelta with nanoseconds": (lambda: pd.Timedelta(-1, "ns"), "-PT0.000000001S"),
    "Timedelta of long": (lambda: pd.Timedelta(np.timedelta64(2**40, "s")), "P12725829DT36M16S"),
}  # fmt: skip


class LyingNameOnly(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not the name"


def raised(kind: str, what: str = "") -> str:
    return f": an instance of {kind} cannot be stored, because reading it raised{what}"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "model as itself": (AsItself, ": an instance of AsItself cannot be stored, because"),
    "model that fails": (AsFailure, raised("AsFailure")),
    "dataclass without a value": (lambda: Unset(1), ".later: a field without a value"),
    "attrs without a value": (lambda: UnsetAttrs(1), ".later: a field without a value"),
    "struct without a value": (without_value, ".a: a field without a value"),
    "property that raises": (Property, ".a: reading the field raised ZeroDivisionError: division by zero"),
    "short named tuple": (ShortPair, raised("ShortPair", " ValueError")),
    "UNSET": (lambda: msgspec.UNSET, ": an instance of UnsetType"),
    "enum of an object": (lambda: OddEnum.OBJECT, ": an instance of object"),
    "enum of a function": (lambda: OddEnum.FUNCTION, ": "),
    "enum that raises": (lambda: LyingEnum.A, raised("LyingEnum", " OSError: gone")),
    "dict that lies": (lambda: LyingDict(a=1), raised("LyingDict", " TypeError")),
    "dict that grows": (lambda: GrowingDict(a=1), raised("GrowingDict", " RuntimeError")),
    "dict that fails": (lambda: FailingDict(a=1), raised("FailingDict", " ValueError: no items")),
    "error without a text": (RaisesNoText, raised("RaisesNoText")),
    "endless mapping": (EndlessMapping, ".1000: more than 1,000 items cannot be stored"),
    "endless list": (EndlessList, "[1000]: more than 1,000 items cannot be stored"),
    "long range": (lambda: range(10**12), "[1000]: more than 1,000 items cannot be stored"),
    "time that lies": (lambda: LyingTime(2026, 1, 1), ": a time outside of the years 1 to 9999"),
    "zone that lies": (lambda: dt.datetime(2026, 1, 1, tzinfo=LyingZone()), raised("datetime", " OverflowError: no zone")),
    "type that lies": (OfLyingType, raised("OfLyingType", " MemoryError")),
    "dead proxy": (dead_proxy, ": an instance of "),
    "name without a text": (lambda: {NoText(): 1}, ".<NoText>: an instance of NoText cannot be a key"),
    "name of many digits": (lambda: {10**5000: 1}, ".<int>: an instance of int cannot be a key"),
    "released memory": (lambda: released(memoryview(b"a")), raised("memoryview", " ValueError")),
    "number of many digits": (lambda: 10**5000, ": an integer of more than 1,024 bits"),
    "complex": (lambda: 1j, ": a complex number"),
    "fraction": (lambda: fractions.Fraction(1, 3), ": an instance of Fraction"),
    "signalling NaN": (lambda: decimal.Decimal("sNaN"), ": NaN"),
    "mock": (mock.MagicMock, ": an instance of MagicMock"),
    "mock of a coroutine": (mock.AsyncMock, ": an instance of AsyncMock"),
    "array.array": (lambda: array.array("i", [1]), ": an instance of array"),
    "dict view": ({}.keys, ": an instance of dict_keys"),
    "zip": (lambda: zip([1], [2], strict=True), ": an instance of zip"),
    # NumPy.
    "masked": (lambda: np.ma.masked, ": a masked value"),
    "masked without dimension": (lambda: np.ma.array(5, mask=True), ": a masked value"),
    "masked field": (lambda: MASKED_ROW[0], ".b: a masked value"),
    "array": (lambda: np.array([1]), ": an array (ndarray) cannot be stored; use .tolist()"),
    "np complex": (lambda: np.complex64(1j), ": a complex number"),
    "np long complex": (lambda: np.clongdouble(1j), ": a complex number"),
    "np NaN": (lambda: np.float32("nan"), ": NaN"),
    "np long infinity": (lambda: np.longdouble("1e400"), ": infinity"),
    "long double with more digits": (lambda: np.longdouble("0.1"), ": an instance of longdouble that no float equals"),
    "datetime64 NaT": (lambda: np.datetime64("NaT", "ns"), ": a missing time"),
    "datetime64 far away": (lambda: np.datetime64("20000"), ": a time outside of the years"),
    "datetime64 very far away": (lambda: np.datetime64(600_000, "Y"), ": a time outside of the years"),
    "datetime64 before Christ": (lambda: np.datetime64("-0005-01-01"), ": a time outside of the years"),
    "timedelta64 NaT": (lambda: np.timedelta64("NaT"), ": a missing duration"),
    "timedelta64 without unit": (lambda: np.timedelta64(5), ": a duration without a unit"),
    "timedelta64 in months": (lambda: np.timedelta64(5, "M"), ": a duration in units of M"),
    "timedelta64 of very long": (lambda: np.timedelta64(2**62, "D"), ": a duration of more than 292,000 years"),
    # pandas.
    "NaT": (lambda: pd.NaT, ": a missing time"),
    "NA": (lambda: pd.NA, ": an instance of NAType"),
    "Timestamp far away": (lambda: pd.Timestamp(np.datetime64("20000-01-01", "s")), ": a time outside of the years"),
    "Series": (lambda: pd.Series([1]), ": an array (Series) cannot be stored; use .tolist()"),
    "DataFrame": (lambda: pd.DataFrame({"a": [1]}), ": an instance of DataFrame"),
    "Period": (lambda: pd.Period("2026-01"), ": an instance of Period"),
}  # fmt: skip


def released(view: memoryview) -> memoryview:
    view.release()
    return view


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonvalue, "ITEMS_MAX", 1000)


@pytest.mark.parametrize("name", STORED)
def test_m72_stored_right(name: str) -> None:
    make, expected = STORED[name]
    assert encode(to_json(make())) == encode(expected)
    nested = to_json({"rows": [make()]})
    assert encode(nested) == encode({"rows": [expected]})
    check_json(nested)


@pytest.mark.parametrize("name", REFUSED)
def test_m74_m78_refused_with_the_place(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(MetadataValueError) as caught:
        to_json({"rows": [0, make()]}, place="user")
    assert str(caught.value).startswith(f"user.rows[1]{reason}"), caught.value
    assert caught.value.key == "user"


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"])
@settings(max_examples=60)
@given(count=st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(-(10**6), 10**6)))
def test_m72_times_of_numpy_lose_nothing(unit: Any, count: int) -> None:
    """What is stored is the same time or duration again, or it is refused."""
    moment, duration = np.datetime64(count, unit), np.timedelta64(count, unit)
    try:
        text = typing.cast("str", to_json(moment))
    except MetadataValueError:
        assert unit not in ("ns", "ps", "fs", "as")
    else:
        assert np.datetime64(text, unit) == moment
    try:
        text = typing.cast("str", to_json(duration))
    except MetadataValueError:
        assert unit not in ("us", "ns", "ps", "fs", "as")
    else:
        read = pydantic.TypeAdapter(dt.timedelta)
        if unit in ("s", "ms", "us") and abs(count) < 10**12:
            assert np.timedelta64(read.validate_python(text), unit) == duration
        assert text.startswith("-P" if count < 0 else "P")


@settings(max_examples=60)
@given(
    nanoseconds=st.integers(-(2**63) + 10**15, 2**63 - 10**15),
    zone=st.sampled_from([None, "UTC", "Europe/Berlin", "America/St_Johns"]),
)
def test_m72_times_of_pandas_keep_their_nanoseconds(nanoseconds: int, zone: str | None) -> None:
    moment = pd.Timestamp(nanoseconds, unit="ns", tz=zone)
    text = typing.cast("str", to_json(moment))
    if moment.utcoffset() is None or not moment.utcoffset().seconds % 60:
        # An offset with seconds, from before there were zones, pandas does not read.
        assert pd.Timestamp(text) == moment
    assert "." not in text or len(text.split(".")[1].rstrip("Z").split("+")[0].split("-")[0]) in (6, 9)
    duration = pd.Timedelta(nanoseconds, unit="ns")
    count = pd.Timedelta(typing.cast("str", to_json(duration)).removeprefix("-")).value
    assert count == abs(nanoseconds)


# --- anything inside anything ------------------------------------------------------------------------------

# Hypothesis itself cannot handle these.
_TOO_ODD = ("dead proxy", "type that lies")

_leaves = st.one_of(
    strategies.scalars,
    st.sampled_from([make for make, _ in STORED.values()]).map(lambda make: make()),
    st.sampled_from([make for name, (make, _) in REFUSED.items() if name not in _TOO_ODD]).map(
        lambda make: make()
    ),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.binary(max_size=4),
    st.text(max_size=4),
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.functions(),
    st.ip_addresses(),
)
_names = st.one_of(
    st.text(max_size=3), st.integers(), st.none(), st.sampled_from([LyingNameOnly("a"), OddEnum.OBJECT])
)


def _in_array(value: Any) -> Any:
    """An array without dimensions that holds this. Made from a list, it would be asked for its items, and some have no end."""
    array = np.empty((), dtype=object)
    array[()] = value
    return array


_odd = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(collections.deque),
        st.dictionaries(_names, inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.UserDict),
        st.builds(Pair, st.integers(), inner),
        inner.map(_in_array),
    ),
    max_leaves=6,
)


@settings(max_examples=400)
@given(_odd)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Pydantic serializer warnings")
def test_m72_to_m78_anything_is_stored_or_refused(value: Any) -> None:
    try:
        converted = to_json({"steps": [value]}, place="k")
    except MetadataValueError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert str(refused).startswith("k.steps[0]")
        assert refused.key == "k"
        assert str(refused).encode()
        return
    check_json(converted)
    text = encode(converted)
    assert encode(decode(text)) == text
    assert encode(to_json(converted)) == text
    document = Document()
    document.apply(Set("k", converted))
    assert document.size == len(document.encode())


# --- numbers that meet -------------------------------------------------------------------------------------

_numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [INTEGER_MAX, -INTEGER_MAX, INTEGER_MAX - 1, 2**53 + 1, 2**63, 2**1000, 10**400, -(10**400), 10**5000]
    ),
    st.floats(),
    st.sampled_from([1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -0.0, 2.0**53]),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(["increment", "set", "remove"]), _numbers), min_size=1, max_size=6))
def test_m22_m23_numbers_of_every_size_meet(steps: list[tuple[str, Any]]) -> None:
    """Whatever they are, an operation is applied or refused; the document stays one that every reader reads."""
    document = Document({"n": 0, "l": [0, 1.5, INTEGER_MAX, 2.0**53]})
    for step, number in steps:
        before = document.encode()
        try:
            if step == "increment":
                document.apply(Increment("n", number))
            elif step == "set":
                document.apply(Set("n", to_json(number)))
            else:
                document.apply(Remove("l", to_json(number)))
        except (MetadataValueError, MetadataTypeError):
            assert document.encode() == before
        check_json(document.value)
        assert json_equal(decode(document.encode()), document.value)
        assert document.size == len(document.encode())


# --- threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, set, collections.deque])
def test_m75_a_container_that_another_thread_changes_is_stored(kind: Any) -> None:
    """Some state that it had; no error of the iteration."""
    shared: Any = kind()
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            if kind is dict:
                shared[f"{number % 500}"] = number
                shared.pop(f"{(number * 7) % 500}", None)
            elif kind is set:
                shared.add(number % 500)
                shared.discard((number * 7) % 500)
            else:
                shared.append(number)
                if len(shared) > 300:
                    shared.popleft()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            check_json(to_json({"shared": shared}))
    finally:
        stop.set()
        thread.join()


def test_m72_neither_numpy_nor_pandas_is_imported_for_it() -> None:
    source = pathlib.Path(jsonvalue.__file__).read_text(encoding="utf-8")
    assert "import numpy" not in source
    assert "import pandas" not in source
