"""The laws are checked: each of these mistakes is put into the model, and a law finds it by random lists alone.

The examples that are written down with the laws play no part in this.
"""

from collections.abc import Callable
from typing import Any

import pytest

from milepost.model.operations import Operation
from support.chance import cases, hold

from . import planted
from .test_collapse_laws import collapses_unnoticed, pending_is_collapse
from .test_document_laws import agrees_with_the_reference

CASES_MAX = 20_000

Plant = Callable[[pytest.MonkeyPatch], None]
Law = Callable[[dict[str, Any], list[Operation]], None]

PLANTS: list[tuple[Plant, Law]] = [
    (planted.a_full_window_is_written_over_what_replaced_it, collapses_unnoticed),
    (planted.a_name_of_digits_is_a_position_if_one_from_the_end_follows, collapses_unnoticed),
    (planted.a_position_from_the_end_is_a_place_of_its_own, collapses_unnoticed),
    (planted.a_word_of_digits_is_another_place_than_the_position, collapses_unnoticed),
    (planted.a_deleted_element_moves_no_other, collapses_unnoticed),
    (planted.what_lies_around_a_place_does_not_touch_it, collapses_unnoticed),
    (planted.a_cap_leaves_one_too_few, collapses_unnoticed),
    (planted.a_cap_holds_for_the_appends_that_follow, collapses_unnoticed),
    (planted.an_id_is_lost_where_increments_are_summed, collapses_unnoticed),
    (planted.a_set_hides_that_an_increment_was_refused, collapses_unnoticed),
    (planted.an_update_hides_what_was_refused_before_it, collapses_unnoticed),
    (planted.a_number_is_added_to_true, collapses_unnoticed),
    (planted.a_second_deletion_in_an_array_is_left_out, collapses_unnoticed),
    (planted.looking_at_the_list_forgets_what_is_open, pending_is_collapse),
    (planted.a_position_from_the_end_is_one_off, agrees_with_the_reference),
    (planted.a_word_with_a_leading_zero_is_a_position, agrees_with_the_reference),
    (planted.true_is_one, agrees_with_the_reference),
    (planted.an_id_is_counted_over_all_keys, agrees_with_the_reference),
    (planted.an_id_is_counted_by_the_words_of_its_key, agrees_with_the_reference),
    (planted.an_id_is_counted_although_its_operation_is_refused, agrees_with_the_reference),
    (planted.a_cap_is_only_seen_when_it_is_overstepped_by_one, agrees_with_the_reference),
    (planted.an_update_forgets_no_sizes, agrees_with_the_reference),
]


@pytest.mark.parametrize(("plant", "law"), PLANTS, ids=lambda given: getattr(given, "__name__", ""))
def test_a_law_finds(plant: Plant, law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"^case ") as found:
        hold(law, cases("planted"), CASES_MAX)
    print(found.value)
