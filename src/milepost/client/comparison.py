"""Whether a value came back equal, and if not, where it differs: the last step before something is sent by its annotation."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from math import isfinite
from typing import Any, cast

import msgspec

from milepost.errors import MetadataValueError
from milepost.model.jsonvalue import JSONValue, json_equal, to_json
from milepost.model.typed import describe_place

Place = tuple[str | int, ...]
"""Where inside a value: names of fields and keys, positions of items."""

DEPTH_MAX = 200
_SHOWN_CHARACTERS = 60


def difference(
    sent: object, back: object, is_untyped: Callable[[Place, object], bool], again: Callable[[], object]
) -> tuple[str, str] | None:
    """The first place at which two values differ, and how; None when they are equal.

    Args:
        is_untyped: whether the annotation says nothing about a place (Any). There the plain JSON of what was sent is to come back.
        again: reads what was written another time. A private attribute that is made anew on each reading cannot be compared.
    """
    if is_equal(sent, back):
        return None
    found = _Comparison(is_untyped).between(sent, back, again(), ())
    return None if found is None else (describe_place(found[0]), found[1])


def is_equal(left: Any, right: Any) -> bool:
    """`left == right`, whatever the values make of that."""
    try:
        return left is right or bool(left == right)
    except Exception:  # comparing is up to the user's classes
        return False


class _Comparison:
    def __init__(self, is_untyped: Callable[[Place, object], bool]) -> None:
        self._is_untyped = is_untyped

    def between(self, sent: Any, back: Any, again: Any, place: Place) -> tuple[Place, str] | None:
        if is_equal(sent, back):
            return None
        if self._is_untyped(place, sent) and _is_plain_form(sent, back):
            return None
        if isinstance(sent, float) and not isfinite(sent):
            return place, f"{sent} cannot be stored, because JSON has no such number"
        if isinstance(sent, datetime) and isinstance(back, datetime):
            return None if _is_same_time(sent, back) else (place, _unequal(sent, back))
        if type(sent) is not type(back):
            return place, f"{_kind(sent)} comes back as {_kind(back)}"
        if len(place) >= DEPTH_MAX:
            return place, "does not come back equal"
        if isinstance(sent, Mapping):
            return self._between_mappings(sent, back, again, place)
        if isinstance(sent, list | tuple | deque) and not hasattr(cast("Any", sent), "_fields"):
            items = cast("Sequence[Any]", sent)
            if len(items) != len(back):
                return place, f"{len(items)} items come back as {len(back)}"
            others = again if type(again) is type(back) and len(again) == len(back) else back
            return self._first(
                self.between(ours, theirs, other, (*place, index))
                for index, (ours, theirs, other) in enumerate(zip(items, back, others, strict=True))
            )
        if isinstance(sent, Set | str | bytes | int | float):
            return place, _unequal(cast("object", sent), back)
        return self._between_objects(sent, back, again, place)

    def _between_mappings(self, sent: Any, back: Any, again: Any, place: Place) -> tuple[Place, str] | None:
        for key in sent:
            if key not in back:
                return (*place, _segment(key)), "is lost on the way, or comes back under another key"
        for key in back:
            if key not in sent:
                return (*place, _segment(key)), "was not there before"
        return self._first(
            self.between(value, back[key], _member(again, key, back[key]), (*place, _segment(key)))
            for key, value in sent.items()
        )

    def _between_objects(self, sent: Any, back: Any, again: Any, place: Place) -> tuple[Place, str] | None:
        names, private = _fields_of(sent)
        if names is None:
            return place, _unequal(sent, back)
        for name in names:
            ours, theirs = getattr(sent, name, _ABSENT), getattr(back, name, _ABSENT)
            found = self.between(ours, theirs, getattr(again, name, theirs), (*place, name))
            if found is not None:
                return found
        for name in private:
            ours, theirs = getattr(sent, name, _ABSENT), getattr(back, name, _ABSENT)
            if self.between(ours, theirs, theirs, place) is None:
                continue
            if is_equal(getattr(again, name, theirs), theirs):
                return (
                    *place,
                    name,
                ), "is a private attribute, which is not sent, and has another value than a new object has"
        extra, extra_back = (
            getattr(sent, "__pydantic_extra__", None),
            getattr(back, "__pydantic_extra__", None),
        )
        if extra or extra_back:
            return self._between_mappings(extra or {}, extra_back or {}, extra_back or {}, place)
        return None

    @staticmethod
    def _first(found: Any) -> tuple[Place, str] | None:
        return next((one for one in found if one is not None), None)


_ABSENT = object()


def _fields_of(value: Any) -> tuple[list[str] | None, list[str]]:
    """The names of an object's fields, None for an object that shows none, and of its private attributes."""
    if hasattr(value, "__private_attributes__"):
        # A model of Pydantic's, which need not be loaded to be told from all others.
        kind = cast("Any", type(value))
        return list(kind.model_fields), list(kind.__private_attributes__)
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__), []
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)], []
    if hasattr(value, "__attrs_attrs__"):
        return [attribute.name for attribute in value.__attrs_attrs__], []
    if hasattr(value, "_fields") and isinstance(value, tuple):
        return list(cast("Any", value)._fields), []
    if type(value).__eq__ is object.__eq__:
        # Equal only to itself, so what is in it has to do.
        slots = [name for kind in type(value).__mro__ for name in _slots_of(kind)]
        return [*getattr(value, "__dict__", {}), *slots], []
    return None, []


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _member(container: Any, key: Any, default: Any) -> Any:
    try:
        return container[key]
    except (KeyError, TypeError, IndexError):
        return default


def _segment(key: object) -> str:
    return key if isinstance(key, str) else repr(key)[:_SHOWN_CHARACTERS]


def _is_plain_form(sent: object, back: Any) -> bool:
    try:
        return json_equal(to_json(sent), cast("JSONValue", back))
    except MetadataValueError:
        return False


def _is_same_time(sent: datetime, back: datetime) -> bool:
    # Python calls two times of different zones unequal around a change of the clocks, whatever they are.
    try:
        if sent.utcoffset() is None or back.utcoffset() is None:
            return False
        return sent.utcoffset() == back.utcoffset() and sent.replace(tzinfo=None) == back.replace(tzinfo=None)
    except Exception:  # a time zone of the user's
        return False


def _kind(value: object) -> str:
    return "None" if value is None else f"an instance of {type(value).__qualname__}"


def _unequal(sent: object, back: object) -> str:
    return f"{_shown(sent)} comes back as {_shown(back)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a __repr__ of the user's
        text = _kind(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
