"""Ending runs from outside, with real processes: what hears of it, what does not, and that every run ends within the grace time."""

import time
from collections.abc import Callable

import pytest
from real_processes import Command, Site

from milepost import Run

GRACE = 1.5

TASKS = """
import asyncio, ctypes, os, signal, sys, time
from milepost import RunCancelledError, metadata, runs, tasks

@task
async def polite() -> None:
    metadata.set("state", "at work")
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        metadata.set("state", "put away")

@polite.on_cancel
async def tell(ctx: Context) -> None:
    metadata.set("told", ctx.cancelled)

@task
def thread() -> None:
    metadata.set("state", "at work")
    try:
        while True:
            try:
                metadata.increment("rounds", 1)
                time.sleep(0.01)
            except Exception:
                metadata.set("swallowed", True)
    finally:
        metadata.set("state", "put away")

@task
def looks(ctx: Context) -> str:
    metadata.set("state", "at work")
    while not ctx.wait_cancelled(60):
        pass
    return "half"

@task
async def swallows() -> None:
    metadata.set("state", "at work")
    while True:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            metadata.set("swallowed", True)

@task
def blocks_in_c() -> None:
    metadata.set("state", "at work")
    time.sleep(6)
    metadata.set("state", "too late")
    print("after the end")
    tasks.trigger("thread")

@task
async def hook_without_end() -> None:
    metadata.set("state", "at work")
    await asyncio.sleep(60)

@hook_without_end.on_cancel
async def never() -> None:
    metadata.set("hook", True)
    await asyncio.sleep(60)

@task
def prints() -> None:
    metadata.set("state", "at work")
    for _ in range(1600):
        print("x" * 65535)
        metadata.increment("printed", 1)

@task
def parent() -> None:
    metadata.set("state", "at work")
    try:
        tasks.trigger_and_wait("polite")
    finally:
        metadata.set("state", "put away")

@task
async def async_parent() -> None:
    metadata.set("state", "at work")
    await tasks.atrigger_and_wait("thread")

@task(max_duration=0.4)
async def late() -> None:
    await asyncio.sleep(60)

@late.on_failure
def told_late(error: BaseException) -> None:
    metadata.set("failed", type(error).__name__)

@task(max_duration="300ms", retry=Retry(max_attempts=5))
def late_thread() -> None:
    while True:
        metadata.get("x")
        time.sleep(0.01)

@task(max_duration=30)
def quick() -> int:
    return 1
"""


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    return site(MILEPOST_STOP_GRACE_SECONDS=str(GRACE))


@pytest.fixture
def worker(here: Site) -> Command:
    return here.start_worker(TASKS)


def at_work(run: Run) -> bool:
    return bool(run.metadata.get("state"))


def cancelled(here: Site, task: str, until: Callable[[Run], bool] = at_work) -> tuple[Run, float]:
    """Start a run, cancel it at work; the run after its end, and how long that took."""
    run_id = here.client.trigger(task).id
    here.until(run_id, until)
    began = time.monotonic()
    here.client.runs.cancel(run_id)
    run = here.client.runs.wait(run_id, timeout=30)
    return run, time.monotonic() - began


def error_name(run: Run) -> str | None:
    return run.error and run.error.name


def test_every_kind_of_code_ends_within_the_grace_time(here: Site, worker: Command) -> None:
    run, seconds = cancelled(here, "polite")
    assert (run.status, error_name(run)) == ("CANCELED", "RunCancelledError")
    assert run.metadata == {"state": "put away", "told": True}
    assert seconds < GRACE
    assert run.is_cancelled
    assert run.cancel_asked_at is not None

    run, seconds = cancelled(here, "thread")
    assert run.status == "CANCELED"
    assert run.metadata["state"] == "put away"
    assert "swallowed" not in run.metadata
    assert seconds < GRACE

    run, seconds = cancelled(here, "looks")
    assert (run.status, run.output) == ("COMPLETED", "half")
    assert seconds < GRACE

    for task in ("parent", "async_parent"):
        run, seconds = cancelled(here, task, until=lambda run: run.status == "WAITING")
        assert run.status == "CANCELED"
        assert seconds < GRACE
        [child] = here.client.runs.list(parent=run.id)
        assert here.client.runs.wait(child.id, timeout=60).status == "CANCELED"
    assert run.metadata["state"] == "at work"

    # What does not hear of it is ended when its time is over.
    for task, document in (
        ("swallows", {"state": "at work", "swallowed": True}),
        ("blocks_in_c", {"state": "at work"}),
        ("hook_without_end", {"state": "at work", "hook": True}),
    ):
        run, seconds = cancelled(here, task)
        assert run.status == "CANCELED"
        assert run.metadata == document, task
        assert GRACE - 0.2 <= seconds < GRACE + 4

    run, seconds = cancelled(here, "prints")
    assert run.status == "CANCELED"
    assert seconds < GRACE + 4

    # What went on after its end has changed nothing, and the slot is free again.
    [blocked] = here.client.runs.list(task="blocks_in_c")
    assert blocked.metadata == {"state": "at work"}
    assert "after the end" not in [line["message"] for line in here.log(blocked.id)]
    assert [run.parent_id for run in here.client.runs.list(task="thread", parent=blocked.id)] == []
    assert here.client.runs.wait(here.client.trigger("quick").id, timeout=60).output == 1


def test_what_executes_for_too_long_is_timed_out(here: Site, worker: Command) -> None:
    run = here.finished(here.client.trigger("late").id)
    assert (run.status, error_name(run)) == ("TIMED_OUT", "MaxDurationError")
    assert run.is_failed
    assert run.metadata == {"failed": "MaxDurationError"}
    run = here.finished(here.client.trigger("late_thread").id)
    assert (run.status, run.attempt_count) == ("TIMED_OUT", 1)
    run = here.finished(here.client.trigger("swallows", max_duration=0.3).id)
    assert run.status == "TIMED_OUT"
    assert run.error is not None
    assert "max_duration of 0.3 s" in run.error.message
    # The trigger's word wins over the task's, and what is quick is left alone.
    assert here.finished(here.client.trigger("quick").id).output == 1
    run_id = here.client.trigger("late", max_duration=20).id
    here.until(run_id, lambda run: run.status == "EXECUTING")
    time.sleep(0.6)
    assert not here.client.runs.retrieve(run_id).is_completed
    here.client.runs.cancel(run_id)
    assert here.finished(run_id).status == "CANCELED"


def test_a_worker_that_is_killed_while_its_runs_are_to_end(here: Site, worker: Command) -> None:
    run_id = here.client.trigger("swallows").id
    here.until(run_id, at_work)
    here.client.runs.cancel(run_id)
    [executor] = worker.executors()
    executor.kill()
    began = time.monotonic()
    run = here.finished(run_id)
    assert run.status == "CANCELED"
    # At once, and long before its lease is over, also where others are busy.
    assert time.monotonic() - began < 5
