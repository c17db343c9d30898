"""An HTTP server that answers as a test says, and can misbehave: drop connections, stop in the middle, say nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Drop(Exception):
    """Close the connection without an answer."""


@dataclass
class Asked:
    """A request as it arrived. `body` is JSON, of a path that ends in `/items` one value for each line."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class Answer:
    """An answer. `chunks` makes it an event stream that ends cleanly, unless `breaks` is set."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    chunks: Iterator[bytes] | None = None
    breaks: bool = False


class ScriptedServer:
    """`answer(asked)` is called for each request; it may raise Drop."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer] = lambda asked: Answer(
            404, {"error": "not scripted", "code": "x"}
        )
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                asked = Asked(
                    self.command,
                    parts.path,
                    query,
                    dict(self.headers.items()),
                    _decoded(parts.path, raw),
                )
                script.asked.append(asked)
                try:
                    answer = script.answer(asked)
                except Drop:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunks is None:
                    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    return
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    for chunk in answer.chunks:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                        self.wfile.flush()
                except Drop:
                    answer.breaks = True
                except OSError:
                    self.close_connection = True
                    return
                if answer.breaks:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = _serve

            def handle(self) -> None:
                # A client that leaves in the middle of a stream is no error.
                with suppress(ConnectionError):
                    super().handle()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def triggered(asked: Asked) -> Answer:
    """The answer to a trigger, or to several in one request: the run of each is named by its request id, and so is its token. One with
    the payload "refused" is refused."""
    if asked.path.endswith("/triggers"):
        answers: list[dict[str, Any]] = []
        for trigger in asked.body["triggers"]:
            status, body, token = _triggered(trigger["requestId"], trigger["request"])
            answers.append({"status": status, "body": body, **({"token": token} if token else {})})
        return Answer(200, {"answers": answers})
    status, body, token = _triggered(asked.headers["x-trigger-request-idempotency-key"], asked.body)
    return Answer(status, body, {"x-trigger-jwt": token} if token else {})


def _triggered(request_id: str, request: Any) -> tuple[int, Any, str | None]:
    if request.get("payload") == '"refused"':
        return 422, {"error": f"{request_id} is refused", "code": "invalid_payload", "field": "payload"}, None
    return 200, {"id": f"run of {request_id}", "isCached": False}, f"token of {request_id}"


def request_ids(asked: Asked) -> list[str]:
    """The request ids of the triggers in a request."""
    if asked.path.endswith("/triggers"):
        return [trigger["requestId"] for trigger in asked.body["triggers"]]
    return [asked.headers["x-trigger-request-idempotency-key"]]


def _decoded(path: str, raw: bytes) -> Any:
    if path.endswith("/items"):
        return [json.loads(line) for line in raw.splitlines()]
    return json.loads(raw) if raw else None


@contextmanager
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.stop()


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def wire_run(**fields: Any) -> dict[str, Any]:
    """A run as the server writes it."""
    return {
        "id": "run_1",
        "status": "EXECUTING",
        "taskIdentifier": "a-task",
        "isQueued": False,
        "isExecuting": True,
        "isWaiting": False,
        "isCompleted": False,
        "isSuccess": False,
        "isFailed": False,
        "isCancelled": False,
        "isTest": False,
        "createdAt": "2026-01-02T03:04:05.000006Z",
        "updatedAt": "2026-01-02T03:04:05Z",
        "tags": ["a"],
        "costInCents": 0,
        "baseCostInCents": 0,
        "durationMs": 0,
        "metadata": {},
        "metadataVersion": 0,
        "rootId": "run_1",
        "queue": "q",
        "attemptCount": 1,
        "env": {},
        "depth": 0,
        "triggerFunction": "trigger",
        "payload": {"n": 1},
        "relatedRuns": {},
        "childCounts": {},
        "attempts": [],
        **fields,
    }


FINISHED = {"status": "COMPLETED", "isExecuting": False, "isCompleted": True, "isSuccess": True}
