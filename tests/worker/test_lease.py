"""The lease as its worker knows it: reckoned from when a request was sent, on a clock that counts sleep."""

import time

from milepost.worker.lease import Lease, lease_clock


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_is_over_when_no_request_was_answered_for_so_long() -> None:
    clock = Clock()
    lease = Lease(clock)
    clock.now += 1_000_000
    assert not lease.is_over(), "before it has registered it holds nothing"
    asked_at = lease.now()
    clock.now += 4
    lease.seconds = 10.0
    lease.confirm(asked_at)
    clock.now += 6
    assert not lease.is_over()
    clock.now += 0.1
    assert lease.is_over(), "counted from when the request was sent, not from its answer"


def test_an_answer_tells_that_the_lease_was_over_in_between() -> None:
    clock = Clock()
    lease = Lease(clock)
    lease.seconds = 10.0
    clock.now += 9
    assert not lease.confirm(clock.now)
    before_sleep = lease.now()
    clock.now += 3600
    assert not lease.confirm(before_sleep), "an old answer says nothing new"
    assert lease.is_over()
    assert lease.confirm(clock.now)
    assert not lease.is_over()
    assert not lease.confirm(before_sleep)
    assert not lease.is_over(), "an old answer that comes late takes nothing back"


def test_the_clock_goes_on() -> None:
    before = lease_clock()
    time.sleep(0.01)
    assert 0.01 <= lease_clock() - before < 60
