"""How often and how late a call is repeated, without a clock."""

from milepost import UnavailableError
from milepost.client.retries import Retries, patient

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
