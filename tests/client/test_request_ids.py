"""An id that comes twice is a request that is lost: none does, whatever becomes of the process."""

from __future__ import annotations

import os
import threading
from itertools import count

import pytest

from milepost.client import request_ids
from milepost.client.request_ids import new_request_id


def test_threads_make_different_ids() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend(new_request_id() for _ in range(5000))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 40_000
    assert all(made_id.isascii() and made_id.isprintable() and len(made_id) <= 64 for made_id in made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_others_than_its_parent_and_its_siblings() -> None:
    prefixes = {new_request_id().partition("-")[0]}
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, new_request_id().encode())
            os._exit(0)
        os.waitpid(child, 0)
        prefixes.add(os.read(reading, 1000).decode().partition("-")[0])
        os.close(reading)
        os.close(writing)
    assert len(prefixes) == 4


def test_a_process_that_is_set_going_twice_makes_different_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one picture of its memory: what is random and what counts is the same, and the time is not."""
    new_request_id()
    made: list[str] = []
    for _ in range(2):
        monkeypatch.setattr(request_ids._process, "numbers", count(7))  # pyright: ignore[reportPrivateUsage]
        made.append(new_request_id())
    assert len(set(made)) == 2
    prefixes, times, numbers = zip(*(made_id.split("-") for made_id in made), strict=True)
    assert (len(set(prefixes)), len(set(times)), set(numbers)) == (1, 2, {"7"})
