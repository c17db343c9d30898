"""The ways to check, write and read the values of a type: by Pydantic, by msgspec, or as plain JSON."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from milepost.client.annotations import alternatives, is_msgspec_type, name_of, parts_of
from milepost.client.comparison import Place
from milepost.client.unsendable import Unsendable, nowhere, unstorable
from milepost.errors import MetadataValueError, UsageError
from milepost.model.jsonvalue import decode, encode, kind_of, to_json
from milepost.model.typed import Misfit, describe_place
from milepost.protocol.work import NO_DECIMAL_POINT

if TYPE_CHECKING:
    from milepost.client.pydantic_codec import PydanticCodec


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


class _Untyped:
    """For no annotation, `Any` and `object`: plain JSON."""

    is_exact = True

    def check(self, value: object) -> Any:
        return value

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        try:
            return encode(to_json(value)), nowhere
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


class _Plain:
    """For `int`, `str` and `bool`: what is one already needs no library. Pydantic decides what else can be read as one, and is loaded
    with the first such value."""

    is_exact = True

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    def check(self, value: object) -> Any:
        return value if type(value) is self._kind else self._by_pydantic.check(value)

    def write(self, value: Any) -> tuple[bytes, Callable[[Place, object], bool]]:
        if type(value) is self._kind:
            with suppress(ValueError):
                return encode(value), nowhere
        return self._by_pydantic.write(value)

    def read(self, text: bytes | str) -> Any:
        # Pydantic says what is wrong with the others.
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = decode(text)
            if type(value) is self._kind:
                return value
        return self._by_pydantic.read(text)

    def json_schema(self) -> dict[str, Any]:
        return {"type": _PLAIN[self._kind]}

    @property
    def _by_pydantic(self) -> PydanticCodec:
        return _foreign_codec(self._kind)


_PLAIN: dict[Any, str] = {int: "integer", str: "string", bool: "boolean"}


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
            raise Unsendable(unstorable(value) or [("", str(error))]) from None

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
            for kind in alternatives(each)
        )


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
    codec = _pydantic_codec(kind_of(value))
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
    # Only now: whoever annotates nothing does not wait for Pydantic to be loaded.
    from milepost.client.pydantic_codec import pydantic_codec

    return pydantic_codec(annotation)


_pydantic_codec = lru_cache(maxsize=1024)(_new_pydantic_codec)
_msgspec_encode = msgspec.json.Encoder(enc_hook=_write_foreign).encode


def _described(schema: Any) -> Any:
    """msgspec's JSON schema, with what it does not say: the format of bytes, and how whole numbers are written."""
    if isinstance(schema, list):
        return [_described(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    described = {key: _described(value) for key, value in cast("dict[str, Any]", schema).items()}
    if described.get("contentEncoding") == "base64":
        described["format"] = "base64"
    if described.get("type") == "integer":
        described[NO_DECIMAL_POINT] = True
    return described


def codec_of(annotation: Any) -> Codec:
    if annotation is Any or annotation is object:
        return _Untyped()
    if isinstance(annotation, type) and annotation in _PLAIN:
        return _Plain(cast("type[Any]", annotation))
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


def _misfit_of_msgspec(error: msgspec.DecodeError) -> Misfit:
    # "Expected `int`, got `str` - at `$.user.id`", or "Object missing required field `email`" with or without a place.
    message, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").removeprefix(".")
    missing = message.removeprefix("Object missing required field `")
    if missing != message:
        name = missing.rstrip("`")
        return Misfit([(f"{place}.{name}" if place else name, "required, and missing")])
    return Misfit([(place, message)])
