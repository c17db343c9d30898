"""Who waits for what: announcements early and late, waiters that give up, checks that thin out."""

from concurrent.futures import Future

from milepost.worker.waits import CHECK_SECONDS_MAX, CHECK_SECONDS_MIN, REMEMBERED_MAX, Waits


def test_an_end_reaches_all_who_wait() -> None:
    waits: Waits[str] = Waits()
    futures: list[Future[None]] = [Future(), Future()]
    for name, future in zip("ab", futures, strict=True):
        assert not waits.add("run_1", name, future, now=0.0, check_now=False)
    assert waits.ended("run_1") == [("a", futures[0]), ("b", futures[1])]
    assert waits.ended("run_2") == []


def test_an_end_is_remembered_for_all_who_come_later() -> None:
    """Whoever waits for a run a second time would else have to ask the server, after a while."""
    waits: Waits[str] = Waits()
    waits.ended("run_1")
    assert waits.add("run_1", "a", Future(), now=0.0, check_now=False)
    assert waits.add("run_1", "a", Future(), now=0.0, check_now=False)
    assert not waits.add("run_2", "a", Future(), now=0.0, check_now=False)
    assert len(waits.ended("run_2")) == 1
    assert waits.add("run_2", "a", Future(), now=0.0, check_now=False)


def test_the_oldest_ends_are_forgotten() -> None:
    waits: Waits[str] = Waits()
    for number in range(REMEMBERED_MAX + 1):
        waits.ended(f"run_{number}")
    assert not waits.add("run_0", "a", Future(), now=0.0, check_now=False)
    assert waits.add("run_1", "a", Future(), now=0.0, check_now=False)


def test_who_gives_up_is_not_woken() -> None:
    waits: Waits[str] = Waits()
    one: Future[None] = Future()
    other: Future[None] = Future()
    waits.add("run_1", "a", one, now=0.0, check_now=False)
    waits.add("run_1", "b", other, now=0.0, check_now=False)
    assert waits.cancel("run_1", one)
    assert not waits.cancel("run_1", one)
    assert waits.ended("run_1") == [("b", other)]
    assert not waits.cancel("run_1", other)


def test_a_waiter_that_ends_takes_all_its_waits_along() -> None:
    waits: Waits[str] = Waits()
    futures: list[Future[None]] = [Future() for _ in range(3)]
    waits.add("run_1", "a", futures[0], now=0.0, check_now=False)
    waits.add("run_2", "a", futures[1], now=0.0, check_now=False)
    waits.add("run_2", "b", futures[2], now=0.0, check_now=False)
    assert waits.forget("a") == futures[:2]
    assert waits.ended("run_2") == [("b", futures[2])]


def test_checks_come_at_once_when_something_may_have_been_missed_and_thin_out() -> None:
    waits: Waits[str] = Waits()
    waits.add("run_1", "a", Future(), now=10.0, check_now=True)
    waits.add("run_2", "a", Future(), now=10.0, check_now=False)
    assert waits.to_check(10.0) == ["run_1"]
    assert waits.next_check_at() == 10.0 + CHECK_SECONDS_MIN
    now, pauses = 10.0, list[float]()
    for _ in range(10):
        then, now = now, waits.next_check_at() or 0.0
        pauses.append(now - then)
        waits.to_check(now)
    assert pauses[-1] <= CHECK_SECONDS_MAX
    waits.check_all()
    assert sorted(waits.to_check(now)) == ["run_1", "run_2"]
