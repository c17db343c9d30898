"""`tasks`: triggering by name."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any, Unpack

from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.requests import NO_PAYLOAD, RunOptions
from milepost.client.results import TaskResult
from milepost.sdk.batches import (
    abatch_trigger,
    abatch_trigger_and_wait,
    batch_trigger,
    batch_trigger_and_wait,
)
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

    def batch_trigger(self, task_id: str, items: Iterable[Any]) -> BatchHandle[Any]:
        """See `Task.batch_trigger`."""
        return batch_trigger(task_id, items)

    async def abatch_trigger(
        self, task_id: str, items: Iterable[Any] | AsyncIterable[Any]
    ) -> BatchHandle[Any]:
        """See `Task.abatch_trigger`."""
        return await abatch_trigger(task_id, items)

    def batch_trigger_and_wait(self, task_id: str, items: Iterable[Any]) -> list[TaskResult[Any]]:
        """See `Task.batch_trigger_and_wait`."""
        return batch_trigger_and_wait(task_id, items)

    async def abatch_trigger_and_wait(
        self, task_id: str, items: Iterable[Any] | AsyncIterable[Any]
    ) -> list[TaskResult[Any]]:
        """See `Task.abatch_trigger_and_wait`."""
        return await abatch_trigger_and_wait(task_id, items)


tasks = Tasks()
