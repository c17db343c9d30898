"""What the engine remembers between groups of commands. All of it can be rebuilt: from the store, or by workers registering anew."""

from collections.abc import Callable, Collection, Iterable, Iterator, KeysView
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import msgspec

from milepost.engine.commands import Claim
from milepost.engine.declared import SchemaPlace, declared_by
from milepost.model.identifiers import Identifiers
from milepost.model.names import default_queue
from milepost.model.retry import NO_RETRY, Retry
from milepost.model.run import QueuedReason
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.store.records import TaskRow

METADATA_BYTES_MAX = 262_144
LOG_BYTES_MAX = 4 * 1024 * 1024
STREAM_BYTES_MAX = 1024 * 1024 * 1024
# Deadlines of claims that wait no longer, beside as many as there are claims.
DEADLINES_GONE_MAX = 100


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's numbers.

    Args:
        metadata_size_max: bytes of a document as compact JSON (M84, M86).
        grace_seconds: how long a finished run's document accepts writes (M69).
        lease_seconds: after this much silence of a worker its runs are given up.
        log_bytes_max: bytes of log lines that are kept of one attempt; see `protocol.work.log_line_size`.
        stream_bytes_max: bytes of one stream as JSON.
    """

    metadata_size_max: int = METADATA_BYTES_MAX
    grace_seconds: float = 3600
    lease_seconds: float = 30
    log_bytes_max: int = LOG_BYTES_MAX
    stream_bytes_max: int = STREAM_BYTES_MAX


class KnownTask(msgspec.Struct, frozen=True):
    """A task that some worker has offered."""

    id: str
    queue: str
    queue_concurrency: int | None
    retry: Retry
    metadata_schema: bytes | None = None


class Worker(msgspec.Struct):
    """A worker that has registered with this server. `seen_at` is on the steady clock; `registration` and `newest_claim` are the
    highest numbers that it has used."""

    id: str
    name: str
    tasks: tuple[str, ...]
    seen_at: int
    registration: int = 0
    newest_claim: int = -1
    answered_sequence: int = -1
    answer: list[ClaimedRun] = []


class ParkedClaim(msgspec.Struct, eq=False):
    """A claim that waits for a run of one of these tasks to become due, until `deadline` on the steady clock.

    Each of `answers` is called at most once: there is one for each time that the claim has arrived.
    """

    claim: Claim
    deadline: int
    answers: list[Callable[[Any], None]]
    tasks: tuple[str, ...] = ()


class ParkedClaims:
    """The claims that wait: at most one of each worker, found by what they can take and by when their time is over.

    So what a group of commands costs does not depend on how many there are.
    """

    def __init__(self) -> None:
        self._by_worker: dict[str, ParkedClaim] = {}
        # In the order in which they came.
        self._by_task: dict[str, dict[str, ParkedClaim]] = {}
        # A heap; claims that have gone stay in it until they come up, or are too many.
        self._deadlines: list[tuple[int, int, ParkedClaim]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._by_worker)

    def __iter__(self) -> Iterator[ParkedClaim]:
        return iter(self._by_worker.values())

    def get(self, worker_id: str) -> ParkedClaim | None:
        """The claim of a worker."""
        return self._by_worker.get(worker_id)

    @property
    def tasks(self) -> KeysView[str]:
        """Every task that a claim waits for."""
        return self._by_task.keys()

    def waiting_for(self, task: str) -> Collection[ParkedClaim]:
        """The claims that can take runs of a task, the one that has waited longest first."""
        return self._by_task.get(task, {}).values()

    def add(self, parked: ParkedClaim) -> None:
        """Let a claim wait; its worker must have none here."""
        worker_id = parked.claim.worker_id
        self._by_worker[worker_id] = parked
        for task in parked.tasks:
            self._by_task.setdefault(task, {})[worker_id] = parked
        heappush(self._deadlines, (parked.deadline, next(self._numbers), parked))

    def remove(self, parked: ParkedClaim) -> None:
        """The claim waits no longer."""
        worker_id = parked.claim.worker_id
        if self._by_worker.get(worker_id) is not parked:
            return
        del self._by_worker[worker_id]
        for task in parked.tasks:
            waiting = self._by_task[task]
            del waiting[worker_id]
            if not waiting:
                del self._by_task[task]
        if len(self._deadlines) > 2 * len(self._by_worker) + DEADLINES_GONE_MAX:
            self._deadlines = [entry for entry in self._deadlines if self._waits(entry[2])]
            heapify(self._deadlines)

    def next_deadline(self) -> int | None:
        """When the time of the next claim is over; None when none waits."""
        while self._deadlines and not self._waits(self._deadlines[0][2]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def over(self, now: int) -> Iterator[ParkedClaim]:
        """The claims whose time is over; they stay here until they are removed."""
        # The heap is left as it is, because the group that asks may fail. No child is before its parent, so it is walked from the top.
        places = [0]
        for place in places:
            if place < len(self._deadlines) and self._deadlines[place][0] <= now:
                places += [2 * place + 1, 2 * place + 2]
                if self._waits(self._deadlines[place][2]):
                    yield self._deadlines[place][2]

    def _waits(self, parked: ParkedClaim) -> bool:
        return self._by_worker.get(parked.claim.worker_id) is parked


class EngineState:
    """Tasks, workers, parked claims, and when the next run is due."""

    def __init__(self, settings: EngineSettings, *, started_at: int) -> None:
        self.settings = settings
        self.started_at = started_at
        self.identifiers = Identifiers()
        self.tasks: dict[str, KnownTask] = {}
        # Whether the metadata of any task has a declared type.
        self.has_types = False
        self._declared: dict[str, tuple[bytes, SchemaPlace | None]] = {}
        # How many runs of a queue may execute at once, for the queues that have a limit.
        self.queue_limits: dict[str, int] = {}
        self.workers: dict[str, Worker] = {}
        # What they offer. Replaced and never changed, because readers in other threads look into it.
        self._online_tasks: frozenset[str] = frozenset()
        self.parked = ParkedClaims()
        self.accepts_parking = True
        # The earliest time at which a queued run that is not due yet becomes due; None when there is none.
        self.next_due_at: int | None = None

    def learn_tasks(self, rows: dict[str, TaskRow]) -> None:
        """Tasks that workers offered before this server started."""
        self._learn(
            KnownTask(
                row.id,
                row.queue,
                row.queue_concurrency,
                msgspec.json.decode(row.retry, type=Retry),
                row.metadata_schema,
            )
            for row in rows.values()
        )

    def learn_offered(self, tasks: Iterable[WorkerTask]) -> None:
        """A worker offers tasks: its word replaces what was known."""
        self._learn(
            KnownTask(
                task.id,
                task.queue,
                task.queue_concurrency,
                task.retry,
                msgspec.json.encode(task.metadata_schema) if task.metadata_schema else None,
            )
            for task in tasks
        )

    def _learn(self, tasks: Iterable[KnownTask]) -> None:
        self.tasks.update((task.id, task) for task in tasks)
        self.has_types = any(known.metadata_schema is not None for known in self.tasks.values())
        self.queue_limits = {
            known.queue: known.queue_concurrency
            for known in self.tasks.values()
            if known.queue_concurrency is not None
        }

    def worker_registered(self, worker: Worker) -> None:
        """A worker is here, with these tasks from now on."""
        self.workers[worker.id] = worker
        self._count_tasks()

    def workers_gone(self, worker_ids: Iterable[str]) -> None:
        """These workers are here no longer."""
        for worker_id in worker_ids:
            self.workers.pop(worker_id, None)
        self._count_tasks()

    def _count_tasks(self) -> None:
        self._online_tasks = frozenset(task for worker in self.workers.values() for task in worker.tasks)

    def queued_reason(self, task: str) -> QueuedReason | None:
        """Why nobody can take a run of this task; None when a worker is online that can. Thread-safe."""
        if task in self._online_tasks:
            return None
        return QueuedReason.NO_WORKER_ONLINE if task in self.tasks else QueuedReason.NEVER_OFFERED

    def queue_of(self, task: str) -> str:
        """The queue that runs of a task go through unless they name one."""
        known = self.tasks.get(task)
        return known.queue if known else default_queue(task)

    def answered(self, claim: Claim, runs: list[ClaimedRun]) -> None:
        """The claim was answered with these runs; a repeat of it is answered alike."""
        worker = self.workers.get(claim.worker_id)
        if worker is None or claim.sequence < worker.answered_sequence:
            return
        if runs or claim.sequence > worker.answered_sequence:
            worker.answered_sequence, worker.answer = claim.sequence, runs

    def has_answered(self, claim: Claim) -> bool:
        """True when this claim, arriving again, is to be answered as before, be it with nothing."""
        worker = self.workers.get(claim.worker_id)
        return worker is not None and worker.answered_sequence == claim.sequence

    def retry_of(self, task: str) -> Retry:
        """The retry rule of a task; a task that nobody has offered is not retried."""
        known = self.tasks.get(task)
        return known.retry if known else NO_RETRY

    def declared_of(self, task: str) -> SchemaPlace | None:
        """The declared type of the metadata of a task's runs; None when it has none."""
        known = self.tasks.get(task)
        if known is None or known.metadata_schema is None:
            return None
        made = self._declared.get(task)
        if made is None or made[0] != known.metadata_schema:
            # Made when a document of the task is first written to, and once for each version of the schema.
            made = self._declared[task] = known.metadata_schema, declared_by(known.metadata_schema, task)
        return made[1]

    def due_later(self, due_at: int) -> None:
        """A run was queued for a later time."""
        if self.next_due_at is None or due_at < self.next_due_at:
            self.next_due_at = due_at
