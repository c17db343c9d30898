"""Writes streams of runs as a worker does."""

from typing import Any

from dashboard.served import RunningServer


class StreamWriter:
    """One writer of a stream of a run that the worker holds."""

    def __init__(
        self, server: RunningServer, run_id: str, key: str, *, writer: str = "w", worker_id: str = "worker_1"
    ) -> None:
        self._server = server
        self._run_id = run_id
        self._key = key
        self._writer = writer
        self._path = f"/api/v1/workers/{worker_id}/chunks"
        self.next = 0

    def write(self, *values: Any, end: bool = False, error: str | None = None) -> None:
        part: dict[str, Any] = {
            "run": self._run_id, "key": self._key, "writer": self._writer, "first": self.next, "chunks": list(values),
        }  # fmt: skip
        if end or error is not None:
            part["end"] = {} if error is None else {"error": error}
        answer = self._server.request(
            "POST", self._path, {"runs": [{"id": self._run_id, "attempt": 1, "parts": [part]}]}
        )
        [reply] = answer["runs"][0]["parts"]
        assert "code" not in reply, reply
        self.next += len(values)
