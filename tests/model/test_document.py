"""A document: each row of the table of operations, limits, and input that is no good."""

import dataclasses
from typing import Any

import pytest

from milepost.errors import (
    MetadataError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
)
from milepost.model.counted import id_of
from milepost.model.document import SIZE_LIMIT, Document
from milepost.model.jsonvalue import INTEGER_MAX
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from support.operations import apply


def after(value: dict[str, Any], *operations: Operation) -> dict[str, Any]:
    document = Document(value)
    for operation in operations:
        document.apply(operation)
    return document.value


def test_m1_an_object_with_version_size_and_limit() -> None:
    document = Document()
    assert (document.value, document.version, document.size, document.limit) == ({}, 0, 2, 262_144)
    document.apply(Set("a", 1))
    assert (document.size, document.version) == (7, 0)
    assert SIZE_LIMIT == 256 * 1024


# The table of section 4: missing key, right type, wrong type.


def test_m17_set() -> None:
    assert after({}, Set("k", 1)) == {"k": 1}
    assert after({"k": 1}, Set("k", [2])) == {"k": [2]}
    assert after({}, Set("a.b", 1)) == {"a.b": 1}
    assert after({}, Set("", 1)) == {"": 1}


def test_m18_set_by_path() -> None:
    assert after({}, Set("$.a.b", 1)) == {"a": {"b": 1}}
    assert after({"steps": [{"done": False}]}, Set("$.steps[-1].done", True)) == {"steps": [{"done": True}]}


def test_m19_delete() -> None:
    assert after({}, Delete("k")) == {}
    assert after({"k": 1, "l": 2}, Delete("k")) == {"l": 2}
    assert after({"a": {"b": [1, 2, 3]}}, Delete("$.a.b[1]")) == {"a": {"b": [1, 3]}}


def test_m20_update() -> None:
    assert after({"a": 1}, Update({"b": 2})) == {"b": 2}
    for value in ([], "x", 1, None):
        with pytest.raises(MetadataTypeError, match="metadata is a JSON object, not"):
            Document({"a": 1}).apply(Update(value))  # type: ignore[arg-type]


def test_m21_append() -> None:
    assert after({}, Append("k", 1)) == {"k": [1]}
    assert after({"k": [1]}, Append("k", [2, 3])) == {"k": [1, [2, 3]]}
    assert after({"k": "old"}, Append("k", 1)) == {"k": ["old", 1]}
    assert after({"k": None}, Append("k", 1)) == {"k": [None, 1]}
    assert after({"k": [1, 2, 3]}, Append("k", 4, 2)) == {"k": [3, 4]}


def test_m22_remove() -> None:
    assert after({}, Remove("k", 1)) == {}
    assert after({"k": [1, 2, 1.0, True]}, Remove("k", 1)) == {"k": [2, True]}
    with pytest.raises(MetadataTypeError, match="'k': nothing can be removed from text") as caught:
        after({"k": "x"}, Remove("k", "x"))
    assert caught.value.key == "k"


def test_m23_increment() -> None:
    assert after({}, Increment("k", 2)) == {"k": 2}
    assert after({"k": 1}, Increment("k", 2)) == {"k": 3}
    assert after({"k": 1}, Increment("k", 0.5)) == {"k": 1.5}
    assert type(after({"k": 1}, Increment("k", 2))["k"]) is int
    for wrong in ("1", True, None, [1], {}):
        with pytest.raises(
            MetadataTypeError, match=r"'k': .* cannot be incremented; set it to a number first"
        ):
            after({"k": wrong}, Increment("k", 1))
    for by in (True, "1", None):
        with pytest.raises(MetadataTypeError, match="increment by a number"):
            after({}, Increment("k", by))  # type: ignore[arg-type]


def test_m24_decrement_is_the_negative_increment() -> None:
    assert after({"k": 1}, Increment("k", -4)) == {"k": -3}


def test_m23_a_sum_stays_a_json_number() -> None:
    for value, by in (
        (1.7e308, 1.7e308),
        (1, float("inf")),
        (1, float("nan")),
        (10**308, 10**308),
        (0.5, 10**400),
        (0, 10**400),
        (-(10**308), 10**400),
        (1.7e308, INTEGER_MAX),
    ):
        document = Document({"k": value})
        with pytest.raises(MetadataValueError):
            document.apply(Increment("k", by))
        assert document.value == {"k": value}
    assert after({"k": 2**63 - 1}, Increment("k", 1)) == {"k": 2**63}


def test_m46_an_id_counts_once() -> None:
    document = Document({"n": 0}, counted=[id_of("n", "before")])
    for once in ("before", "a", "a", "b"):
        document.apply(Increment("n", 1, once))
    assert document.value == {"n": 2}
    assert document.counted == {id_of("n", once) for once in ("before", "a", "b")}


def test_m46_an_id_counts_once_for_each_key() -> None:
    document = Document()
    for key in ("n", "$.n", '$["n"]', "bytes", "l"):
        document.apply(Increment(key, 1, "x"))
    assert document.value == {"n": 1, "bytes": 1, "l": 1}
    document = Document({"l": [0, 0]})
    for key in ("$.l[1]", "$.l.1", "$.l[01]", "$.l[-1]"):
        # The last one is another key: it may mean another element at another time.
        document.apply(Increment(key, 1, "x"))
    assert document.value == {"l": [0, 2]}


def test_m46_a_log_holds_only_what_counted() -> None:
    document = Document(counted=None)
    document.apply_all([Increment("n", 1, "x"), Append("l", 1, None, "x"), Increment("n", 1, "x")])
    assert (document.value, document.counted) == ({"n": 2, "l": [1]}, None)


def test_m46_an_id_that_failed_is_not_counted() -> None:
    document = Document({"n": "x"})
    with pytest.raises(MetadataTypeError):
        document.apply(Increment("n", 1, "a"))
    document.apply_all([Set("n", 0), Increment("n", 1, "a")])
    assert (document.value, document.counted) == ({"n": 1}, {id_of("n", "a")})
    with pytest.raises(MetadataTypeError):
        document.apply_all([Increment("n", 1, "b"), Increment("n", True)])
    assert (document.value, document.counted) == ({"n": 1}, {id_of("n", "a")})


# Paths that lead nowhere.


@pytest.mark.parametrize(
    ("value", "key", "segment"),
    [
        ({"a": 1}, "$.a.b", "a"),
        ({"a": None}, "$.a.b", "a"),
        ({"a": {"b": "text"}}, "$.a.b.c.d", "b"),
        ({"a": [1]}, "$.a[0].b", "[0]"),
        ({"a": [1]}, "$.a[1]", "[1]"),
        ({"a": [1]}, "$.a.1.x", "1"),
        ({"a": [1]}, "$.a[-2]", "[-2]"),
        ({"a": [1]}, "$.a.name", "name"),
        ({"a": {}}, "$.a[0]", "[0]"),
        ({}, "$.a[0]", "[0]"),
        ({}, "$.a.b[3].c", "[3]"),
    ],
)
def test_m18_a_path_that_leads_nowhere_names_the_segment(
    value: dict[str, Any], key: str, segment: str
) -> None:
    for operation in (Set(key, 1), Append(key, 1), Increment(key, 1)):
        document = Document(value)
        with pytest.raises(MetadataPathError) as caught:
            document.apply(operation)
        assert (caught.value.segment, caught.value.key) == (segment, key)
        assert f": {segment} is " in str(caught.value)
        assert (document.value, document.size) == (value, Document(value).size)


def test_m19_deleting_through_a_scalar_is_an_error_and_what_is_missing_is_none() -> None:
    for operation in (Delete("$.a.b"), Remove("$.a.b", 1)):
        with pytest.raises(MetadataPathError, match="a is a number, which has nothing inside"):
            after({"a": 1}, operation)
    value: dict[str, Any] = {"a": {}, "l": [1]}
    for key in ("x", "$.a.b", "$.a.b.c", "$.l[1]", "$.l[-2]", "$.l.x", "$.a[0]"):
        assert after(value, Delete(key), Remove(key, 1)) == value


# Whole documents.


@pytest.mark.parametrize("value", [[], [1], "text", 1, 1.5, True, None, (), {1, 2}])
def test_m73_a_document_is_an_object(value: Any) -> None:
    """Fault 17: an array given at trigger time is refused there."""
    with pytest.raises(MetadataTypeError, match="metadata is a JSON object, not"):
        Document.from_json(value)


def test_m73_the_stored_text_is_an_object_too() -> None:
    for text in (b"[]", b"1", b"null"):
        with pytest.raises(MetadataTypeError):
            Document.load(text)
    with pytest.raises(MetadataTypeError):
        Document([])  # type: ignore[arg-type]


def test_m2_a_document_from_what_python_has() -> None:
    @dataclasses.dataclass
    class Progress:
        step: int
        tags: set[str]

    assert Document.from_json(Progress(1, {"b", "a"})).value == {"step": 1, "tags": ["a", "b"]}
    given = {"a": [1]}
    document = Document.from_json(given, version=4, counted=[b"id"])
    given["a"].append(2)
    assert (document.value, document.version, document.counted) == ({"a": [1]}, 4, {b"id"})


@pytest.mark.parametrize("name", ["__proto__", "$$", "$$streams"])
def test_m27_names_of_a_whole_document(name: str) -> None:
    with pytest.raises(MetadataPathError) as caught:
        Document.from_json({name: 1})
    assert caught.value.key == name
    with pytest.raises(MetadataPathError):
        Document().apply(Update({name: 1}))


def test_m74_bad_values_are_named() -> None:
    with pytest.raises(MetadataValueError, match=r"^a\.b\.c: a function cannot be stored"):
        Document.from_json({"a": {"b": {"c": print}}})
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    with pytest.raises(MetadataValueError, match=r"^again: a value that contains itself"):
        Document.from_json(cycle)


# The limit.


def test_m84_exactly_the_limit_passes_and_one_more_does_not() -> None:
    """262,144 bytes: 8 for `{"k":""}` and the rest for the text."""
    fits = "x" * (262_144 - 8)
    assert Document.from_json({"k": fits}).size == 262_144
    document = Document()
    document.apply(Set("k", fits))
    assert document.size == len(document.encode()) == 262_144
    for whole in (fits + "x", fits[:-1] + "é"):
        with pytest.raises(MetadataTooLargeError) as caught:
            Document.from_json({"k": whole})
        assert (caught.value.size, caught.value.limit, caught.value.key) == (262_145, 262_144, None)
        assert caught.value.largest_keys == [("k", 262_139)]
        with pytest.raises(MetadataTooLargeError):
            Document().apply(Set("k", whole))


def test_m85_the_error_tells_what_to_do_and_changes_nothing() -> None:
    document = Document({"log": ["x" * 50] * 2, "step": 1, "text": "y" * 20}, limit=170)
    before = document.encode()
    with pytest.raises(MetadataTooLargeError) as caught:
        document.apply(Append("log", "z" * 50))
    error = caught.value
    assert (error.size, error.limit, error.key) == (207, 170, "log")
    assert error.largest_keys == [("log", 107), ("text", 22), ("step", 1)]
    assert str(error) == (
        "With 'log' the metadata would be 207 bytes of JSON, 37 more than the limit of 170. Largest keys: 'log' (107), "
        "'text' (22), 'step' (1). Delete or shorten a key, cap a list with append(key, value, max_items=n), send long "
        "output as a stream, or raise TASK_RUN_METADATA_MAXIMUM_SIZE on the server."
    )
    assert document.encode() == before
    assert document.size == len(before)


def test_m85_every_operation_that_grows_can_be_too_large() -> None:
    value: dict[str, Any] = {"n": 9, "l": [1], "t": "x"}
    growing: list[Operation] = [
        Set("new", 1),
        Set("n", 10),
        Set("$.o.p.q", 1),
        Set("$.l[0]", 10),
        Increment("n", 1),
        Increment("new", 1),
        Increment("$.l[0]", 9),
        Append("l", 1),
        Append("t", 1),
        Append("new", 1),
        Append("l", 100, 1),
        Update({**value, "n": 10}),
    ]
    for operation in growing:
        document = Document(value)
        document.limit = document.size
        with pytest.raises(MetadataTooLargeError) as caught:
            document.apply(operation)
        assert document.value == value
        document.limit = caught.value.size - 1
        with pytest.raises(MetadataTooLargeError):
            document.apply(operation)
        document.limit = caught.value.size
        document.apply(operation)
        assert document.size == document.limit == len(document.encode())


def test_m85_what_does_not_grow_is_applied_over_a_lowered_limit() -> None:
    document = Document({"l": [1, 2, 3], "t": "long text", "n": 10}, limit=5)
    document.apply_all(
        [Set("t", "short"), Increment("n", -1), Append("l", 4, 3), Remove("l", 2), Set("n", 5), Delete("t")]
    )
    document.apply(Update({"l": [1, 2, 3, 4]}))
    assert document.value == {"l": [1, 2, 3, 4]}
    for operation in (Append("l", 1), Set("n", 1)):
        with pytest.raises(MetadataTooLargeError):
            document.apply(operation)


# Several at once, copies, and what is remembered about sizes.


def test_apply_all_undoes_what_it_did() -> None:
    value: dict[str, Any] = {"l": [1, 2, 3], "o": {"a": {"b": 1}}, "n": 1, "t": "x"}
    document = Document(value, limit=200)
    with pytest.raises(MetadataTooLargeError):
        document.apply_all(
            [
                Append("l", 4, 2),
                Set("$.o.a.c", [1]),
                Delete("$.o.a.b"),
                Delete("$.l[0]"),
                Remove("l", 4),
                Append("t", 2),
                Append("$.t[0]", 3),
                Increment("$.o.x.y", 1),
                Delete("n"),
                Update({"fresh": 1}),
                Set("fresh", {}),
                Set("big", "x" * 200),
            ]
        )
    assert document.value == value
    assert document.size == Document(value).size
    document.apply(Set("l", 1))
    assert document.size == len(document.encode())


def test_apply_all_survives_an_iterator_that_fails() -> None:
    def operations() -> Any:
        yield Set("a", 1)
        raise KeyboardInterrupt

    document = Document()
    with pytest.raises(KeyboardInterrupt):
        document.apply_all(operations())
    assert document.value == {}
    document.apply(Set("a", 1))
    assert document.value == {"a": 1}


def test_m3_what_is_read_is_a_copy() -> None:
    document = Document({"a": {"b": [1]}})
    document.get("a")["b"].append(2)
    document.get("$.a.b").append(2)
    document.copy_value()["a"]["b"] = 3  # type: ignore[index,call-overload]
    other = document.copy()
    other.apply(Set("$.a.b", 4))
    assert document.value == {"a": {"b": [1]}}


def test_m4_get_and_contains() -> None:
    document = Document({"a": {"b": None}, "a.b": 1})
    assert document.get("a.b") == 1
    assert document.get("$.a.b", "default") is None
    assert document.get("$.a.c", "default") == "default"
    assert document.contains("$.a.b")
    assert not document.contains("$.a.c")
    for bad in ("$.", "__proto__"):
        with pytest.raises(MetadataPathError):
            document.get(bad)
        with pytest.raises(MetadataPathError):
            document.contains(bad)
    with pytest.raises(MetadataTypeError):
        document.get(1)  # type: ignore[arg-type]


def test_m75_an_operation_may_be_kept_and_sent_later() -> None:
    operation = Set("rows", [1])
    document = Document()
    document.apply(operation)
    document.apply(Append("rows", 2))
    assert operation.value == [1]
    wrapped = Append("log", {"a": 1})
    document.apply_all([wrapped, Set("$.log[0].a", 2)])
    assert wrapped.value == {"a": 1}


def test_fault_5_order_is_kept() -> None:
    """`set 0`, `increment`, `increment` became 0, and `set` then `delete` kept the key."""
    assert after({}, Set("n", 0), Increment("n", 1), Increment("n", 1), Set("k", 1), Delete("k")) == {"n": 2}


def test_fault_7_one_oversized_operation_drops_nothing_else() -> None:
    value, refusals = apply({}, [Set("a", 1), Set("big", "x" * 300), Set("b", 2)], limit=100)
    assert value == {"a": 1, "b": 2}
    assert [(refusal.index, refusal.code) for refusal in refusals] == [(1, "metadata_too_large")]


def test_fault_11_a_nested_write_is_never_dropped_silently() -> None:
    assert after({}, Increment("$.a.n", 2), Append("$.b.l", 1)) == {"a": {"n": 2}, "b": {"l": [1]}}
    with pytest.raises(MetadataError):
        after({"a": 1}, Set("$.a.b", 1))


def test_fault_12_delete_follows_paths() -> None:
    assert after({"a": {"b": 1, "c": 2}}, Delete("$.a.b")) == {"a": {"c": 2}}


def test_fault_18_increment_never_replaces_text() -> None:
    document = Document({"n": "text"})
    with pytest.raises(MetadataTypeError):
        document.apply(Increment("n", 2))
    assert document.value == {"n": "text"}
