"""Worlds for the tests of the engine: of one server, and of several where what a file is about has to hold over several."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.many import ON_POSTGRES, ONE_SERVER, THREE_SERVERS, world_of
from support.world import ALL_ON_POSTGRES, WorkerDouble, World


def pytest_configure(config: pytest.Config) -> None:
    """Which tests run with several servers on one database."""
    for line in (
        "several_servers(postgres=False): as well with three servers on one SQLite file, and with `postgres` on one PostgreSQL "
        "database; with MILEPOST_TEST_DATABASE=postgres one server and three on PostgreSQL alone",
        "one_server(why): in such a file, with one server only",
        "sqlite_only(why): not with MILEPOST_TEST_DATABASE=postgres",
    ):
        config.addinivalue_line("markers", line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is about SQLite alone is not tried on PostgreSQL."""
    only = item.get_closest_marker("sqlite_only")
    if only is not None and ALL_ON_POSTGRES:
        pytest.skip(f"SQLite only: {only.args[0]}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`deployment` says which servers there are, for `world_of`. Properties take long on PostgreSQL: only the whole run has them."""
    if "deployment" not in metafunc.fixturenames:
        return
    kinds = [ONE_SERVER]
    several = metafunc.definition.get_closest_marker("several_servers")
    if several is not None and metafunc.definition.get_closest_marker("one_server") is None:
        is_property = getattr(metafunc.function, "is_hypothesis_test", False)
        if not ALL_ON_POSTGRES:
            kinds.append(THREE_SERVERS)
        if ALL_ON_POSTGRES or (several.kwargs.get("postgres") and not is_property):
            kinds.append(ON_POSTGRES)
    metafunc.parametrize("deployment", kinds)


@pytest.fixture
def world(deployment: str, tmp_path: Path) -> Iterator[World]:
    """A world without workers, tasks or runs."""
    with world_of(deployment, tmp_path / "milepost.db") as world:
        yield world


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    """A registered worker that offers the task `work`."""
    return WorkerDouble(world)
