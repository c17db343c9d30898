"""The six metadata operations: the language of every layer (SDK call, wire, store, history, feed).

`Document.apply_all` folds a list over a document, `collapse` makes a list of operations shorter, `Pending` does the same while
the list grows. Their laws, each with its property test in `tests/model`; `apply(m, a)` stands for the document that comes of a list:

1.  The input is never changed: neither the document, nor the operations, nor what they hold.
2.  `apply(m, a + b) == apply(apply(m, a), b)`, where the second call is told which `once` ids the first one counted.
3.  What cannot be applied changes nothing and comes back as a `Refusal` with its reason; the others are applied.
4.  Applying either raises or applies, and the size is always `len(encode(value))`.
5.  Collapsing cannot be noticed (M30): `apply(m, collapse(a))` gives the document and the set of reasons of
    `apply(m, a)`. A reason that a run of merged operations would have met several times is met at least once.
    Three things limit this law, and only these:
    *   The size limit. Collapsing changes which documents exist on the way, so within reach of the limit another
        operation may be the one that is too large. If neither list meets the limit the law holds as it stands, and
        that is so whenever the limit is at least the size of `m` plus three times the bytes of `a`. A refused
        operation is reported in any case. A `set` that is much larger than an earlier one of its key is not merged
        with it, so that the earlier one stands if the larger one is refused.
    *   Integers that are added to a float. They are summed first, which is at least as exact as adding them one by
        one, and may differ from that in the last digits. Who knows the resulting document can rule that out.
    *   Integers within 2**63 of the largest one. There some increments of a row may be refused, and their sum as a whole.
6.  `Pending` holds the same list as `collapse` of everything that was added.
7.  Two operations that do not touch each other (`reach_of`) can change places. That is what makes collapsing right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final, TypeAlias, cast

import msgspec

from milepost.errors import MetadataError, MetadataTypeError, MetadataValueError
from milepost.model.jsonvalue import INTEGER_MAX, JSONValue, check_json, describe, json_size, kind_of
from milepost.model.path import Path, check_key, check_name, find, is_position, normal, parse, reach

__all__ = [
    "MAX_ITEMS_MAX",
    "ONCE_LENGTH_MAX",
    "Append",
    "Delete",
    "Increment",
    "OpenKeys",
    "Operation",
    "Pending",
    "Refusal",
    "Remove",
    "Set",
    "Update",
    "check",
    "check_max_items",
    "collapse",
    "decode_each",
    "decode_operations",
    "encode_operations",
    "reach_of",
]

MAX_ITEMS_MAX = 1_000_000_000
"""The largest `max_items`; no document holds as many items."""

ONCE_LENGTH_MAX = 128
"""Characters of a `once` id."""


class Set(msgspec.Struct, frozen=True, tag="set", tag_field="type", omit_defaults=True):
    """The key gets the value, whatever was there (M17)."""

    key: str
    value: JSONValue


class Delete(msgspec.Struct, frozen=True, tag="delete", tag_field="type", omit_defaults=True):
    """The key goes; nothing happens if it is not there (M19)."""

    key: str


class Append(msgspec.Struct, frozen=True, tag="append", tag_field="type", omit_defaults=True, rename="camel"):
    """One item at the end of an array; a missing array is created, another value becomes its first item (M21).

    With `max_items` (`maxItems` on the wire) the newest that many items are kept. With `once`, an id counts once per run and key
    (M46).
    """

    key: str
    value: JSONValue
    max_items: int | None = None
    once: str | None = None


class Remove(msgspec.Struct, frozen=True, tag="remove", tag_field="type", omit_defaults=True):
    """Every item that equals the value goes (M22); nothing happens if the key is not there."""

    key: str
    value: JSONValue


class Increment(msgspec.Struct, frozen=True, tag="increment", tag_field="type", omit_defaults=True):
    """The number grows by the value, from 0 if it is not there (M23). With `once`, an id counts once per run and key (M46)."""

    key: str
    value: int | float
    once: str | None = None


class Update(msgspec.Struct, frozen=True, tag="update", tag_field="type", omit_defaults=True):
    """The whole document becomes the value (M20)."""

    value: dict[str, JSONValue]


Operation: TypeAlias = Set | Delete | Append | Remove | Increment | Update


class Refusal(msgspec.Struct, frozen=True):
    """Why one operation was not applied.

    Attributes:
        index: its position in the list, from 0.
        code: the code of the error class, such as `wrong_metadata_type`.
        message: the reason; the same operation on the same document always gets the same.
    """

    index: int
    code: str
    message: str


# --- the wire ----------------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_list_decoder = msgspec.json.Decoder(list[Operation])
_raw_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_one_decoder: msgspec.json.Decoder[Operation] = msgspec.json.Decoder(Operation)


def encode_operations(operations: Iterable[Operation]) -> bytes:
    """The operations as a JSON array: `[{"type":"set","key":"a","value":1}]`."""
    return _encoder.encode(list(operations))


def decode_operations(data: bytes) -> list[Operation]:
    """Read what `encode_operations` wrote. For text from outside use `decode_each`, which judges one by one.

    Raises: `msgspec.DecodeError` or its subclass `ValidationError`.
    """
    return _list_decoder.decode(data)


def decode_each(data: bytes) -> list[Operation | Refusal]:
    """Read a JSON array of operations from outside; a bad one takes nothing with it (M29).

    Each item comes back as a checked operation, or as a Refusal with its position and reason.

    Raises: `msgspec.DecodeError` if the whole is no JSON array.
    """
    result: list[Operation | Refusal] = []
    for index, raw in enumerate(_raw_decoder.decode(data)):
        try:
            operation = _one_decoder.decode(raw)
            check(operation)
            result.append(operation)
        except MetadataError as error:
            result.append(Refusal(index, error.code, error.message))
        except msgspec.DecodeError as error:
            result.append(Refusal(index, MetadataValueError.code, f"not an operation: {error}"))
    return result


def check(operation: Operation) -> None:
    """Make sure that an operation means something, whatever document it meets. To be called on what comes from outside.

    Raises: MetadataPathError for its key, MetadataTypeError or MetadataValueError for the rest.
    """
    kind = kind_of(operation)
    if kind is Update:
        value = cast("object", cast("Update", operation).value)
        if type(value) is not dict:
            raise MetadataTypeError(f"metadata is a JSON object, not {describe(cast('JSONValue', value))}")
        check_json(cast("object", value))
        for name in cast("dict[str, object]", value):
            check_name(name)
        return
    key = cast("Set", operation).key
    check_key(key)
    if kind is Increment:
        _check_increment(cast("Increment", operation))
    elif kind is not Delete:
        check_json(cast("Set", operation).value, place=key)
    if kind is Append:
        check_max_items(key, cast("Append", operation).max_items)
        _check_once(key, cast("Append", operation).once)


def check_max_items(key: str, most: object) -> None:
    """Make sure that it is no cap or one of 1 to `MAX_ITEMS_MAX`. Raises: MetadataValueError."""
    if most is not None and (type(most) is not int or not 1 <= most <= MAX_ITEMS_MAX):
        shown = (
            most if type(most) is int and abs(most) < 10**20 else f"an instance of {type(most).__qualname__}"
        )
        message = f"{key!r:.100}: max_items is a whole number from 1 to {MAX_ITEMS_MAX:,}, not {shown}"
        raise MetadataValueError(message, key=key)


def _check_increment(operation: Increment) -> None:
    key = operation.key
    by = cast("object", operation.value)
    if type(by) is int:
        if not -INTEGER_MAX <= by <= INTEGER_MAX:
            raise MetadataValueError(f"{key!r:.100}: an increment has at most 1,024 bits", key=key)
    elif type(by) is float:
        if not isfinite(by):
            raise MetadataValueError(f"{key!r:.100}: an increment is a finite number, not {by}", key=key)
    else:
        kind = describe(cast("JSONValue", by))
        raise MetadataTypeError(f"{key!r:.100}: increment by a number, not by {kind}", key=key)
    _check_once(key, operation.once)


def _check_once(key: str, once: object) -> None:
    if once is None:
        return
    if type(once) is not str:
        raise MetadataTypeError(f"{key!r:.100}: a once id is text", key=key)
    if not 1 <= len(once) <= ONCE_LENGTH_MAX:
        message = f"{key!r:.100}: a once id has 1 to {ONCE_LENGTH_MAX} characters, not {len(once)}"
        raise MetadataValueError(message, key=key)
    check_json(once, place=f"{key} (once)", key=key)


# --- collapse ----------------------------------------------------------------------------------------------


def collapse(
    operations: Iterable[Operation], *, result: Mapping[str, JSONValue] | None = None
) -> list[Operation]:
    """A list that does the same with fewer operations, in the same order; law 5 says how much the same.

    Args:
        result: the document to which these operations have led, where it is known. Then law 5 holds to the last digit:
            integers are summed only if they were added to an integer.
    """
    given = list(operations)
    if len(given) < 2:
        return given
    pending = Pending(result=result)
    for operation in given:
        pending.add(operation)
    return pending.take()


_SUM_MAX = 2**63
"""Sums stay below this, so that no merged sum can overflow where the single increments would not."""

_SMALL_WEIGHT = 64
"""Values up to this many bytes count as equally small."""

_ENTRY_BYTES = 64
"""What one held operation costs beside its key and value."""

_NOTHING: Final[Any] = object()


class _Sum:
    """The key was last incremented by integers, which stand in one entry."""

    __slots__ = ("entry", "total")

    def __init__(self, entry: int, total: int) -> None:
        self.entry = entry
        self.total = total


class _Written:
    """The last operations on the key are refused only for reasons for which a `set` in their place is refused too.

    So a later `set` takes the place of all of them.
    """

    __slots__ = ("appends", "head", "value_set", "weight")

    def __init__(self, weight: int) -> None:
        # The entry of the `set` or `delete` that they begin with, and those of the appends behind it.
        self.head: int | None = None
        self.appends: deque[int] = deque()
        # The value of the `set` while nothing is behind it.
        self.value_set: object = _NOTHING
        # The weight of the first one; what takes its place may be twice as large and no larger.
        self.weight = weight


class _Deleted:
    """The place below the top level was last deleted; deleting it again does nothing."""

    __slots__ = ()


_DELETED = _Deleted()


class OpenKeys:
    """Keys by the part of a document that they reach. No two of them touch."""

    __slots__ = ("_at", "_inside")

    def __init__(self) -> None:
        self._at: dict[Path, str] = {}
        # The keys that reach this place or something in it.
        self._inside: dict[Path, set[str]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def add(self, key: str, place: Path) -> None:
        """Add a key that touches none of those that are here."""
        self._at[place] = key
        for length in range(1, len(place) + 1):
            self._inside.setdefault(place[:length], set()).add(key)

    def pop_touching(self, place: Path) -> list[str]:
        """Take away the keys that touch a place."""
        touching = list(self._inside.get(place, ()))
        for length in range(1, len(place)):
            key = self._at.get(place[:length])
            if key is not None:
                touching.append(key)
        for key in touching:
            taken = reach(parse(key))
            del self._at[taken]
            for length in range(1, len(taken) + 1):
                keys = self._inside[taken[:length]]
                keys.discard(key)
                if not keys:
                    del self._inside[taken[:length]]
        return touching

    def clear(self) -> None:
        """Take away all keys."""
        self._at.clear()
        self._inside.clear()


class Pending:
    """Operations that wait to be sent, collapsed as they come (M30, M36).

    A million calls of `set`, `increment` by an integer and `append(max_items=n)` need bounded memory, in whatever
    order, if they can be applied and name a fixed set of places none of which lies inside another; so does a loop of
    `update` and such calls of top-level keys without increments. Other operations are kept one by one. Not
    thread-safe.

    How it stays unnoticeable: two operations are merged only if they name one key in the same words and nothing
    between them touches what they reach (`reach_of`). Operations that do not touch each other may change places
    unnoticed, so the two might as well have been called one after the other, and it does not matter in whose place the
    merged one stands. And only what cannot change the outcome of two neighbours is merged:

    *   integers are summed;
    *   a number is added to the `set` before it, as the document would do it;
    *   `set` takes the place of `set` and `append`, at the top level also of `delete`; `delete` does so at the top
        level;
    *   of appends in a row only those stay, where they are, that the cap of the newest one leaves over;
    *   `update` takes the place of the last `update` and all after it, if nothing there could have been refused.

    What counts an id (`once`) is never merged. And nothing is, where `merges` is False: the document may have a declared type
    (M76), which can refuse one of two operations, but not what they come to together.
    """

    __slots__ = (
        "_entries",
        "_keys",
        "_merges",
        "_next",
        "_open",
        "_replaceable",
        "_result",
        "_size_bytes",
        "_update",
        "_weights",
    )

    def __init__(self, *, result: Mapping[str, JSONValue] | None = None, merges: bool = True) -> None:
        """Begin with nothing. `result` is for a list that was applied before; `collapse` tells what it does."""
        self._result = result
        self._merges = merges
        self._reset()

    def _reset(self) -> None:
        # Numbered in the order of the calls. A dict keeps the order, and an entry in the middle can go.
        self._entries: dict[int, Operation] = {}
        self._weights: dict[int, int] = {}
        self._size_bytes = 0
        self._next = 0
        # What can still be merged with, by key as it was written.
        self._open: dict[str, _Sum | _Written | _Deleted] = {}
        self._keys = OpenKeys()
        # The entry of the last `update` with the weight that its place began with, and whether another one may take
        # the place of everything since.
        self._update: tuple[int, int] | None = None
        self._replaceable = True

    def __len__(self) -> int:
        """The number of operations that `take` would give."""
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes held, roughly: keys, values and a fixed cost for each operation."""
        return self._size_bytes

    @property
    def operations(self) -> list[Operation]:
        """The operations in order, as a new list."""
        return list(self._entries.values())

    def take(self) -> list[Operation]:
        """The operations in order; nothing is left. What comes later is never merged with what was taken."""
        operations = self.operations
        self._reset()
        return operations

    def add(self, operation: Operation) -> None:
        """Add the newest operation. Takes constant time on average, beside measuring its value.

        The operation is valid, as `check` has it, and nobody changes it or its value from now on.
        """
        given: Any = operation
        kind = kind_of(given)
        if not self._merges:
            weight = 0 if kind is Increment or kind is Delete else _weight(given.value)
            self._enter(given, weight + (0 if kind is Update else len(given.key)))
            return
        if kind is Update:
            self._add_update(given)
            return
        key = given.key
        last = self._open.get(key)
        if type(last) is _Sum:
            if kind is Increment:
                by = given.value
                if type(by) is int and given.once is None:
                    total = last.total + by
                    if -_SUM_MAX < total < _SUM_MAX:
                        last.total = total
                        self._entries[last.entry] = Increment(key, total)
                        return
        elif type(last) is _Written:
            if kind is Set:
                value = given.value
                weight = _weight(value)
                if weight <= 2 * last.weight:
                    self._replace(last, operation, weight)
                    last.value_set = value
                    return
            elif kind is Increment:
                if self._add_to_set(last, given):
                    return
            elif kind is Append:
                if given.once is None:
                    self._append_to(last, given)
                    return
            elif kind is Delete and len(parse(key)) == 1:
                self._replace(last, operation, 0)
                last.value_set = _NOTHING
                return
        elif last is _DELETED and kind is Delete:
            return
        self._add_alone(operation, key, last is not None)

    def absorbs(self, operation: Operation) -> bool:
        """True when `add` would put the operation in the place of what is here, so that no more has to be held."""
        if not self._merges:
            return False
        given: Any = operation
        kind = kind_of(given)
        if kind is Update:
            return self._replaceable and self._update is not None and _weight(given.value) <= self._update[1]
        last = self._open.get(given.key)
        if type(last) is _Sum:
            by = given.value if kind is Increment and given.once is None else None
            return type(by) is int and -_SUM_MAX < last.total + by < _SUM_MAX
        if type(last) is _Written:
            if kind is Set:
                return _weight(given.value) <= last.weight
            if kind is Append and given.once is None:
                if given.max_items is None or len(last.appends) < given.max_items:
                    return False
                weight_of_oldest = self._weights[last.appends[0]] - len(given.key) - _ENTRY_BYTES
                return _weight(given.value) <= weight_of_oldest
            if kind is Increment:
                return type(last.value_set) in (int, float) and given.once is None
            return kind is Delete and len(parse(given.key)) == 1
        return last is _DELETED and kind is Delete

    def _add_alone(self, operation: Operation, key: str, is_open: bool) -> None:
        """Add an operation that merges with nothing before it, and note what may merge with it later."""
        given: Any = operation
        kind = kind_of(given)
        path = parse(key)
        entry = self._next
        opened: _Sum | _Written | _Deleted | None = None
        weight = 0
        if kind is Set:
            weight = _weight(given.value)
            opened = _Written(weight)
            opened.value_set = given.value
        elif kind is Increment:
            by = given.value
            if (
                type(by) is int
                and given.once is None
                and -_SUM_MAX < by < _SUM_MAX
                and (self._result is None or _leads_to_integer(path, self._result))
            ):
                opened = _Sum(entry, by)
        elif kind is Append:
            weight = _weight(given.value)
            # What counts an id is kept as it is: nothing may take its place.
            if given.once is None:
                opened = _Written(_SMALL_WEIGHT)
        elif kind is Delete:
            if len(path) == 1:
                opened = _Written(_SMALL_WEIGHT)
            elif not _may_be_element(path):
                opened = _DELETED
        else:
            weight = _weight(given.value)
        if not is_open or opened is None:
            # From now on nothing is merged across this operation.
            for touching in self._keys.pop_touching(reach_of(operation)):
                del self._open[touching]
        if opened is not None:
            if key not in self._open:
                self._keys.add(key, reach(path))
            self._open[key] = opened
        if type(opened) is not _Written or len(path) > 1:
            self._replaceable = False
        self._enter(operation, weight + len(key))
        if type(opened) is _Written:
            if kind is Append:
                opened.appends.append(entry)
            else:
                opened.head = entry

    def _enter(self, operation: Operation, weight: int) -> int:
        entry = self._next
        self._next = entry + 1
        self._entries[entry] = operation
        self._weights[entry] = weight = weight + _ENTRY_BYTES
        self._size_bytes += weight
        return entry

    def _drop(self, entry: int) -> None:
        del self._entries[entry]
        self._size_bytes -= self._weights.pop(entry)

    def _replace(self, written: _Written, operation: Operation, weight: int) -> None:
        """Let an operation take the place of all that were written."""
        entry = written.head
        if entry is None:
            entry = written.head = written.appends.popleft()
        while written.appends:
            self._drop(written.appends.pop())
        self._entries[entry] = operation
        weight += len(cast("Set", operation).key) + _ENTRY_BYTES
        before = self._weights[entry]
        if weight != before:
            self._weights[entry] = weight
            self._size_bytes += weight - before

    def _add_to_set(self, written: _Written, operation: Increment) -> bool:
        value = written.value_set
        if (type(value) is not int and type(value) is not float) or operation.once is not None:
            return False
        total = value + operation.value
        in_range = -INTEGER_MAX <= total <= INTEGER_MAX if type(total) is int else isfinite(total)
        if in_range:
            assert written.head is not None
            written.value_set = total
            self._entries[written.head] = Set(operation.key, total)
        return in_range

    def _append_to(self, written: _Written, operation: Append) -> None:
        written.appends.append(self._enter(operation, _weight(operation.value) + len(operation.key)))
        written.value_set = _NOTHING
        if operation.max_items is not None:
            # Whatever cap they have themselves, nobody will see the older ones.
            while len(written.appends) > operation.max_items:
                self._drop(written.appends.popleft())

    def _add_update(self, operation: Update) -> None:
        weight = _weight(operation.value)
        self._open.clear()
        self._keys.clear()
        if self._replaceable and self._update is not None and weight <= 2 * self._update[1]:
            entry, first_weight = self._update
            while self._next > entry:
                self._next -= 1
                if self._next in self._entries:
                    self._drop(self._next)
            self._enter(operation, weight)
            self._update = entry, first_weight
        else:
            self._update = self._enter(operation, weight), weight
        self._replaceable = True


def reach_of(operation: Operation) -> Path:
    """The part of a document that an operation can read or write, whatever the document; `()` is all of it.

    Two operations that do not `touch` there can change places: neither the document nor a reason of a refusal would tell.
    """
    given: Any = operation
    if kind_of(given) is Update:
        return ()
    path = parse(given.key)
    if kind_of(given) is Delete and _may_be_element(path):
        # The elements after it move.
        path = path[:-1]
    return reach(path)


def _may_be_element(path: Path) -> bool:
    """Whether this may be an element of an array."""
    last = path[-1]
    return len(path) > 1 and (type(last) is int or is_position(cast("str", last)))


def _leads_to_integer(path: Path, result: Mapping[str, JSONValue]) -> bool:
    """Whether what stands at the path was an integer all along.

    What is an integer after an increment was one before, and nothing else can have taken its place unnoticed: only in
    arrays do values move.
    """
    in_array = any(type(segment) is int for segment in normal(path))
    return not in_array and type(find(cast("JSONValue", result), path)) is int


def _weight(value: Any) -> int:
    kind = kind_of(value)
    if kind is str and value.isascii():
        length = len(value)
    elif kind is str or kind is dict or kind is list:
        length = json_size(value)
    else:
        return _SMALL_WEIGHT
    return length if length > _SMALL_WEIGHT else _SMALL_WEIGHT
