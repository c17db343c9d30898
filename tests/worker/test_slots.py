"""The slots of an executor: never more held than there are, resumed runs first."""

import random

from milepost.worker.slots import Slots


def test_claimed_runs_start_in_order_and_no_more_than_fit() -> None:
    slots: Slots[int, str] = Slots(2)
    for number in range(4):
        slots.enter(number)
    assert slots.take_claimed() == [0, 1]
    assert slots.take_claimed() == []
    slots.leave()
    assert slots.take_claimed() == [2]
    assert slots.room(0) == 0


def test_a_resumed_run_goes_before_claimed_ones() -> None:
    slots: Slots[int, str] = Slots(1)
    slots.enter(1)
    slots.enter(2)
    assert slots.take_claimed() == [1]
    slots.enter_again("resumed")
    slots.leave()
    assert slots.take_claimed() == [], "the resumed run is in front"
    assert slots.take_resumed() == "resumed"
    assert slots.take_resumed() is None
    slots.leave()
    assert slots.take_claimed() == [2]


def test_free_leaves_out_who_stands_in_line() -> None:
    slots: Slots[int, str] = Slots(3)
    assert slots.room(0) == 3
    slots.enter(1)
    slots.enter_again("one")
    assert slots.room(0) == 1
    slots.seize()
    slots.seize()
    assert slots.room(0) == 0


def test_any_order_of_events_keeps_the_limit() -> None:
    chance = random.Random(4)
    slots: Slots[int, int] = Slots(3)
    running, waiting, number = 0, 0, 0
    for _ in range(5000):
        match chance.randrange(4):
            case 0 if slots.room(0):
                slots.enter(number)
                number += 1
            case 1 if running:
                running -= 1
                slots.leave()
            case 2 if running:
                running -= 1
                waiting += 1
                slots.leave()
            case 3 if waiting:
                waiting -= 1
                slots.enter_again(number)
            case _:
                pass
        while slots.take_resumed() is not None:
            running += 1
        running += len(slots.take_claimed())
        assert running == slots.held <= 3
        assert 0 <= slots.room(0) <= 3 - running
