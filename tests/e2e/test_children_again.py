"""A parent that is tried again does not do its children again: with real processes, stopped and killed in the middle."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from real_processes import House, wait_until

CHILDREN = 1000
# What was killed together with its server is missed when its lease ends.
SHORT_LEASE = {"MILEPOST_LEASE_SECONDS": "6"}

# Each execution of a child is noted, so that one which is done twice is seen. A child says once that it is done.
SOURCE = """
import os, pathlib
here = pathlib.Path(__file__).parent

@task(retry=Retry(max_attempts=10))
async def child(number: int, ctx: Context) -> int:
    with open(here / "executed", "a") as file:
        file.write(f"{number} {ctx.attempt.number}\\n")
    metadata.parent.increment("done", 1, once=ctx.run.id)
    return number

@task(retry=Retry(max_attempts=10))
async def parent(count: int, ctx: Context) -> int:
    results = await child.abatch_trigger_and_wait(range(count))
    total = sum(result.unwrap() for result in results)
    if ctx.attempt.number == 1:
        raise ValueError("the first attempt fails after its batch")
    metadata.set("results", len(results))
    return total

@task(retry=Retry(max_attempts=10))
def one_by_one(count: int, ctx: Context) -> list[int]:
    found = [child.trigger_and_wait(number).unwrap() for number in range(count)]
    again = tasks.trigger("child", 7, idempotency_key="seven")
    metadata.set("cached", again.is_cached)
    if ctx.attempt.number < 3:
        raise ValueError("once more")
    return found
"""


def runs_of(folder: Path, task: str) -> dict[str, int]:
    """How many runs of a task there are, by status."""
    with closing(sqlite3.connect(folder / ".milepost" / "milepost.db")) as connection:
        statement = "SELECT status, count(*) FROM runs WHERE task = ? GROUP BY status"
        return dict(connection.execute(statement, (task,)).fetchall())


def completed(folder: Path) -> list[str]:
    """The payloads of the children that have completed."""
    with closing(sqlite3.connect(folder / ".milepost" / "milepost.db")) as connection:
        statement = "SELECT payload FROM runs WHERE task = 'child' AND status = 'COMPLETED'"
        return [payload for (payload,) in connection.execute(statement)]


def executed(folder: Path) -> list[str]:
    file = folder / "executed"
    return file.read_text().splitlines() if file.exists() else []


def test_a_parent_that_fails_after_its_batch_has_exact_counts(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(SOURCE, "--processes", "1")
    run = dev.run("parent", 1500)
    assert (run.output, run.attempt_count) == (sum(range(1500)), 2)
    assert run.metadata == {"done": 1500, "results": 1500}
    assert runs_of(tmp_path, "child") == {"COMPLETED": 1500}
    assert len(executed(tmp_path)) == 1500


def test_children_that_were_waited_for_one_by_one_are_not_done_again(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(SOURCE, "--processes", "1")
    run = dev.run("one_by_one", 10)
    assert (run.output, run.attempt_count) == (list(range(10)), 3)
    assert run.metadata == {"done": 11, "cached": True}
    assert sorted(executed(tmp_path)) == sorted([*(f"{number} 1" for number in range(10)), "7 1"])


@pytest.mark.parametrize("is_killed", [False, True])
def test_dev_stopped_in_the_middle_of_many_children_ends_with_exact_counts(
    house: Callable[..., House], tmp_path: Path, is_killed: bool
) -> None:
    dev = house(SOURCE, "--processes", "1", env=SHORT_LEASE)
    run_id = dev.trigger("parent", CHILDREN)
    wait_until(
        lambda: len(executed(tmp_path)) > CHILDREN // 10 and completed(tmp_path),
        what="a part of the children",
    )
    if is_killed:
        executors = dev.executors()
        dev.process.kill()
        for executor in executors:
            executor.kill()
        dev.ended()
    else:
        dev.end()
    done = completed(tmp_path)
    assert 0 < len(done) < CHILDREN, "it was stopped in the middle"
    run = house(None, "--processes", "1", env=SHORT_LEASE).finished(run_id, 120)
    assert (run.output, run.metadata) == (sum(range(CHILDREN)), {"done": CHILDREN, "results": CHILDREN})
    assert runs_of(tmp_path, "child") == {"COMPLETED": CHILDREN}
    # What was under way when everything was killed is executed once more, by the next attempt of the same run.
    counts = Counter(line.partition(" ")[0] for line in executed(tmp_path))
    assert len(counts) == CHILDREN
    assert {number: counts[number] for number in done} == dict.fromkeys(done, 1)


def test_an_executor_that_is_killed_in_the_middle_leaves_exact_counts(
    house: Callable[..., House], tmp_path: Path
) -> None:
    dev = house(SOURCE, "--processes", "1")
    run_id = dev.trigger("parent", CHILDREN)
    wait_until(lambda: len(executed(tmp_path)) > CHILDREN // 10, what="a part of the children")
    for executor in dev.executors():
        executor.kill()
    run = dev.finished(run_id, 120)
    assert (run.output, run.metadata) == (sum(range(CHILDREN)), {"done": CHILDREN, "results": CHILDREN})
    assert runs_of(tmp_path, "child") == {"COMPLETED": CHILDREN}
