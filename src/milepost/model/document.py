"""A metadata document: one JSON object whose size is known at all times (M1, M34, M84, M85).

The same class holds the local view in the worker, the truth in the server and the copy in a subscriber. `apply`
either applies an operation or raises and leaves everything as it was; what one operation costs depends on the
operation and on what it replaces, not on the rest of the document.

The document owns its containers: nothing that goes in or comes out is shared with it. Values go in through their
JSON text, which gives the copy and its size in one step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, cast

from milepost.errors import MetadataTooLargeError, MetadataTypeError, MetadataValueError
from milepost.model.counted import KnownIds, id_of
from milepost.model.jsonvalue import (
    INTEGER_MAX,
    JSONValue,
    decode,
    describe,
    encode,
    json_equal,
    kind_of,
    to_json,
)
from milepost.model.operations import (
    MAX_ITEMS_MAX,
    Append,
    Delete,
    Increment,
    Operation,
    Remove,
    Set,
    Update,
    check_max_items,
)
from milepost.model.path import MISSING, Path, check_name, find, locate, locate_existing, parse

__all__ = ["SIZE_LIMIT", "Document"]

SIZE_LIMIT = 262_144
"""Bytes of compact UTF-8 JSON that a document may have unless the server says otherwise (M84)."""


class Document:
    """A metadata document with its version, its size in bytes and its limit.

    Not thread-safe: its owner holds a lock or keeps it in one thread.

    Attributes:
        value: the document. To be read only; changing it breaks the size.
        version: number of committed changes (M1). Kept for the owner, who counts commits; `apply` leaves it alone.
        size: bytes of `value` as compact UTF-8 JSON, always exact.
        limit: bytes that it may grow to.
        counted: what stands for the `once` ids of increments and appends that were applied in this run (M46, `id_of`). None for
            who applies a log: it holds only what counted, so nothing is looked up or remembered.
    """

    __slots__ = ("_journal", "_sizes", "counted", "limit", "size", "value", "version")

    def __init__(
        self,
        value: dict[str, JSONValue] | None = None,
        *,
        version: int = 0,
        limit: int = SIZE_LIMIT,
        counted: Iterable[bytes] | KnownIds | None = (),
    ) -> None:
        """Copy a JSON object that is known to be a valid document; `from_json` checks one from outside.

        It may be over the limit, because a limit may be lowered: then only what does not enlarge it is applied.
        """
        text = encode({} if value is None else value)
        self._begin(cast("dict[str, JSONValue]", decode(text)), len(text), version, limit, counted)

    def _begin(
        self,
        value: dict[str, JSONValue],
        size: int,
        version: int,
        limit: int,
        counted: Iterable[bytes] | KnownIds | None,
    ) -> None:
        if type(value) is not dict:
            raise MetadataTypeError(_NOT_AN_OBJECT.format(describe(value)))
        self.value = value
        self.size = size
        self.version = version
        self.limit = limit
        self.counted: set[bytes] | KnownIds | None
        if isinstance(counted, KnownIds):
            self.counted = counted.copy()
        else:
            self.counted = None if counted is None else set(counted)
        # Sizes of arrays and objects at the top level, as far as they were ever measured: replacing a big value need
        # not measure it again.
        self._sizes: dict[str, int] = {}
        # How to undo what was done since `apply_all` began; None outside of it.
        self._journal: list[tuple[Callable[..., object], tuple[Any, ...]]] | None = None

    @classmethod
    def from_json(
        cls, value: object, *, version: int = 0, limit: int = SIZE_LIMIT, counted: Iterable[bytes] | None = ()
    ) -> Document:
        """A document from any value that a user or a request gives as a whole document (M2, M73).

        Raises:
            MetadataTypeError: it is no object.
            MetadataValueError: something in it has no JSON form.
            MetadataPathError: it has a key that is not allowed (M27).
            MetadataTooLargeError: it is over the limit.
        """
        converted = to_json(value)
        if type(converted) is not dict:
            raise MetadataTypeError(_NOT_AN_OBJECT.format(describe(converted)))
        for name in converted:
            check_name(name)
        document = cls.__new__(cls)
        document._begin(converted, len(encode(converted)), version, limit, counted)
        if document.size > limit:
            raise MetadataTooLargeError(document.size, limit, None, document.largest_keys())
        return document

    @classmethod
    def load(
        cls, text: bytes, *, version: int = 0, limit: int = SIZE_LIMIT, counted: Iterable[bytes] | None = ()
    ) -> Document:
        """A document from its stored JSON text. Like the constructor it accepts one over the limit.

        Raises: MetadataTypeError if the text is no object, `msgspec.DecodeError` if it is no JSON.
        """
        value = decode(text)
        document = cls.__new__(cls)
        document._begin(cast("dict[str, JSONValue]", value), len(encode(value)), version, limit, counted)
        return document

    # --- reading -------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """What is at a key or path (M4), as a fresh copy; the default where nothing is. A stored null is None.

        Raises: MetadataPathError, MetadataTypeError for what is no key.
        """
        found = find(self.value, parse(key))
        if found is MISSING:
            return default
        kind = kind_of(found)
        return decode(encode(found)) if kind is dict or kind is list else found

    def contains(self, key: str) -> bool:
        """Whether there is a value at a key or path; null counts. Raises like `get`."""
        return find(self.value, parse(key)) is not MISSING

    def copy_value(self) -> dict[str, JSONValue]:
        """The whole document as a fresh `dict` (M3)."""
        return cast("dict[str, JSONValue]", decode(encode(self.value)))

    def copy(self) -> Document:
        """An independent document in the same state."""
        return Document(self.value, version=self.version, limit=self.limit, counted=self.counted)

    def encode(self) -> bytes:
        """The document as compact UTF-8 JSON; `size` is its length."""
        return encode(self.value)

    def largest_keys(self, n: int = 5) -> list[tuple[str, int]]:
        """The top-level keys with the most bytes of value, the biggest first, as (key, bytes)."""
        sizes = [(name, self._size_at_top(name, value)) for name, value in self.value.items()]
        return heapq.nlargest(n, sizes, key=_second)

    # --- changing ------------------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> None:
        """Apply one operation. Atomic: it is applied as a whole, or an error is raised and nothing has changed.

        Values are taken as plain JSON, as `to_json` and the wire decoder make them, and copied.

        Raises:
            MetadataPathError: the key is not allowed, or leads through a scalar or past the end of an array.
            MetadataTypeError: increment of what is no number, remove from what is no array.
            MetadataValueError: the sum is no JSON number, or `max_items` is less than 1.
            MetadataTooLargeError: the document would grow over its limit. What does not enlarge it is never refused.
        """
        given: Any = operation
        kind = kind_of(given)
        if kind is Set:
            self._set(given)
        elif kind is Increment:
            self._increment(given)
        elif kind is Append:
            self._append(given)
        elif kind is Delete:
            self._delete(given)
        elif kind is Remove:
            self._remove(given)
        else:
            self._update(given)

    def apply_all(self, operations: Iterable[Operation]) -> None:
        """Apply several operations, all or none of them. Raises like `apply`, for the first one that is refused."""
        journal: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        size = self.size
        self._journal = journal
        try:
            for operation in operations:
                self.apply(operation)
        except BaseException:
            for undo, arguments in reversed(journal):
                undo(*arguments)
            self.size = size
            self._sizes.clear()
            raise
        finally:
            self._journal = None

    def _set(self, operation: Set) -> None:
        key = operation.key
        value: Any = operation.value
        path: Any = parse(key)
        text = encode(value)
        size = len(text)
        kind = kind_of(value)
        if kind is dict or kind is list:
            value = decode(text)
        if len(path) > 1:
            self._write(path, key, *locate(self.value, path, key), value, size)
            return
        # The common case, written out: it is the one that is called in loops.
        name = path[0]
        document = self.value
        old: Any = document.get(name, MISSING)
        old_kind = kind_of(old)
        if old is MISSING:
            growth = size + _room_for(name, document)
        elif old_kind is dict or old_kind is list:
            growth = size - self._size_at_top(name, old)
        else:
            growth = size - len(encode(old))
        if growth > 0 and self.size + growth > self.limit:
            raise self._too_large(key, growth)
        if self._journal is not None:
            self._note_write(document, name, old)
        document[name] = value
        self.size += growth
        if kind is dict or kind is list:
            self._sizes[name] = size
        elif old_kind is dict or old_kind is list:
            del self._sizes[name]

    def _increment(self, operation: Increment) -> None:
        key = operation.key
        by = operation.value
        path: Any = parse(key)
        if type(by) is int:
            if not -INTEGER_MAX <= by <= INTEGER_MAX:
                raise MetadataValueError(f"{key!r:.100}: an increment has at most 1,024 bits", key=key)
        elif type(by) is not float:
            raise MetadataTypeError(f"{key!r:.100}: increment by a number, not by {describe(by)}", key=key)
        id: bytes | None = None
        if operation.once is not None and self.counted is not None:
            id = id_of(key, operation.once)
            if id in self.counted:
                return
        container: Any = self.value
        place: Any = path[0]
        missing: Path = ()
        old: Any
        if len(path) > 1:
            container, place, old, missing = locate(container, path, key)
        else:
            old = container.get(place, MISSING)
        kind = kind_of(old)
        if kind is int or kind is float:
            value = old + by
        elif old is MISSING:
            value = by
        else:
            message = f"{key!r:.100}: {describe(old)} cannot be incremented; set it to a number first"
            raise MetadataTypeError(message, key=key)
        if type(value) is int:
            if not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise MetadataValueError(f"{key!r:.100}: the sum has more than 1,024 bits", key=key)
        elif not isfinite(value):
            raise MetadataValueError(f"{key!r:.100}: the sum is no finite number", key=key)
        size = len(encode(value))
        if old is MISSING:
            self._write(path, key, container, place, old, missing, value, size)
        else:
            growth = size - len(encode(old))
            if growth:
                if growth > 0 and self.size + growth > self.limit:
                    raise self._too_large(key, growth)
                self.size += growth
                if len(path) > 1:
                    self._grow_cached(path, growth)
            if self._journal is not None:
                self._note_write(container, place, old)
            container[place] = value
        if id is not None:
            self._count(id)

    def _count(self, id: bytes) -> None:
        assert self.counted is not None
        if self._journal is not None:
            self._journal.append((self.counted.discard, (id,)))
        self.counted.add(id)

    def _append(self, operation: Append) -> None:
        once = operation.once
        if once is None or self.counted is None:
            self._append_item(operation)
            return
        id = id_of(operation.key, once)
        if id not in self.counted:
            self._append_item(operation)
            self._count(id)

    def _append_item(self, operation: Append) -> None:
        key = operation.key
        value: Any = operation.value
        path: Any = parse(key)
        most: Any = operation.max_items
        if most is not None and not (type(most) is int and 1 <= most <= MAX_ITEMS_MAX):
            check_max_items(key, most)
        text = encode(value)
        size = len(text)
        if type(value) is dict or type(value) is list:
            value = decode(text)
        container: Any = self.value
        place: Any = path[0]
        missing: Path = ()
        old: Any
        if len(path) > 1:
            container, place, old, missing = locate(container, path, key)
        else:
            old = container.get(place, MISSING)
        if kind_of(old) is not list:
            if old is MISSING or most == 1:
                self._write(path, key, container, place, old, missing, [value], size + 2)
            else:
                old_size = self._size_at(path, old)
                self._write(path, key, container, place, old, missing, [old, value], old_size + size + 3)
            return
        length = len(old)
        growth = size + (1 if length else 0)
        dropped: list[JSONValue] = []
        if most is not None and length >= most:
            dropped = old[: length + 1 - most]
            # One comma comes with the new item, and every dropped one takes one along.
            growth -= sum(map(len, map(encode, dropped))) + len(dropped)
        if growth > 0 and self.size + growth > self.limit:
            raise self._too_large(key, growth)
        if self._journal is not None:
            self._journal.append((_undo_append, (old, dropped)))
        old.append(value)
        if dropped:
            del old[: len(dropped)]
        self.size += growth
        self._grow_cached(path, growth)

    def _delete(self, operation: Delete) -> None:
        path = parse(operation.key)
        found = locate_existing(self.value, path, operation.key)
        if found is None:
            return
        container, place, old = found
        shrinkage = self._size_at(path, old) + (1 if len(container) > 1 else 0)
        if type(container) is list:
            if self._journal is not None:
                self._journal.append((cast("list[JSONValue]", container).insert, (place, old)))
        else:
            shrinkage += len(encode(place)) + 1
            if self._journal is not None:
                self._note_write(container, place, old)
        del container[place]
        self.size -= shrinkage
        if len(path) == 1:
            self._sizes.pop(place, None)
        else:
            self._grow_cached(path, -shrinkage)

    def _remove(self, operation: Remove) -> None:
        key = operation.key
        path = parse(key)
        found = locate_existing(self.value, path, key)
        if found is None:
            return
        items = found[2]
        if type(items) is not list:
            raise MetadataTypeError(f"{key!r:.100}: nothing can be removed from {describe(items)}", key=key)
        unwanted = operation.value
        kept = [item for item in items if not json_equal(item, unwanted)]
        if len(kept) == len(items):
            return
        if self._journal is not None:
            self._journal.append((items.__setitem__, (slice(None), items.copy())))
        gone = [item for item in items if json_equal(item, unwanted)]
        # Every item that goes takes a comma with it, except that an array without items has none left to lose.
        shrinkage = sum(map(len, map(encode, gone))) + len(gone) - (0 if kept else 1)
        items[:] = kept
        self.size -= shrinkage
        self._grow_cached(path, -shrinkage)

    def _update(self, operation: Update) -> None:
        given: Any = operation.value
        kind = kind_of(given)
        if kind is not dict:
            raise MetadataTypeError(_NOT_AN_OBJECT.format(describe(given)))
        for name in given:
            check_name(name)
        text = encode(given)
        growth = len(text) - self.size
        if growth > 0 and len(text) > self.limit:
            newcomer = Document(given)
            raise MetadataTooLargeError(len(text), self.limit, None, newcomer.largest_keys())
        if self._journal is not None:
            self._journal.append((setattr, (self, "value", self.value)))
        self.value = cast("dict[str, JSONValue]", decode(text))
        self.size += growth
        self._sizes.clear()

    # --- the small steps -----------------------------------------------------------------------------------

    def _write(
        self,
        path: Path,
        key: str,
        container: Any,
        place: str | int,
        old: JSONValue,
        missing: Path,
        value: JSONValue,
        size: int,
    ) -> None:
        """Put a value that the document owns at a place from `locate`, creating the objects that are missing."""
        for name in reversed(missing):
            size += len(encode(name)) + 3
            value = {cast("str", name): value}
        growth = size - self._size_at(path, old) if old is not MISSING else size + _room_for(place, container)
        if growth > 0 and self.size + growth > self.limit:
            raise self._too_large(key, growth)
        if self._journal is not None:
            self._note_write(container, place, old)
        container[place] = value
        self.size += growth
        if container is not self.value:
            self._grow_cached(path, growth)
        elif type(value) is dict or type(value) is list:
            self._sizes[cast("str", place)] = size
        else:
            self._sizes.pop(cast("str", place), None)

    def _size_at_top(self, name: str, value: JSONValue) -> int:
        if type(value) is not dict and type(value) is not list:
            return len(encode(value))
        size = self._sizes.get(name)
        if size is None:
            size = self._sizes[name] = len(encode(value))
        return size

    def _size_at(self, path: Any, value: JSONValue) -> int:
        # Measuring what goes away costs no more than it cost to put it there.
        return self._size_at_top(path[0], value) if len(path) == 1 else len(encode(value))

    def _grow_cached(self, path: Any, growth: int) -> None:
        sizes = self._sizes
        name = path[0]
        if name in sizes:
            sizes[name] += growth

    def _note_write(self, container: Any, place: str | int, old: JSONValue) -> None:
        assert self._journal is not None
        if old is MISSING:
            # Noted before it is written, and an error from outside may come in between.
            self._journal.append((container.pop, (place, None)))
        else:
            self._journal.append((container.__setitem__, (place, old)))

    def _too_large(self, key: str, growth: int) -> MetadataTooLargeError:
        return MetadataTooLargeError(self.size + growth, self.limit, key, self.largest_keys())


_NOT_AN_OBJECT = "metadata is a JSON object, not {}"


def _room_for(name: str | int, container: Any) -> int:
    """Bytes of a new member of an object beside its value: the quoted name, the colon, and a comma if it has company."""
    return len(encode(name)) + (2 if container else 1)


def _second(pair: tuple[str, int]) -> int:
    return pair[1]


def _undo_append(items: list[JSONValue], dropped: list[JSONValue]) -> None:
    items.pop()
    items[:0] = dropped
