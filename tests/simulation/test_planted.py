"""The witness and the judge of runs are checked: mistakes outside metadata are put into the code, and the simulation finds each.

Here with seeds that are known to find them; `python -m simulation --planted` looks for them from the first seed on.
"""

from collections.abc import Iterator

import pytest

from milepost.store.database import Store
from simulation.planted import PLANTS, SEEDS_MAX, Planted, find
from simulation.running import empty_store


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with empty_store() as store:
        yield store


@pytest.mark.parametrize("planted", PLANTS, ids=lambda planted: planted.name)
def test_the_simulation_finds(planted: Planted, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    # What happens in a seed changes with the code; then another one finds it.
    seeds = [planted.seed, *(seed for seed in range(SEEDS_MAX) if seed != planted.seed)]
    found = find(planted, store, seeds)
    assert found is not None, f"{SEEDS_MAX} seeds did not find it"
    print(f"seed {found[0]}: {found[1]}")


@pytest.mark.parametrize("planted", PLANTS, ids=lambda planted: planted.name)
def test_nothing_is_found_where_nothing_was_planted(planted: Planted, store: Store) -> None:
    assert find(planted, store, [planted.seed]) is None
