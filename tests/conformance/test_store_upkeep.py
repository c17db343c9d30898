"""Jobs of the upkeep: one server at a time has the lease of each."""

import pytest

from conformance.rows import NOW
from milepost.store import upkeep
from milepost.store.database import Store
from milepost.store.upkeep import JobRow

LEASE = 30_000_000


def take(store: Store, holder: str, at: int, *, job: str = "history", due_before: int | None = None) -> bool:
    with store.write() as connection:
        return upkeep.take_job(connection, job, holder, now=NOW + at, lease=LEASE, due_before=due_before)


def finish(store: Store, holder: str, at: int) -> None:
    with store.write() as connection:
        upkeep.finish_job(connection, "history", holder, now=NOW + at)


def job(store: Store, name: str = "history") -> JobRow | None:
    with store.read() as connection:
        return upkeep.load_job(connection, name)


def test_one_server_has_the_lease_until_it_is_over(store: Store) -> None:
    assert job(store) is None
    assert take(store, "a", 0)
    assert job(store) == JobRow("history", "a", NOW + LEASE)
    assert not take(store, "b", LEASE - 1)
    assert take(store, "a", LEASE - 1), "renewed"
    assert not take(store, "b", LEASE)
    assert take(store, "b", 2 * LEASE - 1)
    assert not take(store, "a", 2 * LEASE)
    assert job(store) == JobRow("history", "b", NOW + 3 * LEASE - 1)
    assert take(store, "a", 0, job="streams"), "another job"


def test_a_job_that_is_finished_is_free_and_due_again_after_a_while(store: Store) -> None:
    assert take(store, "a", 0, due_before=NOW - 100)
    finish(store, "b", 5)
    assert job(store) == JobRow("history", "a", NOW + LEASE), "it is not b's to finish"
    finish(store, "a", 10)
    assert job(store) == JobRow("history", "a", NOW + 10, NOW + 10)
    for server in ("a", "b"):
        assert not take(store, server, 50, due_before=NOW + 50 - 100)
    assert take(store, "b", 110, due_before=NOW + 110 - 100)
    assert job(store) == JobRow("history", "b", NOW + 110 + LEASE, NOW + 10)
    assert not take(store, "a", 10_000, due_before=NOW + 10_000 - 100)


@pytest.mark.parametrize("due_before", [None, -10 * 365 * 86_400_000_000])
def test_a_clock_that_was_set_back_leaves_no_job_undone(store: Store, due_before: int | None) -> None:
    year = 365 * 86_400_000_000
    assert take(store, "a", year)
    if due_before is not None:
        finish(store, "a", year)
        due_before += NOW
    assert take(store, "b", 0, due_before=due_before)
