"""Filters: which documents a search means (contract, section 13). Pure: a filter is read once and then asked about documents.

    {"user.id": "user_1234", "progress": {"$gte": 50, "$lt": 90}, "$.tags": {"$contains": "vip"}}

A key that starts with `$.` or `$[` is a path, as everywhere (M18). Any other key means the literal name at the top level or, where it
has dots, the path of the names between them: `user.id` is the key `user.id` or `$.user.id`, and either may match. What is expected is
a JSON value, which must be equal (M22), or an object of operators, all of which must hold for what is at the key:

    $eq         equal, for expected values that would look like operators
    $gt $gte $lt $lte   numbers with numbers, texts with texts (by code point); anything else does not match
    $exists     true: something is there, null too; false: nothing is
    $contains   an array with an equal item is there
"""

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Any, Literal, TypeAlias, cast

import msgspec

from milepost.errors import InvalidRequestError, MetadataError
from milepost.model.jsonvalue import JSONValue, check_json, describe, encode, json_equal, json_size, kind_of
from milepost.model.operations import Operation, reach_of
from milepost.model.path import MISSING, Path, find, parse, reach, touch

TESTS_MAX = 20
"""Tests in one filter: an expected value is one, and so is each operator."""

FILTER_BYTES_MAX = 16 * 1024
"""Length of a filter as compact JSON; it travels in the address of a request."""

Operator: TypeAlias = Literal["$eq", "$gt", "$gte", "$lt", "$lte", "$exists", "$contains"]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
_OPERATORS = ("$eq", *_COMPARISONS, "$exists", "$contains")
_NUMBERS = (int, float)


class Test(msgspec.Struct, frozen=True):
    """One operator and what it expects."""

    operator: Operator
    expected: JSONValue

    def holds_for(self, value: JSONValue) -> bool:
        """True when a value that is there passes the test."""
        match self.operator:
            case "$eq":
                return json_equal(value, self.expected)
            case "$exists":
                return self.expected is True
            case "$contains":
                return kind_of(value) is list and any(
                    json_equal(item, self.expected) for item in cast("list[JSONValue]", value)
                )
            case operator:
                return are_comparable(value, self.expected) and _COMPARISONS[operator](value, self.expected)


class Condition(msgspec.Struct, frozen=True):
    """A key with its tests. `places` are the paths that the key may mean; `wants_absence` is true when nothing may be there."""

    key: str
    places: tuple[Path, ...]
    tests: tuple[Test, ...]
    wants_absence: bool

    def matches(self, document: JSONValue) -> bool:
        """True when all tests hold for what is at one of the places."""
        # Written out: a search may ask this of a hundred thousand documents.
        if self.wants_absence:
            return all(find(document, place) is MISSING for place in self.places) and all(
                test.operator == "$exists" and not test.expected for test in self.tests
            )
        for place in self.places:
            value = find(document, place)
            if value is MISSING:
                continue
            for test in self.tests:
                if not test.holds_for(value):
                    break
            else:
                return True
        return False


class MetadataFilter(msgspec.Struct, frozen=True):
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    def matches(self, document: JSONValue) -> bool:
        """True when the document is one that the filter means."""
        for condition in self.conditions:  # noqa: SIM110
            if not condition.matches(document):
                return False
        return True

    def may_depend_on(self, operation: Operation) -> bool:
        """False when the operation, applied to any document, leaves it with the filter as it was: matching or not.

        For who knows that of the document before: most operations are about another place, and then the document need not be read.
        """
        written = reach_of(operation)
        return any(
            touch(written, reach(place)) for condition in self.conditions for place in condition.places
        )


def are_comparable(left: JSONValue, right: JSONValue) -> bool:
    """True for two numbers and for two texts; a boolean is neither."""
    if kind_of(left) is str:
        return kind_of(right) is str
    return type(left) in _NUMBERS and type(right) in _NUMBERS


def parse_filter(filter: Mapping[str, JSONValue]) -> MetadataFilter:
    """Read a filter.

    Args:
        filter: key to expected value, already JSON; see this module's own words.
    Raises:
        InvalidRequestError: an unknown operator, an operand of the wrong kind, more than `TESTS_MAX` tests, more than
            `FILTER_BYTES_MAX` bytes.
        MetadataPathError: a key that is malformed, forbidden or reserved.
        MetadataValueError: an expected value that could not be in any document.
    """
    check_json(filter, place="the filter")
    conditions = tuple(_condition(key, expected) for key, expected in filter.items())
    count = sum(len(condition.tests) for condition in conditions)
    if count > TESTS_MAX:
        raise InvalidRequestError(
            f"a metadata filter has at most {TESTS_MAX} conditions, not {count}: filter by the most telling ones",
            limit=TESTS_MAX,
        )
    size = json_size(cast("JSONValue", filter))
    if size > FILTER_BYTES_MAX:
        raise InvalidRequestError(
            f"a metadata filter has at most {FILTER_BYTES_MAX:,} bytes as JSON, not {size:,}",
            limit=FILTER_BYTES_MAX,
        )
    return MetadataFilter(conditions)


def _condition(key: str, expected: JSONValue) -> Condition:
    places, tests = _places(key), _tests(key, expected)
    wants_absence = any(test.operator == "$exists" and test.expected is False for test in tests)
    return Condition(key, places, tests, wants_absence)


def _places(key: str) -> tuple[Path, ...]:
    literal = parse(key)
    if key.startswith(("$.", "$[")) or "." not in key:
        return (literal,)
    try:
        dotted = parse("$" + "".join(f"[{encode(name).decode()}]" for name in key.split(".")))
    except MetadataError as error:
        error.key = key
        raise
    return literal, dotted


def _tests(key: str, expected: JSONValue) -> tuple[Test, ...]:
    if kind_of(expected) is not dict:
        return (Test("$eq", expected),)
    operators = cast("dict[str, JSONValue]", expected)
    if not operators:
        raise InvalidRequestError(
            f"{key!r:.100}: an empty object says nothing; write {{'$exists': true}} for anything, {{'$eq': {{}}}} for an empty object"
        )
    if not any(name.startswith("$") for name in operators):
        return (Test("$eq", expected),)
    return tuple(_test(key, name, operand) for name, operand in operators.items())


def _test(key: str, name: str, operand: JSONValue) -> Test:
    if name not in _OPERATORS:
        known = ", ".join(_OPERATORS)
        raise InvalidRequestError(
            f"{key!r:.100}: {name!r:.100} is no operator of a metadata filter, use {known}; "
            f'an object that is meant as a value is written {{"$eq": ...}}'
        )
    if name in _COMPARISONS and kind_of(operand) is not str and type(operand) not in _NUMBERS:
        raise InvalidRequestError(
            f"{key!r:.100}: {name} compares numbers with numbers and texts with texts, and cannot compare {describe(operand)}"
        )
    if name == "$exists" and kind_of(operand) is not bool:
        raise InvalidRequestError(f"{key!r:.100}: $exists is true or false, not {describe(operand)}")
    return Test(cast("Operator", name), operand)
