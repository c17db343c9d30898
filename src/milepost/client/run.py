"""`Run`: a run as a reader sees it, whichever call it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from milepost.client.shape import read_document
from milepost.model.run import RunError, RunStatus
from milepost.protocol.runs import RunObject, RunSummary

ShapeT = TypeVar("ShapeT")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run at one moment. Times are aware UTC.

    Attributes:
        id: the run's id.
        status: where it stands; `is_completed` and its kin answer the usual questions.
        task_id: the task that it is of.
        metadata: its document, a `dict` of the reader's own.
        metadata_version: how many changes the document has seen.
        payload: what it was triggered with, as JSON; None in lists.
        output: what it returned, as JSON; None in lists and before success.
        error: the user's error as data, after a failed attempt.
        tags: its tags.
        parent_id: the run that triggered it; None when it was triggered from outside.
        root_id: the run at the top of the tree, itself when it has no parent.
        batch_id: the batch that it was triggered with.
        queue: the queue that it goes through.
        attempt_count: attempts begun so far.
        created_at: when it was triggered.
        updated_at: when anything about it changed last.
        started_at: when its first attempt began.
        finished_at: when it ended.
        duration_ms: how long it has been executing.
        depth: how many runs are above it; None in lists.
        child_counts: its children by status; empty in lists.
    """

    id: str
    status: RunStatus
    task_id: str
    metadata: dict[str, Any]
    metadata_version: int
    payload: Any = None
    output: Any = None
    error: RunError | None = None
    tags: list[str]
    parent_id: str | None = None
    root_id: str
    batch_id: str | None = None
    queue: str
    attempt_count: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_ms: int
    depth: int | None = None
    child_counts: dict[str, int] = field(default_factory=dict[str, int])
    is_queued: bool
    is_executing: bool
    is_waiting: bool
    is_completed: bool
    is_success: bool
    is_failed: bool
    is_cancelled: bool

    def metadata_as(self, kind: type[ShapeT]) -> ShapeT:
        """The metadata as a typed value: a Pydantic model, dataclass, TypedDict, msgspec Struct or attrs class (M77).

        Raises: MetadataValueError when the document does not have that form.
        """
        return read_document(self.metadata, kind)


class WholeRun(RunObject, omit_defaults=True, rename="camel", kw_only=True):
    """`RunObject` for reading: msgspec can write an optional raw value and cannot read one."""

    payload: Any = None
    output: Any = None
    # Nothing here shows relatives, so they are passed over.
    related_runs: Any = None


def run_from_wire(wire: RunSummary, metadata: dict[str, Any] | None = None) -> Run:
    """A run out of a message. `metadata` is the document when it is at hand already; it is taken over, not copied."""
    whole = wire if isinstance(wire, WholeRun) else None
    return Run(
        id=wire.id,
        status=wire.status,
        task_id=wire.task_identifier,
        metadata=msgspec.json.decode(wire.metadata) if metadata is None else metadata,
        metadata_version=wire.metadata_version,
        payload=whole.payload if whole else None,
        output=whole.output if whole else None,
        error=wire.error,
        tags=wire.tags,
        parent_id=wire.parent_id,
        root_id=wire.root_id,
        batch_id=wire.batch_id,
        queue=wire.queue,
        attempt_count=wire.attempt_count,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        started_at=wire.started_at,
        finished_at=wire.finished_at,
        duration_ms=wire.duration_ms,
        depth=whole.depth if whole else None,
        child_counts=whole.child_counts if whole else {},
        is_queued=wire.is_queued,
        is_executing=wire.is_executing,
        is_waiting=wire.is_waiting,
        is_completed=wire.is_completed,
        is_success=wire.is_success,
        is_failed=wire.is_failed,
        is_cancelled=wire.is_cancelled,
    )
