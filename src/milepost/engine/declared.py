"""JSON schemas as `Declared`: how the server holds every writer to the type of a task's metadata (M76).

A worker registers the schema with its task; it was made of a Python type, or written by hand for another language. What JSON Schema
cannot say, such as a model's own validators, is checked where the model is at hand; here it is left open.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import logging
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import msgspec
from pydantic import AnyUrl, TypeAdapter, ValidationError

from milepost.model.jsonvalue import JSONValue, decode
from milepost.model.path import Segment, is_position
from milepost.model.typed import FREE, UNKNOWN, Misfit, Verdict
from milepost.protocol.work import NO_DECIMAL_POINT

if TYPE_CHECKING:
    # Loaded with the first schema: most servers never see one.
    import jsonschema_rs

logger = logging.getLogger("milepost.engine")

_MESSAGE_CHARACTERS_MAX = 200

# What says nothing about a value, or is followed below.
_NOTES: Final = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator",
        "examples", "readOnly", "title", "type", "writeOnly",
    }
)  # fmt: skip
_OF_OBJECTS: Final = _NOTES | {"additionalProperties", "properties", "required"}
_OF_ARRAYS: Final = _NOTES | {"items"}


class SchemaPlace:
    """One place of a document, and the part of the schema that is for it."""

    def __init__(self, schema: Any, root: dict[str, Any]) -> None:
        self._schema = schema
        self._root = root
        self._parts: dict[str, SchemaPlace] = {}
        self._validator: jsonschema_rs.Draft202012Validator | None = None
        inner = self._peeled(schema)
        self._inner = inner
        self._members = cast("dict[str, Any]", inner.get("properties", {}))
        self._is_array = inner.get("type") == "array" or "items" in inner
        self.is_free = not inner
        known = _OF_ARRAYS if self._is_array else _OF_OBJECTS
        self.is_whole = not known.issuperset(inner)

    def part(self, segment: Segment) -> SchemaPlace | Verdict:
        if self.is_free:
            return FREE
        if self._is_array:
            return FREE if isinstance(segment, str) and not is_position(segment) else self.item()
        kind = self._inner.get("type")
        if kind not in ("object", None) or not isinstance(segment, str):
            return UNKNOWN
        if segment in self._members:
            found = self._part(segment, self._members[segment])
            if not isinstance(found, Verdict) and found.is_impossible:
                raise Misfit([(segment, found.description)])
            return found
        if self.is_whole:
            return UNKNOWN
        others = self._inner.get("additionalProperties", True)
        if others is False:
            raise Misfit([(segment, "is declared nowhere in the type, which takes no other members")])
        return FREE if others is True else self._part("", others)

    def item(self) -> SchemaPlace | Verdict:
        if self.is_free:
            return FREE
        if not self._is_array or self.is_whole:
            return UNKNOWN
        return self._part("", self._inner.get("items", True))

    def keep(self, segment: Segment) -> None:
        if segment in self._inner.get("required", ()):
            raise Misfit([(str(segment), "is required, and cannot be taken away")])

    def check(self, value: JSONValue) -> None:
        import jsonschema_rs

        if self._validator is None:
            self._validator = _validator({**self._schema, "$defs": self._root.get("$defs", {})})
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            raise Misfit([_problem(error)]) from None

    def check_begun(self, document: dict[str, JSONValue]) -> None:
        missing = [name for name in self._inner.get("required", ()) if name not in document]
        if not missing:
            self.check(document)
            return
        begun = {**self._inner, "required": [name for name in self._inner["required"] if name not in missing]}
        SchemaPlace(begun, self._root).check(document)

    @property
    def is_impossible(self) -> bool:
        """True for the place of a member that may not be there: nothing fits it."""
        return cast("dict[str, Any]", self._schema).get("not") == {}

    @property
    def description(self) -> str:
        """What the schema says about the place, in words."""
        return str(self._inner.get("description", "may not be there"))[:_MESSAGE_CHARACTERS_MAX]

    def _part(self, name: str, schema: Any) -> SchemaPlace | Verdict:
        place = self._parts.get(name)
        if place is None:
            place = self._parts[name] = SchemaPlace(_as_object(schema), self._root)
        return FREE if place.is_free else place

    def _peeled(self, schema: Any) -> dict[str, Any]:
        """The schema without references around it, and without null where it may be null."""
        inner = cast("dict[str, Any]", _as_object(schema))
        for _ in range(100):
            keywords = inner.keys() - _NOTES
            if keywords == {"$ref"} and str(inner["$ref"]).startswith("#/$defs/"):
                name = inner["$ref"].removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
                inner = cast("dict[str, Any]", _as_object(self._root.get("$defs", {}).get(name, True)))
            elif keywords == {"anyOf"} or keywords == {"allOf"}:
                [keyword] = keywords
                others = [one for one in inner[keyword] if keyword == "allOf" or one != {"type": "null"}]
                if len(others) != 1:
                    return inner
                inner = cast("dict[str, Any]", _as_object(others[0]))
            else:
                return inner
        return inner


def declared_by(schema: bytes, task: str) -> SchemaPlace | None:
    """The root of documents of a task by its schema, a JSON text; None for a schema that cannot be used, of which the log tells."""
    import jsonschema_rs

    try:
        root = cast("dict[str, Any]", _as_object(decode(schema)))
        _validator(root)
        return SchemaPlace(root, root)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0][:_MESSAGE_CHARACTERS_MAX]
        logger.warning(
            "the metadata of task %r is not checked, because its schema cannot be used: %s", task, reason
        )
        return None


def _as_object(schema: Any) -> Any:
    if schema is True:
        return {}
    return {"not": {}} if schema is False else schema


def _problem(error: jsonschema_rs.ValidationError) -> tuple[str, str]:
    place = ""
    for segment in error.instance_path:
        place += f"[{segment}]" if isinstance(segment, int) else f".{segment}" if place else segment
    message = error.message
    if len(message) > _MESSAGE_CHARACTERS_MAX:
        half = _MESSAGE_CHARACTERS_MAX // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return place, message


class _NoDecimalPoint:
    """The keyword `x-noDecimalPoint`: a whole number that is written as `5.0` is none to the type's reader."""

    def __init__(self, asked: object, _schema: object, _path: object) -> None:
        self._is_asked = bool(asked)

    def validate(self, instance: object) -> None:
        if self._is_asked and isinstance(instance, float):
            raise ValueError(
                f"{instance} is written with a decimal point, and the type reads whole numbers only"
            )


# --- formats -------------------------------------------------------------------------------------------------


def _reads(kind: Any) -> Callable[[str], bool]:
    """Texts that both Pydantic and msgspec read as this type: nobody here knows which of them will."""
    adapter = TypeAdapter[Any](kind)

    def is_read(text: str) -> bool:
        try:
            msgspec.convert(text, kind)
            adapter.validate_python(text)
        except (msgspec.ValidationError, ValidationError):
            return False
        return True

    return is_read


def _passes(function: Callable[[str], object], text: str) -> bool:
    with contextlib.suppress(ValueError, re.error):
        function(text)
        return True
    return False


def _base64(text: str) -> None:
    try:
        base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _anything(_: str) -> bool:
    return True


# The library's own notion of these formats is stricter than what the types of the same name read, so it is not used.
_UNCHECKED: Final = (
    "hostname", "idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "relative-json-pointer", "uri-reference",
    "uri-template",
)  # fmt: skip
_FORMATS: Final[dict[str, Callable[[str], bool]]] = {
    **dict.fromkeys(_UNCHECKED, _anything),
    "email": lambda text: "@" in text,
    "date-time": _reads(datetime),
    "date": _reads(date),
    "time": _reads(time),
    "duration": _reads(timedelta),
    "uuid": _reads(UUID),
    "base64": partial(_passes, _base64),
    "uri": partial(_passes, TypeAdapter(AnyUrl).validate_python),
    "ipv4": partial(_passes, ipaddress.IPv4Address),
    "ipv6": partial(_passes, ipaddress.IPv6Address),
    "ipv4network": partial(_passes, ipaddress.IPv4Network),
    "ipv6network": partial(_passes, ipaddress.IPv6Network),
    "ipv4interface": partial(_passes, ipaddress.IPv4Interface),
    "ipv6interface": partial(_passes, ipaddress.IPv6Interface),
    "regex": partial(_passes, re.compile),
}


def _nothing_from_elsewhere(address: str) -> Any:
    raise ValueError(f"a schema may not refer to {address}")


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    import jsonschema_rs

    return jsonschema_rs.Draft202012Validator(
        schema,
        formats=_FORMATS,
        validate_formats=True,
        retriever=_nothing_from_elsewhere,
        keywords=cast("Any", {NO_DECIMAL_POINT: _NoDecimalPoint}),
    )
