"""`tasks`: triggering by name."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any, Unpack

from milepost.client.default import default_client
from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.idempotency import IdempotencyKey
from milepost.client.requests import NO_PAYLOAD, BatchOptions, RunOptions
from milepost.client.results import TaskResult
from milepost.sdk.batches import (
    abatch_trigger,
    abatch_trigger_and_wait,
    batch_trigger,
    batch_trigger_and_wait,
)
from milepost.sdk.scope import RunScope, live_scope
from milepost.sdk.triggering import atrigger, atrigger_and_wait, trigger, trigger_and_wait


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

    def batch_trigger(
        self, task_id: str, items: Iterable[Any], **options: Unpack[BatchOptions]
    ) -> BatchHandle[Any]:
        """See `Task.batch_trigger`."""
        return batch_trigger(task_id, items, **options)

    async def abatch_trigger(
        self, task_id: str, items: Iterable[Any] | AsyncIterable[Any], **options: Unpack[BatchOptions]
    ) -> BatchHandle[Any]:
        """See `Task.abatch_trigger`."""
        return await abatch_trigger(task_id, items, **options)

    def batch_trigger_and_wait(
        self, task_id: str, items: Iterable[Any], **options: Unpack[BatchOptions]
    ) -> list[TaskResult[Any]]:
        """See `Task.batch_trigger_and_wait`."""
        return batch_trigger_and_wait(task_id, items, **options)

    async def abatch_trigger_and_wait(
        self, task_id: str, items: Iterable[Any] | AsyncIterable[Any], **options: Unpack[BatchOptions]
    ) -> list[TaskResult[Any]]:
        """See `Task.abatch_trigger_and_wait`."""
        return await abatch_trigger_and_wait(task_id, items, **options)

    def reset_idempotency_key(
        self,
        task_id: str | None,
        key: str | IdempotencyKey,
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """Let an idempotency key of a task stand for nothing, so that the next trigger with it makes a new run.

        Args:
            task_id: the task; None for the key of a whole batch.
            key: as it was given to the trigger. Inside a run it is a key of this run, unless its scope is global.
            run_id: the run that has triggered with it, where that was another one.
            attempt: which attempt of it, for a key of scope `attempt`.
        Returns: False when it stood for nothing already.
        Raises: UsageError for a scope that lacks its run or attempt.
        """
        scope = live_scope()
        if scope is not None:
            scope.refuse_blocking(
                "tasks.reset_idempotency_key(...)", "`await tasks.areset_idempotency_key(...)`"
            )
        where = _where(scope, run_id, attempt)
        return default_client().reset_idempotency_key(task_id, key, run_id=where[0], attempt=where[1])

    async def areset_idempotency_key(
        self,
        task_id: str | None,
        key: str | IdempotencyKey,
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """As `reset_idempotency_key`, without blocking."""
        where = _where(live_scope(), run_id, attempt)
        return await default_client().areset_idempotency_key(task_id, key, run_id=where[0], attempt=where[1])


def _where(scope: RunScope | None, run_id: str | None, attempt: int | None) -> tuple[str | None, int | None]:
    """The run and the attempt that a key is of, where they are not given."""
    if run_id is not None or scope is None:
        return run_id, attempt
    return scope.run.id, scope.run.attempt if attempt is None else attempt


tasks = Tasks()
