"""Event streams and long polls over HTTP, and what stopping and starting the server does to them."""

import threading
from pathlib import Path
from typing import Any

import pytest
import urllib3

from api.shapes import is_problem, is_run
from support.served import KEY, PATIENCE_SECONDS, HttpWorker, Served, offer, set_to


def test_watching_a_run_to_its_end(served: Served, worker: HttpWorker) -> None:
    """M82, M38 on the wire."""
    run_id = served.trigger(metadata={"n": 0})
    with served.events(f"/api/v1/runs/{run_id}/feed") as events:
        assert events.status == 200
        assert events.response.headers["content-type"].startswith("text/event-stream")
        assert events.response.headers["cache-control"] == "no-store"
        event, frame = events.next()
        assert (event, frame["version"]) == ("snapshot", 0)
        assert is_run(frame["run"])
        run = worker.take(run_id)
        worker.report(run, {"type": "increment", "key": "n", "value": 1})
        frame = events.until(lambda event, data: "operations" in data)
        assert (frame["fromVersion"], frame["version"]) == (0, 1)
        assert frame["operations"] == [{"type": "increment", "key": "n", "value": 1}]
        worker.finish(run, set_to("last", True), output='{"ok":true}')
        frame = events.until(lambda event, data: data.get("run", {}).get("isCompleted") is True)
        assert frame["operations"] == [set_to("last", True)]
        assert (frame["run"]["status"], frame["run"]["output"]) == ("COMPLETED", {"ok": True})
        assert events.next() == ("end", {"version": 2})
        with pytest.raises(StopIteration):
            events.next()


def test_watching_a_run_with_its_children(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    run = worker.take(run_id)
    with served.events(f"/api/v1/runs/{run_id}/feed", children=5) as events:
        first = dict([events.next(), events.next()])
        assert set(first) == {"snapshot", "children-snapshot"}
        child = served.trigger(parentRunId=run_id)
        frame = events.until(lambda event, data: event == "children-rows")
        assert frame["order"] == [child]
        worker.log(run, {"at": 1, "level": "info", "message": "half"})
        assert events.until(lambda event, data: event == "log") == {}
        worker.finish(run)
        worker.finish(worker.take(child))
        frame = events.until(lambda event, data: event == "children-snapshot")
        assert frame["counts"] == {"COMPLETED": 1}
        assert events.next() == ("end", {"version": 0})


@pytest.mark.parametrize("children", ["0", "101", "x", ""])
def test_children_that_cannot_be_watched(served: Served, children: str) -> None:
    answer = served.call("GET", f"/api/v1/runs/{served.trigger()}/feed", query={"children": children})
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "bad_request", "children")


def test_many_watchers_of_one_run_hold_the_same(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    streams = [served.events(f"/api/v1/runs/{run_id}/feed") for _ in range(30)]
    opened = [stream.__enter__() for stream in streams]
    for events in opened:
        events.next()
    run = worker.take(run_id)
    for number in range(20):
        worker.report(run, set_to("n", number))
    worker.finish(run)
    for stream, events in zip(streams, opened, strict=True):
        assert events.until(lambda event, data: event == "end") == {"version": 20}
        stream.__exit__(None, None, None)


def test_the_inbox_of_a_worker(served: Served, worker: HttpWorker) -> None:
    """M42, M66 on the wire."""
    other = HttpWorker(served, "worker_2", offer("child"))
    parent = served.trigger()
    run = worker.take(parent)
    with served.events("/api/v1/workers/worker_1/inbox") as events:
        assert events.next() == ("inbox", {"hello": True})
        served.put_metadata(parent, set_to("a", 1))
        frame = events.until(lambda event, data: "deltas" in data)
        assert frame["deltas"] == [
            {
                "run": parent,
                "fromVersion": 0,
                "version": 1,
                "changes": [{"version": 1, "operations": [set_to("a", 1)]}],
            }
        ]
        child = served.trigger("child", parentRunId=parent)
        other.finish(other.take(child))
        assert events.until(lambda event, data: "finished" in data)["finished"] == [child]
    worker.finish(run)


def test_a_claim_is_a_long_poll(served: Served, worker: HttpWorker) -> None:
    worker.claim(1000)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(worker.claim(1, wait=PATIENCE_SECONDS)))
    thread.start()
    run_id = served.trigger()
    thread.join(PATIENCE_SECONDS)
    assert [run["id"] for run in answers[0]] == [run_id]
    worker.finish(answers[0][0])


def test_a_repeated_claim_over_http_gets_the_same_runs(served: Served, worker: HttpWorker) -> None:
    worker.claim(1000)
    run_id = served.trigger()
    body = {"sequence": worker.next_claim(), "slots": 1, "waitSeconds": 0}
    first = served.post("/api/v1/workers/worker_1/claim", body)
    assert [run["id"] for run in first["runs"]] == [run_id]
    assert served.post("/api/v1/workers/worker_1/claim", body) == first
    worker.finish(first["runs"][0])


@pytest.mark.parametrize("path", ["runs/run_nobody", "batches/batch_nobody"])
def test_watching_nothing_is_not_found_and_no_broken_stream(served: Served, path: str) -> None:
    answer = served.call("GET", f"/api/v1/{path}/feed")
    assert answer.status == 404
    assert is_problem(answer.json)


def test_asking_for_the_head_of_a_stream_does_not_keep_the_connection(
    served: Served, worker: HttpWorker
) -> None:
    """There is no body to wait for: the next request on the connection is answered."""
    run_id = served.trigger()
    with urllib3.HTTPConnectionPool(
        "127.0.0.1", served.port, maxsize=1, block=True, retries=False, timeout=5
    ) as pool:
        headers = {"authorization": f"Bearer {KEY}"}
        assert pool.request("HEAD", f"/api/v1/runs/{run_id}/feed", headers=headers).status in (200, 405)
        assert pool.request("GET", "/api/v1/health").status == 200


@pytest.mark.parametrize("query", [{}, {"children": 5}])
def test_who_hangs_up_is_forgotten(served: Served, worker: HttpWorker, query: dict[str, Any]) -> None:
    """The hub keeps nobody who has gone."""
    run_id = served.trigger()
    with served.events(f"/api/v1/runs/{run_id}/feed", **query) as events:
        events.next()
        assert run_id in served.server.hub.runs
    gone = threading.Event()

    def look() -> None:
        if run_id not in served.server.hub.runs and not served.server.hub.lists:
            gone.set()

    for number in range(200):
        served.put_metadata(run_id, set_to("n", number))
        served.loop.call_soon_threadsafe(look)
        if gone.wait(0.05):
            break
    assert gone.is_set()


# --- stopping and starting -----------------------------------------------------------------------------------


def test_stopping_ends_streams_and_long_polls_cleanly(tmp_path: Path) -> None:
    """Nobody's connection is cut in the middle of an event; the server has ended when `stop` returns."""
    served = Served(tmp_path)
    worker = HttpWorker(served)
    run_id = served.trigger()
    batch = served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}]})["id"]
    worker.claim(10)
    claimed: list[Any] = []
    poll = threading.Thread(target=lambda: claimed.append(worker.claim(1, wait=30)))
    poll.start()
    paths = [
        f"/api/v1/runs/{run_id}/feed",
        f"/api/v1/batches/{batch}/feed",
        "/api/v1/feed/runs",
        "/api/v1/workers/worker_1/inbox",
    ]
    streams = [served.events(path) for path in paths]
    opened = [stream.__enter__() for stream in streams]
    for events in opened:
        events.next()
    served.stop()
    poll.join(PATIENCE_SECONDS)
    assert claimed == [[]]
    for stream, events in zip(streams, opened, strict=True):
        # A chunked body that was cut off would raise something else.
        with pytest.raises(StopIteration):
            events.until(lambda event, data: False)
        stream.__exit__(None, None, None)
    with pytest.raises(urllib3.exceptions.HTTPError):
        served.call("GET", "/api/v1/health")


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    """Acknowledged means stored: runs, documents, batches, logs, answers of repeated requests, claims."""
    served = Served(tmp_path)
    worker = HttpWorker(served)
    done = served.trigger(payload='{"a":1}', metadata={"m": 1}, tags=["t"])
    worker.finish(worker.take(done), set_to("b", 2), output="3")
    running = served.trigger()
    run = worker.take(running)
    worker.report(run, set_to("step", 1))
    worker.log(run, {"at": 1, "level": "info", "message": "hello"})
    header = {"x-trigger-request-idempotency-key": "request 1"}
    queued = served.post("/api/v1/tasks/work/trigger", {}, headers=header)["id"]
    batch = served.post("/api/v3/batches", {"runCount": 2})["id"]
    assert served.add_items(batch, b'{"index":1,"task":"work"}').status == 200
    paths = [
        *(f"/api/v3/runs/{run_id}" for run_id in (done, running, queued)),
        f"/api/v1/runs/{done}/result",
        f"/api/v1/runs/{running}/logs",
        f"/api/v1/runs/{running}/metadata",
        f"/api/v2/batches/{batch}",
        "/api/v1/runs",
    ]
    before = [served.get(path) for path in paths]
    served.stop()
    served.start()
    try:
        after = [served.get(path) for path in paths]
        assert after == before
        again = served.post("/api/v1/tasks/work/trigger", {}, headers=header)
        assert again == {"id": queued, "isCached": False}
        report = {
            "id": running,
            "attempt": 1,
            "sequence": 1,
            "changes": [{"run": running, "operations": [set_to("step", 2)]}],
        }
        answer = served.call("POST", "/api/v1/workers/worker_1/report", {"runs": [report]})
        # The server knows its workers from before, and what they have reported.
        assert [one["code"] for one in answer.json["runs"][0]["refused"]] == ["sequence_reused"]
        worker.register(holding=(running,))
        assert served.get(f"/api/v1/runs/{running}/metadata") == {"metadata": {"step": 1}, "version": 1}
        worker.finish(run)
        newer = served.trigger()
        assert served.get("/api/v1/runs")["data"][0]["id"] == newer
        assert {claimed["id"] for claimed in worker.claim(10)} >= {queued, newer}
    finally:
        served.stop()


def test_a_lost_worker_is_noticed_by_the_server_itself(tmp_path: Path) -> None:
    """Upkeep: nobody has to ask; the watcher of the run is told."""
    served = Served(tmp_path, lease_seconds=2)
    try:
        worker = HttpWorker(served)
        run_id = served.trigger()
        with served.events(f"/api/v1/runs/{run_id}/feed") as events:
            events.next()
            worker.report(*worker.claim())
            frame = events.until(lambda event, data: data.get("run", {}).get("isCompleted") is True)
            assert frame["run"]["error"]["name"] == "WorkerLostError"
    finally:
        served.stop()


def test_late_writes_end_with_the_grace(served: Served, worker: HttpWorker) -> None:
    """M69 on the wire, with the server's clock set forward."""
    run_id = served.trigger()
    worker.finish(worker.take(run_id))
    assert served.put_metadata(run_id, set_to("late", 1))["metadata"] == {"late": 1}
    served.clock.ahead_seconds += 3601
    worker.register()
    answer = served.call("PUT", f"/api/v1/runs/{run_id}/metadata", {"operations": [set_to("late", 2)]})
    assert (answer.status, answer.json["code"]) == (422, "run_finished")
    assert served.get(f"/api/v1/runs/{run_id}/metadata")["metadata"] == {"late": 1}
