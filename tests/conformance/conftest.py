"""The store suite runs against every database: what a test gets is decided here and nowhere else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milepost.store.database import Store
from support import postgres

OpenStore = Callable[[], Store]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where a new database is: a path of SQLite, or the URL of a PostgreSQL one, which is removed at the end."""
    if request.param == "sqlite":
        yield tmp_path / "milepost.db"
        return
    server = postgres.server()
    name = server.create_migrated_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def open_store(place: Path | str) -> Iterator[OpenStore]:
    """Opens one and the same database, each time anew; what is still open at the end is closed."""
    opened: list[Store] = []

    def open_at_place() -> Store:
        store = Store(place)
        opened.append(store)
        return store

    yield open_at_place
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """An open store with nothing in it."""
    return open_store()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An open store for many examples of a property, each of which clears away what it needs to."""
    if request.param == "sqlite":
        store = Store(tmp_path_factory.mktemp("shared") / "milepost.db", synchronous="NORMAL")
    else:
        store = Store(postgres.server().url(postgres.server().create_migrated_database()))
    yield store
    store.close()
