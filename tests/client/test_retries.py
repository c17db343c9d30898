"""How often and how late a call is repeated, without a clock."""

import math
import time

import pytest

from milepost import AttemptOverError, UnavailableError
from milepost.client.retries import Patience, Retries, patient

ERROR = UnavailableError("away")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pauses(retries: Retries, clock: Clock, *, wanted: str | None = None) -> list[float]:
    """The pauses until it gives up."""
    found: list[float] = []
    while True:
        try:
            found.append(retries.pause(ERROR, wanted=wanted))
        except UnavailableError:
            return found
        clock.now += found[-1]


def test_pauses_grow_and_end() -> None:
    clock = Clock()
    assert pauses(Retries(clock=clock, chance=lambda: 1.0), clock) == [0.1, 0.2, 0.4, 0.8, 1.6]


def test_the_server_may_ask_for_a_longer_pause() -> None:
    clock = Clock()
    assert pauses(Retries(clock=clock, chance=lambda: 1.0), clock, wanted="3") == [3.0, 3.0]
    assert pauses(Retries(clock=clock, chance=lambda: 1.0), clock, wanted="3600") == [8.0]
    assert len(pauses(Retries(clock=clock, chance=lambda: 0.0), clock, wanted="soon")) == 5


def test_what_was_connected_before_is_waited_for() -> None:
    retries = patient()
    assert [retries.pause(ERROR) <= 2.0 for _ in range(30)] == [True] * 30


def test_a_call_inside_of_a_run_waits_for_ever() -> None:
    clock = Clock()
    retries = Retries(attempts_max=None, seconds_max=math.inf, clock=clock, chance=lambda: 1.0)
    for _ in range(5000):
        pause = retries.pause(ERROR)
        assert pause <= 2.0
        clock.now += pause
    assert retries.pause(ERROR, wanted="3600") == 8.0


class Attempt:
    attempt_name = "run_1:2"
    has_ended = False

    def lose(self) -> None:
        self.has_ended = True


def test_it_waits_as_long_as_its_attempt_is_under_way() -> None:
    attempt = Attempt()
    patience = Patience(attempt)
    for _ in range(100):
        assert patience.pause(ERROR) <= 2.0
    assert patience.seconds_of(30) == 30
    attempt.lose()
    with pytest.raises(AttemptOverError, match=r"attempt 2 of run run_1 is over.*given up \(away\)"):
        patience.pause(ERROR)
    with pytest.raises(AttemptOverError, match="the call was not made"):
        patience.seconds_of(30)


def test_nobody_waits_beyond_the_callers_own_time() -> None:
    patience = Patience(Attempt(), until=time.monotonic() + 0.05)
    assert patience.seconds_of(30) <= 0.05
    assert patience.pause(ERROR) <= 0.05
    with pytest.raises(TimeoutError):
        Patience(None, until=time.monotonic()).seconds_of(30)
