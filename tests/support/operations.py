"""Random metadata operations: few keys, so that they meet, and some that cannot be applied."""

from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st

from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from support.chance import CAPS, Chance

KEYS = st.sampled_from(
    [
        *["a", "n", "list", "ü", "", "2", "$.a.x", "$.a.y.z", "$.list[0]", "$.list[-1]", "$.n.x"],
        *["$.2[-1]", "$.2.0", "$.2.rows", "$.2.rows[-1]", "$.list.0"],
        *["$.a", "$['list']", '$["2"]', "$.n"],
        *["__proto__", "$.a."],
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([0.5, "x", "ß", ""]))
VALUES: st.SearchStrategy[Any] = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from("xyz"), SCALARS, max_size=2)
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "n", "list", "ü", "2"]), VALUES, max_size=3)
_ONCE = st.sampled_from([None, None, None, "first", "second"])

OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Set, KEYS, VALUES),
    st.builds(Delete, KEYS),
    st.builds(Append, KEYS, VALUES, st.sampled_from(CAPS)),
    st.builds(Remove, KEYS, SCALARS),
    st.builds(Increment, KEYS, st.integers(-3, 3), _ONCE),
    st.builds(Increment, st.just("n"), st.integers(-3, 3), _ONCE),
    st.builds(Append, st.sampled_from(["list", "$.list"]), SCALARS, st.sampled_from(CAPS), _ONCE),
    st.builds(Update, DOCUMENTS),
)
"""Any of the six, small; about a third of a random list is refused."""

RELATED: st.SearchStrategy[list[Operation]] = st.integers(0, 2**32).map(
    lambda seed: Chance(Random(seed)).case()[1]
)
"""Lists of operations on a few keys that meet; `support.chance` tells how."""

LARGE: st.SearchStrategy[Operation] = st.builds(
    Set, st.sampled_from(["a", "big"]), st.integers(1, 9).map(lambda length: "x" * length * 2_000)
)
"""Large enough that a few of them outgrow a snapshot."""


def exactly(document: dict[str, Any]) -> str:
    """A document as text that tells `1` from `1.0` and from `true`, whatever the order of its keys."""
    return msgspec.json.encode(document, order="sorted").decode()
