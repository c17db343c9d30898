"""Tasks and workers on the wire: what can be run here, and who runs it."""

from datetime import datetime

import msgspec

from milepost.model.retry import RetryRule


class TaskSummary(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """A task that a worker has offered at some time, as lists show it. `workersOnline`: how many workers offer it now.
    `retry` is its whole rule, without what is as by default."""

    id: str
    queue: str
    queue_concurrency: int | None = None
    max_attempts: int
    retry: RetryRule
    workers_online: int
    has_payload_schema: bool
    updated_at: datetime


class TaskObject(TaskSummary, omit_defaults=True, rename="camel", kw_only=True):
    """A task. The schemas are JSON schemas; `counts` is how many runs it has in each status."""

    payload_schema: msgspec.Raw | None = None
    metadata_schema: msgspec.Raw | None = None
    counts: dict[str, int]


class WorkerObject(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """A worker that is online. `executing` and `waiting` are the runs that it holds; those that wait need no slot."""

    id: str
    name: str
    tasks: list[str]
    registered_at: datetime
    executing: int
    waiting: int


class NumberedPage(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Which page of how many, counted from 1, and how many things there are in all."""

    current_page: int
    total_pages: int
    count: int


class TaskPage(msgspec.Struct):
    """One page of tasks, in the order of their ids."""

    data: list[TaskSummary]
    pagination: NumberedPage


class WorkerPage(msgspec.Struct):
    """One page of workers, the newest first."""

    data: list[WorkerObject]
    pagination: NumberedPage
