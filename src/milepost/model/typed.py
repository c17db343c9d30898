"""Typed documents (M76): what has to be judged when an operation changes a document whose type is declared, and what then must hold.

The rule. A document is either *begun* or *whole*. A run that is triggered without metadata begins with `{}`, and members that its type
requires may be missing until they are first written; from then on the document is whole and stays so. In both:

*   a member that the type declares has, after every operation, a value that the type can read;
*   a member that the type requires, once there, cannot be taken away;
*   members that the type does not declare are free, unless the type forbids them;
*   what is given as a whole document, at the trigger or by `replace`, is whole at once.

Each operation is held to it alone: a refused one changes nothing, and the others apply (M29). What is judged follows the change: an
appended item and not its array, a member and not the document, as far as the type allows to tell from the part (`Declared.is_whole`).

The rule does not know where a type comes from. In the worker it is a Python type with its own validators, in the server a JSON schema.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Protocol, cast

import msgspec

from milepost.errors import MetadataError, MetadataValueError
from milepost.model.document import Document
from milepost.model.jsonvalue import JSONValue, encode, kind_of
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.model.path import MISSING, Path, Segment, find, parse

__all__ = [
    "FREE",
    "UNKNOWN",
    "Declared",
    "Demand",
    "Misfit",
    "Verdict",
    "check_document",
    "check_operation",
    "demands",
    "describe_place",
    "key_of",
    "refused",
]


class Misfit(Exception):
    """A value does not have the form that is asked for.

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


def _joined(whole: str, place: str) -> str:
    if not whole or not place:
        return whole or place
    return f"{whole}{place}" if place.startswith("[") else f"{whole}.{place}"


def describe_place(place: Any) -> str:
    """A place as it is written in messages: `rows[3].email`."""
    text = ""
    for segment in place:
        text += f"[{segment}]" if isinstance(segment, int) else f".{segment}" if text else str(segment)
    return text


class Verdict(Enum):
    """What can be said about a part of a declared value without a type of its own."""

    FREE = "anything may be there"
    UNKNOWN = "only the whole tells"


FREE: Final = Verdict.FREE
UNKNOWN: Final = Verdict.UNKNOWN


class Declared(Protocol):
    """The declared type of one place of a document."""

    @property
    def is_whole(self) -> bool:
        """True when a change inside of the value can only be judged by the value as a whole: it has a rule over several parts."""
        ...

    def part(self, segment: Segment) -> Declared | Verdict:
        """The type of a member or element. Raises Misfit for a member that may not be there."""
        ...

    def item(self) -> Declared | Verdict:
        """The type of an item that is appended; UNKNOWN where the type is no array."""
        ...

    def keep(self, segment: Segment) -> None:
        """Raise Misfit when the member may not be taken away."""
        ...

    def check(self, value: JSONValue) -> None:
        """Raise Misfit unless the value can be read."""
        ...

    def check_begun(self, document: dict[str, JSONValue]) -> None:
        """As `check`, for the root: members that are required may be missing."""
        ...


class Demand:
    """A value that an operation would leave in a document, and the type that it must have there."""

    __slots__ = ("_declared", "_is_begun", "_path", "_value")

    def __init__(self, declared: Declared, value: JSONValue, path: Path, *, is_begun: bool = False) -> None:
        self._declared = declared
        self._value = value
        self._path = path
        self._is_begun = is_begun

    def check(self) -> None:
        """Raise Misfit, with places from the top of the document, unless the value can be read."""
        try:
            if self._is_begun:
                self._declared.check_begun(cast("dict[str, JSONValue]", self._value))
            else:
                self._declared.check(self._value)
        except Misfit as misfit:
            raise _below(self._path, misfit) from None


def demands(
    operations: Sequence[Operation],
    document: dict[str, JSONValue],
    root: Declared,
    *,
    is_converted: bool = False,
) -> list[Demand]:
    """What must be checked before operations are applied, together or not at all. Runs no code of the user's, and changes nothing.

    An operation that the document will refuse anyway demands nothing.

    Args:
        document: before the operations.
        is_converted: values of operations have been checked already, as far as the places that they name tell.
    Raises: Misfit for what needs no check to be refused: a required member that would go, a member that may not be there.
    """
    if len(operations) == 1 or all(_is_local(operation, document, root) for operation in operations):
        found = (_demand(operation, document, root, is_converted) for operation in operations)
        return [demand for demand in found if demand is not None]
    return _demands_after(operations, document, root)


def refused(misfit: Misfit, name: str, key: str | None = None) -> MetadataValueError:
    """The error for a document that would not fit its type, which messages call `name`."""
    if key is None:
        return MetadataValueError(f"does not fit {name}: {misfit.describe('document')}", key=None)
    reasons = [f"{place}: {why}" if place not in ("", key) else why for place, why in misfit.problems[:5]]
    return MetadataValueError(f"{key}: does not fit {name}: {'; '.join(reasons)}", key=key)


def check_document(document: dict[str, JSONValue], root: Declared, name: str) -> None:
    """Raise MetadataValueError unless a whole document can be read as its type."""
    try:
        root.check(document)
    except Misfit as misfit:
        raise refused(misfit, name) from None


def check_operation(operation: Operation, document: dict[str, JSONValue], root: Declared, name: str) -> None:
    """Raise MetadataValueError when the document could not be read any more after the operation; the rule is at the top."""
    try:
        for demand in demands((operation,), document, root):
            demand.check()
    except Misfit as misfit:
        raise refused(misfit, name, key_of(operation)) from None


def key_of(operation: Operation) -> str | None:
    """The key or path of an operation; None for one on the whole document."""
    return cast("str | None", getattr(operation, "key", None))


class _Judged:
    """The innermost place of an operation by which it can be judged: its type, how deep it lies, its value before."""

    __slots__ = ("declared", "depth", "found")

    def __init__(self, declared: Declared, depth: int, found: JSONValue) -> None:
        self.declared = declared
        self.depth = depth
        self.found = found

    def demand(self, value: JSONValue, path: Path) -> Demand:
        return Demand(self.declared, value, path[: self.depth], is_begun=not self.depth)


def _judged(root: Declared, document: dict[str, JSONValue], path: Path) -> _Judged | None:
    """Where to judge a change at the path; None when nothing is declared there."""
    place = _Judged(root, 0, document)
    for depth, segment in enumerate(path):
        if kind_of(place.found) is not dict and kind_of(place.found) is not list:
            # What is missing will be created from here on; through a scalar there is no way.
            break
        try:
            part = place.declared.part(segment)
        except Misfit as misfit:
            raise _below(path[:depth], misfit) from None
        if part is FREE:
            return None
        if place.declared.is_whole or isinstance(part, Verdict):
            break
        place = _Judged(part, depth + 1, find(place.found, (segment,)))
    return place


def _demand(
    operation: Operation, document: dict[str, JSONValue], root: Declared, is_converted: bool
) -> Demand | None:
    if type(operation) is Update:
        return Demand(root, operation.value, ())
    if type(operation) is Delete:
        return _demand_of_delete(operation, document, root)
    path = parse(cast("Set", operation).key)
    if type(operation) is Remove and find(document, path) is MISSING:
        return None
    place = _judged(root, document, path)
    if place is None:
        return None
    if place.depth == len(path):
        if type(operation) is Set and is_converted:
            return None
        if isinstance(operation, Append | Remove):
            is_array = place.found is MISSING or kind_of(place.found) is list
            item = place.declared.item() if is_array else UNKNOWN
            if item is not UNKNOWN:
                if type(operation) is Remove or is_converted or isinstance(item, Verdict):
                    return None
                return Demand(item, operation.value, path)
    result = _result(operation, path, place)
    return None if result is MISSING else place.demand(result, path)


def _demand_of_delete(operation: Delete, document: dict[str, JSONValue], root: Declared) -> Demand | None:
    path = parse(operation.key)
    if find(document, path) is MISSING:
        return None
    place = _judged(root, document, path[:-1])
    if place is None:
        return None
    if place.depth == len(path) - 1:
        try:
            place.declared.keep(path[-1])
        except Misfit as misfit:
            raise _below(path[:-1], misfit) from None
        if not place.declared.is_whole:
            return None
    result = _result(operation, path, place)
    return None if result is MISSING else place.demand(result, path)


def _is_local(operation: Operation, document: dict[str, JSONValue], root: Declared) -> bool:
    """Whether a converted operation can be judged without the others beside it."""
    if root.is_whole or not isinstance(operation, Set | Append):
        return False
    path = parse(operation.key)
    if type(operation) is Set:
        return len(path) == 1
    place = _judged(root, document, path)
    if place is None:
        return True
    is_array = place.found is MISSING or kind_of(place.found) is list
    return place.depth == len(path) and is_array and place.declared.item() is not UNKNOWN


def _demands_after(
    operations: Sequence[Operation], document: dict[str, JSONValue], root: Declared
) -> list[Demand]:
    """What counts is the document after all of them: the whole of it, or the members that they touch."""
    names: dict[str, None] = {}
    for operation in operations:
        if type(operation) is Update:
            return [demand for demand in (_demand(operation, document, root, True),) if demand is not None]
        names[cast("str", parse(cast("Set", operation).key)[0])] = None
    before = document if root.is_whole else {name: document[name] for name in names if name in document}
    after = Document(before, limit=sys.maxsize)
    try:
        for operation in operations:
            after.apply(operation)
    except MetadataError:
        return []
    found: list[Demand] = []
    for name in names:
        part = root.part(name)
        if name not in after.value:
            if name in before:
                root.keep(name)
        elif not root.is_whole and not isinstance(part, Verdict):
            found.append(Demand(part, after.value[name], (name,)))
    if root.is_whole:
        found.append(Demand(root, after.value, (), is_begun=True))
    return found


def _result(operation: Operation, path: Path, place: _Judged) -> JSONValue:
    """The value of the judged place after the operation; MISSING when the operation will not be applied."""
    if place.depth == len(path):
        if type(operation) is Set:
            return operation.value
        if type(operation) is Increment:
            found: Any = 0 if place.found is MISSING else place.found
            is_number = kind_of(found) is int or kind_of(found) is float
            try:
                return found + operation.value if is_number else MISSING
            except OverflowError:
                return MISSING
    inner: dict[str, JSONValue] = {} if place.found is MISSING else {"value": place.found}
    changed: Any = msgspec.structs.replace(
        cast("Any", operation), key=_path_text(("value", *path[place.depth :]))
    )
    if getattr(changed, "once", None) is not None:
        changed = msgspec.structs.replace(changed, once=None)
    document = Document(inner, limit=sys.maxsize)
    try:
        document.apply(changed)
    except MetadataError:
        return MISSING
    return document.value.get("value", MISSING)


def _below(path: Path, misfit: Misfit) -> Misfit:
    where = describe_place(path)
    return Misfit([(_joined(where, place), reason) for place, reason in misfit.problems])


def _path_text(path: Path) -> str:
    return "$" + "".join(f"[{encode(segment).decode()}]" for segment in path)
