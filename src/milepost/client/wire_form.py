"""Pydantic's types in the form in which they travel: one fixed JSON form for each type, whatever its own settings say.

A payload, an output or a metadata field is written by one process and read by another one, so what is written has to be what is read.
Pydantic's defaults do not promise that: bytes are written as UTF-8 text, secrets as asterisks, a field under its serialization alias
and read under its validation alias. So the core schema of a type is taken and a few of its nodes are changed:

    bytes                 base64 text in both directions, as everywhere in Milepost (M72)
    secrets               their value
    Any, object           plain JSON by the rules of `to_json` (M72)
    fields with aliases   written by the serialization alias, if any; read by that, by the validation aliases and by the name
    TypedDict             keys that it does not declare are kept
    Iterable, Generator   read as a list
    times and durations   ISO 8601 text
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, cast

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import (
    PydanticOmit,
    PydanticSerializationUnexpectedValue,
    SchemaSerializer,
    SchemaValidator,
)

from milepost.model.jsonvalue import to_json
from milepost.protocol.work import NO_DECIMAL_POINT

Node = dict[str, Any]
"""A node of a core schema."""

_SETTINGS: Final[Node] = {
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
    "ser_json_timedelta": "iso8601",
    "ser_json_temporal": "iso8601",
}

# What stands under these keys is no part of the schema, though it may look like one.
_OPAQUE = frozenset(
    {"cls", "custom_error_context", "default", "expected", "function", "members", "metadata", "missing"}
)
_OBJECTS = frozenset({"model", "dataclass", "typed-dict"})
_FIELDS = frozenset({"model-field", "dataclass-field", "typed-dict-field"})
_EXACT = frozenset({"bool", "int", "none", "str"})


def _write_bytes(value: object) -> str:
    if not isinstance(value, bytes | bytearray):
        # In a union this means that another member is to write it.
        raise PydanticSerializationUnexpectedValue(f"expected bytes, not {type(value).__name__}")
    return base64.b64encode(value).decode("ascii")


def _write_secret(value: Any) -> Any:
    secret = value.get_secret_value()
    return _write_bytes(secret) if isinstance(secret, bytes) else secret


untyped_values: ContextVar[set[int] | None] = ContextVar("milepost_untyped_values", default=None)
"""While something is written: the `id`s of the values whose annotation says nothing (Any)."""


def _write_untyped(value: object) -> Any:
    seen = untyped_values.get()
    if seen is not None:
        seen.add(id(value))
    return to_json(value)


def _written_by(function: Callable[[Any], Any]) -> Node:
    return {"type": "function-plain", "function": function, "when_used": "json"}


_OURS = (_write_bytes, _write_secret, _write_untyped)


class WireForm:
    """A type in the form in which it travels.

    Attributes:
        schema: the core schema; `validator` and `serializer` are made of it.
        is_exact: what passed the validator is surely read back equal, so that nobody needs to try.
    """

    def __init__(self, core_schema: Any, definitions: list[Node] | None = None) -> None:
        node = cast("Node", core_schema)
        if definitions:
            node = {"type": "definitions", "schema": node, "definitions": definitions}
        self.schema: Node = node
        self.is_exact = _is_exact(node)
        # Models bring validators of their own, built with their own settings: they are not what is wanted here.
        schema = cast("Any", node)
        self.validator = SchemaValidator(schema, cast("Any", _SETTINGS), _use_prebuilt=False)
        self.serializer = SchemaSerializer(schema, cast("Any", _SETTINGS), _use_prebuilt=False)

    @classmethod
    def of(cls, core_schema: Any) -> WireForm:
        """The form of a type whose core schema Pydantic has made."""
        return cls(_changed(core_schema))

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of what travels. A part that no schema can describe is left open."""
        return _WireJsonSchema().generate(cast("Any", self.schema), mode="validation")

    def stored_json_schema(self) -> dict[str, Any]:
        """As `json_schema`, with each field under the name by which it is written, and none under the others by which it may be read:
        a document that others change by its keys must not have one field twice."""
        return _WireJsonSchema().generate(_as_stored(self.schema), mode="validation")


def _changed(node: Any) -> Any:
    if isinstance(node, list):
        return [_changed(item) for item in cast("list[Any]", node)]
    if isinstance(node, tuple):
        return tuple(_changed(item) for item in cast("tuple[Any, ...]", node))
    if not isinstance(node, dict):
        return node
    old = cast("Node", node)
    new: Node = {}
    for key, value in old.items():
        if key in _OPAQUE:
            new[key] = value
        elif key == "serialization" and isinstance(value, dict):
            own = cast("Node", value)
            new[key] = {
                name: _changed(part) if name in ("schema", "return_schema") else part
                for name, part in own.items()
            }
        else:
            new[key] = _changed(value)
    kind = old.get("type")
    serialization = cast("Node", old.get("serialization") or {})
    if _is_secret(serialization.get("function")):
        new["serialization"] = _written_by(_write_secret)
    elif kind == "bytes" and not serialization:
        new["serialization"] = _written_by(_write_bytes)
    elif kind == "any" and not serialization:
        new["serialization"] = _written_by(_write_untyped)
    elif kind == "generator":
        new = {"type": "list", **({"items_schema": new["items_schema"]} if "items_schema" in new else {})}
    elif kind in _OBJECTS and "cls" in old:
        settings = cast("Node", old.get("config") or {})
        # Only text stands for what is no JSON number, and only where the type asks for it.
        numbers = "strings" if settings.get("ser_json_inf_nan") == "strings" else "null"
        new["config"] = {**settings, **_SETTINGS, "ser_json_inf_nan": numbers}
        if kind == "typed-dict" and old.get("extra_behavior", "ignore") == "ignore":
            asked: object = getattr(old["cls"], "__pydantic_config__", None)
            if not (isinstance(asked, Mapping) and "extra" in asked):
                new["extra_behavior"] = "allow"
    elif kind in _FIELDS and old.get("serialization_alias") is not None:
        alias = old["serialization_alias"]
        new["validation_alias"] = [[alias], *(path for path in _paths_of(old) if path != [alias])]
    return new


def written_name(name: str, field: Node) -> tuple[str, list[str]]:
    """The name by which a field is written, and the others by which it may be read."""
    written: str = field.get("serialization_alias") or name
    heads = [name, *(path[0] for path in _paths_of(field))]
    return written, [head for head in dict.fromkeys(heads) if head != written]


def _paths_of(field: Node) -> list[list[Any]]:
    """The validation aliases of a field, each as a path."""
    known: Any = field.get("validation_alias", [])
    if isinstance(known, str):
        return [[known]]
    return [cast("list[Any]", path) if isinstance(path, list) else [path] for path in known]


_OTHER_NAMES = "milepost_other_names"


def _as_stored(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_as_stored(item) for item in cast("Sequence[Any]", node)]
    if not isinstance(node, dict):
        return node
    old = cast("Node", node)
    new: Node = {
        key: value if key in _OPAQUE or key == "serialization" else _as_stored(value)
        for key, value in old.items()
    }
    fields: Any = new.get("fields")
    if isinstance(fields, dict):
        for name, field in cast("dict[str, Node]", fields).items():
            _name_as_stored(name, field)
    elif old.get("type") == "dataclass-args":
        for field in cast("list[Node]", fields):
            _name_as_stored(field["name"], field)
    return new


def _name_as_stored(name: str, field: Node) -> None:
    written, others = written_name(name, field)
    field["metadata"] = {**field.get("metadata", {}), _OTHER_NAMES: (written, others)}
    field.pop("validation_alias", None)
    if written != name:
        field["validation_alias"] = written


def _is_secret(function: object) -> bool:
    """True for the functions by which Pydantic writes asterisks."""
    name = getattr(function, "__name__", "")
    return getattr(function, "__module__", None) == "pydantic.types" and name.startswith("_serialize_secret")


def _is_exact(node: Node) -> bool:
    kind = node.get("type")
    if "serialization" in node:
        return False
    if kind in _EXACT:
        return True
    if kind == "nullable":
        return _is_exact(node["schema"])
    if kind == "list":
        return "items_schema" in node and _is_exact(node["items_schema"])
    if kind == "dict":
        keys = node.get("keys_schema", {})
        return keys.get("type") == "str" and "values_schema" in node and _is_exact(node["values_schema"])
    return False


class _WireJsonSchema(GenerateJsonSchema):
    """Describes what travels, as far as JSON Schema can say it; and never more than that."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        function: object = cast("Node", schema.get("serialization") or {}).get("function")
        module = getattr(function, "__module__", "")
        if function is not None and function not in _OURS and not module.startswith("pydantic"):
            # Written by a function of the user's: nobody can tell what.
            return {}
        return super().generate_inner(schema)

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}

    def int_schema(self, schema: Any) -> JsonSchemaValue:
        described = super().int_schema(schema)
        return {**described, NO_DECIMAL_POINT: True} if schema.get("strict") else described

    def bytes_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": "string", "contentEncoding": "base64", "format": "base64"}

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        described = super().datetime_schema(schema)
        if schema.get("tz_constraint") == "aware":
            described["pattern"] = r"([Zz]|[+-]\d\d:?\d\d(:?\d\d)?)$"
        return described

    def tagged_union_schema(self, schema: Any) -> JsonSchemaValue:
        described = super().tagged_union_schema(schema)
        if "oneOf" in described and callable(schema["discriminator"]):
            # A function picks the member, and others may fit as well.
            described["anyOf"] = described.pop("oneOf")
        return described

    def model_fields_schema(self, schema: Any) -> JsonSchemaValue:
        return self._without_other_names(super().model_fields_schema(schema), schema["fields"].values())

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return self._without_other_names(super().typed_dict_schema(schema), schema["fields"].values())

    def dataclass_args_schema(self, schema: Any) -> JsonSchemaValue:
        return self._without_other_names(super().dataclass_args_schema(schema), schema["fields"])

    @staticmethod
    def _without_other_names(described: JsonSchemaValue, fields: Iterable[Node]) -> JsonSchemaValue:
        members = described.setdefault("properties", {})
        for field in fields:
            written, others = field.get("metadata", {}).get(_OTHER_NAMES, ("", ()))
            for other in others:
                members.setdefault(other, {"not": {}, "description": f"is written as {written!r}"})
        return described

    def set_schema(self, schema: Any) -> JsonSchemaValue:
        return self._without_unique(super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> JsonSchemaValue:
        return self._without_unique(super().frozenset_schema(schema))

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        described = super().dict_schema(schema)
        if "keys_schema" in schema and "propertyNames" not in described:
            try:
                keys = self.generate_inner(schema["keys_schema"])
            except PydanticOmit:
                return described
            names = _names_of(keys)
            if names:
                described["propertyNames"] = names
        return described

    @staticmethod
    def _without_unique(described: JsonSchemaValue) -> JsonSchemaValue:
        # Readers of a set take an item that comes twice.
        described.pop("uniqueItems", None)
        return described


_WHOLE_NUMBER = r"^[+-]?\d+$"


def _names_of(keys: JsonSchemaValue) -> JsonSchemaValue | None:
    """What keys of this schema look like as the names of an object's members; None when that says nothing."""
    if keys.get("type") == "integer":
        return {"pattern": _WHOLE_NUMBER}
    if "enum" in keys or "const" in keys:
        values = keys.get("enum", [keys.get("const")])
        return {"enum": [value if isinstance(value, str) else str(value) for value in values]}
    return None
