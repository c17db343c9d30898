"""The feeds of runs for the official JavaScript clients: long polls that answer with whole rows (protocol, section 7).

The offset of an answer is what the client has been told. Of one run it is what the run looked like, so nothing is kept between two
polls: a client is told the row whenever its offset is another one than that of now. Of many runs it is a number of the feed, which
counts changes of rows; a feed lives for as long as somebody polls it, and a client that comes with an offset of another feed, after
a restart for example, is told all rows again.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from milepost.errors import BadRequestError
from milepost.feed.hub import Hub, RowsWatch
from milepost.feed.streams import paused_for
from milepost.feed.waiting import in_reader, woken
from milepost.model.run import RunStatus
from milepost.model.scopes import View
from milepost.protocol.triggering import JSON_TYPE
from milepost.reading.fields import state_fields
from milepost.reading.reader import Reader
from milepost.reading.runs import StoredRun
from milepost.server import requests
from milepost.server.auth import caller_of
from milepost.store.runs import RunFilter

# How long a poll waits for a change; below what stands before a server cuts off.
POLL_SECONDS = 20.0
# What changes within this time is told together. A client that has an answer asks again at once.
JOINED_SECONDS = 0.05
# A feed of many runs lives so long after its last poll. There are at most so many; beyond, those that were asked for longest ago go.
LINGER_SECONDS = 30.0
FEEDS_MAX = 500
RUNS_MAX = 1000
# Rows that are read at once, and about how many bytes of them one answer has, because the clients take an answer as a whole.
ROWS_READ = 50
ANSWER_BYTES = 8 * 1024 * 1024
CREATED_AT = "24h"

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
_UP_TO_DATE = b'{"headers":{"control":"up-to-date"}}'
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPECIAL = re.compile(r'(["\\])')


class Realtime:
    """The endpoints of the realtime feeds.

    Args:
        clock: microseconds since 1970.
    """

    def __init__(self, hub: Hub, reader: Reader, clock: Callable[[], int]) -> None:
        self._hub = hub
        self._reader = reader
        self._clock = clock
        # In the order in which they were asked for last.
        self._feeds: dict[Any, _RowsFeed] = {}

    async def run(self, request: Request) -> Response:
        """A run: its row at once, and with `live` as soon as it is another than the client has. Raises RunNotFoundError."""
        run_id = request.path_params["run"]
        view, skipped = _shown(request)
        known, is_live = _asked(request)
        wake = asyncio.Event()

        def read() -> tuple[bytes, str]:
            row = _ShownRow(self._reader.stored_run(run_id, view.keys), skipped)
            return row.json, f"{row.fingerprint}_0"

        # Registered before the look, or a change in between would be lost.
        topic = self._hub.watch_run(run_id, wake, view)
        try:
            row, offset = await in_reader(read)
            if is_live:
                loop = asyncio.get_running_loop()
                until = loop.time() + POLL_SECONDS
                while offset == known and not self._hub.is_closed and (left := until - loop.time()) > 0:
                    if not await woken(wake, left) or self._hub.is_closed:
                        break
                    await asyncio.sleep(JOINED_SECONDS)
                    wake.clear()
                    row, offset = await in_reader(read)
        finally:
            self._hub.leave_run(topic, wake)
        rows = [] if offset == known else [_message(run_id, row, is_new=known == "-1")]
        return _answer(rows, run_id, offset, None if is_live else _schema(skipped))

    async def tagged(self, request: Request) -> Response:
        """Runs that have all of some tags, and were created within a span. Raises BadRequestError without tags or with a bad span."""
        tags = tuple(dict.fromkeys(tag for tag in request.query_params.get("tags", "").split(",") if tag))
        if not tags:
            # A page that has lost its user's id is not shown everybody's runs.
            raise BadRequestError(
                "tags names one or more tags, joined with commas, and it is empty", field="tags"
            )
        view, skipped = _shown(request)
        # The bound stays where it was at the first request.
        found = re.fullmatch(r"runs-([0-9]{1,17})", request.query_params.get("handle", ""))
        if found is not None and request.query_params.get("offset", "-1") != "-1":
            created_from = int(found[1])
        else:
            span = (
                requests.period_seconds(request.query_params.get("createdAt") or CREATED_AT, "createdAt")
                * 1_000_000
            )
            # Rounded a little, so that pages which come one after the other share a feed.
            step = max(1_000_000, span // 100)
            created_from = max(0, (self._clock() - span) // step * step)
        filter = RunFilter(tags=tags[:1], all_tags=tags[1:], created_from=created_from, shown=view.runs)
        return await self._rows(request, filter, view, skipped, f"runs-{created_from}")

    async def batch(self, request: Request) -> Response:
        """The runs of a batch. Raises BatchNotFoundError."""
        batch_id = request.path_params["batch"]
        await in_reader(lambda: self._reader.batch_row(batch_id))
        view, skipped = _shown(request)
        filter = RunFilter(batch_id=batch_id, shown=view.runs)
        return await self._rows(request, filter, view, skipped, batch_id)

    async def _rows(
        self, request: Request, filter: RunFilter, view: View, skipped: frozenset[str], handle: str
    ) -> Response:
        known, is_live = _asked(request)
        with_feed = self._feed(filter, view, skipped)
        with_feed.polls += 1
        try:
            rows, offset, is_up_to_date = await with_feed.poll(known, is_live=is_live)
        finally:
            with_feed.polls -= 1
            self._let_go_later(with_feed)
        schema = None if is_live else _schema(skipped)
        return _answer(rows, handle, offset, schema, is_up_to_date=is_up_to_date)

    def _feed(self, filter: RunFilter, view: View, skipped: frozenset[str]) -> "_RowsFeed":
        key = filter, view, skipped
        feed = self._feeds.pop(key, None)
        if feed is None:
            while len(self._feeds) >= FEEDS_MAX:
                self._end(next(iter(self._feeds.values())))
            feed = _RowsFeed(self._hub, self._reader, key)
            self._hub.watch_rows(feed.watch)
        self._feeds[key] = feed
        return feed

    def _let_go_later(self, feed: "_RowsFeed") -> None:
        if feed.polls == 0:
            if feed.timer is not None:
                feed.timer.cancel()
            feed.timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._let_go, feed)

    def _let_go(self, feed: "_RowsFeed") -> None:
        if feed.polls == 0:
            self._end(feed)

    def _end(self, feed: "_RowsFeed") -> None:
        self._hub.leave_rows(feed.watch)
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]


class _RowsFeed:
    """The rows of the newest runs that match a filter, for all who poll the same.

    Each row has the number of its last change. An offset is the number up to which a client has been told, with a text that tells
    this feed from one that was there before it.

    Attributes:
        polls: how many there are at this moment.
        timer: ends the feed when nobody has polled it for long.
    """

    def __init__(self, hub: Hub, reader: Reader, key: tuple[RunFilter, View, frozenset[str]]) -> None:
        self.key = key
        self._filter, self._view, self._skipped = key
        self.watch = RowsWatch(self._filter)
        self.polls = 0
        self.timer: asyncio.TimerHandle | None = None
        self._hub = hub
        self._reader = reader
        # A number, because the clients take an offset for two of them.
        self._id = str(secrets.randbits(48))
        # By run, those that have changed last at the end; 0 is no row's number.
        self._numbers: dict[str, int] = {}
        self._newest = 0
        # What each row was when it was read last; a row that has not been read yet has none.
        self._fingerprints: dict[str, int] = {}
        self._refreshing = asyncio.Lock()
        self._list_at = 0.0

    async def poll(self, known: str, *, is_live: bool) -> tuple[list[bytes], str, bool]:
        """What to tell a client with this offset: messages, its next offset, and whether that is all there is."""
        number, _, id = known.partition("_")
        told = int(number) if id == self._id and re.fullmatch("[0-9]{1,18}", number) else -1
        loop = asyncio.get_running_loop()
        until = loop.time() + POLL_SECONDS
        await self._refresh()
        while (
            is_live and self._newest == told and not self._hub.is_closed and (left := until - loop.time()) > 0
        ):
            if not await woken(self.watch.wake, left) or self._hub.is_closed:
                break
            await asyncio.sleep(JOINED_SECONDS)
            await self._refresh()
        return await self._rows_after(told)

    async def _refresh(self) -> None:
        """Take in what has happened since the last time."""
        async with self._refreshing:
            watch = self.watch
            if watch.is_stale:
                await asyncio.sleep(self._list_at - asyncio.get_running_loop().time())
            # Before the readings: what happens meanwhile is looked at the next time.
            watch.wake.clear()
            was_stale, watch.is_stale = watch.is_stale, False
            touched, watch.touched = watch.touched, set()
            try:
                if was_stale:
                    await self._list()
                await self._compare([run_id for run_id in touched if run_id in self._numbers])
            except BaseException:
                # Whoever comes next does it.
                watch.is_stale = watch.is_stale or was_stale
                watch.touched |= touched
                raise

    async def _list(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ids = await in_reader(lambda: self._reader.newest_ids(self._filter, limit=RUNS_MAX))
        self._list_at = began + paused_for(loop.time() - began)
        shown = self.watch.shown = frozenset(ids)
        for run_id in [run_id for run_id in self._numbers if run_id not in shown]:
            del self._numbers[run_id]
            self._fingerprints.pop(run_id, None)
        for run_id in reversed(ids):
            if run_id not in self._numbers:
                self._count(run_id)

    async def _compare(self, touched: list[str]) -> None:
        """Count the rows that are others than they were. One that has not been read yet may be on its way to somebody."""
        for first in range(0, len(touched), ROWS_READ):
            part = touched[first : first + ROWS_READ]
            rows = await self._read([run_id for run_id in part if run_id in self._fingerprints])
            for run_id in part:
                row = rows.get(run_id)
                if row is None:
                    self._count(run_id)
                elif row.fingerprint != self._fingerprints[run_id]:
                    self._fingerprints[run_id] = row.fingerprint
                    self._count(run_id)

    def _count(self, run_id: str) -> None:
        self._newest += 1
        self._numbers.pop(run_id, None)
        self._numbers[run_id] = self._newest

    async def _rows_after(self, told: int) -> tuple[list[bytes], str, bool]:
        """The rows with a higher number, oldest change first, until there are many bytes of them."""
        newest = self._newest
        due = [(run_id, number) for run_id, number in self._numbers.items() if number > told]
        messages: list[bytes] = []
        size, reached = 0, told
        for first in range(0, len(due), ROWS_READ):
            part = due[first : first + ROWS_READ]
            rows = await self._read([run_id for run_id, _ in part])
            for run_id, number in part:
                row = rows.get(run_id)
                if row is not None:
                    # What it is by now; if it has changed meanwhile, it is told again.
                    self._fingerprints.setdefault(run_id, row.fingerprint)
                    messages.append(_message(run_id, row.json, is_new=told == -1))
                    size += len(row.json)
                reached = number
                if size > ANSWER_BYTES and number != due[-1][1]:
                    return messages, f"{reached}_{self._id}", False
        return messages, f"{newest}_{self._id}", True

    async def _read(self, run_ids: list[str]) -> dict[str, "_ShownRow"]:
        def read() -> dict[str, _ShownRow]:
            found = self._reader.stored_runs(run_ids, self._view.keys)
            return {run.record.row.id: _ShownRow(run, self._skipped) for run in found}

        return await in_reader(read)


def _shown(request: Request) -> tuple[View, frozenset[str]]:
    """What the caller is shown, and the columns that are left out."""
    view = caller_of(request).view.in_feeds()
    asked = request.query_params.get("skipColumns", "").split(",")
    return view, frozenset({*asked, *view.skipped} & (_TYPES.keys() - _ALWAYS))


def _asked(request: Request) -> tuple[str, bool]:
    """The client's offset, and whether it waits."""
    return request.query_params.get("offset", "-1"), request.query_params.get("live") == "true"


def _answer(
    rows: list[bytes], handle: str, offset: str, schema: str | None, *, is_up_to_date: bool = True
) -> Response:
    """An answer with these messages. `schema`: only answers to requests that do not wait have it."""
    headers = {"cache-control": "no-store", "electric-handle": handle, "electric-offset": offset}
    if is_up_to_date:
        rows = [*rows, _UP_TO_DATE]
        headers["electric-up-to-date"] = ""
    if schema is None:
        headers["electric-cursor"] = offset.partition("_")[0]
    else:
        headers["electric-schema"] = schema
    return Response(b"[" + b",".join(rows) + b"]", 200, headers, "application/json")


def _message(run_id: str, row: bytes, *, is_new: bool) -> bytes:
    operation = "insert" if is_new else "update"
    return msgspec.json.encode(
        {"key": run_id, "value": msgspec.Raw(row), "headers": {"operation": operation}}
    )


class _ShownRow:
    """A row as JSON, without some columns.

    Attributes:
        fingerprint: tells what is shown apart. When it was updated does not count: that may have been where the client sees nothing.
    """

    __slots__ = ("fingerprint", "json")

    def __init__(self, run: StoredRun, skipped: Collection[str]) -> None:
        row = {name: value for name, value in _row(run).items() if name not in skipped}
        self.json = msgspec.json.encode(row)
        del row["updatedAt"]
        self.fingerprint = int.from_bytes(blake2b(msgspec.json.encode(row), digest_size=7).digest())


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
        "payloadType": JSON_TYPE if record.payload is None else record.payload_type or JSON_TYPE,
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
