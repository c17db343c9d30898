"""Triggering on the wire (protocol, sections 3 and 4).

What is not known is refused and not passed over: a delay that is dropped runs the job now. What the official clients can send and this
version does not do is listed by name (`not_supported`), with the values that say nothing and are accepted.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from milepost.model.retry import RetryRule
from milepost.model.run import QueuedReason
from milepost.protocol.runs import RunResult

BATCH_ITEMS_MAX = 1000
BODY_BYTES_MAX = 64 * 1024 * 1024
PAYLOAD_BYTES_MAX = 3 * 1024 * 1024
OUTPUT_BYTES_MAX = 10 * 1024 * 1024
TAGS_MAX = 10
TAG_CHARACTERS_MAX = 128

NotSupported = Mapping[str, tuple[Any, ...]]
"""Fields of the protocol that this version does not carry out, each with the values that ask for nothing."""

_NOTHING: Final = (None,)

JSON_TYPE = "application/json"
SUPER_JSON_TYPE = "application/super+json"
TEXT_TYPE = "text/plain"


class QueueOption(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The queue of a run by name."""

    not_supported: ClassVar[NotSupported] = {"concurrencyLimit": _NOTHING}

    name: str


class IdempotencyKeyOptions(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What an idempotency key was made of: the text that the user gave, and the scope, `run`, `attempt` or `global`. For display."""

    key: str | list[str] | None = None
    scope: str | None = None


class DebounceOption(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True
):
    """Triggers of a task with the same `key` mean one run, while that is delayed: each puts it off until `delay` after itself, but not
    beyond `maxDelay` after the first one. `mode` says whose payload the run has: the first one's (`leading`), or the last one's
    (`trailing`). Spans, such as `5s`."""

    key: str
    delay: str
    mode: Literal["leading", "trailing"] = "leading"
    max_delay: str | None = None


class TriggerOptions(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True
):
    """What can be said about a run when it is triggered.

    `metadata` is any JSON here, so that the engine can refuse a list or a text with an error that says so (M73). `payloadSize` is what
    the clients measured; it decides nothing.

    `delay` is a span (`10m`, `1h30m`) or a time (ISO 8601 with its zone); a time that is over is none. `ttl` is a span or seconds: the
    run expires when no worker has taken it that long after it was queued. By `priority` seconds the run is put forward in its queue.
    `maxDuration` is how many seconds one attempt may take. `retry` replaces the task's rule; `maxAttempts` wins over both.

    `idempotencyKey` stands for one run of its task until `idempotencyKeyTTL` is over (30 days; such as `10m`, or seconds) or that run
    has failed: whoever triggers with it is given this run. `alwaysNew` is for a trigger without a key, by an attempt of a run that is
    not its first: no child of an earlier attempt is looked for, and none of a later one will be given this. `debounce` is for single
    triggers; beside it `delay` is the earliest time, and the run of an `idempotencyKey` goes first.
    """

    not_supported: ClassVar[NotSupported] = {
        "bulkActionId": _NOTHING,
        "concurrency": _NOTHING,
        "externalDeploymentId": _NOTHING,
        "gates": _NOTHING,
        "lockToVersion": _NOTHING,
        "machine": _NOTHING,
        "metadataType": (None, JSON_TYPE),
        "parentBatch": _NOTHING,
        "region": _NOTHING,
        "test": (None, False),
    }

    payload_type: str | None = None
    payload_size: int | float | None = None
    metadata: Any = None
    tags: str | list[str] | None = None
    max_attempts: int | None = None
    retry: RetryRule | None = None
    queue: QueueOption | None = None
    concurrency_key: str | None = None
    delay: str | None = None
    ttl: str | int | float | None = None
    priority: int | None = None
    max_duration: int | float | None = None
    parent_run_id: str | None = None
    resume_parent_on_completion: bool = False
    idempotency_key: str | None = None
    idempotency_key_ttl: str | int | float | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    idempotency_key_options: IdempotencyKeyOptions | None = None
    always_new: bool = False
    debounce: DebounceOption | None = None


class TriggerRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One run of the task in the path. `payload` is text in the encoding that `options.payloadType` names."""

    not_supported: ClassVar[NotSupported] = {"context": (None, {})}

    payload: str | None = None
    options: TriggerOptions = msgspec.field(default_factory=TriggerOptions)


class ReplayRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """What is to be another way than at the first trigger (protocol, section 5.5)."""

    not_supported: ClassVar[NotSupported] = {
        "concurrencyKey": _NOTHING,
        "idempotencyKey": _NOTHING,
        "idempotencyKeyTTL": _NOTHING,
        "machine": _NOTHING,
        "region": _NOTHING,
        "version": _NOTHING,
    }

    payload: str | UnsetType | None = UNSET
    payload_type: str | UnsetType | None = UNSET
    metadata: Any = UNSET
    tags: str | list[str] | UnsetType = UNSET
    queue: QueueOption | UnsetType = UNSET
    delay: str | UnsetType = UNSET
    ttl: str | int | float | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    retry: RetryRule | UnsetType = UNSET
    max_duration: int | float | UnsetType = UNSET


class RescheduleRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Another delay: a span or a time, as `options.delay` of a trigger."""

    delay: str


class TriggerResponse(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The id of the run. `isCached`: it was there before, by its idempotency key or because an earlier attempt of the parent has
    triggered it. `queuedReason`: it is queued, and nobody can take it at the moment. `similarTask`: where nobody has ever offered the
    task, one with a similar id that was offered."""

    id: str
    is_cached: bool
    queued_reason: QueuedReason | None = None
    similar_task: str | None = None


class SeparateTrigger(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """One of several triggers in a request. `request` is the body that it would have by itself; `requestId` and `attempt` would be its
    headers `x-trigger-request-idempotency-key` and `x-milepost-attempt`."""

    task: str
    request: msgspec.Raw
    request_id: str | None = None
    attempt: str | None = None


class TriggersRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Several triggers that have nothing to do with each other, 1 to 1,000."""

    triggers: list[SeparateTrigger]


class SeparateAnswer(msgspec.Struct, omit_defaults=True):
    """What one of several triggers comes to: the status, the body and the token that it would have been answered by itself."""

    status: int
    body: msgspec.Raw
    token: str | None = None


class TriggersResponse(msgspec.Struct):
    """The answers, in the order of the triggers."""

    answers: list[SeparateAnswer]


class BatchItem(msgspec.Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """One run of a batch."""

    task: str
    payload: str | None = None
    options: TriggerOptions = msgspec.field(default_factory=TriggerOptions)


class BatchRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """A whole batch in one request, 1 to 1,000 items, accepted together or refused together.

    `parentRunId` and `resumeParentOnCompletion` hold for every item. `idempotencyKey` stands for the whole batch.
    """

    items: list[BatchItem]
    parent_run_id: str | None = None
    resume_parent_on_completion: bool = False
    idempotency_key: str | None = None
    idempotency_key_ttl: str | int | float | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    idempotency_key_options: IdempotencyKeyOptions | None = None


class BatchResponse(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The batch and its runs, in the order of the items. `queuedReasons`: of which tasks nobody can take runs at the moment. `cached`:
    positions in `runs` of those that were there before. `isCached`: the batch was there before, by its idempotency key."""

    id: str
    run_count: int
    runs: list[str]
    queued_reasons: dict[str, QueuedReason] = {}
    cached: list[int] = []
    is_cached: bool = False


class BatchCreateRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """First phase of the two-phase form: announce how many items will follow. Who does not know yet leaves `runCount` out, and says it
    with items.

    `taskIdentifiers` say of which tasks the items will be; the items say it themselves.
    """

    run_count: int | None = None
    task_identifiers: list[str] | None = None
    parent_run_id: str | None = None
    resume_parent_on_completion: bool = False
    idempotency_key: str | None = None
    idempotency_key_ttl: str | int | float | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    idempotency_key_options: IdempotencyKeyOptions | None = None


class BatchCreateResponse(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """The announced batch, still without items. `runCount` is left out while it is not known. `isCached`: it was there before, by its
    idempotency key, and has all its items; without it they are to be sent, also to one that was there before."""

    id: str
    run_count: int | None = None
    is_cached: bool
    idempotency_key: str | None = None


class BatchLine(msgspec.Struct, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """Second phase: one line of the item stream. Items are told apart by `index`, so a stream may be sent again."""

    index: int
    task: str
    payload: str | None = None
    options: TriggerOptions = msgspec.field(default_factory=TriggerOptions)


class BatchItemsResponse(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """How many lines were new, and whether the batch has all its items. `runs` are the runs of these lines, in their order; `cached`
    are positions in it of those that were there before the batch.

    `expectedCount` is left out while it is not known.
    """

    id: str
    items_accepted: int
    items_deduplicated: int
    sealed: bool
    enqueued_count: int
    expected_count: int | None = None
    runs: list[str]
    queued_reasons: dict[str, QueuedReason] = {}
    cached: list[int] = []


class ResetKeyRequest(msgspec.Struct, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """Let an idempotency key of a task stand for nothing; without a task, the key of a batch."""

    task_identifier: str | None = None


class ResetKeyResponse(msgspec.Struct):
    """The key that was reset."""

    id: str


class BatchProcessing(msgspec.Struct):
    """Errors of accepting the items; runs that failed are no errors here."""

    errors: list[str]


class BatchObject(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """A batch. `status` is PENDING, PROCESSING or COMPLETED; `runs` are in index order; `finishedCount` of them have ended.

    `runCount` is how many there are so far, for a batch that was announced without a number and is PENDING.
    """

    id: str
    status: str
    created_at: str
    updated_at: str
    run_count: int
    finished_count: int
    runs: list[str]
    processing: BatchProcessing


class BatchResults(msgspec.Struct, omit_defaults=True):
    """The results of the runs of a batch that have ended, in index order. `next` is the `page[after]` of the following page."""

    id: str
    items: list[RunResult]
    next: int | None = None
