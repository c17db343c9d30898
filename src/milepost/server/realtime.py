"""The feed of a run for the official JavaScript clients: long polls that answer with the whole row (protocol, section 7).

The offset of an answer is what the run looked like then, so nothing is kept for a client between two polls: a client is told the row
whenever its offset is another one than that of now.
"""

import asyncio
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from milepost.feed.hub import Hub
from milepost.feed.waiting import in_reader, woken
from milepost.model.run import RunStatus
from milepost.protocol.streams import STREAMS_MAX
from milepost.protocol.triggering import JSON_TYPE
from milepost.reading.fields import state_fields
from milepost.reading.reader import Reader
from milepost.reading.runs import StoredRun
from milepost.server.auth import caller_of

# How long a poll waits for a change; below what stands before a server cuts off.
POLL_SECONDS = 20.0
# What changes within this time is told together. A client that has an answer asks again at once.
JOINED_SECONDS = 0.05

_STATUSES = {
    RunStatus.QUEUED: "PENDING",
    RunStatus.WAITING: "WAITING_TO_RESUME",
    RunStatus.COMPLETED: "COMPLETED_SUCCESSFULLY",
    RunStatus.FAILED: "COMPLETED_WITH_ERRORS",
}
_TYPES: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {"type": "text"}
        for name in (
            "id", "friendlyId", "taskIdentifier", "status", "payload", "payloadType", "metadata", "metadataType", "output",
            "outputType",
        )
    },
    **{name: {"type": "timestamp"} for name in ("createdAt", "updatedAt", "startedAt", "completedAt")},
    "isTest": {"type": "bool"},
    "usageDurationMs": {"type": "int4"},
    "costInCents": {"type": "float8"},
    "baseCostInCents": {"type": "float8"},
    "runTags": {"type": "text", "dims": 1},
    "realtimeStreams": {"type": "text", "dims": 1},
    "error": {"type": "jsonb"},
}  # fmt: skip
# Without these the clients cannot read a row.
_ALWAYS = frozenset({"id", "friendlyId", "taskIdentifier", "status", "createdAt", "updatedAt"})
_UP_TO_DATE = {"headers": {"control": "up-to-date"}}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPECIAL = re.compile(r'(["\\])')


class Realtime:
    """The endpoints of the realtime feeds."""

    def __init__(self, hub: Hub, reader: Reader) -> None:
        self._hub = hub
        self._reader = reader

    async def run(self, request: Request) -> Response:
        """A run: its row at once, and with `live` as soon as it is another than the client has. Raises RunNotFoundError."""
        run_id = request.path_params["run"]
        query = request.query_params
        view = caller_of(request).view.in_feeds()
        skipped = {*query.get("skipColumns", "").split(","), *view.skipped} - _ALWAYS
        known, is_live = query.get("offset", "-1"), query.get("live") == "true"
        wake = asyncio.Event()
        # Registered before the look, or a change in between would be lost.
        topic = self._hub.watch_run(run_id, wake, view)
        try:
            found = await in_reader(lambda: self._reader.stored_run(run_id, view.keys))
            if is_live and _offset(found) == known and not self._hub.is_closed:
                loop = asyncio.get_running_loop()
                until = loop.time() + POLL_SECONDS
                while _offset(found) == known and (left := until - loop.time()) > 0:
                    if not await woken(wake, left) or self._hub.is_closed:
                        break
                    await asyncio.sleep(JOINED_SECONDS)
                    wake.clear()
                    found = await in_reader(lambda: self._reader.stored_run(run_id, view.keys))
        finally:
            self._hub.leave_run(topic, wake)
        offset = _offset(found)
        messages: list[Any] = [_UP_TO_DATE]
        if offset != known:
            operation = "insert" if known == "-1" else "update"
            row = {name: value for name, value in _row(found).items() if name not in skipped}
            messages.insert(0, {"key": run_id, "value": row, "headers": {"operation": operation}})
        headers = {
            "cache-control": "no-store",
            "electric-handle": run_id,
            "electric-offset": offset,
            "electric-up-to-date": "",
        }
        if is_live:
            headers["electric-cursor"] = offset.partition("_")[0]
        else:
            headers["electric-schema"] = _schema(skipped)
        return Response(msgspec.json.encode(messages), 200, headers, "application/json")


def _offset(run: StoredRun) -> str:
    """What tells two states of a run apart, as two numbers."""
    return f"{run.record.row.updated_at}_{run.metadata_version * (STREAMS_MAX + 1) + len(run.streams)}"


def _schema(skipped: Collection[str]) -> str:
    return msgspec.json.encode({name: kind for name, kind in _TYPES.items() if name not in skipped}).decode()


def _row(run: StoredRun) -> dict[str, str | None]:
    """The row as texts, as PostgreSQL would have them."""
    record, row = run.record, run.record.row
    is_success = row.status is RunStatus.COMPLETED
    return {
        "id": row.id,
        "friendlyId": row.id,
        "taskIdentifier": row.task,
        "status": _STATUSES.get(row.status, row.status),
        "createdAt": _time(row.created_at),
        "updatedAt": _time(row.updated_at),
        "startedAt": _time(row.started_at),
        "completedAt": _time(row.finished_at),
        "isTest": "f",
        "usageDurationMs": str(state_fields(row, None)["duration_ms"]),
        "costInCents": "0",
        "baseCostInCents": "0",
        "payload": record.payload,
        "payloadType": record.payload_type or JSON_TYPE,
        "metadata": run.metadata.decode(),
        "metadataType": JSON_TYPE,
        "output": record.output if is_success else None,
        "outputType": JSON_TYPE,
        "runTags": _array(record.tags),
        "realtimeStreams": _array(run.streams),
        "error": None if is_success else _error(record.error),
    }


def _time(microseconds: int | None) -> str | None:
    if not microseconds:
        return None
    at = (_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None)
    # In UTC and without saying so: the clients add it.
    return at.isoformat(timespec="milliseconds")


def _array(texts: Collection[str]) -> str:
    return "{" + ",".join('"' + _SPECIAL.sub(r"\\\1", text) + '"' for text in texts) + "}"


def _error(stored: str | None) -> str | None:
    if stored is None:
        return None
    error = cast("dict[str, Any]", msgspec.json.decode(stored))
    known = {
        "type": "BUILT_IN_ERROR",
        "name": error.get("name") or "Error",
        "message": error["message"],
        "stackTrace": error.get("stackTrace") or "",
    }
    return msgspec.json.encode(known).decode()
