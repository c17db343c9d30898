"""A run that a worker writes streams for, over HTTP."""

from typing import Any

from support.served import HttpWorker


class Source:
    """A run's writer of one stream; of an own run, or of one that is given."""

    def __init__(
        self, worker: HttpWorker, key: str = "tokens", *, run: dict[str, Any] | None = None, writer: str = "w"
    ) -> None:
        self.worker = worker
        self.run = worker.take(worker.served.trigger()) if run is None else run
        self.id: str = self.run["id"]
        self.key = key
        self.writer = writer
        self.written = 0

    def write(self, *values: Any, end: dict[str, Any] | None = None) -> None:
        part = {
            "run": self.id,
            "key": self.key,
            "writer": self.writer,
            "first": self.written,
            "chunks": list(values),
        }
        if end is not None:
            part["end"] = end
        body = {"runs": [{"id": self.id, "attempt": self.run["attempt"], "parts": [part]}]}
        [reply] = self.worker.served.post(f"/api/v1/workers/{self.worker.id}/chunks", body)["runs"]
        self.written += len(values)
        assert reply["parts"] == [{"next": self.written}]

    def write_all(self, *values: Any) -> None:
        """Write these values and no more."""
        self.write(*values, end={})
