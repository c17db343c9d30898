"""Waits with real processes: slots that are given back, tokens from everywhere, and `kill -9` of whoever waits or remembers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import urllib3
from real_processes import Site, wait_until
from test_deaths_and_leases import NOTES, charged, ends_of, noted

from milepost import configure, tasks, wait
from milepost.client.run import Run
from milepost.errors import NotFoundError

TASKS = (
    NOTES
    + """
from datetime import UTC, datetime, timedelta
from milepost import Queue, hooks, runs, wait

@task(retry=Retry(max_attempts=1), queue=Queue("line", concurrency=1))
async def asks(name: str) -> str:
    token = await wait.acreate_token(timeout="10m", tags=["asks", name])
    note("made", name)
    metadata.set("token", token.id).set("url", token.url).set("key", token.public_access_token)
    result = await wait.afor_token(token, dict[str, int])
    return f"{result.ok} {result.output}"

@task(retry=Retry(max_attempts=1), queue=Queue("line", concurrency=1))
def asks_in_a_thread(name: str) -> str:
    token = wait.create_token(timeout=2)
    metadata.set("token", token.id)
    result = wait.for_token(token)
    return f"{result.ok} {result.error.name}"

@task(retry=Retry(max_attempts=1), queue=Queue("line", concurrency=1))
def quick() -> None:
    note("ran", "quick")

@task(retry=Retry(max_attempts=1))
def sleeps(seconds: float) -> float:
    note("began", "sleeps")
    began = metadata.get("began")
    if began is None:
        began = time.time()
        metadata.set("began", began)
    wait.for_(seconds=seconds)
    return time.time() - began

@task(retry=Retry(max_attempts=1))
async def sleeps_until(seconds: float) -> float:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    await wait.auntil(at)
    return (datetime.now(UTC) - at).total_seconds()

@task(retry=Retry(max_attempts=1), queue=Queue("line", concurrency=1))
async def watches(run_id: str) -> str:
    run = await runs.await_for(run_id, metadata={"status": "ready"}, timeout="1m")
    return run.metadata["status"]

@task(retry=Retry(max_attempts=1))
def watched() -> None:
    wait_for("watched.go")
    metadata.set("status", "ready")
    metadata.flush()
    wait_for("watched.end")

@asks.on_wait
def waits(ctx) -> None:
    metadata.increment("waits")

@asks.on_resume
def resumes(ctx) -> None:
    metadata.increment("resumes")
"""
)


@pytest.fixture
def place(site: Callable[..., Site]) -> Iterator[Site]:
    """A server, which this process speaks to as well."""
    found = site(MILEPOST_LEASE_SECONDS="2")
    configure(api_url=found.url, secret_key=found.client.connection.secret_key)
    yield found
    configure()


def waiting(run: Run) -> bool:
    return run.is_waiting and "token" in run.metadata


def trigger(place: Site, task: str, *payload: object) -> str:
    return place.client.trigger(task, *payload).id


def test_a_run_that_waits_for_a_token_holds_no_slot_and_is_told_of_the_end(place: Site) -> None:
    place.start_worker(TASKS, "--concurrency", "1")
    asking = trigger(place, "asks", "one")
    token = place.until(asking, waiting).metadata["token"]
    # The queue takes one, and the process has one slot.
    assert place.finished(trigger(place, "quick")).is_success
    assert wait.complete_token(token, {"n": 1})
    run = place.finished(asking)
    assert run.output == "True {'n': 1}"
    assert (run.metadata["waits"], run.metadata["resumes"]) == (1, 1)
    assert not wait.complete_token(token, {"n": 2})
    assert wait.retrieve_token(token).output == {"n": 1}
    [listed] = wait.list_tokens(tag="one", status="COMPLETED")
    assert (listed.id, listed.run_id) == (token, asking)
    assert list(wait.list_tokens(tag="one", status="WAITING")) == []


def test_a_token_is_completed_by_its_callback_address_and_with_its_public_token(place: Site) -> None:
    place.start_worker(TASKS)
    pool = urllib3.PoolManager()
    by_address, by_token = trigger(place, "asks", "a"), trigger(place, "asks", "b")
    url = place.until(by_address, waiting).metadata["url"]
    wrong = pool.request("POST", url[:-1] + ("0" if url[-1] != "0" else "1"), json={"n": 9})
    assert wrong.status == 401
    assert pool.request("POST", url, json={"n": 1}).json() == {
        "success": True, "isFirst": True, "status": "COMPLETED",
    }  # fmt: skip
    assert place.finished(by_address).output == "True {'n': 1}"
    made = place.until(by_token, waiting).metadata
    path = f"{place.url}/api/v1/waitpoints/tokens"
    headers = {"authorization": f"Bearer {made['key']}"}
    other = pool.request(
        "POST", f"{path}/{url.split('/')[-3]}/complete", json={"data": {"n": 3}}, headers=headers
    )
    assert other.status == 403
    assert (
        pool.request(
            "POST", f"{path}/{made['token']}/complete", json={"data": {"n": 2}}, headers=headers
        ).status
        == 200
    )
    assert place.finished(by_token).output == "True {'n': 2}"


def test_a_token_times_out_and_its_run_goes_on(place: Site) -> None:
    place.start_worker(TASKS)
    run = place.finished(trigger(place, "asks_in_a_thread", "late"))
    assert run.output == "False WaitTimeoutError"
    assert not wait.complete_token(run.metadata["token"], 1)
    late = wait.for_token(run.metadata["token"])
    assert not late.ok
    with pytest.raises(NotFoundError, match="no wait token"):
        wait.complete_token("waitpoint_none", 1)


def test_a_wait_survives_its_worker_at_no_cost(place: Site) -> None:
    """SIGKILL of the whole worker: supervisor and executors at once."""
    worker = place.start_worker(TASKS)
    sleeping, asking = trigger(place, "sleeps", 12.0), trigger(place, "asks", "one")
    token = place.until(asking, waiting).metadata["token"]
    place.until(sleeping, lambda run: run.is_waiting)
    executors = worker.executors()
    worker.signal(signal.SIGSTOP)
    for executor in executors:
        executor.kill()
    worker.process.kill()
    worker.process.wait()
    # Completed while nobody holds the run, or nobody knows that nobody does.
    assert wait.complete_token(token, {"n": 5})
    place.start_worker()
    asked = place.finished(asking)
    assert asked.output == "True {'n': 5}"
    slept = place.finished(sleeping)
    # The time that was left, and not twelve seconds more.
    assert 11.5 <= slept.output < 20
    for run_id in (sleeping, asking):
        assert ends_of(place, run_id)[:1] == ["waiting"]
        assert charged(place, run_id) == 0
    assert noted(place, "one.made") == 2
    assert [one.id for one in wait.list_tokens(tag="one")] == [token]


def test_a_process_that_is_killed_while_it_only_waits_costs_nothing(place: Site) -> None:
    worker = place.start_worker(TASKS)
    asking = trigger(place, "asks", "one")
    token = place.until(asking, waiting).metadata["token"]
    [executor] = worker.executors()
    executor.kill()
    wait_until(lambda: noted(place, "one.made") == 2, what="the second attempt")
    place.until(asking, waiting)
    assert wait.complete_token(token, {"n": 6})
    assert place.finished(asking).output == "True {'n': 6}"
    assert ends_of(place, asking) == ["waiting"]


def test_a_wait_survives_its_server(place: Site) -> None:
    place.start_worker(TASKS)
    sleeping, asking = trigger(place, "sleeps", 7.0), trigger(place, "asks", "one")
    token = place.until(asking, waiting).metadata["token"]
    place.until(sleeping, lambda run: run.is_waiting)
    place.kill_server()
    time.sleep(0.5)
    place.start_server()
    assert wait.complete_token(token, {"n": 7})
    assert place.finished(asking).output == "True {'n': 7}"
    assert 6.9 <= place.finished(sleeping).output < 15
    assert noted(place, "sleeps.began") == 1
    assert ends_of(place, sleeping) == []


def test_until_a_time_and_until_metadata_matches(place: Site) -> None:
    place.start_worker(TASKS)
    until = trigger(place, "sleeps_until", 6.0)
    watched = trigger(place, "watched")
    watching = trigger(place, "watches", watched)
    place.until(watching, lambda run: run.is_waiting)
    assert place.finished(trigger(place, "quick")).is_success
    (place.folder / "watched.go").touch()
    assert place.finished(watching).output == "ready"
    found = place.client.runs.wait_for(watched, metadata={"status": "ready"}, timeout=60)
    assert found.is_executing
    with pytest.raises(TimeoutError, match="has not become"):
        place.client.runs.wait_for(watched, metadata={"status": "gone"}, timeout=0.2)
    (place.folder / "watched.end").touch()
    assert 0 <= place.finished(until).output < 5


def test_outside_of_a_run(place: Site) -> None:
    before = time.monotonic()
    wait.for_(seconds=0.1)
    wait.for_("100ms")
    wait.until(datetime.now(UTC) + timedelta(seconds=0.1))
    assert time.monotonic() - before >= 0.29
    first = wait.create_token(idempotency_key="order:7", tags="x", timeout=None)
    again = wait.create_token(idempotency_key="order:7")
    assert (again.id, again.is_cached, first.is_cached) == (first.id, True, False)
    assert wait.retrieve_token(first).timeout_at is None
    assert wait.complete_token(first, [1, None, "é"])
    assert wait.for_token(first).unwrap() == [1, None, "é"]


BATCH = (
    NOTES
    + """
@task(retry=Retry(max_attempts=1))
def one(n: int) -> int:
    wait_for(f"{n}.go")
    if n == 3:
        raise ValueError("three")
    return n * 10
"""
)


def test_the_handle_of_a_batch(place: Site) -> None:
    place.start_worker(BATCH, "--concurrency", "8")
    batch = tasks.batch_trigger("one", range(5))
    with pytest.raises(TimeoutError, match="has not ended"):
        batch.wait(timeout=0.2)
    order = [4, 0, 3, 1, 2]
    found = batch.iter_results(timeout=60)
    for n in order:
        (place.folder / f"{n}.go").touch()
        result = next(found)
        assert result.run_id == batch.runs[n].id
        assert (result.ok, result.output) == ((False, None) if n == 3 else (True, n * 10))
    assert list(found) == []
    assert [result.output for result in batch.results()] == [0, 10, 20, None, 40]
    assert {run.id for run in batch.subscribe() if run.is_completed} == {run.id for run in batch.runs}

    async def again() -> list[str]:
        await batch.await_(timeout=60)
        assert len(await batch.aresults()) == 5
        assert len({run.id async for run in batch.asubscribe()}) == 5
        return [result.run_id async for result in batch.aiter_results(timeout=60)]

    assert asyncio.run(again()) == [run.id for run in batch.runs]
