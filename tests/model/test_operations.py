"""Operations on the wire and their checks."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import MetadataError, MetadataPathError, MetadataTypeError, MetadataValueError
from milepost.model.jsonvalue import INTEGER_MAX, encode
from milepost.model.operations import (
    Append,
    Delete,
    Increment,
    Operation,
    Refusal,
    Remove,
    Set,
    Update,
    check,
    decode_each,
    decode_operations,
    encode_operations,
)
from support.operations import apply

from . import strategies


@given(st.lists(strategies.operations, max_size=8))
def test_operations_survive_the_wire(operations: list[Operation]) -> None:
    data = encode_operations(operations)
    assert encode_operations(decode_operations(data)) == data
    assert encode_operations(typed(decode_each(data))) == data
    assert [type(operation) for operation in decode_operations(data)] == [type(item) for item in operations]


def typed(items: list[Operation | Refusal]) -> list[Operation]:
    assert not any(isinstance(item, Refusal) for item in items)
    return [item for item in items if not isinstance(item, Refusal)]


def test_the_wire_form_of_the_contract() -> None:
    operations: list[Operation] = [
        Set("k", None),
        Delete("k"),
        Append("k", 1),
        Append("k", 1, 3),
        Remove("k", "é"),
        Increment("k", 1),
        Increment("k", 0.5, "id"),
        Update({}),
    ]
    assert encode_operations(operations).decode() == (
        '[{"type":"set","key":"k","value":null},{"type":"delete","key":"k"},{"type":"append","key":"k","value":1},'
        '{"type":"append","key":"k","value":1,"maxItems":3},{"type":"remove","key":"k","value":"é"},'
        '{"type":"increment","key":"k","value":1},{"type":"increment","key":"k","value":0.5,"once":"id"},'
        '{"type":"update","value":{}}]'
    )


def test_m29_a_bad_operation_takes_nothing_with_it() -> None:
    data = (
        b'[{"type":"set","key":"a","value":1},{"type":"nope"},7,{"type":"set","key":"b"},{"type":"set","key":"$.","value":1},'
        b'{"type":"increment","key":"n","value":true},{"type":"increment","key":"n","value":1e999},{"type":"update","value":[]},'
        b'{"type":"update","value":{"__proto__":1}},{"type":"set","key":"c","value":2,"later":"addition"}]'
    )
    items = decode_each(data)
    assert [item for item in items if not isinstance(item, Refusal)] == [Set("a", 1), Set("c", 2)]
    refusals = [item for item in items if isinstance(item, Refusal)]
    assert [refusal.index for refusal in refusals] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {refusal.code for refusal in refusals} == {"invalid_metadata_value", "invalid_metadata_path"}
    assert all(refusal.message for refusal in refusals)


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b'[{"type":"set"', b"null"])
def test_what_is_no_list_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_each(data)


deep: Any = 1
for _ in range(201):
    deep = [deep]

BAD: list[tuple[Any, type[MetadataError]]] = [
    (Set("$.", 1), MetadataPathError),
    (Set("__proto__", 1), MetadataPathError),
    (Set("$$x", 1), MetadataPathError),
    (Set(1, 1), MetadataTypeError),
    (Delete(None), MetadataTypeError),
    (Set("k", float("nan")), MetadataValueError),
    (Set("k", deep), MetadataValueError),
    (Set("k", {"a": object()}), MetadataValueError),
    (Append("k", (1,)), MetadataValueError),
    (Append("k", 1, 0), MetadataValueError),
    (Append("k", 1, -1), MetadataValueError),
    (Append("k", 1, True), MetadataValueError),
    (Append("k", 1, "3"), MetadataValueError),
    (Remove("k", {1: 1}), MetadataValueError),
    (Increment("k", True), MetadataTypeError),
    (Increment("k", "1"), MetadataTypeError),
    (Increment("k", None), MetadataTypeError),
    (Increment("k", float("inf")), MetadataValueError),
    (Increment("k", float("nan")), MetadataValueError),
    (Increment("k", INTEGER_MAX + 1), MetadataValueError),
    (Increment("k", 1, ""), MetadataValueError),
    (Increment("k", 1, "x" * 129), MetadataValueError),
    (Increment("k", 1, 5), MetadataTypeError),
    (Increment("k", 1, "\ud800"), MetadataValueError),
    (Update([]), MetadataTypeError),
    (Update(None), MetadataTypeError),
    (Update({"__proto__": 1}), MetadataPathError),
    (Update({"$$x": 1}), MetadataPathError),
    (Update({"a": float("inf")}), MetadataValueError),
]


@pytest.mark.parametrize(
    # The same names in every process: some of the values show their addresses.
    ("operation", "error"),
    BAD,
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_check_refuses(operation: Any, error: type[MetadataError]) -> None:
    with pytest.raises(error) as caught:
        check(operation)
    assert type(caught.value) is error
    key = getattr(operation, "key", None)
    if isinstance(key, str):
        assert caught.value.key == key


@given(strategies.operations)
def test_check_accepts_what_is_valid(operation: Operation) -> None:
    check(operation)


def test_m29_apply_reports_each_refusal_and_goes_on() -> None:
    operations = [Increment("t", 1), Set("$.t.x", 1), Set("ok", True), Remove("t", 1)]
    value, refusals = apply({"t": "x"}, operations)
    assert value == {"t": "x", "ok": True}
    assert [(refusal.index, refusal.code) for refusal in refusals] == [
        (0, "wrong_metadata_type"),
        (1, "invalid_metadata_path"),
        (3, "wrong_metadata_type"),
    ]
    assert encode(refusals[1]) == (
        b'{"index":1,"code":"invalid_metadata_path","message":"$.t.x: t is text, which has nothing inside"}'
    )
