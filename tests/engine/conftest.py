import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.many import servers_on_postgres, servers_on_sqlite
from support.world import WorkerDouble, World, world_at


@pytest.fixture(params=os.environ.get("KINDS", "one server").split(","))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world without workers, tasks or runs."""
    if request.param == "one server":
        with world_at(tmp_path / "milepost.db") as world:
            yield world
    elif request.param == "three servers":
        with servers_on_sqlite(tmp_path / "milepost.db") as world:
            yield world
    else:
        with servers_on_postgres() as world:
            yield world


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    """A registered worker that offers the task `work`."""
    return WorkerDouble(world)
