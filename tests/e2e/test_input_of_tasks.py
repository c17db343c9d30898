"""What is sent to runs: nothing lost that came early, the slot given back while a run waits, a retry that reads from the beginning."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from real_processes import Command, House, write_tasks

from milepost import MetadataValueError, RunNotFoundError, configure, streams
from milepost.errors import BadRequestError

TASKS = """
from dataclasses import dataclass
from milepost import streams

@dataclass
class Approval:
    by: str
    approved: bool = True

approvals = streams.input("approvals", Approval)
words = streams.input("words")

@task
async def publish(timeout: float | None = None) -> str:
    metadata.set("state", "waiting")
    approval = await approvals.areceive(timeout=timeout)
    return f"{approval.by} {approval.approved}"

@task
def publish_blocking(timeout: float | None = None) -> str:
    metadata.set("state", "waiting")
    return approvals.receive(timeout=timeout).by

@task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0))
def collects(ctx: Context) -> list[str]:
    found = []
    for word in words:
        if word == "fail" and ctx.attempt.number == 1:
            raise ValueError("once")
        if word == "end":
            return found
        found.append(word)

once = streams.input("once", retry_from="unread")

@task(retry=Retry(max_attempts=4, min_delay=0, max_delay=0))
def collects_unread(ctx: Context) -> list[str]:
    for word in once:
        metadata.append("taken", [ctx.attempt.number, word])
        if word == "fail":
            raise ValueError("once more")
        if word == "end":
            return metadata.get("taken")

@task(retry=Retry(max_attempts=4, min_delay=0, max_delay=0))
async def collects_unread_async(ctx: Context) -> list[str]:
    async for word in once:
        metadata.append("taken", [ctx.attempt.number, word])
        if word == "fail":
            raise ValueError("once more")
        if word == "end":
            return metadata.get("taken")

@task
def quick() -> str:
    return "quick"
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("input")
    write_tasks(folder / "jobs.py", TASKS)
    # One slot in all: who waits must give it back.
    house = House(["jobs.py", "--processes", "1", "--concurrency", "1"], folder=folder, env={})
    configure(api_url=house.url, secret_key=house.secret_key)
    yield house
    configure()
    house.clean_up()


@dataclass
class Approval:
    by: str
    approved: bool = True


@pytest.mark.parametrize("task", ["publish", "publish_blocking"])
def test_a_run_waits_without_its_slot(house: House, task: str) -> None:
    approvals = streams.input("approvals", Approval)
    run_id = house.trigger(task)
    house.until(run_id, lambda run: run.is_waiting)
    # There is one slot in all.
    assert house.run("quick").output == "quick"
    approvals.send(run_id, Approval("ada"))
    assert str(house.finished(run_id).output).startswith("ada")


@pytest.mark.parametrize("task", ["publish", "publish_blocking"])
def test_nothing_comes_within_the_time(house: House, task: str) -> None:
    run = house.run(task, 0.3, max_attempts=1)
    assert run.error is not None
    assert (run.error.name, "approvals" in run.error.message) == ("TimeoutError", True)
    assert house.run("quick").output == "quick"


def test_what_was_sent_early_and_by_a_retry_again(house: House) -> None:
    words = streams.input("words")
    blocker = house.trigger("publish")
    house.until(blocker, lambda run: run.is_waiting)
    run_id = house.trigger("collects")
    for word in ("a", "fail", "b", "end"):
        words.send(run_id, word)
    # The second attempt reads from the first value on.
    run = house.finished(run_id)
    assert (run.output, run.attempt_count) == (["a", "fail", "b"], 2)
    streams.input("approvals").send(blocker, {"by": "x"})
    assert house.finished(blocker).is_success


@pytest.mark.parametrize("task", ["collects_unread", "collects_unread_async"])
@pytest.mark.parametrize("is_early", [True, False])
def test_a_retry_from_the_first_that_no_attempt_has_taken(house: House, task: str, is_early: bool) -> None:
    once = streams.input("once")
    run_id = house.trigger(task)
    for word in ("a", "fail", "fail", "b", "fail", "end"):
        once.send(run_id, word)
        if not is_early:
            house.until(run_id, lambda run, word=word: run.metadata.get("taken", [[0, ""]])[-1][1] == word)
    run = house.finished(run_id)
    expected = [[1, "a"], [1, "fail"], [2, "fail"], [3, "b"], [3, "fail"], [4, "end"]]
    assert (run.output, run.attempt_count) == (expected, 4)
    # What is counted is no stream of the run.
    assert run.streams == []


def test_what_cannot_be_sent(house: House) -> None:
    approvals = streams.input("approvals", Approval)
    with pytest.raises(RunNotFoundError):
        approvals.send("run_unknown", Approval("ada"))
    with pytest.raises(MetadataValueError, match="by"):
        approvals.send("run_unknown", {"approved": True})  # type: ignore[arg-type]
    done = house.run("quick").id
    with pytest.raises(BadRequestError, match="finished"):
        approvals.send(done, Approval("ada"))
    # Another writer sends what does not fit: the task is told, with the place.
    run_id = house.trigger("publish", max_attempts=1)
    streams.input("approvals").send(run_id, {"who": "ada"})
    error: Any = house.finished(run_id).error
    assert error.name == "MetadataValueError"
    assert "by" in error.message


def test_from_the_command_line(house: House, command: Callable[..., Command]) -> None:
    run_id = house.trigger("publish")
    sent = command("runs", "send", run_id, "approvals", '{"by": "a shell"}', folder=house.folder)
    assert sent.process.wait(30) == 0, sent.errors
    assert house.finished(run_id).output == "a shell True"
