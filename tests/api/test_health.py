"""Health is that what is sent can be stored; and what cannot be read or written now is a 503 that may be tried again."""

import asyncio
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from api.shapes import is_problem
from milepost.engine.commands import ReleaseLostRuns
from milepost.errors import UnavailableError
from milepost.server import health
from milepost.server.health import LOOK_SECONDS, NEWS_SECONDS, Health
from milepost.store.database import Store
from support.served import PATIENCE_SECONDS as WAIT_SECONDS
from support.served import Answer, HttpWorker, Served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.0)
    served = Served(folder)
    yield served
    served.stop()


def unavailable(answer: Answer) -> str:
    """The text of a refusal that may be tried again."""
    assert answer.status == 503, answer
    assert is_problem(answer.json)
    assert answer.json["code"] == "unavailable"
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["retry-after"] == "1"
    return answer.json["error"]


READS = [
    "/api/v3/runs/{}",
    "/api/v1/runs",
    "/api/v1/runs/{}/metadata",
    "/api/v1/runs/{}/logs",
    "/api/v1/runs/{}/feed",
    "/api/v1/feed/runs",
]


def test_a_server_that_can_write_is_healthy(served: Served) -> None:
    for _ in range(3):
        answer = served.call("GET", "/api/v1/health", key=None)
        assert (answer.status, answer.json["status"]) == (200, "ok")


@pytest.mark.parametrize("way", ["removed", "replaced", "moved"])
def test_a_data_folder_that_is_gone_is_noticed_and_said(
    served: Served, folder: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    with caplog.at_level(logging.WARNING):
        if way == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(folder.with_name("elsewhere"))
        if way == "replaced":
            Store(folder / "milepost.db").close()
        assert "data folder was removed" in unavailable(served.call("GET", "/api/v1/health", key=None))
        assert "data folder" in unavailable(served.call("POST", "/api/v1/tasks/work/trigger", {}))
        for path in READS:
            assert "data folder" in unavailable(served.call("GET", path.format(run_id)))
        # Said also when nobody asks for anything.
        until = time.monotonic() + WAIT_SECONDS
        while f"data folder {folder} was removed" not in caplog.text and time.monotonic() < until:
            time.sleep(0.02)
        assert f"data folder {folder} was removed" in caplog.text
    # Where it is does not concern whoever asks.
    assert str(folder) not in served.call("GET", "/api/v1/health", key=None).body.decode()


def test_a_folder_that_is_put_back_goes_on(
    served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    folder.rename(folder.with_name("elsewhere"))
    unavailable(served.call("POST", "/api/v1/tasks/work/trigger", {}))
    folder.with_name("elsewhere").rename(folder)
    assert served.get(f"/api/v3/runs/{run_id}")["id"] == run_id
    served.trigger()
    monkeypatch.setattr(health, "NEWS_SECONDS", 0.0)
    assert served.get("/api/v1/health")["status"] == "ok"


def test_a_full_disk_is_not_healthy(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database may have no page more than it has, which fails as a disk without room does."""
    HttpWorker(served)
    store = served.server._store
    write = store.write
    wanted: list[int | None] = []

    @contextmanager
    def write_within_limits(**how: bool) -> Iterator[Connection]:
        with write(**how) as connection:
            while wanted:
                used = connection.exec_driver_sql("PRAGMA page_count").scalar()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {wanted[0] or used}").scalar()
                del wanted[0]
            yield connection

    # The connection is the committer's own, so the limit is set in its next transaction, which a question for its health makes.
    monkeypatch.setattr(store, "write", write_within_limits)

    def limit(pages: int | None) -> None:
        wanted.append(pages)
        until = time.monotonic() + WAIT_SECONDS
        while wanted:
            assert time.monotonic() < until
            served.call("GET", "/api/v1/health", key=None)

    limit(None)
    assert "full" in unavailable(served.call("GET", "/api/v1/health", key=None))
    payload = {"payload": '"' + "x" * 1_000_000 + '"'}
    assert "full" in unavailable(served.call("POST", "/api/v1/tasks/work/trigger", payload))
    limit(1_000_000)
    served.post("/api/v1/tasks/work/trigger", payload)


def test_a_database_that_somebody_else_has_locked_is_not_healthy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.0)
    served = Served(folder)
    other = sqlite3.connect(folder / "milepost.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert "has not taken a write" in unavailable(served.call("GET", "/api/v1/health", key=None))
        other.execute("ROLLBACK")
        until = time.monotonic() + WAIT_SECONDS
        while served.call("GET", "/api/v1/health", key=None).status != 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert served.get("/api/v1/health")["status"] == "ok"
    finally:
        other.close()
        served.stop()


def test_reading_while_the_server_stops_may_be_tried_again(served: Served) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    served.server._store.close()
    for path in READS:
        unavailable(served.call("GET", path.format(run_id)))


def test_writing_while_the_server_stops_may_be_tried_again(served: Served) -> None:
    HttpWorker(served)
    served.server.committer.stop()
    unavailable(served.call("POST", "/api/v1/tasks/work/trigger", {}))
    unavailable(served.call("GET", "/api/v1/health", key=None))


def test_a_mistake_of_ours_is_a_500_and_not_worth_a_repeat(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    HttpWorker(served)
    run_id = served.trigger()

    def broken(*arguments: object) -> object:
        raise KeyError("the cup is empty")

    monkeypatch.setattr(served.server.reader, "metadata", broken)
    with caplog.at_level(logging.ERROR):
        answer = served.call("GET", f"/api/v1/runs/{run_id}/metadata")
    assert (answer.status, answer.json["code"]) == (500, "internal_error")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "the cup is empty" in caplog.text
    assert "the cup is empty" not in answer.body.decode()


def test_an_event_stream_that_cannot_be_read_any_more_ends_without_a_traceback(
    served: Served, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HttpWorker(served)
    served.trigger()
    with caplog.at_level(logging.WARNING), served.events("/api/v1/feed/runs") as events:
        assert events.next()[0] == "snapshot"
        served.trigger()
        folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(StopIteration):
            events.until(lambda event, data: False)
    folder.with_name("elsewhere").rename(folder)
    assert "Traceback" not in caplog.text
    assert all(record.exc_info is None for record in caplog.records)


# --- the rules alone ---------------------------------------------------------------------------------------


class Probed:
    """A health on a clock and a database of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0
        self.problem: Exception | None = None
        self.health = Health(lambda: None, self._probe, clock=lambda: self.now)

    async def _probe(self) -> None:
        self.looks += 1
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem

    async def is_healthy(self) -> bool:
        try:
            await self.health.check()
        except UnavailableError:
            return False
        return True


def run(scenario: Callable[[Probed], object]) -> None:
    async def main() -> None:
        await scenario(Probed())  # type: ignore[misc]

    asyncio.run(main())


def test_many_who_ask_cost_one_write() -> None:
    async def scenario(probed: Probed) -> None:
        assert all(await asyncio.gather(*(probed.is_healthy() for _ in range(50))))
        assert probed.looks == 1
        assert await probed.is_healthy()
        assert probed.looks == 1
        probed.now += LOOK_SECONDS
        assert await probed.is_healthy()
        assert probed.looks == 2

    run(scenario)


def test_a_failed_look_is_told_until_the_next_one() -> None:
    async def scenario(probed: Probed) -> None:
        probed.problem = UnavailableError("the disk is full")
        assert not await probed.is_healthy()
        probed.problem = None
        assert not await probed.is_healthy()
        probed.now += LOOK_SECONDS
        assert await probed.is_healthy()

    run(scenario)


def test_what_was_refused_lately_counts() -> None:
    async def scenario(probed: Probed) -> None:
        assert await probed.is_healthy()
        probed.health.refused(UnavailableError("the disk is full"))
        assert not await probed.is_healthy()
        probed.now += NEWS_SECONDS - 0.1
        assert not await probed.is_healthy()
        probed.now += 0.2
        assert await probed.is_healthy()

    run(scenario)


def test_who_asks_gives_up_and_the_look_goes_on() -> None:
    async def scenario(probed: Probed) -> None:
        asking = asyncio.create_task(probed.is_healthy())
        await asyncio.sleep(0)
        asking.cancel()
        assert await probed.is_healthy()
        assert probed.looks == 1

    run(scenario)


def test_a_loop_that_fails_goes_on_and_says_the_same_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that ended would not be missed until runs of lost workers stay where they are."""
    HttpWorker(served)
    rounds: list[str] = []
    submit = served.server.committer.submit
    failures: list[Exception] = [KeyError("a mistake of ours")] + [UnavailableError("the disk is full")] * 3

    async def failing(command: object) -> object:
        if isinstance(command, ReleaseLostRuns):
            rounds.append("round")
            if len(rounds) <= len(failures):
                raise failures[len(rounds) - 1]
        return await submit(command)  # type: ignore[arg-type]

    monkeypatch.setattr(served.server.committer, "submit", failing)
    with caplog.at_level(logging.WARNING):
        until = time.monotonic() + WAIT_SECONDS
        while len(rounds) <= len(failures) and time.monotonic() < until:
            time.sleep(0.02)
    assert len(rounds) > len(failures)
    assert [message for message in caplog.messages if "upkeep" in message] == [
        "the job 'leases' of the upkeep failed, and is tried again",
        "the job 'leases' of the upkeep has to wait: the disk is full",
    ]
