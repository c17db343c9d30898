"""What readers are told of a run, as it follows from its row."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from milepost.model.run import QUEUED_STATUSES, RunError, RunStatus, asked_of
from milepost.store.runs import RunRecord, RunRow

_ENVIRONMENT = {"id": "env_default", "name": "default"}
_ERROR = msgspec.json.Decoder(RunError)

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
    "expired_at",
    "cancel_asked_at",
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
        "is_queued": status in QUEUED_STATUSES,
        "is_executing": status is RunStatus.EXECUTING,
        "is_waiting": status is RunStatus.WAITING,
        "is_completed": status.is_final,
        "is_success": status is RunStatus.COMPLETED,
        "is_failed": status.is_failure,
        "is_cancelled": status is RunStatus.CANCELED,
        "updated_at": time_of(row.updated_at),
        "started_at": time_of(row.started_at) if row.started_at else None,
        "finished_at": time_of(finished) if finished else None,
        "delayed_until": time_of(row.due_at)
        if status is RunStatus.DELAYED or (status is RunStatus.QUEUED and row.due_at > row.updated_at)
        else None,
        "expired_at": time_of(finished) if finished and status is RunStatus.EXPIRED else None,
        "cancel_asked_at": time_or_none(row.cancel_asked_at),
        # While a failed attempt waits for the next one, the error stays visible.
        "error": error_of(error) if error and status is not RunStatus.COMPLETED else None,
        "duration_ms": (finished - row.started_at) // 1000 if finished and row.started_at else 0,
        "attempt_count": row.attempt,
    }


def summary_fields(record: RunRecord, metadata: msgspec.Raw, version: int) -> dict[str, Any]:
    """The fields of a run in a list."""
    return {**fields_of(record), "metadata": metadata, "metadata_version": version}


def fields_of(record: RunRecord) -> dict[str, Any]:
    """The fields of a run that every answer has, without its document."""
    row = record.row
    asked = asked_of(row.options)
    return {
        **state_fields(row, record.error),
        "id": row.id,
        "task_identifier": row.task,
        "is_test": False,
        "created_at": time_of(row.created_at),
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
        "ttl": None if asked.ttl_ms is None else _span(asked.ttl_ms),
        "priority": asked.priority,
        "max_duration_seconds": None if asked.max_duration_ms is None else asked.max_duration_ms / 1000,
        "concurrency_key": row.concurrency_key,
        "idempotency_key": asked.idempotency_key,
        "replay_of": asked.replay_of,
    }


def _span(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{milliseconds}ms" if rest else f"{seconds}s"


def error_of(text: str) -> RunError:
    """An error as it is stored."""
    return _ERROR.decode(text)


def time_of(microseconds: int) -> datetime:
    """A time as messages have it."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def time_or_none(microseconds: int | None) -> datetime | None:
    """A time as messages have it, where there is one."""
    return None if microseconds is None else time_of(microseconds)


def text_of(microseconds: int) -> str:
    """A time as a text."""
    return time_of(microseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")
