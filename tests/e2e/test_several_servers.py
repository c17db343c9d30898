"""Several servers on one PostgreSQL, with real processes: one is as good as another, and none of them, nor the database, is missed for
longer than it is away."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from real_processes import KEY, Command, wait_until, write_tasks

from milepost import Client, Run, configure, streams
from support.balancer import Balancer
from support.postgres import PostgresServer

TASKS = """
    import asyncio
    import time

    go = streams.input("go")

    @task(retry=Retry(max_attempts=1))
    def child(number: int) -> int:
        metadata.parent.increment("done")
        return number

    @task(retry=Retry(max_attempts=1))
    async def parent(count: int) -> dict:
        metadata.set("done", 0)
        await child.abatch_trigger(range(count))
        seen = set()
        while True:
            seen.add(metadata.get("done"))
            if metadata.get("done") >= count:
                return {"done": metadata.get("done"), "steps": len(seen)}
            await asyncio.sleep(0.01)

    @task(retry=Retry(max_attempts=1))
    def waits(number: int) -> int:
        return child.trigger_and_wait(number).unwrap()

    @task(retry=Retry(max_attempts=1))
    def talks() -> str:
        for word in metadata.stream("words", ["one", "two", "three"]):
            pass
        metadata.set("state", "waiting")
        return go.receive()

    @task(retry=Retry(max_attempts=1), queue=Queue("tenants", concurrency=2))
    async def limited(number: int) -> list:
        began = time.time()
        await asyncio.sleep(0.05)
        return [began, time.time()]

    @task
    async def held() -> None:
        await go.areceive()
"""
# Enough that it is under way when something is done to it.
LOAD = 300


class Fleet:
    """Two servers on one database, a worker at each of them unless it is said otherwise, and a client for each."""

    def __init__(self, postgres: PostgresServer, command: Callable[..., Command], folder: Path) -> None:
        self.postgres, self._command, self._folder = postgres, command, folder
        self.database = postgres.create_migrated_database()
        self._env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": postgres.url(self.database)}
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.servers = [self._start(port) for port in self.ports]
        for server in self.servers:
            server.says("serves at", 60)
        self.first, self.second = (Client(url, KEY) for url in self.urls)
        write_tasks(folder / "jobs.py", TASKS)

    def _start(self, port: int) -> Command:
        return self._command("server", "--port", str(port), env=self._env)

    def start_server(self, number: int) -> None:
        self.servers[number] = self._start(self.ports[number])
        self.servers[number].says("serves at", 60)

    def start_workers(self, *urls: str) -> list[Command]:
        workers = [
            self._command("worker", "jobs.py", "--processes", "1", env={**self._env, "MILEPOST_API_URL": url})
            for url in urls
        ]
        for worker in workers:
            worker.says("ready to run")
        return workers

    def terminate(self, condition: str = "true") -> int:
        """End sessions of this database; how many."""
        with self.postgres.administer() as connection:
            found = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                f"WHERE datname = %s AND pid <> pg_backend_pid() AND {condition}".encode(),
                [self.database],
            ).fetchone()
        assert found is not None
        return found[0]

    def rows(self, statement: str) -> list[Any]:
        with self.postgres.administer(self.database) as connection:
            return connection.execute(statement.encode()).fetchall()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One of this file's own, because it is restarted."""
    server = PostgresServer(Path(mkdtemp(prefix="milepost-postgres-")))
    yield server
    server.end()


@pytest.fixture
def fleet(postgres: PostgresServer, command: Callable[..., Command], tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(postgres, command, tmp_path)
    yield fleet
    for server in fleet.servers:
        assert "Traceback" not in server.errors, server.errors


def check_parent(fleet: Fleet, run_id: str, count: int) -> Run:
    """The end of a parent: each of its children has counted once, and executed once."""
    run = fleet.second.runs.wait(run_id, timeout=60)
    assert run.status == "COMPLETED", run.error
    assert run.output["done"] == count
    assert run.metadata["done"] == count
    wait_until(
        lambda: (
            fleet.rows("SELECT count(*) FROM runs WHERE task = 'child' AND status <> 'COMPLETED'") == [(0,)]
        ),
        what="the end of every child",
    )
    assert fleet.rows("SELECT count(*) FROM runs WHERE task = 'child'") == [(count,)]
    assert fleet.rows("SELECT count(*) FROM runs WHERE charged > 0") == [(0,)]
    assert fleet.first.runs.retrieve(run_id).metadata == fleet.second.runs.retrieve(run_id).metadata
    return run


def test_the_limit_of_each_tenant_holds_over_all_servers_and_workers(fleet: Fleet) -> None:
    fleet.start_workers(*fleet.urls, *fleet.urls)
    ids: dict[str, list[str]] = {"big": [], "small": []}
    for number in range(40):
        for tenant, client in (("big", fleet.first), ("small", fleet.second))[: 1 + (number < 4)]:
            handle = client.trigger("limited", number, concurrency_key=tenant)
            ids[tenant].append(handle.id)
    took: dict[str, list[tuple[float, float]]] = {}
    for tenant, run_ids in ids.items():
        runs = [fleet.second.runs.wait(run_id, timeout=60) for run_id in run_ids]
        assert {run.status for run in runs} == {"COMPLETED"}
        took[tenant] = [(run.output[0], run.output[1]) for run in runs]
        for began, _ in took[tenant]:
            assert sum(first <= began < last for first, last in took[tenant]) <= 2, tenant
    # Whoever has few runs is done long before whoever has many.
    assert max(last for _, last in took["small"]) < sorted(last for _, last in took["big"])[20]
    paused = fleet.first.queues.pause("tenants")
    assert paused.paused
    waiting = fleet.second.trigger("limited", 1, concurrency_key="big").id
    told = fleet.second.runs.retrieve(waiting).queue_wait
    assert told is not None
    assert told.reason == "queue_paused"
    assert fleet.second.queues.override_concurrency_limit("tenants", 5).concurrency_limit == 5
    assert fleet.first.queues.retrieve("tenants").queued == 1
    fleet.second.queues.resume("tenants")
    assert fleet.first.runs.wait(waiting, timeout=30).status == "COMPLETED"
    assert fleet.first.queues.reset_concurrency_limit("tenants").concurrency_limit == 2


def test_one_server_is_as_good_as_another(fleet: Fleet) -> None:
    # A worker at the first only, so that all that is said at the second has to cross over.
    first_worker = fleet.start_workers(fleet.urls[0])
    waiting = fleet.second.trigger("talks").id
    assert fleet.first.runs.retrieve(waiting).id == waiting
    configure(api_url=fleet.urls[1], secret_key=KEY)
    assert list(streams.read(waiting, "words")) == ["one", "two", "three"]
    wait_until(lambda: fleet.second.runs.retrieve(waiting).metadata.get("state") == "waiting")
    streams.input("go").send(waiting, "went")
    assert fleet.second.runs.wait(waiting, timeout=30).output == "went"
    assert fleet.second.runs.wait(fleet.second.trigger("waits", 7).id, timeout=30).output == 7

    # Read-your-writes, at the other server, at once.
    for number in range(30):
        here, there = (fleet.first, fleet.second) if number % 2 else (fleet.second, fleet.first)
        run_id = here.trigger("held").id
        assert there.runs.retrieve(run_id).id == run_id
        here.runs.metadata(run_id).set("number", number).send()
        assert there.runs.retrieve(run_id).metadata == {"number": number}

    # Every version, in order, at the other server.
    watched = fleet.first.trigger("held").id
    seen: list[tuple[int, Any]] = []
    arrived = threading.Condition()

    def watch() -> None:
        for run in fleet.second.runs.subscribe(watched):
            with arrived:
                seen.append((run.metadata_version, run.metadata.get("number")))
                arrived.notify()
            if run.metadata.get("number") == 49:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for number in range(50):
        fleet.first.runs.metadata(watched).set("number", number).send()
        with arrived:
            assert arrived.wait_for(lambda number=number: seen and seen[-1][1] == number, 20), seen
    watcher.join(20)
    # A state of the run that has changed in between comes with the same version.
    versions = [step for step, _ in groupby(seen)]
    assert [number for _, number in versions if number is not None] == list(range(50))
    assert [version for version, _ in versions] == sorted({version for version, _ in seen})

    # The children of a parent at the first are executed at both.
    fleet.start_workers(fleet.urls[1])
    before = fleet.rows("SELECT count(*) FROM runs WHERE task = 'child'")[0][0]
    run = fleet.second.runs.wait(fleet.first.trigger("parent", 1000).id, timeout=60)
    assert run.status == "COMPLETED", (run, [worker.errors for worker in first_worker])
    assert run.metadata == {"done": 1000}
    assert run.output["done"] == 1000
    assert run.output["steps"] > 2, "its own view was not live"
    wait_until(
        lambda: (
            fleet.rows("SELECT count(*) FROM runs WHERE task = 'child' AND status = 'COMPLETED'")
            == [(before + 1000,)]
        )
    )
    assert fleet.rows("SELECT count(*) FROM runs WHERE charged > 0") == [(0,)]
    executed = fleet.rows("SELECT count(*) FROM runs WHERE task = 'child' GROUP BY worker_id")
    assert len(executed) == 2, "one worker executed all of them"


def test_a_server_is_killed_under_load(fleet: Fleet) -> None:
    balancer = Balancer(fleet.ports)
    fleet.start_workers(balancer.url, balancer.url)
    client = Client(balancer.url, KEY)
    run_id = client.trigger("parent", LOAD).id
    for run in client.runs.subscribe(run_id):
        if run.metadata.get("done", 0) > LOAD // 5:
            break
    fleet.servers[0].process.kill()
    fleet.servers[0].process.wait()
    run = fleet.second.runs.wait(run_id, timeout=60)
    assert run.output["done"] == LOAD, run
    fleet.start_server(0)
    check_parent(fleet, run_id, LOAD)
    balancer.close()


@pytest.mark.parametrize("way", ["restart", "power loss", "all sessions"])
def test_the_database_goes_away_under_load(fleet: Fleet, way: str) -> None:
    fleet.start_workers(*fleet.urls)
    run_id = fleet.first.trigger("parent", LOAD).id
    updated = fleet.first.trigger("held").id
    sent = 0
    stopping = threading.Event()
    failures: list[BaseException] = []

    def update() -> None:
        nonlocal sent
        try:
            while not stopping.is_set():
                fleet.second.runs.metadata(updated).increment("count").send()
                sent += 1
        except BaseException as error:
            failures.append(error)

    updating = threading.Thread(target=update, daemon=True)
    updating.start()
    for run in fleet.second.runs.subscribe(run_id):
        if run.metadata.get("done", 0) > LOAD // 5:
            break
    if way == "all sessions":
        for _ in range(5):
            assert fleet.terminate() >= 2
            time.sleep(0.2)
    else:
        fleet.postgres.stop("fast" if way == "restart" else "immediate")
        fleet.postgres.start()
    check_parent(fleet, run_id, LOAD)
    stopping.set()
    updating.join(30)
    assert not failures, failures
    assert fleet.first.runs.retrieve(updated).metadata == {"count": sent}


def test_a_server_that_is_not_notified_looks_by_itself(fleet: Fleet) -> None:
    fleet.start_workers(fleet.urls[1])
    wait_until(lambda: fleet.terminate("(query LIKE 'LISTEN%%' OR query LIKE '%%pg_notify($1%%')") >= 1)
    for server in fleet.servers:
        server.says("is not notified")
    for number in range(3):
        assert fleet.first.runs.wait(fleet.first.trigger("child", number).id, timeout=10).output == number
    for server in fleet.servers:
        server.says("is notified again")
    assert fleet.first.runs.wait(fleet.first.trigger("child", 4).id, timeout=10).output == 4
