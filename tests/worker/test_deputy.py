"""What is said to the server in an executor's name: once, as long as it takes, and not for ever."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator

import msgspec
import pytest
from fake_server import FakeServer, Fault

from milepost.protocol.work import BegunRun, Death, ReportRequest
from milepost.worker import deputy as module
from milepost.worker.deputy import Deputy

DEATH = Death(how="was killed by SIGKILL", begun=[BegunRun(id="run_1", attempt=2)])


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    server._knows_worker = True
    yield server
    server.stop()


def reports(server: FakeServer) -> list[ReportRequest]:
    return [msgspec.json.decode(body, type=ReportRequest) for body in server.bodies("report")]


async def until(server: FakeServer, count: int) -> None:
    async with asyncio.timeout(30):
        while len(server.bodies("report")) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_death_is_said_until_the_server_has_heard_it(server: FakeServer) -> None:
    server.faults["report"] = deque([Fault(status=503), Fault(status=500), Fault(status=429)])

    async def main() -> None:
        deputy = Deputy(server.url, "key")
        deputy.died("worker_1", DEATH)
        await until(server, 4)
        await deputy.settle()

    asyncio.run(main())
    assert server.deaths == [("worker_1", DEATH)]
    assert len(reports(server)) == 4


def test_several_are_said_beside_each_other(server: FakeServer) -> None:
    async def main() -> None:
        deputy = Deputy(server.url, "key")
        for number in range(5):
            deputy.died(f"worker_{number}", DEATH)
        await deputy.settle()

    asyncio.run(main())
    assert sorted(worker_id for worker_id, _ in server.deaths) == [f"worker_{number}" for number in range(5)]


def test_an_end_tries_for_a_moment_and_not_for_ever(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_WORDS_SECONDS_MAX", 0.5)
    server.is_away = True

    async def main() -> None:
        deputy = Deputy(server.url, "key")
        deputy.died("worker_1", DEATH)
        await deputy.settle()

    began = time.monotonic()
    asyncio.run(main())
    assert 0.5 <= time.monotonic() - began < 5
    assert server.deaths == []


def test_runs_are_handed_back_with_what_has_begun(server: FakeServer) -> None:
    async def main() -> None:
        deputy = Deputy(server.url, "key")
        deputy.left(
            "worker_1", [BegunRun(id="run_1", attempt=2), BegunRun(id="run_2", attempt=1, waiting=True)]
        )
        await deputy.settle()

    asyncio.run(main())
    [request] = reports(server)
    assert request.leaving
    assert [(run.id, run.attempt, run.begun, run.waiting) for run in request.runs] == [
        ("run_1", 2, True, None),
        ("run_2", 1, True, None),
    ]


def test_a_server_that_does_not_know_the_worker_hands_back_all_the_same(server: FakeServer) -> None:
    server.faults["report"] = deque([Fault(status=404)])

    async def main() -> None:
        deputy = Deputy(server.url, "key")
        deputy.left("worker_1", [BegunRun(id="run_1", attempt=2)])
        await deputy.settle()

    asyncio.run(main())
    assert [(len(request.runs), request.leaving) for request in reports(server)] == [(1, True), (0, True)]


def test_what_the_server_refuses_is_not_said_again(server: FakeServer) -> None:
    server.faults["report"] = deque([Fault(status=401)] * 10)

    async def main() -> None:
        deputy = Deputy(server.url, "key")
        deputy.died("worker_1", DEATH)
        await until(server, 1)
        await asyncio.sleep(0.3)
        await deputy.settle()

    asyncio.run(main())
    assert len(reports(server)) == 1


def test_a_lease_is_kept_with_one_small_request(server: FakeServer) -> None:
    async def main() -> None:
        deputy = Deputy(server.url, "key")
        assert await deputy.keep_lease("worker_1", seconds_max=5.0)
        server.is_away = True
        assert not await deputy.keep_lease("worker_1", seconds_max=5.0)
        await deputy.settle()

    asyncio.run(main())
    assert server.bodies("report") == [b"{}"] * 2
