"""Every error that Milepost raises, in one tree.

The engine raises these classes, `protocol` carries them as a problem body (code, message, field, limit,
details), and the client raises the same class again through `error_for`. Codes are stable: programs may
compare them. The number is the HTTP status of an answer that carries the error.

    MilepostError                         internal_error          500
    ├── MetadataError                     metadata_error          422   .key
    │   ├── MetadataValueError            invalid_metadata_value  422   also ValueError
    │   ├── MetadataTypeError             wrong_metadata_type     422   also TypeError
    │   ├── MetadataPathError             invalid_metadata_path   422   also ValueError  .segment
    │   ├── MetadataTooLargeError         metadata_too_large      413   .size .limit .largest_keys
    │   └── MetadataFlushError            metadata_flush_refused  422   .refused
    ├── StreamError                       stream_error            422   .key
    │   ├── StreamValueError              invalid_stream_value    422   also ValueError
    │   ├── StreamChunkTooLargeError      chunk_too_large         413   .size .limit
    │   └── StreamStoppedError            stream_stopped          409   .reason
    ├── RequestError                      request_failed          400   .field .limit
    │   ├── BadRequestError               bad_request             400
    │   ├── UnauthorizedError             unauthorized            401
    │   ├── ForbiddenError                forbidden               403
    │   │   └── InsufficientScopeError    insufficient_scope      403
    │   ├── NotFoundError                 not_found               404
    │   │   ├── RunNotFoundError          run_not_found           404
    │   │   ├── BatchNotFoundError        batch_not_found         404
    │   │   ├── QueueNotFoundError        queue_not_found         404
    │   │   └── VersionNotFoundError      version_not_found       404
    │   ├── HistoryPrunedError            history_pruned          410   .earliest_version
    │   ├── ConflictError                 conflict                409
    │   │   ├── AttemptOverError          attempt_over            409
    │   │   └── VersionConflictError      version_conflict        409   .version
    │   ├── TooLargeError                 too_large               413
    │   ├── UnsupportedMediaTypeError     unsupported_media_type  415
    │   ├── InvalidRequestError           invalid_request         422
    │   │   ├── PayloadValidationError    invalid_payload         422
    │   │   └── TokenUsedError            token_used              422
    │   ├── RunFinishedError              run_finished            422
    │   └── RequestTimeoutError           request_timeout         408
    ├── UnavailableError                  unavailable             503   safe to retry
    │   └── CommitUnknownError            commit_unknown          503   safe to retry with the same request id
    ├── UnreadableAnswerError             unreadable_answer       500
    ├── NotLoadedError                    not_loaded              500   also AttributeError
    ├── ConfigurationError                invalid_configuration   500
    ├── UsageError                        wrong_usage             500   also RuntimeError
    ├── TaskFailedError                   task_failed             500   .run_id .error_name .error_message
    └── AbortTaskRun                      task_aborted            500   raise it in a task: no retry

Beside the tree, because no `except Exception` of a task is to swallow them (as with `asyncio.CancelledError`):

    RunCancelledError                     raised in a thread of a run that was cancelled
    └── MaxDurationError                  the same, because the run has executed for too long
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, cast

__all__ = [
    "AbortTaskRun",
    "AttemptOverError",
    "BadRequestError",
    "BatchNotFoundError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConflictError",
    "ForbiddenError",
    "HistoryPrunedError",
    "InsufficientScopeError",
    "InvalidRequestError",
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
    "QueueNotFoundError",
    "RefusedOperation",
    "RequestError",
    "RequestTimeoutError",
    "RunCancelledError",
    "RunFinishedError",
    "RunNotFoundError",
    "StreamChunkTooLargeError",
    "StreamError",
    "StreamStoppedError",
    "StreamValueError",
    "TaskFailedError",
    "TokenUsedError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreadableAnswerError",
    "UnsupportedMediaTypeError",
    "UsageError",
    "VersionConflictError",
    "VersionNotFoundError",
    "error_for",
]

_AnyError = TypeVar("_AnyError", bound="MilepostError")


class MilepostError(Exception):
    """The root of the tree: catching it catches everything that Milepost itself raises."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def details(self) -> dict[str, Any] | None:
        """What `error_for` needs beside message, field and limit to build an equal error: plain JSON, None for nothing."""
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the class with `args`, which fits none of the keyword-only constructors below.
        # An error must survive the way out of a task that runs in a process of its own.
        return _restore, (type(self), self.args, dict(self.__dict__))


class RunCancelledError(BaseException):
    """Raised in the thread of a `def` task whose run is to end, by the next call of `metadata` or of anything else in Milepost.

    It is no Exception, so that `except Exception` does not swallow it: let it through, or catch it by name to clean up. It is raised
    once in each thread; what the task calls afterwards, in its `finally` blocks, works as ever. See docs/stopping.md.
    """

    def __init__(self, message: str = "the run was cancelled") -> None:
        super().__init__(message)
        self.message = message


class MaxDurationError(RunCancelledError):
    """As `RunCancelledError`, for a run that has executed for longer than its `max_duration`."""


def _restore(kind: type[_AnyError], args: tuple[Any, ...], attributes: dict[str, Any]) -> _AnyError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


# --- metadata ----------------------------------------------------------------------------------------------


class MetadataError(MilepostError):
    """A metadata operation was not applied; the document is as it was.

    Attributes:
        message: what is wrong and, where there is one, the cure.
        key: the key or path of the operation; None when the whole document is concerned.
    """

    code: ClassVar[str] = "metadata_error"
    status: ClassVar[int] = 422

    def __init__(self, message: str = "", *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key

    def details(self) -> dict[str, Any] | None:
        return {"key": self.key}


class MetadataValueError(MetadataError, ValueError):
    """The value has no JSON form (M74, M78); the message names the place inside the value."""

    code: ClassVar[str] = "invalid_metadata_value"


class MetadataTypeError(MetadataError, TypeError):
    """The operation does not fit what it found or was given: an increment of text, a document that is no object."""

    code: ClassVar[str] = "wrong_metadata_type"


class MetadataPathError(MetadataError, ValueError):
    """A key or path is malformed or reserved, or leads through a scalar or past the end of an array (M18, M27).

    Attributes:
        segment: the segment at which the path fails, as text; None when the key as a whole is refused.
    """

    code: ClassVar[str] = "invalid_metadata_path"

    def __init__(self, message: str = "", *, key: str | None = None, segment: str | None = None) -> None:
        super().__init__(message, key=key)
        self.segment = segment

    def details(self) -> dict[str, Any] | None:
        return {"key": self.key, "segment": self.segment}


class MetadataTooLargeError(MetadataError):
    """The document would exceed its limit (M85).

    Attributes:
        size: bytes of compact JSON that the document would have had.
        limit: bytes that it may have.
        key: the key of the operation; None for a whole document.
        largest_keys: up to five (top-level key, bytes of its value) pairs, the biggest first.
    """

    code: ClassVar[str] = "metadata_too_large"
    status: ClassVar[int] = 413

    def __init__(
        self,
        size: int,
        limit: int,
        key: str | None = None,
        largest_keys: Iterable[tuple[str, int]] = (),
        *,
        message: str | None = None,
    ) -> None:
        pairs = [(name, size_bytes) for name, size_bytes in largest_keys][:5]
        super().__init__(message or _too_large_message(size, limit, key, pairs), key=key)
        self.size = size
        self.limit = limit
        self.largest_keys = pairs

    def details(self) -> dict[str, Any] | None:
        return {
            "key": self.key,
            "size": self.size,
            "limit": self.limit,
            "largest_keys": [[name, size_bytes] for name, size_bytes in self.largest_keys],
        }


def _too_large_message(
    size: int, limit: int, key: str | None, largest_keys: Sequence[tuple[str, int]]
) -> str:
    subject = "The metadata" if key is None else f"With {_shortened(key)} the metadata"
    parts = [f"{subject} would be {size:,} bytes of JSON, {size - limit:,} more than the limit of {limit:,}."]
    if largest_keys:
        listed = ", ".join(f"{_shortened(name)} ({size_bytes:,})" for name, size_bytes in largest_keys)
        parts.append(f"Largest keys: {listed}.")
    parts.append(
        "Delete or shorten a key, cap a list with append(key, value, max_items=n), send long output as a stream, "
        "or raise TASK_RUN_METADATA_MAXIMUM_SIZE on the server."
    )
    return " ".join(parts)


def _shortened(key: str) -> str:
    return repr(key if len(key) <= 80 else key[:77] + "...")


class RefusedOperation(Protocol):
    """One refused operation in `MetadataFlushError.refused`."""

    @property
    def run_id(self) -> str: ...
    @property
    def operation(self) -> Any: ...
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


class MetadataFlushError(MetadataError):
    """The flush is over and everything else is committed, but the server refused these operations (M37).

    Attributes:
        refused: one object per refused operation, in the order of the calls; empty when the whole attempt was given up.
    """

    code: ClassVar[str] = "metadata_flush_refused"

    def __init__(
        self, message: str = "", *, refused: Sequence[RefusedOperation] = (), key: str | None = None
    ) -> None:
        super().__init__(message or _flush_message(refused), key=key)
        self.refused: list[RefusedOperation] = list(refused)


def _flush_message(refused: Sequence[RefusedOperation]) -> str:
    listed = [f"{item.run_id}: {item.message}" for item in refused[:3]]
    if len(refused) > 3:
        listed.append(f"and {len(refused) - 3} more")
    return f"The server refused {len(refused)} metadata operation(s). " + "; ".join(listed)


# --- streams -----------------------------------------------------------------------------------------------


class StreamError(MilepostError):
    """Something was not added to a stream.

    Attributes:
        key: the stream's key.
    """

    code: ClassVar[str] = "stream_error"
    status: ClassVar[int] = 422

    def __init__(self, message: str = "", *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key

    def details(self) -> dict[str, Any] | None:
        return {"key": self.key}


class StreamValueError(StreamError, ValueError):
    """The value has no JSON form, or is none of the stream's type; the message names the place inside the value."""

    code: ClassVar[str] = "invalid_stream_value"


class StreamChunkTooLargeError(StreamError):
    """One chunk is larger than a chunk may be.

    Attributes:
        size: bytes of compact JSON that it has.
        limit: bytes that it may have.
    """

    code: ClassVar[str] = "chunk_too_large"
    status: ClassVar[int] = 413

    def __init__(self, message: str = "", *, key: str | None = None, size: int = 0, limit: int = 0) -> None:
        super().__init__(
            message
            or f"stream {_shortened(key or '')}: a chunk of {size:,} bytes of JSON is larger than a chunk may be ({limit:,}); send it "
            f"in smaller pieces, or store it elsewhere and send where",
            key=key,
        )
        self.size = size
        self.limit = limit

    def details(self) -> dict[str, Any] | None:
        return {"key": self.key, "size": self.size, "limit": self.limit}


class StreamStoppedError(StreamError):
    """Nothing more of this writer will be stored: the server does not take it, or the attempt that writes was given up.

    Attributes:
        reason: `lost` when the server has given up the attempt (its worker was silent for longer than the lease), `worker_ended`, or
            the server's code, such as `stream_too_large`, `too_many_streams`, `run_finished`, `not_an_ancestor`.
    """

    code: ClassVar[str] = "stream_stopped"
    status: ClassVar[int] = 409

    def __init__(self, message: str = "", *, key: str | None = None, reason: str = "") -> None:
        super().__init__(message, key=key)
        self.reason = reason

    def details(self) -> dict[str, Any] | None:
        return {"key": self.key, "reason": self.reason}


# --- requests ----------------------------------------------------------------------------------------------


class RequestError(MilepostError):
    """The server understood the request well enough to refuse it. Repeating it unchanged does not help.

    Attributes:
        field: the field of the request that is wrong, dotted (`options.delay`); None when it is no single one.
        limit: the limit that was exceeded, in the unit that the message names.
    """

    code: ClassVar[str] = "request_failed"
    status: ClassVar[int] = 400

    def __init__(self, message: str = "", *, field: str | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.limit = limit


class BadRequestError(RequestError):
    """The request is not JSON or does not have the shape of its endpoint."""

    code: ClassVar[str] = "bad_request"


class UnauthorizedError(RequestError):
    """The key or token is missing, malformed, expired or of another environment."""

    code: ClassVar[str] = "unauthorized"
    status: ClassVar[int] = 401


class ForbiddenError(RequestError):
    """The token is valid but does not grant this."""

    code: ClassVar[str] = "forbidden"
    status: ClassVar[int] = 403


class InsufficientScopeError(ForbiddenError):
    """The public token is valid, and none of its scopes grants this; the message says which would."""

    code: ClassVar[str] = "insufficient_scope"


class NotFoundError(RequestError):
    """There is no such thing in this environment."""

    code: ClassVar[str] = "not_found"
    status: ClassVar[int] = 404


class RunNotFoundError(NotFoundError):
    """There is no run with this id in this environment."""

    code: ClassVar[str] = "run_not_found"


class BatchNotFoundError(NotFoundError):
    """There is no batch with this id in this environment."""

    code: ClassVar[str] = "batch_not_found"


class QueueNotFoundError(NotFoundError):
    """There is no queue of this name: no task names it, and no run waits in it."""

    code: ClassVar[str] = "queue_not_found"


class VersionNotFoundError(NotFoundError):
    """The document has not had this version yet, or the run did not exist at this time."""

    code: ClassVar[str] = "version_not_found"


class HistoryPrunedError(RequestError):
    """The document has had this version, or had some version at this time, and it is no longer kept.

    Attributes:
        earliest_version: the earliest version that is kept.
    """

    code: ClassVar[str] = "history_pruned"
    status: ClassVar[int] = 410

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        limit: int | None = None,
        earliest_version: int = 0,
    ) -> None:
        super().__init__(message, field=field, limit=limit)
        self.earliest_version = earliest_version

    def details(self) -> dict[str, Any] | None:
        return {"earliest_version": self.earliest_version}


class ConflictError(RequestError):
    """The request contradicts the present state, for instance a second outcome of one attempt."""

    code: ClassVar[str] = "conflict"
    status: ClassVar[int] = 409


class AttemptOverError(ConflictError):
    """The attempt of a run that makes the call is over: it was given up, or has ended. Nothing that it does counts any more.

    Another attempt of the run may be under way, or the run has ended. Whoever gets this should stop.
    """

    code: ClassVar[str] = "attempt_over"


class VersionConflictError(ConflictError):
    """The document is at another version than the one that the update was made for. Nothing was applied.

    Attributes:
        version: the version that the document has; None when it is not known.
    """

    code: ClassVar[str] = "version_conflict"

    def __init__(
        self,
        message: str = "",
        *,
        version: int | None = None,
        field: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, field=field, limit=limit)
        self.version = version

    def details(self) -> dict[str, Any] | None:
        return {"version": self.version}


class TooLargeError(RequestError):
    """A body, payload, output or batch exceeds its limit."""

    code: ClassVar[str] = "too_large"
    status: ClassVar[int] = 413


class InvalidRequestError(RequestError):
    """The request has the right shape and a value that is not allowed."""

    code: ClassVar[str] = "invalid_request"
    status: ClassVar[int] = 422


class PayloadValidationError(InvalidRequestError):
    """The payload does not fit the task's payload type; `field` names the part that does not."""

    code: ClassVar[str] = "invalid_payload"


class TokenUsedError(InvalidRequestError):
    """The public token works once, and has been used."""

    code: ClassVar[str] = "token_used"


class UnsupportedMediaTypeError(RequestError):
    """The body is of a kind that this endpoint does not take."""

    code: ClassVar[str] = "unsupported_media_type"
    status: ClassVar[int] = 415


class RunFinishedError(RequestError):
    """The run has finished and takes no such change any more (M69 for its metadata)."""

    code: ClassVar[str] = "run_finished"
    status: ClassVar[int] = 422


class RequestTimeoutError(RequestError):
    """The body of the request came too slowly, and the server stopped waiting for it."""

    code: ClassVar[str] = "request_timeout"
    status: ClassVar[int] = 408


# --- the rest ----------------------------------------------------------------------------------------------


class UnavailableError(MilepostError):
    """The server cannot be reached, is starting, stopping or overloaded. Repeating the request is safe."""

    code: ClassVar[str] = "unavailable"
    status: ClassVar[int] = 503


class CommitUnknownError(UnavailableError):
    """The server lost its database while it stored what was asked for, and could not find out whether that was stored. Repeating the
    request with the same request id is safe, and is what our own clients do."""

    code: ClassVar[str] = "commit_unknown"


class UnreadableAnswerError(MilepostError):
    """The server answered, and the answer holds something that this reader cannot read. What was asked for is there."""

    code: ClassVar[str] = "unreadable_answer"


class NotLoadedError(MilepostError, AttributeError):
    """This run was read without the field, so nothing can be said about it; the message names the call that reads it."""

    code: ClassVar[str] = "not_loaded"


class ConfigurationError(MilepostError):
    """A setting is missing or has a value that cannot be used; the message names it."""

    code: ClassVar[str] = "invalid_configuration"


class UsageError(MilepostError, RuntimeError):
    """A call in the wrong place, such as a blocking form on a running event loop; the message names the right one."""

    code: ClassVar[str] = "wrong_usage"


class TaskFailedError(MilepostError):
    """The run whose result was unwrapped did not succeed; the user's own error as data.

    Attributes:
        run_id: the run that failed.
        error_name: class name of the user's error, such as `ValueError`; None when there was none.
        error_message: its message.
    """

    code: ClassVar[str] = "task_failed"

    def __init__(
        self,
        message: str = "",
        *,
        run_id: str | None = None,
        error_name: str | None = None,
        error_message: str | None = None,
    ) -> None:
        if not message:
            reason = ": ".join(part for part in (error_name, error_message) if part)
            message = f"run {run_id} failed: {reason}" if reason else f"run {run_id} failed"
        super().__init__(message)
        self.run_id = run_id
        self.error_name = error_name
        self.error_message = error_message

    def details(self) -> dict[str, Any] | None:
        return {"run_id": self.run_id, "error_name": self.error_name, "error_message": self.error_message}


class AbortTaskRun(MilepostError):
    """Raise it in a task to fail the run at once, without the retries that it has left."""

    code: ClassVar[str] = "task_aborted"


# --- from the wire -----------------------------------------------------------------------------------------


def _tree(kind: type[MilepostError]) -> Iterable[type[MilepostError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


_BY_CODE: dict[str, type[MilepostError]] = {kind.code: kind for kind in _tree(MilepostError)}

_BY_STATUS: dict[int, type[MilepostError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    413: TooLargeError,
    415: UnsupportedMediaTypeError,
    422: InvalidRequestError,
    425: UnavailableError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def error_for(
    code: str,
    message: str,
    *,
    status: int,
    field: str | None = None,
    limit: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> MilepostError:
    """The error that a problem body stands for: the class that the engine raised, with its attributes.

    A code that this version does not know falls back to the class for its HTTP status, so an older client still
    raises something that fits. Never raises, whatever `details` holds.

    Args:
        code: the stable code of the body.
        message: its text, kept as it is.
        status: HTTP status of the answer.
        field: the field of the request that is wrong.
        limit: the limit that was exceeded.
        details: what `MilepostError.details()` gave on the other side.
    """
    kind = _BY_CODE.get(code)
    if kind is None:
        kind = _BY_STATUS.get(status)
    if kind is None:
        kind = RequestError if 400 <= status < 500 else MilepostError
    given = details or {}
    if issubclass(kind, MetadataTooLargeError):
        return kind(
            _whole_number(given.get("size")),
            _whole_number(given.get("limit", limit)),
            _text_or_none(given.get("key")),
            _pairs(given.get("largest_keys")),
            message=message or None,
        )
    if issubclass(kind, MetadataPathError):
        return kind(message, key=_text_or_none(given.get("key")), segment=_text_or_none(given.get("segment")))
    if issubclass(kind, MetadataError):
        return kind(message, key=_text_or_none(given.get("key")))
    if issubclass(kind, StreamChunkTooLargeError):
        return kind(
            message,
            key=_text_or_none(given.get("key")),
            size=_whole_number(given.get("size")),
            limit=_whole_number(given.get("limit", limit)),
        )
    if issubclass(kind, StreamStoppedError):
        return kind(
            message, key=_text_or_none(given.get("key")), reason=_text_or_none(given.get("reason")) or ""
        )
    if issubclass(kind, StreamError):
        return kind(message, key=_text_or_none(given.get("key")))
    if issubclass(kind, VersionConflictError):
        version = given.get("version")
        return kind(message, version=version if isinstance(version, int) else None, field=field)
    if issubclass(kind, HistoryPrunedError):
        return kind(
            message, field=field, limit=limit, earliest_version=_whole_number(given.get("earliest_version"))
        )
    if issubclass(kind, RequestError):
        return kind(message, field=field, limit=limit)
    if issubclass(kind, TaskFailedError):
        return kind(
            message,
            run_id=_text_or_none(given.get("run_id")),
            error_name=_text_or_none(given.get("error_name")),
            error_message=_text_or_none(given.get("error_message")),
        )
    return kind(message)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _pairs(value: object) -> list[tuple[str, int]]:
    if not isinstance(value, list):
        return []
    pairs: list[tuple[str, int]] = []
    for item in cast("list[object]", value):
        match item:
            case [str() as name, int() as size_bytes]:
                pairs.append((name, size_bytes))
            case _:
                continue
    return pairs
