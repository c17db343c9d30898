"""A run whose process died at its last attempt: another worker runs the hooks of its end, once, and then it has ended as it was to."""

from typing import NamedTuple

import msgspec
import pytest

from milepost.engine.commands import CancelRun, ReleaseLostRuns, Report
from milepost.model.operations import Set
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.work import BegunRun, ClaimedRun, Death, WorkerTask
from milepost.store.attempts import load_attempts
from support.world import WorkerDouble, World, failure, item, offered

pytestmark = pytest.mark.several_servers(postgres=True)

HOW = "was killed by SIGKILL"


def with_hooks(max_attempts: int = 1) -> WorkerTask:
    retry = RetryRule(max_attempts=max_attempts, min_delay_seconds=0, max_delay_seconds=0, jitter=False)
    return msgspec.structs.replace(offered("work", retry=retry), has_end_hooks=True)


def status(world: World, run_id: str) -> RunStatus:
    return world.reader.run(run_id).status


def ends(world: World, run_id: str) -> list[str]:
    with world.store.read() as connection:
        return [attempt.end for attempt in load_attempts(connection, run_id)]


class Closing(NamedTuple):
    """A run whose process has died, and the worker that has it to run its last hooks."""

    world: World
    worker: WorkerDouble
    run: ClaimedRun

    def is_over(self, *expected: str) -> None:
        """It has crashed with the error of its own death, and nobody is given it any more."""
        run = self.world.reader.run(self.run.id)
        assert run.status is RunStatus.CRASHED
        assert run.error is not None
        assert (run.error.name, run.error.message) == (
            "ProcessDiedError",
            f"the process of attempt 1 {HOW} while its code ran",
        )
        assert ends(self.world, self.run.id) == list(expected)
        assert WorkerDouble(self.world, "after", with_hooks()).claim(10) == []


@pytest.fixture
def closing(world: World) -> Closing:
    first = WorkerDouble(world, "worker_1", with_hooks())
    run_id = world.trigger(payload="7", max_attempts=1)
    run = first.claim_one()
    assert run.closing is None
    first.report(run, Set("row", 1))
    first.die(run, how=HOW)
    queued = world.reader.run(run_id)
    assert (queued.status, queued.finished_at) == (RunStatus.QUEUED, None)
    worker = WorkerDouble(world, "worker_2", with_hooks())
    run = worker.claim_one()
    assert run.closing is not None
    assert (run.id, run.attempt, run.payload, run.metadata_version) == (run_id, 2, "7", 1)
    assert (run.closing.status, run.closing.error.name) == (RunStatus.CRASHED, "ProcessDiedError")
    return Closing(world, worker, run)


def test_its_hooks_write_and_then_it_has_crashed(closing: Closing) -> None:
    closing.worker.report(closing.run, Set("told", True), outcome=Outcome())
    assert closing.world.document(closing.run.id)[0] == {"row": 1, "told": True}
    closing.is_over("crashed", "closed")


def test_whatever_its_worker_says_it_has_crashed(closing: Closing) -> None:
    """Also one that knows nothing of hooks and says that it has failed and is to be tried again."""
    closing.worker.report(closing.run, outcome=failure(retry_after_ms=0))
    closing.is_over("crashed", "closed")


def test_hooks_that_kill_their_process_are_not_run_again(closing: Closing) -> None:
    closing.worker.die(closing.run)
    closing.is_over("crashed", "closed")


def test_a_worker_that_falls_silent_ends_it(closing: Closing) -> None:
    closing.worker.begin(closing.run)
    closing.world.pass_lease()
    closing.is_over("crashed", "closed")


def test_who_hands_it_back_has_another_worker_do_it(closing: Closing) -> None:
    closing.worker.begin(closing.run)
    closing.worker.send(leaving=True)
    assert status(closing.world, closing.run.id) is RunStatus.QUEUED
    following = WorkerDouble(closing.world, "worker_3", with_hooks())
    again = following.claim_one()
    assert again.closing == closing.run.closing
    following.report(again, outcome=Outcome())
    closing.is_over("crashed", "handed_back", "closed")


def test_others_in_the_process_of_its_hooks_are_not_charged(closing: Closing) -> None:
    beside = closing.world.trigger(max_attempts=1)
    other = closing.worker.claim_one()
    closing.worker.die(closing.run, other)
    assert ends(closing.world, beside) == ["beside"]
    assert ends(closing.world, closing.run.id) == ["crashed", "beside"]


def test_a_cancel_while_its_hooks_run_changes_nothing(closing: Closing) -> None:
    closing.world.do(CancelRun(closing.run.id))
    closing.worker.report(closing.run, outcome=Outcome())
    closing.is_over("crashed", "closed")


def test_a_cancel_before_anybody_runs_them_ends_it(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", with_hooks())
    run_id = world.trigger(max_attempts=1)
    worker.die(worker.claim_one())
    world.do(CancelRun(run_id))
    assert status(world, run_id) is RunStatus.CANCELED
    assert WorkerDouble(world, "worker_2", with_hooks()).claim(10) == []


def test_its_parent_hears_when_the_hooks_have_run(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", with_hooks())
    batch = world.trigger_batch(item(max_attempts=1))
    worker.die(worker.claim_one())
    assert world.reader.batch(batch.batch_id).finished_count == 0
    following = WorkerDouble(world, "worker_2", with_hooks())
    following.report(following.claim_one(), outcome=Outcome())
    assert world.reader.batch(batch.batch_id).finished_count == 1


def test_an_attempt_that_others_follow_has_no_last_hooks(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", with_hooks(2))
    world.trigger()
    worker.die(worker.claim_one())
    following = WorkerDouble(world, "worker_2", with_hooks(2))
    run = following.claim_one()
    assert (run.attempt, run.charged, run.closing) == (2, 1, None)


def test_a_worker_that_is_lost_and_a_process_that_was_killed_for_its_time_have_them_too(world: World) -> None:
    worker = WorkerDouble(world, "worker_1", with_hooks())
    silent = world.trigger(max_attempts=1)
    worker.begin(worker.claim_one())
    world.pass_lease()
    world.do(ReleaseLostRuns(100))
    following = WorkerDouble(world, "worker_2", with_hooks())
    first = following.claim_one()
    assert (first.id, first.closing and first.closing.error.name) == (silent, "WorkerLostError")
    following.report(first, outcome=Outcome())
    assert status(world, silent) is RunStatus.CRASHED

    late = world.trigger(max_attempts=5)
    run = following.claim_one()
    death = Death(how=HOW, begun=[BegunRun(id=run.id, attempt=run.attempt, timed_out=True)])
    world.do(Report(following.id, [], death=death))
    third = WorkerDouble(world, "worker_3", with_hooks())
    second = third.claim_one()
    assert (second.id, second.closing and second.closing.status) == (late, RunStatus.TIMED_OUT)
    third.report(second, outcome=Outcome())
    assert status(world, late) is RunStatus.TIMED_OUT
