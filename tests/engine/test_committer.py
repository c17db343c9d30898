"""The committer: groups gather by themselves, an answer never comes before its commit, stopping loses nothing."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from milepost.engine.announcements import Announcement
from milepost.engine.commands import Claim, CreateBatch, RegisterWorker, Trigger, UpdateMetadata
from milepost.engine.committer import Committer
from milepost.engine.engine import Engine
from milepost.engine.state import EngineSettings
from milepost.errors import InvalidRequestError
from milepost.reading.reader import Reader
from milepost.store.runs import RunFilter
from support.world import item, new_store, offered

Result = TypeVar("Result")
PATIENCE_SECONDS = 20


def now() -> int:
    return time.time_ns() // 1000


class Running:
    """A committer at work, on the clock of the machine."""

    def __init__(self, path: Path) -> None:
        self.store = new_store(path)
        self.announced: list[Announcement] = []
        self.on_announcement: Callable[[Announcement], None] = self.announced.append
        engine = Engine(self.store, EngineSettings(), now)
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


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
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
