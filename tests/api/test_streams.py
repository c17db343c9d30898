"""Streams over HTTP: what the official clients send and read (vectors 09 to 11), and what a reader sees that comes late, or back."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from milepost.protocol.feed import EventReader
from support.served import KEY, PATIENCE_SECONDS, Answer, HttpWorker, Served

JSON = {"content-type": "application/json"}


@pytest.fixture
def run(served: Served, worker: HttpWorker) -> dict[str, Any]:
    return worker.take(served.trigger())


def add(
    served: Served,
    run: dict[str, Any],
    *chunks: Any,
    first: int = 0,
    key: str = "tokens",
    writer: str = "a",
    end: dict[str, Any] | None = None,
    worker: str = "worker_1",
) -> dict[str, Any]:
    part = {"run": run["id"], "key": key, "writer": writer, "first": first, "chunks": list(chunks)}
    if end is not None:
        part["end"] = end
    body = {"runs": [{"id": run["id"], "attempt": run["attempt"], "parts": [part]}]}
    [reply] = served.post(f"/api/v1/workers/{worker}/chunks", body)["runs"]
    return reply


class Records:
    """A stream as a reader of the official clients sees it."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response
        self.status = response.status
        self._reader = EventReader()
        self._chunks = response.stream(65536)
        self._events: list[tuple[str, Any]] = []
        self.ended: dict[str, Any] | None = None

    def batch(self) -> list[dict[str, Any]]:
        """The records of the next event. Raises StopIteration when the server has ended the stream cleanly."""
        while True:
            while not self._events:
                found = self._reader.feed(next(self._chunks))
                self._events += [(event, json.loads(data)) for event, data in found]
            event, data = self._events.pop(0)
            if event == "batch":
                return data["records"]
            if event == "end":
                self.ended = data

    def rest(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            while True:
                found += self.batch()
        except StopIteration:
            return found


@contextmanager
def reading(served: Served, path: str, **headers: str) -> Iterator[Records]:
    response = served.pool.request(
        "GET",
        served.url + path,
        headers={"authorization": f"Bearer {KEY}", "accept": "text/event-stream", **headers},
        preload_content=False,
        timeout=urllib3.Timeout(PATIENCE_SECONDS),
    )
    try:
        yield Records(response)
    finally:
        response.close()


def values(records: list[dict[str, Any]]) -> list[Any]:
    return [json.loads(record["body"])["data"] for record in records]


def test_a_reader_before_the_first_chunk_and_to_the_end(served: Served, run: dict[str, Any]) -> None:
    with reading(served, f"/realtime/v1/streams/{run['id']}/tokens") as records:
        assert records.response.headers["x-stream-version"] == "v2"
        assert add(served, run, {"a": "é\n"}, "two") == {"id": run["id"], "parts": [{"next": 2}]}
        first, second = records.batch()
        assert (first["seq_num"], second["seq_num"]) == (0, 1)
        assert first["headers"] == []
        assert json.loads(first["body"]) == {"data": {"a": "é\n"}, "id": "0", "attempt": 1}
        assert first["timestamp"] > 1_700_000_000_000
        add(served, run, None, first=2, end={})
        assert values(records.rest()) == [None]
        assert records.ended == {"state": "ended", "next": 3}


def test_readers_begin_where_they_say(served: Served, worker: HttpWorker, run: dict[str, Any]) -> None:
    add(served, run, *range(10), end={"error": "no ink"})
    worker.finish(run)
    path = f"/realtime/v1/streams/{run['id']}/tokens"

    def read(query: str = "", **headers: str) -> list[Any]:
        with reading(served, path + query, **headers) as records:
            found = records.rest()
            assert records.ended == {"state": "failed", "next": 10, "error": "no ink"}
        assert [record["seq_num"] for record in found] == list(range(10 - len(found), 10))
        return values(found)

    assert read() == list(range(10))
    assert read("?start=7") == [7, 8, 9]
    assert read("?start=10") == read("?start=5000") == []
    assert read(**{"last-event-id": "7"}) == [8, 9]
    assert read(**{"last-event-id": "-1"}) == list(range(10))
    # A reader that comes back knows better than the address it was opened with.
    assert read("?start=2", **{"last-event-id": "7"}) == [8, 9]
    assert read(**{"x-trigger-stream-start": "latest"}) == []


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("?start=-1", {}, "start"),
        ("?start=x", {}, "start"),
        ("?start=unread", {}, "start"),
        ("", {"last-event-id": "x"}, "last-event-id"),
        ("", {"last-event-id": "-2"}, "last-event-id"),
        ("", {"last-event-id": "1795440319010-0"}, "last-event-id"),
        ("", {"timeout-seconds": "0"}, "timeout-seconds"),
        ("", {"timeout-seconds": "601"}, "timeout-seconds"),
        ("", {"timeout-seconds": "1.5"}, "timeout-seconds"),
    ],
)
def test_where_nobody_can_begin(
    served: Served, run: dict[str, Any], query: str, headers: dict[str, str], field: str
) -> None:
    answer = served.call("GET", f"/realtime/v1/streams/{run['id']}/tokens{query}", headers=headers)
    assert (answer.status, answer.json["field"]) == (400, field)


def test_unknown_runs_and_keys_that_are_none(served: Served, run: dict[str, Any]) -> None:
    assert served.call("GET", "/realtime/v1/streams/run_unknown/tokens").status == 404
    assert served.call("GET", "/api/v1/runs/run_unknown/streams").status == 404
    for key in ("x" * 257, "a%0Ab"):
        assert served.call("GET", f"/realtime/v1/streams/{run['id']}/{key}").status in (400, 422), key
    for key in ("", "x" * 257, "a\nb"):
        [reply] = add(served, run, 1, key=key)["parts"]
        assert reply["code"] == "invalid_request", key
    assert served.get(f"/api/v1/runs/{run['id']}/streams") == {"data": []}
    for key in ("a/b", "ü ?", "x" * 256, "input/x"):
        assert add(served, run, 1, key=key, end={})["parts"] == [{"next": 1}]
        quoted = "".join(f"%{byte:02X}" for byte in key.encode())
        with reading(served, f"/realtime/v1/streams/{run['id']}/{quoted}") as records:
            assert values(records.rest()) == [1]
    with reading(served, f"/realtime/v1/streams/{run['id']}/a/b") as records:
        assert values(records.rest()) == [1]
    found = served.get(f"/api/v1/runs/{run['id']}/streams")["data"]
    assert [(one["key"], one["chunkCount"], one["state"]) for one in found] == [
        (key, 1, "ended") for key in ("a/b", "ü ?", "x" * 256, "input/x")
    ]


def test_a_bad_part_harms_no_other(served: Served, run: dict[str, Any]) -> None:
    good = {"run": run["id"], "key": "good", "writer": "a", "chunks": [1]}
    parts = [
        {**good, "key": "bad", "chunks": ["x" * (1024 * 1024)]},
        good,
        {**good, "key": "bad", "first": -1},
        {**good, "key": "bad", "writer": ""},
    ]
    body = {"runs": [{"id": run["id"], "attempt": 1, "parts": parts}]}
    [reply] = served.post("/api/v1/workers/worker_1/chunks", body)["runs"]
    assert [one.get("code") for one in reply["parts"]] == [
        "too_large",
        None,
        "invalid_request",
        "invalid_request",
    ]
    assert "1,048,578 bytes, the limit of a chunk is 1,048,576" in reply["parts"][0]["message"]


def test_chunks_with_line_feeds_between_their_parts(served: Served, run: dict[str, Any]) -> None:
    chunks = '[{\n"a"\r\n:\n1},\n2]'
    part = f'{{"run":"{run["id"]}","key":"k","writer":"a","chunks":{chunks},"end":{{}}}}'
    raw = f'{{"runs":[{{"id":"{run["id"]}","attempt":1,"parts":[{part}]}}]}}'.encode()
    assert served.call("POST", "/api/v1/workers/worker_1/chunks", raw).status == 200
    with reading(served, f"/realtime/v1/streams/{run['id']}/k") as records:
        assert values(records.rest()) == [{"a": 1}, 2]


def test_a_quiet_reader_is_let_go_after_its_time(served: Served, run: dict[str, Any]) -> None:
    add(served, run, 1)
    with reading(served, f"/realtime/v1/streams/{run['id']}/tokens", **{"timeout-seconds": "1"}) as records:
        assert values(records.rest()) == [1]
        assert records.ended is None


def test_a_run_that_ends_ends_its_streams(served: Served, worker: HttpWorker, run: dict[str, Any]) -> None:
    with reading(served, f"/realtime/v1/streams/{run['id']}/never") as records:
        worker.finish(run)
        assert records.rest() == []
        assert records.ended == {"state": "ended", "next": 0}


def test_a_server_that_stops_does_not_pretend_that_the_stream_has_ended(tmp_path: Path) -> None:
    served = Served(tmp_path)
    worker = HttpWorker(served)
    run = worker.take(served.trigger())
    add(served, run, 1)
    with reading(served, f"/realtime/v1/streams/{run['id']}/tokens") as records:
        assert values(records.batch()) == [1]
        served.stop()
        found = EventReader()
        events = [event for chunk in records.response.stream() for event in found.feed(chunk)]
        assert [event for event, _ in events] == ["error"]
    served.start()
    try:
        worker.register(holding=(run["id"],))
        add(served, run, 2, first=1, end={})
        with reading(served, f"/realtime/v1/streams/{run['id']}/tokens", **{"last-event-id": "0"}) as records:
            assert values(records.rest()) == [2]
    finally:
        served.stop()


def test_a_thousand_reconnects_give_the_same_sequence(served: Served, run: dict[str, Any]) -> None:
    """Fault 16: none missing, none twice, whoever comes back wherever."""
    chance = random.Random(16)
    path = f"/realtime/v1/streams/{run['id']}/tokens"
    written = 0
    for _ in range(100):
        count = chance.randrange(1, 30)
        add(served, run, *range(written, written + count), first=written)
        written += count
    add(served, run, first=written, end={})
    seen: list[int] = []
    last = "-1"
    connections = 0
    while True:
        connections += 1
        with reading(served, path, **{"last-event-id": last}) as records:
            try:
                for _ in range(chance.randrange(1, 3)):
                    batch = records.batch()
                    # Cut off in the middle of what has arrived, as if the rest had been lost.
                    taken = batch[: chance.randrange(1, 4)]
                    seen += values(taken)
                    last = str(taken[-1]["seq_num"])
                    if taken != batch:
                        break
            except StopIteration:
                break
    assert seen == list(range(written))
    assert connections > 500


# --- writers of other languages (vectors 10) --------------------------------------------------------------------


def test_the_official_client_writes(served: Served, run: dict[str, Any]) -> None:
    path = f"/realtime/v1/streams/{run['id']}/self/out"
    answer = served.call("PUT", path, headers=JSON)
    assert (answer.status, answer.json) == (202, {"version": "v1"})
    assert [one["key"] for one in served.get(f"/api/v1/runs/{run['id']}/streams")["data"]] == ["out"]
    client = {**JSON, "x-client-id": "8fbef32a", "x-stream-version": "v1"}
    body = iter([b'{"t":"a\\nb"}\n"s', b'"\n', b"3\n"])
    answer = served.call("POST", path, body, headers={**client, "x-resume-from-chunk": "0"}, chunked=True)
    assert answer.status == 200
    with reading(served, f"/realtime/v1/streams/{run['id']}/out") as records:
        found = records.batch()
        while len(found) < 3:
            found += records.batch()
        assert values(found) == [{"t": "a\nb"}, "s", 3]
    assert served.call("HEAD", path, headers=client).headers["x-last-chunk-index"] == "2"
    # It did not hear the answer, and sends all of it again.
    answer = served.call(
        "POST", path, b'{"t":"a\\nb"}\n"s"\n3', headers={**client, "x-resume-from-chunk": "0"}
    )
    assert answer.status == 200
    assert (
        served.call("HEAD", path, headers={**client, "x-client-id": "other"}).headers["x-last-chunk-index"]
        == "-1"
    )
    for _ in range(2):
        answer = served.call("POST", f"{path}/append", b"raw text part", headers={**JSON, "x-part-id": "p1"})
        assert (answer.status, answer.json) == (200, {"ok": True})
    with reading(served, f"/realtime/v1/streams/{run['id']}/out?start=3") as records:
        assert values(records.batch()) == ["raw text part"]


def test_other_content_under_an_id_that_was_used_is_refused(served: Served, run: dict[str, Any]) -> None:
    """The same content is answered as it was at first, and stored once."""
    base = f"/realtime/v1/streams/{run['id']}"

    def post(path: str, body: Any, **headers: str) -> Answer:
        return served.call("POST", base + path, body, headers={**JSON, **headers})

    def refused(answer: Answer, header: str) -> None:
        assert (answer.status, answer.json["code"], answer.json["field"]) == (409, "conflict", header)
        assert header in answer.json["error"]

    request_id = "x-trigger-request-idempotency-key"
    for path, header, first, other in [
        ("/input/approvals", request_id, {"data": 1}, {"data": 2}),
        ("/self/parts/append", "x-part-id", b"one", b"two"),
        ("/self/parts/append", request_id, b"three", b"four"),
        ("/self/lines", "x-client-id", b"1\n2\n3\n", b"1\n4\n3\n"),
    ]:
        for _ in range(2):
            assert post(path, first, **{header: "r1"}).status == 200
        refused(post(path, other, **{header: "r1"}), header)
        assert post(path, first, **{header: "r1"}).status == 200
    # Another one that is shorter, or longer, begins otherwise, or comes in several portions; and the id of those that give none.
    client = {"x-client-id": "r1"}
    for lines in (b"1\n2\n", b"2\n1\n3\n", b"1\n2\n4\n5\n", b"", iter([b"1\n", b"2\n", b"4\n"])):
        answer = served.call(
            "POST",
            f"{base}/self/lines",
            lines,
            headers={**JSON, **client},
            chunked=not isinstance(lines, bytes),
        )
        refused(answer, "x-client-id")
    assert post("/self/lines", iter([b"1\n2", b"\n", b"3"]), **client).status == 200
    assert post("/self/log", b"1\n").status == 200
    refused(post("/self/log", b"2\n"), "x-client-id")
    # One that broke off goes on with the rest, or with all of it.
    assert post("/self/lines", b"4", **client, **{"x-resume-from-chunk": "3"}).status == 409
    for path, expected in [
        ("/lines", [1, 2, 3]),
        ("/parts", ["one", "three"]),
        ("/log", [1]),
        ("/input/approvals", ["1"]),
    ]:
        with reading(served, base + path) as records:
            assert values(records.batch()) == expected


def test_what_an_outside_writer_may_not_do(served: Served, worker: HttpWorker, run: dict[str, Any]) -> None:
    path = f"/realtime/v1/streams/{run['id']}/self/out"

    def post(body: bytes, where: str = path, **headers: str) -> Answer:
        return served.call("POST", where, body, headers={**JSON, **headers})

    assert post(b"{").status == 422
    assert post(b'"' + b"x" * (1024 * 1024) + b'"').status == 413
    assert post(b"1\n", **{"x-resume-from-chunk": "7"}).status == 409
    assert post(b"1\n", **{"x-resume-from-chunk": "x"}).status == 400
    assert post(b"1\n", f"/realtime/v1/streams/{run['id']}/other/out").status == 400
    assert post(b"\xff", f"{path}/append").status == 400
    assert post(b"1\n", "/realtime/v1/streams/run_unknown/self/out").status == 404
    assert served.call("HEAD", "/realtime/v1/streams/run_unknown/self/out").status == 404
    child = worker.take(served.trigger(parentRunId=run["id"]))
    assert post(b"1\n", f"/realtime/v1/streams/{child['id']}/parent/up").status == 200
    assert post(b"2\n", f"/realtime/v1/streams/{child['id']}/root/up", **{"x-client-id": "b"}).status == 200
    with reading(served, f"/realtime/v1/streams/{run['id']}/up") as records:
        assert values(records.rest()) == [1, 2]
    worker.finish(run)
    answer = served.call("PUT", path, headers=JSON)
    assert (answer.status, "finished" in answer.json["error"]) == (400, True)


# --- into a run (vectors 11) ------------------------------------------------------------------------------------


def test_input_of_a_run(served: Served, worker: HttpWorker, run: dict[str, Any]) -> None:
    path = f"/realtime/v1/streams/{run['id']}/input/approvals"
    once = {"x-trigger-request-idempotency-key": "r1"}
    for _ in range(2):
        assert served.post(path, {"data": {"approved": True}}, headers=once) == {"ok": True}
    served.post(path, {"data": None})
    with reading(served, path, **{"timeout-seconds": "600"}) as records:
        assert list(map(json.loads, values(records.batch()))) == [{"approved": True}, None]
        served.post(path, {"data": 3})
        assert values(records.batch()) == ["3"]
        # It is no stream of the run's own.
        assert served.get(f"/api/v1/runs/{run['id']}/streams") == {"data": []}
        worker.finish(run)
        assert records.rest() == []
    assert served.call("POST", path, {"data": 1}).status == 400
    assert served.call("POST", path, {"data": "x" * (2 * 1024 * 1024)}).status == 413
    assert served.call("POST", path, {}).status == 400
    assert served.call("POST", "/realtime/v1/streams/run_unknown/input/a", {"data": 1}).status == 404


def test_input_that_was_not_taken(served: Served, worker: HttpWorker, run: dict[str, Any]) -> None:
    path = f"/realtime/v1/streams/{run['id']}/input/approvals"
    for number in range(4):
        assert served.call("POST", path, {"data": number}).json == {"ok": True}

    def take(first: int, count: int) -> Any:
        part = {"run": run["id"], "key": "approvals", "writer": "1-x", "first": first, "chunks": [0] * count}
        body = {"runs": [{"id": run["id"], "attempt": 1, "parts": [part | {"taken": True}]}]}
        return served.post(f"/api/v1/workers/{worker.id}/chunks", body)["runs"][0]["parts"]

    def unread(**headers: str) -> list[int]:
        with reading(served, path + "?start=unread", **headers) as records:
            return [json.loads(value) for value in values(records.batch())]

    assert unread() == [0, 1, 2, 3]
    assert take(0, 1) == [{"next": 1}]
    assert unread() == [1, 2, 3]
    # A request that is sent again counts once; and so does one that brings more.
    assert take(0, 1) == [{"next": 1}]
    assert take(0, 3) == [{"next": 3}]
    assert unread() == [3]
    # A reader that comes back knows better.
    assert unread(**{"last-event-id": "0"}) == [1, 2, 3]
    # Nobody sees what is counted.
    assert served.get(f"/api/v1/runs/{run['id']}/streams") == {"data": []}
    with reading(served, f"/realtime/v1/streams/{run['id']}/approvals") as records:
        worker.finish(run)
        assert records.rest() == []
