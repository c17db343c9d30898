"""Tasks that have a process to themselves: what dies there harms nobody, and what does not end is killed."""

import time
from collections.abc import Callable

import pytest
from real_processes import Command, Site, wait_until

from milepost import Run

GRACE = 1.0

TASKS = """
import asyncio, ctypes, os, pathlib, signal, time
from milepost import metadata, tasks

@task(isolation="process")
def works(number: int, ctx: Context) -> int:
    metadata.set("pid", os.getpid())
    print("printed", number)
    ctx.logger.info("logged")
    return number + 1

@task
def beside() -> int:
    return os.getpid()

@task(isolation="process", retry=Retry(max_attempts=2))
def dies(how: str, ctx: Context) -> int:
    metadata.set("pid", os.getpid())
    metadata.flush()
    if ctx.attempt.number == 2:
        return 7
    if how == "exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    signal.raise_signal(getattr(signal, how))
    time.sleep(60)

@task(isolation="process", retry=Retry(max_attempts=1))
def segfaults() -> None:
    ctypes.string_at(0)

@task(isolation="process")
def blocks() -> None:
    metadata.set("pid", os.getpid())
    metadata.flush()
    time.sleep(60)

@task(isolation="process")
def keeps_the_lock() -> None:
    metadata.set("pid", os.getpid())
    metadata.flush()
    ctypes.PyDLL(None).usleep(60_000_000)

@task(isolation="process")
def waits(depth: int) -> int:
    metadata.set("pid", os.getpid())
    if depth == 0:
        return 0
    return tasks.trigger_and_wait("waits", depth - 1).unwrap() + 1

@task(isolation="process")
async def loops() -> None:
    metadata.set("pid", os.getpid())
    try:
        await asyncio.sleep(60)
    finally:
        metadata.set("state", "put away")
"""


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    return site(MILEPOST_STOP_GRACE_SECONDS=str(GRACE), MILEPOST_LEASE_SECONDS="6")


@pytest.fixture
def worker(here: Site) -> Command:
    return here.start_worker(TASKS, "--isolated", "2")


def error_of(run: Run) -> tuple[str | None, str]:
    assert run.error is not None, run
    return run.error.name, run.error.message


def has_pid(run: Run) -> bool:
    return "pid" in run.metadata


def test_it_works_as_in_a_thread_and_a_death_ends_one_run(here: Site, worker: Command) -> None:
    client = here.client
    runs = [here.finished(client.trigger("works", number).id) for number in range(4)]
    assert [run.output for run in runs] == [1, 2, 3, 4]
    shared = here.finished(client.trigger("beside").id).output
    assert shared not in {run.metadata["pid"] for run in runs}
    assert [line["message"] for line in here.log(runs[1].id)] == ["printed 1", "logged"]

    # Beside runs that are under way in other processes, which hear nothing of it.
    other = client.trigger("loops").id
    here.until(other, has_pid)
    for how in ("exit", "abort", "SIGKILL", "SIGSEGV"):
        run_id = client.trigger("dies", how).id
        run = here.finished(run_id)
        assert (run.output, run.attempt_count) == (7, 2), how
        first, _ = client.runs.retrieve(run_id).attempts
        assert first.error is not None
        assert first.ended_at is not None
        assert first.begun_at is not None
        expected = {"exit": "ended with exit code 3", "abort": "SIGABRT"}.get(how, how)
        assert expected in first.error.message
        # Within a second, where nobody else is busy.
        assert (first.ended_at - first.begun_at).total_seconds() < 3
    run = here.finished(client.trigger("segfaults").id)
    assert run.status == "CRASHED"
    assert error_of(run)[0] == "ProcessDiedError"
    assert "SIGSEGV" in error_of(run)[1]
    run = client.runs.retrieve(other)
    assert (run.status, run.attempt_count) == ("EXECUTING", 1)
    client.runs.cancel(other)
    run = here.finished(other)
    assert (run.status, run.metadata["state"]) == ("CANCELED", "put away")
    assert len(worker.executors()) == 3 or wait_until(lambda: len(worker.executors()) == 3)


@pytest.mark.parametrize("task", ["blocks", "keeps_the_lock"])
def test_what_does_not_end_is_killed(here: Site, worker: Command, task: str) -> None:
    import psutil

    client = here.client
    # The time that it may execute, and a cancel; with the interpreter's lock held nobody in the process hears of either.
    run_id = client.trigger(task, max_duration=0.5).id
    process = psutil.Process(here.until(run_id, has_pid).metadata["pid"])
    began = time.monotonic()
    run = client.runs.wait(run_id, timeout=30)
    assert run.status == "TIMED_OUT"
    assert error_of(run)[0] == "MaxDurationError"
    assert time.monotonic() - began < 8
    wait_until(lambda: not process.is_running(), 5, "the end of the process")

    run_id = client.trigger(task).id
    process = psutil.Process(here.until(run_id, has_pid).metadata["pid"])
    client.runs.cancel(run_id)
    run = client.runs.wait(run_id, timeout=30)
    assert run.status == "CANCELED"
    wait_until(lambda: not process.is_running(), 5, "the end of the process")
    # What was killed is replaced.
    assert here.finished(client.trigger("works", 1).id).output == 2
    wait_until(lambda: len(worker.executors()) == 3, what="three executors")


def test_a_run_that_waits_keeps_its_process_and_others_have_theirs(here: Site, worker: Command) -> None:
    run_id = here.client.trigger("waits", 5).id
    run = here.finished(run_id)
    assert run.output == 5
    tree = [run, *here.client.runs.list(root=run_id)]
    pids = {each.metadata["pid"] for each in tree}
    assert len(pids) == len({each.id for each in tree}) == 6
    wait_until(
        lambda: len(worker.executors()) == 3, what="the end of the processes that are not needed any more"
    )
    assert here.finished(here.client.trigger("works", 1).id).output == 2
    assert worker.end() == 0
