"""What the engine remembers between groups of commands. All of it can be rebuilt: from the store, or by workers registering anew."""

from collections.abc import Callable
from typing import Any

import msgspec

from milepost.engine.commands import Claim
from milepost.model.identifiers import Identifiers
from milepost.model.retry import NO_RETRY, Retry
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.store.records import TaskRow

METADATA_BYTES_MAX = 262_144


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's numbers.

    Args:
        metadata_size_max: bytes of a document as compact JSON (M84, M86).
        grace_seconds: how long a finished run's document accepts writes (M69).
        lease_seconds: after this much silence of a worker its runs are given up.
    """

    metadata_size_max: int = METADATA_BYTES_MAX
    grace_seconds: float = 3600
    lease_seconds: float = 30


class KnownTask(msgspec.Struct, frozen=True):
    """A task that some worker has offered."""

    id: str
    queue: str
    queue_concurrency: int | None
    retry: Retry


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


class ParkedClaim(msgspec.Struct):
    """A claim that waits for a run to become due, until `deadline` on the steady clock.

    Each of `answers` is called at most once: there is one for each time that the claim has arrived.
    """

    claim: Claim
    deadline: int
    answers: list[Callable[[Any], None]]


class EngineState:
    """Tasks, workers, parked claims, and when the next run is due."""

    def __init__(self, settings: EngineSettings, *, started_at: int) -> None:
        self.settings = settings
        self.started_at = started_at
        self.identifiers = Identifiers()
        self.tasks: dict[str, KnownTask] = {}
        # How many runs of a queue may execute at once, for the queues that have a limit.
        self.queue_limits: dict[str, int] = {}
        self.workers: dict[str, Worker] = {}
        self.parked: dict[str, ParkedClaim] = {}
        self.accepts_parking = True
        # The earliest time at which a queued run that is not due yet becomes due; None when there is none.
        self.next_due_at: int | None = None

    def learn_tasks(self, rows: dict[str, TaskRow]) -> None:
        """Tasks that workers offered before this server started."""
        for row in rows.values():
            retry = msgspec.json.decode(row.retry, type=Retry)
            self._learn(KnownTask(row.id, row.queue, row.queue_concurrency, retry))

    def learn_task(self, task: WorkerTask) -> None:
        """A worker offers a task: its word replaces what was known."""
        self._learn(KnownTask(task.id, task.queue, task.queue_concurrency, task.retry))

    def _learn(self, task: KnownTask) -> None:
        self.tasks[task.id] = task
        self.queue_limits = {
            known.queue: known.queue_concurrency
            for known in self.tasks.values()
            if known.queue_concurrency is not None
        }

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

    def due_later(self, due_at: int) -> None:
        """A run was queued for a later time."""
        if self.next_due_at is None or due_at < self.next_due_at:
            self.next_due_at = due_at
