"""Readiness: whether a load balancer may send requests here, and why not."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from api.shapes import is_problem
from milepost.errors import UnavailableError
from milepost.server import readiness
from milepost.server.readiness import COMMIT_SECONDS, LOOK_SECONDS, Readiness
from support.served import PATIENCE_SECONDS, Answer, HttpWorker, Served


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(readiness, "LOOK_SECONDS", 0.0)
    served = Served(tmp_path / "data")
    yield served
    served.stop()


def ask(served: Served) -> Answer:
    return served.call("GET", "/api/v1/ready", key=None)


def reason(answer: Answer) -> str:
    """Why the server is not ready."""
    assert answer.status == 503, answer
    assert is_problem(answer.json)
    assert answer.json["code"] == "not_ready"
    assert answer.headers["retry-after"] == "1"
    return answer.json["details"]["reason"]


def execute(folder: Path, statement: str) -> None:
    """As another process would: the server's own connection is its committer's."""
    with closing(sqlite3.connect(folder / "milepost.db", timeout=PATIENCE_SECONDS)) as connection, connection:
        connection.execute(statement)


def test_a_server_that_serves_is_ready_and_says_nothing_else(served: Served) -> None:
    for _ in range(3):
        answer = ask(served)
        assert (answer.status, answer.json) == (200, {"status": "ready"})
    # A look writes nothing: there is no probe among the answers that are kept.
    with served.server._store.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM answers").scalar_one() == 0


def test_another_schema_is_not_ready(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = served.server._store
    with caplog.at_level(logging.WARNING):
        execute(tmp_path / "data", "UPDATE alembic_version SET version_num = '9999'")
        answer = ask(served)
        assert reason(answer) == "schema"
        assert "9999" in answer.json["error"]
        assert ask(served).status == 503
        execute(tmp_path / "data", f"UPDATE alembic_version SET version_num = '{store.schema}'")
        assert ask(served).status == 200
    # Said once, and once that it is over.
    said = [message for message in caplog.messages if "ready" in message]
    assert ["is not ready" in message for message in said] == [True, False]


def test_a_database_that_cannot_be_read_is_not_ready(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    answer = ask(served)
    assert reason(answer) == "database"
    assert str(tmp_path) not in answer.body.decode()
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    assert ask(served).status == 200


def test_a_database_that_hangs_is_not_ready_within_the_bound_and_is_asked_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "DATABASE_SECONDS", 0.1)
    store = served.server._store
    asked: list[float] = []
    is_open = asyncio.Event()

    def hanging() -> str:
        asked.append(time.monotonic())
        until = time.monotonic() + PATIENCE_SECONDS
        while not is_open.is_set() and time.monotonic() < until:
            time.sleep(0.01)
        return store.schema

    monkeypatch.setattr(store, "present_schema", hanging)
    for _ in range(5):
        assert reason(ask(served)) == "database"
    assert len(asked) == 1
    is_open.set()
    until = time.monotonic() + PATIENCE_SECONDS
    while ask(served).status != 200 and time.monotonic() < until:
        time.sleep(0.01)
    assert ask(served).status == 200


def test_a_committer_that_stands_still_is_not_ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "COMMIT_SECONDS", 0.3)
    engine = served.server.committer._engine
    execute_group = engine.execute
    is_stuck = True

    def stuck(requests: Any) -> Any:
        until = time.monotonic() + PATIENCE_SECONDS
        while is_stuck and time.monotonic() < until:
            time.sleep(0.01)
        return execute_group(requests)

    monkeypatch.setattr(engine, "execute", stuck)
    until = time.monotonic() + PATIENCE_SECONDS
    while ask(served).status == 200 and time.monotonic() < until:
        time.sleep(0.01)
    assert reason(ask(served)) == "committer"
    is_stuck = False
    monkeypatch.setattr(readiness, "COMMIT_SECONDS", COMMIT_SECONDS)
    until = time.monotonic() + PATIENCE_SECONDS
    while ask(served).status != 200 and time.monotonic() < until:
        time.sleep(0.01)
    assert ask(served).status == 200


def test_an_idle_server_stays_ready(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends anything; the upkeep alone keeps the committer moving."""
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert ask(served).status == 200
        assert served.server.committer._engine.committed_at > served.clock() - 2_000_000
        time.sleep(0.05)


def test_the_wall_clock_does_not_matter(served: Served) -> None:
    for ahead in (3600, -3600):
        # As one who sets the clock of the machine: the steady one is untouched.
        served.server.readiness._committed_seconds()
        engine = served.server.committer._engine
        clock = engine._clock
        engine._clock = lambda ahead=ahead, clock=clock: clock() + ahead * 1_000_000
        try:
            assert ask(served).status == 200
        finally:
            engine._clock = clock


def test_a_server_that_drains_is_not_ready_at_once_and_serves_on(served: Served) -> None:
    HttpWorker(served)
    assert ask(served).status == 200
    run_id = served.trigger()
    with served.events(f"/api/v1/runs/{run_id}/feed") as feed:
        assert feed.next()[0] == "snapshot"
        served.loop.call_soon_threadsafe(served.server.begin_drain)
        until = time.monotonic() + PATIENCE_SECONDS
        while ask(served).status == 200 and time.monotonic() < until:
            time.sleep(0.01)
        answer = ask(served)
        assert reason(answer) == "draining"
        # Each answer asks the client to come again on another connection, which may lead to another server.
        assert answer.headers["connection"] == "close"
        # Alive it is all the same, and it serves.
        health = served.call("GET", "/api/v1/health", key=None)
        assert (health.status, health.headers["connection"]) == (200, "close")
        served.put_metadata(run_id, {"type": "set", "key": "a", "value": 1})
        assert feed.until(lambda event, data: event == "delta")["version"] == 1
        assert served.get(f"/api/v3/runs/{served.trigger()}")["status"] == "QUEUED"


def test_streams_that_end_with_the_server_say_when_to_come_again(served: Served) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    paths = [
        f"/api/v1/runs/{run_id}/feed",
        "/api/v1/feed/runs",
        "/api/v1/feed/matching-runs",
        f"/realtime/v1/streams/{run_id}/words",
        "/api/v1/workers/worker_1/inbox",
    ]
    feeds = [
        served.pool.request(
            "GET",
            served.url + path,
            headers={"authorization": "Bearer tr_dev_test_key"},
            preload_content=False,
            timeout=PATIENCE_SECONDS,
        )
        for path in paths
    ]
    readers = [feed.stream(65536) for feed in feeds]
    for reader in readers:
        next(reader)
    served.loop.call_soon_threadsafe(served.server.stop_streams)
    for path, reader in zip(paths, readers, strict=True):
        *_, field, blank, rest = b"".join(reader).split(b"\n")
        assert (field.startswith(b"retry: "), blank, rest) == (True, b"", b""), path
        assert 100 <= int(field.removeprefix(b"retry: ")) < 1000
    # One that ends because its run has finished does not: nobody shall come again.
    for feed in feeds:
        feed.close()


def test_a_stream_that_ends_with_its_run_does_not_ask_to_come_again(served: Served) -> None:
    worker = HttpWorker(served)
    run_id = served.trigger()
    worker.finish(worker.take(run_id))
    answer = served.call("GET", f"/api/v1/runs/{run_id}/feed")
    assert b"event: end" in answer.body
    assert b"retry:" not in answer.body


# --- the rules alone ---------------------------------------------------------------------------------------


class DatabaseDouble:
    schema = "0001"

    def __init__(self) -> None:
        self.looks = 0
        self.present: str | Exception = "0001"

    def present_schema(self) -> str:
        self.looks += 1
        if isinstance(self.present, Exception):
            raise self.present
        return self.present


def test_many_who_ask_cost_one_reading_a_second() -> None:
    async def scenario() -> None:
        now = [1000.0]
        database = DatabaseDouble()
        ready = Readiness(database, lambda: 0.0, clock=lambda: now[0])  # type: ignore[arg-type]
        assert await asyncio.gather(*(ready.check() for _ in range(50))) == [None] * 50
        assert database.looks == 1
        now[0] += LOOK_SECONDS - 0.01
        await ready.check()
        assert database.looks == 1
        now[0] += 0.02
        database.present = UnavailableError("postgresql://secret@host is away")
        found = await ready.check()
        assert database.looks == 2
        assert found is not None
        assert found.reason == "database"
        assert "secret" not in found.message
        assert not ready.is_ready

    asyncio.run(scenario())


def test_draining_is_told_before_anything_else_and_without_a_look() -> None:
    async def scenario() -> None:
        database = DatabaseDouble()
        ready = Readiness(database, lambda: 1e9)  # type: ignore[arg-type]
        ready.is_draining = True
        found = await ready.check()
        assert found is not None
        assert (found.reason, database.looks) == ("draining", 0)

    asyncio.run(scenario())
