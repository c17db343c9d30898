"""Triggering runs from Python, outside of runs and inside, and waiting for what was triggered.

Preparing is pure: payload and options become a request, checked as far as that can be told here. The calls are then a few lines
for each colour. Inside a run the new runs become its children, and what the run wrote to its metadata is committed before they
start, so that what the children write comes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, Unpack, cast

from milepost.client import calls
from milepost.client.calls import TriggeredBatch
from milepost.client.client import Client, run_handle
from milepost.client.default import default_client
from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.requests import NO_PAYLOAD, RunOptions, payload_text, trigger_options
from milepost.client.results import TaskResult, task_result
from milepost.client.shape import Misfit, Shape
from milepost.errors import PayloadValidationError, TooLargeError
from milepost.model.jsonvalue import encode
from milepost.protocol.triggering import BATCH_ITEMS_MAX, BatchRequest, TriggerRequest
from milepost.protocol.triggering import BatchItem as WireItem
from milepost.sdk.registry import find_task
from milepost.sdk.scope import RunScope, live_scope

PayloadT = TypeVar("PayloadT")


class BatchItem(Generic[PayloadT]):
    """One item of a batch with options of its own: `BatchItem(row, metadata={"row": 1}, tags=["csv"])`."""

    __slots__ = ("options", "payload")

    def __init__(self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[RunOptions]) -> None:
        self.payload = payload
        self.options = options


# --- preparing ---------------------------------------------------------------------------------------------


def describe_misfit(task_id: str, name: str, misfit: Misfit) -> PayloadValidationError:
    """The error for a payload that does not fit. `name` is the payload's parameter."""
    return PayloadValidationError(
        f"the payload does not fit task {task_id!r}: {misfit.describe(name)}",
        field=misfit.problems[0][0] or name,
    )


def encode_payload(task_id: str, payload: object) -> str | None:
    """A payload as JSON text, checked where the task is known in this process; None for one that was left out.

    Raises: PayloadValidationError.
    """
    task = find_task(task_id)
    if task is None:
        return payload_text(payload)
    parameter = task.signature.payload
    shape = task.signature.payload_shape
    if parameter is None or shape is None:
        if payload is not NO_PAYLOAD and payload is not None:
            raise PayloadValidationError(
                f"task {task_id!r} takes no payload, and was given one", field="payload"
            )
        return None
    if payload is NO_PAYLOAD:
        if parameter.default is not parameter.empty:
            return None
        payload = None
        try:
            shape.check(None)
        except Misfit:
            message = f"task {task_id!r} needs a payload ({parameter.name}), and was given none"
            raise PayloadValidationError(message, field=parameter.name) from None
    try:
        return encode(shape.write(shape.check(payload))).decode()
    except Misfit as misfit:
        raise describe_misfit(task_id, parameter.name, misfit) from None


def prepare(
    task_id: str, payload: object, options: RunOptions, *, limit: int, scope: RunScope | None, resume: bool
) -> TriggerRequest:
    """One run as a message. Raises PayloadValidationError, MetadataError, TypeError for an unknown option."""
    task = find_task(task_id)
    text = encode_payload(task_id, payload)
    document = options.get("metadata")
    if task is not None and task.metadata is not None and document is not None:
        task.metadata.check_document(document)
    return TriggerRequest(
        text,
        trigger_options(
            options,
            has_payload=text is not None,
            metadata_limit=limit if scope is None else scope.buffer.limit,
            parent_run_id=scope.run.id if scope is not None else None,
            resume=resume,
        ),
    )


def prepare_batch(
    task_id: str, items: Iterable[object], *, limit: int, scope: RunScope | None, resume: bool
) -> BatchRequest:
    """A batch as a message. Raises as `prepare`, naming the item by its position, and TooLargeError for too many items."""
    if scope is not None:
        limit = scope.buffer.limit
    wire: list[WireItem] = []
    for index, item in enumerate(items):
        if index >= BATCH_ITEMS_MAX:
            raise TooLargeError(
                f"a batch has at most {BATCH_ITEMS_MAX:,} items; send more in several batches, for example "
                f"`for rows in itertools.batched(all_rows, {BATCH_ITEMS_MAX})` (Python 3.12), or slice the list",
                field="items",
                limit=BATCH_ITEMS_MAX,
            )
        own = cast("BatchItem[object]", item if isinstance(item, BatchItem) else BatchItem(item))
        try:
            request = prepare(task_id, own.payload, own.options, limit=limit, scope=None, resume=False)
        except PayloadValidationError as error:
            raise PayloadValidationError(f"item {index}: {error.message}", field=error.field) from None
        wire.append(WireItem(task_id, request.payload, request.options))
    return BatchRequest(
        items=wire,
        parent_run_id=scope.run.id if scope is not None else None,
        resume_parent_on_completion=resume,
    )


def _output_shape(task_id: str) -> Shape[Any] | None:
    task = find_task(task_id)
    return task.signature.output_shape if task is not None else None


def _batch_handle(client: Client, task_id: str, batch: TriggeredBatch) -> BatchHandle[Any]:
    shape = _output_shape(task_id)
    runs = [RunHandle[Any](run_id, task_id, batch.token, client, shape) for run_id in batch.run_ids]
    return BatchHandle(batch.id, runs, batch.token)


_NO_BATCH = TriggeredBatch("", [], None)


# --- the two colours ---------------------------------------------------------------------------------------


def trigger(task_id: str, payload: object, options: RunOptions, *, resume: bool = False) -> RunHandle[Any]:
    """Trigger one run; see `Task.trigger`."""
    scope = _blocking_scope("trigger")
    client = default_client()
    request = client.prepare(
        lambda limit: prepare(task_id, payload, options, limit=limit, scope=scope, resume=resume)
    )
    _commit(scope)
    return run_handle(client, task_id, client.send(calls.trigger(task_id, request)), _output_shape(task_id))


async def atrigger(
    task_id: str, payload: object, options: RunOptions, *, resume: bool = False
) -> RunHandle[Any]:
    """As `trigger`, without blocking."""
    scope = live_scope()
    client = default_client()
    request = await client.aprepare(
        lambda limit: prepare(task_id, payload, options, limit=limit, scope=scope, resume=resume)
    )
    await _acommit(scope)
    return run_handle(
        client, task_id, await client.asend(calls.trigger(task_id, request)), _output_shape(task_id)
    )


def trigger_and_wait(task_id: str, payload: object, options: RunOptions) -> TaskResult[Any]:
    """Trigger one run and wait for its end; see `Task.trigger_and_wait`."""
    scope = _blocking_scope("trigger_and_wait")
    client = default_client()
    handle = trigger(task_id, payload, options, resume=scope is not None)
    if scope is not None:
        _wait(scope, handle.id)
    result = client.send(calls.run_result(handle.id)) if scope is not None else None
    return task_result(result or client.wait_for_result(handle.id), _output_shape(task_id))


async def atrigger_and_wait(task_id: str, payload: object, options: RunOptions) -> TaskResult[Any]:
    """As `trigger_and_wait`, without blocking."""
    scope = live_scope()
    client = default_client()
    handle = await atrigger(task_id, payload, options, resume=scope is not None)
    if scope is not None:
        await _await(scope, handle.id)
    result = await client.asend(calls.run_result(handle.id)) if scope is not None else None
    return task_result(result or await client.await_for_result(handle.id), _output_shape(task_id))


def batch_trigger(task_id: str, items: Iterable[object], *, resume: bool = False) -> BatchHandle[Any]:
    """Trigger up to 1,000 runs; see `Task.batch_trigger`."""
    scope = _blocking_scope("batch_trigger")
    client = default_client()
    listed = list(items)
    request = client.prepare(
        lambda limit: prepare_batch(task_id, listed, limit=limit, scope=scope, resume=resume)
    )
    _commit(scope)
    batch = client.send(calls.trigger_batch(request)) if listed else _NO_BATCH
    return _batch_handle(client, task_id, batch)


async def abatch_trigger(task_id: str, items: Iterable[object], *, resume: bool = False) -> BatchHandle[Any]:
    """As `batch_trigger`, without blocking."""
    scope = live_scope()
    client = default_client()
    listed = list(items)
    request = await client.aprepare(
        lambda limit: prepare_batch(task_id, listed, limit=limit, scope=scope, resume=resume)
    )
    await _acommit(scope)
    batch = await client.asend(calls.trigger_batch(request)) if listed else _NO_BATCH
    return _batch_handle(client, task_id, batch)


def batch_trigger_and_wait(task_id: str, items: Iterable[object]) -> list[TaskResult[Any]]:
    """Trigger up to 1,000 runs and wait for their ends; see `Task.batch_trigger_and_wait`."""
    scope = _blocking_scope("batch_trigger_and_wait")
    client = default_client()
    batch = batch_trigger(task_id, items, resume=scope is not None)
    if not batch.runs:
        return []
    if scope is not None:
        _wait(scope, batch.id)
    results = client.send(calls.batch_results(batch.id)) if scope is not None else []
    if len(results) < len(batch.runs):
        results = client.wait_for_batch(batch.id)
    shape = _output_shape(task_id)
    return [task_result(result, shape) for result in results]


async def abatch_trigger_and_wait(task_id: str, items: Iterable[object]) -> list[TaskResult[Any]]:
    """As `batch_trigger_and_wait`, without blocking."""
    scope = live_scope()
    client = default_client()
    batch = await abatch_trigger(task_id, items, resume=scope is not None)
    if not batch.runs:
        return []
    if scope is not None:
        await _await(scope, batch.id)
    results = await client.asend(calls.batch_results(batch.id)) if scope is not None else []
    if len(results) < len(batch.runs):
        results = await client.await_for_batch(batch.id)
    shape = _output_shape(task_id)
    return [task_result(result, shape) for result in results]


def _blocking_scope(form: str) -> RunScope | None:
    scope = live_scope()
    if scope is not None:
        scope.refuse_blocking(f"{form}(...)", f"`await a{form}(...)`")
    return scope


def _commit(scope: RunScope | None) -> None:
    if scope is not None and scope.buffer.has_unacknowledged:
        scope.link.flush(scope).result()


async def _acommit(scope: RunScope | None) -> None:
    if scope is not None and scope.buffer.has_unacknowledged:
        await asyncio.shield(asyncio.wrap_future(scope.link.flush(scope)))


def _wait(scope: RunScope, target_id: str) -> None:
    attempt = scope.attempt
    if attempt is not None:
        attempt.run_hooks_blocking("on_wait")
    scope.link.wait_for(scope, target_id).result()
    if attempt is not None:
        attempt.run_hooks_blocking("on_resume")


async def _await(scope: RunScope, target_id: str) -> None:
    attempt = scope.attempt
    if attempt is not None:
        await attempt.run_hooks("on_wait")
    # Not shielded: when the waiting is given up, the link is to know.
    await asyncio.wrap_future(scope.link.wait_for(scope, target_id))
    if attempt is not None:
        await attempt.run_hooks("on_resume")


class Tasks:
    """`tasks`: triggering by name. The task need not be imported here; where it is, its payload type is checked at once."""

    def trigger(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """See `Task.trigger`."""
        return trigger(task_id, payload, options)

    async def atrigger(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> RunHandle[Any]:
        """See `Task.atrigger`."""
        return await atrigger(task_id, payload, options)

    def trigger_and_wait(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> TaskResult[Any]:
        """See `Task.trigger_and_wait`."""
        return trigger_and_wait(task_id, payload, options)

    async def atrigger_and_wait(
        self, task_id: str, payload: Any = NO_PAYLOAD, **options: Unpack[RunOptions]
    ) -> TaskResult[Any]:
        """See `Task.atrigger_and_wait`."""
        return await atrigger_and_wait(task_id, payload, options)

    def batch_trigger(self, task_id: str, items: Iterable[Any]) -> BatchHandle[Any]:
        """See `Task.batch_trigger`."""
        return batch_trigger(task_id, items)

    async def abatch_trigger(self, task_id: str, items: Iterable[Any]) -> BatchHandle[Any]:
        """See `Task.abatch_trigger`."""
        return await abatch_trigger(task_id, items)

    def batch_trigger_and_wait(self, task_id: str, items: Iterable[Any]) -> list[TaskResult[Any]]:
        """See `Task.batch_trigger_and_wait`."""
        return batch_trigger_and_wait(task_id, items)

    async def abatch_trigger_and_wait(self, task_id: str, items: Iterable[Any]) -> list[TaskResult[Any]]:
        """See `Task.abatch_trigger_and_wait`."""
        return await abatch_trigger_and_wait(task_id, items)


tasks = Tasks()
