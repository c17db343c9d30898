"""The real server on a free port, and a worker that is nothing but its HTTP requests."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import urllib3
import uvicorn

from milepost.server.app import Server
from milepost.server.settings import load_settings

SECRET_KEY = "tr_dev_dashboard_tests"
STOP_SECONDS = 20


class RunningServer:
    """A server in a thread, with further settings. It can be stopped and started again on the same port and data."""

    def __init__(self, data_folder: Path, **settings: Any) -> None:
        self._settings = {"data_folder": data_folder, "secret_key": SECRET_KEY, **settings}
        self.port = 0
        self._http = urllib3.PoolManager(headers={"authorization": f"Bearer {SECRET_KEY}"}, retries=False)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        # From here on requests wait in the queue of the socket, so nobody has to wait for the server to be up.
        listening.listen(128)
        self.port = listening.getsockname()[1]
        self.app = Server(load_settings(**self._settings))
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(self.app.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(listening,))
        self._thread.start()

    def stop(self) -> None:
        self._http.clear()
        self._uvicorn.should_exit = True
        self._loop.call_soon_threadsafe(self.app.stop_streams)
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"
        self._loop.close()

    def _serve(self, listening: socket.socket) -> None:
        with listening, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._uvicorn.serve(sockets=[listening]))

    @property
    def database_path(self) -> Path:
        """The database; to be written by others only while the server is stopped."""
        return self.app.settings.database_path

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """A call with the secret key; the decoded answer."""
        response = self._http.request(method, self.url + path, json=body)
        assert response.status < 300, (response.status, response.data)
        return response.json()


def until_unwatched(server: RunningServer) -> None:
    """The page's connection has gone: nobody is told of anything any more."""
    deadline = time.monotonic() + 20
    while server.app.hub.is_watched:
        assert time.monotonic() < deadline, "the page still holds its connection"
        time.sleep(0.02)


class FakeWorker:
    """Registers, triggers, claims and reports, with the requests that a worker sends."""

    def __init__(self, server: RunningServer, *tasks: str, worker_id: str = "worker_1") -> None:
        self._server = server
        self._id = worker_id
        self._tasks = tasks
        self._claims = 0
        self._sequences: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        # What is said of a task beside its id, at the next registration.
        self.offers: dict[str, dict[str, Any]] = {}
        self.register()

    def register(self) -> None:
        """Present itself; needed again after a restart of the server."""
        tasks: list[dict[str, Any]] = [
            {"id": task, "queue": task, "retry": {}, **self.offers.get(task, {})} for task in self._tasks
        ]
        body: dict[str, Any] = {
            "id": self._id,
            "name": "tests",
            "tasks": tasks,
            "holding": list(self._attempts),
        }
        self._server.request("POST", "/api/v1/workers", body)

    def trigger(self, task: str, payload: str = "null", **options: Any) -> str:
        """A new run; its id."""
        body = {"payload": payload, "options": options}
        return self._server.request("POST", f"/api/v1/tasks/{task}/trigger", body)["id"]

    def trigger_many(self, task: str, count: int, **options: Any) -> list[str]:
        """New runs at once; their ids, oldest first."""
        items = [{"task": task, "payload": "null", "options": options}] * count
        ids: list[str] = self._server.request("POST", "/api/v2/tasks/batch", {"items": items})["runs"]
        return ids

    def claim(self, slots: int = 100) -> list[str]:
        """Take what is queued, at least one run; the ids."""
        self._claims += 1
        body = {"sequence": self._claims, "slots": slots, "waitSeconds": 10}
        runs = self._server.request("POST", f"/api/v1/workers/{self._id}/claim", body)["runs"]
        for run in runs:
            self._attempts[run["id"]] = run["attempt"]
            self._sequences[run["id"]] = 0
        return [run["id"] for run in runs]

    def start(self, task: str, payload: str = "null", **options: Any) -> str:
        """Trigger a run and claim it, when nothing else is queued."""
        run_id = self.trigger(task, payload, **options)
        assert self.claim() == [run_id]
        return run_id

    def report(self, run_id: str, *operations: dict[str, Any], **more: Any) -> None:
        """Operations on the run's own document; `waiting`, `outcome` and `changes` as in a report; `logs` are lines of the log."""
        self._sequences[run_id] += 1
        if lines := more.pop("logs", []):
            part = {"id": run_id, "attempt": self._attempts[run_id], "sequence": self._sequences[run_id]}
            self._server.request("POST", "/api/v1/workers/worker_1/log", {"runs": [{**part, "lines": lines}]})
        changes = [{"run": run_id, "operations": list(operations)}] if operations else []
        changes += more.pop("changes", [])
        report = {
            "id": run_id,
            "attempt": self._attempts[run_id],
            "sequence": self._sequences[run_id],
            "changes": changes,
        }
        answer = self._server.request(
            "POST", f"/api/v1/workers/{self._id}/report", {"runs": [{**report, **more}]}
        )
        assert not answer["runs"][0].get("lost"), answer
        if "outcome" in more:
            del self._attempts[run_id]

    def complete(self, run_id: str, output: str = "null") -> None:
        self.report(run_id, outcome={"output": output})

    def leave(self) -> None:
        """End in order, and hand back what is held."""
        self._server.request("POST", "/api/v1/workers/worker_1/report", {"leaving": True})

    def fail(
        self, run_id: str, message: str, *, name: str = "ValueError", trace: str = "", **outcome: Any
    ) -> None:
        error = {"name": name, "message": message, "stackTrace": trace or None}
        self.report(run_id, outcome={"error": error, **outcome})


def set_(key: str, value: Any) -> dict[str, Any]:
    return {"type": "set", "key": key, "value": value}


def append(key: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "append", "key": key, "value": value, **more}


def increment(key: str, value: Any = 1, **more: Any) -> dict[str, Any]:
    return {"type": "increment", "key": key, "value": value, **more}
