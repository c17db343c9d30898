"""What the engine remembers between groups of commands: copies of rows, and hints. The store has all that decides."""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView
from difflib import get_close_matches
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import msgspec

from milepost.engine.catalog import Catalog
from milepost.engine.children import RememberedChildren
from milepost.engine.commands import Claim
from milepost.engine.rows import HeldRows
from milepost.model.identifiers import Identifiers
from milepost.model.run import QueuedReason

METADATA_BYTES_MAX = 262_144
LOG_BYTES_MAX = 4 * 1024 * 1024
STREAM_BYTES_MAX = 1024 * 1024 * 1024
# Clocks that differ by less are taken to agree.
CLOCKS_APART_MICROSECONDS = 1_000_000
# Of more tasks none is looked for that looks like another one, and of longer ids not all is looked at.
COMPARED_TASKS_MAX = 1000
COMPARED_CHARACTERS_MAX = 100
# Deadlines of claims that wait no longer, beside as many as there are claims.
DEADLINES_GONE_MAX = 100
# What is remembered of starts, for estimates.
RECENT_STARTS_MIN = 3
RECENT_STARTS_MAX = 50
RECENT_MICROSECONDS = 600_000_000
RECENT_PLACES_MAX = 2000


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's numbers.

    Args:
        metadata_size_max: bytes of a document as compact JSON (M84, M86).
        grace_seconds: how long a finished run's document accepts writes (M69).
        lease_seconds: after this much silence of a worker its runs are given up.
        stop_grace_seconds: for how long code may go on that was asked to end, before its worker says that the run has.
        log_bytes_max: bytes of log lines that are kept of one attempt; see `protocol.work.log_line_size`.
        stream_bytes_max: bytes of one stream as JSON.
    """

    metadata_size_max: int = METADATA_BYTES_MAX
    grace_seconds: float = 3600
    lease_seconds: float = 30
    stop_grace_seconds: float = 30
    log_bytes_max: int = LOG_BYTES_MAX
    stream_bytes_max: int = STREAM_BYTES_MAX


class Worker(msgspec.Struct):
    """A worker that holds a lease. `seen_at` is on the steady clock; `registration` and `newest_claim` are the highest numbers that
    it has used, `answered_claim` that of its last claim that was answered. `told_at` is when, on the steady clock, servers last told
    each other that it was heard. `is_restored`: all that is known of it is what the database had when this server started, or came
    back to the others. Which claim is its newest is not: it says so by registering anew, before it is given anything."""

    id: str
    name: str
    tasks: tuple[str, ...]
    seen_at: int
    registration: int = 0
    newest_claim: int = -1
    answered_claim: int = -1
    told_at: int | None = None
    is_restored: bool = False


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


class Places:
    """Tasks and queues where runs may be queued. A claim looks at these and at no others."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[str, None]] = {}

    def add(self, places: Iterable[tuple[str, str]]) -> None:
        """Runs of these tasks were queued in these queues."""
        for task, queue in places:
            self._queues.setdefault(task, {})[queue] = None

    def remove(self, places: Iterable[tuple[str, str]]) -> None:
        """No runs of these tasks are queued in these queues."""
        for task, queue in places:
            self._queues.get(task, {}).pop(queue, None)

    def of(self, tasks: Iterable[str]) -> list[tuple[str, str]]:
        """The places of some tasks."""
        return [(task, queue) for task in tasks for queue in self._queues.get(task, ())]

    def all(self) -> list[tuple[str, str]]:
        """Every place."""
        return self.of(self._queues)

    def copy(self) -> list[tuple[str, str]]:
        """Every place, for another thread: each table is copied in one step, so it does not matter that it may change meanwhile."""
        tables = list(self._queues.items())
        return [(task, queue) for task, queues in tables for queue in list(queues)]


class RecentStarts:
    """When the last runs of queues and concurrency keys were claimed, by any worker and server: for estimates only. Thread-safe."""

    def __init__(self) -> None:
        self._starts: OrderedDict[tuple[str, str | None], deque[int]] = OrderedDict()

    def note(self, queue: str, key: str | None, at: int, count: int = 1) -> None:
        """Runs were claimed at this time, microseconds since 1970."""
        place = queue, key
        starts = self._starts.get(place)
        if starts is None:
            if len(self._starts) >= RECENT_PLACES_MAX:
                self._starts.popitem(last=False)
            starts = self._starts[place] = deque(maxlen=RECENT_STARTS_MAX)
        elif starts and at < starts[-1]:
            # One that goes on after a wait.
            return
        starts.extend([at] * min(count, RECENT_STARTS_MAX))

    def seconds_for_each(self, queue: str, key: str | None, now: int) -> float | None:
        """How long it takes, by the last starts, until the next one; None where too little is known."""
        starts = list(self._starts.get((queue, key), ()))
        recent = [at for at in starts if at > now - RECENT_MICROSECONDS]
        if len(recent) < RECENT_STARTS_MIN:
            return None
        return max(0, now - recent[0]) / 1_000_000 / len(recent)


class EngineState:
    """What the engine knows of tasks and workers, which claims are parked, and when the next run is due.

    Attributes:
        catalog: the tasks that were ever offered, as of the newest commit.
        server_id: by what the database knows this server; nothing but that where it can be the only one.
        leases_from: no lease counts from before this time on the steady clock: the server was not there to hear anybody.
        looked_at: when the leases were last looked at.
    """

    def __init__(self, settings: EngineSettings, *, started_at: int, server_id: str) -> None:
        self.settings = settings
        self.server_id = server_id
        self.leases_from = self.looked_at = started_at
        self.identifiers = Identifiers()
        self.catalog = Catalog({})
        self.workers: dict[str, Worker] = {}
        # What they offer. Replaced and never changed, because readers in other threads look into it.
        self._online_tasks: frozenset[str] = frozenset()
        self.parked = ParkedClaims()
        self.held_rows = HeldRows()
        # Of runs whose later attempts trigger: a hint, see `children.py`.
        self.children = RememberedChildren()
        self.accepts_parking = True
        # The earliest time at which something happens by itself: a queued or delayed run becomes due, or a time to live is over. None
        # when nothing will.
        self.next_due_at: int | None = None
        # Tasks of which runs may wait that were triggered before anybody offered them.
        self.newly_offered: set[str] = set()
        # When the next schedule fires, by the wall clock; None when none will.
        self.next_schedule_at: int | None = None
        # The newest of these times that servers have told each other.
        self.due_told: int | None = None
        # False when it is known that no queued run has to execute apart.
        self.may_have_apart = True
        # False when it is known that no held run was asked to end; and those that were, with when this server first saw that, on the
        # steady clock.
        self.may_have_asked = True
        self.asked_since: dict[str, int] = {}
        # Where runs may be queued: a hint, no place is missing.
        self.places = Places()
        # And those with places of concurrency keys, whose line is in the store.
        self.keyed = Places()
        self._turns = count()
        self.recent_starts = RecentStarts()
        # Tasks of which other servers have queued runs, or freed a place for them, that parked claims here have not looked at yet.
        self.offered_elsewhere: set[str] = set()
        self.everything_offered_elsewhere = False
        # Workers whose parked claims may have been answered by a commit of which only the announcement was heard.
        self.answered_elsewhere: set[str] = set()

    def change_workers(self, come: Iterable[Worker], gone: Iterable[str]) -> None:
        """These workers are here, with what they offer from now on, and those are not any more."""
        self.workers.update((worker.id, worker) for worker in come)
        for worker_id in gone:
            self.workers.pop(worker_id, None)
        self._online_tasks = frozenset(task for worker in self.workers.values() for task in worker.tasks)

    @property
    def has_offers(self) -> bool:
        """True when a parked claim may find work that another server has offered, or has been answered there."""
        return bool(self.parked) and (
            self.everything_offered_elsewhere
            or bool(self.answered_elsewhere)
            or not self.offered_elsewhere.isdisjoint(self.parked.tasks)
        )

    def queued_reason(self, task: str) -> QueuedReason | None:
        """Why nobody can take a run of this task; None when a worker is online that can. Thread-safe."""
        if task in self._online_tasks:
            return None
        return QueuedReason.NO_WORKER_ONLINE if task in self.catalog.tasks else QueuedReason.NEVER_OFFERED

    def queue_names(self) -> set[str]:
        """The queues that there are: tasks name them, they have a rule, or runs may wait in them. Thread-safe."""
        places = (*self.places.copy(), *self.keyed.copy())
        return {*self.catalog.queues, *self.catalog.ruled_queues, *(queue for _, queue in places)}

    def tasks_in(self, queue: str) -> list[str]:
        """The tasks of which runs may be queued in a queue. Thread-safe."""
        places = (*self.places.copy(), *self.keyed.copy())
        return sorted(
            {
                *(task for task, name in places if name == queue),
                *(task.id for task in list(self.catalog.tasks.values()) if task.queue == queue),
            }
        )

    def seconds_for_each(self, queue: str, key: str | None, now: int) -> float | None:
        """How long a run of this queue and concurrency key has lately taken until the next one was claimed. Thread-safe."""
        return self.recent_starts.seconds_for_each(queue, key, now)

    def similar_task(self, task: str) -> str | None:
        """The id of an offered task that looks like one that nobody has offered; None when there is none. Thread-safe."""
        tasks = self.catalog.tasks
        if task in tasks or len(tasks) > COMPARED_TASKS_MAX:
            return None
        return next(iter(get_close_matches(task[:COMPARED_CHARACTERS_MAX], tasks, 1, 0.7)), None)

    def answered(self, claim: Claim) -> None:
        """The claim was answered. A repeat of it brings nothing new."""
        worker = self.workers.get(claim.worker_id)
        if worker is not None:
            worker.answered_claim = max(worker.answered_claim, claim.sequence)

    def next_turn(self) -> int:
        """A number that grows, for who goes to the end of a line at the same moment as others."""
        return next(self._turns)

    def due_later(self, due_at: int) -> None:
        """Something happens by itself at this time, such as that a run becomes due."""
        if self.next_due_at is None or due_at < self.next_due_at:
            self.next_due_at = due_at
