"""Following a run: frames to states, gaps, broken connections, and the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.scripted import FINISHED, Answer, Asked, Drop, ScriptedServer, event, wire_run
from milepost import Client, MetadataValueError, Run, RunNotFoundError, RunStatus, UnavailableError
from milepost.client import retries
from milepost.client.subscription import BatchFollower, Gap, RunFollower
from milepost.client.transport import ChunkDecoder
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
    """The states that a reader sees who is there for every frame."""
    states: list[Run] = []
    for name, data in frames:
        follower.take(name, json.dumps(data).encode())
        state = follower.newest()
        if state is not None:
            states.append(state)
    return states


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
    assert follower.newest() is None
    follower.take("batch", b'{"id":"batch_1","runCount":3,"finishedCount":1}')
    frame = follower.newest()
    assert frame is not None
    assert (frame.run_count, frame.finished_count) == (3, 1)
    follower.take("end", b"{}")
    assert follower.newest() is None
    assert follower.has_ended


# --- over a connection --------------------------------------------------------------------------------------


class Subscribe:
    """Subscribes to run_1 in one of the two colours and gives all states. After state number n it sets `seen[n]`."""

    def __init__(self, client: Client, colour: str) -> None:
        self._client = client
        self._colour = colour
        self.seen = [threading.Event() for _ in range(10)]

    def __call__(self) -> list[Run]:
        states: list[Run] = []
        if self._colour == "async":
            asyncio.run(self._collect(states))
        else:
            for run in self._client.runs.subscribe("run_1"):
                self._note(states, run)
        return states

    async def _collect(self, states: list[Run]) -> None:
        async for run in self._client.runs.asubscribe("run_1"):
            self._note(states, run)

    def _note(self, states: list[Run], run: Run) -> None:
        states.append(run)
        self.seen[len(states) - 1].set()


@pytest.fixture(params=["blocking", "async"])
def subscribe(request: pytest.FixtureRequest, client: Client) -> Subscribe:
    return Subscribe(client, request.param)


def stream(
    server: ScriptedServer,
    *connections: list[tuple[str, dict[str, Any]] | type[Drop] | bytes | threading.Event],
) -> None:
    """One list of frames for each connection; Drop breaks it, and an event is waited for before going on."""
    left = list(connections)

    def chunks(frames: list[Any]) -> Iterator[bytes]:
        for frame in frames:
            if frame is Drop:
                raise Drop
            if isinstance(frame, threading.Event):
                assert frame.wait(30)
            else:
                yield frame if isinstance(frame, bytes) else event(*frame)

    def answer(asked: Asked) -> Answer:
        assert asked.path == "/api/v1/runs/run_1/feed"
        return Answer(200, chunks=chunks(left.pop(0)))

    server.answer = answer


def test_from_snapshot_to_end(server: ScriptedServer, subscribe: Subscribe) -> None:
    stream(
        server,
        [
            snapshot(0, {}),
            subscribe.seen[0],
            b": ping\n\n",
            delta(0, 1, Set("a", 1)),
            subscribe.seen[1],
            delta(None, 1, **FINISHED),
            END,
        ],
    )
    states = subscribe()
    assert [(run.metadata, run.is_completed) for run in states] == [
        ({}, False),
        ({"a": 1}, False),
        ({"a": 1}, True),
    ]
    assert server.asked[0].headers["accept"] == "text/event-stream"


@pytest.mark.parametrize("headers", [{}, {"connection": "close"}])
def test_frames_may_be_cut_anywhere(
    server: ScriptedServer, subscribe: Subscribe, headers: dict[str, str]
) -> None:
    text = event(*snapshot(0, {"é": "ü"})) + event(*delta(0, 1, Set("a", 1))) + event(*END)
    pieces = [text[index : index + 7] for index in range(0, len(text), 7)]
    server.answer = lambda asked: Answer(200, headers=headers, chunks=iter(pieces))
    assert subscribe()[-1].metadata == {"é": "ü", "a": 1}


@pytest.mark.parametrize("way", ["breaks", "ends", "gap"])
def test_a_connection_that_is_lost_is_taken_up_again(
    server: ScriptedServer, subscribe: Subscribe, way: str
) -> None:
    first: list[Any] = [
        snapshot(1, {"n": 1}),
        subscribe.seen[0],
        delta(1, 2, Increment("n", 1)),
        subscribe.seen[1],
    ]
    first += {"breaks": [Drop], "ends": [], "gap": [delta(7, 8, Increment("n", 1))]}[way]
    stream(server, first, [snapshot(2, {"n": 2}), b": ping\n\n", snapshot(5, {"n": 5}, **FINISHED), END])
    assert [run.metadata["n"] for run in subscribe()] == [1, 2, 5]
    assert len(server.asked) == 2


def test_a_reader_that_is_late_gets_the_newest_state_only_M82(server: ScriptedServer, client: Client) -> None:
    is_there, written, over = threading.Event(), threading.Event(), threading.Event()

    def chunks() -> Iterator[bytes]:
        yield event(*snapshot(0, {}))
        assert is_there.wait(30)
        for version in range(200):
            yield event(*delta(version, version + 1, Increment("n", 1)))
        written.set()
        assert over.wait(30)
        yield event(*END)

    server.answer = lambda asked: Answer(200, chunks=chunks())
    seen: list[Any] = []
    for state in client.runs.subscribe("run_1"):
        seen.append(state.metadata.get("n"))
        is_there.set()
        assert written.wait(30)
        if len(seen) > 1:
            over.set()
    assert seen == [None, 200]

    async def main() -> None:
        seen.clear()
        async for state in client.runs.asubscribe("run_1"):
            seen.append(state.metadata.get("n"))
            is_there.set()
            # Blocks the loop on purpose: nothing is read meanwhile.
            assert written.wait(30)
            if len(seen) > 1:
                over.set()
        assert (seen[0], seen[-1]) == (None, 200)
        assert len(seen) <= 4

    for flag in (is_there, written, over):
        flag.clear()
    asyncio.run(main())


def test_a_run_that_does_not_exist_is_no_reason_to_wait(server: ScriptedServer, subscribe: Subscribe) -> None:
    server.answer = lambda asked: Answer(404, {"error": "there is no run 'run_1'", "code": "run_not_found"})
    with pytest.raises(RunNotFoundError, match="run_1"):
        subscribe()


def test_a_server_that_stays_away_is_given_up(
    server: ScriptedServer, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "patient", lambda: retries.Retries(attempts_max=3))

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
    assert left.wait(60)
    left.clear()

    async def main() -> None:
        subscription = client.runs.asubscribe("run_1")
        async for _ in subscription:
            break
        await subscription.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(left.wait, 10)

    asyncio.run(main())


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5), st.integers(1, 9), st.booleans())
def test_the_chunked_coding_comes_off_wherever_it_is_cut(
    parts: list[bytes], step: int, has_extension: bool
) -> None:
    extension = b";name=value" if has_extension else b""
    raw = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"
    decoder = ChunkDecoder()
    found: list[bytes] = []
    for index in range(0, len(raw), step):
        if not decoder.has_ended:
            found.append(decoder.decode(raw[index : index + step]))
    assert b"".join(found) == b"".join(parts)
    assert decoder.has_ended


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
