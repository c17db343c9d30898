"""The committer: groups gather by themselves, an answer never comes before its commit, stopping loses nothing."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from milepost.engine import committer as committers
from milepost.engine.announcements import Announcement
from milepost.engine.commands import Claim, CreateBatch, RegisterWorker, Trigger, UpdateMetadata
from milepost.engine.committer import Committer
from milepost.engine.engine import Engine
from milepost.engine.state import EngineSettings
from milepost.errors import InvalidRequestError
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter
from milepost.store.sqlite import SQLiteDatabase
from support.world import item, new_store, offered

Result = TypeVar("Result")
PATIENCE_SECONDS = 60


def now() -> int:
    return time.time_ns() // 1000


class Running:
    """A committer at work, on the clock of the machine."""

    def __init__(self, path: Path) -> None:
        self.store = new_store(path)
        self.announced: list[Announcement] = []
        self.on_announcement: Callable[[Announcement], None] = self.announced.append
        self.engine = engine = Engine(self.store, EngineSettings(), now)
        self.reader = Reader(self.store)
        self.committer = Committer(engine, now, lambda announcement: self.on_announcement(announcement))
        self.committer.start()

    def run(self, work: Callable[["Running"], Awaitable[Result]]) -> Result:
        """Run asynchronous work on an event loop of its own, with a registered worker."""

        async def all_of_it() -> Result:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.committer.submit(RegisterWorker("worker_1", "w", [offered("work")], []))
                return await work(self)

        return asyncio.run(all_of_it())


only_the_thread = pytest.mark.parametrize("running", ["thread"], indirect=True)
only_lent = pytest.mark.parametrize("running", ["lent"], indirect=True)


@pytest.fixture(params=["thread", "lent"])
def running(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    """The engine is never lent to an event loop, or whenever that may be, however long a commit takes."""
    monkeypatch.setattr(committers, "LENT_SECONDS_MAX", -1.0 if request.param == "thread" else 60.0)
    running = Running(tmp_path / "milepost.db")
    yield running
    running.committer.stop()
    running.store.close()


def test_an_answer_comes_after_its_commit_and_its_announcement(running: Running) -> None:
    async def work(running: Running) -> None:
        for number in range(20):
            triggered = await running.committer.submit(Trigger(item(payload=str(number))))
            [run_id] = triggered.run_ids
            assert running.reader.run(run_id).id == run_id
            assert [changed.row.id for changed in running.announced[-1].runs] == [run_id]

    running.run(work)


def test_a_refusal_is_raised_and_stands_alone(running: Running) -> None:
    async def work(running: Running) -> None:
        results = await asyncio.gather(
            running.committer.submit(Trigger(item())),
            running.committer.submit(Trigger(item(""))),
            running.committer.submit(Trigger(item())),
            return_exceptions=True,
        )
        assert isinstance(results[1], InvalidRequestError)
        assert results[0].run_ids < results[2].run_ids

    running.run(work)


@only_the_thread
def test_what_gathers_during_a_commit_is_the_next_group(running: Running) -> None:
    """Group commit without a timer: while one commit is under way, forty commands become one more."""
    under_way, go_on = threading.Event(), threading.Event()
    announced: list[int] = []

    def on_announcement(announcement: Announcement) -> None:
        announced.append(len(announcement.runs))
        if len(announced) == 1:
            under_way.set()
            assert go_on.wait(PATIENCE_SECONDS)

    running.on_announcement = on_announcement

    async def work(running: Running) -> None:
        first = asyncio.ensure_future(running.committer.submit(Trigger(item())))
        assert await asyncio.to_thread(under_way.wait, PATIENCE_SECONDS)
        rest = [asyncio.ensure_future(running.committer.submit(Trigger(item()))) for _ in range(40)]
        # Each of them is in the queue once it has run up to its first wait.
        await asyncio.sleep(0)
        assert not first.done()
        go_on.set()
        await asyncio.gather(first, *rest)

    running.run(work)
    assert announced == [1, 40]


def test_commands_of_several_event_loops_are_all_answered(running: Running) -> None:
    async def work(running: Running) -> list[str]:
        results = await asyncio.gather(*(running.committer.submit(Trigger(item())) for _ in range(50)))
        return [result.run_ids[0] for result in results]

    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(running.run(work))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    ids = {run_id for part in found for run_id in part}
    assert len(ids) == 200
    assert len(running.reader.page(RunFilter(), size=300).data) == 200


@only_the_thread
def test_giving_up_waiting_does_not_take_the_command_back(running: Running) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def on_announcement(announcement: Announcement) -> None:
        under_way.set()
        assert go_on.wait(PATIENCE_SECONDS)

    async def work(running: Running) -> None:
        running.on_announcement = on_announcement
        waiting = asyncio.ensure_future(running.committer.submit(Trigger(item())))
        assert await asyncio.to_thread(under_way.wait, PATIENCE_SECONDS)
        waiting.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await running.committer.submit(CreateBatch(1))

    running.run(work)
    assert len(running.reader.page(RunFilter(), size=10).data) == 1


def test_answers_for_a_loop_that_has_closed_harm_nobody(running: Running) -> None:
    async def leave(running: Running) -> None:
        claim = asyncio.ensure_future(running.committer.submit(Claim("worker_1", 1, 1, 60)))
        await running.committer.submit(CreateBatch(1))
        assert not claim.done()

    running.run(leave)

    async def work(running: Running) -> Any:
        await running.committer.submit(Trigger(item()))
        return await running.committer.submit(CreateBatch(1))

    assert running.run(work).startswith("batch_")


def test_a_claim_is_answered_at_its_deadline_without_any_command(running: Running) -> None:
    async def work(running: Running) -> tuple[Any, float]:
        started = time.monotonic()
        runs = await running.committer.submit(Claim("worker_1", 1, 1, 0.2))
        return runs, time.monotonic() - started

    runs, seconds = running.run(work)
    assert runs == []
    assert seconds >= 0.19


def test_a_claim_that_waits_gets_a_run_as_soon_as_there_is_one(running: Running) -> None:
    async def work(running: Running) -> None:
        waiting = asyncio.ensure_future(running.committer.submit(Claim("worker_1", 1, 1, 60)))
        triggered = await running.committer.submit(Trigger(item()))
        [run] = await waiting
        assert run.id == triggered.run_ids[0]

    running.run(work)


def test_stopping_carries_out_what_waits_and_answers_waiting_claims(running: Running) -> None:
    async def work(running: Running) -> None:
        claim = asyncio.ensure_future(running.committer.submit(Claim("worker_1", 1, 0, 60)))
        triggers = [asyncio.ensure_future(running.committer.submit(Trigger(item()))) for _ in range(2500)]
        await asyncio.sleep(0)
        await asyncio.to_thread(running.committer.stop)
        assert await claim == []
        assert len({result.run_ids[0] for result in await asyncio.gather(*triggers)}) == 2500
        with pytest.raises(Exception, match="stop"):
            await running.committer.submit(Trigger(item()))

    running.run(work)
    running.committer.stop()


def test_stopping_before_anything_happened(tmp_path: Path) -> None:
    running = Running(tmp_path / "milepost.db")
    running.committer.stop()
    running.committer.stop()
    running.store.close()


def test_thousands_of_increments_from_many_callers_add_up(running: Running) -> None:
    """M32, M67 through the real thread."""
    operations = [
        {"type": "increment", "key": "n", "value": 1},
        {"type": "append", "key": "list", "value": 1},
    ]

    async def work(running: Running) -> str:
        [run_id] = (await running.committer.submit(Trigger(item()))).run_ids

        async def caller() -> None:
            for _ in range(50):
                await running.committer.submit(UpdateMetadata(run_id, [("self", operations)]))

        await asyncio.gather(*(caller() for _ in range(40)))
        return run_id

    run_id = running.run(work)
    value, version = running.reader.metadata(run_id)
    assert b'"n":2000' in value
    assert value.count(b"1,") == 1999
    assert version == 2000


# --- the engine in the thread of a loop --------------------------------------------------------------------


async def at_rest(running: Running) -> None:
    """Wait until the committer has nothing to do."""
    while not running.committer.is_at_rest:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def seen_in(running: Running) -> list[bool]:
    """For each announcement from now on whether it was made in this thread."""
    found: list[bool] = []
    here = threading.get_ident()
    running.on_announcement = lambda announcement: found.append(threading.get_ident() == here)
    return found


@only_lent
def test_a_small_command_that_is_alone_is_carried_out_in_its_loops_thread(running: Running) -> None:
    async def work(running: Running) -> None:
        found = seen_in(running)
        for _ in range(3):
            await at_rest(running)
            await running.committer.submit(Trigger(item()))
        assert found == [True] * 3
        await at_rest(running)
        await asyncio.gather(*(running.committer.submit(Trigger(item())) for _ in range(5)))
        await at_rest(running)
        await running.committer.submit(Trigger(item(payload="1" * 20_000)))
        await at_rest(running)
        await running.committer.submit(CreateBatch(1))
        assert not any(found[3:])

    running.run(work)


def test_where_a_commit_takes_long_the_loop_is_not_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(tmp_path / "milepost.db")

    async def work(running: Running) -> None:
        execute = running.engine.execute

        def slow(requests: Any) -> Any:
            time.sleep(0.05)
            return execute(requests)

        monkeypatch.setattr(running.engine, "execute", slow)
        found = seen_in(running)
        for _ in range(3):
            await at_rest(running)
            await running.committer.submit(Trigger(item()))
        # The first may still have been taken for a short one.
        assert found[1:] == [False, False]

    running.run(work)
    running.committer.stop()
    running.store.close()


@only_lent
def test_the_thread_wakes_for_what_a_lent_engine_has_found_due(running: Running) -> None:
    """It rests until the end of the claim's minute when a run comes that is due much earlier."""

    async def work(running: Running) -> None:
        claim = asyncio.ensure_future(running.committer.submit(Claim("worker_1", 1, 1, 60)))
        # It is in line once it has run up to its first wait.
        await asyncio.sleep(0)
        await at_rest(running)
        found = seen_in(running)
        triggered = await running.committer.submit(Trigger(item(delay="1s")))
        assert found == [True]
        assert not claim.done()
        [run] = await claim
        assert run.id == triggered.run_ids[0]

    running.run(work)


@only_lent
def test_stopping_waits_for_the_engine_and_is_not_at_rest_meanwhile(running: Running) -> None:
    under_way, stopper = threading.Event(), threading.Thread(target=running.committer.stop)
    rested: list[bool] = []

    def on_announcement(announcement: Announcement) -> None:
        rested.append(running.committer.is_at_rest)
        stopper.start()
        under_way.set()
        stopper.join(0.2)
        assert stopper.is_alive(), "it has stopped while a command is carried out"

    async def work(running: Running) -> None:
        await at_rest(running)
        running.on_announcement = on_announcement
        triggered = await running.committer.submit(Trigger(item()))
        assert len(triggered.run_ids) == 1
        await asyncio.to_thread(stopper.join, PATIENCE_SECONDS)
        assert not stopper.is_alive()

    running.run(work)
    assert rested == [False]


@only_lent
def test_one_thread_at_a_time_has_the_engine(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, in_use = running.engine.execute, threading.Lock()
    threads_seen: set[int] = set()

    def guarded(requests: Any) -> Any:
        assert in_use.acquire(blocking=False), "two threads have the engine"
        try:
            threads_seen.add(threading.get_ident())
            return execute(requests)
        finally:
            in_use.release()

    monkeypatch.setattr(running.engine, "execute", guarded)

    async def work(running: Running) -> list[str]:
        ids: list[str] = []
        for number in range(100):
            ids += (await running.committer.submit(Trigger(item()))).run_ids
            if number % 10 == 0:
                await at_rest(running)
        return ids

    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(running.run(work))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len({run_id for part in found for run_id in part}) == 300
    assert len(threads_seen) > 1


def test_what_is_told_of_its_own_commits_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL notifies whoever has committed too; to look at the database for that would hold up the next command."""
    monkeypatch.setattr(SQLiteDatabase, "is_shared", True)
    running = Running(tmp_path / "milepost.db")
    looked = threading.Event()
    engine, committer = running.engine, running.committer
    monkeypatch.setattr(engine, "catch_up", lambda: looked.set() or ([], []))

    async def work(running: Running) -> None:
        heard = engine.heard_number
        assert heard is not None
        # As early as it can be: the commit is still under way here.
        running.on_announcement = lambda announcement: committer.look(engine.heard_number)
        for _ in range(10):
            await committer.submit(Trigger(item()))
            committer.look(engine.heard_number)
        assert engine.heard_number == heard + 10
        while not committer.is_at_rest:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not looked.is_set()
        committer.look(heard + 11)
        assert await asyncio.to_thread(looked.wait, PATIENCE_SECONDS)

    try:
        running.run(work)
    finally:
        committer.stop()
        running.store.close()
