"""Hundreds of seeds: whatever dies, is lost, repeated, delayed or set wrong, nothing acknowledged is missing and nothing is twice."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from simulation.database import Database
from simulation.running import empty_database, simulate

# The same seeds in every run of the suite, and others each day; `make explore` runs 10,000 new ones. A failure names its seed.
FIXED_SEEDS = 300
MOVING_SEEDS = 100
AT_ONCE = 50
TESTS = Path(__file__).parents[1]

# Each is many seeds, which take their time on a busy machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """One database for many seeds, emptied for each."""
    with empty_database() as database:
        yield database


@pytest.mark.parametrize("first", range(0, FIXED_SEEDS, AT_ONCE), ids=lambda first: f"seeds-{first}")
def test_whatever_happens_everything_ends_as_the_sequential_model_says(
    database: Database, first: int
) -> None:
    for seed in range(first, first + AT_ONCE):
        simulate(seed, database)


@pytest.mark.parametrize("offset", range(0, MOVING_SEEDS, AT_ONCE), ids=lambda offset: f"today-{offset}")
def test_so_it_does_with_the_seeds_of_the_day(database: Database, offset: int) -> None:
    first = 1_000_000 + date.today().toordinal() * MOVING_SEEDS + offset
    for seed in range(first, first + AT_ONCE):
        simulate(seed, database)


def test_a_seed_is_the_same_course_of_things_again(database: Database) -> None:
    for seed in (3, 12, 57, 217):
        first = simulate(seed, database, traces=True)
        again = simulate(seed, database, traces=True)
        assert len(first.trace) > 20
        assert first.lines() == again.lines()


def test_a_seed_is_the_same_in_another_process(database: Database) -> None:
    here = simulate(217, database, traces=True).fingerprint
    command = [sys.executable, "-m", "simulation", "--seed", "217", "--trace"]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert f"course of things: {here}" in there.stdout
