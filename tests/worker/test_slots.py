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


def test_a_run_that_is_apart_starts_alone_and_before_others() -> None:
    slots: Slots[str, str] = Slots(3)
    slots.enter("a")
    assert slots.take_claimed() == ["a"]
    slots.enter("b")
    slots.enter("apart", apart=True)
    assert slots.room(10) == 0
    assert not slots.has_free
    assert slots.take_claimed() == [], "another one executes"
    slots.enter_again("resumed")
    assert slots.take_resumed() is None
    slots.leave()
    assert slots.take_resumed() is None
    assert slots.take_claimed() == ["apart"]
    assert slots.take_claimed() == []
    assert slots.take_resumed() is None
    assert slots.room(10) == 0
    slots.leave(apart=True)
    assert slots.take_resumed() == "resumed"
    assert slots.take_claimed() == ["b"]
    assert slots.room(0) == 1


def test_a_run_that_is_apart_comes_back_alone() -> None:
    slots: Slots[str, str] = Slots(3)
    slots.enter("apart", apart=True)
    assert slots.take_claimed() == ["apart"]
    slots.leave(apart=True)
    slots.enter("child")
    assert slots.take_claimed() == ["child"], "what it waits for must be able to run"
    slots.enter_again("apart", apart=True)
    slots.enter("other")
    assert slots.take_resumed() is None
    assert slots.take_claimed() == []
    slots.leave()
    assert slots.take_resumed() == "apart"
    assert slots.take_claimed() == []


def test_a_run_that_is_let_join_the_others_keeps_its_slot() -> None:
    slots: Slots[str, str] = Slots(3)
    slots.enter("apart", apart=True)
    assert slots.take_claimed() == ["apart"]
    slots.enter("a")
    assert slots.take_claimed() == []
    slots.let_join()
    assert slots.take_claimed() == ["a"]
    assert slots.room(0) == 1
    slots.leave()
    slots.leave()
    assert slots.room(0) == 3


def test_what_is_apart_is_withdrawn_too() -> None:
    slots: Slots[str, str] = Slots(1)
    slots.enter("a")
    slots.enter("apart", apart=True)
    assert sorted(slots.withdraw()) == ["a", "apart"]
    assert slots.room(0) == 1


def test_any_order_of_events_keeps_the_limit() -> None:
    chance = random.Random(4)
    slots: Slots[tuple[int, bool], tuple[int, bool]] = Slots(3)
    running: list[tuple[int, bool]] = []
    waiting: list[tuple[int, bool]] = []
    started = 0
    for number in range(5000):
        match chance.randrange(4):
            case 0 if slots.room(0):
                run = number, chance.random() < 0.2
                slots.enter(run, apart=run[1])
            case 1 if running:
                slots.leave(apart=running.pop(chance.randrange(len(running)))[1])
            case 2 if running:
                waiting.append(running.pop(chance.randrange(len(running))))
                slots.leave(apart=waiting[-1][1])
            case 3 if waiting:
                run = waiting.pop(chance.randrange(len(waiting)))
                slots.enter_again(run, apart=run[1])
            case _:
                pass
        while (resumed := slots.take_resumed()) is not None:
            running.append(resumed)
        claimed = slots.take_claimed()
        started += len(claimed)
        running += claimed
        assert len(running) == slots.held <= 3
        assert not any(apart for _, apart in running) or len(running) == 1
        assert 0 <= slots.room(0) <= 3 - len(running)
    assert started > 500
