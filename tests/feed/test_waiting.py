"""What a stream waits with, and the steps that it is led on by: both cost what is new, not what was before."""

import asyncio
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine.announcements import LoggedChange, steps_after
from milepost.feed.waiting import AT_ONCE, Lags, Turns, Wake, woken


def new_wake() -> Wake:
    lags = Lags()
    return Wake(lags, lags.of_runs, Turns())


async def later(seconds: float, wake: Wake) -> None:
    await asyncio.sleep(seconds)
    wake.set()


def timers() -> int:
    """How many timers the running loop has that nobody has cancelled."""
    loop = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]


def test_it_is_true_once_it_is_set_and_false_when_it_was_quiet() -> None:
    async def main() -> None:
        wake = new_wake()
        setting = asyncio.ensure_future(later(0.01, wake))
        assert await wake.within(20)
        assert await wake.within(20), "it is set still"
        wake.clear()
        began = asyncio.get_running_loop().time()
        # The timer of the long waits stands far behind this one.
        assert not await wake.within(0.05)
        assert not await wake.within(0.05)
        assert 0.1 <= asyncio.get_running_loop().time() - began < 5
        await setting
        wake.close()
        assert timers() == 0

    asyncio.run(main())


def test_a_long_wait_after_short_ones_is_as_long() -> None:
    """The timer of the short wait rings in the middle of the long one, which goes on."""

    async def main() -> None:
        wake = new_wake()
        for _ in range(3):
            setting = asyncio.ensure_future(later(0.001, wake))
            assert await wake.within(0.1)
            wake.clear()
            await setting
        began = asyncio.get_running_loop().time()
        assert not await wake.within(0.4)
        assert asyncio.get_running_loop().time() - began >= 0.4

    asyncio.run(main())


def test_who_comes_behind_many_streams_does_not_wait_for_all_of_them() -> None:
    """Each of them is told all the same, once, those that are set again while they stand in line too."""

    async def main() -> None:
        lags, turns, loop = Lags(), Turns(), asyncio.get_running_loop()
        wakes = [Wake(lags, lags.of_runs, turns) for _ in range(10 * AT_ONCE)]
        told: list[int] = []

        async def stream(number: int) -> None:
            while await wakes[number].within(20):
                wakes[number].clear()
                told.append(number)

        streams = [asyncio.ensure_future(stream(number)) for number in range(len(wakes))]
        gone = len(wakes) - 1
        for round_number in range(1, 4):
            await asyncio.sleep(0)
            told.clear()
            behind = loop.create_future()
            for wake in wakes:
                wake.set()
            loop.call_soon(behind.set_result, None)
            if round_number == 2:
                streams[gone].cancel()
            for wake in wakes[::2]:
                wake.set()
            await behind
            assert 0 < len(told) <= 2 * AT_ONCE
            for _ in range(20):
                await asyncio.sleep(0)
            assert told == list(range(len(wakes) if round_number == 1 else gone))
        for one in streams:
            one.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    asyncio.run(main())


def test_a_stream_that_is_told_something_all_the_time_sets_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        set_timers = 0
        call_at = loop.call_at

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal set_timers
            set_timers += 1
            return call_at(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_at", counted)
        wake = new_wake()
        for _ in range(1000):
            loop.call_soon(wake.set)
            assert await woken(wake)
            wake.clear()
        wake.close()
        return set_timers

    assert asyncio.run(main()) == 1


def test_a_reader_that_goes_leaves_nothing_behind() -> None:
    async def main() -> None:
        wake = new_wake()
        waiting = asyncio.ensure_future(wake.within(20))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # Nobody waits: setting it wakes nobody, and is not lost.
        wake.set()
        assert await wake.within(20)
        wake.close()
        assert timers() == 0

    asyncio.run(main())


# --- steps -------------------------------------------------------------------------------------------------


class Counted(deque[LoggedChange]):
    """A deque that counts how many of its items are looked at."""

    looked_at = 0

    def __reversed__(self) -> Iterator[LoggedChange]:
        for step in super().__reversed__():
            self.looked_at += 1
            yield step

    def __iter__(self) -> Iterator[LoggedChange]:
        for step in super().__iter__():
            self.looked_at += 1
            yield step


def steps_of(first: int, count: int) -> list[LoggedChange]:
    return [LoggedChange(first + number, [], 0) for number in range(count)]


@given(st.integers(0, 20), st.integers(0, 12), st.integers(-1, 40), st.booleans())
def test_the_steps_after_a_version_are_those_above_it_or_none_where_one_is_missing(
    first: int, count: int, version: int, as_deque: bool
) -> None:
    steps = steps_of(first, count)
    above = [step for step in steps if step.version > version]
    expected = above if above and above[0].version == version + 1 else None
    assert steps_after(deque(steps) if as_deque else steps, version) == expected


def test_steps_with_a_gap_lead_nobody_across_it() -> None:
    steps = [*steps_of(1, 3), *steps_of(7, 3)]
    assert steps_after(steps, 2) is None
    assert steps_after(steps, 6) == steps[3:]


def test_finding_the_newest_steps_takes_no_time_for_older_ones() -> None:
    steps = Counted(steps_of(1, 10_000))
    assert [step.version for step in steps_after(steps, 9_998) or ()] == [9_999, 10_000]
    assert steps.looked_at <= 3
