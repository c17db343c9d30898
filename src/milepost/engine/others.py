"""What the servers on one database tell each other: each commit of one, as its engine and its feed have it, for those of the others.

Whatever decides is in the database, and groups of all servers come one after the other. So an engine that has heard of every commit
before its own knows what it would know had it made them all itself. It reads what is new at the beginning of each group, under the
lock that lets no other group come in between, and besides whenever it is woken.
"""

from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection

from milepost.engine.announcements import (
    Announcement,
    BatchProgressed,
    CancelAsked,
    ChildrenFinished,
    LoggedChange,
    RunChanged,
    RunsResumed,
    StreamGrown,
)
from milepost.engine.state import CLOCKS_APART_MICROSECONDS, EngineSettings, EngineState, Worker
from milepost.model.operations import decode_operations, encode_operations
from milepost.store import announcements as store
from milepost.store.runs import RunRow
from milepost.store.streams import ChunkRow

# Announcements that are read at once.
PAGE = 100
# Chunks of a stream that are told along; of more, readers elsewhere read the store.
CHUNK_BYTES_MAX = 64 * 1024
# That a worker was heard, and nothing else, is told again only after this part of a lease: an idle fleet writes little.
QUIET_PART = 0.1


class HeardWorker(msgspec.Struct, frozen=True, array_like=True):
    """A worker that has registered."""

    id: str
    name: str
    tasks: tuple[str, ...]
    registration: int
    newest_claim: int


class Learnt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a commit teaches an engine, as `EngineState` has it.

    Args:
        registered: workers that have registered; `gone`: that hold no lease any more; `heard`: that have said something.
        newest_claims: the newest claim of each worker that was heard of; `answered_claims`: that was answered.
        places: where runs may be queued now; `keyed`: those that have a concurrency key.
        offered: tasks of which runs have become due; `everything_offered`: perhaps of all.
        tasks_changed: tasks or queues have got other rules.
        next_due_at: when a run becomes due that is queued for later, where the others do not know of one before it.
        has_apart: a run has to execute apart.
        has_steps: there is more to do by itself, at once (`engine/promoting.py`).
        schedules_changed: schedules have fired, or were changed.
    """

    registered: Sequence[HeardWorker] = ()
    gone: Sequence[str] = ()
    heard: Sequence[str] = ()
    newest_claims: dict[str, int] = {}
    answered_claims: dict[str, int] = {}
    places: Sequence[tuple[str, str]] = ()
    keyed: Sequence[tuple[str, str]] = ()
    offered: Sequence[str] = ()
    everything_offered: bool = False
    tasks_changed: bool = False
    next_due_at: int | None = None
    has_apart: bool = False
    has_steps: bool = False
    schedules_changed: bool = False


# What a group teaches that has changed nothing.
_NOTHING = Learnt()


class _Change(msgspec.Struct, array_like=True):
    """A `LoggedChange`; its operations as they are logged, because they may hold whole numbers of any size."""

    version: int
    operations: bytes
    writer_id: str | None
    attempt: int | None
    sequence: int | None
    refused: Sequence[int]


class _Changed(msgspec.Struct, omit_defaults=True):
    row: RunRow
    state_changed: bool = False
    output: str | None = None
    error: str | None = None
    changes: list[_Change] = []
    logged: bool = False
    version: int | None = None
    tags: list[str] | None = None


class _News(msgspec.Struct, omit_defaults=True):
    learnt: Learnt
    runs: list[_Changed] = []
    batches: list[BatchProgressed] = []
    children_finished: list[ChildrenFinished] = []
    streams: list[StreamGrown] = []
    resumed: list[RunsResumed] = []
    cancel_asked: list[CancelAsked] = []
    ended_sessions: list[str] = []
    deleted_runs: list[str] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_News)


class Gap(Exception):
    """Announcements were missed: they are kept only for a while, and this server was away for longer; or they are of another version
    of Milepost and cannot be read."""


class Others:
    """The other servers on the database, as the engine of this one hears of them.

    Attributes:
        number: of the newest commit that this engine knows of.
        newest_time: the newest time at which any of them has committed, as far as that is known, by clocks that agree with the
            last one that was heard.
    """

    def __init__(self) -> None:
        self.number = 0
        self.newest_time = 0
        # When what is being taken in was told, by the clock of whoever told it.
        self.told_at = 0

    def begin_from(self, connection: Connection) -> None:
        """Everything that is committed is known from now on."""
        self.number = store.newest_announcement(connection)

    def tell(self, connection: Connection, learnt: Learnt, announcement: Announcement, *, now: int) -> int:
        """Tell what this transaction changes; it is told when that is committed. Its number, for `told`."""
        return store.append_announcement(connection, encode(learnt, announcement), now=now)

    def told(self, number: int) -> None:
        """The transaction was committed. All others before it had been heard of."""
        self.number = number

    def hear(self, connection: Connection, take_in: Callable[[Learnt, Announcement], None]) -> None:
        """Take in what others have committed since, in order.

        Raises: Gap.
        """
        newest = store.newest_announcement(connection)
        while self.number != newest:
            rows = store.announcements_after(connection, self.number, limit=PAGE)
            if not rows:
                raise Gap
            for row in rows:
                if row.number != self.number + 1:
                    raise Gap
                self.told_at = row.created_at
                if not 0 <= self.newest_time - row.created_at <= CLOCKS_APART_MICROSECONDS:
                    self.newest_time = row.created_at
                # One of its own is new to this engine where the answer to the commit got lost.
                try:
                    news = decode(row.payload)
                except msgspec.DecodeError as error:
                    raise Gap from error
                take_in(*news)
                self.number = row.number


def quiet_time(settings: EngineSettings) -> int:
    """For how long a server may keep to itself that it has heard a worker, microseconds."""
    return int(settings.lease_seconds * QUIET_PART * 1_000_000)


def is_worth_telling(learnt: Learnt, state: EngineState, *, steady_now: int) -> bool:
    """Whether a group that has announced nothing to the feed has news for the other servers."""
    if msgspec.structs.replace(learnt, heard=()) != _NOTHING:
        return True
    quiet = quiet_time(state.settings)
    return any(
        worker.told_at is None or steady_now - worker.told_at >= quiet
        for worker in map(state.workers.get, learnt.heard)
        if worker is not None
    )


def were_told(learnt: Learnt, state: EngineState, *, steady_now: int, told_at: int | None) -> None:
    """Every server knows that these workers were heard. Each may hear them for a while without a word to the others, so their leases
    end later by as much.

    Args:
        told_at: when that was, on the steady clock; None where nobody knows. The others count from then, whenever it is heard here.
    """
    seen_at = steady_now + quiet_time(state.settings)
    for worker_id in (*learnt.heard, *(worker.id for worker in learnt.registered)):
        worker = state.workers.get(worker_id)
        if worker is not None:
            worker.told_at, worker.seen_at = told_at, max(worker.seen_at, seen_at)
    if learnt.next_due_at is not None:
        state.due_told = learnt.next_due_at


def learn(learnt: Learnt, state: EngineState, *, steady_now: int, told_at: int | None) -> None:
    """Take over what another server has committed; what it means for tasks and queues is read from the store (`tasks_changed`).

    Args:
        told_at: as of `were_told`.
    """
    if learnt.registered or learnt.gone:
        state.change_workers(
            [
                Worker(
                    worker.id,
                    worker.name,
                    worker.tasks,
                    steady_now,
                    registration=worker.registration,
                    newest_claim=worker.newest_claim,
                )
                for worker in learnt.registered
            ],
            learnt.gone,
        )
    workers = state.workers
    for worker_id, sequence in learnt.newest_claims.items():
        if worker_id in workers:
            workers[worker_id].newest_claim = max(workers[worker_id].newest_claim, sequence)
    for worker_id, sequence in learnt.answered_claims.items():
        if worker_id in workers:
            workers[worker_id].answered_claim = max(workers[worker_id].answered_claim, sequence)
    state.places.add(learnt.places)
    state.keyed.add(learnt.keyed)
    state.offered_elsewhere.update(learnt.offered)
    state.everything_offered_elsewhere |= learnt.everything_offered
    state.may_have_apart |= learnt.has_apart
    if learnt.next_due_at is not None:
        state.due_later(learnt.next_due_at)
    if learnt.has_steps:
        state.may_have_asked = True
        state.due_later(0)
    were_told(learnt, state, steady_now=steady_now, told_at=told_at)


def encode(learnt: Learnt, announcement: Announcement) -> bytes:
    """What stands in the database for the other servers."""
    return _encoder.encode(
        _News(
            learnt,
            [
                _Changed(
                    changed.row,
                    changed.state_changed,
                    changed.output,
                    changed.error,
                    [
                        _Change(
                            change.version,
                            encode_operations(change.operations),
                            change.writer_id,
                            change.attempt,
                            change.sequence,
                            change.refused,
                        )
                        for change in changed.changes
                    ],
                    changed.logged,
                    changed.version,
                    changed.tags,
                )
                for changed in announcement.runs
            ],
            announcement.batches,
            announcement.children_finished,
            [_short(grown) for grown in announcement.streams],
            announcement.resumed,
            announcement.cancel_asked,
            announcement.ended_sessions,
            announcement.deleted_runs,
        )
    )


def _short(grown: StreamGrown) -> StreamGrown:
    if sum(len(row.data) for row in grown.rows) <= CHUNK_BYTES_MAX:
        return grown
    rows: list[ChunkRow] = []
    return msgspec.structs.replace(grown, rows=rows)


def decode(payload: bytes) -> tuple[Learnt, Announcement]:
    """Read what `encode` wrote. Raises: `msgspec.DecodeError` where it is of another version."""
    news = _decoder.decode(payload)
    runs = [
        RunChanged(
            changed.row,
            changed.state_changed,
            changed.output,
            changed.error,
            [
                LoggedChange(
                    change.version,
                    decode_operations(change.operations),
                    len(change.operations),
                    change.writer_id,
                    change.attempt,
                    change.sequence,
                    change.refused,
                )
                for change in changed.changes
            ],
            changed.logged,
            changed.version,
            changed.tags,
        )
        for changed in news.runs
    ]
    return news.learnt, Announcement(
        runs,
        news.batches,
        news.children_finished,
        news.streams,
        news.resumed,
        news.cancel_asked,
        news.ended_sessions,
        news.deleted_runs,
    )
