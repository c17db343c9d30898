"""What a trigger says: payload and options become a message, checked as far as that can be told before the request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypedDict, TypeVar

from milepost.client.debounce import Debounce, debounce_option
from milepost.client.idempotency import Caller, IdempotencyKey, key_fields
from milepost.client.queue import Queue
from milepost.errors import (
    InvalidRequestError,
    MetadataValueError,
    PayloadValidationError,
    TooLargeError,
    UsageError,
)
from milepost.model.document import SIZE_LIMIT, Document
from milepost.model.durations import delay_text, parse_duration
from milepost.model.jsonvalue import encode, to_json
from milepost.model.retry import RetryRule
from milepost.protocol.triggering import (
    JSON_TYPE,
    PAYLOAD_BYTES_MAX,
    QueueOption,
    ReplayRequest,
    RescheduleRequest,
    TriggerOptions,
    TriggerRequest,
)

ResultT = TypeVar("ResultT")

NO_PAYLOAD: Final[Any] = object()
"""Stands for a payload that was left out, which is not the same as None."""


class RetryNumbers(Protocol):
    """A rule of retries, such as `Retry(max_attempts=5)`, as far as it is numbers."""

    @property
    def rule(self) -> RetryRule: ...
    @property
    def names_errors(self) -> bool: ...


class RunOptions(TypedDict, total=False):
    """Options of one triggered run.

    metadata: the run's first document: a mapping, or a model that becomes an object (M2).
    tags: up to ten texts of up to 128 characters, to find and watch runs by; one text alone counts as one tag.
    max_attempts: attempts in all, the first included; wins over the task's retry rule.
    queue: another queue than the task's, or its name.
    delay: begin only then: after a `timedelta`, a number of seconds or a text like "10m", or at an aware datetime. A time that is over
        is no delay. Until then the run is DELAYED, and `runs.reschedule` names another time.
    ttl: a duration as of `delay`: the run expires (EXPIRED) when no worker has taken it that long after it was queued.
    priority: by so many seconds the run is put forward in its queue; from 0 to a month.
    max_duration: how long an attempt may take, a duration as of `delay`; then it ends, and the run is TIMED_OUT. Wins over the task's.
    idempotency_key: a text, or an `IdempotencyKey` with a scope: the same task with the same key gives the same run, whatever its
        payload, until the key's time is over or that run has failed for good. None: a new run in any case; else a later attempt
        of a run is given the children of its earlier ones again.
    idempotency_key_ttl: how long the key is kept: a timedelta, seconds, or text such as "10m"; 30 days when left out.
    retry: another rule of retries than the task's, without `retry_on` and `give_up_on`, which stand at the task; `max_attempts` wins.
    debounce: let triggers that follow one another mean one run; see `Debounce`. For single triggers.
    concurrency_key: the limit of the queue holds for the runs with this key by themselves, such as one key for each tenant; 1 to 256
        characters.
    """

    metadata: object
    tags: str | Iterable[str]
    max_attempts: int
    retry: RetryNumbers
    queue: str | Queue
    delay: timedelta | float | str | datetime
    ttl: timedelta | float | str
    priority: int
    max_duration: timedelta | float | str
    concurrency_key: str
    idempotency_key: str | IdempotencyKey | None
    idempotency_key_ttl: timedelta | float | str
    debounce: Debounce


class BatchOptions(TypedDict, total=False):
    """Options of a whole batch.

    key: called with the payload of each item for its `idempotency_key`; an item's own option wins.
    idempotency_key: of the batch as a whole: with the same key the same batch is given, whatever its items. None: its runs are new
        in any case.
    idempotency_key_ttl: how long the key, or the keys that `key` gives, are kept.
    """

    key: Callable[[Any], str | IdempotencyKey | None]
    idempotency_key: str | IdempotencyKey | None
    idempotency_key_ttl: timedelta | float | str


OPTION_NAMES: Final = frozenset(RunOptions.__annotations__)


def payload_text(payload: object) -> str | None:
    """Any payload as JSON text; None for one that was left out. Raises PayloadValidationError and TooLargeError."""
    if payload is NO_PAYLOAD:
        return None
    try:
        return checked_size(encode(to_json(payload, place="payload")).decode())
    except MetadataValueError as error:
        raise PayloadValidationError(error.message, field="payload") from None


def checked_size(payload: str) -> str:
    """The JSON text of a payload, if the server takes one of its size. Raises TooLargeError."""
    if len(payload) * 4 > PAYLOAD_BYTES_MAX and (size := len(payload.encode())) > PAYLOAD_BYTES_MAX:
        raise TooLargeError(
            f"the payload has {size:,} bytes as JSON, the limit is {PAYLOAD_BYTES_MAX:,}: store the data elsewhere and pass a "
            f"reference",
            field="payload",
            limit=PAYLOAD_BYTES_MAX,
        )
    return payload


def check_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that there is not."""
    unknown = options.keys() - OPTION_NAMES
    if unknown:
        raise TypeError(
            f"there is no trigger option {sorted(unknown)[0]!r}; there are {', '.join(sorted(OPTION_NAMES))}"
        )


def trigger_options(
    options: Mapping[str, Any],
    *,
    has_payload: bool,
    metadata_limit: int = SIZE_LIMIT,
    parent_run_id: str | None = None,
    resume: bool = False,
    caller: Caller | None = None,
) -> TriggerOptions:
    """The options as they travel.

    Args:
        metadata_limit: bytes that a document may have.
        parent_run_id: the run that triggers.
        resume: the parent waits for the new run.
        caller: the attempt that triggers.
    Raises: MetadataError for a document that cannot be one (M73, M85); InvalidRequestError for a duration or a time that is none;
        TypeError for an option that there is not; UsageError for an idempotency key, retry or debounce that is none.
    """
    payload_type = JSON_TYPE if has_payload else None
    if not options:
        # Most runs of a large batch have none.
        return TriggerOptions(
            payload_type=payload_type, parent_run_id=parent_run_id, resume_parent_on_completion=resume
        )
    check_options(options)
    metadata = options.get("metadata")
    tags = options.get("tags")
    queue = options.get("queue")
    return TriggerOptions(
        payload_type=payload_type,
        metadata=None if metadata is None else Document.from_json(metadata, limit=metadata_limit).value,
        tags=[tags] if isinstance(tags, str) else None if tags is None else list(tags),
        max_attempts=options.get("max_attempts"),
        retry=_retry_rule(options.get("retry")),
        queue=None if queue is None else QueueOption(queue.name if isinstance(queue, Queue) else queue),
        delay=None if options.get("delay") is None else _of_user("delay", delay_text, options["delay"]),
        ttl=_span("ttl", options),
        priority=options.get("priority"),
        max_duration=_span("max_duration", options),
        concurrency_key=options.get("concurrency_key"),
        parent_run_id=parent_run_id,
        resume_parent_on_completion=resume,
        debounce=debounce_option(options.get("debounce")),
        **key_fields(options, caller),
    )


def _retry_rule(retry: RetryNumbers | None) -> RetryRule | None:
    if retry is None:
        return None
    rule = getattr(retry, "rule", None)
    if not isinstance(rule, RetryRule):
        raise UsageError(f"retry= is a Retry, such as Retry(max_attempts=5), not {retry!r:.100}")
    if retry.names_errors:
        raise UsageError(
            "retry= of a trigger says how often and when; retry_on and give_up_on stand at the task"
        )
    return rule


def replay_request(options: Mapping[str, Any], *, payload: object) -> ReplayRequest:
    """What is to be another way at a replay. Raises as `payload_text` and `trigger_options`; UsageError for what a replay does not
    take."""
    not_taken = [option for option in options if option not in ReplayRequest.__struct_fields__]
    if not_taken:
        raise UsageError(f"a replay is a new run of its own, and takes no {not_taken[0]}=")
    said = trigger_options(options, has_payload=True)
    request = ReplayRequest()
    for option in options:
        setattr(request, option, getattr(said, option))
    if payload is not NO_PAYLOAD:
        request.payload, request.payload_type = payload_text(payload), JSON_TYPE
    return request


def reschedule_request(delay: timedelta | float | str | datetime) -> RescheduleRequest:
    """Another delay. Raises InvalidRequestError for one that is none."""
    return RescheduleRequest(_of_user("delay", delay_text, delay))


def _span(name: str, options: Mapping[str, Any]) -> float | None:
    value = options.get(name)
    return None if value is None else _of_user(name, parse_duration, value).total_seconds()


def _of_user(name: str, parse: Callable[[Any], ResultT], value: Any) -> ResultT:
    try:
        return parse(value)
    except ValueError as error:
        raise InvalidRequestError(f"{name}=: {error}", field=name) from None


def trigger_request(
    payload: object, options: Mapping[str, Any], *, metadata_limit: int = SIZE_LIMIT
) -> TriggerRequest:
    """One run outside of any other run. Raises as `payload_text` and `trigger_options`."""
    text = payload_text(payload)
    return TriggerRequest(
        text, trigger_options(options, has_payload=text is not None, metadata_limit=metadata_limit)
    )
