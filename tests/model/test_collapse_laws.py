"""Collapsing cannot be noticed (M30): the same document, the same reasons, fewer operations."""

import copy
from datetime import date
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milepost.model.document import Document
from milepost.model.jsonvalue import encode, json_equal, json_size
from milepost.model.operations import (
    Append,
    Delete,
    Increment,
    OpenKeys,
    Operation,
    Pending,
    Refusal,
    Remove,
    Set,
    Update,
    collapse,
    encode_operations,
    reach_of,
)
from milepost.model.path import Path, reach, touch
from support.chance import cases, hold
from support.operations import apply

from . import strategies

UNLIMITED = 10**9
ROWS = [{"n": 1}, {"n": 10}, {"n": 100}]


def reasons(refusals: list[Refusal]) -> set[tuple[str, str]]:
    return {(refusal.code, refusal.message) for refusal in refusals}


def collapses_unnoticed(value: dict[str, Any], operations: list[Operation]) -> None:
    collapsed = collapse(operations)
    assert len(collapsed) <= len(operations)
    expected, expected_refusals = apply(value, operations, limit=UNLIMITED)
    actual, actual_refusals = apply(value, collapsed, limit=UNLIMITED)
    assert json_equal(actual, expected)
    assert reasons(actual_refusals) == reasons(expected_refusals)


@settings(max_examples=300)
@given(strategies.exact_documents, strategies.exact_lists)
@example({}, [Set("$.a.b", 1), Delete("$.a.b")])
@example({"l": ROWS}, [Increment("$.l[1].n", 1), Delete("$.l[0]"), Increment("$.l[1].n", 1)])
@example({"l": ROWS}, [Increment("$.l[1].n", 1), Delete("$.l.0"), Increment("$.l[1].n", 1)])
@example({"l": ROWS}, [Set("$.l[-1].n", 1), Set("$.l[2].n", 2), Set("$.l[-1].n", 3)])
@example({}, [Set("n", 1), Append("n", 2), Increment("n", 1)])
@example({}, [Update({"a": 1}), Set("$.a.b", 1), Update({})])
@example({}, [Update({}), Append("l", 1, 1), Append("l", 2, 1), Update({})])
@example({"l": [{"n": 1}, {"n": 2}]}, [Increment("$.l[0].n", 1), Delete("$.l[0]"), Increment("$.l[0].n", 1)])
@example({"l": [1, 2, 3]}, [Delete("$.l[0]"), Delete("$.l[0]")])
@example({"l": "x"}, [Append("l", 1, 2), Append("l", 2, 2), Append("l", 3, 2)])
@example({"n": "x"}, [Increment("n", 1), Set("n", 1), Increment("n", 2), Set("n", 3)])
@example({}, [Set("n", 1), Increment("$.n", 1), Set("n", 2), Increment("$.n", 1)])
@example({}, [Increment("n", 1, "one"), Increment("n", 1, "one"), Set("n", 0), Increment("n", 1, "one")])
@example({}, [Append("l", 1, None, "one"), Set("l", []), Append("l", 1, None, "one")])
@example({}, [Update({}), Append("l", 1, 2, "one"), Update({}), Append("l", 1, 2, "one")])
@example({}, [Append("l", 1, 1), Append("l", 2, 1), Append("l", 3), Set("l", "cleared")])
@example({}, [Append("l", 1, 1), Append("l", 2, 1), Append("l", 3, 2), Delete("l")])
@example({}, [Set("2", [1]), Set("$.2[-1]", 5), Set("2", [9])])
@example({}, [Append("$.2.rows", 1), Set("$.2.rows[-1]", 2), Set("$.2.rows", [])])
@example({"a": 1}, [Update({}), Increment("a", 1), Update({"a": "x"}), Increment("a", 1), Update({})])
def test_m30_collapsing_cannot_be_noticed(value: dict[str, Any], operations: list[Operation]) -> None:
    collapses_unnoticed(value, operations)


@settings(max_examples=200)
@given(strategies.exact_documents, strategies.exact_pairs)
@example({}, [Set("2", [1]), Set("$.2[-1]", 5)])
@example({"l": [1, 2]}, [Set("$.l[1]", 3), Delete("$.l.0")])
@example({"l": [{"n": 1}]}, [Set("$.l[0].n", 3), Set("$.l.0.n", 4)])
@example({"l": [1]}, [Set("$.l[5]", 3), Append("$.l", 4)])
def test_law_7_what_does_not_touch_can_change_places(
    value: dict[str, Any], operations: list[Operation]
) -> None:
    changes_places(value, operations)


def changes_places(value: dict[str, Any], operations: list[Operation]) -> None:
    one, other = operations[0], operations[-1]
    if touch(reach_of(one), reach_of(other)):
        return
    first, refusals = apply(value, [one, other], limit=UNLIMITED)
    second, other_refusals = apply(value, [other, one], limit=UNLIMITED)
    assert json_equal(first, second)
    assert reasons(refusals) == reasons(other_refusals)


@given(st.lists(st.sampled_from(list(strategies.KEYS)), min_size=1, max_size=12), st.data())
def test_open_keys_that_touch_are_found(added: list[str], data: st.DataObject) -> None:
    """The index against looking at each of them."""
    keys = OpenKeys()
    here: dict[str, Path] = {}
    for key in added:
        place = reach(strategies.KEYS[key])
        touching = [other for other, there in here.items() if touch(place, there)]
        assert sorted(keys.pop_touching(place)) == sorted(touching)
        for other in touching:
            del here[other]
        if data.draw(st.booleans()):
            keys.add(key, place)
            here[key] = place
        assert len(keys) == len(here)


@given(
    st.dictionaries(st.sampled_from(["a", "n", "2"]), strategies.values, max_size=2),
    strategies.related_keys.flatmap(
        lambda keys: st.lists(
            strategies.operations_on(
                st.sampled_from(keys),
                strategies.values,
                st.one_of(st.integers(-3, 3), strategies.floats),
                strategies.documents,
            ),
            max_size=16,
        )
    ),
)
@example({"n": 2.0**53}, [Increment("n", 1), Increment("n", 1), Increment("n", 1)])
@example({"l": [{"n": 0}, {"n": 2.0**53}, {"n": 1}]}, [*[Increment("$.l[1].n", 1)] * 3, Delete("$.l[0]")])
def test_m30_collapsing_is_exact_where_the_result_is_known(
    value: dict[str, Any], operations: list[Operation]
) -> None:
    collapses_exactly_where_the_result_is_known(value, operations)


def collapses_exactly_where_the_result_is_known(value: dict[str, Any], operations: list[Operation]) -> None:
    """Any floats: integers are then not summed over them. Only operations that were applied are in such a list."""
    document = Document(value, limit=UNLIMITED)
    _, refusals = apply(value, operations, limit=UNLIMITED)
    refused = {refusal.index for refusal in refusals}
    applied = [operation for index, operation in enumerate(operations) if index not in refused]
    document.apply_all(applied)
    collapsed = collapse(applied, result=document.value)
    copied = Document(value, limit=UNLIMITED)
    copied.apply_all(collapsed)
    assert json_equal(copied.value, document.value)


def test_m30_integers_added_to_a_float_are_summed_first() -> None:
    """The one difference away from the limit, written down: the sum is the more exact one."""
    operations: list[Operation] = [Increment("n", 1), Increment("n", 1)]
    big = 2.0**53
    assert apply({"n": big}, operations)[0] == {"n": big}
    assert apply({"n": big}, collapse(operations))[0] == {"n": big + 2}
    assert apply({"n": big}, collapse(operations, result={"n": big}))[0] == {"n": big}


@given(strategies.exact_documents, strategies.exact_lists, st.integers(0, 400))
def test_m30_away_from_the_limit(value: dict[str, Any], operations: list[Operation], limit: int) -> None:
    """If neither list meets the limit nothing is noticed, and with enough room neither does."""
    collapsed = collapse(operations)
    expected, expected_refusals = apply(value, operations, limit=limit)
    actual, actual_refusals = apply(value, collapsed, limit=limit)
    codes = {refusal.code for refusal in (*expected_refusals, *actual_refusals)}
    if limit >= json_size(value) + 3 * len(encode_operations(operations)):
        assert "metadata_too_large" not in codes
    if "metadata_too_large" not in codes:
        assert json_equal(actual, expected)
        assert reasons(actual_refusals) == reasons(expected_refusals)


def test_a_much_larger_set_leaves_the_earlier_one_standing() -> None:
    operations: list[Operation] = [Set("status", "short"), Set("status", "x" * 1000)]
    assert collapse(operations) == operations
    assert apply({}, collapse(operations), limit=500)[0] == {"status": "short"}
    # Twice the size of the first one that stood there, however small the steps.
    lengths = (100, 190, 300, 590, 700)
    steps: list[Operation] = [Set("k", "x" * length) for length in lengths]
    assert [operation.value for operation in collapse(steps) if isinstance(operation, Set)] == [
        "x" * 190,
        "x" * 590,
        "x" * 700,
    ]
    documents: list[Operation] = [Update({"k": "x" * length}) for length in lengths]
    assert collapse(documents) == [documents[1], documents[3], documents[4]]


def test_m30_a_merged_sum_overflows_no_sooner_than_its_parts() -> None:
    operations: list[Operation] = [Increment("n", 2**62)] * 4
    assert collapse(operations) == operations
    huge: list[Operation] = [Increment("n", 10**308), Increment("n", 10**308), Increment("n", -(10**308))]
    assert collapse(huge) == huge
    for value in ({"n": 1e308}, {"n": 1}):
        assert apply(value, collapse(huge)) == apply(value, huge)


def pending_is_collapse(value: dict[str, Any], operations: list[Operation]) -> None:
    pending = Pending()
    for operation in (Update(value), *operations[::-1]):
        pending.add(operation)
    pending.take()
    assert (len(pending), pending.operations, pending.size_bytes) == (0, [], 0)
    for index, operation in enumerate(operations):
        pending.add(operation)
        if index % 3:
            assert len(pending.operations) == len(pending)
    expected = collapse(operations)
    assert len(pending) == len(expected)
    assert pending.take() == expected


@settings(max_examples=60)
@given(strategies.exact_documents, strategies.exact_lists)
def test_law_6_pending_is_collapse_while_it_grows(value: dict[str, Any], operations: list[Operation]) -> None:
    """Looking at the list on the way changes nothing, and neither does what was taken before."""
    pending_is_collapse(value, operations)


@pytest.mark.parametrize("seed", ["fixed", f"{date.today()}"], ids=["fixed", "today"])
def test_m30_many_random_lists(seed: str) -> None:
    """The same lists in every run, and others each day."""
    hold(collapses_unnoticed, cases(seed), 20_000)
    hold(pending_is_collapse, cases(seed), 2_000)
    hold(changes_places, cases(seed), 10_000)
    hold(collapses_exactly_where_the_result_is_known, cases(seed, quarters=False), 10_000)


@settings(max_examples=40)
@given(strategies.exact_lists)
@example([Append("l", "x" * 200, 1), Append("l", "y", 1), Set("l", 1)])
def test_the_bytes_held_are_those_of_what_is_left(operations: list[Operation]) -> None:
    """However it came about, the sum is as if only what is left had been added."""
    pending = Pending()
    for operation in operations:
        pending.add(operation)
    total = 0
    for operation in pending.operations:
        alone = Pending()
        alone.add(operation)
        total += alone.size_bytes
    assert pending.size_bytes == total


@settings(max_examples=40)
@given(strategies.exact_lists)
def test_law_1_collapsing_changes_no_operation(operations: list[Operation]) -> None:
    before = copy.deepcopy(operations)
    collapse(operations)
    assert encode(operations) == encode(before)


# --- what has to become short -------------------------------------------------------------------------------


def test_m30_ten_thousand_increments_are_one_operation() -> None:
    operations: list[Operation] = []
    for index in range(10_000):
        operations += [Increment("done", 1), Set("step", index), Increment("$.by.kind", 2)]
    assert collapse(operations) == [
        Increment("done", 10_000),
        Set("step", 9_999),
        Increment("$.by.kind", 20_000),
    ]


def test_m30_float_increments_are_never_summed() -> None:
    operations: list[Operation] = [Increment("n", 0.1), Increment("n", 0.2), Increment("n", 0.3)]
    assert collapse(operations) == operations


def test_m30_nothing_is_merged_across_what_touches_the_key() -> None:
    for between in (
        Remove("n", 1),
        Increment("n", 1, "id"),
        Set("$.n.x", 1),
        Increment("$.n", 1),
        Update({}),
    ):
        operations: list[Operation] = [Increment("n", 1), between, Increment("n", 1)]
        assert collapse(operations) == operations


def test_a_number_is_added_to_the_set_before_it() -> None:
    assert collapse([Set("n", 1), Increment("n", 2), Increment("n", 0.5)]) == [Set("n", 3.5)]
    for value in ("1", True, None, [1]):
        assert len(collapse([Set("n", value), Increment("n", 2)])) == 2


@given(strategies.exact_lists, strategies.exact_operations)
@example([Append("l", 1, 1)], Append("l", 2, 1))
@example([Update({})], Update({}))
@example([Increment("n", 1)], Increment("n", -1))
def test_m36_what_is_absorbed_is_held_in_the_place_of_something(
    operations: list[Operation], newest: Operation
) -> None:
    pending = Pending()
    for operation in operations:
        pending.add(operation)
    count, absorbs = len(pending), pending.absorbs(newest)
    pending.add(newest)
    assert not absorbs or len(pending) <= count


def test_m36_what_is_called_in_loops_is_absorbed() -> None:
    pending = Pending()
    loop = [Set("s", "x"), Increment("n", 1), Append("l", "x", 2), Delete("d")]
    for operation in [*loop, *loop]:
        pending.add(operation)
    assert all(pending.absorbs(operation) for operation in loop)
    others = [
        Set("t", 1),
        Increment("n", 0.5),
        Increment("n", 1, "id"),
        Append("l", "x"),
        Remove("l", "x"),
        Set("s", "x" * 99),
    ]
    assert not any(pending.absorbs(operation) for operation in others)


def test_deleting_twice_is_deleting_once_but_not_in_an_array() -> None:
    assert collapse([Delete("a"), Delete("a")]) == [Delete("a")]
    assert collapse([Delete("$.a.b"), Delete("$.a.b")]) == [Delete("$.a.b")]
    assert len(collapse([Delete("$.a[0]"), Delete("$.a[0]")])) == 2
    assert len(collapse([Delete("$.a.0"), Delete("$.a.0")])) == 2


def test_capped_appends_keep_the_newest() -> None:
    operations: list[Operation] = [Append("log", index, 3) for index in range(10)]
    assert collapse(operations) == [Append("log", 7, 3), Append("log", 8, 3), Append("log", 9, 3)]
    mixed: list[Operation] = [
        Append("log", 1, 2),
        Append("log", 2, 3),
        Append("log", 3, 2),
        Append("log", 4, 2),
    ]
    assert collapse(mixed) == mixed[2:]
    growing: list[Operation] = [Append("log", 1, 1), Append("log", 2), Append("log", 3, 3), Append("log", 4)]
    assert collapse(growing) == growing
    assert collapse([*growing, Append("log", 5, 2)]) == [growing[3], Append("log", 5, 2)]


def test_m36_a_million_calls_hold_bounded_memory() -> None:
    """Sets, increments and capped appends in turns over a fixed set of places, among them growing and shrinking values."""
    pending = Pending()
    entries_max = 0
    bytes_max = 0
    for index in range(100_000):
        pending.add(Set("step", index))
        pending.add(Increment("done", 1))
        pending.add(Append("log", "line", 10))
        pending.add(Set("$.now.file", "x" * (index % 7 * 40)))
        pending.add(Increment("$.now.bytes", 4096))
        pending.add(Append("$.now.errors", {"at": index}, 3))
        pending.add(Increment("$.workers[0].done", 1))
        pending.add(Increment("$.workers[1].done", 1))
        pending.add(Set("batch", 0) if index % 5 == 0 else Increment("batch", 1))
        pending.add(Set("recent", []) if index % 50 == 0 else Append("recent", index, 4))
        if index % 1000 == 0:
            entries_max = max(entries_max, len(pending))
            bytes_max = max(bytes_max, pending.size_bytes)
    assert len(pending) == len(pending.operations)
    assert entries_max < 60
    assert bytes_max < 10_000
    document = Document({"workers": [{}, {}]})
    document.apply_all(pending.take())
    assert document.get("step") == 99_999
    assert document.get("done") == 100_000
    assert document.get("$.now.bytes") == 409_600_000
    assert document.get("$.workers[1].done") == 100_000
    assert document.get("batch") == 4
    assert document.get("recent") == [99_996, 99_997, 99_998, 99_999]


def test_m36_a_text_that_grows_and_a_document_that_is_replaced_hold_bounded_memory() -> None:
    pending = Pending()
    for index in range(2_000):
        pending.add(Set("text", "token " * index))
        pending.add(Update({"step": index, "text": "token " * index}))
    assert len(pending) <= 16
    assert pending.size_bytes < 4 * 6 * 2_000


@settings(max_examples=40)
@given(st.lists(strategies.exact_operations, max_size=40))
def test_collapsing_twice_is_collapsing_once_to_a_reader(operations: list[Operation]) -> None:
    once = collapse(operations)
    assert json_equal(apply({}, collapse(once))[0], apply({}, once)[0])


@given(strategies.exact_lists)
def test_a_single_operation_is_what_it_is(operations: list[Operation]) -> None:
    """`collapse` does not look at it; what it would have come to is the same."""
    for operation in operations:
        pending = Pending()
        pending.add(operation)
        assert pending.take() == collapse([operation]) == [operation]
