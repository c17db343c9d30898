"""A server of a fleet ends while others stay: a load balancer is told before, and nobody who uses the fleet sees an error."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from real_processes import KEY, Command, wait_until, write_tasks

from milepost import Client
from support import postgres
from support.balancer import Balancer

TASKS = """
    import asyncio

    @task(retry=Retry(max_attempts=1))
    async def counts(number: int) -> int:
        for step in range(10):
            metadata.set("step", step)
            metadata.increment("total", 1)
            await asyncio.sleep(0.02)
        return number

    @task
    async def held() -> None:
        await asyncio.sleep(3600)
"""
DRAIN_SECONDS = 1.0
# Each server once. More were tried by hand.
RESTARTS = 2


class Users:
    """Who uses the fleet, each in a thread of its own, until they are told to stop; what any of them has seen go wrong."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = Client(url, KEY)
        self.failures: list[BaseException | str] = []
        self.triggered: list[str] = []
        self.sent = 0
        self.requests = 0
        self.seen: list[int] = []
        self._stopping = threading.Event()
        self._written = self.client.trigger("held").id
        uses = (self._trigger, self._write, self._watch, self._ask, self._ask)
        self._threads = [threading.Thread(target=self._do, args=(use,), daemon=True) for use in uses]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        # The one who watches learns it from the document.
        self.client.runs.metadata(self._written).set("stop", True).send()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not self.failures, self.failures
        assert self.client.runs.retrieve(self._written).metadata == {"count": self.sent, "stop": True}
        assert self.seen == sorted(self.seen)
        assert self.seen[-1] == self.sent

    def _do(self, use: Callable[[], None]) -> None:
        try:
            use()
        except BaseException as error:
            self.failures.append(error)

    def _trigger(self) -> None:
        while not self._stopping.is_set():
            self.triggered.append(self.client.trigger("counts", len(self.triggered)).id)
            time.sleep(0.02)

    def _write(self) -> None:
        while not self._stopping.is_set():
            self.client.runs.metadata(self._written).increment("count").send()
            self.sent += 1

    def _watch(self) -> None:
        for run in self.client.runs.subscribe(self._written):
            self.seen.append(run.metadata.get("count", 0))
            if run.metadata.get("stop"):
                return

    def _ask(self) -> None:
        """One who tries nothing again, with a connection that is kept for as long as the server keeps it."""
        headers = {"authorization": f"Bearer {KEY}"}
        with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
            while not self._stopping.is_set():
                answer = pool.request("GET", f"{self.url}/api/v3/runs/{self._written}", headers=headers)
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.data!r}")
                self.requests += 1


def start(command: Callable[..., Command], port: int, env: dict[str, str], *options: str) -> Command:
    server = command("server", "--port", str(port), *options, env=env)
    server.says("serves at", 60)
    return server


def readiness(port: int) -> tuple[int, Any]:
    answer = urllib3.request("GET", f"http://127.0.0.1:{port}/api/v1/ready", retries=False, timeout=5)
    return answer.status, answer.json()


def test_a_rolling_restart_under_load_is_noticed_by_nobody(
    command: Callable[..., Command], tmp_path: Path, free_ports: list[int]
) -> None:
    database = postgres.server()
    name = database.create_migrated_database()
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": database.url(name)}
    options = ("--drain", str(DRAIN_SECONDS))
    servers = [start(command, port, env, *options) for port in free_ports]
    balancer = Balancer(free_ports, asks_seconds=0.1)
    write_tasks(tmp_path / "jobs.py", TASKS)
    worker = command("worker", "jobs.py", "--processes", "2", env={**env, "MILEPOST_API_URL": balancer.url})
    worker.says("ready to run")
    users = Users(balancer.url)
    for turn in range(RESTARTS):
        number = turn % 2
        wait_until(lambda: len(balancer.ready) == 2, what="both servers ready")
        triggered, requests = len(users.triggered), users.requests
        began = time.monotonic()
        servers[number].signal(signal.SIGTERM)
        wait_until(lambda number=number: readiness(free_ports[number])[0] == 503)
        assert readiness(free_ports[number])[1]["details"] == {"reason": "draining"}
        assert servers[number].ended() == 0
        assert time.monotonic() - began >= DRAIN_SECONDS
        assert "Traceback" not in servers[number].errors, servers[number].errors
        # The fleet went on meanwhile.
        assert len(users.triggered) > triggered
        assert users.requests > requests
        servers[number] = start(command, free_ports[number], env, *options)
    wait_until(lambda: len(balancer.ready) == 2, what="both servers ready")
    users.stop()
    for run_id in users.triggered:
        run = users.client.runs.wait(run_id, timeout=60)
        assert (run.status, run.metadata) == ("COMPLETED", {"step": 9, "total": 10}), run.error
    with database.administer(name) as connection:
        charged = connection.execute("SELECT count(*) FROM runs WHERE charged > 0 OR attempt > 1").fetchone()
    assert charged == (0,)
    assert "Traceback" not in worker.errors, worker.errors
    balancer.close()


def test_a_second_signal_ends_the_drain(command: Callable[..., Command], free_ports: list[int]) -> None:
    env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DRAIN_SECONDS": "3000"}
    server = start(command, free_ports[0], env)
    server.signal(signal.SIGTERM)
    server.says("serving for another 3000 s")
    assert readiness(free_ports[0])[0] == 503
    time.sleep(0.6)
    assert server.end(signal.SIGINT) == 0


@pytest.mark.parametrize("options", [(), ("--drain", "0")], ids=["default", "0"])
def test_without_a_drain_time_it_ends_at_once(
    command: Callable[..., Command], free_ports: list[int], options: tuple[str, ...]
) -> None:
    env = {"MILEPOST_SECRET_KEY": KEY}
    if options:
        env["MILEPOST_DRAIN_SECONDS"] = "3000"
    server = start(command, free_ports[0], env, *options)
    began = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - began < 10
    assert "not ready any more" not in server.errors


@pytest.mark.parametrize("value", ["-1", "3601", "soon"])
def test_a_drain_time_that_is_none_is_named(command: Callable[..., Command], value: str) -> None:
    server = command(
        "server", "--port", "0", env={"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DRAIN_SECONDS": value}
    )
    assert server.process.wait(60) != 0
    assert "MILEPOST_DRAIN_SECONDS" in server.errors
    server = command("server", "--port", "0", "--drain", value, env={"MILEPOST_SECRET_KEY": KEY})
    assert server.process.wait(60) != 0
    assert "--drain" in server.errors
