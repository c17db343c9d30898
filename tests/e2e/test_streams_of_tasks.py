"""Streams that tasks write, with real workers and a real server, and what is left of them when something dies."""

import json
import time
from collections.abc import Callable
from typing import Any

import urllib3
from real_processes import KEY, House, Site, wait_until

TASKS = """
    import os, time, threading
    from milepost import Context, Retry, metadata, streams, task

    @task
    def plain(n: int) -> int:
        return sum(1 for _ in metadata.stream("n", range(n)))

    @task
    async def tokens(n: int) -> str:
        async def model():
            for word in ["Hel", "lo ", "wörld"] * n:
                yield word
        return "".join([word async for word in metadata.stream("answer", model())])

    @task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0))
    def again(ctx: Context) -> None:
        for number in metadata.stream("n", iter(range(100))):
            if number == 49 and ctx.attempt.number == 1:
                raise ValueError("first attempt")

    @task(retry=Retry(max_attempts=2, min_delay=0, max_delay=0))
    def dies(ctx: Context) -> None:
        with streams.writer("n") as write:
            for number in range(50):
                write(number)
            if ctx.attempt.number == 1:
                time.sleep(0.5)
                os._exit(9)

    @task
    def child() -> None:
        streams.append("all", "from the child", target="parent")
        list(metadata.root.stream("all", ["one", "two"]))

    @task
    def parent() -> None:
        streams.append("all", "from the parent")
        child.batch_trigger_and_wait([None, None])

    @task
    def slow(n: int) -> None:
        def source():
            for number in range(n):
                time.sleep(0.002)
                yield number
        metadata.stream("n", source())

    @task(retry=Retry(max_attempts=1))
    def foreign(run_id: str) -> str:
        try:
            for _ in range(1000):
                streams.append("n", 1, target=run_id)
                time.sleep(0.01)
        except Exception as error:
            return f"{type(error).__name__} {error.reason}"
        return "taken"
"""


def read(url: str, key: str, run_id: str, stream: str) -> list[dict[str, Any]]:
    """All that a stream holds, as its readers get it."""
    answer = urllib3.request(
        "GET",
        f"{url}/realtime/v1/streams/{run_id}/{stream}",
        headers={"Authorization": f"Bearer {key}", "timeout-seconds": "5"},
        timeout=30.0,
        retries=False,
    )
    assert answer.status == 200, answer.data
    bodies: list[dict[str, Any]] = []
    for frame in answer.data.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.split("\n") if ": " in line)
        if lines.get("event") == "batch":
            for record in json.loads(lines["data"])["records"]:
                assert record["seq_num"] == len(bodies)
                bodies.append(json.loads(record["body"]))
    return bodies


def values(house: House, run_id: str, stream: str) -> list[Any]:
    return [body["data"] for body in read(house.url, house.secret_key, run_id, stream)]


def test_what_tasks_stream_is_read(house: Callable[..., House]) -> None:
    dev = house(TASKS)
    plain, tokens = dev.run("plain", 20_000), dev.run("tokens", 1000)
    assert (plain.output, tokens.output) == (20_000, "Hello wörld" * 1000)
    assert values(dev, plain.id, "n") == list(range(20_000))
    assert "".join(values(dev, tokens.id, "answer")) == tokens.output
    # A run ends after its streams.
    slow = dev.run("slow", 300)
    assert values(dev, slow.id, "n") == list(range(300))
    family = dev.run("parent")
    assert family.is_success, family.error
    assert sorted(values(dev, family.id, "all")) == sorted(
        ["from the parent", *["from the child", "one", "two"] * 2]
    )
    other = dev.run("foreign", slow.id)
    assert other.output == "StreamStoppedError not_an_ancestor"


def test_each_attempt_writes_under_its_own_number(house: Callable[..., House]) -> None:
    dev = house(TASKS)
    run = dev.run("again")
    assert run.is_success, run.error
    bodies = read(dev.url, dev.secret_key, run.id, "n")
    first = [body["data"] for body in bodies if body["attempt"] == 1]
    assert first[:50] == list(range(50))
    assert [body["data"] for body in bodies if body["attempt"] == 2] == list(range(100))
    run = dev.run("dies")
    assert run.is_success, run.error
    bodies = read(dev.url, dev.secret_key, run.id, "n")
    assert [(body["attempt"], body["data"]) for body in bodies] == [
        (attempt, number) for attempt in (1, 2) for number in range(50)
    ]


def test_a_server_that_dies_loses_and_repeats_nothing(site: Callable[..., Site]) -> None:
    place = site(MILEPOST_LEASE_SECONDS="30")
    place.start_worker(TASKS)
    run_id = place.client.trigger("slow", 1500).id
    for _ in range(3):
        wait_until(lambda: place.client.runs.retrieve(run_id).started_at is not None)
        time.sleep(0.4)
        place.kill_server()
        place.start_server()
    run = place.client.runs.wait(run_id, timeout=60)
    assert run.is_success, run.error
    assert run.attempt_count == 1
    assert [body["data"] for body in read(place.url, KEY, run_id, "n")] == list(range(1500))
