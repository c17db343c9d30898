"""The laws of a document, each tried against the plain reference."""

import copy
from datetime import date
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.jsonvalue import decode, encode, json_equal, json_size
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set
from support.chance import cases, hold
from support.operations import apply

from . import strategies
from .reference import ReferenceDocument, RefusedError


def assert_sizes(document: Document) -> None:
    """Every size that a document remembers is exact."""
    assert document.size == json_size(document.value)
    for name, size in document._sizes.items():
        assert size == json_size(document.value[name]), name


operation_lists = st.one_of(strategies.lists, st.lists(strategies.operations, max_size=12))


def apply_to(document: Document, operation: Operation) -> str | None:
    try:
        document.apply(operation)
    except MetadataError as error:
        return error.code
    return None


def apply_to_reference(document: ReferenceDocument, operation: Operation) -> str | None:
    try:
        document.apply(operation, strategies.path_of(operation))
    except RefusedError as refused:
        return refused.code
    return None


def agrees_with_the_reference(
    value: dict[str, Any], operations: list[Operation], limit: int = 262_144
) -> None:
    document = Document(value, limit=limit)
    reference = ReferenceDocument(value, limit=limit, size=json_size)
    for operation in operations:
        assert apply_to(document, operation) == apply_to_reference(reference, operation)
        # The texts are compared, because 1 is 1.0 and True to Python. Key order is no part of a document.
        assert json_equal(document.value, reference.value)
        assert document.size == len(encode(document.value)) == json_size(reference.value)
        assert document.counted is not None
        assert len(document.counted) == len(reference.counted)
        assert_sizes(document)


@given(strategies.documents, operation_lists, st.one_of(st.just(262_144), st.integers(0, 120)))
@example(
    {},
    [Set("a", {"b": 9}), Increment("$.a.b", 1), Delete("$.a.b"), Append("$.a.c", 1), Append("a", 1)],
    262_144,
)
@example(
    {},
    [Append("l", [1]), Append("$.l[0]", 2), Increment("$.l[0]", 1), Set("$.l[0]", "x"), Remove("l", "x")],
    262_144,
)
def test_m17_to_m24_a_document_agrees_with_the_reference(
    value: dict[str, Any], operations: list[Operation], limit: int
) -> None:
    """The whole table, refusals, `once` and the limit; the size is exact after each step (M84), a refused
    operation leaves no trace (M85)."""
    agrees_with_the_reference(value, operations, limit)


@pytest.mark.parametrize("seed", ["fixed", f"{date.today()}"], ids=["fixed", "today"])
def test_many_random_lists_agree_with_the_reference(seed: str) -> None:
    """The same lists in every run, and others each day."""
    hold(agrees_with_the_reference, cases(seed, quarters=False), 5_000)
    limits = Random(seed)
    hold(
        lambda value, operations: agrees_with_the_reference(
            value, operations, limits.choice([0, 20, 60, 120])
        ),
        cases(f"{seed} limited"),
        2_000,
    )


@settings(max_examples=40)
@given(strategies.documents, operation_lists)
def test_law_1_the_input_is_never_changed(value: dict[str, Any], operations: list[Operation]) -> None:
    before = copy.deepcopy(value), copy.deepcopy(operations)
    apply(value, operations)
    assert encode(before[0]) == encode(value)
    assert encode(before[1]) == encode(operations)


def scribble(value: Any) -> None:
    """Change every container in a value."""
    if isinstance(value, list):
        for item in value:
            scribble(item)
        value.append("scribble")
    elif isinstance(value, dict):
        for item in value.values():
            scribble(item)
        value["scribble"] = True


@settings(max_examples=40)
@given(strategies.documents, operation_lists, st.sampled_from(list(strategies.KEYS)))
def test_m75_nothing_is_shared(value: dict[str, Any], operations: list[Operation], key: str) -> None:
    """What went in may be changed, and so may what came out; the document does not notice."""
    document = Document(value)
    for operation in operations:
        apply_to(document, operation)
    expected = document.encode()
    for operation in operations:
        scribble(getattr(operation, "value", None))
    scribble(value)
    scribble(document.get(key))
    scribble(document.copy_value())
    scribble(document.copy().value)
    assert document.encode() == expected


@settings(max_examples=40)
@given(strategies.documents, operation_lists, operation_lists)
def test_law_2_a_fold_can_be_cut_anywhere(
    value: dict[str, Any], first: list[Operation], second: list[Operation]
) -> None:
    document = Document(value)
    for operation in first:
        apply_to(document, operation)
    assert isinstance(document.counted, set)
    whole, refusals = apply(value, [*first, *second])
    half, first_refusals = apply(value, first)
    rest, second_refusals = apply(half, second, counted=document.counted)
    assert encode(whole) == encode(rest)
    shifted = [(refusal.index + len(first), refusal.message) for refusal in second_refusals]
    assert [(refusal.index, refusal.message) for refusal in refusals] == [
        *((refusal.index, refusal.message) for refusal in first_refusals),
        *shifted,
    ]


@given(strategies.documents, operation_lists, st.one_of(st.just(262_144), st.integers(0, 120)))
def test_apply_all_is_all_or_nothing(value: dict[str, Any], operations: list[Operation], limit: int) -> None:
    document = Document(value, limit=limit)
    expected = Document(value, limit=limit)
    codes = [apply_to(expected, operation) for operation in operations]
    if any(codes):
        with pytest.raises(MetadataError) as caught:
            document.apply_all(operations)
        assert caught.value.code == next(code for code in codes if code)
        expected = Document(value, limit=limit)
    else:
        document.apply_all(operations)
    assert json_equal(document.value, expected.value)
    assert document.size == expected.size
    assert document.counted == expected.counted
    assert_sizes(document)


@settings(max_examples=40)
@given(strategies.documents, operation_lists)
def test_stored_text_gives_the_same_document(value: dict[str, Any], operations: list[Operation]) -> None:
    document = Document(value)
    for operation in operations:
        apply_to(document, operation)
    loaded = Document.load(document.encode(), version=3, counted=document.counted)
    assert (loaded.encode(), loaded.size, loaded.version) == (document.encode(), document.size, 3)
    assert decode(document.encode()) == document.value


@settings(max_examples=40)
@given(strategies.documents)
def test_m85_largest_keys_are_measured_values_biggest_first(value: dict[str, Any]) -> None:
    sizes = sorted((json_size(item) for item in value.values()), reverse=True)
    largest = Document(value).largest_keys(3)
    assert [size for _, size in largest] == sizes[:3]
    assert all(json_size(value[name]) == size for name, size in largest)
