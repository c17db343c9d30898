"""Reading what is committed: runs with their documents, lists, batches, logs. Runs in reader threads, never in the committer's."""

from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import Connection

from milepost.engine.documents import load_documents, read_documents
from milepost.engine.history import History
from milepost.engine.streams import OUTPUT, state_of
from milepost.errors import BatchNotFoundError, RunNotFoundError
from milepost.model import jsonvalue
from milepost.model.counted import KNOWN_MAX
from milepost.model.run import AttemptEnd, QueuedReason, RunError, RunStatus
from milepost.model.scopes import WHOLE_VIEW, RunScope, View
from milepost.model.shown_keys import Keys, shown_document
from milepost.protocol.runs import (
    LogLine,
    Pagination,
    RelatedRun,
    RelatedRuns,
    RunAttempt,
    RunLog,
    RunObject,
    RunPage,
    RunResult,
    RunSummary,
)
from milepost.protocol.streams import StreamState, StreamSummary
from milepost.protocol.triggering import (
    JSON_TYPE,
    SUPER_JSON_TYPE,
    TEXT_TYPE,
    BatchObject,
    BatchProcessing,
    BatchResults,
)
from milepost.store import attempts as attempt_store
from milepost.store import batches as batch_store
from milepost.store import documents as document_store
from milepost.store import records
from milepost.store import runs as run_store
from milepost.store import streams as stream_store
from milepost.store.batches import BatchRow
from milepost.store.database import Store
from milepost.store.runs import RunFilter, RunRecord, RunRow
from milepost.store.search import Search
from milepost.store.streams import ChunkRow

CHILDREN_SHOWN_MAX = 100
ATTEMPTS_SHOWN_MAX = 100
STREAM_ROWS_FEW = 4
STREAM_ROWS = 100
LOG_PAGE = 500
# Of one page of a batch's results, and how many runs of it are read at once: an output has up to 3 MB.
RESULTS_MAX = 1000
RESULTS_READ = 20
RESULTS_CHARACTERS_MAX = 8 * 1024 * 1024
# Candidates of a search whose documents are read at once.
CANDIDATES_MIN = 20
CANDIDATES_MAX = 500
_EMPTY = msgspec.Raw(b"{}")
_ENVIRONMENT = {"id": "env_default", "name": "default"}
_ERROR = msgspec.json.Decoder(RunError)
_UNFINISHED = tuple(status for status in RunStatus if not status.is_final)
_BY_URGENCY = (
    (RunStatus.FAILED,),
    (RunStatus.EXECUTING, RunStatus.WAITING),
    (RunStatus.QUEUED,),
    (RunStatus.COMPLETED,),
)
# Documents as JSON with their versions, by run.
_Documents: TypeAlias = dict[str, tuple[msgspec.Raw, int]]


class RunMatch(msgspec.Struct, frozen=True):
    """A run, and whether it matches a filter. `run` is None when its own columns do not match, and it is of no further interest."""

    run: RunSummary | None
    is_match: bool


class StreamPage(msgspec.Struct, frozen=True):
    """Chunks of a stream in order, how many it has in all, and how it stands."""

    rows: list[ChunkRow]
    next_index: int
    state: StreamState
    error: str | None


class StoredRun(msgspec.Struct, frozen=True):
    """A run as it is stored, with its document (JSON) and the keys of its streams."""

    record: RunRecord
    metadata: bytes
    metadata_version: int
    streams: list[str]


class Reader:
    """Reads for the server. Every method takes one consistent look at the store; thread-safe.

    Who is shown a part only says so by a `View`, or by `RunFilter.shown` and the `keys` of documents.

    Args:
        queued_reason: why nobody can take a run of a task, as the engine knows it.

    Attributes:
        queued_reason: the same.
        history: what documents were before.
    """

    def __init__(
        self,
        store: Store,
        *,
        metadata_size_max: int,
        queued_reason: Callable[[str], QueuedReason | None] = lambda task: None,
    ) -> None:
        self._store = store
        self.queued_reason = queued_reason
        self.history = History(store)
        self._metadata_size_max = metadata_size_max

    def check_place(self) -> None:
        """Raise UnavailableError when the database is no longer where it was opened."""
        self._store.check_place()

    def shows(self, shown: RunScope, run_id: str) -> bool:
        """Whether a run is among those that a token shows; one that does not exist is not."""
        with self._store.read() as connection:
            return bool(run_store.matching_ids(connection, RunFilter(shown=shown), [run_id]))

    def run(self, run_id: str, view: View = WHOLE_VIEW) -> RunObject:
        """A whole run. Of its relatives those that are shown. Raises RunNotFoundError."""
        return self._run(run_id, view, with_family=True)

    def snapshot(self, run_id: str, view: View = WHOLE_VIEW) -> RunObject:
        """A whole run as its feed begins with it: parent and root without their documents, no children. Raises RunNotFoundError."""
        return self._run(run_id, view, with_family=False)

    def stored_run(self, run_id: str, keys: Keys = None) -> StoredRun:
        """A run with its payload and output as the texts that are stored. Raises RunNotFoundError."""
        with self._store.read() as connection:
            record = self._record(connection, run_id)
            metadata, version = _documents(connection, [run_id], keys)[run_id]
            streams = _streams(connection, record.row, OUTPUT)
        return StoredRun(record, bytes(metadata), version, [stream.key for stream in streams])

    def child_counts(self, run_id: str, view: View = WHOLE_VIEW) -> dict[str, int]:
        """How many children of a run have each status."""
        with self._store.read() as connection:
            return run_store.count_by_status(connection, RunFilter(parent_id=run_id, shown=view.runs))

    def _run(self, run_id: str, view: View, *, with_family: bool) -> RunObject:
        with self._store.read() as connection:
            record = self._record(connection, run_id)
            row = record.row
            family = RunFilter(parent_id=run_id, shown=view.runs)
            children = run_store.list_ids(connection, family, limit=CHILDREN_SHOWN_MAX) if with_family else []
            ancestors = [row.parent_id, row.root_id] if row.parent_id else []
            if view.runs is not None and ancestors:
                shown = run_store.matching_ids(connection, RunFilter(shown=view.runs), ancestors)
                ancestors = [ancestor for ancestor in ancestors if ancestor in shown]
            related = self._related(connection, ancestors, children, view.keys, with_documents=with_family)
            counts = run_store.count_by_status(connection, family)
            metadata, version = _documents(connection, [run_id], view.keys)[run_id]
            streams = _streams(connection, row, OUTPUT)
            attempts = _attempts(connection, row)
        fields = _summary_fields(record, metadata, version)
        fields["related_runs"] = RelatedRuns(
            root=related.get(row.root_id) if row.parent_id else None,
            parent=related.get(row.parent_id) if row.parent_id else None,
            children=[related[child] for child in children] if with_family else None,
        )
        return RunObject(
            **fields,
            payload=_decoded(record.payload, record.payload_type),
            output=_decoded(record.output, JSON_TYPE) if row.status is RunStatus.COMPLETED else None,
            child_counts=counts,
            streams=streams,
            queued_reason=self.queued_reason(row.task) if row.status is RunStatus.QUEUED else None,
            attempts=attempts,
        )

    def summaries(self, run_ids: Sequence[str], keys: Keys = None) -> list[RunSummary]:
        """The runs that exist, in the order asked for."""
        with self._store.read() as connection:
            found = self._summaries(connection, run_ids, keys)
        return [found[run_id] for run_id in run_ids if run_id in found]

    def page(
        self,
        filter: RunFilter,
        *,
        size: int,
        after: str | None = None,
        before: str | None = None,
        keys: Keys = None,
    ) -> RunPage:
        """One page of matching runs, newest first; `before` wins over `after` (protocol, section 5.3)."""
        with self._store.read() as connection:
            # One more than asked tells whether there is a further page.
            ids, documents = self._list(connection, filter, limit=size + 1, after=after, before=before)
            more = len(ids) > size
            ids = ids[-size:] if before is not None else ids[:size]
            found = self._summaries(connection, ids, keys, documents)
        # What the way back leads to is not looked at: there was a run where the cursor came from.
        has_next = more if before is None else True
        has_previous = more if before is not None else after is not None
        return RunPage(
            data=[found[run_id] for run_id in ids],
            pagination=Pagination(
                next=ids[-1] if ids and has_next else None, previous=ids[0] if ids and has_previous else None
            ),
        )

    def first_page(
        self, filter: RunFilter, *, size: int, urgent_first: bool = False
    ) -> tuple[list[str], dict[str, int]]:
        """The ids of the newest matching runs, and how many runs match by status; no counts where documents decide.

        Args:
            urgent_first: the runs that a person wants to see first, see `_urgent`; not with a filter by status or document.
        """
        with self._store.read() as connection:
            ids = (
                _urgent(connection, filter, size)
                if urgent_first
                else self._list(connection, filter, limit=size)[0]
            )
            counts = run_store.count_by_status(connection, filter) if filter.metadata is None else {}
            return ids, counts

    def is_settled(self, run_id: str, view: View = WHOLE_VIEW) -> bool:
        """True when the run and all its children that are shown have finished. Raises RunNotFoundError."""
        with self._store.read() as connection:
            finished = self._record(connection, run_id, values=False).row.status.is_final
            working = RunFilter(parent_id=run_id, statuses=_UNFINISHED, shown=view.runs)
            return finished and not run_store.list_ids(connection, working, limit=1)

    def matching(
        self, filter: RunFilter, run_ids: Sequence[str], among: Container[str], keys: Keys = None
    ) -> dict[str, RunMatch]:
        """Which of these runs match. Runs that cannot match by what they are, whatever is in their documents, are read only where
        they are `among` others that are of interest."""
        with self._store.read() as connection:
            fitting = run_store.matching_ids(connection, filter, run_ids)
            wanted = [run_id for run_id in run_ids if run_id in fitting or run_id in among]
            records = run_store.load_records(connection, wanted, values=False)
            documents = _documents(connection, list(records), keys)
        matches = {run_id: RunMatch(None, False) for run_id in run_ids}
        for run_id, record in records.items():
            is_match = run_id in fitting and _is_meant(documents[run_id][0], filter)
            summary = RunSummary(**_summary_fields(record, *documents[run_id]))
            matches[run_id] = RunMatch(summary, is_match)
        return matches

    def result(self, run_id: str) -> RunResult | None:
        """The result of a run; None while it has none. Raises RunNotFoundError."""
        with self._store.read() as connection:
            record = self._record(connection, run_id)
        return _result(record) if record.row.status.is_final else None

    def metadata(self, run_id: str, keys: Keys = None) -> tuple[bytes, int]:
        """The document of a run as JSON, and its version. Raises RunNotFoundError."""
        with self._store.read() as connection:
            documents = read_documents(connection, [run_id])
        if run_id not in documents:
            raise RunNotFoundError(f"there is no run {run_id!r}")
        value, version = documents[run_id]
        return shown_document(value, keys), version

    def document(self, run_id: str) -> tuple[bytes, int, list[bytes]]:
        """The document of a run as JSON, its version, and some of the `once` ids that it has counted. Raises RunNotFoundError."""
        with self._store.read() as connection:
            record = self._record(connection, run_id, values=False)
            hot = load_documents(connection, [record.row], size_max=self._metadata_size_max)[run_id]
            counted = document_store.some_counted(connection, run_id, limit=KNOWN_MAX)
        return hot.document.encode(), hot.document.version, counted

    def row(self, run_id: str) -> RunRow:
        """The state of a run. Raises RunNotFoundError."""
        with self._store.read() as connection:
            rows = run_store.load_rows(connection, [run_id])
        if run_id not in rows:
            raise RunNotFoundError(f"there is no run {run_id!r}")
        return rows[run_id]

    def log(self, run_id: str, *, after: int) -> RunLog:
        """Lines of a run's log above the cursor. Raises RunNotFoundError."""
        with self._store.read() as connection:
            self._record(connection, run_id, values=False)
            lines = records.load_logs(connection, run_id, after=after, limit=LOG_PAGE + 1)
        shown = lines[:LOG_PAGE]
        return RunLog(
            data=[
                LogLine(
                    at=row.at, level=row.level, message=row.message, attempt=row.attempt, logger=row.logger
                )
                for _, row in shown
            ],
            next=shown[-1][0] if len(lines) > LOG_PAGE else None,
        )

    def stream_page(self, run_id: str, name: str, *, start: int, bytes_max: int) -> StreamPage:
        """Chunks of a stream from an index on, and how it stands. A stream that nobody has written to yet is empty.

        Args:
            bytes_max: about; there is at least one row of chunks when there are any.
        Raises: RunNotFoundError.
        """
        with self._store.read() as connection:
            row = self._record(connection, run_id, values=False).row
            stream = stream_store.load_stream(connection, run_id, name)
            next_index = stream.next_index if stream is not None else 0
            rows: list[ChunkRow] = []
            size, at = 0, start
            while at < next_index and size < bytes_max:
                # Few at first: a row may be large.
                page = stream_store.load_chunks(
                    connection, run_id, name, start=at, rows=STREAM_ROWS_FEW if not rows else STREAM_ROWS
                )
                if not page:
                    break
                rows += page
                size += sum(len(chunk.data) for chunk in page)
                at = rows[-1].next_index
            has_finished = row.status.is_final
            writers = stream_store.writer_states(connection, run_id, name).get(name, [])
        state, error = state_of(writers, run_has_finished=has_finished)
        return StreamPage(rows, next_index, state, error)

    def stream_position(self, run_id: str, name: str, writer: str) -> int:
        """The number of the first chunk of a writer that is not stored. Raises RunNotFoundError."""
        with self._store.read() as connection:
            self._record(connection, run_id, values=False)
            found = stream_store.load_writer(connection, run_id, name, writer)
        return found.next_number if found is not None else 0

    def streams(self, run_id: str, kind: str = OUTPUT) -> list[StreamSummary]:
        """The streams of a run, in the order in which they were begun. Raises RunNotFoundError."""
        with self._store.read() as connection:
            row = self._record(connection, run_id, values=False).row
            return _streams(connection, row, kind)

    def batch(self, batch_id: str) -> BatchObject:
        """A batch. Raises BatchNotFoundError."""
        with self._store.read() as connection:
            batch = _batch(connection, batch_id)
            ids = list(run_store.batch_runs(connection, batch_id).values())
        return BatchObject(
            id=batch.id,
            status=_batch_status(batch),
            created_at=_text(batch.created_at),
            updated_at=_text(batch.updated_at),
            run_count=batch.accepted_count if batch.known_count is None else batch.known_count,
            finished_count=batch.finished_count,
            runs=ids,
            processing=BatchProcessing(errors=[]),
        )

    def batch_row(self, batch_id: str) -> BatchRow:
        """The counts of a batch. Raises BatchNotFoundError."""
        with self._store.read() as connection:
            return _batch(connection, batch_id)

    def batch_results(self, batch_id: str, *, after: int = -1) -> BatchResults:
        """The results of the runs behind an index that have ended, in index order: a page of at most `RESULTS_MAX` runs, and of not
        much more than `RESULTS_CHARACTERS_MAX` of outputs. Raises BatchNotFoundError."""
        items: list[RunResult] = []
        characters = 0
        with self._store.read() as connection:
            _batch(connection, batch_id)
            page = list(run_store.batch_runs(connection, batch_id, after=after, limit=RESULTS_MAX).items())
            read = 0
            while read < len(page) and characters < RESULTS_CHARACTERS_MAX:
                part = page[read : read + RESULTS_READ]
                found = run_store.load_records(connection, [run_id for _, run_id in part], values=True)
                ended = [found[run_id] for _, run_id in part if found[run_id].row.status.is_final]
                items += map(_result, ended)
                characters += sum(len(record.output or "") for record in ended)
                read += len(part)
        is_last = read == len(page) < RESULTS_MAX
        return BatchResults(id=batch_id, items=items, next=None if is_last else page[read - 1][0])

    def _record(self, connection: Connection, run_id: str, *, values: bool = True) -> RunRecord:
        found = run_store.load_records(connection, [run_id], values=values)
        if run_id not in found:
            raise RunNotFoundError(f"there is no run {run_id!r}")
        return found[run_id]

    def _list(
        self,
        connection: Connection,
        filter: RunFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> tuple[list[str], "_Documents"]:
        """Up to `limit` matching runs as `run_store.list_ids` gives them, and the documents that were read for it."""
        if filter.metadata is None:
            ids = run_store.list_ids(connection, filter, limit=limit, after=after, before=before)
            return ids, {}
        search = Search(connection, filter)
        found: _Documents = {}
        # The index is seldom wrong: the first step is nearly always the last. Documents that are not indexed yet may take many.
        step = min(max(limit, CANDIDATES_MIN), CANDIDATES_MAX)
        while len(found) < limit:
            candidates = search.candidates(limit=step, after=after, before=before)
            documents = _documents(connection, candidates)
            for run_id in candidates:
                if _is_meant(documents[run_id][0], filter) and len(found) < limit:
                    found[run_id] = documents[run_id]
            if len(candidates) < step:
                break
            after, before = (candidates[-1], None) if before is None else (None, candidates[-1])
            step = min(2 * step, CANDIDATES_MAX)
        return list(found) if before is None else list(found)[::-1], found

    def _summaries(
        self,
        connection: Connection,
        run_ids: Sequence[str],
        keys: Keys = None,
        known: "_Documents | None" = None,
    ) -> dict[str, RunSummary]:
        if not run_ids:
            return {}
        found = run_store.load_records(connection, run_ids, values=False)
        documents = _only(known, keys) if known else _documents(connection, list(found), keys)
        return {
            run_id: RunSummary(**_summary_fields(record, *documents[run_id]))
            for run_id, record in found.items()
        }

    def _related(
        self,
        connection: Connection,
        ancestors: Sequence[str],
        children: Sequence[str],
        keys: Keys,
        *,
        with_documents: bool,
    ) -> dict[str, RelatedRun]:
        """Relatives of a run; only ancestors, of which there are two at most, with their documents."""
        found = run_store.load_records(connection, list({*ancestors, *children}), values=False)
        documents = _documents(connection, list(dict.fromkeys(ancestors)), keys) if with_documents else {}
        related: dict[str, RelatedRun] = {}
        for run_id, record in found.items():
            metadata, version = documents.get(run_id, (None, None))
            related[run_id] = RelatedRun(**_fields(record), metadata=metadata, metadata_version=version)
        return related


def _documents(connection: Connection, ids: Sequence[str], keys: Keys = None) -> "_Documents":
    return {
        run_id: (msgspec.Raw(shown_document(value, keys)), version)
        for run_id, (value, version) in read_documents(connection, ids).items()
    }


def _streams(connection: Connection, row: RunRow, kind: str) -> list[StreamSummary]:
    """The streams of a run, in the order in which they were begun."""
    found = [
        stream for stream in stream_store.load_streams(connection, [row.id]) if stream.name.startswith(kind)
    ]
    writers = stream_store.writer_states(connection, row.id) if found else {}
    summaries: list[StreamSummary] = []
    for stream in sorted(found, key=lambda stream: (stream.created_at, stream.name)):
        state, error = state_of(writers.get(stream.name, []), run_has_finished=row.status.is_final)
        summaries.append(
            StreamSummary(
                key=stream.name.removeprefix(kind),
                chunk_count=stream.next_index,
                size_bytes=stream.size_bytes,
                state=state,
                error=error,
                created_at=_text(stream.created_at),
                updated_at=_text(stream.updated_at),
            )
        )
    return summaries


def _only(documents: "_Documents", keys: Keys) -> "_Documents":
    """The documents with these keys only."""
    if keys is None:
        return documents
    return {
        run_id: (msgspec.Raw(shown_document(bytes(value), keys)), version)
        for run_id, (value, version) in documents.items()
    }


def _urgent(connection: Connection, filter: RunFilter, size: int) -> list[str]:
    """Up to `size` runs: failed ones, then those at work, queued, completed; the newest first of each.

    Failed ones take at most half of the places, unless the runs at work leave more of them.
    """
    failed, working, *others = (
        run_store.list_ids(connection, msgspec.structs.replace(filter, statuses=statuses), limit=size)
        for statuses in _BY_URGENCY
    )
    ids = [*failed[: max((size + 1) // 2, size - len(working))], *working]
    for more in others:
        ids += more
    return ids[:size]


def _is_meant(document: msgspec.Raw, filter: RunFilter) -> bool:
    return filter.metadata is None or filter.metadata.matches(jsonvalue.decode(bytes(document)))


# The fields of `RunFields` that the state of a run decides.
STATE_FIELDS = (
    "status",
    "is_queued",
    "is_executing",
    "is_waiting",
    "is_completed",
    "is_success",
    "is_failed",
    "is_cancelled",
    "updated_at",
    "started_at",
    "finished_at",
    "delayed_until",
    "error",
    "duration_ms",
    "attempt_count",
)


def state_fields(row: RunRow, error: str | None) -> dict[str, Any]:
    """The fields of a run that its state decides, under the names of `STATE_FIELDS`."""
    status = row.status
    finished = row.finished_at
    return {
        "status": status,
        "is_queued": status is RunStatus.QUEUED,
        "is_executing": status is RunStatus.EXECUTING,
        "is_waiting": status is RunStatus.WAITING,
        "is_completed": status.is_final,
        "is_success": status is RunStatus.COMPLETED,
        "is_failed": status is RunStatus.FAILED,
        "is_cancelled": False,
        "updated_at": _time(row.updated_at),
        "started_at": _time(row.started_at) if row.started_at else None,
        "finished_at": _time(finished) if finished else None,
        "delayed_until": _time(row.due_at)
        if status is RunStatus.QUEUED and row.due_at > row.updated_at
        else None,
        # While a failed attempt waits for the next one, the error stays visible.
        "error": _ERROR.decode(error) if error and status is not RunStatus.COMPLETED else None,
        "duration_ms": (finished - row.started_at) // 1000 if finished and row.started_at else 0,
        "attempt_count": row.attempt,
    }


def _attempts(connection: Connection, row: RunRow) -> list[RunAttempt]:
    """The attempts of a run, the newest ones if they are very many."""
    attempts = [
        RunAttempt(
            number=ended.number,
            worker_id=ended.worker_id,
            claimed_at=_time_or_none(ended.claimed_at),
            begun_at=_time_or_none(ended.begun_at),
            ended_at=_time(ended.ended_at),
            end=AttemptEnd(ended.end),
            is_charged=AttemptEnd(ended.end).is_charged,
            error=_ERROR.decode(ended.error) if ended.error else None,
        )
        for ended in attempt_store.load_attempts(connection, row.id)[-ATTEMPTS_SHOWN_MAX:]
    ]
    if row.status in (RunStatus.EXECUTING, RunStatus.WAITING, RunStatus.COMPLETED):
        # The newest one stands in the run's own row.
        attempts.append(
            RunAttempt(
                number=row.attempt,
                worker_id=row.worker_id,
                claimed_at=_time_or_none(row.claimed_at),
                begun_at=_time_or_none(row.begun_at),
                ended_at=_time_or_none(row.finished_at),
                end=AttemptEnd.RETURNED if row.status.is_final else None,
            )
        )
    return attempts


def _summary_fields(record: RunRecord, metadata: msgspec.Raw, version: int) -> dict[str, Any]:
    return {**_fields(record), "metadata": metadata, "metadata_version": version}


def _fields(record: RunRecord) -> dict[str, Any]:
    row = record.row
    return {
        **state_fields(row, record.error),
        "id": row.id,
        "task_identifier": row.task,
        "is_test": False,
        "created_at": _time(row.created_at),
        "tags": record.tags,
        "cost_in_cents": 0,
        "base_cost_in_cents": 0,
        "batch_id": row.batch_id,
        "parent_id": row.parent_id,
        "root_id": row.root_id,
        "queue": row.queue,
        "depth": row.depth,
        "trigger_function": row.trigger_function,
        "env": _ENVIRONMENT,
    }


def _result(record: RunRecord) -> RunResult:
    row = record.row
    ok = row.status is RunStatus.COMPLETED
    return RunResult(
        ok=ok,
        id=row.id,
        task_identifier=row.task,
        output=record.output if ok else None,
        output_type=JSON_TYPE if ok and record.output is not None else None,
        error=_ERROR.decode(record.error) if record.error and not ok else None,
    )


def _decoded(value: str | None, kind: str | None) -> msgspec.Raw | None:
    """A payload or output as plain JSON, whatever its encoding (protocol, section 11)."""
    if value is None:
        return None
    if kind == TEXT_TYPE:
        return msgspec.Raw(msgspec.json.encode(value))
    if kind == SUPER_JSON_TYPE:
        return msgspec.json.decode(value, type=dict[str, msgspec.Raw]).get("json", msgspec.Raw(b"null"))
    return msgspec.Raw(value.encode())


def _batch(connection: Connection, batch_id: str) -> BatchRow:
    batch = batch_store.load_batches(connection, [batch_id]).get(batch_id)
    if batch is None:
        raise BatchNotFoundError(f"there is no batch {batch_id!r}")
    return batch


def _batch_status(batch: BatchRow) -> str:
    if batch.finished_count >= batch.run_count:
        return "COMPLETED"
    return "PROCESSING" if batch.accepted_count >= batch.run_count else "PENDING"


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def _time_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _time(microseconds)


def _text(microseconds: int) -> str:
    return _time(microseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")
