"""What runs can do, with real processes on PostgreSQL: one server and one worker for all tests, some of which kill them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from real_processes import KEY, Command, Site, wait_until
from test_deaths_and_leases import NOTES, noted

from milepost import (
    Debounce,
    IdempotencyKey,
    Run,
    configure,
    wait,
)
from milepost.errors import ConflictError, RunNotFoundError, UnavailableError
from support import postgres

TASKS = (
    NOTES
    + """
import asyncio
from milepost import wait

def told(error: Exception, ctx: Context) -> None:
    metadata.append("hooks", "on_failure").set("error", str(error))
    print("hooks have run")

@task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0), on_failure=told)
def fails(text: str) -> None:
    metadata.increment("attempts")
    raise ValueError(text)

@fails.on_start_attempt
def starts_attempt() -> None:
    metadata.append("hooks", "on_start_attempt")

@fails.on_start
def starts() -> None:
    metadata.append("hooks", "on_start")

@fails.catch_error
def catches(error: Exception) -> None:
    metadata.append("hooks", "catch_error")

@fails.on_complete
def completes() -> None:
    metadata.append("hooks", "on_complete")

@task(retry=Retry(max_attempts=1), on_failure=told)
def dies(_: int) -> None:
    metadata.set("began", True)
    metadata.flush()
    os.kill(os.getpid(), signal.SIGKILL)

@task
async def echo(value: str) -> str:
    return value

@task(retry=Retry(max_attempts=1))
async def asks(name: str) -> str:
    metadata.increment("began")
    token = await wait.acreate_token(timeout="10m")
    metadata.set("token", token.id)
    result = await wait.afor_token(token, dict[str, int])
    return f"{name} {result.unwrap()['n']}"

@task
async def forever(_: int) -> None:
    metadata.set("runs", True)
    try:
        await asyncio.sleep(600)
    finally:
        metadata.set("cleaned", True)

@task
async def family(_: int) -> None:
    await forever.abatch_trigger_and_wait([1, 2])

@forever.on_cancel
def cancelled() -> None:
    metadata.set("hook", "on_cancel")

@task(max_duration=0.3)
async def too_long(_: int) -> None:
    await asyncio.sleep(600)

@task
async def child(number: int) -> int:
    note("executed", f"child{number}")
    metadata.parent.increment("done")
    return number

@task(retry=Retry(max_attempts=3, min_delay=0, max_delay=0))
async def parent(_: int, ctx: Context) -> int:
    found = [(await child.atrigger_and_wait(number)).unwrap() for number in range(3)]
    again = await tasks.atrigger("child", 7, idempotency_key="seven")
    metadata.append("cached", again.is_cached)
    await metadata.aflush()
    note("waits", "parent")
    while not (here / "parent.go").exists():
        await asyncio.sleep(0.01)
    return sum(found)

@task(retry=Retry(max_attempts=1))
async def speaks(word: str, ctx: Context) -> None:
    print("printed", word)
    ctx.logger.warning("logged %s", word)
    await echo.atrigger_and_wait(word)
"""
)


class Place(Site):
    """A server on a PostgreSQL database, and a worker, each of which may be killed and started again."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self.started: list[Command] = []
        super().__init__(
            self._start,
            folder,
            MILEPOST_DATABASE_URL=postgres.server().url(database),
            MILEPOST_LEASE_SECONDS="2",
            MILEPOST_METADATA_GRACE_SECONDS="0",
        )
        self.worker = self.start_worker(TASKS)

    def _start(self, *arguments: str, env: dict[str, str]) -> Command:
        self.started.append(Command(list(arguments), folder=self.folder, env=env))
        return self.started[-1]

    def say(self, *arguments: str) -> str:
        """What a command prints."""
        done = self._start(*arguments, env={"MILEPOST_SECRET_KEY": KEY, "MILEPOST_API_URL": self.url})
        output = done.rest()
        assert done.process.wait(30) == 0, done.errors
        return output

    def kill_worker(self) -> None:
        """SIGKILL for the supervisor and its executor."""
        executors = self.worker.executors()
        self.worker.process.kill()
        for executor in executors:
            executor.kill()
        self.worker.ended()

    def restart_server(self, **env: str) -> None:
        """SIGKILL, and another server on the same database, whose upkeep does all that it does from time to time at once."""
        self.kill_server()
        with postgres.server().administer(self.database) as connection:
            connection.execute("DELETE FROM upkeep_jobs")
        self._env |= env
        self.start_server()

    def trigger(self, task: str, *payload: Any, **options: Any) -> str:
        return self.client.trigger(task, *payload, **options).id

    def run(self, task: str, *payload: Any, **options: Any) -> Run:
        """Trigger a run and wait for its end."""
        return self.finished(self.trigger(task, *payload, **options))

    def clean_up(self) -> None:
        for command in self.started:
            command.clean_up()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    database = postgres.server().create_migrated_database()
    place = Place(database, tmp_path_factory.mktemp("place"))
    configure(api_url=place.url, secret_key=KEY)
    try:
        yield place
    finally:
        configure()
        place.clean_up()
        postgres.server().drop_database(database)
    for command in place.started:
        # Workers show those of tasks that fail.
        is_server = "serves at" in command.errors
        assert not is_server or "Traceback" not in command.errors, command.errors


def test_retries_and_their_hooks(place: Place) -> None:
    run = place.run("fails", "no paper")
    assert (run.status, run.attempt_count, run.metadata["attempts"]) == ("FAILED", 2, 2)
    assert run.metadata["hooks"] == [
        "on_start_attempt", "on_start", "catch_error", "on_start_attempt", "catch_error", "on_failure", "on_complete",
    ]  # fmt: skip
    assert run.metadata["error"] == "no paper"
    once = place.run("fails", "no ink", max_attempts=1)
    assert (once.status, once.attempt_count) == ("FAILED", 1)


def test_hooks_of_a_run_that_kills_its_process_are_run_by_the_next_one(place: Place) -> None:
    run = place.run("dies", 1)
    assert (run.status, run.attempt_count) == ("CRASHED", 2)
    assert (run.metadata["began"], run.metadata["hooks"]) == (True, ["on_failure"])
    assert "was killed by SIGKILL" in run.metadata["error"]
    assert [line.message for line in place.client.runs.logs(run.id, attempt=2)] == ["hooks have run"]


def test_delay_time_to_live_and_debounce(place: Place) -> None:
    runs = place.client.runs
    later = place.trigger("echo", "later", delay="1h")
    assert runs.retrieve(later).status == "DELAYED"
    assert runs.reschedule(later, 0.2).status == "DELAYED"
    nobody = place.trigger("nobody-offers-this", ttl=0.3)
    assert runs.retrieve(nobody).status == "PENDING_VERSION"
    burst = [
        place.client.trigger("echo", word, debounce=Debounce("burst", "1s", mode="trailing"))
        for word in ("first", "second", "last")
    ]
    assert len({handle.id for handle in burst}) == 1
    assert [handle.is_cached for handle in burst] == [False, True, True]
    assert place.finished(later).output == "later"
    assert place.finished(nobody).status == "EXPIRED"
    assert place.finished(burst[0].id).output == "last"


def test_a_wait_survives_that_worker_and_server_are_killed(place: Place) -> None:
    asking = place.trigger("asks", "one")
    token = place.until(asking, lambda run: run.is_waiting and "token" in run.metadata).metadata["token"]
    place.kill_worker()
    place.kill_server()
    place.start_server()
    assert wait.complete_token(token, {"n": 1})
    assert not wait.complete_token(token, {"n": 2})
    place.worker = place.start_worker()
    run = place.finished(asking)
    # An attempt that ends while it waits is not charged, and the rule allows only one.
    assert (run.status, run.output) == ("COMPLETED", "one 1")
    assert (run.metadata["token"], run.metadata["began"]) == (token, 2)


def test_a_cancel_reaches_the_children(place: Place) -> None:
    family = place.trigger("family", 1)

    def children() -> list[Run]:
        return list(place.client.runs.list(root=family, task="forever", metadata={"runs": True}))

    wait_until(lambda: len(children()) == 2, what="the start of the children")
    running = children()
    place.client.runs.cancel(family)
    assert place.finished(family).status == "CANCELED"
    for child in running:
        run = place.finished(child.id)
        assert run.status == "CANCELED"
        assert run.metadata == {"runs": True, "cleaned": True, "hook": "on_cancel"}
    assert place.run("echo", "slots are free").is_success


def test_max_duration(place: Place) -> None:
    run = place.run("too_long", 1)
    assert (run.status, run.error.name, run.attempt_count) == ("TIMED_OUT", "MaxDurationError", 1)


def test_children_and_keys_are_found_again_after_everything_was_killed(place: Place) -> None:
    key = IdempotencyKey("the-parent", scope="global")
    running = place.trigger("parent", 1, idempotency_key=key)
    wait_until(lambda: noted(place, "parent.waits") == 1, what="the parent behind its children")
    children = {"root": running, "task": "child"}
    # One that executed when its worker is killed would be executed once more.
    wait_until(
        lambda: len(list(place.client.runs.list(**children, status="COMPLETED"))) == 4, what="four children"
    )
    place.kill_worker()
    place.restart_server()
    again = place.client.trigger("parent", 2, idempotency_key=key)
    assert (again.id, again.is_cached) == (running, True)
    (place.folder / "parent.go").touch()
    place.worker = place.start_worker()
    run = place.finished(running)
    assert (run.output, run.metadata["cached"]) == (3, [False, True])
    assert run.metadata["done"] == 4
    assert [noted(place, f"child{number}.executed") for number in (0, 1, 2, 7)] == [1, 1, 1, 1]
    assert len(list(place.client.runs.list(**children))) == 4


def test_logs_and_replay(place: Place) -> None:
    run = place.run("speaks", "äß\N{SNOWMAN}")
    lines = [(line.level, line.message) for line in place.client.runs.logs(run.id)]
    assert lines == [("info", "printed äß☃"), ("warning", "logged äß☃")]
    assert [line.message for line in place.client.runs.logs(run.id, level="warning")] == ["logged äß☃"]
    assert [line.message for line in place.client.runs.logs(run.id, search="PRINTED")] == ["printed äß☃"]
    assert "logged äß☃" in place.say("runs", "logs", run.id, "--tree")
    replayed = place.finished(place.client.runs.replay(run.id, "again").id)
    assert (replayed.task_id, replayed.payload) == ("speaks", "again")
    assert place.client.runs.retrieve(run.id).payload == "äß☃"


def test_finished_runs_are_deleted_by_hand_and_by_their_status(place: Place) -> None:
    runs = place.client.runs
    speaking = place.run("speaks", "with a child")
    [below] = runs.list(root=speaking.id, task="echo")
    delayed = place.trigger("echo", "not yet", delay="1h")
    with pytest.raises(ConflictError):
        runs.delete(delayed)
    place.say("runs", "delete", speaking.id)
    for gone in (speaking.id, below.id):
        with pytest.raises(RunNotFoundError):
            runs.retrieve(gone)
    completed, failed = place.run("echo", "done").id, place.run("fails", "kept", max_attempts=1).id
    runs.cancel(delayed)
    # A run goes when no worker can repeat its last word any more, which is after a lease.
    finished_at = runs.retrieve(completed).finished_at
    assert finished_at is not None
    wait_until(lambda: datetime.now(UTC) > finished_at + timedelta(seconds=2.1), what="the end of a lease")
    place.restart_server(MILEPOST_KEEP_COMPLETED_RUNS="0s", MILEPOST_KEEP_FAILED_RUNS="30d")
    wait_until(lambda: is_gone(place, completed), what="the deletion of a completed run")
    assert runs.retrieve(failed).status == "FAILED"
    assert runs.retrieve(delayed).status == "CANCELED"
    assert list(runs.list(status="COMPLETED")) == []
    assert {json.loads(line)["id"] for line in place.say("runs", "list", "--json").splitlines()} >= {
        failed,
        delayed,
    }


def is_gone(place: Place, run_id: str) -> bool:
    try:
        place.client.runs.retrieve(run_id)
    except RunNotFoundError:
        return True
    except UnavailableError:
        pass
    return False
