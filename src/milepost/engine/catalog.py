"""The tasks that workers have offered, with their rules, and which queues have one. A catalog never changes: what is learnt makes a
new one."""

from collections.abc import Iterable, Mapping

import msgspec

from milepost.engine.declared import SchemaPlace, declared_by
from milepost.model.names import default_queue
from milepost.model.retry import NO_RETRY, RetryRule
from milepost.protocol.work import WorkerTask
from milepost.store.queues import QueueRow
from milepost.store.records import TaskRow


class KnownTask(msgspec.Struct, frozen=True):
    """A task that some worker has offered."""

    id: str
    queue: str
    queue_concurrency: int | None
    retry: RetryRule
    metadata_schema: bytes | None = None
    queue_rate: str | None = None
    has_end_hooks: bool = False


class Catalog:
    """Every task that was ever offered.

    Attributes:
        tasks: by id.
        queue_limits: how many runs of a queue may execute at once, as the tasks say it, for the queues that have a limit.
        queue_rates: the rates of queues, likewise.
        queues: the queues that tasks name.
        ruled_queues: the queues that have a row, because they have a limit or a rate, had one, or are or were paused.
        has_types: whether the metadata of any task has a declared type.
    """

    def __init__(
        self,
        tasks: Mapping[str, KnownTask],
        ruled_queues: Iterable[str] = (),
        declared: dict[tuple[str, bytes], SchemaPlace | None] | None = None,
    ) -> None:
        self.tasks = tasks
        self.queue_limits = {
            known.queue: known.queue_concurrency
            for known in tasks.values()
            if known.queue_concurrency is not None
        }
        self.queue_rates = {
            known.queue: known.queue_rate for known in tasks.values() if known.queue_rate is not None
        }
        self.queues = frozenset(known.queue for known in tasks.values())
        self.ruled_queues = frozenset((*ruled_queues, *self.queue_limits, *self.queue_rates))
        self.has_types = any(known.metadata_schema is not None for known in tasks.values())
        # Made when a document of the task is first written to, and once for each version of the schema.
        self._declared = {} if declared is None else declared

    @classmethod
    def of_rows(cls, rows: Mapping[str, TaskRow], queues: Iterable[QueueRow]) -> "Catalog":
        """The catalog as it is stored."""
        return cls(
            {
                row.id: KnownTask(
                    row.id,
                    row.queue,
                    row.queue_concurrency,
                    msgspec.json.decode(row.retry, type=RetryRule),
                    row.metadata_schema,
                    row.queue_rate,
                    bool(row.has_end_hooks),
                )
                for row in rows.values()
            },
            (queue.name for queue in queues),
        )

    def with_offered(self, tasks: Iterable[WorkerTask]) -> "Catalog":
        """The catalog once a worker has offered these: its word replaces what was known."""
        offered = {
            task.id: KnownTask(
                task.id,
                task.queue,
                task.queue_concurrency,
                task.retry,
                msgspec.json.encode(task.metadata_schema) if task.metadata_schema else None,
                task.queue_rate,
                task.has_end_hooks,
            )
            for task in tasks
        }
        return Catalog({**self.tasks, **offered}, self.ruled_queues, self._declared)

    def with_ruled(self, queue: str) -> "Catalog":
        """The catalog once a queue has got a rule that no task names."""
        return Catalog(self.tasks, (*self.ruled_queues, queue), self._declared)

    def queue_of(self, task: str) -> str:
        """The queue that runs of a task go through unless they name one."""
        known = self.tasks.get(task)
        return known.queue if known else default_queue(task)

    def retry_of(self, task: str) -> RetryRule:
        """The retry rule of a task; a task that nobody has offered is not retried."""
        known = self.tasks.get(task)
        return known.retry if known else NO_RETRY

    def has_end_hooks(self, task: str) -> bool:
        """Whether the task has hooks that run when its run has failed, or has come to any end."""
        known = self.tasks.get(task)
        return known is not None and known.has_end_hooks

    def declared_of(self, task: str) -> SchemaPlace | None:
        """The declared type of the metadata of a task's runs; None when it has none."""
        known = self.tasks.get(task)
        if known is None or known.metadata_schema is None:
            return None
        key = task, known.metadata_schema
        if key not in self._declared:
            self._declared[key] = declared_by(known.metadata_schema, task)
        return self._declared[key]
