"""Nothing that was asked for is passed over: a delay that is dropped would run the job now."""

from typing import Any

import msgspec
import pytest

from api.shapes import TRIGGER_FUNCTIONS
from milepost.protocol.endpoints import ENDPOINTS, FILTERS_NOT_SUPPORTED
from milepost.protocol.triggering import (
    BatchCreateRequest,
    BatchRequest,
    QueueOption,
    TriggerOptions,
    TriggerRequest,
)
from support.served import Answer, HttpWorker, Served, set_to

# Every option of the protocol (sections 3.1, 4 and 5.5) with a value that asks for something.
ASKING: dict[str, Any] = {
    "queue": {"name": "emails"},
    "concurrencyKey": "user-1",
    "payloadType": "application/json",
    "payloadSize": 3,
    "idempotencyKey": "k" * 64,
    "idempotencyKeyTTL": "10m",
    "idempotencyKeyOptions": {"key": "order-1", "scope": "run"},
    "delay": "1h",
    "ttl": 600,
    "tags": ["a"],
    "maxAttempts": 3,
    "metadata": {"a": 1},
    "metadataType": "application/super+json",
    "maxDuration": 60,
    "machine": "small-2x",
    "priority": 10,
    "region": "eu-1",
    "lockToVersion": "20250101.1",
    "debounce": {"key": "d", "delay": "5s"},
    "test": True,
    "gates": [],
    "concurrency": {},
    "externalDeploymentId": "x",
    "bulkActionId": "x",
    "parentBatch": "batch_1",
    "resumeParentOnCompletion": True,
    "alwaysNew": True,
    "retry": {"maxAttempts": 2},
}
# What an item of a batch may not ask for.
SINGLE = {"debounce"}
SUPPORTED = {field.encode_name for field in msgspec.structs.fields(TriggerOptions)}
NEUTRAL = [(name, value) for name, values in TriggerOptions.not_supported.items() for value in values]


def refused(answer: Answer, field: str) -> str:
    """The text of a refusal that names the field."""
    assert (answer.status, answer.json["code"], answer.json["field"]) == (422, "invalid_request", field), (
        answer
    )
    assert field.rpartition(".")[2] in answer.json["error"]
    return answer.json["error"]


def ways(served: Served, options: Any) -> list[tuple[Answer, str]]:
    """Every way to trigger a run with these options, and where they stand there."""
    batch = served.post("/api/v3/batches", {"runCount": 2})["id"]
    items = [{"task": "work"}, {"task": "work", "options": options}]
    line = msgspec.json.encode({"index": 1, "task": "work", "options": options})
    return [
        (served.call("POST", "/api/v1/tasks/work/trigger", {"options": options}), "options."),
        (served.call("POST", "/api/v2/tasks/batch", {"items": items}), "items[1].options."),
        (served.add_items(batch, b'{"index":0,"task":"work"}\n' + line), "items[1].options."),
    ]  # fmt: skip


def test_every_option_of_the_protocol_is_supported_or_refused_by_name() -> None:
    assert ASKING.keys() | {"parentRunId"} == SUPPORTED | TriggerOptions.not_supported.keys()


@pytest.mark.parametrize("name", ASKING)
def test_an_option_works_or_is_refused_by_name(served: Served, worker: HttpWorker, name: str) -> None:
    before = len(served.get("/api/v1/runs", **{"page[size]": 100})["data"])
    for answer, place in ways(served, {name: ASKING[name]}):
        if name in SINGLE and place.startswith("items"):
            assert "single triggers" in refused(answer, place + name)
        elif name in SUPPORTED:
            assert answer.status in (200, 202), answer
        else:
            assert "not supported by this version" in refused(answer, place + name)
    if name not in SUPPORTED:
        # Nothing was queued, of the batch neither.
        assert len(served.get("/api/v1/runs", **{"page[size]": 100})["data"]) == before
    for run in worker.claim(1000):
        worker.finish(run)


@pytest.mark.parametrize(("name", "value"), NEUTRAL, ids=str)
def test_what_asks_for_nothing_is_taken(served: Served, worker: HttpWorker, name: str, value: Any) -> None:
    for answer, _ in ways(served, {name: value, "tags": ["t"]}):
        assert answer.status in (200, 202), answer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test", 0),
        ("test", 1),
        ("priority", -1),
        ("delay", ""),
        ("ttl", ""),
        ("ttl", 0),
    ],
    ids=str,
)
def test_what_only_looks_like_nothing_is_refused(
    served: Served, worker: HttpWorker, name: str, value: Any
) -> None:
    """In Python `False == 0`."""
    for answer, place in ways(served, {name: value}):
        refused(answer, place + name)


TRIGGER = "/api/v1/tasks/work/trigger"
TYPOS: list[tuple[str, str, Any, str, str | None]] = [
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"maxAttempt": 3}}, "options.maxAttempt", "maxAttempts"),
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"tag": "x"}}, "options.tag", "tags"),
    ("POST", "/api/v1/tasks/work/trigger", {"options": {"max_attempts": 3}}, "options.max_attempts", "maxAttempts"),
    ("POST", "/api/v1/tasks/work/trigger", {"payload": "1", "option": {}}, "option", "options"),
    ("POST", "/api/v1/tasks/work/trigger", {"metadata": {"a": 1}}, "metadata", None),
    ("POST", "/api/v1/tasks/work/trigger", {"context": {"a": 1}}, "context", None),
    ("POST", TRIGGER, {"options": {"queue": {"name": "q", "concurrencyLimit": 1}}}, "options.queue.concurrencyLimit", None),
    ("POST", TRIGGER, {"options": {"queue": {"name": "q", "limit": 1}}}, "options.queue.limit", None),
    ("POST", "/api/v2/tasks/batch", {"items": [{"task": "work", "tags": ["x"]}]}, "items[0].tags", None),
    ("POST", "/api/v3/batches", {"runCount": 1, "runcount": 1}, "runcount", "runCount"),
    ("POST", "/api/v1/workers", {"id": "w", "name": "w", "tasks": [], "labels": []}, "labels", None),
    ("POST", "/api/v1/workers/worker_1/claim", {"sequence": 1, "slots": 0, "waitSeconds": 0, "tasks": []}, "tasks", None),
    ("PUT", "/api/v1/runs/run_x/metadata", {"operations": [], "ifversion": 1}, "ifversion", "ifVersion"),
    ("PUT", "/api/v1/runs/run_x/metadata", {"operation": []}, "operation", "operations"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "meant"), TYPOS, ids=lambda value: str(value)[:40]
)
def test_an_unknown_field_is_refused_by_name(
    served: Served, worker: HttpWorker, method: str, path: str, body: Any, field: str, meant: str | None
) -> None:
    text = refused(served.call(method, path, body), field)
    if meant is not None:
        assert f"did you mean {meant!r}?" in text


def test_what_official_clients_send_beside_is_taken(served: Served, worker: HttpWorker) -> None:
    assert served.call("POST", "/api/v1/tasks/work/trigger", {"context": {}, "options": {}}).status == 200
    assert served.call("POST", "/api/v1/tasks/work/trigger", {"context": None}).status == 200
    body = {"runCount": 1, "taskIdentifiers": ["work"], "idempotencyKey": None}
    assert served.call("POST", "/api/v3/batches", body).status == 202
    for kind in (TriggerRequest, TriggerOptions, QueueOption, BatchRequest, BatchCreateRequest):
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert known.isdisjoint(getattr(kind, "not_supported", ())), kind


def test_a_field_that_an_operation_has_not_refuses_the_operation(served: Served, worker: HttpWorker) -> None:
    """`max_items` for `maxItems` would leave a list without its cap. The others apply (M29)."""
    run_id = served.trigger()
    operations = [
        {"type": "append", "key": "log", "value": 1, "max_items": 5},
        set_to("a", 1),
        {**set_to("b", 2), "once": "x"},
    ]
    answer = served.put_metadata(run_id, *operations)
    assert answer["metadata"] == {"a": 1}
    assert [(item["index"], item["code"]) for item in answer["refused"]] == [
        (0, "bad_operation"),
        (2, "bad_operation"),
    ]
    assert "'max_items'" in answer["refused"][0]["message"]
    assert "maxItems" in answer["refused"][0]["message"]


LISTS = [
    endpoint
    for endpoint in ENDPOINTS
    if any(parameter.name == "filter[taskIdentifier]" for parameter in endpoint.parameters)
]


@pytest.mark.parametrize("endpoint", LISTS, ids=lambda endpoint: endpoint.name)
def test_a_filter_that_is_not_carried_out_is_refused(served: Served, endpoint: Any) -> None:
    """Without it the list is another one."""
    for name in FILTERS_NOT_SUPPORTED:
        answer = served.call("GET", endpoint.path, query={name: "true"})
        assert "not supported by this version" in refused(answer, name)
    for name, meant in (
        ("filter[tags]", "filter[tag]"),
        ("filter[state]", "filter[status]"),
        ("status", None),
        ("filter[createdAt]", None),
    ):
        text = refused(served.call("GET", endpoint.path, query={name: "x"}), name)
        assert meant is None or f"did you mean {meant!r}?" in text
    for name in ("filter[tag]", "filter[status]", "filter[batch]", "filter[metadata]"):
        answer = served.call("GET", endpoint.path, query={name: ""})
        assert (answer.status, answer.json["field"]) == (400, name)
    for status in ("DONE", "completed", "FAILED,NONE"):
        answer = served.call("GET", endpoint.path, query={"filter[status]": status})
        assert (answer.status, answer.json["field"]) == (400, "filter[status]")


@pytest.mark.parametrize(
    "endpoint",
    [endpoint for endpoint in ENDPOINTS if endpoint.method == "GET" and not endpoint.open_query],
    ids=lambda endpoint: endpoint.name,
)
def test_an_unknown_query_parameter_is_refused_everywhere(
    served: Served, worker: HttpWorker, endpoint: Any
) -> None:
    path = endpoint.path.format(
        task="work",
        run=served.trigger(),
        batch="batch_x",
        waitpoint="waitpoint_x",
        secret="0",
        schedule="sched_x",
        queue="queue_x",
        worker="worker_1",
        target="self",
        key="k",
    )
    refused(served.call("GET", path, query={"verbose": "1"}), "verbose")


def test_relatives_have_depth_and_function(served: Served, worker: HttpWorker) -> None:
    """Protocol, section 5.1: each with the fields of the run up to `batchId`."""
    parent = served.trigger()
    child = served.trigger(parentRunId=parent)
    grandchild = served.trigger(parentRunId=child, resumeParentOnCompletion=True)
    family = served.get(f"/api/v3/runs/{child}")["relatedRuns"]
    assert [
        (run["id"], run["depth"], run["triggerFunction"])
        for run in (family["root"], family["parent"], *family["children"])
    ] == [
        (parent, 0, "trigger"),
        (parent, 0, "trigger"),
        (grandchild, 2, "triggerAndWait"),
    ]
    for row in served.get("/api/v1/runs")["data"]:
        assert row["triggerFunction"] in TRIGGER_FUNCTIONS
        # What a list does not load is left out.
        assert row.keys().isdisjoint({"payload", "output", "childCounts", "relatedRuns"})
