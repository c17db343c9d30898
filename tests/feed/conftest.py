from collections.abc import Iterator
from pathlib import Path

import pytest

from support.subscriber import FeedWorld, feed_world_at
from support.world import WorkerDouble


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FeedWorld]:
    """A world whose commits are announced to a hub."""
    with feed_world_at(tmp_path / "milepost.db") as world:
        yield world


@pytest.fixture
def worker(world: FeedWorld) -> WorkerDouble:
    """A registered worker that offers the task `work`."""
    return WorkerDouble(world)
