"""One run: as it is stored, with its relatives, attempts and streams, and its result."""

from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection

from milepost.errors import RunNotFoundError
from milepost.model.run import AttemptEnd, QueuedReason, RunStatus
from milepost.model.scopes import View
from milepost.model.shown_keys import Keys
from milepost.protocol.queues import QueueWait
from milepost.protocol.runs import RelatedRun, RelatedRuns, RunAttempt, RunObject, RunResult
from milepost.protocol.triggering import JSON_TYPE, SUPER_JSON_TYPE, TEXT_TYPE
from milepost.reading import schedules, streams
from milepost.reading.documents import shown_documents
from milepost.reading.fields import error_of, fields_of, summary_fields, time_of, time_or_none
from milepost.store import attempts as attempt_store
from milepost.store import runs as run_store
from milepost.store.deletion import DELETED
from milepost.store.runs import RunFilter, RunRecord, RunRow
from milepost.store.streams import OUTPUT

CHILDREN_SHOWN_MAX = 100
ATTEMPTS_SHOWN_MAX = 100
_WAIT_FOR_A_WORKER = (RunStatus.PENDING_VERSION, RunStatus.QUEUED)
_UNFINISHED = tuple(status for status in RunStatus if not status.is_final)


class StoredRun(msgspec.Struct, frozen=True):
    """A run as it is stored, with its document (JSON) and the keys of its streams."""

    record: RunRecord
    metadata: bytes
    metadata_version: int
    streams: list[str]


def record_of(connection: Connection, run_id: str, *, values: bool = True) -> RunRecord:
    """A run without its document; with `values` its payload and output too. Raises RunNotFoundError."""
    found = run_store.load_records(connection, [run_id], values=values)
    if run_id not in found:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    return found[run_id]


def row_of(connection: Connection, run_id: str) -> RunRow:
    """The state of a run. Raises RunNotFoundError."""
    row = run_store.load_rows(connection, [run_id]).get(run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    return row


def stored(connection: Connection, run_ids: Sequence[str], keys: Keys) -> list[StoredRun]:
    """Runs with payloads and outputs as the texts that are stored, in the order asked for; those that are not there are left out."""
    records = run_store.load_records(connection, run_ids, values=True)
    documents = shown_documents(connection, list(records), keys)
    names = streams.keys_of(connection, list(records), OUTPUT)
    return [
        StoredRun(records[run_id], bytes(documents[run_id][0]), documents[run_id][1], names.get(run_id, []))
        for run_id in run_ids
        if run_id in records
    ]


def whole(
    connection: Connection,
    run_id: str,
    view: View,
    *,
    with_family: bool,
    queued_reason: Callable[[str], QueuedReason | None],
    queue_wait: Callable[[Connection, RunRow, QueuedReason | None], QueueWait | None] | None,
) -> RunObject:
    """A whole run. Raises RunNotFoundError.

    Args:
        queued_reason: why nobody can take a run of a task.
        queue_wait: why a queued run has not begun; None where that is not told.
        with_family: with its children, and with the documents of parent and root. Of all relatives those that are shown.
    """
    record = record_of(connection, run_id)
    row = record.row
    family = RunFilter(parent_id=run_id, shown=view.runs)
    children = run_store.list_ids(connection, family, limit=CHILDREN_SHOWN_MAX) if with_family else []
    ancestors = [row.parent_id, row.root_id] if row.parent_id else []
    if view.runs is not None and ancestors:
        shown = run_store.matching_ids(connection, RunFilter(shown=view.runs), ancestors)
        ancestors = [ancestor for ancestor in ancestors if ancestor in shown]
    related = _related(connection, ancestors, children, view.keys, with_documents=with_family)
    nobody, wait = None, None
    if row.status in _WAIT_FOR_A_WORKER:
        nobody = queued_reason(row.task)
    if row.status in (*_WAIT_FOR_A_WORKER, RunStatus.DELAYED):
        wait = None if queue_wait is None else queue_wait(connection, row, nobody)
        if wait is not None and view.runs is not None:
            # Whose runs these are is nothing for who is shown some runs only.
            wait = msgspec.structs.replace(wait, running_ids=[])
    metadata, version = shown_documents(connection, [run_id], view.keys)[run_id]
    fields = summary_fields(record, metadata, version)
    fields["related_runs"] = RelatedRuns(
        root=related.get(row.root_id) if row.parent_id else None,
        parent=related.get(row.parent_id) if row.parent_id else None,
        children=[related[child] for child in children] if with_family else None,
    )
    return RunObject(
        **fields,
        payload=_decoded(record.payload, record.payload_type),
        is_payload_deleted=record.payload_type == DELETED,
        output=_decoded(record.output, JSON_TYPE) if row.status is RunStatus.COMPLETED else None,
        child_counts=run_store.count_by_status(connection, family),
        streams=streams.summaries(connection, row, OUTPUT),
        queued_reason=nobody,
        queue_wait=wait,
        schedule=schedules.schedule_of_run(connection, run_id),
        attempts=_attempts(connection, row),
    )


def is_settled(connection: Connection, run_id: str, view: View) -> bool:
    """True when the run and all its children that are shown have finished. Raises RunNotFoundError."""
    if not row_of(connection, run_id).status.is_final:
        return False
    working = RunFilter(parent_id=run_id, statuses=_UNFINISHED, shown=view.runs)
    return not run_store.list_ids(connection, working, limit=1)


def result_of(record: RunRecord) -> RunResult:
    """The result of a run that has finished."""
    return result_from(record.row, record.output, record.error)


def result_from(row: RunRow, output: str | None, error: str | None) -> RunResult:
    """The result of a run that has finished: its row, and JSON texts."""
    ok = row.status is RunStatus.COMPLETED
    return RunResult(
        ok=ok,
        id=row.id,
        task_identifier=row.task,
        output=output if ok else None,
        output_type=JSON_TYPE if ok and output is not None else None,
        error=error_of(error) if error and not ok else None,
    )


def _related(
    connection: Connection,
    ancestors: Sequence[str],
    children: Sequence[str],
    keys: Keys,
    *,
    with_documents: bool,
) -> dict[str, RelatedRun]:
    """Relatives of a run; only ancestors, of which there are two at most, with their documents."""
    found = run_store.load_records(connection, list({*ancestors, *children}), values=False)
    documents = shown_documents(connection, list(dict.fromkeys(ancestors)), keys) if with_documents else {}
    related: dict[str, RelatedRun] = {}
    for run_id, record in found.items():
        metadata, version = documents.get(run_id, (None, None))
        related[run_id] = RelatedRun(**fields_of(record), metadata=metadata, metadata_version=version)
    return related


def _attempts(connection: Connection, row: RunRow) -> list[RunAttempt]:
    """The attempts of a run, the newest ones if they are very many."""
    attempts = [
        RunAttempt(
            number=ended.number,
            worker_id=ended.worker_id,
            claimed_at=time_or_none(ended.claimed_at),
            begun_at=time_or_none(ended.begun_at),
            ended_at=time_of(ended.ended_at),
            end=AttemptEnd(ended.end),
            is_charged=AttemptEnd(ended.end).is_charged,
            error=error_of(ended.error) if ended.error else None,
        )
        for ended in attempt_store.load_attempts(connection, row.id)[-ATTEMPTS_SHOWN_MAX:]
    ]
    if row.status in (RunStatus.EXECUTING, RunStatus.WAITING, RunStatus.COMPLETED):
        # The newest one stands in the run's own row.
        attempts.append(
            RunAttempt(
                number=row.attempt,
                worker_id=row.worker_id,
                claimed_at=time_or_none(row.claimed_at),
                begun_at=time_or_none(row.begun_at),
                ended_at=time_or_none(row.finished_at),
                end=AttemptEnd.RETURNED if row.status.is_final else None,
            )
        )
    return attempts


def _decoded(value: str | None, kind: str | None) -> msgspec.Raw | None:
    """A payload or output as plain JSON, whatever its encoding (protocol, section 11)."""
    if value is None:
        return None
    if kind == TEXT_TYPE:
        return msgspec.Raw(msgspec.json.encode(value))
    if kind == SUPER_JSON_TYPE:
        return msgspec.json.decode(value, type=dict[str, msgspec.Raw]).get("json", msgspec.Raw(b"null"))
    return msgspec.Raw(value.encode())
