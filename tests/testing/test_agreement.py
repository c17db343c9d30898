"""A sandbox and a real server come to the same: the same tasks, over sockets and with real time, and in memory."""

from pathlib import Path
from typing import Any

import pytest

import milepost
from milepost import AbortTaskRun, Context, Retry, Task, TaskResult, metadata, task
from milepost.testing import SandboxRun, run_task
from milepost.testing.results import read_run

SHORT = Retry(max_attempts=3, min_delay=0.02, max_delay=0.05)


@task(id="agree-row")
def row(n: int) -> int:
    metadata.set("n", n)
    metadata.parent.increment("rows").append("seen", n % 2)
    if n == 3:
        raise AbortTaskRun("three is no row")
    return n


@task(id="agree-rows")
async def rows(count: int) -> int:
    metadata.set("status", "reading").set("total", count)
    results: list[TaskResult[int]] = await row.abatch_trigger_and_wait(range(count))
    metadata.set("status", "complete").set("failed", sum(not result.ok for result in results))
    return sum(result.output or 0 for result in results)


@task(id="agree-tries", retry=SHORT)
def tries(last: int, ctx: Context) -> str:
    metadata.append("tries", ctx.attempt.number)
    ctx.logger.info("attempt %d", ctx.attempt.number)
    if ctx.attempt.number < last:
        raise ValueError("not yet")
    return "done"


@task(id="agree-deep")
def deep(level: int) -> int:
    metadata.root.increment("levels")
    return level if level == 0 else deep.trigger_and_wait(level - 1).unwrap()


@task(id="agree-hooks", retry=SHORT)
async def hooked(fails: bool) -> None:
    if fails:
        raise ValueError("wanted")


@hooked.on_start
@hooked.on_failure
@hooked.on_success
@hooked.on_complete
async def note() -> None:
    metadata.increment("hooks")


def described(run: SandboxRun[Any]) -> dict[str, Any]:
    """What has to be the same of a run: all but ids, times and the order of what happens at once."""
    return {
        "task": run.task_id,
        "status": run.status,
        "output": run.output,
        "error": run.error and (run.error.name, run.error.message),
        "metadata": {
            key: sorted(value) if isinstance(value, list) else value for key, value in run.metadata.items()
        },
        "writers": len({step.writer_run_id for step in run.history}),
        "attempts": [(attempt.number, attempt.end, attempt.is_charged) for attempt in run.attempts],
        "logs": [(line.level, line.message, line.attempt) for line in run.logs],
        "children": [described(child) for child in run.children],
    }


CASES: list[tuple[Task[Any, Any], Any]] = [
    (rows, 6), (tries, 3), (tries, 9), (deep, 3), (hooked, False), (hooked, True),
]  # fmt: skip


def test_a_sandbox_and_a_real_server_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_memory = [described(run_task(tried, payload)) for tried, payload in CASES]
    with milepost.serve(server=True, data=tmp_path / "data", concurrency=3) as serving:
        handles = [tried.trigger(payload) for tried, payload in CASES]
        for handle in handles:
            handle.result(timeout=60)
        real = [described(read_run(serving.client, handle.id)) for handle in handles]
    for one, other in zip(in_memory, real, strict=True):
        assert one == other
