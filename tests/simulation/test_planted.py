"""The witness and the judge are checked: mistakes outside metadata, and those of several servers, are put into the code, and the
simulation finds each.

Here with seeds that are known to find them; `python -m simulation --planted` looks for them from the first seed on.
"""

from collections.abc import Iterator

import pytest

from simulation.database import Database
from simulation.planted import PLANTS, SEEDS_MAX, Planted, find
from simulation.planted_servers import SERVERS_PLANTS
from simulation.running import empty_database
from support import held_rows

ALL = [*PLANTS, *SERVERS_PLANTS]

# When a seed finds its mistake no more, the others are tried one after the other.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def kept_rows_may_be_wrong() -> Iterator[None]:
    """As long as what was planted does that."""
    yield
    held_rows.lies.clear()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with empty_database() as database:
        yield database


@pytest.mark.parametrize("planted", ALL, ids=lambda planted: planted.name)
def test_the_simulation_finds(planted: Planted, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    # What happens in a seed changes with the code; then another one finds it.
    seeds = [planted.seed, *(seed for seed in range(SEEDS_MAX) if seed != planted.seed)]
    found = find(planted, database, seeds)
    assert found is not None, f"{SEEDS_MAX} seeds did not find it"
    print(f"seed {found[0]}: {found[1]}")


@pytest.mark.parametrize("planted", ALL, ids=lambda planted: planted.name)
def test_nothing_is_found_where_nothing_was_planted(planted: Planted, database: Database) -> None:
    assert find(planted, database, [planted.seed]) is None
