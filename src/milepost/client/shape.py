"""A Python type as a shape of JSON: what a value must look like, the value that it becomes, and the JSON that it is sent as.

Payloads, outputs and typed metadata pass through here, by one rule: **what goes through an annotation comes out of it equal, or is
refused where it is sent, with the place.** Pydantic does the work for its models, dataclasses, typed dictionaries and plain types;
msgspec for what Pydantic does not know: `msgspec.Struct`, attrs classes and `bytearray`, alone or inside other types.

To be sent, a value is first made one of its type, as Pydantic understands that (`"5"` for an `int` is 5, a `dict` for a model is the
model). Then it is written, read again as its reader will read it, and compared. Where the annotation says nothing (none at all, `Any`,
`object`), a value becomes plain JSON by the rules of metadata (M72) and is read as that: a tuple as a list, a time as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

import msgspec

from milepost.client.annotations import name_of
from milepost.client.codecs import Codec, codec_of
from milepost.client.comparison import difference
from milepost.client.unsendable import Unsendable, unstorable
from milepost.errors import MetadataValueError
from milepost.model.jsonvalue import check_json, decode, encode
from milepost.model.typed import Misfit

ValueT = TypeVar("ValueT")

_TOO_LARGE_INTEGER = re.compile(rb"\d{309}")
"""An integer of so many digits, or a text that holds them, deserves a closer look (`INTEGER_MAX`)."""


class Shape(Generic[ValueT]):
    """One type. Get it from `shape_of`, which keeps the built ones."""

    def __init__(self, annotation: Any, codec: Codec | None = None) -> None:
        self.codec = codec or codec_of(annotation)

    def check(self, value: object) -> ValueT:
        """The value of this type that a Python value stands for: itself, or what it can be read as. Raises Misfit."""
        return cast("ValueT", self.codec.check(value))

    def write(self, value: object) -> bytes:
        """The JSON text of a value, checked first, such that `read` gives it again.

        Raises: Misfit for what does not fit; Unsendable, which is one, for what would not come back equal; both name the place.
        """
        codec = self.codec
        checked = codec.check(value)
        text, is_untyped = codec.write(checked)
        if _TOO_LARGE_INTEGER.search(text):
            _check_integers(text)
        if codec.is_exact:
            return text
        try:
            back = codec.read(text)
        except Misfit as misfit:
            raise Unsendable(_why_not_back(checked, misfit)) from None
        found = difference(checked, back, is_untyped, lambda: codec.read(text))
        if found is not None:
            raise Unsendable([found])
        return text

    def read(self, text: bytes | str) -> ValueT:
        """The value of this type that a JSON text stands for. Raises Misfit."""
        return cast("ValueT", self.codec.read(text))

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of what travels; None when there is none to tell."""
        try:
            return self.codec.json_schema()
        except Exception:  # of the user's types; the schema only describes, so the task works without
            return None


def _why_not_back(value: object, misfit: Misfit) -> list[tuple[str, str]]:
    # Our own words say it better where they are about the same place: NaN is written as null.
    known = unstorable(value)
    places = {place for place, _ in misfit.problems}
    if known is not None and all(place in places for place, _ in known):
        return known
    return [(place, f"would not be read back: {message}") for place, message in misfit.problems]


def _check_integers(text: bytes) -> None:
    try:
        check_json(decode(text))
    except MetadataValueError as error:
        raise Unsendable([("", error.message)]) from None
    except msgspec.DecodeError as error:
        raise Unsendable([("", f"is no JSON: {error}")]) from None


@lru_cache(maxsize=4096)
def _cached_shape(annotation: Any) -> Shape[Any]:
    return Shape(annotation)


def shape_of(annotation: Any) -> Shape[Any]:
    """The shape of a type; the same one when it is asked for again."""
    try:
        return _cached_shape(annotation)
    except TypeError:
        # Not every annotation can be hashed, for instance one with a list in `Annotated`.
        return Shape(annotation)


def read_document(document: Mapping[str, Any], kind: type[ValueT]) -> ValueT:
    """A metadata document as a value of a type. Raises MetadataValueError when it does not have that form."""
    try:
        return shape_of(kind).read(encode(document))
    except Misfit as misfit:
        raise MetadataValueError(
            f"metadata does not fit {name_of(kind)}: {misfit.describe('document')}"
        ) from None
