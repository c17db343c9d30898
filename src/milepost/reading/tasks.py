"""Tasks that workers have offered, and the workers that are online."""

from collections import Counter
from typing import Any

import msgspec
from sqlalchemy import Connection

from milepost.errors import NotFoundError
from milepost.model.retry import RetryRule
from milepost.model.run import RunStatus
from milepost.protocol.tasks import NumberedPage, TaskObject, TaskPage, TaskSummary, WorkerObject, WorkerPage
from milepost.reading.fields import time_of
from milepost.store import records
from milepost.store import runs as run_store
from milepost.store.records import TaskRow
from milepost.store.runs import RunFilter
from milepost.store.workers import load_workers


def task_page(connection: Connection, *, number: int, size: int) -> TaskPage:
    """A page of tasks, in the order of their ids; pages are counted from 1."""
    rows = sorted(records.load_tasks(connection).values(), key=lambda row: row.id)
    online = _online(connection)
    data = [TaskSummary(**_fields(row, online)) for row in rows[(number - 1) * size : number * size]]
    return TaskPage(data, _place(number, size, len(rows)))


def task(connection: Connection, task_id: str) -> TaskObject:
    """A task. Raises NotFoundError."""
    row = records.load_tasks(connection).get(task_id)
    if row is None:
        raise NotFoundError(f"no worker has ever offered a task {task_id!r:.100}")
    return TaskObject(
        **_fields(row, _online(connection)),
        payload_schema=_schema(row.payload_schema),
        metadata_schema=_schema(row.metadata_schema),
        counts=run_store.count_by_status(connection, RunFilter(tasks=(task_id,))),
    )


def worker_page(connection: Connection, *, number: int, size: int) -> WorkerPage:
    """A page of the workers that hold a lease, the newest first; pages are counted from 1."""
    rows = sorted(load_workers(connection), key=lambda row: (-row.registered_at, row.id))
    shown = rows[(number - 1) * size : number * size]
    held = run_store.count_held_by(connection, [row.id for row in shown])
    data = [
        WorkerObject(
            id=row.id,
            name=row.name,
            tasks=msgspec.json.decode(row.tasks, type=list[str]),
            registered_at=time_of(row.registered_at),
            executing=held.get((row.id, RunStatus.EXECUTING), 0),
            waiting=held.get((row.id, RunStatus.WAITING), 0),
        )
        for row in shown
    ]
    return WorkerPage(data, _place(number, size, len(rows)))


def _fields(row: TaskRow, online: Counter[str]) -> dict[str, Any]:
    retry = msgspec.json.decode(row.retry, type=RetryRule)
    return {
        "id": row.id,
        "queue": row.queue,
        "queue_concurrency": row.queue_concurrency,
        "max_attempts": retry.max_attempts,
        "retry": retry,
        "workers_online": online[row.id],
        "has_payload_schema": row.payload_schema is not None,
        "updated_at": time_of(row.updated_at),
    }


def _online(connection: Connection) -> Counter[str]:
    return Counter(
        task
        for worker in load_workers(connection)
        for task in msgspec.json.decode(worker.tasks, type=list[str])
    )


def _schema(stored: bytes | None) -> msgspec.Raw | None:
    return None if stored is None else msgspec.Raw(stored)


def _place(number: int, size: int, count: int) -> NumberedPage:
    return NumberedPage(current_page=number, total_pages=max(1, -(-count // size)), count=count)
