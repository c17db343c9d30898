"""A Python type as a shape of JSON: what a value must look like, the value that it becomes, and the JSON that it is sent as.

Payloads, outputs and typed metadata pass through here, by one rule: **what goes through an annotation comes out of it equal, or is
refused where it is sent, with the place.** Pydantic does the work for its models, dataclasses, typed dictionaries and plain types;
msgspec for what Pydantic does not know: `msgspec.Struct`, attrs classes and `bytearray`, alone or inside other types.

To be sent, a value is first made one of its type, as Pydantic understands that (`"5"` for an `int` is 5, a `dict` for a model is the
model). Then it is written, read again as its reader will read it, and compared. Where the annotation says nothing (none at all, `Any`,
`object`), a value becomes plain JSON by the rules of metadata (M72) and is read as that: a tuple as a list, a time as text.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Annotated, Any, Generic, Protocol, TypeVar, Union, cast

import msgspec
import typing_extensions
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from milepost.client.comparison import Place, describe_place, difference
from milepost.client.wire_form import TOO_LARGE_INTEGER, WireForm, untyped_values
from milepost.errors import MetadataValueError, UsageError
from milepost.model.jsonvalue import check_json, decode, encode, to_json

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

    def describe_in(self, whole: str) -> str:
        """As `describe`, with places that begin at `whole`: `output.rows[3]`."""
        return Misfit([(_joined(whole, place), message) for place, message in self.problems]).describe(whole)


class Unsendable(Misfit):
    """A value has the shape, and what would arrive of it is not equal to it."""


def _joined(whole: str, place: str) -> str:
    return whole if not place else f"{whole}{place}" if place.startswith("[") else f"{whole}.{place}"


class Codec(Protocol):
    """One way to check, write and read the values of a type."""

    @property
    def is_exact(self) -> bool:
        """What passed `check` is surely read back equal."""
        ...

    def check(self, value: object) -> Any:
        """The value of the type that a Python value stands for. Raises Misfit."""
        ...

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        """JSON text, and which places the annotation says nothing about. Raises Unsendable."""
        ...

    def read(self, text: bytes | str) -> Any:
        """The value in a text. Raises Misfit."""
        ...

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of what travels."""
        ...


class Shape(Generic[ValueT]):
    """One type. Get it from `shape_of`, which keeps the built ones."""

    def __init__(self, annotation: Any, codec: Codec | None = None) -> None:
        self._codec = codec or _codec_of(annotation)

    def check(self, value: object) -> ValueT:
        """The value of this type that a Python value stands for: itself, or what it can be read as. Raises Misfit."""
        return cast("ValueT", self._codec.check(value))

    def write(self, value: object) -> bytes:
        """The JSON text of a value, checked first, such that `read` gives it again.

        Raises: Misfit for what does not fit; Unsendable, which is one, for what would not come back equal; both name the place.
        """
        codec = self._codec
        checked = codec.check(value)
        text, is_untyped = codec.write(checked)
        if TOO_LARGE_INTEGER.search(text):
            _check_integers(text)
        if codec.is_exact:
            return text
        try:
            back = codec.read(text)
        except Misfit as misfit:
            reason = _unstorable(checked) or [
                (place, f"would not be read back: {message}") for place, message in misfit.problems
            ]
            raise Unsendable(reason) from None
        found = difference(checked, back, is_untyped, lambda: codec.read(text))
        if found is not None:
            raise Unsendable([found])
        return text

    def read(self, text: bytes | str) -> ValueT:
        """The value of this type that a JSON text stands for. Raises Misfit."""
        return cast("ValueT", self._codec.read(text))

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of what travels; None when there is none to tell."""
        try:
            return self._codec.json_schema()
        except Exception:  # of the user's types; the schema only describes, so the task works without
            return None


def _check_integers(text: bytes) -> None:
    try:
        check_json(decode(text))
    except MetadataValueError as error:
        raise Unsendable([("", error.message)]) from None
    except msgspec.DecodeError as error:
        raise Unsendable([("", f"is no JSON: {error}")]) from None


def _unstorable(value: object) -> list[tuple[str, str]] | None:
    """What in a value has no JSON form by our own rules, for a message that names the place; None when they know nothing."""
    try:
        to_json(value)
    except MetadataValueError as error:
        place, _, reason = error.message.rpartition(": ")
        return [(place, reason)]
    except Exception:  # a serializer of the user's
        return None
    return None


# --- the ways to check, write and read -----------------------------------------------------------------------


class _Untyped:
    """For no annotation, `Any` and `object`: plain JSON."""

    is_exact = True

    def check(self, value: object) -> Any:
        return value

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        try:
            return encode(to_json(value)), _nowhere
        except MetadataValueError as error:
            place, _, reason = error.message.rpartition(": ")
            raise Unsendable([(place, reason)]) from None

    def read(self, text: bytes | str) -> Any:
        try:
            return decode(text)
        except msgspec.DecodeError as error:
            raise _misfit_of_msgspec(error) from None

    def json_schema(self) -> dict[str, Any]:
        return {}


class PydanticCodec:
    """By Pydantic, in the wire form."""

    def __init__(self, form: WireForm) -> None:
        self.form = form
        self.is_exact = form.is_exact
        self._validator = form.validator
        self._serializer = form.serializer

    def check(self, value: object) -> Any:
        try:
            return self._validator.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            raise misfit_of(error) from None

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        untyped: set[int] = set()
        token = untyped_values.set(untyped)
        try:
            text = self._serializer.to_json(value, by_alias=True, round_trip=True, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError) as error:
            reason = str(error).partition(": ")[2] if "Error calling function" in str(error) else str(error)
            raise Unsendable(_unstorable(value) or [("", reason or type(error).__name__)]) from None
        finally:
            untyped_values.reset(token)
        return text, (lambda _, part: id(part) in untyped) if untyped else _nowhere

    def read(self, text: bytes | str) -> Any:
        try:
            return self._validator.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as error:
            raise misfit_of(error) from None

    def json_schema(self) -> dict[str, Any]:
        return self.form.json_schema()


class MsgspecCodec:
    """By msgspec, which asks the other shapes for types that it does not know."""

    is_exact = False

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._decoder = msgspec.json.Decoder[Any](annotation, dec_hook=_read_foreign)

    def check(self, value: object) -> Any:
        try:
            checked = msgspec.convert(value, self._annotation, dec_hook=_check_foreign)
        except msgspec.ValidationError as error:
            raise _misfit_of_msgspec(error) from None
        lost = _lost_key(value, checked, ())
        if lost is not None:
            raise Unsendable([(describe_place(lost), "is declared nowhere in the type, and would be lost")])
        return checked

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        try:
            return _msgspec_encode(value), self._is_untyped
        except Misfit:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise Unsendable(_unstorable(value) or [("", str(error))]) from None

    def read(self, text: bytes | str) -> Any:
        try:
            return self._decoder.decode(text)
        except msgspec.DecodeError as error:
            raise _misfit_of_msgspec(error) from None

    def json_schema(self) -> dict[str, Any]:
        return _described(msgspec.json.schema(self._annotation, schema_hook=_foreign_schema))

    def _is_untyped(self, place: Place, _: object) -> bool:
        kinds = [self._annotation]
        for segment in place:
            kinds = [part for kind in kinds for part in parts_of(kind, segment)]
        return any(
            kind in (Any, object) or isinstance(kind, TypeVar)
            for each in kinds
            for kind in _alternatives(each)
        )


def _nowhere(_: Place, __: object) -> bool:
    return False


def _lost_key(value: Any, checked: Any, place: Place) -> Place | None:
    """A key of a `dict` that is not in the `dict` that it became."""
    pairs: list[tuple[str | int, Any, Any]] = []
    if isinstance(value, dict) and isinstance(checked, dict):
        given, kept = cast("dict[Any, Any]", value), cast("dict[Any, Any]", checked)
        lost = [key for key in given if key not in kept]
        if lost and len(kept) < len(given):
            return (*place, str(lost[0]))
        pairs = [(str(key), item, kept[key]) for key, item in given.items() if key in kept]
    elif isinstance(value, list) and isinstance(checked, list):
        items, others = cast("list[Any]", value), cast("list[Any]", checked)
        pairs = [(index, item, other) for index, (item, other) in enumerate(zip(items, others, strict=False))]
    found = (_lost_key(item, other, (*place, segment)) for segment, item, other in pairs)
    return next((one for one in found if one is not None), None)


def _write_foreign(value: Any) -> Any:
    """What msgspec writes for an object that it does not know."""
    kind: Any = type(value)
    codec = _pydantic_codec(kind)
    # A subclass, such as a kind of path, is written like any value.
    return to_json(value) if codec is None else msgspec.Raw(codec.write(value)[0])


def _read_foreign(kind: type[Any], value: Any) -> Any:
    return _foreign_codec(kind).read(encode(value))


def _check_foreign(kind: type[Any], value: Any) -> Any:
    return value if type(value) is kind else _foreign_codec(kind).check(value)


def _foreign_codec(kind: type[Any]) -> PydanticCodec:
    codec = _pydantic_codec(kind)
    if codec is None:
        raise Misfit([("", f"an instance of {name_of(kind)} cannot be read from JSON")])
    return codec


def _foreign_schema(kind: type[Any]) -> dict[str, Any]:
    codec = _pydantic_codec(kind)
    return {} if codec is None else codec.json_schema()


def _new_pydantic_codec(annotation: Any) -> PydanticCodec | None:
    """The way of Pydantic to read and write a type; None when it does not know the type."""
    try:
        return PydanticCodec(WireForm.of(TypeAdapter[Any](annotation).core_schema))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


_pydantic_codec = lru_cache(maxsize=1024)(_new_pydantic_codec)
_msgspec_encode = msgspec.json.Encoder(enc_hook=_write_foreign).encode


def _described(schema: Any) -> Any:
    """msgspec's JSON schema, with the one format that it does not name."""
    if isinstance(schema, list):
        return [_described(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    described = {key: _described(value) for key, value in cast("dict[str, Any]", schema).items()}
    if described.get("contentEncoding") == "base64":
        described["format"] = "base64"
    return described


def _codec_of(annotation: Any) -> Codec:
    if annotation is Any or annotation is object:
        return _Untyped()
    if not is_msgspec_type(annotation):
        codec = _new_pydantic_codec(annotation)
        if codec is not None:
            return codec
    try:
        return MsgspecCodec(annotation)
    except TypeError as error:
        raise UsageError(
            f"{name_of(annotation)} cannot be read from JSON; use a Pydantic model, a dataclass, a TypedDict, a msgspec.Struct "
            f"or a type made of them ({error})"
        ) from None


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
    if not any(map(is_msgspec_type, [annotation, *_alternatives(annotation)])):
        return parts
    return [Annotated[part, _BY_MSGSPEC] for part in parts]


def is_msgspec_type(annotation: Any) -> bool:
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


def misfit_of(error: ValidationError) -> Misfit:
    return Misfit(
        [
            (describe_place(problem["loc"]), problem["msg"])
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    )


def _misfit_of_msgspec(error: msgspec.DecodeError) -> Misfit:
    # "Expected `int`, got `str` - at `$.user.id`", or "Object missing required field `email`" with or without a place.
    message, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").removeprefix(".")
    missing = message.removeprefix("Object missing required field `")
    if missing != message:
        name = missing.rstrip("`")
        return Misfit([(f"{place}.{name}" if place else name, "required, and missing")])
    return Misfit([(place, message)])
