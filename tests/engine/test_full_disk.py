"""A disk that is full: what cannot be stored is refused as a whole, what was acknowledged stays, and with room again all goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from milepost.errors import UnavailableError
from milepost.model.operations import Append, Increment
from milepost.protocol.work import ClaimedRun, RunReport
from support.world import WorkerDouble, World


@contextmanager
def full_disk(world: World) -> Iterator[None]:
    """The database may have no page more than it has, which fails as a disk without room does (SQLITE_FULL)."""
    with world.store.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}").scalar()
    yield
    with world.store.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000").scalar()


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    world.trigger(metadata={"n": 0})
    return worker.claim_one()


def refusal_of(worker: WorkerDouble, report: RunReport) -> str | None:
    try:
        worker.send(report)
    except UnavailableError as error:
        return str(error)
    return None


@pytest.mark.sqlite_only("its limit of pages; that of PostgreSQL is in tests/conformance")
def test_a_full_disk_refuses_and_loses_nothing(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    report = worker.next_report(run, Increment("n", 1), Append("log", "x" * 20_000))
    acknowledged = 0
    with full_disk(world):
        # There may be room left in pages that are there already.
        while (failure := refusal_of(worker, report)) is None:
            acknowledged += 1
            report = worker.next_report(run, Increment("n", 1), Append("log", "x" * 20_000))
        assert "full" in failure
        assert "nothing was stored" in failure
        assert world.document(run.id)[0]["n"] == acknowledged
        # Reading and heartbeats go on, and the refused report stays refused.
        worker.send()
        with pytest.raises(UnavailableError):
            worker.send(report)
        with pytest.raises(UnavailableError):
            world.trigger(payload='"' + "y" * 100_000 + '"')
    [reply] = worker.send(report)
    assert not reply.lost
    acknowledged += 1
    value, version = world.document(run.id)
    assert (value["n"], len(value["log"]), version) == (acknowledged, acknowledged, acknowledged)
    world.restart()
    assert world.written_answer(run.id) == (value, version)
    with world.store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
