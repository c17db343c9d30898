"""Background tasks for Python whose runs carry live metadata.

Each name is imported when it is first asked for: a program that triggers loads no worker, and none of them what it does not use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("auth", "client", "errors", "model", "protocol", "sdk")
# Where each name is, as written above for checkers.
_PLACES = {
    name: module
    for module, names in {
        "milepost.client.client": "Client",
        "milepost.client.debounce": "Debounce",
        "milepost.client.default": "configure",
        "milepost.client.handles": "BatchHandle RunHandle",
        "milepost.client.idempotency": "IdempotencyKey",
        "milepost.client.logs": "LogLine",
        "milepost.client.queue": "Queue",
        "milepost.client.results": "TaskResult",
        "milepost.client.run": "Run",
        "milepost.client.run_streams": "StreamValue",
        "milepost.client.schedule": "Schedule",
        "milepost.client.waitpoints": "TokenResult WaitToken",
        "milepost.errors": """
            AbortTaskRun AttemptOverError ConfigurationError ForbiddenError HistoryPrunedError
            InsufficientScopeError MaxDurationError MetadataError MetadataFlushError MetadataPathError
            MetadataTooLargeError MetadataTypeError MetadataValueError MilepostError NotFoundError
            NotLoadedError PayloadValidationError QueueNotFoundError RequestError RunCancelledError
            RunFinishedError RunNotFoundError StreamChunkTooLargeError StreamError StreamStoppedError
            StreamValueError TaskFailedError TokenUsedError TooLargeError UnauthorizedError UnavailableError
            UnreadableAnswerError UsageError VersionConflictError VersionNotFoundError
        """,
        "milepost.model.run": "RunError RunStatus",
        "milepost.protocol.queues": "QueueObject",
        "milepost.protocol.schedules": "ScheduledPayload",
        "milepost.sdk.batches": "BatchItem",
        "milepost.sdk.context": "Context",
        "milepost.sdk.hooks": "hooks",
        "milepost.sdk.metadata": "metadata",
        "milepost.sdk.queues": "queues",
        "milepost.sdk.retry": "Caught Retry",
        "milepost.sdk.runs": "runs",
        "milepost.sdk.schedules": "schedules",
        "milepost.sdk.streams": "streams",
        "milepost.sdk.task": "Task task",
        "milepost.sdk.tasks": "tasks",
        "milepost.sdk.wait": "wait",
        "milepost.serving": "Serving serve",
    }.items()
    for name in names.split()
}


if not TYPE_CHECKING:  # a checker would take every name for one that is here

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"milepost.{name}")
        module = _PLACES.get(name)
        if module is None:
            raise AttributeError(f"module 'milepost' has no attribute {name!r}")
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
