"""The rules of metadata written as plainly as possible: no sizes kept, no copies saved, everything done anew.

It answers the same questions as `milepost.model.document`, from the same table of the contract, and shares no code with it. Paths
come ready-made from the generators, so the parser is not trusted either.
"""

import copy
import math
from typing import Any

Path = tuple[str | int, ...]
MISSING: Any = object()


class RefusedError(Exception):
    """The operation is not applied; the argument is the stable code."""

    @property
    def code(self) -> str:
        return self.args[0]


def equal(left: Any, right: Any) -> bool:
    """M22."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    return left == right


def is_digits(name: str) -> bool:
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0")


def position_or_name(segment: str | int) -> str | int:
    return int(segment) if isinstance(segment, str) and is_digits(segment) else segment


def position(items: list[Any], segment: str | int) -> int | None:
    if isinstance(segment, str):
        if not is_digits(segment):
            return None
        segment = int(segment)
    if segment < 0:
        segment += len(items)
    return segment if 0 <= segment < len(items) else None


def read(value: Any, path: Path) -> Any:
    for segment in path:
        if isinstance(value, dict):
            value = value.get(segment, MISSING)
        elif isinstance(value, list):
            found = position(value, segment)
            value = MISSING if found is None else value[found]
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value


def write(value: Any, path: Path, change: Any) -> Any:
    """The value with `change(old or MISSING)` at the path, missing objects created (M18)."""
    head, rest = path[0], path[1:]
    if value is MISSING:
        value = {}
        if isinstance(head, int):
            raise RefusedError("invalid_metadata_path")
    if isinstance(value, dict):
        if isinstance(head, int):
            raise RefusedError("invalid_metadata_path")
        old = value.get(head, MISSING)
        return {**value, head: write(old, rest, change) if rest else change(old)}
    if isinstance(value, list):
        found = position(value, head)
        if found is None:
            raise RefusedError("invalid_metadata_path")
        new = write(value[found], rest, change) if rest else change(value[found])
        return [*value[:found], new, *value[found + 1 :]]
    raise RefusedError("invalid_metadata_path")


def erase(value: Any, path: Path) -> Any:
    """The value without what is at the path; as it is where nothing is (M19)."""
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        if head not in value:
            return value
        if rest:
            return {**value, head: erase(value[head], rest)}
        return {name: item for name, item in value.items() if name != head}
    if isinstance(value, list):
        found = position(value, head)
        if found is None:
            return value
        middle = [erase(value[found], rest)] if rest else []
        return [*value[:found], *middle, *value[found + 1 :]]
    raise RefusedError("invalid_metadata_path")


class ReferenceDocument:
    """A document that is computed from nothing for each operation."""

    def __init__(self, value: dict[str, Any], *, limit: int, size: Any) -> None:
        self.value = copy.deepcopy(value)
        self.limit = limit
        # An id counts once for each place; a name of digits and the same position are one.
        self.counted: set[tuple[Any, ...]] = set()
        self._size = size

    def apply(self, operation: Any, path: Path) -> None:
        kind = type(operation).__name__
        once = getattr(operation, "once", None)
        id = (*path[:1], *(position_or_name(segment) for segment in path[1:]), once)
        if once is not None and id in self.counted:
            return
        value = copy.deepcopy(getattr(operation, "value", None))
        match kind:
            case "Update":
                new = value
            case "Set":
                new = write(self.value, path, lambda old: value)
            case "Delete":
                new = erase(self.value, path)
            case "Append":
                new = write(self.value, path, lambda old: self._appended(old, value, operation.max_items))
            case "Remove":
                new = self._removed(path, value)
            case "Increment":
                new = write(self.value, path, lambda old: self._incremented(old, value))
            case _:
                raise AssertionError(kind)
        size = self._size(new)
        if size > self.limit and size > self._size(self.value):
            raise RefusedError("metadata_too_large")
        self.value = new
        if once is not None:
            self.counted.add(id)

    def _appended(self, old: Any, value: Any, max_items: int | None) -> list[Any]:
        items = [value] if old is MISSING else [*old, value] if isinstance(old, list) else [old, value]
        return items if max_items is None else items[-max_items:]

    def _removed(self, path: Path, value: Any) -> Any:
        # Walks like a deletion: what is missing is fine, a scalar on the way is not.
        erase(self.value, path)
        old = read(self.value, path)
        if old is MISSING:
            return self.value
        if not isinstance(old, list):
            raise RefusedError("wrong_metadata_type")
        return write(self.value, path, lambda items: [item for item in items if not equal(item, value)])

    def _incremented(self, old: Any, by: float) -> float:
        if old is MISSING:
            return by
        if isinstance(old, bool) or not isinstance(old, (int, float)):
            raise RefusedError("wrong_metadata_type")
        total = old + by
        if isinstance(total, float) and not math.isfinite(total):
            raise RefusedError("invalid_metadata_value")
        return total
