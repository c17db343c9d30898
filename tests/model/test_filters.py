"""Filters over documents: what they mean, against a second opinion; and what is refused, with words that help."""

import re
from contextlib import suppress
from datetime import date
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import InvalidRequestError, MetadataError, MetadataPathError
from milepost.model import filters as filters_module
from milepost.model.document import Document
from milepost.model.filters import FILTER_BYTES_MAX, TESTS_MAX, MetadataFilter, parse_filter
from milepost.model.jsonvalue import encode
from milepost.model.operations import Operation, Update, encode_operations
from milepost.model.path import normal, reach
from model.strategies import documents, documents_and_filters, few_documents, filters
from support.chance import KEYS, cases, hold


def plain(value: Any) -> Any:
    """A value such that Python's equality is JSON's."""
    if isinstance(value, list):
        return ("array", tuple(map(plain, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, plain(item)) for name, item in value.items()))
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    return ("number", Fraction(value))


def values_at(document: dict[str, Any], key: str) -> list[Any]:
    """What a key of the tests' filters means: names, or `$` and names and positions."""
    if not key.startswith("$"):
        ways = [[key]] if "." not in key else [[key], key.split(".")]
    else:
        ways = [key.replace("[", ".").replace("]", "").split(".")[1:]] if '"' not in key else [_quoted(key)]
    found: list[Any] = []
    for way in ways:
        value: Any = document
        for name in way:
            if isinstance(value, dict) and name in value and (f"[{name}]" not in key or key[0] != "$"):
                value = value[name]
            elif (
                isinstance(value, list)
                and name.lstrip("-").isdigit()
                and -len(value) <= int(name) < len(value)
            ):
                if name.startswith("-") and f"[{name}]" not in key:
                    break
                value = value[int(name)]
            else:
                break
        else:
            found.append(value)
    return found


def _quoted(key: str) -> list[str]:
    """`$["name"][-1]`: the name may have dots in it."""
    _, name, rest = key.split('"')
    return [name, *re.findall(r"-?[0-9]+", rest)]


def meets(value: Any, operator: str, expected: Any) -> bool:
    mine, other = plain(value), plain(expected)
    if operator == "$eq":
        return mine == other
    if operator == "$contains":
        return mine[0] == "array" and other in mine[1]
    if operator == "$exists":
        return True
    if mine[0] != other[0] or mine[0] not in ("number", "str"):
        return False
    # Python's order of texts is that of UTF-32, which is that of code points.
    left, right = (each[1].encode("utf-32-be") if mine[0] == "str" else each[1] for each in (mine, other))
    order = (left > right) - (left < right)
    return order in {"$gt": (1,), "$gte": (0, 1), "$lt": (-1,), "$lte": (-1, 0)}[operator]


def is_meant(document: dict[str, Any], filter: dict[str, Any]) -> bool:
    for key, expected in filter.items():
        is_value = not isinstance(expected, dict) or not any(name.startswith("$") for name in expected)
        tests = {"$eq": expected} if is_value else expected
        values = values_at(document, key)
        if tests.get("$exists") is False:
            if values or len(tests) > 1:
                return False
        elif not any(all(meets(value, *test) for test in tests.items()) for value in values):
            return False
    return True


@given(st.one_of(documents_and_filters, st.tuples(few_documents, filters)))
def test_a_filter_means_what_the_reference_means(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    document, filter = both
    assert parse_filter(filter).matches(document) == is_meant(document, filter)


@given(documents)
def test_a_document_is_found_by_each_of_its_values(document: dict[str, Any]) -> None:
    for name, value in list(document.items())[:10]:
        assert parse_filter({name: {"$eq": value}}).matches(document)
        assert parse_filter({name: {"$exists": True}}).matches(document)
        assert not parse_filter({name: {"$exists": False}}).matches(document)


@given(few_documents, filters, filters)
def test_more_conditions_mean_fewer_documents(
    document: dict[str, Any], filter: dict[str, Any], other: dict[str, Any]
) -> None:
    both = MetadataFilter((*parse_filter(filter).conditions, *parse_filter(other).conditions))
    assert both.matches(document) == (
        parse_filter(filter).matches(document) and parse_filter(other).matches(document)
    )


DOCUMENT = {
    "user": {"id": "user_1234", "age": 7},
    "a.b": 1,
    "a": {"b": 2},
    "done": True,
    "nothing": None,
    "big": 2**60 + 1,
    "tags": ["x", 1, [2], {"k": "v"}],
    "steps": [{"done": True}, {"done": False}],
    "text": "\U0001f600",
}


@pytest.mark.parametrize(
    "filter",
    [
        {"user.id": "user_1234"},
        {"$.user.id": "user_1234"},
        {'$["user"].id': "user_1234"},
        {"user": {"id": "user_1234", "age": 7.0}},
        {"a.b": 1},
        {"a.b": 2},
        {"$.a.b": 2},
        {'$["a.b"]': 1},
        {"done": True},
        {"nothing": None},
        {"nothing": {"$exists": True}},
        {"nobody": {"$exists": False}},
        {"user.age": {"$gt": 6, "$lte": 7}},
        {"user.id": {"$gte": "user_1", "$lt": "user_2"}},
        {"tags": {"$contains": [2]}},
        {"tags": {"$contains": {"k": "v"}}},
        {"tags": {"$contains": 1.0}},
        {"steps.0.done": True},
        {"$.steps[-1].done": False},
        {"big": {"$gt": 2**60}},
        {"text": {"$gt": "\uffff"}},
        {},
    ],
    ids=str,
)
def test_it_matches(filter: dict[str, Any]) -> None:
    assert parse_filter(filter).matches(DOCUMENT)


@pytest.mark.parametrize(
    "filter",
    [
        {"done": 1},
        {"user.age": True},
        {"user.age": {"$gt": "6"}},
        {"done": {"$gte": 0}},
        {"nothing": {"$exists": False}},
        {"a.b": {"$exists": False}},
        {"a.b": {"$gt": 1, "$lt": 2}},
        {"tags": {"$contains": True}},
        {"user.id": {"$contains": "user"}},
        {"$.a.b": 1},
        {"big": 2**60},
        {"user.id": "user_1234", "done": False},
    ],
    ids=str,
)
def test_it_does_not_match(filter: dict[str, Any]) -> None:
    assert not parse_filter(filter).matches(DOCUMENT)


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ({"a": {"$near": 1}}, "'$near' is no operator"),
        ({"a": {"$gt": 1, "b": 2}}, "'b' is no operator"),
        ({"a": {}}, "says nothing"),
        ({"a": {"$gt": True}}, "cannot compare a boolean"),
        ({"a": {"$lt": None}}, "cannot compare null"),
        ({"a": {"$lte": [1]}}, "cannot compare an array"),
        ({"a": {"$exists": 1}}, "$exists is true or false"),
        ({f"key{number}": 1 for number in range(TESTS_MAX + 1)}, f"at most {TESTS_MAX} conditions"),
        ({"a": "x" * FILTER_BYTES_MAX}, "bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_filter_is_refused_in_words(filter: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_filter(filter)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "key", ["$.a.__proto__", "a.constructor", "__proto__", "$$a", "$.", "$.a.*", "$[0]", "." * 70]
)
def test_a_wrong_key_is_refused(key: str) -> None:
    with pytest.raises(MetadataPathError) as refused:
        parse_filter({key: 1})
    assert refused.value.key == key


def depends_only_on_what_it_says(value: dict[str, Any], operations: list[Operation]) -> None:
    """Filters about places around those of the operations: what may not change the answer does not."""
    document = Document(value, limit=10**9)
    random = Random(encode_operations(operations))
    keys = {operation.key for operation in operations if not isinstance(operation, Update)}
    paths = [KEYS[key] for key in keys] + [KEYS[random.choice(list(KEYS))]]
    for operation in operations:
        key = "$" + "".join(
            f"[{segment}]" if isinstance(segment, int) else f"[{encode(segment).decode()}]"
            for segment in random.choice(paths)
        )
        found = document.get(key)
        filter = parse_filter(
            {key: random.choice([{"$exists": True}, {"$exists": False}, {"$eq": found}, {"$gt": 0}])}
        )
        before = filter.matches(document.value)
        with suppress(MetadataError):
            document.apply(operation)
        assert filter.may_depend_on(operation) or filter.matches(document.value) == before, (key, operation)


@pytest.mark.parametrize("seed", ["fixed", f"{date.today()}"], ids=["fixed", "today"])
def test_what_an_answer_may_depend_on(seed: str) -> None:
    hold(depends_only_on_what_it_says, cases(seed), 5_000)


@pytest.mark.parametrize("name", ["reach", "touch", "reach_of"])
def test_the_law_would_find_a_mistake(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {
        # A position from the end is a place of its own; what lies around does not count; nor do the elements that move.
        "reach": normal,
        "touch": lambda one, other: one == other,
        "reach_of": lambda operation: () if isinstance(operation, Update) else reach(KEYS[operation.key]),
    }
    monkeypatch.setattr(filters_module, name, wrong[name])
    with pytest.raises(AssertionError, match=r"^case "):
        hold(depends_only_on_what_it_says, cases("planted"), 20_000)


def test_as_many_conditions_as_may_be() -> None:
    assert len(parse_filter({f"key{number}": 1 for number in range(TESTS_MAX)}).conditions) == TESTS_MAX


def test_what_no_document_can_hold_is_refused() -> None:
    with pytest.raises(MetadataError):
        parse_filter({"a": float("nan")})
