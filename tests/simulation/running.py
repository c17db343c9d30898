"""Running seeds: one store after the other in memory, so that a seed costs milliseconds."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from milepost.store import schema
from milepost.store.database import Store
from simulation.simulation import Plan, Simulation
from support.world import new_store

# Where files are kept in memory, on systems that have it.
_MEMORY = Path("/dev/shm")


@contextmanager
def empty_store() -> Iterator[Store]:
    """A new database, gone afterwards."""
    folder = tempfile.mkdtemp(prefix="milepost-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None)
    try:
        store = new_store(Path(folder) / "milepost.db")
        try:
            yield store
        finally:
            store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wipe(store: Store) -> None:
    """Make the store an empty one again, which is quicker than a new one."""
    with store.write() as connection:
        for table in schema.tables.sorted_tables:
            connection.execute(table.delete())


def simulate(
    seed: int,
    store: Store,
    *,
    traces: bool = False,
    adjust: Callable[[Plan], None] = lambda plan: None,
) -> Simulation:
    """Run one seed. Raises `Failed`, which says how to replay it."""
    wipe(store)
    simulation = Simulation(seed, store, traces=traces, adjust=adjust)
    simulation.run()
    return simulation
