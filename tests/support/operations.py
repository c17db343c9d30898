"""Random metadata operations: few keys, so that they meet, and some that cannot be applied; and applying them."""

from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st

from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.jsonvalue import JSONValue
from milepost.model.operations import Append, Delete, Increment, Operation, Refusal, Remove, Set, Update
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


def apply(
    value: dict[str, JSONValue],
    operations: Iterable[Operation],
    *,
    limit: int = 262_144,
    counted: Iterable[bytes] = (),
) -> tuple[dict[str, JSONValue], list[Refusal]]:
    """Fold operations into a document, in their order, each accepted or refused by itself (M29, M31).

    The input is not changed and shares nothing with the result.

    Args:
        limit: bytes of compact JSON.
        counted: what stands for the `once` ids that this run has counted already (`id_of`).
    """
    document = Document(value, limit=limit, counted=counted)
    refusals: list[Refusal] = []
    for index, operation in enumerate(operations):
        try:
            document.apply(operation)
        except MetadataError as error:
            refusals.append(Refusal(index, error.code, error.message))
    return document.value, refusals
