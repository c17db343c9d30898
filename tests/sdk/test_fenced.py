"""An attempt that was given up, and does not know it: the server refuses what it does, and its code is told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from milepost import AttemptOverError, BatchItem, Client, configure, metadata, runs, streams, tasks
from milepost.sdk.scope import RunScope
from sdk.here import running
from support.served import KEY, HttpWorker, Served, offer

HOLDER = offer("holder", retry={"maxAttempts": 5, "minTimeoutInMs": 0, "maxTimeoutInMs": 0})


@dataclass
class House:
    """A server, the worker that holds a run, and the scope of the run's attempt here."""

    served: Served
    worker: HttpWorker
    run: dict[str, Any]
    scope: RunScope

    def end_lease(self) -> None:
        """The worker presents itself without the run, which another one takes."""
        self.worker.register()
        other = HttpWorker(self.served, "worker_2", HOLDER)
        until = time.monotonic() + 20
        while not (taken := [run for run in other.claim(10) if run["id"] == self.run["id"]]):
            assert time.monotonic() < until, "nobody has given the run up"
            time.sleep(0.05)
        assert taken[0]["attempt"] == self.run["attempt"] + 1

    def children(self) -> int:
        return len(
            self.served.get("/api/v1/runs", **{"filter[parent]": self.run["id"], "page[size]": 100})["data"]
        )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    served = Served(tmp_path)
    configure(api_url=served.url, secret_key=KEY)
    worker = HttpWorker(served, "worker_1", HOLDER)
    held = worker.take(served.trigger("holder"))
    try:
        with running(id=held["id"], task="holder", attempt=held["attempt"], root_id=held["id"]) as (scope, _):
            yield House(served, worker, held, scope)
    finally:
        configure()
        served.stop()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_loop_of_triggers_stops(house: House, colour: str) -> None:
    def loop() -> None:
        for number in range(30):
            if number == 10:
                house.end_lease()
            if colour == "blocking":
                tasks.trigger("child")
            else:
                asyncio.run(_await(tasks.atrigger("child")))

    with pytest.raises(
        AttemptOverError, match=f"attempt {house.run['attempt']} of run {house.run['id']} is over"
    ) as caught:
        loop()
    assert house.children() == 10
    assert "under way" in str(caught.value)
    assert house.scope.is_lost


async def _await(awaited: Any) -> Any:
    return await awaited


def test_code_that_goes_on_regardless_does_nothing(house: House) -> None:
    """Whoever swallows errors: the server is not even asked again."""
    target = house.served.trigger("target")
    house.end_lease()
    refused = 0
    calls: list[Callable[[], Any]] = [
        lambda: tasks.trigger("child"),
        lambda: tasks.batch_trigger("child", [BatchItem(1), BatchItem(2)]),
        lambda: runs.metadata(house.run["id"]).set("late", 1).send(),
        lambda: streams.input("k").send(target, 1),
        lambda: Client(house.served.url, KEY).trigger("child"),
        lambda: asyncio.run(_await(tasks.atrigger("child"))),
        lambda: asyncio.run(_await(streams.input("k").asend(target, 1))),
        lambda: runs.retrieve(target),
    ]
    for _ in range(5):
        for call in calls:
            try:
                call()
            except AttemptOverError:
                refused += 1
    assert refused == 5 * len(calls)
    assert house.children() == 0
    assert house.served.get("/api/v1/runs", **{"filter[taskIdentifier]": "child"})["data"] == []
    assert house.served.get(f"/api/v1/runs/{house.run['id']}/metadata")["metadata"] == {}
    assert house.served.get(f"/api/v1/runs/{target}/streams")["data"] == []


def test_code_that_such_an_attempt_has_left_running_does_nothing_either(house: House) -> None:
    house.scope.is_over = True
    # Of an attempt that has returned it is outside of any run.
    assert tasks.trigger("child").id
    house.scope.is_lost = True
    with pytest.raises(AttemptOverError):
        tasks.trigger("child")


def test_a_child_process_of_it_writes_nothing(house: House) -> None:
    house.end_lease()
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(metadata.bind(_write)) is True
    assert house.served.get(f"/api/v1/runs/{house.run['id']}/metadata")["metadata"] == {}


def _write() -> bool:
    metadata.set("child", 1)
    try:
        metadata.flush()
    except Exception as error:
        return "is over" in str(error)
    return False


PROGRAM = """
from milepost import AttemptOverError, metadata, tasks
metadata.attach()
for number in range(5):
    try:
        tasks.trigger("child")
    except AttemptOverError:
        print("refused")
"""


def test_a_program_of_it_triggers_nothing(house: House) -> None:
    variables = metadata.environment()
    house.end_lease()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["refused"] * 5), ended.stderr
    assert house.children() == 0
