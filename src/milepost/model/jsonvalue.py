"""A Python value becomes a JSON value here, once, when the call is made (M72-M75, M78).

What comes out is made of `None`, `bool`, `int`, `float`, `str`, `list` and `dict` with text keys only, exactly
those types, and shares no container with what went in. Everything behind this module relies on that.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import inspect
import io
import ipaddress
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast
from uuid import UUID

import msgspec

from milepost.errors import MetadataValueError

__all__ = [
    "DEPTH_MAX",
    "INTEGER_MAX",
    "ITEMS_MAX",
    "JSONValue",
    "check_json",
    "decode",
    "describe",
    "encode",
    "json_equal",
    "json_size",
    "kind_of",
    "to_json",
]

if TYPE_CHECKING:
    JSONValue: TypeAlias = bool | int | float | str | list["JSONValue"] | dict[str, "JSONValue"] | None
else:
    # At run time a recursive alias is of no use to msgspec and pydantic, and everything is checked by `to_json`.
    JSONValue = Any

kind_of: Callable[[object], Any] = type
"""`type`, for comparisons with `is`. Type checkers do not narrow by it, which they do badly for recursive types."""

ITEMS_MAX = 10_000_000
"""Items of one iterable that is not a list or tuple. No document can hold as many, and some iterables have no end."""

DEPTH_MAX = 200
"""Levels of nesting in one value. Far below the depth at which a JSON reader gives up."""

INTEGER_MAX = int(sys.float_info.max)
"""Largest magnitude of an integer. Beyond it JavaScript reads infinity, and int + float overflows in Python."""

encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
"""The compact UTF-8 JSON text of a JSON value: no spaces, no ASCII escaping. Safe to call from several threads."""

decode: Callable[[bytes | str], JSONValue] = cast(
    "Callable[[bytes | str], JSONValue]", msgspec.json.Decoder().decode
)
"""The JSON value in a text. Raises `msgspec.DecodeError` (a ValueError) on anything else, NaN and lone surrogates too.
The result may be deeper than `DEPTH_MAX`; `check_json` tells."""


def json_size(value: JSONValue) -> int:
    """Bytes of the value as compact UTF-8 JSON: `len(encode(value))` (M84)."""
    return len(encode(value))


def to_json(value: object, *, place: str = "", key: str | None = None) -> JSONValue:
    """The JSON form of a Python value, as a fresh copy.

    Promises that changing `value` afterwards changes nothing in the result (M75), and that converting the result
    again gives an equal one.

    Args:
        value: anything in the table of M72.
        place: what to call the value in messages, usually its metadata key: `user` gives `user.callback: ...`.
        key: the metadata key to put on the error, `place` when left out.
    Raises: MetadataValueError, naming the place inside the value (M74, M78).
    """
    plain: Any = value
    kind = kind_of(plain)
    if kind is str:
        if plain.isascii():
            return plain
    elif kind is bool or plain is None or (kind is int and -INTEGER_MAX <= plain <= INTEGER_MAX):
        return plain
    try:
        return _convert(value, 0)
    except _Refused as refused:
        raise _refusal(refused, place, key) from None
    except RecursionError:
        raise _refusal(_Refused(_NO_STACK), place, key) from None


def check_json(value: object, *, place: str = "", key: str | None = None) -> None:
    """Make sure that a value decoded from the wire may enter a document: depth and size of integers.

    Raises: MetadataValueError, also when the value is not plain JSON at all.
    """
    try:
        _check(value, 0)
    except _Refused as refused:
        raise _refusal(refused, place, key) from None


def json_equal(left: JSONValue, right: JSONValue) -> bool:
    """JSON's equality (M22): `True` is not `1`, `1` equals `1.0`, the order of object keys does not matter."""
    kind = kind_of(left)
    if kind is not type(right):
        # The one pair of different types that can be equal is int and float; bool is neither here.
        return (kind is int or kind is float) and type(right) in _NUMBERS and left == right
    if kind is list:
        ours, theirs = cast("list[JSONValue]", left), cast("list[JSONValue]", right)
        return len(ours) == len(theirs) and all(map(json_equal, ours, theirs))
    if kind is dict:
        mine, others = cast("dict[str, JSONValue]", left), cast("dict[str, JSONValue]", right)
        return len(mine) == len(others) and all(
            name in others and json_equal(item, others[name]) for name, item in mine.items()
        )
    return left == right


_NUMBERS = (int, float)


def describe(value: JSONValue) -> str:
    """What a value is, in JSON's words, for messages: `an array`, `text`, `null`."""
    return _KINDS.get(type(value), "no JSON value")


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    list: "an array",
    dict: "an object",
}


# --- refusals ----------------------------------------------------------------------------------------------

_INTEGER_TOO_LARGE = (
    "an integer of more than 1,024 bits, which JSON readers take for infinity, cannot be stored"
)
_BAD_NAME = "{} cannot be a key, because the keys of a JSON object are text; use str(key)"
_NO_STACK = "nested too deeply for the stack that is left here"
_SURROGATE = "text with a lone surrogate cannot be stored, because it has no UTF-8 form"


def _kind_name(kind: Any) -> str:
    return "None" if kind is type(None) else f"an instance of {_name_of(kind)}"


def _name_of(kind: Any) -> str:
    # A metaclass may say anything when it is asked for the name.
    return type.__getattribute__(kind, "__qualname__")


def _shown(value: object) -> str:
    """The value in a message, at most 80 characters; whatever its own text form does, nothing is raised."""
    try:
        return f"{value!s:.80}"
    except Exception:
        return f"<{_name_of(type(value))}>"


class _Refused(Exception):
    """A refusal on its way out. Each level that it passes adds its own segment, so finding no fault costs nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        # Innermost first: how the container refers to the offending value, and which container it is.
        self.trail: list[tuple[str | int, int]] = []

    def at(self, segment: str | int, container: object) -> _Refused:
        """The same refusal, one level further out."""
        self.trail.append((segment, id(container)))
        return self


class _TooDeep(_Refused):
    def __init__(self) -> None:
        super().__init__(f"nested more than {DEPTH_MAX} levels deep")


def _refusal(refused: _Refused, place: str, key: str | None) -> MetadataValueError:
    reason = refused.reason
    trail = refused.trail[::-1]
    if isinstance(refused, _TooDeep):
        # A cycle is only seen by its depth, so that values without one pay nothing for the search.
        seen: set[int] = set()
        for position, (_, container) in enumerate(trail):
            if container in seen:
                reason = "a value that contains itself cannot be stored"
                trail = trail[:position]
                break
            seen.add(container)
        else:
            trail = trail[:8]
    where = place
    for segment, _ in trail:
        if isinstance(segment, int):
            where += f"[{segment}]"
        else:
            where += f".{segment}" if where else segment
    message = f"{where}: {reason}" if where else reason
    printable = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return MetadataValueError(printable, key=key if key is not None else place or None)


# --- conversion --------------------------------------------------------------------------------------------


def _convert(value: Any, depth: int) -> JSONValue:
    kind = kind_of(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return _integer(value)
    if kind is float:
        return _number(value)
    if kind is bool or value is None:
        return value
    if kind is dict:
        return _from_dict(value, depth)
    if kind is list or kind is tuple:
        return _array(value, depth, id(value))
    # From here on code of others runs, which may raise anything.
    try:
        return _converter_for(kind)(value, depth)
    except _Refused:
        raise
    except RecursionError:
        raise _Refused(_NO_STACK) from None
    except Exception as error:
        what = f"{_name_of(type(error))}: {_shown(error)}".removesuffix(": ")
        raise _Refused(f"{_kind_name(kind)} cannot be stored, because reading it raised {what}") from None


def _from_dict(value: dict[object, object], depth: int) -> JSONValue:
    try:
        return _object(value.items(), depth, id(value))
    except RecursionError:
        raise
    except RuntimeError:
        # Another thread adds to it at this moment. Copying is one step.
        return _object(value.copy().items(), depth, id(value))


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Refused(_SURROGATE) from None
    return value


def _integer(value: int) -> int:
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise _Refused(_INTEGER_TOO_LARGE)
    return value


def _number(value: float) -> float:
    if not isfinite(value):
        raise _Refused(f"{_number_name(value)} cannot be stored, because JSON has no such number")
    return value


def _number_name(value: float | Decimal) -> str:
    return "NaN" if value != value else "infinity" if value > 0 else "-infinity"


def _array(values: Iterable[object], depth: int, identity: int) -> list[JSONValue]:
    if depth >= DEPTH_MAX:
        raise _TooDeep
    result: list[JSONValue] = []
    try:
        for value in values:
            result.append(_convert(value, depth + 1))
    except _Refused as refused:
        refused.trail.append((len(result), identity))
        raise
    return result


def _mapping(values: Mapping[object, object], depth: int) -> dict[str, JSONValue]:
    return _object(_bounded(values.items()), depth, id(values))


def _object(items: Iterable[tuple[object, object]], depth: int, identity: int) -> dict[str, JSONValue]:
    if depth >= DEPTH_MAX:
        raise _TooDeep
    result: dict[str, JSONValue] = {}
    name: object = ""
    try:
        for name, value in items:
            if type(name) is not str:
                name = _plain_name(name)
            elif not name.isascii():
                _text(name)
            result[name] = _convert(value, depth + 1)
    except _Refused as refused:
        refused.trail.append((_shown(name), identity))
        raise
    return result


def _bounded(values: Iterable[Any]) -> Iterator[Any]:
    """The values, unless they are more than any document can hold: some iterables have no end."""
    for count, value in enumerate(values):
        if count >= ITEMS_MAX:
            raise _Refused(f"more than {ITEMS_MAX:,} items cannot be stored")
        yield value


def _attributes(value: object, names: Iterable[str]) -> list[tuple[str, object]]:
    """The attributes of these names; one that is not there, or cannot be read, is refused with its place."""
    found: list[tuple[str, object]] = []
    for name in names:
        try:
            found.append((name, getattr(value, name)))
        except AttributeError:
            raise _Refused("a field without a value cannot be stored").at(name, value) from None
        except Exception as error:
            reason = f"reading the field raised {_name_of(type(error))}: {_shown(error)}".removesuffix(": ")
            raise _Refused(reason).at(name, value) from None
    return found


def _plain_name(name: object) -> str:
    if isinstance(name, enum.Enum) and isinstance(name.value, str):
        return _text(str.__str__(name.value))
    if isinstance(name, str):
        return _text(str.__str__(name))
    raise _Refused(_BAD_NAME.format(_kind_name(type(name))))


_Converter: TypeAlias = "Callable[[Any, int], JSONValue]"


def _whole_array(values: Iterable[object], depth: int) -> JSONValue:
    return _array(_bounded(values), depth, id(values))


def _copied_array(values: deque[object], depth: int) -> JSONValue:
    # A copy is made in one step; a thread that adds to it meanwhile does no harm.
    return _array(values.copy(), depth, id(values))


def _sorted_array(values: set[object] | frozenset[object], depth: int) -> JSONValue:
    """A set as an array. Sorted by value where JSON values have an order, by their JSON text otherwise, so that
    equal sets give equal arrays."""
    items = _array(_bounded(values.copy()), depth, id(values))
    kinds = {type(item) for item in items}
    if kinds <= {str} or kinds <= {int, float}:
        cast("list[Any]", items).sort()
    else:
        items.sort(key=encode)
    return items


def _from_aware_text(text: str, offset: timedelta | None) -> str:
    # Only an offset of zero is spelled +00:00 at the end of an ISO 8601 text.
    return text[:-6] + "Z" if offset == timedelta(0) and text.endswith("+00:00") else text


def _from_datetime(value: datetime, _depth: int) -> str:
    if value != value:
        # pandas' NaT calls itself a datetime.
        raise _Refused(_NO_TIME)
    # The method of the base class, which knows microseconds only; others write what no other reader takes.
    text = datetime.isoformat(value)
    if type(value) is not datetime:
        if tuple(field.__get__(value) for field in _OWN_CLOCK) != _CLOCK(value):
            # pandas' Timestamp has later years than its base class.
            raise _Refused(_NO_YEAR)
        nanosecond = getattr(value, "nanosecond", 0)
        if nanosecond:
            rest = text[26:] if value.microsecond else text[19:]
            text = f"{text[:19]}.{value.microsecond:06}{nanosecond:03}{rest}"
    return _from_aware_text(text, value.utcoffset())


# What the base class itself holds, and what the value says.
_OWN_CLOCK: tuple[Any, ...] = (
    *(date.year, date.month, date.day),
    *(datetime.hour, datetime.minute, datetime.second, datetime.microsecond),
)
_CLOCK = attrgetter("year", "month", "day", "hour", "minute", "second", "microsecond")
_NO_TIME = "a missing time cannot be stored"
_NO_DURATION = "a missing duration cannot be stored"
_NO_YEAR = "a time outside of the years 1 to 9999 cannot be stored"


def _from_time(value: time, _depth: int) -> str:
    return _from_aware_text(time.isoformat(value), value.utcoffset())


def _from_date(value: date, _depth: int) -> str:
    return date.isoformat(value)


def _from_timedelta(value: timedelta, _depth: int) -> str:
    if value != value:
        raise _Refused(_NO_DURATION)
    seconds = value.days * 86_400 + value.seconds
    count = seconds * 10**9 + value.microseconds * 1000 + getattr(value, "nanoseconds", 0)
    return _duration(count, 9)


def _duration(count: int, digits: int) -> str:
    """So many units of 10^-digits seconds in ISO 8601: `P1DT2H3M4.5S`, `-PT1S`, `PT0S`."""
    seconds, fraction = divmod(abs(count), 10**digits)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    part = f".{_fraction(fraction, digits)}" if fraction else ""
    clock = f"{hours}H" if hours else ""
    clock += f"{minutes}M" if minutes else ""
    clock += f"{seconds}{part}S" if seconds or part else ""
    whole = f"{days}D" if days else ""
    if not whole and not clock:
        clock = "0S"
    return f"{'-' if count < 0 else ''}P{whole}" + (f"T{clock}" if clock else "")


def _fraction(fraction: int, digits: int) -> str:
    return f"{fraction:0{digits}}".rstrip("0")


def _from_decimal(value: Decimal, _depth: int) -> str:
    if not value.is_finite():
        name = "NaN" if value.is_nan() else _number_name(value)
        raise _Refused(f"{name} cannot be stored, because JSON has no such number")
    return Decimal.__str__(value)


def _from_bytes(value: bytes | bytearray | memoryview, _depth: int) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_text_form(value: object, _depth: int) -> str:
    return _text(str.__str__(str(value)))


def _from_enum(value: enum.Enum, depth: int) -> JSONValue:
    return _convert(cast("object", value.value), depth)


def _from_str_subclass(value: str, _depth: int) -> str:
    return _text(str.__str__(value))


def _from_int_subclass(value: int, _depth: int) -> int:
    return _integer(int.__int__(value))


def _from_float_subclass(value: float, _depth: int) -> float:
    return _number(float.__float__(value))


def _from_named_tuple(value: Any, depth: int) -> JSONValue:
    names: Iterable[object] = value._fields
    return _object(zip(names, tuple[object, ...].__iter__(value), strict=True), depth, id(value))


def _from_dataclass(value: Any, depth: int) -> JSONValue:
    names = [field.name for field in dataclasses.fields(value)]
    return _object(_attributes(value, names), depth, id(value))


def _from_attrs(value: Any, depth: int) -> JSONValue:
    attributes: Iterable[Any] = value.__attrs_attrs__
    return _object(_attributes(value, [attribute.name for attribute in attributes]), depth, id(value))


def _from_pydantic(value: Any, depth: int) -> JSONValue:
    # Python mode, so that times, bytes and NaN follow the rules of this module; aliases, so that the model reads it back. What
    # a root model or a serializer of its own makes of it is any value.
    dumped: object = value.model_dump(by_alias=True, warnings=False)
    if dumped is value:
        raise _Refused(
            f"{_kind_name(type(value))} cannot be stored, because its serializer gives the model itself"
        )
    return _convert(dumped, depth)


def _from_struct(value: msgspec.Struct, depth: int) -> JSONValue:
    config = value.__struct_config__
    names = {field.name: field.encode_name for field in msgspec.structs.fields(value)}
    items = [(names[name], item) for name, item in _attributes(value, names)]
    if config.array_like:
        # Its own form in JSON is an array, by position.
        fields = [None if item is msgspec.UNSET else item for _, item in items]
        return _array(fields if config.tag is None else [config.tag, *fields], depth, id(value))
    present = [(name, item) for name, item in items if item is not msgspec.UNSET]
    if config.tag_field is not None:
        present.insert(0, (config.tag_field, config.tag))
    return _object(present, depth, id(value))


def _from_scalar_array(value: Any, depth: int) -> JSONValue:
    """A NumPy, pandas or tensor scalar by its own `.item()`, without importing the library."""
    if not hasattr(value, "dtype"):
        _refuse(value, depth)
    if getattr(value, "shape", None) != ():
        raise _Refused(f"an array ({_name_of(type(value))}) cannot be stored; use .tolist()")
    names = getattr(value.dtype, "names", None)
    if names:
        # A row of a structured array.
        return _object([(name, value[name]) for name in names], depth, id(value))
    mask = getattr(value, "mask", None)
    if mask is not None and bool(mask):
        raise _Refused("a masked value cannot be stored")
    kind, unit = _unit_of(value.dtype)
    if kind == "datetime64":
        return _from_datetime64(value, unit)
    if kind == "timedelta64":
        return _from_timedelta64(value, unit)
    item = value.item()
    if item is None:
        raise _Refused(_NO_TIME)
    if getattr(value.dtype, "kind", "") == "c":
        raise _Refused("a complex number cannot be stored")
    if type(item) is type(value):
        # A number with more digits than Python's own.
        number = float(item)
        if isfinite(number) and item != number:
            raise _Refused(f"{_kind_name(type(value))} that no float equals cannot be stored; use float(...)")
        item = number
    return _convert(item, depth + 1)


_FINER_UNITS = {"ns": 9, "ps": 12, "fs": 15, "as": 18}


def _unit_of(dtype: object) -> tuple[str, str]:
    """`("datetime64", "ns")` for NumPy's times and durations."""
    name, _, unit = str(dtype).rstrip("]").partition("[")
    return name, unit


def _from_datetime64(value: Any, unit: str) -> str:
    microseconds = value.astype("datetime64[us]")
    item = microseconds.item()
    if item is None:
        raise _Refused(_NO_TIME)
    if isinstance(item, datetime):
        if microseconds.astype(value.dtype) == value:
            return datetime.isoformat(item)
        if unit in _FINER_UNITS:
            # NumPy's own text is exact, with as many digits as the unit has.
            return _text(str.__str__(str(value)))
    raise _Refused(_NO_YEAR)


def _from_timedelta64(value: Any, unit: str) -> str:
    if value != value:
        raise _Refused(_NO_DURATION)
    if unit in _FINER_UNITS:
        return _duration(int(value.astype("int64").item()), _FINER_UNITS[unit])
    if unit not in ("us", "ms", "s", "m", "h", "D", "W"):
        length = f"in units of {unit}" if unit else "without a unit"
        raise _Refused(f"a duration {length} has no fixed length; use another unit")
    microseconds = value.astype("timedelta64[us]")
    if microseconds.astype(value.dtype) != value:
        raise _Refused("a duration of more than 292,000 years cannot be stored")
    return _duration(int(microseconds.astype("int64").item()), 6)


_EXACT: dict[type, _Converter] = {
    set: _sorted_array,
    frozenset: _sorted_array,
    deque: _copied_array,
    range: _whole_array,
    datetime: _from_datetime,
    date: _from_date,
    time: _from_time,
    timedelta: _from_timedelta,
    Decimal: _from_decimal,
    bytes: _from_bytes,
    bytearray: _from_bytes,
    memoryview: _from_bytes,
    UUID: _from_text_form,
    ipaddress.IPv4Address: _from_text_form,
    ipaddress.IPv6Address: _from_text_form,
    ipaddress.IPv4Network: _from_text_form,
    ipaddress.IPv6Network: _from_text_form,
    ipaddress.IPv4Interface: _from_text_form,
    ipaddress.IPv6Interface: _from_text_form,
}

# In this order: a member of a `str` enum is text too, a datetime is a date too, a NumPy float is a float too.
_BY_BASE: tuple[tuple[type, _Converter], ...] = (
    (enum.Enum, _from_enum),
    (str, _from_str_subclass),
    (int, _from_int_subclass),
    (float, _from_float_subclass),
    (Mapping, lambda value, depth: _mapping(value, depth)),
    (msgspec.Struct, _from_struct),
    (PurePath, _from_text_form),
    (datetime, _from_datetime),
    (date, _from_date),
    (time, _from_time),
    (timedelta, _from_timedelta),
    (Decimal, _from_decimal),
    (UUID, _from_text_form),
    (ipaddress.IPv4Address, _from_text_form),
    (ipaddress.IPv6Address, _from_text_form),
    (set, _sorted_array),
    (frozenset, _sorted_array),
    (list, _whole_array),
    (tuple, _whole_array),
    (deque, _whole_array),
    (bytes, _from_bytes),
    (bytearray, _from_bytes),
)

_PYDANTIC_ADDRESSES = ("Url", "MultiHostUrl", "_BaseUrl", "_BaseMultiHostUrl")


@lru_cache(maxsize=1024)
def _converter_for(kind: Any) -> _Converter:
    """How values of a type are converted. Decided once per type; refused types get a converter that refuses."""
    exact = _EXACT.get(kind)
    if exact is not None:
        return exact
    if hasattr(kind, "_fields") and issubclass(kind, tuple):
        return _from_named_tuple
    for base, converter in _BY_BASE:
        if issubclass(kind, base):
            return converter
    if hasattr(kind, "model_dump") and hasattr(kind, "model_fields"):
        return _from_pydantic
    if dataclasses.is_dataclass(kind):
        return _from_dataclass
    if hasattr(kind, "__attrs_attrs__"):
        return _from_attrs
    if hasattr(kind, "item"):
        return _from_scalar_array
    if any(
        base.__module__.startswith("pydantic") and base.__name__ in _PYDANTIC_ADDRESSES
        for base in kind.__mro__
    ):
        return _from_text_form
    return _refuse


_REFUSED_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    (
        (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType),
        "a function",
    ),
    ((type,), "a class"),
    ((types.ModuleType,), "a module"),
    ((types.CoroutineType,), "a coroutine"),
    ((types.GeneratorType, types.AsyncGeneratorType), "a generator"),
    ((io.IOBase,), "an open file"),
    ((complex,), "a complex number"),
)

_CURES = {
    "a coroutine": "; await it first",
    "a generator": "; use list(...), or metadata.stream(key, source) to send values as they come",
    "an open file": "; store its name or what it holds",
}


def _refuse(value: object, _depth: int) -> NoReturn:
    name = next((name for kinds, name in _REFUSED_KINDS if isinstance(value, kinds)), None)
    if name is None:
        name = "an awaitable" if inspect.isawaitable(value) else _kind_name(type(value))
    if name == "a coroutine":
        # It will never be awaited now, and must not be reported as forgotten on top of the error.
        cast("types.CoroutineType[Any, Any, Any]", value).close()
    raise _Refused(f"{name} cannot be stored{_CURES.get(name, '')}")


def _check(value: object, depth: int) -> None:
    kind = kind_of(value)
    if kind is str:
        _text(cast("str", value))
    elif kind is int:
        _integer(cast("int", value))
    elif kind is float:
        _number(cast("float", value))
    elif kind is list or kind is dict:
        if depth >= DEPTH_MAX:
            raise _TooDeep
        segment: str | int = ""
        items: Iterable[tuple[Any, object]] = (
            enumerate(cast("list[object]", value))
            if kind is list
            else cast("dict[str, object]", value).items()
        )
        try:
            for segment, item in items:
                if kind is dict:
                    if type(segment) is not str:
                        raise _Refused(_BAD_NAME.format(_kind_name(type(segment))))
                    _text(segment)
                _check(item, depth + 1)
        except _Refused as refused:
            refused.trail.append((segment, id(value)))
            raise
    elif kind is not bool and value is not None:
        raise _Refused(f"an instance of {kind.__qualname__} is not JSON")
