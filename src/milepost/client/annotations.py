"""Looking into annotations that msgspec reads: the members of a class, the alternatives of a union."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Union, cast

import msgspec
import typing_extensions

_WRAPPERS = (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.ReadOnly)


def name_of(annotation: Any) -> str:
    """A type as the user wrote it, for messages."""
    return getattr(annotation, "__qualname__", None) or str(annotation)


def is_msgspec_type(annotation: Any) -> bool:
    """True for a class that msgspec knows and Pydantic does not."""
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return False
    return issubclass(kind, msgspec.Struct) or hasattr(cast("Any", kind), "__attrs_attrs__")


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, else the annotation alone; without `Annotated` and its like around them."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for argument in typing.get_args(annotation) for kind in alternatives(argument)]
    if origin is Annotated or origin in _WRAPPERS:
        return alternatives(typing.get_args(annotation)[0])
    if isinstance(annotation, typing_extensions.TypeAliasType):
        return alternatives(annotation.__value__)
    return [annotation]


def has_members(kind: Any) -> bool:
    """True for a class whose instances are objects in JSON, with members that the class declares."""
    return isinstance(kind, type) and (
        issubclass(kind, msgspec.Struct)
        or dataclasses.is_dataclass(cast("Any", kind))
        or typing_extensions.is_typeddict(cast("Any", kind))
        or hasattr(cast("Any", kind), "__attrs_attrs__")
    )


@lru_cache(maxsize=1024)
def attributes_of(kind: Any) -> dict[str, Any]:
    """The annotations of a class's attributes by their names in Python; empty for what is no class with fields."""
    origin = typing.get_origin(kind) or kind
    if not has_members(origin):
        return {}
    if issubclass(origin, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    hints = typing_extensions.get_type_hints(origin, include_extras=True)
    return {name: _unwrapped(annotation) for name, annotation in hints.items()}


def members_of(kind: Any) -> dict[str, Any]:
    """As `attributes_of`, by the names that the attributes have in JSON."""
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    return attributes_of(kind)


def parts_of(annotation: Any, segment: str | int) -> list[Any]:
    """The annotations that may stand for an attribute, member or element; empty when the annotation does not say."""
    found: list[Any] = []
    for kind in alternatives(annotation):
        arguments = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if isinstance(segment, str) and segment in (attributes := attributes_of(kind)):
            found.append(attributes[segment])
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            found.extend(arguments[1:])
        elif isinstance(segment, int) and arguments:
            found.extend(argument for argument in arguments if argument is not Ellipsis)
    return found


def _unwrapped(annotation: Any) -> Any:
    """A member's annotation without `NotRequired` and its like, which mean nothing outside of their TypedDict."""
    while typing.get_origin(annotation) in _WRAPPERS:
        annotation = typing.get_args(annotation)[0]
    return annotation
