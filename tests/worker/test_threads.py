"""The thread pool: every callable runs, blocking ones do not hold up others, threads are reused and end."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from milepost.worker.threads import ThreadPool


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def threads_of(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def test_everything_submitted_runs() -> None:
    pool = ThreadPool(name="everything")
    done: list[int] = []
    for start in range(0, 10_000, 100):
        pool.submit([lambda number=number: done.append(number) for number in range(start, start + 100)])
    wait_until(lambda: len(done) == 10_000)
    assert sorted(done) == list(range(10_000))
    assert threads_of("everything") < 100, "short runs share threads"


def test_runs_that_block_do_not_hold_up_others() -> None:
    pool = ThreadPool(name="blocking")
    gate, arrived = threading.Event(), threading.Semaphore(0)

    def block() -> None:
        arrived.release()
        gate.wait()

    pool.submit([block] * 50)
    for _ in range(50):
        assert arrived.acquire(timeout=60), "each of them has a thread of its own"
    last = threading.Event()
    pool.submit([last.set])
    assert last.wait(60)
    gate.set()


def test_a_limit_of_threads_lets_work_stand_in_line() -> None:
    pool = ThreadPool(name="limited", threads_max=2)
    gate, done = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        gate.wait()
        done.release()

    pool.submit([work] * 10)
    assert threads_of("limited") <= 2
    gate.set()
    for _ in range(10):
        assert done.acquire(timeout=60)


def test_idle_threads_are_used_again_and_end_at_last() -> None:
    pool = ThreadPool(name="idle", idle_seconds=0.05)
    names: set[str] = set()
    for _ in range(20):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            names.add(threading.current_thread().name)
            done.set()

        pool.submit([work])
        assert done.wait(60)
    assert len(names) <= 3
    wait_until(lambda: threads_of("idle") == 0)
    again = threading.Event()
    pool.submit([again.set])
    assert again.wait(60)


def test_work_from_many_threads_and_threads_that_age_lose_nothing() -> None:
    # Threads end all the time here, so that a thread's end and a call for it meet.
    pool = ThreadPool(name="aging", idle_seconds=0.0005)
    count, lock = 0, threading.Lock()

    def work() -> None:
        nonlocal count
        with lock:
            count += 1

    def submit() -> None:
        for _ in range(500):
            pool.submit([work])
            time.sleep(0.0005)

    submitters = [threading.Thread(target=submit) for _ in range(4)]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join()
    wait_until(lambda: count == 2000)


def test_threads_that_are_there_from_the_start_stay() -> None:
    pool = ThreadPool(name="staying", threads_min=2, idle_seconds=0.02)
    assert threads_of("staying") == 2
    gate, arrived = threading.Event(), threading.Semaphore(0)
    pool.submit([lambda: (arrived.release(), gate.wait())] * 5)  # type: ignore[list-item]
    for _ in range(5):
        assert arrived.acquire(timeout=60)
    gate.set()
    wait_until(lambda: threads_of("staying") == 2)
    time.sleep(0.1)
    assert threads_of("staying") == 2
    last = threading.Event()
    pool.submit([last.set])
    assert last.wait(60)


def send(thread_id: int, error: type[BaseException]) -> None:
    """Raise an error in another thread, as some timeouts do."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(error))


@pytest.mark.parametrize("threads_min", [0, 1])
def test_a_thread_that_is_hit_by_an_error_takes_nobody_along(threads_min: int) -> None:
    """Some timeouts send an error into a thread, and it may come when the run has ended."""
    pool = ThreadPool(name=f"hit-{threads_min}-", threads_min=threads_min, threads_max=1)
    for _ in range(20):
        done = threading.Event()
        pool.submit([done.set])
        assert done.wait(60)
        # It becomes idle, and the error waits for the moment when the thread is called.
        wait_until(lambda: len(pool._idle) == 1)
        for thread in threading.enumerate():
            if thread.name.startswith(f"hit-{threads_min}-") and thread.ident is not None:
                send(thread.ident, SystemExit)
    done = threading.Event()
    pool.submit([sys.exit, sys.exit, done.set])
    assert done.wait(60)
    wait_until(lambda: threads_of(f"hit-{threads_min}-") <= 1)


def test_whoever_hands_in_work_waits_for_nobody_who_was_stopped_in_the_middle() -> None:
    """A finalizer may stop any thread at any instruction, and wait for the one that hands in the next run."""
    pool = ThreadPool(name="stopped")
    is_inside, goes_on, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name == "_send_one" and not is_inside.is_set():
            is_inside.set()
            assert goes_on.wait(20)
        return None

    def submit() -> None:
        sys.settrace(trace)
        pool.submit([done.release])
        sys.settrace(None)

    stopped = threading.Thread(target=submit, daemon=True)
    stopped.start()
    assert is_inside.wait(20)
    other = threading.Thread(target=pool.submit, args=([done.release] * 5,), daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
    goes_on.set()
    for _ in range(6):
        assert done.acquire(timeout=20)


def test_many_who_hand_in_work_at_once_lose_none_of_it() -> None:
    for threads_max in (1, 3, 1000):
        pool = ThreadPool(name="many", threads_max=threads_max, idle_seconds=0.001)
        done = threading.Semaphore(0)

        def submit(pool: ThreadPool = pool, done: threading.Semaphore = done) -> None:
            for index in range(300):
                pool.submit([done.release] * (index % 3))
                if index % 50 == 0:
                    time.sleep(0.002)

        submitting = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
        for thread in submitting:
            thread.start()
        for _ in range(4 * 300):
            assert done.acquire(timeout=20), "work was left in line"
        for thread in submitting:
            thread.join(20)
