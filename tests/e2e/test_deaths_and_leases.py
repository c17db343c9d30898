"""What is charged to whom: processes that die, are killed, stopped or held up by user code, with runs that have one attempt.

What the database says about each attempt is read from it.
"""

import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from real_processes import Site, is_alive, wait_until


@dataclass(frozen=True)
class Ended:
    """An attempt that has ended."""

    number: int
    end: str
    error: str


def attempts_of(site: Site, run_id: str) -> list[Ended]:
    with closing(sqlite3.connect(site.folder / "data" / "milepost.db")) as connection:
        rows = connection.execute(
            "SELECT number, end, coalesce(error, '') FROM attempts WHERE run_id = ? ORDER BY number",
            (run_id,),
        )
        return [Ended(*row) for row in rows]


def ends_of(site: Site, run_id: str) -> list[str]:
    return [attempt.end for attempt in attempts_of(site, run_id)]


def charged(site: Site, run_id: str) -> int:
    with closing(sqlite3.connect(site.folder / "data" / "milepost.db")) as connection:
        [[count]] = connection.execute("SELECT charged FROM runs WHERE id = ?", (run_id,))
        return count


# What tasks note and wait for: files beside theirs.
NOTES = """
import ctypes, os, pathlib, signal, time
here = pathlib.Path(__file__).parent
def note(word, name):
    with open(here / f"{name}.{word}", "a") as file:
        file.write(f"{os.getpid()}\\n")
def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)
def wait_for_notes(*names):
    # A file is there before the first note stands in it.
    while not all((here / name).exists() and (here / name).stat().st_size for name in names):
        time.sleep(0.01)
"""


def noted(site: Site, name: str) -> int:
    """How often something was noted."""
    file = site.folder / name
    return len(file.read_text().splitlines()) if file.exists() else 0


# --- a process that dies ---------------------------------------------------------------------------------------


DEATHS = {
    "exit": "ended with exit code 4 (the task may have called os._exit)",
    "SIGSEGV": "was killed by SIGSEGV (a fault in native code)",
    "SIGKILL": "was killed by SIGKILL (the system does so when memory runs out)",
}


def test_one_run_that_kills_its_process_costs_those_beside_it_nothing(site: Callable[..., Site]) -> None:
    here = site()
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=1))
def innocent(name: str, ctx: Context) -> str:
    note("begun", name)
    if ctx.attempt.number == 1:
        time.sleep(60)
    return name

@task(retry=Retry(max_attempts=1))
def crasher(names: list[str], death: str) -> None:
    wait_for_notes(*(name + ".begun" for name in names))
    note("begun", "crasher-" + death)
    if death == "exit":
        os._exit(4)
    signal.raise_signal(getattr(signal, death))
    # A signal may be delivered by way of another thread, a moment later.
    time.sleep(60)
"""
    )
    for death, cause in DEATHS.items():
        names = [f"innocent-{death}-{number}" for number in range(5)]
        innocents = [here.client.trigger("innocent", name).id for name in names]
        crasher = here.client.trigger("crasher", {"names": names, "death": death}).id
        failed = here.finished(crasher)
        assert failed.is_failed
        assert failed.error is not None
        assert failed.error.name == "ProcessDiedError"
        assert cause in failed.error.message
        assert ends_of(here, crasher) == ["beside", "crashed"]
        for name, run_id in zip(names, innocents, strict=True):
            run = here.finished(run_id)
            assert run.output == name
            assert (ends_of(here, run_id), charged(here, run_id)) == (["beside"], 0)
            assert noted(here, f"{name}.begun") == 2
        assert noted(here, f"crasher-{death}.begun") == 2
    assert worker.end() == 0


def test_a_death_while_the_server_is_away_is_told_when_it_is_back(site: Callable[..., Site]) -> None:
    here = site(MILEPOST_LEASE_SECONDS="3000")
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=1))
def sleeps() -> None:
    note("begun", "sleeps")
    time.sleep(600)
"""
    )
    run_id = here.client.trigger("sleeps").id
    wait_until(lambda: noted(here, "sleeps.begun"))
    [executor] = worker.executors()
    here.kill_server()
    executor.kill()
    worker.says("starting it again")
    here.start_server()
    run = here.finished(run_id)
    assert run.is_failed
    assert run.error is not None
    assert "was killed by SIGKILL" in run.error.message, "and not by its lease, which is long"
    assert ends_of(here, run_id) == ["crashed"]


def test_a_run_that_waits_is_not_blamed_for_what_its_child_does(site: Callable[..., Site]) -> None:
    here = site()
    here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=1))
def parent() -> int:
    return child.trigger_and_wait().unwrap()

@task(retry=Retry(max_attempts=1))
def child() -> int:
    note("begun", "child")
    time.sleep(0.3)
    number = len((here / "child.begun").read_text().splitlines())
    if number == 1:
        os._exit(3)
    return number
"""
    )
    run = here.finished(here.client.trigger("parent").id)
    # The child that ended the process is tried once more as well, apart, before or after the parent's second one.
    assert run.output in (2, 3)
    assert (ends_of(here, run.id), charged(here, run.id)) == (["waiting"], 0)


# --- a process that is ended -----------------------------------------------------------------------------------

LONG_AND_SHORT = (
    NOTES
    + """
@task(retry=Retry(max_attempts=1))
def run(name: str) -> str:
    note("begun", name)
    wait_for(name + ".gate")
    note("ended", name)
    return name
"""
)


def test_runs_whose_supervisor_alone_is_killed_are_finished_or_handed_back(site: Callable[..., Site]) -> None:
    here = site(MILEPOST_LEASE_SECONDS="3000")
    worker = here.start_worker(LONG_AND_SHORT, "--grace", "2")
    short, long = (here.client.trigger("run", name).id for name in ("short", "long"))
    wait_until(lambda: noted(here, "short.begun") and noted(here, "long.begun"))
    executors = worker.executors()
    worker.process.kill()
    worker.process.wait()
    time.sleep(0.5)
    (here.folder / "short.gate").touch()
    assert here.finished(short).output == "short"
    wait_until(lambda: not any(map(is_alive, executors)))
    wait_until(lambda: ends_of(here, long) == ["handed_back"])
    assert (charged(here, long), ends_of(here, short)) == (0, [])
    (here.folder / "long.gate").touch()
    here.start_worker()
    assert here.finished(long).output == "long"
    assert noted(here, "long.begun") == 2
    assert noted(here, "short.begun") == 1


@pytest.mark.parametrize("how", ["grace", "second signal"])
def test_runs_that_do_not_end_in_time_are_handed_back(site: Callable[..., Site], how: str) -> None:
    here = site(MILEPOST_LEASE_SECONDS="3000")
    worker = here.start_worker(LONG_AND_SHORT, "--grace", "0.3" if how == "grace" else "600")
    run_id = here.client.trigger("run", "long").id
    wait_until(lambda: noted(here, "long.begun"))
    worker.signal(signal.SIGINT)
    if how == "second signal":
        worker.says("Ctrl-C again ends at once")
        worker.signal(signal.SIGINT)
    assert worker.ended() == 0
    assert (ends_of(here, run_id), charged(here, run_id)) == (["handed_back"], 0)
    (here.folder / "long.gate").touch()
    here.start_worker()
    assert here.finished(run_id).output == "long"


def test_a_run_that_has_to_be_killed_at_the_end_is_handed_back(site: Callable[..., Site]) -> None:
    """It keeps the interpreter's lock, so its executor cannot hand it back itself."""
    here = site(MILEPOST_LEASE_SECONDS="3000")
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=1))
def keeps() -> str:
    note("begun", "keeps")
    if len((here / "keeps.begun").read_text().splitlines()) == 1:
        ctypes.PyDLL(None).sleep(600)
    return "done"
""",
        "--grace", "0.2",
    )  # fmt: skip
    run_id = here.client.trigger("keeps").id
    wait_until(lambda: noted(here, "keeps.begun"))
    assert worker.end() == 0
    assert (ends_of(here, run_id), charged(here, run_id)) == (["handed_back"], 0)
    here.start_worker()
    assert here.finished(run_id).output == "done"


# --- leases ----------------------------------------------------------------------------------------------------


def test_a_task_that_keeps_the_interpreters_lock_for_longer_than_the_lease_runs_once(
    site: Callable[..., Site],
) -> None:
    here = site(MILEPOST_LEASE_SECONDS="1.5")
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=1))
def keeps() -> str:
    note("begun", "keeps")
    ctypes.PyDLL(None).sleep(6)
    return "done"

@task(retry=Retry(max_attempts=1))
def beside() -> str:
    note("begun", "beside")
    time.sleep(1)
    return "done"
""",
        "--processes", "2",
    )  # fmt: skip
    beside = here.client.trigger("beside").id
    wait_until(lambda: noted(here, "beside.begun"))
    run_ids = [here.client.trigger("keeps").id, beside]
    for run_id in run_ids:
        run = here.finished(run_id)
        assert (run.output, run.attempt_count) == ("done", 1)
        assert (ends_of(here, run_id), charged(here, run_id)) == ([], 0)
    assert (noted(here, "keeps.begun"), noted(here, "beside.begun")) == (1, 1)
    worker.says("some code keeps the interpreter's lock (the GIL)")
    assert worker.end() == 0


def test_a_task_that_stops_its_own_process_loses_its_lease_and_hears_so(site: Callable[..., Site]) -> None:
    here = site(MILEPOST_LEASE_SECONDS="1.5")
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=2, min_delay=0))
def freezes(ctx: Context) -> int:
    note("begun", "freezes")
    time.sleep(1.5)
    if ctx.attempt.number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        wait_for("never")
    return ctx.attempt.number

@task(retry=Retry(max_attempts=1))
def other() -> str:
    return "done"
""",
        "--processes", "2",
    )  # fmt: skip
    run_id = here.client.trigger("freezes").id
    run = here.finished(run_id)
    assert (run.output, ends_of(here, run_id), charged(here, run_id)) == (2, ["lost"], 1)
    [frozen] = [each for each in worker.executors() if each.status() == psutil.STATUS_STOPPED]
    frozen.send_signal(signal.SIGCONT)
    worker.says("the server has given up attempt 1")
    for _ in range(20):
        assert here.finished(here.client.trigger("other").id).output == "done"
    assert noted(here, "freezes.begun") == 2
    after = here.client.runs.retrieve(run_id)
    assert (after.status, after.output, after.updated_at) == (run.status, run.output, run.updated_at)


def test_a_worker_that_was_stopped_whole_begins_nothing_that_it_had_claimed(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    """Supervisor and executor are stopped for longer than the lease, with runs in line, and others run them meanwhile."""
    here = site(MILEPOST_LEASE_SECONDS="1.5")
    source = (
        NOTES
        + """
@task(retry=Retry(max_attempts=2, min_delay=0))
def step(number: int) -> int:
    note("begun", f"step-{number}")
    if number == 300:
        wait_for("gate")
    return number
"""
    )
    worker = here.start_worker(source, "--concurrency", "1")
    run_ids = [here.client.trigger("step", number).id for number in range(400)]
    wait_until(lambda: noted(here, "step-300.begun"))
    stopped = [psutil.Process(worker.process.pid), *worker.executors()]
    for process in stopped:
        process.suspend()
    (here.folder / "gate").touch()
    other = here.start_worker()
    try:
        for run_id in run_ids:
            assert here.finished(run_id).error is None
    finally:
        for process in stopped:
            process.resume()
    assert other.end() == 0
    last = here.client.trigger("step", 1000).id
    assert here.finished(last).output == 1000, "the worker that was stopped goes on"
    for number in range(400):
        assert noted(here, f"step-{number}.begun") == (2 if number == 300 else 1)
    assert worker.end() == 0


# --- queues, hooks ---------------------------------------------------------------------------------------------


def test_a_queue_is_not_overrun_by_runs_that_come_back_from_a_wait(site: Callable[..., Site]) -> None:
    here = site()
    worker = here.start_worker(
        NOTES
        + """
@task
def child() -> None:
    time.sleep(0.05)

@task(queue=Queue("narrow", concurrency=1))
def narrow(number: int) -> int:
    most = 0
    for _ in range(3):
        for word in ("a", "b"):
            mine = here / f"inside-{number}"
            mine.touch()
            most = max(most, len(list(here.glob("inside-*"))))
            time.sleep(0.03)
            most = max(most, len(list(here.glob("inside-*"))))
            mine.unlink()
        child.trigger_and_wait()
    return most
""",
        "--processes", "2",
    )  # fmt: skip
    run_ids = [here.client.trigger("narrow", number).id for number in range(8)]
    assert [here.finished(run_id).output for run_id in run_ids] == [1] * 8
    assert worker.end() == 0


def test_on_start_runs_once_whatever_ends_the_attempts(site: Callable[..., Site]) -> None:
    here = site()
    worker = here.start_worker(
        NOTES
        + """
@task(retry=Retry(max_attempts=3, min_delay=0))
def work(ctx: Context) -> int:
    note("begun", "work")
    number = len((here / "work.begun").read_text().splitlines())
    if number == 1:
        os._exit(1)
    if number == 2:
        raise ValueError
    return number

@work.on_start
def started() -> None:
    note("started", "work")
"""
    )
    run = here.finished(here.client.trigger("work").id)
    assert (run.output, ends_of(here, run.id), charged(here, run.id)) == (3, ["crashed", "raised"], 2)
    assert noted(here, "work.started") == 1
    assert worker.end() == 0
