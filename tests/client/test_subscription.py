"""Following a run: frames to states, gaps, broken connections, and the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.scripted import FINISHED, Answer, Asked, Drop, ScriptedServer, event, wire_run
from milepost import Client, MetadataValueError, Run, RunNotFoundError, RunStatus, UnavailableError
from milepost.client import retries, subscription
from milepost.client.subscription import BatchFollower, Gap, RunFollower
from milepost.model.document import Document
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import Append, Increment, Operation, Set, encode_operations


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)


def snapshot(version: int, metadata: dict[str, Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    run = wire_run(metadata=metadata, metadataVersion=version, **fields)
    return "snapshot", {"version": version, "run": run}


def delta(
    since: int | None, version: int, *operations: Operation, **fields: Any
) -> tuple[str, dict[str, Any]]:
    frame: dict[str, Any] = {"version": version}
    if since is not None:
        frame["fromVersion"] = since
    if operations:
        frame["operations"] = json.loads(encode_operations(operations))
    if fields:
        frame["run"] = fields
    return "delta", frame


END = ("end", {"version": 0})


def feed(follower: RunFollower, *frames: tuple[str, dict[str, Any]]) -> list[Run]:
    states = [follower.take(name, json.dumps(data).encode()) for name, data in frames]
    return [state for state in states if state is not None]


# --- the state machine --------------------------------------------------------------------------------------


def test_a_snapshot_is_a_whole_run() -> None:
    error = {"name": "ValueError", "message": "bad", "stackTrace": "Traceback"}
    [run] = feed(
        RunFollower(),
        snapshot(
            3, {"a": [1]}, error=error, parentId="run_p", batchId="batch_b", output={"x": 1}, childCounts={"FAILED": 2},
            startedAt="2026-01-02T03:04:06Z", finishedAt="2026-01-02T03:04:07Z", **FINISHED,
        ),
    )  # fmt: skip
    assert (run.id, run.task_id, run.status) == ("run_1", "a-task", RunStatus.COMPLETED)
    assert (run.metadata, run.metadata_version) == ({"a": [1]}, 3)
    assert (run.payload, run.output, run.tags) == ({"n": 1}, {"x": 1}, ["a"])
    assert (run.parent_id, run.root_id, run.batch_id, run.queue) == ("run_p", "run_1", "batch_b", "q")
    assert run.error is not None
    assert (run.error.name, run.error.message, run.error.stack_trace) == ("ValueError", "bad", "Traceback")
    assert run.created_at == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert run.started_at is not None
    assert run.started_at.tzinfo is not None
    assert run.finished_at == datetime(2026, 1, 2, 3, 4, 7, tzinfo=UTC)
    assert (run.is_completed, run.is_success, run.is_failed, run.is_queued) == (True, True, False, False)
    assert (run.attempt_count, run.child_counts, run.depth) == (1, {"FAILED": 2}, 0)


def test_deltas_lead_on_and_states_are_copies() -> None:
    follower = RunFollower()
    first, second, third = feed(
        follower,
        snapshot(3, {"log": []}),
        delta(3, 5, Append("log", 1), Increment("n", 2)),
        delta(None, 5, status="WAITING", isWaiting=True, isExecuting=False),
    )
    assert (first.metadata, second.metadata, third.metadata) == (
        {"log": []},
        {"log": [1], "n": 2},
        {"log": [1], "n": 2},
    )
    assert (second.metadata_version, second.status, third.status) == (5, "EXECUTING", "WAITING")
    third.metadata["log"].append("mine")
    [fourth] = feed(follower, delta(5, 6, Append("log", 2)))
    assert fourth.metadata["log"] == [1, 2]
    assert not follower.has_ended
    assert feed(follower, END) == []
    assert follower.has_ended


def test_null_takes_a_field_away() -> None:
    _, cleared = feed(
        RunFollower(),
        snapshot(0, {}, error={"message": "first attempt"}),
        delta(None, 0, error=None, status="EXECUTING"),
    )
    assert cleared.error is None


def test_what_has_not_changed_is_not_shown_again() -> None:
    frames = [
        snapshot(1, {"a": 1}),
        snapshot(1, {"a": 1}),
        delta(None, 1, status="EXECUTING"),
        ("later-kind", {"x": 1}),
    ]
    assert len(feed(RunFollower(), *frames)) == 1


@pytest.mark.parametrize(
    "frame", [delta(5, 6, Set("a", 1)), delta(1, 2, Set("a", 1)), delta(3, 4, Increment("text", 1))]
)
def test_a_delta_that_does_not_continue_is_a_gap(frame: tuple[str, dict[str, Any]]) -> None:
    follower = RunFollower()
    feed(follower, snapshot(3, {"text": "x"}))
    with pytest.raises(Gap):
        feed(follower, frame)
    assert [run.metadata for run in feed(follower, snapshot(6, {"a": 1}))] == [{"a": 1}]


@given(
    st.lists(
        st.lists(
            st.one_of(
                st.builds(Increment, st.sampled_from("ab"), st.integers(-5, 5)),
                st.builds(Append, st.just("log"), st.integers()),
            ),
            min_size=1,
            max_size=3,
        ),
        max_size=8,
    ),
    st.data(),
)  # fmt: skip
def test_whatever_is_missed_the_last_state_is_the_servers(
    steps: list[list[Operation]], data: st.DataObject
) -> None:
    """M82: deltas are lost, and after a gap the reader connects anew."""
    document, follower = Document(), RunFollower()
    feed(follower, snapshot(0, {}))
    connected_at, shown = 0, Document().value
    for version, operations in enumerate(steps, 1):
        document.apply_all(operations)
        if data.draw(st.booleans()):
            continue
        try:
            states = feed(follower, delta(version - 1, version, *operations))
        except Gap:
            states = feed(follower, snapshot(version, document.copy_value()))
        connected_at, shown = version, states[-1].metadata
        assert json_equal(shown, document.value)
    if connected_at < len(steps):
        [state] = feed(follower, snapshot(len(steps), document.copy_value()))
        assert json_equal(state.metadata, document.value)


def test_batches_count_up() -> None:
    follower = BatchFollower()
    frame = follower.take("batch", b'{"id":"batch_1","runCount":3,"finishedCount":1}')
    assert frame is not None
    assert (frame.run_count, frame.finished_count) == (3, 1)
    assert follower.take("end", b"{}") is None
    assert follower.has_ended


# --- over a connection --------------------------------------------------------------------------------------

Subscribe = Callable[[], list[Run]]


@pytest.fixture(params=["blocking", "async"])
def subscribe(request: pytest.FixtureRequest, client: Client) -> Subscribe:
    """Subscribes to run_1 and gives all states."""
    if request.param == "blocking":
        return lambda: list(client.runs.subscribe("run_1"))

    async def collect() -> list[Run]:
        return [run async for run in client.runs.asubscribe("run_1")]

    return lambda: asyncio.run(collect())


def stream(
    server: ScriptedServer, *connections: list[tuple[str, dict[str, Any]] | type[Drop] | bytes]
) -> None:
    """One list of frames for each connection; Drop breaks it."""
    left = list(connections)

    def chunks(frames: list[Any]) -> Iterator[bytes]:
        for frame in frames:
            if frame is Drop:
                raise Drop
            yield frame if isinstance(frame, bytes) else event(*frame)

    def answer(asked: Asked) -> Answer:
        assert asked.path == "/api/v1/runs/run_1/feed"
        return Answer(200, chunks=chunks(left.pop(0)))

    server.answer = answer


def test_from_snapshot_to_end(server: ScriptedServer, subscribe: Subscribe) -> None:
    stream(
        server,
        [snapshot(0, {}), b": ping\n\n", delta(0, 1, Set("a", 1)), delta(None, 1, **FINISHED), END],
    )
    states = subscribe()
    assert [(run.metadata, run.is_completed) for run in states] == [
        ({}, False),
        ({"a": 1}, False),
        ({"a": 1}, True),
    ]
    assert server.asked[0].headers["accept"] == "text/event-stream"


def test_frames_may_be_cut_anywhere(server: ScriptedServer, subscribe: Subscribe) -> None:
    text = event(*snapshot(0, {"é": "ü"})) + event(*delta(0, 1, Set("a", 1))) + event(*END)
    stream(server, [text[index : index + 7] for index in range(0, len(text), 7)])  # type: ignore[list-item]
    assert [run.metadata for run in subscribe()] == [{"é": "ü"}, {"é": "ü", "a": 1}]


@pytest.mark.parametrize("way", ["breaks", "ends", "gap"])
def test_a_connection_that_is_lost_is_taken_up_again(
    server: ScriptedServer, subscribe: Subscribe, way: str
) -> None:
    first: list[Any] = [snapshot(1, {"n": 1}), delta(1, 2, Increment("n", 1))]
    first += {"breaks": [Drop], "ends": [], "gap": [delta(7, 8, Increment("n", 1))]}[way]
    stream(server, first, [snapshot(2, {"n": 2}), snapshot(5, {"n": 5}, **FINISHED), END])
    assert [run.metadata["n"] for run in subscribe()] == [1, 2, 5]
    assert len(server.asked) == 2


def test_a_run_that_does_not_exist_is_no_reason_to_wait(server: ScriptedServer, subscribe: Subscribe) -> None:
    server.answer = lambda asked: Answer(404, {"error": "there is no run 'run_1'", "code": "run_not_found"})
    with pytest.raises(RunNotFoundError, match="run_1"):
        subscribe()


def test_a_server_that_stays_away_is_given_up(
    server: ScriptedServer, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "patient", lambda: retries.Retries(attempts_max=3))

    def answer(asked: Asked) -> Answer:
        if len(server.asked) > 1:
            raise Drop
        return Answer(200, chunks=iter([event(*snapshot(0, {}))]))

    server.answer = answer
    with pytest.raises(UnavailableError, match=r"connection (broke|ended)"):
        subscribe()
    # The library below the asynchronous client tries a reading call twice by itself.
    assert len(server.asked) in (3, 5)


def test_leaving_early_closes_the_connection(server: ScriptedServer, client: Client) -> None:
    left = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield event(*snapshot(0, {}))
        try:
            while True:
                yield b": ping\n\n"
                time.sleep(0.001)
        finally:
            left.set()

    server.answer = lambda asked: Answer(200, chunks=chunks())
    for _ in client.runs.subscribe("run_1"):
        break
    assert left.wait(10)
    left.clear()

    async def main() -> None:
        subscription = client.runs.asubscribe("run_1")
        async for _ in subscription:
            break
        await subscription.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(left.wait, 10)

    asyncio.run(main())


# --- waiting ------------------------------------------------------------------------------------------------


def test_wait_returns_the_finished_run(server: ScriptedServer, client: Client) -> None:
    frames: list[Any] = [snapshot(0, {}), delta(0, 1, Set("a", 1)), delta(None, 1, **FINISHED), END]
    stream(server, frames, frames)
    assert client.runs.wait("run_1").metadata == {"a": 1}
    assert asyncio.run(client.runs.await_("run_1", timeout=60)).is_success


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_wait_gives_up_after_its_timeout_although_the_server_lives(
    server: ScriptedServer, client: Client, colour: str
) -> None:
    over = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield event(*snapshot(0, {}))
        while not over.wait(0.02):
            yield b": ping\n\n"

    server.answer = lambda asked: Answer(200, chunks=chunks())
    try:
        with pytest.raises(TimeoutError, match="run_1 has not finished within"):
            wait_briefly(client, colour)
    finally:
        over.set()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_wait_gives_up_after_its_timeout_although_the_server_is_silent(
    server: ScriptedServer, client: Client, colour: str
) -> None:
    over = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield event(*snapshot(0, {}))
        over.wait(30)

    server.answer = lambda asked: Answer(200, chunks=chunks())
    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match="run_1 has not finished within"):
            wait_briefly(client, colour)
    finally:
        over.set()
    assert time.monotonic() - began < 10


def wait_briefly(client: Client, colour: str) -> None:
    if colour == "blocking":
        client.runs.wait("run_1", timeout=0.2)
    else:
        asyncio.run(client.runs.await_("run_1", timeout=0.2))


# --- typed metadata -----------------------------------------------------------------------------------------


def test_metadata_as_a_type_M77() -> None:
    from pydantic import BaseModel

    class Progress(BaseModel):
        at: datetime

    [run] = feed(RunFollower(), snapshot(1, {"at": "2026-01-02T03:04:05Z"}))
    assert run.metadata_as(Progress).at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    [run] = feed(RunFollower(), snapshot(1, {"at": "soon"}))
    with pytest.raises(MetadataValueError, match="at: "):
        run.metadata_as(Progress)
