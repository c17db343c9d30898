"""What the laws are tried on: JSON values, documents, keys and lists of operations.

The pool of keys is small on purpose, so that operations meet: names and paths to the same place, places inside one another,
elements of one array by position, by word and from the end.
"""

from typing import Any

from hypothesis import strategies as st

from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.model.path import Path
from support.chance import CAPS as ALL_CAPS
from support.chance import FAMILIES, IDS, KEYS, NAMES


def _some(keys: dict[str, Path], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(keys)), min_size=1, max_size=min(most, len(keys)), unique=True)


# One to three keys that meet, and perhaps a stranger.
related_keys = st.builds(
    lambda related, others: [*related, *others],
    st.sampled_from(FAMILIES).flatmap(lambda family: _some(family, 3)),
    st.one_of(st.just([]), st.just([]), _some(KEYS, 1)),
)

text = st.text(st.characters(codec="utf-8"), max_size=6)
small_integers = st.integers(-12, 12)
integers = st.one_of(small_integers, st.integers(-(2**70), 2**70))
# Quarters: sums of them are exact, so the order of additions does not show.
quarters = st.integers(-40, 40).map(lambda number: number / 4)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), integers, floats, text)


def nested(leaves: st.SearchStrategy[Any], *, max_leaves: int = 8) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["a", "b", "c", "n", "0", "1", "rows"]), inner, max_size=3),
        ),
        max_leaves=max_leaves,
    )


values = nested(scalars)
# For documents whose counters can be added in any order.
exact_scalars = st.one_of(
    st.none(), st.booleans(), small_integers, quarters, st.sampled_from(["", "x", "y" * 70, "z" * 200])
)
_rows = st.lists(st.fixed_dictionaries({"n": st.one_of(small_integers, quarters)}), min_size=1, max_size=3)
exact_values = st.one_of(
    small_integers,
    st.booleans(),
    st.lists(small_integers, min_size=1, max_size=3),
    _rows,
    nested(exact_scalars),
)

_names = st.sampled_from(NAMES)
documents = st.dictionaries(_names, values, max_size=4)
exact_documents = st.dictionaries(_names, exact_values, max_size=4)


# They grow, shrink and vanish from one append to the next.
CAPS = st.sampled_from(ALL_CAPS)
ONCE = st.sampled_from(IDS)


def operations_on(
    keys: st.SearchStrategy[str],
    items: st.SearchStrategy[Any],
    numbers: st.SearchStrategy[int | float],
    whole: st.SearchStrategy[dict[str, Any]],
) -> st.SearchStrategy[Operation]:
    """One operation of any kind; the frequent ones come more often, as they do in programs."""
    sets = st.builds(Set, keys, items)
    increments = st.builds(Increment, keys, numbers)
    counted = st.builds(Increment, keys, numbers, ONCE)
    appends = st.builds(Append, keys, items, CAPS)
    deletes = st.builds(Delete, keys)
    removes = st.builds(Remove, keys, items)
    updates = st.builds(Update, whole)
    counted_appends = st.builds(Append, keys, items, CAPS, ONCE)
    return st.one_of(
        *[sets] * 4,
        *[increments] * 4,
        *[appends] * 4,
        *[deletes] * 3,
        removes,
        removes,
        counted,
        counted_appends,
        updates,
    )


def in_a_row(
    keys: st.SearchStrategy[str], items: st.SearchStrategy[Any], numbers: st.SearchStrategy[int | float]
) -> st.SearchStrategy[list[Operation]]:
    """Several of a kind on one key, as a loop makes them."""
    return st.one_of(
        st.builds(
            lambda key, values, cap: [Append(key, value, cap) for value in values],
            keys,
            st.lists(items, min_size=2, max_size=5),
            CAPS,
        ),
        st.builds(
            lambda key, by: [Increment(key, number) for number in by],
            keys,
            st.lists(numbers, min_size=2, max_size=4),
        ),
        st.builds(lambda key, count: [Delete(key)] * count, keys, st.integers(2, 3)),
    )


_numbers = st.one_of(integers, floats)
operations = operations_on(st.sampled_from(list(KEYS)), values, _numbers, documents)
exact_operations = operations_on(
    st.sampled_from(list(KEYS)),
    exact_values,
    st.one_of(small_integers, small_integers, quarters),
    exact_documents,
)
lists = related_keys.flatmap(
    lambda keys: st.lists(operations_on(st.sampled_from(keys), values, _numbers, documents), max_size=12)
)
_exact_numbers = st.one_of(small_integers, small_integers, quarters)


def _exact_list(keys: list[str]) -> st.SearchStrategy[list[Operation]]:
    any_key = st.sampled_from(keys)
    one = operations_on(any_key, exact_values, _exact_numbers, exact_documents).map(
        lambda operation: [operation]
    )
    rows = in_a_row(any_key, exact_values, _exact_numbers)
    return st.lists(st.one_of(one, one, one, rows), max_size=12).map(
        lambda parts: [each for part in parts for each in part]
    )


# A few keys for a whole list, so that there is something to merge.
exact_lists = related_keys.flatmap(_exact_list)
# Two operations on keys that meet.
exact_pairs = related_keys.flatmap(
    lambda keys: st.lists(
        operations_on(
            st.sampled_from(keys),
            exact_values,
            st.one_of(small_integers, quarters),
            exact_documents,
        ),
        min_size=2,
        max_size=2,
    )
)


def path_of(operation: Operation) -> Path:
    """Where an operation from here writes, without the parser."""
    return () if isinstance(operation, Update) else KEYS[operation.key]


# --- filters -----------------------------------------------------------------------------------------------

_filter_keys = st.one_of(
    st.sampled_from(["a", "n", "l", "a.b"]),
    st.sampled_from(
        [
            "",
            "a.b",
            "a.c",
            "a.n.0",
            "l.0",
            "l.0.n",
            "zähler",
            "$.a.b",
            "$.l[0]",
            "$.l[-1]",
            "$.a.0",
            "$.l[0].n",
        ]
    ),
)
# Few, so that documents have them.
few_values = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1.5, 2**53, 2**53 + 1, 2**60, "", "x", "xy", "y" * 7, "y" * 6 + "z"]
    ),
    nested(st.sampled_from([0, 1, True, "x"]), max_leaves=3),
)
few_documents = st.dictionaries(st.sampled_from(["a", "n", "l", "a.b"]), few_values, max_size=4)
_compared = st.sampled_from([0, 1, 0.5, 2**53, 2**53 + 1, "", "x", "y" * 7])
_tests = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _compared, min_size=1, max_size=2)
_expected = st.one_of(
    few_values.filter(lambda value: value != {}),
    st.builds(lambda value: {"$eq": value}, few_values),
    _tests,
    st.builds(lambda value: {"$contains": value}, few_values),
    st.builds(lambda value: {"$exists": value}, st.booleans()),
    st.builds(lambda value, tests: {"$exists": value, **tests}, st.booleans(), _tests),
)
filters = st.one_of(
    st.dictionaries(_filter_keys, _expected, min_size=1, max_size=1),
    st.dictionaries(_filter_keys, _expected, max_size=3),
)


def _telling(value: Any) -> st.SearchStrategy[Any]:
    """What is expected where the value is: mostly it meets it, if only just."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return st.sampled_from(
            [
                value,
                {"$gte": value},
                {"$lte": value},
                {"$gt": value - 1},
                {"$lt": value + 1},
                {"$gte": value, "$lte": value},
            ]
        )
    if isinstance(value, str):
        return st.sampled_from(
            [
                value,
                {"$gte": value},
                {"$lte": value},
                {"$gt": value[:-1]},
                {"$lt": value + "!"},
                {"$gte": "", "$lte": value},
            ]
        )
    if isinstance(value, list) and value:
        items: list[Any] = value
        return st.sampled_from([{"$contains": item} for item in items] + [{"$eq": value}])
    return st.sampled_from([{"$eq": value}, {"$exists": True}])


def _filters_of(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Filters that are made for a document."""
    places: dict[str, Any] = {}
    for name, value in document.items():
        places[f'$["{name}"]'] = places[name] = value
        if isinstance(value, dict):
            members: dict[str, Any] = value
            places |= {f"{name}.{member}": item for member, item in members.items()}
        elif isinstance(value, list) and value:
            places[f'$["{name}"][-1]'] = value[-1]
    if not places:
        return st.just({"nobody": {"$exists": False}})
    keys = st.lists(st.sampled_from(sorted(places)), min_size=1, max_size=2, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: _telling(places[key]) for key in chosen}))


# A document, and a filter that means it, or nearly.
documents_and_filters = few_documents.flatmap(
    lambda document: st.tuples(st.just(document), _filters_of(document))
)
