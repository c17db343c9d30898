"""Running seeds: one database in memory for all of them, so that a seed costs milliseconds."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from milepost.store.database import Store
from simulation.database import Database
from simulation.simulation import Plan, Simulation
from support.world import new_store

# Where files are kept in memory, on systems that have it.
_MEMORY = Path("/dev/shm")


@contextmanager
def empty_store() -> Iterator[Store]:
    """A new database as one server has it, gone afterwards."""
    with _folder() as folder:
        store = new_store(folder / "milepost.db")
        try:
            yield store
        finally:
            store.close()


@contextmanager
def empty_database() -> Iterator[Database]:
    """A new database, gone afterwards."""
    with _folder() as folder:
        database = Database(folder / "milepost.db")
        try:
            yield database
        finally:
            database.close()


@contextmanager
def _folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="milepost-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def simulate(
    seed: int,
    database: Database,
    *,
    traces: bool = False,
    adjust: Callable[[Plan], None] = lambda plan: None,
) -> Simulation:
    """Run one seed. Raises `Failed`, which says how to replay it."""
    database.wipe()
    simulation = Simulation(seed, database, traces=traces, adjust=adjust)
    simulation.run()
    return simulation
