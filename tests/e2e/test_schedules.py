"""Schedules with real processes: over a server that is killed, over two servers on one database, and by commands."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from real_processes import KEY, Command, House, Site, wait_until, write_tasks

from milepost import Client, UnavailableError, configure, runs, schedules
from support import postgres

TASKS = """
    from datetime import timedelta
    from milepost import ScheduledPayload

    @task(every=timedelta(seconds=1))
    def tick(payload: ScheduledPayload) -> str:
        assert payload.upcoming[0] > payload.timestamp
        return payload.timestamp.isoformat()

    @task(every="1s")
    async def plain() -> str:
        return "needs no payload"

    @task
    def report(kind: str) -> str:
        return kind
"""


def ticks(client: Client, task: str = "tick") -> list[str]:
    """What the completed runs of a task have returned, oldest first."""
    found = list(client.runs.list(task=task, status="COMPLETED"))
    return [client.runs.retrieve(run.id).output for run in reversed(found)]


def check_times(client: Client) -> list[int]:
    """No time has fired twice, and each is a whole number of seconds after the schedule was made. Their numbers, in order."""
    [schedule] = client.schedules.list(task="tick")
    assert schedule.is_declared
    times = [datetime.fromisoformat(text) for text in ticks(client)]
    assert len(set(times)) == len(times)
    numbers = [(at - min(times)) / timedelta(seconds=1) for at in times]
    assert all(number == int(number) for number in numbers)
    return sorted(map(int, numbers))


def test_it_goes_on_when_its_server_is_killed(site: Callable[..., Site]) -> None:
    place = site()
    place.start_worker(TASKS)
    wait_until(lambda: len(ticks(place.client)) >= 2, what="two ticks")
    place.kill_server()
    place.start_server()
    count = len(ticks(place.client))
    wait_until(lambda: len(ticks(place.client)) >= count + 3, what="further ticks")
    check_times(place.client)
    assert set(ticks(place.client, "plain")) == {"needs no payload"}
    [run] = list(place.client.runs.list(task="tick", page_size=1, status="COMPLETED"))[:1]
    [schedule] = place.client.schedules.list(task="tick")
    assert run.id in {found.id for found in place.client.runs.list(schedule=schedule.id)}


def test_two_servers_fire_each_time_once_and_one_is_not_missed(
    command: Callable[..., Command], free_ports: list[int], tmp_path: Path
) -> None:
    server = postgres.server()
    name = server.create_migrated_database()
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": server.url(name)}
    write_tasks(tmp_path / "jobs.py", TASKS)
    first, second = (command("server", "--port", str(port), env=env) for port in free_ports)
    try:
        client = Client(f"http://127.0.0.1:{free_ports[1]}", KEY)
        wait_until(lambda: _is_up(client), 60, "the start of the servers")
        worker_env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_API_URL": client.api_url}
        command("worker", "jobs.py", "--processes", "1", env=worker_env).says("ready to run", 60)
        wait_until(lambda: len(ticks(client)) >= 3, what="three ticks")
        first.process.kill()
        wait_until(lambda: len(ticks(client)) >= 7, what="seven ticks")
        assert len(check_times(client)) >= 7
    finally:
        second.process.kill()
        second.process.wait()
        server.drop_database(name)


def _is_up(client: Client) -> bool:
    try:
        return list(client.schedules.list(page_size=1)) is not None
    except UnavailableError:
        return False


@pytest.fixture
def run(
    command: Callable[..., Command], house: Callable[..., House]
) -> Iterator[Callable[..., tuple[str, str]]]:
    """Runs a command against a development server to its end: standard output and standard error."""
    dev = house(TASKS, "--processes", "1")
    configure(api_url=dev.url, secret_key=dev.secret_key)

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = command(*arguments)
        output = done.rest()
        assert done.process.wait(30) == code, done.errors
        assert "Traceback" not in done.errors
        return output, done.errors

    yield run
    configure()


def test_commands(run: Callable[..., tuple[str, str]]) -> None:
    output, errors = run(
        "schedules", "create", "report", "--cron", "30 5 * * *", "--timezone", "Europe/Berlin",
        "--payload", '"daily"', "--metadata", '{"n": 1}', "--tag", "a", "--deduplication-key", "daily",
    )  # fmt: skip
    schedule_id = output.strip()
    assert "it fires next at" in errors
    made = schedules.retrieve(schedule_id)
    assert (made.cron, made.timezone, made.payload, made.metadata, made.tags) == (
        "30 5 * * *",
        "Europe/Berlin",
        "daily",
        {"n": 1},
        ["a"],
    )
    output, _ = run("schedules", "list")
    assert "30 5 * * * Europe/Berlin" in output
    assert "declared" in output
    listed = [
        json.loads(line) for line in run("schedules", "list", "--task", "report", "--json")[0].splitlines()
    ]
    assert [found["id"] for found in listed] == [schedule_id]
    times = run("schedules", "next", schedule_id, "-n", "3")[0].splitlines()
    assert len(times) == 3
    assert all("T05:30:00+0" in line for line in times)
    run("schedules", "pause", schedule_id)
    assert not schedules.retrieve(schedule_id).is_active
    assert "is paused" in run("schedules", "next", schedule_id, code=1)[1]
    run("schedules", "resume", schedule_id)
    run("schedules", "update", schedule_id, "--every", "1s")
    wait_until(lambda: ticks_of_report(), what="a run of it")
    assert "every 1s" in run("schedules", "list", "--task", "report")[0]
    run("schedules", "delete", schedule_id)
    assert "there is no schedule" in run("schedules", "delete", schedule_id, code=1)[1]
    assert "never fires" in run("schedules", "create", "report", "--cron", "0 0 30 2 *", code=1)[1]
    assert "did you mean 'Europe/Berlin'" in run(
        "schedules", "create", "report", "--cron", "@daily", "--timezone", "Berlin", code=1
    )[1]  # fmt: skip
    [finished, *_] = ticks_of_report()
    assert "is deleted" in run("runs", "delete", finished)[1]
    assert "there is no run" in run("runs", "delete", finished, code=1)[1]


def ticks_of_report() -> list[str]:
    return [run.id for run in runs.list(task="report", status="COMPLETED")]
