"""The updates of a metadata document, as methods that chain; where they go is up to the kind of updater.

`metadata`, `metadata.parent` and `runs.metadata(run_id)` are updaters: the first two write into the buffer of the run that the
code belongs to, the last one collects what `send()` will send.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from math import isfinite
from typing import Any, Protocol, Self, cast

from milepost.client import calls
from milepost.client.calls import Call, MetadataDocument
from milepost.client.connection import Connection
from milepost.client.portions import cut
from milepost.client.refused import refused_change
from milepost.client.request_ids import new_request_id
from milepost.errors import (
    MetadataFlushError,
    MetadataTypeError,
    MilepostError,
    UnavailableError,
    UsageError,
)
from milepost.model.jsonvalue import INTEGER_MAX, JSONValue, to_json
from milepost.model.operations import (
    Append,
    Delete,
    Increment,
    Operation,
    Remove,
    Set,
    Update,
    check,
)
from milepost.model.path import check_key
from milepost.protocol.metadata import MetadataRequest, Refused
from milepost.protocol.work import TargetOperations


class Sink(Protocol):
    """Where updates go, and in which form."""

    def value_of(self, key: str, value: object) -> JSONValue:
        """The JSON form of a value for a key or path. Raises MetadataValueError."""
        ...

    def item_of(self, key: str, value: object, place: str) -> JSONValue:
        """The JSON form of an item for an array; `place` names it in messages. Raises MetadataValueError."""
        ...

    def wanted_of(self, key: str, value: object) -> JSONValue:
        """The JSON form that items of an array have which equal a value. Raises MetadataValueError."""
        ...

    def object_of(self, values: object) -> JSONValue:
        """The JSON form of members for a document. Raises MetadataValueError."""
        ...

    def add(self, operation: Operation) -> None:
        """Take one operation. Raises MetadataError for what can be told here and now."""
        ...

    def add_all(self, operations: list[Operation]) -> None:
        """Take several operations, all or none."""
        ...


class UntypedSink:
    """The forms of values where no type is known: JSON by the rules of M72."""

    __slots__ = ()

    def value_of(self, key: str, value: object) -> JSONValue:
        return to_json(value, place=key)

    def item_of(self, key: str, value: object, place: str) -> JSONValue:
        return to_json(value, place=place, key=key)

    def wanted_of(self, key: str, value: object) -> JSONValue:
        return to_json(value, place=key)

    def object_of(self, values: object) -> JSONValue:
        return to_json(values)


class Updater(ABC):
    """The updates of a document. Each is a plain call that returns the updater, so that calls chain (M28).

    A key is one literal name at the top level; a key that starts with `$.` is a path, such as `$.steps[0].done` (M17, M18). Values are
    turned into JSON when the call is made (M72, M75). What raises is the caller's own mistake:

        MetadataValueError: a value has no JSON form; the message names the place inside it.
        MetadataPathError: the key is malformed or reserved, or leads through a scalar or past the end of an array.
        MetadataTypeError: an increment of what is no number, a whole document that is no mapping.
        MetadataTooLargeError: the document would exceed its limit. The document is left as it was.
    """

    @abstractmethod
    def _sink(self) -> Sink | None:
        """Where updates go now; None when they go nowhere."""

    def set(self, key: str, value: object) -> Self:
        """Give the key a value, whatever was there. Missing objects on the way of a path are created."""
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            sink.add(Set(name, sink.value_of(name, value)))
        return self

    def delete(self, key: str) -> Self:
        """Take the key away; nothing happens when it is not there."""
        sink = self._sink()
        if sink is not None:
            sink.add(Delete(_plain(key)))
        return self

    del_ = delete

    def replace(self, document: object) -> Self:
        """Put a whole new document in place of the old one: a mapping, or a model that becomes an object.

        Raises: MetadataTypeError (a TypeError) for anything else.
        """
        sink = self._sink()
        if sink is not None:
            sink.add(Update(_as_object(sink, document, "replace")))
        return self

    def update(self, values: object) -> Self:
        """Merge like `dict.update`: `set` for each key of a mapping or model, all of them or none."""
        sink = self._sink()
        if sink is not None:
            sink.add_all([Set(key, value) for key, value in _as_object(sink, values, "update").items()])
        return self

    def append(
        self, key: str, value: object, *, max_items: int | None = None, once: str | None = None
    ) -> Self:
        """Add one item at the end of an array, which is created when it is missing; another value becomes its first item.

        Args:
            value: one item, also when it is a list.
            max_items: keep the newest that many items, 1 to 1,000,000,000.
            once: an id of 1 to 128 characters that counts once per document and key, over all attempts (M46).
        """
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            operation = Append(name, sink.item_of(name, value, name), max_items, once)
            if once is not None:
                check(operation)
            sink.add(operation)
        return self

    def extend(self, key: str, values: Iterable[object]) -> Self:
        """`append` for each value, all of them or none.

        Raises: MetadataTypeError (a TypeError) for what cannot be iterated.
        """
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            if not isinstance(cast("object", values), Iterable):
                kind = type(cast("object", values)).__name__
                raise MetadataTypeError(f"{name!r:.100}: extend by an iterable, not by {kind}", key=name)
            sink.add_all(
                [
                    Append(name, sink.item_of(name, value, f"{name}[{index}]"))
                    for index, value in enumerate(values)
                ]
            )
        return self

    def remove(self, key: str, value: object) -> Self:
        """Take every equal item out of an array; equality is JSON's. From what is no array it is reported, not raised (M22)."""
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            sink.add(Remove(name, sink.wanted_of(name, value)))
        return self

    def increment(self, key: str, by: float = 1, *, once: str | None = None) -> Self:
        """Add to a number, which starts at 0; integers stay integers.

        Args:
            once: an id of 1 to 128 characters that counts once per document and key, over all attempts, so that code that runs
                again does not count twice (M46).
        """
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            operation = Increment(name, _as_number(name, by), once)
            if once is not None:
                check(operation)
            sink.add(operation)
        return self

    def decrement(self, key: str, by: float = 1, *, once: str | None = None) -> Self:
        """Take from a number; the same as `increment(key, -by)`."""
        sink = self._sink()
        if sink is not None:
            name = _plain(key)
            self.increment(name, -_as_number(name, by), once=once)
        return self

    def __setitem__(self, key: str, value: object) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        self.delete(key)


class OutsideMetadata(Updater):
    """Updates of a run's document from outside of it, as `runs.metadata(run_id)` gives it. They are collected until `send()`.

    One object belongs to one thread at a time.
    """

    def __init__(self, connection: Callable[[], Connection], run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id
        self._collected = _Collected()
        self._unanswered: Call[MetadataDocument] | None = None
        # Kept until they are told: a later portion may fail, and then another `send` goes on where this one stopped.
        self._refused: list[Refused] = []

    def _sink(self) -> Sink | None:
        return self._collected

    def send(self, *, if_version: int | None = None) -> dict[str, Any]:
        """Commit everything that was called since the last `send()`, in the order of the calls, and return the document after it.

        Up to 10,000 operations are one commit; more go in several, one after the other. When the server cannot be reached, nothing is
        lost: a further `send()` repeats what may not have arrived, and the server takes it once at most.

        Args:
            if_version: commit nothing unless the document has this version (`run.metadata_version`); everything is then one commit.
        Raises: MetadataFlushError with the operations that were refused, the others being committed; VersionConflictError, nothing
            being committed; RunNotFoundError; RunFinishedError when the run ended too long ago; UnavailableError; UsageError for more
            operations with `if_version` than one commit takes.
        """
        while True:
            with self._sending(if_version) as call:
                answer = self._connection().send(call)
            self._refused += answer.refused
            if not self._collected.has_operations:
                return self._document_of(answer)

    async def asend(self, *, if_version: int | None = None) -> dict[str, Any]:
        """As `send`, without blocking."""
        while True:
            with self._sending(if_version) as call:
                answer = await self._connection().asend(call)
            self._refused += answer.refused
            if not self._collected.has_operations:
                return self._document_of(answer)

    @contextmanager
    def _sending(self, if_version: int | None) -> Generator[Call[MetadataDocument]]:
        """The call to make: the one that got no answer, or else one with what has been collected since."""
        if self._unanswered is None:
            operations = self._collected.take(self._run_id)
            if if_version is not None and self._collected.has_operations:
                self._collected.put_back(operations)
                raise UsageError(
                    "with if_version everything must fit into one commit: at most 10,000 operations and 4 MB"
                )
            request = MetadataRequest(operations=list(operations), if_version=if_version)
            self._unanswered = calls.put_metadata(self._run_id, request, new_request_id())
        try:
            yield self._unanswered
        except UnavailableError:
            raise
        except MilepostError:
            # Refused as a whole, now and for ever.
            self._unanswered = None
            raise
        else:
            self._unanswered = None

    def _document_of(self, answer: MetadataDocument) -> dict[str, Any]:
        refused, self._refused = self._refused, []
        if refused:
            raise MetadataFlushError(refused=[refused_change(item) for item in refused])
        return answer.value


class _Collected(UntypedSink):
    """A sink that keeps operations until they are taken, a portion at a time."""

    def __init__(self) -> None:
        # Not merged, because the document may have a declared type, which may refuse one operation and not the next.
        self._pending: list[Operation] = []
        # Taken from `_pending`, but too much for the portion before.
        self._waiting: list[Operation] = []

    @property
    def has_operations(self) -> bool:
        return bool(self._waiting or self._pending)

    def add(self, operation: Operation) -> None:
        check(operation)
        self._pending.append(operation)

    def add_all(self, operations: list[Operation]) -> None:
        for operation in operations:
            check(operation)
        self._pending += operations

    def take(self, run_id: str) -> list[Operation]:
        operations = self._waiting
        if not operations:
            operations, self._pending = self._pending, []
        taken, rest = cut([TargetOperations(run_id, operations)])
        self._waiting = rest[0].operations if rest else []
        return taken[0].operations

    def put_back(self, operations: list[Operation]) -> None:
        self._waiting = [*operations, *self._waiting]


def _plain(key: str) -> str:
    # A `str` enum or another subclass of text is a key too.
    return key if type(key) is str else check_key(key)


def _as_number(key: str, by: object) -> int | float:
    if (type(by) is int and -INTEGER_MAX <= by <= INTEGER_MAX) or (type(by) is float and isfinite(by)):
        return by
    number = to_json(by, place=key)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise MetadataTypeError(f"{key!r:.100}: increment by a number, not by {type(by).__name__}", key=key)
    return number


def _as_object(sink: Sink, value: object, method: str) -> dict[str, JSONValue]:
    converted = sink.object_of(value)
    if not isinstance(converted, dict):
        raise MetadataTypeError(f"metadata.{method}() takes a mapping, not {type(value).__name__}")
    return converted
