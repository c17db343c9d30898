"""Python types as `Declared`: what a metadata type says about each place of a document, and how values are converted there.

Pydantic's types are looked at through their core schema in the wire form, so that a member is judged by all that its model says about
it, `@field_validator`s included, without the rest of the document. msgspec's types (Struct, attrs) are looked at through their
annotations.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import deque
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, Protocol, cast

import msgspec
import typing_extensions
from pydantic import ValidationError

from milepost.client.annotations import alternatives, has_members, members_of, name_of
from milepost.client.codecs import MsgspecCodec
from milepost.client.pydantic_codec import PydanticCodec, misfit_of
from milepost.client.shape import Shape, shape_of
from milepost.client.wire_form import Node, WireForm, written_name
from milepost.errors import UsageError
from milepost.model.jsonvalue import JSONValue, decode, describe, encode, json_equal
from milepost.model.path import Segment, is_position
from milepost.model.typed import FREE, UNKNOWN, Declared, Misfit, Verdict


class TypedPlace(Declared, Protocol):
    """A declared place that can also convert Python values."""

    def part(self, segment: Segment) -> TypedPlace | Verdict: ...
    def item(self) -> TypedPlace | Verdict: ...

    def convert(self, value: object) -> JSONValue:
        """The JSON form in which a Python value is stored here, such that it is read back equal. Raises Misfit."""
        ...

    def json_schema(self) -> dict[str, Any] | None:
        """The JSON schema of what is stored here."""
        ...


def declared_root(annotation: Any) -> TypedPlace:
    """The root of documents of a type. Raises UsageError for a type that no JSON object can be."""
    codec = shape_of(annotation).codec
    root: _PydanticPlace | _MsgspecPlace
    if isinstance(codec, PydanticCodec):
        root = _PydanticPlace(codec.form.schema, _definitions(codec.form.schema))
    else:
        root = _MsgspecPlace(annotation)
    if not root.is_object:
        raise UsageError(
            f"{name_of(annotation)} cannot be the type of metadata, because a metadata document is a JSON object: "
            f"use a model, dataclass, TypedDict or msgspec.Struct with a field for each key"
        )
    return root


class _Place:
    """What both kinds share: values go through a shape that is built when it is first needed."""

    _shape: Shape[Any] | None = None

    def _new_shape(self) -> Shape[Any]:
        raise NotImplementedError

    @property
    def _own_shape(self) -> Shape[Any]:
        if self._shape is None:
            self._shape = self._new_shape()
        return self._shape

    def convert(self, value: object) -> JSONValue:
        return decode(self._own_shape.write(value))

    def check(self, value: JSONValue) -> None:
        typed = self._own_shape.read(encode(value))
        if not isinstance(value, list | dict):
            # What an operation has made of a number or a text is to be of the type, and not only be read as it: a time is no number.
            stored = self.convert(typed)
            if not json_equal(stored, value):
                raise Misfit(
                    [
                        (
                            "",
                            f"{describe(value)} is read as {describe(stored)}, which is how it is to be stored",
                        )
                    ]
                )

    def json_schema(self) -> dict[str, Any] | None:
        return self._own_shape.json_schema()


# --- Pydantic ------------------------------------------------------------------------------------------------

_ARRAYS: Final = frozenset({"list", "set", "frozenset", "deque"})
_FUNCTIONS: Final = frozenset({"function-after", "function-before", "function-wrap", "function-plain"})
_BOUNDS: Final = ("min_length", "max_length", "serialization")


class _Member:
    """A member of an object as a model declares it."""

    __slots__ = ("is_required", "node")

    def __init__(self, node: Node, is_required: bool) -> None:
        self.node = node
        self.is_required = is_required


class _PydanticPlace(_Place):
    def __init__(self, node: Node, definitions: dict[str, Node]) -> None:
        self._node = node
        self._definitions = definitions
        self._parts: dict[str, _PydanticPlace] = {}
        self._item: _PydanticPlace | None = None
        # What is left when all that says nothing about the parts is taken off, and whether something over all parts was met.
        self.is_whole = False
        self._inner = self._peeled(node)
        self._members: dict[str, _Member] | None = None
        self._other_names: dict[str, str] = {}
        self._others: str | Node = "ignore"
        kind = self._inner.get("type")
        if kind in ("model-fields", "dataclass-args", "typed-dict"):
            self._learn_members()
        elif kind == "dict" and not _is_plain_text(self._resolved(self._inner.get("keys_schema", {}))):
            self.is_whole = True
        if any(bound in self._inner for bound in _BOUNDS) or kind == "tuple":
            self.is_whole = True

    @property
    def is_object(self) -> bool:
        kind = self._inner.get("type")
        return self._members is not None or kind == "dict"

    def _new_shape(self) -> Shape[Any]:
        return Shape(None, PydanticCodec(self._new_form()))

    # --- the parts ---

    def part(self, segment: Segment) -> _PydanticPlace | Verdict:
        inner = self._inner
        kind = inner.get("type")
        if kind == "any":
            return FREE
        if self._members is not None:
            return self._member(segment) if isinstance(segment, str) else FREE
        if kind == "dict":
            return self._part("", inner.get("values_schema")) if isinstance(segment, str) else FREE
        if kind in _ARRAYS:
            return FREE if isinstance(segment, str) and not is_position(segment) else self.item()
        return UNKNOWN

    def _member(self, name: str) -> _PydanticPlace | Verdict:
        members = self._members
        assert members is not None
        member = members.get(name)
        if member is not None:
            return self._part(name, member.node)
        if name in self._other_names:
            raise Misfit([(name, f"is written as {self._other_names[name]!r}")])
        if self._others == "forbid":
            raise Misfit([(name, "is declared nowhere in the type, which takes no other members")])
        return FREE if isinstance(self._others, str) else self._part("", self._others)

    def item(self) -> _PydanticPlace | Verdict:
        if self._inner.get("type") == "any":
            return FREE
        if self._inner.get("type") not in _ARRAYS or self.is_whole:
            return UNKNOWN
        if self._item is None:
            found = self._part("", self._inner.get("items_schema"))
            if isinstance(found, Verdict):
                return found
            self._item = found
        return self._item

    def _part(self, name: str, node: Node | None) -> _PydanticPlace | Verdict:
        if node is None or self._resolved(node).get("type") == "any":
            return FREE
        place = self._parts.get(name)
        if place is None:
            place = self._parts[name] = _PydanticPlace(node, self._definitions)
        return place

    def keep(self, segment: Segment) -> None:
        member = (self._members or {}).get(segment) if isinstance(segment, str) else None
        if member is not None and member.is_required:
            raise Misfit([(str(segment), "is required, and cannot be taken away")])

    def check_begun(self, document: dict[str, JSONValue]) -> None:
        try:
            codec = self._own_shape.codec
            assert isinstance(codec, PydanticCodec)
            codec.form.validator.validate_json(encode(document), by_alias=True, by_name=True)
        except ValidationError as error:
            problems = [
                problem
                for problem in error.errors(include_url=False, include_context=False, include_input=False)
                if not (
                    problem["type"] == "missing"
                    and len(problem["loc"]) == 1
                    and problem["loc"][0] not in document
                )
            ]
            if problems:
                raise misfit_of(error) from None

    def json_schema(self) -> dict[str, Any] | None:
        try:
            return self._new_form().stored_json_schema()
        except Exception:  # of the user's types; then the server does not check
            return None

    def _new_form(self) -> WireForm:
        if self._node.get("type") == "definitions":
            return WireForm(self._node)
        return WireForm(self._node, list(self._definitions.values()))

    # --- looking into the core schema ---

    def _resolved(self, node: Node) -> Node:
        """The node without references and defaults."""
        while True:
            kind = node.get("type")
            if kind == "definition-ref":
                node = self._definitions[node["schema_ref"]]
            elif kind in ("default", "definitions"):
                node = node["schema"]
            else:
                return node

    def _peeled(self, node: Node) -> Node:
        while True:
            node = self._resolved(node)
            kind = node.get("type")
            if kind == "model":
                self.is_whole = self.is_whole or _has_own_rules(node)
                node = node["schema"]
            elif kind == "dataclass":
                self.is_whole = self.is_whole or bool(node.get("post_init"))
                node = node["schema"]
            elif kind == "nullable":
                node = node["schema"]
            elif kind in _FUNCTIONS and "schema" in node:
                self.is_whole = True
                node = node["schema"]
            else:
                return node

    def _learn_members(self) -> None:
        inner = self._inner
        fields = cast("dict[str, Node] | list[Node]", inner["fields"])
        named = (
            list(fields.items())
            if isinstance(fields, dict)
            else [(str(field["name"]), field) for field in fields if field.get("init", True)]
        )
        self._members = {}
        for name, field in named:
            written, others = written_name(name, field)
            node = cast("Node", field["schema"])
            is_required = field.get("required", not _has_default(node))
            self._members[written] = _Member(node, is_required)
            self.is_whole = self.is_whole or _asks_for_others(node)
            self._other_names.update(dict.fromkeys(others, written))
        for name in self._members:
            self._other_names.pop(name, None)
        extra: Any = inner.get("extra_behavior") or _settings_of(self._node, self._resolved).get(
            "extra_fields_behavior", "ignore"
        )
        self._others = inner["extras_schema"] if extra == "allow" and "extras_schema" in inner else extra


def _definitions(node: Node) -> dict[str, Node]:
    found: dict[str, Node] = {}
    pending: list[Any] = [node]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            part = cast("Node", one)
            if part.get("type") == "definitions":
                found.update({definition["ref"]: definition for definition in part["definitions"]})
            pending.extend(value for key, value in part.items() if key not in ("cls", "metadata", "default"))
        elif isinstance(one, list | tuple):
            pending.extend(cast("Sequence[Any]", one))
    return found


def _settings_of(node: Node, resolve: Any) -> Node:
    """The settings of the model or dataclass that a node is."""
    while True:
        node = resolve(node)
        if node.get("type") in ("model", "dataclass", "typed-dict"):
            return node.get("config") or {}
        if "schema" not in node:
            return {}
        node = node["schema"]


def _has_own_rules(model: Node) -> bool:
    """True for a model that does something of its own when it is made."""
    if model.get("custom_init"):
        return True
    post_init = model.get("post_init")
    if not post_init:
        return False
    function = getattr(model["cls"], "model_post_init", None)
    return not getattr(function, "__module__", "").startswith("pydantic")


def _has_default(node: Node) -> bool:
    while True:
        if node.get("type") == "default":
            return True
        if node.get("type") not in _FUNCTIONS or "schema" not in node:
            return False
        node = node["schema"]


def _asks_for_others(node: Any) -> bool:
    """True when a validator of a field can see the other fields (`info.data`), so that the field cannot be judged alone."""
    if isinstance(node, list | tuple):
        return any(map(_asks_for_others, cast("Sequence[Any]", node)))
    if not isinstance(node, dict):
        return False
    part = cast("Node", node)
    kind = part.get("type")
    if kind in ("model", "dataclass", "typed-dict", "definition-ref"):
        return False
    function = part.get("function")
    if (
        kind in _FUNCTIONS
        and isinstance(function, Mapping)
        and cast("Node", function).get("type") == "with-info"
    ):
        return not getattr(cast("Node", function).get("function"), "__module__", "").startswith("pydantic")
    return any(
        _asks_for_others(value)
        for key, value in part.items()
        if key not in ("function", "serialization", "metadata", "default", "cls")
    )


def _is_plain_text(node: Node) -> bool:
    return (
        not node
        or node == {"type": "any"}
        or (node.get("type") in ("any", "str") and set(node) <= {"type", "metadata", "serialization"})
    )


# --- msgspec -------------------------------------------------------------------------------------------------


class _MsgspecPlace(_Place):
    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._parts: dict[str, _MsgspecPlace] = {}
        kinds = [kind for kind in alternatives(annotation) if kind is not type(None)]
        kind: Any = kinds[0] if len(kinds) == 1 else None
        self._kind = kind
        origin: Any = typing.get_origin(kind) or kind
        self._origin: Any = origin
        self._arguments = typing.get_args(kind)
        is_class = has_members(origin)
        self._members: dict[str, Any] | None = members_of(kind) if is_class else None
        self.is_whole = kind is None or _has_bounds(annotation) or (is_class and _makes_itself(origin))

    @property
    def is_object(self) -> bool:
        kind = self._origin
        if self._members is not None:
            return not (issubclass(kind, msgspec.Struct) and kind.__struct_config__.array_like)
        return isinstance(kind, type) and issubclass(kind, Mapping)

    def _new_shape(self) -> Shape[Any]:
        return Shape(None, MsgspecCodec(self._annotation))

    def part(self, segment: Segment) -> _MsgspecPlace | Verdict:
        if self._kind is Any or self._kind is object:
            return FREE
        if self._members is not None:
            if not isinstance(segment, str):
                return FREE
            if segment in self._members:
                return self._part(segment, self._members[segment])
            config = getattr(self._origin, "__struct_config__", None)
            if config is not None and segment == config.tag_field:
                return self._part(segment, typing.Literal[config.tag])
            if config is not None and config.forbid_unknown_fields:
                raise Misfit([(segment, "is declared nowhere in the type, which takes no other members")])
            return FREE
        kind = self._origin
        if isinstance(kind, type) and issubclass(kind, Mapping):
            if not isinstance(segment, str):
                return FREE
            if self._arguments and self._arguments[0] is not str:
                return UNKNOWN
            return self._part("", self._arguments[1]) if self._arguments else FREE
        if _is_array(kind):
            return FREE if isinstance(segment, str) and not is_position(segment) else self.item()
        return UNKNOWN

    def item(self) -> _MsgspecPlace | Verdict:
        if self._kind is Any or self._kind is object:
            return FREE
        if not _is_array(self._origin) or self.is_whole:
            return UNKNOWN
        arguments = [argument for argument in self._arguments if argument is not Ellipsis]
        if self._origin is tuple and len(arguments) == len(self._arguments):
            return UNKNOWN
        return self._part("", arguments[0]) if arguments else FREE

    def _part(self, name: str, annotation: Any) -> _MsgspecPlace | Verdict:
        if annotation is Any or annotation is object:
            return FREE
        place = self._parts.get(name)
        if place is None:
            place = self._parts[name] = _MsgspecPlace(annotation)
        return place

    def keep(self, segment: Segment) -> None:
        if isinstance(segment, str) and segment in self._required():
            raise Misfit([(segment, "is required, and cannot be taken away")])

    def check_begun(self, document: dict[str, JSONValue]) -> None:
        if all(name in document for name in self._required()):
            self.check(document)
            return
        # msgspec stops at the first fault, which would be a missing member: look at the others one by one.
        for name, value in document.items():
            part = self.part(name)
            if not isinstance(part, Verdict):
                try:
                    part.check(value)
                except Misfit as misfit:
                    raise Misfit(
                        [(f"{name}.{place}" if place else name, why) for place, why in misfit.problems]
                    ) from None

    def _required(self) -> Set[str]:
        kind = self._origin
        if self._members is None:
            return frozenset()
        if issubclass(kind, msgspec.Struct):
            config = kind.__struct_config__
            required = {field.encode_name for field in msgspec.structs.fields(self._kind) if field.required}
            return required | ({config.tag_field} if config.tag_field else set())
        if dataclasses.is_dataclass(kind):
            nothing = dataclasses.MISSING
            return {
                field.name
                for field in dataclasses.fields(kind)
                if field.default is nothing and field.default_factory is nothing
            }
        if typing_extensions.is_typeddict(kind):
            return cast("Set[str]", kind.__required_keys__)
        return {
            attribute.name
            for attribute in kind.__attrs_attrs__
            if getattr(attribute.default, "name", None) == "NOTHING"
        }


def _is_array(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, list | set | frozenset | tuple | deque | Sequence | Set)
        and not issubclass(kind, str | bytes | bytearray | memoryview)
    )


def _has_bounds(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Annotated and any(
        isinstance(note, msgspec.Meta) for note in typing.get_args(annotation)[1:]
    )


def _makes_itself(kind: Any) -> bool:
    """True for a class that does something of its own when an instance is made."""
    hooks = ("__post_init__", "__attrs_pre_init__", "__attrs_post_init__")
    if any(hasattr(kind, hook) for hook in hooks):
        return True
    return any(attribute.validator is not None for attribute in getattr(kind, "__attrs_attrs__", ()))
