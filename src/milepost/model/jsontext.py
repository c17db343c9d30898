"""JSON text that somebody else wrote and that is kept as it came: payloads, outputs.

What is accepted has to be readable by everyone who may ask for it later: this package, Python's own `json`, msgspec, a browser's
`JSON.parse`, the dashboard. The one rule for all of them, and the one check, are here. A value that is decoded at the door and
encoded anew, such as a metadata document, has the same rule in `jsonvalue.check_json`.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, cast

import msgspec

from milepost.model.jsonvalue import DEPTH_MAX, INTEGER_MAX, JSONValue, decode, kind_of

__all__ = ["JSONTextError", "find_fault", "read_text"]

# A shorter text holds no integer that is too large, and one with fewer brackets is not nested too deeply.
_DIGITS_MIN: Final = len(str(INTEGER_MAX))
_TOO_DEEP: Final = f"nested more than {DEPTH_MAX} levels deep"
_DIGITS_TRIED: Final = 400
_PLACE_SHOWN: Final = 80


class JSONTextError(ValueError):
    """The text is not JSON, or JSON that not every reader can read; the message names the place."""


def read_text(text: str, *, place: str) -> JSONValue:
    """The value in a JSON text that every reader can read.

    Refused beside what is not JSON at all (NaN, Infinity, lone surrogates and control characters included): numbers beyond a 64-bit
    float, integers of more than 1,024 bits, more than `DEPTH_MAX` levels of nesting. A name that stands twice in an object is no
    fault: every reader takes the last one.

    Args:
        place: what to call the text in the message: `payload` gives `payload.rows[3]: ...`.
    Raises: JSONTextError.
    """
    try:
        value = decode(text)
    except RecursionError:
        raise JSONTextError(f"{place}: {_TOO_DEEP}") from None
    except msgspec.DecodeError as error:
        raise JSONTextError(_explain(text, place, error)) from None
    if len(text) >= _DIGITS_MIN or text.count("[") + text.count("{") > DEPTH_MAX:
        _check(value, place)
    return value


def _check(value: JSONValue, place: str) -> None:
    """Level by level, because texts may be long and this is the quickest way to see all of them."""
    level: list[Any] = [value]
    for depth in range(DEPTH_MAX + 1):
        below: list[Any] = []
        for item in level:
            kind = kind_of(item)
            if kind is dict or kind is list:
                if depth == DEPTH_MAX:
                    raise JSONTextError(_fault(value, place, 0) or place)
                below += item.values() if kind is dict else item
            elif kind is int and not -INTEGER_MAX <= item <= INTEGER_MAX:
                raise JSONTextError(_fault(value, place, 0) or place)
        if not below:
            return
        level = below


def find_fault(text: str | bytes, *, place: str) -> str | None:
    """What in a text not every reader can read, with its place; None when there is no such thing, or the text is not JSON at all.

    It reads by a reader that takes more than JSON and so comes to the place; slow, for error messages.
    """
    try:
        value = json.loads(text, parse_float=float, parse_int=_integer, parse_constant=float)
    except (ValueError, RecursionError):
        return None
    return _fault(value, place, 0)


def _explain(text: str, place: str, error: msgspec.DecodeError) -> str:
    return find_fault(text, place=place) or f"{place} is not JSON: {error}"


def _integer(digits: str) -> int:
    # Python refuses to read thousands of digits, and reading them takes quadratic time.
    return int(digits) if len(digits) < _DIGITS_TRIED else INTEGER_MAX + 1


def _fault(value: object, place: str, depth: int) -> str | None:
    """The first thing that not every reader can read, with its place; None when there is nothing."""
    fault = _own_fault(value, depth)
    if fault is not None:
        # Of a place that is far inside, beginning and end tell enough.
        where = (
            place if len(place) <= 2 * _PLACE_SHOWN else f"{place[:_PLACE_SHOWN]}...{place[-_PLACE_SHOWN:]}"
        )
        return f"{where}: {fault}"
    if isinstance(value, list):
        items = ((f"{place}[{index}]", item) for index, item in enumerate(cast("list[object]", value)))
    elif isinstance(value, dict):
        dot = "." if place else ""
        named = cast("dict[str, object]", value)
        items = ((f"{place}{dot}{_printable(name):.80}", item) for name, item in named.items())
    else:
        return None
    return next(filter(None, (_fault(item, where, depth + 1) for where, item in items)), None)


def _own_fault(value: object, depth: int) -> str | None:
    """What is wrong with a value itself, and not with a part of it."""
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN is not JSON"
        if math.isinf(value):
            return "a number beyond what a 64-bit float can hold (about 1.8e308)"
    elif isinstance(value, int):
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            return "an integer of more than 1,024 bits, which JSON readers take for infinity"
    elif isinstance(value, str):
        return None if _has_utf8(value) else "text with a lone surrogate, which has no UTF-8 form"
    elif isinstance(value, dict | list):
        if depth >= DEPTH_MAX:
            return _TOO_DEEP
        if isinstance(value, dict) and not all(map(_has_utf8, cast("dict[str, object]", value))):
            return "a name with a lone surrogate, which has no UTF-8 form"
    return None


def _has_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
