"""Several servers on one database: what only happens between them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy
from sqlalchemy import event

from milepost.engine import others
from milepost.engine.commands import (
    AddChunks,
    AttemptWritten,
    Claim,
    IndexDocuments,
    RegisterWorker,
    ReleaseLostRuns,
    Report,
    Trigger,
    UpdateMetadata,
    Written,
)
from milepost.engine.others import CHUNK_BYTES_MAX, decode
from milepost.errors import CommitUnknownError, NotFoundError, UnavailableError
from milepost.model.operations import Set
from milepost.model.run import Outcome, RunError, RunStatus
from milepost.store import announcements as store
from milepost.store.sqlite import SQLiteDatabase
from support.faults import faults
from support.many import ON_POSTGRES, THREE_SERVERS, Servers, servers_on_postgres, servers_on_sqlite
from support.world import Ticket, WorkerDouble, failure, item, offered, result_of

A, B, C = 0, 1, 2


@pytest.fixture(params=[THREE_SERVERS, ON_POSTGRES])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    """Three servers, none of which knows anything."""
    on_sqlite = request.param == THREE_SERVERS
    with servers_on_sqlite(tmp_path / "m.db") if on_sqlite else servers_on_postgres() as world:
        yield world


def at(world: Servers, number: int, command: Any) -> Any:
    [ticket] = world.submit(command, at=number)
    return result_of(ticket)


def park(world: Servers, worker: WorkerDouble, number: int, *, wait: float = 60) -> Ticket:
    [waiting] = world.submit(worker.next_claim(wait=wait), at=number)
    assert not waiting.is_answered
    return waiting


def told(world: Servers) -> list[store.AnnouncementRow]:
    with world.store.read() as connection:
        return store.announcements_after(connection, 0, limit=10_000)


# --- claims ------------------------------------------------------------------------------------------------


def test_a_run_queued_at_one_wakes_the_claim_at_another(world: Servers) -> None:
    waiting = park(world, WorkerDouble(world), A)
    run_ids = at(world, B, Trigger(item())).run_ids
    assert [run.id for run in waiting.result] == run_ids
    world.agree()


def test_what_is_due_at_one_is_due_at_another_whose_clock_is_a_moment_behind(
    world: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the database's clock by itself, and on a busy machine they come out some milliseconds apart."""
    waiting = park(world, WorkerDouble(world), A)
    monkeypatch.setattr(world.engines[A], "_clock", lambda: world.clock() - 300_000)
    run_ids = at(world, B, Trigger(item())).run_ids
    assert [run.id for run in waiting.result] == run_ids
    world.agree()


def test_what_is_due_at_one_whose_clock_is_far_ahead_is_due_at_another_when_it_gets_there(
    world: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = park(world, WorkerDouble(world), A, wait=600)
    monkeypatch.setattr(world.engines[A], "_clock", lambda: world.clock() - 60_000_000)
    run_ids = at(world, B, Trigger(item())).run_ids
    assert not waiting.is_answered, "it follows nobody who is so far ahead"
    world.clock.advance(61)
    world.submit(at=A)
    assert [run.id for run in waiting.result] == run_ids
    world.agree()


def test_a_server_whose_clock_was_set_back_is_followed_again(
    world: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it committed while its clock was far ahead says nothing any more."""
    worker = WorkerDouble(world)
    monkeypatch.setattr(world.engines[B], "_clock", lambda: world.clock() + 60_000_000)
    at(world, B, Trigger(item("other")))
    monkeypatch.setattr(world.engines[B], "_clock", lambda: world.clock() + 300_000)
    waiting = park(world, worker, A)
    run_ids = at(world, B, Trigger(item())).run_ids
    assert [run.id for run in waiting.result] == run_ids
    world.agree()


def test_a_claim_is_answered_when_a_newer_one_arrives_elsewhere(world: Servers) -> None:
    worker = WorkerDouble(world)
    older, newer = park(world, worker, A), park(world, worker, B)
    assert older.result == []
    run_ids = at(world, C, Trigger(item())).run_ids
    assert [run.id for run in newer.result] == run_ids
    assert older.result == []


def test_a_claim_is_answered_when_its_worker_leaves_elsewhere(world: Servers) -> None:
    worker = WorkerDouble(world)
    waiting = park(world, worker, A)
    at(world, B, Report(worker.id, [], leaving=True))
    assert waiting.result == []


def test_the_same_claim_at_two_servers_brings_one_run(world: Servers) -> None:
    """A claim whose connection was lost is sent again, and another server gets it."""
    worker = WorkerDouble(world)
    claim = worker.next_claim(wait=60)
    [first] = world.submit(claim, at=A)
    [second] = world.submit(claim, at=B)
    run_ids = [at(world, C, Trigger(item())).run_ids[0] for _ in range(2)]
    assert [run.id for run in first.result] == [run.id for run in second.result] == run_ids[:1]


def test_a_claim_is_answered_with_what_another_server_has_given_to_its_repeat(world: Servers) -> None:
    """Also with a run that nobody has offered since: one that is to execute apart goes to a busy worker after a while."""
    worker = WorkerDouble(world)
    at(world, A, Trigger(item()))
    assert len(at(world, A, worker.next_claim())) == 1
    [apart] = at(world, A, Trigger(item())).run_ids
    with world.store.write() as connection:
        connection.exec_driver_sql(f"UPDATE runs SET is_apart = 1 WHERE id = '{apart}'")
    waiting = park(world, worker, A)
    world.clock.advance(11)
    parked = world.engines[A].state.parked.get(worker.id)
    assert parked is not None
    [repeat] = world.submit(parked.claim, at=B)
    assert [run.id for run in repeat.result] == [apart]
    assert [run.id for run in waiting.result] == [apart], (
        "nobody knows which of the two the worker listens to"
    )


def test_a_late_repeat_elsewhere_brings_what_the_claim_has_brought(world: Servers) -> None:
    worker = WorkerDouble(world)
    claim = worker.next_claim()
    run_id = at(world, A, Trigger(item())).run_ids[0]
    at(world, A, Trigger(item()))
    assert [run.id for run in at(world, B, claim)] == [run_id]
    [run] = at(world, C, claim)
    assert run.id == run_id
    at(world, A, Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))]))
    assert at(world, A, claim) == [], "and nothing new, where it was never seen"


def release(world: Servers, number: int) -> None:
    """This server is about to stop."""
    answers, announcements = world.engines[number].release_parked()
    world.heard[number] += announcements
    for answer, result in answers:
        answer(result)


def test_a_server_that_stops_answers_a_claim_with_what_another_one_has_given_to_it(world: Servers) -> None:
    """Or the worker would hold a run of which it has never heard."""
    worker = WorkerDouble(world)
    world.away = {A}
    claim = worker.next_claim(wait=60)
    [waiting] = world.submit(claim, at=A)
    world.submit(claim, at=B)
    run_ids = at(world, B, Trigger(item())).run_ids
    release(world, A)
    assert [run.id for run in waiting.result] == run_ids
    world.away = set()
    world.agree()


def test_what_a_server_has_answered_as_it_stopped_brings_nothing_elsewhere(world: Servers) -> None:
    """Or another one would give a run to a claim to which nobody listens."""
    worker = WorkerDouble(world)
    claim = worker.next_claim(wait=60)
    [abandoned] = world.submit(claim, at=B)
    [waiting] = world.submit(claim, at=A)
    release(world, A)
    assert waiting.result == []
    world.look()
    [run_id] = at(world, C, Trigger(item())).run_ids
    assert abandoned.result == []
    assert [run.id for run in at(world, C, worker.next_claim())] == [run_id]
    world.agree()


@pytest.mark.parametrize("reason", ["its time is over", "the server stops"])
def test_a_claim_that_is_over_while_the_database_is_away_is_to_be_asked_again(
    world: Servers, reason: str
) -> None:
    """What it was given elsewhere comes with its repeat. An answer without runs would leave those held by a worker that knows
    nothing of them, for as long as it lives."""
    worker = WorkerDouble(world)
    world.away = {A}
    claim = worker.next_claim(wait=1)
    [waiting] = world.submit(claim, at=A)
    [abandoned] = world.submit(claim, at=B)
    run_ids = at(world, B, Trigger(item())).run_ids
    assert [run.id for run in abandoned.result] == run_ids
    world.clock.advance(2)
    with faults(world.stores[A], lambda *_: True):
        if reason == "the server stops":
            release(world, A)
        else:
            world._carry_out(A, [])
    assert isinstance(waiting.result, UnavailableError)
    world.away = set()
    assert [run.id for run in at(world, A, claim)] == run_ids
    world.agree()


def test_a_worker_with_other_tasks_is_known_where_its_claim_waits(world: Servers) -> None:
    worker = WorkerDouble(world, "worker_1", offered("a"))
    waiting = park(world, worker, A)
    tasks = (offered("a"), offered("b"))
    at(world, B, RegisterWorker(worker.id, worker.id, tasks, [], claims=worker.claim_sequence))
    run_ids = at(world, C, Trigger(item("b"))).run_ids
    assert [run.id for run in waiting.result] == run_ids


def test_a_queues_limit_learnt_at_one_holds_at_all(world: Servers) -> None:
    worker = WorkerDouble(world, "worker_1", offered("work", concurrency=2))
    for number in (A, B, C, A):
        at(world, number, Trigger(item()))
    assert [len(at(world, number, worker.next_claim(5))) for number in (A, B, C)] == [2, 0, 0]
    narrow = (offered("work", concurrency=3),)
    at(world, C, RegisterWorker("worker_2", "worker_2", narrow, []))
    assert len(at(world, A, Claim("worker_2", 1, 5, 0))) == 1


# --- leases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet_part", [0, 0.1])
def test_who_is_heard_at_one_keeps_its_lease_at_all(world: Servers, quiet_part: float) -> None:
    with patch.object(others, "QUIET_PART", quiet_part):
        worker = WorkerDouble(world)
        run_id = at(world, A, Trigger(item())).run_ids[0]
        at(world, A, worker.next_claim())
        for _ in range(40):
            world.clock.advance(2.9)
            at(world, B, Report(worker.id, []))
            assert at(world, A, ReleaseLostRuns()) == 0
        # Nor is it given up before its time, whichever server has heard of it last.
        for seconds in (10, 10, 9.9):
            world.clock.advance(seconds)
            assert at(world, C, ReleaseLostRuns()) == 0
        assert world.pass_lease() == 1
        assert world.reader.run(run_id).status is RunStatus.QUEUED


def test_whom_a_server_hears_that_was_frozen_all_hear(world: Servers) -> None:
    """It hears of the worker late, and must not take that for the time at which the others have."""
    with patch.object(others, "QUIET_PART", 0.1):
        worker = WorkerDouble(world)
        at(world, A, Trigger(item()))
        world.away = {C}
        at(world, A, worker.next_claim())
        for _ in range(4):
            world.clock.advance(5)
            assert at(world, A, ReleaseLostRuns()) == 0
        world.away = set()
        at(world, C, Report(worker.id, []))
        for _ in range(5):
            world.clock.advance(5)
            assert at(world, A, ReleaseLostRuns()) == 0


def test_an_idle_fleet_writes_little(world: Servers) -> None:
    """Of a worker that is heard by any of them, servers tell each other once in a tenth of a lease."""
    with patch.object(others, "QUIET_PART", 0.1):
        workers = [WorkerDouble(world, f"worker_{number}") for number in range(3)]
        at(world, A, Trigger(item()))
        [run] = at(world, A, workers[0].next_claim())
        later = workers[0].next_report(run, outcome=failure(retry_after_ms=3_600_000))
        at(world, B, Report(workers[0].id, [later]))
        before = len(told(world))
        for number in range(300):
            world.clock.advance(0.1)
            for worker in workers:
                at(world, number % 3, Report(worker.id, []))
        # 30 seconds are ten tenths of a lease.
        assert len(told(world)) - before <= 3 * 10 + 3
        world.submit()
        assert len(told(world)) - before <= 3 * 10 + 3


def test_a_group_without_news_is_not_told(world: Servers) -> None:
    before = len(told(world))
    world.submit()
    at(world, A, ReleaseLostRuns())
    assert len(told(world)) == before


# --- servers that were away --------------------------------------------------------------------------------


def test_a_server_that_was_frozen_hears_of_everything_before_it_decides(world: Servers) -> None:
    worker = WorkerDouble(world)
    run_id = at(world, A, Trigger(item(metadata={"n": 0}))).run_ids[0]
    world.away = {C}
    [run] = at(world, A, worker.next_claim())
    at(world, B, Report(worker.id, [worker.next_report(run, Set("n", 1))]))
    new = WorkerDouble(world, "worker_2", offered("new", queue="q", concurrency=1))
    world.away = set()
    runs = [at(world, C, Trigger(item("new"))).run_ids[0] for _ in range(2)]
    assert world.reader.run(runs[0]).queue == "q"
    assert [found.id for found in at(world, C, new.next_claim(5))] == runs[:1]
    assert at(world, C, UpdateMetadata(run_id, [("self", [])])).value == b'{"n":1}'
    world.agree()


def test_a_server_that_was_away_for_too_long_takes_everything_anew(world: Servers) -> None:
    worker = WorkerDouble(world)
    stale, gone = park(world, worker, C), park(world, WorkerDouble(world, "worker_2"), C)
    world.away = {C}
    claim = worker.next_claim(wait=60)
    [elsewhere] = world.submit(claim, at=A)
    at(world, B, Report("worker_2", [], leaving=True))
    new = WorkerDouble(world, "worker_3", offered("new", queue="q", concurrency=1))
    world.clock.advance(7 * 24 * 3600)
    with world.store.write() as connection:
        assert store.prune_announcements(connection, before=world.clock(), limit=1000)
    world.away = set()
    world.heard[C].clear()
    world.look()
    assert any(announcement.is_gap for announcement in world.heard[C]), "whoever watches has to look anew"
    assert stale.result == gone.result == []
    assert not elsewhere.is_answered
    run_ids = at(world, C, Trigger(item())).run_ids
    assert [run.id for run in elsewhere.result] == run_ids, "to the claim that somebody listens to"
    queued = [at(world, C, Trigger(item("new"))).run_ids[0] for _ in range(2)]
    # Which of its claims is the newest was told meanwhile, and is not in the database.
    with pytest.raises(NotFoundError, match="register it first"):
        at(world, C, new.next_claim(5))
    new.register()
    assert [run.id for run in at(world, C, new.next_claim(5))] == queued[:1]


def test_what_cannot_be_read_is_taken_from_the_database(world: Servers) -> None:
    """A server of another version is among them."""
    world.away = {B, C}
    WorkerDouble(world)
    with world.store.write() as connection:
        store.append_announcement(connection, b"\x93what?", now=world.clock())
    world.away = set()
    world.look()
    assert all(engine.state.workers.keys() == {"worker_1"} for engine in world.engines)
    assert any(announcement.is_gap for announcement in world.heard[B])


# --- commits whose answer got lost -------------------------------------------------------------------------


def test_a_commit_that_was_made_although_its_answer_got_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the claims that it has answered: their runs are handed out all the same."""
    with servers_on_sqlite(tmp_path / "m.db") as world:
        waiting = park(world, WorkerDouble(world), A)
        commit = SQLiteDatabase.commit

        def lost(database: SQLiteDatabase, connection: Any) -> None:
            commit(database, connection)
            raise CommitUnknownError("nobody knows")

        with monkeypatch.context() as patched:
            patched.setattr(SQLiteDatabase, "commit", lost)
            [ticket] = world.submit(Trigger(item(metadata={"n": 1})), at=A)
        assert isinstance(ticket.result, CommitUnknownError)
        assert not waiting.is_answered
        world.look()
        [run] = waiting.result
        assert world.reader.run(run.id).status is RunStatus.EXECUTING
        assert at(world, B, UpdateMetadata(run.id, [("self", [])])).value == b'{"n":1}'
        world.agree()
        assert sum(changed.row.id == run.id for one in world.heard[A] for changed in one.runs) == 1


# --- what travels ------------------------------------------------------------------------------------------

HUGE = 2**80 + 1


def test_any_value_travels(world: Servers) -> None:
    worker = WorkerDouble(world)
    run_id = at(world, A, Trigger(item(metadata={"big": HUGE}))).run_ids[0]
    [run] = at(world, B, worker.next_claim())
    report = worker.next_report(run, Set("big", HUGE), Set("nul", "a\0b"))
    at(world, C, Report(worker.id, [report]))
    error = RunError(message="nul \0", name="ValueError", stack_trace="\0")
    last = worker.next_report(run, outcome=Outcome(error=error))
    at(world, A, Report(worker.id, [last]))
    world.agree()
    assert world.reader.run(run_id).status is RunStatus.FAILED
    changes = [change for one in world.heard[B] for changed in one.runs for change in changed.changes]
    [found] = [
        operation.value
        for change in changes
        for operation in change.operations
        if isinstance(operation, Set) and operation.key == "big"
    ]
    assert found == HUGE


@pytest.mark.parametrize(("size", "travel"), [(1000, True), (CHUNK_BYTES_MAX + 1, False)])
def test_large_chunks_stay_out_of_announcements(world: Servers, size: int, travel: bool) -> None:
    """Readers at other servers read them from the database."""
    worker = WorkerDouble(world)
    run_id = at(world, A, Trigger(item())).run_ids[0]
    [run] = at(world, A, worker.next_claim())
    before = len(told(world))
    text = b'"' + b"x" * size + b'"'
    written = Written(run_id, "numbers", "a", 0, [text], None)
    at(world, B, AddChunks(worker.id, [AttemptWritten(run_id, run.attempt, [written])]))
    [row] = told(world)[before:]
    _, announcement = decode(row.payload)
    [grown] = announcement.streams
    assert ([chunks.data for chunks in grown.rows] == [text], grown.next_index) == (travel, 1)
    assert len(row.payload) < CHUNK_BYTES_MAX / 8
    assert [
        chunks.data for chunks in world.reader.stream_page(run_id, "numbers", start=0, bytes_max=10**9).rows
    ] == [text]
    world.agree()


# --- cost --------------------------------------------------------------------------------------------------


def test_servers_that_only_look_leave_no_trace_in_postgresql(world: Servers) -> None:
    """Each looks every second for silent workers and documents to index. A transaction that is counted costs an entry in the log and
    a wait for the disk."""
    worker = WorkerDouble(world)
    at(world, A, Trigger(item(metadata={"n": 0})))
    at(world, A, worker.next_claim())
    while at(world, A, IndexDocuments(10)):
        pass
    before = transactions(world)
    for number in (A, B, C):
        assert at(world, number, ReleaseLostRuns()) == 0
        assert at(world, number, IndexDocuments(10)) == 0
    assert transactions(world) == before
    # What they find is committed all the same.
    assert world.pass_lease() == 1
    assert transactions(world) != before


def transactions(world: Servers) -> Any:
    with world.store.read() as connection:
        if connection.dialect.name == "postgresql":
            query = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
        else:
            # Of another connection's commits; where nothing is written it stays.
            query = "PRAGMA data_version"
        return connection.exec_driver_sql(query).scalar()


def test_what_each_group_does_is_executed_by_the_driver(world: Servers) -> None:
    """SQLAlchemy's own execution takes longer than a small statement: a run, an update and a look for news do without it."""
    worker = WorkerDouble(world)

    def a_run() -> None:
        at(world, A, Trigger(item(metadata={"n": 0})))
        [run] = at(world, B, worker.next_claim())
        at(world, C, Report(worker.id, [worker.next_report(run, Set("n", 1))]))
        at(world, A, Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))]))
        world.look()

    a_run()
    executed: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        executed.append(statement)

    event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        a_run()
        assert executed == []
        # It is noticed at all.
        with world.store.read() as connection:
            connection.execute(sqlalchemy.select(1))
        assert len(executed) == 1
    finally:
        event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
