"""Triggering many runs at once: items of any number, sent in portions while they come, in bounded memory.

What fits into one request goes as one: all of it is accepted or nothing. A longer batch is announced first and its items follow in
portions, each of which may be repeated without harm; with the last one the server learns how many there are.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, Unpack, cast

from milepost.client import calls, endings
from milepost.client.calls import TriggeredBatch
from milepost.client.client import Client, warn_never_offered
from milepost.client.default import default_client
from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.idempotency import key_fields
from milepost.client.requests import NO_PAYLOAD, BatchOptions, RunOptions
from milepost.client.results import TaskResult, task_result
from milepost.client.steps import Steps, arun, run
from milepost.errors import MilepostError, PayloadValidationError, TooLargeError, UsageError
from milepost.model.jsonvalue import json_size
from milepost.protocol.runs import RunResult
from milepost.protocol.triggering import (
    BATCH_ITEMS_MAX,
    BatchCreateRequest,
    BatchLine,
    BatchObject,
    BatchRequest,
)
from milepost.protocol.triggering import BatchItem as WireItem
from milepost.sdk.scope import RunScope, live_scope
from milepost.sdk.triggering import Commit, WaitForEnd, blocking_scope, caller_of, output_shape, prepare

PayloadT = TypeVar("PayloadT")

PORTION_BYTES_MAX = 4 * 1024 * 1024
"""What the payloads and documents of one request have, about; a single item may be larger."""

FAREWELL_SECONDS_MAX = 1.0


class BatchItem(Generic[PayloadT]):
    """One item of a batch with options of its own: `BatchItem(row, metadata={"row": 1}, tags=["csv"])`."""

    __slots__ = ("options", "payload")

    def __init__(self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[RunOptions]) -> None:
        self.payload = payload
        self.options = options


class Sending:
    """A batch on its way to the server, without I/O: items come in by `take`, and what is to be sent comes out as steps."""

    def __init__(self, task_id: str, scope: RunScope | None, options: BatchOptions, *, resume: bool) -> None:
        unknown = options.keys() - BatchOptions.__annotations__
        if unknown:
            names = ", ".join(sorted(BatchOptions.__annotations__))
            raise TypeError(f"there is no option {sorted(unknown)[0]!r} of a batch; there are {names}")
        self._task_id = task_id
        self._scope = scope
        self._caller = caller_of(scope)
        self._options = options
        # That of the batch itself, not of its items.
        self._key: dict[str, Any] = {}
        if options.get("idempotency_key") is not None:
            self._key = key_fields(options, self._caller)
        elif "idempotency_key_ttl" in options and "key" not in options:
            raise UsageError("idempotency_key_ttl is how long an idempotency key is kept, and there is none")
        self._resume = resume
        self._portion: list[WireItem] = []
        self._portion_bytes = 0
        self._full: list[WireItem] = []
        self._count = 0
        self._batch: TriggeredBatch | None = None

    def take(self, client: Client, item: object) -> Steps[None]:
        """Take the next item, and send the portion that is full by it. Raises as `prepare`, naming the item by its position."""
        if self._add((yield from client.preparing(lambda limit: self._encode(item, limit)))):
            yield from self._send()

    def finish(self) -> Steps[TriggeredBatch]:
        """Send what is left; the batch as a whole."""
        yield Commit(self._scope)
        if self._batch is not None and self._batch.is_cached:
            known: BatchObject = yield calls.retrieve_batch(self._batch.id)
            self._batch.run_ids.extend(known.runs)
            self._batch.cached.update(range(len(known.runs)))
            return self._batch
        if self._batch is not None:
            yield from self._add_items(self._portion, run_count=self._count)
            return self._batch
        if not self._portion:
            return TriggeredBatch("", [], None)
        request = BatchRequest(
            items=self._portion,
            parent_run_id=self._parent_id,
            resume_parent_on_completion=self._resume,
            **self._key,
        )
        return (yield calls.trigger_batch(request))

    def give_up(self, error: BaseException) -> Steps[None]:
        """The items broke off. What has been triggered goes on, and the batch ends with it; the error says so.

        One with an idempotency key does not end: who triggers it again sends the rest."""
        if self._batch is None or self._batch.is_cached:
            return
        sent = len(self._batch.run_ids)
        error.add_note(f"{sent:,} items had been triggered before, in batch {self._batch.id}; they go on")
        if sent and not self._key:
            yield calls.add_batch_items(self._batch.id, [], run_count=sent)

    def _encode(self, item: object, limit: int) -> WireItem:
        """The item as it travels. Raises as `prepare`, naming the item by its position."""
        own = cast("BatchItem[object]", item if isinstance(item, BatchItem) else BatchItem(item))
        limit = limit if self._scope is None else self._scope.buffer.limit
        try:
            request = prepare(
                self._task_id,
                own.payload,
                self._options_of(own),
                limit=limit,
                scope=None,
                resume=False,
                caller=self._caller,
            )
        except PayloadValidationError as error:
            raise PayloadValidationError(f"item {self._count}: {error.message}", field=error.field) from None
        except TooLargeError as error:
            message = f"item {self._count}: {error.message}"
            raise TooLargeError(message, field=error.field, limit=error.limit) from None
        return WireItem(self._task_id, request.payload, request.options)

    def _options_of(self, item: BatchItem[object]) -> RunOptions:
        """The options of an item, with those that the batch has for all."""
        if "idempotency_key" in item.options:
            return item.options
        choose = self._options.get("key")
        if choose is not None:
            key = choose(item.payload)
            if key is not None and "idempotency_key_ttl" in self._options:
                ttl = self._options["idempotency_key_ttl"]
                return {"idempotency_key_ttl": ttl, **item.options, "idempotency_key": key}
            return {**item.options, "idempotency_key": key}
        if "idempotency_key" in self._options and self._options["idempotency_key"] is None:
            return {**item.options, "idempotency_key": None}
        return item.options

    def _add(self, item: WireItem) -> bool:
        """True when a portion is full and should be sent."""
        if self._batch is not None and self._batch.is_cached:
            return False
        metadata = item.options.metadata
        size = len(item.payload or "") + (0 if metadata is None else json_size(metadata))
        if self._portion and (
            len(self._portion) == BATCH_ITEMS_MAX or self._portion_bytes + size > PORTION_BYTES_MAX
        ):
            self._full, self._portion, self._portion_bytes = self._portion, [], 0
        self._portion.append(item)
        self._portion_bytes += size
        self._count += 1
        return bool(self._full)

    def _send(self) -> Steps[None]:
        yield Commit(self._scope)
        if self._batch is None:
            request = BatchCreateRequest(
                parent_run_id=self._parent_id, resume_parent_on_completion=self._resume, **self._key
            )
            created: TriggeredBatch = yield calls.create_batch(request)
            self._batch = created
            if created.is_cached:
                return
        full, self._full = self._full, []
        yield from self._add_items(full, run_count=None)

    @property
    def _parent_id(self) -> str | None:
        return None if self._scope is None else self._scope.run.id

    def _add_items(self, items: list[WireItem], *, run_count: int | None) -> Steps[None]:
        assert self._batch is not None
        first = len(self._batch.run_ids)
        lines = [
            BatchLine(first + offset, item.task, item.payload, item.options)
            for offset, item in enumerate(items)
        ]
        added = yield calls.add_batch_items(self._batch.id, lines, run_count=run_count)
        self._batch.run_ids.extend(added.run_ids)
        self._batch.cached.update(first + place for place in added.cached)
        self._batch.queued_reasons.update(added.queued_reasons)


def batch_trigger(task_id: str, items: Iterable[object], **options: Unpack[BatchOptions]) -> BatchHandle[Any]:
    """Trigger a run for each item; see `Task.batch_trigger`."""
    return _trigger_all(blocking_scope("batch_trigger"), task_id, items, options, resume=False)


async def abatch_trigger(
    task_id: str, items: Iterable[object] | AsyncIterable[object], **options: Unpack[BatchOptions]
) -> BatchHandle[Any]:
    """As `batch_trigger`, without blocking."""
    return await _atrigger_all(live_scope(), task_id, items, options, resume=False)


def batch_trigger_and_wait(
    task_id: str, items: Iterable[object], **options: Unpack[BatchOptions]
) -> list[TaskResult[Any]]:
    """Trigger a run for each item and wait for their ends; see `Task.batch_trigger_and_wait`."""
    scope = blocking_scope("batch_trigger_and_wait")
    batch = _trigger_all(scope, task_id, items, options, resume=scope is not None)
    return run(default_client().connection, _waiting(scope, task_id, batch))


async def abatch_trigger_and_wait(
    task_id: str, items: Iterable[object] | AsyncIterable[object], **options: Unpack[BatchOptions]
) -> list[TaskResult[Any]]:
    """As `batch_trigger_and_wait`, without blocking."""
    scope = live_scope()
    batch = await _atrigger_all(scope, task_id, items, options, resume=scope is not None)
    return await arun(default_client().connection, _waiting(scope, task_id, batch))


def _trigger_all(
    scope: RunScope | None, task_id: str, items: Iterable[object], options: BatchOptions, *, resume: bool
) -> BatchHandle[Any]:
    if isinstance(items, AsyncIterable):
        raise UsageError(
            "batch_trigger(...) takes a plain iterable; for an async one write `await abatch_trigger(...)`"
        )
    client = default_client()
    sending = Sending(task_id, scope, options, resume=resume)
    try:
        for item in items:
            run(client.connection, sending.take(client, item))
        return _handle(client, task_id, run(client.connection, sending.finish()))
    except BaseException as error:
        with _noting(error):
            run(client.connection, sending.give_up(error), until=_until(error))
        raise


async def _atrigger_all(
    scope: RunScope | None,
    task_id: str,
    items: Iterable[object] | AsyncIterable[object],
    options: BatchOptions,
    *,
    resume: bool,
) -> BatchHandle[Any]:
    client = default_client()
    sending = Sending(task_id, scope, options, resume=resume)
    try:
        async for item in _each(items):
            await arun(client.connection, sending.take(client, item))
        return _handle(client, task_id, await arun(client.connection, sending.finish()))
    except BaseException as error:
        with _noting(error):
            await arun(client.connection, sending.give_up(error), until=_until(error))
        raise


def _waiting(scope: RunScope | None, task_id: str, batch: BatchHandle[Any]) -> Steps[list[TaskResult[Any]]]:
    if not batch.runs:
        return []
    results: list[RunResult] = []
    if scope is not None:
        yield WaitForEnd(scope, batch.id)
        results = yield from endings.results_so_far(batch.id)
    if len(results) < len(batch.runs):
        results = yield from endings.results_of_batch(batch.id)
    shape = output_shape(task_id)
    return [task_result(result, shape) for result in results]


def _handle(client: Client, task_id: str, batch: TriggeredBatch) -> BatchHandle[Any]:
    shape = output_shape(task_id)
    warn_never_offered(batch.queued_reasons)
    reason = batch.queued_reasons.get(task_id)
    runs: list[RunHandle[Any]] = [
        RunHandle(run_id, task_id, batch.token, client.connection, shape, reason, place in batch.cached)
        for place, run_id in enumerate(batch.run_ids)
    ]
    return BatchHandle(batch.id, runs, batch.token, batch.is_cached, client.connection, shape)


async def _each(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


@contextmanager
def _noting(error: BaseException) -> Generator[None]:
    """A batch that cannot be ended either is a note on the error that broke it off."""
    try:
        yield
    except (MilepostError, TimeoutError) as failure:
        error.add_note(f"the batch could not be ended: {failure or 'the server cannot be reached'}")


def _until(error: BaseException) -> float | None:
    """Until when the end of a batch that breaks off may take: who is cancelled or interrupted does not wait for a server."""
    return None if isinstance(error, Exception) else time.monotonic() + FAREWELL_SECONDS_MAX
