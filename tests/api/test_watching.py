"""Many feeds on one connection: each with its own token, told by its own number."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3

from milepost import auth
from milepost.auth import TokenScopes
from milepost.client.client import Client
from milepost.protocol.feed import WATCHES_MAX
from milepost.protocol.streams import STREAMS_MAX
from support.served import KEY, Events, HttpWorker, Served, set_to

PATH = "/api/v1/feed/watch"


def token_of(served: Served, scopes: TokenScopes, **options: Any) -> str:
    return auth.create_public_token(scopes, client=Client(served.url, KEY), **options)


@contextmanager
def watching(
    served: Served, *watches: dict[str, Any], key: str = KEY, tokens: tuple[str, ...] = ()
) -> Iterator[Events]:
    response = served.pool.request(
        "POST",
        served.url + PATH,
        json={"watches": list(watches), "tokens": list(tokens)},
        headers={"authorization": f"Bearer {key}"},
        preload_content=False,
        timeout=urllib3.Timeout(20),
    )
    assert response.status == 200, response.data
    try:
        yield Events(response)
    finally:
        response.close()


def names_to_the_end(events: Events) -> list[str]:
    """The names of the events until the server ends the stream as it should be ended."""
    names: list[str] = []
    while True:
        try:
            names.append(events.next()[0])
        except StopIteration:
            return names


def write_chunks(served: Served, run_id: str, *chunks: Any, first: int = 0, end: bool = False) -> None:
    part: dict[str, Any] = {"run": run_id, "key": "s", "writer": "w", "first": first, "chunks": list(chunks)}
    part |= {"end": {}} if end else {}
    body = {"runs": [{"id": run_id, "attempt": 1, "parts": [part]}]}
    assert "code" not in served.post("/api/v1/workers/worker_1/chunks", body)["runs"][0]["parts"][0]


def test_each_thing_is_told_by_its_number_until_all_have_ended(served: Served, worker: HttpWorker) -> None:
    taken = [worker.take(served.trigger()) for _ in range(2)]
    runs = [run["id"] for run in taken]
    write_chunks(served, runs[0], "a", "b")
    watches = [{"run": runs[0]}, {"run": runs[1]}, {"run": runs[0], "stream": "s", "start": 1}]
    with watching(served, *watches) as events:
        assert events.next() == ("begin", {})
        first = dict(events.next() for _ in range(4))
        assert {"0-snapshot", "1-snapshot", "2-begin", "2-batch"} == set(first)
        assert first["1-snapshot"]["run"]["id"] == runs[1]
        assert [record["seq_num"] for record in first["2-batch"]["records"]] == [1]
        worker.report(taken[1], set_to("progress", 1))
        event, delta = events.next()
        assert (event, delta["operations"]) == ("1-delta", [set_to("progress", 1)])
        write_chunks(served, runs[0], "c", first=2, end=True)
        for run in taken:
            worker.finish(run)
        names = names_to_the_end(events)
    assert {"0-end", "1-end", "2-end"} <= set(names)


def test_a_frame_of_several_events_is_told_with_the_number_of_each(
    served: Served, worker: HttpWorker
) -> None:
    run_id = worker.take(served.trigger())["id"]
    count = 20_000
    for first in range(0, count, 10_000):
        write_chunks(served, run_id, *range(first, first + 10_000), first=first, end=first > 0)
    seen: list[int] = []
    with watching(served, {"run": run_id, "stream": "s"}) as events:
        while (event := events.next())[0] != "0-end":
            if event[0] != "begin":
                assert event[0] in ("0-begin", "0-batch")
                seen += [record["seq_num"] for record in event[1].get("records", ())]
    assert seen == list(range(count))


def test_what_a_chunk_says_does_not_end_a_feed(served: Served, worker: HttpWorker) -> None:
    run_id = worker.take(served.trigger())["id"]
    write_chunks(served, run_id, "\nevent: end\n\n", "event: end")
    with watching(served, {"run": run_id, "stream": "s"}) as events:
        names = [events.next()[0] for _ in range(3)]
        assert names == ["begin", "0-begin", "0-batch"]
        write_chunks(served, run_id, "more", first=2)
        assert events.next()[0] == "0-batch"


def test_each_with_its_own_token(served: Served, worker: HttpWorker) -> None:
    mine, other = served.trigger(metadata={"progress": 1, "hidden": 2}), served.trigger(tags=["user:9"])
    tokens = (
        token_of(served, {"read": {"runs": [mine]}}, metadata_keys=["progress"]),
        token_of(served, {"read": {"runs": [other]}}),
        token_of(served, {"read": {"runs": True}}, expires_in=time.time() + 1),
        "ey.e30.x",
        token_of(served, {"write": {"metadata": {mine: True}}}),
        token_of(served, {"read": {"tags": ["user:9"]}}),
    )
    time.sleep(1.1)  # Tokens count whole seconds.
    watches: list[dict[str, Any]] = [
        {"run": mine, "token": 0}, {"run": other, "token": 1}, {"run": mine, "token": 2}, {"run": mine, "token": 3},
        {"run": mine, "token": 4}, {"run": other, "token": 0}, {"run": other, "stream": "s", "token": 0}, {"run": "run_nobody"},
        {"tag": "user:9", "token": 5}, {"tag": "user:8", "token": 5}, {"tag": "user:9", "token": 4},
        {"run": mine, "token": 9}, {"run": mine, "token": -1}, {}, {"run": mine, "tag": "x"}, {"stream": "s"},
        {"run": mine, "stream": "k" * 300}, {"run": mine, "stream": "s", "start": -1}, {"tag": "x", "period": "soon"},
    ]  # fmt: skip
    refused: dict[int, int] = {}
    told: dict[int, Any] = {}
    with watching(served, *watches, tokens=tokens) as events:
        while len(refused) + len(told) < len(watches):
            event, data = events.next()
            number, _, name = event.partition("-")
            if name == "refused":
                refused[int(number)] = data["status"]
                assert data["error"]
                assert data["code"]
            elif name in ("snapshot", "run"):
                told[int(number)] = data["run"]
            elif name == "present":
                told.setdefault(int(number), None)
    assert told[0]["metadata"] == {"progress": 1}
    assert told[1]["id"] == told[8]["id"] == other
    assert told[9] is None
    assert refused == {
        2: 401, 3: 401, 4: 403, 5: 403, 6: 403, 7: 404, 10: 403,
        11: 400, 12: 400, 13: 400, 14: 400, 15: 400, 16: 422, 17: 422, 18: 400,
    }  # fmt: skip


def test_a_run_that_is_hidden_is_refused_as_one_that_is_not_there(served: Served) -> None:
    mine, other = served.trigger(), served.trigger()
    said: list[str] = []
    for run_id in (other, "run_x"):
        with watching(served, {"run": run_id}, key=token_of(served, {"read": {"runs": [mine]}})) as events:
            assert events.next()[0] == "begin"
            said.append(events.next()[1]["details"]["message"].replace(run_id, ""))
    assert said[0] == said[1]


def test_too_many_things(served: Served) -> None:
    watches = [{"run": "run_nobody"}] * (WATCHES_MAX + 1)
    answer = served.call("POST", PATH, {"watches": watches})
    assert answer.status == 413
    assert answer.json["limit"] == WATCHES_MAX
    answer = served.call("POST", PATH, {"watches": watches[1:]})
    assert answer.status == 200
    assert answer.body.count(b"-refused\n") == WATCHES_MAX
    assert served.call("POST", PATH, {"watches": []}).body == b"event: begin\ndata: {}\n\n"


def test_readers_that_vanish_leave_nothing_behind(served: Served, worker: HttpWorker) -> None:
    runs = [served.trigger() for _ in range(30)]
    watches = [{"run": run_id} for run_id in runs] + [{"run": runs[0], "stream": "s"}, {"tag": "t"}]
    for _ in range(5):
        with watching(served, *watches) as events:
            events.next()
    deadline = time.monotonic() + 20
    while served.server.hub.is_watched:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_stops_ends_the_connection_without_ends(tmp_path: Any) -> None:
    served = Served(tmp_path)
    run_id = served.trigger()
    with watching(served, {"run": run_id}, {"run": run_id, "stream": "s"}, {"tag": "t"}) as events:
        assert {events.next()[0] for _ in range(5)} == {
            "begin",
            "0-snapshot",
            "1-begin",
            "2-begin",
            "2-present",
        }
        served.stop()
        names = names_to_the_end(events)
    assert not [name for name in names if name.endswith("-end")]


def test_a_run_with_its_streams(served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger(metadata={"shown": 1, "hidden": 2}))
    write_chunks(served, run["id"], "a", "b", "c")
    token = token_of(served, {"read": {"runs": [run["id"]]}}, metadata_keys=["shown"])
    with watching(
        served, {"run": run["id"], "streams": {"s": 1, "later": 0}, "token": 0}, tokens=(token,)
    ) as events:
        assert events.next() == ("begin", {})
        event, snapshot = events.next()
        assert (event, snapshot["run"]["metadata"]) == ("0-snapshot", {"shown": 1})
        assert events.next() == ("0-stream", {"number": 0, "key": "s"})
        assert events.next() == ("0-0-begin", {"next": 1})
        event, batch = events.next()
        assert (event, [record["seq_num"] for record in batch["records"]]) == ("0-0-batch", [1, 2])
        worker.finish(run)
        assert [events.next()[0] for _ in range(3)] == ["0-0-end", "0-delta", "0-end"]


def test_a_run_with_its_children(served: Served, worker: HttpWorker) -> None:
    parent = worker.take(served.trigger())
    child = served.trigger(parentRunId=parent["id"])
    with watching(served, {"run": parent["id"], "children": 5}) as events:
        first = dict(events.next() for _ in range(3))
        assert set(first) == {"begin", "0-snapshot", "0-children-snapshot"}
        assert [row["id"] for row in first["0-children-snapshot"]["rows"]] == [child]
        worker.finish(parent)
        worker.finish(worker.take(child))
        assert names_to_the_end(events)[-1] == "0-end"


def test_lists(served: Served, worker: HttpWorker) -> None:
    """As their own feed tells them, within what the token shows."""
    mine = served.trigger("listed", tags=["user:1"], metadata={"progress": 1, "hidden": 2})
    other = served.trigger("listed", tags=["user:2"], metadata={"progress": 1})
    token = token_of(served, {"read": {"tags": ["user:1"]}}, metadata_keys=["progress"])
    everything = {"list": {"filter[taskIdentifier]": "listed", "page[size]": "10"}}
    watches: list[dict[str, Any]] = [
        everything, {"list": {"filter[tag]": "user:2", "filter[metadata]": '{"progress": 1}'}}, {**everything, "token": 0},
        {"list": {"filter[tag]": "user:2"}, "token": 0}, {"list": {"page[size]": "1"}},
        {"list": {"filter[metadata]": '{"hidden": 2}'}, "token": 0},
    ]  # fmt: skip
    with watching(served, *watches, tokens=(token,)) as events:
        assert events.next() == ("begin", {})
        told = dict(events.next() for _ in watches)
        assert [told[f"{number}-snapshot"]["order"] for number in range(5)] == [
            [other, mine], [other], [mine], [], [other],
        ]  # fmt: skip
        assert (told["5-refused"]["status"], told["5-refused"]["field"]) == (
            403,
            "watches[5].list.filter[metadata]",
        )
        assert told["2-snapshot"]["counts"] == {"PENDING_VERSION": 1}
        assert told["2-snapshot"]["rows"][0]["metadata"] == {"progress": 1}
        served.put_metadata(mine, set_to("progress", 2))
        changed = dict(events.next() for _ in range(2))
        assert set(changed) == {"0-rows", "2-rows"}
        assert changed["2-rows"]["deltas"][0]["operations"] == [set_to("progress", 2)]


def test_lists_and_children_that_cannot_be(served: Served) -> None:
    run_id = served.trigger()
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"list": {"page[size]": "1000"}}, 400, "watches[0].list.page[size]"),
        ({"list": {"page[size]": "ten"}}, 400, "watches[0].list.page[size]"),
        ({"list": {"filter[status]": "GONE"}}, 400, "watches[0].list.filter[status]"),
        ({"list": {"filter[statuses]": "FAILED"}}, 422, "watches[0].list.filter[statuses]"),
        ({"list": {"filter[metadata]": "{"}}, 400, "watches[0].list.filter[metadata]"),
        ({"list": {"filter[tag]": ""}}, 400, "watches[0].list.filter[tag]"),
        ({"list": {"filter[region]": "x"}}, 422, "watches[0].list.filter[region]"),
        ({"list": {}, "run": run_id}, 400, "watches[0]"),
        ({"list": {}, "tag": "a"}, 400, "watches[0]"),
        ({"list": {}, "children": 1}, 400, "watches[0]"),
        ({"children": 1}, 400, "watches[0]"),
        ({"run": run_id, "children": 1, "stream": "s"}, 400, "watches[0]"),
        ({"run": run_id, "children": 1, "streams": {}}, 400, "watches[0]"),
        ({"run": run_id, "children": 0}, 400, "watches[0].children"),
        ({"run": run_id, "children": 101}, 400, "watches[0].children"),
    ]
    for watch, status, field in wrong:
        with watching(served, watch) as events:
            assert events.next() == ("begin", {})
            event, problem = events.next()
            assert (event, problem["status"], problem["field"]) == ("0-refused", status, field), watch
    for wrong_token in (
        token_of(served, {"read": {"runs": ["run_another"]}}),
        token_of(served, {"write": {"metadata": {run_id: True}}}),
    ):
        watches: list[dict[str, Any]] = [{"run": run_id, "children": 1, "token": 0}, {"list": {}, "token": 0}]
        with watching(served, *watches, tokens=(wrong_token,)) as events:
            assert events.next() == ("begin", {})
            told = dict(events.next() for _ in watches)
            assert told["0-refused"]["status"] == 403
            shown = told.get("1-snapshot", {"order": []})["order"]
            assert shown == [] or told["1-refused"]["status"] == 403


def test_watched_streams_that_cannot_be(served: Served, worker: HttpWorker) -> None:
    run_id = worker.take(served.trigger())["id"]
    too_many = {str(number): 0 for number in range(STREAMS_MAX + 1)}
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"run": run_id, "streams": {"s": -1}}, 422, "watches[0].streams.s"),
        ({"run": run_id, "streams": {"": 0}}, 422, "key"),
        ({"run": run_id, "streams": too_many}, 413, "watches[0].streams"),
        ({"run": run_id, "stream": "s", "streams": {}}, 400, "watches[0]"),
        ({"tag": "a", "streams": {}}, 400, "watches[0]"),
        ({"run": run_id, "onlyStreams": True}, 400, "watches[0]"),
    ]
    for watch, status, field in wrong:
        with watching(served, watch) as events:
            assert events.next() == ("begin", {})
            event, problem = events.next()
            assert (event, problem["status"], problem["field"]) == ("0-refused", status, field)
    token = token_of(served, {"read": {"runs": ["run_another"]}})
    with watching(served, {"run": run_id, "streams": {}, "token": 0}, tokens=(token,)) as events:
        assert events.next() == ("begin", {})
        assert events.next()[1]["status"] == 403
