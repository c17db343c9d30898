"""A pooler between the servers and PostgreSQL, with real processes: sessions belong to nobody for longer than a transaction, prepared
statements are gone with them, and notifications never come."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_processes import KEY, Command, wait_until, write_tasks

from milepost import Client
from support import postgres
from support.pgbouncer import pgbouncer, program

TASKS = """
    @task(retry=Retry(max_attempts=1))
    def child(number: int) -> int:
        metadata.parent.increment("done")
        return number

    @task(retry=Retry(max_attempts=1))
    def parent(count: int) -> int:
        metadata.set("done", 0)
        results = child.batch_trigger_and_wait(range(count))
        return sum(result.unwrap() for result in results)
"""
CHILDREN = 200
UPDATES = 30
# Fewer than what two servers would like to have.
SESSIONS = 3

pytestmark = pytest.mark.skipif(program() is None, reason="PgBouncer is not installed (Debian: pgbouncer)")


@pytest.fixture
def servers(command: Callable[..., Command], tmp_path: Path) -> Iterator[tuple[list[Command], list[Client]]]:
    """Two servers behind a pooler, with a worker at each."""
    server = postgres.server()
    write_tasks(tmp_path / "jobs.py", TASKS)
    with pgbouncer(server, sessions=SESSIONS) as port:
        url = server.url(server.create_database()).replace(f":{server.port}/", f":{port}/")
        env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_DATABASE_URL": url}
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        started = [command("server", "--port", str(port), env=env) for port in ports]
        for process in started:
            process.says("serves at", 60)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            worker = command("worker", "jobs.py", "--processes", "1", env={**env, "MILEPOST_API_URL": url})
            worker.says("ready to run")
        yield started, [Client(url, KEY) for url in urls]
        for process in started:
            assert "Traceback" not in process.errors, process.errors


def test_two_servers_behind_a_pooler_that_forgets_prepared_statements(
    servers: tuple[list[Command], list[Client]],
) -> None:
    processes, (first, second) = servers
    processes[0].says("every 50 ms instead", 30)
    run = first.trigger("parent", CHILDREN)
    done = second.runs.wait(run.id, timeout=120)
    assert done.status == "COMPLETED", done.error
    assert done.output == sum(range(CHILDREN))
    assert done.metadata["done"] == CHILDREN
    # What one has committed is seen by those who watch at the other, although nobody is notified.
    held = first.trigger("nobody knows this task")
    seen: list[int] = []

    def watch() -> None:
        for state in second.runs.subscribe(held.id):
            seen.append(state.metadata.get("n", 0))
            if seen[-1] == UPDATES:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wait_until(lambda: bool(seen), what="the first state")
    for number in range(UPDATES):
        client = (first, second)[number % 2]
        client.runs.metadata(held.id).set("n", number + 1).send()
        assert client.runs.retrieve(held.id).metadata == {"n": number + 1}
    for process in processes:
        process.says("does not keep prepared statements", 30)
    watcher.join(30)
    assert seen[-1] == UPDATES
    assert seen == sorted(seen)
