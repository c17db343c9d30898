"""Background tasks for Python whose runs carry live metadata."""

from typing import TYPE_CHECKING, Any

from milepost import auth
from milepost.client.client import Client
from milepost.client.debounce import Debounce
from milepost.client.default import configure
from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.idempotency import IdempotencyKey
from milepost.client.logs import LogLine
from milepost.client.queue import Queue
from milepost.client.results import TaskResult
from milepost.client.run import Run
from milepost.client.run_streams import StreamValue
from milepost.client.schedule import Schedule
from milepost.client.waitpoints import TokenResult, WaitToken
from milepost.errors import (
    AbortTaskRun,
    AttemptOverError,
    ConfigurationError,
    ForbiddenError,
    HistoryPrunedError,
    InsufficientScopeError,
    MaxDurationError,
    MetadataError,
    MetadataFlushError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
    MilepostError,
    NotFoundError,
    NotLoadedError,
    PayloadValidationError,
    QueueNotFoundError,
    RequestError,
    RunCancelledError,
    RunFinishedError,
    RunNotFoundError,
    StreamChunkTooLargeError,
    StreamError,
    StreamStoppedError,
    StreamValueError,
    TaskFailedError,
    TokenUsedError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnreadableAnswerError,
    UsageError,
    VersionConflictError,
    VersionNotFoundError,
)
from milepost.model.run import RunError, RunStatus
from milepost.protocol.queues import QueueObject
from milepost.protocol.schedules import ScheduledPayload
from milepost.sdk.batches import BatchItem
from milepost.sdk.context import Context
from milepost.sdk.hooks import hooks
from milepost.sdk.metadata import metadata
from milepost.sdk.queues import queues
from milepost.sdk.retry import Caught, Retry
from milepost.sdk.runs import runs
from milepost.sdk.schedules import schedules
from milepost.sdk.streams import streams
from milepost.sdk.task import Task, task
from milepost.sdk.tasks import tasks
from milepost.sdk.wait import wait

if TYPE_CHECKING:
    from milepost.serving import Serving, serve

__all__ = [
    "AbortTaskRun",
    "AttemptOverError",
    "BatchHandle",
    "BatchItem",
    "Caught",
    "Client",
    "ConfigurationError",
    "Context",
    "Debounce",
    "ForbiddenError",
    "HistoryPrunedError",
    "IdempotencyKey",
    "InsufficientScopeError",
    "LogLine",
    "MaxDurationError",
    "MetadataError",
    "MetadataFlushError",
    "MetadataPathError",
    "MetadataTooLargeError",
    "MetadataTypeError",
    "MetadataValueError",
    "MilepostError",
    "NotFoundError",
    "NotLoadedError",
    "PayloadValidationError",
    "Queue",
    "QueueNotFoundError",
    "QueueObject",
    "RequestError",
    "Retry",
    "Run",
    "RunCancelledError",
    "RunError",
    "RunFinishedError",
    "RunHandle",
    "RunNotFoundError",
    "RunStatus",
    "Schedule",
    "ScheduledPayload",
    "Serving",
    "StreamChunkTooLargeError",
    "StreamError",
    "StreamStoppedError",
    "StreamValue",
    "StreamValueError",
    "Task",
    "TaskFailedError",
    "TaskResult",
    "TokenResult",
    "TokenUsedError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreadableAnswerError",
    "UsageError",
    "VersionConflictError",
    "VersionNotFoundError",
    "WaitToken",
    "auth",
    "configure",
    "hooks",
    "metadata",
    "queues",
    "runs",
    "schedules",
    "serve",
    "streams",
    "task",
    "tasks",
    "wait",
]


def __getattr__(name: str) -> Any:
    # With these come the worker and the server, which a program that only triggers never loads.
    if name in ("Serving", "serve"):
        from milepost import serving

        return getattr(serving, name)
    raise AttributeError(f"module 'milepost' has no attribute {name!r}")
