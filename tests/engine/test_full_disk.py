"""A disk that is full: what cannot be stored is refused as a whole, what was acknowledged stays, and with room again all goes on."""

import os
import random
import shutil
import string
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from milepost.errors import UnavailableError
from milepost.model.operations import Append, Increment
from milepost.protocol.work import ClaimedRun, RunReport
from milepost.store.database import Store
from support import postgres
from support.world import WorkerDouble, World

# PostgreSQL packs what repeats itself.
LARGE = "".join(random.Random(1).choices(string.ascii_letters, k=3_000_000))


@contextmanager
def no_page_more(world: World) -> Iterator[None]:
    """The database of SQLite may have no page more than it has, which fails as a disk without room does (SQLITE_FULL)."""
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


@pytest.mark.sqlite_only("its limit of pages; PostgreSQL has a test of its own below")
def test_a_full_disk_refuses_and_loses_nothing(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    refuses_and_loses_nothing(world, worker, run, no_page_more(world))
    with world.store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def refuses_and_loses_nothing(
    world: World, worker: WorkerDouble, run: ClaimedRun, full_disk: AbstractContextManager[None]
) -> None:
    report = worker.next_report(run, Increment("n", 1), Append("log", "x" * 20_000))
    acknowledged = 0
    with full_disk:
        # There may be room left in pages that are there already.
        while (failure := refusal_of(worker, report)) is None:
            acknowledged += 1
            report = worker.next_report(run, Increment("n", 1), Append("log", "x" * 20_000))
        assert "full" in failure or "No space left on device" in failure
        assert "nothing was stored" in failure or "free space on the disk of the database" in failure
        assert world.document(run.id)[0]["n"] == acknowledged
        # Reading and heartbeats go on, and the refused report stays refused.
        worker.send()
        with pytest.raises(UnavailableError):
            worker.send(report)
        with pytest.raises(UnavailableError):
            # What does not fit even where some pages have room.
            world.trigger(payload='"' + LARGE + '"')
    [reply] = worker.send(report)
    assert not reply.lost
    acknowledged += 1
    value, version = world.document(run.id)
    assert (value["n"], len(value["log"]), version) == (acknowledged, acknowledged, acknowledged)
    world.restart()
    assert world.written_answer(run.id) == (value, version)


# --- PostgreSQL ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a database and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m,mode=777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    # Who runs PostgreSQL has to get there.
    opened = [
        (parent, parent.stat().st_mode) for parent in tmp_path.parents if not parent.stat().st_mode & 0o001
    ]
    opened.append((tmp_path, tmp_path.stat().st_mode))
    for parent, mode in opened:
        parent.chmod(mode | 0o011)
    yield folder
    for parent, mode in opened:
        parent.chmod(mode)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_postgresql_refuses_and_loses_nothing(small_disk: Path) -> None:
    """Its tables have a disk of their own. Where the write-ahead log has no room, PostgreSQL itself ends, and is away."""
    server = postgres.server()
    tables = small_disk / "tables"
    tables.mkdir(mode=0o700)
    shutil.chown(tables, server.user)
    with server.administer() as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{tables}'".encode())
    name = server.create_migrated_database()
    with server.administer() as connection:
        connection.execute(f"ALTER DATABASE {name} SET TABLESPACE small".encode())
    world = World(Store(server.url(name)))
    try:
        worker = WorkerDouble(world)
        world.trigger(metadata={"n": 0})
        run = worker.claim_one()
        refuses_and_loses_nothing(world, worker, run, no_room(small_disk))
    finally:
        world.close()
        server.drop_database(name)
        with server.administer() as connection:
            connection.execute("DROP TABLESPACE small")


@contextmanager
def no_room(disk: Path) -> Iterator[None]:
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filling.unlink()
