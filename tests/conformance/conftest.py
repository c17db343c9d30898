"""The store suite runs against every database: what a test gets is decided here and nowhere else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milepost.store.database import Store

OpenStore = Callable[[], Store]


@pytest.fixture(params=["sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens one and the same database, each time anew; what is still open at the end is closed."""
    opened: list[Store] = []

    def open_sqlite() -> Store:
        store = Store(tmp_path / "milepost.db")
        opened.append(store)
        return store

    yield {"sqlite": open_sqlite}[request.param]
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """An open store with nothing in it."""
    return open_store()
