"""A Python type as a shape of JSON: what a value must look like, the value that it becomes, and the JSON that it is sent as.

Payloads, outputs and typed metadata pass through here. Pydantic does the work for its models, dataclasses, typed
dictionaries and plain types; msgspec for what Pydantic does not know: `msgspec.Struct` and attrs classes, alone or inside
other types.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar, Union, cast

import msgspec
import typing_extensions
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from milepost.errors import MetadataValueError, UsageError
from milepost.model.jsonvalue import JSONValue, decode, encode, to_json

ValueT = TypeVar("ValueT")


class Misfit(Exception):
    """A value does not have the shape.

    Attributes:
        problems: pairs of a place inside the value (`user.email`, `rows[3]`; empty for the whole) and what is wrong there.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems or [("", "does not fit")]
        super().__init__(self.describe("value"))

    def describe(self, whole: str) -> str:
        """All problems in one line, at most five; `whole` names the value itself."""
        listed = [f"{place or whole}: {message}" for place, message in self.problems[:5]]
        if len(self.problems) > 5:
            listed.append(f"and {len(self.problems) - 5} more")
        return "; ".join(listed)


class Shape(Generic[ValueT]):
    """One type. Get it from `shape_of`, which keeps the built ones."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._adapter: TypeAdapter[ValueT] | None = None
        self._decoder: msgspec.json.Decoder[ValueT] | None = None
        if annotation is Any or annotation is object:
            return
        if not _is_msgspec_type(annotation):
            try:
                self._adapter = TypeAdapter(annotation)
            except (PydanticSchemaGenerationError, PydanticUserError):
                pass
            else:
                return
        try:
            self._decoder = msgspec.json.Decoder(annotation)
        except TypeError as error:
            raise UsageError(
                f"{name_of(annotation)} cannot be read from JSON; use a Pydantic model, a dataclass, a TypedDict, a msgspec.Struct "
                f"or a type made of them ({error})"
            ) from None

    def read(self, text: bytes | str) -> ValueT:
        """The value of this type that a JSON text stands for. Raises Misfit."""
        try:
            if self._adapter is not None:
                return self._adapter.validate_json(text)
            if self._decoder is not None:
                return self._decoder.decode(text)
            return cast("ValueT", decode(text))
        except ValidationError as error:
            raise _misfit(error) from None
        except msgspec.DecodeError as error:
            raise _misfit_of_msgspec(error) from None

    def check(self, value: object) -> ValueT:
        """The value of this type that a Python value stands for: itself, or what it can be read as. Raises Misfit."""
        try:
            if self._adapter is not None:
                return self._adapter.validate_python(value)
            if self._decoder is not None:
                return self._decoder.decode(encode(to_json(value)))
            return cast("ValueT", value)
        except ValidationError as error:
            raise _misfit(error) from None
        except msgspec.DecodeError as error:
            raise _misfit_of_msgspec(error) from None
        except MetadataValueError as error:
            raise Misfit([("", error.message)]) from None

    def write(self, value: ValueT) -> JSONValue:
        """The JSON of a value that `check` gave, such that `read` gives it again. Raises Misfit for what JSON cannot hold."""
        try:
            if self._adapter is not None:
                # Pydantic's own form, because its models may have serializers; `to_json` then refuses NaN and lone surrogates.
                return to_json(self._adapter.dump_python(value, mode="json", by_alias=True, round_trip=True))
            return to_json(value)
        except MetadataValueError as error:
            raise Misfit([("", error.message)]) from None
        except ValueError as error:
            raise Misfit([("", str(error))]) from None

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the type; None when there is none to tell."""
        try:
            if self._adapter is not None:
                return self._adapter.json_schema()
            if self._decoder is not None:
                return msgspec.json.schema(self._annotation)
        except (PydanticUserError, TypeError, ValueError):
            # Some types have no JSON schema. It only describes, so the task works without.
            return None
        return None


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


def name_of(annotation: Any) -> str:
    """A type as the user wrote it, for messages."""
    return getattr(annotation, "__qualname__", None) or str(annotation)


def parts_of(annotation: Any, segment: str | int) -> list[Any]:
    """The types that a member or element may have by this type; empty when the type does not say."""
    found: list[Any] = []
    for kind in _alternatives(annotation):
        origin = typing.get_origin(kind)
        arguments = typing.get_args(kind)
        if origin is None and isinstance(kind, type):
            fields = _fields_of(kind)
            if isinstance(segment, str) and segment in fields:
                found.append(fields[segment])
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            if isinstance(segment, str) and len(arguments) == 2:
                found.append(arguments[1])
        elif isinstance(segment, int) or segment.isdigit():
            found.extend(_elements(origin, arguments))
    return _marked_as(annotation, found)


def elements_of(annotation: Any) -> list[Any] | None:
    """The types that the items of an array may have by this type; None when no array fits the type."""
    found: list[Any] = []
    takes_array = False
    for kind in _alternatives(annotation):
        if kind is Any or kind is object or isinstance(kind, TypeVar):
            return []
        origin = typing.get_origin(kind) or kind
        if (
            isinstance(origin, type)
            and issubclass(origin, Sequence | Set)
            and not issubclass(origin, str | bytes)
        ):
            takes_array = True
            found.extend(_elements(origin, typing.get_args(kind)))
    return _marked_as(annotation, found) if takes_array else None


_BY_MSGSPEC = object()
"""Marks the members of a type that msgspec reads: it reads them too, because its rules differ from Pydantic's."""

_WRAPPERS = (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.ReadOnly)


def _marked_as(annotation: Any, parts: list[Any]) -> list[Any]:
    if not any(map(_is_msgspec_type, [annotation, *_alternatives(annotation)])):
        return parts
    return [Annotated[part, _BY_MSGSPEC] for part in parts]


def _is_msgspec_type(annotation: Any) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, msgspec.Struct) or hasattr(cast("Any", annotation), "__attrs_attrs__")
    return typing.get_origin(annotation) is Annotated and _BY_MSGSPEC in typing.get_args(annotation)


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for argument in typing.get_args(annotation) for kind in _alternatives(argument)]
    if origin is Annotated or origin in _WRAPPERS:
        return _alternatives(typing.get_args(annotation)[0])
    if isinstance(annotation, typing_extensions.TypeAliasType):
        return _alternatives(annotation.__value__)
    return [annotation]


def _elements(origin: Any, arguments: tuple[Any, ...]) -> list[Any]:
    if not isinstance(origin, type) or issubclass(origin, Mapping) or not arguments:
        return []
    return [argument for argument in arguments if argument is not Ellipsis]


@lru_cache(maxsize=1024)
def _fields_of(kind: type[Any]) -> dict[str, Any]:
    """The members of an object type by the names that they have in JSON, each with its annotation; empty for other types."""
    if issubclass(kind, BaseModel):
        fields: dict[str, Any] = {}
        for python_name, model_field in kind.model_fields.items():
            annotation = model_field.annotation
            for constraint in model_field.metadata:
                annotation = Annotated[annotation, constraint]
            names = {python_name, model_field.alias, model_field.serialization_alias}
            fields.update({name: annotation for name in names if name is not None})
        return fields
    if issubclass(kind, msgspec.Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if (
        dataclasses.is_dataclass(kind)
        or typing_extensions.is_typeddict(kind)
        or hasattr(kind, "__attrs_attrs__")
    ):
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
        return {name: _unwrapped(annotation) for name, annotation in hints.items()}
    return {}


def _unwrapped(annotation: Any) -> Any:
    """A member's annotation without `NotRequired` and its like, which mean nothing outside of their TypedDict."""
    while typing.get_origin(annotation) in _WRAPPERS:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _misfit(error: ValidationError) -> Misfit:
    problems: list[tuple[str, str]] = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ""
        for segment in problem["loc"]:
            place += f"[{segment}]" if isinstance(segment, int) else f".{segment}" if place else segment
        problems.append((place, problem["msg"]))
    return Misfit(problems)


def _misfit_of_msgspec(error: msgspec.DecodeError) -> Misfit:
    # "Expected `int`, got `str` - at `$.user.id`", or "Object missing required field `email`" with or without a place.
    message, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").removeprefix(".")
    missing = message.removeprefix("Object missing required field `")
    if missing != message:
        name = missing.rstrip("`")
        return Misfit([(f"{place}.{name}" if place else name, "required, and missing")])
    return Misfit([(place, message)])
