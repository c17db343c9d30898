"""Every row of the table of endpoints answers as the table says."""

from collections.abc import Callable
from typing import Any

import pytest

from api.shapes import (
    anything,
    boolean,
    has,
    is_batch,
    is_problem,
    is_result,
    is_run,
    is_summary,
    mapping,
    number,
    text,
)
from milepost.protocol.endpoints import ENDPOINTS, Endpoint
from support.served import Answer, HttpWorker, Served, set_to

_BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}


class Calls:
    """One good call of each endpoint, with the check of its answer."""

    def __init__(self, served: Served, worker: HttpWorker) -> None:
        self.served = served
        self.worker = worker

    def call(self, endpoint: Endpoint, path: str, body: Any = None, **options: Any) -> Answer:
        return self.served.call(endpoint.method, path, body, **options)

    def health(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path, key=None)
        assert answer.json["status"] == "ok"
        assert text(answer.json["version"])

    def ready(self, endpoint: Endpoint) -> None:
        assert self.call(endpoint, endpoint.path, key=None).json == {"status": "ready"}

    def metrics(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path)
        assert answer.headers["content-type"].startswith("text/plain")
        assert b"\nmilepost_ready " in answer.body

    def openapi(self, endpoint: Endpoint) -> None:
        assert self.call(endpoint, endpoint.path).json["openapi"].startswith("3.1")

    def create_sign_in_link(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path)
        assert has(answer.json, {"path": text, "expiresInSeconds": number}, {})

    def token_claims(self, endpoint: Endpoint) -> None:
        assert self.call(endpoint, endpoint.path).json == {"sub": "env_default", "pub": True}

    def create_public_token(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        answer = self.call(endpoint, endpoint.path, {"scopes": [f"read:runs:{run_id}"]})
        assert self.served.call("GET", f"/api/v3/runs/{run_id}", key=answer.json["token"]).status == 200

    def trigger(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, "/api/v1/tasks/work/trigger", {"payload": "1"})
        assert answer.status == endpoint.status
        assert has(answer.json, {"id": text, "isCached": boolean}, {})
        assert answer.json["id"].startswith("run_")

    def trigger_several(self, endpoint: Endpoint) -> None:
        triggers = [{"task": "work", "request": {"payload": "1"}}, {"task": "", "request": {}}]
        answer = self.call(endpoint, endpoint.path, {"triggers": triggers})
        assert answer.status == endpoint.status
        made, refused = answer.json["answers"]
        assert has(made, {"status": number, "body": anything, "token": text}, {})
        assert has(
            made["body"], {"id": text, "isCached": boolean}, {"queuedReason": text, "similarTask": text}
        )
        assert refused["status"] == 422
        assert is_problem(refused["body"])

    def trigger_batch(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path, {"items": [{"task": "work"}, {"task": "work"}]})
        assert answer.status == endpoint.status
        assert answer.json["runCount"] == len(answer.json["runs"]) == 2

    def create_batch(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path, {"runCount": 2})
        assert answer.status == endpoint.status
        assert has(answer.json, {"id": text, "runCount": number, "isCached": boolean}, {})

    def add_batch_items(self, endpoint: Endpoint) -> None:
        batch = self.served.post("/api/v3/batches", {"runCount": 2})["id"]
        lines = b'{"index":0,"task":"work"}\n{"index":1,"task":"work","payload":"1"}\n'
        answer = self.served.add_items(batch, lines)
        assert answer.status == endpoint.status
        assert answer.json == {
            "id": batch,
            "itemsAccepted": 2,
            "itemsDeduplicated": 0,
            "sealed": True,
            "enqueuedCount": 2,
            "expectedCount": 2,
            "runs": self.served.get(f"/api/v2/batches/{batch}")["runs"],
        }

    def _batch(self) -> str:
        return self.served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}]})["id"]

    def reset_idempotency_key(self, endpoint: Endpoint) -> None:
        self.served.trigger(idempotencyKey="to-reset")
        answer = self.call(endpoint, "/api/v1/idempotencyKeys/to-reset/reset", {"taskIdentifier": "work"})
        assert answer.json == {"id": "to-reset"}

    def retrieve_batch(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/api/v2/batches/{self._batch()}")
        assert answer.status == endpoint.status
        assert is_batch(answer.json)

    def batch_results(self, endpoint: Endpoint) -> None:
        batch = self._batch()
        for run in self.worker.claim(1000):
            self.worker.finish(run, output='{"a":1}')
        answer = self.call(endpoint, f"/api/v1/batches/{batch}/results")
        assert answer.json["id"] == batch
        assert [is_result(item) for item in answer.json["items"]] == [True]

    def batch_feed(self, endpoint: Endpoint) -> None:
        with self.served.events(f"/api/v1/batches/{self._batch()}/feed") as events:
            assert events.next()[0] == "batch"

    def retrieve_run(self, endpoint: Endpoint) -> None:
        assert is_run(self.call(endpoint, f"/api/v3/runs/{self.served.trigger()}").json)

    def list_runs(self, endpoint: Endpoint) -> None:
        self.served.trigger()
        answer = self.call(endpoint, endpoint.path)
        assert all(map(is_summary, answer.json["data"]))
        assert has(answer.json["pagination"], {}, {"next": text, "previous": text})

    def run_result(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        self.worker.finish(self.worker.take(run_id), output='{"a":1}')
        answer = self.call(endpoint, f"/api/v1/runs/{run_id}/result")
        assert answer.json == {
            "ok": True,
            "id": run_id,
            "taskIdentifier": "work",
            "output": '{"a":1}',
            "outputType": "application/json",
        }

    def run_log(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        line = {"at": 1, "level": "info", "message": "hello"}
        self.worker.log(self.worker.take(run_id), line)
        answer = self.call(endpoint, f"/api/v1/runs/{run_id}/logs")
        assert answer.json["data"] == [line]
        assert answer.json["cursor"] > 0

    def run_tree(self, endpoint: Endpoint) -> None:
        parent = self.worker.take(self.served.trigger())
        child = self.served.trigger(parentRunId=parent["id"])
        found = self.call(endpoint, f"/api/v1/runs/{parent['id']}/tree").json
        assert [(run["id"], run.get("parentId"), run["status"], run["depth"]) for run in found["data"]] == [
            (parent["id"], None, "EXECUTING", 0),
            (child, parent["id"], "QUEUED", 1),
        ]
        assert [attempt["number"] for attempt in found["data"][0]["attempts"]] == [1]
        assert found["data"][1]["attempts"] == []
        cut = self.served.get(f"/api/v1/runs/{parent['id']}/tree", **{"page[size]": 1})
        assert (len(cut["data"]), cut["isCut"]) == (1, True)

    def run_feed(self, endpoint: Endpoint) -> None:
        with self.served.events(f"/api/v1/runs/{self.served.trigger()}/feed") as events:
            event, frame = events.next()
        assert event == "snapshot"
        assert is_run(frame["run"])

    def realtime_run(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/realtime/v1/runs/{self.served.trigger()}?offset=-1")
        assert answer.status == endpoint.status
        [row, up_to_date] = answer.json
        assert row["value"]["status"] == "PENDING"
        assert up_to_date == {"headers": {"control": "up-to-date"}}

    def realtime_runs(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(tags=["of realtime"])
        answer = self.call(endpoint, f"{endpoint.path}?offset=-1&tags=of%20realtime")
        assert answer.status == endpoint.status
        [row, _] = answer.json
        assert row["value"]["friendlyId"] == run_id

    def realtime_batch(self, endpoint: Endpoint) -> None:
        made = self.served.post("/api/v2/tasks/batch", {"items": [{"task": "work"}] * 2})
        answer = self.call(endpoint, f"/realtime/v1/batches/{made['id']}?offset=-1")
        assert answer.status == endpoint.status
        assert [row["key"] for row in answer.json[:-1]] == made["runs"]

    def runs_feed(self, endpoint: Endpoint) -> None:
        self.served.trigger()
        with self.served.events(endpoint.path) as events:
            event, frame = events.next()
        assert event == "snapshot"
        assert all(map(is_summary, frame["rows"]))
        assert [row["id"] for row in frame["rows"]] == frame["order"]

    def matching_runs_feed(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(metadata={"feed": "matching"})
        query = {"filter[metadata]": '{"feed": "matching"}'}
        with self.served.events(endpoint.path, **query) as events:
            assert events.next() == ("begin", {})
            event, frame = events.next()
            assert event == "run"
            assert is_summary(frame["run"])
            assert frame["run"]["id"] == run_id
            assert events.next() == ("present", {})

    def watch_feed(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        self.worker.finish(self.worker.take(run_id))
        answer = self.call(endpoint, endpoint.path, {"watches": [{"run": run_id}]})
        assert answer.status == endpoint.status
        names = [line for line in answer.body.splitlines() if line.startswith(b"event: ")]
        assert names == [b"event: begin", b"event: 0-snapshot", b"event: 0-end"]

    def get_metadata(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(metadata={"a": 1})
        assert self.call(endpoint, f"/api/v1/runs/{run_id}/metadata").json == {
            "metadata": {"a": 1},
            "version": 0,
        }

    def metadata_history(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        self.worker.report(self.worker.take(run_id), set_to("a", 1))
        self.served.put_metadata(run_id, set_to("b", 2))
        answer = self.call(endpoint, f"/api/v1/runs/{run_id}/metadata/history").json
        assert [change.pop("at") > 0 for change in answer["data"]] == [True, True]
        assert answer == {
            "data": [
                {"version": 1, "operations": [set_to("a", 1)], "writer": {"run": run_id, "attempt": 1}},
                {"version": 2, "operations": [set_to("b", 2)], "writer": None},
            ],
            "earliestVersion": 0,
        }

    def cancel_run(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        assert self.call(endpoint, f"/api/v2/runs/{run_id}/cancel").json == {"id": run_id}
        assert self.served.get(f"/api/v3/runs/{run_id}")["status"] == "CANCELED"
        assert self.call(endpoint, f"/api/v2/runs/{run_id}/cancel").json == {"id": run_id}

    def replay_run(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(payload='{"a":1}', metadata={"m": 1}, tags=["t"])
        self.worker.report(self.worker.take(run_id), set_to("m", 2))
        again = self.call(endpoint, f"/api/v1/runs/{run_id}/replay").json
        assert again["taskIdentifier"] == "work"
        run = self.served.get(f"/api/v3/runs/{again['id']}")
        assert (run["payload"], run["metadata"], run["tags"]) == ({"a": 1}, {"m": 1}, ["t"])
        assert run["replayOf"] == run_id
        other = self.call(endpoint, f"/api/v1/runs/{run_id}/replay", {"payload": '{"b":2}', "tags": "u"}).json
        run = self.served.get(f"/api/v3/runs/{other['id']}")
        assert (run["payload"], run["metadata"], run["tags"]) == ({"b": 2}, {"m": 1}, ["u"])

    def reschedule_run(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(delay="1h")
        at = "2035-01-31T12:00:00Z"
        run = self.call(endpoint, f"/api/v1/runs/{run_id}/reschedule", {"delay": at}).json
        assert (run["status"], run["delayedUntil"]) == ("DELAYED", at)
        self.call(endpoint, f"/api/v1/runs/{run_id}/reschedule", {"delay": "0s"})
        assert self.worker.take(run_id)["id"] == run_id

    def add_tags(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(tags=["a"])
        assert self.call(endpoint, f"/api/v1/runs/{run_id}/tags", {"tags": ["b", "a"]}).json["tags"] == [
            "a",
            "b",
        ]
        assert self.served.get(f"/api/v3/runs/{run_id}")["tags"] == ["a", "b"]

    def _token(self, **body: Any) -> Any:
        return self.served.post("/api/v1/waitpoints/tokens", body)

    def create_token(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path, {"timeout": "1h", "tags": "t", "idempotencyKey": "one"})
        assert has(answer.json, {"id": text, "isCached": boolean, "url": text}, {})
        assert answer.headers["x-trigger-jwt"]
        again = self._token(idempotencyKey="one")
        assert (again["id"], again["isCached"]) == (answer.json["id"], True)

    def retrieve_token(self, endpoint: Endpoint) -> None:
        token = self._token(timeout="1h", tags=["t"])
        found = self.call(endpoint, f"/api/v1/waitpoints/tokens/{token['id']}").json
        assert has(
            found,
            {"id": text, "url": text, "status": text, "tags": anything, "createdAt": text, "timeoutAt": text},
            {},
        )
        assert (found["status"], found["url"], found["tags"]) == ("WAITING", token["url"], ["t"])

    def list_tokens(self, endpoint: Endpoint) -> None:
        ids = [self._token(tags=["listed"])["id"] for _ in range(3)]
        self.served.post(f"/api/v1/waitpoints/tokens/{ids[1]}/complete", {"data": 1})
        query: dict[str, Any] = {"filter[tags]": "listed"}
        first = self.call(endpoint, endpoint.path, query={**query, "page[size]": 2}).json
        assert [token["id"] for token in first["data"]] == [ids[2], ids[1]]
        after = first["pagination"]["next"]
        rest = self.call(endpoint, endpoint.path, query={**query, "page[after]": after}).json
        assert [token["id"] for token in rest["data"]] == [ids[0]]
        done = self.call(endpoint, endpoint.path, query={**query, "filter[status]": "COMPLETED"}).json
        assert [token["id"] for token in done["data"]] == [ids[1]]

    def complete_token(self, endpoint: Endpoint) -> None:
        path = f"/api/v1/waitpoints/tokens/{self._token()['id']}/complete"
        assert self.call(endpoint, path, {"data": {"a": 1}}).json == {
            "success": True,
            "isFirst": True,
            "status": "COMPLETED",
        }
        assert self.call(endpoint, path, {"data": 2}).json["isFirst"] is False

    def call_back(self, endpoint: Endpoint) -> None:
        token = self._token()
        path = token["url"].partition("/api/")[2]
        assert self.call(endpoint, f"/api/{path}", {"a": 1}, key=None).json["isFirst"] is True
        found = self.served.get(f"/api/v1/waitpoints/tokens/{token['id']}")
        assert (found["output"], found["outputType"]) == ('{"a": 1}', "application/json")
        assert self.call(endpoint, f"/api/{path[:-1]}_", {"a": 1}, key=None).status == 401

    def _holding(self) -> dict[str, str]:
        run = self.worker.take(self.served.trigger())
        return {"x-milepost-attempt": f"{run['id']}:{run['attempt']}"}

    def await_waitpoint(self, endpoint: Endpoint) -> None:
        path = f"/api/v1/waitpoints/{self._token()['id']}/wait"
        assert self.call(endpoint, path).status == 400
        assert self.call(endpoint, path, headers=self._holding()).json["status"] == "WAITING"

    def wait_for_time(self, endpoint: Endpoint) -> None:
        headers, body = self._holding(), {"until": "1h", "place": "for/1h/0"}
        first = self.call(endpoint, endpoint.path, body, headers=headers).json
        assert has(first, {"id": text, "status": text}, {})
        assert self.call(endpoint, endpoint.path, body, headers=headers).json == first

    def put_metadata(self, endpoint: Endpoint) -> None:
        path = f"/api/v1/runs/{self.served.trigger()}/metadata"
        answer = self.call(endpoint, path, {"operations": [set_to("a", 1)]})
        assert answer.json == {"metadata": {"a": 1}, "version": 1}

    def register_worker(self, endpoint: Endpoint) -> None:
        answer = self.worker.register()
        assert has(
            answer,
            dict.fromkeys(
                ["leaseSeconds", "heartbeatSeconds", "metadataSizeMax", "logBytesMax", "stopGraceSeconds"],
                number,
            ),
            {},
        )
        assert answer["metadataSizeMax"] == 262_144
        assert answer["heartbeatSeconds"] < answer["leaseSeconds"]

    def claim_runs(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger(payload='{"a":1}', metadata={"m": 1}, tags=["t"])
        claimed = self.worker.take(run_id)
        assert (claimed["task"], claimed["attempt"], claimed["payload"]) == ("work", 1, '{"a":1}')
        assert (claimed["metadata"], claimed["tags"]) == ({"m": 1}, ["t"])

    def report(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        claimed = self.worker.take(run_id)
        reply = self.worker.finish(claimed, set_to("a", 1))
        assert reply == {"id": run_id}

    def report_log(self, endpoint: Endpoint) -> None:
        run = self.worker.take(self.served.trigger())
        part = {
            "id": run["id"],
            "attempt": 1,
            "sequence": 1,
            "lines": [{"at": 1, "level": "info", "message": "m"}],
        }
        for _ in range(2):
            assert self.call(endpoint, f"/api/v1/workers/{self.worker.id}/log", {"runs": [part]}).json == {}
        assert len(self.served.get(f"/api/v1/runs/{run['id']}/logs")["data"]) == 1

    def report_chunks(self, endpoint: Endpoint) -> None:
        run = self.worker.take(self.served.trigger())
        part = {"run": run["id"], "key": "k", "writer": "w", "chunks": [1, "x"]}
        body = {"runs": [{"id": run["id"], "attempt": 1, "parts": [part]}]}
        for _ in range(2):
            answer = self.call(endpoint, f"/api/v1/workers/{self.worker.id}/chunks", body)
            assert answer.json == {"runs": [{"id": run["id"], "parts": [{"next": 2}]}]}

    def _written(self) -> str:
        """A run that has finished, with one stream of one chunk."""
        run = self.worker.take(self.served.trigger())
        path = f"/realtime/v1/streams/{run['id']}/self/k/append"
        assert self.served.call("POST", path, b"hello").status == 200
        self.worker.finish(run)
        return run["id"]

    def _schedule(self) -> str:
        return self.served.post("/api/v1/schedules", {"task": "work", "cron": "0 5 * * *"})["id"]

    def _is_schedule(self, found: Any) -> bool:
        generator = {"type": text, "expression": text, "description": text}
        fields = {
            "id": text, "type": text, "task": text, "active": boolean, "timezone": text, "createdAt": text, "updatedAt": text,
            "generator": lambda value: has(value, generator, {}),
            "environments": lambda value: value == [{"id": "env_default", "type": "PRODUCTION"}],
        }  # fmt: skip
        return has(found, fields, {"nextRun": text, "upcoming": anything, "queuedReason": text})

    def create_schedule(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path, {"task": "work", "every": "5m"})
        assert answer.status == endpoint.status
        assert self._is_schedule(answer.json)
        assert answer.json["generator"]["expression"] == "5m"
        assert len(answer.json["upcoming"]) == 5

    def list_schedules(self, endpoint: Endpoint) -> None:
        made = [self._schedule() for _ in range(3)]
        answer = self.call(endpoint, f"{endpoint.path}?perPage=2&page=1")
        assert all(map(self._is_schedule, answer.json["data"]))
        assert [found["id"] for found in answer.json["data"]] == made[:0:-1]
        count = answer.json["pagination"]["count"]
        assert answer.json["pagination"] == {"currentPage": 1, "totalPages": (count + 1) // 2, "count": count}

    def retrieve_schedule(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/api/v1/schedules/{self._schedule()}?upcoming=7")
        assert self._is_schedule(answer.json)
        assert len(answer.json["upcoming"]) == 7
        assert answer.json["upcoming"][0] == answer.json["nextRun"]

    def update_schedule(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/api/v1/schedules/{self._schedule()}", {"cron": "0 6 * * *"})
        assert answer.json["generator"]["expression"] == "0 6 * * *"

    def deactivate_schedule(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/api/v1/schedules/{self._schedule()}/deactivate")
        assert answer.json["active"] is False
        assert "nextRun" not in answer.json

    def activate_schedule(self, endpoint: Endpoint) -> None:
        schedule = self._schedule()
        self.served.call("POST", f"/api/v1/schedules/{schedule}/deactivate")
        assert self.call(endpoint, f"/api/v1/schedules/{schedule}/activate").json["active"] is True

    def delete_schedule(self, endpoint: Endpoint) -> None:
        schedule = self._schedule()
        assert self.call(endpoint, f"/api/v1/schedules/{schedule}").json == {"id": schedule}
        assert self.served.call("GET", f"/api/v1/schedules/{schedule}").status == 404

    def list_timezones(self, endpoint: Endpoint) -> None:
        assert "Europe/Berlin" in self.call(endpoint, endpoint.path).json["timezones"]

    def delete_run(self, endpoint: Endpoint) -> None:
        run_id = self.served.trigger()
        self.worker.finish(self.worker.take(run_id))
        assert self.call(endpoint, f"/api/v1/runs/{run_id}").json == {"id": run_id, "deleted": 1}
        assert self.served.call("GET", f"/api/v3/runs/{run_id}").status == 404

    def list_streams(self, endpoint: Endpoint) -> None:
        [stream] = self.call(endpoint, f"/api/v1/runs/{self._written()}/streams").json["data"]
        fields = {"key": text, "chunkCount": number, "sizeBytes": number, "state": text, "createdAt": text}
        assert has(stream, {**fields, "updatedAt": text}, {"error": text})

    def read_stream(self, endpoint: Endpoint) -> None:
        with self.served.events(f"/realtime/v1/streams/{self._written()}/k") as events:
            assert events.next() == ("begin", {"next": 0})
            event, data = events.next()
            assert event == "batch"
            [record] = data["records"]
            assert has(
                record, {"seq_num": number, "timestamp": number, "body": text, "headers": anything}, {}
            )
            assert events.next() == ("end", {"state": "ended", "next": 1})

    def read_input(self, endpoint: Endpoint) -> None:
        run_id = self._written()
        with self.served.events(f"/realtime/v1/streams/{run_id}/input/k") as events:
            assert events.next() == ("begin", {"next": 0})
            assert events.next() == ("end", {"state": "ended", "next": 0})

    def send_input(self, endpoint: Endpoint) -> None:
        answer = self.call(
            endpoint, f"/realtime/v1/streams/{self.served.trigger()}/input/k", {"data": {"a": 1}}
        )
        assert (answer.status, answer.json) == (endpoint.status, {"ok": True})

    def stream_position(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/realtime/v1/streams/{self.served.trigger()}/self/k")
        assert (answer.status, answer.headers["x-last-chunk-index"]) == (endpoint.status, "-1")

    def create_stream(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/realtime/v1/streams/{self.served.trigger()}/self/k")
        assert (answer.status, answer.json) == (endpoint.status, {"version": "v1"})

    def append_chunk(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/realtime/v1/streams/{self.served.trigger()}/self/k/append", b"x")
        assert (answer.status, answer.json) == (endpoint.status, {"ok": True})

    def write_stream(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, f"/realtime/v1/streams/{self.served.trigger()}/self/k", b"1\n2\n")
        assert (answer.status, answer.json) == (endpoint.status, {"ok": True})

    def list_tasks(self, endpoint: Endpoint) -> None:
        for task in self.call(endpoint, "/api/v1/tasks").json["data"]:
            if task["id"] == "work":
                assert task["queue"] == "task/work"
                assert task["workersOnline"] == 1
                assert task["hasPayloadSchema"] is False
                break
        else:
            raise AssertionError("the task of the worker is not listed")

    def retrieve_task(self, endpoint: Endpoint) -> None:
        self.served.trigger()
        answer = self.call(endpoint, "/api/v1/tasks/work")
        assert answer.json["id"] == "work"
        assert answer.json["counts"]["QUEUED"] >= 1
        refused = self.call(endpoint, "/api/v1/tasks/nobody")
        assert (refused.status, refused.json["code"]) == (404, "not_found")

    def list_workers(self, endpoint: Endpoint) -> None:
        self.worker.take(self.served.trigger())
        answer = self.call(endpoint, "/api/v1/workers")
        assert [(worker["id"], worker["tasks"]) for worker in answer.json["data"]] == [("worker_1", ["work"])]
        assert answer.json["data"][0]["executing"] >= 1
        assert answer.json["pagination"] == {"currentPage": 1, "totalPages": 1, "count": 1}

    def list_queues(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, endpoint.path)
        assert has(answer.json, {"data": anything, "pagination": mapping}, {})
        assert "task/work" in [queue["name"] for queue in answer.json["data"]]

    def retrieve_queue(self, endpoint: Endpoint) -> None:
        for path in ("task%2Fwork", "task/work", "work?type=task"):
            answer = self.call(endpoint, f"/api/v1/queues/{path}")
            assert (answer.status, answer.json["name"], answer.json["type"]) == (200, "task/work", "task")

    def pause_queue(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, "/api/v1/queues/task%2Fwork/pause", {"action": "pause"})
        assert (answer.status, answer.json["paused"]) == (endpoint.status, True)
        answer = self.call(endpoint, "/api/v1/queues/work/pause", {"action": "resume", "type": "task"})
        assert (answer.status, answer.json["paused"]) == (endpoint.status, False)

    def override_queue(self, endpoint: Endpoint) -> None:
        answer = self.call(
            endpoint, "/api/v1/queues/task%2Fwork/concurrency/override", {"concurrencyLimit": 3}
        )
        assert (answer.status, answer.json["concurrencyLimit"]) == (endpoint.status, 3)
        assert answer.json["concurrency"]["override"] == 3
        refused = self.call(
            endpoint, "/api/v1/queues/task%2Fwork/concurrency/override", {"concurrencyLimit": 0}
        )
        assert (refused.status, refused.json["code"]) == (422, "invalid_request")
        assert "pause the queue" in refused.json["error"]

    def reset_queue(self, endpoint: Endpoint) -> None:
        answer = self.call(endpoint, "/api/v1/queues/task%2Fwork/concurrency/reset", {"type": "id"})
        assert answer.status == endpoint.status
        assert "override" not in answer.json["concurrency"]
        refused = self.call(endpoint, "/api/v1/queues/typo/concurrency/reset", {})
        assert (refused.status, refused.json["code"]) == (404, "queue_not_found")

    def inbox(self, endpoint: Endpoint) -> None:
        with self.served.events("/api/v1/workers/worker_1/inbox") as events:
            assert events.next() == ("inbox", {"hello": True})


def test_every_endpoint_is_called_here() -> None:
    calls = {name for name in vars(Calls) if not name.startswith("_") and name != "call"}
    assert calls == set(_BY_NAME)


@pytest.mark.parametrize("name", _BY_NAME)
def test_an_endpoint_answers_as_the_table_says(served: Served, worker: HttpWorker, name: str) -> None:
    call: Callable[[Endpoint], None] = getattr(Calls(served, worker), name)
    call(_BY_NAME[name])


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_an_unknown_method_is_refused_with_a_problem(served: Served, endpoint: Endpoint) -> None:
    methods = {other.method for other in ENDPOINTS if other.path == endpoint.path}
    answer = served.call("PATCH", endpoint.path)
    assert "PATCH" not in methods
    assert answer.status == 405
    assert answer.json["code"] == "method_not_allowed"


def test_an_unknown_path_is_a_problem_too(served: Served) -> None:
    for path in ("/", "/api", "/api/v9/runs", "/api/v3/runs/", "/api/v1/tasks//trigger"):
        answer = served.call("PUT", path, {})
        assert answer.status in (404, 405), path
        assert mapping(answer.json)
        assert text(answer.json["code"])
