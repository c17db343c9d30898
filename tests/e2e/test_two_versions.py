"""Two versions of the code side by side: a run goes only to a worker that has its task."""

from collections.abc import Callable

from real_processes import Site, write_tasks

OLD = """
@task
def old() -> str:
    return "old"

@task
def both() -> str:
    return "old"
"""
NEW = """
# By its length Python sees within the same second that it has not compiled this yet.
@task
def new() -> str:
    return "new"

@task
def both() -> str:
    return "new"
"""


def test_a_run_goes_to_a_worker_that_has_its_task(site: Callable[..., Site]) -> None:
    here = site()
    first = here.start_worker(OLD)
    write_tasks(here.folder / "jobs.py", NEW)
    second = here.start_worker()
    runs = [here.client.trigger(task) for _ in range(30) for task in ("old", "new", "both")]
    outputs = [here.finished(run.id).output for run in runs]
    assert set(outputs[0::3]) == {"old"}
    assert set(outputs[1::3]) == {"new"}
    assert set(outputs[2::3]) <= {"old", "new"}
    assert all(here.client.runs.retrieve(run.id).attempt_count == 1 for run in runs)
    # One that has gone is missed by its own task alone.
    assert first.end() == 0
    waiting = here.client.trigger("old")
    assert here.finished(here.client.trigger("both").id).output == "new"
    assert here.client.runs.retrieve(waiting.id).is_queued
    here.start_worker(OLD)
    assert here.finished(waiting.id).output == "old"
    assert second.end() == 0
