"""Deciding on triggers and batches: from what was asked to rows, or a refusal that names the item and the field."""

import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import msgspec

from milepost.engine import debouncing, idempotency
from milepost.engine.commands import (
    AddBatchItems,
    AttemptRef,
    BatchKey,
    CreateBatch,
    ItemsAdded,
    OneTimeToken,
    ResetKey,
    Trigger,
    TriggerBatch,
    Triggered,
    TriggerItem,
)
from milepost.engine.ending import tell_batch
from milepost.engine.idempotency import Finding
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import (
    BatchNotFoundError,
    ConflictError,
    InsufficientScopeError,
    InvalidRequestError,
    MetadataError,
    MetadataTypeError,
    RunNotFoundError,
    TokenUsedError,
    TooLargeError,
)
from milepost.model import jsonvalue
from milepost.model.document import Document
from milepost.model.durations import Delay, parse_delay, parse_duration
from milepost.model.names import check_name
from milepost.model.run import NOTHING_ASKED, AskedOptions, RunStatus, asked_text
from milepost.model.typed import check_document
from milepost.protocol.endpoints import REQUEST_ID_HEADER
from milepost.protocol.triggering import (
    BATCH_ITEMS_MAX,
    JSON_TYPE,
    PAYLOAD_BYTES_MAX,
    SUPER_JSON_TYPE,
    TAG_CHARACTERS_MAX,
    TAGS_MAX,
    TEXT_TYPE,
    TriggerOptions,
)
from milepost.store import runs as run_store
from milepost.store.batches import OPEN_COUNT, BatchRow
from milepost.store.records import UsedToken
from milepost.store.runs import NewRun, RunRow

SPAN_LEAST = timedelta(milliseconds=1)
SPAN_MOST = timedelta(days=3653)
DELAY_MICROSECONDS_MAX = SPAN_MOST // timedelta(microseconds=1)
# Seconds; a month.
PRIORITY_MAX = 30 * 24 * 3600

_NOTHING_GIVEN = (None,) * 6

# Looked at only as far as needed to know that every reader will be able to read it.
_SHAPES: dict[str, msgspec.json.Decoder[Any]] = {
    JSON_TYPE: msgspec.json.Decoder(msgspec.Raw),
    SUPER_JSON_TYPE: msgspec.json.Decoder(dict[str, msgspec.Raw]),
}
_PAYLOAD_TYPES = (JSON_TYPE, SUPER_JSON_TYPE, TEXT_TYPE)


def trigger(command: Trigger, transaction: Transaction, state: EngineState) -> Triggered:
    """Queue one run, or find the one that is meant."""
    checksum = None if command.request_id is None else _checksum(command.item)
    if (earlier := _earlier(command.request_id, checksum, transaction)) is not None:
        return earlier
    _check_unused(command.token, transaction)
    item, options = command.item, command.item.options
    parent = _parent(options.parent_run_id, transaction)
    function = "triggerAndWait" if options.resume_parent_on_completion else "trigger"
    run = _new_run(item, parent, function, transaction, state, place="", replay_of=command.replay_of)
    finding = Finding(command.attempt, state.children, transaction)
    is_debounced = options.debounce is not None
    # Whoever names a key means its run first, and a run that is put off only where the key stands for none.
    found = finding.find(item, run, place="", by_attempt=not is_debounced)
    if (
        found is None
        and is_debounced
        and (found := debouncing.put_off(item, transaction, state, run)) is not None
    ):
        finding.means_instead(found.id)
    if found is None:
        _queue([run], transaction, state)
        if is_debounced:
            transaction.save_key(debouncing.key_row(item, run))
    else:
        assert isinstance(found, RunRow), "a command of one trigger makes no other run"
        if options.resume_parent_on_completion:
            idempotency.let_wait(found, options.parent_run_id, transaction)
    finding.keep()
    _use(command.token, None, transaction)
    answer = Triggered([run.id]) if found is None else Triggered([found.id], found=[0])
    return _answer(answer, command.request_id, checksum, transaction)


def check_item(item: TriggerItem, transaction: Transaction, state: EngineState) -> None:
    """Raise what would refuse this run."""
    _new_run(item, None, "trigger", transaction, state, place="")


def trigger_scheduled(item: TriggerItem, transaction: Transaction, state: EngineState) -> str:
    """Queue the run of a schedule; its id. Raises what refuses it."""
    run = _new_run(item, None, "trigger", transaction, state, place="")
    _queue([run], transaction, state)
    return run.id


def trigger_batch(command: TriggerBatch, transaction: Transaction, state: EngineState) -> Triggered:
    """Queue a whole batch."""
    checksum = None
    if command.request_id is not None:
        checksum = _checksum(command.items, command.parent_id, command.resume_parent, *_said(command.key))
    if (earlier := _earlier(command.request_id, checksum, transaction)) is not None:
        return earlier
    _check_unused(command.token, transaction)
    items = command.items
    _check_count(len(items), "items")
    same = idempotency.batch_of(command.key, transaction)
    if same is not None:
        answer = _whole(same, transaction)
    else:
        batch = _new_batch(len(items), command.parent_id, command.resume_parent, transaction, state)
        placed = _place(
            batch, list(enumerate(items)), command.attempt, transaction, state, is_keyed=command.key is not None
        )  # fmt: skip
        transaction.add_batch(batch)
        placed.keep(batch, transaction, state)
        idempotency.keep_batch(command.key, batch, transaction)
        answer = Triggered(list(placed.ids.values()), batch.id, found=sorted(placed.found))
        if batch.finished_count >= batch.run_count:
            tell_batch(batch, transaction)
    _use(command.token, answer.batch_id, transaction)
    return _answer(answer, command.request_id, checksum, transaction)


def create_batch(command: CreateBatch, transaction: Transaction, state: EngineState) -> str:
    """Announce a batch; its items come by `add_batch_items`."""
    checksum = _checksum(command.run_count, command.parent_id, command.resume_parent, *_said(command.key))
    earlier = _earlier(command.request_id, checksum, transaction)
    if earlier is not None and earlier.batch_id is not None:
        return earlier.batch_id
    _check_unused(command.token, transaction)
    if command.run_count is not None and not 1 <= command.run_count < OPEN_COUNT:
        raise InvalidRequestError(
            f"a batch has 1 to {OPEN_COUNT - 1:,} items, not {command.run_count:,}", field="runCount"
        )
    batch = idempotency.batch_of(command.key, transaction)
    if batch is None:
        count = OPEN_COUNT if command.run_count is None else command.run_count
        batch = _new_batch(count, command.parent_id, command.resume_parent, transaction, state)
        transaction.add_batch(batch)
        idempotency.keep_batch(command.key, batch, transaction)
    _use(command.token, batch.id, transaction)
    _answer(Triggered([], batch.id), command.request_id, checksum, transaction)
    return batch.id


def reset_key(command: ResetKey, transaction: Transaction, state: EngineState) -> None:
    """See `idempotency.reset`."""
    idempotency.reset(command, transaction)


def _whole(batch: BatchRow, transaction: Transaction) -> Triggered:
    """A batch that was there before, as the answer to who triggers it again."""
    if batch.known_count is None or batch.accepted_count < batch.known_count:
        raise ConflictError(
            f"the idempotency key stands for batch {batch.id}, of which not all items have come: "
            f"send them to it, or reset the key",
            field="idempotencyKey",
        )
    if batch in transaction.new_batches:
        # Made by this very group.
        transaction.save()
    ids = list(run_store.batch_runs(transaction.connection, batch.id).values())
    return Triggered(ids, batch.id, found=range(len(ids)), found_batch=True)


def add_batch_items(command: AddBatchItems, transaction: Transaction, state: EngineState) -> ItemsAdded:
    """Add items to a batch; an index that is there already is passed over, so that a stream may be sent again."""
    batch = transaction.batch(command.batch_id)
    if batch is None:
        raise BatchNotFoundError(f"there is no batch {command.batch_id!r}")
    if command.token is not None:
        used = transaction.used_token(command.token.id)
        if used is None or used.batch_id != batch.id:
            raise InsufficientScopeError(
                f"this public token works once, and batch {batch.id!r} was not announced with it"
            )
    _check_count(len(command.lines), "items", least=0)
    indexes = [line.index for line in command.lines] or [0]
    present = run_store.batch_runs(transaction.connection, batch.id, after=min(indexes) - 1, to=max(indexes))
    fresh: dict[int, TriggerItem] = {}
    for line in command.lines:
        if not 0 <= line.index < batch.run_count:
            raise InvalidRequestError(
                f"item index {line.index} is outside the batch, which was announced with {batch.run_count} items",
                field="index",
                limit=batch.run_count,
            )
        if line.index not in present:
            fresh[line.index] = TriggerItem(line.task, line.payload, line.options)
    placed = _place(batch, sorted(fresh.items()), command.attempt, transaction, state)
    if command.run_count is not None:
        _check_learnt(batch, command.run_count, batch.accepted_count + len(fresh))
        batch.run_count = command.run_count
    placed.keep(batch, transaction, state)
    transaction.save_batch(batch)
    if command.run_count is not None or (placed.found and batch.finished_count >= batch.run_count):
        # All its runs may have ended already: then so has the batch.
        tell_batch(batch, transaction)
    ids = present | placed.ids
    return ItemsAdded(
        accepted=len(fresh),
        deduplicated=len(command.lines) - len(fresh),
        accepted_count=batch.accepted_count,
        run_count=batch.known_count,
        run_ids=[ids[line.index] for line in command.lines],
        found=[place for place, line in enumerate(command.lines) if line.index in placed.found],
    )


def _check_learnt(batch: BatchRow, run_count: int, accepted_count: int) -> None:
    """Whether it may be learnt now how many items the batch has in all."""
    if batch.known_count not in (None, run_count) or not accepted_count <= run_count < OPEN_COUNT:
        known = "" if batch.known_count is None else f", and was said to have {batch.known_count:,}"
        raise InvalidRequestError(
            f"the batch has {accepted_count:,} items already{known}: it cannot have {run_count:,} in all",
            field="runCount",
        )


def _check_count(count: int, field: str, *, least: int = 1) -> None:
    if not least <= count <= BATCH_ITEMS_MAX:
        raise InvalidRequestError(
            f"a request takes {least} to {BATCH_ITEMS_MAX:,} items of a batch, not {count:,}: send them in portions "
            f"(POST /api/v3/batches, then its items)",
            field=field,
            limit=BATCH_ITEMS_MAX,
        )


def _new_batch(
    run_count: int, parent_id: str | None, resume_parent: bool, transaction: Transaction, state: EngineState
) -> BatchRow:
    _parent(parent_id, transaction)
    now = transaction.now
    return BatchRow(
        id=state.identifiers.make("batch", now),
        parent_id=parent_id,
        resume_parent=int(resume_parent),
        run_count=run_count,
        accepted_count=0,
        finished_count=0,
        created_at=now,
        updated_at=now,
    )


class _Placed(msgspec.Struct):
    """The runs of some items of a batch: those that are to be made, and by index all of them, and those that were there before."""

    new: list[NewRun]
    ids: dict[int, str]
    found: dict[int, str]
    finding: Finding

    def keep(self, batch: BatchRow, transaction: Transaction, state: EngineState) -> None:
        """Nothing can be refused any more: they are the batch's."""
        _queue(self.new, transaction, state)
        self.finding.keep()
        members = [(index, transaction.run_made(run_id)) for index, run_id in self.found.items()]
        idempotency.join(batch, [(index, row) for index, row in members if row is not None], transaction)
        batch.accepted_count += len(self.ids)


def _place(
    batch: BatchRow,
    items: Sequence[tuple[int, TriggerItem]],
    attempt: AttemptRef | None,
    transaction: Transaction,
    state: EngineState,
    *,
    is_keyed: bool = False,
) -> _Placed:
    """Changes nothing. `is_keyed`: the batch has an idempotency key of its own."""
    function = "batchTriggerAndWait" if batch.resume_parent else "batchTrigger"
    parent = _parent(batch.parent_id, transaction)
    finding = Finding(attempt, state.children, transaction)
    if not is_keyed:
        finding.load([item for _, item in items])
    placed = _Placed([], {}, {}, finding)
    for index, item in items:
        place = f"items[{index}]."
        own_parent = _parent(item.options.parent_run_id, transaction, place=place) or parent
        run = _new_run(item, own_parent, function, transaction, state, place=place)
        found = finding.find(item, run, place=place, by_attempt=not is_keyed)
        if found is None:
            run.batch_id, run.batch_index = batch.id, index
            placed.new.append(run)
            placed.ids[index] = run.id
        else:
            placed.ids[index] = placed.found[index] = found if isinstance(found, str) else found.id
    return placed


def _parent(parent_id: str | None, transaction: Transaction, *, place: str = "") -> RunRow | None:
    if parent_id is None:
        return None
    parent = transaction.run(parent_id)
    if parent is None:
        raise RunNotFoundError(
            f"there is no run {parent_id!r:.100} to be the parent", field=f"{place}options.parentRunId"
        )
    return parent


def _new_run(
    item: TriggerItem,
    parent: RunRow | None,
    function: str,
    transaction: Transaction,
    state: EngineState,
    *,
    place: str,
    replay_of: str | None = None,
) -> NewRun:
    check_name(item.task, "the id of a task", field=f"{place}task")
    options = item.options
    now = transaction.now
    run_id = state.identifiers.make("run", now)
    delay = delay_of(options.delay, now=now, field=f"{place}options.delay")
    if options.debounce is not None:
        delay = debouncing.delay_of(options, delay, now=now, place=place)
    asked = _asked(options, delay, replay_of, place)
    status, due_at, expires_at = RunStatus.QUEUED, now - asked.priority * 1_000_000, None
    if delay is not None:
        status, due_at = RunStatus.DELAYED, delay.due_at(now)
    elif item.task not in transaction.catalog.tasks:
        status = RunStatus.PENDING_VERSION
    if delay is None and asked.ttl_ms is not None:
        expires_at = now + asked.ttl_ms * 1000
    return NewRun(
        id=run_id,
        task=item.task,
        queue=_queue_name(options, transaction.catalog.queue_of(item.task), place),
        max_attempts=_max_attempts(options, place),
        status=status,
        due_at=due_at,
        is_due_at_given=None if delay is None or delay.at is None else 1,
        expires_at=expires_at,
        options=asked_text(asked),
        created_at=now,
        parent_id=parent.id if parent else None,
        root_id=parent.root_id if parent else run_id,
        depth=parent.depth + 1 if parent else 0,
        trigger_function=function,
        tags=_tags(options, place),
        payload=item.payload,
        payload_type=_payload_type(item, place),
        trigger_metadata=_metadata(item.task, options, transaction, state, place),
        concurrency_key=None if options.concurrency_key is None else _concurrency_key(options, place),
    )


def delay_of(text: str | None, *, now: int, field: str) -> Delay | None:
    """What a delay says, of at most ten years; None for one that is over, or none. Raises InvalidRequestError."""
    if text is None:
        return None
    try:
        delay = parse_delay(text)
    except ValueError as error:
        raise InvalidRequestError(f"delay: {error}", field=field) from None
    due_at = delay.due_at(now)
    if due_at - now > DELAY_MICROSECONDS_MAX:
        raise InvalidRequestError(
            f"a run can be delayed by ten years at most, and {text!r:.100} is later", field=field
        )
    return delay if due_at > now else None


def _asked(options: TriggerOptions, delay: Delay | None, replay_of: str | None, place: str) -> AskedOptions:
    given = options.ttl, options.max_duration, options.priority, options.retry, delay, replay_of
    if given == _NOTHING_GIVEN and options.idempotency_key is None:
        return NOTHING_ASKED
    return AskedOptions(
        delay_ms=None if delay is None else delay.pause_ms,
        ttl_ms=_milliseconds(options.ttl, "ttl", place),
        priority=_priority(options.priority, place),
        max_duration_ms=_milliseconds(options.max_duration, "maxDuration", place),
        idempotency_key=idempotency.shown_key(options),
        replay_of=replay_of,
        retry=options.retry,
    )


def _milliseconds(value: str | float | None, name: str, place: str) -> int | None:
    """A span that is longer than nothing, in whole milliseconds."""
    if value is None:
        return None
    field = f"{place}options.{name}"
    try:
        span = parse_duration(value)
    except ValueError as error:
        raise InvalidRequestError(f"{name}: {error}", field=field) from None
    if not SPAN_LEAST <= span <= SPAN_MOST:
        raise InvalidRequestError(f"{name} is from 1 ms to ten years, not {value!r:.100}", field=field)
    return span // SPAN_LEAST


def _priority(value: int | None, place: str) -> int:
    if not value:
        return 0
    if not 0 <= value <= PRIORITY_MAX:
        raise InvalidRequestError(
            f"priority is the number of seconds by which a run is put forward, from 0 to {PRIORITY_MAX:,}, not {value}",
            field=f"{place}options.priority",
            limit=PRIORITY_MAX,
        )
    return value


def _payload_type(item: TriggerItem, place: str) -> str | None:
    if item.payload is None:
        return None
    size = len(item.payload)
    # A character is at least a byte, so only a text near the limit has to be measured.
    if size * 4 > PAYLOAD_BYTES_MAX and (size := len(item.payload.encode())) > PAYLOAD_BYTES_MAX:
        raise TooLargeError(
            f"the payload has {size:,} bytes, the limit is {PAYLOAD_BYTES_MAX:,}: store the data elsewhere and pass a reference",
            field=f"{place}payload",
            limit=PAYLOAD_BYTES_MAX,
        )
    kind = item.options.payload_type or JSON_TYPE
    if kind not in _PAYLOAD_TYPES:
        raise InvalidRequestError(
            f"payloadType {kind!r:.100} is not supported; use one of {', '.join(_PAYLOAD_TYPES)}",
            field=f"{place}options.payloadType",
        )
    if kind != TEXT_TYPE:
        try:
            _SHAPES[kind].decode(item.payload)
        except msgspec.ValidationError:
            message = "a super-JSON payload is an object with the value under `json`"
            raise InvalidRequestError(message, field=f"{place}payload") from None
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"the payload is not JSON: {error}", field=f"{place}payload") from None
        except RecursionError:
            raise InvalidRequestError("the payload is nested too deeply", field=f"{place}payload") from None
    return kind


def _metadata(
    task: str, options: TriggerOptions, transaction: Transaction, state: EngineState, place: str
) -> bytes | None:
    metadata = options.metadata
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise MetadataTypeError(
            f"{place}options.metadata must be a JSON object, not {jsonvalue.describe(metadata)}",
            key=f"{place}options.metadata",
        )
    try:
        document = Document.from_json(cast("object", metadata), limit=state.settings.metadata_size_max)
        declared = transaction.catalog.declared_of(task)
        if declared is not None:
            check_document(document.value, declared, f"the metadata of task {task!r}")
        return document.encode()
    except MetadataError as error:
        error.key = f"{place}options.metadata"
        raise


def _tags(options: TriggerOptions, place: str) -> list[str]:
    if not options.tags:
        return []
    tags = [options.tags] if isinstance(options.tags, str) else options.tags
    return check_tags(tags, field=f"{place}options.tags")


def check_tags(given: Sequence[str], *, field: str) -> list[str]:
    """The tags of a run, each once, in their order. Raises InvalidRequestError."""
    tags = list(dict.fromkeys(given))
    if len(tags) > TAGS_MAX:
        raise InvalidRequestError(
            f"a run takes up to {TAGS_MAX} tags, not {len(tags)}", field=field, limit=TAGS_MAX
        )
    for tag in tags:
        check_name(tag, "a tag", field=field, characters_max=TAG_CHARACTERS_MAX)
    return tags


def _queue_name(options: TriggerOptions, default: str, place: str) -> str:
    if options.queue is None:
        return default
    check_name(options.queue.name, "the name of a queue", field=f"{place}options.queue.name")
    return options.queue.name


def _concurrency_key(options: TriggerOptions, place: str) -> str | None:
    if options.concurrency_key is not None:
        check_name(options.concurrency_key, "a concurrency key", field=f"{place}options.concurrencyKey")
    return options.concurrency_key


def _max_attempts(options: TriggerOptions, place: str) -> int | None:
    if options.max_attempts is not None and not 1 <= options.max_attempts <= 1000:
        raise InvalidRequestError(
            f"maxAttempts must be from 1 to 1,000, not {options.max_attempts}",
            field=f"{place}options.maxAttempts",
            limit=1000,
        )
    return options.max_attempts


def _queue(runs: Sequence[NewRun], transaction: Transaction, state: EngineState) -> None:
    transaction.new_runs.extend(runs)
    queued: dict[tuple[str, str, str | None, int, str | None, RunStatus], int] = {}
    for run in runs:
        place = run.task, run.queue, run.concurrency_key, run.due_at, run.parent_id, run.status
        queued[place] = queued.get(place, 0) + 1
        transaction.announce_state(
            RunRow(
                id=run.id,
                task=run.task,
                queue=run.queue,
                status=run.status,
                due_at=run.due_at,
                created_at=run.created_at,
                updated_at=run.created_at,
                root_id=run.root_id,
                trigger_function=run.trigger_function,
                depth=run.depth,
                parent_id=run.parent_id,
                batch_id=run.batch_id,
                max_attempts=run.max_attempts,
                metadata_unindexed=run_store.is_unindexed(run.trigger_metadata),
                concurrency_key=run.concurrency_key,
                expires_at=run.expires_at,
                options=run.options,
            )
        )
        if run.status is RunStatus.DELAYED or run.due_at > transaction.now:
            state.due_later(run.due_at)
        if run.expires_at is not None:
            state.due_later(run.expires_at)
    for (task, queue, key, due_at, parent_id, status), count in queued.items():
        if status is RunStatus.QUEUED:
            transaction.offer(task, queue, key, due_at)
        transaction.count_moved(parent_id, None, status, runs=count)


def _check_unused(token: OneTimeToken | None, transaction: Transaction) -> None:
    if token is not None and transaction.used_token(token.id) is not None:
        # The words of the protocol, section 2.2.
        raise TokenUsedError("Cannot trigger with a one-time use token as it has already been used.")


def _use(token: OneTimeToken | None, batch_id: str | None, transaction: Transaction) -> None:
    """The token is used up: nothing can be refused any more."""
    if token is not None:
        transaction.use_token(UsedToken(token.id, batch_id, token.expires_at))


class _Answered(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a request was answered, and what it had said, in short; None in answers of earlier versions."""

    run_ids: list[str]
    batch_id: str | None = None
    checksum: int | None = None
    found: list[int] = []
    found_batch: bool = False


_ANSWERED = msgspec.json.Decoder(_Answered)


def _said(key: BatchKey | None) -> list[BatchKey]:
    # Requests without a key say what they said before there were any.
    return [] if key is None else [key]


def _checksum(*said: Any) -> int:
    return zlib.crc32(msgspec.json.encode(said))


def _earlier(request_id: str | None, checksum: int | None, transaction: Transaction) -> Triggered | None:
    """What a repeated request was answered. Raises ConflictError for other content under its id."""
    answer = transaction.earlier_answer(request_id)
    if answer is None:
        return None
    answered = _ANSWERED.decode(answer)
    if answered.checksum not in (None, checksum):
        raise ConflictError(
            "this request id was used for a request that said something else: each request needs an id of its own",
            field=REQUEST_ID_HEADER,
        )
    return Triggered(
        answered.run_ids, answered.batch_id, cached=True, found=answered.found, found_batch=answered.found_batch
    )  # fmt: skip


def _answer(
    answer: Triggered, request_id: str | None, checksum: int | None, transaction: Transaction
) -> Triggered:
    answered = _Answered(answer.run_ids, answer.batch_id, checksum, list(answer.found), answer.found_batch)
    transaction.keep_answer(request_id, msgspec.json.encode(answered))
    return answer
