"""What of a document is in the search index, and where a filter looks there. Pure.

A row is (path, kind, number, text), one for each scalar and each empty container. A path is the JSON text of the names from the top;
a position in an array is `null` in it, so that equal items are one row and `$contains` is one step. A name of digits is `null` too,
because a key cannot tell which of both it means.

The index finds candidates, the document decides: a row may stand for more than one value (long texts, large integers, positions), and
where a document is too large to be indexed as a whole, a row of the kind INCOMPLETE says below which path rows are missing.
"""

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, TypeAlias, cast

import msgspec

from milepost.model.filters import Condition, MetadataFilter, Test
from milepost.model.jsonvalue import JSONValue, encode, kind_of
from milepost.model.path import Path, is_position

TEXT_CHARACTERS = 128
PATH_CHARACTERS_MAX = 256
DEPTH_MAX = 8
ARRAY_ITEMS_MAX = 100
OBJECT_NAMES_MAX = 1000
ROWS_MAX = 2000
# Terms of one filter; what goes beyond is left to the document.
TERMS_MAX = 12
# Leaves of an expected object or array that are sought.
_LEAVES_MAX = 4
# Integers up to here are the same as floats.
_EXACT_INTEGER = 2**53
# Traces of one filter; what goes beyond is left to the document.
TRACES_MAX = 6
# Numbers below it are written without an exponent.
_PLAIN_NUMBER = 1e15
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_. -]+")

IndexedValue: TypeAlias = tuple[str, int, float, str]
Segments: TypeAlias = tuple[str | None, ...]


class Kind(IntEnum):
    """What kind of value a row stands for. INCOMPLETE: a container that is not empty, some rows below whose path are missing."""

    INCOMPLETE = 0
    NULL = 1
    BOOLEAN = 2
    NUMBER = 3
    TEXT = 4
    EMPTY_ARRAY = 5
    EMPTY_OBJECT = 6


class Term(msgspec.Struct, frozen=True):
    """Rows of the index that a condition looks for. Every document that meets the condition has one of them, or is incomplete.

    Args:
        kind: None for any kind.
        is_below: any row below the path, and none at the path itself.
        low: numbers or texts from here on; with `after_low` only above it. `high` likewise.
    """

    segments: Segments
    kind: Kind | None = None
    is_below: bool = False
    low: float | str | None = None
    high: float | str | None = None
    after_low: bool = False
    before_high: bool = False

    @property
    def path(self) -> str:
        """The path as it is in the table."""
        return path_text(self.segments)

    @property
    def paths_below(self) -> tuple[str, str]:
        """The texts between which the paths below this one are."""
        opened = self.path[:-1]
        # Behind the comma comes the minus sign.
        return (f"{opened},", f"{opened}-")

    @property
    def is_point(self) -> bool:
        """True when a document can have one such row only."""
        if self.kind in (Kind.NUMBER, Kind.TEXT, Kind.BOOLEAN):
            return self.low is not None and self.low == self.high
        return self.kind is not None

    @property
    def incomplete(self) -> "list[Term]":
        """Where a document says that the row may be missing."""
        deepest = min(len(self.segments), DEPTH_MAX + 1)
        return [Term(self.segments[:length], Kind.INCOMPLETE) for length in range(deepest)]


class Terms(msgspec.Struct, frozen=True):
    """A filter as the index sees it: of each of `required` one row must be there, and none of `absent`."""

    required: list[tuple[Term, ...]]
    absent: list[Term]


def path_text(segments: Segments) -> str:
    """A path as it is in the table."""
    return encode(segments).decode()


# --- what a document has -----------------------------------------------------------------------------------

# Plain numbers: the driver takes them as they are.
_NULL, _BOOLEAN, _NUMBER, _TEXT = int(Kind.NULL), int(Kind.BOOLEAN), int(Kind.NUMBER), int(Kind.TEXT)
_INCOMPLETE, _EMPTY_ARRAY, _EMPTY_OBJECT = int(Kind.INCOMPLETE), int(Kind.EMPTY_ARRAY), int(Kind.EMPTY_OBJECT)


class _Full(Exception):
    """The document has more rows than may be."""


def values_of(document: dict[str, JSONValue]) -> set[IndexedValue]:
    """The rows of a document, at most `ROWS_MAX` and one for each container that is incomplete."""
    rows: set[IndexedValue] = set()
    try:
        _add_members(document, "[", 1, rows)
    except _Full:
        rows.add(("[]", _INCOMPLETE, 0.0, ""))
    return rows


def _add_members(container: Any, opened: str, depth: int, rows: set[IndexedValue]) -> None:
    """Add what is inside a container. `opened` is the text of its path without the closing bracket, `depth` that of its members."""
    is_object = kind_of(container) is dict
    is_complete = depth <= DEPTH_MAX and len(container) <= (
        OBJECT_NAMES_MAX if is_object else ARRAY_ITEMS_MAX
    )
    if is_complete:
        before = opened if depth == 1 else f"{opened},"
        child = f"{before}null"
        items = cast("Iterable[tuple[Any, Any]]", container.items() if is_object else enumerate(container))
        for name, value in items:
            if is_object:
                child = f"{before}null" if is_position(name) else before + encode(name).decode()
            if len(child) >= PATH_CHARACTERS_MAX:
                is_complete = False
                continue
            kind = kind_of(value)
            if kind is str:
                rows.add((f"{child}]", _TEXT, 0.0, value[:TEXT_CHARACTERS]))
            elif kind is int or kind is float:
                # Minus zero is zero.
                rows.add((f"{child}]", _NUMBER, float(value) + 0.0, ""))
            elif kind is bool:
                rows.add((f"{child}]", _BOOLEAN, float(value), ""))
            elif value is None:
                rows.add((f"{child}]", _NULL, 0.0, ""))
            elif value:
                _add_members(value, child, depth + 1, rows)
            else:
                rows.add((f"{child}]", _EMPTY_OBJECT if kind is dict else _EMPTY_ARRAY, 0.0, ""))
            if len(rows) >= ROWS_MAX:
                raise _Full
    if not is_complete:
        rows.add((f"{opened}]", _INCOMPLETE, 0.0, ""))


# --- what a filter looks for -------------------------------------------------------------------------------


def terms_of(filter: MetadataFilter) -> Terms:
    """Where the index is asked. What it does not know is left to the document."""
    required: list[tuple[Term, ...]] = []
    absent: list[Term] = []
    for condition in filter.conditions:
        places = [_segments(place) for place in condition.places]
        if condition.wants_absence:
            # A row with a position says nothing about one of them.
            absent += [term for place in places if None not in place for term in _anything(place)]
            continue
        if all(test.operator == "$exists" for test in condition.tests):
            required.append(tuple(term for place in places for term in _anything(place)))
        for segments, term in _relative(condition):
            required.append(
                tuple(msgspec.structs.replace(term, segments=(*place, *segments)) for place in places)
            )
    return Terms(list(dict.fromkeys(required))[:TERMS_MAX], list(dict.fromkeys(absent))[:TERMS_MAX])


def _segments(path: Path) -> Segments:
    return tuple(None if isinstance(segment, int) or is_position(segment) else segment for segment in path)


def _relative(condition: Condition) -> Iterator[tuple[Segments, Term]]:
    """Terms below a place: what must be there if the tests hold."""
    compared: list[Test] = []
    for test in condition.tests:
        match test.operator:
            case "$eq":
                yield from _equal(test.expected)
            case "$contains":
                for segments, term in _equal(test.expected):
                    yield (None, *segments), term
            case "$exists":
                pass
            case _:
                compared.append(test)
    for kind, wanted in ((Kind.NUMBER, (int, float)), (Kind.TEXT, str)):
        own = [test for test in compared if isinstance(test.expected, wanted)]
        if own:
            yield (), _range(kind, own)


def _anything(place: Segments) -> tuple[Term, Term]:
    """Rows that are there when anything is at the place; a container that is incomplete has one at its own path."""
    return Term(place), Term(place, is_below=True)


def _equal(expected: JSONValue) -> list[tuple[Segments, Term]]:
    leaves: list[tuple[Segments, Term]] = []
    _add_leaves(expected, (), leaves)
    return leaves


def _add_leaves(value: Any, segments: Segments, leaves: list[tuple[Segments, Term]]) -> None:
    if len(leaves) >= _LEAVES_MAX:
        return
    kind = kind_of(value)
    if value and kind is dict:
        for name, item in value.items():
            _add_leaves(item, (*segments, None if is_position(name) else name), leaves)
    elif value and kind is list:
        for item in value[:_LEAVES_MAX]:
            _add_leaves(item, (*segments, None), leaves)
    else:
        leaves.append((segments, _leaf(value)))


def _leaf(value: JSONValue) -> Term:
    kind = kind_of(value)
    if value is None:
        return Term((), Kind.NULL)
    if kind is list or kind is dict:
        return Term((), Kind.EMPTY_ARRAY if kind is list else Kind.EMPTY_OBJECT)
    if kind is str:
        text = cast("str", value)[:TEXT_CHARACTERS]
        return Term((), Kind.TEXT, low=text, high=text)
    number = float(cast("float", value)) + 0.0
    return Term((), Kind.BOOLEAN if kind is bool else Kind.NUMBER, low=number, high=number)


def _range(kind: Kind, tests: list[Test]) -> Term:
    """One range for all comparisons of a kind. Where a row may stand for several values, the bound itself is within."""
    lows: list[tuple[float | str, bool]] = []
    highs: list[tuple[float | str, bool]] = []
    for test in tests:
        bound: float | str
        if isinstance(test.expected, str):
            bound = test.expected[:TEXT_CHARACTERS]
            is_exact = len(test.expected) < TEXT_CHARACTERS
        else:
            number = cast("float", test.expected)
            bound, is_exact = float(number), abs(number) < _EXACT_INTEGER
        ends = lows if test.operator in ("$gt", "$gte") else highs
        ends.append((bound, is_exact and test.operator in ("$gt", "$lt")))
    # Of equal bounds the one that leaves the bound itself out is narrower: True is above False.
    low, after_low = max(lows, default=(None, False))
    high, before_high = min(highs, key=lambda end: (end[0], not end[1]), default=(None, False))
    return Term((), kind, low=low, high=high, after_low=after_low, before_high=before_high)


# --- what the text of a document tells ---------------------------------------------------------------------


class Trace(msgspec.Struct, frozen=True):
    """Bytes of which at least one stands in the JSON text of each document that meets a condition: `any_of`.

    Documents and operations are stored in one form of JSON only, so a text is always written alike. `is_number`: a number, which need
    not stand in the operations that lead to it, because they may add to another one.
    """

    any_of: tuple[bytes, ...]
    is_number: bool = False


def traces_of(filter: MetadataFilter) -> list[Trace]:
    """What to look for in the text of documents that are not indexed; each must be found. Empty when no text tells anything."""
    traces: list[Trace] = []
    for condition in filter.conditions:
        if condition.wants_absence:
            continue
        traces += [
            trace
            for test in condition.tests
            if test.operator in ("$eq", "$contains")
            for trace in _value_traces(test.expected)
        ]
        names = [_name_trace(place) for place in condition.places]
        if all(name is not None for name in names):
            traces.append(Trace(tuple(name for name in names if name is not None)))
    return list(dict.fromkeys(traces))[:TRACES_MAX]


def _value_traces(value: JSONValue) -> Iterator[Trace]:
    kind = kind_of(value)
    if kind is str:
        yield Trace((encode(value),))
    elif kind is int or kind is float:
        number = cast("float", value)
        # Equal numbers are written alike up to ".0", as long as they are not so large that they have an exponent.
        if abs(number) < _PLAIN_NUMBER:
            whole = int(number) == number
            yield Trace((str(abs(int(number))).encode() if whole else encode(number),), is_number=True)
    elif kind is dict:
        for item in cast("dict[str, JSONValue]", value).values():
            yield from _value_traces(item)
    elif kind is list:
        for item in cast("list[JSONValue]", value):
            yield from _value_traces(item)


def _name_trace(place: Path) -> bytes | None:
    """The longest name of a path that is written in the same way in documents and in the keys of operations."""
    names = [segment for segment in place if isinstance(segment, str) and _PLAIN_NAME.fullmatch(segment)]
    plain = [name for name in names if not is_position(name)]
    return max(plain, key=len).encode() if plain else None
