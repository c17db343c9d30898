"""Typed metadata: `@task(metadata=Progress)` checks the document at trigger and each write to a declared field (M76).

A declared field is one that the type knows. Other keys stay free, so a task may keep loose notes beside what it declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milepost.client.shape import Misfit, Shape, elements_of, name_of, parts_of, shape_of
from milepost.errors import MetadataTypeError, MetadataValueError
from milepost.model.jsonvalue import JSONValue, encode, to_json
from milepost.model.operations import Append, Increment, Operation, Set, Update
from milepost.model.path import parse

if TYPE_CHECKING:
    from milepost.sdk.buffer import Buffer


class MetadataSchema:
    """The declared type of a task's metadata.

    Args:
        declared: a Pydantic model, dataclass, TypedDict, msgspec Struct or attrs class.
    """

    def __init__(self, declared: Any) -> None:
        self.declared = declared
        self._types_at: dict[str, list[Any]] = {}

    def check_document(self, document: object) -> None:
        """Raise MetadataValueError unless a whole document has the declared form."""
        try:
            shape_of(self.declared).read(encode(to_json(document)))
        except Misfit as misfit:
            raise MetadataValueError(
                f"metadata does not fit {name_of(self.declared)}: {misfit.describe('document')}"
            ) from None

    def check_operation(self, operation: Operation, buffer: Buffer) -> None:
        """Raise MetadataValueError or MetadataTypeError if the operation would give a declared field a value that it must not have."""
        if isinstance(operation, Update):
            self.check_document(operation.value)
        elif isinstance(operation, Set):
            self._check_value(operation.key, operation.value, self._types(operation.key))
        elif isinstance(operation, Append):
            self._check_item(operation.key, operation.value)
        elif isinstance(operation, Increment):
            before = buffer.get(operation.key, 0)
            if isinstance(before, int | float) and not isinstance(before, bool):
                self._check_value(operation.key, before + operation.value, self._types(operation.key))

    def _types(self, key: str) -> list[Any]:
        """The declared types of what the key names; empty when it is not declared."""
        found = self._types_at.get(key)
        if found is None:
            found = [self.declared]
            for segment in parse(key):
                found = [part for kind in found for part in parts_of(kind, segment)]
            if len(self._types_at) < 1000:
                self._types_at[key] = found
        return found

    def _check_value(self, key: str, value: JSONValue, kinds: list[Any]) -> None:
        if not kinds:
            return
        text = encode(value)
        reasons: list[Misfit] = []
        for kind in kinds:
            shape: Shape[Any] = shape_of(kind)
            try:
                shape.read(text)
            except Misfit as misfit:
                reasons.append(misfit)
            else:
                return
        reason = reasons[0].describe("value")
        raise MetadataValueError(f"{key}: does not fit {name_of(self.declared)}: {reason}", key=key)

    def _check_item(self, key: str, value: JSONValue) -> None:
        kinds = self._types(key)
        if not kinds:
            return
        elements = [elements_of(kind) for kind in kinds]
        arrays = [found for found in elements if found is not None]
        if not arrays:
            raise MetadataTypeError(
                f"{key}: {name_of(self.declared)} declares no array here, so nothing can be appended", key=key
            )
        if all(arrays):
            self._check_value(key, value, [kind for found in arrays for kind in found])
