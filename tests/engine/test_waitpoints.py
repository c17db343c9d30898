"""Tokens and times that runs wait for: made once, ended once, and whoever waits is told."""

from __future__ import annotations

from typing import Any

import pytest

from milepost.engine import promoting
from milepost.engine.commands import (
    AttemptRef,
    AwaitWaitpoint,
    CompleteToken,
    CreatedWaitpoint,
    CreateWaitpoint,
    PruneWaitpoints,
)
from milepost.errors import AttemptOverError, NotFoundError
from milepost.model.run import RunStatus
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.protocol.work import ClaimedRun
from support.world import WorkerDouble, World

pytestmark = pytest.mark.several_servers(postgres=True)


def url_of(token_id: str) -> str:
    return f"https://milepost.example/{token_id}"


def create(world: World, **fields: Any) -> CreatedWaitpoint:
    return world.do(CreateWaitpoint(kind=WaitpointKind.TOKEN, **fields))


def begin_waiting(world: World, worker: WorkerDouble, token_id: str) -> ClaimedRun:
    """A run that waits for a token."""
    world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    world.do(AwaitWaitpoint(token_id, AttemptRef(run.id, run.attempt)))
    worker.report(run, waiting=True)
    return run


def told(world: World) -> list[tuple[str, str]]:
    """What was announced to have ended, and to which worker."""
    return [
        (finished.holder, ended)
        for news in world.announcements
        for finished in news.children_finished
        for ended in finished.ids
    ]


def pass_time(world: World, seconds: float) -> None:
    until = world.clock() + round(seconds * 1_000_000)
    while world.clock() < until:
        world.clock.advance(min(seconds, 1.0))
        world.submit()


def state(world: World, token_id: str) -> tuple[WaitpointStatus, str | None]:
    found = world.reader.token(token_id, url_of)
    return found.status, found.output


def test_a_token_is_completed_once(world: World) -> None:
    token = create(world)
    assert (token.status, token.is_cached) == (WaitpointStatus.WAITING, False)
    first = world.do(CompleteToken(token.id, '{"ok":true}'))
    assert (first.is_first, first.status) == (True, WaitpointStatus.COMPLETED)
    second = world.do(CompleteToken(token.id, '{"ok":false}'))
    assert (second.is_first, second.status) == (False, WaitpointStatus.COMPLETED)
    assert state(world, token.id) == (WaitpointStatus.COMPLETED, '{"ok":true}')


def test_of_two_that_complete_it_at_once_one_does(world: World) -> None:
    token = create(world)
    tickets = world.submit(*(CompleteToken(token.id, str(number)) for number in range(5)))
    assert [ticket.result.is_first for ticket in tickets] == [True, False, False, False, False]
    assert state(world, token.id) == (WaitpointStatus.COMPLETED, "0")


def test_a_completion_that_is_sent_again_is_answered_as_before(world: World) -> None:
    token = create(world)
    assert world.do(CompleteToken(token.id, "1", "request")).is_first
    assert world.do(CompleteToken(token.id, "1", "request")).is_first
    assert not world.do(CompleteToken(token.id, "1", "another")).is_first


def test_a_token_times_out_once_and_is_completed_no_more(world: World, worker: WorkerDouble) -> None:
    token = create(world, timeout_ms=10_000)
    run = begin_waiting(world, worker, token.id)
    world.announcements.clear()
    pass_time(world, 9)
    assert told(world) == []
    pass_time(world, 2)
    assert told(world) == [("worker_1", token.id)]
    late = world.do(CompleteToken(token.id, "1"))
    assert (late.is_first, late.status) == (False, WaitpointStatus.TIMED_OUT)
    status, output = state(world, token.id)
    assert status is WaitpointStatus.TIMED_OUT
    assert output is not None
    assert "timeout" in output
    assert worker.report(run, waiting=False).resumed is True


def test_a_completion_beats_the_timeout_by_the_clock_and_not_by_who_looks_first(world: World) -> None:
    token = create(world, timeout_ms=10_000)
    world.clock.advance(11)
    # Nobody has looked since, and the completion is in the very group that would.
    late = world.do(CompleteToken(token.id, "1"))
    assert (late.is_first, late.status) == (False, WaitpointStatus.TIMED_OUT)


def test_who_waits_is_told_of_the_end_and_only_its_worker(world: World, worker: WorkerDouble) -> None:
    other = WorkerDouble(world, "worker_2")
    token, another = create(world), create(world)
    begin_waiting(world, worker, token.id)
    begin_waiting(world, other, token.id)
    begin_waiting(world, worker, another.id)
    world.announcements.clear()
    world.do(CompleteToken(token.id, "1"))
    assert sorted(set(told(world))) == [("worker_1", token.id), ("worker_2", token.id)]


def test_a_run_that_comes_after_the_end_is_told_at_once(world: World, worker: WorkerDouble) -> None:
    token = create(world)
    world.do(CompleteToken(token.id, '"now"'))
    world.trigger()
    run = worker.claim_one()
    found = world.do(AwaitWaitpoint(token.id, AttemptRef(run.id, run.attempt)))
    assert (found.status, found.output) == ("COMPLETED", '"now"')


def test_a_time_ends_by_itself_and_its_run_is_told(world: World, worker: WorkerDouble) -> None:
    world.trigger()
    run = worker.claim_one()
    attempt = AttemptRef(run.id, run.attempt)
    command = CreateWaitpoint(kind=WaitpointKind.TIME, timeout_ms=60_000, place="for/60s/0", attempt=attempt)
    time = world.do(command)
    worker.report(run, waiting=True)
    pass_time(world, 30)
    assert world.do(command) == CreatedWaitpoint(time.id, WaitpointStatus.WAITING, is_cached=True)
    world.announcements.clear()
    pass_time(world, 31)
    assert told(world) == [("worker_1", time.id)]
    assert world.do(command).status is WaitpointStatus.COMPLETED
    with pytest.raises(NotFoundError):
        world.do(CompleteToken(time.id, "1"))


def test_a_later_attempt_finds_what_an_earlier_one_waits_for(world: World, worker: WorkerDouble) -> None:
    world.trigger()
    run = worker.claim_one()
    worker.begin(run)
    first = create(world, place="token/a/0", attempt=AttemptRef(run.id, run.attempt))
    second = create(world, place="token/a/1", attempt=AttemptRef(run.id, run.attempt))
    assert first.id != second.id
    worker.report(run, waiting=True)
    world.pass_lease()
    worker.register()
    again = worker.claim_one()
    assert (again.id, again.attempt, again.charged) == (run.id, 2, 0)
    found = create(world, place="token/a/0", attempt=AttemptRef(run.id, again.attempt))
    assert (found.id, found.is_cached) == (first.id, True)
    with pytest.raises(AttemptOverError):
        create(world, place="token/a/0", attempt=AttemptRef(run.id, run.attempt))
    # The end is told to whoever holds the run now.
    world.do(AwaitWaitpoint(first.id, AttemptRef(run.id, again.attempt)))
    world.announcements.clear()
    world.do(CompleteToken(first.id, "1"))
    assert told(world) == [("worker_1", first.id)]


def test_a_key_is_one_token_until_it_has_expired(world: World) -> None:
    first = create(world, key="order:1", key_ttl_ms=60_000, tags=["a"])
    again = create(world, key="order:1", key_ttl_ms=60_000, tags=["b"])
    assert (again.id, again.is_cached) == (first.id, True)
    assert world.reader.token(first.id, url_of).tags == ["a"]
    world.clock.advance(61)
    anew = create(world, key="order:1", key_ttl_ms=60_000)
    assert not anew.is_cached
    assert anew.id != first.id
    assert world.reader.token(first.id, url_of).idempotency_key is None


def test_a_request_that_is_sent_again_makes_one_token(world: World) -> None:
    first = create(world, request_id="request")
    assert create(world, request_id="request").id == first.id
    assert create(world, request_id="another").id != first.id


def test_more_than_one_group_takes_are_ended_by_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promoting, "PORTION", 2)
    tokens = [create(world, timeout_ms=1000).id for _ in range(5)]
    world.clock.advance(2)
    for _ in range(4):
        world.submit()
    assert {state(world, token)[0] for token in tokens} == {WaitpointStatus.TIMED_OUT}


def test_a_token_without_a_timeout_waits_on_and_survives_a_restart(world: World) -> None:
    token, timed = create(world), create(world, timeout_ms=5_000)
    world.restart()
    world.clock.advance(1_000)
    world.submit()
    assert state(world, token.id)[0] is WaitpointStatus.WAITING
    assert state(world, timed.id)[0] is WaitpointStatus.TIMED_OUT


def test_waiting_runs_hold_no_place_in_their_queue(world: World, worker: WorkerDouble) -> None:
    token = create(world)
    run = begin_waiting(world, worker, token.id)
    assert world.reader.run(run.id).status is RunStatus.WAITING
    assert world.reader.run(run.id).is_waiting


@pytest.mark.one_server("which server forgets is not what this is about")
def test_what_has_ended_long_ago_is_forgotten(world: World) -> None:
    old, new, open_one = create(world, tags=["a"]), create(world, tags=["a"]), create(world)
    world.do(CompleteToken(old.id, "1"))
    world.clock.advance(100)
    before = world.clock()
    world.do(CompleteToken(new.id, "1"))
    assert world.do(PruneWaitpoints(before, 10)) == 1
    with pytest.raises(NotFoundError):
        state(world, old.id)
    assert state(world, new.id)[0] is WaitpointStatus.COMPLETED
    assert state(world, open_one.id)[0] is WaitpointStatus.WAITING


# --- a worker that is lost while its run waits -------------------------------------------------------------------


def ends(world: World, run_id: str) -> list[str]:
    return [attempt.end for attempt in world.reader.run(run_id).attempts if attempt.end is not None]


def test_a_lost_worker_costs_a_waiting_run_nothing(world: World, worker: WorkerDouble) -> None:
    token = create(world)
    run = begin_waiting(world, worker, token.id)
    world.pass_lease()
    worker.register()
    again = worker.claim_one()
    assert (again.id, again.charged, again.is_apart, again.has_begun) == (run.id, 0, False, True)
    assert ends(world, run.id) == ["waiting"]


def test_a_dead_process_costs_a_waiting_run_nothing(world: World, worker: WorkerDouble) -> None:
    token = create(world)
    run = begin_waiting(world, worker, token.id)
    worker.die(waiting=[run])
    worker.register()
    again = worker.claim_one()
    assert (again.id, again.charged, again.is_apart) == (run.id, 0, False)
    assert ends(world, run.id) == ["waiting"]


def test_a_run_whose_machine_vanishes_again_and_again_while_it_waits_is_charged_in_the_end(
    world: World, worker: WorkerDouble
) -> None:
    token = create(world)
    run = begin_waiting(world, worker, token.id)
    seen: list[str] = []
    while not world.reader.run(run.id).status.is_final:
        assert len(seen) < 20
        world.pass_lease()
        worker.register()
        seen = ends(world, run.id)
        world.clock.advance(3600)
        claimed = worker.claim()
        if claimed:
            worker.begin(claimed[0])
            worker.report(claimed[0], waiting=True)
    assert seen[:2] == ["waiting", "waiting"]
    assert "lost" in ends(world, run.id)
