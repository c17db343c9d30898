"""The real application behind a real socket, served from a thread of the test's own process."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import urllib3
import uvicorn

from milepost.cli.connection import Connection
from milepost.protocol.feed import EventReader
from milepost.server.app import Server
from milepost.server.settings import load_settings

KEY = "tr_dev_test_key"
PATIENCE_SECONDS = 20


class RealClock:
    """The machine's clock, which a test may set forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + round(self.ahead_seconds * 1_000_000)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: urllib3.HTTPHeaderDict
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: threading.Event) -> None:
        super().__init__(config)
        self._has_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._has_started.set()


class Served:
    """A server on a data folder; it may be stopped and started again.

    Args:
        new_loop: makes the event loop that it runs on; by default that of the standard library.
        settings: beside folder and key. Leases are long unless they say otherwise: workers of tests are silent between requests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
        **settings: Any,
    ) -> None:
        self._new_loop = new_loop
        self._folder = folder
        self._settings = {"lease_seconds": 3600.0, **settings}
        self.clock = RealClock()
        self.pool = urllib3.PoolManager(retries=False, maxsize=20)
        self.start()

    def start(self, port: int = 0) -> None:
        """Serve on a new port, or on this one."""
        settings = load_settings(data_folder=self._folder, secret_key=KEY, **self._settings)
        # Setting the clock forward stands for time that goes by, so waiting is measured by it too.
        self.server = Server(settings, clock=self.clock, steady=self.clock)
        # Of a socket made without a protocol, asyncio does not turn Nagle's delay off: forty milliseconds per request.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._run(started))
        self._thread.start()
        assert started.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """End streams and long polls, then the server; returns when it has ended."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.pool.clear()

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = uvicorn.Config(
            self.server.app, http=Connection, ws="none", lifespan="on", log_config=None, access_log=False
        )
        runner = _Uvicorn(config, started)
        serving = asyncio.create_task(runner.serve(sockets=[self._listener]))
        await self._stop.wait()
        runner.should_exit = True
        self.server.stop_streams()
        await serving

    # --- requests ----------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> Answer:
        """One request. A body that is bytes or an iterator of bytes is sent as it is, anything else as JSON."""
        sent = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
            body = json.dumps(body).encode()
        url = self.url + path
        if query:
            url += "?" + "&".join(f"{_quoted(name)}={_quoted(str(value))}" for name, value in query.items())
        response = self.pool.request(
            method, url, body=body, headers=sent, chunked=chunked, timeout=urllib3.Timeout(PATIENCE_SECONDS)
        )
        return Answer(response.status, response.headers, response.data)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that a GET must give."""
        answer = self.call("GET", path, query=query)
        assert answer.status == 200, answer
        return answer.json

    def post(self, path: str, body: Any, **options: Any) -> Any:
        """The JSON that a POST must give."""
        answer = self.call("POST", path, body, **options)
        assert answer.status in (200, 202), answer
        return answer.json

    def add_items(self, batch_id: str, lines: bytes) -> Answer:
        """Send items of an announced batch, one JSON object per line."""
        headers = {"content-type": "application/x-ndjson"}
        return self.call("POST", f"/api/v3/batches/{batch_id}/items", lines, headers=headers)

    def put_metadata(self, run_id: str, *operations: dict[str, Any]) -> Any:
        """Write to a run's document."""
        answer = self.call("PUT", f"/api/v1/runs/{run_id}/metadata", {"operations": list(operations)})
        assert answer.status == 200, answer
        return answer.json

    def trigger(self, task: str = "work", payload: str | None = None, **options: Any) -> str:
        """Trigger one run and give its id."""
        body = {"options": options} | ({} if payload is None else {"payload": payload})
        return self.post(f"/api/v1/tasks/{task}/trigger", body)["id"]

    @contextmanager
    def events(self, path: str, *, key: str = KEY, **query: Any) -> Iterator["Events"]:
        """Read an event stream."""
        url = (
            self.url
            + path
            + ("?" + "&".join(f"{_quoted(k)}={_quoted(str(v))}" for k, v in query.items()) if query else "")
        )
        response = self.pool.request(
            "GET",
            url,
            headers={"authorization": f"Bearer {key}"},
            preload_content=False,
            timeout=urllib3.Timeout(PATIENCE_SECONDS),
        )
        try:
            yield Events(response)
        finally:
            response.close()


def _quoted(text: str) -> str:
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or chr(byte) in "-_.~" else f"%{byte:02X}"
        for byte in text.encode()
    )


class Events:
    """An event stream over HTTP."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response
        self.status = response.status
        self._reader = EventReader()
        self._events: list[tuple[str, Any]] = []
        self._chunks = response.stream(65536)

    def next(self) -> tuple[str, Any]:
        """The next event. Raises StopIteration when the server has ended the stream as it should be ended."""
        while not self._events:
            found = self._reader.feed(next(self._chunks))
            self._events += [(event, msgspec.json.decode(data)) for event, data in found]
        return self._events.pop(0)

    def until(self, condition: Callable[[str, Any], bool]) -> Any:
        """Read until an event meets the condition; its data."""
        while True:
            event, data = self.next()
            if condition(event, data):
                return data


# Over all workers of a process: several may take the same name, one after the other.
_CLAIMS = count(1)


class HttpWorker:
    """A worker that speaks HTTP."""

    def __init__(self, served: Served, worker_id: str = "worker_1", *tasks: dict[str, Any]) -> None:
        self.served = served
        self.id = worker_id
        self.tasks = list(tasks) or [offer("work")]
        self._sequences: dict[tuple[str, int], int] = {}
        self._log_sequences: dict[tuple[str, int], int] = {}
        self.register()

    def register(self, holding: tuple[str, ...] = ()) -> Any:
        """Present itself."""
        body = {"id": self.id, "name": self.id, "tasks": self.tasks, "holding": list(holding)}
        return self.served.post("/api/v1/workers", body)

    def next_claim(self) -> int:
        """The number of the next claim."""
        return next(_CLAIMS)

    def claim(self, slots: int = 1, *, wait: float = 0) -> list[dict[str, Any]]:
        """Claim runs."""
        body = {"sequence": self.next_claim(), "slots": slots, "waitSeconds": wait}
        return self.served.post(f"/api/v1/workers/{self.id}/claim", body)["runs"]

    def take(self, run_id: str) -> dict[str, Any]:
        """Claim all that is due; the one run that is asked for must be among it."""
        [run] = [run for run in self.claim(1000) if run["id"] == run_id]
        return run

    def report(self, run: dict[str, Any], *operations: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Report on one run; `operations` are for its own document."""
        key = run["id"], run["attempt"]
        sequence = self._sequences[key] = self._sequences.get(key, 0) + 1
        changes = [{"run": run["id"], "operations": list(operations)}] if operations else []
        body = {
            "id": run["id"],
            "attempt": run["attempt"],
            "sequence": sequence,
            "changes": changes,
            **fields,
        }
        [reply] = self.served.post(f"/api/v1/workers/{self.id}/report", {"runs": [body]})["runs"]
        return reply

    def log(self, run: dict[str, Any], *lines: dict[str, Any]) -> None:
        """Log something for a run."""
        key = run["id"], run["attempt"]
        sequence = self._log_sequences[key] = self._log_sequences.get(key, 0) + 1
        body = {"id": run["id"], "attempt": run["attempt"], "sequence": sequence, "lines": list(lines)}
        self.served.post(f"/api/v1/workers/{self.id}/log", {"runs": [body]})

    def finish(
        self, run: dict[str, Any], *operations: dict[str, Any], output: str = "null"
    ) -> dict[str, Any]:
        """End the attempt with success."""
        return self.report(run, *operations, outcome={"output": output})

    def fail(self, run: dict[str, Any], message: str = "out of ink", **outcome: Any) -> dict[str, Any]:
        """End the attempt with an error."""
        return self.report(run, outcome={"error": {"message": message, "name": "ValueError"}, **outcome})


def offer(task: str, **fields: Any) -> dict[str, Any]:
    """A task as a worker offers it."""
    return {"id": task, "queue": f"task/{task}", "retry": {"maxAttempts": 1}, **fields}


def set_to(key: str, value: Any) -> dict[str, Any]:
    """A `set` as it is on the wire."""
    return {"type": "set", "key": key, "value": value}
