"""Hooks of a run whose process dies at its last attempt: another process runs them, with the run's own document and log."""

from collections.abc import Callable

import pytest
from real_processes import House

SOURCE = """
import os, signal, time

def tell(error: Exception, ctx: Context) -> None:
    metadata.set("failed", str(error)).increment("told")
    metadata.set("attempt", ctx.attempt.number)
    print("told")

@task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0), on_failure=tell)
def kills(signal_number: int) -> None:
    metadata.increment("begun")
    metadata.flush()
    signal.raise_signal(signal_number)

@task(on_failure=tell, max_duration=0.5)
def blocks(_: int) -> None:
    metadata.set("begun", 1)
    time.sleep(600)

@task(retry=Retry(max_attempts=1), on_complete=lambda: signal.raise_signal(signal.SIGKILL))
def kills_in_its_hook(signal_number: int) -> None:
    signal.raise_signal(signal_number)

@task
def parent(signal_number: int) -> str:
    result = kills.trigger_and_wait(signal_number)
    return f"{result.ok} {result.error.name}"
"""


HANGING = """
import time

def hangs() -> None:
    metadata.set("hook", 1)
    time.sleep(600)

@task(on_success=hangs, on_complete=lambda: metadata.set("never", 1))
def returns(value: int) -> int:
    return value

@task(retry=Retry(max_attempts=1), on_failure=hangs)
def fails(value: int) -> int:
    raise ValueError("out of ink")
"""


@pytest.fixture
def dev(house: Callable[..., House]) -> House:
    return house(SOURCE, "--processes", "1")


def test_they_write_to_the_run_and_its_parent_hears_of_its_end_after_them(dev: House) -> None:
    run = dev.run("kills", 9)
    assert run.status == "CRASHED"
    assert run.metadata == {"begun": 2, "told": 1, "attempt": 3, "failed": run.metadata["failed"]}
    assert "was killed by SIGKILL" in run.metadata["failed"]
    assert "was killed by SIGKILL" in run.error.message
    assert dev.run("parent", 11).output == "False ProcessDiedError"


def test_hooks_that_kill_as_well_end_the_run(dev: House) -> None:
    run = dev.run("kills_in_its_hook", 9)
    assert (run.status, run.attempt_count) == ("CRASHED", 2)
    assert "of attempt 1 was killed by SIGKILL" in run.error.message


def test_a_run_has_them_whose_code_does_not_end_in_time(house: Callable[..., House]) -> None:
    dev = house(SOURCE, "--processes", "1", env={"MILEPOST_STOP_GRACE_SECONDS": "1"})
    run = dev.run("blocks", 1)
    assert run.status == "TIMED_OUT"
    assert (run.metadata["begun"], run.metadata["told"]) == (1, 1)


def test_hooks_of_def_tasks_that_never_return_hold_up_no_end(house: Callable[..., House]) -> None:
    dev = house(HANGING, "--processes", "1", env={"MILEPOST_HOOK_SECONDS_MAX": "0.5"})
    run = dev.run("returns", 7)
    assert (run.status, run.output, run.metadata) == ("COMPLETED", 7, {"hook": 1})
    assert any("a hook took longer than 0.5 s" in line for line in dev.log(run.id))
    run = dev.run("fails", 7)
    assert (run.status, run.error.message, run.metadata) == ("FAILED", "out of ink", {"hook": 1})
    dev.end()
