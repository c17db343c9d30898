"""What the user's code reads of its own document, over flushes and refreshes, is what its calls come to (M42, M43)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from milepost import MetadataError, MetadataFlushError, metadata
from milepost.model.counted import KNOWN_MAX
from milepost.model.document import Document
from milepost.model.operations import (
    Append,
    Delete,
    Increment,
    Operation,
    Remove,
    Set,
    encode_operations,
)
from milepost.protocol.metadata import MetadataDelta
from milepost.sdk import metadata as metadata_module
from model import planted
from sdk.here import running
from support.chance import cases, hold
from support.operations import exactly


def call(operation: Operation) -> None:
    """The call that makes this operation."""
    match operation:
        case Set(key, value):
            metadata.set(key, value)
        case Delete(key):
            metadata.delete(key)
        case Append(key, value, max_items, once):
            metadata.append(key, value, max_items=max_items, once=once)
        case Remove(key, value):
            metadata.remove(key, value)
        case Increment(key, value, once):
            metadata.increment(key, value, once=once)
        case _:
            metadata.replace(operation.value)


def outcome_of(act: Callable[[Operation], Any], operation: Operation) -> str | None:
    """The code of what it raises."""
    try:
        act(operation)
    except MetadataError as error:
        return error.code
    return None


def reads_what_it_wrote(value: dict[str, Any], operations: list[Operation]) -> None:
    expected = Document(value)
    random = Random(encode_operations(operations))
    with running(value) as (_, link), pytest.MonkeyPatch.context() as patch:
        served = link.server.document
        answer = SimpleNamespace(
            get_metadata=lambda run_id: SimpleNamespace(value=served.copy_value(), version=served.version)
        )
        patch.setattr(metadata_module, "default_client", lambda: answer)
        refused = 0
        for operation in operations:
            code, told = outcome_of(expected.apply, operation), outcome_of(call, operation)
            if told is None and code is not None:
                # It is reported, not raised (M22).
                assert isinstance(operation, Remove)
                refused += 1
            else:
                assert told == code
            assert exactly(metadata.current() or {}) == exactly(expected.value)
            if random.random() < 0.3:
                with pytest.raises(MetadataFlushError) if refused else nullcontext() as caught:
                    metadata.flush()
                assert caught is None or len(caught.value.refused) == refused
                refused = 0
                assert exactly(served.value) == exactly(expected.value) == exactly(metadata.current() or {})
                metadata.refresh()
                assert exactly(metadata.current() or {}) == exactly(expected.value)


@pytest.mark.parametrize("seed", ["fixed", f"{date.today()}"], ids=["fixed", "today"])
def test_a_run_reads_what_it_wrote_M42_M43(seed: str) -> None:
    hold(reads_what_it_wrote, cases(seed), 3000)


@pytest.mark.parametrize(
    "plant",
    [
        planted.a_full_window_is_written_over_what_replaced_it,
        planted.a_name_of_digits_is_a_position_if_one_from_the_end_follows,
        planted.a_position_from_the_end_is_a_place_of_its_own,
        planted.an_id_is_counted_over_all_keys,
        planted.what_lies_around_a_place_does_not_touch_it,
    ],
)
def test_it_would_read_something_else(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes in the model that this law finds too."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"^case "):
        hold(reads_what_it_wrote, cases("planted"), 20_000)


def test_ids_are_known_in_bounded_memory_M46() -> None:
    """Beyond what is known the view counts at once, and the answer of the report puts it right."""
    with running() as (scope, link):
        for number in range(3 * KNOWN_MAX):
            metadata.increment("n", once=f"row {number}")
            if number % 1000 == 999:
                metadata.flush()
        assert len(scope.buffer._known_ids) <= 2 * KNOWN_MAX
        assert scope.buffer._view.counted is not None
        assert len(scope.buffer._view.counted) <= 2 * KNOWN_MAX
        newest = 3 * KNOWN_MAX - 1
        metadata.increment("n", once=f"row {newest}")
        assert metadata.get("n") == 3 * KNOWN_MAX
        metadata.increment("n", once="row 0")
        metadata.flush()
        assert metadata.get("n") == 3 * KNOWN_MAX == link.server.document.value["n"]


def test_what_others_have_counted_is_not_counted_again_M46() -> None:
    """Their steps tell, or the document that comes when steps are missing."""
    with running() as (scope, link):
        link.server.write([Increment("n", 1, "x"), Append("l", 1, None, "y")])
        scope.buffer.apply_delta(link.server.delta(0) or MetadataDelta("", 0, 0))
        metadata.increment("n", once="x").append("$.l", 2, once="y").increment("m", once="x")
        assert metadata.current() == {"n": 1, "l": [1], "m": 1}
        metadata.flush()
        link.server.write([Increment("n", 1, "z")])
        scope.buffer.apply_delta(link.server.snapshot())
        metadata.increment("n", once="z")
        assert metadata.current() == {"n": 2, "l": [1], "m": 1}
        metadata.flush()
        assert metadata.current() == link.server.document.value == {"n": 2, "l": [1], "m": 1}
