"""A run on the wire in each of its states: required fields, optional ones absent and never null (protocol, 1.3, 5.1, 5.7)."""

from typing import Any

import pytest

from api.shapes import is_batch, is_problem, is_result, is_run, is_summary
from support.served import HttpWorker, Served, offer, set_to


@pytest.fixture(scope="module")
def worker(served: Served) -> HttpWorker:
    """A worker whose task is tried twice."""
    return HttpWorker(served, "worker_1", offer("work"), offer("child"))


def checked(served: Served, run_id: str) -> dict[str, Any]:
    """The run as `retrieve` gives it; the list gives the same, less what lists leave out."""
    run = served.get(f"/api/v3/runs/{run_id}")
    assert is_run(run)
    [row] = [row for row in served.get("/api/v1/runs")["data"] if row["id"] == run_id]
    assert is_summary(row)
    assert row.items() <= run.items()
    answer = served.call("GET", f"/api/v1/runs/{run_id}/result")
    if run["isCompleted"]:
        assert is_result(answer.json)
        assert answer.json["ok"] == run["isSuccess"]
    else:
        assert answer.status == 404
        assert is_problem(answer.json)
    return run


def test_from_queue_to_success(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(payload='{"x":[1,2]}', metadata={"m": None}, tags=["k"])
    run = checked(served, run_id)
    assert (run["status"], run["attemptCount"], run["durationMs"]) == ("QUEUED", 0, 0)
    assert (run["payload"], run["metadata"], run["tags"]) == ({"x": [1, 2]}, {"m": None}, ["k"])
    [claimed] = worker.claim()
    assert checked(served, run_id)["status"] == "EXECUTING"
    worker.report(claimed, waiting=True)
    assert checked(served, run_id)["status"] == "WAITING"
    worker.finish(claimed, set_to("done", True), output='{"x":[1,2]}')
    run = checked(served, run_id)
    assert (run["status"], run["output"]) == ("COMPLETED", {"x": [1, 2]})
    assert (run["metadata"], run["metadataVersion"]) == ({"m": None, "done": True}, 1)
    assert served.get(f"/api/v1/runs/{run_id}/result")["outputType"] == "application/json"


def test_failure_and_retry(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    worker.fail(worker.claim()[0], retryAfterMs=60_000)
    run = checked(served, run_id)
    assert (run["status"], run["attemptCount"], run["error"]["message"]) == ("QUEUED", 1, "out of ink")
    assert "delayedUntil" in run
    served.clock.ahead_seconds += 61
    worker.fail(worker.claim()[0], "still out of ink")
    run = checked(served, run_id)
    assert (run["status"], run["attemptCount"]) == ("FAILED", 2)
    assert run["error"] == {"message": "still out of ink", "name": "ValueError"}
    first, second = run["attempts"]
    assert (first["number"], first["end"], first["isCharged"]) == (1, "raised", True)
    assert first["error"]["message"] == "out of ink"
    assert first["claimedAt"] < first["begunAt"] <= first["endedAt"] < second["claimedAt"]
    assert (second["number"], second["error"]["message"]) == (2, "still out of ink")

    assert "output" not in run
    result = served.get(f"/api/v1/runs/{run_id}/result")
    assert (result["ok"], result["error"]["name"]) == (False, "ValueError")


@pytest.mark.parametrize("output", ["null", "[]", '"text"', "0", "false", '"' + "x" * 50_000 + '"'])
def test_outputs_of_every_kind(served: Served, worker: HttpWorker, output: str) -> None:
    """Only payload and output may be null."""
    run_id = served.trigger(payload=output)
    worker.finish(worker.claim()[0], output=output)
    run = checked(served, run_id)
    assert run["payload"] == run["output"]
    assert served.get(f"/api/v1/runs/{run_id}/result")["output"] == output


def test_no_payload_and_no_output_are_absent(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    worker.report(worker.claim()[0], outcome={})
    run = checked(served, run_id)
    assert run["status"] == "COMPLETED"
    assert not {"payload", "output", "error", "batchId", "parentId", "delayedUntil"} & run.keys()


def test_an_output_that_is_no_json_never_makes_a_run_unreadable(served: Served, worker: HttpWorker) -> None:
    """It may be refused when it is reported; what is shown is JSON in any case."""
    run_id = served.trigger()
    [claimed] = worker.claim()
    body = {
        "runs": [{"id": run_id, "attempt": claimed["attempt"], "sequence": 1, "outcome": {"output": "{nope"}}]
    }
    answer = served.call("POST", "/api/v1/workers/worker_1/report", body)
    assert answer.status in (200, 400, 422)
    assert is_run(served.get(f"/api/v3/runs/{run_id}"))
    served.call("POST", "/api/v1/workers/worker_1/report", {"runs": [], "leaving": True})
    worker.register()


def test_relatives_are_whole_summaries(served: Served, worker: HttpWorker) -> None:
    root = served.trigger(metadata={"a": 1})
    child = served.trigger("child", parentRunId=root)
    grandchild = served.trigger("child", parentRunId=child)
    run = checked(served, child)
    assert run["relatedRuns"]["root"]["id"] == run["relatedRuns"]["parent"]["id"] == run["rootId"] == root
    assert run["relatedRuns"]["parent"]["metadata"] == {"a": 1}
    assert [related["id"] for related in run["relatedRuns"]["children"]] == [grandchild]
    assert run["childCounts"] == {"QUEUED": 1}
    assert (run["depth"], run["parentId"]) == (1, root)
    above = checked(served, root)
    assert not {"root", "parent"} & above["relatedRuns"].keys()
    for claimed in worker.claim(10):
        worker.finish(claimed)


def test_very_many_children_are_cut_and_still_counted(served: Served, worker: HttpWorker) -> None:
    root = served.trigger()
    items = [{"task": "child"}] * 150
    batch = served.post("/api/v2/tasks/batch", {"items": items, "parentRunId": root})
    run = served.get(f"/api/v3/runs/{root}")
    assert len(run["relatedRuns"]["children"]) == 100
    assert run["relatedRuns"]["children"][0]["id"] == batch["runs"][-1]
    assert run["childCounts"] == {"QUEUED": 150}
    shown = served.get(f"/api/v2/batches/{batch['id']}")
    assert is_batch(shown)
    assert shown["runs"] == batch["runs"]
    for claimed in worker.claim(200):
        worker.finish(claimed)
    assert served.get(f"/api/v2/batches/{batch['id']}")["status"] == "COMPLETED"
    assert len(served.get(f"/api/v1/batches/{batch['id']}/results")["items"]) == 150


def test_times_are_utc_and_in_order(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    worker.finish(worker.claim()[0])
    run = checked(served, run_id)
    times = [run[name] for name in ("createdAt", "startedAt", "finishedAt", "updatedAt")]
    assert all(time.endswith("Z") for time in times)
    assert times == sorted(times)
    assert run["durationMs"] >= 0


def test_attempts_under_way_and_with_success(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger()
    assert checked(served, run_id)["attempts"] == []
    [claimed] = worker.claim()
    [attempt] = checked(served, run_id)["attempts"]
    assert attempt.keys() == {"number", "workerId", "claimedAt"}
    worker.finish(claimed)
    [attempt] = checked(served, run_id)["attempts"]
    assert (attempt["number"], attempt["workerId"], attempt["end"]) == (1, "worker_1", "returned")
    assert "isCharged" not in attempt


def test_a_task_that_was_never_offered_is_told_with_one_that_looks_like_it(
    served: Served, worker: HttpWorker
) -> None:
    HttpWorker(served, "worker_similar", offer("handle-upload"))
    answer = served.post("/api/v1/tasks/handle-uplaod/trigger", {})
    assert (answer["queuedReason"], answer["similarTask"]) == ("never_offered", "handle-upload")
    assert "similarTask" not in served.post("/api/v1/tasks/something-else/trigger", {})
    assert "similarTask" not in served.post("/api/v1/tasks/handle-upload/trigger", {})
