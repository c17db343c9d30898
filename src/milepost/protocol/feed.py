"""Frames of the realtime feed (server-sent events), and the small text format itself.

A frame names the version it starts from and the one it reaches. A reader that finds a gap asks again and gets a snapshot.
"""

from typing import Any

import msgspec

from milepost.model.operations import Operation
from milepost.protocol.runs import RunObject, RunSummary


class RunFrame(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """One frame about one run; event names are `snapshot`, `delta` and `end`.

    snapshot: `run` is the whole run with its document. delta: `operations` lead from `fromVersion` to `version`; `run` has the
    changed fields of the run (never payload or metadata). end: the run has finished and everything has been sent.
    """

    from_version: int | None = None
    version: int
    operations: list[Operation] | None = None
    run: dict[str, Any] | None = None


class SnapshotFrame(msgspec.Struct, rename="camel"):
    """A `snapshot` event: the whole run."""

    version: int
    run: RunObject


class RunListFrame(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """An event of a live list: `rows` is the first page, in full on `snapshot`, and only what is new or changed on `rows`.

    `order` names the runs of the page from top to bottom. `counts` are the statuses of all runs that match; it is empty for a list
    that is filtered by metadata.
    """

    rows: list[RunSummary]
    order: list[str]
    counts: dict[str, int]


class MatchingRunFrame(msgspec.Struct, omit_defaults=True):
    """An event about the runs that match a filter. Event names are `begin`, `run` and `present`.

    begin: the first event; every run that matches now is told. present: every one has been. Both have no fields.
    run: the newest state of a run. `matches` is false when the run did match before and does not any more: it is told once, until it
    matches again.
    """

    run: RunSummary | None = None
    matches: bool = True


class BatchFrame(msgspec.Struct, rename="camel"):
    """An event of a batch: how many of its runs have ended. `runCount` is null while it is not known."""

    id: str
    run_count: int | None
    finished_count: int


def encode_event(event: str, data: bytes) -> bytes:
    """One server-sent event. `data` is JSON without line breaks."""
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


PING = b": ping\n\n"


class EventReader:
    """Turns the bytes of an event stream into (event, data) pairs; bytes may be cut anywhere.

    Source: HTML Living Standard, "Server-sent events"; only what `encode_event` writes, plus comments and `\\r\\n`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._event = "message"
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that became complete with these bytes, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[tuple[str, bytes]] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append((self._event, b"\n".join(self._data)))
                self._event, self._data = "message", []
            elif line.startswith(b"event:"):
                self._event = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events
