from collections.abc import Iterator
from pathlib import Path

import pytest

from support.world import WorkerDouble, World, world_at


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world without workers, tasks or runs."""
    with world_at(tmp_path / "milepost.db") as world:
        yield world


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    """A registered worker that offers the task `work`."""
    return WorkerDouble(world)
