"""What is shown of a document goes on by what is shown of operations, whatever is hidden."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.errors import InsufficientScopeError
from milepost.model.document import Document
from milepost.model.filters import parse_filter
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update, collapse
from milepost.model.shown_keys import shown_document, shown_filter, shown_operations

_NAMES = ["a", "b", "secret", "a.b", "$", "secret.x"]
_KEYS = st.sampled_from(
    [*_NAMES, "$.a", "$.secret", "$['a']", "$.a.b", "$.secret.b", "$['a.b'].c", "$.a[0]", "$.b[-1]"]
)
_VALUES = st.one_of(st.integers(0, 3), st.sampled_from(["x", None, [], [1], {}, {"b": 1}, {"secret": 1}]))
_OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Set, _KEYS, _VALUES),
    st.builds(Delete, _KEYS),
    st.builds(Append, _KEYS, _VALUES),
    st.builds(Remove, _KEYS, _VALUES),
    st.builds(Increment, _KEYS, st.integers(1, 3)),
    st.builds(Update, st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=3)),
)


def applied(start: bytes, operations: list[Operation]) -> tuple[bytes, list[Operation]]:
    """The document afterwards, and what was not refused."""
    document = Document.load(start, version=0, limit=1_000_000, counted=None)
    taken: list[Operation] = []
    for operation in operations:
        try:
            document.apply(operation)
        except Exception:
            continue
        taken.append(operation)
    return document.encode(), taken


@given(
    st.dictionaries(st.sampled_from(_NAMES), _VALUES),
    st.lists(_OPERATIONS, max_size=8),
    st.frozensets(st.sampled_from(_NAMES)),
)
def test_what_is_shown_follows_what_is_shown(
    start: dict[str, object], operations: list[Operation], keys: frozenset[str]
) -> None:
    first = msgspec.json.encode(start)
    last, taken = applied(first, operations)
    shown = list(shown_operations(taken, keys))
    expected = msgspec.json.decode(shown_document(last, keys))
    for told in (shown, collapse(shown)):
        reached, followed = applied(shown_document(first, keys), told)
        assert msgspec.json.decode(reached) == expected
        assert len(followed) == len(told)
    assert set(expected) <= keys


@given(st.lists(_OPERATIONS, max_size=8), st.frozensets(st.sampled_from(["a", "b"])))
def test_nothing_hidden_is_in_what_is_told(operations: list[Operation], keys: frozenset[str]) -> None:
    for operation in shown_operations(operations, keys):
        if isinstance(operation, Update):
            assert set(operation.value) <= keys
        else:
            name = operation.key
            assert any(name == key or name.startswith((f"$.{key}", f"$['{key}']")) for key in keys), name


@pytest.mark.parametrize(
    "filter",
    [
        {"secret": 1},
        {"secret": {"$exists": False}},
        {"$.secret.x": 1},
        {"secret.x": {"$gt": 1}},
        {"a": 1, "$['secret']": 1},
    ],
)
def test_nothing_is_filtered_by_what_is_hidden(filter: dict[str, object]) -> None:
    with pytest.raises(InsufficientScopeError, match="secret"):
        shown_filter(parse_filter(filter), frozenset({"a"}))


def test_a_name_with_dots_means_only_what_is_shown_of_it() -> None:
    filter = shown_filter(parse_filter({"user.id": {"$exists": False}}), frozenset({"user"}))
    assert filter.matches({"user.id": 1, "user": {}})
    assert not filter.matches({"user": {"id": 1}})
