"""Mistakes to be put into the model, so that the tests can be tested. Some were made here before."""

from __future__ import annotations

from typing import Any, cast

import pytest

from milepost.model import document as document_module
from milepost.model import operations as operations_module
from milepost.model import path as path_module
from milepost.model.document import Document
from milepost.model.operations import Append, Delete, Increment, Operation, Pending, Set, Update
from milepost.model.path import Path, Segment


def a_full_window_is_written_over_what_replaced_it(patch: pytest.MonkeyPatch) -> None:
    append_to = Pending._append_to
    windows: dict[int, dict[int, Operation]] = {}

    def appending(self: Pending, written: Any, operation: Append) -> None:
        count = len(self)
        append_to(self, written, operation)
        if len(self) <= count:
            windows.setdefault(id(self), {}).update((each, self._entries[each]) for each in written.appends)

    def written_again(self: Pending) -> list[Operation]:
        for entry, operation in windows.pop(id(self), {}).items():
            if entry in self._entries:
                self._entries[entry] = operation
        return list(self._entries.values())

    patch.setattr(Pending, "_append_to", appending)
    patch.setattr(Pending, "operations", property(written_again))


def a_name_of_digits_is_a_position_if_one_from_the_end_follows(patch: pytest.MonkeyPatch) -> None:
    real = path_module.reach

    def reach(path: Path) -> Path:
        for depth, segment in enumerate(path):
            if type(segment) is int and segment < 0:
                return tuple(map(path_module._position_or_name, path[:depth]))
        return real(path)

    patch.setattr(operations_module, "reach", reach)


def a_position_from_the_end_is_a_place_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operations_module, "reach", path_module.normal)


def a_word_of_digits_is_another_place_than_the_position(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(path_module, "_position_or_name", lambda segment: segment)


def a_deleted_element_moves_no_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operations_module, "_may_be_element", lambda path: type(path[-1]) is int and len(path) > 1)


def what_lies_around_a_place_does_not_touch_it(patch: pytest.MonkeyPatch) -> None:
    real = operations_module.OpenKeys.pop_touching

    def pop_touching(self: Any, place: Path) -> list[str]:
        around = {part: self._at.pop(part) for part in list(self._at) if place[: len(part)] == part != place}
        popped = real(self, place)
        self._at.update(around)
        return popped

    patch.setattr(operations_module.OpenKeys, "pop_touching", pop_touching)


def a_cap_leaves_one_too_few(patch: pytest.MonkeyPatch) -> None:
    append_to = Pending._append_to

    def appending(self: Pending, written: Any, operation: Append) -> None:
        append_to(self, written, operation)
        if operation.max_items is not None and len(written.appends) == operation.max_items > 1:
            self._drop(written.appends.popleft())

    patch.setattr(Pending, "_append_to", appending)


def a_cap_holds_for_the_appends_that_follow(patch: pytest.MonkeyPatch) -> None:
    append_to = Pending._append_to
    caps: dict[int, int] = {}

    def appending(self: Pending, written: Any, operation: Append) -> None:
        append_to(self, written, operation)
        if operation.max_items is not None:
            caps[id(written)] = operation.max_items
        while len(written.appends) > caps.get(id(written), 9):
            self._drop(written.appends.popleft())

    patch.setattr(Pending, "_append_to", appending)


def an_id_is_lost_where_increments_are_summed(patch: pytest.MonkeyPatch) -> None:
    add = Pending.add

    def adding(self: Pending, operation: Operation) -> None:
        if isinstance(operation, Increment) and type(self._open.get(operation.key)).__name__ == "_Sum":
            operation = Increment(operation.key, operation.value)
        add(self, operation)

    patch.setattr(Pending, "add", adding)


def a_set_hides_that_an_increment_was_refused(patch: pytest.MonkeyPatch) -> None:
    add = Pending.add

    def adding(self: Pending, operation: Operation) -> None:
        last = None if isinstance(operation, Update) else self._open.get(operation.key)
        if isinstance(operation, Set) and isinstance(last, operations_module._Sum):
            self._entries[last.entry] = operation
            del self._open[operation.key]
            self._keys.pop_touching(operations_module.reach_of(operation))
        else:
            add(self, operation)

    patch.setattr(Pending, "add", adding)


def an_update_hides_what_was_refused_before_it(patch: pytest.MonkeyPatch) -> None:
    add_update = Pending._add_update

    def adding(self: Pending, operation: Update) -> None:
        self._replaceable = True
        add_update(self, operation)

    patch.setattr(Pending, "_add_update", adding)


def a_number_is_added_to_true(patch: pytest.MonkeyPatch) -> None:
    def adding(self: Pending, written: Any, operation: Increment) -> bool:
        if not isinstance(written.value_set, int | float) or operation.once is not None:
            return False
        written.value_set += operation.value
        self._entries[written.head] = Set(operation.key, written.value_set)
        return True

    patch.setattr(Pending, "_add_to_set", adding)


def a_second_deletion_in_an_array_is_left_out(patch: pytest.MonkeyPatch) -> None:
    add = Pending.add

    def adding(self: Pending, operation: Operation) -> None:
        entries = list(self._entries.values())
        if not (isinstance(operation, Delete) and entries and entries[-1] == operation):
            add(self, operation)

    patch.setattr(Pending, "add", adding)


def looking_at_the_list_forgets_what_is_open(patch: pytest.MonkeyPatch) -> None:
    def looked_at(self: Pending) -> list[Operation]:
        found = list(self._entries.values())
        self._open.clear()
        self._keys.clear()
        return found

    patch.setattr(Pending, "operations", property(looked_at))


def a_position_from_the_end_is_one_off(patch: pytest.MonkeyPatch) -> None:
    def position_in(items: list[Any], segment: Segment) -> int | None:
        position = int(segment) if type(segment) is int or path_module.is_position(str(segment)) else None
        if position is not None and position < 0:
            position += len(items) - (position < -1)
        return position if position is not None and 0 <= position < len(items) else None

    patch.setattr(path_module, "position_in", position_in)


def a_word_with_a_leading_zero_is_a_position(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(path_module, "is_position", str.isdigit)


def true_is_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(document_module, "json_equal", lambda left, right: left == right)


def an_id_is_counted_over_all_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(document_module, "id_of", lambda key, once: once.encode())


def an_id_is_counted_by_the_words_of_its_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(document_module, "id_of", lambda key, once: f"{key} {once}".encode())


def an_id_is_counted_although_its_operation_is_refused(patch: pytest.MonkeyPatch) -> None:
    append = Document._append_item

    def appending(self: Document, operation: Append) -> None:
        try:
            append(self, operation)
        finally:
            if operation.once is not None:
                self._count(document_module.id_of(operation.key, operation.once))

    patch.setattr(Document, "_append_item", appending)


def a_cap_is_only_seen_when_it_is_overstepped_by_one(patch: pytest.MonkeyPatch) -> None:
    append = Document._append_item

    def appending(self: Document, operation: Append) -> None:
        most = operation.max_items
        old = self.get(operation.key, [])
        if most is not None and isinstance(old, list) and len(cast("list[Any]", old)) > most:
            operation = Append(operation.key, operation.value)
        append(self, operation)

    patch.setattr(Document, "_append_item", appending)


def an_update_forgets_no_sizes(patch: pytest.MonkeyPatch) -> None:
    update = Document._update

    def updating(self: Document, operation: Update) -> None:
        sizes = dict(self._sizes)
        update(self, operation)
        self._sizes.update(sizes)

    patch.setattr(Document, "_update", updating)
