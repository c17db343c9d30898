"""The table of a run's life (`model/lifecycle.py`) is what the engine does: every status with every move, and long walks by chance."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.engine.commands import CancelRun, RescheduleRun
from milepost.errors import ConflictError, NotFoundError
from milepost.model.lifecycle import LIFECYCLE, Move
from milepost.model.retry import RetryRule
from milepost.model.run import AttemptEnd, Outcome, RunError, RunStatus
from milepost.protocol.work import ClaimedRun
from support.many import ON_POSTGRES, ONE_SERVER, THREE_SERVERS, world_of
from support.world import WorkerDouble, World, failure, offered

pytestmark = pytest.mark.several_servers(postgres=True)

ENDED = RunError(message="ended", name="Ended")
RULE = RetryRule(max_attempts=1000, min_delay_seconds=0, max_delay_seconds=0, jitter=False)
ENDS = {Move.CANCEL: AttemptEnd.CANCELLED, Move.TIME_OUT: AttemptEnd.TIMED_OUT, Move.BREAK: AttemptEnd.BROKEN}


class Life:
    """One run, and whatever moves it. Each act is what a move comes from; an illegal one must leave the run as it is."""

    def __init__(self, world: World, *, begins: RunStatus = RunStatus.QUEUED) -> None:
        self.world = world
        self.run: ClaimedRun | None = None
        self._names = iter(range(1000))
        self._worker: WorkerDouble | None = None
        self.task = "unknown" if begins is RunStatus.PENDING_VERSION else "work"
        if begins is not RunStatus.PENDING_VERSION:
            self.worker = self._new_worker()
        options: dict[str, Any] = {"delay": "1h"} if begins is RunStatus.DELAYED else {"ttl": "30m"}
        self.id = world.trigger(task=self.task, **options)

    def _new_worker(self, *tasks: str) -> WorkerDouble:
        tasks = tasks or ("work",)
        return WorkerDouble(
            self.world, f"worker_{next(self._names)}", *(offered(task, retry=RULE) for task in tasks)
        )

    @property
    def status(self) -> RunStatus:
        """Where the run stands."""
        return self.world.reader.run(self.id).status

    def act(self, move: Move) -> None:
        """Do what the move comes from."""
        ACTS[move](self)

    def _pass(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.submit()

    def due(self) -> None:
        """An hour goes by. The time to live does too, so the run is claimed where a worker may take it."""
        self._pass(3601)

    def offer(self) -> None:
        """A worker offers the task. It is not the one that has the run."""
        self._new_worker("work", "unknown")

    def reschedule(self) -> None:
        """Somebody names another delay."""
        reason = LIFECYCLE[self.status][Move.RESCHEDULE]
        if isinstance(reason, RunStatus):
            self.world.do(RescheduleRun(self.id, delay_ms=3_600_000))
            return
        with pytest.raises(ConflictError, match=reason):
            self.world.do(RescheduleRun(self.id, delay_ms=3_600_000))

    def claim(self) -> None:
        """A worker asks for work."""
        is_offered = self.status is not RunStatus.PENDING_VERSION
        worker = self._new_worker(self.task if is_offered else "other")
        for run in worker.claim(10):
            if run.id == self.id:
                self.run, self.worker = run, worker
                worker.begin(run)

    def report(self, **fields: Any) -> None:
        """The worker that has the run, or has had it, says something. One that is gone is not heard."""
        if self.run is not None:
            with suppress(NotFoundError):
                self.worker.report(self.run, **fields)

    def release(self) -> None:
        """The worker leaves."""
        if self.run is not None:
            self.worker.send(leaving=True)

    def close(self) -> None:
        """As `crash`, of a run whose task has hooks for its end."""
        if self.run is not None:
            with_hooks = msgspec.structs.replace(offered("work", retry=RULE), has_end_hooks=True)
            WorkerDouble(self.world, f"worker_{next(self._names)}", with_hooks)
            self.worker.die(self.run)

    def crash(self) -> None:
        """The process dies, and there is no further attempt."""
        if self.run is not None:
            self.worker.die(self.run)

    def cancel(self) -> None:
        """Somebody cancels, and the worker obeys."""
        self.world.do(CancelRun(self.id))
        self.report(outcome=Outcome(error=ENDED, end=AttemptEnd.CANCELLED))


ACTS: dict[Move, Callable[[Life], None]] = {
    Move.DUE: Life.due,
    Move.PARK: Life.due,
    Move.OFFER: Life.offer,
    Move.RESCHEDULE: Life.reschedule,
    Move.EXPIRE: Life.due,
    Move.CLAIM: Life.claim,
    Move.WAIT: lambda life: life.report(waiting=True),
    Move.RESUME: lambda life: life.report(waiting=False),
    Move.RETRY: lambda life: life.report(outcome=failure(retry_after_ms=0)),
    Move.RELEASE: Life.release,
    Move.CLOSE: Life.close,
    Move.COMPLETE: lambda life: life.report(outcome=Outcome(output="1")),
    Move.FAIL: lambda life: life.report(outcome=failure()),
    Move.CRASH: Life.crash,
    Move.BREAK: lambda life: life.report(outcome=Outcome(error=ENDED, end=AttemptEnd.BROKEN)),
    Move.TIME_OUT: lambda life: life.report(outcome=Outcome(error=ENDED, end=AttemptEnd.TIMED_OUT)),
    Move.CANCEL: Life.cancel,
}
TIMED = (Move.DUE, Move.PARK, Move.EXPIRE)
# How a run comes to stand where it is tried.
WAYS: dict[RunStatus, tuple[RunStatus, tuple[Move, ...]]] = {
    RunStatus.PENDING_VERSION: (RunStatus.PENDING_VERSION, ()),
    RunStatus.DELAYED: (RunStatus.DELAYED, ()),
    RunStatus.QUEUED: (RunStatus.QUEUED, ()),
    RunStatus.EXECUTING: (RunStatus.QUEUED, (Move.CLAIM,)),
    RunStatus.WAITING: (RunStatus.QUEUED, (Move.CLAIM, Move.WAIT)),
    RunStatus.COMPLETED: (RunStatus.QUEUED, (Move.CLAIM, Move.COMPLETE)),
    RunStatus.CANCELED: (RunStatus.QUEUED, (Move.CLAIM, Move.CANCEL)),
    RunStatus.FAILED: (RunStatus.QUEUED, (Move.CLAIM, Move.FAIL)),
    RunStatus.CRASHED: (RunStatus.QUEUED, (Move.CLAIM, Move.CRASH)),
    RunStatus.SYSTEM_FAILURE: (RunStatus.QUEUED, (Move.CLAIM, Move.BREAK)),
    RunStatus.EXPIRED: (RunStatus.QUEUED, (Move.EXPIRE,)),
    RunStatus.TIMED_OUT: (RunStatus.QUEUED, (Move.CLAIM, Move.TIME_OUT)),
}


def follows(before: RunStatus, move: Move, life: Life) -> set[RunStatus]:
    """Where the run may stand after the act of a move, by the table alone."""
    found = LIFECYCLE[before][move]
    allowed = {found} if isinstance(found, RunStatus) else {before}
    if move in TIMED and before is RunStatus.DELAYED:
        return {RunStatus.QUEUED if life.task == "work" else RunStatus.PENDING_VERSION}
    if move in TIMED and before in (RunStatus.QUEUED, RunStatus.PENDING_VERSION):
        # The hour that goes by is more than its time to live, where it has one.
        return {before, RunStatus.EXPIRED}
    if move is Move.CRASH and before in (RunStatus.EXECUTING, RunStatus.WAITING):
        # The rule of the task has more attempts.
        return {RunStatus.QUEUED, RunStatus.CRASHED}
    return allowed


ALLOWED = [
    (status, move) for status in RunStatus for move in Move if isinstance(LIFECYCLE[status][move], RunStatus)
]
REFUSED = [(status, move) for status in RunStatus for move in Move if (status, move) not in ALLOWED]


def lead(world: World, status: RunStatus) -> Life:
    """A run that stands there."""
    begins, way = WAYS[status]
    life = Life(world, begins=begins)
    for step in way:
        life.act(step)
    assert life.status is status
    return life


def by_time(status: RunStatus) -> RunStatus:
    """Where a run is after an hour. Three moves come from time alone: which of them it is follows from where the run stands."""
    ends = {RunStatus.DELAYED: RunStatus.QUEUED}
    ends |= dict.fromkeys((RunStatus.QUEUED, RunStatus.PENDING_VERSION), RunStatus.EXPIRED)
    return ends.get(status, status)


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt is the last."""
    monkeypatch.setitem(globals(), "RULE", RetryRule(max_attempts=1))


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize(("status", "move"), ALLOWED)
def test_every_move_that_is_allowed(world: World, status: RunStatus, move: Move) -> None:
    life = lead(world, status)
    life.act(move)
    expected = by_time(status) if move in TIMED else LIFECYCLE[status][move]
    assert life.status is expected


@pytest.mark.one_server(
    "who refuses has looked at the run alone; walks by chance are refused by several servers and on PostgreSQL"
)
@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize(("status", "move"), REFUSED)
def test_every_move_that_is_refused(world: World, status: RunStatus, move: Move) -> None:
    life = lead(world, status)
    life.act(move)
    assert life.status is (by_time(status) if move in TIMED else status)
    if status.is_final:
        assert life.status is status


@settings(max_examples=25, deadline=None)
@given(
    begins=st.sampled_from([RunStatus.PENDING_VERSION, RunStatus.DELAYED, RunStatus.QUEUED]),
    moves=st.lists(st.sampled_from(list(Move)), max_size=12),
)
@pytest.mark.parametrize("servers", [ONE_SERVER, THREE_SERVERS, ON_POSTGRES])
def test_no_walk_leaves_the_table(
    tmp_path_factory: pytest.TempPathFactory, servers: str, begins: RunStatus, moves: list[Move]
) -> None:
    with world_of(servers, tmp_path_factory.mktemp("walk") / "milepost.db") as world:
        life = Life(world, begins=begins)
        for move in moves:
            before = life.status
            life.act(move)
            assert life.status in follows(before, move, life), (before, move)


def test_the_table_answers_every_pair_and_each_reason_is_told() -> None:
    for status, moves in LIFECYCLE.items():
        assert moves.keys() == set(Move)
        for answer in moves.values():
            assert isinstance(answer, RunStatus) or answer
        if status.is_final:
            assert not any(isinstance(answer, RunStatus) for answer in moves.values())
    assert ON_POSTGRES
