"""Typed metadata: `@task(metadata=Progress)` (M76, M77). The rule that documents are held to is in `model/typed.py`.

Here the model itself is at hand: values are converted by its fields, so that what was set comes back equal (`set("total", "5")` of an
`int` field stores 5), and its own validators run. The server holds every other writer to the JSON schema of the same type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import typing_extensions

from milepost.client.annotations import name_of
from milepost.errors import MetadataValueError
from milepost.model.jsonvalue import JSONValue, to_json
from milepost.model.operations import Operation, Set
from milepost.model.path import parse
from milepost.model.typed import Misfit, Verdict, check_document, demands, key_of, refused
from milepost.sdk.buffer import Buffer

if TYPE_CHECKING:
    from milepost.sdk.declared import TypedPlace

_CACHED_PLACES_MAX = 1000


class MetadataSchema:
    """The declared type of a task's metadata.

    Every method raises MetadataValueError for what the type does not take; the message names the place.

    Args:
        declared: a Pydantic model, dataclass, TypedDict, msgspec Struct or attrs class.
    """

    def __init__(self, declared: Any) -> None:
        self.declared = declared
        self.name = name_of(declared)
        self._places: dict[str, TypedPlace | Verdict] = {}

    @cached_property
    def root(self) -> TypedPlace:
        """What is declared of the document as a whole. Raises UsageError for a type that no JSON object can be."""
        # Made when it is first needed: names in annotations may be defined below the task, and it takes Pydantic.
        from milepost.sdk.declared import declared_root

        return declared_root(self.declared)

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the documents, by which the server holds every writer to the type; None when there is none."""
        return self.root.json_schema()

    # --- converting ----------------------------------------------------------------------------------------

    def document_of(self, document: object) -> JSONValue:
        """The JSON form of a whole document, checked as a whole. What is no object comes back as it is in JSON."""
        converted = self.object_of(document)
        if isinstance(converted, dict):
            check_document(converted, self.root, self.name)
        return converted

    def object_of(self, values: object) -> JSONValue:
        """The JSON form of members for a document, each converted by its declared type."""
        if self._is_instance(values):
            try:
                return self.root.convert(values)
            except Misfit as misfit:
                raise refused(misfit, self.name) from None
        if not isinstance(values, Mapping):
            values = to_json(values)
            if not isinstance(values, dict):
                return cast("JSONValue", values)
        given = cast("Mapping[Any, object]", values)
        names = cast("dict[str, Any]", to_json(dict.fromkeys(given)))
        return {
            name: self._converted(name, self._member(name), value)
            for name, value in zip(names, given.values(), strict=True)
        }

    def _is_instance(self, value: object) -> bool:
        kind = self.declared
        if not isinstance(kind, type) or typing_extensions.is_typeddict(kind):
            return False
        return isinstance(value, kind) and not isinstance(value, Mapping)

    def value_of(self, key: str, value: object) -> JSONValue:
        """The JSON form of a value for a key or path."""
        return self._converted(key, self._place(key), value)

    def item_of(self, key: str, value: object, place: str) -> JSONValue:
        """The JSON form of an item to append to the array at a key or path; `place` names it."""
        array = self._place(key)
        return self._converted(key, array if isinstance(array, Verdict) else array.item(), value, place)

    def wanted_of(self, key: str, value: object) -> JSONValue:
        """The JSON form that items have which equal a value. No item is like what does not fit, so that is any JSON."""
        try:
            return self.item_of(key, value, key)
        except MetadataValueError:
            return to_json(value, place=key)

    def _converted(
        self, key: str, declared: TypedPlace | Verdict, value: object, place: str | None = None
    ) -> JSONValue:
        if isinstance(declared, Verdict):
            return to_json(value, place=place or key, key=key)
        try:
            return declared.convert(value)
        except Misfit as misfit:
            inside = Misfit([(f"{place or key}{_below(inner)}", reason) for inner, reason in misfit.problems])
            raise refused(inside, self.name, key) from None

    def _member(self, name: str) -> TypedPlace | Verdict:
        try:
            return self.root.part(name)
        except Misfit as misfit:
            raise refused(misfit, self.name, name) from None

    def _place(self, key: str) -> TypedPlace | Verdict:
        """What is declared of the place that a key or path names, as far as the path alone tells."""
        found = self._places.get(key)
        if found is None:
            found = self.root
            for segment in parse(key):
                if isinstance(found, Verdict):
                    break
                try:
                    found = found.part(segment)
                except Misfit as misfit:
                    raise refused(misfit, self.name, key) from None
            if len(self._places) < _CACHED_PLACES_MAX:
                self._places[key] = found
        return found

    # --- checking ------------------------------------------------------------------------------------------

    def check(self, operations: Sequence[Operation], buffer: Buffer) -> None:
        """Raise MetadataValueError if operations on the own document, whose values were converted, would leave it unreadable."""
        root = self.root
        first = operations[0]
        if len(operations) == 1 and type(first) is Set and not root.is_whole and len(parse(first.key)) == 1:
            # The common case: the value alone tells.
            return
        try:
            for demand in buffer.look(
                lambda document: demands(operations, document, root, is_converted=True)
            ):
                demand.check()
        except Misfit as misfit:
            raise refused(misfit, self.name, key_of(first) if len(operations) == 1 else None) from None


def _below(place: str) -> str:
    return place if not place or place.startswith("[") else f".{place}"
