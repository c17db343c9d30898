"""`runs.list(metadata=...)` and `runs.subscribe_where(...)`: the state machine alone, then against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.scripted import Answer, Asked, Drop, ScriptedServer, event, wire_run
from milepost import Client, MetadataPathError, MetadataValueError, Run
from milepost.client import retries
from milepost.client.run import WholeRun, run_from_wire
from milepost.client.subscription import Gap, MatchFollower
from milepost.errors import InvalidRequestError
from support.served import KEY, HttpWorker, Served, set_to

START = datetime(2026, 1, 1, tzinfo=UTC)


def wire(run_id: str, version: int, **fields: Any) -> dict[str, Any]:
    return wire_run(
        id=run_id,
        metadataVersion=version,
        metadata={"v": version},
        updatedAt=(START + timedelta(seconds=version)).isoformat(),
        **fields,
    )


def told(run_id: str, version: int, *, matches: bool = True, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "run", {"run": wire(run_id, version, **fields), "matches": matches}


def moved(
    run_id: str, version: int, *, since: int | None = None, **fields: Any
) -> tuple[str, dict[str, Any]]:
    """A delta from the version before; `fields` are those of the run."""
    operations = [{"type": "set", "key": "v", "value": version}]
    delta: dict[str, Any] = {"id": run_id, "version": version, "run": fields}
    before = version - 1 if since is None else since
    return "delta", delta if before == version else {**delta, "fromVersion": before, "operations": operations}


BEGIN: tuple[str, dict[str, Any]] = ("begin", {})
PRESENT: tuple[str, dict[str, Any]] = ("present", {})


def feed(follower: MatchFollower, *frames: tuple[str, dict[str, Any]]) -> list[Any]:
    """(id, version) of each run given, and ids of runs to be asked for."""
    given: list[Any] = []
    for name, data in frames:
        follower.take(name, json.dumps(data).encode())
        while (state := follower.newest()) is not None:
            given.append((state.id, state.metadata_version) if isinstance(state, Run) else state)
    return given


def asked_for(follower: MatchFollower, run_id: str, version: int) -> int | None:
    whole = msgspec.json.decode(json.dumps(wire(run_id, version)), type=WholeRun)
    run = follower.catch_up(run_from_wire(whole))
    return run and run.metadata_version


def test_states_come_once_and_never_go_back() -> None:
    follower = MatchFollower()
    frames = [BEGIN, told("a", 1), told("b", 1), PRESENT, told("a", 1), told("a", 3), told("a", 2)]
    assert feed(follower, *frames) == [("a", 1), ("b", 1), ("a", 3)]
    assert feed(follower, told("a", 3, status="WAITING")) == [("a", 3)]
    assert feed(follower, BEGIN, told("b", 1), told("a", 3, status="WAITING"), PRESENT) == []


def test_a_run_that_leaves_comes_once_more() -> None:
    follower = MatchFollower()
    assert feed(follower, BEGIN, told("a", 1), PRESENT, told("a", 2, matches=False)) == [("a", 1), ("a", 2)]
    assert feed(follower, told("b", 2, matches=False)) == []
    assert feed(follower, BEGIN, PRESENT, told("a", 4)) == [("a", 4)]


def test_what_left_while_the_connection_was_broken_is_asked_for() -> None:
    follower = MatchFollower()
    feed(follower, BEGIN, told("a", 1), told("b", 1), PRESENT)
    assert feed(follower, BEGIN, told("b", 1), PRESENT) == ["a"]
    assert asked_for(follower, "a", 5) == 5
    # It has come back meanwhile, and this connection tells of the same state.
    assert feed(follower, told("a", 5)) == []
    assert feed(follower, told("a", 6)) == [("a", 6)]
    assert feed(follower, BEGIN, told("a", 6), PRESENT) == ["b"]
    assert asked_for(follower, "b", 1) is None


def test_a_reader_that_was_busy_gets_the_newest_state_of_each_run() -> None:
    follower = MatchFollower()
    for name, data in [BEGIN, told("a", 1), told("b", 1), told("a", 2), PRESENT]:
        follower.take(name, json.dumps(data).encode())
    assert feed(follower, ("later-kind", {"x": 1})) == [("b", 1), ("a", 2)]


def whole_runs(follower: MatchFollower, *frames: tuple[str, dict[str, Any]]) -> list[Run]:
    """The runs given, as they are."""
    given: list[Run] = []
    for name, data in frames:
        follower.take(name, json.dumps(data).encode())
        while (state := follower.newest()) is not None:
            assert isinstance(state, Run)
            given.append(state)
    return given


def test_deltas_are_folded_into_whole_runs() -> None:
    """What is yielded is a full run each time, the reader's own."""
    follower = MatchFollower()
    [first] = whole_runs(follower, BEGIN, told("a", 1, error={"message": "m"}))
    first.metadata["v"] = "changed by the reader"
    [second] = whole_runs(follower, moved("a", 2, status="EXECUTING", error=None, attemptCount=1))
    assert (second.metadata, second.metadata_version) == ({"v": 2}, 2)
    assert (second.status, second.error, second.attempt_count) == ("EXECUTING", None, 1)
    second.metadata.clear()
    [third] = whole_runs(follower, moved("a", 2, since=2, status="WAITING"))
    assert (third.metadata, third.metadata_version, third.status) == ({"v": 2}, 2, "WAITING")
    assert third.tags == first.tags


def test_a_reader_that_was_busy_gets_several_deltas_as_one_state() -> None:
    follower = MatchFollower()
    whole_runs(follower, BEGIN, told("a", 1), told("b", 1), PRESENT)
    for name, data in [moved("a", 2), moved("b", 2), moved("a", 3), moved("a", 7, since=3)]:
        follower.take(name, json.dumps(data).encode())
    assert [(run.id, run.metadata) for run in whole_runs(follower, ("later-kind", {}))] == [
        ("b", {"v": 2}),
        ("a", {"v": 7}),
    ]


@pytest.mark.parametrize("frame", [moved("a", 5), moved("a", 1, since=0), moved("b", 2)])
def test_a_delta_that_does_not_continue_what_is_here_is_a_gap(frame: tuple[str, dict[str, Any]]) -> None:
    follower = MatchFollower()
    whole_runs(follower, BEGIN, told("a", 1))
    with pytest.raises(Gap):
        whole_runs(follower, frame)


@pytest.mark.parametrize(
    "frames",
    [
        [("forget", {"ids": ["a", "unknown"]})],
        [told("a", 2, status="COMPLETED", isCompleted=True)],
        [moved("a", 2, status="COMPLETED", isCompleted=True)],
        [told("a", 2, matches=False)],
        [BEGIN],
    ],
    ids=["told so", "ended", "ended by a delta", "left", "another connection"],
)
def test_documents_that_need_not_be_kept_are_not(frames: list[tuple[str, dict[str, Any]]]) -> None:
    """Memory is bounded as the server says: what comes of such a run next is a whole one."""
    follower = MatchFollower()
    whole_runs(follower, BEGIN, told("a", 1), told("b", 1), *frames)
    with pytest.raises(Gap):
        whole_runs(follower, moved("a", 3, since=2))
    assert [run.metadata for run in whole_runs(follower, told("a", 9))] == [{"v": 9}]


def test_what_waits_to_be_given_is_given_although_it_is_forgotten() -> None:
    follower = MatchFollower()
    for name, data in [BEGIN, told("a", 1), moved("a", 2), ("forget", {"ids": ["a"]})]:
        follower.take(name, json.dumps(data).encode())
    [run] = whole_runs(follower, PRESENT)
    assert run.metadata == {"v": 2}
    with pytest.raises(Gap):
        whole_runs(follower, moved("a", 3))


@given(st.data())
def test_whatever_breaks_the_last_states_are_the_servers(data: st.DataObject) -> None:
    """The server's side as a model: runs with a version and whether they match; the connection breaks at any frame."""
    follower = MatchFollower()
    server = {run_id: (0, data.draw(st.booleans())) for run_id in "abc"}
    known: dict[str, tuple[int, bool]] = {}
    shown: dict[str, int] = {}

    def take(*frames: tuple[str, dict[str, Any]]) -> None:
        for state in feed(follower, *frames):
            run_id, version = (
                state if isinstance(state, tuple) else (state, asked_for(follower, state, server[state][0]))
            )
            if version is not None:
                assert version > shown.get(run_id, -1)
                shown[run_id] = version

    def connect() -> None:
        known.clear()
        take(BEGIN)
        for run_id, (version, matches) in server.items():
            if matches:
                known[run_id] = server[run_id]
                take(told(run_id, version))
        take(PRESENT)

    connect()
    for _ in range(data.draw(st.integers(0, 12))):
        run_id = data.draw(st.sampled_from("abc"))
        server[run_id] = (server[run_id][0] + 1, data.draw(st.booleans()))
        way = data.draw(st.sampled_from(["told", "skipped", "broken"]))
        if way == "told":
            version, matches = server[run_id]
            if matches or run_id in known:
                take(told(run_id, version, matches=matches))
                known.pop(run_id, None)
                if matches:
                    known[run_id] = server[run_id]
        elif way == "broken":
            connect()
    connect()
    for run_id, (version, matches) in server.items():
        if matches:
            assert shown[run_id] == version


# --- over a connection --------------------------------------------------------------------------------------


def states(client: Client, colour: str, count: int) -> list[Run]:
    if colour == "blocking":
        return list(islice(client.runs.subscribe_where(metadata={"v": {"$gte": 0}}), count))

    async def collect() -> list[Run]:
        collected: list[Run] = []
        async for run in client.runs.asubscribe_where(metadata={"v": {"$gte": 0}}):
            collected.append(run)
            if len(collected) == count:
                break
        return collected

    return asyncio.run(collect())


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_broken_connection_is_taken_up_again(
    server: ScriptedServer, client: Client, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)
    connections = [[BEGIN, told("a", 1), told("b", 1), Drop], [BEGIN, told("b", 1), PRESENT, told("b", 2)]]

    def chunks(frames: list[Any]) -> Iterator[bytes]:
        for frame in frames:
            if frame is Drop:
                raise Drop
            yield event(*frame)

    def answer(asked: Asked) -> Answer:
        if asked.path == "/api/v3/runs/a":
            return Answer(200, wire("a", 7))
        assert asked.path == "/api/v1/feed/matching-runs"
        assert json.loads(asked.query["filter[metadata]"]) == {"v": {"$gte": 0}}
        return Answer(200, chunks=chunks(connections.pop(0)))

    server.answer = answer
    found = [(run.id, run.metadata_version) for run in states(client, colour, 4)]
    assert found[:2] == [("a", 1), ("b", 1)]
    assert sorted(found[2:]) == [("a", 7), ("b", 2)]


@pytest.mark.parametrize(
    ("filter", "error"),
    [
        ({"a": {"$near": 1}}, InvalidRequestError),
        ({"$.a.__proto__": 1}, MetadataPathError),
        ({"a": print}, MetadataValueError),
        ({"a": float("inf")}, MetadataValueError),
    ],
)
def test_a_wrong_filter_is_refused_before_any_request(
    server: ScriptedServer, client: Client, filter: dict[str, Any], error: type[Exception]
) -> None:
    for call in (
        client.runs.list,
        client.runs.alist,
        client.runs.subscribe_where,
        client.runs.asubscribe_where,
    ):
        with pytest.raises(error):
            call(metadata=filter)
    assert server.asked == []


# --- the real server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


def test_lists_and_subscriptions_of_a_real_server(served: Served) -> None:
    worker = HttpWorker(served)
    client = Client(served.url, KEY)
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    first = served.trigger(metadata={"user": {"id": "u1"}, "at": "2026-05-01T12:00:00Z"})
    second = served.trigger(metadata={"user": {"id": "u1"}})
    served.trigger(metadata={"user": {"id": "u2"}})
    assert [run.id for run in client.runs.list(metadata={"user.id": "u1"}, page_size=1)] == [second, first]
    assert [run.id for run in client.runs.list(metadata={"at": at})] == [first]
    assert [run.id for run in client.runs.list(metadata={"at": {"$gte": at}}, status="QUEUED")] == [first]

    seen: list[tuple[str, dict[str, Any]]] = []
    for run in client.runs.subscribe_where(metadata={"user.id": "u1"}, task="work"):
        seen.append((run.id, run.metadata))
        if len(seen) == 2:
            served.put_metadata(first, set_to("n", 1))
        elif run.metadata["user"]["id"] == "nobody":
            worker.finish(worker.take(second))
        elif run.metadata.get("n") == 1:
            served.put_metadata(first, set_to("$.user.id", "nobody"))
        elif run.is_completed:
            break
    assert [run_id for run_id, _ in seen[:4]] == [second, first, first, first]
    assert seen[3][1]["user"] == {"id": "nobody"}
    assert {run_id for run_id, _ in seen[4:]} == {second}
