"""Streams through the real link: over a bad network, to a server that refuses, and what they mean for the end of a run."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from fake_server import FakeServer, Fault
from test_link import Run, ThreadHost, run_of

from milepost.errors import StreamStoppedError
from milepost.protocol.streams import ChunksRequest, PartReply
from milepost.sdk.streams_outlet import Outlet
from milepost.worker.control import Order

Host = Callable[..., ThreadHost]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def host(server: FakeServer) -> Iterator[Host]:
    hosts: list[ThreadHost] = []

    def start(body: Callable[[Run], Any], **options: Any) -> ThreadHost:
        hosts.append(ThreadHost(server, body, **options))
        return hosts[-1]

    yield start
    for each in hosts:
        each.end()


def opened(run: Run, key: str = "k", *, is_announced: bool = False) -> Outlet:
    outlet = Outlet(run.scope, run.id, key, is_announced=is_announced)
    run.link.open_stream(outlet)
    return outlet


def add(outlet: Outlet, value: Any) -> None:
    outlet.wait_for_room()
    outlet.add(msgspec.json.encode(value))


def test_over_a_bad_network_each_chunk_is_stored_once_and_in_order(server: FakeServer, host: Host) -> None:
    server.faults["report_chunks"] = deque(
        [Fault(status=503), Fault(loses_reply=True), Fault(), Fault(status=502), Fault(loses_reply=True)] * 4
    )

    def body(run: Run) -> None:
        outlets = [opened(run, f"k{number}") for number in range(3)]
        for number in range(300):
            for outlet in outlets:
                add(outlet, number)
            if number % 50 == 0:
                time.sleep(0.01)

    host(body)
    server.queue(run_of(1), run_of(2))
    server.until(lambda: len(server.outcomes()) == 2)
    for run_id in ("run_1", "run_2"):
        for key in ("k0", "k1", "k2"):
            assert server.streams.values(run_id, key) == list(range(300))
            assert server.streams.end_of(run_id, key) == [None]


def test_the_outcome_waits_until_the_streams_are_stored_M57(server: FakeServer, host: Host) -> None:
    server.faults["report_chunks"] = deque([Fault(status=503)] * 4)

    def body(run: Run) -> None:
        add(opened(run), 1)

    host(body)
    server.queue(run_of(1))
    server.until(server.outcomes)
    names = server.names()
    outcome_at = next(
        index for index, seen in enumerate(server.seen) if seen.name == "report" and b'"outcome"' in seen.body
    )
    assert names[:outcome_at].count("report_chunks") >= 5
    assert server.streams.values("run_1", "k") == [1]
    assert server.streams.end_of("run_1", "k") == [None]


def test_a_run_without_streams_sends_no_request_for_them(server: FakeServer, host: Host) -> None:
    host(lambda run: run.set("a", 1))
    server.queue(run_of(1))
    server.until(server.outcomes)
    assert "report_chunks" not in server.names()


def test_the_first_chunk_leaves_at_once(server: FakeServer, host: Host) -> None:
    def body(run: Run) -> None:
        outlet = opened(run)
        add(outlet, 1)
        assert server.until(lambda: server.streams.values("run_1", "k") == [1])

    host(body, flush_interval_seconds=30.0)
    server.queue(run_of(1))
    server.until(server.outcomes)


def test_what_the_server_refuses_is_divided_until_only_what_it_does_not_take_is_left(
    server: FakeServer, host: Host
) -> None:
    def accepts(request: ChunksRequest) -> bool:
        parts = [part for attempt in request.runs for part in attempt.parts]
        return sum(len(part.chunks) for part in parts) <= 10 and not any(
            b"poison" in bytes(chunk) for part in parts for chunk in part.chunks
        )

    server.accepts_chunks = accepts
    raised: list[StreamStoppedError] = []

    def body(run: Run) -> None:
        server.is_away = True
        good, bad = opened(run, "good"), opened(run, "bad")
        for number in range(100):
            add(good, number)
            add(bad, "poison" if number == 50 else number)
        server.is_away = False
        try:
            server.until(lambda: bad.is_stopped)
            add(bad, 1)
        except StreamStoppedError as error:
            raised.append(error)

    host(body)
    server.queue(run_of(1))
    server.until(server.outcomes)
    assert server.streams.values("run_1", "good") == list(range(100))
    assert server.streams.values("run_1", "bad") == list(range(50))
    [error] = raised
    assert error.key == "bad"
    assert "does not take" in str(error)


def test_a_run_that_is_lost_is_stopped_and_whoever_writes_is_told(server: FakeServer, host: Host) -> None:
    server.streams.lost.add("run_1")
    raised: list[str] = []

    def body(run: Run) -> None:
        try:
            for _ in range(100):
                add(opened(run), "x" * 1_000_000)
                time.sleep(0.01)
        except StreamStoppedError as error:
            raised.append(f"{error.reason} {error}")

    running = host(body)
    server.queue(run_of(1), run_of(2))
    server.until(lambda: "run_2" in server.outcomes())
    server.until(lambda: raised)
    assert raised[0].startswith("lost attempt 1 of run run_1 was given up")
    assert running.interrupted == ["run_1"]
    assert "run_1" not in server.outcomes()
    assert server.streams.values("run_2", "k")[:1] == ["x" * 1_000_000]


def test_a_writer_that_the_server_stops_lets_the_run_end(server: FakeServer, host: Host) -> None:
    server.streams.answers["k"] = PartReply(code="too_many_streams", message="there are too many")
    host(lambda run: add(opened(run), 1))
    server.queue(run_of(1))
    server.until(server.outcomes)


def test_a_source_that_waits_holds_up_nobody_else(server: FakeServer, host: Host) -> None:
    gate = threading.Event()
    server.accepts_chunks = lambda request: True
    server.faults["report_chunks"] = deque([Fault(status=503)] * 1000)

    def body(run: Run) -> None:
        if run.id == "run_1":
            outlet = opened(run)
            for _ in range(5):
                add(outlet, "x" * 500_000)
        else:
            run.set("a", 1)
            run.flush()

    host(body)
    server.queue(run_of(1), *[run_of(number) for number in range(2, 8)])
    server.until(lambda: len(server.outcomes()) == 6)
    assert "run_1" not in server.outcomes()
    server.faults["report_chunks"].clear()
    server.until(lambda: "run_1" in server.outcomes())
    assert len(server.streams.values("run_1", "k")) == 5
    gate.set()


def test_a_worker_that_ends_lets_go_whoever_waits_for_room(server: FakeServer, host: Host) -> None:
    raised = threading.Event()

    def body(run: Run) -> None:
        outlet = opened(run)
        server.is_away = True
        try:
            for _ in range(10):
                add(outlet, "x" * 500_000)
        except StreamStoppedError:
            raised.set()

    running = host(body, grace_seconds=0.1)
    server.queue(run_of(1))
    server.until(lambda: server.is_away)
    running.link.order(Order.DRAIN)
    assert raised.wait(20)
    assert running.has_left.wait(20)


def test_a_stream_is_known_before_its_first_chunk(server: FakeServer, host: Host) -> None:
    def body(run: Run) -> None:
        opened(run, "quiet", is_announced=True)
        assert server.until(lambda: ("run_1", "quiet") in server.streams.known)

    host(body)
    server.queue(run_of(1))
    server.until(server.outcomes)
