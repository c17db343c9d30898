"""The feed of a run that the official JavaScript clients poll (protocol, section 7), and columns that a token leaves out of feeds."""

import json
import threading
import time
from typing import Any

import pytest

from milepost.client.client import Client
from milepost.protocol.tokens import claims_of, sign
from milepost.server import realtime
from support.served import KEY, Answer, HttpWorker, Served, set_to

UP_TO_DATE = {"headers": {"control": "up-to-date"}}


def poll(served: Served, run_id: str, query: str = "offset=-1&log=full", **options: Any) -> Answer:
    answer = served.call("GET", f"/realtime/v1/runs/{run_id}?{query}", **options)
    assert answer.status == 200, answer.body
    assert answer.json[-1] == UP_TO_DATE
    assert answer.headers["electric-handle"] == run_id
    assert ("electric-cursor" if "live=true" in query else "electric-schema") in answer.headers
    return answer


def after(answer: Answer, *, live: bool = True) -> str:
    """The query with which a client goes on."""
    offset, handle = answer.headers["electric-offset"], answer.headers["electric-handle"]
    # Parameters that nobody knows are passed over.
    query = f"cursor=&handle={handle}&log=full&offset={offset}&expired_handle=x&cache-buster=1"
    return query + ("&live=true" if live else "")


def row_of(answer: Answer) -> dict[str, Any]:
    [message, _] = answer.json
    return message["value"]


def test_the_row_of_a_run(served: Served, worker: HttpWorker) -> None:
    options = {"tags": ["a b", 'c"\\d', "e,f"], "metadata": {"n": 1}}
    run_id = served.trigger(
        payload='{"json":{"at":"2024-01-02"}}', payloadType="application/super+json", **options
    )
    answer = poll(served, run_id)
    row = row_of(answer)
    assert row["status"] == "PENDING"
    # As it was received: types that JSON lacks survive so.
    assert (row["payload"], row["payloadType"]) == ('{"json":{"at":"2024-01-02"}}', "application/super+json")
    assert row["runTags"] == '{"a b","c\\"\\\\d","e,f"}'
    assert (row["metadata"], row["metadataType"]) == ('{"n":1}', "application/json")
    assert row["startedAt"] is row["completedAt"] is row["error"] is row["output"] is None
    assert all(value is None or type(value) is str for value in row.values())
    assert set(json.loads(answer.headers["electric-schema"])) == set(row)
    assert len(row["createdAt"]) == len("2026-01-31T10:00:00.000")
    assert answer.json[0]["headers"] == {"operation": "insert"}

    run = worker.take(run_id)
    assert row_of(poll(served, run_id, after(answer)))["status"] == "EXECUTING"
    worker.report(run, waiting=True)
    assert row_of(poll(served, run_id))["status"] == "WAITING_TO_RESUME"
    worker.fail(run, "out of ink")
    row = row_of(poll(served, run_id))
    assert row["status"] == "COMPLETED_WITH_ERRORS"
    assert json.loads(row["error"]) == {
        "type": "BUILT_IN_ERROR",
        "name": "ValueError",
        "message": "out of ink",
        "stackTrace": "",
    }
    assert row["completedAt"] is not None


def test_a_poll_waits_for_whatever_changes(served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger())
    answer = poll(served, run["id"])
    part = {"run": run["id"], "key": 'k"1', "writer": "w", "chunks": [1]}
    changes = [
        lambda: worker.report(run, set_to("n", 1)),
        lambda: served.put_metadata(run["id"], set_to("m", 2)),
        lambda: served.post(
            f"/api/v1/workers/{worker.id}/chunks",
            {"runs": [{"id": run["id"], "attempt": 1, "parts": [part]}]},
        ),
        lambda: worker.finish(run, output='{"a":1}'),
    ]
    for change in changes:
        answers: list[Answer] = []
        thread = threading.Thread(
            target=lambda before=answer, answers=answers: answers.append(
                poll(served, run["id"], after(before))
            )
        )
        thread.start()
        hub = served.server.hub
        while run["id"] not in hub.runs:
            time.sleep(0.001)
        change()
        thread.join(60)
        [answer] = answers
        assert answer.json[0]["headers"] == {"operation": "update"}
    row = row_of(answer)
    assert json.loads(row["metadata"]) == {"n": 1, "m": 2}
    assert (row["status"], row["output"]) == ("COMPLETED_SUCCESSFULLY", '{"a":1}')
    assert row["realtimeStreams"] == '{"k\\"1"}'
    assert served.server.hub.runs == {}


def test_a_quiet_poll(served: Served, worker: HttpWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "POLL_SECONDS", 0.2)
    run_id = served.trigger()
    answer = poll(served, run_id)
    # A tab that is seen again asks without waiting first.
    assert poll(served, run_id, after(answer, live=False)).json == [UP_TO_DATE]
    began = time.monotonic()
    quiet = poll(served, run_id, after(answer))
    assert quiet.json == [UP_TO_DATE]
    assert quiet.headers["electric-offset"] == answer.headers["electric-offset"]
    assert time.monotonic() - began >= 0.2
    # Whoever has lost what it had begins anew, whatever the handle says.
    assert row_of(poll(served, run_id, f"offset=-1&handle={run_id}"))["friendlyId"] == run_id


def test_an_unknown_run_and_a_foreign_token(served: Served, worker: HttpWorker) -> None:
    answer = served.call("GET", "/realtime/v1/runs/run_unknown?offset=-1")
    assert (answer.status, answer.json["code"], answer.headers["x-should-retry"]) == (
        404,
        "run_not_found",
        "false",
    )
    run_id = served.trigger()
    assert served.call("GET", f"/realtime/v1/runs/{run_id}", key=token(["read:runs:run_other"])).status == 403


def token(scopes: list[str], *skipped: str) -> str:
    now = int(time.time())
    claims = claims_of(scopes, now=now, expires_at=now + 60, realtime={"skipColumns": list(skipped)})
    return sign(claims, KEY.encode())


def test_columns_that_are_left_out(served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger(payload='"secret"', metadata={"a": 1}))
    run_id = run["id"]
    answer = poll(served, run_id, "offset=-1&skipColumns=payload,output,friendlyId,createdAt,nothing")
    row = row_of(answer)
    assert {"payload", "output"}.isdisjoint(row)
    # Without these no client can read the row.
    assert {"friendlyId", "createdAt"} <= row.keys()
    assert set(json.loads(answer.headers["electric-schema"])) == set(row)
    bearer = token([f"read:runs:{run_id}"], "payload", "metadata", "error")
    row = row_of(poll(served, run_id, key=bearer))
    assert {"payload", "metadata", "error"}.isdisjoint(row)


def test_our_own_feed_leaves_them_out_too(served: Served, worker: HttpWorker) -> None:
    run = worker.take(served.trigger(payload='"secret"', metadata={"a": 1}))
    run_id = run["id"]
    all_skipped = token([f"read:runs:{run_id}"], "payload", "output", "metadata", "error")
    with served.events(f"/api/v1/runs/{run_id}/feed", key=all_skipped) as events:
        event, snapshot = events.next()
        assert event == "snapshot"
        assert "payload" not in snapshot["run"]
        assert snapshot["run"]["metadata"] == {}
        worker.finish(run, set_to("b", 2), output='"secret"')
        told = ""
        while (event := events.next())[0] != "end":
            told += json.dumps(event)
    assert "COMPLETED" in told
    assert "secret" not in told
    assert '"b"' not in told
    # Nothing is left out for whoever has not asked for that.
    [state] = Client(served.url, KEY).runs.subscribe(run_id)
    assert (state.payload, state.output, state.metadata) == ("secret", "secret", {"a": 1, "b": 2})
