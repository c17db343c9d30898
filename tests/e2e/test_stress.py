"""`make stress`, with a few runs: what it needs is there, and it ends by itself with nothing wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[1] / "torture" / "stress.py"
POSTGRES = ["--database", "postgres", "--servers", "2"]
CLEAN = (
    "lost 0  doubled 0  reordered 0  backwards 0  unfinished 0  broken 0",
    "leaked slot 0  miscounted 0",
    "wrong status 0  not cancelled 0  key twice 0  child twice 0  too early 0  left behind 0  memory 0",
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", [[], POSTGRES], ids=["SQLite", "PostgreSQL"])
def test_a_little_stress(database: list[str]) -> None:
    arguments = [*database, "--runs", "600", "--workers", "2", "--seed", "10"]
    ended = subprocess.run(
        [sys.executable, str(STRESS), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for words in CLEAN:
        assert words in ended.stdout
    for fault in ("server killed", "server restarted in order"):
        assert fault in ended.stdout
