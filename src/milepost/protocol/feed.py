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

    A feed that follows the run's children too has further events: `log`, an empty object, when the run's log has grown, `streams`
    likewise when a stream has begun or a writer of it ended, and
    `children-snapshot` and `children-rows`, which are `RunListFrame`s. Its `end` comes when the children have finished as well.
    """

    from_version: int | None = None
    version: int
    operations: list[Operation] | None = None
    run: dict[str, Any] | None = None


class SnapshotFrame(msgspec.Struct, rename="camel"):
    """A `snapshot` event: the whole run."""

    version: int
    run: RunObject


class RunDelta(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """What leads from one state of a run to a later one, for readers of several runs: as a `delta` about one run, with its id.

    `operations` lead from `fromVersion` to `version`; without `fromVersion` the document is as it was. `run` has the changed fields of
    the run, null for one that is gone. `matches` is false when the run does not match the filter of the feed any more.
    """

    id: str
    from_version: int | None = None
    version: int
    operations: list[Operation] | None = None
    run: dict[str, Any] | None = None
    matches: bool = True


class RunListFrame(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """An event of a live list: `snapshot` is the first page in full, `rows` what is new or changed of it.

    `rows` are whole runs: those that have come onto the page, and those whose `deltas` are not at hand any more. `deltas` lead on from
    the state that was told before. `order` names the runs of the page from top to bottom. `counts` are the statuses of all runs
    that match; it is empty for a list that is filtered by metadata. `order` and `counts` are left out when they are as they were.
    """

    rows: list[RunSummary] = []
    deltas: list[RunDelta] = []
    order: list[str] | None = None
    counts: dict[str, int] | None = None


class MatchingRunFrame(msgspec.Struct, omit_defaults=True):
    """An event about the runs that match a filter. Event names are `begin`, `run`, `delta`, `forget` and `present`; a `delta` is a
    `RunDelta`.

    begin: the first event; every run that matches now is told. present: every one has been. Both have no fields.
    run: a whole run in its newest state. `matches` is false when the run did match before and does not any more: it is told once,
    until it matches again.
    delta: leads on from the state that was told of a run before. So the reader keeps that state, with the document, until the run has
    ended, matches no more, or is named by `forget`. What is told next of such a run is a whole run.
    forget: the reader need not keep the documents of the runs named by `ids`; they match as before.
    """

    run: RunSummary | None = None
    matches: bool = True
    ids: list[str] = []


class StreamFrame(msgspec.Struct):
    """The event `stream` of a run that is watched with its streams: the events of the stream with this key have this number and a
    hyphen before their names, `0-batch` for example."""

    number: int
    key: str


class BatchFrame(msgspec.Struct, rename="camel"):
    """An event of a batch: how many of its runs have ended. `runCount` is null while it is not known."""

    id: str
    run_count: int | None
    finished_count: int


WATCHES_MAX = 1000
"""Things that one connection watches."""


class Watched(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True
):
    """One thing that a page watches: a run, one of its streams, all runs with a tag, or a list of runs.

    run: as `GET /api/v1/runs/{run}/feed` tells of it, with `children` so many of its children too. run and stream: as
    `GET /realtime/v1/streams/{run}/{key}`, from the chunk with the index `start` on, or with `latest` what is written from now on.
    tag: as `GET /api/v1/feed/matching-runs`, of the runs that are not older than `period`, such as `1d`. list: as
    `GET /api/v1/feed/runs` with these query parameters.

    run and streams: the run, and all its streams, also those that begin later. `streams` says by key which index to begin at, and
    the others are told from their beginning; with `onlyStreams` there are no others. An event `stream` (see `StreamFrame`) gives
    each stream a number, which stands before the names of its events. The run's last state comes behind all chunks.

    `token` is the place of its public token in the list of the request; without it the credentials of the request count.
    """

    run: str | None = None
    children: int | None = None
    stream: str | None = None
    start: int | None = None
    latest: bool = False
    streams: dict[str, int] | None = None
    only_streams: bool = False
    tag: str | None = None
    period: str | None = None
    list: dict[str, str] | None = None
    token: int | None = None


class WatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a page watches on one connection, each thing with a token of its own where it needs one.

    The events are those of each thing's own feed, with the number of the thing (its place in `watches`) and a hyphen before their
    names: `3-snapshot`. An event `begin` comes first. `3-refused` has a problem as every refusal has, with its `status`. Behind that,
    and behind `3-end`, nothing follows of that thing. When all are at their end, the connection ends; when it ends before, the page
    connects again.
    """

    watches: list[Watched]
    tokens: list[str] = []


def encode_event(event: str, data: bytes) -> bytes:
    """One server-sent event. `data` is JSON without line breaks."""
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


PING = b": ping\n\n"


class EventReader:
    """Turns the bytes of an event stream into (event, data) pairs; bytes may be cut anywhere.

    Source: HTML Living Standard, "Server-sent events"; only what `encode_event` writes, plus comments and `\\r\\n`.
    """

    def __init__(self) -> None:
        # The beginning of a line whose end has not come yet, in pieces: a line may be long, and is joined once.
        self._rest: list[bytes] = []
        self._event = "message"
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that became complete with these bytes, in order. Each byte is looked at once, however the stream is cut."""
        first, *others = data.split(b"\n")
        if not others:
            self._rest.append(data)
            return []
        lines = [b"".join([*self._rest, first]), *others]
        self._rest = [lines.pop()]
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
