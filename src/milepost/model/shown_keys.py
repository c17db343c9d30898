"""What is left of a document, of operations and of a filter for a reader who is shown some of the top-level keys only. Pure.

`keys` None means that all of them are shown. What leads a whole document on leads what is left of it on in the same way: operations on
different top-level keys have nothing to do with each other, and `update` gives each of them anew.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Any

import msgspec

from milepost.errors import InsufficientScopeError
from milepost.model.filters import MetadataFilter
from milepost.model.operations import Operation, Update
from milepost.model.path import parse

Keys = Set[str] | None

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def shown_document(document: bytes, keys: Keys) -> bytes:
    """The document as JSON with these keys only."""
    if keys is None or document == b"{}":
        return document
    return _encode({key: value for key, value in _members.decode(document).items() if key in keys})


def shown_operations(operations: Sequence[Operation], keys: Keys) -> Sequence[Operation]:
    """The operations as far as they are about these keys."""
    if keys is None:
        return operations
    return [shown for operation in operations if (shown := _shown(operation, keys)) is not None]


def _shown(operation: Operation, keys: Set[str]) -> Operation | None:
    if isinstance(operation, Update):
        return Update({key: value for key, value in operation.value.items() if key in keys})
    return operation if parse(operation.key)[0] in keys else None


def shown_filter(filter: MetadataFilter, keys: Keys) -> MetadataFilter:
    """The same filter, which looks at these keys only. A key with dots may be one name or a path of names; what is hidden of both is
    not there.

    Raises: InsufficientScopeError for a condition on a hidden key: whether a run is found would tell what is there.
    """
    if keys is None:
        return filter
    conditions: list[Any] = []
    for condition in filter.conditions:
        places = tuple(place for place in condition.places if place[0] in keys)
        if not places:
            raise InsufficientScopeError(
                f"this public token does not show the metadata key of {condition.key!r:.100}, so nothing can be filtered by it",
                field="filter[metadata]",
            )
        conditions.append(msgspec.structs.replace(condition, places=places))
    return MetadataFilter(tuple(conditions))


def written_keys(operations: Iterable[Operation]) -> Set[str] | None:
    """The top-level keys that operations write; None when one replaces the whole document.

    Raises: MetadataPathError for a key that is none.
    """
    found: set[str] = set()
    for operation in operations:
        if isinstance(operation, Update):
            return None
        found.add(str(parse(operation.key)[0]))
    return found
